# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The option by which a person accepts soft reasons."""

from __future__ import annotations


class ModuleDocFragment:
    """``accept``."""

    DOCUMENTATION = r"""
options:
  accept:
    description:
      - Codes of soft reasons that are accepted, for instance V(UNVERIFIED). They are recorded in the result.
      - Hard reasons (production, alive, foreign, not isolated, not a DR host) cannot be accepted.
    type: list
    elements: str
    default: []
"""
