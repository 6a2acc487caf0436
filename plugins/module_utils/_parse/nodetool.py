# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What nodetool prints.

``nodetool status`` [doc]: one block a data centre, a legend, then one line a node. ``nodetool describecluster`` [doc]:
among other things one line a version of the schema, with the addresses of the nodes that have it.
"""

from __future__ import annotations

import re

from .._core.model import RingNode
from .._core.schema import SchemaVersions
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
_SCHEMA_HEADER = re.compile(r"^\s+Schema versions:\s*$")
_SCHEMA = re.compile(
    r"^\s+(?P<version>[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|UNREACHABLE): \[(?P<addresses>.+)\]\s*$"
)
#: With ports or without. Java writes IPv6 without ``::``.
_ADDRESS = re.compile(r"^(?:[\d.]+(?::\d+)?|[0-9A-Fa-f:]+(?:%\w+)?|\[[0-9A-Fa-f:]+(?:%\w+)?\]:\d+)$")
_WITH_PORT = re.compile(r"^(?P<v4>[\d.]+):\d+$|^\[(?P<v6>[^\]]+)\]:\d+$")
#: What follows the versions from Cassandra 4.0 on is a heading at the start of a line.
_NEXT_SECTION = re.compile(r"^[A-Z][A-Za-z ]+:\s*$")
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
            address = _without_port(node.group("address"))
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


def parse_schema_versions(text: str) -> SchemaVersions:
    """Which node has which version of the schema, from ``nodetool describecluster``.

    A node that is down, or does not answer in time, is listed as ``UNREACHABLE``.

    :raises Unreadable: no section of versions, a line in it that is not understood, output that is cut off, no version
        at all, or a node that is named twice
    """
    found: dict[str, tuple[str, ...]] = {}
    for line in _schema_section(text):
        match = _SCHEMA.match(line)
        if match is None:
            raise _unreadable(f"a line is unknown: {line.strip()[:80]!r}", "describecluster")
        addresses = match.group("addresses").split(", ")
        strange = [address for address in addresses if not _ADDRESS.match(address)]
        if strange or match.group("version") in found:
            raise _unreadable(f"a line is wrong: {line.strip()[:80]!r}", "describecluster")
        found[match.group("version")] = tuple(_without_port(address) for address in addresses)
    unreachable = found.pop("UNREACHABLE", ())
    if not found:
        raise _unreadable("it names no version of the schema", "describecluster")
    named = [address for addresses in (*found.values(), unreachable) for address in addresses]
    if len(set(named)) != len(named):
        raise _unreadable("it names a node twice", "describecluster")
    return SchemaVersions(found, unreachable)


def _schema_section(text: str) -> list[str]:
    """The lines between ``Schema versions:`` and the next heading, or the end as in Cassandra 3.11.

    An empty line follows each version, so that output which ends without one is cut off.
    """
    lines = text.splitlines()
    heads = [number for number, line in enumerate(lines) if _SCHEMA_HEADER.match(line)]
    if len(heads) != 1:
        raise _unreadable("it has no section of schema versions, or several", "describecluster")
    section: list[str] = []
    rest = [line for line in lines[heads[0] + 1 :] if not _REMARK.match(line)]
    for line in rest:
        if _NEXT_SECTION.match(line):
            return section
        if line.strip():
            section.append(line)
    if rest[-1:] != [""]:
        raise _unreadable("it is cut off", "describecluster")
    return section


def _without_port(address: str) -> str:
    match = _WITH_PORT.match(address)
    return (match.group("v4") or match.group("v6")) if match else address


def _unreadable(problem: str, command: str = "status") -> Unreadable:
    return Unreadable(
        f"The output of nodetool {command} cannot be understood: {problem}.",
        remedy=f"Run nodetool {command} by hand in a database pod. Nothing is concluded from it here.",
        tool="nodetool",
    )
