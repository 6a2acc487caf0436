# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rehearsal that a person starts with `make rehearsal`: steps, evidence, report."""
