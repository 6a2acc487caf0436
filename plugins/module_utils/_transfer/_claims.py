# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Which delivery is the backup whose snapshot was announced, and how surely it is that one."""

from __future__ import annotations

import time
import typing as t

from .._core import clocks
from .._core.strict import utc_seconds
from .._errors import Reason
from ._discover import Source, Unit
from ._job import Job, Looked, Past, ShipRequest, ShipResult


class Delivery(t.Protocol):
    """What a source offers, as it was seen last."""

    @property
    def unit(self) -> Unit:
        """What it is."""

    @property
    def source(self) -> Source:
        """Where it is."""

    @property
    def skew(self) -> int | None:
        """Seconds by which the clock of the source is ahead of ours; None: nobody knows."""

    @property
    def key(self) -> str:
        """Identity of exactly these bytes at that place."""


class Offered(t.NamedTuple):
    """A delivery that nobody has decided to bring."""

    unit: Unit
    source: Source
    skew: int | None

    @property
    def key(self) -> str:
        """Identity of exactly these bytes at that place."""
        return self.unit.key(self.source.endpoint.place)


class Claims:
    """What ``snapshot_started`` is true for, by the clocks and by what lay at the sources before."""

    def __init__(self, request: ShipRequest, result: ShipResult, past: Past, looked: Looked) -> None:
        self.request = request
        self.result = result
        self.past = past
        self.looked = looked
        #: by our clock (s), by identity
        self._first_seen: dict[str, float] = {}
        self._at_any_clock = "CLOCK_SKEW" in request.accept
        #: by place and name, the identities of what lay there before
        self._before: dict[str, dict[str, set[str]]] = {}
        for (place, _path), names in (request.there_before or {}).items():
            for name, identities in names.items():
                self._before.setdefault(place, {}).setdefault(name, set()).update(identities)

    def ahead_of_time(self, one: Delivery) -> bool:
        """Whether its time says nothing, because it had not come when the delivery was first seen."""
        if one.key in self.request.ahead_of_time:
            return True
        known = self.past.known.get(one.key)
        if known is None:
            seen = self._first_seen.setdefault(one.key, time.time())
            return clocks.not_come_yet(one.unit.newest, one.skew, seen)
        return clocks.not_come_yet(one.unit.newest, known.source["clock_skew"], utc_seconds(known.published_at))

    def fresh(self, one: Delivery) -> bool:
        """Whether all of it was written after the snapshot that was announced had started."""
        started, told_by = self.request.snapshot_started, self.request.snapshot_skew
        if started is None or not one.unit.items or self._lay_there(one) or self.ahead_of_time(one):
            return False
        # The clock of its source may have been set since it came.
        known = self.past.known.get(one.key)
        return clocks.written_since(
            one.unit.oldest, known.source["clock_skew"] if known else one.skew, started, told_by
        )

    def doubtful(self, one: Delivery) -> bool:
        """Whether it may be a delivery that was being written before the snapshot was asked for, written on.

        A name that is used again is no such one: what had it was complete, since it was published.
        """
        return any(not self.past.complete(identity) for identity in self._named_before(one))

    def sure(self, source: Source, skew: int | None) -> bool:
        """Whether nothing better can come from elsewhere: what is younger there is known, or all is accepted."""
        too_far_apart = abs(skew or 0) > clocks.MAX_SKEW
        return self._at_any_clock or not (too_far_apart or self._unknown_of(source, skew))

    def give(self, jobs: list[Job]) -> list[Job]:
        """Give ``snapshot_started`` to the backup that it is about: the youngest that was written after it.

        A later one would have started later, so the claim stays true for it as "not before". Returns what may be
        shipped.
        """
        started = self.request.snapshot_started
        if started is None:
            return jobs
        too_far_apart = self._too_far_apart(jobs, started)
        if not self._at_any_clock:
            self.looked.refuse(job for job in jobs if job.key in too_far_apart)
            jobs = [job for job in jobs if job.key not in too_far_apart]
        fresh = [job for job in jobs if self.fresh(job)]
        new = [job for job in fresh if job.key not in self.past.known]
        if not new and all(map(self.doubtful, fresh)) and not self.result.reasons:
            self.result.reasons.append(
                Reason(
                    "NO_NEW_BACKUP",
                    f"Nothing that was delivered is younger than the snapshot of {started} "
                    f"(waited {self.request.patience:g} s).",
                    "The backup job said that it started and delivered nothing: look at its log, and at the disk "
                    "and the credentials of the place it delivers to. A large cluster may need more patience.",
                )
            )
        if new:
            # The surest of them, and of those the youngest.
            doubts = {id(job): (self.doubtful(job), len(self._unsure(job)), job.key in too_far_apart) for job in new}
            surest = min(doubts.values())
            self._claim([job for job in new if doubts[id(job)] == surest][-1], started, too_far_apart)
        return jobs

    def _claim(self, job: Job, started: str, too_far_apart: t.Container[str]) -> None:
        if self.doubtful(job):
            self.result.notes.append(
                f"{job.unit.name} was there before the snapshot of {started} was asked for, and was not shipped as it "
                "was then. It may have been written on since, so it is not recorded when its snapshot started. Ship "
                "what is there, then take another backup."
            )
            return
        unsure = self._unsure(job)
        if unsure and not self._at_any_clock:
            # An old delivery must not become golden; nor is that a reason to leave a new one there.
            self.result.notes.append(
                f"Nobody knows whether {job.unit.name} is younger than {started}, because {' and '.join(unsure)}: "
                "it is not recorded when its snapshot started. Give clock_skew of that source and "
                "snapshot_clock_skew; or accept CLOCK_SKEW, then that start counts as attested."
            )
            return
        job.snapshot_started = started
        job.snapshot_source = "attested" if unsure or job.key in too_far_apart else "observed"
        came = self.past.came
        job.had_its_name = [came[identity] for identity in sorted(self._named_before(job)) if identity in came]

    def _unsure(self, one: Delivery) -> list[str]:
        """Why nobody can tell whether it is younger than what was announced."""
        nobody = ["the clock of the member that told it was not read"] if self.request.snapshot_skew is None else []
        return self._unknown_of(one.source, one.skew) + nobody

    def _unknown_of(self, source: Source, skew: int | None) -> list[str]:
        """Why nobody can tell what is younger at a source."""
        found = [f"the clock of {source.endpoint.label} was not read"] if skew is None else []
        before = self.request.there_before
        if before is not None and (source.endpoint.place, source.path) not in before:
            found.append(f"nobody could look at {source.label} before (there_before)")
        return found

    def _named_before(self, one: Delivery) -> set[str]:
        """Identities of what had this name, or was a directory above it that could not be looked into, before."""
        names = self._before.get(one.source.endpoint.place)
        if not names:
            return set()
        parts = one.unit.shown_name.split("/")
        above = ("/".join(parts[: count + 1]) for count in range(len(parts)))
        return set().union(*(names.get(name, ()) for name in above))

    def _lay_there(self, one: Delivery) -> bool:
        """Whether it, or one of its files, lay there before the snapshot was asked for."""
        before = self._named_before(one)
        came = self.past.came
        then = {
            (file.path, file.size, file.mtime)
            for identity in before
            if identity in came
            for file in came[identity].files
        }
        now = {(item.path, item.attributes.size, item.attributes.mtime) for item in one.unit.items}
        return one.key in before or bool(then & now)

    def _too_far_apart(self, jobs: list[Job], started: str) -> set[str]:
        """New backups of clocks too far apart to be compared, which is told."""
        told_by, known = self.request.snapshot_skew, self.past.known
        ahead = utc_seconds(started) - time.time()
        apart = {"the cluster": round(ahead)} if ahead > clocks.MAX_SKEW else {}
        if told_by is not None and abs(told_by) > clocks.MAX_SKEW:
            apart = {"the cluster": told_by}
        found = {job.key for job in jobs if apart and job.key not in known}
        for job in jobs:
            if job.key not in known and abs(job.skew or 0) > clocks.MAX_SKEW:
                apart[job.source.endpoint.label] = job.skew or 0
                found.add(job.key)
        reasons = [
            Reason(
                "CLOCK_SKEW",
                f"The clocks of the store and {whose} are {abs(seconds)} s apart, so it cannot be told which backup is "
                f"younger than {started}.",
                "Repair time synchronisation; or accept CLOCK_SKEW, then the start of the snapshot counts as attested.",
                hard=False,
            )
            for whose, seconds in apart.items()
        ]
        (self.result.accepted if self._at_any_clock else self.result.reasons).extend(reasons)
        return found
