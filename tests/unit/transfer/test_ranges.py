# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which bytes are still to be moved: nothing is lost, nothing lands twice, whatever workers do."""

from __future__ import annotations

import hashlib
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ranges import (
    AHEAD,
    BIGGEST,
    MEBI,
    SMALLEST,
    Piece,
    Pieces,
    Plan,
    Range,
    journal_line,
    range_length,
    read_journal,
    wants_more,
)

SHA = hashlib.sha256(b"").hexdigest()
SIZES = st.lists(st.integers(0, 3 * BIGGEST), min_size=1, max_size=4)


class Ledger:
    """Follows a plan byte by byte in its own way (by intervals that have landed)."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.landed: set[tuple[int, int, int]] = set()

    def land(self, item: Range) -> None:
        if self.plan.landed(item.number) is not None:
            self.landed.add((item.file, item.offset, item.end))

    def check(self) -> None:
        """Landed ranges do not overlap, and frontier and counters say the same as they do."""
        for file, size in enumerate(self.plan.sizes):
            at = 0
            gapless = True
            for start, end in sorted((start, end) for number, start, end in self.landed if number == file):
                assert at <= start < end <= size
                gapless = gapless and start == at
                at = end
                if gapless:
                    frontier = end
            if not any(number == file and start == 0 for number, start, _end in self.landed):
                frontier = 0
            assert self.plan.frontier(file) == frontier
        assert self.plan.landed_bytes == sum(end - start for _file, start, end in self.landed)


@given(SIZES, st.data())
def test_whatever_workers_do_every_byte_lands_once(sizes: list[int], data: st.DataObject) -> None:
    plan = Plan(sizes)
    ledger = Ledger(plan)
    held: dict[int, list[Range]] = {0: [], 1: [], 2: []}
    for _step in range(200):
        if plan.done:
            break
        worker = data.draw(st.integers(0, 2))
        action = data.draw(st.sampled_from(["take", "take", "land", "land", "die", "double"]))
        if action == "take":
            item = plan.take(worker, data.draw(st.integers(SMALLEST, BIGGEST)))
            if item is not None:
                held[worker].append(item)
        elif action == "land" and held[worker]:
            ledger.land(held[worker].pop(data.draw(st.integers(0, len(held[worker]) - 1))))
        elif action == "double":
            item = plan.double(worker, sorted({lent.number for other in held for lent in plan.held_by(other)}))
            if item is not None:
                assert item not in held[worker]
                held[worker].append(item)
        elif action == "die":
            elsewhere = {item.number for other in held if other != worker for item in held[other]}
            returned = plan.give_back(worker)
            assert {item.number for item in returned}.isdisjoint(elsewhere)
            held[worker].clear()
        ledger.check()
    # Whatever happened, it can be brought to its end by one worker.
    for worker in held:
        plan.give_back(worker)
    while True:
        item = plan.take(9, BIGGEST)
        if item is None:
            break
        ledger.land(item)
    ledger.check()
    assert plan.done and [plan.frontier(file) for file in range(len(sizes))] == sizes
    assert plan.open_bytes == 0 and not plan.held_by(9)


@given(st.integers(1, 10 * MEBI), st.data())
def test_what_a_journal_claims_is_checked_and_nothing_else_is_left_out(size: int, data: st.DataObject) -> None:
    pieces = data.draw(
        st.lists(
            st.builds(Piece, st.integers(0, 11 * MEBI), st.integers(-1, 4 * MEBI), st.sampled_from([SHA, ""])),
            max_size=8,
        )
    )
    plan = Plan([size], [Pieces(piece for piece in pieces if piece.sha256)])
    ledger = Ledger(plan)
    refute = data.draw(st.booleans())
    while True:
        item = plan.take_check(0)
        if item is None:
            break
        assert Piece(item.offset, item.length, item.sha256) in pieces
        if refute:
            assert plan.refuted(item.number) is not None
            assert plan.refuted(item.number) is None
        else:
            ledger.land(item)
        ledger.check()
    while True:
        item = plan.take(0, SMALLEST)
        if item is None:
            break
        ledger.land(item)
    assert plan.done
    ledger.check()


def test_a_worker_that_dies_gives_its_checks_back_as_checks() -> None:
    plan = Plan([MEBI], [Pieces([Piece(0, MEBI, SHA)])])
    assert plan.take_check(1) is not None and plan.take_check(1) is None
    plan.give_back(1)
    again = plan.take_check(2)
    assert again is not None and again.sha256 == SHA and plan.take(2, MEBI) is None


def test_a_range_that_two_workers_have_counts_once() -> None:
    plan = Plan([MEBI])
    first = plan.take(1, MEBI)
    assert first is not None
    assert plan.double(1, {first.number}) is None, "its own range is no help"
    assert plan.double(2, set()) is None, "only slow ones"
    assert plan.double(2, {first.number}) == first
    assert plan.double(3, {first.number}) is None, "two are enough"
    assert plan.give_back(1) == [], "the other one still has it"
    assert plan.landed(first.number) == first and plan.landed(first.number) is None
    assert plan.done


def test_no_splinters() -> None:
    plan = Plan([SMALLEST * 3 + 1])
    first, second = plan.take(0, SMALLEST), plan.take(0, SMALLEST)
    assert first is not None and second is not None
    assert (first.length, second.length) == (SMALLEST, SMALLEST)
    last = plan.take(0, SMALLEST)
    assert last is not None and last.length == SMALLEST + 1


@pytest.mark.parametrize(
    ("left", "workers", "rate", "expected"),
    [
        (1 << 40, 8, 0.0, BIGGEST),
        (1 << 40, 1, 1e9, BIGGEST),
        (0, 8, 0.0, SMALLEST),
        (16 * MEBI, 2, 0.0, 2 * MEBI),
        (1 << 40, 8, 1e7, 5 * SMALLEST),
        (1 << 40, 8, 1e6, SMALLEST),
        (1 << 40, 8, 10.0, SMALLEST),
        (1 << 40, 0, 0.0, BIGGEST),
    ],
)
def test_ranges_follow_what_is_left_and_how_fast_it_goes(left: int, workers: int, rate: float, expected: int) -> None:
    assert range_length(left, workers, rate) == expected


@pytest.mark.parametrize(
    ("rate", "length", "together"),
    [(0.0, MEBI // 2, MEBI), (1e6, MEBI // 2, MEBI), (5e6, MEBI, 3 * MEBI), (1e9, 8 * MEBI, 16 * MEBI)],
)
def test_a_connection_that_is_tried_is_slow_until_it_has_shown_that_it_is_not(
    rate: float, length: int, together: int
) -> None:
    """What it was given and does not deliver is what hashing the whole waits for."""
    assert range_length(1 << 40, 8, rate, tried=True) == length
    ranges = held = 0
    while wants_more(ranges, held, rate, tried=True):
        ranges, held = ranges + 1, held + length
    assert held == together


def test_nobody_has_more_ahead_than_memory_for_it() -> None:
    assert wants_more(0, 0, 0.0) and wants_more(1, 1 << 40, 0.0) and wants_more(15, AHEAD - 1, 0.0)
    assert not wants_more(2, AHEAD, 0.0) and not wants_more(16, 16, 0.0)
    assert not wants_more(2, AHEAD, 1e12, tried=True)


# -- the journal ---------------------------------------------------------------------------------------------------


def read(data: bytes) -> tuple[dict[str, list[Piece]], dict[str, int]]:
    """What a journal of these bytes says."""
    landed, begun = read_journal(io.BytesIO(data))
    return {path: list(pieces) for path, pieces in landed.items()}, begun


def test_a_journal_is_read_as_it_was_written() -> None:
    pieces = [Piece(0, 5, SHA), Piece(5, 7), Piece(12, 1, SHA)]
    data = b"".join(journal_line("a b\u00fc", piece) for piece in pieces)
    assert read(data) == ({"a b\u00fc": [pieces[0], pieces[2]]}, {"a b\u00fc": 7})


def test_what_landed_is_no_longer_only_begun() -> None:
    data = journal_line("a", Piece(0, 5)) + journal_line("a", Piece(0, 5, SHA))
    assert read(data) == ({"a": [Piece(0, 5, SHA)]}, {})


def test_of_two_lines_about_the_same_bytes_the_later_counts() -> None:
    other = hashlib.sha256(b"other").hexdigest()
    lines = [Piece(5, 5, SHA), Piece(0, 5, SHA), Piece(5, 6, other), Piece(0, 5, other), Piece(0, 5, SHA)]
    assert read(b"".join(journal_line("a", piece) for piece in lines))[0] == {"a": [lines[4], lines[2]]}


@given(st.lists(st.builds(Piece, st.integers(0, 20), st.integers(1, 5), st.just(SHA)), max_size=12))
def test_pieces_are_in_order_and_within_a_file_they_do_not_overlap(pieces: list[Piece]) -> None:
    found = list(Pieces(pieces))
    assert found == sorted({piece.offset: piece for piece in pieces}.values())
    within = list(Pieces(pieces).within(20))
    assert set(within) <= set(found) and all(piece.offset + piece.length <= 20 for piece in within)
    assert all(one.offset + one.length <= other.offset for one, other in zip(within, within[1:]))


@given(st.integers(0, 400))
def test_a_journal_that_ends_anywhere_costs_at_most_its_last_line(cut: int) -> None:
    lines = [journal_line("a", Piece(index * 10, 10, SHA)) for index in range(3)]
    data = b"".join(lines)[:cut]
    whole = sum(len(b"".join(lines[: index + 1])) - 1 <= cut for index in range(3))
    landed, _begun = read(data)
    assert landed.get("a", []) == [Piece(index * 10, 10, SHA) for index in range(whole)]
    # And whoever goes on writes a line of its own.
    landed, _begun = read(data + journal_line("a", Piece(90, 5, SHA)))
    assert landed["a"][-1] == Piece(90, 5, SHA)


@given(st.binary(max_size=200))
def test_no_journal_whatever_is_in_it_breaks_a_run(noise: bytes) -> None:
    landed, _begun = read(noise + journal_line("a", Piece(1, 2, SHA)))
    assert Piece(1, 2, SHA) in landed["a"]


@pytest.mark.parametrize(
    "line",
    [
        b'{"path": 1, "offset": 0, "length": 9, "sha256": "%s"}' % SHA.encode(),
        b'{"path": "a", "offset": -1, "length": 9, "sha256": "%s"}' % SHA.encode(),
        b'{"path": "a", "offset": 9223372036854775808, "length": 9, "sha256": "%s"}' % SHA.encode(),
        b'{"path": "a", "offset": true, "length": 9, "sha256": "%s"}' % SHA.encode(),
        b'{"path": "a", "offset": 0, "length": 0, "sha256": "%s"}' % SHA.encode(),
        b'{"path": "a", "offset": 0, "length": 9, "sha256": "x"}',
        b'{"path": "a", "offset": 0, "length": 9, "sha256": 7}',
        b'{"path": "a", "length": 9, "sha256": "%s"}' % SHA.encode(),
        b"[]",
        b"7",
    ],
)
def test_lines_that_mean_nothing_are_left_out(line: bytes) -> None:
    assert read(line + b"\n") == ({}, {})
