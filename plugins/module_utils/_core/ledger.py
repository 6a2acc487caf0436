# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The ledger: append-only events of one cluster, chained by hash, folded to what guards and people ask of it.

One line of ``ledger.jsonl`` is one event. ``previous`` is the hash of the line before, so that nothing inside can be
changed, removed or put in later without being seen. What is true now is a pure fold over the events; sequence decides
what is newer, the clock never does. An event that was taken over from another store may be older than those before it:
where it contradicts what was recorded here, nobody knows which is newer, and what keeps more copies counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Callable, Container, Iterable, Mapping, NamedTuple, Sequence

from .manifest import Manifest, Sealed, checksum
from .openability import Copy, classify
from .room import Room
from .strict import Checker, Invalid, Problem, canonical, digest, load, utc_seconds

GENESIS = "0" * 64
#: Key in the data of an event that was taken over from another store.
ORIGIN = "replicated_from"
KINDS = (
    "observed_members",
    "joined",
    "backup_started",
    "shipped",
    "verified",
    "removed",
    "set_aside",
    "trial_created",
    "restored",
    "proved",
    "expanded",
    "trial_reset",
    "fenced",
    "accepted",
    "pruned",
    "no_room",
)
STATE_KINDS = frozenset(
    (
        "joined",
        "removed",
        "set_aside",
        "trial_created",
        "restored",
        "expanded",
        "trial_reset",
        "fenced",
        "accepted",
        "pruned",
        "no_room",
    )
)
#: After one of these about the same subject, an equal event says something new.
_UNDONE_BY = {
    "joined": ("removed", "set_aside"),
    "removed": ("joined",),
    "set_aside": ("joined",),
    "trial_created": ("trial_reset",),
    "restored": ("trial_reset",),
    "expanded": ("trial_reset",),
    "trial_reset": ("trial_created",),
    "verified": ("shipped", "pruned"),
    "pruned": ("shipped",),
}
#: What a verification finds again in the slice that has the file, or, of files, manifest and ledger, in every slice.
_SEEN_BY_SLICES = frozenset(
    (
        "CORRUPT",
        "EXTRA_FILE",
        "MISSING_FILE",
        "NOT_A_FILE",
        "TAMPERED",
        "UNREADABLE",
        "WRONG_SIZE",
        "BAD_NAME",
        "CHECKSUM",
        "EMPTY",
        "FOREIGN",
        "INCONSISTENT",
        "MISSING_KEY",
        "NEWER_SCHEMA",
        "NO_MANIFEST",
        "UNKNOWN_KEY",
        "UNKNOWN_SCHEMA",
        "WRONG_TYPE",
        "WRONG_VALUE",
    )
)


class _Form(NamedTuple):
    """What a value in the data of an event must be: a check, and in words."""

    fits: Callable[[Any], bool]
    told: str


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool))


def _is_count(value: Any) -> bool:
    return value is None or (_is_number(value) and value >= 0)


def _is_time(value: Any) -> bool:
    """A UTC time; templates make an empty text of one that is not known."""
    if value is None or value == "":
        return True
    try:
        utc_seconds(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_verdict(value: Any) -> bool:
    return value in ("ok", "failed")


def _is_members(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(item, dict) and bool(item.get("name")) and _fits(item, _MEMBER) for item in value)
    )


def _is_sealed_for(value: Any) -> bool:
    return value is None or (
        isinstance(value, list)
        and all(isinstance(item, dict) and bool(item.get("node")) and _fits(item, _SEALED) for item in value)
    )


def _fits(value: Mapping[str, Any], forms: Mapping[str, _Form]) -> bool:
    return all(form.fits(value[name]) for name, form in forms.items() if name in value)


_TEXT = _Form(_is_text, "text (numbers in quotes)")
_TEXTS = _Form(_is_texts, "a list of texts")
_COUNT = _Form(_is_count, "a whole number, 0 or more")
_TIME = _Form(_is_time, "a UTC time like 2026-11-22T00:53:00Z")
_PLACE = {"addresses": _TEXTS, "host_id": _TEXT}
_MEMBER = {"name": _TEXT, **_PLACE}
_SEALED = {
    "node": _TEXT,
    "platform_id": _TEXT,
    "version": _TEXT,
    "joined_at": _TIME,
    "member": _Form(lambda value: isinstance(value, bool), "true or false"),
}
#: kind -> what its data has to say; without that the event says nothing
_NEEDED = {
    "observed_members": ("members", "fingerprint"),
    "restored": ("fingerprint", "backup"),
    "proved": ("backup",),
    "fenced": ("fingerprint",),
    "accepted": ("fingerprint",),
}
#: kind -> what the fold reads of its data
_FORMS: dict[str, dict[str, _Form]] = {
    "observed_members": {
        "members": _Form(
            _is_members, "a list of objects with a name and a host_id (text) and addresses (a list of texts)"
        ),
        "fingerprint": _TEXT,
        "version": _TEXT,
    },
    "joined": {**_PLACE, "joined_at": _TIME, "platform_id": _TEXT, "version": _TEXT},
    "expanded": {**_PLACE, "joined_at": _TIME},
    "restored": {**_PLACE, "fingerprint": _TEXT, "backup": _TEXT},
    "proved": {"backup": _TEXT},
    "fenced": {"fingerprint": _TEXT},
    "accepted": {"fingerprint": _TEXT},
    "shipped": {
        "fingerprint": _TEXT,
        "digest": _TEXT,
        "manifest": _TEXT,
        "bytes": _COUNT,
        "snapshot_started": _TIME,
        "oldest_mtime": _Form(_is_number, "a whole number (s since 1970)"),
        "sealed_for": _Form(
            _is_sealed_for,
            "a list of objects with node, platform_id and version (text), joined_at (a UTC time like "
            "2026-11-22T00:53:00Z) and member (true or false)",
        ),
    },
    "verified": {
        "verdict": _Form(_is_verdict, "ok or failed"),
        "codes": _TEXTS,
        "digest": _TEXT,
        "slice": _COUNT,
        "slices": _COUNT,
    },
    "pruned": {"verdict": _TEXT, "key": _TEXT},
    "no_room": {"newer": _TEXTS, "bytes": _COUNT, "files": _COUNT},
}
_EVENT = {
    "sequence": int,
    "time": str,
    "run_id": str,
    "kind": str,
    "subject": str,
    "data": dict,
    "previous": str,
    "hash": str,
}


@dataclass(frozen=True)
class Event:
    """One event; ``time`` is UTC text, ``hash`` the SHA-256 of all other fields in canonical form."""

    sequence: int
    time: str
    run_id: str
    kind: str
    subject: str
    data: Mapping[str, Any]
    previous: str
    hash: str

    def as_dict(self) -> dict[str, Any]:
        """The event as a plain object."""
        return {name: getattr(self, name) for name in _EVENT}

    def line(self) -> bytes:
        """The event as one line of the file."""
        return canonical(self.as_dict()) + b"\n"


@dataclass(frozen=True)
class Chain:
    """What a ledger file says. ``torn`` is an unfinished last line (a writer was killed): it never happened."""

    events: tuple[Event, ...]
    problems: tuple[Problem, ...]
    torn: int

    @property
    def head(self) -> Event | None:
        """The last event."""
        return self.events[-1] if self.events else None


def make(head: Event | None, *, time: str, run_id: str, kind: str, subject: str, data: Mapping[str, Any]) -> Event:
    """The event that follows ``head`` (None: the first). Raises :class:`Invalid` for an unknown kind or a bad time."""
    problems = kind_problems(kind, subject, data)
    try:
        utc_seconds(time)
    except ValueError as error:
        problems.append(Problem("WRONG_VALUE", str(error)))
    if problems:
        raise Invalid(problems)
    fields: dict[str, Any] = {
        "sequence": head.sequence + 1 if head else 1,
        "time": time,
        "run_id": run_id,
        "kind": kind,
        "subject": subject,
        "data": dict(data),
        "previous": head.hash if head else GENESIS,
    }
    return Event(hash=digest(fields), **fields)


def kind_problems(kind: str, subject: str, data: Mapping[str, Any]) -> list[Problem]:
    """What makes an event useless to the fold: unknown kind, no subject, data without what its kind needs, or with
    something else than it has to be."""
    problems = []
    if kind not in KINDS:
        problems.append(Problem("WRONG_VALUE", f"kind {kind!r} is unknown; kinds are {', '.join(KINDS)}"))
    if not subject:
        problems.append(Problem("WRONG_VALUE", "subject is empty: name the node, backup or cluster that it is about"))
    problems.extend(
        Problem("WRONG_VALUE", f"an event {kind} needs data.{name}")
        for name in _NEEDED.get(kind, ())
        if not data.get(name)
    )
    if kind == "restored" and not isinstance(data.get("drill"), bool):
        problems.append(Problem("WRONG_VALUE", "data.drill of an event restored is true (drill) or false (disaster)"))
    problems.extend(
        Problem("WRONG_VALUE", f"data.{name} of an event {kind} must be {_FORMS[kind][name].told}")
        for name in _misfits(kind, data)
    )
    return problems


def _misfits(kind: str, data: Mapping[str, Any]) -> list[str]:
    """The keys of data that have something else than they have to."""
    return [name for name, form in _FORMS.get(kind, {}).items() if name in data and not form.fits(data[name])]


def understood(event: Event) -> Event | None:
    """What counts of an event, whoever recorded it: what is not as it has to be was never said.

    None if that leaves nothing. Of a good verdict every part has to be understood.
    """
    misfits = _misfits(event.kind, event.data)
    if misfits:
        if event.kind == "verified" and event.data.get("verdict") == "ok":
            return None
        data = {name: value for name, value in event.data.items() if name not in misfits}
        if "sealed_for" in misfits:
            data["sealed_for"] = _sealed_for_some(event.data["sealed_for"])
        event = replace(event, data=data)
    if event.kind in _NEEDED and kind_problems(event.kind, event.subject, event.data):
        return None
    return event


def _sealed_for_some(value: Any) -> list[dict[str, Any]]:
    """The nodes that can be told; a doubt about one of them must not hide that it may open the backup."""
    return [
        {name: item[name] for name, form in _SEALED.items() if name in item and form.fits(item[name])}
        for item in (value if isinstance(value, list) else ())
        if isinstance(item, dict) and isinstance(item.get("node"), str) and item["node"]
    ]


def read(data: bytes, known: int = 0) -> Chain:
    """All events of a ledger file as far as the chain holds, and what is wrong with the rest.

    The first ``known`` bytes are whole lines that were found right before, and are not checked again.
    """
    whole = data[:known].rstrip().replace(b"\n", b",")
    return read_on([Event(**value) for value in json.loads(b"[%s]" % whole)], data[known:])


def read_on(before: Sequence[Event], data: bytes) -> Chain:
    """Like :func:`read`, of the bytes that follow the lines of the events ``before``."""
    events = list(before)
    problems: list[Problem] = []
    complete, _newline, torn = data.rpartition(b"\n")
    lines = complete.split(b"\n") if complete or _newline else []
    previous = events[-1].hash if events else GENESIS
    for number, line in enumerate(lines, len(events) + 1):
        try:
            event = _event(line, number, previous)
        except Invalid as error:
            problems.extend(error.problems)
            break
        events.append(event)
        previous = event.hash
    return Chain(tuple(events), tuple(problems), len(torn))


def _event(line: bytes, number: int, previous: str) -> Event:
    check = Checker(f"ledger line {number}")
    value = load(line, check.what)
    if not check.keys(value, "the event", _EVENT):
        check.done()
    fields = {name: item for name, item in value.items() if name != "hash"}
    if digest(fields) != value["hash"]:
        check.add("CHAIN", "its hash does not match its content: it was changed")
    elif canonical(value) != line:
        # The same content in other bytes: nothing here writes it so.
        check.add("CHAIN", "it is not written as events are written: a byte of it was changed")
    if value["previous"] != previous:
        check.add("CHAIN", "it does not follow the line before: something was removed or put in")
    if value["sequence"] != number:
        check.add("CHAIN", f"it carries sequence {value['sequence']}")
    if value["kind"] not in KINDS:
        check.add("UNKNOWN", f"kind {value['kind']!r} is unknown: written by a newer release?")
    check.utc(value["time"], "time")
    check.done()
    return Event(**value)


def repeated(events: Sequence[Event], run_id: str, kind: str, subject: str, data: Mapping[str, Any]) -> Event | None:
    """The event that a re-run of the same task would write once more, or None: newest of its kind and subject, equal.

    Events of state (a node joined, ...) are equal whatever run wrote them; evidence counts for its own run only, and
    for none where the run has no name.
    """
    for event in reversed(events):
        if event.subject == subject and event.kind in _UNDONE_BY.get(kind, ()):
            return None
        if event.kind == kind and event.subject == subject:
            same = canonical(dict(event.data)) == canonical(dict(data))
            return event if same and (kind in STATE_KINDS or event.run_id == run_id != "") else None
    return None


@dataclass(frozen=True)
class Folded:
    """What the events amount to."""

    members: list[dict[str, Any]]
    version: str
    observed_at: str | None
    production_fingerprint: str | None
    generations: list[dict[str, Any]]
    joins: dict[str, dict[str, Any]]
    removed: dict[str, dict[str, Any]]
    trials: dict[str, dict[str, Any]]
    backups: dict[str, dict[str, Any]]
    pruned: dict[str, dict[str, Any]]
    proved: list[dict[str, Any]]

    @property
    def golden(self) -> list[dict[str, Any]]:
        """Every pair (backup, node) whose snapshot started while the node was a verified member, oldest first."""
        return _golden(self.backups)

    def as_dict(self) -> dict[str, Any]:
        """Plain objects for a module's result."""
        return {**self.__dict__, "golden": self.golden}


def fold(events: Iterable[Event]) -> Folded:
    """The state after ``events``: last known members, fingerprint, joins, removals, trials, backups, golden pairs."""
    state: dict[str, Any] = {"version": "", "observed_at": None, "fingerprint": None}
    members: dict[str, dict[str, Any]] = {}
    joins: dict[str, dict[str, Any]] = {}
    removed: dict[str, dict[str, Any]] = {}
    trials: dict[str, dict[str, Any]] = {}
    backups: dict[str, dict[str, Any]] = {}
    pruned: dict[str, dict[str, Any]] = {}
    generations: list[dict[str, Any]] = []
    proved: list[dict[str, Any]] = []
    told = _Verdicts()
    #: fingerprint of the generation that the first observation or the last recovery made the one that serves
    serving: str | None = None
    removed_here: set[str] = set()
    for event in filter(None, map(understood, events)):
        data = event.data
        stamped = dict(data, sequence=event.sequence, recorded_at=event.time, run_id=event.run_id)
        elsewhere = ORIGIN in data
        undecided = elsewhere and event.subject in removed_here
        if event.kind == "observed_members":
            recovered = any(item["backup"] is not None for item in generations)
            strange = elsewhere and recovered and data["fingerprint"] != serving
            if strange or _superseded(data["fingerprint"], generations, serving):
                continue
            members = {
                item["name"]: dict(item)
                for item in data["members"]
                if not (elsewhere and removed.get(item["name"], {}).get("out"))
            }
            state = {
                "version": data.get("version") or state["version"],
                "observed_at": event.time,
                "fingerprint": data["fingerprint"],
            }
            if not generations:
                generations.append(_generation(data["fingerprint"], event, None))
                serving = data["fingerprint"]
        elif event.kind == "joined":
            joins[event.subject] = stamped
            if not undecided:
                removed.pop(event.subject, None)
                removed_here.discard(event.subject)
                members.setdefault(event.subject, {"name": event.subject, **_identity(data)})
        elif event.kind in ("removed", "set_aside"):
            removed.setdefault(event.subject, {}).update(stamped, kind=event.kind, out=True)
            members.pop(event.subject, None)
            if not elsewhere:
                removed_here.add(event.subject)
        elif event.kind == "restored":
            past = elsewhere and _superseded(data["fingerprint"], generations, serving)
            if is_recovery(event) and not past:
                if all(item["fingerprint"] != data["fingerprint"] for item in generations):
                    generations.append(_generation(data["fingerprint"], event, data["backup"]))
                serving = state["fingerprint"] = data["fingerprint"]
                members = {event.subject: {"name": event.subject, **_identity(data)}}
                for name, one in removed.items():
                    one["out"] = one["out"] and elsewhere and name in removed_here
        elif event.kind in ("fenced", "accepted"):
            for item in generations:
                if item["fingerprint"] == data.get("fingerprint"):
                    item[event.kind] = True
        elif event.kind == "expanded":
            if not undecided:
                removed.get(event.subject, {}).update(out=False)
                members.setdefault(event.subject, {"name": event.subject, **_identity(data)})
        elif event.kind == "trial_created":
            trials[event.subject] = dict(stamped, open=True)
        elif event.kind == "trial_reset":
            trials.setdefault(event.subject, {}).update(stamped, open=False)
        elif event.kind == "shipped":
            backups[event.subject] = dict(stamped, verdict="unverified")
            told.forget(event.subject)
            # A second store may bring home again what it removed because it was bad.
            pruned.pop(event.subject, None)
        elif event.kind == "verified" and event.subject in backups:
            backups[event.subject].update(told.change(event))
        elif event.kind == "pruned":
            pruned[event.subject] = stamped
            backups.pop(event.subject, None)
        elif event.kind == "proved":
            proved.append(dict(stamped, node=event.subject))
    return Folded(
        members=list(members.values()),
        version=state["version"],
        observed_at=state["observed_at"],
        production_fingerprint=state["fingerprint"],
        generations=generations,
        joins=joins,
        removed=removed,
        trials=trials,
        backups=backups,
        pruned=pruned,
        proved=proved,
    )


def verdicts(events: Iterable[Event]) -> dict[str, str]:
    """The last verdict on each backup, ``ok`` or ``failed``; those that nobody verified are not in it."""
    found: dict[str, str] = {}
    told = _Verdicts()
    for event in events:
        if event.kind == "shipped":
            told.forget(event.subject)
        elif event.kind == "verified":
            verified = understood(event)
            if verified is not None:
                found[event.subject] = told.change(verified).get("verdict", found.get(event.subject, ""))
    return {subject: verdict for subject, verdict in found.items() if verdict}


class _Verdicts:
    """What verifications change. One that read a slice proves nothing about the rest, unless it failed; when all slices
    of the same bytes were found right one after the other, and nothing failed in between, that is the whole.

    Whatever failed for a reason that no slice can see (how files fit together) has to be read as a whole again.
    """

    def __init__(self) -> None:
        #: subjects that slices cannot lift
        self._whole_only: set[str] = set()
        #: subject -> what its slices are slices of, and those that were found right
        self._right: dict[str, tuple[object, set[int]]] = {}

    def forget(self, subject: str) -> None:
        """Nothing that was found before counts any more."""
        self._right.pop(subject, None)
        self._whole_only.discard(subject)

    def change(self, event: Event) -> dict[str, Any]:
        """What an event ``verified`` changes of what is known of its subject."""
        data = event.data
        verdict = data.get("verdict", "failed")
        if verdict == "ok" and data.get("partial") and not self._whole(event.subject, data):
            return {"checked_at": event.time}
        blind = event.subject in self._whole_only
        self.forget(event.subject)
        if verdict != "ok" and (blind or not _SEEN_BY_SLICES.issuperset(data.get("codes") or [""])):
            self._whole_only.add(event.subject)
        return {"verdict": verdict, "verified_at": event.time}

    def _whole(self, subject: str, data: Mapping[str, Any]) -> bool:
        number, slices = data.get("slice"), data.get("slices")
        if not isinstance(number, int) or not isinstance(slices, int) or subject in self._whole_only:
            return False
        # Which files a slice has follows from these, so that the number of slices with a file is enough to know.
        of = (data.get("digest"), data.get("turns"), slices)
        known, right = self._right.get(subject, (None, set()))
        right = {*(right if known == of else ()), number}
        self._right[subject] = (of, right)
        return len(right) == slices


def passed_over(events: Iterable[Event], here: Container[str]) -> set[str]:
    """Keys of deliveries that had no room when newer ones came. ``here``: keys of backups that came into the store.

    They never come behind the newer ones: what comes last into a store counts as the newest of it.
    """
    return {
        event.subject
        for event in filter(None, map(understood, (event for event in events if event.kind == "no_room")))
        if any(key in here for key in event.data.get("newer") or ())
    }


def wanted_room(events: Sequence[Event]) -> Room:
    """What the newest delivery needed (bytes with headroom) when there was no room for it; nothing if one came since
    then."""
    for event in reversed(events):
        if event.kind == "shipped":
            return Room()
        if event.kind == "no_room" and not event.data.get("newer"):
            wanted = (event.data.get(name) for name in Room._fields)
            return Room(*(value if value is not None and _is_count(value) else 0 for value in wanted))
    return Room()


def is_recovery(event: Event) -> bool:
    """Whether an event gives the cluster a new generation: restored, and not for a drill."""
    return event.kind == "restored" and event.data.get("drill") is False


def _superseded(fingerprint: str, generations: Iterable[Mapping[str, Any]], serving: str | None) -> bool:
    """Whether another generation took the place of this one."""
    return fingerprint != serving and any(item["fingerprint"] == fingerprint for item in generations)


def _generation(fingerprint: str, event: Event, backup: str | None) -> dict[str, Any]:
    return {
        "fingerprint": fingerprint,
        "sequence": event.sequence,
        "backup": backup,
        "fenced": False,
        "accepted": backup is None,
    }


def _identity(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"addresses": list(data.get("addresses") or []), "host_id": data.get("host_id") or ""}


def shipped_data(manifest: Manifest) -> dict[str, Any]:
    """What the ledger keeps of a published backup: enough to rebuild its state without the manifest, and to tell
    whether a manifest is the one that was published (F25)."""
    value = manifest.as_dict()
    return {
        "fingerprint": manifest.fingerprint,
        "digest": manifest.digest,
        "manifest": checksum(manifest),
        "bytes": manifest.bytes,
        "generation": manifest.generation,
        "version": manifest.version,
        "snapshot_started": manifest.snapshot_started,
        "snapshot_source": manifest.snapshot_source,
        "oldest_mtime": min(entry.mtime for entry in manifest.files),
        "sealed_for": value["sealed_for"],
        "source": {"host": manifest.source["host"], "path": manifest.source["path"]},
    }


def contradictions(manifest: Manifest, record: Mapping[str, Any]) -> list[str]:
    """What a manifest says otherwise than the ledger's ``record`` of the same backup; of what no record tells, nothing.

    Before the checksum of the manifest was recorded, a repair could bring another one: then what decides what a backup
    is worth has to be the same, and where it came from does not.
    """
    if record.get("manifest") and record["manifest"] == manifest.checksum:
        return []
    told = shipped_data(manifest)
    if not record.get("manifest"):
        del told["source"]
    return sorted(name for name, value in told.items() if name in record and record[name] != value)


def copy_of_record(backup_id: str, backup: Mapping[str, Any]) -> Copy:
    """The facts that decide openability, as the ledger has them of a backup that was shipped."""
    sealed_for = tuple(
        Sealed(
            node=item.get("node", ""),
            platform_id=item.get("platform_id") or "",
            version=item.get("version") or "",
            joined_at=item.get("joined_at") or None,
            member=bool(item.get("member")),
        )
        for item in backup.get("sealed_for") or []
    )
    return Copy(backup_id, backup.get("snapshot_started") or None, backup.get("oldest_mtime"), sealed_for)


def _golden(backups: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every pair (backup, node) whose snapshot started while the node was a verified member, oldest first."""
    golden = []
    # Numbers decide: a second store records the newest first.
    for backup_id, backup in sorted(backups.items()):
        copy = copy_of_record(backup_id, backup)
        for sealed in copy.sealed_for:
            one = replace(copy, sealed_for=(sealed,))
            pair = classify(one, sealed.node, platform_id=sealed.platform_id, version=sealed.version)
            if pair.kind == "golden":
                golden.append(
                    {
                        "id": backup_id,
                        "node": sealed.node,
                        "platform_id": sealed.platform_id,
                        "version": sealed.version,
                        "joined_at": sealed.joined_at,
                        "snapshot_started": backup.get("snapshot_started"),
                        "verdict": backup.get("verdict"),
                        "sequence": backup.get("sequence"),
                    }
                )
    return golden
