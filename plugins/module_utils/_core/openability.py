# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Openability (law 2): what a backup is worth to one set-aside node.

The copy of the master key that a node can open is sealed for that node and that DSM version and lives *in the
database* [seed: backup and restore, 3.0 step 2]. So a backup is worth something only as a pair (backup, node).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .manifest import Manifest, Sealed
from .strict import Problem, utc_seconds

KINDS = ("proved", "golden", "presumed", "impossible")


@dataclass(frozen=True)
class Copy:
    """What is known of a backup for this question; ``oldest_mtime`` (s) bounds the snapshot's start from above."""

    id: str
    snapshot_started: str | None
    oldest_mtime: int | None
    sealed_for: tuple[Sealed, ...]


@dataclass(frozen=True)
class Pair:
    """The class of a pair (backup, node) and why; reasons other than those of ``impossible`` are soft."""

    backup_id: str
    node: str
    kind: str
    reasons: tuple[Problem, ...]


def copy_of(manifest: Manifest) -> Copy:
    """The facts of a manifest that decide openability."""
    oldest = min(entry.mtime for entry in manifest.files)
    return Copy(manifest.id, manifest.snapshot_started, oldest, manifest.sealed_for)


def classify(
    copy: Copy,
    node: str,
    *,
    platform_id: str = "",
    version: str = "",
    proved: frozenset[tuple[str, str]] = frozenset(),
) -> Pair:
    """The class of (``copy``, ``node``); ``platform_id`` and ``version`` are the node's present ones, "" if unknown.

    ``proved`` has the pairs (backup id, node) that a rehearsal opened. A proof is of its own platform and version, so a
    contradiction found now still makes the pair impossible.
    """
    contradictions: list[Problem] = []
    doubts: list[Problem] = []
    records = [item for item in copy.sealed_for if item.node == node]
    if not records:
        contradictions.append(Problem("NOT_SEALED", f"{copy.id} records no copy of the master key sealed for {node}"))
    for sealed in records[-1:]:
        _identity(copy, sealed, platform_id, version, contradictions, doubts)
        _order(copy, sealed, contradictions, doubts)
    if contradictions:
        return Pair(copy.id, node, "impossible", tuple(contradictions))
    if (copy.id, node) in proved:
        return Pair(copy.id, node, "proved", ())
    return Pair(copy.id, node, "presumed" if doubts else "golden", tuple(doubts))


def _identity(
    copy: Copy, sealed: Sealed, platform_id: str, version: str, contradictions: list[Problem], doubts: list[Problem]
) -> None:
    if platform_id and sealed.platform_id and platform_id != sealed.platform_id:
        contradictions.append(
            Problem("PLATFORM", f"sealed for platform {sealed.platform_id}, {sealed.node} is now {platform_id}")
        )
    elif not sealed.platform_id:
        doubts.append(Problem("PLATFORM_UNKNOWN", f"the platform of {sealed.node} was not recorded with {copy.id}"))
    if version and sealed.version and version != sealed.version:
        contradictions.append(Problem("VERSION", f"sealed for DSM {sealed.version}, {sealed.node} now runs {version}"))
    elif not sealed.version:
        doubts.append(Problem("VERSION_UNKNOWN", f"the DSM version of {sealed.node} was not recorded with {copy.id}"))


def _order(copy: Copy, sealed: Sealed, contradictions: list[Problem], doubts: list[Problem]) -> None:
    if sealed.joined_at is None:
        doubts.append(Problem("JOIN_UNKNOWN", f"it is not recorded when {sealed.node} joined"))
    else:
        joined = utc_seconds(sealed.joined_at)
        if copy.snapshot_started is not None and utc_seconds(copy.snapshot_started) < joined:
            contradictions.append(
                Problem(
                    "OLDER_THAN_JOIN",
                    f"the snapshot of {copy.id} started {copy.snapshot_started}, "
                    f"{sealed.node} joined {sealed.joined_at}",
                )
            )
        elif copy.snapshot_started is None and copy.oldest_mtime is not None and copy.oldest_mtime < int(joined):
            contradictions.append(
                Problem("OLDER_THAN_JOIN", f"{copy.id} was written before {sealed.node} joined {sealed.joined_at}")
            )
    if copy.snapshot_started is None:
        doubts.append(Problem("SNAPSHOT_UNKNOWN", f"it is not known when the snapshot of {copy.id} started"))
    if not sealed.member:
        doubts.append(
            Problem("NOT_MEMBER", f"{sealed.node} was no longer a member when the snapshot of {copy.id} started")
        )


def describe(manifest: Manifest) -> dict[str, Any]:
    """A backup as modules return it: the manifest, the hash of a single file, and what it is worth to which node."""
    archive = manifest.archive
    copy = copy_of(manifest)
    pairs = []
    for sealed in manifest.sealed_for:
        pair = classify(copy, sealed.node)
        pairs.append(
            {
                "node": pair.node,
                "kind": pair.kind,
                "reasons": [{"code": item.code, "message": item.message} for item in pair.reasons],
            }
        )
    value = manifest.as_dict()
    return {
        **value,
        "sha256": archive.sha256 if archive else manifest.digest,
        "archive": archive.path if archive else None,
        "file_count": len(manifest.files),
        "pairs": pairs,
    }
