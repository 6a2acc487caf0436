# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How many connections, when to connect again, when to give up."""

from __future__ import annotations

from typing import Callable

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._policy import (
    ATTEMPTS,
    NEAR,
    STAGGER,
    Failures,
    Growth,
    first_workers,
    pause,
    slow,
    starved,
)

GIBI = 1 << 30


def play(growth: Growth, rate: Callable[[int], float], round_trip: float, seconds: float = 60.0) -> list[int]:
    """A transfer whose throughput (bytes a second) depends on the connections; how many there were, one after another.

    A new connection needs ten round trips until it is up.
    """
    now = moved = 0.0
    history = [growth.workers]
    up_at: float | None = 10 * round_trip
    while now < seconds:
        now += 0.05
        if up_at is not None and now >= up_at:
            growth.connected(now, round_trip)
            up_at = None
        moved += rate(history[-1]) * 0.05
        wanted = growth.wanted(now, int(moved), 100 * GIBI)
        if wanted != history[-1]:
            history.append(wanted)
            up_at = now + 10 * round_trip
    return history


def test_a_far_host_gets_more_connections_while_each_adds_its_share() -> None:
    assert play(Growth(8, 2, 2), lambda count: count * 25e6, 0.08) == [2, 3, 4, 6, 8]


def test_connections_that_add_nothing_are_taken_back() -> None:
    assert play(Growth(8, 2, 2), lambda count: 24e6, 0.08) == [2, 3, 2]
    assert play(Growth(8, 3, 2), lambda count: min(count * 40e6, 118e6), 0.02) == [3, 4, 3]
    assert play(Growth(8, 2, 2), lambda count: min(count * 25e6, 75e6), 0.08) == [2, 3, 4, 3]
    assert play(Growth(8, 2, 2), lambda count: min(count * 20e6, 120e6), 0.08) == [2, 3, 4, 6, 8, 6], "the last as well"
    assert play(Growth(8, 6, 2), lambda count: 100e6 - count * 1e6, 0.08) == [6, 8, 6], "nor do they do harm"


def test_what_was_taken_back_is_not_tried_again() -> None:
    assert play(Growth(8, 2, 2), lambda count: 24e6, 0.08, seconds=3600.0) == [2, 3, 2]


def test_a_near_host_gets_no_more_than_there_are_processors() -> None:
    assert play(Growth(8, 2, 2), lambda count: count * 200e6, 0.0005) == [2]
    assert play(Growth(8, 2, 4), lambda count: count * 200e6, 0.0005) == [2, 3, 4]


@pytest.mark.parametrize("limit", range(1, 9))
def test_never_more_than_allowed(limit: int) -> None:
    growth = Growth(limit, first_workers(limit, GIBI, 0.08), 64)
    assert max(play(growth, lambda count: count * 25e6, 0.08)) == limit


def test_no_growth_before_anything_is_known() -> None:
    growth = Growth(8, 2, 2)
    assert growth.wanted(1e9, 1 << 40, GIBI) == 2, "nothing is connected yet"
    growth.connected(0.0, 0.08)
    assert growth.wanted(100.0, 0, GIBI) == 2
    assert growth.wanted(200.0, 0, GIBI) == 2, "nothing moved"


def test_no_growth_for_the_last_bytes() -> None:
    growth = Growth(8, 2, 2)
    growth.connected(0.0, 0.08)
    growth.wanted(10.0, 0, 1 << 20)
    assert growth.wanted(20.0, GIBI, 1 << 20) == 2
    assert growth.wanted(21.0, 2 * GIBI, GIBI) == 3


def test_growth_ends_when_a_connection_is_refused_or_lost() -> None:
    for event in (lambda growth: growth.refused(), lambda growth: growth.lost(1)):
        growth = Growth(8, 2, 2)
        event(growth)
        assert max(play(growth, lambda count: count * 25e6, 0.08)) <= 2


@pytest.mark.parametrize(
    ("limit", "size", "near", "far"),
    [(8, 0, 1, 1), (8, 5 << 20, 1, 1), (8, 9 << 20, 2, 2), (8, GIBI, 2, 8), (3, GIBI, 2, 3), (1, GIBI, 1, 1)],
)
def test_a_small_transfer_takes_one_connection_and_a_far_one_more_than_a_near_one(
    limit: int, size: int, near: int, far: int
) -> None:
    assert first_workers(limit, size, 0.0) == first_workers(limit, size, NEAR) == near
    assert first_workers(limit, size, 0.08) == first_workers(limit, size, 0.8) == far


def test_a_transfer_begins_with_as_many_connections_as_the_distance_needs() -> None:
    assert [first_workers(8, GIBI, milliseconds / 1000) for milliseconds in (1, 10, 20, 40, 60, 80)] == [
        2,
        2,
        3,
        5,
        8,
        8,
    ]


@pytest.mark.parametrize(("rate_limit", "expected"), [(1e6, 2), (50e6, 2), (100e6, 4), (1e9, 8)])
def test_what_a_limit_to_the_bandwidth_allows_needs_no_more(rate_limit: float, expected: int) -> None:
    assert first_workers(8, GIBI, 0.08, rate_limit) == expected


def test_connects_never_meet_the_default_of_maxstartups() -> None:
    # Ten may be under way; a handshake at a round trip of 100 ms takes one second.
    assert 1.0 / STAGGER <= 10
    assert first_workers(64, GIBI, 0.3) < 10


def test_pauses_grow_and_differ_and_end_at_half_a_minute() -> None:
    least = [pause(count, 0.0) for count in range(1, 20)]
    most = [pause(count, 1.0) for count in range(1, 20)]
    assert least == sorted(least) and most[-1] == 30.0 and most[0] <= 0.2
    assert all(low < high for low, high in zip(least, most))


def test_failures_in_a_row_end_and_progress_begins_anew() -> None:
    failures = Failures()
    assert [failures.failed(1) for _index in range(ATTEMPTS)] == [*range(1, ATTEMPTS), None]
    failures.progress(1)
    assert failures.failed(1) == 1 and failures.failed(2) == 1


def test_who_says_nothing_is_starved() -> None:
    assert starved({1: 0.0, 2: 95.0}, 100.0, 10.0) == [1]


@pytest.mark.parametrize(
    ("age", "left", "holder_rate", "need", "expected"),
    [
        # The holder needs 2 s, the idle worker 0.1 s: patience is 1.3 s.
        (1.2, 2_000_000, 1e6, 0.1, False),
        (1.4, 2_000_000, 1e6, 0.1, True),
        # Old, but the queue that it waits in moves.
        (9.0, 1_200_000, 1e6, 0.1, False),
        # The idle worker would need as long.
        (9.0, 2_000_000, 1e6, 2.0, False),
        # Stands still, or nobody has measured it yet.
        (9.0, 1, 0.0, 0.1, True),
        (0.5, 1, 0.0, 0.1, False),
    ],
)
def test_a_range_is_slow_against_what_the_idle_worker_would_need(
    age: float, left: int, holder_rate: float, need: float, expected: bool
) -> None:
    assert slow(age, left, holder_rate, need) is expected
