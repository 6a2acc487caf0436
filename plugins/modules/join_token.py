#!/usr/bin/python
# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: join_token
short_description: Provides a join token that lasts long enough, or deletes one that this collection made
version_added: 0.1.0
author:
  - The kmsops.fortanix_dsm contributors (@kmsops)
description:
  - Runs on a member. Returns a listed token that has enough time left, or makes one and marks it as made by this
    collection.
  - Deletes only tokens that carry the mark. Tokens of other people are theirs.
  - The token is a secret that admits a node to the cluster. Register the result with C(no_log), and delete the token
    when the join has ended, but never while one is pending.
extends_documentation_fragment:
  - kmsops.fortanix_dsm.attributes
  - kmsops.fortanix_dsm.attributes.node_group
  - kmsops.fortanix_dsm.kubeconfig
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) returns a token, V(absent) deletes one that carries the mark.
    type: str
    choices: [present, absent]
    default: present
  min_ttl:
    description:
      - Time that a listed token must have left to be used, in seconds. Longer than the longest join, approval
        included.
    type: int
    default: 3600
  ttl:
    description:
      - Life of a token that is made, in seconds. Raised to O(min_ttl) when shorter.
    type: int
    default: 14400
  token:
    description:
      - With O(state=absent), the token or its first six characters. When absent, every token that carries the mark of
        O(run_id).
    type: str
  run_id:
    description:
      - Names the run in the mark of a token that is made.
    type: str
"""

EXAMPLES = r"""
- name: Get a token from a member
  kmsops.fortanix_dsm.join_token:
    min_ttl: 5400
    run_id: "{{ run_id }}"
  delegate_to: "{{ member }}"
  register: join
  no_log: true

- name: Delete what this run made
  kmsops.fortanix_dsm.join_token:
    state: absent
    run_id: "{{ run_id }}"
  delegate_to: "{{ member }}"
"""

RETURN = r"""
token:
  description: The token; null in check mode when one would be made, and with O(state=absent).
  returned: success
  type: str
token_id:
  description: Its first six characters, which are no secret.
  returned: success
  type: str
  sample: abcdef
created_by_us:
  description: Whether it carries the mark of this collection.
  returned: success
  type: bool
expires:
  description: When it expires, UTC; null when never, or not known yet.
  returned: success
  type: str
  sample: "2026-11-22T05:00:00Z"
deleted:
  description: Ids of the tokens that were deleted.
  returned: O(state=absent)
  type: list
  elements: str
"""

import datetime
import typing as t

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _errors, _module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._parse import kubeadm

MARK = "kmsops.fortanix_dsm"


def run(shell: _module.Shell, *words: str, secrets: t.Sequence[str] = (), reading: bool = False, check: bool = True):
    environ = {"KUBECONFIG": shell.params["kubeconfig"]}
    return shell.runner.run(
        ["kubeadm", "token", *words],
        timeout=shell.params["timeout"],
        environ=environ,
        secrets=secrets,
        reading=reading,
        check=check,
    )


def listed(shell: _module.Shell) -> list[kubeadm.Token]:
    """Tokens, by the machine-readable format where this kubeadm has one."""
    done = run(shell, "list", "-o", "json", reading=True, check=False)
    if done.rc != 0:
        done = run(shell, "list", reading=True)
    return kubeadm.parse_token_list(done.stdout)


def mark(run_id: str | None) -> str:
    return f"{MARK} run={run_id or 'none'}"


def present(shell: _module.Shell) -> _module.Outcome:
    now = datetime.datetime.now(datetime.timezone.utc)
    # The one that expires last; a token that never expires is a danger of its own and is not spread further.
    usable = [
        token
        for token in listed(shell)
        if "authentication" in token.usages and token.expires and token.seconds_left(now) >= shell.params["min_ttl"]
    ]
    best = max(usable, key=lambda token: token.seconds_left(now), default=None)
    before = {"token_ids": sorted(token.token_id for token in usable)}
    if best is not None:
        return answer(False, before, before, best)
    if shell.check_mode:
        return answer(True, before, {"token_ids": ["(a new one)"]}, None)
    life = max(shell.params["ttl"], shell.params["min_ttl"])
    done = run(shell, "create", "--ttl", f"{life}s", "--description", mark(shell.params["run_id"]))
    value = kubeadm.parse_created_token(done.stdout)
    made = next((token for token in listed(shell) if token.token == value), None)
    if made is None:
        raise _errors.Unreadable(
            "A token was created, but is not listed.", remedy="Look at kubeadm token list on that member."
        )
    return answer(True, before, {"token_ids": [made.token_id]}, made)


def answer(changed: bool, before: t.Any, after: t.Any, token: kubeadm.Token | None) -> _module.Outcome:
    return _module.Outcome(
        changed,
        before,
        after,
        token=token.token if token else None,
        token_id=token.token_id if token else None,
        created_by_us=token.description.startswith(MARK) if token else True,
        expires=token.expires.strftime("%Y-%m-%dT%H:%M:%SZ") if token and token.expires else None,
    )


def absent(shell: _module.Shell) -> _module.Outcome:
    wanted, marked = (shell.params["token"] or "")[:6], mark(shell.params["run_id"])
    tokens = listed(shell)
    chosen = [token for token in tokens if (token.token_id == wanted if wanted else token.description == marked)]
    foreign = [token.token_id for token in chosen if not token.description.startswith(MARK)]
    if foreign:
        raise _errors.Refused(
            f"The token {', '.join(foreign)} was not made by this collection.",
            "TOKEN_NOT_OURS",
            "Whoever made it may still need it. Delete it by hand with kubeadm token delete.",
        )
    for token in chosen:
        if not shell.check_mode:
            run(shell, "delete", token.token_id)
    ids = [token.token_id for token in tokens]
    gone = [token.token_id for token in chosen]
    return _module.Outcome(
        bool(gone),
        {"token_ids": sorted(ids)},
        {"token_ids": sorted(set(ids) - set(gone))},
        token=None,
        token_id=wanted or None,
        created_by_us=bool(gone),
        expires=None,
        deleted=gone,
    )


def main() -> None:
    _module.run_module(
        dict(
            _module.kubeconfig_spec(),
            state={"type": "str", "choices": ["present", "absent"], "default": "present"},
            min_ttl={"type": "int", "default": 3600},
            ttl={"type": "int", "default": 14400},
            token={"type": "str", "no_log": True},
            run_id={"type": "str"},
        ),
        lambda shell: present(shell) if shell.params["state"] == "present" else absent(shell),
        required_if=[("state", "absent", ["token", "run_id"], True)],
    )


if __name__ == "__main__":
    main()
