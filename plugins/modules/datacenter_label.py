#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: datacenter_label
short_description: Labels the nodes of a Fortanix DSM cluster with their data centres
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs on a member. Takes the desired map of all nodes and sets the Kubernetes label C(datacenter) where it differs.
  - Labels are what makes read-only mode possible when the global quorum is lost.
  - The first label of a node is not a relabelling. Changing the label of a node that holds data moves replicas, and
    needs V(RELABEL) in O(accept).
  - A node must be labelled as soon as its object appears, before its database starts. Nodes where that came too late
    are returned in RV(late).
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
  labels:
    description:
      - Node names, as C(kubectl get nodes) prints them, and their data centres. All nodes belong in it.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Label all nodes
  kmsops.fortanix_dsm.datacenter_label:
    labels:
      dc1-n1: dc1
      dc2-n1: dc2
      dc3-n1: dc3
      dr1: oor
"""

RETURN = r"""
before:
  description: Data centre of every node before, null where there was none.
  returned: success
  type: dict
after:
  description: Data centre of every node after, predicted in check mode.
  returned: success
  type: dict
late:
  description:
    - Nodes whose database had already started in another data centre (LABELLED_LATE). The vendor's article "Data
      Center Labeling" has the step for those.
  returned: success
  type: list
  elements: str
accepted:
  description: Soft reasons that were accepted.
  returned: success
  type: list
  elements: dict
"""

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _cluster, _errors, _module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import model, topology


def body(shell: _module.Shell) -> _module.Outcome:
    reader = _cluster.ClusterReader(shell.runner, shell.params["kubeconfig"], shell.params["timeout"])
    wanted = {str(node): str(datacenter) for node, datacenter in shell.params["labels"].items()}
    cluster = reader.read()
    plan = topology.plan_labels(cluster, wanted)
    accepted = _errors.refuse_unless_accepted(
        plan.reasons, shell.params["accept"], "The data centres were not labelled.", labels=wanted
    )
    after = plan.after
    if not shell.check_mode:
        for node, datacenter in plan.change.items():
            reader.label(node, model.DATACENTER_LABEL, datacenter, overwrite=node in plan.overwrite)
        if plan.change:
            cluster = reader.read()
            after = {m.name: m.datacenter for m in cluster.members if m.in_kubernetes and m.name in plan.before}
    late = topology.labelled_late(cluster)
    if late:
        shell.warn(
            f"LABELLED_LATE: the database of {', '.join(late)} had already started in another data centre. "
            "See the vendor's article 'Data Center Labeling'."
        )
    return _module.Outcome(
        bool(plan.change),
        plan.before,
        dict(sorted(after.items())),
        late=late,
        accepted=[reason.as_dict() for reason in accepted],
    )


def main() -> None:
    spec = dict(_module.kubeconfig_spec(), labels={"type": "dict", "required": True})
    spec.update(_module.accept_spec())
    _module.run_module(spec, body)


if __name__ == "__main__":
    main()
