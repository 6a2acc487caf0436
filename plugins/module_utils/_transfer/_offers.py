# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What the sources offer: which deliveries are quiet, acceptable and new, and which of them a snapshot belongs to."""

from __future__ import annotations

import functools
import random
import time
import typing as t

from .._errors import DsmError, Reason
from ._changed import changed
from ._claims import Claims, Offered
from ._discover import LOOK_AGAIN, Source, Unit, discover, settle, tidy
from ._endpoint import Session
from ._job import Job, Looked, Past, ShipRequest, ShipResult
from ._policy import first_workers, pause
from ._pool import Pool
from ._pull import TRANSIENT
from ._ssh import ConnectionLost

#: How often it is tried to look at a source over a connection that then breaks.
LOOKS = 3

_Answer = t.TypeVar("_Answer")


class Offers:
    """What is offered to one run, and the connections with those that offer it."""

    def __init__(
        self,
        request: ShipRequest,
        pool: Pool | None,
        result: ShipResult,
        past: Past,
    ) -> None:
        self.request = request
        #: None in check mode
        self.pool = pool
        self.result = result
        self.past = past
        self.looked = Looked()
        self.claims = Claims(request, result, past, self.looked)
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
        for number, units in self._wait_for_units(deadline).items():
            source = self.request.sources[number]
            try:
                jobs += self._over(number, functools.partial(self._acceptable, units=units, deadline=deadline))
            except DsmError as error:
                self.result.reasons.append(tidy(error, source))
                continue
            if units:
                # Where there is nothing at all, what it is on may be away.
                self.looked.at.add((source.endpoint.place, source.path))
            total += len(units)
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
        return self.claims.give(jobs)

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
        contradicted: dict[str, str] = {}
        for job in jobs:
            first = merged.setdefault(job.key, job)
            # As far ahead as it can be, which makes nothing younger than it is.
            first.skew = max((skew for skew in (first.skew, job.skew) if skew is not None), default=None)
            for path, sha256 in job.hashes.items():
                if first.hashes.setdefault(path, sha256) != sha256:
                    contradicted.setdefault(job.key, path)
        for key, path in contradicted.items():
            self.looked.refuse([merged.pop(key)])
            self.result.reasons.append(
                Reason(
                    "SOURCE_HASH",
                    f"Two sources give different hashes for {path}.",
                    "Hash it at the source again, and correct sources.",
                )
            )
        return list(merged.values())

    def _over(self, number: int, act: t.Callable[[Session, Source], _Answer]) -> _Answer:
        """Do it over the connection with a source; one that breaks is built again."""
        source = self.request.sources[number]
        attempt = 0
        while True:
            attempt += 1
            try:
                session = self.sessions.get(number)
                if session is None:
                    session = self._connect(number, source)
                    session.expect_clock()
                return act(session, source)
            except ConnectionLost:
                self._disconnect(number)
                if attempt == LOOKS:
                    raise
            time.sleep(pause(attempt, random.random()))

    def _connect(self, number: int, source: Source) -> Session:
        """A new session with a source; the one before is closed."""
        self._disconnect(number)
        opened = source.endpoint.connect() if self.pool is None else self.pool.session(source.endpoint)
        self.sessions[number] = opened
        return opened

    def _disconnect(self, number: int) -> None:
        if number in self.sessions:
            self.sessions.pop(number).close()

    def _note_unused_hashes(self, source: Source, units: t.Iterable[Unit]) -> None:
        """A hash that belongs to no file checks nothing, and nobody would know."""
        named = {item.source for unit in units for item in unit.items}
        unused = sorted(path for path in source.hashes if path not in named)
        if unused and self.request.select == "all":
            note = f"{len(unused)} hashes given for {source.label} belong to no file of a backup there: {unused[0]}."
            self.result.notes.append(note)

    def _wait_for_units(self, deadline: float) -> dict[int, list[Unit]]:
        """What is asked for of each source; with ``snapshot_started`` set, once one of them has one that is younger."""
        found: dict[int, tuple[list[Unit], int | None]] = {}
        asked = dict(enumerate(self.request.sources))
        reached: set[int] = set()
        while True:
            waiting = self.request.snapshot_started is not None and time.monotonic() <= deadline
            for number, source in list(asked.items()):
                try:
                    found[number] = self._over(number, _held)
                    reached.add(number)
                except DsmError as error:
                    found.pop(number, None)
                    # A host that was there may be about to start again.
                    if not (waiting and number in reached and error.code in TRANSIENT):
                        del asked[number]
                        self.result.reasons.append(tidy(error, source))
            offered = [Offered(unit, asked[number], skew) for number, (units, skew) in found.items() for unit in units]
            one_is_sure = any(self.claims.sure(asked[number], skew) for number, (_units, skew) in found.items())
            if not waiting or not asked or self._has_come(offered, one_is_sure):
                break
            time.sleep(1.0)
        if self.pool is None:
            self._tell(found, offered)
        for number, (units, _skew) in found.items():
            self._note_unused_hashes(asked[number], units)
        return {number: self._selected(asked[number], *held) for number, held in sorted(found.items())}

    def _tell(self, found: t.Mapping[int, tuple[list[Unit], int | None]], offered: t.Iterable[Offered]) -> None:
        """For a later run, what lies at the sources."""
        for number, (units, _skew) in sorted(found.items()):
            source = self.request.sources[number]
            place = source.endpoint.place
            backups = {unit.shown_name: unit.key(place) for unit in units}
            self.result.at_sources.append({"place": place, "path": source.path, "backups": backups})
        self.result.ahead_of_time = sorted({one.key for one in offered if self.claims.ahead_of_time(one)})

    def _has_come(self, offered: t.Iterable[Offered], one_is_sure: bool) -> bool:
        """Whether what is waited for is there: published, or such that nothing better may come.

        What is refused may still be mended, as where a part is missing, and another one may come.
        """
        # All are asked about, so that it is known of each when it was seen first.
        fresh = [one for one in offered if self.claims.fresh(one)]
        return any(
            one.key in self.past.known
            or (
                one.key not in self.past.gone
                and (self.claims.sure(one.source, one.skew) or not one_is_sure)
                and not self._judged(one.source, one.unit)[0]
            )
            for one in fresh
            if not self.claims.doubtful(one)
        )

    def _selected(self, source: Source, units: list[Unit], skew: int | None) -> list[Unit]:
        """All of them, or the newest."""
        if self.request.select == "all":
            return units
        dated = [Offered(unit, source, skew) for unit in units if not unit.ageless]
        trusted = [one for one in dated if not (self.claims.ahead_of_time(one) or self.claims.doubtful(one))] or dated
        if trusted[-1:] != dated[-1:]:
            self.result.notes.append(
                f"{dated[-1].unit.name} at {source.label} does not count as the newest: it has a time that has not "
                "come yet, or was there before the snapshot was asked for."
            )
        # Each of the others may be the newest: all of them are refused, so that nobody takes this one for it.
        return [unit for unit in units if unit.ageless] + [one.unit for one in trusted[-1:]]

    def _acceptable(self, session: Session, source: Source, *, units: list[Unit], deadline: float) -> list[Job]:
        """Leave out what is already stored; refuse what is empty, odd or still growing."""
        looked = time.monotonic()
        place = source.endpoint.place
        known = self.past.known
        stored = [unit for unit in units if unit.key(place) in known]
        fresh = [unit for unit in units if unit.key(place) not in known and unit.key(place) not in self.past.gone]
        if fresh and self.pool is not None:
            size = max(unit.size for unit in fresh)
            rate = self.request.rate_limit
            self.pool.warm(source.endpoint, rate, first_workers(self.request.workers, size, session.round_trip, rate))
        skew = _skew(session, source)
        # Waiting for another source must not cost this one the time in which it is seen to be quiet.
        least = min(self.request.patience, self.request.quiet + LOOK_AGAIN)
        good, refused = settle(session, source, fresh, self.request.quiet, max(least, deadline - time.monotonic()))
        self.result.reasons.extend(reason for _unit, reason in refused)
        self.looked.refused.update((place, unit.name) for unit, _reason in refused)
        jobs = [Job(source, unit, skew, None, "unknown", []) for unit in stored]
        for unit in good:
            # It may have changed since it was looked at first.
            self.claims.ahead_of_time(Offered(unit, source, skew))
            soft = self._refuse(source, unit)
            if soft is not None:
                at_once = any(unit is first for first in fresh)
                seen = looked if at_once else time.monotonic()
                jobs.append(Job(source, unit, skew, None, "unknown", soft, session.round_trip, seen=seen))
        return jobs

    def _refuse(self, source: Source, unit: Unit) -> list[str] | None:
        """Note why a unit is refused; else the codes of the soft reasons that were accepted."""
        standing, accepted = self._judged(source, unit)
        if standing:
            self.looked.refused.add((source.endpoint.place, unit.name))
        self.result.reasons.extend(standing)
        self.result.accepted.extend(accepted)
        return None if standing else sorted({reason.code for reason in accepted})

    def _judged(self, source: Source, unit: Unit) -> tuple[list[Reason], list[Reason]]:
        """Why a unit is refused, and what else spoke against it and was accepted."""
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
        return standing, [reason for reason in reasons if reason not in standing]


def _held(session: Session, source: Source) -> tuple[list[Unit], int | None]:
    """What a source holds, and the skew of its clock."""
    return discover(session, source), _skew(session, source)


def _skew(session: Session, source: Source) -> int | None:
    """Seconds by which the clock of a source is ahead of ours, as it says, else as somebody measured it."""
    clock = session.clock()
    return round(clock - time.time()) if clock is not None else source.clock_skew
