# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs about what runs on the hosts: the database's quorum, the API server's tokens, and what can be opened where."""

from __future__ import annotations

from labctl.proofs import Proof

WITH_PRODUCTION: tuple[Proof, ...] = ()
