# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How far a transfer is, for people."""

from __future__ import annotations

import io

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._progress import (
    Bar,
    Lines,
    Speed,
    describe,
    for_stream,
    left,
    size,
)

GIBI = 1 << 30


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1024, "1.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (GIBI, "1.0 GiB"),
        (5000 * GIBI, "5000.0 GiB"),
    ],
)
def test_sizes(count: int, expected: str) -> None:
    assert size(count) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(3, "3 s"), (89, "89 s"), (120, "2 min"), (5400, "1.5 h")])
def test_times(seconds: float, expected: str) -> None:
    assert left(seconds) == expected


def test_a_line_says_everything_that_is_known_and_nothing_else() -> None:
    assert describe(GIBI // 4, GIBI, 2, 64 << 20) == (
        "256.0 MiB of 1.0 GiB (25 %), 64.0 MiB/s over 2 connections, about 12 s left"
    )
    assert describe(0, GIBI, 1, 0.0) == "0 B of 1.0 GiB (0 %), over 1 connection"
    assert describe(GIBI // 2, GIBI, 0, 0.0) == "512.0 MiB of 1.0 GiB (50 %)"
    assert describe(GIBI, GIBI, 2, 1.0) == "1.0 GiB of 1.0 GiB (100 %)"
    assert describe(0, 0, 0, 0.0) == "0 B of 0 B (0 %)"


def test_speed_follows_and_forgets() -> None:
    speed = Speed()
    assert speed.seen(0.0, 0) == 0.0
    assert speed.seen(1.0, 100) == 100.0
    assert speed.seen(1.0, 100) == 100.0, "no time has passed"
    assert speed.seen(11.0, 100) == 50.0
    assert speed.seen(60.0, 100) < 5.0
    assert speed.seen(61.0, 0) < 5.0, "a new file begins at nothing"


def test_a_line_every_ten_seconds_and_one_at_the_end() -> None:
    now = 0.0
    said: list[str] = []
    lines = Lines("b.tar.gz", said.append, lambda: now)
    for second in range(25):
        now = float(second)
        lines(second * 1000, 25_000, 2)
    lines(25_000, 25_000, 2)
    assert [line.split(" of ")[0] for line in said] == [
        "b.tar.gz: 0 B",
        "b.tar.gz: 9.8 KiB",
        "b.tar.gz: 19.5 KiB",
        "b.tar.gz: 24.4 KiB",
    ]
    assert "about 15 s left" in said[1] or "about 16 s left" in said[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_lines_anywhere_else() -> None:
    assert isinstance(for_stream("x", Terminal()), Bar)
    plain = io.StringIO()
    progress = for_stream("x", plain)
    progress(0, 10, 1)
    progress(10, 10, 1)
    assert plain.getvalue().count("\n") == 2 and "\r" not in plain.getvalue()


def test_a_bar_is_drawn_over_and_over_and_ends_with_a_new_line() -> None:
    now = 0.0
    terminal = Terminal()
    bar = Bar("b", terminal, lambda: now)
    for tick in range(11):
        now = tick / 10
        bar(tick * 10, 100, 1)
    drawn = terminal.getvalue().split("\r")[1:]
    assert 4 <= len(drawn) <= 7, "a bar is not drawn at every range"
    assert drawn[-1].startswith("b [" + "#" * 24 + "]") and drawn[-1].endswith("\n")
    assert all(len(later.rstrip("\n")) >= len(line.rstrip()) for line, later in zip(drawn, drawn[1:]))
