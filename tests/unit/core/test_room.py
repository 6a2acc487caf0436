# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which backups come where there is not room for all, and what is remembered of the others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import ledger
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.room import fitting, with_headroom


@pytest.mark.parametrize(
    ("newest_first", "room", "inodes", "headroom", "expected"),
    [
        ([], 0, 0, 0.1, 0),
        ([(100, 1)], 110, 1, 0.1, 1),
        ([(100, 1)], 109, 1, 0.1, 0),
        ([(100, 2)], 1000, 1, 0.1, 0),
        ([(100, 1), (100, 1), (100, 1)], 220, 9, 0.1, 2),
        ([(500, 1), (10, 1)], 100, 9, 0.0, 0),
        ([(10, 1), (500, 1), (10, 1)], 100, 9, 0.0, 1),
        ([(0, 0)], 0, 0, 0.1, 1),
    ],
)
def test_the_newest_come_as_far_as_there_is_room(
    newest_first: list[tuple[int, int]], room: int, inodes: int, headroom: float, expected: int
) -> None:
    assert fitting(newest_first, room, inodes, headroom) == expected


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5))), st.integers(0, 200), st.integers(0, 20))
def test_what_fits_fits_and_one_more_does_not(sizes: list[tuple[int, int]], room: int, inodes: int) -> None:
    count = fitting(sizes, room, inodes, 0.1)
    for some in (count, count + 1):
        bytes_, files = (sum(column) for column in zip(*sizes[:some])) if sizes[:some] else (0, 0)
        fits = with_headroom(bytes_, 0.1) <= room and files <= inodes
        assert fits == (some == count) or some > len(sizes)


def events(*said: tuple[str, str, dict[str, object]]) -> list[ledger.Event]:
    made: list[ledger.Event] = []
    for kind, subject, data in said:
        head = made[-1] if made else None
        made.append(ledger.make(head, time="2026-11-26T00:00:00Z", run_id="r", kind=kind, subject=subject, data=data))
    return made


LEFT = ("no_room", "old", {"bytes": 5, "newer": ["new", "newer"]})
WAITS = ("no_room", "newest", {"bytes": 70, "newer": []})
CAME = ("shipped", "00000001-20261126T000000Z", {})


def test_what_was_left_for_something_newer_stays_away_once_that_came() -> None:
    assert ledger.passed_over(events(LEFT, WAITS), {"newer"}) == {"old"}
    assert ledger.passed_over(events(LEFT, WAITS), {"old", "newest"}) == set()


@pytest.mark.parametrize(
    ("said", "bytes_"),
    [
        ([], 0),
        ([WAITS], 70),
        ([WAITS, LEFT], 70),
        ([WAITS, CAME], 0),
        ([CAME, WAITS], 70),
        ([LEFT], 0),
        ([WAITS, ("no_room", "newest", {"bytes": 90, "newer": []})], 90),
    ],
)
def test_room_is_wanted_until_something_came(said: list[tuple[str, str, dict[str, object]]], bytes_: int) -> None:
    assert ledger.wanted_room(events(*said)) == (bytes_, 0)


def test_inodes_are_wanted_too() -> None:
    waits = ("no_room", "newest", {"bytes": 70, "files": 3, "newer": []})
    assert ledger.wanted_room(events(waits)) == (70, 3)
