# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Whether a delivery is younger than the start of a snapshot, where each was told by a clock that may be wrong. Pure.

A skew is the seconds by which a clock is ahead of ours; None where nobody measured it.
"""

from __future__ import annotations

from .strict import utc_seconds

#: Clocks further apart than this (s) cannot say which backup is younger than an event elsewhere.
MAX_SKEW = 300
#: A clock is told in whole seconds, and on the way: nobody can tell whether so small a skew (s) is one.
_NO_SKEW = 2
#: By so much (s) what was measured of a clock is wrong at the most.
_MEASURED = 10


def written_since(oldest: float, skew: int | None, started: str, told_by: int | None) -> bool:
    """Whether what was written at ``oldest`` or later (s, by a clock of that ``skew``) was written after ``started``.

    What counts is how far its clock is ahead of the one that told the start (of the skew ``told_by``). Where that one
    is not known, a clock that is behind ours is not taken for behind that one: ours may be the wrong one. Where nothing
    is known of its own clock, it is taken for right; then this proves nothing.
    """
    ahead = 0 if skew is None else max(skew, 0) if told_by is None else skew - told_by
    return oldest - (ahead if abs(ahead) > _NO_SKEW else 0) >= int(utc_seconds(started))


def not_come_yet(newest: float, skew: int | None, seen: float) -> bool:
    """Whether what was ``seen`` (s, by our clock) says that it was written later, so that its time says nothing.

    That is so after a clock was set back, and where a time was kept on the way from a host with another clock.
    """
    return newest > seen + (MAX_SKEW if skew is None else skew + _MEASURED)
