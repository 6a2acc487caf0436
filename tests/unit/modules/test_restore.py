# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""restore: every guard by itself, soft reasons yield, and a kill anywhere either goes on or says half done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dsm_api import VERSION
from fake_node import witness
from module_run import Answer
from worlds import PRODUCTION, SEALED, Restore

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import OperationResult

STEPS = Restore.steps
OPERATIONS = ["restore-01-stop-backend", "restore-02-load", "restore-03-start-backend"]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Restore]:
    found = Restore(tmp_path, monkeypatch)
    yield found
    found.close()


def codes(answer: Answer) -> list[str]:
    assert answer.failed, answer.text
    return sorted(one["code"] for one in answer.result["reasons"])


def test_restores_and_is_quiet_afterwards(node: Restore) -> None:
    planned = node.call(check=True).result
    assert node.ran == [] and not (node.state / "restore.json").exists()
    done = node.call().result
    assert (planned["changed"], planned["before"], planned["after"]) == (True, done["before"], done["after"])
    assert (planned["state"], done["state"], done["restored_id"]) == ("planned", "restored", "b1")
    assert done["changed"] and done["version"] == VERSION and done["accepted"] == []
    assert node.ran == OPERATIONS
    assert node.operations.started[1][1] == ["load-database", "--from", str(node.backup), f"--in={node.root}"]
    again = node.call().result
    assert again["changed"] is False and again["before"] == again["after"] == done["after"]
    assert node.ran == OPERATIONS


def test_a_restored_cluster_stays_a_no_op_when_it_has_grown_and_become_production(node: Restore) -> None:
    node.call()
    node.nodes = {"dr1": "203.0.113.11", "spare1": "203.0.113.12"}
    node.ledger = {"folded": {"production_fingerprint": node.fingerprint, "members": []}}
    assert node.call(candidates=[node.candidate(id="b2"), node.candidate()]).result["changed"] is False


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"confirm": "dc1-n1"}, "CONFIRM_MISMATCH"),
        ({"expected_addresses": ["203.0.113.77"]}, "ADDRESS_MISMATCH"),
        ({"expected_serial": "SN-2"}, "SERIAL_MISMATCH"),
        ({"host_role": "production"}, "NOT_A_DR_HOST"),
        ({"host_role": "spare"}, "NOT_A_DR_HOST"),
        ({"testimony": None}, "TESTIMONY_MISSING"),
        ({"isolation": {"production_endpoints": [{"address": "127.0.0.1", "port": 443}]}}, "NOT_ISOLATED"),
        ({"isolation": {"production_endpoints": []}}, "ISOLATION_UNDECLARED"),
    ],
)
def test_each_guard_refuses_and_cannot_be_accepted(node: Restore, change: dict[str, Any], code: str) -> None:
    assert codes(node.call(**change)) == [code]
    assert codes(node.call(accept=[code], **change)) == [code]
    assert node.ran == [] and not (node.state / "restore.json").exists()


def test_a_cluster_that_is_not_our_own_empty_one_is_refused(node: Restore) -> None:
    node.marker = dict(node.marker, fingerprint="0" * 64)
    assert codes(node.call()) == ["FOREIGN_CLUSTER"]
    node.marker = dict(node.marker, fingerprint=node.fingerprint, host="dr2")
    assert codes(node.call()) == ["FOREIGN_CLUSTER"]
    node.marker = None
    (node.state / "trial.json").unlink()
    assert codes(node.call()) == ["FOREIGN_CLUSTER"]


def test_a_cluster_with_other_nodes_is_refused(node: Restore) -> None:
    node.nodes = {"dr1": "203.0.113.11", "spare1": "203.0.113.12"}
    assert codes(node.call()) == ["NOT_SINGLE_NODE"]


def test_production_is_refused_whoever_says_so(node: Restore) -> None:
    node.ledger = {"folded": {"production_fingerprint": node.fingerprint, "members": []}}
    assert codes(node.call()) == ["IS_PRODUCTION"]
    node.ledger = {"folded": {"production_fingerprint": PRODUCTION, "members": []}}
    node.witnesses = {"dc1-n1": witness("dc1-n1", node.fingerprint, ["dc1-n1"])}
    assert codes(node.call()) == ["IS_PRODUCTION"]
    node.witnesses = {"dr1": witness("dr1", node.fingerprint, ["dr1"])}
    assert not node.call(check=True).failed


def test_no_cluster_is_refused(node: Restore) -> None:
    Path(node.kubeconfig).unlink()
    assert "NO_CLUSTER" in codes(node.call())


def test_without_the_ledger_a_person_decides(node: Restore) -> None:
    node.ledger = None
    assert codes(node.call()) == ["LEDGER_MISSING"]
    done = node.call(accept=["LEDGER_MISSING"]).result
    assert [one["code"] for one in done["accepted"]] == ["LEDGER_MISSING"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"verified": False}, "UNVERIFIED"),
        ({"version": "5.6.2919-standin"}, "VERSION"),
        ({"version": None}, "VERSION"),
        ({"sealed_for": []}, "JOIN_UNKNOWN"),
        ({"sealed_for": [dict(SEALED, node="dr2")]}, "JOIN_UNKNOWN"),
        ({"sealed_for": [dict(SEALED, joined_at=None)]}, "JOIN_UNKNOWN"),
        ({"snapshot_started": None}, "JOIN_UNKNOWN"),
        ({"snapshot_started": "2026-11-20T23:59:59Z"}, "OLDER_THAN_JOIN"),
        ({"snapshot_started": "2026-11-21T01:00:00+02:00"}, "OLDER_THAN_JOIN"),
        ({"sealed_for": [dict(SEALED, platform_id="SN-9")]}, "PLATFORM"),
        ({"cluster_id": "0123456789abcdef"}, "FOREIGN_BACKUP"),
    ],
)
def test_a_doubtful_candidate_yields_to_accept(node: Restore, change: dict[str, Any], code: str) -> None:
    candidate = {key: value for key, value in node.candidate(**change).items() if value is not None}
    refused = node.call(candidates=[candidate])
    assert codes(refused) == [code] and refused.result["error_code"] == "NO_CANDIDATE"
    assert node.ran == []
    done = node.call(candidates=[candidate], accept=[code]).result
    assert done["restored_id"] == "b1" and [one["code"] for one in done["accepted"]] == [code]


def test_expected_version_stands_in_for_a_candidate_without_one(node: Restore) -> None:
    candidate = node.candidate()
    del candidate["version"]
    assert not node.call(check=True, candidates=[candidate], expected_version=VERSION).failed
    assert codes(node.call(check=True, candidates=[candidate], expected_version="5.4.1")) == ["VERSION"]


def test_the_first_candidate_that_nothing_speaks_against_is_taken(node: Restore) -> None:
    candidates = [
        node.candidate(id="unverified", verified=False),
        node.candidate(id="spoiled", sha256="0" * 64),
        node.candidate(id="gone", path=str(node.root / "gone")),
        node.candidate(id="good"),
        node.candidate(id="older"),
    ]
    done = node.call(candidates=candidates).result
    assert done["restored_id"] == "good"
    passed = {one["id"]: [reason["code"] for reason in one["reasons"]] for one in done["passed_over"]}
    assert passed == {"unverified": ["UNVERIFIED"], "spoiled": ["HASH"], "gone": ["NOT_STAGED"]}


@pytest.mark.parametrize(
    ("content", "options", "code"),
    [
        (b"", {}, "EMPTY"),
        (b"x" * 100, {"free_factor": 1e16}, "NO_SPACE"),
        (b"x", {"data_path": "/nowhere"}, "NO_SPACE"),
    ],
)
def test_what_is_staged_must_be_whole_and_fit(
    node: Restore, content: bytes, options: dict[str, Any], code: str
) -> None:
    node.backup.write_bytes(content)
    assert codes(node.call(**options)) == [code]
    assert codes(node.call(accept=[code], **options)) == [code]


def test_a_directory_is_compared_by_its_tree(node: Restore) -> None:
    node.backup.unlink()
    (node.backup / "n1").mkdir(parents=True)
    (node.backup / "n1" / "a").write_bytes(b"a")
    (node.backup / "b").write_bytes(b"b")
    lines = "".join(f"{hashlib.sha256(name[-1].encode()).hexdigest()}  {name}\n" for name in ("b", "n1/a"))
    candidate = node.candidate(sha256=hashlib.sha256(lines.encode()).hexdigest())
    done = node.call(candidates=[candidate]).result
    assert done["restored_id"] == "b1"
    assert node.operations.started[1][1][2:] == [str(node.backup), f"--in={node.backup}"]


def test_missing_and_wrong_templates(node: Restore) -> None:
    missing = node.call(steps=[])
    assert missing.result["error_code"] == "TEMPLATE_MISSING" and "Backup and Restore" in missing.result["remedy"]
    for wrong in ([{"name": "x", "argv": ["a", "{archve}"]}], [{"name": "x", "argv": ["restore-all"]}]):
        assert node.call(steps=wrong).result["error_code"] == "TEMPLATE_PLACEHOLDER"
    twice = [{"name": "x", "argv": ["a", "{archive}"]}] * 2
    assert node.call(steps=twice).result["error_code"] == "STEPS_INVALID"
    dash = [{"name": "x", "argv": ["a", "\u2013-archive", "{archive}"]}]
    assert node.call(steps=dash).result["error_code"] == "ARGV_NOT_ASCII"
    assert node.ran == []


@pytest.mark.parametrize("rc", [1, None])
def test_a_step_that_failed_is_half_done_and_never_goes_on(node: Restore, rc: int | None) -> None:
    node.operations.ends["restore-02-load"] = rc
    failed = node.call()
    assert failed.result["error_code"] == "HALF_DONE" and "create the cluster again" in failed.result["remedy"]
    assert node.journal["state"] == "failed" and node.ran == OPERATIONS[:2]
    node.operations.ends.clear()
    assert codes(node.call()) == ["HALF_DONE"]
    assert codes(node.call(accept=["HALF_DONE"])) == ["HALF_DONE"]
    assert node.ran == OPERATIONS[:2]


def test_a_journal_of_an_earlier_cluster_is_past(node: Restore) -> None:
    node.write_journal(fingerprint="0" * 64, state="failed", step="load")
    assert node.call().result["restored_id"] == "b1"


def test_a_restore_of_something_else_stands_in_the_way(node: Restore) -> None:
    node.call()
    assert codes(node.call(candidates=[node.candidate(id="b2")])) == ["ALREADY_RESTORED"]


def test_a_run_killed_between_steps_goes_on_with_the_next(node: Restore) -> None:
    node.write_journal(done=1, step="stop backend")
    assert node.call().result["restored_id"] == "b1"
    assert node.ran == OPERATIONS[1:]


def test_a_run_killed_in_a_step_joins_the_step_that_still_runs(node: Restore) -> None:
    node.write_journal(done=1, step="load")
    node.operations.records["restore-02-load"] = OperationResult(None, "", "2026-11-22T00:00:00Z", True, 1.0, True)
    assert node.call().result["restored_id"] == "b1"
    assert node.ran == OPERATIONS[2:]


def test_a_step_that_ended_well_after_its_run_had_died_is_not_repeated(node: Restore) -> None:
    node.write_journal(done=1, step="load")
    node.operations.records["restore-02-load"] = OperationResult(0, "", "2026-11-22T00:00:00Z", True, 1.0, False)
    assert node.call().result["restored_id"] == "b1"
    assert node.ran == OPERATIONS[2:]


def test_a_step_that_a_power_cut_ended_is_half_done(node: Restore) -> None:
    node.write_journal(done=1, step="load")
    node.operations.records["restore-02-load"] = OperationResult(None, "", "2026-11-22T00:00:00Z", True, 1.0, False)
    assert node.call().result["error_code"] == "HALF_DONE"
    assert node.ran == [] and node.journal["state"] == "failed"


def test_other_steps_than_those_that_began_are_refused(node: Restore) -> None:
    node.write_journal(done=1, step="load")
    assert codes(node.call(steps=STEPS[1:])) == ["HALF_DONE"]


def test_a_step_of_an_older_restore_that_still_runs_is_in_the_way(node: Restore) -> None:
    running = OperationResult(None, "", "2026-11-22T00:00:00Z", True, 1.0, True)
    node.operations.records["restore-01-stop-backend"] = running
    assert node.call().result["error_code"] == "OPERATION_CONFLICT"


def test_a_journal_that_cannot_be_read_is_never_taken_for_none(node: Restore) -> None:
    (node.state / "restore.json").write_text("{")
    assert node.call().result["error_code"] == "RECORD_UNREADABLE"


def test_a_service_that_stays_closed_fails_and_is_looked_at_again(node: Restore) -> None:
    node.site.backend.health = lambda consistency: (500, "sealed")  # type: ignore[method-assign]
    answer = node.call()
    assert answer.result["error_code"] == "NOT_SERVING", answer.text
    assert answer.result["details"]["last_state"]["status"] == 500
    assert node.journal["state"] == "steps_done"
    del node.site.backend.health
    done = node.call().result
    assert done["restored_id"] == "b1" and node.ran == OPERATIONS
