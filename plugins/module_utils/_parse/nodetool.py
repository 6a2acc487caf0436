# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""``nodetool status`` [doc]: one block a data centre, a legend, then one line a node."""

from __future__ import annotations

import re

from .._core.model import RingNode
from .._errors import Unreadable

_DATACENTER = re.compile(r"^Datacenter: (\S.*?)\s*$")
_NODE = re.compile(
    r"^(?P<code>[UD?][NLJM])\s+(?P<address>\S+)\s+"
    r"(?:\?|\d[\d.,]*\s?(?:bytes|[KMGT]i?B|B))\s+"
    r"(?P<tokens>\d+)\s+"
    r"(?P<owns>\?|\d[\d.,]*%)\s+"
    r"(?P<host_id>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\s+"
    r"(?P<rack>\S+)\s*$"
)
_HEADER = re.compile(r"^--\s+Address\s+Load\s+Tokens\s+Owns(?: \(effective\))?\s+Host ID\s+Rack\s*$")
_LEGEND = re.compile(r"^(?:=+|Status=Up/Down|\|/ State=Normal/Leaving/Joining/Moving)\s*$")
#: The Java machine warns on standard output, and nodetool adds a remark on replication.
_REMARK = re.compile(r"^(?:OpenJDK|Java HotSpot|Picked up|WARN|WARNING:|Note: )")


def parse_status(text: str) -> list[RingNode]:
    """Ring nodes of all data centres.

    :raises Unreadable: a line that is not understood, output that is cut off, or no node at all
    """
    ring: list[RingNode] = []
    datacenter: str | None = None
    header = False
    if text and not text.endswith("\n"):
        raise _unreadable("it is cut off")
    for line in text.splitlines():
        block = _DATACENTER.match(line)
        node = _NODE.match(line)
        if block is not None:
            if datacenter is not None and not header:
                raise _unreadable(f"the block of {datacenter} is cut off")
            datacenter, header = block.group(1), False
        elif node is not None and datacenter is not None and header:
            address = re.sub(r"^(?P<v4>[\d.]+):\d+$|^\[(?P<v6>[^\]]+)\]:\d+$", _without_port, node.group("address"))
            ring.append(RingNode(datacenter, node.group("code"), address, node.group("host_id"), node.group("rack")))
        elif _HEADER.match(line) and datacenter is not None:
            header = True
        elif line.strip() and not _LEGEND.match(line) and not _REMARK.match(line):
            raise _unreadable(f"a line is unknown: {line.strip()[:80]!r}")
    if not ring:
        raise _unreadable("it names no node")
    if len({entry.host_id for entry in ring}) != len(ring) or len({entry.address for entry in ring}) != len(ring):
        raise _unreadable("it names a node twice")
    return ring


def _without_port(match: re.Match[str]) -> str:
    return match.group("v4") or match.group("v6") or ""


def _unreadable(problem: str) -> Unreadable:
    return Unreadable(
        f"The output of nodetool status cannot be understood: {problem}.",
        remedy="Run nodetool status by hand in a database pod. Nothing is concluded from it here.",
        tool="nodetool",
    )
