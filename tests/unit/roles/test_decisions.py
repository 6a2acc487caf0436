# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the roles decide by themselves, evaluated by Ansible: reasons of preflight, plans, choice of backups."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import yaml

ROLES = pathlib.Path(__file__).resolve().parents[3] / "roles"


@pytest.fixture
def decide_all(tmp_path):
    """Evaluate variables of a role's vars/main.yml for several sets of inputs in one run of Ansible."""

    def evaluate(role, cases, *wanted):
        answers = [tmp_path / f"answer-{number}.json" for number in range(len(cases))]
        plays = [
            {
                "hosts": "localhost",
                "gather_facts": False,
                "vars_files": [str(ROLES / role / "vars" / "main.yml")],
                "vars": inputs,
                "tasks": [
                    {
                        "ansible.builtin.copy": {
                            "dest": str(answer),
                            "content": "{{ {" + ", ".join(f"'{name}': {name}" for name in wanted) + "} | to_json }}",
                            "mode": "0600",
                        }
                    }
                ],
            }
            for answer, inputs in zip(answers, cases)
        ]
        path = tmp_path / "plays.yml"
        path.write_text(yaml.safe_dump(plays), encoding="utf-8")
        command = pathlib.Path(sys.executable).parent / "ansible-playbook"
        done = subprocess.run(
            [str(command), str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_LOCALHOST_WARNING": "0"},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(answer.read_text(encoding="utf-8")) for answer in answers]

    return evaluate


@pytest.fixture
def decide(decide_all):
    """The same for one set of inputs."""
    return lambda role, inputs, *wanted: decide_all(role, [inputs], *wanted)[0]


GOOD = {
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


def test_preflight_warns_where_one_disaster_takes_everything(decide):
    thin = {
        "preflight_production_nodes": [{"name": "a", "datacenter": "oor"}, {"name": "b", "datacenter": None}],
    }
    warnings = decide("preflight", {**GOOD, **thin}, "__preflight_warnings")["__preflight_warnings"]
    assert len(warnings) == 4
    assert "localhost stands in oor" in warnings[0]
    assert "the store stands in oor" in warnings[1]


PLAN = ["join", "golden_backup", "remove", "reset", "set_aside"]
GOLDEN = {"id": "1", "node": "dr1", "verdict": "ok", "sequence": 9}
JOINED = {"dr1": {"version": "5.4", "sequence": 5}}
LEFT = {"dr1": {"kind": "set_aside"}}


AGAIN = dict(GOLDEN, verdict="failed")
DR_NODE_CASES = {
    "day one": ("none", False, {}, False, PLAN),
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
        {"joins": {"dr1": {"version": "5.2", "sequence": 5}}, "golden": [GOLDEN], "removed": LEFT},
        False,
        PLAN,
    ),
    "the golden backup is older than the last join": (
        "none",
        False,
        {"joins": {"dr1": {"version": "5.4", "sequence": 12}}, "golden": [GOLDEN], "removed": LEFT},
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
