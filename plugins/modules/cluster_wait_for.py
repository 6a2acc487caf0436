#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_wait_for
short_description: Waits until a Fortanix DSM cluster shows one named condition
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Waits, without side effects, until a condition is seen. When it is not seen in time, the task fails and returns
    what was seen last.
  - In check mode it looks once and returns whether the condition is met, since what it would wait for may not have
    been done.
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
  - kmsops.fortanix_dsm.kubeconfig
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
  condition:
    description:
      - V(node_object) - Kubernetes has a node object for O(node).
      - V(member_ready) - O(node) is ready, up and normal in the database ring, and its backend and database pods are
        ready.
      - V(node_absent) - O(node) is gone from Kubernetes and from the database ring.
      - V(ring_normal) - every node (or O(node)) is up and normal in the database ring.
      - V(api_up), V(health_quorum), V(health_all) - this node's API answers that it is healthy, with that
        consistency.
    type: str
    required: true
    choices: [member_ready, ring_normal, health_all, health_quorum, node_absent, node_object, api_up]
  node:
    description:
      - Name or address of the node that the condition is about.
    type: str
  timeout:
    default: 600
  interval:
    description:
      - How long to wait between two looks, in seconds.
    type: float
    default: 3
"""

EXAMPLES = r"""
- name: Wait until the DR node is a whole member
  kmsops.fortanix_dsm.cluster_wait_for:
    condition: member_ready
    node: dr1
    timeout: 1800
"""

RETURN = r"""
met:
  description: Whether the condition was seen. Always true unless in check mode.
  returned: success
  type: bool
elapsed:
  description: Seconds waited.
  returned: success
  type: float
last_state:
  description: What was seen last.
  returned: success
  type: dict
"""

import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _cluster, _errors, _module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import topology

OF_THE_API = {"api_up": "plain", "health_quorum": "quorum", "health_all": "all"}
CHOICES = ["member_ready", "ring_normal", "health_all", "health_quorum", "node_absent", "node_object", "api_up"]


def look(shell: _module.Shell) -> tuple[bool, t.Any]:
    """One look: whether the condition is met, and what was seen."""
    condition, node = shell.params["condition"], shell.params["node"]
    if condition in OF_THE_API:
        api = _cluster.api_of(shell.params, shell.host_identity().addresses)
        if api is None:
            raise _errors.Refused(
                "The API cannot be asked without knowing how to verify it.", "API_UNDECLARED", "Give ca_path."
            )
        answer = api.ask_health(OF_THE_API[condition])
        return answer.status == 204, answer.as_dict()
    reader = _cluster.ClusterReader(shell.runner, shell.params["kubeconfig"])
    if condition == "node_object":
        found = [entry for entry in reader.nodes() if node in (entry.name, *entry.addresses)]
        return bool(found), {"nodes": [entry.name for entry in found]}
    cluster = reader.read()
    member = cluster.member(node) if node else None
    seen = {"node": member.as_dict() if member else None, "ring_known": cluster.ring_known}
    if condition == "ring_normal":
        entries = [member] if node else list(cluster.members)
        ring = {entry.name: entry.ring.code if entry.ring else None for entry in entries if entry}
        return bool(ring) and all(code == "UN" for code in ring.values()), dict(seen, ring=ring)
    if condition == "node_absent":
        return member is None and cluster.ring_known, seen
    return member is not None and topology.whole(member), seen


def body(shell: _module.Shell) -> _module.Outcome:
    if shell.check_mode:
        try:
            met, seen = look(shell)
        except (_cluster.ClusterUnavailable, _errors.Unreadable) as error:
            met, seen = False, {"error_code": error.code, "message": error.message}
        return _module.Outcome(False, met=met, elapsed=0.0, last_state=seen)
    what = " ".join(filter(None, [shell.params["condition"], shell.params["node"]]))
    elapsed, seen = _cluster.wait_until(
        lambda: look(shell),
        shell.params["timeout"],
        shell.params["interval"],
        what,
        "See last_state for what is missing.",
    )
    return _module.Outcome(False, met=True, elapsed=elapsed, last_state=seen)


def main() -> None:
    spec = dict(
        _module.kubeconfig_spec(600.0),
        condition={"type": "str", "required": True, "choices": CHOICES},
        node={"type": "str"},
        interval={"type": "float", "default": 3},
    )
    spec.update(_cluster.api_spec())
    needs_node = [("condition", name, ["node"]) for name in ("member_ready", "node_absent", "node_object")]
    _module.run_module(spec, body, required_if=needs_node)


if __name__ == "__main__":
    main()
