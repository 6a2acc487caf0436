# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Law 3 over whole histories of a store: all short ones, and 100 000 random ones (``HISTORIES=n`` for another number).

The store below is a model: copies land, fail, rot, are pinned, read, released and purged while clocks jump, nothing
arrives for 400 days, and other data fills the disk for 30 days. Whatever comes, the promises of :class:`Store.purge`
hold after every purge.
"""

from __future__ import annotations

import os
import random
from typing import Callable, NamedTuple

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import (
    Item,
    Plan,
    Policy,
    bounds,
    plan,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import Problem

HISTORIES = int(os.environ.get("HISTORIES", "100000"))
CHUNKS = 8
DAY = 86400.0
SIZE = 10
PINNED = (Problem("PINNED", "somebody wants it"),)


class Store:
    """A store of copies of one size on a disk with room for ``capacity`` of them; time is true time."""

    def __init__(self, policy: Policy, capacity: int = 1000) -> None:
        self.policy = policy
        self.capacity = capacity * SIZE
        self.copies: list[Item] = []
        self.sequence = 0
        self.time = 1_800_000_000.0
        self.wrong = 0.0
        self.foreign = 0
        self.member = False
        self.times: dict[str, float] = {}

    @property
    def free(self) -> int:
        return self.capacity - self.foreign - SIZE * len(self.copies)

    def land(self, verdict: str = "ok", kind: str = "") -> bool:
        """One hour later a backup arrives, if it fits."""
        self.time += 3600
        if self.free < SIZE:
            return False
        self.sequence += 1
        early, late = bounds(self.time + self.wrong, -self.wrong)
        self.times[f"{self.sequence:08d}"] = self.time
        opens = (("dr1", kind or ("golden" if self.member else "presumed")),)
        self.copies.append(Item(f"{self.sequence:08d}", self.sequence, verdict, SIZE, early, late, (), opens))
        return True

    def change(self, index: int, **facts: object) -> None:
        if self.copies:
            index %= len(self.copies)
            self.copies[index] = self.copies[index]._replace(**facts)  # type: ignore[arg-type]

    def planned(self, need: int = 0) -> Plan:
        members = frozenset(("dr1",)) if self.member else frozenset()
        policy = self.policy._replace(need=need) if need else self.policy
        return plan(self.copies, policy, now=self.time + self.wrong, free=self.free, members=members)

    def bound(self) -> set[str]:
        """What no rule may touch, said once more in other words."""
        bound = set()
        ranks = {"ok": 0, "unverified": 1, "failed": 2}
        newest = [0, 0, 0]  # verified, not failed, any
        pairs: dict[bool, tuple[int, int, str]] = {}
        for item in self.copies[::-1]:
            rank = ranks[item.verdict]
            for chosen in range(rank, 3):
                if newest[chosen] < self.policy.keep:
                    bound.add(item.id)
                newest[chosen] += 1
            sure = item.opens[0][1] != "presumed"
            if item.holds or (sure and not item.released and not self.member):
                bound.add(item.id)
            pairs[sure] = min(pairs.get(sure, (9, 0, "")), (rank, -item.sequence, item.id))
        return bound | {found for _rank, _sequence, found in pairs.values()}

    def purge(self, need: int = 0) -> Plan:
        """Plan, check every promise, carry out."""
        made = self.planned(need)
        going = {item.item.id for item in made.decisions if item.remove}
        left = [item for item in self.copies if item.id not in going]
        good = [item for item in self.copies if item.verdict == "ok"]
        # never fewer than k verified copies, never a pinned one, one being read, a golden one, the last pair
        good_left = [item for item in left if item.verdict == "ok"]
        assert len(good_left) >= min(self.policy.keep, len(good))
        bound = self.bound()
        assert not bound & going
        assert (made.verified, made.verified_after) == (len(good), len(good_left))
        # nothing goes by age while nothing new was verified, nor by any rule but space while nothing is verified
        now = self.time + self.wrong
        assert bool(made.frozen) == (not good or now - good[-1].earliest > self.policy.fresh_within)
        codes = {reason.code for item in made.decisions if item.remove for reason in item.reasons}
        assert not (made.frozen and codes & {"AGE", "FAILED"})
        assert not (not good and codes - {"SPACE"})
        # wrong clocks only keep more
        if not need and (self.wrong or any(item.earliest != item.latest for item in self.copies)):
            right = [item._replace(earliest=self.times[item.id], latest=self.times[item.id]) for item in self.copies]
            policy = self.policy._replace(fresh_within=1e12)
            true = plan(
                right, policy, now=self.time, free=0, members=frozenset(("dr1",)) if self.member else frozenset()
            )
            assert going <= {item.item.id for item in true.removals}
        self.copies = left
        # never locked up: what is missing is missing although everything that may go would go
        if need:
            missing = max(0, need - self.free)
            surplus = [item for item in left if item.id not in bound]
            assert made.missing == max(0, missing - SIZE * len(surplus))
            assert made.missing or not missing
        # a second purge is quiet, now or 400 days later
        if self.wrong >= 0 and not self.member and self.sequence % 4 == 0:
            now = self.time + self.wrong + (400 * DAY if self.sequence % 8 else 0)
            assert not plan(left, self.policy, now=now, free=0).removals
        return made


def fill(store: Store) -> None:
    """Whatever is free is taken, and for 30 days nothing lands."""
    store.foreign += max(0, store.free)
    store.time += 30 * DAY


EVENTS: dict[str, Callable[[Store], object]] = {
    "ok": lambda store: store.land(),
    "fail": lambda store: setattr(store, "time", store.time + 3600),
    "unverified": lambda store: store.land("unverified"),
    "lands broken": lambda store: store.land("failed"),
    "newest rots": lambda store: store.change(-1, verdict="failed"),
    "oldest rots": lambda store: store.change(0, verdict="failed"),
    "verified late": lambda store: store.change(-1, verdict="ok"),
    "pin oldest": lambda store: store.change(0, holds=PINNED),
    "unpin oldest": lambda store: store.change(0, holds=()),
    "read second": lambda store: store.change(1, holds=PINNED),
    "release oldest": lambda store: store.change(0, released=True),
    "join": lambda store: setattr(store, "member", True),
    "leave": lambda store: setattr(store, "member", False),
    "purge": lambda store: store.purge(),
    "purge for room": lambda store: store.purge(SIZE),
    "clock ahead": lambda store: setattr(store, "wrong", DAY),
    "clock behind": lambda store: setattr(store, "wrong", -DAY),
    "clock right": lambda store: setattr(store, "wrong", 0.0),
    "a day": lambda store: setattr(store, "time", store.time + DAY),
    "outage of 400 days": lambda store: setattr(store, "time", store.time + 400 * DAY),
    "others fill the disk for 30 days": fill,
    "others leave": lambda store: setattr(store, "foreign", 0),
}
#: Everything that differs for the rules, for the exhaustive walk, and how many of them in a row.
SHORT = (
    "ok",
    "unverified",
    "lands broken",
    "newest rots",
    "oldest rots",
    "pin oldest",
    "unpin oldest",
    "join",
    "leave",
    "purge",
    "purge for room",
    "clock ahead",
    "clock behind",
    "outage of 400 days",
    "others fill the disk for 30 days",
)
DEPTH = 5


def policies(random_: random.Random) -> Policy:
    keep = random_.choice((1, 1, 2, 3))
    return Policy(
        keep=keep,
        max_copies=random_.choice((None, keep, keep + 1, keep + 3)),
        max_age=random_.choice((None, 1800.0, 5000.0, DAY, 30 * DAY)),
        keep_within=random_.choice((0.0, 0.0, 7200.0)),
        failed_grace=random_.choice((0.0, 7200.0, 7 * DAY)),
        fresh_within=random_.choice((3600.0, 3 * DAY)),
    )


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_g6_random_histories_keep_k_verified_copies_and_never_lock_up(chunk: int) -> None:
    names = [*EVENTS, "ok", "ok", "ok", "ok", "purge"]
    for seed in range(chunk, HISTORIES, CHUNKS):
        random_ = random.Random(seed)
        store = Store(policies(random_), capacity=random_.choice((4, 8, 1000)))
        for _index in range(random_.randrange(1, 4)):
            store.land()
        for name in random_.choices(names, k=random_.randrange(4, 12)):
            EVENTS[name](store)
        store.purge(SIZE if seed % 2 else 0)


class State(NamedTuple):
    """Everything of a store that what comes later depends on."""

    copies: tuple[Item, ...]
    times: tuple[float, ...]
    sequence: int
    time: float
    wrong: float
    foreign: int
    member: bool


def state_of(store: Store) -> State:
    times = tuple(store.times[item.id] for item in store.copies)
    return State(tuple(store.copies), times, store.sequence, store.time, store.wrong, store.foreign, store.member)


def put_back(store: Store, state: State) -> None:
    store.copies = list(state.copies)
    store.times = dict(zip((item.id for item in state.copies), state.times))
    store.sequence, store.time, store.wrong = state.sequence, state.time, state.wrong
    store.foreign, store.member = state.foreign, state.member


@pytest.mark.parametrize("start", [0, 3])
@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("max_copies", [None, 2])
def test_g6_all_short_histories(keep: int, max_copies: int | None, start: int) -> None:
    """Every history of up to five events (``SHORT``), of an empty store and of one with three verified copies; what is
    purged is gone for the events that follow. After each of them both purges of a full disk are tried.

    Histories that lead to the same store go on as one.
    """
    store = Store(Policy(keep=keep, max_copies=max_copies, max_age=5000.0, failed_grace=0.0))
    for _index in range(start):
        store.land()
    newest = [state_of(store)]
    known = set(newest)
    purged = set()
    again = 0
    for _event in range(DEPTH):
        reached = []
        for state in newest:
            for name in SHORT:
                put_back(store, state)
                EVENTS[name](store)
                after = state_of(store)
                removed = len(after.copies) < len(state.copies)
                again += removed and state in purged
                if removed or state in purged:
                    purged.add(after)
                if after not in known:
                    known.add(after)
                    reached.append(after)
        newest = reached
    for state in known:
        for need in (0, SIZE):
            put_back(store, state)
            store.foreign = store.capacity - SIZE * len(store.copies)
            store.purge(need)
    # It is as large as it should be, and goes on after purges, up to others.
    assert len(known) > 11_000
    assert not start or (len(purged) > 3_000 and again > 100)
