# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Roles on a machine that has nothing to do with DSM: each gathers what is wrong, refuses once, touches nothing."""

from __future__ import annotations

import base64
import os
import pathlib
import re
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
GATES = {
    "dr_node": (
        {"dr_node_hosts": ["another"], "dr_node_config_path": "/nonexistent"},
        [
            "CONFIRM_MISSING",
            "HOST_NOT_DECLARED",
            "TEMPLATE_MISSING",
            "NO_HEALTHY_MEMBER",
            "SOURCE_MISSING",
            "STORE_MISSING",
        ],
    ),
    "dr_restore": (
        {"dr_restore_store_path": "/nonexistent", "dr_restore_config_path": "/nonexistent"},
        ["CONFIRM_MISSING", "CONFIG_MISSING", "TEMPLATE_MISSING", "STORE_MISSING"],
    ),
    "open_service": (
        {"open_service_store_path": "/nonexistent", "open_service_accepted_by": "somebody"},
        [
            "CONFIRM_MISSING",
            "TEMPLATE_MISSING",
            "NOT_A_MEMBER",
            "FENCE_UNKNOWN",
            "STORE_MISSING",
            "BACKUP_NOT_CONFIGURED",
            "SOURCE_MISSING",
        ],
    ),
    "expand_cluster": ({"expand_cluster_candidates": ["another"]}, ["HOST_NOT_DECLARED", "NO_HEALTHY_MEMBER"]),
    "rehearsal": (
        {"rehearsal_hosts": ["another"]},
        ["CONFIRM_MISSING", "HOST_NOT_DECLARED", "TEMPLATE_MISSING", "REHEARSAL_NOT_ALLOWED"],
    ),
}


def test_a_role_that_has_nothing_to_work_with_tells_every_reason_in_one_refusal(tmp_path):
    place = tmp_path / "ansible_collections" / "kmsops"
    place.mkdir(parents=True)
    (place / "fortanix_dsm").symlink_to(ROOT)
    told = "REFUSED {} {{{{ ansible_failed_result.msg | b64encode }}}}"
    tasks = [
        {
            "block": [{"ansible.builtin.include_role": {"name": f"kmsops.fortanix_dsm.{role}"}, "vars": given}],
            "rescue": [
                {"ansible.builtin.debug": {"msg": f"REFUSED {role} {{{{ ansible_failed_result.msg | b64encode }}}}"}}
            ],
        }
        for role, (given, _codes) in GATES.items()
    ]
    play = {"hosts": "localhost", "gather_facts": False, "tasks": tasks}
    path = tmp_path / "gates.yml"
    path.write_text(yaml.safe_dump([dict(play, vars={"ansible_python_interpreter": sys.executable})]), encoding="utf-8")
    done = subprocess.run(
        [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "--check", str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_COLLECTIONS_PATH": str(tmp_path)},
        check=False,
    )
    told = {
        role: base64.b64decode(text).decode().splitlines()
        for role, text in re.findall("REFUSED ([a-z_]+) ([A-Za-z0-9+/=]+)", done.stdout)
    }
    codes = {role: [line.split(":")[0] for line in lines] for role, lines in told.items()}
    assert codes == {role: expected for role, (_given, expected) in GATES.items()}, done.stdout
    assert all("What to do: " in line for lines in told.values() for line in lines)
    assert "changed=0" in done.stdout
