# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""backup_run: when the snapshot started, and who was a member then, whatever the command says."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_node import SCHEMA, commands, jobs_json, nodes_json, nodetool_describecluster, pods_json
from module_run import FakeOperations
from worlds import BackupRun

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _cluster, _module, _schedule
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import OperationResult

NODES = BackupRun.nodes
DESCRIBE = ("kubectl", "exec", "-n", "default", "cassandra-0", "--", "nodetool", "describecluster")
SILENT = (1, "", "error: unable to upgrade connection: container not found")


@pytest.fixture
def member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BackupRun:
    world = BackupRun(tmp_path, monkeypatch)
    for number in range(1, len(NODES)):
        world.answers[(*DESCRIBE[:4], f"cassandra-{number}", *DESCRIBE[5:])] = SILENT
    return world


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
    member.call(check=True)
    assert member.operations.records == {"backup-now": left}
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


# -- F05: the schema changes between the snapshots of the nodes --------------------------------------------------------

OTHER = "65e78f0e-e81e-30d8-a631-a65dff93bf82"
FIRST, SECOND, THIRD = NODES.values()
AGREED = nodetool_describecluster({SCHEMA: [FIRST, SECOND, THIRD]})
MOVED = nodetool_describecluster({OTHER: [FIRST, SECOND, THIRD]})
SPLIT = nodetool_describecluster({SCHEMA: [FIRST, SECOND], OTHER: [THIRD]})


def in_turn(*answers: Any) -> Callable[[list[str]], Any]:
    """One answer after the other; the last one stays."""
    left = list(answers)
    return lambda _argv: left.pop(0) if len(left) > 1 else left[0]


def codes(result: dict[str, Any], key: str = "reasons") -> list[tuple[str, bool]]:
    return [(one["code"], one["hard"]) for one in result[key]]


class Clock:
    """Time that passes only while somebody sleeps."""

    begin = datetime(2026, 11, 22, 0, 0, 0, tzinfo=timezone.utc)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept: list[float] = []
        clock = self

        class Now(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> datetime:
                return clock.begin + timedelta(seconds=clock.passed())

        time = SimpleNamespace(monotonic=self.passed, sleep=self.slept.append)
        monkeypatch.setattr(_cluster, "time", time)
        monkeypatch.setattr(_schedule, "time", time)
        monkeypatch.setattr(_schedule, "datetime", Now)

    def passed(self) -> float:
        return sum(self.slept)


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the module warns of; Ansible itself adds up the warnings of all calls of a process."""
    said: list[str] = []
    monkeypatch.setattr(_module.Shell, "warn", lambda _self, text: said.append(text))
    return said


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_f05_the_schema_that_all_had_before_and_after_is_told(member: BackupRun, warned: list[str]) -> None:
    assert member.call(check=True).result["schema"] == SCHEMA
    done = member.call().result
    assert (done["schema"], done["discarded"], done["accepted"]) == (SCHEMA, [], [])
    assert warned == []


def test_f05_a_split_is_waited_for_before_anything_is_started(member: BackupRun, clock: Clock) -> None:
    member.answers[DESCRIBE] = in_turn(SPLIT, SPLIT, AGREED)
    done = member.call().result
    assert (len(clock.slept), done["schema"], len(member.operations.started)) == (2, SCHEMA, 1)


def test_f05_silence_after_a_split_does_not_settle_it(member: BackupRun, clock: Clock) -> None:
    member.answers[DESCRIBE] = in_turn(SPLIT, SILENT, AGREED)
    assert member.call().result["schema"] == SCHEMA and len(clock.slept) == 2
    member.answers[DESCRIBE] = in_turn(SPLIT, SILENT)
    refused = member.call(timeout=20)
    assert codes(refused.result) == [("SCHEMA_SPLIT", False)] and len(member.operations.started) == 1


def test_f05_a_split_for_ever_is_refused_before_anything_is_started(
    member: BackupRun, clock: Clock, warned: list[str]
) -> None:
    member.answers[DESCRIBE] = SPLIT
    planned = member.call(check=True, timeout=20)
    assert not planned.failed and planned.result["schema"] is None and clock.slept == []
    assert [text.split(":")[0] for text in warned] == ["SCHEMA_SPLIT"]
    refused = member.call(timeout=20)
    assert refused.failed and refused.result["error_code"] == "SCHEMA_SPLIT" and not refused.result["changed"]
    assert codes(refused.result) == [("SCHEMA_SPLIT", False)]
    assert f"{SCHEMA} on {FIRST}, {SECOND}; {OTHER} on {THIRD}" in refused.result["msg"]
    assert (member.operations.started, clock.passed()) == ([], 20.0)


def test_f05_an_accepted_split_is_recorded(member: BackupRun) -> None:
    member.answers[DESCRIBE] = SPLIT
    done = member.call(timeout=0, accept=["SCHEMA_SPLIT"]).result
    assert codes(done, "accepted") == [("SCHEMA_SPLIT", False)]
    assert done["snapshot_started"] and done["schema"] is None and len(member.operations.started) == 1


@pytest.mark.parametrize("silence", [SILENT, "", AGREED[:-60], "nodetool: Failed to connect to '127.0.0.1:7199'\n"])
def test_f05_a_database_that_cannot_be_asked_stands_in_the_way_of_nothing(
    member: BackupRun, silence: Any, warned: list[str]
) -> None:
    for number in range(len(NODES)):
        member.answers[(*DESCRIBE[:4], f"cassandra-{number}", *DESCRIBE[5:])] = silence
    for check in (True, False):
        done = member.call(check=check)
        assert not done.failed and done.result["schema"] is None, done.text
        assert warned.pop().startswith("SCHEMA_UNKNOWN") and warned == []
    assert [one["name"] for one in done.result["members"]] == list(NODES) and len(member.operations.started) == 1


def test_f05_a_database_that_falls_silent_meanwhile_is_warned_of(member: BackupRun, warned: list[str]) -> None:
    member.operations.effect = lambda _name, _argv: member.answers.update({DESCRIBE: SILENT})
    done = member.call().result
    assert done["schema"] is None and len(member.operations.started) == 1
    assert len(warned) == 1 and "SCHEMA_UNKNOWN" in warned[0] and "container not found" in warned[0]


def test_f05_pods_that_cannot_be_listed_for_the_question_stand_in_the_way_of_nothing(member: BackupRun) -> None:
    member.answers[("kubectl", "get", "pods")] = in_turn(SILENT, pods_json(NODES))
    done = member.call()
    assert not done.failed and done.result["schema"] is None and len(member.operations.started) == 1, done.text


def test_f05_another_database_pod_is_asked_when_the_first_does_not_answer(member: BackupRun) -> None:
    member.answers[DESCRIBE] = SILENT
    member.answers[(*DESCRIBE[:4], "cassandra-1", *DESCRIBE[5:])] = AGREED
    assert member.call().result["schema"] == SCHEMA


def test_f05_a_node_that_is_down_disagrees_with_nobody(member: BackupRun) -> None:
    member.answers[DESCRIBE] = nodetool_describecluster({SCHEMA: [FIRST, SECOND], "UNREACHABLE": [THIRD]})
    member.operations.effect = lambda _name, _argv: member.answers.update({DESCRIBE: AGREED})
    done = member.call(timeout=0).result
    assert done["schema"] == SCHEMA and len(member.operations.started) == 1


class Changing:
    """Each backup that starts finds the next answer to the question for the schema; the one that starts is noted."""

    def __init__(self, member: BackupRun, *answers: Any) -> None:
        self.member, self.answers = member, list(answers)
        member.operations.effect = self

    def __call__(self, _name: str, _argv: list[str]) -> None:
        self.member.operations.now = f"2026-11-22T00:1{len(self.member.operations.started)}:00Z"
        if self.answers:
            self.member.answers[DESCRIBE] = self.answers.pop(0)


@pytest.mark.parametrize("run_id", [None, "run-7"])
def test_f05_when_it_changed_once_the_second_backup_counts(member: BackupRun, run_id: str | None) -> None:
    Changing(member, MOVED)
    done = member.call(run_id=run_id).result
    assert len(member.operations.started) == 2
    assert (done["schema"], done["snapshot_started"]) == (OTHER, "2026-11-22T00:12:00Z")
    assert done["discarded"] == ["2026-11-22T00:11:00Z"] and not done["attached"] and done["accepted"] == []


def test_f05_when_it_changed_twice_that_is_all(member: BackupRun) -> None:
    Changing(member, MOVED, AGREED)
    failed = member.call()
    assert failed.failed and failed.result["error_code"] == "SCHEMA_CHANGED" and len(member.operations.started) == 2
    assert codes(failed.result) == [("SCHEMA_CHANGED", False)]
    assert failed.result["details"]["discarded"] == ["2026-11-22T00:11:00Z", "2026-11-22T00:12:00Z"]


def test_f05_an_accepted_change_is_recorded(member: BackupRun) -> None:
    Changing(member, MOVED, AGREED)
    done = member.call(accept=["SCHEMA_CHANGED"]).result
    assert codes(done, "accepted") == [("SCHEMA_CHANGED", False)] and done["schema"] is None
    assert done["snapshot_started"] == "2026-11-22T00:12:00Z" and done["discarded"] == ["2026-11-22T00:11:00Z"]


def test_f05_before_the_second_backup_the_nodes_must_agree_again(member: BackupRun, clock: Clock) -> None:
    Changing(member, in_turn(SPLIT, SPLIT, MOVED))
    done = member.call().result
    assert done["schema"] == OTHER and len(clock.slept) == 1 and len(member.operations.started) == 2


def test_f05_where_no_second_backup_can_be_started_the_first_is_told_of(member: BackupRun, clock: Clock) -> None:
    Changing(member, SPLIT)
    failed = member.call(timeout=20)
    assert failed.failed and failed.result["error_code"] == "SCHEMA_SPLIT" and len(member.operations.started) == 1
    assert codes(failed.result) == [("SCHEMA_SPLIT", False), ("SCHEMA_CHANGED", False)]
    assert failed.result["details"]["discarded"] == ["2026-11-22T00:11:00Z"]


def test_f05_the_first_backup_ends_before_the_second_is_started(member: BackupRun, clock: Clock) -> None:
    changing = Changing(member, MOVED)

    def run_as_a_job(name: str, argv: list[str]) -> None:
        changing(name, argv)
        assert len(member.operations.started) == 1 or clock.slept, "two backups at once"
        member.answers[JOBS] = in_turn(jobs_json({"backup-by-hand": True}), jobs_json({"backup-by-hand": False}))

    member.operations.effect = run_as_a_job
    done = member.call().result
    assert done["waited_for"] == ["backup-by-hand"] and done["schema"] == OTHER


def test_f05_what_was_accepted_for_the_first_backup_stays_recorded(member: BackupRun) -> None:
    changing = Changing(member, MOVED)
    member.answers[JOBS] = jobs_json({"sdkms-backup": True})

    def end_the_job(name: str, argv: list[str]) -> None:
        changing(name, argv)
        member.answers[JOBS] = jobs_json({"sdkms-backup": False})

    member.operations.effect = end_the_job
    done = member.call(timeout=0, accept=["BACKUP_IN_FLIGHT"]).result
    assert codes(done, "accepted") == [("BACKUP_IN_FLIGHT", False)] and done["schema"] == OTHER


@pytest.mark.parametrize(
    ("noted", "started", "told"),
    [({"versions": {SCHEMA: [FIRST]}}, 0, SCHEMA), ({"versions": {OTHER: [FIRST]}}, 1, SCHEMA), (None, 0, None)],
    ids=["unchanged", "changed", "not noted"],
)
def test_f05_a_second_call_compares_with_what_the_first_saw(
    member: BackupRun, warned: list[str], noted: dict[str, Any] | None, started: int, told: str | None
) -> None:
    running = OperationResult(None, "", "2026-11-21T23:59:00Z", True, 1.0, True, note=noted)
    member.operations.records["backup-now-run-7"] = running
    done = member.call(run_id="run-7").result
    assert (len(member.operations.started), done["schema"]) == (started, told)
    assert (done["attached"], done["discarded"]) == ((True, []) if not started else (False, ["2026-11-21T23:59:00Z"]))
    assert [text.split(":")[0] for text in warned] == (["SCHEMA_UNKNOWN"] if noted is None else [])


@pytest.mark.parametrize("running", [True, False])
def test_f05_an_attached_backup_is_not_held_up_by_a_split(member: BackupRun, running: bool) -> None:
    left = OperationResult(None if running else 0, "", "2026-11-21T23:59:00Z", True, 1.0, running)
    member.operations.records["backup-now-run-7"] = left
    member.answers[DESCRIBE] = SPLIT
    done = member.call(run_id="run-7", timeout=0)
    assert done.result["attached"] and member.operations.started == [], done.text


def test_f05_another_backup_of_the_same_run_is_held_up_by_a_split(member: BackupRun) -> None:
    told = OperationResult(0, "", "2026-11-21T23:59:00Z", True, 1.0, False, reported=True)
    member.operations.records["backup-now-run-7"] = told
    member.answers[DESCRIBE] = SPLIT
    refused = member.call(run_id="run-7", timeout=0)
    assert refused.result["error_code"] == "SCHEMA_SPLIT" and member.operations.started == []


def test_f05_what_is_noted_is_what_was_seen_before(member: BackupRun) -> None:
    Changing(member, MOVED)
    member.call(run_id="run-7")
    note = member.operations.records["backup-now-run-7"].note
    assert note == {"versions": {OTHER: [FIRST, SECOND, THIRD]}, "unreachable": []}


SCHEDULED = {"mode": "cron", "argv": None, "schedule": "10 * * * *", "timeout": 4000}


def test_f05_the_schema_is_looked_at_right_before_the_schedule_fires(member: BackupRun, clock: Clock) -> None:
    member.answers[DESCRIBE] = lambda _argv: MOVED if clock.passed() > 500 else AGREED
    done = member.call(**SCHEDULED).result
    assert (done["schema"], done["snapshot_started"]) == (OTHER, "2026-11-22T00:10:00Z") and clock.passed() == 600


def test_f05_a_change_while_the_schedule_fires_fails(member: BackupRun, clock: Clock) -> None:
    member.answers[DESCRIBE] = lambda _argv: MOVED if clock.passed() >= 600 else AGREED
    assert member.call(check=True, **SCHEDULED).result["schema"] == SCHEMA and clock.slept == []
    failed = member.call(**SCHEDULED)
    assert failed.result["error_code"] == "SCHEMA_CHANGED" and not failed.result["changed"]
    assert failed.result["details"]["discarded"] == ["2026-11-22T00:10:00Z"]
    clock.slept.clear()
    accepted = member.call(**SCHEDULED, accept=["SCHEMA_CHANGED"]).result
    assert codes(accepted, "accepted") == [("SCHEMA_CHANGED", False)]


def test_f05_a_split_is_waited_for_until_the_schedule_fires(member: BackupRun, clock: Clock) -> None:
    member.answers[DESCRIBE] = lambda _argv: AGREED if clock.passed() >= 590 else SPLIT
    assert member.call(**SCHEDULED).result["schema"] == SCHEMA
    clock.slept.clear()
    member.answers[DESCRIBE] = SPLIT
    refused = member.call(**SCHEDULED)
    assert refused.result["error_code"] == "SCHEMA_SPLIT" and clock.passed() == 600
    assert "2026-11-22T00:10:00Z does not count" in refused.result["msg"]
