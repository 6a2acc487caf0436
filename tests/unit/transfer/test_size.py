# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a transfer has to remember does not grow with what is transferred: 100 GiB on paper, no file, no connection."""

from __future__ import annotations

import hashlib
import io
import random
import tracemalloc
from contextlib import contextmanager
from typing import Callable, Iterator

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ranges import (
    MEBI,
    Piece,
    Plan,
    Range,
    journal_line,
    range_length,
    read_journal,
    wants_more,
)

WORKERS = 8
GIBI = 1 << 30
PATH = "2026-11-21T01-00-00/backup.tar.gz"
SHA = hashlib.sha256(b"").hexdigest()
#: A connection so fast that its ranges are the longest, and one so slow that they are the shortest (bytes a second).
FAST, SLOW = 0.0, 1.0 * MEBI
#: Bytes of memory that a plan takes, whatever it is for; like those below about twice what was measured.
PLAN = 96 << 10
#: Bytes for each range that had landed: its lines in the journal, and what it takes to read them when a run resumes.
LINES, READING = 500, 270


@contextmanager
def measured() -> Iterator[Callable[[], int]]:
    """Gives the most bytes that were in use at a time since then."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        yield lambda: tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def transfer(plan: Plan, rate: float, journal: Callable[[bytes], object], until: int) -> int:
    """Workers that are not all equally fast take, journal and land ranges until so many bytes landed; how many did."""
    chance = random.Random(1)
    held: list[list[Range]] = [[] for _worker in range(WORKERS)]
    count = 0
    while plan.landed_bytes < until:
        for worker, mine in enumerate(held):
            while wants_more(len(mine), sum(item.length for item in mine), rate):
                item = plan.take_check(worker) or plan.take(worker, range_length(plan.open_bytes, WORKERS, rate))
                if item is None:
                    break
                if not item.sha256:
                    journal(journal_line(PATH, Piece(item.offset, item.length)))
                mine.append(item)
        item = chance.choice([mine for mine in held if mine]).pop(0)
        assert plan.landed(item.number)
        count += 1
        if not item.sha256:
            journal(journal_line(PATH, Piece(item.offset, item.length, SHA)))
        # As the hash of the whole does, which follows closely.
        plan.frontier(0)
    return count


@pytest.mark.parametrize(("size", "rate"), [(GIBI, FAST), (100 * GIBI, FAST), (4 * GIBI, SLOW)])
def test_a_plan_is_as_small_for_100_gib_as_for_one(size: int, rate: float) -> None:
    text = 0

    def journal(line: bytes) -> None:
        nonlocal text
        text += len(line)

    with measured() as most:
        plan = Plan([size])
        count = transfer(plan, rate, journal, size)
        peak = most()
    assert plan.done and plan.frontier(0) == size and plan.open_bytes == 0
    assert peak < PLAN
    assert text < LINES * count


@pytest.mark.parametrize(("size", "rate"), [(100 * GIBI, FAST), (4 * GIBI, SLOW)])
def test_what_is_resumed_takes_as_much_as_it_has_ranges(size: int, rate: float) -> None:
    text = bytearray()
    count = transfer(Plan([size]), rate, text.extend, size - size // 64)
    data = bytes(text)
    with measured() as most:
        landed, begun = read_journal(io.BytesIO(data))
        plan = Plan([size], [landed[PATH]])
        peak = most()
        assert peak < READING * count
        assert sum(1 for _piece in landed[PATH]) == count
        assert 0 < begun[PATH] <= size // 64
        del landed, begun
        # What was claimed is forgotten again as it is checked.
        transfer(plan, rate, lambda _line: None, size)
        assert plan.done and plan.frontier(0) == size
        assert tracemalloc.get_traced_memory()[0] < PLAN
