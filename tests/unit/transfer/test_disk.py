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
