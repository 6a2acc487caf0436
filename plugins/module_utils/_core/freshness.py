# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Is the newest backup as new, and about as large, as it must be? Pure: the time now is an argument."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Sequence

from .clocks import MAX_SKEW
from .cron import Schedule
from .manifest import Manifest
from .strict import Problem, utc_seconds, utc_text

#: Every schedule that ever fires does so within eight years (29 February, around a century).
_DAYS = 8 * 366


def last_due(schedule: Schedule, now: float, grace: float) -> float | None:
    """The last firing of a schedule (UTC) that ended its ``grace`` (s) before ``now``; None if none ever did."""
    limit = datetime.fromtimestamp(now - grace, tz=timezone.utc)
    day = limit.replace(hour=0, minute=0, second=0, microsecond=0)
    for _earlier in range(_DAYS):
        if schedule.fires_on(day):
            fired = [
                day + timedelta(hours=hour, minutes=minute) for hour in schedule.hours for minute in schedule.minutes
            ]
            past = [moment for moment in fired if moment <= limit]
            if past:
                return max(past).timestamp()
        day -= timedelta(days=1)
    return None


def taken(manifest: Manifest) -> float:
    """When the backup was taken: the start of its snapshot; else when it was last written to, or published if that was
    before (s). A copy under a fresh name is not fresh."""
    if manifest.snapshot_started is not None:
        return utc_seconds(manifest.snapshot_started)
    return min(utc_seconds(manifest.published_at), float(max(entry.mtime for entry in manifest.files)))


def problems(
    published: Sequence[Manifest],
    *,
    now: float,
    max_age: float | None = None,
    schedule: Schedule | None = None,
    grace: float = 0.0,
    min_ratio: float = 0.0,
) -> list[Problem]:
    """What is wrong with the newest of ``published`` (by sequence, oldest first): NO_BACKUP, STALE, LATE, CLOCK_SKEW,
    SHRUNK."""
    if not published:
        return [Problem("NO_BACKUP", "there is no published backup")]
    last = published[-1]
    found = []
    age = now - utc_seconds(last.published_at)
    if max_age is not None and age > max_age:
        message = f"the newest backup {last.id} was published {age:.0f} s ago; {max_age:.0f} s are allowed"
        found.append(Problem("STALE", message))
    if age < -MAX_SKEW:
        message = f"the newest backup {last.id} was published in the future: {last.published_at}, it is {utc_text(now)}"
        found.append(Problem("CLOCK_SKEW", message))
    due = last_due(schedule, now, grace) if schedule is not None else None
    if due is not None and taken(last) < due - MAX_SKEW:
        message = (
            f"a backup was due {utc_text(due)} and should have been here {grace:.0f} s later; the newest, {last.id}, "
            f"was taken {utc_text(taken(last))}"
        )
        found.append(Problem("LATE", message))
    if len(published) > 1 and last.bytes < published[-2].bytes * min_ratio:
        message = (
            f"the newest backup {last.id} has {last.bytes} bytes, the one before {published[-2].bytes}: less than "
            f"{min_ratio:g} of it"
        )
        found.append(Problem("SHRUNK", message))
    return found
