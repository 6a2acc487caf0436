# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""backup_run: when the snapshot started, and who was a member then, whatever the command says."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from fake_node import commands, jobs_json, nodes_json
from module_run import FakeOperations
from worlds import BackupRun

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _schedule
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import OperationResult

NODES = BackupRun.nodes


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BackupRun:
    return BackupRun(tmp_path, monkeypatch)


def test_tells_the_start_of_the_snapshot_and_its_members(member: BackupRun) -> None:
    planned = member.call(check=True).result
    assert planned["changed"] and planned["snapshot_started"] is None and member.operations.started == []
    done = member.call().result
    assert done["changed"] and done["snapshot_started"] == "2026-11-22T00:10:00Z"
    assert datetime.fromisoformat(done["snapshot_started_before"].replace("Z", "+00:00"))
    assert [one["name"] for one in done["members"]] == list(NODES)
    assert done["members"][0]["host_id"] and done["members"][0]["addresses"] == ["192.0.2.11"]
    assert len(done["fingerprint"]) == 64


def test_a_node_that_left_meanwhile_does_not_count(member: BackupRun) -> None:
    without = {name: address for name, address in NODES.items() if name != "dr1"}

    def leave(_name: str, _argv: list[str]) -> None:
        member.answers.update(commands("dc1-n1", without))

    member.operations.effect = leave
    assert [one["name"] for one in member.call().result["members"]] == list(without)


def test_a_node_that_came_meanwhile_or_is_younger_does_not_count(member: BackupRun) -> None:
    few = {"dc1-n1": NODES["dc1-n1"], "dc2-n1": NODES["dc2-n1"]}
    member.answers = commands("dc1-n1", few)
    member.operations.effect = lambda _name, _argv: member.answers.update(commands("dc1-n1", NODES))
    assert [one["name"] for one in member.call().result["members"]] == list(few)
    member.operations = FakeOperations(now="2026-10-01T00:00:00Z")
    assert member.call().result["members"] == []


def test_f04_a_node_that_is_not_up_does_not_count(member: BackupRun) -> None:
    down = nodes_json(NODES).replace('"status": "True"', '"status": "Unknown"', 1)
    member.answers[("kubectl", "get", "nodes")] = down
    assert [one["name"] for one in member.call().result["members"]] == ["dc2-n1", "dr1"]


def test_a_second_call_of_the_same_run_attaches_and_reports_the_first_start(member: BackupRun) -> None:
    running = OperationResult(None, "", "2026-11-21T23:59:00Z", True, 1.0, True)
    member.operations.records["backup-now-run-7"] = running
    done = member.call(run_id="Run 7").result
    assert done["attached"] and done["snapshot_started"] == "2026-11-21T23:59:00Z"
    assert member.operations.started == []


@pytest.mark.parametrize("running", [True, False])
def test_what_another_call_left_behind_is_not_taken_for_this_backup(member: BackupRun, running: bool) -> None:
    left = OperationResult(None if running else 0, "", "2026-11-21T23:59:00Z", True, 1.0, running)
    member.operations.records["backup-now"] = left
    done = member.call().result
    assert not done["attached"] and done["snapshot_started"] == "2026-11-22T00:10:00Z"
    assert len(member.operations.started) == 1


JOBS = ("kubectl", "get", "cronjobs,jobs")


def test_a_scheduled_backup_that_still_runs_is_waited_for(member: BackupRun, monkeypatch: pytest.MonkeyPatch) -> None:
    member.answers[JOBS] = jobs_json({"sdkms-backup": True, "report": True})
    planned = member.call(check=True).result
    assert planned["waited_for"] == ["sdkms-backup"]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        assert member.operations.started == [], "the backup was started beside the scheduled one"
        slept.append(seconds)
        member.answers[JOBS] = jobs_json({"sdkms-backup": False, "report": True})

    monkeypatch.setattr(_schedule.time, "sleep", sleep)
    done = member.call().result
    assert len(slept) == 1 and done["waited_for"] == ["sdkms-backup"] and done["snapshot_started"]
    assert member.call().result["waited_for"] == []


def test_a_scheduled_backup_that_never_ends_is_a_soft_reason(member: BackupRun) -> None:
    member.answers[JOBS] = jobs_json({"sdkms-backup": True})
    refused = member.call(timeout=0)
    assert refused.failed and member.operations.started == []
    assert [(one["code"], one["hard"]) for one in refused.result["reasons"]] == [("BACKUP_IN_FLIGHT", False)]
    accepted = member.call(timeout=0, accept=["BACKUP_IN_FLIGHT"]).result
    assert [one["code"] for one in accepted["accepted"]] == ["BACKUP_IN_FLIGHT"] and accepted["snapshot_started"]
    assert member.call(timeout=0, scheduled="^nothing$").result["waited_for"] == []


def test_jobs_that_cannot_be_read_are_not_taken_for_none(member: BackupRun) -> None:
    member.answers[JOBS] = "{}"
    assert member.call().result["error_code"] == "UNREADABLE" and member.operations.started == []


@pytest.mark.parametrize("rc", [1, None])
def test_a_command_that_failed_started_nothing(member: BackupRun, rc: int | None) -> None:
    member.operations.ends["backup-now"] = rc
    answer = member.call()
    assert answer.failed and answer.result["error_code"] == "BACKUP_NOT_STARTED"


def test_without_a_template_the_article_is_named(member: BackupRun) -> None:
    answer = member.call(argv=None)
    assert answer.result["error_code"] == "TEMPLATE_MISSING" and "Using SCP" in answer.result["remedy"]


def test_without_a_control_plane_nothing_is_started(member: BackupRun) -> None:
    member.answers[("kubectl", "get", "nodes")] = (1, "", "Unable to connect to the server: dial tcp: refused")
    assert member.call().result["error_code"] == "CLUSTER_UNAVAILABLE"
    assert member.operations.started == []


def test_waits_for_the_schedule_of_the_configuration(
    member: BackupRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 11, 22, 0, 9, 58, tzinfo=timezone.utc)
    slept: list[float] = []

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return now + timedelta(seconds=sum(slept))

    monkeypatch.setattr(_schedule, "datetime", Clock)
    monkeypatch.setattr(_schedule.time, "sleep", slept.append)
    config = tmp_path / "config.yaml"
    config.write_text('backup:\n  cron_schedule: "10 * * * *"\n')
    planned = member.call(check=True, mode="cron", argv=None, config=str(config)).result
    assert slept == []
    done = member.call(mode="cron", argv=None, config=str(config)).result
    assert slept == [2.0]
    assert (done["changed"], done["trigger"], done["snapshot_started"]) == (False, "cron", "2026-11-22T00:10:00Z")
    assert planned["snapshot_started"] == done["snapshot_started"] and done["snapshot_started_before"] is None
    far = member.call(mode="cron", argv=None, schedule="0 3 * * *", timeout=60)
    assert far.result["error_code"] == "TOO_FAR_AWAY"
    assert far.result["details"]["next_firing"] == "2026-11-22T03:00:00Z"


@pytest.mark.parametrize("text", ["cluster: x\n", "backup:\n  cron_schedule: soon\n", "backup:\n\tx: 1\n"])
def test_a_schedule_that_is_missing_or_wrong_is_refused(member: BackupRun, tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(text)
    answer = member.call(mode="cron", argv=None, config=str(config))
    assert answer.failed and answer.result["error_code"] == "SCHEDULE_INVALID"
