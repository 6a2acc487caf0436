# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong use of what a contributor types: one sentence with what to do, its own exit code, and nothing made or taken."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
from labctl import cli, network, paths, prerequisites, site, state
from rehearsal import main as rehearsal
from rehearsal import plan as plans
from rehearsal import report, wheelhouse

BOOT = "boot-a"
NEEDS_A_LAB = {
    "status": ["status"],
    "inventory": ["inventory"],
    "exec": ["exec", "true"],
    "shell": ["shell", "dr1"],
    "ssh": ["ssh", "dr1", "true"],
    "power": ["power", "cut", "dr1"],
    "cut": ["cut", "dc1", "oor"],
    "heal": ["heal"],
    "isolate": ["isolate", "dc1"],
    "isolate-host": ["isolate-host", "dr1"],
    "unisolate-host": ["unisolate-host", "dr1"],
    "unplug": ["unplug", "dr1"],
    "plug": ["plug", "dr1"],
    "service-address": ["service-address", "none"],
    "fault": ["fault", "list"],
    "approve": ["approve", "dr1"],
    "secure-join": ["secure-join", "list"],
    "load": ["load"],
    "clock": ["clock", "dr1", "+1d"],
    "disk-full": ["disk-full", "store"],
    "epoch-reset": ["epoch-reset", "dr1"],
    "hardware-replace": ["hardware-replace", "dr1"],
}
NEEDS_NONE = {"prerequisites", "build", "up", "down", "selftest"}
COMMANDS = {name for action in cli.parser()._subparsers._group_actions for name in action.choices}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which a lab may be, and root on it; nothing of this machine is looked at or touched."""
    directory = tmp_path / "kmsops-lab"
    monkeypatch.setattr(paths, "STATE", directory)
    monkeypatch.setattr(state, "boot_id", lambda: BOOT)
    monkeypatch.setattr(state, "LOCK", f"\0kmsops-lab-test-{os.getpid()}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(cli.namespaces, "leave_lab", lambda: None)
    monkeypatch.setattr(prerequisites, "require", lambda: None)
    monkeypatch.setattr(site, "remains", lambda: ["container lab-dr1"] if directory.exists() else [])
    for toucher in ("build", "_remove", "_prepare"):
        monkeypatch.setattr(site, toucher, lambda *_given: pytest.fail("something was made or taken away"))
    monkeypatch.setattr(network, "create", lambda *_given: pytest.fail("a network was made"))
    return directory


def somebody_s_lab(place: Path, phase: str = "ready") -> bytes:
    state.save(
        state.State(
            checkout="/home/somebody/checkout",
            profile="small",
            purpose="a demonstration",
            phase=phase,
            owner_pid=os.getpid(),
            owner_start=state.process_start(os.getpid()),
            boot_id=BOOT,
            began="2026-11-22T00:00:00Z",
        )
    )
    return state.file().read_bytes()


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "What to do: " in said and "Traceback" not in said, said
    return said


def test_wrong_use_list_of_commands_is_whole() -> None:
    assert set(NEEDS_A_LAB) | NEEDS_NONE == COMMANDS


@pytest.mark.parametrize("command", sorted(NEEDS_A_LAB))
def test_wrong_use_lab_not_running(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(NEEDS_A_LAB[command]) == 4
    said = sentence(capsys)
    assert "the lab is not running" in said and "lab/lab up" in said
    assert not place.exists()


def test_wrong_use_lab_not_running_is_fine_for_down(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "blackhole", lambda _on: None)
    assert cli.main(["down"]) == 0
    assert "there is no lab" in capsys.readouterr().err


@pytest.mark.parametrize("phase", ["ready", "bare", "forming", "creating"])
def test_wrong_use_lab_already_running(phase: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = somebody_s_lab(place, phase)
    assert cli.main(["up"]) == 3
    said = sentence(capsys)
    assert "a demonstration" in said and "/home/somebody/checkout" in said and "lab/lab down" in said
    assert state.file().read_bytes() == before


def test_wrong_use_lab_at_work_is_not_taken_down(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = somebody_s_lab(place, "creating")
    assert cli.main(["down"]) == 3
    assert str(os.getpid()) in sentence(capsys)
    assert state.file().read_bytes() == before


@pytest.mark.parametrize("command", [*sorted(NEEDS_A_LAB.values()), *([name] for name in sorted(NEEDS_NONE))], ids=str)
def test_wrong_use_not_root(
    command: list[str], place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert cli.main(command) == 5
    assert f"sudo lab/lab {command[0]}" in sentence(capsys)
    assert not place.exists()


# -- the rehearsal -----------------------------------------------------------------------------------------------------


def test_wrong_use_not_root_for_a_rehearsal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report of the last rehearsal is kept: nothing began."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(rehearsal, "CHECKOUT", tmp_path)
    kept = tmp_path / "build" / "rehearsal" / "report.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    assert rehearsal.main([]) != 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "sudo make rehearsal" in said
    assert kept.read_text() == "{}"


class Lab:
    """Commands of a rehearsal on a machine where somebody else's lab runs."""

    def __init__(self, place: Path) -> None:
        self.secrets = place / "secrets.yml"
        self.logs = place / "logs"
        self.said: list[tuple[str, ...]] = []

    def lab(self, *words: str, log: str) -> str:
        self.said.append(words)
        if words[0] == "up":
            raise plans.CommandFailed(["lab", *words], 3, self.logs / log)
        return ""


def test_wrong_use_lab_already_running_for_a_rehearsal(place: Path, tmp_path: Path) -> None:
    """Also when an earlier rehearsal left its note behind: the lab that runs now is somebody else's."""
    somebody_s_lab(place)
    owner = tmp_path / "of-rehearsal"
    for leftover in (False, True):
        if leftover:
            owner.write_text("left by a rehearsal that was killed")
        lab = Lab(place)
        plan = plans.Plan(lab, owner)
        assert plan.lab_is_ours is False
        with pytest.raises(plans.CommandFailed):
            plan.bring_up()
        assert [words[0] for words in lab.said] == ["up"], "somebody else's lab was taken down"
        assert plan.lab_is_ours is False and not owner.exists()


class LabThatComesUp(Lab):
    """Production forms while somebody looks; every playbook that is started is written down."""

    def __init__(self, place: Path, stages: list[dict[str, object] | None]) -> None:
        super().__init__(place)
        self.played: list[dict[str, object]] = []
        self.started = threading.Event()
        self.stages = stages

    def lab(self, *words: str, log: str) -> str:
        for stage in self.stages:
            if stage is not None:
                state.file().write_text(json.dumps(stage))
        self.started.wait(5)
        return ""

    def playbook(self, playbook: str, variables: dict[str, object], log: str, silent: bool) -> None:
        self.played.append(json.loads(state.file().read_text()))
        self.started.set()


def test_the_store_is_prepared_while_production_forms(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans.wheelhouse, "provide", lambda: tmp_path)
    ours = {"purpose": plans.PURPOSE, "checkout": str(plans.CHECKOUT), "owner_pid": 7}
    place.mkdir(exist_ok=True)
    lab = LabThatComesUp(place, [{**ours, "phase": "creating"}, {**ours, "phase": "forming"}])
    plan = plans.Plan(lab, tmp_path / "of-rehearsal")
    plan.bring_up()
    assert [seen["phase"] for seen in lab.played] == ["forming"]


def test_the_store_waits_for_hosts_that_answer(place: Path, tmp_path: Path) -> None:
    plan = plans.Plan(Lab(place), tmp_path / "of-rehearsal")
    place.mkdir(exist_ok=True)
    ours = {"purpose": plans.PURPOSE, "checkout": str(plans.CHECKOUT), "owner_pid": 7}
    answers = {}
    for phase in ("creating", "forming", "ready", "removing"):
        state.file().write_text(json.dumps({**ours, "phase": phase}))
        answers[phase] = plan.hosts_answer(None)
    assert answers == {"creating": False, "forming": True, "ready": True, "removing": False}


def test_the_store_of_an_earlier_lab_is_left_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even of one that a rehearsal of this checkout brought up: `up` is refused, and nobody touches its hosts."""
    monkeypatch.setattr(plans.wheelhouse, "provide", lambda: tmp_path)
    place.mkdir(exist_ok=True)
    kept = {"purpose": plans.PURPOSE, "checkout": str(plans.CHECKOUT), "owner_pid": 7, "phase": "ready"}
    state.file().write_text(json.dumps(kept))
    plan = plans.Plan(Lab(place), tmp_path / "of-rehearsal")
    with pytest.raises(plans.CommandFailed):
        plan.bring_up()
    assert plan.store_is_prepared() is False


def test_wrong_use_own_leftover_is_taken_down(place: Path, tmp_path: Path) -> None:
    somebody_s_lab(place)
    value = json.loads(state.file().read_text())
    state.file().write_text(json.dumps({**value, "purpose": plans.PURPOSE, "checkout": str(plans.CHECKOUT)}))
    owner = tmp_path / "of-rehearsal"
    owner.write_text("left by a rehearsal that was killed")
    assert plans.Plan(Lab(place), owner).lab_is_ours is True
    state.file().unlink()
    assert plans.Plan(Lab(place), owner).lab_is_ours is True
    assert asdict(state.State(**{**value, "schema": 1}))["purpose"] == "a demonstration"


def test_wrong_use_lab_already_running_is_a_failed_rehearsal_that_says_so(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    somebody_s_lab(place)
    monkeypatch.setattr(rehearsal, "CHECKOUT", tmp_path)
    monkeypatch.setattr(rehearsal, "Commands", lambda *_given: _WithStop(place))
    for number in rehearsal.SIGNALS:
        monkeypatch.setattr(rehearsal.signal, "signal", lambda *_given: None)
        assert number
    monkeypatch.setattr(rehearsal, "Plan", lambda commands, _owner: plans.Plan(commands, tmp_path / "of-rehearsal"))
    assert rehearsal.main([]) == rehearsal.FAILED
    said = capsys.readouterr().out
    written = json.loads((tmp_path / "build" / "rehearsal" / "report.json").read_text())
    assert written["verdict"] == report.FAILED and "ended with 3" in written["reason"]
    assert "Traceback" not in said and "FAILED" in said


class _WithStop(Lab):
    def stop(self) -> None:
        """Nothing of it runs."""


def test_wrong_use_no_network_and_no_wheels(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheelhouse.subprocess, "run", lambda argv, **_options: subprocess.CompletedProcess(argv, 1))
    with pytest.raises(wheelhouse.NoWheels, match="What to do"):
        wheelhouse.provide()
    assert not list(tmp_path.rglob("*.whl"))


def test_wheels_for_timers_come_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def pip(argv: list[str], **_options: object) -> subprocess.CompletedProcess[str]:
        asked.append(" ".join(Path(argv[at + 1]).name for at, word in enumerate(argv) if word == "--requirement"))
        Path(argv[-1]).mkdir(parents=True)
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheelhouse.subprocess, "run", pip)
    assert wheelhouse.provide() == wheelhouse.provide() != wheelhouse.provide(wheelhouse.WITH_TIMERS)
    assert asked == ["requirements.txt", "requirements.txt timers.txt"]


# -- Python and ansible-core of the controller -------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The launchers in a checkout without a virtual environment."""
    for name in ("lab", "molecule", "requirements"):
        (tmp_path / name).mkdir()
    shutil.copy(paths.LAB / "rehearse", tmp_path / "lab" / "rehearse")
    shutil.copy(paths.CHECKOUT / "molecule" / "run", tmp_path / "molecule" / "run")
    shutil.copy(paths.CHECKOUT / "requirements" / "make-venv", tmp_path / "requirements" / "make-venv")
    return tmp_path


def run(*argv: object, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **({"PATH": path} if path else {})}
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False, env=environ)
    assert "Traceback" not in done.stderr
    return done


def test_wrong_use_unsupported_python_for_a_rehearsal(checkout: Path) -> None:
    done = run(sys.executable, "-I", "-S", checkout / "lab" / "rehearse")
    assert (done.returncode, done.stderr.count("\n")) == (7, 1)
    assert "make rehearsal" in done.stderr


def test_wrong_use_unsupported_python_for_make(checkout: Path, tmp_path: Path) -> None:
    """Only Pythons that the locked ansible-core does not run on: no environment is begun, and the way out is said."""
    tools = tmp_path / "tools"
    tools.mkdir()
    old = tools / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.19 && exit 0\nexit 1\n')
    old.chmod(0o755)
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or name)
    script = checkout / "requirements" / "make-venv"
    script.write_text(script.read_text().replace("/usr/bin/python3", str(old)))  # that of this machine is a good one
    done = run("/bin/bash", script, old, checkout / ".venv", "lock.txt", path=str(tools))
    assert done.returncode == 1
    assert "Python 3.8.19" in done.stderr and "ansible-core" in done.stderr and "make PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_wrong_use_an_environment_that_is_a_link_is_not_emptied(checkout: Path) -> None:
    elsewhere = checkout / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "python").touch()
    (checkout / ".venv").symlink_to(elsewhere)
    done = run(checkout / "requirements" / "make-venv", sys.executable, checkout / ".venv", "lock.txt")
    assert (done.returncode, done.stderr.count("\n")) == (1, 2)
    assert "is a link" in done.stderr and "rm " in done.stderr
    assert (elsewhere / "python").exists()


# -- the stories -------------------------------------------------------------------------------------------------------


def stories(checkout: Path, up: int, *named: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """molecule/run with a lab command that only notes what it was asked for; ``up`` is what `lab up` ends with."""
    notes = checkout / "notes"
    lab = checkout / "lab" / "lab"
    lab.write_text(f'#!/bin/sh\necho "$1" >>{notes}\n[ "$1" = up ] && exit {up}\nexit 0\n')
    binaries = checkout / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "molecule"):
        (binaries / name).write_text("#!/bin/sh\necho /wheels\n")
    (checkout / "molecule" / "default").mkdir()
    (checkout / "molecule" / "default" / "molecule.yml").touch()
    for path in (lab, *binaries.iterdir()):
        path.chmod(0o755)
    done = run("/bin/bash", checkout / "molecule" / "run", *named)
    return done, notes.read_text().split() if notes.exists() else []


@pytest.mark.parametrize("code", [3, 5, 7])
def test_wrong_use_lab_already_running_for_a_story(checkout: Path, code: int) -> None:
    """Somebody else's lab is not taken down, nor is one where none can be (not root, something missing)."""
    done, asked = stories(checkout, code)
    assert (done.returncode, asked) == (code, ["up"])


def test_wrong_use_half_made_lab_of_a_story_is_taken_down(checkout: Path) -> None:
    done, asked = stories(checkout, 1)
    assert (done.returncode, asked) == (1, ["up", "down"])


def test_wrong_use_unknown_story(checkout: Path) -> None:
    done, asked = stories(checkout, 0, "no-such-story")
    assert done.returncode != 0 and asked == []
    assert "no-such-story" in done.stderr and "default" in done.stderr


def test_wrong_use_no_virtual_environment_for_a_story(checkout: Path) -> None:
    done = run("/bin/bash", checkout / "molecule" / "run")
    assert done.returncode == 7
    assert "make venv" in done.stderr
