# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Files at a source: looked at without following a link, read in full, and only then removed."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import typing as t

from ._core.source_cleanup import File
from ._core.strict import Problem

_PIECE = 1 << 20


def difference(file: File, root: str) -> Problem | None:
    """What is not as the store has it; None if every byte is. An absent file is ``GONE``."""
    if os.path.realpath(os.path.dirname(file.path)) != os.path.dirname(file.path) or not file.path.startswith(root):
        return Problem("LINK", f"a symbolic link leads to {file.path}")
    found, problem = sha256_of(file.path, file.size, file.mtime)
    if problem is None and found != file.sha256:
        return Problem("CHANGED", f"{file.path} has other content than what was shipped")
    return problem


def sha256_of(path: str, size: int, mtime: int) -> tuple[str, Problem | None]:
    """SHA-256 (hex) of a regular file that has this size and time (s) before it is read and afterwards."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "", Problem("GONE", f"{path} is not there any more")
    except OSError as error:
        return "", Problem("UNREADABLE", f"{path} cannot be read: {error.strerror}")
    whole = hashlib.sha256()
    try:
        same = _is(descriptor, size, mtime)
        while same:
            piece = os.read(descriptor, _PIECE)
            if not piece:
                break
            whole.update(piece)
        same = same and _is(descriptor, size, mtime)
    except OSError as error:
        return "", Problem("UNREADABLE", f"{path} cannot be read: {error.strerror}")
    finally:
        os.close(descriptor)
    if not same:
        return "", Problem("CHANGED", f"{path} is not the file that is meant: kind, size or time differ")
    return whole.hexdigest(), None


def _is(descriptor: int, size: int, mtime: int) -> bool:
    found = os.fstat(descriptor)
    return stat.S_ISREG(found.st_mode) and (found.st_size, int(found.st_mtime)) == (size, mtime)


def remove(files: t.Sequence[File], root: str) -> None:
    """Remove files, then the directories below ``root`` that this left empty. Raises OSError."""
    parents = set()
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file.path)
        parents.add(os.path.dirname(file.path))
    for parent in sorted(parents, key=len, reverse=True):
        _remove_empty(parent, root)


def _remove_empty(directory: str, root: str) -> None:
    with contextlib.suppress(OSError):
        while directory.startswith(root.rstrip("/") + "/"):
            os.rmdir(directory)
            directory = os.path.dirname(directory)
