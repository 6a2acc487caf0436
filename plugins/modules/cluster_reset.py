#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_reset
short_description: Wipes a Fortanix DSM node that is no member of production
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs on the node to be wiped. A clean node is left alone. Any other one needs O(because), one of three causes,
    each with its own proof. Whatever is none of them is refused.
  - V(removed) needs the testimony of a majority of the members that were last recorded, given in this play by
    M(kmsops.fortanix_dsm.cluster_info), none of which lists this node, and the node itself must show no live
    membership.
  - V(own_trial) needs the marker that M(kmsops.fortanix_dsm.cluster_create) wrote on this node (or
    M(kmsops.fortanix_dsm.cluster_join) copied to it), a cluster that is not production's, was never opened to
    clients, and has only members out of O(trial_hosts). Production need not be reachable.
  - V(retired) needs a ledger that shows a newer generation, accepted, with three healthy nodes and a verified backup,
    and an approval.
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
  - kmsops.fortanix_dsm.kubeconfig
  - kmsops.fortanix_dsm.confirmed
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.node
  - kmsops.fortanix_dsm.node.own_api
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  because:
    description:
      - The cause.
    type: str
    required: true
    choices: [removed, own_trial, retired]
  trial_hosts:
    description:
      - With V(own_trial), names of all hosts that the inventory declares as DR, spare or rollback hosts.
    type: list
    elements: str
    default: []
  approval:
    description:
      - With V(retired), who approved it and why.
    type: dict
    suboptions:
      by:
        description:
          - Name of the person.
        type: str
        required: true
      reason:
        description:
          - Why.
        type: str
        required: true
  extra_args:
    description:
      - More arguments for the vendor's command, for releases that need them.
    type: list
    elements: str
    default: []
  timeout:
    default: 900
"""

EXAMPLES = r"""
- name: Hear every production member
  kmsops.fortanix_dsm.cluster_info:
  delegate_to: "{{ member }}"
  loop: "{{ production }}"
  loop_control:
    loop_var: member
  ignore_unreachable: true

- name: Read the recorded members
  kmsops.fortanix_dsm.ledger:
    store: /srv/dsm-store
    fingerprint: "{{ fingerprint }}"
    state: read
  delegate_to: "{{ store }}"

- name: Wipe the node that was removed
  kmsops.fortanix_dsm.cluster_reset:
    because: removed
    confirm: dr1
    host_role: dr
    expected_addresses: [10.66.9.11]
"""

RETURN = r"""
state:
  description: V(clean), or in check mode what it would be.
  returned: success
  type: str
because:
  description: The cause that was proved; null when there was nothing to do.
  returned: success
  type: str
witnesses:
  description: Hosts that testified.
  returned: success
  type: list
  elements: str
accepted:
  description: Soft reasons that were accepted.
  returned: success
  type: list
  elements: dict
"""

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _cluster, _errors, _module, _node, _runner
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import membership
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.testimony import Party

OTHERS = ("join", "create", "remove", "restore")


def holding(shell):
    """What is on this node: state of a cluster, and markers."""
    markers = (_node.TRIAL_MARKER, _node.OPENED_MARKER)
    return {"state": _node.present_state(shell.params["state_paths"]), "markers": _node.present_state(markers)}


def runs(shell, operation):
    return bool(shell.operations.running(operation))


def decide(shell, host, heard):
    """All reasons against it, and the soft ones that were accepted."""
    params = shell.params
    me = Party(host.name, tuple(host.addresses), heard.host_id_of(host.name))
    reader = _cluster.ClusterReader(shell.runner, params["kubeconfig"])
    api = _cluster.api_of(params, host.addresses)
    standing, why, cluster = _cluster.own_standing(reader, params["kubeconfig"], me, params["state_paths"], api)
    members = cluster.members if cluster else ()
    case = membership.ResetCase(
        subject=me,
        host_role=params["host_role"],
        membership=standing,
        membership_why=why,
        fingerprint=_node.local_fingerprint(params["kubeconfig"]),
        marker=_node.read_marker(),
        opened=bool(_node.present_state([_node.OPENED_MARKER])),
        own_listed=tuple(Party(member.name, member.addresses) for member in members),
        trial_hosts=tuple(params["trial_hosts"]),
        approval=params["approval"],
        testimony=heard,
    )
    reasons = _module.identity_reasons(host, params["confirm"], params["expected_addresses"], params["expected_serial"])
    reasons += membership.reset_reasons(params["because"], case)
    reasons += _runner.argv_reasons(params["extra_args"])
    for other in OTHERS:
        if runs(shell, other):
            message = f"'{other}' runs on this host."
            reasons.append(_errors.Reason("OPERATION_CONFLICT", message, "Wait for it to end."))
    return _errors.refuse_unless_accepted(
        reasons, params["accept"], f"{host.name} is not reset.", because=params["because"]
    )


def act(shell):
    """Run the vendor's command, or attach to it, and look at what is left."""
    params = shell.params
    argv = ["sdkms-cluster", "reset", "--delete-data", *params["extra_args"]]
    ended = shell.operations.start_or_attach("reset", argv, timeout=params["timeout"], excludes=OTHERS)
    left = holding(shell)["state"]
    if left:
        raise _errors.CommandFailed(
            f"sdkms-cluster reset ended with exit code {ended.rc}, but state is left in {', '.join(left)}: "
            f"{ended.output_tail.strip()[-300:] or 'no output'}",
            "RESET_INCOMPLETE",
            "Run this again. If it stays, look at what holds those files.",
            rc=ended.rc,
            left=left,
        )
    if ended.rc != 0:
        shell.warn(f"sdkms-cluster reset ended with exit code {ended.rc}, but this node is clean.")


def body(shell: _module.Shell) -> _module.Outcome:
    params = shell.params
    before = holding(shell)
    under_way = runs(shell, "reset")
    clean = {"state": [], "markers": []}
    if not before["state"] and not under_way and not any(runs(shell, name) for name in OTHERS):
        changed = bool(before["markers"])
        if changed and not shell.check_mode:
            shell.require_confirmed_host(params["confirm"], params["expected_addresses"], params["expected_serial"])
            _node.remove_markers()
        return _module.Outcome(changed, before, clean, state="clean", because=None, witnesses=[], accepted=[])
    heard = _module.require_testimony(params)
    accepted = [] if under_way else decide(shell, shell.host_identity(), heard)
    if not shell.check_mode:
        shell.require_confirmed_host(params["confirm"], params["expected_addresses"], params["expected_serial"])
        act(shell)
        _node.remove_markers()
        for name in OTHERS:
            shell.operations.forget(name)
    return _module.Outcome(
        True,
        before,
        clean if shell.check_mode else holding(shell),
        state="clean",
        because=params["because"],
        witnesses=sorted(witness.host for witness in heard.witnesses),
        accepted=[reason.as_dict() for reason in accepted],
    )


def main() -> None:
    person = {"by": {"type": "str", "required": True}, "reason": {"type": "str", "required": True}}
    spec = dict(
        _module.kubeconfig_spec(900.0),
        because={"type": "str", "required": True, "choices": ["removed", "own_trial", "retired"]},
        trial_hosts={"type": "list", "elements": "str", "default": []},
        approval={"type": "dict", "options": person},
        extra_args={"type": "list", "elements": "str", "default": []},
    )
    for more in (_module.confirmed_spec(), _module.accept_spec(), _node.state_paths_spec(), _cluster.api_spec()):
        spec.update(more)
    _module.run_module(spec, body)


if __name__ == "__main__":
    main()
