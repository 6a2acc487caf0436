# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Statistics: medians, ratios of rounds, who counts as the best peer, and the order of a round."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shipbench.figures import Spread, best_peer, ratios, ratios_to_fastest, shuffled, spread

ROUNDS = {
    1: {"ours": 10.0, "a": 12.0, "b": 30.0},
    2: {"ours": 20.0, "a": 20.0, "b": 10.0},
    3: {"ours": 10.0, "b": 30.0},
    4: {"a": 5.0},
}


def test_spread_is_median_range_and_number() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)
    assert spread([3.0, 1.0, 10.0, 5.0]) == Spread(4.0, 1.0, 10.0, 4)
    assert spread([]) is None


def test_a_ratio_is_the_peers_time_by_ours_of_the_same_round() -> None:
    assert ratios(ROUNDS, "ours", "a") == [1.2, 1.0]
    assert ratios(ROUNDS, "ours", "b") == [3.0, 0.5, 3.0]
    assert ratios(ROUNDS, "ours", "nobody") == []


def test_the_harsher_ratio_takes_the_fastest_of_each_round() -> None:
    assert ratios_to_fastest(ROUNDS, "ours", ["a", "b"]) == [1.2, 0.5, 3.0]
    assert ratios_to_fastest(ROUNDS, "ours", []) == []


@given(
    st.dictionaries(
        st.integers(1, 5),
        st.dictionaries(st.sampled_from(["ours", "a", "b", "c"]), st.floats(0.1, 1e4), min_size=1),
        max_size=5,
    )
)
def test_the_harsher_ratio_is_never_kinder(rounds) -> None:
    peers = ["a", "b", "c"]
    complete = {number: times for number, times in rounds.items() if {"ours", *peers} <= set(times)}
    for peer in peers:
        for harsh, kind in zip(ratios_to_fastest(complete, "ours", peers), ratios(complete, "ours", peer)):
            assert harsh <= kind


def test_the_best_peer_has_the_smallest_median() -> None:
    rounds = {1: {"a": 5.0, "b": 6.0}, 2: {"a": 9.0, "b": 6.5}, 3: {"a": 9.0, "b": 7.0}}
    assert best_peer(rounds, ["a", "b"]) == "b"


def test_one_lucky_round_makes_no_best_peer() -> None:
    """A peer that was stopped in most rounds took endlessly long in them."""
    rounds = {1: {"a": 50.0, "lucky": 5.0}, 2: {"a": 50.0}, 3: {"a": 50.0}}
    assert best_peer(rounds, ["a", "lucky"]) == "a"
    assert best_peer(rounds, ["lucky"]) is None
    assert best_peer({}, ["a"]) is None


def test_the_order_of_a_round_is_shuffled_but_can_be_repeated() -> None:
    names = list("abcdefgh")
    orders = [shuffled(names, seed=1, link="lan", round_number=number) for number in range(1, 6)]
    assert orders == [shuffled(names, seed=1, link="lan", round_number=number) for number in range(1, 6)]
    assert all(sorted(order) == names for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert orders[0] != shuffled(names, seed=2, link="lan", round_number=1)
    assert orders[0] != shuffled(names, seed=1, link="1g-20ms", round_number=1)
    assert names == list("abcdefgh")


def test_nobody_is_always_first() -> None:
    first = collections.Counter(
        shuffled(["a", "b", "c"], seed=1, link="lan", round_number=number)[0] for number in range(600)
    )
    assert all(first[name] == pytest.approx(200, abs=60) for name in "abc")
