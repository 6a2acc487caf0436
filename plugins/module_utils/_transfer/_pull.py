# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Pulling bytes: a plan goes in, verified files and a report come out.

This process decides and records, and hashes whole files in order from what has just landed (it is still in memory);
forked workers (:class:`Pool`) move and hash ranges. Whatever dies, the journal says what had landed, and every range
in it is hashed again before it is trusted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import math
import os
import random
import time
import typing as t
from dataclasses import dataclass, field

from .._errors import DsmError, Refused
from . import _policy
from ._discover import Item
from ._disk import FULL, store_full, store_unwritable
from ._endpoint import Endpoint
from ._pool import Member, Pool, nobody_left
from ._ranges import Piece, Pieces, Plan, Range, journal_line, range_length, read_journal, wants_more
from ._worker import (
    Alive,
    Broken,
    Connect,
    Connected,
    Failed,
    Job,
    Landed,
    Refuted,
    Rest,
    Resting,
    Take,
    memory_of_this_process,
)

#: Codes of failed connections that may be gone a moment later.
TRANSIENT = frozenset(("CONNECTION_LOST", "STALLED", "SSH_REFUSED", "SSH_UNREACHABLE", "WORKERS_DIED"))
#: A worker that has something to do and gives no sign of life for so long (s) is taken for dead.
DEAD_AFTER = 120.0
#: Ranges of slow workers that may be fetched a second time, for each worker of a transfer.
DOUBLED = 4
#: Bytes of a line of the journal at most; a path has 4096, and each may take six.
_LINE = 64 << 10
_ORPHAN_SECONDS = 10.0
_REST_SECONDS = 5.0


@dataclass(frozen=True)
class TransferPlan:
    """What to pull and how.

    ``directory`` receives the files, ``journal`` (a file) remembers the ranges that landed. ``rate_limit`` in bytes a
    second, 0: none. ``workers`` is the upper bound of connections. With ``push`` the files are in ``directory`` and go
    to the endpoint (``Item.source`` is their path there, in directories that exist), and nothing is journalled.
    ``known``: paths of files whose hash the caller has from the source, and compares with that of what landed.
    ``round_trip`` (s) is that of a connection that looked at the source, 0 if there was none.
    """

    endpoint: Endpoint
    items: tuple[Item, ...]
    directory: str
    journal: str
    workers: int = 8
    rate_limit: float = 0.0
    attempts: int = _policy.ATTEMPTS
    push: bool = False
    known: frozenset[str] = frozenset()
    round_trip: float = 0.0

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(item.attributes.size for item in self.items)


@dataclass
class TransferReport:
    """What a transfer did.

    ``bytes`` were received, of which ``resent`` came for nothing or again: over connections that were lost, by a slower
    worker, by one that died (without its last tenth of a second), and what a run that died had begun, which is at least
    what it had received. ``reused`` were on the disk already and
    right. ``workers`` connections at most at the same time, ``peak_rss`` bytes of memory of all processes together
    (pages that they share counted once).
    """

    bytes: int = 0
    resent: int = 0
    reused: int = 0
    seconds: float = 0.0
    workers: int = 0
    peak_rss: int = 0
    sha256: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, other: TransferReport) -> None:
        """Add another transfer of the same run."""
        self.bytes += other.bytes
        self.resent += other.resent
        self.reused += other.reused
        self.seconds += other.seconds
        self.workers = max(self.workers, other.workers)
        self.peak_rss = max(self.peak_rss, other.peak_rss)
        self.notes += other.notes


#: Called with (bytes landed, bytes of the plan, connections) after every range.
Progress = t.Callable[[int, int, int], None]


def no_progress(_done: int, _total: int, _workers: int) -> None:
    """For callers that show nothing."""


def pull(plan: TransferPlan, progress: Progress = no_progress, pool: Pool | None = None) -> TransferReport:
    """Carry out a plan, with the workers of ``pool`` or with workers of its own.

    Without a pool nothing in this process may have started threads or connections yet. Raises ``ConnectionLost``,
    ``SourceChanged``, ``Refused`` (STORE_FULL, SOURCE_UNREADABLE, ...). After codes in :data:`TRANSIENT` the same plan
    may be carried out again, and goes on where it was.
    """
    with contextlib.ExitStack() as stack:
        if pool is None:
            pool = stack.enter_context(Pool(plan.workers, bool(plan.endpoint.host)))
        try:
            return _Transfer(plan, progress, pool).run()
        except OSError as error:
            raise local_failure(plan.directory, error) from None


def local_failure(directory: str, error: OSError) -> Refused:
    """The error of this host's own disk."""
    if error.errno in FULL:
        return store_full(error.filename or directory, error)
    if error.errno == errno.EROFS:
        # That says nothing about what has landed.
        return store_unwritable(error.filename or directory, error)
    return Refused(
        f"{error.filename or directory}: {error.strerror or error}.",
        "TRANSFER_FAILED",
        "Check the disk of the store, and what protects this path (an immutable flag, a mount), then run again.",
    )


def _damaged(path: str, end: int) -> Refused:
    return Refused(
        f"{path}: bytes before {end} are not those that arrived: they were damaged in memory or on the disk of this "
        "host, or the source sent two versions of them.",
        "DAMAGED",
        "Check the memory and the disk of the store, then run again. What had landed was thrown away.",
    )


class _WholeHash:
    """Hashes files from their first byte to their last, as far as they have landed without a gap.

    The bytes are read back from what was written (they are still in memory), and each range is compared with what its
    worker hashed as it came: a bit that flips in between is found. Where the hash of the whole file is known from the
    source, that finds it as well, and more; then its ranges are not hashed here.
    """

    def __init__(self, transfer: TransferPlan, plan: Plan) -> None:
        self._transfer, self._plan = transfer, plan
        self._file = 0
        self._at = 0
        self._hash = hashlib.sha256()
        self._descriptor = -1
        self._landed: dict[tuple[int, int], tuple[int, str]] = {}
        self.sha256: dict[str, str] = {}

    def expect(self, item: Range, sha256: str) -> None:
        """A range has landed."""
        self._landed[item.file, item.offset] = (item.end, sha256)

    @property
    def done(self) -> bool:
        """Whether every file was hashed."""
        return self._file == len(self._transfer.items)

    def step(self) -> bool:
        """Hash the next range if it is there; whether there was one, or a file to end."""
        if self.done:
            return False
        item = self._transfer.items[self._file]
        if self._at < item.attributes.size:
            if self._at == self._plan.frontier(self._file):
                return False
            self._range(item, *self._landed.pop((self._file, self._at)))
        if self._at == item.attributes.size:
            self._open(item)
            if not self._transfer.push:
                os.fsync(self._descriptor)
            self.sha256[item.path] = self._hash.hexdigest()
            self.close()
            self._file, self._at, self._hash = self._file + 1, 0, hashlib.sha256()
        return True

    def _open(self, item: Item) -> None:
        if self._descriptor < 0:
            path = os.path.join(self._transfer.directory, item.path)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)

    def _range(self, item: Item, end: int, sha256: str) -> None:
        self._open(item)
        begun = self._at
        part = None if item.path in self._transfer.known else hashlib.sha256()
        while self._at < end:
            piece = os.pread(self._descriptor, min(1 << 20, end - self._at), self._at)
            if not piece:
                break
            self._hash.update(piece)
            if part is not None:
                part.update(piece)
            self._at += len(piece)
        if self._at < end or (part is not None and part.hexdigest() != sha256):
            raise _damaged(item.path, end)
        if not self._transfer.push:
            # The disk begins with it now, not all at the end when everybody waits for it.
            os.posix_fadvise(self._descriptor, begun, end - begun, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass
class _Line:
    """What is known of one worker in this transfer."""

    connected: bool = False
    spoke: float = 0.0
    rate: float = 0.0
    measured: float = 0.0
    #: it came when others were at work already
    tried: bool = False
    #: it gets nothing new, because the transfer is as fast without it
    spare: bool = False


class _Transfer:
    """One :func:`pull`."""

    def __init__(self, transfer: TransferPlan, progress: Progress, pool: Pool) -> None:
        self.transfer, self.progress, self.pool = transfer, progress, pool
        self.report = TransferReport()
        self.failures = _policy.Failures(transfer.attempts)
        self.lines: dict[int, _Line] = {}
        #: workers that were told to rest and have not said that they do
        self.resting: set[int] = set()
        #: bytes of each worker's memory
        self.memory: dict[int, int] = {}
        #: when each range was lent first that is not back yet
        self.begun: dict[int, float] = {}
        #: bytes that workers received
        self.received = 0
        self.doubled = 0
        #: ranges that two workers had, and what the first one brought
        self.twice: dict[int, tuple[Range, str]] = {}
        #: when the first connection was up
        self.up = 0.0
        limit = max(1, min(transfer.workers, len(pool.alive)))
        first = _policy.first_workers(limit, transfer.bytes, transfer.round_trip, transfer.rate_limit)
        self.growth = _policy.Growth(limit, first, os.cpu_count() or 1)

    # -- the whole --------------------------------------------------------------------------------------------------
    def run(self) -> TransferReport:
        """Move everything."""
        started = time.monotonic()
        try:
            self.plan = self._prepare()
            self.whole = _WholeHash(self.transfer, self.plan)
            with open(self.transfer.journal or os.devnull, "ab", buffering=0) as self.journal:
                self._go()
        except (DsmError, OSError):
            self._rest()
            raise
        except BaseException:
            # Whatever this is, nobody may write after it.
            for member in self.pool.alive:
                if member.number in self.lines or member.number in self.resting:
                    member.end()
            raise
        self._rest()
        self._look_at_what_came_twice()
        again = max(0, self.received - self.report.bytes)
        self.report.bytes += again
        self.report.resent += again
        self.report.sha256 = self.whole.sha256
        self.report.seconds = time.monotonic() - started
        self.report.peak_rss = max(self.report.peak_rss, self._memory())
        return self.report

    def _look_at_what_came_twice(self) -> None:
        """The slower one of two workers may have written after the range of the faster one was hashed."""
        for item, sha256 in self.twice.values():
            path = self.transfer.items[item.file].path
            if sha256 and not self.transfer.push:
                with open(os.path.join(self.transfer.directory, path), "rb") as file:
                    file.seek(item.offset)
                    found = hashlib.sha256(file.read(item.length)).hexdigest()
                if found != sha256:
                    raise _damaged(path, item.end)

    def _go(self) -> None:
        with contextlib.closing(self.whole):
            self._until_done()

    def _until_done(self) -> None:
        while not self.plan.done or not self.whole.done:
            self._grow()
            for member in self._busy():
                self._feed(member)
            hashed = self.whole.step()
            for member, message in self.pool.hear(0.0 if hashed else 0.1):
                self._hear(member, message)
            self._bury()

    def _busy(self) -> list[Member]:
        return [member for member in self.pool.alive if member.number in self.lines]

    # -- before the first byte --------------------------------------------------------------------------------------
    def _prepare(self) -> Plan:
        """Make every file, and claim what the journal says has landed."""
        sizes = [item.attributes.size for item in self.transfer.items]
        if self.transfer.push:
            return Plan(sizes)
        made = set()
        self._wait_for_orphans()
        for item in self.transfer.items:
            path = os.path.join(self.transfer.directory, item.path)
            parent = os.path.dirname(path)
            if parent not in made:
                os.makedirs(parent, mode=0o700, exist_ok=True)
                made.add(parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, item.attributes.size)
            finally:
                os.close(descriptor)
        landed, begun = self._journalled()
        self._rewrite_journal(landed, begun)
        # What a run that died had begun to receive, and nobody knows how far.
        self.report.resent = sum(begun.get(item.path, 0) for item in self.transfer.items)
        return Plan(sizes, [landed.get(item.path, Pieces()) for item in self.transfer.items])

    def _wait_for_orphans(self) -> None:
        """Workers of a run that was killed end by themselves; nothing is trusted before the last one has."""
        descriptor = os.open(self.transfer.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            deadline = time.monotonic() + _ORPHAN_SECONDS
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except OSError:
                    if time.monotonic() > deadline:
                        raise Refused(
                            f"A process of a run that was killed still writes into {self.transfer.directory}.",
                            "LOCKED",
                            "Find it with 'fuser -v' on that directory, end it, and run again.",
                        ) from None
                time.sleep(0.05)
        finally:
            os.close(descriptor)

    def _journalled(self) -> tuple[dict[str, Pieces], dict[str, int]]:
        try:
            with open(self.transfer.journal, "rb") as file:
                # Where the line ends are damaged, all of it is one line.
                return read_journal(iter(lambda: file.readline(_LINE), b""))
        except FileNotFoundError:
            return {}, {}

    def _rewrite_journal(self, landed: t.Mapping[str, Pieces], begun: t.Mapping[str, int]) -> None:
        """Leave out what is counted now, so that it is not counted again by the next run."""
        if not begun:
            return
        temporary = self.transfer.journal + ".new"
        with open(temporary, "wb") as file:
            for path, pieces in landed.items():
                file.writelines(journal_line(path, piece) for piece in pieces)
        os.replace(temporary, self.transfer.journal)

    # -- giving -----------------------------------------------------------------------------------------------------
    def _feed(self, member: Member) -> None:
        """Keep a worker supplied with a little more than it can have under way."""
        line = self.lines[member.number]
        held = self.plan.held_by(member.number)
        if line.spare:
            if not held:
                self._let_go(member)
            return
        count, ahead = len(held), sum(item.length for item in held)
        given: list[Range] = []
        while wants_more(count, ahead, line.rate, line.tried):
            item = self.plan.take_check(member.number)
            if item is None and line.connected:
                length = range_length(self.plan.open_bytes, len(self.lines), line.rate, line.tried)
                item = self.plan.take(member.number, length)
                if item is not None:
                    self._note(item)
            if item is None:
                break
            given.append(item)
            count, ahead = count + 1, ahead + item.length
        if line.connected and not count and self.doubled < DOUBLED * len(self.lines):
            item = self._slow(member)
            if item is not None:
                given.append(item)
                self.doubled += 1
                self.twice[item.number] = (item, "")
        if given:
            if not held:
                line.spoke = time.monotonic()
            member.send(Take(tuple((item, self.transfer.items[item.file]) for item in given)))

    def _note(self, item: Range, sha256: str = "") -> None:
        """Write into the journal that a range was begun, or that it has landed."""
        path = self.transfer.items[item.file].path
        self.journal.write(journal_line(path, Piece(item.offset, item.length, sha256)))
        if not sha256:
            self.begun[item.number] = time.monotonic()

    def _slow(self, member: Member) -> Range | None:
        """Nothing is open: a range that another worker will deliver much later than this one would."""
        now = time.monotonic()
        rate = self.lines[member.number].rate
        if not rate:
            # All that it had came before its speed was looked at twice.
            rate = self.report.bytes / max(0.01, now - self.up)
        slow = []
        for number, line in self.lines.items() if rate else ():
            # What a connection did that is lost says nothing about the next one.
            left, theirs = 0, line.rate if line.connected else 0.0
            for item in self.plan.held_by(number):
                left += item.length
                if not item.sha256 and _policy.slow(now - self.begun[item.number], left, theirs, item.length / rate):
                    slow.append((-left / theirs if theirs else -math.inf, item.number))
        # The one that would come last is worth most.
        return self.plan.double(member.number, [number for _due, number in sorted(slow)])

    def _grow(self) -> None:
        """As many workers as the throughput deserves, one connect after the other."""
        if not self.pool.alive:
            raise nobody_left()
        now = time.monotonic()
        wanted = self.growth.wanted(now, self.received, self.plan.open_bytes)
        near = self.pool.nearest(self.transfer.endpoint)
        resting = [member for member in near if member.number not in self.lines]
        for index, member in enumerate(resting[: max(0, wanted - len(self.lines))]):
            self.lines[member.number] = _Line(spoke=now, tried=bool(self.up))
            member.send(
                Job(
                    self.transfer.endpoint,
                    self.transfer.directory,
                    self.transfer.rate_limit,
                    self.transfer.push,
                )
            )
            self._feed(member)
            member.send(Connect(index * _policy.STAGGER))
        for number in list(self.lines)[wanted:]:
            self.lines[number].spare = True

    # -- hearing ----------------------------------------------------------------------------------------------------
    def _hear(self, member: Member, message: t.Any) -> None:
        line = self.lines.get(member.number)
        if isinstance(message, Alive):
            # Of those that were let go as well: what they received came for nothing.
            self.received += message.received
        if message is None:
            self._died(member)
        elif isinstance(message, Resting):
            self._rests(member, message)
        elif line is not None:
            line.spoke = time.monotonic()
            if isinstance(message, Landed):
                self.failures.progress(member.number)
                self._landed(message)
            elif isinstance(message, Refuted):
                self._refuted(message)
            elif isinstance(message, Alive):
                self._alive(member, line, message)
            elif isinstance(message, Connected):
                line.connected = True
                self.up = self.up or time.monotonic()
                up = sum(other.connected for other in self.lines.values())
                self.report.workers = max(self.report.workers, up)
                if up == len(self.lines):
                    self.growth.connected(time.monotonic(), message.round_trip)
            elif isinstance(message, Failed):
                self._failed(member, line, message.error())
            elif isinstance(message, Broken):
                self._broken(message)

    def _landed(self, message: Landed) -> None:
        self.begun.pop(message.number, None)
        item = self.plan.landed(message.number)
        if item is None:
            return
        self.whole.expect(item, message.sha256)
        if message.number in self.twice:
            self.twice[message.number] = (item, message.sha256)
        if item.sha256:
            self.report.reused += item.length
        else:
            self._note(item, message.sha256)
            self.report.bytes += item.length
        up = sum(other.connected for other in self.lines.values())
        self.progress(self.plan.landed_bytes, self.plan.total, up)

    def _refuted(self, message: Refuted) -> None:
        item = self.plan.refuted(message.number)
        if item is not None:
            self.report.resent += item.length

    def _alive(self, member: Member, line: _Line, message: Alive) -> None:
        now = time.monotonic()
        if message.received and not self.transfer.push:
            # What was received stays; what was sent counts when the whole range was confirmed.
            self.failures.progress(member.number)
        if line.measured and self.plan.held_by(member.number):
            rate = message.received / max(0.01, now - line.measured)
            line.rate = rate if not line.rate else 0.8 * line.rate + 0.2 * rate
        line.measured = now
        if message.memory:
            self.memory[member.number] = message.memory
            self.report.peak_rss = max(self.report.peak_rss, self._memory())

    def _memory(self) -> int:
        return memory_of_this_process() + sum(self.memory.values())

    def _failed(self, member: Member, line: _Line, error: DsmError) -> None:
        """A connection was lost or refused."""
        if error.code not in TRANSIENT:
            raise error
        was_up, line.connected = line.connected, False
        others = any(other.connected for other in self.lines.values())
        if others and (line.spare or (not was_up and not self.plan.held_by(member.number))):
            # It is not needed, or it is one more than the source takes: those that work are enough.
            self.growth.refused()
            self._retire(member)
            return
        count = self.failures.failed(member.number)
        if count is not None:
            member.send(Connect(_policy.pause(count, random.random())))
        elif len(self.lines) > 1:
            self._retire(member)
        else:
            raise error

    def _retire(self, member: Member) -> None:
        """Do without this worker for the rest of the transfer."""
        self.plan.give_back(member.number)
        self._let_go(member)
        self.growth.lost(len(self.lines))

    def _let_go(self, member: Member) -> None:
        del self.lines[member.number]
        self.resting.add(member.number)
        member.send(Rest())

    def _died(self, member: Member) -> None:
        how = member.end()
        self.resting.discard(member.number)
        self.memory.pop(member.number, None)
        if member.number not in self.lines:
            return
        self.plan.give_back(member.number)
        del self.lines[member.number]
        self.report.notes.append(f"A worker (process {member.pid}) died: {how}.")
        self.growth.lost(max(1, len(self.lines)))

    def _bury(self) -> None:
        """Kill workers that give no sign of life any more."""
        # One that has nothing to do is silent; one that connects has its own limits of time.
        spoke = {
            number: line.spoke for number, line in self.lines.items() if line.connected and self.plan.held_by(number)
        }
        for number in _policy.starved(spoke, time.monotonic(), DEAD_AFTER):
            self._died(next(member for member in self.pool.alive if member.number == number))

    def _broken(self, message: Broken) -> t.NoReturn:
        if not message.number:
            raise RuntimeError(message.message)
        raise OSError(message.number, message.message, message.path or None)

    # -- the end ----------------------------------------------------------------------------------------------------
    def _rest(self) -> None:
        """No worker touches a file of this transfer any more when this returns."""
        for member in self._busy():
            self._let_go(member)
        deadline = time.monotonic() + _REST_SECONDS
        while self.resting and time.monotonic() < deadline:
            for member, message in self.pool.hear(0.1):
                self._hear(member, message)
        for member in [member for member in self.pool.alive if member.number in self.resting]:
            member.end()

    def _rests(self, member: Member, message: Resting) -> None:
        self.resting.discard(member.number)
        self.memory[member.number] = message.memory
