#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: source_hash
short_description: Hash deliveries at the place that they were delivered to
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs at the place that DSM delivers to, where that is a managed host. Reads files there and returns their SHA-256,
    for O(kmsops.fortanix_dsm.backup_ship#module:sources[].hashes).
  - With it a byte that is damaged after it was read there, on the way or in the memory of the store, is refused.
  - A file that is not as O(files) says, before it is read or afterwards, gets no hash. Nothing is followed, nothing is
    written.
options:
  files:
    description: What to hash, as a run of M(kmsops.fortanix_dsm.backup_ship) in check mode lists it.
    type: list
    elements: dict
    required: true
    suboptions:
      path:
        description: Absolute path.
        type: str
        required: true
      size:
        description: Bytes that it must have.
        type: int
        required: true
      mtime:
        description: When it must have been written last, in seconds since the epoch.
        type: int
        required: true
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
attributes:
  check_mode:
    support: full
    details: It only reads.
  diff_mode:
    support: none
    details: Nothing changes.
  idempotent:
    support: full
seealso:
  - module: kmsops.fortanix_dsm.backup_ship
"""

EXAMPLES = r"""
- name: Hash what was delivered, where it was delivered to
  kmsops.fortanix_dsm.source_hash:
    files:
      - path: /home/dsmbackup/backup/backup_7.tar.gz
        size: 1073741824
        mtime: 1763769600
  delegate_to: landing
  register: hashed
"""

RETURN = r"""
hashes:
  description: SHA-256 in hex by path.
  returned: success
  type: dict
  sample: {}
unhashed:
  description: Files that got none, each with path, code and message.
  returned: success
  type: list
  elements: dict
  sample: []
bytes:
  description: Bytes that were read.
  returned: success
  type: int
  sample: 1073741824
"""

import os
import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Reason, Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import Outcome, Shell, run_module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._source_files import sha256_of


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    file = {
        "path": {"type": "str", "required": True},
        "size": {"type": "int", "required": True},
        "mtime": {"type": "int", "required": True},
    }
    return {"files": {"type": "list", "elements": "dict", "required": True, "options": file}}


def body(shell: Shell) -> Outcome:
    """Hash every file that is as it was said to be."""
    files = shell.params["files"]
    reasons = [
        Reason("BAD_PATH", f"{file['path']!r} is not absolute.", "Give the path as backup_ship found it.")
        for file in files
        if not os.path.isabs(file["path"])
    ]
    if reasons:
        raise Refused("Nothing was read.", reasons[0].code, reasons=reasons)
    hashes, unhashed, done = {}, [], 0
    for file in files:
        sha256, problem = sha256_of(file["path"], file["size"], file["mtime"])
        if problem is None:
            hashes[file["path"]] = sha256
            done += file["size"]
        else:
            unhashed.append({"path": file["path"], "code": problem.code, "message": problem.message})
    return Outcome(False, hashes=hashes, unhashed=unhashed, bytes=done)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), body)


if __name__ == "__main__":
    main()
