# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The links of issue and study: what each promises, and how long one transfer may take there."""

from __future__ import annotations

from dataclasses import dataclass

MBIT = 1_000_000
#: Bytes on the wire beside IP for each segment (preamble, header, checksum, gap); the serialiser charges them.
ETHERNET = 38
#: How many of them an interface's own length of a packet has already (its header).
HEADER = 14


@dataclass(frozen=True)
class Link:
    """A link. ``rate`` in bit/s (0: not limited), ``rtt`` and ``queue`` in s, ``loss`` a fraction of the segments.

    ``limit`` is the longest that one transfer of 1 GiB may take (s): who needs longer is stopped and said to be so.
    """

    name: str
    title: str
    rate: int
    rtt: float
    loss: float
    queue: float
    limit: float

    @property
    def shaped(self) -> bool:
        """Whether something must delay, limit or lose; a bare pair of interfaces does nothing of it."""
        return bool(self.rate or self.rtt or self.loss)

    def time_limit(self, size: int) -> float:
        """Time limit (s) of a transfer of ``size`` bytes."""
        return 30.0 + self.limit * size / (1 << 30)

    def queue_packets(self) -> int:
        """Packets of 1500 bytes under way in one direction when the queue is full (what netem calls its limit)."""
        return int((self.queue + self.rtt / 2) * self.rate / 8 / 1500)


LINKS = {
    link.name: link
    for link in (
        Link("lan", "LAN (not shaped)", 0, 0.0, 0.0, 0.0, 60.0),
        Link("1g-20ms", "1 Gbit/s, 20 ms", 1000 * MBIT, 0.020, 0.0, 0.040, 120.0),
        Link("1g-80ms", "1 Gbit/s, 80 ms", 1000 * MBIT, 0.080, 0.0, 0.080, 180.0),
        Link("1g-80ms-loss", "1 Gbit/s, 80 ms, 0.05 % loss", 1000 * MBIT, 0.080, 0.0005, 0.080, 240.0),
        Link("200m-80ms", "200 Mbit/s, 80 ms", 200 * MBIT, 0.080, 0.0, 0.080, 240.0),
    )
}
