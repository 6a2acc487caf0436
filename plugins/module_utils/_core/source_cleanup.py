# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Which deliveries at a source are in the store, verified, and old enough to go there. Pure.

Nothing goes because of its name: only files that the store lists with size, time and SHA-256, and whose every byte at
the source is still that.
"""

from __future__ import annotations

import posixpath
from typing import Any, Collection, Mapping, NamedTuple, Sequence

from .manifest import path_problem
from .strict import SHA256, Problem

LAYOUTS = ("single", "per_node")


class File(NamedTuple):
    """One file at the source: absolute path, size (bytes), mtime (s) and SHA-256 (hex) that it must have."""

    path: str
    size: int
    mtime: int
    sha256: str


class Delivery(NamedTuple):
    """What happens to one delivery: its files may go if there are no ``reasons`` to stay."""

    id: str
    name: str
    files: Sequence[File]
    reasons: Sequence[Problem]


def plan(
    backups: Sequence[Mapping[str, Any]],
    *,
    host: str,
    root: str,
    older_than: float,
    keep: int,
    now: float,
    only: Collection[str] | None = None,
) -> list[Delivery]:
    """A decision for each of ``backups`` (as module backup_info returns them) that came from ``host``, oldest first.

    ``root``: nothing outside of this directory goes. ``older_than`` (s): by the source's clock, whose time is ``now``.
    ``keep``: of the newest so many nothing goes. ``only``: ids to decide about; the others count for ``keep`` as well.
    """
    mine = [one for one in backups if isinstance(one.get("source"), dict) and one["source"].get("host") == host]
    mine.sort(key=lambda one: int(one.get("sequence", 0)))
    decided = []
    for index, one in enumerate(mine):
        if only is not None and str(one.get("id")) not in only:
            continue
        files, reasons = _files(one, root)
        if one.get("verified") is not True or one.get("published") is not True:
            reasons.append(Problem("NOT_VERIFIED", "the store has not verified it"))
        if len(mine) - index <= keep:
            reasons.append(Problem("NEWEST", f"one of the {keep} newest from this source"))
        age = now - max((file.mtime for file in files), default=now)
        if age <= older_than:
            reasons.append(Problem("TOO_YOUNG", f"it is {age:.0f} s old, {older_than:.0f} s are asked for"))
        decided.append(Delivery(str(one.get("id")), str(one["source"].get("path")), files, reasons))
    return decided


def _files(backup: Mapping[str, Any], root: str) -> tuple[list[File], list[Problem]]:
    """Where the files of a backup are at the source, and why that cannot be told."""
    name, layout = str(backup["source"].get("path")), backup["source"].get("layout")
    listed = backup.get("files") or []
    if layout not in LAYOUTS:
        return [], [Problem("LAYOUT", f"layout {layout} does not tell where each file was")]
    if not listed or not all(_complete(item) for item in listed):
        return [], [Problem("NOT_DESCRIBED", "size, time and SHA-256 of its files are not given")]
    alone = len(listed) == 1 and posixpath.basename(name) == listed[0]["path"]
    files = [
        File(name if alone else posixpath.join(name, item["path"]), item["size"], item["mtime"], item["sha256"])
        for item in listed
    ]
    inside = root.rstrip("/") + "/"
    outside = [file.path for file in files if not file.path.startswith(inside) or path_problem(file.path.strip("/"))]
    return files, [Problem("OUTSIDE", f"{path} is not below {root}") for path in outside]


def _complete(item: Any) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("path"), str)
        and not path_problem(item["path"])
        and isinstance(item.get("size"), int)
        and isinstance(item.get("mtime"), int)
        and SHA256.match(str(item.get("sha256"))) is not None
    )
