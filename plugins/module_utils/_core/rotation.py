# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Rotating deep verification: every run reads one of t slices of all files, so that t runs in a row read everything.

The slice of a file follows from its name alone. So the promise holds however the store grows and shrinks meanwhile, and
needs nothing remembered but whose turn it is. What was read when is kept as evidence.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Iterable, Mapping

from .strict import Checker, Invalid, Problem, load

SCHEMA = 1
KIND = "kmsops.fortanix_dsm/reads"
_SPEC = re.compile(r"^(auto|[0-9]{1,4})/([0-9]{1,4})\Z", re.ASCII)
_TOP: dict[str, Any] = {"schema": int, "kind": str, "id": str, "files": dict}


def parse_slice(text: str) -> tuple[int | None, int]:
    """``3/7`` or ``auto/7`` as (turn or None for the next one, turns). Raises ValueError."""
    match = _SPEC.match(text)
    turn, turns = (match.group(1), int(match.group(2))) if match else ("", 0)
    if turns < 1 or (turn != "auto" and not 1 <= int(turn) <= turns):
        raise ValueError(f"slice is {text!r}: give n/t with 1 <= n <= t, or auto/t")
    return None if turn == "auto" else int(turn), turns


def slice_of(backup_id: str, path: str, turns: int) -> int:
    """The turn (1 to ``turns``) in which a file is read."""
    return int(hashlib.sha256(f"{backup_id}/{path}".encode()).hexdigest()[:12], 16) % turns + 1


def slices_with_files(backup_id: str, paths: Iterable[str], turns: int) -> int:
    """In how many turns any of these files is read."""
    return len({slice_of(backup_id, path, turns) for path in paths})


def turn_after(turn: int, turns: int) -> int:
    """The turn that follows."""
    return turn % turns + 1


def dump_turn(turn: int, turns: int) -> bytes:
    """The bytes of ``rotation.json``: whose turn is next."""
    return json.dumps({"schema": SCHEMA, "next": turn, "turns": turns}, sort_keys=True).encode("ascii")


def next_turn(data: bytes, turns: int) -> int:
    """Whose turn it is by ``rotation.json``; the first one if that is not understood or was about another number."""
    try:
        value = load(data, "rotation.json")
    except Invalid:
        return 1
    turn = value.get("next")
    if value.get("schema") != SCHEMA or value.get("turns") != turns or isinstance(turn, bool):
        return 1
    return turn if isinstance(turn, int) and 1 <= turn <= turns else 1


def dump_reads(backup_id: str, reads: Mapping[str, str]) -> bytes:
    """The bytes of ``reads.json``: path -> time (UTC) of the last full read that found the file right."""
    value = {"schema": SCHEMA, "kind": KIND, "id": backup_id, "files": dict(reads)}
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def parse_reads(data: bytes, backup_id: str) -> dict[str, str]:
    """The inverse. Raises :class:`Invalid`; who asks takes that for never read."""
    check = Checker(f"reads of {backup_id}")
    value = load(data, check.what)
    if not check.keys(value, "the document", _TOP):
        check.done()
    if (value["schema"], value["kind"], value["id"]) != (SCHEMA, KIND, backup_id):
        raise Invalid([Problem("FOREIGN", f"{check.what}: it is about something else")])
    for path, time in value["files"].items():
        if check.strings([time], f"files[{path!r}]"):
            check.utc(time, f"files[{path!r}]")
    check.done()
    return dict(value["files"])
