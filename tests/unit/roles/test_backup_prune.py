# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook prune_backups, run by Ansible against a store in a directory of this machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from many_backups import Filler


def test_the_playbook_shows_its_plan_removes_and_is_quiet_then(tmp_path: Path, play_store: Callable[..., str]) -> None:
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
    planned = play_store("prune_backups", "--check", **wanted)
    assert "changed=1" in planned and "failed=0" in planned, planned
    assert "goes" in planned and "COUNT" in planned and "FLOOR" in planned
    assert sorted(os.listdir(filler.backups)) == filler.ids and not metrics.exists()
    done = play_store("prune_backups", **wanted)
    assert "changed=1" in done and "failed=0" in done, done
    assert sorted(os.listdir(filler.backups)) == filler.ids[2:]
    assert "kmsops_dsm_store_verified_copies" in metrics.read_text()
    again = play_store("prune_backups", **wanted)
    assert "changed=0" in again and "failed=0" in again, again
    refused = play_store("prune_backups", **{**wanted, "dsm_keep": 0})
    assert "KEEP_NOTHING" in refused and "failed=1" in refused, refused
    assert sorted(os.listdir(filler.backups)) == filler.ids[2:]
