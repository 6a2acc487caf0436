# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What the sources offer: which deliveries are quiet, acceptable and new, and which of them a snapshot belongs to."""

from __future__ import annotations

import random
import time
import typing as t

from .._core.clocks import MAX_SKEW, not_come_yet, written_since
from .._core.manifest import Manifest
from .._core.strict import utc_seconds
from .._errors import DsmError, Reason
from ._changed import changed
from ._discover import LOOK_AGAIN, Source, Unit, discover, settle, tidy
from ._endpoint import Session
from ._job import Job, Looked, ShipRequest, ShipResult
from ._policy import first_workers, pause
from ._pool import Pool
from ._pull import TRANSIENT
from ._ssh import ConnectionLost

#: How often it is tried to look at a source over a connection that then breaks.
LOOKS = 3


class Offers:
    """What is offered to one run, and the connections with those that offer it."""

    def __init__(
        self,
        request: ShipRequest,
        pool: Pool | None,
        result: ShipResult,
        known: t.Mapping[str, Manifest],
        gone: t.Collection[str],
    ) -> None:
        self.request = request
        #: None in check mode
        self.pool = pool
        self.result = result
        #: what is published, by the identity of its source
        self.known = known
        #: identities of what never comes (again)
        self.gone = gone
        self.looked = Looked()
        self.sessions: dict[int, Session] = {}

    def close(self) -> None:
        """End all connections."""
        for session in self.sessions.values():
            session.close()

    def collect(self) -> list[Job]:
        """Quiet, acceptable backups of all sources, eldest first."""
        jobs: list[Job] = []
        deadline = time.monotonic() + self.request.patience
        total = 0
        for number, source in enumerate(self.request.sources):
            try:
                found, wanted = self._look(number, source, deadline)
                if found:
                    # Where there is nothing at all, what it is on may be away.
                    self.looked.at.add((source.endpoint.place, source.path))
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

    def unchanged(self, job: Job) -> None:
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

    def _merged(self, jobs: t.Iterable[Job]) -> list[Job]:
        """What two sources name is one backup, and would count as two copies; the hashes of both hold for it."""
        merged: dict[str, Job] = {}
        for job in jobs:
            first = merged.setdefault(job.key, job)
            for path, sha256 in job.hashes.items():
                if first.hashes.setdefault(path, sha256) != sha256:
                    del merged[job.key]
                    self.looked.refuse([job])
                    self.result.reasons.append(
                        Reason(
                            "SOURCE_HASH",
                            f"Two sources give different hashes for {path}.",
                            "Hash it at the source again, and correct sources.",
                        )
                    )
                    break
        return list(merged.values())

    def _look(self, number: int, source: Source, deadline: float) -> tuple[int, list[Job]]:
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
        """Whether all of a unit was written after the snapshot that was announced had started."""
        started, told_by = self.request.snapshot_started, self.request.snapshot_skew
        if started is None or not unit.items or self._not_come_yet(unit, place, skew):
            return False
        return written_since(unit.oldest, skew, started, told_by)

    def _not_come_yet(self, unit: Unit, place: str, skew: int | None) -> bool:
        """Whether the time of a unit says nothing, where it is known since when it is there."""
        known = self.known.get(unit.key(place))
        if known is None:
            return not_come_yet(unit.newest, skew, time.time())
        return not_come_yet(unit.newest, known.source["clock_skew"], utc_seconds(known.published_at))

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
        trusted = [unit for unit in dated if not self._not_come_yet(unit, place, skew)] or dated
        if trusted[-1:] != dated[-1:]:
            self.result.notes.append(
                f"{dated[-1].name} at {source.label} has a time that has not come yet: it does not count as the newest."
            )
        # Each of the others may be the newest: all of them are refused, so that nobody takes this one for it.
        return [unit for unit in units if unit.ageless] + trusted[-1:]

    def _acceptable(self, session: Session, source: Source, units: list[Unit], deadline: float) -> list[Job]:
        """Leave out what is already stored; refuse what is empty, odd or still growing."""
        looked = time.monotonic()
        place = source.endpoint.place
        units = [unit for unit in units if unit.key(place) in self.known or unit.key(place) not in self.gone]
        stored = [unit for unit in units if unit.key(place) in self.known]
        fresh = [unit for unit in units if unit.key(place) not in self.known]
        if fresh and self.pool is not None:
            size = max(unit.size for unit in fresh)
            rate = self.request.rate_limit
            self.pool.warm(source.endpoint, rate, first_workers(self.request.workers, size, session.round_trip, rate))
        skew = _skew(session, source)
        good, refused = settle(session, source, fresh, self.request.quiet, max(0.0, deadline - time.monotonic()))
        self.result.reasons.extend(reason for _unit, reason in refused)
        self.looked.refused.update((place, unit.name) for unit, _reason in refused)
        jobs = [Job(source, unit, skew, None, "unknown", []) for unit in stored]
        for unit in good:
            soft = self._refuse(source, unit)
            if soft is not None:
                at_once = any(unit is first for first in fresh)
                seen = looked if at_once else time.monotonic()
                jobs.append(Job(source, unit, skew, None, "unknown", soft, session.round_trip, seen=seen))
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
            self.looked.refused.add((source.endpoint.place, unit.name))
        self.result.reasons.extend(standing)
        accepted = [reason for reason in reasons if reason not in standing]
        self.result.accepted.extend(accepted)
        return None if standing else sorted({reason.code for reason in accepted})

    def _claim(self, jobs: list[Job]) -> None:
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
                self.looked.refuse(jobs)
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


def _skew(session: Session, source: Source) -> int | None:
    """Seconds by which the clock of a source is ahead of ours, as it says, else as somebody measured it."""
    clock = session.clock()
    return round(clock - time.time()) if clock is not None else source.clock_skew
