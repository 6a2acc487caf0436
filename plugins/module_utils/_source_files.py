# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Files at a source: looked at without following a link, read in full, and removed if they are still what was read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import typing as t

from ._core.source_cleanup import File
from ._core.strict import Problem

_PIECE = 1 << 20


class State(t.NamedTuple):
    """Which file has a name, and since when it is as it is (ns): whoever writes to it or puts another one there changes
    some of this, also where size and mtime are made to look the same."""

    device: int
    inode: int
    size: int
    mtime: int
    ctime: int
    links: int


class Removal(t.NamedTuple):
    """What went of a delivery (bytes), and why not all of it."""

    freed: int
    problems: t.Sequence[Problem]


def state(path: str) -> State | None:
    """What has this name now; None where that cannot be told."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink)


def difference(file: File, root: str) -> Problem | None:
    """What is not as the store has it; None if every byte is. An absent file is ``GONE``."""
    if _by_link(file, root):
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


def remove(name: str, files: t.Mapping[File, State | None], root: str) -> Removal:
    """Remove files of the delivery ``name``, then those of its own directories that this left empty.

    ``files``: with the state of each from before it was read. To read all deliveries takes hours: nothing goes if one
    of them is another by then, and at the first that cannot be removed the rest of the delivery stays.
    """
    changed = [_since(file, before, root) for file, before in files.items()]
    if any(changed):
        return Removal(0, [problem for problem in changed if problem])
    freed = 0
    for file, before in files.items():
        problem = _since(file, before, root) or _unlink(file.path)
        if problem:
            return Removal(freed, [problem])
        freed += file.size
    for parent in sorted({os.path.dirname(file.path) for file in files}, key=len, reverse=True):
        _remove_empty(parent, name, root)
    return Removal(freed, [])


def _by_link(file: File, root: str) -> bool:
    directory = os.path.dirname(file.path)
    return os.path.realpath(directory) != directory or not file.path.startswith(root)


def _since(file: File, before: State | None, root: str) -> Problem | None:
    """Why a file is not the one that was read any more."""
    now = state(file.path)
    if before is None or now is None or not _same(before, now) or _by_link(file, root):
        return Problem("CHANGED", f"{file.path} is not the file that was read any more")
    return None


def _same(before: State, now: State) -> bool:
    """That another name of it went, a hard link in a delivery that was removed just before, changes only ctime. Some
    mounts give a file another inode at any time, where an equal ctime says that it is the same. Not one that only
    repeats mtime, as other mounts give it: whoever put another file there can set that."""
    if (before.device, before.size, before.mtime) != (now.device, now.size, now.mtime):
        return False
    if before.ctime == now.ctime:
        return before.inode == now.inode or now.ctime != now.mtime
    return before.inode == now.inode and now.links < before.links


def _unlink(path: str) -> Problem | None:
    try:
        os.unlink(path)
    except OSError as error:
        return Problem("REMOVE_FAILED", f"{path} cannot be removed: {error.strerror or error}")
    return None


def _remove_empty(directory: str, name: str, root: str) -> None:
    """Never a directory that deliveries are put into: the next one may be on its way there."""
    with contextlib.suppress(OSError):
        while f"{directory}/".startswith(f"{name.rstrip('/')}/") and directory.startswith(root.rstrip("/") + "/"):
            os.rmdir(directory)
            directory = os.path.dirname(directory)
