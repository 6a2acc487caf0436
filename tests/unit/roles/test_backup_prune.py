# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook prune_backups, run by Ansible against a store in a directory of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from many_backups import Filler

ROOT = Path(__file__).resolve().parents[3]


def play(tmp_path: Path, *more: str, **variables: object) -> str:
    """Output of one run against the store below ``tmp_path``."""
    collections = tmp_path / "collections" / "ansible_collections" / "kmsops"
    if not collections.exists():
        collections.mkdir(parents=True)
        (collections / "fortanix_dsm").symlink_to(ROOT)
    store = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, **variables}
    inventory = tmp_path / "inventory.yml"
    inventory.write_text(yaml.safe_dump({"dsm_store": {"hosts": {"store1": store}}}))
    environ = {
        **os.environ,
        "ANSIBLE_COLLECTIONS_PATH": str(collections.parents[1]),
        "ANSIBLE_HOME": str(tmp_path / "home"),
        "ANSIBLE_NOCOLOR": "1",
        "LC_ALL": "C.UTF-8",
    }
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory)]
    done = subprocess.run(
        [*command, *more, "kmsops.fortanix_dsm.prune_backups"], capture_output=True, text=True, env=environ, check=False
    )
    return done.stdout + done.stderr


def test_the_playbook_shows_its_plan_removes_and_is_quiet_then(tmp_path: Path) -> None:
    filler = Filler(tmp_path / "store", 6)
    for _index in range(5):
        filler.publish(sealed=())
    filler.close()
    metrics = tmp_path / "dsm.prom"
    wanted = {
        "dsm_store_path": str(tmp_path / "store"),
        "dsm_keep": 2,
        "dsm_max_copies": 3,
        "dsm_store_metrics": str(metrics),
    }
    planned = play(tmp_path, "--check", **wanted)
    assert "changed=1" in planned and "failed=0" in planned, planned
    assert "goes" in planned and "COUNT" in planned and "FLOOR" in planned
    assert sorted(os.listdir(filler.backups)) == filler.ids and not metrics.exists()
    done = play(tmp_path, **wanted)
    assert "changed=1" in done and "failed=0" in done, done
    assert sorted(os.listdir(filler.backups)) == filler.ids[2:]
    assert "kmsops_dsm_store_verified_copies" in metrics.read_text()
    again = play(tmp_path, **wanted)
    assert "changed=0" in again and "failed=0" in again, again
    refused = play(tmp_path, **{**wanted, "dsm_keep": 0})
    assert "KEEP_NOTHING" in refused and "failed=1" in refused, refused
    assert sorted(os.listdir(filler.backups)) == filler.ids[2:]
