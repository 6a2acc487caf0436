# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Whether the nodes of the database have one schema, and kept it while their snapshots were being taken.

A backup is a set of snapshots, one a node. Snapshots of different schemas do not fit together.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from .reasons import Reason

AGREED = "agreed"
SPLIT = "split"
UNCHANGED = "unchanged"
CHANGED = "changed"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class SchemaVersions:
    """Who has which version of the schema.

    :param versions: version -> addresses of the nodes that have it
    :param unreachable: addresses of nodes that are down or did not answer in time; they disagree with nobody
    """

    versions: t.Mapping[str, tuple[str, ...]]
    unreachable: tuple[str, ...] = ()

    def as_note(self) -> dict[str, t.Any]:
        """As JSON can hold it."""
        versions = {version: list(addresses) for version, addresses in self.versions.items()}
        return {"versions": versions, "unreachable": list(self.unreachable)}

    def by_address(self) -> dict[str, str]:
        return {address: version for version, addresses in self.versions.items() for address in addresses}


def of_note(note: t.Mapping[str, t.Any] | None) -> SchemaVersions | None:
    """What :meth:`SchemaVersions.as_note` wrote; None where there is none, as in a record of an older release."""
    if not note or not note.get("versions"):
        return None
    versions = {str(version): tuple(addresses) for version, addresses in note["versions"].items()}
    return SchemaVersions(versions, tuple(note.get("unreachable", ())))


def standing(seen: SchemaVersions | None) -> str:
    """AGREED, SPLIT, or UNKNOWN when nobody could be asked."""
    if seen is None:
        return UNKNOWN
    return AGREED if len(seen.versions) == 1 else SPLIT


def movement(before: SchemaVersions | None, after: SchemaVersions | None) -> str:
    """UNCHANGED, CHANGED, or UNKNOWN when nobody could be asked before or after.

    A node that appeared meanwhile changes nothing if it has a version that was there before.
    """
    if before is None or after is None:
        return UNKNOWN
    earlier = before.by_address()
    for address, version in after.by_address().items():
        if version != earlier.get(address, version) or version not in before.versions:
            return CHANGED
    return UNCHANGED


def kept_version(before: SchemaVersions | None, after: SchemaVersions | None) -> str | None:
    """The one version that all nodes had before and after, or None."""
    if before is None or standing(before) != AGREED or movement(before, after) != UNCHANGED:
        return None
    return next(iter(before.versions))


def split_reason(seen: SchemaVersions) -> Reason:
    """The nodes disagree."""
    return Reason(
        "SCHEMA_SPLIT",
        f"the database's nodes do not have the same schema: {_told(seen)}. Their snapshots would not fit together.",
        "Is an upgrade or a change of keyspaces under way? Wait until it has ended, then run this again. If none is: "
        "compare nodetool describecluster in the database pods and call the vendor about the node that stays behind.",
        hard=False,
    )


def changed_reason(before: SchemaVersions, after: SchemaVersions, started: str | None) -> Reason:
    """The schema is not what it was before the snapshots."""
    return Reason(
        "SCHEMA_CHANGED",
        f"the database's schema changed while the snapshots of {started} were being taken. Before: {_told(before)}. "
        f"After: {_told(after)}. The parts of that backup may not fit together.",
        "Do not count the backup that arrives. Wait until the upgrade or the change of keyspaces has ended, then start "
        "another.",
        hard=False,
    )


def _told(seen: SchemaVersions) -> str:
    parts = [f"{version} on {', '.join(addresses)}" for version, addresses in sorted(seen.versions.items())]
    return "; ".join(parts + ([f"no answer from {', '.join(seen.unreachable)}"] if seen.unreachable else []))
