# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who fetches what once more when nothing is open, and how workers are let go. Time stands where the test says."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator, Mapping

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _pull
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._discover import Item
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import LocalEndpoint
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ranges import MEBI, Plan, Range
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sftp import Attributes
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._worker import (
    Alive,
    Connect,
    Connected,
    Failed,
    Landed,
    Rest,
    Resting,
    Take,
)

#: Worker 9 has nothing to do and gets a range of 1 MiB in a tenth of a second, so that it is patient for 1.3 s.
IDLE = 9
GONE = Failed("ConnectionLost", "gone", "CONNECTION_LOST", "", {})


class Moment:
    """A transfer near its end: each of these workers has ranges of 1 MiB, all of them for ``age`` seconds."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, age: float, held: Mapping[int, int]) -> None:
        self.now = 1000.0
        monkeypatch.setattr(_pull, "time", SimpleNamespace(monotonic=lambda: self.now))
        size = sum(held.values()) * MEBI
        item = Item("backup", "backup", Attributes(size, 0o100600, 1))
        plan = _pull.TransferPlan(LocalEndpoint(), (item,), str(path), "")
        pool: Any = SimpleNamespace(alive=[])
        self.transfer = _pull._Transfer(plan, _pull.no_progress, pool)
        self.transfer.plan = Plan([size])
        self.numbers: dict[int, list[int]] = {}
        for worker, count in held.items():
            taken = [self.transfer.plan.take(worker, MEBI) for _index in range(count)]
            self.numbers[worker] = [lent.number for lent in taken if lent]
            self.transfer.begun.update(dict.fromkeys(self.numbers[worker], self.now - age))
        self.transfer.lines = {worker: _pull._Line(connected=True, rate=10.0 * MEBI) for worker in (*held, IDLE)}

    def fetched_again(self) -> list[int]:
        """Numbers of the ranges that the idle worker gets, the first first."""
        member: Any = SimpleNamespace(number=IDLE)
        given: list[Range] = []
        while (item := self.transfer._slow(member)) is not None:
            given.append(item)
        return [item.number for item in given]


def test_what_waits_in_a_queue_that_moves_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment(tmp_path, monkeypatch, age=5.0, held={1: 4, 2: 4})
    assert moment.fetched_again() == []


def test_what_would_come_last_is_fetched_again_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker 2 needs one second for each of its ranges; the first comes in time."""
    moment = Moment(tmp_path, monkeypatch, age=5.0, held={1: 4, 2: 4})
    moment.transfer.lines[2].rate = 1.0 * MEBI
    _first, *late = moment.numbers[2]
    assert moment.fetched_again() == late[::-1]


def test_what_was_just_given_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment(tmp_path, monkeypatch, age=0.5, held={1: 4})
    moment.transfer.lines[1].rate = 0.0
    assert moment.fetched_again() == []


@pytest.mark.parametrize("how", ["lost", "silent"])
def test_what_a_connection_has_that_is_lost_or_silent_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """In order, because the hash of the whole waits for the first of them."""
    moment = Moment(tmp_path, monkeypatch, age=5.0, held={1: 4, 2: 4})
    line = moment.transfer.lines[1]
    if how == "lost":
        line.connected = False
    else:
        line.rate = 0.0
    assert moment.fetched_again() == moment.numbers[1]


def test_nobody_is_slow_because_there_was_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = Moment(tmp_path, monkeypatch, age=0.0, held={1: 4})
    rates = {}
    for number in (1, IDLE):
        line = moment.transfer.lines[number]
        line.measured = moment.now - 1.0
        member: Any = SimpleNamespace(number=number)
        moment.transfer._alive(member, line, Alive(0, 0))
        rates[number] = line.rate
    assert rates == {1: 8.0 * MEBI, IDLE: 10.0 * MEBI}


class Crowd:
    """A transfer with workers 0, 1 and 2, each of which has one range of 1 MiB, and with two more that rest. Orders and
    answers are the test's."""

    def __init__(self, path: Path, size: int = 9 * MEBI) -> None:
        self.orders: dict[int, list[Any]] = {number: [] for number in range(5)}
        self.ended: list[int] = []
        #: what workers say, one message after the other; then nothing more
        self.said: list[tuple[int, Any]] = []
        self.members: list[Any] = [
            SimpleNamespace(number=number, pid=number, send=self.orders[number].append, end=self._end(number))
            for number in self.orders
        ]
        item = Item("backup", "backup", Attributes(size, 0o100600, 1))
        plan = _pull.TransferPlan(LocalEndpoint(), (item,), str(path), str(path / "journal"))
        pool: Any = SimpleNamespace(alive=self.members, nearest=lambda _endpoint: self.members, hear=self._hear)
        self.transfer = _pull._Transfer(plan, _pull.no_progress, pool)
        self.transfer.plan = Plan([size])
        self.transfer.whole = _pull._WholeHash(plan, self.transfer.plan)
        self.transfer.journal = (path / "journal").open("ab", buffering=0)
        for number in range(3):
            self.transfer.lines[number] = _pull._Line(connected=True)
            self.transfer.plan.take(number, MEBI)

    def _end(self, number: int) -> Callable[[], str]:
        def end() -> str:
            self.ended.append(number)
            return "killed"

        return end

    def _hear(self, _seconds: float) -> list[tuple[Any, Any]]:
        if not self.said:
            raise KeyboardInterrupt
        number, message = self.said.pop(0)
        return [(self.members[number], message)]

    def grow_to(self, count: int) -> None:
        nothing = {name: lambda *_facts: None for name in ("connected", "refused", "lost")}
        growth: Any = SimpleNamespace(wanted=lambda *_facts: count, **nothing)
        self.transfer.growth = growth
        self.transfer._grow()

    def told(self, number: int, order: type) -> bool:
        return any(isinstance(said, order) for said in self.orders[number])


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    made = Crowd(tmp_path)
    yield made
    made.transfer.journal.close()


def test_a_spare_worker_ends_what_it_has_and_then_rests(crowd: Crowd) -> None:
    crowd.grow_to(2)
    for member in crowd.members[:3]:
        crowd.transfer._feed(member)
    assert [crowd.told(number, Take) for number in range(3)] == [True, True, False], "the last one gets nothing new"
    assert crowd.orders[3] == crowd.orders[4] == [], "nor do others come in its place"
    assert not crowd.told(2, Rest) and 2 in crowd.transfer.lines
    (held,) = crowd.transfer.plan.held_by(2)
    crowd.transfer._hear(crowd.members[2], Landed(held.number, "00"))
    crowd.transfer._feed(crowd.members[2])
    assert crowd.told(2, Rest) and list(crowd.transfer.lines) == [0, 1]


def test_who_comes_when_others_are_at_work_is_tried_with_little(crowd: Crowd) -> None:
    crowd.transfer.lines.clear()
    crowd.transfer.plan = Plan([1 << 30])
    crowd.grow_to(2)
    for number in (0, 1):
        crowd.transfer._hear(crowd.members[number], Connected(0.02))
    crowd.grow_to(3)
    crowd.transfer._hear(crowd.members[2], Connected(0.02))
    for member in crowd.members[:3]:
        crowd.transfer._feed(member)
    held = [sum(item.length for item in crowd.transfer.plan.held_by(number)) for number in range(3)]
    assert held == [16 * MEBI, 16 * MEBI, MEBI]


def test_a_spare_worker_that_loses_its_connection_is_not_connected_again(crowd: Crowd) -> None:
    crowd.grow_to(2)
    crowd.transfer._hear(crowd.members[2], GONE)
    assert crowd.told(2, Rest) and not crowd.told(2, Connect)
    again = crowd.transfer.plan.take(0, MEBI)
    assert again is not None and again.offset == 2 * MEBI, "somebody else fetches what it had"


def test_a_needed_worker_that_loses_its_connection_is_connected_again(crowd: Crowd) -> None:
    crowd.transfer._hear(crowd.members[2], GONE)
    assert crowd.told(2, Connect) and not crowd.told(2, Rest)


def test_a_transfer_is_over_when_those_let_go_earlier_rest_as_well(crowd: Crowd) -> None:
    """Also the one that answers last, and one that dies instead of answering."""
    crowd.transfer._let_go(crowd.members[2])
    crowd.said = [(0, Resting(1)), (1, None), (2, Resting(4))]
    crowd.transfer._rest()
    assert crowd.said == [] and crowd.ended == [1]
    assert crowd.transfer.memory == {0: 1, 2: 4}


def test_what_came_for_nothing_is_counted_whoever_received_it_and_however_late_it_is_told(tmp_path: Path) -> None:
    """All of it comes over worker 0. Worker 1 had 40 bytes when its connection was lost, worker 2 tells of 30 at the
    very end."""
    crowd = Crowd(tmp_path, size=100)
    crowd.transfer.journal.close()
    crowd.transfer.lines.clear()
    crowd.grow_to(3)
    crowd.said = [
        *((number, Connected(0.02)) for number in range(3)),
        (1, Alive(40, 0)),
        (1, GONE),
        (0, Alive(90, 0)),
        (0, Landed(1, hashlib.sha256(bytes(100)).hexdigest())),
        (1, Alive(0, 0)),
        (0, Alive(10, 0)),
        (0, Resting(1)),
        (2, Alive(30, 0)),
        (2, Resting(1)),
        (1, Resting(1)),
    ]
    report = crowd.transfer.run()
    assert crowd.said == [] and (report.bytes, report.resent) == (170, 70)


def test_what_a_worker_had_told_before_it_died_is_counted_once(tmp_path: Path) -> None:
    crowd = Crowd(tmp_path, size=100)
    crowd.transfer.journal.close()
    crowd.transfer.lines.clear()
    crowd.grow_to(2)
    crowd.said = [
        (1, Connected(0.02)),
        (1, Alive(40, 0)),
        (1, None),
        (0, Connected(0.02)),
        (0, Alive(100, 0)),
        (0, Landed(2, hashlib.sha256(bytes(100)).hexdigest())),
        (0, Alive(0, 0)),
        (0, Resting(1)),
        # Somebody came in its place.
        (1, Resting(1)),
    ]
    report = crowd.transfer.run()
    assert (report.bytes, report.resent) == (140, 40)


@pytest.mark.parametrize("late", [b"", b"\1"])
def test_what_comes_late_over_the_slower_of_two_is_found(tmp_path: Path, late: bytes) -> None:
    """It may write after the range of the faster one was hashed."""
    crowd = Crowd(tmp_path, size=100)
    (tmp_path / "backup").write_bytes(late.ljust(100, b"\0"))
    item = Range(1, 0, 0, 100)
    crowd.transfer.twice = {1: (item, hashlib.sha256(bytes(100)).hexdigest()), 2: (item, "")}
    with pytest.raises(Refused) if late else contextlib.nullcontext():
        crowd.transfer._look_at_what_came_twice()
    crowd.transfer.journal.close()


def test_whoever_does_not_rest_in_time_is_killed(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pull, "_REST_SECONDS", 0.0)
    crowd.transfer._let_go(crowd.members[2])
    crowd.transfer._rest()
    assert crowd.ended == [0, 1, 2]


def test_an_interrupted_transfer_leaves_nobody_who_may_still_write(crowd: Crowd) -> None:
    crowd.transfer._let_go(crowd.members[2])
    with pytest.raises(KeyboardInterrupt):
        crowd.transfer.run()
    assert crowd.ended == [0, 1, 2]
