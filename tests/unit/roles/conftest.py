# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Variables of roles, evaluated by Ansible itself."""

from __future__ import annotations

import base64
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml

ROLES = pathlib.Path(__file__).resolve().parents[3] / "roles"


@pytest.fixture
def decide_all(tmp_path):
    """Evaluate variables of a role's vars/main.yml for several sets of inputs in one run of Ansible."""

    def evaluate(role, cases, *wanted):
        answer = "{{ {" + ", ".join(f"'{name}': {name}" for name in wanted) + "} | to_json | b64encode }}"
        plays = [
            {
                "hosts": "localhost",
                "gather_facts": False,
                "vars_files": [str(ROLES / role / "vars" / "main.yml")],
                "vars": inputs,
                # debug runs no module, which would take longer than all the rest
                "tasks": [{"ansible.builtin.debug": {"msg": f"ANSWER {answer}"}}],
            }
            for inputs in cases
        ]
        path = tmp_path / "plays.yml"
        path.write_text(yaml.safe_dump(plays), encoding="utf-8")
        command = pathlib.Path(sys.executable).parent / "ansible-playbook"
        done = subprocess.run(
            [str(command), "--inventory", "landing,", str(path)],
            capture_output=True,
            text=True,
            env={**os.environ, "ANSIBLE_HOME": str(tmp_path), "ANSIBLE_LOCALHOST_WARNING": "0"},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = [json.loads(base64.b64decode(text)) for text in re.findall("ANSWER ([A-Za-z0-9+/=]+)", done.stdout)]
        assert len(found) == len(cases), done.stdout
        return found

    return evaluate


@pytest.fixture
def decide(decide_all):
    """The same for one set of inputs."""
    return lambda role, inputs, *wanted: decide_all(role, [inputs], *wanted)[0]


@pytest.fixture
def play_store(tmp_path):
    """Run a playbook of the collection on a store of this machine; its output. Variables are those of the inventory."""

    def play(playbook, *more, **variables):
        collections = tmp_path / "collections" / "ansible_collections" / "kmsops"
        if not collections.exists():
            collections.mkdir(parents=True)
            (collections / "fortanix_dsm").symlink_to(ROLES.parent)
        store = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **variables}
        inventory = tmp_path / "inventory.yml"
        inventory.write_text(yaml.safe_dump({"dsm_store": {"hosts": {"store1": store}}}), encoding="utf-8")
        environ = {
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections.parents[1]),
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        }
        command = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), *more]
        done = subprocess.run(
            [*command, f"kmsops.fortanix_dsm.{playbook}"], capture_output=True, text=True, env=environ, check=False
        )
        return done.stdout + done.stderr

    return play
