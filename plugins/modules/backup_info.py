#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_info
short_description: List the backups in the out-of-region store
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Reads the catalogue of a store. Manifests are read strictly. What is unreadable, empty, foreign, newer than this
    release or not understood is listed as failed, never left out.
  - The bits themselves are proved by M(kmsops.fortanix_dsm.backup_verify); its last verdict is listed here.
options:
  cluster_id:
    description: List this cluster only. Absent means every cluster of the store.
  details:
    description: Describe each backup with every key of its manifest. V(false) only lists them, which is much faster.
    type: bool
    default: true
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
  - kmsops.fortanix_dsm.store
  - kmsops.fortanix_dsm.store.cluster
  - kmsops.fortanix_dsm.store.parts
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
  - module: kmsops.fortanix_dsm.backup_replicate
  - module: kmsops.fortanix_dsm.backup_verify
"""

EXAMPLES = r"""
- name: List what the store holds
  kmsops.fortanix_dsm.backup_info:
    store: /srv/dsm-store
  register: catalogue
"""

RETURN = r"""
clusters:
  description: The clusters of the store with their generations.
  returned: success
  type: list
  elements: dict
backups:
  description:
    - Published and failed backups in the order of their numbers, oldest first. A published one has every key of its
      manifest, and those that a candidate of M(kmsops.fortanix_dsm.restore) has.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Id in the store. Its number decides what is newer.
      type: str
      sample: 00000007-20261122T005300Z
    cluster_id:
      description: The cluster.
      type: str
    state:
      description: V(published), V(incomplete) (no manifest), V(failed), or V(removing) (pruned, not gone yet).
      type: str
    complete:
      description: Whether every part that O(require) names is there.
      type: bool
    parts:
      description: The state of each part, V(ok), V(missing) or V(failed).
      type: dict
    published:
      description: Whether it is published and its manifest is understood.
      type: bool
    verdict:
      description: V(ok) or V(failed) by the last verification, V(unverified) if there was none.
      type: str
    verified:
      description: Whether the last verification found everything right.
      type: bool
    verified_at:
      description: When that was (UTC).
      type: str
    last_full_read:
      description: Since when every file of it was read in full and found right (UTC), null if one never was.
      type: str
    pin:
      description: Who pinned it, when, why and until when, null if nobody did.
      type: dict
    released:
      description: Who gave up its being golden, when and why, null if nobody did.
      type: dict
    notes:
      description: What people noted about it, each with who, when and the text as C(why).
      type: list
      elements: dict
    reasons:
      description: What is wrong with it.
      type: list
      elements: dict
    path:
      description: The single file, or the directory with all files, in the store.
      type: str
    sha256:
      description: SHA-256 of a single file, or the digest of the C(sha256sum) lines of all files sorted by path.
      type: str
    pairs:
      description: What it is worth to each node that it was sealed for, proved, golden, presumed or impossible.
      type: list
      elements: dict
incoming:
  description: Ids of unfinished transfers. They never count.
  returned: success
  type: list
  elements: str
sites:
  description:
    - How new the backups of each site are, one item for this store, and one for the other site as
      M(kmsops.fortanix_dsm.backup_replicate) last saw it from here.
  returned: success
  type: list
  elements: dict
  contains:
    cluster_id:
      description: The cluster.
      type: str
    site:
      description: Name of the host, or of the other site.
      type: str
    here:
      description: Whether it is this store.
      type: bool
    looked_at:
      description: When this was seen (UTC).
      type: str
    copies:
      description: Published backups.
      type: int
    verified:
      description: Those whose last verification found everything right.
      type: int
    newest:
      description: The newest one, null if there is none.
      type: str
    newest_published_at:
      description: When it was published (UTC).
      type: str
    newest_verified:
      description: The newest verified one, null if there is none.
      type: str
    newest_verified_published_at:
      description: When that was published (UTC).
      type: str
    missing:
      description: How many of them should be in this store and are not.
      type: int
    missing_since:
      description: When the oldest of those was published (UTC), null if none is missing.
      type: str
table:
  description: The same as lines of text for a person.
  returned: success
  type: list
  elements: str
"""

import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import Outcome, Shell, run_module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._store_module import ONE_NAME, chosen, store_spec
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._info import info


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    return {
        **store_spec("cluster", "parts"),
        "details": {"type": "bool", "default": True},
    }


def body(shell: Shell) -> Outcome:
    """Read the catalogue."""
    params = shell.params
    found = info(params["store"], **chosen(params), details=params["details"], require=params["require"])
    return Outcome(False, **found)


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), body, mutually_exclusive=ONE_NAME)


if __name__ == "__main__":
    main()
