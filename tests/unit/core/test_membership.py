# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decision tables: what may be reset, removed, joined and created, and every single thing that forbids it."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import (
    ledger,
    membership,
    model,
    quorum,
    testimony,
)

Party, Witness, Testimony = testimony.Party, testimony.Witness, testimony.Testimony
Testimony.__test__ = False  # its name begins like a test class
PRODUCTION, TRIAL, OTHER = "p" * 64, "t" * 64, "o" * 64
DR = Party("dr1", ("10.0.9.1",))
N1, N2, N3 = (Party(f"n{i}", (f"10.0.{i}.1",), f"id-{i}") for i in (1, 2, 3))


def codes(reasons, hard=None):
    return sorted({reason.code for reason in reasons if hard is None or reason.hard is hard})


def witness(
    party, listed=(N1, N2, N3), fingerprint=PRODUCTION, membership="member", up=("n1", "n2", "n3"), marker=None
):
    return Witness(party.name, party, membership, fingerprint, tuple(listed), tuple(up), "5.4.1", marker)


def record(*parties, fingerprint=PRODUCTION, **more):
    members = [{"name": p.name, "addresses": list(p.addresses), "host_id": p.host_id} for p in parties]
    return dict({"members": members, "production_fingerprint": fingerprint}, **more)


# -- own membership ----------------------------------------------------------------------------------------------------

ANSWERS = [
    "listed",
    "not_listed",
    "no_kubeconfig",
    "refused",
    "unauthorized",
    "not_verified",
    "no_answer",
    "no_quorum",
    "other",
]


@pytest.mark.parametrize(
    ("present", "answer", "status"), list(itertools.product([True, False], ANSWERS, [204, 500, None]))
)
def test_own_membership_over_the_whole_table(present, answer, status):
    verdict, why = membership.own_membership(membership.SelfEvidence(present, answer, status))
    if answer == "listed" or status == 204:
        assert verdict == "member"
    elif not present:
        assert verdict == "none"
    elif answer in ("not_listed", "refused", "unauthorized", "no_kubeconfig"):
        assert verdict == "leftover"
    else:
        assert verdict == "unknown"
    assert why


# -- reset because removed ---------------------------------------------------------------------------------------------


def removed(**changes):
    """A node that was properly removed, with two of three members heard."""
    case = {
        "subject": DR,
        "host_role": "dr",
        "membership": "leftover",
        "membership_why": "it is out",
        "fingerprint": PRODUCTION,
        "marker": None,
        "opened": False,
        "own_listed": (),
        "trial_hosts": (),
        "approval": None,
        "testimony": Testimony((witness(N1), witness(N2)), record(N1, N2, N3)),
    }
    case.update(changes)
    return membership.reset_reasons("removed", membership.ResetCase(**case))


def test_a_removed_node_may_be_reset():
    assert removed() == []


@pytest.mark.parametrize("role", ["dr", "spare", "rollback", "retired"])
def test_roles_that_are_set_aside(role):
    assert removed(host_role=role) == []


@pytest.mark.parametrize("standing", ["none", "leftover"])
def test_being_out_is_enough(standing):
    assert removed(membership=standing) == []


def test_a_removal_that_is_not_recorded_yet_does_not_lock_out():
    assert removed(testimony=Testimony((witness(N1), witness(N3)), record(N1, N2, N3, DR))) == []


def test_the_host_id_of_a_join_is_found_in_the_ledger():
    heard = Testimony((), record(N1, joins={"dr1": {"host_id": "id-dr"}, "dr2": {}, "dr3": None}))
    assert [heard.host_id_of(name) for name in ("dr1", "dr2", "dr3", "dr4")] == ["id-dr", None, None, None]
    assert Testimony().host_id_of("dr1") is None


def test_an_unreadable_fingerprint_does_not_lock_out():
    assert removed(fingerprint=None) == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"host_role": "production"}, "ROLE_FORBIDS"),
        ({"membership": "member"}, "STILL_MEMBER"),
        ({"membership": "unknown"}, "MEMBERSHIP_UNKNOWN"),
        ({"fingerprint": OTHER}, "OTHER_CLUSTER"),
        ({"testimony": Testimony((), record(N1, N2, N3))}, "TOO_FEW_WITNESSES"),
        ({"testimony": Testimony((witness(N1),), record(N1, N2, N3))}, "TOO_FEW_WITNESSES"),
        ({"testimony": Testimony((witness(N1), witness(N1)), record(N1, N2, N3))}, "TOO_FEW_WITNESSES"),
        ({"testimony": Testimony((witness(N1), witness(Party("x"))), record(N1, N2, N3))}, "TOO_FEW_WITNESSES"),
        (
            {"testimony": Testimony((witness(N1), witness(N2, fingerprint=OTHER)), record(N1, N2, N3))},
            "TOO_FEW_WITNESSES",
        ),
        (
            {"testimony": Testimony((witness(N1), witness(N2, membership="unknown")), record(N1, N2, N3))},
            "TOO_FEW_WITNESSES",
        ),
        (
            {"testimony": Testimony((witness(N1), witness(N2, membership="leftover")), record(N1, N2, N3))},
            "TOO_FEW_WITNESSES",
        ),
        ({"testimony": Testimony((witness(N1),), record(N1, N2, N3, DR))}, "TOO_FEW_WITNESSES"),
        ({"testimony": Testimony((witness(DR),), record(DR))}, "TOO_FEW_WITNESSES"),
        (
            {"testimony": Testimony((witness(N1, listed=(N1, N2, N3, DR)), witness(N2)), record(N1, N2, N3))},
            "STILL_LISTED",
        ),
        (
            {
                "testimony": Testimony(
                    (witness(N1), witness(N2), witness(N3, listed=(Party("x", ("10.0.9.1",)),))), record(N1, N2, N3)
                )
            },
            "STILL_LISTED",
        ),
    ],
)
def test_each_thing_alone_forbids_a_reset_of_what_was_removed(changes, code):
    reasons = removed(**changes)
    assert codes(reasons, hard=True) == [code]


def test_each_witness_alone_can_forbid_it_by_name_address_or_host_id():
    subject = dataclasses.replace(DR, host_id="id-dr")
    for as_listed in (Party("dr1"), Party("x", ("10.0.9.1",)), Party("y", (), "id-dr")):
        for liar in (N1, N2, N3):
            heard = tuple(
                witness(party, listed=(N1, N2, N3, as_listed) if party is liar else (N1, N2, N3))
                for party in (N1, N2, N3)
            )
            reasons = removed(subject=subject, testimony=Testimony(heard, record(N1, N2, N3)))
            assert codes(reasons) == ["STILL_LISTED"], (as_listed, liar)


def test_a_witness_of_another_cluster_that_lists_the_host_forbids_it_too():
    stranger = witness(Party("z1"), listed=(Party("z1"), DR), fingerprint=OTHER)
    reasons = removed(testimony=Testimony((witness(N1), witness(N2), stranger), record(N1, N2, N3)))
    assert codes(reasons) == ["STILL_LISTED"]


def test_without_a_ledger_the_witnesses_stand_for_it_and_that_is_soft():
    heard = Testimony((witness(N1), witness(N2)), None)
    assert codes(removed(testimony=heard)) == ["LEDGER_MISSING"]
    assert codes(removed(testimony=heard), hard=True) == []
    one = Testimony((witness(N1),), None)
    assert codes(removed(testimony=one), hard=True) == ["TOO_FEW_WITNESSES"]


def test_without_a_ledger_witnesses_of_two_clusters_prove_nothing():
    heard = Testimony((witness(N1), witness(N2), witness(Party("z"), listed=(Party("z"),), fingerprint=OTHER)), None)
    assert "TOO_FEW_WITNESSES" in codes(removed(testimony=heard), hard=True)


def test_nothing_heard_at_all_is_a_refusal():
    assert codes(removed(testimony=Testimony()), hard=True) == ["TOO_FEW_WITNESSES"]


def test_witnesses_that_were_not_understood_are_named():
    heard = Testimony((witness(N1),), record(N1, N2, N3), unusable=("n2",))
    (reason,) = removed(testimony=heard)
    assert "n2" in reason.message


def test_all_reasons_come_at_once():
    reasons = removed(host_role="production", membership="member", testimony=Testimony())
    assert codes(reasons) == ["LEDGER_MISSING", "ROLE_FORBIDS", "STILL_MEMBER", "TOO_FEW_WITNESSES"]


@given(st.integers(1, 9), st.data())
def test_a_minority_never_suffices_and_a_majority_always_does(size, data):
    parties = [Party(f"n{i}", (f"10.1.{i}.1",), f"id{i}") for i in range(size)]
    heard = data.draw(st.lists(st.sampled_from(parties), unique=True))
    reasons = removed(testimony=Testimony(tuple(witness(party, listed=parties) for party in heard), record(*parties)))
    assert (reasons == []) is (len(heard) >= quorum.needed(size))


@given(
    st.sets(st.sampled_from(["n1", "n2", "n3"])),
    st.sampled_from(["member", "leftover", "none", "unknown"]),
    st.sampled_from(["production", "dr", "spare", "rollback", "retired"]),
    st.sampled_from(["removed", "own_trial", "retired"]),
)
def test_a_node_that_any_member_lists_is_never_reset(heard, standing, role, because):
    """Law 1, whatever else is said: as long as one member of production lists the host, no cause opens."""
    parties = [party for party in (N1, N2, N3) if party.name in heard]
    case = membership.ResetCase(
        subject=DR,
        host_role=role,
        membership=standing,
        membership_why="-",
        fingerprint=PRODUCTION,
        marker={"run_id": "r", "host": "dr1", "fingerprint": None},
        opened=False,
        own_listed=(),
        trial_hosts=("dr1",),
        approval={"by": "a", "reason": "b"},
        testimony=Testimony(tuple(witness(party, listed=(N1, N2, N3, DR)) for party in parties), record(N1, N2, N3)),
    )
    assert codes(membership.reset_reasons(because, case), hard=True) != []


@pytest.mark.parametrize("because", ["", "please", "member", None])
def test_there_is_no_fourth_cause(because):
    assert codes(membership.reset_reasons(because, None)) == ["CAUSE_UNKNOWN"]


# -- reset because own_trial -------------------------------------------------------------------------------------------

MARKER = {"schema": 1, "run_id": "r1", "host": "dr1", "fingerprint": TRIAL, "production_fingerprint": PRODUCTION}
S1, S2 = Party("spare1", ("10.0.9.2",)), Party("spare2", ("10.0.9.3",))


def own_trial(**changes):
    """A trial of our own that lives on dr1 and two spares, with production out of reach."""
    case = {
        "subject": DR,
        "host_role": "dr",
        "membership": "member",
        "membership_why": "it lists itself",
        "fingerprint": TRIAL,
        "marker": MARKER,
        "opened": False,
        "own_listed": (DR, S1, S2),
        "trial_hosts": ("dr1", "spare1", "spare2"),
        "approval": None,
        "testimony": Testimony(),
    }
    case.update(changes)
    return membership.reset_reasons("own_trial", membership.ResetCase(**case))


def test_our_own_trial_may_be_reset_with_production_gone():
    assert own_trial() == []


def test_a_half_done_create_may_be_reset_with_production_gone():
    marker = dict(MARKER, fingerprint=None)
    assert own_trial(marker=marker, own_listed=(), membership="leftover") == []
    assert own_trial(marker=marker, own_listed=(), membership="unknown", fingerprint=None) == []


def test_a_trial_alone_on_its_host_needs_no_list_of_trial_hosts():
    assert own_trial(own_listed=(DR,), trial_hosts=()) == []


def test_a_rollback_host_may_hold_a_trial():
    assert own_trial(host_role="rollback") == []


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"host_role": "production"}, "ROLE_FORBIDS"),
        ({"host_role": "retired"}, "ROLE_FORBIDS"),
        ({"marker": None, "testimony": Testimony((), record(N1))}, "NOT_OUR_TRIAL"),
        ({"marker": dict(MARKER, host="dr2")}, "MARKER_FOREIGN"),
        ({"marker": dict(MARKER, run_id="")}, "MARKER_INVALID"),
        ({"marker": dict(MARKER, fingerprint=OTHER)}, "OTHER_CLUSTER"),
        ({"fingerprint": PRODUCTION, "marker": dict(MARKER, fingerprint=None)}, "IS_PRODUCTION"),
        (
            {
                "marker": dict(MARKER, production_fingerprint=None),
                "testimony": Testimony((), record(N1, fingerprint=TRIAL)),
            },
            "IS_PRODUCTION",
        ),
        ({"opened": True}, "WAS_OPENED"),
        ({"marker": dict(MARKER, opened=True)}, "WAS_OPENED"),
        (
            {"testimony": Testimony((witness(S1, listed=(DR, S1), fingerprint=TRIAL, marker={"opened": True}),))},
            "WAS_OPENED",
        ),
        ({"own_listed": (DR, N1)}, "NOT_A_TRIAL_HOST"),
        ({"own_listed": (DR, S1), "trial_hosts": ("dr1",)}, "NOT_A_TRIAL_HOST"),
        ({"testimony": Testimony((witness(S1, listed=(S1, N1), fingerprint=TRIAL),))}, "NOT_A_TRIAL_HOST"),
        ({"testimony": Testimony((witness(N1, listed=(N1, DR)),))}, "STILL_LISTED"),
    ],
)
def test_each_thing_alone_forbids_a_reset_of_a_trial(changes, code):
    assert codes(own_trial(**changes), hard=True) == [code]


def test_a_host_that_joined_a_trial_wants_to_hear_the_one_that_it_was_created_on():
    joined = dict(MARKER, created_on="spare1")
    assert codes(own_trial(marker=joined)) == ["CREATOR_SILENT"]
    assert codes(own_trial(marker=joined), hard=True) == []
    still_there = Testimony((witness(S1, listed=(DR, S1), fingerprint=TRIAL, marker=MARKER),))
    already_clean = Testimony((witness(S1, listed=(), fingerprint=None, membership="none"),))
    assert own_trial(marker=joined, testimony=still_there) == own_trial(marker=joined, testimony=already_clean) == []


def test_not_knowing_production_is_soft():
    reasons = own_trial(marker=dict(MARKER, production_fingerprint=None))
    assert codes(reasons) == ["LEDGER_MISSING"]
    assert codes(reasons, hard=True) == []


# -- reset because retired ---------------------------------------------------------------------------------------------

NEW = "n" * 64


def retired(**changes):
    """A host of an old generation; the new one is accepted, healthy and backed up."""
    ledger = record(
        S1,
        S2,
        DR,
        fingerprint=NEW,
        generations=[{"fingerprint": PRODUCTION, "fenced": True}, {"fingerprint": NEW, "accepted": True}],
        backups={"b1": {"verdict": "ok", "fingerprint": NEW}},
    )
    case = {
        "subject": N1,
        "host_role": "retired",
        "membership": "member",
        "membership_why": "-",
        "fingerprint": PRODUCTION,
        "marker": None,
        "opened": False,
        "own_listed": (N1, N2, N3),
        "trial_hosts": (),
        "approval": {"by": "someone", "reason": "fail back is done"},
        "testimony": Testimony(
            (witness(S1, listed=(DR, S1, S2), fingerprint=NEW, up=("dr1", "spare1", "spare2")),), ledger
        ),
    }
    ledger_changes = changes.pop("ledger", None)
    if ledger_changes is not None:
        changed = dict(ledger, **ledger_changes) if ledger_changes else None
        case["testimony"] = dataclasses.replace(case["testimony"], ledger=changed)
    case.update(changes)
    return membership.reset_reasons("retired", membership.ResetCase(**case))


def test_a_retired_host_may_be_reset():
    assert retired() == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host_role": "dr"}, ["ROLE_FORBIDS"]),
        ({"approval": None}, ["NOT_APPROVED"]),
        ({"approval": {"by": "x", "reason": ""}}, ["NOT_APPROVED"]),
        ({"fingerprint": NEW}, ["NOT_SUPERSEDED"]),
        ({"fingerprint": OTHER}, ["NOT_SUPERSEDED"]),
        ({"fingerprint": None}, ["NOT_SUPERSEDED"]),
        (
            {"ledger": {"generations": [{"fingerprint": PRODUCTION}, {"fingerprint": NEW, "accepted": True}]}},
            ["NOT_FENCED"],
        ),
        (
            {"ledger": {"generations": [{"fingerprint": PRODUCTION, "fenced": True}, {"fingerprint": NEW}]}},
            ["NOT_ACCEPTED"],
        ),
        ({"ledger": {"backups": {}}}, ["NO_VERIFIED_BACKUP"]),
        ({"ledger": {"backups": {"b": {"verdict": "failed", "fingerprint": NEW}}}}, ["NO_VERIFIED_BACKUP"]),
        ({"ledger": {"backups": {"b": {"verdict": "ok", "fingerprint": PRODUCTION}}}}, ["NO_VERIFIED_BACKUP"]),
        ({"subject": S2}, ["STILL_LISTED"]),
        (
            {"ledger": {}},
            ["LEDGER_MISSING", "NOT_ACCEPTED", "NOT_SUPERSEDED", "NO_VERIFIED_BACKUP", "SUCCESSOR_THIN"],
        ),
    ],
)
def test_each_thing_alone_forbids_retiring(changes, expected):
    assert codes(retired(**changes)) == expected
    assert codes(retired(**changes), hard=True) == expected


@pytest.mark.parametrize("up", [(), ("dr1",), ("dr1", "spare1")])
def test_a_thin_successor_forbids_retiring(up):
    ledger = record(
        S1,
        fingerprint=NEW,
        generations=[{"fingerprint": PRODUCTION, "fenced": True}, {"fingerprint": NEW, "accepted": True}],
        backups={"b1": {"verdict": "ok", "fingerprint": NEW}},
    )
    thin = Testimony((witness(S1, listed=(DR, S1, S2), fingerprint=NEW, up=up),), ledger)
    assert codes(retired(testimony=thin)) == ["SUCCESSOR_THIN"]


STORY = (
    (
        "observed_members",
        PRODUCTION[:16],
        {"fingerprint": PRODUCTION, "members": [{"name": "dc1-n1"}]},
        "NOT_SUPERSEDED",
    ),
    ("restored", "dr1", {"fingerprint": NEW, "backup": "b0", "drill": False}, "NOT_FENCED"),
    ("fenced", PRODUCTION[:16], {"fingerprint": PRODUCTION}, "NOT_ACCEPTED"),
    ("accepted", NEW[:16], {"fingerprint": NEW, "by": "someone"}, "NO_VERIFIED_BACKUP"),
    ("shipped", "b1", {"fingerprint": NEW}, "NO_VERIFIED_BACKUP"),
    ("verified", "b1", {"verdict": "ok"}, None),
)


def test_what_the_gate_of_the_service_records_is_what_retiring_asks_for():
    events = []
    for kind, subject, data, missing in STORY:
        head = events[-1] if events else None
        made = {"time": "2026-01-01T00:00:00Z", "run_id": "r", "kind": kind, "subject": subject, "data": data}
        events.append(ledger.make(head, **made))
        found = codes(retired(ledger=ledger.fold(events).as_dict()))
        assert missing in found if missing else found == [], (kind, found)


# -- removal -----------------------------------------------------------------------------------------------------------


def cluster(states, ring_known=True):
    """Nodes n0, n1, … with these states: ``up``, ``down``, ``joining``, ``ghost`` (in the ring only), ``ringless``."""
    nodes, ring = [], []
    for index, state in enumerate(states):
        address = f"10.2.{index}.1"
        if state != "ghost":
            nodes.append(
                model.KubeNode(f"n{index}", (address,), state != "down", f"dc{index}", "2026-11-22T00:00:00Z", "")
            )
        code = {"up": "UN", "down": "DN", "joining": "UJ", "ghost": "DN"}.get(state)
        if code:
            ring.append(model.RingNode(f"dc{index}", code, address, f"id-{index}", "r"))
    return model.Cluster(model.compose(nodes, [], ring if ring_known else None), ring_known, fingerprint=PRODUCTION)


def removal(states, target=0, here=1, also_dead=(), minimum=3, heard=None, ring_known=True):
    seen = cluster(states, ring_known)
    member = seen.member(f"10.2.{target}.1")
    return membership.removal_reasons(
        seen, member, Party(f"n{here}", (f"10.2.{here}.1",)), also_dead, minimum, heard or Testimony()
    )


def test_one_of_four_healthy_nodes_may_leave():
    assert removal(["up"] * 4) == []


def test_a_dead_node_of_three_may_leave_without_a_minimum():
    assert removal(["down", "up", "up"]) == []


def test_a_half_done_removal_may_be_finished():
    assert removal(["ghost", "up", "up", "up"]) == []
    assert removal(["ringless", "up", "up", "up"]) == []


def test_a_healthy_node_below_the_minimum_is_a_soft_reason():
    reasons = removal(["up"] * 3)
    assert codes(reasons) == ["BELOW_MINIMUM"]
    assert not reasons[0].hard


def test_another_dead_node_must_be_named():
    assert codes(removal(["down", "down", "up", "up", "up"], here=2)) == ["OTHER_NODE_DOWN"]
    assert removal(["down", "down", "up", "up", "up"], here=2, also_dead=["n1"]) == []
    assert removal(["down", "down", "up", "up", "up"], here=2, also_dead=["10.2.1.1"]) == []


@pytest.mark.parametrize(
    ("states", "arguments", "expected"),
    [
        (["up"], {"here": 5}, ["LAST_NODE", "BELOW_MINIMUM"]),
        (["up", "up", "up", "up"], {"here": 0}, ["SELF_REMOVAL"]),
        (["down", "up"], {}, ["QUORUM_LOST"]),
        (["up", "up"], {}, ["QUORUM_LOST", "BELOW_MINIMUM"]),
        (["down", "up", "down"], {"also_dead": ["n2"]}, ["QUORUM_LOST"]),
        (["down", "up", "up", "down"], {"also_dead": ["n3"]}, ["QUORUM_LOST"]),
        (["up", "up", "up", "up"], {"also_dead": ["n3"]}, ["ALSO_DEAD_ALIVE"]),
        (["up", "up", "up", "up", "joining"], {"also_dead": ["n4"]}, ["CHANGE_IN_PROGRESS"]),
        (["up", "up", "up", "up", "joining"], {}, ["CHANGE_IN_PROGRESS", "OTHER_NODE_DOWN"]),
        (["up", "up", "up", "up"], {"ring_known": False}, ["RING_UNKNOWN"]),
    ],
)
def test_each_thing_alone_forbids_a_removal(states, arguments, expected):
    assert codes(removal(states, **arguments)) == sorted(expected)


def test_lost_quorum_says_what_to_do_instead():
    reasons = removal(["down", "up", "down"], also_dead=["n2"])
    assert "fail_over" in reasons[0].remedy and "reboot" in reasons[0].remedy


def test_a_member_that_sees_other_nodes_forbids_it():
    listed = [Party(f"n{i}", (f"10.2.{i}.1",)) for i in range(4)]
    agreeing = Testimony((witness(Party("n2"), listed=listed),))
    differing = Testimony((witness(Party("n2"), listed=listed[:3]),))
    elsewhere = Testimony((witness(Party("n2"), listed=listed[:3], fingerprint=OTHER),))
    assert removal(["up"] * 4, heard=agreeing) == []
    assert codes(removal(["up"] * 4, heard=differing)) == ["VIEWS_DIFFER"]
    assert removal(["up"] * 4, heard=elsewhere) == []


@given(st.lists(st.sampled_from(["up", "down", "joining", "ghost", "ringless"]), min_size=1, max_size=9), st.data())
def test_a_removal_that_is_allowed_keeps_quorum_before_and_after(states, data):
    target = data.draw(st.integers(0, len(states) - 1))
    dead = [f"10.2.{i}.1" for i in range(len(states)) if i != target and states[i] != "up"]
    reasons = removal(states, target=target, here=99, also_dead=data.draw(st.sampled_from([[], dead])))
    survivors = sum(1 for i, state in enumerate(states) if i != target and state == "up")
    if not [reason for reason in reasons if reason.hard]:
        assert survivors >= quorum.needed(len(states))
        assert survivors >= quorum.needed(len(states) - 1)
        assert all(state != "joining" for i, state in enumerate(states) if i != target)


# -- joining -----------------------------------------------------------------------------------------------------------

GOOD = "abcdef.0123456789abcdef"


@pytest.mark.parametrize(
    ("token", "peer", "expected"),
    [
        (GOOD, "10.0.0.1", []),
        (GOOD, "dsm-1.example.com", []),
        (GOOD, "fd00::1", []),
        ("fc853c.6fd193ba34870ddfGO", "10.0.0.1", ["TOKEN_MALFORMED"]),
        ("", "10.0.0.1", ["TOKEN_MALFORMED"]),
        (GOOD + "\n", "10.0.0.1", ["TOKEN_MALFORMED"]),
        (" " + GOOD, "10.0.0.1", ["TOKEN_MALFORMED"]),
        (GOOD, "", ["PEER_MALFORMED"]),
        (GOOD, "10.0.0.1 --force", ["PEER_MALFORMED"]),
        (GOOD, "\u2013-x", ["PEER_MALFORMED"]),
        (GOOD, "me", ["PEER_IS_SELF"]),
        ("x", "me", ["PEER_IS_SELF", "TOKEN_MALFORMED"]),
    ],
)
def test_arguments_of_a_join(token, peer, expected):
    reasons = membership.join_input_reasons(token, peer, ["me", "10.0.0.9"])
    assert codes(reasons) == expected
    assert all("6fd193ba34870ddf" not in reason.message for reason in reasons)


@pytest.mark.parametrize(
    ("own", "theirs", "expected"),
    [
        (None, None, []),
        ("5.4.1", None, []),
        ("5.4.1", "5.4.1", []),
        ("5.4.1", "5.6.1", ["VERSION"]),
        ("3.14.1", None, ["DSM_TOO_OLD"]),
        ("3.14.1", "5.4.1", ["DSM_TOO_OLD", "VERSION"]),
    ],
)
def test_versions_of_a_join(own, theirs, expected):
    reasons = membership.version_reasons(own, theirs)
    assert codes(reasons) == expected
    assert codes(reasons, hard=False) == [code for code in expected if code == "VERSION"]


# -- creating ----------------------------------------------------------------------------------------------------------


def create(**changes):
    case = {
        "subject": DR,
        "host_role": "dr",
        "membership": "none",
        "membership_why": "-",
        "state_paths": (),
        "marker": None,
        "run_id": "r1",
        "fingerprint": None,
        "testimony": Testimony(),
    }
    case.update(changes)
    return codes(membership.create_reasons(membership.CreateCase(**case)))


def test_a_clean_dr_host_may_create():
    assert create() == []
    assert create(host_role="spare") == create(host_role="rollback") == []


def test_a_half_done_create_of_the_same_run_may_go_on():
    assert create(marker=MARKER, state_paths=("/etc/kubernetes",), membership="leftover") == []
    assert create(marker=MARKER, state_paths=("/etc/kubernetes",), membership="unknown") == []
    assert create(marker=MARKER, state_paths=("/etc/kubernetes",), membership="member", fingerprint=TRIAL) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"host_role": "production"}, ["ROLE_FORBIDS"]),
        ({"host_role": "retired"}, ["ROLE_FORBIDS"]),
        ({"membership": "member"}, ["ALREADY_MEMBER"]),
        ({"membership": "unknown"}, ["MEMBERSHIP_UNKNOWN"]),
        ({"state_paths": ("/var/lib/etcd",), "membership": "leftover"}, ["DATA_PRESENT"]),
        (
            {"marker": dict(MARKER, run_id="r0"), "state_paths": ("/var/lib/etcd",), "membership": "leftover"},
            ["DATA_PRESENT"],
        ),
        (
            {"marker": dict(MARKER, host="dr2"), "state_paths": ("/var/lib/etcd",), "membership": "leftover"},
            ["DATA_PRESENT"],
        ),
        ({"marker": dict(MARKER, run_id="r0"), "membership": "member"}, ["ALREADY_MEMBER"]),
        ({"testimony": Testimony((witness(N1, listed=(N1, DR)),))}, ["STILL_LISTED"]),
        ({"fingerprint": PRODUCTION, "testimony": Testimony((), record(N1))}, ["IS_PRODUCTION"]),
    ],
)
def test_each_thing_alone_forbids_a_create(changes, expected):
    assert create(**changes) == expected


P = membership.Probe


@pytest.mark.parametrize(
    ("probes", "service", "own", "hard", "soft"),
    [
        ([P("a", 443, "silent")], ["10.9.9.9"], ["10.0.9.1"], [], []),
        ([P("a", 443, "silent")], [], ["10.0.9.1"], [], []),
        ([], [], [], ["ISOLATION_UNDECLARED"], []),
        ([P("a", 443, "silent"), P("b", 443, "open")], [], [], ["NOT_ISOLATED"], []),
        ([P("a", 443, "refused")], [], [], [], ["ISOLATION_UNPROVED"]),
        ([P("a", 443, "silent")], ["10.0.9.1"], ["10.0.9.1"], ["SERVICE_LEADS_HERE"], []),
        (
            [P("a", 1, "open"), P("b", 2, "refused")],
            ["x"],
            ["x"],
            ["NOT_ISOLATED", "SERVICE_LEADS_HERE"],
            ["ISOLATION_UNPROVED"],
        ),
    ],
)
def test_isolation(probes, service, own, hard, soft):
    reasons = membership.isolation_reasons(probes, "dsm.example.com", service, own)
    assert codes(reasons, hard=True) == hard
    assert codes(reasons, hard=False) == soft


# -- testimony ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", [None, {}, {"witnesses": None}, {"witnesses": []}, "x", {"ledger": {}}])
def test_no_testimony_is_not_an_empty_testimony(raw):
    assert testimony.read(raw) is None


def result(name="n1", **changes):
    value = {
        "host": {"name": name, "addresses": ["10.0.1.1"], "serial": None},
        "membership": "member",
        "marker": None,
        "cluster": {
            "fingerprint": PRODUCTION,
            "version": None,
            "nodes": [{"name": "n1", "addresses": ["10.0.1.1"], "host_id": "id-1", "up": True}],
        },
    }
    value.update(changes)
    return value


def test_a_witness_is_read():
    heard = testimony.read({"witnesses": {"alias": result()}, "ledger": {"folded": record(N1)}})
    assert heard.members_of(PRODUCTION)[0].party == Party("n1", ("10.0.1.1",))
    assert heard.members_of(PRODUCTION)[0].up == ("n1",)
    assert heard.recorded_members == [N1]
    assert heard.production_fingerprint == PRODUCTION


def test_a_witness_without_a_cluster_is_no_member_of_any():
    heard = testimony.read({"witnesses": {"dr1": result("dr1", cluster=None, membership="none")}})
    assert heard.members_of(None) == []
    assert len(heard.witnesses) == 1


@pytest.mark.parametrize(
    "broken", [{}, None, [], {"host": {}}, result(host=None), result(cluster={"nodes": [{"x": 1}]})]
)
def test_a_witness_that_is_not_understood_counts_for_nothing_and_is_named(broken):
    heard = testimony.read({"witnesses": {"n1": broken, "n2": result("n2")}})
    assert heard.unusable == ("n1",)
    assert [witness.host for witness in heard.witnesses] == ["n2"]


@pytest.mark.parametrize("ledger", [None, {}, {"folded": None}, {"folded": []}, "x"])
def test_a_ledger_without_a_fold_is_missing(ledger):
    assert testimony.read({"witnesses": {}, "ledger": ledger}).ledger is None
