# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files that are there whole or not at all, and that nobody else can read.

PRIVATE to the collection.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from typing import Any

from ._errors import Unreadable


def write_atomic(path: str, data: bytes, mode: int = 0o600) -> None:
    """Puts ``data`` at ``path`` by rename, on disk before it returns. Keeps the owner of a file that was there."""
    directory = os.path.dirname(path) or "."
    descriptor, temporary = tempfile.mkstemp(prefix="." + os.path.basename(path) + ".", dir=directory)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            handle.write(data)
            handle.flush()
            os.fchmod(handle.fileno(), mode)
            with contextlib.suppress(FileNotFoundError, PermissionError):
                old = os.stat(path)
                os.fchown(handle.fileno(), old.st_uid, old.st_gid)
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_directory(directory)


def sync_directory(directory: str) -> None:
    """Makes renames and deletions in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: str) -> dict[str, Any] | None:
    """A record, or ``None`` when there is none. One that cannot be read is :class:`Unreadable`, never absent."""
    try:
        with open(path, encoding="utf-8") as handle:
            value = json.load(handle)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Unreadable(
            f"The record {path} cannot be read: {error}",
            "RECORD_UNREADABLE",
            "Look at the file. Without it nobody knows what an earlier run left half done.",
        ) from error
    if not isinstance(value, dict):
        raise Unreadable(f"The record {path} is not an object.", "RECORD_UNREADABLE", "Look at the file.")
    return value


def write_json(path: str, value: dict[str, Any]) -> None:
    """Keeps a record with mode 0600 in a directory of mode 0700."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def remove(path: str) -> None:
    """Removes a file durably; one that is not there is fine."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
        sync_directory(os.path.dirname(path))
