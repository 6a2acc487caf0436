# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quorum arithmetic: the vendor's own examples, and what must hold for every layout."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import quorum

layouts = st.dictionaries(st.sampled_from(["dc1", "dc2", "dc3", "dc4"]), st.integers(1, 5), min_size=1)


def picture(sizes, down=(), labelled=True):
    """Data centres of these sizes, those in ``down`` lost as a whole."""
    return quorum.picture(
        (name if labelled else None, name not in down) for name, size in sizes.items() for _ in range(size)
    )


@pytest.mark.parametrize(
    ("size", "needed", "tolerated"),
    [(1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 3, 1), (5, 3, 2), (6, 4, 2), (7, 4, 3), (9, 5, 4)],
)
def test_the_table(size, needed, tolerated):
    assert (quorum.needed(size), quorum.tolerated(size)) == (needed, tolerated)


def test_a_negative_size_is_an_error():
    with pytest.raises(ValueError):
        quorum.needed(-1)


def test_nobody_is_no_quorum_of_nothing():
    assert quorum.Count(0, 0).met is False
    assert quorum.picture([]).state() == (quorum.DOWN, [])


@pytest.mark.parametrize(
    ("sizes", "lost", "state", "serving"),
    [
        ({"dc1": 1, "dc2": 1, "dc3": 1}, ("dc1", "dc2"), quorum.READ_ONLY, ["dc3"]),
        ({"dc1": 3, "dc2": 3, "dc3": 3}, ("dc1", "dc2"), quorum.READ_ONLY, ["dc3"]),
        ({"dc1": 2, "dc2": 1}, ("dc1",), quorum.READ_ONLY, ["dc2"]),
        ({"dc1": 3, "dc2": 2}, ("dc1",), quorum.READ_ONLY, ["dc2"]),
        ({"dc1": 2, "dc2": 1}, ("dc2",), quorum.FULL, ["dc1", "dc2"]),
        ({"dc1": 3, "dc2": 2}, ("dc2",), quorum.FULL, ["dc1", "dc2"]),
        ({"dc1": 2, "dc2": 1}, ("dc1", "dc2"), quorum.DOWN, []),
        ({"dc1": 2, "dc2": 2}, ("dc1",), quorum.READ_ONLY, ["dc2"]),
    ],
)
def test_examples_of_the_read_only_article(sizes, lost, state, serving):
    assert picture(sizes, lost).state() == (state, serving)


def test_without_labels_there_is_no_read_only_mode():
    assert picture({"dc1": 1, "dc2": 1, "dc3": 1}, ("dc1", "dc2"), labelled=False).state() == (quorum.DOWN, [])


def test_a_two_node_data_centre_serves_nothing_with_one_node():
    nodes = [("dc1", False)] * 3 + [("dc2", True), ("dc2", False)]
    assert quorum.picture(nodes).state() == (quorum.DOWN, [])


@given(st.integers(0, 10_000))
def test_two_groups_never_both_have_a_quorum(size):
    assert 2 * quorum.needed(size) > size
    assert quorum.needed(size) <= max(size, 1)


@given(st.integers(1, 10_000))
def test_tolerance_is_exact(size):
    assert size - quorum.tolerated(size) >= quorum.needed(size)
    assert size - quorum.tolerated(size) - 1 < quorum.needed(size)


@given(layouts, st.data())
def test_losing_more_never_makes_it_better(sizes, data):
    rank = {quorum.FULL: 2, quorum.READ_ONLY: 1, quorum.DOWN: 0}
    nodes = [name for name, size in sizes.items() for _ in range(size)]
    up = data.draw(st.lists(st.booleans(), min_size=len(nodes), max_size=len(nodes)))
    index = data.draw(st.integers(0, len(nodes) - 1))
    worse = [value and position != index for position, value in enumerate(up)]
    before, serving = quorum.picture(zip(nodes, up)).state()
    after, still = quorum.picture(zip(nodes, worse)).state()
    assert rank[after] <= rank[before]
    if before == after == quorum.READ_ONLY:
        assert set(still) <= set(serving)


@given(layouts)
def test_a_whole_cluster_is_full(sizes):
    assert picture(sizes).state()[0] == quorum.FULL


@given(st.integers(1, 200), st.integers(0, 199))
def test_a_removal_needs_the_quorum_before_and_after(size, up):
    allowed = quorum.survives_removal(size, min(up, size - 1))
    survivors = min(up, size - 1)
    assert allowed == (survivors >= size // 2 + 1 and survivors >= (size - 1) // 2 + 1)


@given(st.integers(2, 200))
def test_a_healthy_node_can_leave_whenever_two_others_are_all_up_and_reach_quorum(size):
    assert quorum.survives_removal(size, size - 1) is (size >= 3)
