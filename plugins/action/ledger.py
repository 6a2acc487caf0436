# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Runs the module ledger and keeps what it found as testimony for the guards."""

from __future__ import annotations

from ansible_collections.kmsops.fortanix_dsm.plugins.plugin_utils._testimony import WitnessAction


class ActionModule(WitnessAction):
    MODULE = "ledger"
