# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line and the small parts behind it, as far as they need no lab."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from labctl import cli, faults, paths, prerequisites, process, selftest
from labctl.errors import AlreadyRunning, LabError, MissingPrerequisite, NotRoot, NotRunning, UsageError
from labctl.progress import Progress
from labctl.topology import Host, Site

COMMANDS = sorted(name for action in cli.parser()._subparsers._group_actions for name in action.choices)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.parser().parse_args([command, "--help"])
    assert caught.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) > 3


def test_works_from_any_directory(tmp_path: Path) -> None:
    done = subprocess.run([str(paths.LAB / "lab"), "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "exit codes" in done.stdout


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The launcher in a checkout without a virtual environment."""
    (tmp_path / "lab").mkdir()
    return Path(shutil.copy(paths.LAB / "lab", tmp_path / "lab" / "lab"))


def test_a_python_without_the_modules_is_one_sentence(elsewhere: Path) -> None:
    python = [sys.executable, "-I", "-S"]
    done = subprocess.run([*python, str(elsewhere), "status"], capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stderr.count("\n") == 1
    assert "make venv" in done.stderr


def test_a_python_that_is_too_old_is_one_sentence(elsewhere: Path) -> None:
    script = f"import sys, runpy; sys.version_info = (3, 8, 1); runpy.run_path({str(elsewhere)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert done.stderr.count("\n") == 1
    assert "Python 3.8" in done.stderr
    assert "make venv" in done.stderr


def test_not_root_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(["up"]) == 5
    words = capsys.readouterr().err
    assert words.count("\n") == 1
    assert "root" in words
    assert "sudo lab/lab up" in words


def test_exit_codes_are_different_and_documented() -> None:
    kinds = (LabError, UsageError, AlreadyRunning, NotRunning, NotRoot, MissingPrerequisite)
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(codes)
    words = cli.parser().epilog or ""
    assert all(f"{code} " in words for code in codes)


def test_names_of_proofs_are_unique() -> None:
    assert len(set(selftest.names())) == len(selftest.names())


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(paths, "STATE", tmp_path)
    one = Host("dr1", "dr", Site("oor", 9), "10.66.9.11")
    (tmp_path / "nodes" / "dr1" / "faults").mkdir(parents=True)
    return one


def test_faults_are_set_listed_and_cleared(host: Host) -> None:
    faults.set_fault([host], "hang", {"command": "join"})
    faults.set_fault([host], "noise", {})
    assert faults.active(host) == {"hang": {"command": "join"}, "noise": {}}
    faults.clear([host], "noise")
    faults.clear([host], "never-set")
    assert faults.active(host) == {"hang": {"command": "join"}}
    faults.clear([host], None)
    assert faults.active(host) == {}


@pytest.mark.parametrize(
    "words",
    [
        "set hang --node dr1 command=join times=1",
        "set hang command=join times=1 --node dr1",
        "--node dr1 set hang command=join times=1",
        "set hang command=join --node dr1 times=1",
    ],
)
def test_a_fault_may_be_written_in_any_order(words: str) -> None:
    found = cli.read(["fault", *words.split()])
    assert (found.what, found.name, found.node, found.parameters) == ("set", "hang", "dr1", ["command=join", "times=1"])


@pytest.mark.parametrize("words", ["fault set hang --nod dr1 --x", "status more", "power off dr1 dr2"])
def test_words_too_many_are_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.read(words.split())
    assert caught.value.code == 2
    assert "unrecognized" in capsys.readouterr().err


def test_parameters_of_a_fault() -> None:
    words = ["seconds=5", "command=join", "times=1", "hide=dc1-n1,10.66.1.11", "on=true", "text=a=b"]
    assert faults.parameters(words) == {
        "seconds": 5,
        "command": "join",
        "times": 1,
        "hide": "dc1-n1,10.66.1.11",
        "on": True,
        "text": "a=b",
    }
    for wrong in ("word", "=value"):
        with pytest.raises(UsageError):
            faults.parameters([wrong])


def test_missing_commands_are_named_as_packages() -> None:
    def which(name: str) -> str | None:
        return None if name in ("podman", "nft", "mvn") else f"/usr/bin/{name}"

    assert prerequisites.missing(["podman", "nft", "ip", "mvn"], which) == ["maven", "nftables", "podman"]


def test_a_failed_command_is_told_without_its_secrets() -> None:
    script = "import sys; sys.exit('token abc.def is wrong')"
    with pytest.raises(LabError) as caught:
        process.run([sys.executable, "-c", script, "--token=abc.def"], secrets=["abc.def"])
    assert "abc.def" not in caught.value.message
    assert "token ******** is wrong" in caught.value.message
    assert "exit code 1" in caught.value.message


def test_a_command_that_hangs_is_ended() -> None:
    begin = time.monotonic()
    with pytest.raises(LabError, match="did not end within"):
        process.run(["sleep", "600"], timeout=0.2)
    assert time.monotonic() - begin < 300


def test_a_missing_command_is_a_missing_prerequisite() -> None:
    with pytest.raises(MissingPrerequisite, match="no-such-command"):
        process.run(["no-such-command"])


def test_waiting_tells_the_last_answer() -> None:
    def never() -> bool:
        raise LabError("dr1 answers 500")

    with pytest.raises(LabError, match=r"health: not within 0\.2 s; last answer: dr1 answers 500"):
        process.await_condition("health", never, timeout=0.2, interval=0.01)
    answers = iter([0, "", "ready"])
    assert process.await_condition("it", lambda: next(answers), timeout=120, interval=0.01) == "ready"


def test_each_keeps_the_order_and_raises() -> None:
    assert process.each([3, 1, 2], lambda number: number * 2) == [6, 2, 4]
    assert process.each([], lambda number: number) == []
    with pytest.raises(LabError):
        process.each([1], lambda number: process.run(["false"]))


def test_patience_reminds_until_the_work_is_over_and_not_after(capsys: pytest.CaptureFixture[str]) -> None:
    reminded = threading.Event()

    class Heard(Progress):
        def say(self, text: str) -> None:
            super().say(text)
            reminded.set()

    progress = Heard()
    with progress.patience("still at it", every=0.01):
        assert reminded.wait(120)
    words = capsys.readouterr().err
    assert "s] still at it\n" in words
    assert "patience" not in [thread.name for thread in threading.enumerate()]
