# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Cron schedules of ``config.yaml``: five fields, evaluated in UTC [doc: Backup for Audit Log].

The dialect is that of Kubernetes (robfig/cron): names of months and days, ``*``, ``?``, ranges, steps, lists, and a day
that matches when either day field does, unless one of them is a star [inferred: the jobs are Kubernetes cron jobs].

PRIVATE to the collection.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import NamedTuple

_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")),
    ("day of week", 0, 6, ("sun", "mon", "tue", "wed", "thu", "fri", "sat")),
)


class CronError(ValueError):
    """Not a schedule; the text says which field and why."""


class Schedule(NamedTuple):
    """The allowed values of each field; the stars say whether a day field was left open."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool
    any_weekday: bool

    def fires_on(self, moment: datetime) -> bool:
        """Whether the day of ``moment`` (UTC) is one of the schedule's."""
        if moment.month not in self.months:
            return False
        day = moment.day in self.days
        weekday = (moment.weekday() + 1) % 7 in self.weekdays
        return (day and weekday) if self.any_day or self.any_weekday else (day or weekday)

    def next_after(self, moment: datetime) -> datetime:
        """The first firing strictly after ``moment``; both in UTC. :class:`CronError` when there is none in 8 years
        (30 February)."""
        candidate = (moment.astimezone(timezone.utc) + timedelta(minutes=1)).replace(second=0, microsecond=0)
        limit = candidate + timedelta(days=8 * 366)
        while candidate < limit:
            if not self.fires_on(candidate):
                candidate = (candidate + timedelta(days=1)).replace(hour=0, minute=0)
            elif candidate.hour not in self.hours:
                candidate = (candidate + timedelta(hours=1)).replace(minute=0)
            elif candidate.minute not in self.minutes:
                candidate += timedelta(minutes=1)
            else:
                return candidate
        raise CronError("this schedule never fires")


def parse(text: str) -> Schedule:
    """Reads a schedule. Raises :class:`CronError` naming the field."""
    words = text.split()
    if len(words) != 5:
        raise CronError(
            f"a schedule has five fields in UTC (minute hour day-of-month month day-of-week), this one has {len(words)}"
        )
    fields = [_field(word, *limits) for word, limits in zip(words, _FIELDS)]
    schedule = Schedule(
        fields[0],
        fields[1],
        fields[2],
        fields[3],
        fields[4],
        _open(words[2]),
        _open(words[4]),
    )
    schedule.next_after(datetime(2024, 1, 1, tzinfo=timezone.utc))
    return schedule


def _open(word: str) -> bool:
    return any(part in ("*", "?") for part in word.split(","))


def _field(word: str, name: str, low: int, high: int, names: tuple[str, ...]) -> frozenset[int]:
    values: list[int] = []
    for part in word.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(step_text, name, 1, high, ()) if slash else 1
        if span in ("*", "?"):
            first, last = low, high
        else:
            begin, dash, end = span.partition("-")
            first = _number(begin, name, low, high, names)
            last = _number(end, name, low, high, names) if dash else (high if slash else first)
            if last < first:
                raise CronError(f"{name}: the range {span} runs backwards")
        values.extend(range(first, last + 1, step))
    return frozenset(values)


def _number(text: str, name: str, low: int, high: int, names: tuple[str, ...]) -> int:
    if text.lower() in names:
        return names.index(text.lower()) + low
    if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
        raise CronError(f"{name}: {text!r} is not a number from {low} to {high}")
    return int(text)
