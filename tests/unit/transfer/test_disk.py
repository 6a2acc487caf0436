# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files on the store's disk: read ahead, whole, and in order."""

from __future__ import annotations

import hashlib
import random
import threading
from pathlib import Path

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _disk


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
