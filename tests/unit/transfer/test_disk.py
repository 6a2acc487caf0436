# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files on the store's disk: read ahead, whole, and in order."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _disk
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import LedgerFile


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 100_003])
def test_every_byte_comes_once_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(_disk, "_PIECE", 4096)
    path = tmp_path / "file"
    path.write_bytes(random.Random(size).randbytes(size))
    found, longest = hashlib.sha256(), 0
    for piece in _disk.pieces(str(path)):
        # Whoever works on a piece may take his time: the next read goes elsewhere.
        before = bytes(piece)
        threading.Event().wait(0.0005)
        assert bytes(piece) == before and piece
        found.update(piece)
        longest = max(longest, len(piece))
    assert found.digest() == hashlib.sha256(path.read_bytes()).digest() and longest <= 4096


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        list(_disk.pieces(str(tmp_path / "absent")))
    monkeypatch.setattr(_disk, "_PIECE", 10)
    # Nothing is mapped at address 0, so the kernel refuses to read there.
    with pytest.raises(OSError):
        monkeypatch.setattr(_disk.os, "fstat", lambda _descriptor: Path(__file__).stat())
        list(_disk.pieces("/proc/self/mem"))


def test_whoever_stops_early_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_disk, "_PIECE", 4096)
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    before = threading.active_count()
    pieces = _disk.pieces(str(path))
    next(pieces)
    assert threading.active_count() == before + 1
    pieces.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_the_disk_is_told_in_time_what_comes_next_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_disk, "_PIECE", 4096)
    monkeypatch.setattr(_disk, "_AHEAD", 16384)
    told: list[tuple[int, int]] = []

    def note(_descriptor: int, offset: int, length: int, advice: int) -> None:
        assert advice == _disk.os.POSIX_FADV_WILLNEED
        told.append((offset, length))

    monkeypatch.setattr(_disk.os, "posix_fadvise", note)
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    read = 0
    for piece in _disk.pieces(str(path)):
        read += len(piece)
        # Two pieces at most are read and not handed out yet, or on their way.
        assert min(100_000, read + 16384 - 4096) <= sum(told[-1]) <= read + 2 * 4096 + 16384 + 4096
    assert told == [(offset, 4096) for offset in range(0, sum(told[-1]), 4096)]


def write(path: Path) -> None:
    _disk.write_atomically(str(path), b"new")


def make(path: Path) -> None:
    _disk.make_directory(str(path))


def record(path: Path) -> None:
    LedgerFile(str(path)).append(run_id="run-1", kind="joined", subject="dr1", data={})


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "STORE_FULL"),
        (errno.EROFS, "STORE_UNWRITABLE"),
        (errno.EACCES, "STORE_UNWRITABLE"),
        (errno.EPERM, "STORE_UNWRITABLE"),
        (errno.EIO, "STORE_UNWRITABLE"),
        (errno.EMFILE, ""),
    ],
)
@pytest.mark.parametrize(("act", "call"), [(write, "open"), (write, "fsync"), (make, "mkdir"), (record, "open")])
def test_f28_what_cannot_be_written_is_told_with_what_to_look_at(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[Path], None],
    call: str,
    number: int,
    code: str,
) -> None:
    def failing(*_arguments: Any, **_named: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch, pytest.raises(Refused if code else OSError) as caught:
        patch.setattr(os, call, failing)
        act(tmp_path / "it")
    assert list(tmp_path.iterdir()) == []
    if isinstance(caught.value, Refused):
        assert caught.value.code == code and str(tmp_path / "it") in caught.value.message
        assert ("dmesg" in caught.value.remedy) == (code == "STORE_UNWRITABLE")
