# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Shipping: from what the sources deliver to published backups in the store."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import time
import typing as t
from dataclasses import dataclass, field, replace

from .._core import ledger
from .._core.catalogue import next_id
from .._core.manifest import FileEntry, Manifest, Sealed
from .._core.openability import describe
from .._core.room import Room, fitting, with_headroom
from .._core.strict import Invalid, digest, load, utc_seconds, utc_text
from .._errors import DsmError, Reason, Refused
from . import _structure
from ._changed import changed
from ._discover import LOOK_AGAIN, Source, Unit, check_pattern, discover, expand, settle, tidy
from ._disk import make_directory, read_bytes, remove_tree, store_full, write_atomically
from ._endpoint import LocalEndpoint, LocalSession, Session, check_local, check_local_pattern
from ._keeping import usable
from ._policy import first_workers, pause
from ._pool import Pool
from ._progress import Lines
from ._pull import (
    TRANSIENT,
    TransferPlan,
    TransferReport,
    local_failure,
    pull,
)
from ._ssh import ConnectionLost, require_python
from ._store import Checkpoint, ClusterStore, Lease, as_reasons, identities, no_checkpoint

#: How often it is tried to look at a source over a connection that then breaks.
LOOKS = 3
#: Clocks further apart than this (s) cannot say which backup is younger than an event elsewhere.
MAX_SKEW = 300
#: A clock is told in whole seconds, and on the way: nobody can tell whether so small a skew (s) is one.
_NO_SKEW = 2
#: Codes after which what has landed of a backup is of no use, or takes room that others need. Whatever else ends a
#: transfer says nothing about these bytes: they are checked again before they are used.
_OF_NO_USE = frozenset(("SOURCE_CHANGED", "DAMAGED", "STORE_FULL", "TRANSFER_FAILED"))


class _Unfit(Refused):
    """What landed is refused for what it is."""


@dataclass(frozen=True)
class Cluster:
    """Whose backups these are, as cluster_info returned it."""

    fingerprint: str
    uid: str
    version: str
    members: tuple[t.Mapping[str, t.Any], ...]


@dataclass(frozen=True)
class ShipRequest:
    """Everything that decides a run of ``backup_ship``. Times in seconds, rate in bytes a second."""

    store: str
    cluster: Cluster
    sources: tuple[Source, ...]
    sealed_for: tuple[Sealed, ...] = ()
    snapshot_started: str | None = None
    #: seconds by which the clock that told it is ahead of ours; None: nobody measured it
    snapshot_skew: int | None = None
    select: str = "all"
    quiet: float = 60.0
    patience: float = 300.0
    headroom: float = 0.1
    workers: int = 8
    rate_limit: float = 0.0
    new_cluster: bool = False
    accept: frozenset[str] = frozenset()
    run_id: str = ""
    identify: t.Callable[[str], str] | None = None
    checkpoint: Checkpoint = no_checkpoint
    say: t.Callable[[str], None] = lambda _line: None


@dataclass
class ShipResult:
    """What happened: one item per backup, and everything that was refused."""

    cluster_id: str = ""
    backups: list[dict[str, t.Any]] = field(default_factory=list)
    report: TransferReport = field(default_factory=TransferReport)
    reasons: list[Reason] = field(default_factory=list)
    accepted: list[Reason] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    changed: bool = False

    def returns(self) -> dict[str, t.Any]:
        """Return values of the module."""
        return {
            "cluster_id": self.cluster_id,
            "backups": self.backups,
            "bytes": self.report.bytes,
            "resent": self.report.resent,
            "seconds": round(self.report.seconds, 3),
            "workers": self.report.workers,
            "peak_rss": self.report.peak_rss,
            "accepted": [reason.as_dict() for reason in self.accepted],
            "notes": self.notes,
        }


@dataclass
class _Job:
    """One backup to bring home."""

    source: Source
    unit: Unit
    skew: int | None
    snapshot_started: str | None
    snapshot_source: str
    accepted: list[str]
    round_trip: float = 0.0
    id: str = ""
    seen: float = field(default_factory=time.monotonic)
    #: SHA-256 by path at the source, of those files of the backup that somebody hashed there
    hashes: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        known = self.source.hashes
        self.hashes = {item.source: known[item.source] for item in self.unit.items if item.source in known}

    @property
    def key(self) -> str:
        return self.unit.key(self.source.endpoint.place)

    def noted(self) -> dict[str, str]:
        """What is noted beside that which lands, for the run that continues it."""
        return {
            "key": self.key,
            "state": digest([*self.unit.state]),
            "name": self.unit.name,
            "place": self.source.endpoint.place,
            "path": self.source.path,
        }

    def continues(self, noted: t.Mapping[str, t.Any]) -> bool:
        """Whether what landed is of these very files: another one of the same size and time has the same key.

        Runs of earlier versions noted no state. Over SFTP it says nothing that the key does not say.
        """
        state = self.noted()["state"]
        return bool(noted.get("state", state if self.source.endpoint.host else None) == state)


def ship(request: ShipRequest, check_mode: bool) -> ShipResult:
    """Pull every backup that the sources hold and the store does not, and publish each as soon as it is verified.

    What is good is published even when something else is refused; all refusals are raised together at the end
    (:class:`Refused`, details: the result). In check mode nothing is written, and the result says what would happen.
    """
    require_python()
    for source in request.sources:
        if isinstance(source.endpoint, LocalEndpoint):
            _refuse_store(source, request.store)
    if check_mode:
        store = _open(request, create=False)
        run = _Run(request, store, None)
        note = store.refuse_if_held() if os.path.isdir(store.path) else ""
        run.go(None, note)
    else:
        remote = any(source.endpoint.host for source in request.sources)
        # The workers come first: nothing that has connections or threads may be forked.
        with Pool(request.workers, remote, request.sources[0].endpoint if request.sources else None) as pool:
            run = _hold(request, pool)
    if run.result.reasons:
        _raise(run.result)
    return run.result


def _refuse_store(source: Source, store: str) -> None:
    """Refuse a local source that is, holds or lies in the store, also where only its wildcards lead there."""
    try:
        check_pattern(source)
        check_local_pattern(source.path, store)
        found = expand(LocalSession(), source.path)
    except DsmError as error:
        if error.code == "SOURCE_IS_STORE":
            raise
        # It is told with those of all other sources.
        return
    for match in found:
        # A link is refused by itself: whoever may make one in a drop box must not stop everything else.
        if not match.short and not os.path.islink(match.path):
            check_local(match.path, store)


def _open(request: ShipRequest, create: bool) -> ClusterStore:
    return ClusterStore.open(
        request.store,
        request.cluster.fingerprint,
        uid=request.cluster.uid,
        members=[str(member.get("name", "")) for member in request.cluster.members],
        run_id=request.run_id,
        new_cluster=request.new_cluster,
        create=create,
        checkpoint=request.checkpoint,
    )


def _hold(request: ShipRequest, pool: Pool) -> _Run:
    """Ship under the lease. A part of the store that was made for nothing is gone afterwards."""
    there = set(identities(request.store))
    store = _open(request, create=True)
    with store.lease(request.run_id) as lease:
        run = _Run(request, store, pool)
        run.go(lease, lease.taken_over)
        unused = store.identity.cluster_id not in there and store.unmake()
    if unused:
        # Whoever came in between has made it his own; then it is not empty.
        with contextlib.suppress(OSError):
            os.rmdir(store.path)
    return run


def _raise(result: ShipResult) -> t.NoReturn:
    codes = {reason.code for reason in result.reasons}
    done = [item["id"] for item in result.backups if item["published"]]
    raise Refused(
        f"Shipping is not complete ({len(result.reasons)} refused, {len(done)} published).",
        codes.pop() if len(codes) == 1 else "SHIP_INCOMPLETE",
        reasons=result.reasons,
        **result.returns(),
    )


class _Run:
    """One run of :func:`ship`."""

    def __init__(self, request: ShipRequest, store: ClusterStore, pool: Pool | None) -> None:
        self.request = request
        self.store = store
        #: None in check mode
        self.pool = pool
        self.result = ShipResult(cluster_id=store.identity.cluster_id)
        self.sessions: dict[int, Session] = {}
        self.known: dict[str, Manifest] = {}
        #: what retention removed while it was good does not come home again
        self.pruned: set[str] = set()
        #: what had no room when something newer came, and so never comes behind it
        self.passed_over: set[str] = set()
        #: what has no room now, eldest first
        self.left: list[_Job] = []
        #: places and paths of sources of which it is known what they hold
        self.looked_at: set[tuple[str, str]] = set()
        #: places and names of deliveries that were refused now, and may come later
        self.refused: set[tuple[str, str]] = set()
        #: unfinished transfers that go, and what a person is told of each
        self.dropped: dict[str, str] = {}
        self.broken_ledger = False

    def go(self, lease: Lease | None, taken_over: str) -> None:
        """Everything that happens under the lease."""
        if taken_over:
            self.result.notes.append(f"Took over the lease of {taken_over}.")
        if lease is not None:
            make_directory(self.store.incoming_path)
            self._guarded(self.store.take_back)
        self._check_ledger()
        self.known = self._published()
        self.passed_over = ledger.passed_over(self.store.ledger.chain().events, {*self.known, *self.pruned})
        try:
            jobs = self._room(self._plan())
            self._number(jobs)
            if lease is not None:
                self._drop()
                self._leave([job.key for job in jobs if job.key not in self.known])
            for job in jobs:
                self._one(job, lease)
        finally:
            for session in self.sessions.values():
                session.close()
        if lease is not None and (self.known or self.result.changed):
            self._observe()

    # -- planning ---------------------------------------------------------------------------------------------------
    def _plan(self) -> list[_Job]:
        """Quiet, acceptable backups of all sources, eldest first."""
        jobs: list[_Job] = []
        deadline = time.monotonic() + self.request.patience
        total = 0
        for number, source in enumerate(self.request.sources):
            try:
                found, wanted = self._look(number, source, deadline)
                if found:
                    # Where there is nothing at all, what it is on may be away.
                    self.looked_at.add((source.endpoint.place, source.path))
                total += found
                jobs.extend(wanted)
            except DsmError as error:
                self.result.reasons.append(tidy(error, source))
        if not total and not self.result.reasons:
            self.result.reasons.append(
                Reason(
                    "SOURCE_EMPTY",
                    f"No backup was found at {', '.join(source.label for source in self.request.sources)}.",
                    "Check the path of the source, and whether the backup job of the cluster ran at all.",
                )
            )
        jobs = self._merged(jobs)
        jobs.sort(key=lambda job: (job.unit.newest, job.unit.name))
        self._claim(jobs)
        return jobs

    def _merged(self, jobs: t.Iterable[_Job]) -> list[_Job]:
        """What two sources name is one backup, and would count as two copies; the hashes of both hold for it."""
        merged: dict[str, _Job] = {}
        for job in jobs:
            first = merged.setdefault(job.key, job)
            for path, sha256 in job.hashes.items():
                if first.hashes.setdefault(path, sha256) != sha256:
                    del merged[job.key]
                    self._refused([job])
                    self.result.reasons.append(
                        Reason(
                            "SOURCE_HASH",
                            f"Two sources give different hashes for {path}.",
                            "Hash it at the source again, and correct sources.",
                        )
                    )
                    break
        return list(merged.values())

    def _look(self, number: int, source: Source, deadline: float) -> tuple[int, list[_Job]]:
        """How many backups a source has, and those to bring home; a connection that breaks is built again."""
        attempt = 0
        while True:
            attempt += 1
            try:
                session = self._connect(number, source)
                session.expect_clock()
                units = self._wait_for_units(session, source, deadline)
                self._note_unused_hashes(source, units)
                return len(units), self._acceptable(session, source, units, deadline)
            except ConnectionLost:
                if attempt == LOOKS:
                    raise
            time.sleep(pause(attempt, random.random()))

    def _connect(self, number: int, source: Source) -> Session:
        """A new session with a source; the one before is closed."""
        if number in self.sessions:
            self.sessions.pop(number).close()
        opened = source.endpoint.connect() if self.pool is None else self.pool.session(source.endpoint)
        self.sessions[number] = opened
        return opened

    def _note_unused_hashes(self, source: Source, units: t.Iterable[Unit]) -> None:
        """A hash that belongs to no file checks nothing, and nobody would know."""
        named = {item.source for unit in units for item in unit.items}
        unused = sorted(path for path in source.hashes if path not in named)
        if unused and self.request.select == "all":
            note = f"{len(unused)} hashes given for {source.label} belong to no file of a backup there: {unused[0]}."
            self.result.notes.append(note)

    def _fresh(self, unit: Unit, place: str, skew: int | None) -> bool:
        """Whether all of a unit was written after the snapshot that was announced had started.

        What counts is how far the source's clock is ahead of the one that told the start. Where that one is not known,
        a source that is behind ours is not taken for behind that one: ours may be the wrong one. Where nothing is known
        of the source, its clock is taken for right; then this proves nothing.
        """
        started, told = self.request.snapshot_started, self.request.snapshot_skew
        ahead = 0 if skew is None else max(skew, 0) if told is None else skew - told
        ahead = ahead if abs(ahead) > _NO_SKEW else 0
        if started is None or not unit.items or unit.oldest - ahead < int(utc_seconds(started)):
            return False
        return not self._ahead(unit, place, skew)

    def _ahead(self, unit: Unit, place: str, skew: int | None) -> bool:
        """Whether a unit is said to be written later than it was seen, so that its time says nothing."""
        known = self.known.get(unit.key(place))
        seen, ahead = (utc_seconds(known.published_at), known.source["clock_skew"]) if known else (time.time(), skew)
        return unit.newest > seen + (ahead or 0) + MAX_SKEW

    def _wait_for_units(self, session: Session, source: Source, deadline: float) -> list[Unit]:
        """The units that are asked for; with ``snapshot_started`` set, once one that is younger has appeared."""
        place = source.endpoint.place
        while True:
            units = discover(session, source)
            if self.request.snapshot_started is None and self.request.select == "all":
                return units
            skew = _skew(session, source)
            if (
                self.request.snapshot_started is None
                or any(self._fresh(unit, place, skew) for unit in units)
                or time.monotonic() > deadline
            ):
                break
            time.sleep(1.0)
        if self.request.select == "all":
            return units
        dated = [unit for unit in units if not unit.ageless]
        trusted = [unit for unit in dated if not self._ahead(unit, place, skew)] or dated
        if trusted[-1:] != dated[-1:]:
            self.result.notes.append(
                f"{dated[-1].name} at {source.label} has a time that has not come yet: it does not count as the newest."
            )
        # Each of the others may be the newest: all of them are refused, so that nobody takes this one for it.
        return [unit for unit in units if unit.ageless] + trusted[-1:]

    def _acceptable(self, session: Session, source: Source, units: list[Unit], deadline: float) -> list[_Job]:
        """Leave out what is already stored; refuse what is empty, odd or still growing."""
        looked = time.monotonic()
        place = source.endpoint.place
        gone = self.pruned | self.passed_over
        units = [unit for unit in units if unit.key(place) in self.known or unit.key(place) not in gone]
        stored = [unit for unit in units if unit.key(place) in self.known]
        fresh = [unit for unit in units if unit.key(place) not in self.known]
        if fresh and self.pool is not None:
            size = max(unit.size for unit in fresh)
            rate = self.request.rate_limit
            self.pool.warm(source.endpoint, rate, first_workers(self.request.workers, size, session.round_trip, rate))
        skew = _skew(session, source)
        good, refused = settle(session, source, fresh, self.request.quiet, max(0.0, deadline - time.monotonic()))
        self.result.reasons.extend(reason for _unit, reason in refused)
        self.refused.update((place, unit.name) for unit, _reason in refused)
        jobs = [_Job(source, unit, skew, None, "unknown", []) for unit in stored]
        for unit in good:
            soft = self._refuse(source, unit)
            if soft is not None:
                at_once = any(unit is first for first in fresh)
                seen = looked if at_once else time.monotonic()
                jobs.append(_Job(source, unit, skew, None, "unknown", soft, session.round_trip, seen=seen))
        return jobs

    def _refuse(self, source: Source, unit: Unit) -> list[str] | None:
        """Note why a unit is refused; else the codes of the soft reasons that were accepted."""
        reasons = list(unit.reasons)
        members = len(self.request.cluster.members)
        if source.layout == "per_node" and members and unit.parts < members:
            reasons.append(
                Reason(
                    "PARTS_MISSING",
                    f"{unit.name} has {unit.parts} parts, the cluster has {members} members.",
                    "Find out which node delivered nothing; accept PARTS_MISSING only if the parts hold all data.",
                    hard=False,
                )
            )
        standing = [reason for reason in reasons if reason.hard or reason.code not in self.request.accept]
        if standing:
            self.refused.add((source.endpoint.place, unit.name))
        self.result.reasons.extend(standing)
        accepted = [reason for reason in reasons if reason not in standing]
        self.result.accepted.extend(accepted)
        return None if standing else sorted({reason.code for reason in accepted})

    def _refused(self, jobs: t.Iterable[_Job]) -> None:
        self.refused.update((job.source.endpoint.place, job.unit.name) for job in jobs)

    def _claim(self, jobs: list[_Job]) -> None:
        """Give ``snapshot_started`` to the backup that it is about: the youngest that was written after it.

        A later one would have started later, so the claim stays true for it as "not before".
        """
        started = self.request.snapshot_started
        if started is None:
            return
        fresh = [job for job in jobs if self._fresh(job.unit, job.source.endpoint.place, job.skew)]
        skewed = [job for job in jobs if job.skew is not None and abs(job.skew) > MAX_SKEW]
        ahead = utc_seconds(started) - time.time()
        if skewed or ahead > MAX_SKEW:
            seconds = skewed[-1].skew if skewed else round(ahead)
            reason = Reason(
                "CLOCK_SKEW",
                f"The clocks of the store and {skewed[-1].source.endpoint.label if skewed else 'the cluster'} are "
                f"{abs(seconds or 0)} s apart, so it cannot be told which backup is younger than {started}.",
                "Repair time synchronisation; or accept CLOCK_SKEW, then the start of the snapshot counts as attested.",
                hard=False,
            )
            if reason.code not in self.request.accept:
                self.result.reasons.append(reason)
                self._refused(jobs)
                jobs.clear()
                return
            self.result.accepted.append(reason)
        if not fresh:
            if not self.result.reasons:
                self.result.reasons.append(
                    Reason(
                        "NO_NEW_BACKUP",
                        f"Nothing that was delivered is younger than the snapshot of {started} "
                        f"(waited {self.request.patience:g} s).",
                        "The backup job said that it started and delivered nothing: look at its log, and at the disk "
                        "and the credentials of the place it delivers to. A large cluster may need more patience.",
                    )
                )
            return
        told = [job for job in fresh if job.skew is not None]
        attested = bool(skewed) or ahead > MAX_SKEW
        if not told:
            # An old delivery of a fast clock must not become golden; nor is that a reason to leave a new one there.
            if "CLOCK_SKEW" not in self.request.accept:
                self.result.notes.append(
                    f"{fresh[-1].source.endpoint.label} does not tell its clock, so nobody knows whether "
                    f"{fresh[-1].unit.name} is younger than {started}: it is not recorded when its snapshot started. "
                    "Give clock_skew of that source; or accept CLOCK_SKEW, then that start counts as attested."
                )
                return
            attested, told = True, fresh
        told[-1].snapshot_started = started
        told[-1].snapshot_source = "attested" if attested else "observed"

    def _published(self) -> dict[str, Manifest]:
        """Published backups by the identity of their source, without those that a verification found broken.

        One that a run published and died before recording it is recorded now.
        """
        recorded = set()
        for event in self.store.ledger.chain().events:
            if event.kind == "shipped":
                recorded.add(event.subject)
            elif event.kind == "pruned" and event.data.get("verdict") != "failed":
                self.pruned.add(str(event.data.get("key")))
        sound = {entry.id for entry in usable(self.store)}
        found = {}
        for entry in self.store.entries():
            if entry.manifest is None:
                continue
            if entry.id not in recorded and self.pool is not None:
                self._record("shipped", entry.id, ledger.shipped_data(entry.manifest))
            if entry.id in sound:
                found[str(entry.manifest.source["key"])] = entry.manifest
        return found

    def _room(self, jobs: list[_Job]) -> list[_Job]:
        """The newest that fit with headroom; the others are refused before the first byte (code STORE_FULL)."""
        jobs = self._possible(jobs)
        wanted = [job for job in jobs if job.key not in self.known]
        have_bytes, have_inodes = self.store.free()
        landed, kept = self._unfinished(wanted)
        limit = have_bytes + landed
        sizes = [(job.unit.size, len(job.unit.items)) for job in wanted]
        most = fitting(sizes[::-1], limit + sum(kept.values()), have_inodes, self.request.headroom)
        # What may be continued some day costs bytes on the link when it goes; what it keeps out would be no backup.
        while fitting(sizes[::-1], limit, have_inodes, self.request.headroom) < most:
            name = next(iter(kept))
            limit += kept.pop(name)
            self.dropped[name] = "its room is needed for what can come now"
        waiting = len(wanted) - most
        self.left, coming = wanted[:waiting], wanted[waiting:]
        if self.left:
            full = store_full(self.store.path, OSError(28, "not enough free space"))
            need = sum(size for size, _files in sizes)
            self.result.reasons.append(
                Reason(
                    full.code,
                    f"{need} bytes and {self.request.headroom:.0%} headroom are needed in {self.store.path}, "
                    f"{limit} bytes and {have_inodes} inodes are free. {_left_behind(self.left, coming)}",
                    full.remedy,
                )
            )
        largest = max((job.unit.size for job in coming), default=0)
        free = limit - sum(job.unit.size for job in coming)
        if with_headroom(largest, self.request.headroom) > free:
            self.result.notes.append(
                f"When this run has ended {free} bytes are free in {self.store.path}: the next backup of {largest} "
                "bytes will not fit. Expire old backups (playbook prune_backups) or grow the file system before it."
            )
        left = {job.key for job in self.left}
        return [job for job in jobs if job.key not in left]

    def _possible(self, jobs: list[_Job]) -> list[_Job]:
        """Without those that would not fit into the empty store, for which nothing else has to wait."""
        capacity = self.store.capacity()
        found = []
        for job in jobs:
            need = with_headroom(job.unit.size, self.request.headroom)
            if job.key in self.known or need <= capacity:
                found.append(job)
                continue
            self._refused([job])
            self.result.reasons.append(
                Reason(
                    "TOO_LARGE",
                    f"{job.unit.name} with headroom needs {need} bytes; {self.store.path} could hold {capacity} if it "
                    "were empty.",
                    "Look at that file: it may have holes, or be no backup. Else grow the file system of the store.",
                )
            )
        return found

    def _leave(self, coming: t.Sequence[str]) -> None:
        """Remember what has no room: behind newer ones (their keys) it never comes; else pruning makes room for the
        newest. Before anything comes, so that a run that dies meanwhile does not bring the old ones behind it."""
        if not self.left or self.broken_ledger:
            return
        if coming:
            left = {job.key for job in self.left}
            for name in self.store.incoming():
                if self._source_key(name) in left:
                    # Its room was counted for those that come.
                    self._guarded(functools.partial(remove_tree, os.path.join(self.store.incoming_path, name)))
        headroom = self.request.headroom
        records = [
            (
                "no_room",
                job.key,
                {
                    "name": job.unit.name,
                    "host": job.source.endpoint.host,
                    **Room(with_headroom(job.unit.size, headroom), len(job.unit.items))._asdict(),
                    "newer": list(coming),
                },
            )
            for job in (self.left if coming else self.left[-1:])
        ]
        run_id, events = self.request.run_id, self.store.ledger.chain().events
        # A disk without any room takes no record either; then pruning has to make some first.
        with contextlib.suppress(DsmError):
            # Something smaller of another source may have come since it was said.
            forgotten = not coming and ledger.wanted_room(events) != (records[0][2]["bytes"], records[0][2]["files"])
            new = [one for one in records if forgotten or ledger.repeated(events, run_id, *one) is None]
            self.store.ledger.append_all(run_id, new)

    def _number(self, jobs: list[_Job]) -> None:
        """Ids: those of published and of unfinished transfers stay, new ones follow every number ever seen."""
        # What is to go and could not be removed is not continued.
        names = (name for name in self.store.incoming() if name not in self.dropped)
        unfinished = {self._source_key(name): name for name in names}
        seen = self.store.seen_ids()
        for job in jobs:
            if job.key in self.known:
                job.id = self.known[job.key].id
            elif job.key in unfinished:
                job.id = unfinished[job.key]
            else:
                job.id = next_id(seen, job.unit.newest)
                seen.append(job.id)

    # -- what dead runs left ----------------------------------------------------------------------------------------
    def _source_key(self, backup_id: str) -> str:
        """Which bytes an unfinished transfer is about ('' if that cannot be read)."""
        try:
            return str(self._incoming_source(backup_id).get("key", ""))
        except (OSError, Invalid, DsmError):
            return ""

    def _incoming_source(self, backup_id: str) -> dict[str, t.Any]:
        return load(read_bytes(os.path.join(self.store.incoming_path, backup_id, "source.json")), "source.json")

    def _unfinished(self, wanted: t.Iterable[_Job]) -> tuple[int, dict[str, int]]:
        """Bytes that this run need not find room for again, and those of transfers that only a later run may continue.

        What will never be continued goes, and its bytes are among the first. Never continued is what its source, which
        was looked at, no longer has as it was; unless it was only refused there now.
        """
        jobs = {job.key: job for job in wanted}
        landed, kept = 0, {}
        for name in self.store.incoming():
            size = landed_bytes(os.path.join(self.store.incoming_path, name))
            try:
                source = self._incoming_source(name)
            except (OSError, Invalid, DsmError):
                self.dropped[name] = "nobody can tell what it is of"
                landed += size
                continue
            job = jobs.get(str(source.get("key")))
            if job is not None and job.continues(source):
                landed += size
            elif job is None and self._may_come(source):
                kept[name] = size
            else:
                self.dropped[name] = f"{source.get('name')} is no longer the same"
                landed += size
        return landed, kept

    def _may_come(self, noted: t.Mapping[str, t.Any]) -> bool:
        """Whether a later run may continue it: nobody could look, or it or a directory above it was refused now."""
        if (noted.get("place"), noted.get("path")) not in self.looked_at:
            return True
        name = f"{noted.get('name')}/"
        return any(place == noted.get("place") and name.startswith(f"{above}/") for place, above in self.refused)

    def _drop(self) -> None:
        """Remove the unfinished transfers that nobody continues, or whose room others need."""
        for name, why in self.dropped.items():
            if self._guarded(functools.partial(remove_tree, os.path.join(self.store.incoming_path, name))):
                self.result.notes.append(f"Dropped the unfinished transfer {name}: {why}.")

    def _guarded(self, act: t.Callable[[], None]) -> bool:
        """Do it; that the disk does not let it is told at the end, and stops no backup. Whether it was done."""
        try:
            act()
        except (DsmError, OSError) as caught:
            error = local_failure(self.store.path, caught) if isinstance(caught, OSError) else caught
            reason = Reason(error.code, error.message, error.remedy)
            if reason not in self.result.reasons:
                self.result.reasons.append(reason)
            return False
        return True

    def _check_ledger(self) -> None:
        chain = self.store.ledger.chain()
        if chain.problems:
            self.broken_ledger = True
            self._soft(
                Reason(
                    "LEDGER_BROKEN",
                    f"The ledger is broken after {len(chain.events)} events; nothing is recorded in it.",
                    "Module ledger with state verified says where. Shipping goes on, its record is missing.",
                    hard=False,
                )
            )

    def _soft(self, reason: Reason) -> None:
        (self.result.accepted if reason.code in self.request.accept else self.result.reasons).append(reason)

    def _record(self, kind: str, subject: str, data: t.Mapping[str, t.Any]) -> None:
        if not self.broken_ledger:
            self.store.ledger.append(run_id=self.request.run_id, kind=kind, subject=subject, data=data)

    def _observe(self) -> None:
        """The member set goes to the store with every ship, if it is another than the one on record."""
        cluster = self.request.cluster
        if not cluster.members or self.broken_ledger:
            return
        data = {
            "fingerprint": cluster.fingerprint,
            "uid": cluster.uid,
            "version": cluster.version,
            "members": [dict(member) for member in cluster.members],
        }
        events = [event for event in self.store.ledger.chain().events if event.kind == "observed_members"]
        if not events or dict(events[-1].data) != data:
            self._record("observed_members", self.store.identity.cluster_id, data)

    # -- one backup -------------------------------------------------------------------------------------------------
    def _one(self, job: _Job, lease: Lease | None) -> None:
        if job.key in self.known:
            self._add(job, self.known[job.key], published=True, already=True)
            return
        if lease is None:
            self.result.changed = True
            manifest = self._manifest(job, {}, "unknown", utc_text(time.time()))
            self._add(job, manifest, published=False, already=False)
            return
        try:
            manifest = self._bring(job, lease)
        except (DsmError, OSError) as caught:
            error = local_failure(self.store.path, caught) if isinstance(caught, OSError) else caught
            self.result.reasons.extend(
                [replace(reason, remedy=reason.remedy or error.remedy) for reason in error.reasons]
                or [tidy(error, job.source)]
            )
            return
        self.result.changed = True
        self._add(job, manifest, published=True, already=False)

    def _bring(self, job: _Job, lease: Lease) -> Manifest:
        """Pull, check, publish and record one backup."""
        at = self.request.checkpoint
        incoming = os.path.join(self.store.incoming_path, job.id)
        data = os.path.join(incoming, "data")
        make_directory(incoming)
        at("incoming made")
        source = job.noted()
        write_atomically(os.path.join(incoming, "source.json"), json.dumps(source).encode("utf-8"))
        make_directory(data)
        at("source noted")
        plan = TransferPlan(
            endpoint=job.source.endpoint,
            items=job.unit.items,
            directory=data,
            journal=os.path.join(incoming, "journal.jsonl"),
            workers=self.request.workers,
            rate_limit=self.request.rate_limit,
            known=frozenset(item.path for item in job.unit.items if item.source in job.hashes),
            round_trip=job.round_trip,
        )

        lines = Lines(job.unit.name, self.request.say)

        def progress(done: int, total: int, workers: int) -> None:
            lease.renew()
            lines(done, total, workers)
            at("range landed")

        try:
            remove_strangers(data, {item.path for item in job.unit.items})
            report = pull(plan, progress, self.pool)
            self.result.report.add(report)
            self.result.notes += report.notes
            at("pulled")
            self._unchanged(job)
            _same_as_source(job, report.sha256)
            kind, problems = _structure.check(data, [item.path for item in job.unit.items], lease.renew)
            if problems:
                raise _Unfit(
                    f"{job.unit.name} is not complete.",
                    problems[0].code,
                    "The backup job of the cluster was cut off while it wrote. Let it run again.",
                    reasons=as_reasons(problems),
                )
            manifest = self._manifest(job, report.sha256, kind, utc_text(time.time()))
            self._refuse_foreign(manifest, data)
        except DsmError as error:
            if isinstance(error, _Unfit) or error.code in _OF_NO_USE:
                remove_tree(incoming)
            raise
        lease.confirm()
        at("verified")
        self.store.publish(job.id, manifest)
        self._record("shipped", job.id, ledger.shipped_data(manifest))
        at("recorded")
        return manifest

    def _unchanged(self, job: _Job) -> None:
        """Look at the source again: what was pulled must still be what is there (F12)."""
        time.sleep(max(0.0, min(LOOK_AGAIN, self.request.quiet) - (time.monotonic() - job.seen)))
        number = self.request.sources.index(job.source)
        try:
            session = self.sessions.get(number) or self._connect(number, job.source)
            units = discover(session, job.source, frozenset((job.unit.name,)))
        except DsmError as error:
            if error.code not in TRANSIENT:
                raise
            units = discover(self._connect(number, job.source), job.source, frozenset((job.unit.name,)))
        if [unit.state for unit in units] != [job.unit.state]:
            raise changed(job.unit.name, "the second look found something else")

    def _refuse_foreign(self, manifest: Manifest, data: str) -> None:
        """Ask the operator's command whose bytes these are, and look for them in other clusters' parts of the store."""
        cluster = self.request.cluster
        if self.request.identify is not None:
            said = self.request.identify(os.path.join(data, manifest.archive.path) if manifest.archive else data)
            if not any(mark and mark in said for mark in (cluster.fingerprint, cluster.uid)):
                raise _Unfit(
                    f"{manifest.source['path']} is not a backup of this cluster: identify_argv names neither its "
                    "fingerprint nor its uid.",
                    "FOREIGN",
                    "Check sources, and run the command of identify_argv by hand.",
                )
        for identity in identities(self.request.store).values():
            if identity.cluster_id == self.store.identity.cluster_id:
                continue
            for entry in ClusterStore(self.request.store, identity).entries():
                if entry.manifest is not None and entry.manifest.digest == manifest.digest:
                    raise _Unfit(
                        f"These bytes are backup {entry.id} of cluster {identity.cluster_id}.",
                        "FOREIGN",
                        "The source is the one of another cluster: correct sources.",
                    )

    def _manifest(self, job: _Job, sha256: t.Mapping[str, str], structure: str, now: str) -> Manifest:
        generation = self.store.identity.generation_of(self.request.cluster.fingerprint)
        head = self.store.ledger.chain().head
        return Manifest(
            cluster_id=self.store.identity.cluster_id,
            fingerprint=self.request.cluster.fingerprint,
            generation=generation.generation if generation else 1,
            id=job.id,
            sequence=int(job.id.split("-")[0]),
            published_at=now,
            run_id=self.request.run_id,
            version=self.request.cluster.version,
            members=self.request.cluster.members,
            snapshot_started=job.snapshot_started,
            snapshot_source=job.snapshot_source,
            sealed_for=self.request.sealed_for,
            provenance="by_template" if self.request.identify is not None else "by_source",
            structure=structure,
            source={
                "host": job.source.endpoint.host,
                "path": job.unit.name,
                "layout": job.source.layout,
                "key": job.key,
                "hash": "sha256" if all(item.source in job.hashes for item in job.unit.items) else "none",
                "clock_skew": job.skew,
            },
            files=tuple(
                FileEntry(item.path, item.attributes.size, item.attributes.mtime, sha256.get(item.path, ""))
                for item in job.unit.items
            ),
            accepted=tuple(job.accepted),
            ledger={"sequence": head.sequence, "hash": head.hash} if head else {"sequence": 0, "hash": "0" * 64},
        )

    def _add(self, job: _Job, manifest: Manifest, *, published: bool, already: bool) -> None:
        described = describe(manifest)
        # Where a file lies depends on the layout, and on links: nobody should have to work it out.
        there = {item.path: item.source for item in job.unit.items}
        described["files"] = [{**file, "source_path": there[file["path"]]} for file in described["files"]]
        if not published:
            described.update(sha256=None, digest=None, published_at=None)
        self.result.backups.append({"published": published, "already": already, **described})


def _skew(session: Session, source: Source) -> int | None:
    """Seconds by which the clock of a source is ahead of ours, as it says, else as somebody measured it."""
    clock = session.clock()
    return round(clock - time.time()) if clock is not None else source.clock_skew


def _left_behind(left: t.Sequence[_Job], coming: t.Sequence[_Job]) -> str:
    """What becomes of those that have no room."""
    if not coming:
        return f"Nothing comes as long as the newest has no room; {len(left)} wait."
    return f"The newest come ({len(coming)}); those that are older ({len(left)}) stay where they are for good."


def _same_as_source(job: _Job, sha256: t.Mapping[str, str]) -> None:
    """What landed is what somebody hashed at the source, where somebody did (code SOURCE_HASH)."""
    for item in job.unit.items:
        wanted = job.hashes.get(item.source)
        if wanted is not None and wanted != sha256[item.path]:
            raise _Unfit(
                f"{item.source} has the SHA-256 {wanted} at the source; what landed has {sha256[item.path]}.",
                "SOURCE_HASH",
                "Its bytes were damaged on the way or in memory, or the file was replaced. What landed was thrown "
                "away: run again. If it happens again, check the memory of both hosts.",
            )


def landed_bytes(path: str) -> int:
    """Bytes that the files below a directory take on the disk; an unfinished one has holes."""
    total = 0
    for directory, _directories, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(directory, name))
                total += min(status.st_size, status.st_blocks * 512)
    return total


def remove_strangers(data: str, wanted: set[str]) -> None:
    """Files in an unfinished transfer that do not belong to it."""
    for directory, _directories, files in os.walk(data):
        for name in files:
            path = os.path.join(directory, name)
            if os.path.relpath(path, data) not in wanted:
                os.unlink(path)
