# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Files and directories that outlive a crash: replaced as a whole, flushed with their names, and refused in a sentence
where there is no space."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import typing as t

from .._errors import DsmError, Refused, Unreadable

#: What the kernel says where nothing more can be written.
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
#: What it says where nothing may be written, or where the disk fails.
UNWRITABLE = frozenset((errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO))
#: Bytes that are read at once.
_PIECE = 4 << 20
#: Bytes that the disk is told to fetch before anybody reads them.
_AHEAD = 32 << 20


def store_full(path: str, error: BaseException) -> Refused:
    """The error for a store without space or quota (code STORE_FULL)."""
    return Refused(
        f"The store is full: {path} cannot be written ({error}).",
        "STORE_FULL",
        "Make room (expire old backups by playbook prune_backups, or grow the file system), then run again. "
        "Backups that were published before are untouched.",
    )


def store_unwritable(path: str, error: OSError) -> Refused:
    """The error for a store that takes nothing although it has room (code STORE_UNWRITABLE)."""
    return Refused(
        f"{path} cannot be written: {error.strerror or error}.",
        "STORE_UNWRITABLE",
        f"Look whether its file system is mounted read-only ('findmnt -T {os.path.dirname(path)}'; the kernel does "
        "that when a disk fails, 'dmesg' tells), who owns it ('ls -ld') and whether it is immutable ('lsattr -d'). Put "
        "that right, then run again. Backups that were published before are untouched.",
    )


def not_written(path: str, error: OSError) -> Exception:
    """The error for a person where something could not be written; the error itself where it says something else."""
    if error.errno in FULL:
        return store_full(path, error)
    return store_unwritable(path, error) if error.errno in UNWRITABLE else error


def read_bytes(path: str) -> bytes:
    """A whole file. Raises :class:`Unreadable` for anything but its absence."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            pieces = [os.read(descriptor, size + 1)]
            while len(pieces[-1]) > 0 and sum(map(len, pieces)) != size:
                pieces.append(os.read(descriptor, 1 << 20))
            return b"".join(pieces)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {error.strerror}.", "UNREADABLE", "Check the disk.") from None


def pieces(path: str) -> t.Iterator[memoryview]:
    """All of a file, piece by piece; while one is worked on, the next is read. A piece is good until the next is asked
    for. Raises OSError."""
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size <= _PIECE:
            whole = file.readall()
            if whole:
                yield memoryview(whole)
            return
        # Loaded here: most who need this module read nothing that is large.
        import concurrent.futures

        at = announced = 0

        def fill(buffer: bytearray) -> int:
            nonlocal at, announced
            # The disk then has much to do at a time; one that is asked for piece by piece is often idle.
            while announced < at + _AHEAD:
                os.posix_fadvise(file.fileno(), announced, _PIECE, os.POSIX_FADV_WILLNEED)
                announced += _PIECE
            count = file.readinto(buffer)
            at += count
            return count

        with concurrent.futures.ThreadPoolExecutor(1) as reader:
            buffers = [bytearray(_PIECE), bytearray(_PIECE)]
            coming = reader.submit(fill, buffers[0])
            while True:
                count = coming.result()
                if not count:
                    return
                here = memoryview(buffers[0])[:count]
                buffers.reverse()
                coming = reader.submit(fill, buffers[0])
                yield here


def sync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: str, data: bytes, mode: int = 0o600) -> None:
    """Replace a file as a whole and durably. Raises :class:`Refused` (STORE_FULL, STORE_UNWRITABLE) or OSError."""
    # Two processes may write the same file.
    temporary = f"{path}.{os.getpid()}.new"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(os.path.dirname(path))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise not_written(path, error) from None


def make_directory(path: str) -> None:
    """A directory of our own (0700), durable; it may exist. Raises :class:`Refused` (NOT_A_DIRECTORY, STORE_FULL,
    STORE_UNWRITABLE) or OSError."""
    try:
        os.mkdir(path, 0o700)
        sync_directory(os.path.dirname(path))
    except FileExistsError:
        if os.path.isdir(path):
            return
        raise Refused(
            f"{path} is no directory, so nothing can be put there.",
            "NOT_A_DIRECTORY",
            "Nothing here makes such a thing: look who did, move it away, then run again.",
        ) from None
    except OSError as error:
        raise not_written(path, error) from None


def sync_tree(path: str) -> None:
    """Make all names below a directory durable (the files were flushed as they landed)."""
    for directory, _directories, _files in os.walk(path):
        sync_directory(directory)


def remove_tree(path: str) -> None:
    """Remove a directory of ours with everything in it; absent is fine."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DsmError(
            f"{path} could not be removed: {error.strerror}.",
            "CLEANUP_FAILED",
            "Remove it by hand when nobody ships; it is not a published backup.",
            errno=errno.errorcode.get(error.errno or 0, ""),
        ) from None


def landed_bytes(path: str) -> int:
    """Bytes that the files below a directory take on the disk; an unfinished one has holes."""
    total = 0
    for directory, _directories, files in os.walk(path):
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                status = os.lstat(os.path.join(directory, name))
                total += min(status.st_size, status.st_blocks * 512)
    return total


def remove_strangers(data: str, wanted: set[str]) -> None:
    """Files in an unfinished transfer that do not belong to it."""
    for directory, _directories, files in os.walk(data):
        for name in files:
            path = os.path.join(directory, name)
            if os.path.relpath(path, data) not in wanted:
                os.unlink(path)
