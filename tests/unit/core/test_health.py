# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What three health answers mean: the whole table, and what no combination may ever be called."""

from __future__ import annotations

import itertools

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.health import (
    STATES,
    Answer,
    classify,
    summarise,
    wants_second_reading,
)

YES, NO = Answer(204), Answer(503)
REFUSED, TIMEOUT, TLS = Answer(None, "refused"), Answer(None, "timeout"), Answer(None, "tls")
ODD = [Answer(200), Answer(302), Answer(404), Answer(None, "body"), Answer(205)]


def answers(plain: Answer, quorum: Answer, everyone: Answer) -> dict[str, Answer]:
    return {"plain": plain, "quorum": quorum, "all": everyone}


@pytest.mark.parametrize(
    ("plain", "quorum", "everyone", "second", "state"),
    [
        (YES, YES, YES, None, "full"),
        (YES, YES, NO, None, "degraded"),
        (YES, YES, TIMEOUT, None, "degraded"),
        (YES, NO, NO, True, "read_only"),
        (YES, TIMEOUT, TIMEOUT, True, "read_only"),
        (YES, NO, NO, None, "unknown"),
        (YES, NO, NO, False, "unknown"),
        (YES, NO, YES, True, "unknown"),
        (NO, NO, NO, None, "down"),
        (NO, TIMEOUT, TIMEOUT, None, "down"),
        (NO, YES, YES, None, "unknown"),
        (NO, NO, YES, None, "unknown"),
        (REFUSED, REFUSED, REFUSED, None, "unreachable"),
        (TIMEOUT, TIMEOUT, TIMEOUT, None, "unreachable"),
        (REFUSED, YES, YES, None, "unknown"),
        (TLS, TLS, TLS, None, "unknown"),
        (YES, TLS, YES, None, "unknown"),
    ],
)
def test_the_table(plain: Answer, quorum: Answer, everyone: Answer, second: bool | None, state: str) -> None:
    assert classify(answers(plain, quorum, everyone), second).state == state


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_nothing_is_concluded_from_anything_but_204_and_5xx(odd: Answer, place: int) -> None:
    three = [YES, YES, YES]
    three[place] = odd
    assert classify(answers(*three), True).state == "unknown"


def test_over_all_combinations() -> None:
    for three in itertools.product([YES, NO, REFUSED, TIMEOUT, TLS, *ODD], repeat=3):
        for second in (True, False, None):
            given = answers(*three)
            verdict = classify(given, second)
            assert verdict.state in STATES and verdict.reason
            if verdict.state in ("full", "degraded"):
                assert given["plain"].status == given["quorum"].status == 204
            if verdict.state == "full":
                assert given["all"].status == 204
            if verdict.state == "read_only":
                assert second is True and wants_second_reading(given) and given["plain"].status == 204
            if verdict.state == "unreachable":
                assert all(one.status is None for one in three)


@pytest.mark.parametrize(
    ("states", "state", "writable"),
    [
        ([], "unknown", False),
        (["full", "full"], "full", True),
        (["full", "unreachable"], "degraded", True),
        (["degraded", "read_only"], "degraded", True),
        (["read_only", "down"], "read_only", False),
        (["unknown", "down"], "unknown", False),
        (["down", "unreachable"], "down", False),
        (["unreachable"], "unreachable", False),
    ],
)
def test_one_state_for_many_endpoints(states: list[str], state: str, writable: bool) -> None:
    summary = summarise([{"state": one} for one in states])
    assert (summary["state"], summary["writable"], summary["endpoints"]) == (state, writable, len(states))


def test_a_split_brain_needs_two_clusters_that_both_serve() -> None:
    def of(one: str, other: str) -> str:
        return str(summarise([{"state": one, "cluster": "a"}, {"state": other, "cluster": "b"}])["state"])

    assert of("full", "read_only") == of("degraded", "full") == "split_brain"
    assert of("full", "down") == "degraded"
    assert of("read_only", "unreachable") == "read_only"
