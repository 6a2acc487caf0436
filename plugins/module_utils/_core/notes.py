# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What people say about a backup: pins, notes, and that a golden one is not needed any more; who, when and why.

``notes.json`` stands beside the manifest, which never changes after publication. What cannot be read counts as a pin.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from .strict import Checker, Invalid, Problem, digest, load, utc_seconds

SCHEMA = 1
KIND = "kmsops.fortanix_dsm/notes"
#: A pin with an end outlasts it by this much (s), so that no clock that is a day wrong ends it early (F17).
MARGIN = 86400.0
_TOP: dict[str, Any] = {
    "schema": int,
    "kind": str,
    "cluster_id": str,
    "id": str,
    "pin": (dict, type(None)),
    "released": (dict, type(None)),
    "notes": list,
    "checksum": str,
}
_SAYING: dict[str, Any] = {"who": str, "at": str, "why": str, "until": (str, type(None))}


@dataclass(frozen=True)
class Saying:
    """What ``who`` said ``at`` a time (UTC), and for a pin ``until`` when it holds (None: until it is taken away)."""

    who: str
    at: str
    why: str
    until: str | None = None


@dataclass(frozen=True)
class Notes:
    """Everything that was said about one backup."""

    pin: Saying | None = None
    released: Saying | None = None
    notes: tuple[Saying, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For documents and results."""
        return {
            "pin": None if self.pin is None else asdict(self.pin),
            "released": None if self.released is None else asdict(self.released),
            "notes": [asdict(note) for note in self.notes],
        }

    def said(self, state: str, saying: Saying) -> Notes:
        """After ``saying`` with ``state`` pinned, unpinned, released or noted; the same object if that is no news."""
        if state == "pinned":
            return self._pinned(saying)
        if state == "unpinned":
            return self if self.pin is None and self.released is None else replace(self, pin=None, released=None)
        if state == "released":
            return self if self.released is not None and self.pin is None else replace(self, pin=None, released=saying)
        if any(note.why == saying.why and note.who == saying.who for note in self.notes):
            return self
        return replace(self, notes=(*self.notes, saying))

    def _pinned(self, saying: Saying) -> Notes:
        """Nobody shortens the pin of somebody else without a word: the one that holds longer stays the pin, the other
        one is noted."""
        if self.pin is None:
            return replace(self, pin=saying)
        if (self.pin.why, self.pin.until) == (saying.why, saying.until):
            return self
        if self.pin.who == saying.who:
            return replace(self, pin=saying)
        longer, other = sorted((self.pin, saying), key=_end, reverse=True)
        # A job that prolongs its pin every day is noted once.
        notes = [note for note in self.notes if (note.who, note.why) != (other.who, other.why) or note.until is None]
        known = any((note.who, note.why, note.until) == (other.who, other.why, other.until) for note in self.notes)
        return self if longer is self.pin and known else replace(self, pin=longer, notes=(*notes, other))

    def holds(self, now: float) -> list[Problem]:
        """Why the backup may not go: its pin, if it has not ended."""
        if self.pin is None or (self.pin.until is not None and utc_seconds(self.pin.until) + MARGIN < now):
            return []
        until = f" until {self.pin.until}" if self.pin.until else ""
        return [Problem("PINNED", f"pinned by {self.pin.who} at {self.pin.at}{until}: {self.pin.why}")]


def _end(pin: Saying) -> float:
    return float("inf") if pin.until is None else utc_seconds(pin.until)


def dump(notes: Notes, cluster_id: str, backup_id: str) -> bytes:
    """The bytes of ``notes.json``."""
    value = {"schema": SCHEMA, "kind": KIND, "cluster_id": cluster_id, "id": backup_id, **notes.as_dict()}
    value["checksum"] = digest(value)
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def parse(data: bytes, cluster_id: str, backup_id: str) -> Notes:
    """The notes about ``backup_id``. Raises :class:`Invalid`."""
    check = Checker(f"notes of {backup_id}")
    value = load(data, check.what)
    schema = value.get("schema")
    if value.get("kind") != KIND or isinstance(schema, bool) or schema != SCHEMA:
        raise Invalid([Problem("UNKNOWN_SCHEMA", f"{check.what}: kind or schema {schema!r} is not understood")])
    if not check.keys(value, "the document", _TOP):
        check.done()
    if digest({name: item for name, item in value.items() if name != "checksum"}) != value["checksum"]:
        check.add("CHECKSUM", "its own checksum does not match")
    if (value["cluster_id"], value["id"]) != (cluster_id, backup_id):
        check.add("FOREIGN", f"they are about {value['id']} of {value['cluster_id']}")
    sayings = [_saying(item, f"notes[{index}]", check) for index, item in enumerate(value["notes"])]
    pin, released = (None if value[name] is None else _saying(value[name], name, check) for name in ("pin", "released"))
    check.done()
    return Notes(pin, released, tuple(item for item in sayings if item is not None))


def _saying(value: Any, where: str, check: Checker) -> Saying | None:
    if not isinstance(value, dict):
        check.add("WRONG_TYPE", f"{where} is not an object")
    elif check.keys(value, where, _SAYING):
        check.utc(value["at"], f"{where}.at")
        check.utc(value["until"], f"{where}.until")
        return Saying(**value)
    return None
