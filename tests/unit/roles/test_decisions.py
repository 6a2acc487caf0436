# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles decide by themselves, evaluated by Ansible: reasons of preflight, plans, choice of backups."""

from __future__ import annotations

import base64
import pathlib

ROLES = pathlib.Path(__file__).resolve().parents[3] / "roles"

GOOD = {
    "preflight_ansible_version": "2.19.4",
    "preflight_ansible_minimum": "2.16",
    "preflight_python": "/usr/bin/python3",
    "preflight_python_minimum": "3.8",
    "preflight_dsm_minimum": "3.15",
    "preflight_dsm_version": "5.4.2031-standin",
    "preflight_confirm": "dr1",
    "preflight_confirm_required": True,
    "preflight_host_name": "dr1",
    "preflight_allowed_hosts": ["localhost"],
    "preflight_config_path": "/etc/dsm/config.yaml",
    "preflight_templates": [{"name": "dsm_backup_now_argv", "value": ["/bin/true"], "article": "an-article"}],
    "preflight_articles": "https://support.example/",
    "preflight_checks": [],
    "preflight_production_nodes": [{"name": n, "datacenter": n[:3]} for n in ("dc1-n1", "dc2-n1", "dc3-n1")],
    "preflight_datacenter": "oor",
    "preflight_store_datacenter": "oor",
    "__preflight_python": {"rc": 0, "stdout": "3.8\r\n"},
    "__preflight_config": {"stat": {"exists": True, "roth": False, "woth": False}},
}


def test_preflight_lets_the_good_case_pass_without_a_word(decide):
    answer = decide("preflight", GOOD, "__preflight_reasons", "__preflight_warnings")
    assert answer == {"__preflight_reasons": [], "__preflight_warnings": []}


def test_preflight_tells_every_reason_at_once_with_a_remedy(decide):
    bad = {
        "preflight_dsm_version": "3.10.16",
        "preflight_confirm": "dr2",
        "preflight_allowed_hosts": ["dr1"],
        "preflight_templates": [{"name": "dsm_backup_now_argv", "value": [], "article": "an-article"}],
        "__preflight_python": {"rc": 0, "stdout": "Welcome to dr1\r\n3.7\r\n"},
        "__preflight_config": {"stat": {"exists": True, "roth": True, "woth": False}},
    }
    reasons = decide("preflight", {**GOOD, **bad}, "__preflight_reasons")["__preflight_reasons"]
    assert [reason["code"] for reason in reasons] == [
        "PYTHON_TOO_OLD",
        "CONFIRM_OTHER_HOST",
        "HOST_NOT_DECLARED",
        "DSM_TOO_OLD",
        "CONFIG_WORLD_READABLE",
        "TEMPLATE_MISSING",
    ]
    assert all(reason["message"] and reason["remedy"] for reason in reasons)
    assert "https://support.example/an-article" in reasons[-1]["remedy"]


def test_preflight_misses_a_confirmation_an_interpreter_and_a_configuration(decide):
    bad = {
        "preflight_confirm": "",
        "__preflight_python": {"rc": 127, "stdout": ""},
        "__preflight_config": {"stat": {"exists": False}},
    }
    reasons = decide("preflight", {**GOOD, **bad}, "__preflight_reasons")["__preflight_reasons"]
    assert [reason["code"] for reason in reasons] == ["PYTHON_MISSING", "CONFIRM_MISSING", "CONFIG_MISSING"]


def test_preflight_tells_what_its_caller_found_among_its_own_reasons_one_a_line(decide):
    found = {"code": "SOURCE_MISSING", "message": "nothing is there", "remedy": "put it there"}
    more = {
        "preflight_confirm": "",
        "preflight_checks": [
            {**found, "refuse": True},
            {**found, "code": "QUIET", "refuse": False},
            {"code": "MODULE_SAID", "message": "It is gone.", "remedy": "Bring it back.", "refuse": True},
        ],
    }
    told = decide("preflight", {**GOOD, **more}, "__preflight_sentences")["__preflight_sentences"]
    assert told == [
        "CONFIRM_MISSING: this changes dr1 for good and nobody confirmed it. What to do: say -e dsm_confirm=dr1.",
        "SOURCE_MISSING: nothing is there. What to do: put it there.",
        "MODULE_SAID: It is gone. What to do: Bring it back.",
    ]


def test_preflight_warns_where_one_disaster_takes_everything(decide):
    thin = {
        "preflight_production_nodes": [{"name": "a", "datacenter": "oor"}, {"name": "b", "datacenter": None}],
    }
    warnings = decide("preflight", {**GOOD, **thin}, "__preflight_warnings")["__preflight_warnings"]
    assert len(warnings) == 4
    assert "localhost stands in oor" in warnings[0]
    assert "the store stands in oor" in warnings[1]


PLAN = ["join", "golden_backup", "remove", "reset", "set_aside"]
JOIN, LATER = "2026-11-01T08:00:00Z", "2026-11-02T08:00:00Z"
GOLDEN = {"id": "1", "node": "dr1", "verdict": "ok", "joined_at": JOIN}
JOINED = {"dr1": {"version": "5.4", "joined_at": JOIN}}
LEFT = {"dr1": {"kind": "set_aside"}}


AGAIN = dict(GOLDEN, verdict="failed")
DR_NODE_CASES = {
    "day one": ("none", False, {}, False, PLAN),
    "joining, then killed": ("member", True, {}, False, PLAN),
    "joining anew, then killed": ("member", True, {"joins": JOINED, "golden": [GOLDEN], "removed": LEFT}, True, PLAN),
    "joined, then killed": ("member", True, {"joins": JOINED}, False, PLAN[1:]),
    "backed up, then killed": ("member", True, {"joins": JOINED, "golden": [GOLDEN]}, False, PLAN[2:]),
    "removed, then killed": ("leftover", False, {"joins": JOINED, "golden": [GOLDEN]}, False, PLAN[3:]),
    "reset, then killed": ("none", False, {"joins": JOINED, "golden": [GOLDEN]}, False, PLAN[4:]),
    "prepared already": ("none", False, {"joins": JOINED, "golden": [GOLDEN], "removed": LEFT}, False, []),
    "prepared anew on request": ("none", False, {"joins": JOINED, "golden": [GOLDEN], "removed": LEFT}, True, PLAN),
    "the golden backup went bad": ("none", False, {"joins": JOINED, "golden": [AGAIN], "removed": LEFT}, False, PLAN),
    "production was upgraded": (
        "none",
        False,
        {"joins": {"dr1": {"version": "5.2", "joined_at": JOIN}}, "golden": [GOLDEN], "removed": LEFT},
        False,
        PLAN,
    ),
    "the golden backup is older than the last join": (
        "none",
        False,
        {"joins": {"dr1": {"version": "5.4", "joined_at": LATER}}, "golden": [GOLDEN], "removed": LEFT},
        False,
        PLAN,
    ),
}


def test_the_plan_for_a_dr_node_goes_on_where_the_last_run_stopped(decide_all):
    inputs = [
        {
            "dr_node_name": "dr1",
            "dr_node_rejoin": rejoin,
            "__dr_node_self": {"membership": membership},
            "witnesses_cluster": {"version": "5.4", "nodes": [{"name": "dc1-n1"}] + [{"name": "dr1"}] * listed},
            "witnesses_ledger": {"folded": folded},
        }
        for membership, listed, folded, rejoin, _plan in DR_NODE_CASES.values()
    ]
    answers = decide_all("dr_node", inputs, "__dr_node_plan_steps")
    plans = [[step["name"] for step in answer["__dr_node_plan_steps"] if step["needed"]] for answer in answers]
    assert dict(zip(DR_NODE_CASES, plans)) == {name: case[-1] for name, case in DR_NODE_CASES.items()}


READY_FOR_A_DR_NODE = {
    "dr_node_name": "dr1",
    "dr_node_address": "192.0.2.9",
    "dr_node_hosts": ["dr1", "dr2"],
    "dr_node_accept": [],
    "witnesses_moving": [],
    "dr_node_members": ["dc1-n1"],
    "dr_node_config_path": "/etc/dsm/config.yaml",
    "dr_node_backup_sources": [{"name": "landing"}],
    "dr_node_store": "localhost",
    "dr_node_store_path": "/srv/dsm-store",
    "dr_node_plan": PLAN,
    "witnesses_cluster": {"version": "5.4", "nodes": []},
    "witnesses_ledger": {},
    "__dr_node_member": "dc1-n1",
    "__dr_node_self": {"membership": "none"},
    "__dr_node_configured": {"config": "/etc/dsm/config.yaml", "before": {"backup": {"scp": {}}, "applied": True}},
    "__dr_node_store_seen": {"stat": {"writeable": True}},
    "backup_ship_look": {"cluster_id": "0123456789abcdef"},
}
UNREACHABLE = {"code": "UNREACHABLE", "message": "landing: no route.", "remedy": "Look at the network."}
EMPTY = {"code": "SOURCE_EMPTY", "message": "nothing", "remedy": ""}
NOT_READY_FOR_A_DR_NODE = {
    "nothing is wrong": ({}, []),
    "nothing was delivered yet": ({"backup_ship_look": {"reasons": [EMPTY], "error_code": "SOURCE_EMPTY"}}, []),
    "the node cannot be read": ({"__dr_node_self": {"msg": "no permission"}}, ["NODE_UNREADABLE"]),
    "no member, so that nobody was asked about backups": (
        {"__dr_node_member": "", "__dr_node_configured": {"skipped": True}},
        ["NO_HEALTHY_MEMBER"],
    ),
    "another DR node is a member now": (
        {"witnesses_cluster": {"version": "5.4", "nodes": [{"name": "dr2"}]}},
        ["MEMBERSHIP_CHANGING"],
    ),
    "a removal was left half-way": ({"witnesses_moving": ["192.0.2.77"]}, ["MEMBERSHIP_CHANGING"]),
    "a removal was left half-way, and a person knows": (
        {"witnesses_moving": ["192.0.2.77"], "dr_node_accept": ["MEMBERSHIP_CHANGING"]},
        [],
    ),
    "this node's own half-way state is what the run is for": ({"witnesses_moving": ["dr1", "192.0.2.9"]}, []),
    "backups were never configured": (
        {"__dr_node_configured": {"config": "-", "before": {"backup": None, "applied": True}}},
        ["BACKUP_NOT_CONFIGURED"],
    ),
    "they were configured by a run that was killed": (
        {"__dr_node_configured": {"config": "-", "before": {"backup": {"scp": {}}, "applied": False}}},
        ["BACKUP_NOT_APPLIED"],
    ),
    "there is no config.yaml": (
        {"__dr_node_configured": {"error_code": "CONFIG_MISSING", "msg": "none", "remedy": "put it"}},
        ["CONFIG_MISSING"],
    ),
    "no source is known": ({"dr_node_backup_sources": []}, ["SOURCE_MISSING"]),
    "the store is read-only": ({"__dr_node_store_seen": {"stat": {"writeable": False}}}, ["STORE_NOT_WRITABLE"]),
    "the store has no Python": ({"backup_ship_look": {"msg": "not found"}}, ["STORE_NOT_READY"]),
    "everything at once": (
        {
            "__dr_node_configured": {"config": "-", "before": {"backup": None, "applied": True}},
            "__dr_node_store_seen": {"stat": {"exists": False}},
            "backup_ship_look": {"reasons": [UNREACHABLE, EMPTY], "error_code": "SHIP_INCOMPLETE"},
        },
        ["BACKUP_NOT_CONFIGURED", "STORE_NOT_WRITABLE", "UNREACHABLE"],
    ),
    "the same, when no backup is needed any more": (
        {
            "dr_node_plan": ["reset", "set_aside"],
            "__dr_node_configured": {"config": "-", "before": {"backup": None, "applied": True}},
            "backup_ship_look": {"reasons": [UNREACHABLE], "error_code": "UNREACHABLE"},
        },
        [],
    ),
}


def refused(checks):
    found = [check for check in checks if check["refuse"]]
    assert all(check["message"] and check["remedy"] for check in found)
    return [check["code"] for check in found]


def test_no_node_joins_before_a_backup_can_be_taken_brought_and_kept(decide_all):
    inputs = [{**READY_FOR_A_DR_NODE, **changes} for changes, _codes in NOT_READY_FOR_A_DR_NODE.values()]
    answers = decide_all("dr_node", inputs, "__dr_node_checks")
    codes = [refused(answer["__dr_node_checks"]) for answer in answers]
    assert dict(zip(NOT_READY_FOR_A_DR_NODE, codes)) == {
        name: codes for name, (_changes, codes) in NOT_READY_FOR_A_DR_NODE.items()
    }


KEY = "ssh-ed25519 AAAA kmsops pull from store"
DIRECTORY = {"stat": {"exists": True, "mode": "0700", "uid": 0}}
LANDING = {"name": "landing", "address": "192.0.2.50", "user": "dsmbackup", "path": "/b/*"}
PINNED = "# The hosts that backups are pulled from. Written by role backup_store.\n192.0.2.50 ssh-ed25519 HOST\n"
LETS_IN = 'restrict,command="internal-sftp -R" ' + KEY


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def answers_of(source, content):
    return {"results": [{"__backup_store_source": source, **({"content": encoded(content)} if content else {})}]}


PREPARED_STORE = {
    "backup_store_path": "/srv/dsm-store",
    "backup_store_etc": "/etc/kmsops",
    "backup_store_venv": "/opt/venv",
    "backup_store_wheelhouse": "",
    "backup_store_second": False,
    "backup_store_timers": [],
    "backup_store_drop_user": "",
    "backup_store_drop_state": "present",
    "backup_store_authorize": True,
    "backup_store_sources": [LANDING, {"path": "/local/*"}],
    "__backup_store_seen": {"results": [DIRECTORY, DIRECTORY]},
    "__backup_store_paramiko": {"rc": 0},
    "__backup_store_key": {"rc": 0, "stdout": KEY + "\n"},
    "__backup_store_host_keys": answers_of(LANDING, "ssh-ed25519 HOST root@landing\n"),
    "__backup_store_authorized": answers_of(LANDING, "ssh-rsa BBBB somebody\n" + LETS_IN + "\n"),
    "__backup_store_pinned": {"content": encoded(PINNED)},
}
MISSING = {"stat": {"exists": False}}
LOOSE = {"stat": {"exists": True, "mode": "0755", "uid": 0}}
STORES = {
    "prepared": ({}, []),
    "never prepared": (
        {
            "__backup_store_seen": {"results": [MISSING, MISSING]},
            "__backup_store_paramiko": {"rc": 2},
            "__backup_store_key": {"rc": 255, "stdout": ""},
            "__backup_store_authorized": answers_of(LANDING, None),
            "__backup_store_pinned": {"msg": "not found"},
        },
        ["directories", "python", "key", "introduce"],
    ),
    "killed before it was introduced": (
        {"__backup_store_authorized": answers_of(LANDING, None), "__backup_store_pinned": {}},
        ["introduce"],
    ),
    "a directory that others may read": ({"__backup_store_seen": {"results": [DIRECTORY, LOOSE]}}, ["directories"]),
    "the host key changed": (
        {"__backup_store_host_keys": answers_of(LANDING, "ssh-ed25519 OTHER root@landing\n")},
        ["introduce"],
    ),
    "the source is dead, and what is pinned stays": ({"__backup_store_host_keys": answers_of(LANDING, None)}, []),
    "nobody has to be introduced": (
        {"backup_store_sources": [{"path": "/local/*"}], "__backup_store_pinned": {}},
        [],
    ),
}


def test_the_plan_for_a_store_names_what_is_missing_and_nothing_else(decide_all):
    inputs = [{**PREPARED_STORE, **changes} for changes, _plan in STORES.values()]
    answers = decide_all("backup_store", inputs, "__backup_store_plan_steps")
    plans = [[step["name"] for step in answer["__backup_store_plan_steps"] if step["needed"]] for answer in answers]
    assert dict(zip(STORES, plans)) == {name: plan for name, (_changes, plan) in STORES.items()}


OLD, NEW = "a" * 64, "b" * 64
RESTORED = {
    "open_service_host_name": "dr1",
    "open_service_name": "dsm.example",
    "open_service_address": "192.0.2.1",
    "open_service_port": 443,
    "open_service_production": [{"name": "dc1-n1"}],
    "open_service_fence_attested": {},
    "open_service_accepted_by": "",
    "open_service_backup": {"scp": {}},
    "open_service_backup_sources": [{"path": "/local/*"}],
    "open_service_store_path": "/srv/dsm-store",
    "__open_service_self": {"membership": "member", "cluster": {"fingerprint": NEW}},
    "__open_service_fence": {"endpoints": [{"name": "dc1-n1", "state": "unreachable"}]},
    "__open_service_before": {"msg": "no answer"},
    "__open_service_noted": {"stat": {"exists": False}},
}
FIRST = {"fingerprint": OLD, "fenced": False, "accepted": True}
SECOND = {"fingerprint": NEW, "fenced": False, "accepted": False}


def ledger(*generations, **backups):
    return {"known": True, "folded": {"generations": list(generations), "backups": backups}}


SERVED = {
    "__open_service_before": {"sequence": 7},
    "__open_service_noted": {"stat": {"exists": True}},
}
FENCED, ACCEPTED = dict(FIRST, fenced=True), dict(SECOND, accepted=True)
BACKUP = {"fingerprint": NEW, "verdict": "ok"}
GATES = {
    "restored": ({}, ledger(FIRST, SECOND), ["fence", "open"]),
    "restored, and accepted beforehand": (
        {"open_service_accepted_by": "somebody"},
        ledger(FIRST, SECOND),
        ["fence", "open", "accept", "backups"],
    ),
    "opened, nobody accepted": (SERVED, ledger(FENCED, SECOND), []),
    "led here, but killed before the note": (
        {"__open_service_before": {"sequence": 7}},
        ledger(FENCED, SECOND),
        ["open"],
    ),
    "opened, accepted now": (
        {**SERVED, "open_service_accepted_by": "somebody"},
        ledger(FENCED, SECOND),
        ["accept", "backups"],
    ),
    "accepted, killed before the backup": (SERVED, ledger(FENCED, ACCEPTED), ["backups"]),
    "accepted, the backup is not verified": (
        SERVED,
        ledger(FENCED, ACCEPTED, b1=dict(BACKUP, verdict="failed")),
        ["backups"],
    ),
    "accepted, the only backup is production's": (
        SERVED,
        ledger(FENCED, ACCEPTED, b1=dict(BACKUP, fingerprint=OLD)),
        ["backups"],
    ),
    "all done": ({**SERVED, "open_service_accepted_by": "somebody"}, ledger(FENCED, ACCEPTED, b1=BACKUP), []),
}


def test_the_gate_of_the_service_is_passed_step_by_step_and_once(decide_all):
    inputs = [{**RESTORED, **changes, "__open_service_ledger": book} for changes, book, _plan in GATES.values()]
    answers = decide_all("open_service", inputs, "__open_service_plan_steps")
    plans = [[step["name"] for step in answer["__open_service_plan_steps"] if step["needed"]] for answer in answers]
    assert dict(zip(GATES, plans)) == {name: plan for name, (_changes, _book, plan) in GATES.items()}


CLOSED = {
    "nothing is wrong": ({}, []),
    "one node of production answers": (
        {"__open_service_fence": {"endpoints": [{"name": "dc1-n1", "state": "read_only"}]}},
        ["NOT_FENCED"],
    ),
    "an attestation does not outweigh an answer": (
        {
            "__open_service_fence": {"endpoints": [{"name": "dc1-n1", "state": "down"}]},
            "open_service_fence_attested": {"by": "somebody", "reason": "I saw it"},
        },
        ["NOT_FENCED"],
    ),
    "nobody knows where production was": (
        {"open_service_production": [], "__open_service_fence": {"skipped": True}},
        ["FENCE_UNKNOWN"],
    ),
    "nobody knows, and a person attests": (
        {
            "open_service_production": [],
            "__open_service_fence": {"skipped": True},
            "open_service_fence_attested": {"by": "somebody", "reason": "the power is off"},
        },
        [],
    ),
    "a drill is never opened": ({"__open_service_ledger": ledger(FIRST)}, ["NOT_RESTORED"]),
    "the node is no member, and the store does not answer": (
        {
            "__open_service_self": {"membership": "none"},
            "__open_service_ledger": {"error_code": "STORE_MISSING", "msg": "gone", "remedy": "look"},
        },
        ["NOT_A_MEMBER", "STORE_MISSING"],
    ),
    "accepted, and no place for backups": (
        {
            "open_service_plan": ["accept", "backups"],
            "open_service_backup": {},
            "open_service_backup_sources": [],
        },
        ["BACKUP_NOT_CONFIGURED", "SOURCE_MISSING"],
    ),
}


def test_the_service_stays_closed_for_each_reason_and_all_are_told(decide_all):
    inputs = [
        {"open_service_plan": [], "__open_service_ledger": ledger(FIRST, SECOND), **RESTORED, **changes}
        for changes, _codes in CLOSED.values()
    ]
    answers = decide_all("open_service", inputs, "__open_service_checks")
    codes = [refused(answer["__open_service_checks"]) for answer in answers]
    assert dict(zip(CLOSED, codes)) == {name: codes for name, (_changes, codes) in CLOSED.items()}


def backup(number, kind, started, **more):
    return {
        "id": f"b{number}",
        "published": True,
        "verdict": "ok",
        "verified": True,
        "snapshot_started": started,
        "published_at": "2026-01-09T00:00:00Z",
        "pairs": [{"node": "dr1", "kind": kind}],
        **more,
    }


STORE = [
    backup(1, "golden", "2026-01-01T00:00:00Z"),
    backup(2, "presumed", "2026-01-02T00:00:00Z"),
    backup(3, "impossible", "2026-01-03T00:00:00Z"),
    backup(4, "presumed", None),
    backup(5, "golden", "2026-01-05T00:00:00Z", verdict="failed"),
    {"id": "b6", "published": False, "verdict": "failed"},
]


CHOICES = {
    ("latest", ()): ["b4", "b2", "b1"],
    ("b1", ()): ["b1"],
    ("b3", ()): [],
    ("b3", ("OLDER_THAN_JOIN",)): ["b3"],
    ("b5", ("UNVERIFIED",)): [],
    ("before:2026-01-02T12:00:00Z", ()): ["b2", "b1"],
}


def test_backups_are_tried_newest_first_and_only_where_the_node_may_open_them(decide_all):
    inputs = [
        {
            "dr_restore_name": "dr1",
            "dr_restore_accept": list(accept),
            "dr_restore_backup": choice,
            "__dr_restore_info": {"backups": STORE},
        }
        for choice, accept in CHOICES
    ]
    answers = decide_all("dr_restore", inputs, "__dr_restore_wanted")
    chosen = [[one["id"] for one in answer["__dr_restore_wanted"]] for answer in answers]
    assert dict(zip(CHOICES, chosen)) == CHOICES


NOTHING_TO_RESTORE = {
    "a backup is there": ({}, []),
    "no store": (
        {"__dr_restore_ledger": {"error_code": "STORE_MISSING", "msg": "gone", "remedy": "look"}},
        ["STORE_MISSING"],
    ),
    "a store of nobody": ({"__dr_restore_ledger": {"known": False, "cluster_id": None}}, ["CLUSTER_UNKNOWN"]),
    "an empty catalogue": ({"dr_restore_candidates": []}, ["NO_BACKUP"]),
    "an empty catalogue, but nothing to do": ({"dr_restore_candidates": [], "dr_restore_plan": []}, []),
    "a catalogue that cannot be read, on a node that cannot be read": (
        {"__dr_restore_info": {"msg": "broken"}, "__dr_restore_self": {"msg": "no permission"}},
        ["NODE_UNREADABLE", "CATALOGUE_UNREADABLE"],
    ),
}


def test_a_recovery_without_a_backup_tells_every_reason_before_it_touches_anything(decide_all):
    good = {
        "dr_restore_name": "dr1",
        "dr_restore_store": "store",
        "dr_restore_store_path": "/srv/dsm-store",
        "dr_restore_cluster_id": "",
        "dr_restore_backup": "latest",
        "dr_restore_plan": ["stage"],
        "dr_restore_candidates": ["b1"],
        "__dr_restore_self": {"membership": "none"},
        "__dr_restore_ledger": {"known": True, "cluster_id": "0123456789abcdef"},
        "__dr_restore_info": {"backups": []},
    }
    inputs = []
    for changes, _codes in NOTHING_TO_RESTORE.values():
        case = {**good, **changes}
        if not case["__dr_restore_ledger"].get("known"):
            case["__dr_restore_info"] = {"skipped": True}
        inputs.append(case)
    answers = decide_all("dr_restore", inputs, "__dr_restore_checks")
    codes = [refused(answer["__dr_restore_checks"]) for answer in answers]
    assert dict(zip(NOTHING_TO_RESTORE, codes)) == {name: codes for name, (_c, codes) in NOTHING_TO_RESTORE.items()}


SPARE = {
    "expand_cluster_name": "spare1",
    "expand_cluster_target": 3,
    "expand_cluster_accept": [],
    "expand_cluster_members": ["dr1", "spare1"],
    "witnesses_cluster": {"nodes": [{"name": "dr1"}]},
    "witnesses_moving": [],
}
EXPANSIONS = {
    "the restored cluster": ({"witnesses_member": "dr1", "witnesses_marker": {"run_id": "r"}}, []),
    "nobody answers": ({"witnesses_member": "", "witnesses_marker": {}}, ["NO_HEALTHY_MEMBER"]),
    "another spare node joins right now": (
        {"witnesses_member": "dr1", "witnesses_marker": {"run_id": "r"}, "witnesses_moving": ["spare2"]},
        ["MEMBERSHIP_CHANGING"],
    ),
    "a DR node that is a member of production": ({"witnesses_member": "dr1", "witnesses_marker": {}}, ["NOT_RESTORED"]),
}


def test_a_spare_node_joins_nothing_but_a_restored_cluster(decide_all):
    inputs = [{**SPARE, **changes} for changes, _codes in EXPANSIONS.values()]
    answers = decide_all("expand_cluster", inputs, "__expand_cluster_checks")
    codes = [refused(answer["__expand_cluster_checks"]) for answer in answers]
    assert dict(zip(EXPANSIONS, codes)) == {name: codes for name, (_changes, codes) in EXPANSIONS.items()}


def answer_of(*nodes, ring_known=True):
    full = {"in_kubernetes": True, "ring": "UN"}
    return {
        "results": [
            {
                "membership": "member",
                "__witnesses_member": "dc1-n1",
                "cluster": {
                    "state": "full",
                    "health": {},
                    "ring_known": ring_known,
                    "nodes": [{**full, **node} for node in nodes],
                },
            }
        ]
    }


MOVING = {
    "whole": (answer_of({"name": "a"}, {"name": "b", "ring": "DN"}), []),
    "one joins": (answer_of({"name": "a"}, {"name": "b", "ring": "UJ"}), ["b"]),
    "one leaves": (answer_of({"name": "a", "ring": "UL"}), ["a"]),
    "one has no database yet": (answer_of({"name": "a"}, {"name": "b", "ring": None}), ["b"]),
    "the ring could not be asked": (answer_of({"name": "a", "ring": None}, ring_known=False), []),
    "only the ring knows it": (answer_of({"name": "192.0.2.7", "in_kubernetes": False}), ["192.0.2.7"]),
    "nobody answered": ({"results": [{"unreachable": True}]}, []),
}


def test_nodes_on_their_way_in_or_out_are_seen(decide_all):
    inputs = [{"__witnesses_asked": asked} for asked, _moving in MOVING.values()]
    answers = decide_all("witnesses", inputs, "__witnesses_moving")
    found = [answer["__witnesses_moving"] for answer in answers]
    assert dict(zip(MOVING, found)) == {name: moving for name, (_asked, moving) in MOVING.items()}


def test_what_is_sealed_for_whom_comes_from_the_ledger(decide):
    inputs = {
        "witnesses_cluster": {"nodes": [{"name": "dr1"}]},
        "witnesses_ledger": {
            "folded": {
                "joins": {
                    "dr1": {"joined_at": "2026-01-01T00:00:00Z", "version": None, "platform_id": "S1"},
                    "dr2": {"joined_at": "2026-01-01T00:00:00Z", "version": "5.4", "platform_id": "S2"},
                }
            }
        },
    }
    assert decide("backup_ship", inputs, "__backup_ship_sealed_for")["__backup_ship_sealed_for"] == [
        {
            "node": "dr1",
            "platform_id": "S1",
            "version": "",
            "joined_at": "2026-01-01T00:00:00Z",
            "member": True,
        },
        {
            "node": "dr2",
            "platform_id": "S2",
            "version": "5.4",
            "joined_at": "2026-01-01T00:00:00Z",
            "member": False,
        },
    ]


def test_templates_that_cannot_run_are_all_named(decide):
    inputs = {
        "discover_production_hosts": ["localhost"],
        "discover_restore_steps": [{"name": "a", "argv": ["/bin/a", "{archive}", "{typo}"]}],
        "discover_apply_config_argv": [],
        "discover_backup_now_argv": ["/bin/b"],
        "discover_isolate_argv": ["/bin/c"],
        "discover_unisolate_argv": ["/bin/c"],
        "discover_open_service_steps": [{"name": "d", "argv": ["/bin/d"]}],
        "__discover_local_stat": {"results": [{"__discover_binary": "/bin/b", "stat": {"exists": False}}]},
        "__discover_controller_stat": {"results": [{"__discover_binary": "/bin/c", "stat": {"executable": True}}]},
    }
    reasons = decide("discover", inputs, "__discover_reasons")["__discover_reasons"]
    assert reasons == [
        "dsm_apply_config_argv is not set (TEMPLATE_MISSING)",
        "/bin/b is no executable there (BINARY_MISSING)",
        "{typo} is no placeholder (PLACEHOLDER_UNKNOWN)",
    ]


def test_what_is_written_of_a_cluster_is_the_same_until_the_cluster_is_another(decide_all):
    node = {"name": "dc1-n1", "addresses": ["192.0.2.11"], "datacenter": None}
    cluster = {"version": "5.4", "server_mode": "sgx", "fingerprint": "f", "nodes": [node], "thin_spots": []}
    seen = {
        "inventory_hostname": "dc1-n1",
        "__discover_cluster": {"cluster": cluster, "host": {"serial": "S1"}},
        "__discover_config": {"stat": {"exists": True}},
    }
    names = [
        ["job.batch/dsm-backup-29384040", "cronjob.batch/dsm-backup"],
        ["cronjob.batch/dsm-backup"],
        ["job.batch/other"],
    ]
    inputs = {
        "text": f"{{{{ lookup('ansible.builtin.template', '{ROLES}/discover/templates/group_vars.yml.j2') }}}}",
        "discover_config_path": "/etc/dsm/config.yaml",
        "discover_articles": "https://support.example/",
        "discover_restore_steps": [],
        "discover_open_service_steps": [],
        **{f"discover_{name}_argv": [] for name in ("apply_config", "backup_now", "isolate", "unisolate")},
    }
    cases = [{**inputs, "__discover_seen": [{**seen, "__discover_jobs": {"stdout_lines": lines}}]} for lines in names]
    first, later, another = (answer["text"] for answer in decide_all("discover", cases, "text"))
    assert first == later != another
    assert (
        "# Scheduled in Kubernetes: cronjob.batch/dsm-backup\n" in first
        and "dc1-n1: 192.0.2.11, data centre NOT" in first
    )
