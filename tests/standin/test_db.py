# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's database access, where the database says no for a while."""

from __future__ import annotations

import pytest
from standin import db

BUSY = "Cannot alter RF while some endpoints are not in normal state (no range movements): [/10.66.3.11:7000]"


class Answers(db.Store):
    """A store whose database gives these answers, one a statement."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def _execute(self, cql: str, values: tuple = (), consistency: str = "quorum") -> list:
        self.asked.append(cql)
        answer = self.answers.pop(0)
        if answer:
            raise db.StoreUnavailable(answer)
        return []


def test_copies_are_set_once_nobody_enters_the_ring_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(db.time, "sleep", rests.append)
    store = Answers(BUSY, BUSY, "")
    store.set_replication({"dc1": 1, "dc2": 1})
    assert len(store.asked) == 3
    assert len(rests) == 2


def test_what_is_no_matter_of_waiting_is_told_at_once() -> None:
    store = Answers("the database has no such table or keyspace")
    with pytest.raises(db.StoreUnavailable, match="no such table"):
        store.set_replication({"dc1": 1})


def test_waiting_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(db, "RING_PATIENCE_S", 0.0)
    with pytest.raises(db.StoreUnavailable, match="Cannot alter RF"):
        Answers(BUSY).set_replication({"dc1": 1})
