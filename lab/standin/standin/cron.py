# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Five-field cron schedules, evaluated in UTC as the product does [doc: audit log backup article]."""

from __future__ import annotations

import datetime as dt
from typing import NamedTuple

_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_NAMES = {
    "month": {name: number for number, name in enumerate(_MONTHS, 1)},
    "weekday": {name: number for number, name in enumerate(_WEEKDAYS)},
}


class Schedule(NamedTuple):
    """The values that each field allows; ``day_any`` and ``weekday_any`` tell which of the two was a star."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    day_any: bool
    weekday_any: bool

    def fires(self, moment: dt.datetime) -> bool:
        """Tell whether the schedule fires in the minute of ``moment`` (aware, any zone)."""
        utc = moment.astimezone(dt.timezone.utc)
        if utc.minute not in self.minutes or utc.hour not in self.hours or utc.month not in self.months:
            return False
        day = utc.day in self.days
        weekday = utc.isoweekday() % 7 in self.weekdays
        # Two restricted day fields mean either of them, as in every cron since Vixie's.
        return day and weekday if self.day_any or self.weekday_any else day or weekday


def _number(word: str, name: str) -> int:
    names = _NAMES.get(name, {})
    if word.lower() in names:
        return names[word.lower()]
    if not word.isdigit():
        raise ValueError(f"{word!r} is no {name}")
    return int(word)


def _field(text: str, name: str, low: int, high: int) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        step = _number(step_text, "step") if slash else 1
        if span == "*":
            first, last = low, high
        else:
            start, dash, end = span.partition("-")
            first = _number(start, name)
            last = _number(end, name) if dash else high if slash else first
        if step < 1 or not low <= first <= last <= high:
            raise ValueError(f"{part!r} is no {name}")
        values.update(range(first, last + 1, step))
    return frozenset(value % 7 for value in values) if name == "weekday" else frozenset(values)


def parse(text: str) -> Schedule:
    """Return the schedule of a ``cron_schedule``; raises ValueError that names what is wrong."""
    words = text.split()
    if len(words) != len(_FIELDS):
        raise ValueError(f"a cron schedule has five fields, {text!r} has {len(words)}")
    minutes, hours, days, months, weekdays = (_field(word, *field) for word, field in zip(words, _FIELDS))
    return Schedule(minutes, hours, days, months, weekdays, words[2].startswith("*"), words[4].startswith("*"))
