# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""backup_config: one file, two blocks, one command; nothing lost by a kill, nothing shown that is secret."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from module_run import Answer
from worlds import BackupConfig

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import OperationResult

PASSWORD = BackupConfig.password
OTHER = "correct-horse-battery"
SCP = BackupConfig.scp
BACKUP = BackupConfig.backup
REST = BackupConfig.rest


class Node(BackupConfig):
    def files(self) -> dict[str, bytes]:
        return {str(one.relative_to(self.root)): one.read_bytes() for one in self.root.rglob("*") if one.is_file()}


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Node:
    return Node(tmp_path, monkeypatch)


def codes(answer: Answer) -> list[str]:
    assert answer.failed, answer.text
    return [one["code"] for one in answer.result["reasons"]]


def test_writes_applies_and_is_quiet_afterwards(node: Node) -> None:
    before = node.files()
    planned = node.call(check=True).result
    assert node.files() == before and node.operations.started == []
    done = node.call().result
    assert (planned["changed"], planned["before"], planned["after"]) == (True, done["before"], done["after"])
    assert done["changed"] and done["applied"] and done["diff"] == {"before": done["before"], "after": done["after"]}
    assert yaml.safe_load(node.path.read_text()) == {"cluster": {"name": "acme"}, "backup": BACKUP}
    assert node.path.read_text().startswith(REST)
    assert Path(done["previous"]).read_text() == REST
    assert node.taken_up == [node.path.read_text()]
    for path in (node.path, Path(done["previous"])):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = node.call().result
    assert again["changed"] is False and again["before"] == again["after"] and len(node.taken_up) == 1


def test_a_password_is_shown_nowhere_and_its_change_is(node: Node) -> None:
    first = node.call()
    second = node.call(backup={**BACKUP, "scp": {"password": OTHER}})
    third = node.call(backup={"secret_settings": {"s3": {"secret_access_key": "Zm9vYmFyYmF6"}}})
    for answer in (first, second, third):
        assert not any(secret in answer.text for secret in (PASSWORD, OTHER, "Zm9vYmFyYmF6"))
    assert second.result["changed"]
    assert second.result["before"]["backup"]["scp"]["password"] == "(hidden)"
    assert second.result["after"]["backup"]["scp"]["password"] == "(hidden, new)"
    assert third.result["after"]["backup"]["s3"] == {"secret_access_key": "(hidden, new)"}


def test_output_of_the_command_is_redacted(node: Node) -> None:
    node.operations.ends["apply-config"] = 3
    node.operations.effect = None
    answer = node.call(apply_argv=["apply-config", "{config}", PASSWORD])
    assert answer.failed and answer.result["error_code"] == "APPLY_FAILED"
    assert PASSWORD not in answer.text


def test_what_no_option_names_stays(node: Node) -> None:
    node.path.write_text(REST + "backup:\n  cron_schedule: '5 * * * *'\n  retention: 42\n")
    answer = node.call(backup={"cron_schedule": "10 * * * *", "settings": {"s3": {"bucket": "b"}}}).result
    assert answer["after"]["backup"] == {"cron_schedule": "10 * * * *", "retention": 42, "s3": {"bucket": "b"}}
    removed = node.call(backup={"remove": ["s3", "retention"]}).result
    assert removed["after"]["backup"] == {"cron_schedule": "10 * * * *"}
    gone = node.call(backup={"state": "absent"}).result
    assert gone["after"]["backup"] is None and node.path.read_text() == REST


def test_a_missing_template_is_an_error_before_anything_is_written(node: Node) -> None:
    before = node.files()
    answer = node.call(apply_argv=None)
    assert answer.failed and answer.result["error_code"] == "TEMPLATE_MISSING"
    assert "Backup and Restore Using SCP" in answer.result["remedy"]
    assert node.files() == before
    assert node.call(apply_argv=None, apply=False).result["applied"] is False
    assert node.call(apply_argv=None).result["changed"] is False


def test_an_unknown_placeholder_is_refused(node: Node) -> None:
    assert node.call(apply_argv=["apply", "{password}"]).result["error_code"] == "TEMPLATE_PLACEHOLDER"


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"backup": {**BACKUP, "cron_schedule": "10 * * *"}}, "CRON_INVALID"),
        ({"backup": {"backup_mode": "snapshot"}}, "CRON_INVALID"),
        ({"backup": {**BACKUP, "exclude_auditlog": True}}, "AUDIT_LOG_LOST"),
        ({"backup": {**BACKUP, "scp": {"server_ip": "192.0.2.50"}}}, "SCP_INCOMPLETE"),
        ({"backup": {**BACKUP, "exclude_auditlog": False}, "dsm_version": "3.26.1"}, "VERSION_TOO_OLD"),
        ({"audit_backup": BACKUP, "dsm_version": "3.15"}, "VERSION_TOO_OLD"),
        (
            {"backup": {**BACKUP, "scp": {**SCP, "authmode": "password"}}, "dsm_version": "4.5.9"},
            "VERSION_TOO_OLD",
        ),
        ({"backup": {**BACKUP, "settings": {"exclude_auditlog": "maybe"}}}, "EXCLUDE_INVALID"),
    ],
)
def test_lint_refuses_and_changes_nothing(node: Node, options: dict[str, Any], code: str) -> None:
    before = node.files()
    assert codes(node.call(**options)) == [code]
    assert node.files() == before


def test_all_reasons_come_at_once_and_soft_ones_can_be_accepted(node: Node) -> None:
    wrong = {"cron_schedule": "x", "exclude_auditlog": True, "scp": {"path": "/b"}}
    assert sorted(codes(node.call(backup=wrong))) == ["AUDIT_LOG_LOST", "CRON_INVALID", "SCP_INCOMPLETE"]
    done = node.call(backup={**BACKUP, "exclude_auditlog": True}, accept=["AUDIT_LOG_LOST"]).result
    assert [one["code"] for one in done["accepted"]] == ["AUDIT_LOG_LOST"]
    assert sorted(codes(node.call(backup=wrong, accept=["CRON_INVALID", "SCP_INCOMPLETE", "AUDIT_LOG_LOST"]))) == [
        "CRON_INVALID"
    ]


def test_versions_that_are_new_enough_or_unknown_pass(node: Node) -> None:
    full = {**BACKUP, "exclude_auditlog": True, "scp": {**SCP, "authmode": "password"}}
    assert not node.call(check=True, backup=full, audit_backup=BACKUP, dsm_version="5.4.2031-standin").failed
    assert not node.call(check=True, backup=full, audit_backup=BACKUP).failed


def test_a_password_that_others_can_read_is_refused_and_put_right_when_accepted(node: Node) -> None:
    node.call()
    node.path.chmod(0o644)
    assert codes(node.call()) == ["PASSWORD_EXPOSED"]
    put_right = node.call(accept=["PASSWORD_EXPOSED"]).result
    assert put_right["changed"] and (put_right["before"]["mode"], put_right["after"]["mode"]) == ("0644", "0600")
    assert stat.S_IMODE(node.path.stat().st_mode) == 0o600
    assert node.call().result["changed"] is False


@pytest.mark.parametrize(
    ("text", "line"),
    [("backup:\n\tcron_schedule: x\n", 2), ("backup:\n  a: 1\n  a: 1\n", 3), ("a: 1\nbackup: {}\n", 2)],
)
def test_tabs_and_duplicate_keys_are_refused_with_their_line(node: Node, text: str, line: int) -> None:
    node.path.write_text(text)
    answer = node.call()
    assert answer.result["error_code"] == "CONFIG_UNSAFE"
    assert answer.result["details"]["line"] == line and f"line {line}:" in answer.result["msg"]
    assert node.path.read_text() == text


def test_a_missing_file_and_one_that_is_no_text(node: Node) -> None:
    node.path.write_bytes(b"\xff\xfe\x00")
    assert node.call().result["error_code"] == "CONFIG_UNREADABLE"
    node.path.unlink()
    assert node.call().result["error_code"] == "CONFIG_MISSING"


def test_a_symbolic_link_is_followed(node: Node) -> None:
    real = node.path.with_name("real.yaml")
    node.path.rename(real)
    node.path.symlink_to(real)
    node.call()
    assert node.path.is_symlink() and "backup:" in real.read_text()


@pytest.mark.parametrize("moment", ["before the file", "before the command", "in the command"])
def test_a_kill_anywhere_is_made_good_by_the_next_run(node: Node, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _config_file

    class Killed(BaseException):
        pass

    def kill(*_unused: Any, **_more: Any) -> None:
        raise Killed

    replace, start = _config_file.ConfigFile.replace, node.operations.start_or_attach
    if moment == "before the file":
        monkeypatch.setattr(_config_file.ConfigFile, "replace", kill)
    elif moment == "before the command":
        monkeypatch.setattr(node.operations, "start_or_attach", kill)
    else:
        node.operations.effect = kill
    with pytest.raises(Killed):
        node.call()
    monkeypatch.setattr(_config_file.ConfigFile, "replace", replace)
    monkeypatch.setattr(node.operations, "start_or_attach", start)
    node.operations.effect = node.effect
    planned = node.call(check=True).result
    done = node.call().result
    assert planned["changed"] and done["changed"] and done["applied"]
    assert node.taken_up == [node.path.read_text()]
    assert node.call().result["changed"] is False


def test_a_command_that_failed_is_run_again(node: Node) -> None:
    node.operations.ends["apply-config"] = 1
    assert node.call().result["error_code"] == "APPLY_FAILED"
    node.operations.ends.clear()
    again = node.call().result
    assert again["changed"] and again["before"]["applied"] is False and again["after"]["applied"] is True
    assert node.call().result["changed"] is False


def test_a_command_of_an_earlier_text_does_not_count_for_this_one(node: Node) -> None:
    long_ago = "2020-01-01T00:00:00Z"
    node.operations.records["apply-config"] = OperationResult(None, "", long_ago, True, 1.0, True)
    assert node.call().result["changed"]
    assert node.taken_up == [node.path.read_text()]
