# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Reasons for a refusal, hard and soft (law 11 of the design)."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """One reason for a refusal.

    A hard reason always refuses. A soft one yields when its code is named in the option ``accept``.
    """

    code: str
    message: str
    remedy: str = ""
    hard: bool = True

    def as_dict(self) -> dict[str, t.Any]:
        """For results."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy, "hard": self.hard}


def split(reasons: t.Sequence[Reason], accept: t.Iterable[str]) -> tuple[list[Reason], list[Reason]]:
    """Part reasons into those that stand and those that are soft and accepted."""
    accepted = set(accept)
    standing = [reason for reason in reasons if reason.hard or reason.code not in accepted]
    return standing, [reason for reason in reasons if reason not in standing]
