# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A link is claimed only if its round trip, its rate and its losses are what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from shipbench.calibration import Measured, checks, difference, emulator_off, off
from shipbench.links import LINKS, MBIT

LAN, FAST, LOSSY = LINKS["lan"], LINKS["1g-80ms"], LINKS["1g-80ms-loss"]
GOOD = Measured(rtt=0.0804, rate=991 * MBIT, sent=60_000, lost=0)
GOOD_LOSSY = replace(GOOD, lost=30)


def test_the_links_are_those_of_the_issue() -> None:
    assert {link.name: (link.rate, link.rtt, link.loss) for link in LINKS.values()} == {
        "lan": (0, 0.0, 0.0),
        "1g-20ms": (1000 * MBIT, 0.02, 0.0),
        "1g-80ms": (1000 * MBIT, 0.08, 0.0),
        "1g-80ms-loss": (1000 * MBIT, 0.08, 0.0005),
        "200m-80ms": (200 * MBIT, 0.08, 0.0),
    }


@pytest.mark.parametrize(("link", "measured"), [(FAST, GOOD), (LOSSY, GOOD_LOSSY), (LAN, replace(GOOD, rtt=3e-5))])
def test_a_good_link(link, measured) -> None:
    assert off(link, measured) == []


@pytest.mark.parametrize(
    ("link", "measured", "name"),
    [
        (FAST, replace(GOOD, rtt=0.0799), "rtt"),
        (FAST, replace(GOOD, rtt=0.0835), "rtt"),
        (FAST, replace(GOOD, rate=960 * MBIT), "rate"),
        (FAST, replace(GOOD, rate=1031 * MBIT), "rate"),
        (FAST, replace(GOOD, lost=1), "lost"),
        (LOSSY, replace(GOOD, lost=0), "lost"),
        (LOSSY, replace(GOOD, lost=52), "lost"),
        (LAN, replace(GOOD, rtt=0.002), "rtt"),
    ],
)
def test_a_link_that_is_off_says_what_is_off(link, measured, name) -> None:
    (reason,) = off(link, measured)
    assert reason.startswith(name)


def test_a_bare_pair_promises_no_rate() -> None:
    assert [check.name for check in checks(LAN, replace(GOOD, rate=0.0))] == ["rtt_seconds", "lost_packets"]


def test_a_check_can_be_written_down() -> None:
    assert checks(FAST, GOOD)[0].as_dict() == {
        "name": "rtt_seconds",
        "value": 0.0804,
        "low": 0.08,
        "high": pytest.approx(0.0834),
        "ok": True,
    }


def counted(**values: int) -> dict[str, dict[str, int]]:
    zero = dict.fromkeys(
        ("offered_segments", "overflowed", "delivered_segments", "lost", "late_5ms", "worst_late_us"), 0
    )
    return {"a_to_b": {**zero, **values}}


def test_an_emulator_that_was_late_is_told_of() -> None:
    assert emulator_off(FAST, counted(delivered_segments=10_000, late_5ms=100)) == []
    assert emulator_off(FAST, counted(delivered_segments=10_000, late_5ms=101)) == [
        "a_to_b: 101 of 10000 segments were more than 5 ms late"
    ]


def test_few_late_segments_of_few_say_nothing() -> None:
    assert emulator_off(FAST, counted(delivered_segments=40, late_5ms=10)) == []


def test_an_emulator_that_lost_more_than_promised_is_told_of() -> None:
    assert emulator_off(LOSSY, counted(offered_segments=800_000, lost=400)) == []
    assert emulator_off(LOSSY, counted(offered_segments=800_000, lost=500)) != []
    assert emulator_off(FAST, counted(offered_segments=800_000, lost=1)) != []


def test_a_full_queue_is_no_loss_of_the_link() -> None:
    assert emulator_off(FAST, counted(offered_segments=1000, overflowed=400, delivered_segments=600)) == []


def test_without_an_emulator_nothing_is_said() -> None:
    assert emulator_off(LAN, {}) == []


def test_difference_of_counters() -> None:
    early, late = counted(lost=2, worst_late_us=70), counted(lost=5, worst_late_us=90)
    assert difference(late, early)["a_to_b"]["lost"] == 3
    assert difference(late, early)["a_to_b"]["worst_late_us"] == 90
    assert difference({}, {}) == {}


def test_the_time_limit_grows_with_the_file() -> None:
    assert FAST.time_limit(1 << 30) == pytest.approx(30 + FAST.limit)
    assert FAST.time_limit(1 << 29) < FAST.time_limit(1 << 30)


def test_a_queue_holds_what_is_under_way() -> None:
    """netem's limit counts packets that wait for their delay as well: one less would lose more than the link says."""
    assert FAST.queue_packets() >= (0.080 + 0.040) * 1e9 / 8 / 1500
