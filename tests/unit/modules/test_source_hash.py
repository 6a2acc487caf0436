# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A hash from the source is of exactly the file that the store has seen there, or there is none."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from module_run import FakeOperations, FakeRunner, run

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _source_files

OLD = 1_700_000_000


def delivered(path: Path, content: bytes) -> dict[str, Any]:
    path.write_bytes(content)
    os.utime(path, (OLD, OLD))
    return {"path": str(path), "size": len(content), "mtime": OLD}


def hashed(*files: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 by path, and the code by path of what got none."""
    answer = run("source_hash", {"files": list(files)}, check=False, runner=FakeRunner(), operations=FakeOperations())
    assert not answer.failed and answer.result["changed"] is False, answer.text
    return answer.result["hashes"], {one["path"]: one["code"] for one in answer.result["unhashed"]}


def test_every_file_that_is_as_it_was_seen_has_its_hash(tmp_path: Path) -> None:
    files = [delivered(tmp_path / f"part {number}", b"x" * number) for number in (1, 2 << 20)]
    expected = {file["path"]: hashlib.sha256(Path(file["path"]).read_bytes()).hexdigest() for file in files}
    assert hashed(*files) == (expected, {})


def test_what_is_not_as_it_was_seen_has_none(tmp_path: Path) -> None:
    grown, touched = delivered(tmp_path / "grown", b"1"), delivered(tmp_path / "touched", b"1")
    Path(grown["path"]).write_bytes(b"12")
    os.utime(touched["path"], (OLD + 1, OLD + 1))
    link = tmp_path / "link"
    link.symlink_to(delivered(tmp_path / "aim", b"1")["path"])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    absent = tmp_path / "absent"
    more = [{"path": str(path), "size": 1, "mtime": OLD} for path in (link, fifo, absent)]
    assert hashed(grown, touched, *more) == (
        {},
        {
            grown["path"]: "CHANGED",
            touched["path"]: "CHANGED",
            str(link): "UNREADABLE",
            str(fifo): "CHANGED",
            str(absent): "GONE",
        },
    )


def test_a_file_that_is_written_to_while_it_is_read_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = delivered(tmp_path / "busy", b"12345678")
    real = os.read

    def read(descriptor: int, size: int) -> bytes:
        piece = real(descriptor, size)
        if not piece:
            Path(file["path"]).write_bytes(b"123456789")
        return piece

    monkeypatch.setattr(_source_files.os, "read", read)
    assert hashed(file) == ({}, {file["path"]: "CHANGED"})
