# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Schedules: five fields in UTC, in the dialect of Kubernetes cron jobs."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.cron import CronError, parse


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("schedule", "moment", "following"),
    [
        ("10 * * * *", "2026-11-22 00:09:59", "2026-11-22 00:10"),
        ("10 * * * *", "2026-11-22 00:10:00", "2026-11-22 01:10"),
        ("*/15 0-2 * * *", "2026-11-22 02:45:00", "2026-11-23 00:00"),
        ("0 0 29 2 *", "2026-11-22 00:00:00", "2028-02-29 00:00"),
        ("30 4 1,15 * 5", "2026-11-22 00:00:00", "2026-11-27 04:30"),
        ("30 4 15 * *", "2026-11-22 00:00:00", "2026-12-15 04:30"),
        ("0 12 * jan mon-fri", "2026-11-22 00:00:00", "2027-01-01 12:00"),
        ("0 12 */2 * mon", "2026-11-22 00:00:00", "2026-11-23 12:00"),
        ("5/20 * * * ?", "2026-11-22 00:26:00", "2026-11-22 00:45"),
        ("59 23 31 12 *", "2026-12-31 23:59:00", "2027-12-31 23:59"),
    ],
)
def test_next_firing(schedule: str, moment: str, following: str) -> None:
    assert parse(schedule).next_after(at(moment)) == at(following)


@pytest.mark.parametrize(
    ("schedule", "word"),
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("@hourly", "five fields"),
        ("60 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * * 7", "day of week"),
        ("* * * * monday", "day of week"),
        ("*/0 * * * *", "minute"),
        ("5-1 * * * *", "backwards"),
        ("1,,2 * * * *", "minute"),
        ("-5 * * * *", "minute"),
        ("\u0661 * * * *", "minute"),
        ("0 0 30 2 *", "never fires"),
    ],
)
def test_wrong_schedules_name_their_field(schedule: str, word: str) -> None:
    with pytest.raises(CronError, match=word):
        parse(schedule)
