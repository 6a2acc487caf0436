# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is younger than what, where every clock may be wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.clocks import (
    MAX_SKEW,
    not_come_yet,
    written_since,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import utc_seconds, utc_text

STARTED = "2026-11-27T12:00:00Z"
START = int(utc_seconds(STARTED))


@pytest.mark.parametrize(
    ("oldest", "skew", "told_by", "expected"),
    [
        (0, 0, 0, True),
        (-1, 0, 0, False),
        # The start is told in whole seconds, a file's time is finer.
        (0.25, 0, 0, True),
        (-0.25, 0, 0, False),
        # The clock of the source is ahead: what it wrote is older than it looks.
        (59, 60, 0, False),
        (60, 60, 0, True),
        # Behind: younger than it looks.
        (-60, -60, 0, True),
        (-61, -60, 0, False),
        # Both are equally wrong.
        (0, 3600, 3600, True),
        (-1, 3600, 3600, False),
        (0, -3600, -3600, True),
        # The clock that told the start is the wrong one.
        (-60, 0, 60, True),
        (59, 0, -60, False),
        (60, 0, -60, True),
        # So little is none.
        (0, 2, 0, True),
        (-1, -2, 0, False),
        (-1, 0, 2, False),
        # Nobody measured the one that told the start: what is ahead counts, what is behind does not.
        (59, 60, None, False),
        (60, 60, None, True),
        (-1, -60, None, False),
        (0, -60, None, True),
        # Nothing is known of the source.
        (0, None, 60, True),
        (-1, None, 60, False),
        (-1, None, None, False),
    ],
)
def test_what_is_younger_than_the_start(oldest: float, skew: int | None, told_by: int | None, expected: bool) -> None:
    assert written_since(START + oldest, skew, STARTED, told_by) is expected


@given(st.integers(-10_000, 10_000), st.integers(-10_000, 10_000), st.integers(-10_000, 10_000))
def test_two_measured_clocks_tell_the_truth_to_two_seconds(after: int, skew: int, told_by: int) -> None:
    """Only how far they are apart counts, and never which of them is right."""
    written, started = START + after + skew, utc_text(START + told_by)
    fresh = written_since(written, skew, started, told_by)
    assert fresh == (after >= 0) or (abs(skew - told_by) <= 2 and abs(after) <= 2)


@given(st.integers(-10_000, 10_000), st.integers(-10_000, 10_000))
def test_an_old_delivery_is_not_new_where_the_start_was_told_by_a_clock_that_is_right(after: int, skew: int) -> None:
    if written_since(START + after + skew, skew, STARTED, None):
        assert after >= -2


@pytest.mark.parametrize(
    ("newest", "skew", "expected"),
    [
        (0, 0, False),
        # Measured: to ten seconds.
        (10, 0, False),
        (11, 0, True),
        (70, 60, False),
        (71, 60, True),
        # The host's clock is behind: what it wrote itself lies in our past.
        (-50, -60, False),
        (-49, -60, True),
        # Nobody knows the clock.
        (MAX_SKEW, None, False),
        (MAX_SKEW + 1, None, True),
    ],
)
def test_a_time_that_has_not_come_says_nothing(newest: float, skew: int | None, expected: bool) -> None:
    assert not_come_yet(START + newest, skew, START) is expected
