# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults bite where they are meant to, and nowhere else."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from standin import faults

PACKAGE = Path(faults.__file__).parent.parent


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(faults, "FAULTS_DIR", tmp_path)
    return tmp_path


def arm(directory: Path, name: str, **parameters: object) -> None:
    (directory / f"{name}.json").write_text(json.dumps(parameters), encoding="utf-8")


class Body:
    """A command's work; counts how often it was done."""

    def __init__(self, result: int = 0) -> None:
        self.done = 0
        self.result = result

    def __call__(self) -> int:
        self.done += 1
        return self.result


def test_nothing_is_active_until_a_file_is_there(directory: Path) -> None:
    assert faults.active("hang") is None
    (directory / "hang.json").touch()
    assert faults.active("hang") == {}


def test_parameters_that_are_no_object_are_refused(directory: Path) -> None:
    (directory / "hang.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="hang"):
        faults.active("hang")


def test_a_fault_with_times_goes_away(directory: Path) -> None:
    arm(directory, "nonzero-did-it", times=2)
    body = Body()
    assert [faults.around("join", body) for _ in range(3)] == [3, 3, 0]
    assert body.done == 3
    assert list(directory.iterdir()) == []


def test_without_faults_the_command_runs_and_its_code_is_kept(directory: Path) -> None:
    body = Body(7)
    assert faults.around("join", body) == 7
    assert body.done == 1


def test_a_fault_of_another_command_does_not_bite(directory: Path) -> None:
    arm(directory, "exit0-did-nothing", command="remove")
    body = Body()
    faults.around("join", body)
    assert body.done == 1


def test_exit0_did_nothing(directory: Path) -> None:
    arm(directory, "exit0-did-nothing", command="join")
    body = Body()
    assert faults.around("join", body) == 0
    assert body.done == 0


def test_a_question_without_an_answer_does_nothing(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arm(directory, "asks-a-question")
    body = Body()
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert faults.around("reset", body) == 1
    assert body.done == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n"))
    assert faults.around("reset", body) == 0
    assert body.done == 1


def test_noise_goes_to_both_outputs(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arm(directory, "noise")
    assert faults.around("join", Body()) == 0
    printed = capsys.readouterr()
    assert "connection refused" in printed.out
    assert "connection refused" in printed.err


def test_hang_with_seconds_goes_on(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rested: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", rested.append)
    arm(directory, "hang", seconds="4")
    body = Body()
    faults.around("join", body)
    assert (rested, body.done) == ([4.0], 1)


def test_dies_half_way_is_a_kill_at_the_named_step(directory: Path) -> None:
    arm(directory, "dies-half-way", command="join", step="two")
    program = (
        "import sys, pathlib; from standin import faults; faults.FAULTS_DIR = pathlib.Path(sys.argv[1])\n"
        "steps = faults.Steps('join', ('one', 'two', 'three'))\n"
        "for name in steps.names: steps.at(name); print(name, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(directory)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "one\n"


def test_a_step_nobody_declared_is_a_mistake(directory: Path) -> None:
    with pytest.raises(ValueError, match="no step"):
        faults.Steps("join", ("one",)).at("two")


NODES = {
    "kind": "List",
    "items": [
        {"kind": "Node", "metadata": {"name": "dc1-n1"}},
        {"kind": "Node", "metadata": {"name": "dr1"}},
        {"kind": "Pod", "metadata": {"name": "cassandra-3"}, "spec": {"nodeName": "dr1"}},
    ],
}


def test_a_lie_hides_a_member_in_json() -> None:
    told = json.loads(faults.lie(json.dumps(NODES), {"hide": "dr1,192.0.2.9"}))
    assert [item["metadata"]["name"] for item in told["items"]] == ["dc1-n1"]


def test_a_lie_invents_a_member_in_json() -> None:
    told = json.loads(faults.lie(json.dumps(NODES), {"invent": "ghost", "like": "dc1-n1"}))
    assert [item["metadata"]["name"] for item in told["items"]] == ["dc1-n1", "dr1", "cassandra-3", "ghost"]


def test_a_lie_in_text_drops_and_adds_lines() -> None:
    text = "UN  192.0.2.1  10 KiB\nUN  192.0.2.9  11 KiB\n"
    assert faults.lie(text, {"hide": "192.0.2.9"}) == "UN  192.0.2.1  10 KiB\n"
    assert "UN  192.0.2.7  10 KiB" in faults.lie(text, {"invent": "192.0.2.7", "like": "192.0.2.1"})


def test_the_wrapper_runs_the_real_program(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arm(directory, "noise", command="something-else")
    assert faults.main(["wrap", "kubectl", "/bin/sh", "-c", "echo real; exit 5"]) == 5
    assert capfd.readouterr().out == "real\n"


def test_the_wrapper_lies(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arm(directory, "member-lies", hide="dr1")
    assert faults.main(["wrap", "kubectl", "/bin/sh", "-c", "echo dc1-n1 Ready; echo dr1 Ready"]) == 0
    assert capfd.readouterr().out == "dc1-n1 Ready\n"


def test_the_wrapper_without_a_program_says_how() -> None:
    assert faults.main(["wrap", "kubectl"]) == 2
