# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What is known of every backup in a store, put together for those who decide: manifests, ledger, notes, sizes."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
import typing as t
from dataclasses import dataclass

from .._core import ledger, notes, replication, retention, rotation
from .._core.manifest import BACKUP_ID
from .._core.openability import classify, copy_of
from .._core.parts import missing
from .._core.room import Room
from .._core.strict import Invalid, Problem, utc_seconds
from .._errors import DsmError, Reason, Unreadable
from ._disk import read_bytes, write_atomically
from ._parts import states
from ._store import REMOVED, ClusterStore, Entry, as_reasons

#: Not ours to remove, or made by a release that knows more.
NOT_OURS = frozenset(("FOREIGN", "NEWER_SCHEMA", "UNKNOWN_SCHEMA"))


@dataclass
class Kept:
    """One backup with everything that is known of it."""

    entry: Entry
    verdict: str
    verified_at: str | None
    notes: notes.Notes
    problems: list[Problem]


def read_notes(store: ClusterStore, backup_id: str) -> notes.Notes:
    """What people said about a backup; nothing if there is no file. Raises :class:`Unreadable` (NOTES_UNREADABLE)."""
    path = os.path.join(store.backups_path, backup_id, "notes.json")
    try:
        return notes.parse(read_bytes(path), store.identity.cluster_id, backup_id)
    except (FileNotFoundError, NotADirectoryError):
        return notes.Notes()
    except Invalid as error:
        raise Unreadable(
            f"{path} cannot be trusted, so the backup counts as pinned.",
            "NOTES_UNREADABLE",
            "Look at the file, then remove it and say again what it said (module backup_pin).",
            reasons=as_reasons(error.problems),
        ) from None


def say(
    store: ClusterStore, backup_id: str, state: str, saying: notes.Saying, write: bool
) -> tuple[notes.Notes, notes.Notes]:
    """Pin, unpin, release or note; returns the notes before and after. Raises :class:`Refused` (NOT_PUBLISHED)."""
    with store.mutex():
        here = BACKUP_ID.match(backup_id) and os.path.isdir(os.path.join(store.backups_path, backup_id))
        if not here or store.entry(backup_id).state == "removing":
            store.published(backup_id)
        before = read_notes(store, backup_id)
        after = before.said(state, saying)
        if write and after is not before:
            path = os.path.join(store.backups_path, backup_id, "notes.json")
            write_atomically(path, notes.dump(after, store.identity.cluster_id, backup_id))
    return before, after


def keep(store: ClusterStore, folded: ledger.Folded, entries: t.Iterable[Entry]) -> list[Kept]:
    """Every entry of the catalogue with its verdict: that of the ledger, if it is about these bytes, and ``failed`` for
    what is not understood. What a broken ledger found good is not verified: nobody knows what it said since."""
    broken = bool(store.ledger.chain().problems)
    found = []
    for entry in entries:
        record = folded.backups.get(entry.id, {})
        problems = list(entry.problems)
        verdict = str(record.get("verdict", "unverified")) if entry.manifest is not None else "failed"
        forged = tampered(entry, record)
        if forged is not None:
            problems.append(forged)
            verdict = "failed"
        if broken and verdict == "ok":
            problems.append(Problem("LEDGER_BROKEN", f"{entry.id} was verified, but the ledger is broken since then"))
            verdict = "unverified"
        try:
            said = read_notes(store, entry.id)
        except Unreadable as error:
            said = notes.Notes()
            problems.append(Problem(error.code, error.message))
        found.append(Kept(entry, verdict, record.get("verified_at"), said, problems))
    return found


def usable(store: ClusterStore) -> list[Entry]:
    """Published backups that nobody found broken: no verification, and no ledger that knows something else of them."""
    events = store.ledger.chain().events
    verdicts, backups = ledger.verdicts(events), ledger.fold(events).backups
    return [
        entry
        for entry in store.entries()
        if entry.manifest is not None
        and verdicts.get(entry.id, "ok") == "ok"
        and tampered(entry, backups.get(entry.id, {})) is None
    ]


def read_reads(store: ClusterStore, backup_id: str) -> dict[str, str]:
    """Path -> when the file was last read in full and found right (UTC); what is not understood was never read."""
    try:
        return rotation.parse_reads(read_bytes(os.path.join(store.backups_path, backup_id, "reads.json")), backup_id)
    except (FileNotFoundError, NotADirectoryError, Invalid, DsmError):
        return {}


def last_full_read(store: ClusterStore, entry: Entry) -> str | None:
    """Since when every file of a backup was read in full (UTC), None if one never was."""
    reads = read_reads(store, entry.id)
    if entry.manifest is None or any(item.path not in reads for item in entry.manifest.files):
        return None
    return min(reads[item.path] for item in entry.manifest.files)


def least_recent_read(store: ClusterStore, kept: t.Iterable[Kept]) -> float | None:
    """Since when every file of every published backup was read in full (s); None if one never was."""
    reads = [last_full_read(store, one.entry) for one in kept if one.entry.manifest is not None]
    return utc_seconds(min(filter(None, reads))) if reads and all(reads) else None


def tampered(entry: Entry, record: t.Mapping[str, t.Any]) -> Problem | None:
    """Manifest and ledger disagree (F25): about the files, or about anything that decides what a backup is worth."""
    facts = ledger.contradictions(entry.manifest, record) if entry.manifest is not None else []
    if not facts:
        return None
    other = ", ".join(name for name in facts if name != "manifest") or "times, members or provenance"
    message = f"{entry.id} has something else in its manifest than in the ledger ({other}): one was changed"
    return Problem("TAMPERED", message)


def proved_pairs(folded: ledger.Folded) -> frozenset[tuple[str, str]]:
    """The pairs (backup, node) that a rehearsal opened."""
    return frozenset((str(one.get("backup")), str(one.get("node"))) for one in folded.proved)


def items(store: ClusterStore, kept: t.Iterable[Kept], folded: ledger.Folded, now: float) -> list[retention.Item]:
    """What retention decides about: everything that is a backup or the wreck of one, and nothing that is not ours."""
    proved = proved_pairs(folded)
    unfinished = frozenset(store.incoming())
    found = []
    for one in kept:
        ours = BACKUP_ID.match(one.entry.id) and one.entry.state != "removing"
        if ours and one.entry.id not in unfinished:
            found.append(_item(store, one, folded, proved, now))
    return found


def counted_once(
    found: t.Iterable[retention.Item], entries: t.Iterable[Entry]
) -> tuple[list[retention.Item], dict[str, str]]:
    """What was shipped again while its first copy was un-published, or failed, is one verified copy: the newest. Also
    which one counts in the place of each that does not."""
    deliveries = {entry.id: entry.manifest.source["key"] for entry in entries if entry.manifest is not None}
    newest: dict[str, str] = {}
    once = []
    instead = {}
    for one in sorted(found, key=lambda item: item.sequence, reverse=True):
        delivery = deliveries.get(one.id)
        counted = newest.setdefault(delivery, one.id) if delivery and one.verdict == "ok" else one.id
        if counted != one.id:
            instead[one.id] = counted
        once.append(one if counted == one.id else one._replace(verdict="unverified"))
    return once, instead


def complete(
    store: ClusterStore,
    found: t.Iterable[retention.Item],
    entries: t.Iterable[Entry],
    require: t.Sequence[str],
    keep_: int,
) -> list[retention.Item]:
    """Copies that lack a required part do not count as verified (F06). The newest ``keep_`` of which every byte was
    found right stay nevertheless: a bundle can be made again, they cannot."""
    known = states(store, read=True) if require else {}
    lacking_one = {
        entry.id
        for entry in entries
        if entry.manifest is not None and missing(known.get(entry.manifest.fingerprint, {}), require)
    }
    message = f"one of the {keep_} newest of which every byte was found right, although a part is missing"
    judged = []
    right = 0
    for one in sorted(found, key=lambda item: item.sequence, reverse=True):
        right += one.verdict == "ok"
        if one.verdict == "ok" and one.id in lacking_one:
            floor = [Problem("FLOOR", message)] if right <= keep_ else []
            judged.append(one._replace(verdict="unverified", holds=(*one.holds, *floor)))
        else:
            judged.append(one)
    return judged


def _item(
    store: ClusterStore, one: Kept, folded: ledger.Folded, proved: frozenset[tuple[str, str]], now: float
) -> retention.Item:
    manifest = one.entry.manifest
    holds = one.notes.holds(now)
    holds.extend(problem for problem in one.problems if problem.code in NOT_OURS or problem.code == "NOTES_UNREADABLE")
    copies = [copy_of(manifest)] if manifest is not None else []
    if manifest is None or any(problem.code == "TAMPERED" for problem in one.problems):
        # The ledger still knows who could open it, and it may be repaired.
        copies.append(ledger.copy_of_record(one.entry.id, folded.backups.get(one.entry.id, {})))
    pairs = {
        (sealed.node, classify(copy, sealed.node, proved=proved).kind) for copy in copies for sealed in copy.sealed_for
    }
    opens = sorted(pair for pair in pairs if pair[1] != "impossible")
    if manifest is not None:
        size = Room(manifest.bytes, len(manifest.files))
        early, late = retention.bounds(utc_seconds(manifest.published_at), manifest.source["clock_skew"])
    else:
        size = tree_size(os.path.join(store.backups_path, one.entry.id))
        early = late = _published_once(store, one.entry.id, folded)
    return retention.Item(
        id=one.entry.id,
        sequence=int(one.entry.id[:8]),
        verdict=one.verdict,
        bytes=size.bytes,
        earliest=early,
        latest=late,
        holds=holds,
        opens=opens,
        released=one.notes.released is not None,
        files=size.files,
    )


def _published_once(store: ClusterStore, backup_id: str, folded: ledger.Folded) -> float:
    """When the wreck of a backup was published: by the ledger, else by the last change of its directory, else now."""
    recorded = folded.backups.get(backup_id, {}).get("recorded_at")
    if recorded:
        return utc_seconds(recorded)
    try:
        # Of a link itself: what it points to may be gone.
        return os.lstat(os.path.join(store.backups_path, backup_id)).st_mtime
    except OSError:
        return time.time()


def tree_size(*paths: str) -> Room:
    """All files below directories; what vanishes meanwhile, or cannot be looked at, counts nothing."""
    sizes = []
    for path in paths:
        for directory, _directories, files in os.walk(path):
            for name in files:
                with contextlib.suppress(OSError):
                    sizes.append(os.lstat(os.path.join(directory, name)).st_size)
    return Room(sum(sizes), len(sizes))


def lacking(store: ClusterStore, entry: Entry) -> Problem | None:
    """What a quick look finds missing of a published backup: a file that is gone or has another size. UNREADABLE says
    that the disk did not tell: all of it may be there."""
    for item in entry.manifest.files if entry.manifest is not None else ():
        try:
            status = os.lstat(os.path.join(store.data_path(entry.id), item.path))
        except (FileNotFoundError, NotADirectoryError) as error:
            return Problem("MISSING_FILE", f"{entry.id}: {item.path} cannot be found: {error.strerror}")
        except OSError as error:
            return Problem("UNREADABLE", f"{entry.id}: {item.path} cannot be looked at: {error.strerror}")
        if not stat.S_ISREG(status.st_mode) or status.st_size != item.size:
            return Problem("WRONG_SIZE", f"{entry.id}: {item.path} is not as it was published")
    return None


def members(folded: ledger.Folded) -> frozenset[str]:
    """Nodes that are no set-aside nodes: the member set last recorded, without those whose removal was recorded. A look
    at the members may be older than the removal that was recorded before it."""
    out = {name for name, data in folded.removed.items() if data["out"]}
    return frozenset(str(member.get("name")) for member in folded.members) - out


def ledger_of_other(store: ClusterStore) -> bytes:
    """The ledger of the other site as it was at the last look; empty if there is none."""
    try:
        return read_bytes(os.path.join(store.path, "other.jsonl"))
    except FileNotFoundError:
        return b""


def lost_history(store: ClusterStore, chain: ledger.Chain, entries: t.Iterable[Entry]) -> list[Reason]:
    """A soft reason if no ledger has the event that a manifest says was the last; that of the other site counts, too.

    What was brought here says nothing of this ledger, and the one that it was published after may be lost for good.
    """
    hashes = {event.hash for event in chain.events}
    brought = {
        event.subject: replication.COPIED_FROM in event.data for event in chain.events if event.kind == "shipped"
    }
    anchors = [
        (entry.id, entry.manifest.ledger)
        for entry in entries
        if entry.manifest is not None and not brought.get(entry.id)
    ]
    unknown = [(name, anchor) for name, anchor in anchors if anchor["sequence"] and anchor["hash"] not in hashes]
    if unknown:
        hashes = {event.hash for event in ledger.read(ledger_of_other(store)).events}
    for name, anchor in unknown:
        if anchor["hash"] not in hashes:
            return [
                Reason(
                    "LEDGER_ROLLED_BACK",
                    f"{name} was published after event {anchor['sequence']}, which the ledger does not have so.",
                    "Events were lost: put back the newest copy of ledger.jsonl.",
                    hard=False,
                )
            ]
    return []


def remains(store: ClusterStore, backup_id: str) -> dict[str, t.Any]:
    """The manifest of a backup whose removal began; empty if it cannot be read."""
    try:
        value = json.loads(read_bytes(os.path.join(store.backups_path, backup_id, REMOVED)))
    except (OSError, ValueError, DsmError):
        return {}
    return value if isinstance(value, dict) else {}
