#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_replicate
short_description: Keep a second store, and repair bad copies from the other one
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs on a second store and pulls from the first, which needs to do nothing. The login there needs to read the store
    and nothing else (C(command="internal-sftp -R",restrict) before its key in C(authorized_keys)).
  - Backups keep their ids and manifests. Each is checked against the manifest of the other store while it lands, and
    read again from the disk before it is published. Bundles (M(kmsops.fortanix_dsm.backup_part)) come as well.
  - The second store has a ledger of its own. What happened to the cluster is taken over from the other one; what
    happened to copies (shipped, verified, pruned) is not. A copy of the other ledger is kept as it is
    (C(other.jsonl)), so that it can be put back there.
  - Nothing is removed because the other store removed it, and what was pruned here does not come back. Each store has
    its own retention and its own pins.
  - A copy that M(kmsops.fortanix_dsm.backup_verify) called failed, or that is lost, is replaced by the other store's,
    once that one has landed and was verified. The bad bytes stay beside it until then. Where both are bad, nothing is
    touched and the module fails.
  - A store of another cluster, one that a newer release wrote, and one whose ledger lost events are refused.
options:
  state:
    description:
      - V(replicated) takes over everything and repairs what is bad here.
      - V(repaired) only repairs. This is for the first store, with the second one as O(other).
    type: str
    choices: [replicated, repaired]
    default: replicated
  other:
    description: The other store.
    type: dict
    required: true
    suboptions:
      name:
        description: What people call its site. Absent means O(other.host).
        type: str
      host:
        description: Name or address. Absent means a directory of this host, another disk for example.
        type: str
      port:
        description: SSH port.
        type: int
        default: 22
      user:
        description: User who may read the store there.
        type: str
      path:
        description: Root directory of the store there.
        type: str
        required: true
      key_file:
        description: As O(kmsops.fortanix_dsm.backup_ship#module:sources[].key_file).
        type: path
      passphrase:
        description: As O(kmsops.fortanix_dsm.backup_ship#module:sources[].passphrase).
        type: str
      host_key:
        description: As O(kmsops.fortanix_dsm.backup_ship#module:sources[].host_key).
        type: str
      known_hosts:
        description: As O(kmsops.fortanix_dsm.backup_ship#module:sources[].known_hosts).
        type: path
requirements:
  - Python 3.9 or newer on the store
  - paramiko 3.5 or newer on the store, where O(other.host) is given
extends_documentation_fragment:
  - kmsops.fortanix_dsm.accept
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
  - kmsops.fortanix_dsm.store
  - kmsops.fortanix_dsm.store.cluster
  - kmsops.fortanix_dsm.store.new
  - kmsops.fortanix_dsm.store.run
  - kmsops.fortanix_dsm.transfer
attributes:
  check_mode:
    support: full
    details: The other store is read, nothing is written. Bytes are not fetched, so a damaged one shows only later.
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: kmsops.fortanix_dsm.backup_ship
  - module: kmsops.fortanix_dsm.backup_verify
"""

EXAMPLES = r"""
- name: Keep a second store
  kmsops.fortanix_dsm.backup_replicate:
    store: /srv/dsm-store
    other:
      name: oor
      host: 192.0.2.50
      user: root
      path: /srv/dsm-store
      key_file: /srv/dsm-store/.ssh/id_ed25519
      known_hosts: /srv/dsm-store/.ssh/known_hosts

- name: Repair bad copies of the first store from the second
  kmsops.fortanix_dsm.backup_replicate:
    state: repaired
    store: /srv/dsm-store
    other:
      name: second
      host: 198.51.100.50
      user: root
      path: /srv/dsm-store
      key_file: /srv/dsm-store/.ssh/id_ed25519
      known_hosts: /srv/dsm-store/.ssh/known_hosts
"""

RETURN = r"""
cluster_id:
  description: Name of the cluster in the store.
  returned: success
  type: str
backups:
  description:
    - One item for each backup that came, was repaired, or could not be. After a failure the list is in
      C(details.backups).
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: The backup.
      type: str
    action:
      description: V(bring), V(repair), or V(leave) where nothing can be done.
      type: str
    published:
      description: Whether a verified copy is published here now. In check mode it never is.
      type: bool
    bytes:
      description: Its size.
      type: int
    reasons:
      description: Why it could not be done.
      type: list
      elements: dict
kept:
  description: How many backups are good here and stay as they are.
  returned: success
  type: int
parts:
  description: Bundles that came or were repaired, as C(part/id).
  returned: success
  type: list
  elements: str
events:
  description: How many events were taken over into the ledger.
  returned: success
  type: int
sites:
  description: As RV(kmsops.fortanix_dsm.backup_info#module:sites).
  returned: success
  type: list
  elements: dict
bytes:
  description: Bytes that were transferred.
  returned: success
  type: int
resent:
  description: As RV(kmsops.fortanix_dsm.backup_ship#module:resent).
  returned: success
  type: int
seconds:
  description: Time that the transfers took.
  returned: success
  type: float
workers:
  description: Most connections that were used in parallel.
  returned: success
  type: int
peak_rss:
  description: Peak memory of all processes of the transfer in bytes.
  returned: success
  type: int
accepted:
  description: Soft reasons that O(accept) let pass.
  returned: success
  type: list
  elements: dict
notes:
  description: What a person should know, for instance that the other store calls a copy of its own failed.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import (
    Outcome,
    Shell,
    accept_spec,
    run_module,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._store_module import (
    ONE_NAME,
    follow,
    login_spec,
    store_spec,
    transfer_spec,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._replicate import replicate
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._request_replicate import replicate_request


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    other = {
        "name": {"type": "str"},
        "host": {"type": "str"},
        "user": {"type": "str"},
        "path": {"type": "str", "required": True},
    }
    return {
        "state": {"type": "str", "choices": ["replicated", "repaired"], "default": "replicated"},
        "other": {"type": "dict", "required": True, "options": {**login_spec(), **other}},
        **store_spec("cluster", "new", "run"),
        **transfer_spec(),
        **accept_spec(),
    }


def body(shell: Shell) -> Outcome:
    """Replicate or repair."""
    result = replicate(replicate_request(shell.params, follow("backup_replicate")), shell.check_mode)
    for note in result.notes:
        shell.warn(note)
    return Outcome(result.changed, before=result.before, after=result.after, **result.returns())


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), body, mutually_exclusive=ONE_NAME)


if __name__ == "__main__":
    main()
