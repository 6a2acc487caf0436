# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The processes that move bytes, forked before anything in this process has threads or connections."""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing.connection
import os
import signal
import sys
import time
import typing as t
from multiprocessing.connection import Connection as Pipe

from .._errors import DsmError
from . import _ssh
from ._endpoint import Endpoint, Session, SftpEndpoint
from ._pace import Pace
from ._sftp import Attributes
from ._ssh import ConnectionLost
from ._worker import Ask, Broken, Denied, Failed, Orphaned, Told, Warm, Worker

#: mallopt(3): from which size (bytes) memory comes from the kernel by itself, from which on what is free at the end of
#: the heap is given back, and how much is fetched at once.
_MALLOPT = {-3: 32 << 20, -1: 16 << 20, -2: 1 << 20}
#: How long (s) a worker may take for an answer beside what its connection takes to come about: a large directory of a
#: far host.
ANSWER_SECONDS = 300.0
#: In how many steps a connection comes about that may each take ``connect_timeout``: called twice, one key after the
#: other as far as sshd lets us (MaxAuthTries), the agent, a channel and what runs in it.
_STEPS = 12


class Member:
    """One worker as its parent sees it."""

    def __init__(self, number: int, pid: int, pipe: Pipe) -> None:
        self.number, self.pid, self.pipe = number, pid, pipe
        self.alive = True
        #: hosts that were asked something over a connection of this worker
        self.asked: set[Endpoint] = set()

    def send(self, order: t.Any) -> None:
        """Give an order; a worker that is gone shows when it is listened to."""
        with contextlib.suppress(OSError):
            self.pipe.send(order)

    def end(self) -> str:
        """Kill what is left of it; how it ended."""
        self.alive = False
        self.pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        try:
            _pid, status = os.waitpid(self.pid, 0)
        except ChildProcessError:
            return "it is gone"
        if os.WIFSIGNALED(status):
            return f"it was killed by {signal.Signals(os.WTERMSIG(status)).name}"
        return f"it ended with {os.WEXITSTATUS(status)}"


class AskedSession:
    """A ``Session`` of a worker: what it asks a host goes over the connection that then moves the bytes.

    It is made for the first question. One that was lost in between is built again at the next question. A worker that
    answers neither well nor badly hangs, and is given up.
    """

    def __init__(self, member: Member, endpoint: SftpEndpoint) -> None:
        self._member, self._endpoint = member, endpoint

    @functools.cached_property
    def round_trip(self) -> float:
        return t.cast(float, self._ask("round_trip"))

    def _ask(self, question: str, *arguments: t.Any) -> t.Any:
        if not self._member.alive:
            raise _asked_is_dead()
        self._member.send(Ask(self._endpoint, question, arguments))
        target = self._endpoint.target
        limit = ANSWER_SECONDS + _STEPS * target.connect_timeout + target.stall_timeout
        while True:
            try:
                if not self._member.pipe.poll(limit):
                    self._member.end()
                    raise _killed(f"The worker that looked at {target.label} gave no answer for {limit:g} s.")
                answer = self._member.pipe.recv()
            except (EOFError, OSError):
                self._member.end()
                raise _asked_is_dead() from None
            if isinstance(answer, Told):
                self._member.asked.add(self._endpoint)
                return answer.value
            if isinstance(answer, Denied):
                raise OSError(answer.number, answer.message, answer.path or None)
            if isinstance(answer, Failed):
                raise answer.error()
            if isinstance(answer, Broken):
                raise RuntimeError(answer.message)
            # Anything else it said when it was told to rest.

    def lstat(self, path: str) -> Attributes:
        return t.cast(Attributes, self._ask("lstat", path))

    def listdir(self, path: str) -> list[tuple[str, Attributes]]:
        return t.cast("list[tuple[str, Attributes]]", self._ask("listdir", path))

    def realpath(self, path: str) -> str:
        return t.cast(str, self._ask("realpath", path))

    def read(self, path: str, limit: int) -> bytes:
        return t.cast(bytes, self._ask("read", path, limit))

    def expect_clock(self) -> None:
        self._ask("expect_clock")

    def clock(self) -> float | None:
        return t.cast("float | None", self._ask("clock"))

    def close(self) -> None:
        if self._member.alive:
            with contextlib.suppress(DsmError):
                self._ask("close")
        self._member.asked.discard(self._endpoint)


class Pool:
    """At most ``size`` workers. Use it as a context manager, and make it before the first connection.

    ``remote``: load the SSH library first, so that all processes share it. ``first``: whom the first question is for;
    a host is called while that library is loaded.
    """

    def __init__(self, size: int, remote: bool = True, first: Endpoint | None = None) -> None:
        self._dialled: dict[SftpEndpoint, _ssh.Dialled] = {}
        if isinstance(first, SftpEndpoint) and size:
            dialled = _ssh.dial(first.target)
            if dialled is not None:
                self._dialled[first] = dialled
        self.members: list[Member] = []
        try:
            if remote:
                _ssh.load_paramiko()
            _keep_freed_memory()
            self.pace = Pace()
            # What exists now is shared as long as nobody writes to it; the collector would.
            gc.freeze()
            for number in range(size):
                self.members.append(self._fork(number))
        finally:
            gc.unfreeze()
            self._hang_up()

    def _hang_up(self) -> None:
        """This process has no use for what was dialled for the first worker."""
        for dialled in self._dialled.values():
            dialled.close()
        self._dialled.clear()

    def _fork(self, number: int) -> Member:
        mine, theirs = multiprocessing.connection.Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            theirs.close()
            return Member(number, pid, mine)
        code = 1
        try:
            # Ctrl-C reaches all processes of a terminal. The parent answers it, and ends this one.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            mine.close()
            for member in self.members:
                member.pipe.close()
            if number:
                self._hang_up()
            Worker(theirs, self.pace, self._dialled).run()
        except Orphaned:
            code = 0
        finally:
            # Nothing of the parent's (buffers, handlers at exit) may happen a second time.
            os._exit(code)

    def warm(self, endpoint: Endpoint, rate: float, count: int) -> None:
        """Let this many workers connect already; it is no error if they cannot."""
        for member in self.nearest(endpoint)[:count]:
            member.send(Warm(endpoint, rate))

    def session(self, endpoint: Endpoint) -> Session:
        """A session to look at an endpoint; at a host over the connection of a worker, so that there is one login less.
        It, or the first question, raises what connecting raises."""
        if not isinstance(endpoint, SftpEndpoint) or not self.alive:
            # Nothing is forked any more: this process may connect by itself.
            return endpoint.connect()
        return AskedSession(min(self.alive, key=lambda member: len(member.asked)), endpoint)

    def nearest(self, endpoint: Endpoint) -> list[Member]:
        """Workers that were not found dead yet, first those with a connection to this endpoint."""
        return sorted(self.alive, key=lambda member: endpoint not in member.asked)

    @property
    def alive(self) -> list[Member]:
        """Workers that were not found dead yet."""
        return [member for member in self.members if member.alive]

    def hear(self, seconds: float) -> list[tuple[Member, t.Any]]:
        """What workers have to say, waiting at most so long; None instead of a message: that worker is gone."""
        pipes = {member.pipe: member for member in self.alive}
        heard: list[tuple[Member, t.Any]] = []
        for pipe in multiprocessing.connection.wait(list(pipes), seconds):
            member = pipes[t.cast(Pipe, pipe)]
            try:
                heard.append((member, member.pipe.recv()))
                while member.pipe.poll():
                    heard.append((member, member.pipe.recv()))
            except (EOFError, OSError):
                heard.append((member, None))
        return heard

    def close(self) -> None:
        """End all workers; they have nothing to save."""
        for member in self.alive:
            member.pipe.close()
        deadline = time.monotonic() + 0.05
        for member in self.alive:
            while time.monotonic() < deadline and not _ended(member.pid):
                time.sleep(0.002)
            member.end()
        self.pace.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def nobody_left() -> ConnectionLost:
    """The error where all workers were killed (code WORKERS_DIED)."""
    return _killed("No worker is left: all were killed.")


def _asked_is_dead() -> ConnectionLost:
    return _killed("The worker that looked at the source was killed.")


def _killed(what: str) -> ConnectionLost:
    return ConnectionLost(
        what,
        "WORKERS_DIED",
        "Look at the kernel's log of the store (out of memory?), then run again: what has landed is kept.",
    )


def _keep_freed_memory() -> None:
    """Let the C library keep what it could give back to the kernel, as far as it is not much. Bytes come and go in
    pieces of up to some megabytes; fetching their pages anew each time is a sixth of all the work of a worker."""
    try:
        import ctypes

        tell = ctypes.CDLL(None).mallopt
    except (ImportError, OSError, AttributeError):
        # Another C library, or a Python that cannot call it: it works without.
        return
    for parameter, value in _MALLOPT.items():
        tell(parameter, value)


def _ended(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    return True
