# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rehearsal's processes: what a killed one left running is ended by the next, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rehearsal import commands


@pytest.fixture
def running(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    marks = [{commands.TAG: str(tmp_path)}, {commands.TAG: str(tmp_path / "another")}, {}]
    children = [subprocess.Popen(["sleep", "600"], env={**os.environ, **mark}) for mark in marks]
    yield children
    for child in children:
        child.kill()
        child.wait()


def test_orphans_are_ended_and_nobody_else(tmp_path: Path, running: list[subprocess.Popen[bytes]]) -> None:
    orphan, others = running[0], running[1:]
    assert commands.end_orphans(tmp_path) == 1
    assert orphan.wait(timeout=120) == -signal.SIGKILL
    assert [other.poll() for other in others] == [None, None]


def test_what_is_started_carries_the_mark(tmp_path: Path) -> None:
    said = commands.Commands(tmp_path, print, verbose=False).run(
        [sys.executable, "-c", f"import os; print(os.environ['{commands.TAG}'])"], tmp_path / "log"
    )
    assert said.strip() == str(commands.CHECKOUT)
