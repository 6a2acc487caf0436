# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""The option by which production is declared, so that isolation can be probed."""

from __future__ import annotations


class ModuleDocFragment:
    """``isolation``."""

    DOCUMENTATION = r"""
options:
  isolation:
    description:
      - What this host must be isolated from. It is probed from this host, right before anything is done.
      - An endpoint that answers is a refusal. One that refuses the connection instead of staying silent is the soft
        reason V(ISOLATION_UNPROVED), because a filter may have sent that refusal.
    type: dict
    required: true
    suboptions:
      service_name:
        description:
          - The name that clients use. It must not lead to this host.
        type: str
      service_address:
        description:
          - The address that clients use. It must not be on this host, not even on its loopback interface.
        type: str
      production_endpoints:
        description:
          - Every endpoint of production.
        type: list
        elements: dict
        required: true
        suboptions:
          address:
            description:
              - Address or name.
            type: str
            required: true
          port:
            description:
              - TCP port.
            type: int
            default: 443
      timeout:
        description:
          - How long silence must last to count as silence, in seconds for each endpoint.
        type: float
        default: 3
"""
