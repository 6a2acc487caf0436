# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Retention: which backups go, which stay, and every reason why (law 3). Pure: no I/O, no clock.

Only verified copies count, and the number in the store decides what is newer. Age is measured from one backup to the
newest verified one, never to the clock on the wall: during an outage of 400 days nothing grows older (F21). Each backup
is as young as the most generous of the clocks that saw it, and the newest verified one as old as the least generous, so
that a single wrong clock can only keep more (F17).
"""

from __future__ import annotations

from typing import Iterable, Mapping, NamedTuple, Sequence

from .room import Room
from .strict import Problem, utc_text

OPENS = ("proved", "golden")
_FOREVER = float("inf")


class Item(NamedTuple):
    """One backup in the store.

    ``verdict`` is ``ok``, ``failed`` or ``unverified``; ``bytes`` and ``files`` (inodes) are free when it is gone;
    ``earliest`` and ``latest`` (s) bound its publication by the
    clocks that saw it; ``holds`` are reasons of its own to stay (pinned, being read, ...); ``opens`` has (node, kind)
    for each set-aside node that can open it, kind ``proved``, ``golden`` or ``presumed``; ``released`` says that a
    person gave up its being golden.
    """

    id: str
    sequence: int
    verdict: str
    bytes: int
    earliest: float
    latest: float
    holds: Sequence[Problem] = ()
    opens: Sequence[tuple[str, str]] = ()
    released: bool = False
    files: int = 0


class Policy(NamedTuple):
    """``keep`` verified copies are never gone below; the other rules may be absent. Times in s, sizes in bytes.

    ``max_copies``: what has so many newer verified copies goes. ``keep_within``: but not what is younger than this,
    unless room is missing for the next backup.
    ``max_age``: what is older goes. ``failed_grace``: how long a failed copy waits to be repaired. ``fresh_within``:
    how long the newest verified copy lets expiry by age go on. ``need`` and ``need_files`` (inodes): what must be free
    for the next backup.
    """

    keep: int
    max_copies: int | None = None
    max_age: float | None = None
    keep_within: float = 0.0
    failed_grace: float = 604800.0
    fresh_within: float = 259200.0
    need: int = 0
    need_files: int = 0


class Decision(NamedTuple):
    """What happens to one backup, and every reason for it; ``age`` (s) as the rules see it, None if unknown."""

    item: Item
    remove: bool
    reasons: Sequence[Problem]
    age: float | None


class Plan(NamedTuple):
    """All decisions, oldest first. ``missing`` bytes and ``missing_files`` (inodes) stay missing for the next backup;
    ``next_expiry`` (s) is when the next one goes by age if backups keep coming; ``frozen`` says why expiry by age
    rests, '' if it does not."""

    decisions: Sequence[Decision]
    verified: int
    verified_after: int
    frozen: str
    missing: int
    next_expiry: float | None
    missing_files: int = 0

    @property
    def removals(self) -> list[Decision]:
        """What goes: failed copies first, then oldest first."""
        chosen = [item for item in self.decisions if item.remove]
        return sorted(chosen, key=lambda one: (one.item.verdict != "failed", one.item.sequence))


def policy_problems(policy: Policy) -> list[Problem]:
    """What makes a policy dangerous or contradictory; all at once."""
    problems = []
    if policy.keep < 1:
        problems.append(Problem("KEEP_NOTHING", f"keep is {policy.keep}: at least 1 verified copy must stay"))
    if policy.max_copies is not None and policy.max_copies < policy.keep:
        problems.append(
            Problem("BAD_POLICY", f"max_copies ({policy.max_copies}) is less than keep ({policy.keep}): nothing fits")
        )
    if policy.max_age is not None and not 0 < policy.max_age < _FOREVER:
        problems.append(Problem("BAD_POLICY", f"max_age is {policy.max_age:g} s: give a positive time or leave it out"))
    for name in ("keep_within", "failed_grace", "fresh_within", "need", "need_files"):
        if not 0 <= getattr(policy, name) < _FOREVER:
            problems.append(Problem("BAD_POLICY", f"{name} is {getattr(policy, name):g}: it cannot be negative"))
    return problems


def bounds(published: float, source_skew: float | None) -> tuple[float, float]:
    """Earliest and latest time of a publication; ``source_skew`` (s) is how far the source's clock was ahead."""
    other = published + (source_skew or 0.0)
    return min(published, other), max(published, other)


def plan(
    items: Iterable[Item],
    policy: Policy,
    *,
    now: float,
    free: int,
    free_files: int = 1 << 62,
    members: frozenset[str] = frozenset(),
) -> Plan:
    """Decide about every item. ``free`` bytes and ``free_files`` inodes are free now; ``members`` are nodes that are no
    set-aside nodes now.

    Precondition: :class:`policy_problems` found nothing.
    """
    newest_first = sorted(items, key=lambda item: item.sequence, reverse=True)
    guards, newer = _guards(newest_first, policy.keep, members)
    ages, frozen = _ages(newest_first, policy, now)
    going: dict[str, list[Problem]] = {}
    for item in newest_first:
        if not guards[item.id]:
            reasons = _rules(item, policy, newer[item.id], ages[item.id], frozen)
            if reasons:
                going[item.id] = reasons
    wanted = Room(policy.need - free, policy.need_files - free_files)
    missing = _make_room(newest_first, wanted, guards, going)
    verified = sum(item.verdict == "ok" for item in newest_first)
    decisions = []
    for item in reversed(newest_first):
        remove = item.id in going
        reasons = going[item.id] if remove else guards[item.id] or _staying(item, policy, newer[item.id], frozen)
        age = ages[item.id]
        decisions.append(Decision(item, remove, reasons, age if abs(age) != _FOREVER else None))
    return Plan(
        decisions=decisions,
        verified=verified,
        verified_after=verified - sum(one.remove and one.item.verdict == "ok" for one in decisions),
        frozen=frozen,
        missing=missing.bytes,
        next_expiry=_next_expiry(decisions, policy, ages, frozen, now),
        missing_files=missing.files,
    )


def _guards(
    newest_first: Sequence[Item], keep: int, members: frozenset[str]
) -> tuple[dict[str, list[Problem]], dict[str, int]]:
    """What never goes whatever the rules say, and how many verified copies are newer than each item.

    Of the newest ``keep`` verified, not failed, and any copies all stay: a copy that nobody verified yet may be the
    best one, and a verifier that is wrong about everything must not empty the store. That a golden copy failed is for a
    person to judge, who may have it repaired or release it.
    """
    guards: dict[str, list[Problem]] = {}
    newer: dict[str, int] = {}
    verified = sound = 0
    for count, item in enumerate(newest_first):
        found = list(item.holds)
        newer[item.id] = verified
        if item.verdict == "ok" and verified < keep:
            found.append(Problem("FLOOR", f"one of the {keep} newest verified copies"))
        elif item.verdict != "failed" and sound < keep:
            found.append(Problem("UNVERIFIED", f"one of the {keep} newest copies, and nobody verified it yet"))
        elif count < keep:
            found.append(Problem("NEWEST", f"one of the {keep} newest copies, although it failed"))
        verified += item.verdict == "ok"
        sound += item.verdict != "failed"
        guards[item.id] = found
        found.extend(golden(item, members))
    for (node, _sure), item in _last_pairs(newest_first).items():
        guards[item.id].append(Problem("LAST_PAIR", f"the newest that {node} can open"))
    return guards, newer


def golden(item: Item, members: frozenset[str]) -> list[Problem]:
    """Why an item stays as what a set-aside node surely opens, unless a person released it."""
    return [
        Problem("GOLDEN", f"{kind} for {node}, which is set aside")
        for node, kind in item.opens
        if kind in OPENS and node not in members and not item.released
    ]


def _last_pairs(newest_first: Sequence[Item]) -> Mapping[tuple[str, bool], Item]:
    """The newest copy for each node that it can surely open, and that it presumably can; the best verdict wins."""
    best: dict[tuple[str, bool], Item] = {}
    for verdict in ("ok", "unverified", "failed"):
        for item in newest_first:
            if item.verdict == verdict:
                for node, kind in item.opens:
                    best.setdefault((node, kind in OPENS), item)
    return best


def _ages(newest_first: Sequence[Item], policy: Policy, now: float) -> tuple[dict[str, float], str]:
    """Age of each item when the newest verified one was published, and why expiry by age rests ('' if it does not).

    An item counts from when it was superseded: from the second smallest time of itself and all newer ones, which one
    publication under a slow clock cannot move, or from its own time if that is later.
    """
    reference = next((min(item.earliest, now) for item in newest_first if item.verdict == "ok"), None)
    smallest = second = _FOREVER
    ages: dict[str, float] = {}
    for item in newest_first:
        if item.latest < smallest:
            smallest, second = item.latest, smallest
        elif item.latest < second:
            second = item.latest
        since = item.latest if second == _FOREVER else max(item.latest, second)
        ages[item.id] = -_FOREVER if reference is None else reference - since
    if reference is None:
        return ages, "nothing in the store is verified"
    if now - reference > policy.fresh_within:
        return ages, f"nothing new was verified since {utc_text(reference)} (by the slowest clock that saw it)"
    return ages, ""


def _rules(item: Item, policy: Policy, newer: int, age: float, frozen: str) -> list[Problem]:
    """Why an item without guards goes by count or age; empty: it does not."""
    reasons = []
    old_enough = not policy.keep_within or age >= policy.keep_within
    if policy.max_copies is not None and newer >= policy.max_copies and old_enough:
        reasons.append(Problem("COUNT", f"the {policy.max_copies} verified copies that are wanted are newer"))
    if frozen or newer < policy.keep:
        return reasons
    if policy.max_age is not None and age > policy.max_age:
        reasons.append(Problem("AGE", f"more than {policy.max_age:.0f} s older than the newest verified copy"))
    if item.verdict == "failed" and age > policy.failed_grace:
        reasons.append(Problem("FAILED", f"it failed verification, {policy.keep} or more verified copies are newer"))
    return reasons


def _make_room(
    newest_first: Sequence[Item],
    wanted: Room,
    guards: Mapping[str, Sequence[Problem]],
    going: dict[str, list[Problem]],
) -> Room:
    """Add what must go so that ``wanted`` more is free, failed copies first, then oldest first.

    Nothing is added if all of it would not be enough: that would cost history and help nobody. Returns what is missing.
    """
    wanted = _less(wanted, (item for item in newest_first if item.id in going))
    surplus = [item for item in newest_first if not guards[item.id] and item.id not in going]
    missing = _less(wanted, surplus)
    if max(missing) > 0:
        return missing
    told = [f"{wanted.bytes} bytes"] * (wanted.bytes > 0) + [f"{wanted.files} inodes"] * (wanted.files > 0)
    why = Problem("SPACE", f"the next backup needs {' and '.join(told)} more than are free or become free by the rules")
    chosen: list[Item] = []
    left = wanted
    for item in sorted(surplus, key=lambda one: (one.verdict != "failed", one.sequence)):
        if (left.bytes > 0 and item.bytes) or (left.files > 0 and item.files):
            chosen.append(item)
            left = _less(left, [item])
    spare = Room(sum(item.bytes for item in chosen) - wanted.bytes, sum(item.files for item in chosen) - wanted.files)
    for item in reversed(chosen):
        # One that gives much may come after many that gave little.
        if item.verdict != "failed" and item.bytes <= spare.bytes and item.files <= spare.files:
            spare = Room(spare.bytes - item.bytes, spare.files - item.files)
        else:
            going[item.id] = [why]
    return Room()


def _less(wanted: Room, items: Iterable[Item]) -> Room:
    """What is still wanted when these are gone; never less than nothing."""
    given = [(item.bytes, item.files) for item in items]
    return Room(
        max(0, wanted.bytes - sum(size for size, _files in given)),
        max(0, wanted.files - sum(files for _size, files in given)),
    )


def _staying(item: Item, policy: Policy, newer: int, frozen: str) -> list[Problem]:
    """Why an item that nothing guards stays nevertheless."""
    reasons = []
    if frozen:
        reasons.append(Problem("FROZEN", f"expiry by age rests: {frozen}"))
    if newer < policy.keep:
        reasons.append(Problem("FEW_VERIFIED", f"only {newer} verified copies are newer, {policy.keep} must be"))
    return reasons or [Problem("WANTED", "no rule asks for it to go")]


def _next_expiry(
    decisions: Sequence[Decision], policy: Policy, ages: Mapping[str, float], frozen: str, now: float
) -> float | None:
    """When the next copy would go by age, were backups to keep coming (s)."""
    if policy.max_age is None or frozen:
        return None
    passing = {"FLOOR", "UNVERIFIED", "NEWEST", "FEW_VERIFIED", "WANTED"}
    waiting = [
        policy.max_age - ages[one.item.id]
        for one in decisions
        if not one.remove and all(reason.code in passing for reason in one.reasons)
    ]
    return now + max(0.0, min(waiting)) if waiting else None
