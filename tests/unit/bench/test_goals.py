# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be said about a goal: met, not met, or nothing, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from shipbench.goals import GOALS, ROUNDS, Goal, LinkResult, Results, judge, judge_all, times
from shipbench.peers import EQUAL_WORK, OURS, PEERS, RIVALS

BY_NAME = {goal.name: goal for goal in GOALS}


def link_result(ours: float = 10.0, n: int = ROUNDS, **peers: float) -> LinkResult:
    """Every round alike; names with a dash are written with an underscore."""
    times = {name.replace("_", "-"): value for name, value in peers.items()}
    return LinkResult(rounds={number: {OURS: ours, **times} for number in range(1, n + 1)})


def judged(goal: str, link: LinkResult | None = None, **more: Any) -> dict[str, Any]:
    results = Results(**more)
    if link is not None:
        results.links[BY_NAME[goal].link] = link
    return judge(BY_NAME[goal], results)


ALL = {"scp": 13.0, "scp_gcm": 9.0, "sftp": 12.0, "rsync": 14.0, "lftp": 11.6, "rclone": 20.0}


def test_the_goals_are_those_of_the_issue() -> None:
    assert {goal.name: (goal.want, goal.at_most) for goal in GOALS} == {
        "lan-scp-gcm": (0.9, False),
        "lan-scp": (1.1, False),
        "lan-equal-work": (1.2, False),
        "1g-20ms": (1.15, False),
        "1g-80ms": (1.25, False),
        "1g-80ms-scp": (2.5, False),
        "1g-80ms-loss": (1.5, False),
        "200m-80ms": (0.97, False),
        "verify-at-rest": (0.9, False),
        "catalogue": (2.0, True),
        "memory": (200e6, True),
    }


def test_equal_work_is_no_rival() -> None:
    assert EQUAL_WORK not in RIVALS
    assert set(RIVALS) == {peer.name for peer in PEERS} - {EQUAL_WORK}


@pytest.mark.parametrize(("ours", "met"), [(10.0, True), (10.01, False)])
def test_a_named_peer(ours: float, met: bool) -> None:
    entry = judged("lan-scp-gcm", link_result(ours, **ALL))
    assert entry["met"] is met
    assert entry["against"] == "scp-gcm"
    assert entry["n"] == 5
    assert entry["median"] == pytest.approx(9.0 / ours)
    assert entry["why"] == []


def test_the_best_peer_is_found_among_all() -> None:
    entry = judged("1g-20ms", link_result(8.0, **{**ALL, "scp_gcm": 90.0}))
    assert entry["against"] == "lftp"
    assert entry["met"] is True
    assert entry["against_fastest_of_each_round"]["median"] == pytest.approx(11.6 / 8.0)


def test_the_better_scp_is_the_one_to_beat() -> None:
    assert judged("1g-80ms-scp", link_result(5.0, scp=20.0, scp_gcm=12.5))["against"] == "scp-gcm"


def test_without_a_peer_nothing_is_claimed_against_the_best() -> None:
    found = link_result(8.0, **{name: value for name, value in ALL.items() if name != "lftp"})
    found.absent = ["lftp"]
    assert judged("1g-20ms", found)["met"] is None
    assert judged("1g-20ms", found)["why"] == ["absent: lftp"]
    found.absent = ["lftp"]
    named = dataclasses.replace(found)
    assert judged("1g-80ms-scp", named)["met"] is False


def test_a_link_that_is_off_is_not_claimed() -> None:
    found = link_result(1.0, **ALL)
    found.off = ["rtt_seconds 0.2 is not within 0.08 to 0.0834"]
    entry = judged("1g-80ms", found)
    assert entry["met"] is None
    assert "the link is off: rtt_seconds" in entry["why"][0]
    assert entry["median"] > 1


def test_a_link_that_could_not_be_used_says_why() -> None:
    entry = judged("1g-80ms", LinkResult(off=["no emulator"]))
    assert (entry["met"], entry["n"]) == (None, 0)
    assert entry["why"] == ["the link is off: no emulator", "no round counts"]


def test_where_no_round_counts_the_absent_peers_and_our_failures_are_still_told() -> None:
    found = LinkResult(off=["late"], absent=["lftp"], failed=["ours, round 1: another SHA-256"])
    entry = judged("1g-80ms", found)
    assert entry["why"] == [
        "absent: lftp",
        "the link is off: late",
        "no round counts",
        "ours, round 1: another SHA-256",
    ]
    assert entry["met"] is False


@pytest.mark.parametrize(("busy", "met"), [(10, True), (11, None)])
def test_nothing_is_claimed_where_strangers_disturbed_too_much(busy: int, met: bool | None) -> None:
    found = link_result(1.0, **ALL)
    found.busy, found.runs = busy, 40
    entry = judged("lan-scp", found)
    assert entry["met"] is met
    assert entry["busy_runs"] == busy
    assert entry["why"] == ([] if met else ["the machine was busy with something else in 11 of 40 runs"])


def test_too_few_rounds_prove_nothing() -> None:
    entry = judged("lan-scp", link_result(1.0, n=4, **ALL))
    assert entry["met"] is None
    assert entry["why"] == ["4 of 5 rounds"]


@pytest.mark.parametrize("more", [{"rounds": 1}, {"size": 64 << 20}])
def test_a_smoke_run_proves_nothing(more: dict[str, int]) -> None:
    entry = judged("lan-scp", link_result(1.0, **ALL), **more)
    assert entry["met"] is None
    assert "smoke" in entry["why"][0]


def test_what_was_not_run_is_said() -> None:
    entries = judge_all(Results())
    assert [entry["name"] for entry in entries] == [goal.name for goal in GOALS]
    assert all(entry["met"] is None and entry["why"] == ["not run"] for entry in entries)


def test_a_failure_of_ours_is_a_goal_missed() -> None:
    found = link_result(1.0, **ALL)
    found.failed = ["ours, round 3: what landed has another SHA-256"]
    entry = judged("lan-scp", found)
    assert entry["met"] is False
    assert entry["why"] == found.failed


def test_all_of_ours_failing_is_a_goal_missed() -> None:
    found = LinkResult(rounds={number: {"scp": 3.0} for number in range(1, 6)}, failed=["ours, round 1: refused"])
    assert judged("lan-scp", found)["met"] is False


def local(name: str, values: list[float]) -> dict[str, Any]:
    goal: Goal = BY_NAME[name]
    return judge(goal, Results(local={goal.local: values}))


def test_memory_is_judged_by_its_worst() -> None:
    assert local("memory", [10e6, 10e6, 10e6, 10e6, 200e6])["met"] is True
    assert local("memory", [10e6, 10e6, 10e6, 10e6, 200.1e6])["met"] is False


def test_the_catalogue_is_judged_by_its_median() -> None:
    assert local("catalogue", [1.0, 1.0, 2.0, 9.0, 9.0])["met"] is True
    assert local("catalogue", [1.0, 1.0, 2.1, 9.0, 9.0])["met"] is False


def row(number: int, tool: str, seconds: float, ok: bool = True, link_off: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"round": number, "tool": tool, "seconds": seconds, "ok": ok, "link_off": list(link_off)}


def test_only_runs_with_the_right_bytes_count() -> None:
    rows = [row(1, "scp", 3.0), row(1, OURS, 2.0, ok=False), row(2, "scp", 4.0), row(2, OURS, 2.0)]
    assert times(rows) == {1: {"scp": 3.0}, 2: {"scp": 4.0, OURS: 2.0}}


def test_a_round_in_which_the_link_was_off_counts_for_nobody() -> None:
    rows = [row(1, "scp", 3.0), row(1, OURS, 2.0, link_off=("late",)), row(2, "scp", 4.0)]
    assert times(rows) == {2: {"scp": 4.0}}
