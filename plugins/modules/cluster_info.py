#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_info
short_description: Reads what a Fortanix DSM node and its cluster look like
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Reads, from one node, who the node is, whether it is a member of a cluster, and what its cluster looks like.
    Nodes, pods and labels come from Kubernetes, the ring from the database, version and health from the node's own
    API.
  - Its result is also kept on the controller, for two minutes, as testimony for the modules that can hurt
    (M(kmsops.fortanix_dsm.cluster_reset), M(kmsops.fortanix_dsm.cluster_remove),
    M(kmsops.fortanix_dsm.cluster_create), M(kmsops.fortanix_dsm.restore)).
  - A node that is no member is a valid answer and no failure.
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
  - kmsops.fortanix_dsm.kubeconfig
  - kmsops.fortanix_dsm.node
  - kmsops.fortanix_dsm.node.own_api
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
    details:
      - It only reads.
  idempotent:
    support: full
options:
  timeout:
    description:
      - How long to wait for one answer of the control plane, in seconds.
    type: float
    default: 60
"""

EXAMPLES = r"""
- name: Ask every production member, whether or not it answers
  kmsops.fortanix_dsm.cluster_info:
    ca_path: /etc/dsm/ca.pem
    api_host: dsm.example.com
  delegate_to: "{{ member }}"
  loop: "{{ groups['dsm_nodes'] }}"
  loop_control:
    loop_var: member
  ignore_unreachable: true
  register: production
"""

RETURN = r"""
host:
  description: Who this node says it is.
  returned: success
  type: dict
  sample: {"name": "dr1", "addresses": ["10.66.9.11"], "serial": "S-0001", "python": "3.8.10"}
membership:
  description:
    - V(none) - the node holds no state of a cluster. V(member) - its control plane lists it, or its service is
      healthy. V(leftover) - it holds state, but is out. V(unknown) - nobody can say.
  returned: success
  type: str
  sample: member
membership_why:
  description: What that was concluded from.
  returned: success
  type: str
  sample: its own control plane lists it
fingerprint:
  description: SHA-256 of the public key of the Kubernetes CA on this node, or null.
  returned: success
  type: str
cluster:
  description: The cluster as this node shows it; null when its control plane does not answer.
  returned: success
  type: dict
  contains:
    uid:
      description: Uid of the namespace C(kube-system).
      type: str
    fingerprint:
      description: SHA-256 of the public key of the Kubernetes CA.
      type: str
    version:
      description: DSM version, or null when the API was not asked.
      type: str
    server_mode:
      description: V(Sgx) or V(Software), or null.
      type: str
    nodes:
      description: Name, addresses, readiness, label, creation time, ring state, host id and pods of every node.
      type: list
      elements: dict
    ring_known:
      description: Whether the database ring could be read.
      type: bool
    quorum:
      description: Size, quorum and nodes that are up, globally and for each data centre.
      type: dict
    state:
      description: V(full), V(read_only) or V(down), by counting.
      type: str
    health:
      description: The three answers of the health endpoint, empty when the API was not asked.
      type: dict
    thin_spots:
      description: Where the cluster is weaker than one may think, each with C(code) and C(message).
      type: list
      elements: dict
marker:
  description: The marker of a trial that this collection made on this node, or null.
  returned: success
  type: dict
"""

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _cluster, _module, _node
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.testimony import Party


def body(shell: _module.Shell) -> _module.Outcome:
    host = shell.host_identity()
    reader = _cluster.ClusterReader(shell.runner, shell.params["kubeconfig"], shell.params["timeout"])
    api = _cluster.api_of(shell.params, host.addresses)
    membership, why, cluster = _cluster.own_standing(
        reader,
        shell.params["kubeconfig"],
        Party(host.name, tuple(host.addresses)),
        shell.params["state_paths"],
        api,
    )
    described = None
    if cluster is not None:
        described = _cluster.describe(cluster)
        described["uid"] = reader.uid()
    if described is not None and api is not None:
        described["health"] = {name: answer.as_dict() for name, answer in api.health_answers().items()}
        described["version"], described["server_mode"] = _cluster.ask_version(api)
    return _module.Outcome(
        False,
        host=host.as_dict(),
        membership=membership,
        membership_why=why,
        fingerprint=_node.local_fingerprint(shell.params["kubeconfig"]),
        cluster=described,
        marker=_node.read_marker(),
    )


def main() -> None:
    spec = dict(_module.kubeconfig_spec(60.0), **_node.state_paths_spec())
    spec.update(_cluster.api_spec())
    _module.run_module(spec, body)


if __name__ == "__main__":
    main()
