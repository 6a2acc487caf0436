# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What `up` and `down` find: the whole decision table, and a state that survives a crash of its writer."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
from labctl import paths, state
from labctl.errors import AlreadyRunning, NotRunning
from labctl.state import Finding

BOOT = "boot-a"
PHASES = (*state.UNFINISHED, state.BARE, state.READY)


def a_state(phase: str, boot: str = BOOT) -> state.State:
    return state.State(
        checkout="/checkout",
        profile="small",
        purpose="a test",
        phase=phase,
        owner_pid=1,
        owner_start="1",
        boot_id=boot,
        began="2026-11-22T00:00:00Z",
    )


def expected(phase: str | None, boot: str, remains: bool, alive: bool) -> Finding:
    if phase is None:
        return Finding.BROKEN if remains else Finding.NOTHING
    if boot != BOOT:
        return Finding.BROKEN
    if phase in ("creating", "forming", "removing"):
        return Finding.BUSY if alive else Finding.BROKEN
    return Finding.RUNNING if remains else Finding.BROKEN


@pytest.mark.parametrize(
    ("phase", "boot", "remains", "alive"),
    list(itertools.product((None, *PHASES), (BOOT, "boot-b"), (True, False), (True, False))),
)
def test_decision_table(phase: str | None, boot: str, remains: bool, alive: bool) -> None:
    current = None if phase is None else a_state(phase, boot)
    found = state.judge(current, remains=remains, owner_alive=alive, boot_id=BOOT)
    assert found is expected(phase, boot, remains, alive)


def test_a_lab_that_runs_is_never_called_broken() -> None:
    """The dangerous mistake: `up` removes what it calls broken."""
    for phase, alive in itertools.product((state.BARE, state.READY), (True, False)):
        found = state.judge(a_state(phase), remains=True, owner_alive=alive, boot_id=BOOT)
        assert found is Finding.RUNNING


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "STATE", tmp_path / "kmsops-lab")
    monkeypatch.setattr(state, "boot_id", lambda: BOOT)
    return tmp_path / "kmsops-lab"


def test_what_is_written_is_read(place) -> None:
    written = replace(a_state("ready"), replaced={"dr1": 1})
    state.save(written)
    assert state.read() == written
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}', '{"schema": 1, "checkout": "/x"}', "null"])
def test_a_state_that_cannot_be_understood_is_none(place, text: str) -> None:
    place.mkdir()
    state.file().write_text(text, encoding="utf-8")
    assert state.read() is None


def test_a_reader_never_sees_half_a_state(place, monkeypatch) -> None:
    state.save(a_state("creating"))

    def dies(source, target) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        state.save(a_state("ready"))
    assert state.read() == a_state("creating")


@pytest.mark.parametrize("phase", ["bare", "ready", "forming"])
def test_a_lab_with_hosts_can_be_used(place, phase: str) -> None:
    state.save(a_state(phase))
    assert state.running().phase == phase


@pytest.mark.parametrize("phase", ["creating", "removing"])
def test_a_lab_without_hosts_cannot(place, phase: str) -> None:
    state.save(a_state(phase))
    with pytest.raises(NotRunning, match=phase):
        state.running()


def test_a_lab_of_the_last_boot_does_not_run(place) -> None:
    state.save(a_state("ready", boot="boot-b"))
    with pytest.raises(NotRunning) as caught:
        state.running()
    assert caught.value.code == 4
    assert caught.value.remedy == "lab/lab up"


def test_the_owner_is_known_by_pid_and_start_time() -> None:
    own = replace(a_state("creating"), owner_pid=os.getpid(), owner_start=state.process_start(os.getpid()))
    assert state.owner_alive(own)
    assert not state.owner_alive(replace(own, owner_start="0"))
    assert not state.owner_alive(replace(own, owner_pid=2**22 + 1))


def test_only_one_at_a_time(place, monkeypatch) -> None:
    monkeypatch.setattr(state, "LOCK", f"\0kmsops-lab-test-{os.getpid()}")
    state.save(a_state("creating"))
    with state.only_one():
        with pytest.raises(AlreadyRunning) as caught, state.only_one():
            pass
        assert caught.value.code == 3
        assert "a test" in caught.value.message
    with state.only_one():
        pass
