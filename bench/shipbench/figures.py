# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures: medians with their range, ratios of rounds, and the order of a round."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Spread:
    """Median, range and number of some values."""

    median: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def spread(values: Sequence[float]) -> Spread | None:
    """Median and range, None of nothing."""
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


def shuffled(items: Sequence[Item], *, seed: int, link: str, round_number: int) -> list[Item]:
    """The order of one round. The same seed gives the same order on every machine and Python."""
    order = list(items)
    source = random.Random(f"{seed}/{link}/{round_number}")
    for last in range(len(order) - 1, 0, -1):
        other = int(source.random() * (last + 1))
        order[last], order[other] = order[other], order[last]
    return order


#: Seconds that each tool needed in a round; a tool that failed or was stopped in it is not there.
Rounds = Mapping[int, Mapping[str, float]]


def ratios(rounds: Rounds, ours: str, peer: str) -> list[float]:
    """How many times as fast as ``peer`` we were, for each round in which both came home."""
    return [times[peer] / times[ours] for _number, times in sorted(rounds.items()) if ours in times and peer in times]


def ratios_to_fastest(rounds: Rounds, ours: str, peers: Sequence[str]) -> list[float]:
    """The same against whichever peer was the fastest of its round: harsher, as it picks the luck of many."""
    found = []
    for _number, times in sorted(rounds.items()):
        theirs = [times[peer] for peer in peers if peer in times]
        if ours in times and theirs:
            found.append(min(theirs) / times[ours])
    return found


def best_peer(rounds: Rounds, peers: Sequence[str]) -> str | None:
    """The peer with the smallest median time; a round that it did not finish counts as endless. None if none did."""
    medians = {
        peer: statistics.median(times.get(peer, math.inf) for times in rounds.values()) for peer in peers if rounds
    }
    finished = {peer: median for peer, median in medians.items() if math.isfinite(median)}
    return min(sorted(finished), key=lambda peer: finished[peer]) if finished else None
