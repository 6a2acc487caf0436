#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_prune
short_description: Remove stored backups that retention lets go
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - The only module that removes backups, and only by a plan. The plan says for each backup whether it goes or stays,
    and every reason.
  - Never removed are the O(keep) newest verified copies, the O(keep) newest copies that nobody verified yet, what is
    pinned (M(kmsops.fortanix_dsm.backup_pin)) or being read, the newest copy that each set-aside node can open, and
    every golden copy of a node that is set aside, also one that failed, unless a person released it.
  - Only verified copies count. The number in the store decides what is newer. Age counts from when a backup was
    superseded to the publication of the newest verified copy. So nothing grows older while no new copy is verified, and
    a clock that jumps removes nothing.
  - Where room for the next backup is missing, surplus goes whatever its age, failed copies first, then the oldest. If
    all surplus would not be enough, none of it goes and the module fails with V(STORE_FULL).
  - The manifest goes first, under another name. What a run that was killed had removed data of, the next one ends; what
    has lost only its manifest is published again and judged anew. No free space is needed to begin.
  - A copy that turns out to lack a file, and one that the disk does not tell about, counts no more and stays until
    M(kmsops.fortanix_dsm.backup_verify) has recorded what it is, also where room is missing. The module fails and names
    it.
  - Once a verification finds a copy bad that was to stay, nothing more goes in that run.
  - Unfinished transfers and repairs that nobody touched for O(incoming_grace) are cleared, and bad copies that a repair
    put aside and did not come to remove.
options:
  keep:
    description: How many verified copies always stay. V(0) is refused.
    type: int
    required: true
  max_copies:
    description: What has so many newer verified copies goes. Absent means that the number does not matter.
    type: int
  max_age:
    description: What is older than this goes, in seconds. Absent means that age does not matter.
    type: float
  keep_within:
    description:
      - O(max_copies) does not touch what is younger than this, in seconds. So whoever can only deliver many backups in
        production's name pushes out nothing that is younger.
      - It is no promise on a full disk. What goes to make room for the next backup goes whatever its age, the oldest
        first. What must survive that is pinned, golden, or in a second store.
    type: float
    default: 0
  failed_grace:
    description: How long a copy that failed verification waits to be repaired, in seconds.
    type: float
    default: 604800
  fresh_within:
    description: Expiry by age rests while the newest verified copy is older than this, in seconds.
    type: float
    default: 259200
  need:
    description:
      - Bytes that must be free for the next backup. Absent means the size of the newest one and O(headroom), or what
        M(kmsops.fortanix_dsm.backup_ship) wanted when there was no room for a larger one. V(0) removes nothing for
        space.
    type: int
  headroom:
    description: Fraction of the newest backup's size that the next one may be larger.
    type: float
    default: 0.1
  incoming_grace:
    description: How long an unfinished transfer or repair may rest, in seconds.
    type: float
    default: 604800
extends_documentation_fragment:
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
  - kmsops.fortanix_dsm.store
  - kmsops.fortanix_dsm.store.cluster
  - kmsops.fortanix_dsm.store.metrics
  - kmsops.fortanix_dsm.store.parts
  - kmsops.fortanix_dsm.store.run
attributes:
  check_mode:
    support: full
    details: It is the plan.
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: kmsops.fortanix_dsm.backup_info
  - module: kmsops.fortanix_dsm.backup_pin
  - module: kmsops.fortanix_dsm.backup_verify
"""

EXAMPLES = r"""
- name: Keep a month, never fewer than seven verified copies
  kmsops.fortanix_dsm.backup_prune:
    store: /srv/dsm-store
    keep: 7
    max_age: 2592000

- name: What would go
  kmsops.fortanix_dsm.backup_prune:
    store: /srv/dsm-store
    keep: 7
    max_copies: 30
  check_mode: true
  register: plan
"""

RETURN = r"""
cluster_id:
  description: Name of the cluster in the store.
  returned: success
  type: str
plan:
  description: One item for each backup, oldest first. After a failure the list is in C(details.plan).
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The backup.
      type: str
    remove:
      description: Whether it goes.
      type: bool
    verdict:
      description: V(ok), V(failed) or V(unverified).
      type: str
    bytes:
      description: Its size.
      type: int
    age:
      description: Its age as retention sees it, in seconds.
      type: int
    reasons:
      description: Every reason, with code and message.
      type: list
      elements: dict
removed:
  description: Ids of backups that are (in check mode, would be) removed.
  returned: success
  type: list
  elements: str
cleared:
  description:
    - Ids of unfinished transfers that were cleared, and of removals that were finished.
    - An unfinished repair is C(repair/) and the id, a bad copy that was put aside is the id and C(/bad).
  returned: success
  type: list
  elements: str
freed:
  description: Bytes that were freed.
  returned: success
  type: int
verified:
  description: Verified copies before.
  returned: success
  type: int
verified_after:
  description: Verified copies after.
  returned: success
  type: int
frozen:
  description: Why expiry by age rests, empty if it does not.
  returned: success
  type: str
missing_inodes:
  description: Inodes that are still missing for the next backup.
  returned: success
  type: int
missing:
  description: Bytes that are still missing for the next backup.
  returned: success
  type: int
next_expiry:
  description: When the next copy goes by age if backups keep coming (UTC), null if none does.
  returned: success
  type: str
notes:
  description: What else happened, a lease that was taken over for example.
  returned: success
  type: list
  elements: str
accepted:
  description: Soft reasons that O(accept) let pass.
  returned: success
  type: list
  elements: dict
table:
  description:
    - The plan as lines of text for a person.
    - Neighbours that go, or stay, for the same reasons share a line.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import Policy
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import (
    Outcome,
    Shell,
    accept_spec,
    run_module,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._store_module import (
    ONE_NAME,
    chosen_store,
    store_spec,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._prune import PruneRequest, prune


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    return {
        **store_spec("cluster", "parts", "metrics", "run"),
        "keep": {"type": "int", "required": True},
        "max_copies": {"type": "int"},
        "max_age": {"type": "float"},
        "keep_within": {"type": "float", "default": 0},
        "failed_grace": {"type": "float", "default": 604800},
        "fresh_within": {"type": "float", "default": 259200},
        "need": {"type": "int"},
        "headroom": {"type": "float", "default": 0.1},
        "incoming_grace": {"type": "float", "default": 604800},
        **accept_spec(),
    }


def body(shell: Shell) -> Outcome:
    """Plan and prune."""
    params = shell.params
    store = chosen_store(params)
    names = ("keep", "max_copies", "max_age", "keep_within", "failed_grace", "fresh_within")
    request = PruneRequest(
        policy=Policy(**{name: params[name] for name in names}),
        need=params["need"],
        headroom=params["headroom"],
        incoming_grace=params["incoming_grace"],
        accept=params["accept"],
        metrics=params["metrics"],
        require=params["require"],
        run_id=params["run_id"],
    )
    result = prune(store, request, shell.check_mode)
    return Outcome(
        result.changed,
        before=result.before,
        after=result.after,
        cluster_id=store.identity.cluster_id,
        **result.returns(),
    )


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), body, mutually_exclusive=ONE_NAME)


if __name__ == "__main__":
    main()
