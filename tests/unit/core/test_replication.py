# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a second store decides: the whole table, and what must hold for any two stores."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import ledger, replication
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.catalogue import StoreIdentity
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.replication import (
    Copy,
    Here,
    Site,
    Step,
    There,
    candidates,
    choose,
    dump_site,
    follow,
    lag_problems,
    merged,
    parse_site,
    plan,
    site,
    taken_over,
    unresolved,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import Invalid

NOW = 1_795_305_600.0  # 2026-11-22T00:00:00Z
A, B, C = "a" * 64, "b" * 64, "c" * 64
HERE = {
    "nothing": None, "good": Here("good", A), "good, nothing known": Here("good"), "bad": Here("bad", A),
    "bad, nothing known": Here("bad"), "pruned": Here("pruned"), "held": Here("held"),
}  # fmt: skip
THERE = {
    "nothing": None, "same": There("good", A), "different": There("good", B), "not looked at": There("good"),
    "bad": There("bad", A, "why"), "unclear": There("unclear", "", "why"),
}  # fmt: skip
#: here -> what is done for each of THERE, in its order
TABLE = {
    "nothing": ["-", "bring", "bring", "bring", "OTHER_FAILED", "OTHER_UNCLEAR"],
    "good": ["keep", "keep", "DIVERGED", "keep", "keep", "keep"],
    "good, nothing known": ["keep", "keep", "keep", "keep", "keep", "keep"],
    "bad": ["NO_OTHER_COPY", "repair", "DIVERGED", "repair", "BOTH_FAILED", "BOTH_FAILED"],
    "bad, nothing known": ["NO_OTHER_COPY", "repair", "repair", "repair", "BOTH_FAILED", "BOTH_FAILED"],
    "pruned": ["-", "-", "-", "-", "-", "-"],
    "held": ["HELD", "HELD", "HELD", "HELD", "HELD", "HELD"],
}


@pytest.mark.parametrize(("mine", "other"), list(itertools.product(HERE, THERE)))
def test_the_whole_table(mine: str, other: str) -> None:
    here = {name: found for name, found in [("x", HERE[mine])] if found is not None}
    there = {name: found for name, found in [("x", THERE[other])] if found is not None}
    for only_repair in (False, True):
        steps = plan(here, there, only_repair=only_repair)
        told = [step.problem.code if step.problem else step.action for step in steps] or ["-"]
        wanted = TABLE[mine][list(THERE).index(other)]
        assert told == ["-" if only_repair and mine == "nothing" else wanted]
        assert all((step.action == "leave") == (step.problem is not None) for step in steps)


IDS = st.sampled_from([f"{number:08d}-20261122T000000Z" for number in range(1, 6)])
DIGESTS = st.sampled_from(["", A, B])
MINE = st.dictionaries(IDS, st.builds(Here, st.sampled_from(["good", "bad", "pruned", "held"]), DIGESTS))
THEIRS = st.dictionaries(IDS, st.builds(There, st.sampled_from(["good", "bad", "unclear"]), DIGESTS))


@settings(max_examples=150, deadline=None)
@given(MINE, THEIRS, st.booleans())
def test_no_good_copy_is_ever_touched_and_no_bad_one_is_forgotten(
    here: dict[str, Here], there: dict[str, There], only_repair: bool
) -> None:
    steps = plan(here, there, only_repair=only_repair)
    assert [step.id for step in steps] == sorted({step.id for step in steps}, reverse=True)
    touched = [step for step in steps if step.action in ("bring", "repair")]
    for step in touched:
        mine, other = here.get(step.id), there[step.id]
        assert other.state == "good" and (mine is None or mine.state == "bad")
        assert mine is None or not (mine.digest and other.digest and mine.digest != other.digest)
        assert (step.action == "bring") == (mine is None) and not (only_repair and mine is None)
        assert step.id in candidates(here, there, only_repair=only_repair)
    bad = {name for name, mine in here.items() if mine.state == "bad"}
    new = set() if only_repair else set(there) - set(here)
    assert candidates(here, there, only_repair=only_repair) == sorted((bad | new) & set(there), reverse=True)
    assert bad <= {step.id for step in touched} | {step.id for step in steps if step.problem in unresolved(steps)}
    # Carried out, nothing is left to do; and whatever the other store removes, nothing here goes or comes.
    after = {**here, **{step.id: Here("good", there[step.id].digest) for step in touched}}
    assert not [step for step in plan(after, there, only_repair=only_repair) if step.action in ("bring", "repair")]
    assert {step.action for step in plan(after, {}, only_repair=only_repair)} <= {"keep", "leave"}
    good = {name for name, mine in after.items() if mine.state == "good"}
    assert good == {step.id for step in plan(after, {}, only_repair=only_repair) if step.action == "keep"}


def identity(*fingerprints: str) -> StoreIdentity:
    found = StoreIdentity(fingerprints[0][:16], ())
    for fingerprint in fingerprints:
        found = found.with_generation(
            fingerprint, uid="u", members=("n",), run_id="r", added_at="2026-11-01T00:00:00Z", because="why"
        )
    return found


def known(*identities: StoreIdentity) -> dict[str, StoreIdentity]:
    return {one.cluster_id: one for one in identities}


def test_which_cluster_is_meant() -> None:
    a, ab, c = identity(A), identity(A, B), identity(C)
    assert choose({}, known(a)) == choose(known(a), known(ab, c)) == a.cluster_id
    assert choose(known(a, c), known(a, c), fingerprint=C) == choose({}, known(a, c), cluster_id=C[:16]) == C[:16]
    assert choose(known(a), known(c), may_create=True) == C[:16]
    for mine, theirs, options, code in (
        (known(a), known(c), {}, "ANOTHER_CLUSTER"),
        ({}, known(a, c), {}, "UNKNOWN_CLUSTER"),
        (known(a, c), known(a, c), {}, "UNKNOWN_CLUSTER"),
        (known(a), known(a), {"fingerprint": B}, "UNKNOWN_CLUSTER"),
        (known(a), {}, {}, "UNKNOWN_CLUSTER"),
        (known(a), known(a, c), {"cluster_id": C[:16]}, "ANOTHER_CLUSTER"),
    ):
        with pytest.raises(Invalid) as caught:
            choose(mine, theirs, **options)  # type: ignore[arg-type]
        assert [problem.code for problem in caught.value.problems] == [code]
        assert theirs or "holds no cluster" in caught.value.problems[0].message


def test_generations_are_followed_and_never_forked() -> None:
    facts: dict[str, Any] = {"site": "first", "now": "2026-11-22T00:00:00Z", "run_id": "me"}
    new = merged(None, identity(A, B), **facts)
    assert [(one.generation, one.fingerprint, one.run_id, one.added_at) for one in new.generations] == [
        (1, A, "me", facts["now"]),
        (2, B, "me", facts["now"]),
    ]
    assert new.generations[0].because == "why (replicated from first)" and new.generations[0].members == ("n",)
    assert merged(identity(A), identity(A, B), **facts).generations[1].fingerprint == B
    for same in (identity(A), identity(A, B)):
        assert merged(same, identity(A), **facts) is same
    with pytest.raises(Invalid, match="two recoveries") as caught:
        merged(identity(A, B), identity(A, C), **facts)
    assert [problem.code for problem in caught.value.problems] == ["ANOTHER_CLUSTER"]


def chain(*events: tuple[str, str, dict[str, Any]]) -> list[ledger.Event]:
    made: list[ledger.Event] = []
    for kind, subject, data in events:
        head = made[-1] if made else None
        made.append(ledger.make(head, time="2026-11-22T00:00:00Z", run_id="r", kind=kind, subject=subject, data=data))
    return made


def lines(events: list[ledger.Event]) -> bytes:
    return b"".join(event.line() for event in events)


JOINED = ("joined", "dr1", {"version": "5.4"})
ALL = [
    JOINED,
    ("shipped", "x", {}),
    ("verified", "x", {}),
    ("removed", "dr1", {}),
    ("pruned", "x", {}),
    ("no_room", "y", {}),
]


def test_a_ledger_is_followed_as_long_as_it_only_grows() -> None:
    events = chain(*ALL)  # type: ignore[arg-type]
    text = lines(events)
    for count in range(len(events) + 1):
        seen = lines(events[:count])
        assert follow(seen, text) == (ledger.Chain(tuple(events), (), 0), [])
        assert follow(seen, text + b'{"torn')[1] == []
        if count < len(events):
            assert [problem.code for problem in follow(text, seen)[1]] == ["OTHER_LEDGER_ROLLED_BACK"]
    other = lines(chain(*ALL[::-1]))  # type: ignore[arg-type]
    assert [problem.code for problem in follow(text, other)[1]] == ["OTHER_LEDGER_ROLLED_BACK"]
    assert "6 events" in follow(text, b"")[1][0].message
    found, problems = follow(b"", text.replace(b"dr1", b"dr2"))
    assert [problem.code for problem in problems] == ["OTHER_LEDGER_BROKEN"] and found.events == ()


def test_what_happened_to_the_cluster_is_taken_over_once() -> None:
    theirs = chain(*ALL)  # type: ignore[arg-type]
    taken = taken_over([], theirs)
    assert [(kind, subject) for kind, subject, _data in taken] == [("joined", "dr1"), ("removed", "dr1")]
    assert taken[0][2] == {
        "version": "5.4",
        "replicated_from": {
            "sequence": 1, "hash": theirs[0].hash, "time": "2026-11-22T00:00:00Z", "run_id": "r",
        },
    }  # fmt: skip
    mine = chain(("expanded", "n2", {}), *taken[:1])
    assert taken_over(mine, theirs) == taken[1:]
    assert taken_over(chain(*taken), theirs) == []
    # And back: only what began here, and what was lost there.
    assert [kind for kind, _subject, _data in taken_over(theirs, mine)] == ["expanded"]
    assert taken_over(theirs[1:], mine) == [*taken_over(theirs, mine), *taken[:1]]
    assert taken_over([], mine)[1:] == taken[:1] and taken_over([], chain(*taken)) == taken
    assert ledger.fold(chain(*taken)).removed.keys() == ledger.fold(theirs).removed.keys()


@pytest.mark.parametrize("origin", ["A", {}, {"hash": None}, None])
def test_an_event_whose_origin_says_nothing_began_where_it_is(origin: Any) -> None:
    (event,) = chain(("joined", "dr1", {"replicated_from": origin}))
    (taken,) = taken_over([], [event])
    assert taken[2]["replicated_from"]["hash"] == event.hash
    assert taken_over([event], [event]) == taken_over(chain(taken), [event]) == []


SITES = st.integers(0, 2)
WHAT_HAPPENS = st.lists(
    st.one_of(
        st.tuples(st.just("recorded"), SITES, st.sampled_from(["joined", "removed", "shipped"])),
        st.tuples(st.just("replicated"), SITES, SITES),
        st.tuples(st.just("lost"), SITES, st.integers(0, 3)),
    ),
    max_size=25,
)


@settings(max_examples=200, deadline=None)
@given(WHAT_HAPPENS)
def test_between_three_sites_nothing_is_told_twice_and_nothing_is_lost_that_one_of_them_has(history: list[Any]) -> None:
    ledgers: list[list[tuple[str, str, dict[str, Any]]]] = [[], [], []]

    def replicate(here: int, there: int) -> int:
        taken = taken_over(chain(*ledgers[here]), chain(*ledgers[there]))
        ledgers[here] += taken
        return len(taken)

    for number, (what, here, other) in enumerate(history):
        if what == "recorded":
            ledgers[here].append((other, f"n{number}", {}))
        elif what == "replicated":
            replicate(here, other)
        else:
            # An older state of the ledger was put back, or none at all.
            del ledgers[here][other:]
    known = {subject for events in ledgers for kind, subject, _data in events if kind != "shipped"}
    for _round in range(2):
        for here, there in itertools.permutations(range(3), 2):
            replicate(here, there)
    for events in ledgers:
        assert sorted(subject for kind, subject, _data in events if kind != "shipped") == sorted(known)
    assert not any(replicate(here, there) for here, there in itertools.product(range(3), repeat=2))


def test_how_new_a_site_is() -> None:
    copies = [
        Copy("2", "2026-11-21T02:00:00Z", "ok"), Copy("3", None, "unverified"), Copy("1", "2026-11-21T01:00:00Z", "ok"),
        Copy("4", "2026-11-21T04:00:00Z", "failed"), Copy("0", "2026-11-21T00:30:00Z", "ok"),
    ]  # fmt: skip
    found = site("oor", "2026-11-22T00:00:00Z", copies, copies[:3])
    assert found == Site(
        "oor", "2026-11-22T00:00:00Z", 5, 3, "4", "2026-11-21T04:00:00Z", "2", "2026-11-21T02:00:00Z", 3,
        "2026-11-21T01:00:00Z",
    )  # fmt: skip
    assert site("oor", "t", []) == Site("oor", "t", 0, 0, None, None, None, None, 0, None)
    data = json.dumps(dump_site(found)).encode()
    assert parse_site(data) == found
    for wrong in (b"", b"{}", data.replace(b"oor", b"oos"), data.replace(b'"schema": 1', b'"schema": 2')):
        with pytest.raises(Invalid) as caught:
            parse_site(wrong)
        assert [problem.code for problem in caught.value.problems] == ["EMPTY" if not wrong else "UNREADABLE"]


def test_lag() -> None:
    fresh = site("oor", "2026-11-22T00:00:00Z", [])
    assert lag_problems(fresh, NOW, 0.5) == []
    assert lag_problems(fresh, NOW + 60, 60) == []
    assert [problem.code for problem in lag_problems(fresh, NOW + 61, 60)] == ["UNSEEN"]
    assert [problem.code for problem in lag_problems(None, NOW, 60)] == ["NOT_REPLICATED"]
    behind = fresh._replace(missing=2, missing_since="2026-11-21T23:59:00Z")
    assert lag_problems(behind, NOW, 60) == []
    assert [problem.code for problem in lag_problems(behind, NOW + 1, 60)] == ["BEHIND"]
    assert [problem.code for problem in lag_problems(behind, NOW + 61, 60)] == ["UNSEEN", "BEHIND"]
    (unknown,) = lag_problems(behind._replace(missing_since=None), NOW, 60)
    assert unknown.code == "BEHIND" and "nothing says since when" in unknown.message


def test_only_what_can_be_done_here_is_asked_of_a_person() -> None:
    there = {"a": There("bad", why="its verification failed there"), "b": There("good"), "d": There("unclear")}
    steps = plan({"c": Here("bad")}, there, only_repair=False)
    assert [problem.code for problem in unresolved(steps)] == ["OTHER_UNCLEAR", "NO_OTHER_COPY"]
    assert replication.concerns_of_other(steps) == [
        "a: the other store's copy cannot be taken: its verification failed there"
    ]
    assert Step("b", "bring") in steps
