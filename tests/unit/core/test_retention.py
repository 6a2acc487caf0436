# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Retention, rule by rule. Whole histories are in test_retention_histories.py."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import (
    Item,
    Plan,
    Policy,
    bounds,
    plan,
    policy_problems,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import Problem

T0 = 1_800_000_000.0
HOUR = 3600.0
DAY = 86400.0
FOREVER = 1e9
ONE = Policy(keep=1, fresh_within=FOREVER)


def copies(*verdicts: str, opens: tuple[tuple[str, str], ...] = (), step: float = HOUR, **facts: Any) -> list[Item]:
    """One copy an hour, numbered from 1; a verdict may carry the size: ``ok:7``."""
    made = []
    for number, text in enumerate(verdicts, 1):
        verdict, _colon, size = text.partition(":")
        when = T0 + number * step
        made.append(Item(f"b{number}", number, verdict, int(size or 10), when, when, opens=opens)._replace(**facts))
    return made


def decide(items: list[Item], policy: Policy, now: float = T0 + DAY, free: int = 0, **more: Any) -> Plan:
    return plan(items, policy, now=now, free=free, **more)


def went(made: Plan) -> dict[str, list[str]]:
    return {one.item.id: [reason.code for reason in one.reasons] for one in made.removals}


def stayed(made: Plan) -> dict[str, list[str]]:
    return {one.item.id: [reason.code for reason in one.reasons] for one in made.decisions if not one.remove}


# -- the floor ---------------------------------------------------------------------------------------------------------


def test_without_rules_nothing_goes() -> None:
    made = decide(copies("ok", "ok", "failed", "unverified", "ok"), ONE)
    assert went(made) == {}
    assert stayed(made) == {
        "b1": ["WANTED"],
        "b2": ["WANTED"],
        "b3": ["WANTED"],
        "b4": ["WANTED"],
        "b5": ["FLOOR"],
    }
    assert (made.verified, made.verified_after, made.missing, made.next_expiry) == (3, 3, 0, None)


def test_f20_only_verified_copies_count() -> None:
    """Failed and unverified ones between and after do not push out the verified."""
    policy = ONE._replace(keep=2, max_copies=2)
    made = decide(copies("ok", "ok", "ok", "failed", "failed", "unverified", "failed", "unverified"), policy)
    assert went(made) == {"b1": ["COUNT"]}
    assert stayed(made) == {
        "b2": ["FLOOR"],
        "b3": ["FLOOR"],
        "b4": ["FEW_VERIFIED"],
        "b5": ["FEW_VERIFIED"],
        "b6": ["UNVERIFIED"],
        "b7": ["NEWEST"],
        "b8": ["UNVERIFIED"],
    }
    assert (made.verified, made.verified_after) == (3, 2)


def test_sequence_decides_what_is_newer_not_time() -> None:
    items = copies("ok", "ok", "ok")
    items[0] = items[0]._replace(earliest=T0 + 10 * DAY, latest=T0 + 10 * DAY)
    assert went(decide(items, ONE._replace(max_copies=1))) == {"b1": ["COUNT"], "b2": ["COUNT"]}
    assert [one.item.sequence for one in decide(items[::-1], ONE).decisions] == [1, 2, 3]


# -- count and age -----------------------------------------------------------------------------------------------------


def test_count_rule() -> None:
    made = decide(copies("ok", "unverified", "ok", "ok", "ok"), ONE._replace(max_copies=3))
    assert went(made) == {"b1": ["COUNT"], "b2": ["COUNT"]}
    assert {one.reasons[0].message for one in made.removals} == {"the 3 verified copies that are wanted are newer"}


def test_count_rule_leaves_what_is_young() -> None:
    """Ages when b5 was published: b1 and b2 were superseded three and two hours before."""
    policy = ONE._replace(max_copies=1, keep_within=2 * HOUR)
    made = decide(copies("ok", "ok", "ok", "ok", "ok"), policy)
    assert went(made) == {"b1": ["COUNT"], "b2": ["COUNT"]}
    assert [one.age for one in made.decisions] == [3 * HOUR, 2 * HOUR, HOUR, 0.0, 0.0]


def test_age_rule() -> None:
    policy = ONE._replace(max_age=2 * HOUR)
    assert went(decide(copies("ok", "ok", "ok", "ok", "ok"), policy)) == {"b1": ["AGE"]}
    made = decide(copies("ok", "failed", "unverified", "ok", "ok", "ok"), policy)
    assert went(made) == {"b1": ["AGE"], "b2": ["AGE"]}
    assert went_message(made, "b2") == "more than 7200 s older than the newest verified copy"
    assert [one.age for one in made.removals] == [3 * HOUR, 4 * HOUR]


def went_message(made: Plan, name: str) -> str:
    return next(reason.message for one in made.removals if one.item.id == name for reason in one.reasons)


def test_both_rules_are_named() -> None:
    made = decide(copies("ok", "ok", "ok", "ok"), ONE._replace(max_copies=2, max_age=HOUR))
    assert went(made) == {"b1": ["COUNT", "AGE"], "b2": ["COUNT"]}


def test_age_needs_enough_newer_verified_copies() -> None:
    policy = ONE._replace(keep=2, max_age=HOUR)
    made = decide(copies("ok", "unverified", "failed", "failed", "unverified", "ok", "unverified", "failed"), policy)
    assert went(made) == {}
    assert stayed(made) == {
        "b1": ["FLOOR"],
        "b2": ["FEW_VERIFIED"],
        "b3": ["FEW_VERIFIED"],
        "b4": ["FEW_VERIFIED"],
        "b5": ["FEW_VERIFIED"],
        "b6": ["FLOOR"],
        "b7": ["UNVERIFIED"],
        "b8": ["NEWEST"],
    }


def test_failed_copies_wait_for_repair_and_then_go() -> None:
    items = copies("ok", "failed", "ok", "ok", "ok")
    assert went(decide(items, ONE._replace(failed_grace=2 * HOUR))) == {}
    made = decide(items, ONE._replace(failed_grace=2 * HOUR - 1))
    assert went(made) == {"b2": ["FAILED"]}
    assert "1 or more verified copies are newer" in went_message(made, "b2")
    assert went(decide(items, ONE._replace(keep=4, failed_grace=0.0))) == {}


# -- the freeze --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("days", [0, 3, 30, 400])
def test_f21_nothing_grows_older_during_an_outage(days: int) -> None:
    policy = Policy(keep=1, max_age=3 * HOUR, failed_grace=3 * HOUR)
    items = copies("failed", "ok", "ok", "ok")
    made = decide(items, policy, now=T0 + 4 * HOUR + days * DAY)
    assert went(made) == {}
    assert bool(made.frozen) is (days > 3)
    if made.frozen:
        assert made.frozen == "nothing new was verified since 2027-01-15T12:00:00Z (by the slowest clock that saw it)"
        assert stayed(made) == {
            "b1": ["FROZEN"],
            "b2": ["FROZEN"],
            "b3": ["FROZEN"],
            "b4": ["FLOOR"],
        }


def test_f21_the_first_verified_copy_after_an_outage_ends_the_freeze_and_the_floor_holds() -> None:
    items = [*copies("ok", "ok", "ok", "ok"), copies("ok")[0]._replace(id="b5", sequence=5)]
    items[4] = items[4]._replace(earliest=T0 + 400 * DAY, latest=T0 + 400 * DAY)
    policy = Policy(keep=3, max_age=30 * DAY)
    assert went(decide(items, policy, now=T0 + 400 * DAY + HOUR)) == {"b1": ["AGE"], "b2": ["AGE"]}
    rotten = [*items[:4], items[4]._replace(verdict="failed")]
    assert went(decide(rotten, policy, now=T0 + 400 * DAY + HOUR)) == {}


def test_frozen_is_said_when_a_policy_became_stricter_during_an_outage() -> None:
    items = copies("ok", "ok", "ok", "failed", "ok")
    policy = Policy(keep=1, max_age=HOUR, failed_grace=0.0, max_copies=3)
    assert went(decide(items, policy, now=T0 + 5 * HOUR + 259_200)) == {"b1": ["COUNT", "AGE"], "b2": ["AGE"]}
    assert went(decide(items, policy, now=T0 + 5 * HOUR + 259_201)) == {"b1": ["COUNT"]}


def test_nothing_goes_by_rule_where_nothing_is_verified() -> None:
    policy = Policy(keep=1, max_copies=1, max_age=1.0, failed_grace=0.0)
    made = decide(copies("failed", "unverified", "failed", "unverified", "failed"), policy)
    assert went(made) == {}
    assert made.frozen == "nothing in the store is verified"
    assert made.decisions[0].age is None
    assert stayed(made)["b1"] == ["FROZEN", "FEW_VERIFIED"]


# -- clocks ------------------------------------------------------------------------------------------------------------


def steady(count: int = 40, step: float = DAY) -> list[Item]:
    return copies(*["ok"] * count, step=step)


MONTH = Policy(keep=3, max_age=30 * DAY)


@pytest.mark.parametrize("jump", [-400 * DAY, -DAY, 0.0, DAY, 400 * DAY])
def test_f17_a_clock_that_jumps_now_deletes_nothing_more(jump: float) -> None:
    items = steady()
    right = set(went(decide(items, MONTH, now=T0 + 40 * DAY)))
    assert right == {f"b{number}" for number in range(1, 9)}
    assert set(went(decide(items, MONTH, now=T0 + 40 * DAY + jump))) <= right


@pytest.mark.parametrize("number", [1, 5, 20, 39, 40])
@pytest.mark.parametrize("jump", [-DAY, DAY])
def test_f17_a_clock_that_was_wrong_at_one_publication_deletes_nothing_more(number: int, jump: float) -> None:
    """The store's clock was wrong, the source's was right."""
    items = steady()
    right = set(went(decide(items, MONTH, now=T0 + 40 * DAY)))
    early, late = bounds(T0 + number * DAY + jump, -jump)
    items[number - 1] = items[number - 1]._replace(earliest=early, latest=late)
    assert set(went(decide(items, MONTH, now=T0 + 40 * DAY + jump))) <= right


def test_f17_a_slow_clock_without_a_second_witness_ages_nothing() -> None:
    """One publication is dated too early: no copy is taken for older than it is."""
    items = steady(34)
    items[3] = items[3]._replace(earliest=T0 + 1.5 * DAY, latest=T0 + 1.5 * DAY)
    made = decide(items, MONTH, now=T0 + 34 * DAY)
    assert set(went(made)) == {"b1", "b2", "b3"}
    assert all((one.age or 0) <= (34 - one.item.sequence) * DAY for one in made.decisions)


def test_f17_a_date_in_the_far_future_keeps_one_copy_and_stops_nothing_else() -> None:
    items = steady()
    items[1] = items[1]._replace(earliest=T0 + 9999 * DAY, latest=T0 + 9999 * DAY)
    made = decide(items, MONTH, now=T0 + 40 * DAY)
    assert set(went(made)) == {"b1", *(f"b{number}" for number in range(3, 9))}
    assert went(decide(items, MONTH._replace(max_copies=30), now=T0 + 40 * DAY))["b2"] == ["COUNT"]


def test_bounds() -> None:
    assert bounds(100.0, None) == (100.0, 100.0)
    assert bounds(100.0, 30) == (100.0, 130.0)
    assert bounds(100.0, -30) == (70.0, 100.0)


# -- what never goes ---------------------------------------------------------------------------------------------------

STRICT = Policy(keep=1, max_copies=1, max_age=1.0, failed_grace=0.0, fresh_within=FOREVER, need=1000)


def test_every_hold_is_said() -> None:
    holds = (Problem("PINNED", "for the audit"), Problem("BEING_READ", "by a restore"))
    items = copies("ok", "ok", "ok")
    items[0] = items[0]._replace(holds=holds)
    made = decide(items, STRICT)
    assert set(went(made)) == {"b2"}
    assert stayed(made) == {"b1": ["PINNED", "BEING_READ"], "b3": ["FLOOR"]}


@pytest.mark.parametrize("kind", ["golden", "proved"])
def test_golden_counts_as_pinned(kind: str) -> None:
    items = copies("ok", "unverified", "failed", "ok", "ok", opens=(("dr1", kind),))
    items[4] = items[4]._replace(opens=())
    made = decide(items, STRICT)
    assert went(made) == {}
    assert stayed(made) == {
        "b1": ["GOLDEN"],
        "b2": ["GOLDEN"],
        "b3": ["GOLDEN"],
        "b4": ["GOLDEN", "LAST_PAIR"],
        "b5": ["FLOOR"],
    }
    message = next(one for one in made.decisions if one.item.id == "b1").reasons[0].message
    assert message == f"{kind} for dr1, which is set aside"


def test_golden_for_a_member_needs_only_the_newest() -> None:
    items = copies("ok", "ok", "ok", "ok", opens=(("dr1", "golden"),))
    items[3] = items[3]._replace(opens=())
    made = decide(items, STRICT, members=frozenset(("dr1",)))
    assert set(went(made)) == {"b1", "b2"}
    assert stayed(made)["b3"] == ["LAST_PAIR"]


@pytest.mark.parametrize("verdict", ["ok", "failed"])
def test_a_golden_copy_that_was_released_goes_like_any_other(verdict: str) -> None:
    items = copies(verdict, "ok", "ok", opens=(("dr1", "golden"),))
    assert went(decide(items, STRICT)) == {}
    items[0] = items[0]._replace(released=True)
    assert set(went(decide(items, STRICT))) == {"b1"}


def test_a_released_golden_copy_may_go_unless_it_is_the_last() -> None:
    items = copies("ok", "ok", "ok", opens=(("dr1", "golden"),), released=True)
    items[2] = items[2]._replace(opens=())
    made = decide(items, STRICT)
    assert set(went(made)) == {"b1"}
    assert stayed(made)["b2"] == ["LAST_PAIR"]
    assert "dr1" in next(one for one in made.decisions if one.item.id == "b2").reasons[0].message


def test_f54_the_last_pair_of_every_node_stays() -> None:
    """The newest sure one and the newest presumed one; verified before unverified before failed."""
    items = copies("ok", "ok", "failed", "unverified", "ok", "ok", "ok")
    opens = [
        (("dr1", "presumed"),),
        (("dr1", "presumed"), ("dr2", "presumed")),
        (("dr3", "golden"),),
        (("dr4", "presumed"), ("dr1", "presumed")),
        (),
        (),
        (),
    ]
    items = [item._replace(opens=pair) for item, pair in zip(items, opens)]
    made = decide(items, STRICT)
    assert set(went(made)) == {"b1", "b5", "b6"}
    assert stayed(made) == {
        "b2": ["LAST_PAIR", "LAST_PAIR"],
        "b3": ["GOLDEN", "LAST_PAIR"],
        "b4": ["LAST_PAIR"],
        "b7": ["FLOOR"],
    }


# -- room for the next backup ------------------------------------------------------------------------------------------


def test_surplus_goes_when_space_is_missing_failed_first_then_the_oldest() -> None:
    items = copies("ok", "ok", "failed", "ok", "ok", "ok")
    policy = ONE._replace(keep=2, need=25)
    assert went(decide(items, policy, free=25)) == {}
    assert went_message(decide(items, policy._replace(need=1)), "b3").startswith("the next backup needs 1 bytes more")
    assert went(decide(items, policy, free=24)) == {"b3": ["SPACE"]}
    assert list(went(decide(items, policy, free=15))) == ["b3"]
    made = decide(items, policy, free=14)
    assert list(went(made)) == ["b3", "b1"] and made.missing == 0
    assert "needs 11 bytes more" in went_message(made, "b3") and went_message(made, "b1") == went_message(made, "b3")
    assert (made.verified, made.verified_after) == (5, 4)


def test_inodes_are_made_free_as_bytes_are() -> None:
    items = copies("ok", "ok", "failed", "ok", "ok", files=5)
    policy = ONE._replace(keep=2, need_files=12)
    assert went(decide(items, policy)) == {} == went(decide(items, policy, free_files=12))
    made = decide(items, policy, free_files=5)
    assert list(went(made)) == ["b3", "b1"] and (made.missing, made.missing_files) == (0, 0)
    assert "needs 7 inodes more" in went_message(made, "b1")
    made = decide(items, policy._replace(need=5), free_files=11)
    assert list(went(made)) == ["b3"] and "needs 5 bytes and 1 inodes more" in went_message(made, "b3")
    assert list(went(decide(items, policy._replace(need=25), free_files=11))) == ["b3", "b1", "b2"]
    made = decide(items, policy._replace(need_files=16, need=10), free_files=0)
    assert went(made) == {} and (made.missing, made.missing_files) == (0, 1)
    made = decide(items, policy._replace(need_files=1, need=31), free_files=0)
    assert went(made) == {} and (made.missing, made.missing_files) == (1, 0)
    # What gives nothing of what is wanted stays.
    bare = copies("ok:0", "ok", "ok", "ok")
    assert list(went(decide([bare[0]._replace(files=9), *bare[1:]], ONE._replace(need=10)))) == ["b2"]
    assert list(
        went(decide([bare[0], bare[1]._replace(files=1), *bare[2:]], ONE._replace(need_files=1), free_files=0))
    ) == ["b2"]
    # One that gives much may come after many that gave little.
    mixed = copies("ok", "ok", "ok", files=1)
    mixed += [
        item._replace(id=f"c{item.sequence}", sequence=item.sequence + 3, files=50) for item in copies("ok", "ok")
    ]
    assert list(went(decide(mixed, ONE._replace(need_files=40), free_files=0))) == ["c1"]
    assert list(went(decide(mixed, ONE._replace(need_files=51), free_files=0))) == ["b1", "c1"]
    by_rule = decide(items, policy._replace(max_copies=3, need_files=5), free_files=0)
    assert went(by_rule) == {"b1": ["COUNT"]}


def test_what_goes_by_rule_makes_room_first() -> None:
    items = copies("ok", "ok", "ok", "ok", "ok")
    policy = ONE._replace(max_copies=4, need=10)
    assert went(decide(items, policy, free=0)) == {"b1": ["COUNT"]}
    assert went(decide(items, policy._replace(need=11), free=0)) == {"b1": ["COUNT"], "b2": ["SPACE"]}


def test_if_all_surplus_is_not_enough_none_of_it_goes_and_it_is_said() -> None:
    items = copies("ok", "ok", "ok")
    made = decide(items, ONE._replace(need=26), free=5)
    assert went(made) == {} and made.missing == 1
    assert decide(items, ONE._replace(need=25), free=5).missing == 0
    assert decide(copies("ok"), ONE._replace(need=25), free=5).missing == 20
    assert decide([], ONE._replace(need=25), free=5).missing == 20


def test_space_overrides_the_freeze_but_not_the_floor() -> None:
    policy = Policy(keep=2, max_age=HOUR, need=20)
    made = decide(copies("ok", "ok", "ok", "ok"), policy, now=T0 + 30 * DAY)
    assert made.frozen
    assert went(made) == {"b1": ["SPACE"], "b2": ["SPACE"]}
    assert decide(copies("ok", "ok", "ok"), policy, now=T0 + 30 * DAY).missing == 10


def test_empty_remains_make_no_room() -> None:
    assert went(decide(copies("failed:0", "ok:1", "ok"), ONE._replace(need=1))) == {"b2": ["SPACE"]}


def test_a_store_of_failed_copies_is_no_trap() -> None:
    """Nothing verified, all failed, full: the oldest failed make room, the newest stay."""
    made = decide(copies(*["failed"] * 5), Policy(keep=2, need=20))
    assert went(made) == {"b1": ["SPACE"], "b2": ["SPACE"]}


# -- what comes next ---------------------------------------------------------------------------------------------------


def test_next_expiry() -> None:
    items = copies("ok", "ok", "ok", "ok")
    now = T0 + 5 * HOUR
    policy = ONE._replace(max_age=DAY)
    assert decide(items, policy, now=now).next_expiry == now + DAY - 2 * HOUR
    held = [items[0]._replace(holds=(Problem("PINNED", "x"),)), *items[1:]]
    assert decide(held, policy, now=now).next_expiry == now + DAY - HOUR
    assert decide(items, ONE, now=now).next_expiry is None
    assert decide(items, policy._replace(fresh_within=0.0), now=now).next_expiry is None
    assert decide([], policy, now=now).next_expiry is None
    assert decide(copies("ok", "ok", "ok"), policy._replace(keep=3, max_age=HOUR / 2), now=now).next_expiry == now


@pytest.mark.parametrize(
    ("verdicts", "keep", "reason", "age"),
    [
        (("unverified", "ok", "ok"), 3, "UNVERIFIED", HOUR),
        (("failed", "ok", "ok"), 3, "NEWEST", HOUR),
        (("failed", "unverified", "unverified", "ok"), 2, "FEW_VERIFIED", 2 * HOUR),
    ],
)
def test_next_expiry_is_that_of_what_only_waits(verdicts: tuple[str, ...], keep: int, reason: str, age: float) -> None:
    made = decide(copies(*verdicts), Policy(keep=keep, max_age=DAY), now=T0 + 5 * HOUR)
    assert stayed(made)["b1"] == [reason]
    assert made.next_expiry == T0 + 5 * HOUR + DAY - age


# -- policies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "codes"),
    [
        (Policy(keep=1), []),
        (Policy(keep=3, max_copies=3, max_age=0.5), []),
        (Policy(keep=1, keep_within=0.0, failed_grace=0.0, fresh_within=0.0, need=0), []),
        (Policy(keep=0), ["KEEP_NOTHING"]),
        (Policy(keep=-1), ["KEEP_NOTHING"]),
        (Policy(keep=3, max_copies=2), ["BAD_POLICY"]),
        (Policy(keep=1, max_age=0.0), ["BAD_POLICY"]),
        (Policy(keep=1, max_age=float("nan")), ["BAD_POLICY"]),
        (Policy(keep=1, max_age=float("inf")), ["BAD_POLICY"]),
        (Policy(keep=1, keep_within=-1.0), ["BAD_POLICY"]),
        (Policy(keep=1, failed_grace=float("nan")), ["BAD_POLICY"]),
        (Policy(keep=1, fresh_within=float("inf")), ["BAD_POLICY"]),
        (
            Policy(keep=0, max_copies=-1, max_age=-1, need=-1),
            ["KEEP_NOTHING", "BAD_POLICY", "BAD_POLICY", "BAD_POLICY"],
        ),
    ],
)
def test_dangerous_policies_are_named(policy: Policy, codes: list[str]) -> None:
    assert [problem.code for problem in policy_problems(policy)] == codes


def test_what_a_policy_means_that_says_nothing_else() -> None:
    assert Policy(keep=1) == Policy(1, None, None, 0.0, 7 * DAY, 3 * DAY, 0)
