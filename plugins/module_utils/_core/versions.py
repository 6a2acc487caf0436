# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""DSM version strings: ``major.minor.build`` with an optional tag, such as ``5.6.2919`` [code]."""

from __future__ import annotations

import re

#: The disaster recovery plan needs this release [seed].
OLDEST = (3, 15)

_VERSION = re.compile(r"^(\d{1,5})\.(\d{1,5})(?:\.(\d{1,9}))?(?:\.\d{1,9})?(?:[-+][0-9A-Za-z.+-]{1,64})?\Z")


def parse(text: str) -> tuple[int, int, int] | None:
    """``(major, minor, build)``, or None when the text is not a version."""
    match = _VERSION.match(text.strip())
    if match is None:
        return None
    return int(match.group(1)), int(match.group(2)), int(match.group(3) or 0)


def too_old(text: str) -> bool:
    """Whether this release is known to be older than 3.15. A text that is no version is not known to be anything."""
    version = parse(text)
    return version is not None and version[:2] < OLDEST


def same(one: str | None, other: str | None) -> bool | None:
    """Whether two nodes run the same release, tag included; None when either is unknown.

    Sealing keys are derived for one exact version [seed], so nothing looser than equality counts.
    """
    if not one or not other:
        return None
    return one.strip() == other.strip()
