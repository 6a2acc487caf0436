# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Tables of backups for people. A store holds thousands: where many in a row have nothing of their own to say, they
share a line, so that the few that matter are seen."""

from __future__ import annotations

import itertools
from typing import Iterable, NamedTuple, Sequence

#: So many in a row may stand by themselves.
FEW = 3


class Row(NamedTuple):
    """What is said of one backup of ``bytes``; ``alone`` if it must have a line of its own."""

    id: str
    bytes: int
    said: tuple[str, ...]
    alone: bool = False


def lines(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Columns under their headings; the last one runs free."""
    cells = [tuple(heading), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*cells)][:-1]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[-1]]).rstrip() for row in cells]


def condensed(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Cells of a table: id, bytes, what is said. Neighbours of which the same is said share a line: first and last id,
    how many they are, and what they hold together."""
    found: list[tuple[str, ...]] = []
    for (said, alone), group in itertools.groupby(rows, key=lambda row: (row.said, row.alone)):
        alike = list(group)
        if alone or len(alike) <= FEW:
            found.extend((row.id, str(row.bytes), *said) for row in alike)
        else:
            name = f"{alike[0].id} to {alike[-1].id} ({len(alike)})"
            found.append((name, str(sum(row.bytes for row in alike)), *said))
    return found
