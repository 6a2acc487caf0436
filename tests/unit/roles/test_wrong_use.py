# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong use that roles and playbooks answer, before any module touches a host. Ansible itself decides here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PLAYBOOKS = sorted((ROOT / "playbooks").glob("*.yml"))
BIN = Path(sys.executable).parent


def ansible(tmp_path: Path, *argv: object) -> subprocess.CompletedProcess[str]:
    place = tmp_path / "ansible_collections" / "kmsops"
    place.mkdir(parents=True, exist_ok=True)
    if not (place / "fortanix_dsm").exists():
        (place / "fortanix_dsm").symlink_to(ROOT)
    environ = {**os.environ, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_COLLECTIONS_PATH": str(tmp_path)}
    done = subprocess.run(
        [str(BIN / "ansible-playbook"), *map(str, argv)], capture_output=True, text=True, check=False, env=environ
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def groups_of(plays: list[Any]) -> set[str]:
    """Every inventory group that they speak of, by the variable that names it."""
    text = json.dumps(plays)
    names = ("nodes", "dr_nodes", "spare_nodes", "backup_sources", "store", "second_store")
    return {name for name in names if f"dsm_{name}_group" in text}


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.stem)
def test_wrong_use_groups_that_a_playbook_runs_on_are_looked_at_first(path: Path) -> None:
    first, *others = yaml.safe_load(path.read_text(encoding="utf-8"))
    (task,) = first["tasks"]
    assert (first["hosts"], task["ansible.builtin.include_role"]["tasks_from"]) == ("localhost", "targets.yml")
    run_on = groups_of([{"hosts": play["hosts"]} for play in others])
    looked_at = groups_of([task["vars"]["preflight_groups"]])
    assert run_on and run_on <= looked_at <= groups_of(others)
    named = any("dsm_dr_host" in play["hosts"] for play in others)
    assert named is ("preflight_host" in task["vars"])


def test_wrong_use_dr_host_missing_from_the_inventory(tmp_path: Path) -> None:
    """Ansible would pass over every play and end green: nothing done, and nobody told."""
    inventory = tmp_path / "inventory.ini"
    inventory.write_text("[dsm_nodes]\ndc1-n1\n[dsm_store]\nstore\n[dsm_dr_nodes]\n")
    done = ansible(tmp_path, "-i", inventory, "kmsops.fortanix_dsm.fail_over", "-e", "dsm_dr_host=dr9")
    assert done.returncode != 0
    assert "GROUP_EMPTY: the inventory has no host in dsm_dr_nodes," in done.stdout + done.stderr
    assert "HOST_UNKNOWN: the inventory has no host dr9." in done.stdout + done.stderr
    assert "What to do: " in done.stdout + done.stderr and "changed=0" in done.stdout


def preflight(tmp_path: Path, *cases: dict[str, Any]) -> list[list[str]]:
    """What preflight says of this machine in each case, played as a role: what it registers is really asked."""
    answers = [tmp_path / f"told-{number}" for number in range(len(cases))]
    tasks = [
        {
            "block": [{"ansible.builtin.include_role": {"name": "kmsops.fortanix_dsm.preflight"}, "vars": given}],
            "rescue": [
                {
                    "ansible.builtin.copy": {
                        "dest": str(answer),
                        "content": "{{ ansible_failed_result.msg }}",
                        "mode": "0600",
                    }
                }
            ],
        }
        for given, answer in zip(cases, answers)
    ]
    connection = {"ansible_connection": "local", "ansible_become": False}
    path = tmp_path / "play.yml"
    play = {"hosts": "localhost", "gather_facts": False, "vars": connection, "tasks": tasks}
    path.write_text(yaml.safe_dump([play]), encoding="utf-8")
    done = ansible(tmp_path, path)
    assert done.returncode == 0 and all(answer.exists() for answer in answers), done.stdout + done.stderr
    return [answer.read_text(encoding="utf-8").splitlines() for answer in answers]


def test_wrong_use_told_by_preflight_all_at_once(tmp_path: Path) -> None:
    """Interpreter, ansible-core, confirmation, group, release, configuration, template: one refusal, one line each."""
    config = tmp_path / "config.yaml"
    config.write_text("backup:\n  scp:\n    password: x\n")
    config.chmod(0o644)
    wrong = {
        "preflight_python": sys.executable,
        "preflight_python_minimum": "3.99",
        "preflight_ansible_minimum": "9.99",
        "preflight_confirm": "dr2",
        "preflight_confirm_required": True,
        "preflight_host_name": "dr1",
        "preflight_allowed_hosts": ["dr1"],
        "preflight_dsm_version": "3.14.2",
        "preflight_config_path": str(config),
        "preflight_templates": [{"name": "dsm_backup_now_argv", "value": [], "article": "an-article"}],
    }
    missing = {
        "preflight_python": str(tmp_path / "no-python"),
        "preflight_confirm": "",
        "preflight_confirm_required": True,
        "preflight_host_name": "dr1",
        "preflight_config_path": str(tmp_path / "nothing.yaml"),
    }
    told_of_wrong, told_of_missing = preflight(tmp_path, wrong, missing)
    assert [line.partition(": ")[0] for line in told_of_wrong] == [
        "ANSIBLE_TOO_OLD", "PYTHON_TOO_OLD", "CONFIRM_OTHER_HOST", "HOST_NOT_DECLARED", "DSM_TOO_OLD",
        "CONFIG_WORLD_READABLE", "TEMPLATE_MISSING",
    ]  # fmt: skip
    assert [line.partition(": ")[0] for line in told_of_missing] == [
        "PYTHON_MISSING", "CONFIRM_MISSING", "CONFIG_MISSING",
    ]  # fmt: skip
    assert all(". What to do: " in line for line in told_of_wrong + told_of_missing)
    assert "dsm_confirm=dr1" in told_of_missing[1] and "an-article" in told_of_wrong[-1]
