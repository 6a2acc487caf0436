# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks of all stories share. molecule runs each of them against every host."""

from __future__ import annotations

import pytest


@pytest.fixture
def of(host):
    """Called with the hosts that a check is about: the name of this one, or the check is skipped here."""

    def name_of(*names):
        name = host.backend.get_hostname()
        if name not in names:
            pytest.skip(f"not about {name}")
        return name

    return name_of
