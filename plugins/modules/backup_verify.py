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
options:
  store:
    description: Root directory of the store.
    type: path
    required: true
  cluster_id:
    description: The cluster. Not needed in a store that holds only one.
    type: str
  fingerprint:
    description: As O(cluster_id), named by the fingerprint of any of its generations.
    type: str
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
  report_only:
    description: Return the verdicts without failing.
    type: bool
    default: false
  run_id:
    description: The run that this belongs to. It goes into the ledger.
    type: str
    default: ''
extends_documentation_fragment:
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
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
      description: What could be checked of its structure, V(archive), V(snapshot), V(archive+snapshot) or V(unknown).
      type: str
reasons:
  description: What is wrong with the store as a whole, only with O(report_only=true).
  returned: success
  type: list
  elements: dict
accepted:
  description: Soft reasons that O(accept) let pass.
  returned: success
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import (
    Outcome,
    Shell,
    accept_spec,
    run_module,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._verify import refuse_failed, verify


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    return {
        "store": {"type": "path", "required": True},
        "cluster_id": {"type": "str"},
        "fingerprint": {"type": "str"},
        "ids": {"type": "list", "elements": "str", "default": []},
        "newest": {"type": "bool", "default": False},
        "max_age": {"type": "float"},
        "report_only": {"type": "bool", "default": False},
        "run_id": {"type": "str", "default": ""},
        **accept_spec(),
    }


def body(shell: Shell) -> Outcome:
    """Verify."""
    params = shell.params
    store = ClusterStore.require(
        params["store"], cluster_id=params["cluster_id"] or "", fingerprint=params["fingerprint"] or ""
    )
    result = verify(
        store,
        params["ids"],
        newest=params["newest"],
        max_age=params["max_age"],
        run_id=params["run_id"],
        record=not shell.check_mode,
    )
    accepted = refuse_failed(result, params["accept"], params["report_only"])
    return Outcome(
        False,
        cluster_id=store.identity.cluster_id,
        verdicts=[verdict.as_dict() for verdict in result.verdicts],
        reasons=[reason.as_dict() for reason in result.reasons if reason not in accepted],
        accepted=[reason.as_dict() for reason in accepted],
    )


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), body, mutually_exclusive=[("cluster_id", "fingerprint"), ("ids", "newest")])


if __name__ == "__main__":
    main()
