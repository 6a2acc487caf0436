# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Proof of the bits: backups read again, and failed unless everything about them is understood and right."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
import typing as t
from dataclasses import dataclass, field

from .._core import freshness, ledger, rotation, tables
from .._core.cron import Schedule
from .._core.manifest import FileEntry, Manifest
from .._core.parts import missing
from .._core.replication import lag_problems
from .._core.strict import Problem, utc_text
from .._errors import DsmError, Reason, Unreadable
from . import _structure
from ._disk import pieces, read_bytes, write_atomically
from ._keeping import Kept, keep, lost_history, read_reads, tampered
from ._parts import states
from ._sites import other_site, sites
from ._store import ClusterStore, Entry

_REMEDIES = {
    "NO_BACKUP": "Run playbook ship_backups.",
    "STALE": "Look at the backup job of the cluster and at the last run of ship_backups.",
    "LATE": "Look at the backup job of the cluster and at the last run of ship_backups.",
    "CLOCK_SKEW": "Repair time synchronisation of the store.",
    "NOT_REPLICATED": "Run module backup_replicate here.",
    "UNSEEN": "Look at the last run of backup_replicate.",
    "BEHIND": "Look at the last run of backup_replicate.",
    "SHRUNK": "Find out whether so much was deleted; if so, accept SHRUNK once.",
}


@dataclass
class Verdict:
    """``ok`` or ``failed`` for one backup, with every reason, the bytes that were read and the time (s) it took.

    ``partial``: only some of its files were read, so ``ok`` proves nothing about the others. ``slices``: in how many
    turns all its files are read.
    """

    id: str
    verdict: str
    reasons: list[Problem]
    bytes: int = 0
    seconds: float = 0.0
    structure: str = "unknown"
    provenance: str = "unknown"
    digest: str = ""
    published_at: str | None = None
    partial: bool = False
    files: int = 0
    slices: int = 1

    def as_dict(self) -> dict[str, t.Any]:
        """For a module's result."""
        value = dict(self.__dict__)
        del value["slices"]
        value["reasons"] = [{"code": item.code, "message": item.message} for item in self.reasons]
        return value


@dataclass
class VerifyResult:
    """Verdicts, what is wrong with the store as a whole, and how new it and the other site's are.

    ``notes`` name what was there when the run began and was pruned before its turn came.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    turn: int = 0
    sites: list[dict[str, t.Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class VerifyRequest:
    """Which backups (all, the newest, or ``ids``), which files of them (``turn`` of ``turns``, None: the next one), and
    how new (s) and large the newest must be; ``max_lag`` (s): how far this store may be behind the other site."""

    ids: t.Sequence[str] = ()
    newest: bool = False
    turn: int | None = None
    turns: int = 1
    max_age: float | None = None
    schedule: Schedule | None = None
    grace: float = 0.0
    min_ratio: float = 0.0
    max_lag: float | None = None
    provenance: str | None = None
    require: t.Sequence[str] = ()
    run_id: str = ""
    record: bool = True


def verify(store: ClusterStore, request: VerifyRequest) -> VerifyResult:
    """Read the chosen backups and record each verdict in the ledger.

    Nothing published is a failure, not an empty success. A run takes hours, and others prune and repair meanwhile: what
    counts of a backup is what is there when its turn comes.
    """
    entries = {entry.id: entry for entry in store.entries() if entry.state != "removing"}
    published = [entry for entry in entries.values() if entry.manifest is not None]
    chain = store.ledger.chain()
    folded = ledger.fold(chain.events)
    result = VerifyResult(turn=_turn(store, request))
    _judge_store(request, published, folded, result)
    _judge_parts(store, request, published, result)
    if request.max_lag is not None:
        for problem in lag_problems(other_site(store), time.time(), request.max_lag):
            result.reasons.append(Reason(problem.code, f"{problem.message}.", _REMEDIES[problem.code], hard=False))
    untrusted = _judge_ledger(store, chain, published)
    result.reasons.extend(untrusted)
    if not request.ids and not request.newest and not untrusted:
        _judge_completeness(store, published, folded, result)
    gone: set[str] = set()

    def take(verdict: Verdict, before: int) -> None:
        result.verdicts.append(verdict)
        looked = verdict.files or verdict.verdict != "ok"
        if looked and request.record and not chain.problems and verdict.id in entries and verdict.id not in gone:
            _keep_on(store, result, lambda: _record(store, verdict, result, request, before))

    for listed in _chosen(request, entries, published):
        before = store.ledger.length()
        try:
            with store.reading(listed.id):
                entry = _now(store, listed) if listed.id in entries else listed
                if entry is None:
                    gone.add(listed.id)
                    if not request.ids:
                        continue
                    entry = _absent(listed.id)
                take(_verify_entry(store, entry, folded, result.turn, request), before)
        except OSError as error:
            # The disk does not even give its directory. What comes after it is read nevertheless.
            message = f"{error.filename or listed.id}: {error.strerror or error}"
            take(Verdict(listed.id, "failed", [Problem("UNREADABLE", message)]), before)
        if request.newest:
            break
    _tell_of_pruned(gone, result)
    if request.record and request.turns > 1 and request.turn is None:
        path = os.path.join(store.path, "rotation.json")
        following = rotation.dump_turn(rotation.turn_after(result.turn, request.turns), request.turns)
        _keep_on(store, result, lambda: write_atomically(path, following))
    if request.record and not request.ids:
        store.refresh_index()
    left = [entry for entry in published if entry.id not in gone]
    kept = keep(store, ledger.fold(store.ledger.chain().events), left)
    _tell_of_failed(kept, result)
    result.sites = sites(store, kept, time.time())
    return result


def _chosen(request: VerifyRequest, entries: t.Mapping[str, Entry], published: t.Sequence[Entry]) -> t.Sequence[Entry]:
    """What is to be read, in its order."""
    if request.ids:
        return [entries.get(name) or _absent(name) for name in request.ids]
    if request.newest:
        # Those before it are for the case that it is pruned before it can be read.
        return published[::-1]
    return [entry for entry in entries.values() if entry.state != "incomplete"]


def _keep_on(store: ClusterStore, result: VerifyResult, act: t.Callable[[], None]) -> None:
    """Do it; that nothing can be written (no space, no inode, a disk that fails) is told once and stops no verdict."""
    failed: DsmError
    try:
        act()
        return
    except OSError as error:
        message = f"{error.filename or store.path}: {error.strerror or error}"
        failed = Unreadable(message, "UNREADABLE", "Check the disk.")
    except DsmError as error:
        failed = error
    reason = Reason(failed.code, failed.message, failed.remedy)
    if reason not in result.reasons:
        result.reasons.append(reason)


def _turn(store: ClusterStore, request: VerifyRequest) -> int:
    if request.turn is not None:
        return request.turn
    with contextlib.suppress(FileNotFoundError, DsmError):
        return rotation.next_turn(read_bytes(os.path.join(store.path, "rotation.json")), request.turns)
    return 1


def _record(store: ClusterStore, verdict: Verdict, result: VerifyResult, request: VerifyRequest, before: int) -> None:
    """Tell the ledger. Not an ``ok`` where another run found the opposite since there were ``before`` events, when this
    one began to read: what it had read first may have gone bad since."""

    def contradicted(events: t.Sequence[ledger.Event]) -> ledger.Event | None:
        for event in events[before:] if verdict.verdict == "ok" else ():
            bad = event.kind == "verified" and event.data.get("verdict") != "ok"
            if event.subject == verdict.id and (bad or event.kind == "shipped"):
                return event
        return None

    data: dict[str, t.Any] = {
        "verdict": verdict.verdict,
        "digest": verdict.digest,
        "bytes": verdict.bytes,
        "codes": sorted({item.code for item in verdict.reasons}),
    }
    if verdict.partial:
        data.update(partial=True, slice=result.turn, turns=request.turns, slices=verdict.slices)
    event, _new = store.ledger.append(
        run_id=request.run_id, kind="verified", subject=verdict.id, data=data, unless=contradicted
    )
    if event.kind == "verified" and event.data.get("verdict") != verdict.verdict:
        verdict.verdict = "failed"
        message = f"another run found it bad while this one read it: {', '.join(event.data.get('codes') or ['failed'])}"
        verdict.reasons.append(Problem("CONTRADICTED", message))
    elif event.kind != "verified":
        result.notes.append(f"{verdict.id} was recorded as shipped while this run read it: it stays unverified.")


def _absent(name: str) -> Entry:
    return Entry(name, "failed", None, (Problem("NOT_PUBLISHED", f"there is no backup {name!r}"),))


def _now(store: ClusterStore, listed: Entry) -> Entry | None:
    """What a backup is now that nobody can remove it; None if it was published when listed and was pruned since.

    A manifest that is gone is no proof of that: prune leaves it under its other name, or has told the ledger.
    """
    now = store.entry(listed.id)
    pruned = now.state == "removing" or (
        now.state == "incomplete" and listed.id in ledger.fold(store.ledger.chain().events).pruned
    )
    if not pruned:
        return now
    return None if listed.manifest is not None else listed


def _tell_of_pruned(gone: t.Collection[str], result: VerifyResult) -> None:
    if not gone:
        return
    judged = {verdict.id for verdict in result.verdicts}
    result.notes.extend(f"{name} was pruned before it could be read." for name in sorted(set(gone) - judged))
    if not result.verdicts:
        result.reasons.append(
            Reason("NO_BACKUP", "all that was to be read was pruned meanwhile.", "Run backup_verify again.")
        )


def _tell_of_failed(kept: t.Iterable[Kept], result: VerifyResult) -> None:
    """A part that is right says nothing of what failed before: that stays until it is found right as a whole."""
    partly = {verdict.id for verdict in result.verdicts if verdict.partial and verdict.verdict == "ok"}
    failed = [one.entry.id for one in kept if one.verdict == "failed" and one.entry.id in partly]
    if failed:
        result.reasons.append(
            Reason(
                "STILL_FAILED",
                f"{_some(failed)} failed an earlier verification, and what was read now does not lift that.",
                "Verify it as a whole (ids, without slice). If it fails, repair it or ship it again.",
                hard=False,
            )
        )


def _verify_entry(
    store: ClusterStore, entry: Entry, folded: ledger.Folded, turn: int, request: VerifyRequest
) -> Verdict:
    """Manifest, presence, size, SHA-256, structure of one backup, of those files whose turn it is."""
    started = time.monotonic()
    if entry.manifest is None:
        return Verdict(entry.id, "failed", list(entry.problems))
    manifest = entry.manifest
    verdict = Verdict(entry.id, "failed", [], digest=manifest.digest, published_at=manifest.published_at)
    proved = any(item.get("backup") == entry.id for item in folded.proved)
    verdict.provenance = "proved_by_restore" if proved else manifest.provenance
    forged = tampered(entry, folded.backups.get(entry.id, {}))
    if forged is not None:
        verdict.reasons.append(forged)
    data = store.data_path(entry.id)
    chosen = [item for item in manifest.files if rotation.slice_of(entry.id, item.path, request.turns) == turn]
    verdict.partial = len(chosen) < len(manifest.files)
    verdict.slices = rotation.slices_with_files(entry.id, (item.path for item in manifest.files), request.turns)
    try:
        _presence(data, manifest, verdict)
        right = [item.path for item in chosen if _content(data, item, verdict)]
        if not verdict.reasons:
            _shape(data, [item.path for item in chosen], verdict)
            if request.record and right:
                # Evidence, and no part of the proof: another run may be writing it, or the store be full.
                with contextlib.suppress(OSError, DsmError):
                    remember_reads(store, entry.id, right)
    except OSError as error:
        verdict.reasons.append(Problem("UNREADABLE", f"{error.filename or data}: {error.strerror or error}"))
    except Unreadable as error:
        verdict.reasons.append(Problem(error.code, error.message))
    verdict.verdict = "failed" if verdict.reasons else "ok"
    verdict.seconds = round(time.monotonic() - started, 3)
    return verdict


def read_back(data: str, manifest: Manifest, tick: _structure.Tick) -> list[Problem]:
    """Presence, size and SHA-256 of all files of a copy that just landed, from the disk and not from memory."""
    found = Verdict(manifest.id, "failed", [])
    try:
        _presence(data, manifest, found)
        for item in manifest.files:
            with open(os.path.join(data, item.path), "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            _content(data, item, found)
            tick()
    except OSError as error:
        found.reasons.append(Problem("UNREADABLE", f"{error.filename or data}: {error.strerror or error}"))
    return found.reasons


def _shape(data: str, paths: t.Sequence[str], verdict: Verdict) -> None:
    """Structure of what was read: of the whole, or file by file where only some were."""
    if not verdict.partial:
        verdict.structure, problems = _structure.check(data, paths)
        verdict.reasons.extend(problems)
        return
    for path in paths:
        kind, problem = _structure.check_file(os.path.join(data, path))
        if problem:
            verdict.reasons.append(Problem("TRUNCATED", f"{path} is not a complete {kind} file: {problem}"))


def remember_reads(store: ClusterStore, backup_id: str, paths: t.Iterable[str]) -> None:
    """Evidence of when each file was last read in full and found right."""
    now = utc_text(time.time())
    reads = {**read_reads(store, backup_id), **dict.fromkeys(paths, now)}
    write_atomically(os.path.join(store.backups_path, backup_id, "reads.json"), rotation.dump_reads(backup_id, reads))


def _presence(data: str, manifest: Manifest, verdict: Verdict) -> None:
    """Exactly the files of the manifest, regular ones, of the right size."""
    wanted = {item.path: item.size for item in manifest.files}
    found = set()

    def unlistable(error: OSError) -> None:
        raise error

    for directory, directories, files in os.walk(data, onerror=unlistable):
        for name in [*files, *(item for item in directories if os.path.islink(os.path.join(directory, item)))]:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, data)
            found.add(relative)
            status = os.lstat(path)
            if relative not in wanted:
                verdict.reasons.append(Problem("EXTRA_FILE", f"{relative!r} is not in the manifest"))
            elif not stat.S_ISREG(status.st_mode):
                verdict.reasons.append(Problem("NOT_A_FILE", f"{relative} is no regular file"))
            elif status.st_size != wanted[relative]:
                message = f"{relative} has {status.st_size} bytes, {wanted[relative]} were published"
                verdict.reasons.append(Problem("WRONG_SIZE", message))
    verdict.reasons.extend(
        Problem("MISSING_FILE", f"{relative} is missing") for relative in sorted(set(wanted) - found)
    )


def _content(data: str, item: FileEntry, verdict: Verdict) -> bool:
    """Read one file in full; whether it is what was published."""
    path = os.path.join(data, item.path)
    if not os.path.isfile(path) or os.path.islink(path):
        return False
    whole = hashlib.sha256()
    for piece in pieces(path):
        whole.update(piece)
        verdict.bytes += len(piece)
    verdict.files += 1
    if whole.hexdigest() != item.sha256:
        verdict.reasons.append(Problem("CORRUPT", f"{item.path} is not what was published: its SHA-256 differs"))
        return False
    return True


def _judge_store(
    request: VerifyRequest, published: t.Sequence[Entry], folded: ledger.Folded, result: VerifyResult
) -> None:
    """Age, schedule, size and provenance of the newest."""
    manifests = [entry.manifest for entry in published if entry.manifest is not None]
    for problem in freshness.problems(
        manifests,
        now=time.time(),
        max_age=request.max_age,
        schedule=request.schedule,
        grace=request.grace,
        min_ratio=request.min_ratio,
    ):
        hard = problem.code == "NO_BACKUP"
        result.reasons.append(Reason(problem.code, f"{problem.message}.", _REMEDIES[problem.code], hard=hard))
    if request.provenance == "by_template" and manifests and manifests[-1].provenance == "by_source":
        last = manifests[-1].id
        if not any(item.get("backup") == last for item in folded.proved):
            result.reasons.append(
                Reason(
                    "PROVENANCE",
                    f"only its source says that the newest backup {last} is one of this cluster.",
                    "Ship with identify_argv, or restore it in a rehearsal.",
                    hard=False,
                )
            )


def _judge_parts(
    store: ClusterStore, request: VerifyRequest, published: t.Sequence[Entry], result: VerifyResult
) -> None:
    """What a recovery needs beside the data, for every generation that has backups."""
    if not request.require:
        return
    found = states(store, read=True)
    for fingerprint in {entry.manifest.fingerprint: None for entry in published if entry.manifest is not None}:
        result.reasons.extend(
            Reason(
                problem.code,
                f"the backups of generation {fingerprint[:16]} are incomplete: {problem.message}.",
                "Make the bundle again and store it with module backup_part.",
                hard=False,
            )
            for problem in missing(found.get(fingerprint, {}), request.require)
        )


def _some(names: t.Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _judge_ledger(store: ClusterStore, chain: ledger.Chain, published: t.Sequence[Entry]) -> list[Reason]:
    """Why the ledger cannot be trusted: it is broken, or lacks the event that a manifest says was its last."""
    broken = [
        Reason("LEDGER_BROKEN", problem.message, "Module ledger, state verified, says where.", hard=False)
        for problem in chain.problems
    ]
    return broken or lost_history(store, chain, published)


def _judge_completeness(
    store: ClusterStore, published: t.Sequence[Entry], folded: ledger.Folded, result: VerifyResult
) -> None:
    """The store has what the ledger says it has, and the ledger knows what the store has."""
    here = {entry.id for entry in published}
    lost = [name for name in folded.backups if name not in here and not store.has_manifest(name)]
    if lost:
        lost = _not_pruned(store, lost)
    begun = [name for name in lost if store.entry(name).state == "removing"]
    lost = [name for name in lost if name not in begun]
    if begun:
        result.reasons.append(
            Reason(
                "LOST",
                f"{_some(begun)} was un-published by a run of prune that did not end, and may be whole.",
                "Run playbook prune_backups: it publishes again what is whole. Record nothing and remove nothing.",
                hard=False,
            )
        )
    if lost:
        result.reasons.append(
            Reason(
                "LOST",
                f"{_some(lost)} was published and never pruned, and is not here any more.",
                "Find out who removed it. Only if nothing of it is left in the store, and that was right, append an "
                "event 'pruned' to the ledger with the reason.",
                hard=False,
            )
        )
    # The ledger was read after the store: what was pruned between is in neither.
    unknown = [entry.id for entry in published if entry.id not in folded.backups and store.has_manifest(entry.id)]
    if unknown:
        result.reasons.append(
            Reason(
                "UNRECORDED",
                f"the ledger knows nothing of {_some(unknown)}.",
                "If a run of ship_backups was killed, the next one records it. If not, somebody else put it there.",
                hard=False,
            )
        )


def _not_pruned(store: ClusterStore, names: t.Sequence[str]) -> list[str]:
    """Without those that somebody is removing at this moment, or has removed since the ledger was read."""
    removing = store.look_at_lease()[0] == "held"
    left = [name for name in names if not (removing and store.entry(name).state == "removing")]
    pruned = ledger.fold(store.ledger.chain().events).pruned
    return [name for name in left if name not in pruned]


def table(verdicts: t.Iterable[Verdict]) -> list[str]:
    """The verdicts for a person: what is wrong line by line, and what is right in few."""
    rows = []
    for one in verdicts:
        how = "a part" if one.partial else "whole"
        if not one.files:
            how = "nothing"
        why = "; ".join(problem.message for problem in one.reasons)
        rows.append(tables.Row(one.id, one.bytes, (how, one.verdict, why), alone=one.verdict != "ok"))
    if not rows:
        return ["There was nothing to read."]
    return tables.lines(("BACKUP", "BYTES READ", "READ", "VERDICT", "WHY"), tables.condensed(rows))


def refuse_failed(result: VerifyResult, accept: t.Collection[str], report_only: bool) -> list[Reason]:
    """Raise with all reasons if anything failed; returns the soft reasons that were accepted."""
    standing = [reason for reason in result.reasons if reason.hard or reason.code not in accept]
    accepted = [reason for reason in result.reasons if reason not in standing]
    for verdict in result.verdicts:
        standing.extend(
            Reason(problem.code, f"{verdict.id}: {problem.message}", "Ship it again while the source still has it.")
            for problem in verdict.reasons
        )
    if standing and not report_only:
        failed = sum(verdict.verdict != "ok" for verdict in result.verdicts)
        codes = {reason.code for reason in standing}
        message = "Verification failed: no backup was read."
        if failed:
            message = f"Verification failed ({failed} of {len(result.verdicts)} backups)."
        elif result.verdicts:
            message = f"Verification failed, although what was read of {len(result.verdicts)} backups is good."
        raise DsmError(
            message,
            codes.pop() if len(codes) == 1 else "VERIFY_FAILED",
            reasons=standing,
            verdicts=[verdict.as_dict() for verdict in result.verdicts],
        )
    return accepted
