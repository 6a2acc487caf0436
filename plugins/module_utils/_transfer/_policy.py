# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Decisions of a transfer: how many connections, when to connect again, when to give up. Pure; times are given."""

from __future__ import annotations

import math
import typing as t

#: Failures of connections in a row, without a byte in between, after which a worker gives up.
ATTEMPTS = 8
#: Seconds between two connects, so that sshd's MaxStartups (10 at once by default) is never near.
STAGGER = 0.1
#: A round trip (s) below which a connection is limited by the processors and not by the distance.
NEAR = 0.005
#: With how many connections a transfer begins at least and at most; fewer than the ten that sshd lets log in at once by
#: default (MaxStartups).
FEWEST, AT_ONCE = 2, 8
#: Bytes that one connection has under way at most (what TCP allows itself by default: 26 MB/s were measured at 80 ms),
#: and the bytes a second for which a transfer begins with enough connections: what few processors encrypt and hash.
FLIGHT, FAST = 2 << 20, 250e6
#: What further connections have to add to be worth it.
GAIN = 1.08
#: Bytes below which one more connection costs more than it brings.
WORTH = 4 << 20


def pause(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row; ``chance`` (0 to 1) keeps workers out of step."""
    return (0.5 + 0.5 * chance) * min(30.0, 0.1 * 2.0**failures)


def first_workers(limit: int, size: int, round_trip: float, rate_limit: float = 0.0) -> int:
    """With how many connections to begin a transfer of so many bytes: as the distance needs.

    Each takes many round trips to log in and to get up to speed, so those that a far host needs do it at the same
    time; more than that only overflow the queues on the way.

    ``round_trip`` in seconds, 0 if it is not known. ``rate_limit`` in bytes a second, 0: none.
    """
    needed = math.ceil(min(FAST, rate_limit or FAST) * round_trip / FLIGHT)
    return max(1, min(limit, AT_ONCE, max(FEWEST, needed), size // WORTH))


class Growth:
    """Adds connections while that raises the throughput, and takes back those that did not.

    :param limit: connections at most
    :param processors: of this host; near hosts get no more connections than that
    """

    def __init__(self, limit: int, workers: int, processors: int) -> None:
        self.limit = limit
        self.workers = workers
        self._processors = max(2, processors)
        self._round_trip = 0.0
        self._settled = False
        self._rate_before, self._workers_before = 0.0, workers
        self._window: tuple[float, int] | None = None
        self._resume = float("inf")

    def connected(self, now: float, round_trip: float) -> None:
        """All connections are up: what was measured before says nothing any more. ``round_trip`` in seconds."""
        self._round_trip = max(self._round_trip, round_trip)
        # A new connection starts slowly; it is measured when it had time to get up to speed.
        self._window = None
        self._resume = now + 0.1 + 10 * self._round_trip
        if self._round_trip <= NEAR:
            self.limit = min(self.limit, self._processors)

    def refused(self) -> None:
        """A further connection was refused: those that work are enough."""
        self._settled = True

    def lost(self, workers: int) -> None:
        """Only so many connections are left."""
        self.workers = workers
        self._settled = True

    def wanted(self, now: float, moved: int, open_bytes: int) -> int:
        """How many connections there should be now, ``moved`` bytes since the start of the transfer."""
        if self._settled or now < self._resume:
            return self.workers
        if self._window is None:
            self._window = (now, moved)
            return self.workers
        started, before = self._window
        seconds = now - started
        # TCP goes up and down within dozens of round trips: what it carries in fewer is chance.
        if seconds < 0.4 + 25 * self._round_trip or moved == before:
            return self.workers
        rate = (moved - before) / seconds
        if rate < self._rate_before * GAIN:
            self.workers = self._workers_before
            self._settled = True
        elif self.workers >= self.limit:
            self._settled = True
        elif open_bytes > WORTH * self.workers:
            self._rate_before, self._workers_before = rate, self.workers
            self.workers = min(self.limit, self.workers + max(1, self.workers // 2))
            self._window = None
            self._resume = float("inf")
        return self.workers


class Failures:
    """Counts failed connections of each worker, and says whether to try again."""

    def __init__(self, attempts: int = ATTEMPTS) -> None:
        self._attempts = attempts
        self._counts: dict[int, int] = {}

    def progress(self, worker: int) -> None:
        """A worker received something: its connection works."""
        self._counts[worker] = 0

    def failed(self, worker: int) -> int | None:
        """One more failure; how many in a row, or None when it is time to give up."""
        count = self._counts.get(worker, 0) + 1
        self._counts[worker] = count
        return count if count < self._attempts else None


def starved(silent: t.Mapping[int, float], now: float, limit: float) -> list[int]:
    """Workers that have said nothing for longer than ``limit`` seconds (``silent``: when each spoke last)."""
    return [worker for worker, spoke in silent.items() if now - spoke > limit]


def slow(age: float, left: int, holder_rate: float, need: float) -> bool:
    """Whether an idle worker, which would ``need`` (s) so long for it, should get a range as well that another one has.

    That one was given it ``age`` seconds ago, and has ``left`` bytes to receive up to its end at ``holder_rate`` (bytes
    a second). Both count: a range may be old because it waits in a queue that moves, and a rate that nobody has
    measured yet is 0. Bytes that are fetched twice are taken from everybody on a link that is full.
    """
    patience = 1.0 + 3 * need
    return age > patience and left > holder_rate * patience
