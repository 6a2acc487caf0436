# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who fetches what once more when nothing is open. Time stands where the test says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Mapping

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _pull
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._discover import Item
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import LocalEndpoint
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ranges import MEBI, Plan, Range
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sftp import Attributes
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._worker import Alive

#: Worker 9 has nothing to do and gets a range of 1 MiB in a tenth of a second, so that it is patient for 1.3 s.
IDLE = 9


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
