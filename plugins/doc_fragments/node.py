# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Options of modules that find out about the node they run on."""

from __future__ import annotations


class ModuleDocFragment:
    """``state_paths`` by itself, and ``api_*`` as the variation ``own_api``."""

    DOCUMENTATION = r"""
options:
  state_paths:
    description:
      - Where Kubernetes and the database keep their state on this node.
      - A node where none of these holds a file is clean.
    type: list
    elements: path
    default:
      - /etc/kubernetes
      - /var/lib/etcd
      - /var/lib/cassandra
"""

    OWN_API = r"""
options:
  api_address:
    description:
      - Address of this node's own DSM API.
      - When absent, the node's first address, and the API is only asked when O(ca_path) or O(ca_pem) is given.
    type: str
  api_port:
    description:
      - Port of this node's own DSM API.
    type: int
    default: 443
  api_host:
    description:
      - The name that the API certificate is verified for. O(api_address) when absent.
    type: str
  ca_path:
    description:
      - A PEM file of the certification authorities that may have signed the API certificate.
      - Verification cannot be switched off.
    type: path
  ca_pem:
    description:
      - The text of such a file, for a node that does not have it.
    type: str
"""
