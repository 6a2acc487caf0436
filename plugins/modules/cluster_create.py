#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_create
short_description: Bootstraps a Fortanix DSM cluster on an isolated DR node
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs on the DR node. Refuses on a member, on state that is not of the same run, on a host that is not declared for
    disaster recovery, and on a host that is not isolated from production.
  - Creates the cluster with a derived copy of the configuration, from which production's backup destinations are
    removed (or pointed to O(drop_directory)), because the backup jobs of the new cluster fire like any other.
  - Writes a marker before anything starts. By that marker the cluster is known as this collection's own, and can be
    reset.
  - The vendor's command runs as a detached operation, and a second run of this module attaches to it.
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
  - kmsops.fortanix_dsm.kubeconfig
  - kmsops.fortanix_dsm.confirmed
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.node
  - kmsops.fortanix_dsm.isolation
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  self_address:
    description:
      - Address of this host with its mask, such as V(192.0.2.11/24).
    type: str
    required: true
  config:
    description:
      - Path of the escrowed C(config.yaml) on this host.
    type: path
    required: true
  drop_directory:
    description:
      - Where the backups of the new cluster are delivered to, on the server that the configuration names. A directory
        of this run's own. Without it the new cluster makes no backups.
    type: str
  forbidden_paths:
    description:
      - Every path that production delivers to or that the store keeps. None of them may be in the derived
        configuration.
    type: list
    elements: str
    default: []
  own_version:
    description:
      - DSM release of this node, when known.
    type: str
  run_id:
    description:
      - Names the run. A create that stopped half-way goes on only under the same name.
    type: str
    required: true
  timeout:
    default: 1800
"""

EXAMPLES = r"""
- name: Bootstrap the DR node
  kmsops.fortanix_dsm.cluster_create:
    self_address: 203.0.113.11/24
    config: /etc/dsm/config.yaml
    confirm: dr1
    host_role: dr
    run_id: 2026-11-22-drill
    forbidden_paths: [/home/dsmbackup/backup]
    isolation:
      service_name: dsm.example.com
      production_endpoints:
        - address: 192.0.2.11
        - address: 192.0.2.12
"""

RETURN = r"""
fingerprint:
  description: SHA-256 of the public key of the new cluster's Kubernetes CA; null in check mode.
  returned: success
  type: str
derived_config:
  description: Path of the configuration that the cluster was created with.
  returned: success
  type: str
marker:
  description: The marker on this node.
  returned: success
  type: dict
removed_blocks:
  description: Blocks of the configuration that were taken out.
  returned: success
  type: list
  elements: str
host:
  description: Who this node says it is.
  returned: success
  type: dict
accepted:
  description: Soft reasons that were accepted.
  returned: success
  type: list
  elements: dict
"""

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _creating, _isolation, _module, _node


def main() -> None:
    spec = dict(
        _module.kubeconfig_spec(1800.0),
        self_address={"type": "str", "required": True},
        config={"type": "path", "required": True},
        drop_directory={"type": "str"},
        forbidden_paths={"type": "list", "elements": "str", "default": []},
        own_version={"type": "str"},
    )
    for more in (
        _module.confirmed_spec(),
        _module.accept_spec(),
        _node.state_paths_spec(),
        _isolation.isolation_spec(),
    ):
        spec.update(more)
    spec["run_id"] = {"type": "str", "required": True}
    _module.run_module(spec, lambda shell: _creating.Creating(shell).run())


if __name__ == "__main__":
    main()
