#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: ledger
short_description: Append to, read or check the ledger of a cluster
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - The ledger in the store records what happened to a cluster, its DR nodes and its backups. Events are only ever
    appended, and each carries the hash of the one before, so that none can be changed or removed unseen.
  - What is true now is folded from the events. The guards of this collection ask it which cluster is production and who
    its members are.
options:
  fingerprint:
    description:
      - As O(cluster_id), named by the fingerprint of any of its generations.
      - With O(state=appended) in an empty store it starts the cluster's part of the store.
  state:
    description:
      - V(read) returns the events and what they amount to. A cluster that the store does not know is RV(known=false).
      - V(appended) appends one event, unless the newest of its kind and subject says the same already.
      - V(verified) fails if the chain of hashes is broken, or the store does not know the cluster.
    type: str
    choices: [read, appended, verified]
    default: read
  kind:
    description:
      - Kind of the event. Needed with O(state=appended).
      - V(observed_members) needs C(members) and C(fingerprint) in O(data). V(restored) needs C(backup), C(fingerprint)
        and C(drill); where that is false the cluster has a new generation. V(proved) needs C(backup). V(fenced) and
        V(accepted) need C(fingerprint). V(no_room) is about a delivery and not about a backup.
    type: str
    choices:
      - observed_members
      - joined
      - backup_started
      - shipped
      - verified
      - removed
      - set_aside
      - trial_created
      - restored
      - proved
      - expanded
      - trial_reset
      - fenced
      - accepted
      - pruned
      - no_room
  subject:
    description: The node, backup or cluster that the event is about. Needed with O(state=appended).
    type: str
  data:
    description: What is to be remembered. Never put a secret here.
    type: dict
    default: {}
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
  - kmsops.fortanix_dsm.store
  - kmsops.fortanix_dsm.store.cluster
  - kmsops.fortanix_dsm.store.new
  - kmsops.fortanix_dsm.store.run
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - Events of state (V(joined), V(removed), V(set_aside), V(trial_created), V(restored), V(expanded),
        V(trial_reset), V(fenced), V(accepted), V(pruned)) are appended once and then stay C(changed=false).
      - The others are evidence. Each run appends its own, and that is never C(changed).
seealso:
  - module: kmsops.fortanix_dsm.backup_ship
"""

EXAMPLES = r"""
- name: Remember that the DR node joined
  kmsops.fortanix_dsm.ledger:
    store: /srv/dsm-store
    fingerprint: "{{ info.cluster.fingerprint }}"
    state: appended
    kind: joined
    subject: dr1
    data:
      joined_at: "{{ join.joined_at }}"
      version: "{{ info.cluster.version }}"
      platform_id: "{{ dr1_serial }}"
    run_id: "{{ run_id }}"

- name: What is known of this cluster
  kmsops.fortanix_dsm.ledger:
    store: /srv/dsm-store
    state: read
  register: ledger
"""

RETURN = r"""
cluster_id:
  description: Name of the cluster in the store, null if it is not known.
  returned: success
  type: str
known:
  description: Whether the store knows the cluster.
  returned: success
  type: bool
appended:
  description: Whether an event was (in check mode, would be) appended.
  returned: state is appended
  type: bool
event:
  description: The event, new or found.
  returned: state is appended
  type: dict
events:
  description: All events, oldest first.
  returned: state is not appended
  type: list
  elements: dict
head:
  description: The last event, null in an empty ledger.
  returned: success
  type: dict
problems:
  description: Where the chain breaks. What comes after it is not trusted and not returned.
  returned: success
  type: list
  elements: dict
folded:
  description: What the events amount to.
  returned: success
  type: dict
  contains:
    members:
      description: The member set last recorded.
      type: list
      elements: dict
    production_fingerprint:
      description: The fingerprint of the newest generation, null if none was recorded.
      type: str
    generations:
      description: Every generation, and whether it was fenced and accepted.
      type: list
      elements: dict
    joins:
      description: The last join of each node.
      type: dict
    removed:
      description:
        - Nodes that were removed or set aside and did not join again.
        - Their C(out) is false if a recovery or an expansion has put the node to use since then.
      type: dict
    trials:
      description: Trials on each node, and whether they are still open.
      type: dict
    backups:
      description: Shipped backups with their last verdict.
      type: dict
    pruned:
      description: Backups that retention removed.
      type: dict
    golden:
      description: Pairs of backup and node where the snapshot started while the node was a member, oldest first.
      type: list
      elements: dict
    proved:
      description: Pairs that a rehearsal or a recovery opened.
      type: list
      elements: dict
"""

import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import ledger as core
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import Outcome, Shell, run_module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._store_module import (
    ONE_NAME,
    chosen,
    chosen_store,
    store_spec,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    return {
        **store_spec("cluster", "new", "run"),
        "state": {"type": "str", "choices": ["read", "appended", "verified"], "default": "read"},
        "kind": {"type": "str", "choices": list(core.KINDS)},
        "subject": {"type": "str"},
        "data": {"type": "dict", "default": {}},
    }


def body(shell: Shell) -> Outcome:
    """Append, read or check."""
    return _append(shell) if shell.params["state"] == "appended" else _read(shell)


def _append(shell: Shell) -> Outcome:
    params = shell.params
    if params["fingerprint"]:
        store = ClusterStore.open(
            params["store"],
            params["fingerprint"],
            uid="",
            members=(),
            run_id=params["run_id"],
            new_cluster=params["new_cluster"],
            create=not shell.check_mode,
        )
    else:
        store = ClusterStore.require(params["store"], cluster_id=params["cluster_id"] or "")
    event, new = store.ledger.append(
        run_id=params["run_id"],
        kind=params["kind"],
        subject=params["subject"],
        data=params["data"],
        write=not shell.check_mode,
    )
    changed = new and params["kind"] in core.STATE_KINDS
    state = {"kind": event.kind, "subject": event.subject, "data": dict(event.data)}
    chain = store.ledger.chain()
    return Outcome(
        changed,
        before=None if changed else state,
        after=state,
        appended=new,
        event=event.as_dict(),
        **_common(store, chain),
    )


def _read(shell: Shell) -> Outcome:
    params = shell.params
    checked = params["state"] == "verified"
    store = chosen_store(params) if checked else ClusterStore.find(params["store"], **chosen(params))
    if store is None:
        return Outcome(False, events=[], **_common(None, core.Chain((), (), 0)))
    chain = store.ledger.trusted() if checked else store.ledger.chain()
    if chain.problems:
        shell.warn(f"The ledger is broken after {len(chain.events)} events; state verified says where.")
    return Outcome(False, events=[event.as_dict() for event in chain.events], **_common(store, chain))


def _common(store: ClusterStore | None, chain: core.Chain) -> dict[str, t.Any]:
    return {
        "cluster_id": store.identity.cluster_id if store else None,
        "known": store is not None,
        "head": chain.head.as_dict() if chain.head else None,
        "problems": [{"code": item.code, "message": item.message} for item in chain.problems],
        "folded": core.fold(chain.events).as_dict(),
    }


def main() -> None:
    """Entry point."""
    run_module(
        argument_spec(),
        body,
        mutually_exclusive=ONE_NAME,
        required_if=[("state", "appended", ["kind", "subject"])],
    )


if __name__ == "__main__":
    main()
