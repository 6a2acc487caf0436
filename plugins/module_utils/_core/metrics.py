# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""A store's state as OpenMetrics text, for the textfile directory of a node exporter.

Gauges only, which are the same in the older Prometheus text format. Times are absolute, so that an alarm on their age
rings also when nobody writes the file any more (F19).
"""

from __future__ import annotations

from typing import Iterable, NamedTuple

from .retention import Item, Plan

PREFIX = "kmsops_dsm_store_"
_HELP = {
    "last_success_timestamp_seconds": "Publication of the newest verified backup.",
    "last_success_age_seconds": "Its age when this was written.",
    "last_success_bytes": "Its size.",
    "verified_copies": "Published backups whose last verification found everything right, one of each delivery.",
    "unverified_copies": "Published backups that nobody verified yet, or with a newer verified copy of their delivery.",
    "failed_copies": "Backups that failed verification or are not understood.",
    "bytes": "Size of all backups.",
    "free_bytes": "Free space for backups.",
    "missing_bytes": "Space that the next backup lacks and retention may not make.",
    "missing_inodes": "Inodes that the next backup lacks and retention may not make.",
    "expiry_frozen": "1 while expiry by age rests because nothing new was verified.",
    "next_expiry_timestamp_seconds": "When the next backup goes by age if backups keep coming.",
    "least_recent_read_timestamp_seconds": "Since when every file of every backup was read in full.",
    "written_timestamp_seconds": "When this was written.",
}


class Facts(NamedTuple):
    """What the metrics say; times in s since the epoch, None where there is nothing to say.

    ``last_success``: publication of the newest verified backup by the store's clock, which alarms are made of.
    """

    cluster_id: str
    items: Iterable[Item]
    plan: Plan | None
    free: int
    now: float
    least_recent_read: float | None
    last_success: float | None = None


def values(facts: Facts) -> dict[str, float]:
    """Name (without prefix) -> value; what is not known is absent, never zero."""
    items = sorted(facts.items, key=lambda item: item.sequence)
    verdicts = [item.verdict for item in items]
    found: dict[str, float] = {
        "verified_copies": verdicts.count("ok"),
        "unverified_copies": verdicts.count("unverified"),
        "failed_copies": verdicts.count("failed"),
        "bytes": sum(item.bytes for item in items),
        "free_bytes": facts.free,
        "written_timestamp_seconds": facts.now,
    }
    good = [item for item in items if item.verdict == "ok"]
    if good:
        found["last_success_bytes"] = good[-1].bytes
    if facts.last_success is not None:
        found["last_success_timestamp_seconds"] = facts.last_success
        found["last_success_age_seconds"] = max(0.0, facts.now - facts.last_success)
    if facts.plan is not None:
        found["missing_bytes"] = facts.plan.missing
        found["missing_inodes"] = facts.plan.missing_files
        found["expiry_frozen"] = 1 if facts.plan.frozen else 0
        if facts.plan.next_expiry is not None:
            found["next_expiry_timestamp_seconds"] = facts.plan.next_expiry
    if facts.least_recent_read is not None:
        found["least_recent_read_timestamp_seconds"] = facts.least_recent_read
    return found


def render(facts: Facts) -> str:
    """The text, ending with the mark that it is complete."""
    known = values(facts)
    lines = []
    for name, text in _HELP.items():
        if name in known:
            lines.append(f"# HELP {PREFIX}{name} {text}")
            lines.append(f"# TYPE {PREFIX}{name} gauge")
            value = known[name]
            shown = str(int(value)) if value == int(value) else f"{value:.3f}"
            lines.append(f'{PREFIX}{name}{{cluster="{facts.cluster_id}"}} {shown}')
    return "\n".join([*lines, "# EOF", ""])
