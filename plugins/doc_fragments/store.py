# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

"""Options of modules that work on a store."""

from __future__ import annotations


class ModuleDocFragment:
    """``store`` by itself; whose part of it, and what some of these modules share, as variations."""

    DOCUMENTATION = r"""
options:
  store:
    description: Root directory of the store. Role P(kmsops.fortanix_dsm.backup_store#role) makes it.
    type: path
    required: true
"""

    CLUSTER = r"""
options:
  cluster_id:
    description: The cluster. Not needed in a store that holds only one.
    type: str
  fingerprint:
    description: As O(cluster_id), named by the fingerprint of any of its generations.
    type: str
"""

    NEW = r"""
options:
  new_cluster:
    description: Say V(true) once to keep a second cluster in a store that already belongs to one.
    type: bool
    default: false
"""

    RUN = r"""
options:
  run_id:
    description:
      - The run that this belongs to. It goes into what the store remembers of it.
      - A second try under the same name finds what the first one wrote, and does not write it again.
    type: str
    default: ''
"""

    PARTS = r"""
options:
  require:
    description:
      - Parts that a backup needs to be complete beside its data (M(kmsops.fortanix_dsm.backup_part)).
      - A backup that lacks one is listed as incomplete, fails verification with the soft reason V(INCOMPLETE), and does
        not count as a verified copy. Verification reads every byte of the newest bundle of each.
    type: list
    elements: str
    choices: [config, secrets]
    default: []
"""

    METRICS = r"""
options:
  metrics:
    description:
      - Write an OpenMetrics text file for a node exporter's textfile directory, C(/var/lib/node_exporter/dsm.prom) for
        example.
    type: path
"""
