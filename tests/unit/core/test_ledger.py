# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ledger: a chain that shows every change, and what its events amount to."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import ledger, replication
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.openability import classify
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import Invalid, canonical, digest

NOW = "2026-11-22T00:53:00Z"
PRODUCTION, RECOVERED = "aa" * 32, "bb" * 32
MEMBERS = [{"name": f"dc{n}-n1", "addresses": [f"192.0.2.{n}"], "host_id": f"h{n}"} for n in (1, 2, 3)]
SEALED = {"node": "dr1", "platform_id": "S", "version": "5.4", "joined_at": "2026-11-21T00:00:00Z", "member": True}


def chain(*events: tuple[str, str, dict[str, Any]], run_id: str = "run-1") -> list[ledger.Event]:
    """Events one after the other."""
    made: list[ledger.Event] = []
    for kind, subject, data in events:
        head = made[-1] if made else None
        made.append(ledger.make(head, time=NOW, run_id=run_id, kind=kind, subject=subject, data=data))
    return made


def as_read(*events: tuple[str, str, Any]) -> list[ledger.Event]:
    """Events as an older release recorded them: it did not ask what they say."""
    return [
        ledger.Event(number, NOW, "run-1", kind, subject, data, "", f"{number:064x}")
        for number, (kind, subject, data) in enumerate(events, 1)
    ]


def lines(events: list[ledger.Event]) -> bytes:
    return b"".join(event.line() for event in events)


def observed(fingerprint: str = PRODUCTION) -> tuple[str, str, dict[str, Any]]:
    return "observed_members", "cluster", {"members": MEMBERS, "fingerprint": fingerprint, "version": "5.4"}


def shipped(number: int, **changes: Any) -> tuple[str, str, dict[str, Any]]:
    data = {
        "fingerprint": PRODUCTION,
        "snapshot_started": "2026-11-22T00:00:00Z",
        "oldest_mtime": 1,
        "sealed_for": [SEALED],
        **changes,
    }
    return "shipped", f"{number:08d}-20261122T000000Z", data


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
plain_kinds = st.sampled_from(["joined", "removed", "backup_started", "verified", "set_aside", "expanded"])
histories = st.lists(
    st.tuples(plain_kinds, st.text(min_size=1), st.dictionaries(st.text(), json_values, max_size=3)).filter(
        lambda event: not ledger.kind_problems(*event)
    ),
    min_size=1,
    max_size=8,
)


@given(histories)
def test_whatever_is_appended_is_read_back(history: list[tuple[str, str, dict[str, Any]]]) -> None:
    events = chain(*history)
    read = ledger.read(lines(events))
    assert list(read.events) == events and not read.problems and not read.torn
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))


def test_f10_a_changed_byte_that_leaves_the_content_as_it_was_is_seen() -> None:
    (event,) = chain(("removed", "caf\u00e9", {"version": "5.4"}))
    line = event.line()
    assert b"caf\\u00e9" in line
    for changed in (
        line.replace(b"\\u00e9", b"\\u00E9"),
        line.replace(b'"5.4"', b'"5\\u002e4"'),
        line.replace(b":", b": ", 1),
    ):
        assert changed != line and [problem.code for problem in ledger.read(changed).problems] == ["CHAIN"]


@given(histories, st.data())
@settings(max_examples=200)
def test_no_changed_byte_goes_unseen(history: list[tuple[str, str, dict[str, Any]]], data: st.DataObject) -> None:
    events = chain(*history)
    original = lines(events)
    at = data.draw(st.integers(0, len(original) - 2))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != original[at]))
    read = ledger.read(original[:at] + bytes([other]) + original[at + 1 :])
    untouched = original[:at].count(b"\n")
    assert read.problems, "a change passed"
    assert list(read.events) == events[: len(read.events)] and len(read.events) <= untouched


@given(histories, st.data())
def test_no_removed_inserted_or_swapped_line_goes_unseen(
    history: list[tuple[str, str, dict[str, Any]]], data: st.DataObject
) -> None:
    events = chain(*history, ("joined", "dr1", {}))
    at = data.draw(st.integers(0, len(events) - 2))
    removed = events[:at] + events[at + 1 :]
    doubled = [*events[: at + 1], *events[at:]]
    swapped = list(events)
    swapped[at], swapped[at + 1] = swapped[at + 1], swapped[at]
    for forged in (removed, doubled, swapped):
        assert ledger.read(lines(forged)).problems


def test_f25_an_earlier_event_rewritten_with_its_own_hash_recomputed_breaks_the_chain() -> None:
    """Sequence and every hash are right; only the link to the line before tells."""
    first, second = chain(observed(), shipped(1))
    forged = ledger.make(
        None, time=first.time, run_id="another-run", kind=first.kind, subject=first.subject, data=first.data
    )
    assert forged.sequence == first.sequence
    read = ledger.read(lines([forged, second]))
    assert [event.hash for event in read.events] == [forged.hash]
    assert [problem.code for problem in read.problems] == ["CHAIN"]


def test_f02_an_unfinished_last_line_never_happened() -> None:
    events = chain(observed(), ("joined", "dr1", {}))
    whole = lines(events)
    first = len(events[0].line())
    for cut in range(first, len(whole)):
        read = ledger.read(whole[:cut])
        assert list(read.events) == events[:1] and not read.problems and read.torn == cut - first


def test_an_absent_ledger_is_empty() -> None:
    read = ledger.read(b"")
    assert read.events == () and read.problems == () and read.head is None


def test_a_kind_of_a_newer_release_is_not_skipped() -> None:
    (event,) = chain(("joined", "dr1", {}))
    fields = {**event.as_dict(), "kind": "teleported"}
    fields.pop("hash")
    forged = ledger.Event(hash=ledger.digest(fields), **fields)
    assert [problem.code for problem in ledger.read(forged.line()).problems] == ["UNKNOWN"]


def test_a_bad_time_is_refused() -> None:
    with pytest.raises(Invalid):
        ledger.make(None, time="now", run_id="", kind="joined", subject="dr1", data={})


def test_state_is_written_once_and_evidence_once_a_run() -> None:
    events = chain(("joined", "dr1", {"version": "5.4"}), ("verified", "b", {"verdict": "ok"}))
    same = {"version": "5.4"}
    assert ledger.repeated(events, "run-2", "joined", "dr1", same) == events[0]
    assert ledger.repeated(events, "run-2", "joined", "dr1", {"version": "5.6"}) is None
    assert ledger.repeated(events, "run-2", "joined", "dr2", same) is None
    assert ledger.repeated(events, "run-1", "verified", "b", {"verdict": "ok"}) == events[1]
    assert ledger.repeated(events, "run-2", "verified", "b", {"verdict": "ok"}) is None


#: kind -> whether it is state, and what makes an equal one news again
KINDS: dict[str, tuple[bool, set[str]]] = {
    "observed_members": (False, set()),
    "joined": (True, {"removed", "set_aside"}),
    "backup_started": (False, set()),
    "shipped": (False, set()),
    "verified": (False, {"shipped", "pruned"}),
    "removed": (True, {"joined"}),
    "set_aside": (True, {"joined"}),
    "trial_created": (True, {"trial_reset"}),
    "restored": (True, {"trial_reset"}),
    "proved": (False, set()),
    "expanded": (True, {"trial_reset"}),
    "trial_reset": (True, {"trial_created"}),
    "fenced": (True, set()),
    "accepted": (True, set()),
    "pruned": (True, {"shipped"}),
    "no_room": (True, set()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_state_or_evidence_and_is_undone_by_what_contradicts_it(kind: str) -> None:
    data = {"members": MEMBERS, "fingerprint": PRODUCTION, "backup": "b", "drill": True}
    state, undone_by = KINDS[kind]
    (event,) = chain((kind, "x", data))
    assert (ledger.repeated([event], "run-2", kind, "x", data) == event) is state
    for other in KINDS:
        if other != kind:
            again = ledger.repeated(chain((kind, "x", data), (other, "x", data)), "run-1", kind, "x", data)
            assert (again is None) is (other in undone_by), other
            elsewhere = chain((kind, "x", data), (other, "y", data))
            assert ledger.repeated(elsewhere, "run-1", kind, "x", data) == event


@pytest.mark.parametrize(
    ("kind", "subject", "data", "told"),
    [
        ("praised", "x", {}, "praised"),
        ("joined", "", {}, "subject"),
        ("observed_members", "c", {"fingerprint": PRODUCTION}, "members"),
        ("observed_members", "c", {"members": MEMBERS}, "fingerprint"),
        ("observed_members", "c", {"members": [{"name": ""}], "fingerprint": PRODUCTION}, "a name"),
        ("observed_members", "c", {"members": ["dc1-n1"], "fingerprint": PRODUCTION}, "a name"),
        ("observed_members", "c", {"members": {"name": "a"}, "fingerprint": PRODUCTION}, "a name"),
        ("restored", "n", {"fingerprint": PRODUCTION, "drill": False}, "backup"),
        ("restored", "n", {"backup": "b", "drill": False}, "fingerprint"),
        ("restored", "n", {"fingerprint": PRODUCTION, "backup": "b"}, "drill"),
        ("restored", "n", {"fingerprint": PRODUCTION, "backup": "b", "drill": 1}, "drill"),
        ("proved", "n", {}, "backup"),
        ("fenced", "n", {}, "fingerprint"),
        ("accepted", "n", {}, "fingerprint"),
    ],
)
def test_an_event_that_would_say_nothing_is_refused(kind: str, subject: str, data: dict[str, Any], told: str) -> None:
    with pytest.raises(Invalid) as caught:
        chain((kind, subject, data))
    assert [problem.code for problem in caught.value.problems] == ["WRONG_VALUE"]
    assert told in caught.value.problems[0].message
    with pytest.raises(Invalid) as caught:
        ledger.make(None, time="soon", run_id="", kind=kind, subject=subject, data=data)
    assert [problem.code for problem in caught.value.problems] == ["WRONG_VALUE"] * 2


def test_what_was_found_right_before_is_the_beginning_of_the_chain() -> None:
    events = chain(("joined", "a", {}), ("joined", "b", {}), ("joined", "c", {}))
    known = len(lines(events[:2]))
    read = ledger.read(lines(events), known)
    assert (read.events, read.problems, read.head) == (tuple(events), (), events[2])
    other = chain(("joined", "x", {}), ("joined", "y", {}))
    assert [problem.code for problem in ledger.read(lines([*events[:2], other[1]]), known).problems] == [
        "CHAIN",
        "CHAIN",
    ]
    assert ledger.read(lines(events[:2]), known).head == events[1]
    assert ledger.read(b"").head is None


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"time": "soon"}, "WRONG_VALUE"), ({"kind": "praised"}, "UNKNOWN"), ({"sequence": 2}, "CHAIN"), ({}, "")],
)
def test_an_event_whose_hash_fits_is_judged_by_its_content(changes: dict[str, Any], code: str) -> None:
    (event,) = chain(("joined", "a", {}))
    value = {**event.as_dict(), **changes}
    del value["hash"]
    value["hash"] = digest(value)
    read = ledger.read(canonical(value) + b"\n")
    assert [problem.code for problem in read.problems] == ([code] if code else [])
    assert len(read.events) == (0 if code else 1)


def test_an_event_that_was_changed_breaks_the_chain_and_nothing_behind_it_counts() -> None:
    text = lines(chain(("joined", "a", {}), ("joined", "b", {}), ("joined", "c", {})))
    read = ledger.read(text.replace(b'"b"', b'"x"'))
    assert [problem.code for problem in read.problems] == ["CHAIN"] and len(read.events) == 1


@pytest.mark.parametrize(
    ("written", "code"), [("1e999", "UNREADABLE"), ("1" * 4000, "CHAIN"), ('"\\ud800"', "CHAIN"), ("1e99", "CHAIN")]
)
def test_a_value_that_nobody_writes_is_a_broken_line_and_no_crash(written: str, code: str) -> None:
    text = lines(chain(observed())).replace(b'"version":"5.4"', b'"version":' + written.encode())
    assert written.encode() in text
    assert [problem.code for problem in ledger.read(text).problems][:1] == [code]


@pytest.mark.parametrize(("later", "version"), [("5.6", "5.6"), ("", "5.4"), (None, "5.4")])
def test_a_version_is_known_until_another_one_is_seen(later: str | None, version: str) -> None:
    kind, subject, data = observed()
    folded = ledger.fold(chain((kind, subject, data), (kind, subject, {**data, "version": later})))
    assert folded.version == version
    assert ledger.fold(chain((kind, subject, {**data, "version": later}))).version == (later or "")


def test_who_joins_again_is_not_removed_any_more() -> None:
    facts = {"addresses": ["192.0.2.9"], "host_id": "h9", "version": "5.4"}
    folded = ledger.fold(chain(("joined", "dr1", facts), ("removed", "dr1", {}), ("joined", "dr1", facts)))
    assert folded.removed == {} and folded.joins["dr1"]["sequence"] == 3
    assert folded.members == [{"name": "dr1", "addresses": ["192.0.2.9"], "host_id": "h9"}]
    unknown = ledger.fold(chain(("joined", "dr1", {})))
    assert unknown.members == [{"name": "dr1", "addresses": [], "host_id": ""}]


def test_what_is_brought_home_again_is_not_pruned_any_more() -> None:
    kind, name, data = shipped(1)
    folded = ledger.fold(
        chain((kind, name, data), ("pruned", name, {}), (kind, name, data), ("verified", name, {"verdict": "ok"}))
    )
    assert folded.pruned == {} and list(folded.backups) == [name]
    assert (folded.backups[name]["verdict"], folded.backups[name]["verified_at"]) == ("ok", NOW)


def test_what_is_told_of_a_golden_pair_and_of_a_generation() -> None:
    events = chain(observed(), shipped(1), ("verified", shipped(1)[1], {"verdict": "ok"}))
    folded = ledger.fold(events)
    (golden,) = folded.golden
    assert golden == {
        "id": shipped(1)[1],
        "node": "dr1",
        "platform_id": "S",
        "version": "5.4",
        "joined_at": SEALED["joined_at"],
        "snapshot_started": shipped(1)[2]["snapshot_started"],
        "verdict": "ok",
        "sequence": 2,
    }
    first = {"fingerprint": PRODUCTION, "sequence": 1, "backup": None, "fenced": False, "accepted": True}
    assert folded.generations == [first]
    late = chain(
        *((kind, name, {**data, "snapshot_started": None, "oldest_mtime": 0}) for kind, name, data in [shipped(1)])
    )
    assert ledger.fold(late).golden == []


def test_an_empty_line_is_no_event() -> None:
    assert ledger.read(b"\n").problems and ledger.read(b"\n").events == ()


def test_what_a_run_without_a_name_found_is_news_every_time() -> None:
    """Else a store that is verified every night would say for ever that it was verified in the first one."""
    first = ledger.make(None, time=NOW, run_id="", kind="verified", subject="b", data={"verdict": "ok"})
    assert ledger.repeated([first], "", "verified", "b", {"verdict": "ok"}) is None
    joined = ledger.make(None, time=NOW, run_id="", kind="joined", subject="dr1", data={})
    assert ledger.repeated([joined], "", "joined", "dr1", {}) == joined


def test_a_second_join_with_the_same_facts_after_a_removal_counts_again() -> None:
    events = chain(("joined", "dr1", {}), ("removed", "dr1", {}))
    assert ledger.repeated(events, "run-2", "joined", "dr1", {}) is None


def test_fold_of_the_whole_plan() -> None:
    events = chain(
        observed(),
        ("joined", "dr1", {"joined_at": NOW, "version": "5.4", "platform_id": "S"}),
        shipped(1),
        ("verified", "00000001-20261122T000000Z", {"verdict": "ok"}),
        ("removed", "dr1", {}),
        ("set_aside", "dr1", {}),
        ("trial_created", "dr1", {"fingerprint": RECOVERED}),
        ("restored", "dr1", {"backup": "00000001-20261122T000000Z", "fingerprint": RECOVERED, "drill": False}),
        ("proved", "dr1", {"backup": "00000001-20261122T000000Z"}),
        ("expanded", "spare1", {"addresses": ["192.0.2.9"]}),
    )
    folded = ledger.fold(events)
    assert [item["name"] for item in ledger.fold(events[:1]).members] == ["dc1-n1", "dc2-n1", "dc3-n1"]
    assert [item["name"] for item in ledger.fold(events[:2]).members] == ["dc1-n1", "dc2-n1", "dc3-n1", "dr1"]
    assert [item["name"] for item in ledger.fold(events[:5]).members] == ["dc1-n1", "dc2-n1", "dc3-n1"]
    assert ledger.fold(events[:7]).production_fingerprint == PRODUCTION
    assert folded.production_fingerprint == RECOVERED
    assert [item["name"] for item in folded.members] == ["dr1", "spare1"]
    assert [item["fingerprint"] for item in folded.generations] == [PRODUCTION, RECOVERED]
    assert folded.joins["dr1"]["version"] == "5.4" and folded.removed["dr1"]["kind"] == "set_aside"
    assert folded.trials["dr1"]["open"] is True
    assert [(item["node"], item["verdict"]) for item in folded.golden] == [("dr1", "ok")]
    assert folded.proved[0]["node"] == "dr1"


def test_a_drill_is_no_new_generation() -> None:
    events = chain(
        observed(),
        ("restored", "dr1", {"backup": "b", "fingerprint": RECOVERED, "drill": True}),
        ("trial_reset", "dr1", {}),
    )
    folded = ledger.fold(events)
    assert folded.production_fingerprint == PRODUCTION and len(folded.generations) == 1
    assert folded.trials["dr1"]["open"] is False


def test_fencing_and_acceptance_mark_their_generation() -> None:
    events = chain(
        observed(),
        ("restored", "dr1", {"backup": "b", "fingerprint": RECOVERED, "drill": False}),
        ("fenced", "cluster", {"fingerprint": PRODUCTION}),
        ("accepted", "cluster", {"fingerprint": RECOVERED}),
    )
    old, new = ledger.fold(events).generations
    assert old["fenced"] and not new["fenced"] and new["accepted"]
    assert not ledger.fold(events[:2]).generations[1]["accepted"]


@pytest.mark.parametrize(
    "changes",
    [
        {"snapshot_started": None},
        {"snapshot_started": "2026-11-20T00:00:00Z"},
        {"sealed_for": [{**SEALED, "member": False}]},
        {"sealed_for": [{**SEALED, "joined_at": None}]},
        {"sealed_for": []},
    ],
)
def test_f54_what_is_not_shown_to_be_golden_is_not_golden(changes: dict[str, Any]) -> None:
    assert ledger.fold(chain(shipped(1))).golden
    assert not ledger.fold(chain(shipped(1, **changes))).golden


def test_f17_the_fold_follows_the_sequence_and_not_the_clock() -> None:
    first = ledger.make(
        None, time="2030-01-01T00:00:00Z", run_id="", kind="joined", subject="dr1", data={"version": "1"}
    )
    second = ledger.make(
        first, time="2020-01-01T00:00:00Z", run_id="", kind="joined", subject="dr1", data={"version": "2"}
    )
    assert ledger.fold([first, second]).joins["dr1"]["version"] == "2"


def elsewhere(event: tuple[str, str, dict[str, Any]]) -> tuple[str, str, dict[str, Any]]:
    """As it is recorded where it was taken over."""
    kind, subject, data = event
    return kind, subject, {**data, ledger.ORIGIN: {"sequence": 1, "hash": "cc" * 32, "time": NOW, "run_id": "r"}}


def saw(*names: str, fingerprint: str = PRODUCTION) -> tuple[str, str, dict[str, Any]]:
    return "observed_members", "cluster", {"members": [{"name": name} for name in names], "fingerprint": fingerprint}


def names(*events: tuple[str, str, dict[str, Any]]) -> list[str]:
    return [item["name"] for item in ledger.fold(chain(*events)).members]


JOINED, REMOVED = ("joined", "dr1", {"version": "5.4"}), ("removed", "dr1", {})
RECOVERY = ("restored", "dr1", {"backup": "b", "fingerprint": RECOVERED, "drill": False})


def test_a_look_of_another_site_brings_nobody_back_who_was_removed() -> None:
    assert names(saw("n1", "dr1"), REMOVED, elsewhere(saw("n1", "n2", "dr1"))) == ["n1", "n2"]
    # Without any word against it, and after another join, it counts.
    assert names(saw("n1"), elsewhere(saw("n1", "dr1"))) == ["n1", "dr1"]
    assert names(REMOVED, JOINED, elsewhere(saw("n1", "dr1"))) == ["n1", "dr1"]
    # Here the sequence decides.
    assert names(saw("n1"), REMOVED, saw("n1", "dr1")) == ["n1", "dr1"]


def test_a_join_of_another_site_undoes_a_removal_of_that_site_alone() -> None:
    told = ledger.fold(chain(saw("n1"), REMOVED, elsewhere(JOINED)))
    assert told.removed.keys() == told.joins.keys() == {"dr1"} and names(saw("n1"), REMOVED, elsewhere(JOINED)) == [
        "n1"
    ]
    both = [elsewhere(REMOVED), elsewhere(JOINED)]
    assert ledger.fold(chain(*both)).removed == {} and names(*both) == ["dr1"]
    assert names(REMOVED, *both) == names(REMOVED, elsewhere(("expanded", "dr1", {}))) == []
    assert names(REMOVED, JOINED, *both) == names(REMOVED, *both, JOINED) == ["dr1"]


@pytest.mark.parametrize("where", [lambda event: event, elsewhere])
def test_a_superseded_generation_is_not_production_again_because_somebody_looked(where: Any) -> None:
    old = where(saw("n1", "n2"))
    folded = ledger.fold(chain(saw("n1"), RECOVERY, old))
    assert (folded.production_fingerprint, folded.members) == (
        RECOVERED, [{"name": "dr1", "addresses": [], "host_id": ""}],
    )  # fmt: skip
    assert names(saw("n1"), RECOVERY, where(saw("dr1", "dr2", fingerprint=RECOVERED))) == ["dr1", "dr2"]
    # People may decide to go back.
    back = ("restored", "n1", {**RECOVERY[2], "fingerprint": PRODUCTION})
    assert ledger.fold(chain(saw("n1"), RECOVERY, back, old)).production_fingerprint == PRODUCTION


def test_what_another_site_tells_leads_away_from_a_recovery_only_to_another_one() -> None:
    first = elsewhere(saw("n1"))
    assert ledger.fold(chain(RECOVERY, first)).production_fingerprint == RECOVERED
    assert ledger.fold(chain(RECOVERY, saw("n1", fingerprint="cc" * 32))).production_fingerprint == "cc" * 32
    next_one = ("restored", "dr2", {**RECOVERY[2], "fingerprint": "cc" * 32})
    assert ledger.fold(chain(first, elsewhere(RECOVERY), next_one)).production_fingerprint == "cc" * 32
    assert ledger.fold(chain(RECOVERY, elsewhere(next_one))).production_fingerprint == "cc" * 32
    assert ledger.fold(chain(RECOVERY, next_one, elsewhere(RECOVERY))).production_fingerprint == "cc" * 32


def test_who_was_removed_and_serves_again_without_a_join_is_not_out() -> None:
    def out(*events: tuple[str, str, dict[str, Any]]) -> bool:
        return bool(ledger.fold(chain(*events)).removed["dr1"]["out"])

    assert (
        out(REMOVED)
        and out(("set_aside", "dr1", {}))
        and out(REMOVED, ("restored", "dr1", {**RECOVERY[2], "drill": True}))
    )
    assert not out(REMOVED, RECOVERY) and not out(REMOVED, ("expanded", "dr1", {}))
    assert out(REMOVED, RECOVERY, REMOVED) and out(REMOVED, elsewhere(RECOVERY))
    assert not out(elsewhere(REMOVED), elsewhere(RECOVERY))
    assert names(REMOVED, RECOVERY, elsewhere(saw("dr1", fingerprint=RECOVERED))) == ["dr1"]


def sealed(**changes: Any) -> dict[str, Any]:
    return {"sealed_for": [{**SEALED, **changes}]}


#: Each was accepted once, and then nothing could be done with the store any more.
MALFORMED: list[tuple[str, dict[str, Any], str]] = [
    ("shipped", sealed(joined_at="2026-11-21"), "sealed_for"),
    ("shipped", sealed(node=1), "sealed_for"),
    ("shipped", sealed(node=""), "sealed_for"),
    ("shipped", sealed(version=5.4), "sealed_for"),
    ("shipped", sealed(member="yes"), "sealed_for"),
    ("shipped", {"sealed_for": ["dr1"]}, "sealed_for"),
    ("shipped", {"sealed_for": {"node": "dr1"}}, "sealed_for"),
    ("shipped", {"snapshot_started": "2026-11-21 01:00"}, "snapshot_started"),
    ("shipped", {"oldest_mtime": "1"}, "oldest_mtime"),
    ("shipped", {"oldest_mtime": True}, "oldest_mtime"),
    ("shipped", {"bytes": -1}, "bytes"),
    ("shipped", {"digest": ["d"]}, "digest"),
    ("verified", {"verdict": "failed", "codes": 5}, "codes"),
    ("verified", {"verdict": "failed", "codes": [{"code": "CORRUPT"}]}, "codes"),
    ("verified", {"verdict": "OK"}, "verdict"),
    ("verified", {"verdict": None}, "verdict"),
    ("verified", {"verdict": {"a": 1}}, "verdict"),
    ("verified", {"verdict": "ok", "partial": True, "slice": 1.5, "slices": 2}, "slice"),
    ("no_room", {"newer": 5}, "newer"),
    ("no_room", {"newer": [["a"]]}, "newer"),
    ("no_room", {"bytes": -5}, "bytes"),
    ("no_room", {"bytes": "many"}, "bytes"),
    ("joined", {"addresses": 5}, "addresses"),
    ("joined", {"addresses": "192.0.2.9"}, "addresses"),
    ("joined", {"joined_at": "2026-11-21"}, "joined_at"),
    ("joined", {"joined_at": 5}, "joined_at"),
    ("joined", {"platform_id": 12345}, "platform_id"),
    ("expanded", {"host_id": 5}, "host_id"),
    ("observed_members", {"members": [{"name": ["a"]}], "fingerprint": "f"}, "members"),
    ("observed_members", {"members": [{"name": "a", "addresses": 5}], "fingerprint": "f"}, "members"),
    ("observed_members", {"members": MEMBERS, "fingerprint": ["f"]}, "fingerprint"),
    ("restored", {"backup": "b", "fingerprint": ["f"], "drill": False}, "fingerprint"),
    ("proved", {"backup": ["x"]}, "backup"),
    ("fenced", {"fingerprint": 5}, "fingerprint"),
    ("pruned", {"key": 5}, "key"),
]


@pytest.mark.parametrize(("kind", "data", "key"), MALFORMED)
def test_what_has_not_its_form_is_not_recorded_and_never_counts(kind: str, data: dict[str, Any], key: str) -> None:
    (problem,) = ledger.kind_problems(kind, "x", data)
    assert problem.code == "WRONG_VALUE" and problem.message.startswith(f"data.{key} of an event {kind} must be ")
    _kind, _name, right = shipped(1)
    before = as_read(observed(), ("shipped", "x", right), ("verified", "x", {"verdict": "ok"}))
    (event,) = as_read((kind, "x", data if kind != "shipped" else {**right, **data}))
    events = [*before, replace(event, sequence=4)]
    folded = ledger.fold(events)
    assert folded.production_fingerprint == PRODUCTION and not folded.proved
    assert {"dc1-n1", "dc2-n1", "dc3-n1"} <= {item["name"] for item in folded.members}
    assert not any(item["fenced"] for item in folded.generations)
    assert ledger.verdicts(events).get("x") in ("ok", "failed", None)
    assert ledger.passed_over(events, {"a", "x"}) == set() and ledger.wanted_room(events) == (0, 0)


def test_what_is_not_known_is_no_mistake() -> None:
    for kind, data in (
        ("joined", {"joined_at": "", "addresses": None, "host_id": None, "platform_id": "", "version": None}),
        ("shipped", sealed(joined_at=None) | {"snapshot_started": None, "oldest_mtime": -5}),
        ("no_room", {"newer": None, "bytes": None}),
        ("pruned", {"verdict": "unverified"}),
    ):
        assert ledger.kind_problems(kind, "x", data) == []
        ledger.fold(chain((kind, "x", data)))
    assert ledger.passed_over(chain(("no_room", "x", {"newer": None})), {"a"}) == set()


def test_a_malformed_verdict_is_never_good_news() -> None:
    def verdict(*found: dict[str, Any]) -> str:
        events = as_read(shipped(1), *(("verified", shipped(1)[1], data) for data in found))
        told = str(ledger.fold(events).backups[shipped(1)[1]]["verdict"])
        assert ledger.verdicts(events).get(shipped(1)[1], "unverified") == told
        return told

    ok = {"verdict": "ok"}
    assert verdict({**ok, "codes": 5}) == verdict({**ok, "digest": 5}) == "unverified"
    assert verdict(ok, {"verdict": "OK"}) == verdict(ok, {"verdict": "failed", "codes": 5}) == "failed"
    # What failed for a reason that nobody understands is not lifted by slices.
    slices = [{**ok, "partial": True, "slice": number, "slices": 2} for number in (1, 2)]
    assert verdict({"verdict": "failed", "codes": [{}]}, *slices) == "failed"
    assert verdict({"verdict": "failed", "codes": ["CORRUPT"]}, *slices) == "ok"
    for doubt in ({"slice": "2"}, {"slice": True}, {"slices": [1, 2]}, {"slices": -2}):
        assert verdict(slices[0], {**slices[1], **doubt}) == "unverified"


def test_a_doubtful_record_of_who_can_open_a_backup_leaves_a_doubt() -> None:
    """Neither golden for what is not understood, nor forgotten as something that nobody can open."""
    name = shipped(1)[1]
    for doubt, kind in (("joined_at", "presumed"), ("platform_id", "presumed"), ("member", "presumed")):
        folded = ledger.fold(as_read(shipped(1, **sealed(**{doubt: 5}))))
        copy = ledger.copy_of_record(name, folded.backups[name])
        assert folded.golden == [] and classify(copy, "dr1").kind == kind
    folded = ledger.fold(as_read(shipped(1, sealed_for=["dr2", SEALED, {"node": None}])))
    assert [pair["node"] for pair in folded.golden] == ["dr1"]
    assert ledger.fold(as_read(shipped(1, snapshot_started="soon"))).golden == []
    assert ledger.fold(as_read(shipped(1, snapshot_started=""), shipped(2, **sealed(joined_at="")))).golden == []


known_keys = st.sampled_from(
    sorted({key for forms in ledger._FORMS.values() for key in forms} | {"drill", "partial", "out", ledger.ORIGIN})
)
plausible = st.sampled_from(
    [NOW, "ok", "failed", PRODUCTION, 1, [SEALED], MEMBERS, ["a"], {"name": "a"}, [{"node": "a"}]]
)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(ledger.KINDS),
            st.sampled_from("ab"),
            st.dictionaries(known_keys, json_values | plausible, max_size=6),
        ),
        max_size=8,
    )
)
def test_no_event_that_was_ever_recorded_makes_the_ledger_useless(history: list[tuple[str, str, Any]]) -> None:
    events = as_read(*history)
    json.dumps(ledger.fold(events).as_dict())
    ledger.verdicts(events)
    ledger.passed_over(events, {"a"})
    assert min(ledger.wanted_room(events)) >= 0
    taken = replication.taken_over([], events)
    assert not [event for event in taken if ledger.kind_problems(*event)]
    assert ledger.fold(chain(*taken)).members == ledger.fold(as_read(*taken)).members


@given(histories)
def test_the_fold_never_fails_on_a_valid_chain(history: list[tuple[str, str, dict[str, Any]]]) -> None:
    folded = ledger.fold(chain(*history))
    assert set(folded.as_dict()) >= {"members", "production_fingerprint", "joins", "removed", "golden"}


@pytest.mark.parametrize(("kind", "data"), [("pruned", {"why": "lost"}), ("verified", {"verdict": "failed"})])
def test_what_is_said_again_after_it_came_back_is_news(kind: str, data: dict[str, Any]) -> None:
    events = chain(shipped(1), (kind, shipped(1)[1], data), shipped(1))
    assert ledger.repeated(events, "run-1", kind, shipped(1)[1], data) is None
    assert ledger.repeated(events[:2], "run-1", kind, shipped(1)[1], data) == events[1]
