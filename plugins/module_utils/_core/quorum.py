# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Quorum arithmetic. Quorum of n is n // 2 + 1 [doc], over all nodes and within each data centre [seed].

DSM keyspaces are replicated to every node [doc], so counting nodes is counting replicas.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

FULL = "full"
READ_ONLY = "read_only"
DOWN = "down"


def needed(size: int) -> int:
    """How many of ``size`` nodes make a quorum. An empty group has none, so nothing reaches it."""
    if size < 0:
        raise ValueError("a group cannot have fewer than no nodes")
    return size // 2 + 1


def tolerated(size: int) -> int:
    """How many of ``size`` nodes may fail before the quorum is lost."""
    return max(0, size - needed(size))


@dataclass(frozen=True)
class Count:
    """Nodes of one group: how many there are and how many of them are up."""

    size: int
    up: int

    @property
    def met(self) -> bool:
        return self.up >= needed(self.size)

    def as_dict(self) -> dict[str, t.Any]:
        """For results."""
        return {"size": self.size, "needed": needed(self.size), "up": self.up, "met": self.met}


@dataclass(frozen=True)
class Picture:
    """Quorum of a whole cluster: the global count and one for each data centre (unlabelled nodes are in none)."""

    everything: Count
    datacenters: dict[str, Count]

    def as_dict(self) -> dict[str, t.Any]:
        """For results."""
        return {
            "global": self.everything.as_dict(),
            "datacenters": {name: count.as_dict() for name, count in sorted(self.datacenters.items())},
        }

    def state(self) -> tuple[str, list[str]]:
        """``full``, ``read_only`` with the data centres that still serve reads, or ``down`` [seed].

        Read-only needs labels, and a data centre that keeps its own quorum.
        """
        if self.everything.met:
            return FULL, sorted(self.datacenters)
        serving = sorted(name for name, count in self.datacenters.items() if count.met)
        return (READ_ONLY, serving) if serving else (DOWN, [])


def picture(nodes: t.Iterable[tuple[str | None, bool]]) -> Picture:
    """Count nodes given as ``(data centre or None, up)``."""
    size: dict[str | None, int] = {}
    up: dict[str | None, int] = {}
    for datacenter, is_up in nodes:
        size[datacenter] = size.get(datacenter, 0) + 1
        up[datacenter] = up.get(datacenter, 0) + (1 if is_up else 0)
    return Picture(
        Count(sum(size.values()), sum(up.values())),
        {name: Count(number, up[name]) for name, number in size.items() if name is not None},
    )


def survives_removal(size: int, survivors_up: int) -> bool:
    """Whether one node can leave a cluster of ``size`` nodes when ``survivors_up`` others are up.

    They must reach the quorum of the size before, for the removal to be written at all, and of the size after.
    """
    return survivors_up >= needed(size) and survivors_up >= needed(size - 1)
