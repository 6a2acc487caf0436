# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench itself, with a file too small to say anything about speed: real links, real tools, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMAND = [sys.executable, str(ROOT / "bench" / "bench"), "--no-install", "--size", "4", "--rounds", "1"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A bench on the emulated link that would go on for a while; killed at the end if it still runs."""
    command = [*COMMAND, "--only", "200m-80ms", "--tools", "scp-gcm", "--rounds", "100", "--output", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def world_of(process: subprocess.Popen[str]) -> set[int]:
    """The processes in the bench's own process namespace."""
    ours = os.stat(f"/proc/{process.pid}/ns/pid_for_children").st_ino
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if os.stat(place / "ns" / "pid").st_ino == ours:
                found.add(int(place.name))
        except OSError:
            continue
    return found


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]


def await_first_run(process: subprocess.Popen[str]) -> set[int]:
    """Read until a tool has come home; the processes that the bench has then."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("  1  "):
            return world_of(process)
    raise AssertionError("the bench ended early")


def test_a_small_bench_on_the_emulated_link(tmp_path: Path) -> None:
    done = subprocess.run(
        [*COMMAND, "--only", "1g-20ms", "--tools", "scp,scp-gcm", "--output", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    runs = {row["tool"]: row for row in rows(tmp_path) if row["kind"] == "run" and row["round"] == 1}
    assert set(runs) == {"ours", "scp", "scp-gcm"}
    assert [row["why"] for row in runs.values()] == ["", "", ""]
    for row in runs.values():
        assert row["wire"]["store_received"] > 4 << 20
        assert row["client_memory"] > 0
    assert (summary["complete"], summary["smoke"]) == (True, True)
    assert all(goal["met"] is None for goal in summary["goals"])
    best = next(goal for goal in summary["goals"] if goal["name"] == "1g-20ms")
    assert {"absent: sftp", "absent: rsync", "absent: lftp", "absent: rclone"} <= set(best["why"])


def test_an_interrupted_bench_writes_what_it_has(bench: subprocess.Popen[str], tmp_path: Path) -> None:
    before = await_first_run(bench)
    assert len(before) >= 4
    bench.send_signal(signal.SIGINT)
    output, _none = bench.communicate(timeout=120)
    assert bench.returncode == 130, output
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["complete"] is False
    assert summary["runs"] >= 1
    assert (tmp_path / "table.txt").read_text().startswith("INCOMPLETE")
    assert not [pid for pid in before if Path(f"/proc/{pid}").exists()]
    assert not (tmp_path / "kmsops-bench-store").exists()


def test_a_bench_that_was_killed_leaves_no_process(bench: subprocess.Popen[str], tmp_path: Path) -> None:
    before = await_first_run(bench)
    handles = []
    for pid in before:
        # A tool of the next run may have come and gone already.
        with contextlib.suppress(ProcessLookupError):
            handles.append(os.pidfd_open(pid))
    assert len(handles) >= 4
    bench.kill()
    bench.wait()
    for handle in handles:
        assert select.select([handle], [], [], 120.0)[0], "a process outlived its bench"
        os.close(handle)
    assert json.loads((tmp_path / "summary.json").read_text())["complete"] is False
