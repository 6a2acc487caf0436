# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Is a link what it says it is? Nothing is claimed for a link whose round trip, rate or loss is off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shipbench.links import Link

#: A shaped link's median round trip may be this much too long (a fraction, and s), and never be too short.
RTT_SLACK, RTT_FLOOR = 0.03, 0.001
#: A bare pair of interfaces answers within this (s).
BARE_RTT = 0.001
RATE_SLACK = 0.03
#: How many standard deviations the number of lost packets may be away from what the loss promises.
LOSS_SIGMA = 4.0
#: Fraction of the segments that the emulator may deliver more than 5 ms late (the machine was too busy).
LATE_SHARE = 0.01
#: So many late segments say nothing where only a few were sent.
LATE_FEW = 10


@dataclass(frozen=True)
class Measured:
    """What probes saw from the store's end, none of it the emulator's own word.

    ``rtt``: median round trip (s). ``rate``: bit/s on the wire that a flood of datagrams got through. ``sent`` and
    ``lost``: datagrams of a stream far below the rate.
    """

    rtt: float
    rate: float
    sent: int
    lost: int


@dataclass(frozen=True)
class Check:
    """One promise of a link: what was measured, within which bounds it must lie."""

    name: str
    value: float
    low: float
    high: float

    @property
    def ok(self) -> bool:
        return self.low <= self.value <= self.high

    def as_dict(self) -> dict[str, Any]:
        high = self.high if math.isfinite(self.high) else None
        return {"name": self.name, "value": self.value, "low": self.low, "high": high, "ok": self.ok}

    def __str__(self) -> str:
        return f"{self.name} {self.value:.6g} is not within {self.low:.6g} to {self.high:.6g}"


def checks(link: Link, measured: Measured) -> list[Check]:
    """The promises of a link, with what was measured."""
    longest = link.rtt * (1 + RTT_SLACK) + RTT_FLOOR if link.rtt else BARE_RTT
    expected = measured.sent * link.loss
    deviation = LOSS_SIGMA * math.sqrt(expected)
    found = [
        Check("rtt_seconds", measured.rtt, link.rtt, longest),
        Check("lost_packets", measured.lost, max(0.0, expected - deviation), expected + deviation),
    ]
    if link.rate:
        found.append(
            Check(
                "rate_bits", measured.rate, link.rate * (1 - RATE_SLACK) * (1 - link.loss), link.rate * (1 + RATE_SLACK)
            )
        )
    return found


def off(link: Link, measured: Measured) -> list[str]:
    """Why this link cannot be claimed; empty if it is what it says."""
    return [str(check) for check in checks(link, measured) if not check.ok]


def emulator_off(link: Link, counters: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What the emulator itself says of a time of use: too many late segments, or another loss than promised."""
    reasons = []
    for name, counted in sorted(counters.items()):
        delivered, offered = counted["delivered_segments"], counted["offered_segments"] - counted["overflowed"]
        if counted["late_5ms"] > max(LATE_SHARE * delivered, LATE_FEW):
            reasons.append(f"{name}: {counted['late_5ms']} of {delivered} segments were more than 5 ms late")
        expected = offered * link.loss
        if abs(counted["lost"] - expected) > LOSS_SIGMA * math.sqrt(expected) + 1e-9:
            reasons.append(
                f"{name}: {counted['lost']} of {offered} segments were lost, {expected:.1f} should have been"
            )
    return reasons


def difference(
    later: Mapping[str, Mapping[str, int]], earlier: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    """Counters of a time of use; the worst lateness cannot be subtracted and is that of the link's whole life."""
    return {
        name: {key: value if key == "worst_late_us" else value - earlier[name][key] for key, value in counted.items()}
        for name, counted in later.items()
    }
