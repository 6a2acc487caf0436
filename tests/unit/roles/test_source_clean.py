# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Playbook clean_sources, run by Ansible against a store and a landing directory of this machine."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from many_backups import Filler

ROLES = Path(__file__).resolve().parents[3] / "roles"
OLD = 1_700_000_000
Clean = Callable[..., str]


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    path = tmp_path / "landing" / "drop"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def clean(tmp_path: Path, drop: Path, play_store: Callable[..., str]) -> Clean:
    """Run the playbook, with more arguments and variables of the inventory; its output."""

    def play(*more: str, **variables: Any) -> str:
        wanted = {
            "dsm_store_path": str(tmp_path / "store"),
            "dsm_backup_source": {"path": f"{drop}/*"},
            "dsm_source_clean_older_than": 3600,
            "dsm_source_clean_keep": 1,
        }
        return play_store("clean_sources", "-e", "dsm_backup_sources_group=dsm_store", *more, **{**wanted, **variables})

    return play


def deliver(tmp_path: Path, drop: Path, *times: int) -> Filler:
    """Deliveries of these times, all of them in the store and verified."""
    filler = Filler(tmp_path / "store", 3)
    for number, mtime in enumerate(times, 1):
        path = drop / f"backup_{number}"
        path.write_bytes(b"rows" * number)
        os.utime(path, (mtime, mtime))
        source = {
            "host": "", "path": str(path), "layout": "single", "key": f"k{number}", "hash": "none", "clock_skew": 0,
        }  # fmt: skip
        filler.publish(sealed=(), when=mtime, source=source, files=((path.name, path.read_bytes()),))
    return filler.close()


def test_the_playbook_shows_its_plan_removes_and_is_quiet_then(tmp_path: Path, drop: Path, clean: Clean) -> None:
    deliver(tmp_path, drop, OLD, OLD + 1, OLD + 2)
    planned = clean("--check")
    assert "changed=1" in planned and "failed=0" in planned and "remove at the source: 00000001-" in planned, planned
    assert len(os.listdir(drop)) == 3
    done = clean()
    assert "changed=1" in done and "failed=0" in done, done
    assert os.listdir(drop) == ["backup_3"]
    again = clean()
    assert "changed=0" in again and "failed=0" in again and "nothing may go" in again, again


@pytest.mark.parametrize(("more", "code"), [((), "CORRUPT"), (("-e", "backup_verify_report_only=true"), "NOT_PROVED")])
def test_nothing_goes_at_the_source_of_a_copy_that_has_just_failed(
    tmp_path: Path, drop: Path, clean: Clean, more: tuple[str, ...], code: str
) -> None:
    """Whatever the inventory says for the nightly run, and also where the command line outdoes the role."""
    filler = deliver(tmp_path, drop, OLD, OLD + 1, OLD + 2)
    # It rotted; the last verification said ok.
    (filler.backups / filler.ids[0] / "data" / "backup_1").write_bytes(b"swor")
    nightly = {"backup_verify_report_only": True, "backup_verify_newest": True, "dsm_accept": ["CORRUPT"]}
    told = clean(*more, **nightly)
    assert f"{code}: " in told and "failed=1" in told, told
    assert len(os.listdir(drop)) == 3


def test_the_nightly_run_decides_nothing_about_what_goes() -> None:
    """Every option of the verification is set here, but those that have no part in its verdict."""
    specs = yaml.safe_load((ROLES / "backup_verify" / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))
    options = set(specs["argument_specs"]["main"]["options"])
    tasks = yaml.safe_load((ROLES / "source_clean" / "tasks" / "main.yml").read_text(encoding="utf-8"))
    (verification,) = [
        task for block in tasks for task in block.get("block", []) if "backup_verify_ids" in task.get("vars", {})
    ]
    assert options - set(verification["vars"]) == {"backup_verify_grace", "backup_verify_metrics"}


def test_only_what_was_read_again_at_the_store_goes(tmp_path: Path, drop: Path, clean: Clean) -> None:
    """What becomes old enough between the plan and the removal (hours, where much is read) was not read again."""
    now = int(time.time())
    filler = deliver(tmp_path, drop, OLD, *range(now - 3598, now - 3570), now)
    told = clean()
    (planned,) = re.findall(r"remove at the source: ([^\"]*)", told)
    left = set(os.listdir(drop))
    gone = {name for number, name in enumerate(filler.ids, 1) if f"backup_{number}" not in left}
    assert gone == set(planned.split(", ")), told
