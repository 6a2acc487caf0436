# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Which of several backups come into a store that has not room for all. Bytes and inodes; pure."""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence


class Room(NamedTuple):
    """Bytes, and inodes for files."""

    bytes: int = 0
    files: int = 0


def with_headroom(size: int, headroom: float) -> int:
    """Bytes that must be free for ``size`` bytes; ``headroom`` is a fraction of them."""
    return size + math.ceil(size * headroom)


def fitting(newest_first: Sequence[tuple[int, int]], room: int, inodes: int, headroom: float) -> int:
    """How many of these backups (bytes, files) fit together, with headroom, from the newest on.

    One that does not fit ends it: what is older never takes the room of what is newer.
    """
    size = files = 0
    for number, (its_size, its_files) in enumerate(newest_first):
        size, files = size + its_size, files + its_files
        if with_headroom(size, headroom) > room or files > inodes:
            return number
    return len(newest_first)
