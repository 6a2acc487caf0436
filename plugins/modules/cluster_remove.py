#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_remove
short_description: Removes a node from a Fortanix DSM cluster
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs on a survivor. Refuses unless the survivors that are up reach the quorum of the size before and of the size
    after, and every other node that is down is named in O(also_dead).
  - Loss of quorum is no reason to remove nodes, because they rejoin by themselves on reboot.
  - A removal that stopped half-way, gone from Kubernetes but not from the database ring or the other way round, is
    finished.
  - The outcome is read from the cluster and not from what the vendor's command says.
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
  - kmsops.fortanix_dsm.kubeconfig
  - kmsops.fortanix_dsm.accept
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  node:
    description:
      - Name of the node to remove, as C(kubectl get nodes) prints it.
    type: str
    required: true
  also_dead:
    description:
      - Names of other nodes that are known to be gone for good.
    type: list
    elements: str
    default: []
  minimum_size:
    description:
      - Removing a healthy node may not leave fewer than this many (soft reason V(BELOW_MINIMUM)). It does not bind
        for a dead one.
    type: int
    default: 3
  confirm:
    description:
      - The name of the host that this runs on, the survivor, as that host itself gives it.
    type: str
    required: true
  expected_addresses:
    description:
      - Addresses that the host that this runs on must carry, all of them.
    type: list
    elements: str
    default: []
  expected_serial:
    description:
      - Serial number of the host that this runs on. Not compared when absent.
    type: str
  extra_args:
    description:
      - More arguments for the vendor's command, for releases that need them.
    type: list
    elements: str
    default: []
  run_id:
    description:
      - Names the run in the operation record.
    type: str
  testimony:
    description:
      - What other hosts said in this play. The module's action plugin fills it in. A task that gives it is refused.
    type: dict
  timeout:
    default: 1800
"""

EXAMPLES = r"""
- name: Remove the DR node
  kmsops.fortanix_dsm.cluster_remove:
    node: dr1
    confirm: dc1-n1
  delegate_to: dc1-n1
"""

RETURN = r"""
state:
  description: V(removed), or V(absent) when there was nothing to remove.
  returned: success
  type: str
node:
  description: The node as the cluster showed it before; null when it was absent.
  returned: success
  type: dict
cluster:
  description: The cluster afterwards (before, in check mode).
  returned: success
  type: dict
accepted:
  description: Soft reasons that were accepted.
  returned: success
  type: list
  elements: dict
"""

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _cluster, _errors, _module, _runner
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import membership
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.testimony import Party

REPEAT = "Read the state with cluster_info. A second run of this finishes what is half done."


def names(cluster):
    return {"nodes": sorted(member.name for member in cluster.members)}


def decide(shell, cluster, target, host):
    """All reasons against it, and the soft ones that were accepted."""
    params = shell.params
    heard = _module.require_testimony(params)
    reasons = _module.identity_reasons(host, params["confirm"], params["expected_addresses"], params["expected_serial"])
    reasons += _runner.argv_reasons([params["node"], *params["extra_args"]])
    reasons += membership.removal_reasons(
        cluster,
        target,
        Party(host.name, tuple(host.addresses)),
        params["also_dead"],
        params["minimum_size"],
        heard,
    )
    return _errors.refuse_unless_accepted(reasons, params["accept"], f"{target.name} is not removed.")


def act(shell, reader, name):
    """Run the vendor's command, or attach to it, and wait until the node is gone from everywhere."""
    params = shell.params
    argv = ["sdkms-cluster", "remove", "--node", name, *params["extra_args"]]
    ended = shell.operations.start_or_attach("remove", argv, timeout=params["timeout"])

    def gone():
        seen = reader.read()
        member = seen.member(name, params["node"])
        return member is None and seen.ring_known, {"node": member.as_dict() if member else None, "cluster": seen}

    try:
        _elapsed, seen = _cluster.wait_until(gone, params["timeout"] if ended.rc == 0 else 30.0, 2.0, f"{name} is gone")
    except _errors.TimedOut as error:
        still = error.details.get("last_state") or {}
        raise _errors.CommandFailed(
            f"sdkms-cluster remove ended with exit code {ended.rc}, but {name} is not gone: "
            f"{ended.output_tail.strip()[-300:] or 'no output'}",
            "REMOVE_INCOMPLETE",
            REPEAT,
            rc=ended.rc,
            node=still.get("node"),
        ) from None
    if ended.rc != 0:
        shell.warn(f"sdkms-cluster remove ended with exit code {ended.rc}, but {name} is gone.")
    return seen["cluster"]


def body(shell: _module.Shell) -> _module.Outcome:
    params = shell.params
    host = shell.host_identity()
    reader = _cluster.ClusterReader(shell.runner, params["kubeconfig"])
    cluster = reader.read(prefer_node=host.name)
    target = cluster.member(params["node"])
    before = names(cluster)
    if target is None and cluster.ring_known:
        described = _cluster.describe(cluster)
        return _module.Outcome(False, before, before, state="absent", node=None, cluster=described, accepted=[])
    if target is None:
        raise _errors.Refused(
            f"{params['node']} is no node of Kubernetes, and the database ring could not be read: "
            f"{cluster.ring_problem}. So nobody can say whether it is gone.",
            "RING_UNKNOWN",
            REPEAT,
        )
    status = shell.operations.status("remove")
    under_way = status is not None and status.running
    accepted = [] if under_way else decide(shell, cluster, target, host)
    name = target.name if target.in_kubernetes else params["node"]
    after = {"nodes": [known for known in before["nodes"] if known != target.name]}
    if not shell.check_mode:
        shell.require_confirmed_host(params["confirm"], params["expected_addresses"], params["expected_serial"])
        cluster = act(shell, reader, name)
        after = names(cluster)
    return _module.Outcome(
        True,
        before,
        after,
        state="removed",
        node=target.as_dict(),
        cluster=_cluster.describe(cluster),
        accepted=[reason.as_dict() for reason in accepted],
    )


def main() -> None:
    spec = dict(
        _module.kubeconfig_spec(1800.0),
        node={"type": "str", "required": True},
        also_dead={"type": "list", "elements": "str", "default": []},
        minimum_size={"type": "int", "default": 3},
        extra_args={"type": "list", "elements": "str", "default": []},
    )
    spec.update(_module.accept_spec())
    spec.update({key: value for key, value in _module.confirmed_spec().items() if key != "host_role"})
    _module.run_module(spec, body)


if __name__ == "__main__":
    main()
