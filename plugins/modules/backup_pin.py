#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_pin
short_description: Pin a stored backup, or note something about it
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Remembers beside a backup who wants it kept and why. M(kmsops.fortanix_dsm.backup_prune) never removes a pinned one.
  - A golden backup of a node that is set aside counts as pinned by itself, also one that failed and is not
    repaired. A person can release it; the newest that the node can open stays nevertheless.
options:
  id:
    description: The backup.
    type: str
    required: true
  state:
    description:
      - V(pinned) keeps it until it is unpinned, or until O(until).
      - Of the pins of two people the one that ends later counts, and the other one is noted. To shorten it, unpin it
        first.
      - V(unpinned) takes away a pin and a release.
      - V(released) takes away a pin, and gives up its being golden.
      - V(noted) remembers O(why) and nothing else.
    type: str
    choices: [pinned, unpinned, released, noted]
    default: pinned
  who:
    description: The person who says so.
    type: str
    required: true
  why:
    description: The reason, or the note. Never put a secret here.
    type: str
    required: true
  until:
    description:
      - When the pin ends (UTC, C(2026-12-31T00:00:00Z)). It is held a day longer, in case a clock is wrong.
      - Only with O(state=pinned).
    type: str
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.store_group
  - kmsops.fortanix_dsm.store
  - kmsops.fortanix_dsm.store.cluster
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
seealso:
  - module: kmsops.fortanix_dsm.backup_info
  - module: kmsops.fortanix_dsm.backup_prune
"""

EXAMPLES = r"""
- name: Keep the backup from before the upgrade
  kmsops.fortanix_dsm.backup_pin:
    store: /srv/dsm-store
    id: "{{ backup_id }}"
    who: j.doe
    why: before the upgrade to 5.6, change 4711
"""

RETURN = r"""
cluster_id:
  description: Name of the cluster in the store.
  returned: success
  type: str
pinned:
  description: Whether the backup is pinned now.
  returned: success
  type: bool
"""

import time
import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.notes import Saying
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import utc_seconds, utc_text
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._module import Outcome, Shell, run_module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._store_module import (
    ONE_NAME,
    chosen_store,
    store_spec,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._keeping import say


def argument_spec() -> dict[str, t.Any]:
    """Options of the module."""
    return {
        **store_spec("cluster"),
        "id": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["pinned", "unpinned", "released", "noted"], "default": "pinned"},
        "who": {"type": "str", "required": True},
        "why": {"type": "str", "required": True},
        "until": {"type": "str"},
    }


def body(shell: Shell) -> Outcome:
    """Say it."""
    params = shell.params
    if params["until"] is not None:
        try:
            utc_seconds(params["until"])
        except ValueError as error:
            raise Refused(f"until: {error}.", "BAD_TIME", "Give it like 2026-12-31T00:00:00Z.") from None
        if params["state"] != "pinned":
            raise Refused("Only a pin has an end.", "BAD_OPTION", "Leave until out, or say state: pinned.")
    if not params["who"].strip() or not params["why"].strip():
        raise Refused("who or why is empty.", "BAD_OPTION", "Say who wants it and why: others will ask.")
    store = chosen_store(params)
    saying = Saying(params["who"], utc_text(time.time()), params["why"], params["until"])
    before, after = say(store, params["id"], params["state"], saying, not shell.check_mode)
    return Outcome(
        after is not before,
        before=before.as_dict(),
        after=after.as_dict(),
        cluster_id=store.identity.cluster_id,
        pinned=after.pin is not None,
    )


def main() -> None:
    """Entry point."""
    run_module(argument_spec(), body, mutually_exclusive=ONE_NAME)


if __name__ == "__main__":
    main()
