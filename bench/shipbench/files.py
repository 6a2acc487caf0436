# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that nothing can compress, their hashes, and reading them from the disk and not from its cache."""

from __future__ import annotations

import hashlib
import os
import random
import time
from pathlib import Path

_PIECE = 1 << 20
#: A backup that was delivered long ago: nobody waits for it to become quiet.
DELIVERED = time.time() - 86400


def make_file(path: Path, size: int, seed: int) -> str:
    """Write ``size`` bytes that cannot be compressed, flush them, and return their SHA-256."""
    source = random.Random(seed)
    whole = hashlib.sha256()
    with open(path, "wb") as file:
        for offset in range(0, size, _PIECE):
            piece = source.randbytes(min(_PIECE, size - offset))
            file.write(piece)
            whole.update(piece)
        file.flush()
        os.fsync(file.fileno())
    os.utime(path, (DELIVERED, DELIVERED))
    return whole.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            whole.update(piece)
    return whole.hexdigest()


def evict(path: Path) -> None:
    """Drop a file that was flushed from this machine's page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_rate(paths: list[Path]) -> float:
    """Bytes a second at which files can be read one after the other."""
    started, total = time.monotonic(), 0
    buffer = bytearray(_PIECE)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total / (time.monotonic() - started)


def hash_rate(size: int) -> float:
    """Bytes a second at which hashlib makes SHA-256 of what is in memory already."""
    buffer = os.urandom(_PIECE)
    whole = hashlib.sha256()
    started = time.monotonic()
    for _piece in range(max(1, size // _PIECE)):
        whole.update(buffer)
    return max(1, size // _PIECE) * _PIECE / (time.monotonic() - started)
