# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The goals, and what may be said about each: met, not met, or not to be claimed and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shipbench.figures import Rounds, Spread, best_peer, ratios, ratios_to_fastest, spread
from shipbench.peers import EQUAL_WORK, OURS, RIVALS

ROUNDS = 5
SIZE = 1 << 30
BEST = "best"
#: Nothing is claimed for a link if strangers disturbed more than this share of its runs.
DISTURBED = 0.25


@dataclass(frozen=True)
class Goal:
    """A goal: the median must be at least (or, with ``at_most``, at most) ``want``.

    ``link`` and ``against`` (names of peers, or BEST) are of the goals about a link, ``local`` names a measurement
    without one.
    """

    name: str
    title: str
    want: float
    link: str = ""
    against: tuple[str, ...] = ()
    local: str = ""
    at_most: bool = False
    unit: str = ""


GOALS = (
    Goal("lan-scp-gcm", "LAN, against scp aes128-gcm, which verifies nothing", 0.9, "lan", ("scp-gcm",)),
    Goal("lan-scp", "LAN, against scp as installed", 1.1, "lan", ("scp",)),
    Goal("lan-equal-work", "LAN, against scp aes128-gcm and SHA-256 at both ends", 1.2, "lan", (EQUAL_WORK,)),
    Goal("1g-20ms", "1 Gbit/s, 20 ms, against the best peer", 1.15, "1g-20ms", (BEST,)),
    Goal("1g-80ms", "1 Gbit/s, 80 ms, against the best peer", 1.25, "1g-80ms", (BEST,)),
    Goal("1g-80ms-scp", "1 Gbit/s, 80 ms, against the better scp", 2.5, "1g-80ms", ("scp", "scp-gcm")),
    Goal("1g-80ms-loss", "1 Gbit/s, 80 ms, 0.05 % loss, against the best peer", 1.5, "1g-80ms-loss", (BEST,)),
    Goal("200m-80ms", "200 Mbit/s, 80 ms, against the best peer", 0.97, "200m-80ms", (BEST,)),
    Goal("verify-at-rest", "Verify at rest, against min(disk, hashlib)", 0.9, local="verify"),
    Goal(
        "catalogue", "10 000 backups listed and their pruning planned", 2.0, local="catalogue", at_most=True, unit="s"
    ),
    Goal("memory", "Peak memory of all workers of one transfer", 200e6, local="memory", at_most=True, unit="bytes"),
)


@dataclass
class LinkResult:
    """What was measured on one link. ``off``: why the link is not what it says; ``absent``: rivals that never ran.

    ``failed``: why our own runs did not count. ``busy``: how many of ``runs`` had strangers on the
    processors.
    """

    rounds: dict[int, dict[str, float]] = field(default_factory=dict)
    off: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    busy: int = 0
    runs: int = 0


@dataclass
class Results:
    """All that was measured: by link, and the values of the measurements without one."""

    links: dict[str, LinkResult] = field(default_factory=dict)
    local: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, list[str]] = field(default_factory=dict)
    rounds: int = ROUNDS
    size: int = SIZE

    @property
    def smoke(self) -> bool:
        """Too few rounds or too small a file to say anything about a goal."""
        return self.rounds < ROUNDS or self.size < SIZE


def judge(goal: Goal, results: Results) -> dict[str, Any]:
    """One entry of the summary: ``met`` is None where nothing may be claimed, and ``why`` says why."""
    entry: dict[str, Any] = {"name": goal.name, "title": goal.title, "want": goal.want, "at_most": goal.at_most}
    if goal.unit:
        entry["unit"] = goal.unit
    if goal.link:
        values, why, failed = _link(goal, results.links.get(goal.link), entry)
    else:
        values, failed = spread(results.local.get(goal.local, ())), results.failed.get(goal.local, [])
        why = [] if values or failed else ["not run"]
    entry.update(values.as_dict() if values else {"median": None, "low": None, "high": None, "n": 0})
    if results.smoke and values:
        why.append(f"a smoke run: {results.rounds} rounds of {results.size} bytes")
    elif values and values.n < ROUNDS:
        why.append(f"{values.n} of {ROUNDS} rounds")
    entry["met"] = False if failed and not results.smoke else None if why or values is None else reached(goal, values)
    entry["why"] = why + failed
    return entry


def reached(goal: Goal, values: Spread) -> bool:
    """Whether the median reaches the goal. Memory has no good median: its worst counts."""
    if goal.local == "memory":
        return values.high <= goal.want
    return values.median <= goal.want if goal.at_most else values.median >= goal.want


def _link(goal: Goal, found: LinkResult | None, entry: dict[str, Any]) -> tuple[Spread | None, list[str], list[str]]:
    """Ratios of a goal about a link, why they may not be claimed, and our own failures."""
    if found is None:
        return None, ["not run"], []
    rivals = RIVALS if goal.against == (BEST,) else goal.against
    why = [f"absent: {name}" for name in rivals if name in found.absent]
    why += [f"the link is off: {reason}" for reason in found.off]
    if not found.rounds:
        return None, [*why, "no round counts"], found.failed
    if found.busy > DISTURBED * found.runs:
        why.append(f"the machine was busy with something else in {found.busy} of {found.runs} runs")
    present: Sequence[str] = [name for name in rivals if name not in found.absent]
    best = best_peer(found.rounds, present)
    entry["against"], entry["busy_runs"] = best, found.busy
    if best is None:
        return None, [*why, "no peer came home"], found.failed
    harsher = spread(ratios_to_fastest(found.rounds, OURS, present))
    if len(present) > 1 and harsher:
        entry["against_fastest_of_each_round"] = harsher.as_dict()
    return spread(ratios(found.rounds, OURS, best)), why, found.failed


def judge_all(results: Results) -> list[dict[str, Any]]:
    """Every goal, in order; none is left out."""
    return [judge(goal, results) for goal in GOALS]


def times(rows: Sequence[Mapping[str, Any]]) -> Rounds:
    """Seconds by round and tool of the rows that count: right bytes and hash, no round in which the link was off."""
    spoilt = {row["round"] for row in rows if row["link_off"]}
    found: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["ok"] and row["round"] not in spoilt:
            found.setdefault(row["round"], {})[row["tool"]] = row["seconds"]
    return found
