#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_verify
short_description: Prove that the bits of stored backups are still what was published
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Reads backups from end to end. Manifest, presence, size, SHA-256, and the structure of what has one (archives are
    read to their end mark, Cassandra tables are compared with their own digests and tables of contents).
  - Fails closed. Unreadable, empty, foreign, newer or not understood is failed, and a store without a published backup
    fails as well.
  - Each verdict is recorded in the ledger. That is evidence, not a change.
  - A manifest is compared with what the ledger recorded when the backup was published. One that says anything else is
    C(TAMPERED), even if its own checksum is right.
options:
  ids:
    description: Verify these. Empty means all, or the newest with O(newest).
    type: list
    elements: str
    default: []
  newest:
    description: Verify the newest published backup only.
    type: bool
    default: false
  max_age:
    description: How old the newest published backup may be, in seconds. Absent means that its age does not matter.
    type: float
  cron_schedule:
    description:
      - The schedule of the backup job as in C(config.yaml), five fields in UTC. The newest backup must have been taken
        since the last firing that is O(grace) ago.
    type: str
  grace:
    description: How long a backup may take from its firing until it is in the store, in seconds.
    type: float
    default: 3600
  max_lag:
    description:
      - How far this store may be behind the other site (M(kmsops.fortanix_dsm.backup_replicate)), in seconds. So long
        the last look at it may be ago, and so long a backup there may be missing here. Absent means it does not matter.
    type: float
  min_ratio:
    description: How small the newest backup may be, as a fraction of the one before. V(0) does not look.
    type: float
    default: 0
  provenance:
    description:
      - V(by_template) asks that a command of the operator said whose the newest backup is, or that a restore proved it.
      - Absent means that the source it was pulled from is enough.
    type: str
    choices: [by_template]
  slice:
    description:
      - Read only one slice of all files, C(n/t), for example V(3/7). Any t runs with all values of n read everything.
      - V(auto/t) takes the next slice by itself. Presence and size of all files are looked at in every run.
      - A backup of several files is verified when all its slices were found right, and nothing of it failed in between.
        Until then it is what it was before.
      - A slice that is right does not hide what failed before, which is refused as C(STILL_FAILED) until it was found
        right as a whole. That can be accepted for once.
    type: str
  report_only:
    description: Return the verdicts without failing.
    type: bool
    default: false
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
    details: Everything is read, the ledger is not written.
  diff_mode:
    support: none
    details: Nothing changes but the ledger.
  idempotent:
    support: none
    details: Each run appends its verdicts to the ledger; C(changed) is always false.
seealso:
  - module: kmsops.fortanix_dsm.backup_ship
"""

EXAMPLES = r"""
- name: Verify everything, and that the newest backup is not older than two hours
  kmsops.fortanix_dsm.backup_verify:
    store: /srv/dsm-store
    max_age: 7200

- name: Verify the backup that a drill will use
  kmsops.fortanix_dsm.backup_verify:
    store: /srv/dsm-store
    ids: ["{{ backup_id }}"]
"""

RETURN = r"""
cluster_id:
  description: Name of the cluster in the store.
  returned: success
  type: str
verdicts:
  description: One item for each backup that was looked at. After a failure the list is in C(details.verdicts).
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The backup.
      type: str
    verdict:
      description: V(ok) or V(failed).
      type: str
    reasons:
      description: Everything that is wrong with it.
      type: list
      elements: dict
    bytes:
      description: Bytes that were read.
      type: int
    seconds:
      description: Time that it took.
      type: float
    structure:
      description:
        - What could be checked of its structure, V(archive), V(snapshot), V(archive+snapshot) or V(unknown).
        - Of a zip that is the list at its end and those members that can be opened here, not those that are encrypted
          or packed by another method than deflate. An archive that takes too much memory to look into, or a
          later reader, is V(unknown).
      type: str
    provenance:
      description: How it is known whose it is, V(by_source), V(by_template) or V(proved_by_restore).
      type: str
    partial:
      description: Whether only some of its files were read.
      type: bool
    files:
      description: How many files were read.
      type: int
table:
  description: The verdicts as lines of text for a person; neighbours of which the same is said share a line.
  returned: success
  type: list
  elements: str
turn:
  description: The slice that was read.
  returned: success
  type: int
reasons:
  description: What is wrong with the store as a whole, only with O(report_only=true).
  returned: success
  type: list
  elements: dict
sites:
  description: As RV(kmsops.fortanix_dsm.backup_info#module:sites).
  returned: success
  type: list
  elements: dict
accepted:
  description: Soft reasons that O(accept) let pass.
  returned: success
  type: list
  elements: dict
notes:
  description: What was pruned before it could be read. It is neither good nor bad any more.
  returned: success
  type: list
  elements: str
  sample: ["00000007-20261122T005300Z was pruned before it could be read."]
"""

import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.cron import CronError, parse
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.rotation import parse_slice
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Reason, Refused
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
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._metrics import check_path, write
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._verify import (
    VerifyRequest,
    refuse_failed,
    table,
    verify,
)


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    return {
        **store_spec("cluster", "parts", "metrics", "run"),
        "ids": {"type": "list", "elements": "str", "default": []},
        "newest": {"type": "bool", "default": False},
        "max_age": {"type": "float"},
        "cron_schedule": {"type": "str"},
        "grace": {"type": "float", "default": 3600},
        "max_lag": {"type": "float"},
        "min_ratio": {"type": "float", "default": 0},
        "provenance": {"type": "str", "choices": ["by_template"]},
        "slice": {"type": "str"},
        "report_only": {"type": "bool", "default": False},
        **accept_spec(),
    }


def request_of(params: dict[str, t.Any], check_mode: bool) -> VerifyRequest:
    """What is asked. Raises :class:`Refused` with everything that is wrong with it."""
    reasons = []
    turn, turns, schedule = None, 1, None
    try:
        turn, turns = parse_slice(params["slice"] or "1/1")
    except ValueError as error:
        reasons.append(Reason("BAD_SLICE", f"{error}.", "Say 3/7 for the third of seven slices, or auto/7."))
    try:
        schedule = parse(params["cron_schedule"]) if params["cron_schedule"] else None
    except CronError as error:
        reasons.append(Reason("BAD_SCHEDULE", f"cron_schedule: {error}.", "Copy cron_schedule from config.yaml."))
    for name in ("max_age", "max_lag", "grace", "min_ratio"):
        if params[name] is not None and not 0 <= params[name] < float("inf"):
            reasons.append(
                Reason("BAD_NUMBER", f"{name} is {params[name]:g}: it cannot be negative.", f"Correct {name}.")
            )
    if reasons:
        raise Refused("This cannot be asked.", reasons[0].code, "Correct the options.", reasons=reasons)
    names = ("ids", "newest", "max_age", "max_lag", "grace", "min_ratio", "provenance", "require", "run_id")
    chosen = {name: params[name] for name in names}
    return VerifyRequest(turn=turn, turns=turns, schedule=schedule, record=not check_mode, **chosen)


def body(shell: Shell) -> Outcome:
    """Verify."""
    params = shell.params
    request = request_of(params, shell.check_mode)
    check_path(params["metrics"])
    store = chosen_store(params)
    result = verify(store, request)
    if params["metrics"] and not shell.check_mode:
        write(store, params["metrics"])
    accepted = refuse_failed(result, params["accept"], params["report_only"])
    return Outcome(
        False,
        cluster_id=store.identity.cluster_id,
        verdicts=[verdict.as_dict() for verdict in result.verdicts],
        table=table(result.verdicts),
        turn=result.turn,
        sites=result.sites,
        reasons=[reason.as_dict() for reason in result.reasons if reason not in accepted],
        accepted=[reason.as_dict() for reason in accepted],
        notes=result.notes,
    )


def main() -> None:
    """Entry point."""
    run_module(
        argument_spec(),
        body,
        mutually_exclusive=[*ONE_NAME, ("ids", "newest"), ("newest", "slice"), ("ids", "slice")],
    )


if __name__ == "__main__":
    main()
