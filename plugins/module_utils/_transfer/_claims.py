# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Which delivery is the backup whose snapshot was announced, and how surely it is that one."""

from __future__ import annotations

import time
import typing as t

from .._core.clocks import MAX_SKEW, not_come_yet, written_since
from .._core.manifest import Manifest
from .._core.strict import utc_seconds
from .._errors import Reason
from ._discover import Source, Unit
from ._job import Job, Looked, ShipRequest, ShipResult


class Offered(t.NamedTuple):
    """A delivery as it is seen at a source."""

    unit: Unit
    source: Source
    #: seconds by which the clock of the source is ahead of ours; None: nobody knows
    skew: int | None

    @property
    def key(self) -> str:
        """Identity of exactly these bytes at that place."""
        return self.unit.key(self.source.endpoint.place)


class Claims:
    """What ``snapshot_started`` is true for, by the clocks and by what lay at the sources before."""

    def __init__(
        self, request: ShipRequest, result: ShipResult, known: t.Mapping[str, Manifest], looked: Looked
    ) -> None:
        self.request = request
        self.result = result
        #: what is published, by the identity of its source
        self.known = known
        self.looked = looked
        #: by our clock (s), by identity
        self._first_seen: dict[str, float] = {}

    def not_come_yet(self, offered: Offered) -> bool:
        """Whether the time of a delivery says nothing, because it had not come when it was first seen."""
        newest, key = offered.unit.newest, offered.key
        known = self.known.get(key)
        if known is None:
            return not_come_yet(newest, offered.skew, self._first_seen.setdefault(key, time.time()))
        return not_come_yet(newest, known.source["clock_skew"], utc_seconds(known.published_at))

    def fresh(self, offered: Offered) -> bool:
        """Whether all of it was written after the snapshot that was announced had started."""
        started, told_by = self.request.snapshot_started, self.request.snapshot_skew
        if started is None or not offered.unit.items or self._lay_there(offered) or self.not_come_yet(offered):
            return False
        # The clock of its source may have been set since it came.
        known = self.known.get(offered.key)
        return written_since(
            offered.unit.oldest, known.source["clock_skew"] if known else offered.skew, started, told_by
        )

    def sure(self, source: Source, skew: int | None) -> bool:
        """Whether nothing better can come from elsewhere: what is younger there is known, or all is accepted."""
        apart = skew is None or abs(skew) > MAX_SKEW
        return "CLOCK_SKEW" in self.request.accept or not (apart or self._unseen(source))

    def doubtful(self, offered: Offered) -> bool:
        """Whether it may be a delivery that was being written before the snapshot was asked for, written on.

        A name that is used again is no such one: what had it was complete, since it was published.
        """
        before = self._before(offered)
        return before is not None and before not in self.known

    def give(self, jobs: list[Job]) -> list[Job]:
        """Give ``snapshot_started`` to the backup that it is about: the youngest that was written after it.

        A later one would have started later, so the claim stays true for it as "not before". Returns what may be
        shipped.
        """
        started = self.request.snapshot_started
        if started is None:
            return jobs
        too_far_apart = self._too_far_apart(jobs, started)
        if "CLOCK_SKEW" not in self.request.accept:
            self.looked.refuse(job for job in jobs if job.key in too_far_apart)
            jobs = [job for job in jobs if job.key not in too_far_apart]
        fresh = [job for job in jobs if self.fresh(_offered(job))]
        if not fresh and not self.result.reasons:
            self.result.reasons.append(
                Reason(
                    "NO_NEW_BACKUP",
                    f"Nothing that was delivered is younger than the snapshot of {started} "
                    f"(waited {self.request.patience:g} s).",
                    "The backup job said that it started and delivered nothing: look at its log, and at the disk "
                    "and the credentials of the place it delivers to. A large cluster may need more patience.",
                )
            )
        new = [job for job in fresh if job.key not in self.known]
        if new:
            # The surest of them, and of those the youngest.
            surest = min(map(self._doubts, new))
            self._claim([job for job in new if self._doubts(job) == surest][-1], started, too_far_apart)
        return jobs

    def _claim(self, job: Job, started: str, too_far_apart: t.Container[str]) -> None:
        if self.doubtful(_offered(job)):
            self.result.notes.append(
                f"{job.unit.name} was there before the snapshot of {started} was asked for, and was never shipped as "
                "it was then. It may have been written on since, so it is not recorded when its snapshot started. Take "
                "another backup; ship what is there before."
            )
            return
        unsure = self._unsure(job)
        if unsure and "CLOCK_SKEW" not in self.request.accept:
            # An old delivery must not become golden; nor is that a reason to leave a new one there.
            self.result.notes.append(
                f"Nobody knows whether {job.unit.name} is younger than {started}, because {' and '.join(unsure)}: "
                "it is not recorded when its snapshot started. Give clock_skew of that source and "
                "snapshot_clock_skew; or accept CLOCK_SKEW, then that start counts as attested."
            )
            return
        job.snapshot_started = started
        job.snapshot_source = "attested" if unsure or job.key in too_far_apart else "observed"

    def _doubts(self, job: Job) -> tuple[bool, int]:
        return self.doubtful(_offered(job)), len(self._unsure(job))

    def _unsure(self, job: Job) -> list[str]:
        """Why nobody can tell what is younger at its source."""
        found = []
        if job.skew is None:
            found.append(f"the clock of {job.source.endpoint.label} was not read")
        if self.request.snapshot_skew is None:
            found.append("the clock of the member that told it was not read")
        if self._unseen(job.source):
            found.append(f"nobody could look at {job.source.label} before (there_before)")
        return found

    def _unseen(self, source: Source) -> bool:
        """Whether somebody was to look at a source before the snapshot was asked for, and could not."""
        before = self.request.there_before
        return before is not None and (source.endpoint.place, source.path) not in before

    def _before(self, offered: Offered) -> str | None:
        """Identity of what had this name before the snapshot was asked for; None: nothing that is known of."""
        place = offered.source.endpoint.place
        for (at, _path), names in (self.request.there_before or {}).items():
            if at == place and offered.unit.name in names:
                return names[offered.unit.name]
        return None

    def _lay_there(self, offered: Offered) -> bool:
        """Whether it, or one of its files, lay there before the snapshot was asked for."""
        before = self._before(offered)
        known = self.known.get(before or "")
        then = {(file.path, file.size, file.mtime) for file in known.files} if known else set()
        now = {(item.path, item.attributes.size, item.attributes.mtime) for item in offered.unit.items}
        return before == offered.key or bool(then & now)

    def _too_far_apart(self, jobs: list[Job], started: str) -> set[str]:
        """New backups of clocks too far apart to be compared, which is told."""
        told_by = self.request.snapshot_skew
        ahead = utc_seconds(started) - time.time()
        apart = {"the cluster": round(ahead)} if ahead > MAX_SKEW else {}
        if told_by is not None and abs(told_by) > MAX_SKEW:
            apart = {"the cluster": told_by}
        found = {job.key for job in jobs if apart and job.key not in self.known}
        for job in jobs:
            if job.key not in self.known and abs(job.skew or 0) > MAX_SKEW:
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
        (self.result.accepted if "CLOCK_SKEW" in self.request.accept else self.result.reasons).extend(reasons)
        return found


def _offered(job: Job) -> Offered:
    return Offered(job.unit, job.source, job.skew)
