# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a backup of the stand-in is due."""

from __future__ import annotations

import datetime as dt

import pytest
from standin import backup, cron

UTC = dt.timezone.utc


@pytest.mark.parametrize(
    ("schedule", "moment", "fires"),
    [
        ("10 * * * *", (2026, 1, 2, 3, 10), True),
        ("10 * * * *", (2026, 1, 2, 3, 11), False),
        ("*/15 * * * *", (2026, 1, 2, 3, 45), True),
        ("*/15 * * * *", (2026, 1, 2, 3, 46), False),
        ("5/20 * * * *", (2026, 1, 2, 3, 45), True),
        ("5/20 * * * *", (2026, 1, 2, 3, 0), False),
        ("0 8-17 * * mon-fri", (2026, 1, 2, 17, 0), True),
        ("0 8-17 * * mon-fri", (2026, 1, 3, 17, 0), False),
        ("0 0 * * 7", (2026, 1, 4, 0, 0), True),
        ("0 0 * * 0", (2026, 1, 4, 0, 0), True),
        ("0 0 13 * fri", (2026, 1, 2, 0, 0), True),
        ("0 0 13 * fri", (2026, 1, 13, 0, 0), True),
        ("0 0 13 * fri", (2026, 1, 14, 0, 0), False),
        ("0 0 1,15 feb *", (2026, 2, 15, 0, 0), True),
        ("0 0 1,15 feb *", (2026, 3, 15, 0, 0), False),
    ],
)
def test_fires(schedule: str, moment: tuple[int, ...], fires: bool) -> None:
    assert cron.parse(schedule).fires(dt.datetime(*moment, tzinfo=UTC)) is fires


def test_cron_is_utc_wherever_the_clock_is_read() -> None:
    elsewhere = dt.timezone(dt.timedelta(hours=5, minutes=30))
    moment = dt.datetime(2026, 1, 2, 8, 40, tzinfo=elsewhere)
    assert cron.parse("10 3 * * *").fires(moment)
    assert not cron.parse("40 8 * * *").fires(moment)


@pytest.mark.parametrize(
    "wrong", ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "5-1 * * * *", "*/0 * * * *",
              "a * * * *", "-1 * * * *", "* * * 13 *", "1,,2 * * * *", "@daily"]
)  # fmt: skip
def test_wrong_schedules_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"cron schedule|is no "):
        cron.parse(wrong)


def test_both_sections_have_their_own_schedule() -> None:
    document = backup.parse_config("backup: {cron_schedule: '10 * * * *'}\nauditBackup: {cron_schedule: '0 * * * *'}\n")
    assert backup.due(document, dt.datetime(2026, 1, 2, 3, 10, 59, tzinfo=UTC)) == ["backup"]
    assert backup.due(document, dt.datetime(2026, 1, 2, 3, 0, tzinfo=UTC)) == ["auditBackup"]
    assert backup.due({}, dt.datetime(2026, 1, 2, 3, 0, tzinfo=UTC)) == []
