# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Pulling bytes: a plan goes in, verified files and a report come out.

One worker today. The plan holds everything that forked workers will need (an endpoint is a value and connects after
the fork), and the journal speaks of ranges, so that parallel workers and ranges fill in behind :func:`pull` without a
change of what callers see.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import resource
import time
import typing as t
from dataclasses import dataclass, field

from .._core.strict import SHA256, Invalid, load
from .._errors import DsmError, Refused
from ._discover import Item
from ._endpoint import Endpoint, Session, SinkError

#: Bytes of one journalled range.
RANGE = 8 << 20
ATTEMPTS = 8
#: Codes of failed connections that may be gone a moment later.
TRANSIENT = frozenset(("CONNECTION_LOST", "STALLED", "SSH_REFUSED", "SSH_UNREACHABLE"))
FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))


@dataclass(frozen=True)
class TransferPlan:
    """What to pull and how.

    ``directory`` receives the files, ``journal`` (a file) remembers the ranges that landed. ``rate_limit`` in bytes a
    second, 0: none. ``workers`` is the upper bound; this engine uses one.
    """

    endpoint: Endpoint
    items: tuple[Item, ...]
    directory: str
    journal: str
    workers: int = 1
    rate_limit: float = 0.0
    attempts: int = ATTEMPTS

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(item.attributes.size for item in self.items)


@dataclass
class TransferReport:
    """What a transfer did: ``bytes`` received, of which ``resent`` had been received before, memory in bytes."""

    bytes: int = 0
    resent: int = 0
    reused: int = 0
    seconds: float = 0.0
    workers: int = 1
    peak_rss: int = 0
    sha256: dict[str, str] = field(default_factory=dict)

    def add(self, other: TransferReport) -> None:
        """Add another transfer of the same run."""
        self.bytes += other.bytes
        self.resent += other.resent
        self.reused += other.reused
        self.seconds += other.seconds
        self.workers = max(self.workers, other.workers)
        self.peak_rss = max(self.peak_rss, other.peak_rss)


#: Called with (bytes landed, bytes of the plan) after every range.
Progress = t.Callable[[int, int], None]


def no_progress(_done: int, _total: int) -> None:
    """For callers that show nothing."""


def store_full(path: str, error: BaseException) -> Refused:
    """The error for a store without space or quota (code STORE_FULL)."""
    return Refused(
        f"The store is full: {path} cannot be written ({error}).",
        "STORE_FULL",
        "Make room (expire old backups by playbook prune_backups, or grow the file system), then run again. "
        "Backups that were published before are untouched.",
    )


class Journal:
    """The ranges that have landed, one JSON line each. Nothing in it is trusted before it was hashed again."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.ranges: dict[str, list[tuple[int, str]]] = {}
        with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
            for line in file.read().split(b"\n")[:-1]:
                self._note(line)

    def _note(self, line: bytes) -> None:
        """Take one line; a line that was damaged only costs the range that it speaks of."""
        try:
            value = load(line, "journal")
            path, offset, length, sha256 = (value[name] for name in ("path", "offset", "length", "sha256"))
        except (Invalid, KeyError):
            return
        if not (isinstance(path, str) and isinstance(offset, int) and isinstance(length, int) and length > 0):
            return
        known = self.ranges.setdefault(path, [])
        if offset == sum(size for size, _hash in known) and isinstance(sha256, str) and SHA256.match(sha256):
            known.append((length, sha256))

    def append(self, path: str, offset: int, length: int, sha256: str) -> None:
        """Note a range that landed."""
        line = json.dumps({"path": path, "offset": offset, "length": length, "sha256": sha256}, sort_keys=True)
        with open(self.path, "ab") as file:
            # The newline before it ends a line that a killed run left unfinished; empty lines are skipped.
            file.write(b"\n" + line.encode("ascii") + b"\n")

    def forget(self, path: str) -> None:
        """Forget a file's ranges (its bytes turned out to be others); they are noted anew as they land."""
        self.ranges.pop(path, None)


class _Pacer:
    """Keeps a transfer under a rate (bytes a second) by waiting for the time at which its bytes are due."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._started = time.monotonic()
        self._bytes = 0

    def took(self, count: int) -> None:
        """Account for bytes that arrived; waits where they came too early."""
        if not self._rate:
            return
        self._bytes += count
        early = self._started + self._bytes / self._rate - time.monotonic()
        if early > 0:
            time.sleep(early)


class _Landing:
    """One file on its way into the store: written, hashed as a whole and by range, journalled."""

    def __init__(self, plan: TransferPlan, item: Item, journal: Journal, pacer: _Pacer, tick: t.Callable[[int], None]):
        self.item, self.journal, self.pacer, self.tick = item, journal, pacer, tick
        self.path = os.path.join(plan.directory, item.path)
        os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self.descriptor = os.open(self.path, flags, 0o600)
        self.whole = hashlib.sha256()
        self.part = hashlib.sha256()
        self.offset = self.part_start = 0
        self.reused = self.lost = 0

    def resume(self) -> None:
        """Hash what a former run left again, range by range, and cut off everything behind the first that differs."""
        left = os.fstat(self.descriptor).st_size
        for length, sha256 in self.journal.ranges.get(self.item.path, []):
            if self.offset + length > min(left, self.item.attributes.size):
                break
            copy = self.whole.copy()
            if _hash_range(self.descriptor, self.offset, length, copy) != sha256:
                break
            self.whole = copy
            self.offset += length
        self.part_start = self.offset
        self.reused = self.offset
        self.lost = max(0, left - self.offset)
        os.ftruncate(self.descriptor, self.offset)
        if self.offset < sum(length for length, _hash in self.journal.ranges.get(self.item.path, [])):
            self.journal.forget(self.item.path)
            self._rewrite_journal()

    def _rewrite_journal(self) -> None:
        """Note the trusted prefix of this file as one range, in a new journal without its old ones."""
        if self.offset:
            self.journal.ranges[self.item.path] = [
                (self.offset, _hash_range(self.descriptor, 0, self.offset, hashlib.sha256()))
            ]
        kept = self.journal.ranges
        temporary = self.journal.path + ".new"
        with open(temporary, "wb") as file:
            for path, ranges in kept.items():
                offset = 0
                for length, sha256 in ranges:
                    line = {"path": path, "offset": offset, "length": length, "sha256": sha256}
                    file.write(json.dumps(line, sort_keys=True).encode("ascii") + b"\n")
                    offset += length
        os.replace(temporary, self.journal.path)

    def sink(self, position: int, piece: memoryview) -> None:
        """Take the next bytes. Raises OSError when the store is full."""
        if position != self.offset:
            raise RuntimeError("bytes out of order")
        while piece:
            room = self.part_start + RANGE - self.offset
            now, piece = piece[:room], piece[room:]
            written = 0
            while written < len(now):
                written += os.pwrite(self.descriptor, now[written:], self.offset + written)
            self.whole.update(now)
            self.part.update(now)
            self.offset += len(now)
            self.pacer.took(len(now))
            if self.offset - self.part_start == RANGE:
                self._end_range()

    def _end_range(self) -> None:
        length = self.offset - self.part_start
        if length:
            self.journal.append(self.item.path, self.part_start, length, self.part.hexdigest())
            self.tick(length)
        self.part = hashlib.sha256()
        self.part_start = self.offset

    def finish(self) -> str:
        """All bytes are here: flush them to disk and return the whole hash."""
        self._end_range()
        os.fsync(self.descriptor)
        return self.whole.hexdigest()

    def close(self) -> None:
        os.close(self.descriptor)


def _hash_range(descriptor: int, offset: int, length: int, whole: t.Any) -> str:
    """SHA-256 of a range of an open file; ``whole`` is fed the same bytes."""
    part = hashlib.sha256()
    end = offset + length
    while offset < end:
        piece = os.pread(descriptor, min(1 << 20, end - offset), offset)
        if not piece:
            return ""
        part.update(piece)
        whole.update(piece)
        offset += len(piece)
    return part.hexdigest()


def pull(plan: TransferPlan, progress: Progress = no_progress, session: Session | None = None) -> TransferReport:
    """Carry out a plan; ``session`` is used first if given (and closed when it breaks).

    A lost connection is built again after a growing, jittered pause and goes on where it broke, until ``attempts``
    connections in a row brought nothing. Raises ``ConnectionLost``, ``SourceChanged``, ``Refused`` (STORE_FULL, ...).
    """
    started = time.monotonic()
    report = TransferReport(workers=1)
    journal = Journal(plan.journal)
    pacer = _Pacer(plan.rate_limit)
    landed = 0

    def tick(count: int) -> None:
        nonlocal landed
        landed += count
        progress(landed, plan.bytes)

    own = session is None
    try:
        for item in plan.items:
            landing = _Landing(plan, item, journal, pacer, tick)
            try:
                landing.resume()
                tick(landing.reused)
                report.reused += landing.reused
                session, renewed = _fetch(plan, item, landing, session)
                own = own or renewed
                report.sha256[item.path] = landing.finish()
                report.bytes += landing.offset - landing.reused
                report.resent += min(landing.lost, landing.offset - landing.reused)
            finally:
                landing.close()
    except SinkError as error:
        raise _local_failure(plan.directory, error.cause) from None
    except OSError as error:
        raise _local_failure(plan.directory, error) from None
    finally:
        if own and session is not None:
            session.close()
    report.seconds = time.monotonic() - started
    report.peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return report


def _fetch(plan: TransferPlan, item: Item, landing: _Landing, session: Session | None) -> tuple[Session, bool]:
    """Bring one file home over as many connections as it takes."""
    failures = 0
    renewed = False
    while True:
        before = landing.offset
        try:
            if session is None:
                session, renewed = plan.endpoint.connect(), True
            if landing.offset < item.attributes.size:
                session.read(item.source, item.attributes, landing.offset, landing.sink)
            return session, renewed
        except DsmError as error:
            if error.code not in TRANSIENT:
                raise
            if session is not None:
                session.close()
            session = None
            failures = 1 if landing.offset > before else failures + 1
            if failures >= plan.attempts:
                raise
            _pause(failures)
        except FileNotFoundError:
            raise _gone(item) from None
        except PermissionError:
            raise Refused(
                f"{item.source} cannot be read at the source: permission denied.",
                "SOURCE_UNREADABLE",
                "Let the user of this source read the delivered files (group or ACL); it needs no right to write.",
            ) from None


def _pause(failures: int) -> None:
    """Wait before the next connection, longer each time and never in step with others."""
    time.sleep(random.uniform(0.5, 1.0) * min(30.0, 0.1 * 2**failures))


def _gone(item: Item) -> Refused:
    return Refused(
        f"{item.source} vanished from the source while it was being read.",
        "SOURCE_CHANGED",
        "Run again; and keep the cluster from deleting deliveries before they were shipped.",
    )


def _local_failure(directory: str, error: BaseException) -> Exception:
    if isinstance(error, OSError) and error.errno in FULL:
        return store_full(directory, error)
    if isinstance(error, OSError):
        return Refused(
            f"{error.filename or directory}: {error.strerror or error}.",
            "TRANSFER_FAILED",
            "Check the disk of the store and the file at the source (a read error there looks alike), then run again.",
        )
    return error if isinstance(error, Exception) else RuntimeError(str(error))
