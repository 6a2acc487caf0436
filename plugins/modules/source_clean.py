#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: source_clean
short_description: Remove deliveries at a source that the store holds verified
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs at the place that DSM delivers to. The key with which the store pulls can read there and nothing else.
  - Removes what O(backups) names as verified in the store, when it is old enough, not among the newest, and every byte
    of every file is still what was shipped. Nothing goes because of its name alone.
  - What was written to or replaced after it was read stays. Of directories only those go that are a delivery or are in
    one, when they are empty.
  - A delivery that cannot be removed stops no other. The module fails at the end with C(REMOVE_FAILED).
options:
  backups:
    description: RV(kmsops.fortanix_dsm.backup_info#module:backups) of the store, with details.
    type: list
    elements: dict
    required: true
  host:
    description: This source, as O(kmsops.fortanix_dsm.backup_ship#module:sources[].host) names it.
    type: str
    required: true
  root:
    description: Nothing outside of this directory goes.
    type: path
    required: true
  older_than:
    description: How old a delivery must be, in seconds. At least an hour.
    type: float
    required: true
  keep:
    description: Of the newest so many nothing goes. At least 1.
    type: int
    default: 2
  only:
    description:
      - Ids of those of O(backups) that may go, such as those that were just verified once more. About the others
        nothing is said, but O(keep) counts them.
      - Absent means that all may go, an empty list that none may.
    type: list
    elements: str
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: kmsops.fortanix_dsm.backup_info
  - module: kmsops.fortanix_dsm.backup_ship
"""

EXAMPLES = r"""
- name: What the store holds
  kmsops.fortanix_dsm.backup_info:
    store: /srv/dsm-store
  delegate_to: store1
  register: catalogue

- name: Make room at the landing host
  kmsops.fortanix_dsm.source_clean:
    backups: "{{ catalogue.backups }}"
    host: 192.0.2.50
    root: /home/dsmbackup/backup
    older_than: 604800
"""

RETURN = r"""
removed:
  description:
    - Ids of backups whose deliveries are (in check mode, would be) removed here.
    - After a failure this, RV(freed) and RV(stays) are in C(details).
  returned: success
  type: list
  elements: str
freed:
  description: Bytes that were freed.
  returned: success
  type: int
stays:
  description: Deliveries that stay, with every reason. Of one that could not be removed a part may be gone.
  returned: success
  type: list
  elements: dict
"""

import os
import time
import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.source_cleanup import Delivery, File, plan
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import Problem
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Reason, Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import Outcome, Shell, run_module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._source_files import (
    Removal,
    State,
    difference,
    remove,
    state,
)

#: A delivery that may go: its files, each as it was before it was read.
Going = t.Tuple[Delivery, t.Dict[File, t.Optional[State]]]


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    return {
        "backups": {"type": "list", "elements": "dict", "required": True},
        "host": {"type": "str", "required": True},
        "root": {"type": "path", "required": True},
        "older_than": {"type": "float", "required": True},
        "keep": {"type": "int", "default": 2},
        "only": {"type": "list", "elements": "str"},
    }


def root_of(params: dict[str, t.Any]) -> str:
    """The directory below which something may go. Raises :class:`Refused` with everything that is wrong."""
    reasons = []
    root = os.path.realpath(params["root"])
    if root.count("/") < 2 or not os.path.isdir(root):
        message = f"root is {params['root']!r}: it is no directory, or too close to the root of the file system."
        reasons.append(Reason("BAD_ROOT", message, "Name the directory that DSM delivers to."))
    if not params["older_than"] >= 3600 or params["older_than"] == float("inf"):
        message = f"older_than is {params['older_than']:g} s."
        reasons.append(Reason("TOO_EAGER", message, "Say 3600 or more: the store must have had time to look again."))
    if params["keep"] < 1:
        reasons.append(Reason("KEEP_NOTHING", f"keep is {params['keep']}.", "Say 1 or more, better 2."))
    if reasons:
        raise Refused("This clean-up is refused; nothing was removed.", reasons[0].code, reasons=reasons)
    return root


def look(shell: Shell, root: str) -> tuple[list[Going], list[dict[str, t.Any]]]:
    """What may go after every byte of it was read, and what stays."""
    params = shell.params
    going: list[Going] = []
    stays = []
    for one in plan(
        params["backups"],
        host=params["host"],
        root=root,
        older_than=params["older_than"],
        keep=params["keep"],
        now=time.time(),
        only=params["only"],
    ):
        before = {} if one.reasons else {file: state(file.path) for file in one.files}
        looked = {file: difference(file, root) for file in before}
        left = [file for file, problem in looked.items() if problem is None or problem.code != "GONE"]
        found = [*one.reasons, *(problem for problem in looked.values() if problem and problem.code != "GONE")]
        if looked and not left:
            continue
        if found:
            stays.append(staying(one, found))
        else:
            going.append((one, {file: before[file] for file in left}))
    return going, stays


def staying(one: Delivery, problems: t.Iterable[Problem]) -> dict[str, t.Any]:
    """An item of ``stays``."""
    reasons = [{"code": problem.code, "message": problem.message} for problem in problems]
    return {"id": one.id, "name": one.name, "reasons": reasons}


def body(shell: Shell) -> Outcome:
    """Plan, look at every byte, remove."""
    root = root_of(shell.params)
    going, stays = look(shell, root)
    removed, freed, failures = [], 0, []
    for one, files in going:
        done = Removal(sum(file.size for file in files), []) if shell.check_mode else remove(one.name, files, root)
        freed += done.freed
        if not done.problems:
            removed.append(one.id)
            continue
        stays.append(staying(one, done.problems))
        failures.extend(problem for problem in done.problems if problem.code == "REMOVE_FAILED")
    returns = {"removed": removed, "freed": freed, "stays": stays}
    if failures:
        remedy = "Look for what protects it: its directory, an immutable flag, a mount. The next run tries again."
        raise Refused(
            f"This clean-up is not complete ({len(removed)} removed, {len(failures)} could not be).",
            "REMOVE_FAILED",
            reasons=[Reason(problem.code, f"{problem.message}.", remedy) for problem in failures],
            **returns,
        )
    before = [file.path for _one, files in going for file in files]
    after = [path for path in before if not shell.check_mode and os.path.lexists(path)]
    return Outcome(before != after, before={"files": before}, after={"files": after}, **returns)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), body)


if __name__ == "__main__":
    main()
