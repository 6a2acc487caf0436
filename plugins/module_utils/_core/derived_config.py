# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The ``config.yaml`` that a trial is created with: production's own, with its backups led away from production.

The cron jobs of a new cluster fire like any other: with production's own ``config.yaml`` they would overwrite
production's files [inferred].
"""

from __future__ import annotations

import posixpath
import typing as t
from dataclasses import dataclass

from .config_text import blocks, read_block, write_block
from .reasons import Reason

BACKUP_BLOCKS = ("backup", "auditBackup")
#: Keys of a backup block that are known in public [doc]; with any other one, nobody knows where it delivers to.
_KNOWN = frozenset(("cron_schedule", "backup_mode", "exclude_auditlog", "scp"))


@dataclass(frozen=True)
class Derived:
    """``text`` of the derived file, and which blocks were removed or redirected."""

    text: str
    removed: tuple[str, ...]
    redirected: tuple[str, ...]


def derive(text: str, drop_directory: str | None) -> Derived:
    """Remove the backup blocks, or point them to the run's own drop directory.

    A block that delivers in a way that is not known is removed even then. Everything else stays byte for byte.

    :raises ConfigTextError: the text cannot be read without guessing (tabs, a key that is there twice, ...)
    """
    removed, redirected = [], []
    for key in BACKUP_BLOCKS:
        block = read_block(text, key)
        if block is None:
            continue
        scp = block.get("scp")
        if drop_directory and isinstance(scp, dict) and _KNOWN.issuperset(block):
            text = write_block(text, key, dict(block, scp=dict(scp, path=posixpath.join(drop_directory, key))))
            redirected.append(key)
        else:
            text = write_block(text, key, None)
            removed.append(key)
    return Derived(text, tuple(removed), tuple(redirected))


def derived_reasons(derived: Derived, drop_directory: str | None, forbidden: t.Iterable[str]) -> list[Reason]:
    """Why a cluster must not be created with this file: a path of production is still in it."""
    reasons = []
    paths = [path.rstrip("/") or "/" for path in forbidden if path]
    content = "\n".join(line for line in derived.text.splitlines() if not line.lstrip().startswith("#"))
    found = sorted({path for path in paths if path != "/" and path in content})
    if found and not derived.redirected:
        reasons.append(
            Reason(
                "FORBIDDEN_PATH",
                f"the derived configuration still names {', '.join(found)}.",
                "Those are the places of production's backups. Take them out of the file that you give.",
            )
        )
    elif found:
        reasons.append(
            Reason(
                "FORBIDDEN_PATH", f"the derived configuration names {', '.join(found)}.", "Use another drop_directory."
            )
        )
    inside = [path for path in paths if drop_directory and (drop_directory.rstrip("/") + "/").startswith(path + "/")]
    if inside and not found:
        reasons.append(
            Reason(
                "FORBIDDEN_PATH", f"drop_directory lies in {', '.join(inside)}.", "Use a directory of the run's own."
            )
        )
    unknown = [
        block.key for block in blocks(derived.text) if "backup" in block.key.lower() and block.key not in BACKUP_BLOCKS
    ]
    if unknown:
        reasons.append(
            Reason(
                "BACKUP_KEY_UNKNOWN",
                f"the file has keys that may deliver backups and are not known: {', '.join(unknown)}.",
                "Take them out, or accept this when they deliver nothing to production's places.",
                hard=False,
            )
        )
    return reasons
