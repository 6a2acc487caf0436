#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_join
short_description: Makes this node a member of a Fortanix DSM cluster
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs on the joining node. A clean node joins, a member of this cluster is left alone, a member of another one is
    refused.
  - The vendor's command runs as a detached operation. It survives the death of whoever started it, and a second run
    of this module attaches to it instead of starting another.
  - A join that waits for a person's approval is a state of its own and no failure. Run the module again to go on.
  - The outcome is read from the cluster and not from what the command says.
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
  - kmsops.fortanix_dsm.kubeconfig
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.node
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  peer:
    description:
      - Address of a member.
    type: str
    required: true
  token:
    description:
      - The join token, from M(kmsops.fortanix_dsm.join_token). It is in no result and in no record, but the vendor's
        command shows it in the process list of this node while it runs.
    type: str
    required: true
  token_expires:
    description:
      - When the token expires, UTC, as M(kmsops.fortanix_dsm.join_token) returns it. A token that has expired by the
        clock of this host is the soft reason V(TOKEN_EXPIRED). Not looked at when absent.
    type: str
  members:
    description:
      - Names and addresses of the nodes of the cluster, as M(kmsops.fortanix_dsm.cluster_info) of a member tells them.
        A O(peer) that is none of them is the soft reason V(PEER_NOT_MEMBER). Not looked at when empty.
    type: list
    elements: str
    default: []
  node_name:
    description:
      - Name that this node gets in the cluster. Its host name when absent.
    type: str
  datacenter:
    description:
      - The data centre that this node was labelled with. When its database started in another one, a warning says so.
    type: str
  own_version:
    description:
      - DSM release of this node, when known.
    type: str
  cluster_version:
    description:
      - DSM release of the cluster, when known. A difference is the soft reason V(VERSION).
    type: str
  peer_ports:
    description:
      - Ports of which at least one must be open on the peer.
    type: list
    elements: int
    default: [6443, 443]
  approval_pattern:
    description:
      - A regular expression. When it is found in what the vendor's command prints, the join waits for approval.
    type: str
    default: (?i)approv|pending
  trial:
    description:
      - The marker of a trial, as M(kmsops.fortanix_dsm.cluster_create) returns it, when this node joins one. The node
        gets a copy, without which it could not be reset because of C(own_trial) later.
    type: dict
  extra_args:
    description:
      - More arguments for the vendor's command, for releases that need them.
    type: list
    elements: str
    default: []
  wait:
    description:
      - Whether to wait until the node is a member. Without it the module returns as soon as the operation runs.
    type: bool
    default: true
  run_id:
    description:
      - Names the run in the operation record.
    type: str
  timeout:
    default: 3600
"""

EXAMPLES = r"""
- name: Join, while another task labels the node as soon as it appears
  kmsops.fortanix_dsm.cluster_join:
    peer: 10.66.1.11
    token: "{{ join.token }}"
    wait: false
  no_log: true

- name: Wait until it is a member
  kmsops.fortanix_dsm.cluster_join:
    peer: 10.66.1.11
    token: "{{ join.token }}"
    timeout: 7200
  register: joined
  no_log: true
"""

RETURN = r"""
state:
  description: V(joining), V(awaiting_approval) or V(member). Check mode predicts V(member).
  returned: success
  type: str
joined_at:
  description: When the node appeared in the cluster, UTC.
  returned: RV(state) is V(member)
  type: str
  sample: "2026-11-22T01:02:03Z"
version:
  description: The release that the cluster was said to run.
  returned: success
  type: str
fingerprint:
  description: SHA-256 of the public key of the cluster's Kubernetes CA.
  returned: RV(state) is V(member)
  type: str
node:
  description: The node as the cluster shows it.
  returned: RV(state) is V(member)
  type: dict
vendor_words:
  description: The end of what the vendor's command printed, without the token.
  returned: RV(state) is V(awaiting_approval)
  type: str
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

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _joining, _module, _node


def main() -> None:
    spec = dict(
        _module.kubeconfig_spec(3600.0),
        peer={"type": "str", "required": True},
        token={"type": "str", "required": True, "no_log": True},
        token_expires={"type": "str", "no_log": False},
        members={"type": "list", "elements": "str", "default": []},
        node_name={"type": "str"},
        datacenter={"type": "str"},
        own_version={"type": "str"},
        cluster_version={"type": "str"},
        peer_ports={"type": "list", "elements": "int", "default": [6443, 443]},
        approval_pattern={"type": "str", "default": "(?i)approv|pending"},
        trial={"type": "dict"},
        extra_args={"type": "list", "elements": "str", "default": []},
        wait={"type": "bool", "default": True},
        run_id={"type": "str"},
    )
    spec.update(_module.accept_spec())
    spec.update(_node.state_paths_spec())
    _module.run_module(spec, lambda shell: _joining.Joining(shell).run())


if __name__ == "__main__":
    main()
