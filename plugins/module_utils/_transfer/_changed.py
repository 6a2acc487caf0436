# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""A file at the source that is not what it was when it was listed."""

from __future__ import annotations

import stat

from .._errors import DsmError
from ._sftp import Attributes


class SourceChanged(DsmError):
    """A file at the source is not what it was when it was listed."""

    default_code = "SOURCE_CHANGED"


def same_file(path: str, expected: Attributes, found: Attributes) -> None:
    """Raise :class:`SourceChanged` unless ``found`` has the size and times that were listed, and is a regular file."""
    if not stat.S_ISREG(found.mode) or (found.size, found.mtime) != (expected.size, expected.mtime):
        raise changed(path, f"listed with {expected.size} bytes, now {found.size}")
    if found.changed_ns != expected.changed_ns:
        raise changed(path, "it was replaced, or touched, since it was listed")


def changed(path: str, why: str) -> SourceChanged:
    """The error for a file that is not what it was."""
    return SourceChanged(
        f"{path} changed while it was read ({why}).",
        "SOURCE_CHANGED",
        "It is still being written, or was replaced. Run again when the delivery is complete.",
    )


def gone(path: str) -> SourceChanged:
    """The error for a file that is no longer there."""
    return SourceChanged(
        f"{path} vanished from the source while it was being read.",
        "SOURCE_CHANGED",
        "Run again; and keep the cluster from deleting deliveries before they were shipped.",
    )
