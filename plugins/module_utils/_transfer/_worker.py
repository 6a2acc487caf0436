# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What a forked worker does: it takes orders from a socket, and over a connection of its own it moves ranges, and asks
a host what whoever gives the orders wants to know.

It decides nothing. It answers within a fraction of a second whatever the link does, and it ends when the process that
gives the orders ends, however that happened: nobody writes into a store without the lease.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import time
import typing as t

from .._errors import DsmError, Refused
from ._changed import SourceChanged
from ._discover import Item
from ._endpoint import Endpoint, SftpEndpoint, SftpSession
from ._pace import Pace
from ._ranges import Range
from ._reader import Reader, SftpReader
from ._ssh import ConnectionLost, Dialled
from ._stream import Landing, LocalFault

if t.TYPE_CHECKING:
    from multiprocessing.connection import Connection as Pipe

#: Seconds after which a worker looks for orders even when the link is silent, and between two signs of life.
SLICE = 0.2
SIGN_OF_LIFE = 0.1
_MEMORY_SECONDS = 1.0
_PIECE = 1 << 20


class Job(t.NamedTuple):
    """What all ranges of a transfer have in common."""

    endpoint: Endpoint
    directory: str
    rate: float
    push: bool = False


class Warm(t.NamedTuple):
    """Order before the first job: connect, and say nothing about it. There will be work, it is not known yet which."""

    endpoint: Endpoint
    rate: float


class Ask(t.NamedTuple):
    """Order between jobs: ask a host something (a method of a session, or ``round_trip``), over a connection that then
    moves its bytes too. Answered by :class:`Told`, :class:`Denied`, :class:`Failed` or :class:`Broken`."""

    endpoint: SftpEndpoint
    question: str
    arguments: tuple[t.Any, ...] = ()


class Connect(t.NamedTuple):
    """Order: connect after ``delay`` seconds, or say at once that the connection is up."""

    delay: float = 0.0


class Take(t.NamedTuple):
    """Order: move these ranges, each of its file, or check those that are said to be there."""

    ranges: tuple[tuple[Range, Item], ...]


class Rest(t.NamedTuple):
    """Order: the transfer is over; let go of its files. Answered by :class:`Resting`."""


class Told(t.NamedTuple):
    """Answer to :class:`Ask`."""

    value: t.Any


class Denied(t.NamedTuple):
    """Answer to :class:`Ask`: the host refused with an OSError of this ``number``."""

    number: int
    message: str
    path: str


class Connected(t.NamedTuple):
    """Answer: the connection is up. ``round_trip`` in seconds."""

    round_trip: float


class Landed(t.NamedTuple):
    """Answer: a range is on the disk."""

    number: int
    sha256: str


class Refuted(t.NamedTuple):
    """Answer: a range that was to be checked is not what the journal says."""

    number: int


class Alive(t.NamedTuple):
    """Sign of life: bytes received since the last one, and the memory (bytes) of this process, 0: not looked."""

    received: int
    memory: int


class Failed(t.NamedTuple):
    """Answer: the connection is lost or was refused. The error in parts, because exceptions do not travel well."""

    kind: str
    message: str
    code: str
    remedy: str
    details: t.Mapping[str, t.Any]

    def error(self) -> DsmError:
        """The error as it was."""
        kinds: dict[str, type[DsmError]] = {
            "ConnectionLost": ConnectionLost,
            "Refused": Refused,
            "SourceChanged": SourceChanged,
        }
        return kinds.get(self.kind, DsmError)(self.message, self.code, self.remedy, **self.details)


class Broken(t.NamedTuple):
    """Answer: this host's disk refused (``number`` is an errno), or the worker has a defect (0)."""

    number: int
    message: str
    path: str


class Resting(t.NamedTuple):
    """Answer to :class:`Rest`."""

    memory: int


class Orphaned(BaseException):
    """Whoever gave the orders is gone."""


def memory_of_this_process() -> int:
    """Bytes of memory, of pages that several processes share only this process's part."""
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _told(error: Exception) -> Failed | Broken:
    """An exception as an answer; what is no error for people is a defect."""
    if isinstance(error, DsmError):
        return Failed(type(error).__name__, error.message, error.code, error.remedy, error.details)
    return Broken(0, f"{type(error).__name__}: {error}", "")


class Worker:
    """One worker between its orders and its connection."""

    def __init__(self, pipe: Pipe, pace: Pace, dialled: t.Mapping[SftpEndpoint, Dialled] | None = None) -> None:
        self._pipe = pipe
        self._pace = pace
        self._orders = select.poll()
        self._orders.register(pipe.fileno(), select.POLLIN)
        self._job: Job | None = None
        self._warm: Warm | None = None
        self._directory = -1
        self._reader: Reader | None = None
        self._endpoint: Endpoint | None = None
        #: connections that were begun for this worker before it was
        self._dialled = dict(dialled or {})
        #: hosts that were asked something, and the session, as long as its connection lives
        self._sessions: dict[SftpEndpoint, SftpSession | None] = {}
        #: the reader, while it uses a session's connection
        self._borrowed: SftpReader | None = None
        self._connect_at: float | None = None
        self._landings: dict[int, tuple[Landing, Item]] = {}
        self._checks: list[tuple[Range, Item]] = []
        self._reported = 0
        self._heard = self._alive = self._looked = 0.0

    def run(self) -> None:
        """Until the other end of the socket is closed (:class:`Orphaned`)."""
        while True:
            try:
                self._obey()
                self._work()
            except LocalFault as error:
                self._drop()
                cause = error.cause
                self._send(Broken(cause.errno or 0, cause.strerror or str(cause), str(cause.filename or "")))
            except Exception as error:
                self._fail(error)
            self._tell()

    # -- orders -----------------------------------------------------------------------------------------------------
    def _obey(self) -> None:
        """Take every order that is here; wait for one when there is nothing to do."""
        while self._orders.poll(self._leisure()):
            try:
                order = self._pipe.recv()
            except (EOFError, OSError):
                raise Orphaned from None
            if isinstance(order, Job):
                self._begin(order)
            elif isinstance(order, Warm):
                self._warm, self._connect_at = order, time.monotonic()
            elif isinstance(order, Ask):
                self._ask(order)
            elif isinstance(order, Connect):
                # One that is up already costs sshd nothing.
                self._connect_at = time.monotonic() + (0.0 if self._reader is not None else order.delay)
            elif isinstance(order, Take):
                self._take(order.ranges)
            elif isinstance(order, Rest):
                self._rest()

    def _leisure(self) -> float | None:
        """For how long (ms) this worker may wait for orders; None: there is nothing else to do."""
        if self._checks or (self._reader is not None and self._reader.expects):
            return 0
        if self._reader is not None and self._reader.wake is not None:
            return min(SLICE, max(0.0, self._reader.wake - time.monotonic())) * 1000
        if self._reader is not None and self._reader.unasked:
            return 0
        if self._connect_at is not None:
            return min(SLICE, max(0.0, self._connect_at - time.monotonic())) * 1000
        return None

    def _ask(self, order: Ask) -> None:
        try:
            self._send(Told(self._answer(order)))
        except OSError as error:
            self._send(Denied(error.errno or 0, error.strerror or str(error), str(error.filename or "")))
        except Exception as error:
            self._close(order.endpoint)
            self._send(_told(error))

    def _answer(self, order: Ask) -> t.Any:
        if order.question == "close":
            self._close(order.endpoint)
            del self._sessions[order.endpoint]
            return None
        asked = getattr(self._session(order.endpoint), order.question)
        return asked(*order.arguments) if callable(asked) else asked

    def _session(self, endpoint: SftpEndpoint) -> SftpSession:
        session = self._sessions.get(endpoint)
        if session is None:
            session = self._sessions[endpoint] = endpoint.connect(self._dialled.pop(endpoint, None))
        return session

    def _close(self, endpoint: SftpEndpoint) -> None:
        session = self._sessions.get(endpoint)
        if session is not None:
            session.close()
        self._sessions[endpoint] = None

    def _begin(self, job: Job) -> None:
        self._job = job
        self._directory = os.open(job.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._directory, fcntl.LOCK_SH)
        if self._reader is not None and self._endpoint != job.endpoint:
            self._drop()

    def _take(self, ranges: t.Iterable[tuple[Range, Item]]) -> None:
        job = self._having_job()
        begun = []
        for part, item in ranges:
            if part.sha256:
                self._checks.append((part, item))
                continue
            landing = Landing(part.number, part.file, part.offset, part.length, os.path.join(job.directory, item.path))
            self._landings[part.number] = (landing, item)
            begun.append((landing, item))
        # All are noted first: the connection may be found dead at any of them, and the next one is offered them all.
        for landing, item in begun:
            if self._reader is not None:
                self._reader.offer(landing, item.source, item.attributes)

    def _having_job(self) -> Job:
        if self._job is None:
            raise RuntimeError("a range before its job")
        return self._job

    def _rest(self) -> None:
        """Let go of everything but the connection; of that too when answers to this job are still under way."""
        self._tell(now=True)
        if self._landings:
            self._drop()
        for landing, _item in self._landings.values():
            landing.close()
        self._landings.clear()
        self._checks.clear()
        self._connect_at = None
        if self._reader is not None:
            try:
                self._reader.close_files()
                if self._borrowed is not None:
                    self._borrowed.hand_back()
                    self._reader = self._borrowed = None
            except (EOFError, OSError):
                # The connection was lost when there was nothing more to get.
                self._drop()
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
        self._job = None
        self._send(Resting(memory_of_this_process()))

    # -- work -------------------------------------------------------------------------------------------------------
    def _work(self) -> None:
        if self._checks:
            self._check(*self._checks.pop())
            return
        if self._connect_at is not None and time.monotonic() >= self._connect_at:
            self._connect_at = None
            self._connect()
        reader = self._reader
        if reader is None:
            return
        # Orders can wait for a few packets, they are looked for often enough.
        for _packet in range(8):
            if not self._move(reader):
                break

    def _move(self, reader: Reader) -> bool:
        """Ask for bytes and take what is there; whether there was anything."""
        reader.refill()
        if not reader.expects:
            self._heard = time.monotonic()
            return False
        before = reader.received
        wake = reader.wake
        complete = reader.step(SLICE if wake is None else min(SLICE, max(0.001, wake - time.monotonic())))
        for landing in complete:
            landing.close()
            del self._landings[landing.number]
            self._send(Landed(landing.number, landing.hash.hexdigest()))
        if complete or reader.received > before:
            self._heard = time.monotonic()
            return True
        if time.monotonic() - self._heard > self._having_endpoint().patience:
            raise TimeoutError
        return False

    def _check(self, part: Range, item: Item) -> None:
        """Hash a range that is on the disk."""
        path = os.path.join(self._having_job().directory, item.path)
        found = hashlib.sha256()
        at = part.offset
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                while at < part.end:
                    piece = os.pread(descriptor, min(_PIECE, part.end - at), at)
                    if not piece:
                        break
                    found.update(piece)
                    at += len(piece)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise LocalFault(error) from None
        good = found.hexdigest() == part.sha256
        self._send(Landed(part.number, part.sha256) if good else Refuted(part.number))

    def _connect(self) -> None:
        wanted = self._job or self._warm
        if wanted is None:
            return
        endpoint = wanted.endpoint
        lender = endpoint if isinstance(endpoint, SftpEndpoint) and endpoint in self._sessions else None
        if self._job is None and lender is not None:
            # There is a connection, and it may be asked more before there is a job.
            return
        if self._reader is None:
            rate = wanted.rate
            due = (lambda count: self._pace.due(count, rate)) if rate else None
            self._endpoint = endpoint
            if self._job is not None and self._job.push:
                self._reader = endpoint.writer(due)
            elif lender is not None:
                self._reader = self._borrowed = self._session(lender).reader(due)
            else:
                self._reader = endpoint.reader(due)
            self._reported = 0
            for landing, item in self._landings.values():
                self._reader.offer(landing, item.source, item.attributes)
        self._heard = time.monotonic()
        if self._job is not None:
            self._send(Connected(self._reader.round_trip))

    def _having_endpoint(self) -> Endpoint:
        if self._endpoint is None:
            raise RuntimeError("bytes before the connection")
        return self._endpoint

    # -- the way back -----------------------------------------------------------------------------------------------
    def _drop(self) -> None:
        if self._reader is not None:
            self._reader.close()
        if self._borrowed is not None and isinstance(self._endpoint, SftpEndpoint):
            # It was the session's connection too.
            self._sessions[self._endpoint] = None
        self._reader = self._borrowed = None

    def _fail(self, error: Exception) -> None:
        """Say what happened to the connection, and wait for the order to connect again."""
        if self._job is None:
            # Whoever wants the connection will hear of it when it is built for a job.
            self._drop()
            return
        self._tell(now=True)
        told = error if self._reader is None else self._reader.explain(error) or error
        self._drop()
        self._send(_told(told))

    def _tell(self, now: bool = False) -> None:
        """A sign of life, if it is time for one."""
        moment = time.monotonic()
        if (moment - self._alive < SIGN_OF_LIFE and not now) or self._job is None:
            return
        self._alive = moment
        memory = 0
        if moment - self._looked > _MEMORY_SECONDS:
            self._looked = moment
            memory = memory_of_this_process()
        received = self._reader.received if self._reader is not None else self._reported
        self._send(Alive(max(0, received - self._reported), memory))
        self._reported = received

    def _send(self, message: t.Any) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            raise Orphaned from None
