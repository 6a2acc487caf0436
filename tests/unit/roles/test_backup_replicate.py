# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Role backup_replicate, run by Ansible with two stores on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from many_backups import Filler

ROOT = Path(__file__).resolve().parents[3]


def test_the_role_fills_the_second_store_and_is_quiet_then(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "first", 3)
    filler.publish(sealed=())
    filler.publish(sealed=())
    filler.close()
    second = tmp_path / "second"
    second.mkdir()
    collections = tmp_path / "collections" / "ansible_collections" / "kmsops"
    collections.mkdir(parents=True)
    (collections / "fortanix_dsm").symlink_to(ROOT)
    role = {"name": "kmsops.fortanix_dsm.backup_replicate"}
    other = {"name": "first", "path": str(tmp_path / "first")}
    again = {"backup_replicate_state": "repaired"}
    play = {
        "hosts": "store2",
        "gather_facts": False,
        "vars": {
            "backup_replicate_other": other,
            "backup_replicate_store_path": str(second),
            "backup_replicate_store_python": sys.executable,
        },
        "tasks": [
            {"name": "Replicate", "ansible.builtin.include_role": role},
            {"name": "Told", "ansible.builtin.debug": {"msg": "{{ backup_replicate_sites[0].copies }} copies"}},
            {"name": "Repair", "ansible.builtin.include_role": role, "vars": again},
        ],
    }
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    done = subprocess.run(
        [
            str(Path(sys.executable).parent / "ansible-playbook"),
            "-i", "store2,", "-e", "ansible_connection=local", str(tmp_path / "play.yml"),
        ],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "ANSIBLE_COLLECTIONS_PATH": str(collections.parents[1]),
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "ANSIBLE_NOCOLOR": "1",
            "LC_ALL": "C.UTF-8",
        },
        check=False,
    )  # fmt: skip
    assert "changed=1" in done.stdout and "failed=0" in done.stdout, done.stdout + done.stderr
    assert f"bring {filler.ids[0]}, 10 bytes, verified and published" in done.stdout
    assert "2 backups were good here already" in done.stdout
    assert "2 of 2 copies verified" in done.stdout
    assert "2 copies" in done.stdout and sorted(os.listdir(second / filler.cluster_id / "backups")) == filler.ids
