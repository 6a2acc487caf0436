# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The two ends of a link: a network namespace each, and the only way to run anything in one."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shipbench import system
from shipbench.errors import BenchError

SOURCE, STORE, NETWORK, PREFIX = "10.99.0.1", "10.99.0.2", "10.99.0.0/30", 30
DEVICE = "wan0"
_ENVIRONMENT = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}


@dataclass
class Ended:
    """A command that has ended: exit code (None: stopped for its time limit), time, processor time, end of output."""

    code: int | None
    seconds: float
    processor: float
    output: str


def start(
    argv: Sequence[str], *, output: Path, environment: Mapping[str, str] | None = None, stdin: int | None = None
) -> int:
    """Start a command in a session of its own, with its words in file ``output``, and return its process id."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    if stdin is None:
        actions.append((os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0))
    else:
        actions.append((os.POSIX_SPAWN_DUP2, stdin, 0))
    return os.posix_spawnp(
        argv[0], list(argv), {**_ENVIRONMENT, **(environment or {})}, file_actions=actions, setsid=True
    )


def wait(pid: int, limit: float, every: float, meanwhile: Callable[[], None]) -> bool:
    """Wait until a child ends (not yet taking its status); ``meanwhile`` is called every so often (s).

    False if it did not within ``limit`` seconds.
    """
    handle = os.pidfd_open(pid)
    end = time.monotonic() + limit
    try:
        while True:
            left = end - time.monotonic()
            if left <= 0:
                return False
            if select.select([handle], [], [], min(every, left))[0]:
                return True
            meanwhile()
    finally:
        os.close(handle)


def await_words(path: Path, words: str, limit: float) -> None:
    """Wait until a command has said something. Raises BenchError with what it said instead."""
    end = time.monotonic() + limit
    while words not in tail(path):
        if time.monotonic() > end:
            raise BenchError(f"{path.name} did not say {words!r} within {limit:g} s but: {tail(path)}")
        time.sleep(0.01)


def tail(path: Path, size: int = 2000) -> str:
    """The end of a file with a command's words."""
    with contextlib.suppress(OSError):
        return path.read_bytes()[-size:].decode("utf-8", "replace").strip()
    return ""


@dataclass
class End:
    """One end of the link. A process that only sleeps holds its network; ending it (or us) makes the network vanish."""

    name: str
    scratch: Path
    holder: int = 0
    network: int = 0
    kept: set[int] = field(default_factory=set)

    def make(self) -> End:
        """Make the end's network, with nothing in it but its own loopback."""
        outside = system.network_of()
        self.holder = start(
            ["unshare", "--net", "--", "sleep", "infinity"], output=self.scratch / f"{self.name}.holder"
        )
        self.kept.add(self.holder)
        end = time.monotonic() + 5.0
        while (network := system.network_of(self.holder)) == outside:
            if time.monotonic() > end:
                raise BenchError(f"No network namespace could be made: {tail(self.scratch / f'{self.name}.holder')}")
            time.sleep(0.005)
        self.network = network
        self.run(["ip", "link", "set", "lo", "up"])
        return self

    @property
    def namespace(self) -> str:
        """The file that stands for the end's network."""
        return f"/proc/{self.holder}/ns/net"

    def argv(self, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` at this end."""
        return ["nsenter", f"--net={self.namespace}", "--", *argv]

    def start(self, argv: Sequence[str], *, output: Path, environment: Mapping[str, str] | None = None) -> int:
        """Start something that stays, for instance a server; ``stop`` ends it."""
        pid = start(self.argv(argv), output=output, environment=environment)
        self.kept.add(pid)
        return pid

    def stop(self, pid: int) -> None:
        """End what ``start`` started, and wait until it is gone."""
        self.kept.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        if not wait(pid, 3.0, 3.0, lambda: None):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def run(self, argv: Sequence[str], *, limit: float = 30.0) -> str:
        """Run a short command at this end; its words. Raises BenchError when it fails."""
        output = self.scratch / f"{self.name}.run"
        pid = start(self.argv(argv), output=output)
        ended = wait(pid, limit, limit, lambda: None)
        if not ended:
            os.kill(pid, signal.SIGKILL)
        _pid, status = os.waitpid(pid, 0)
        if not ended or status != 0:
            raise BenchError(f"`{' '.join(argv)}` failed at the {self.name}: {tail(output)}")
        return output.read_text(encoding="utf-8", errors="replace")

    def visitors(self) -> list[int]:
        """Processes at this end that nobody said would stay."""
        return [pid for pid in system.processes_in(self.network) if pid not in self.kept]

    def memory(self) -> int:
        """Bytes of memory of everything at this end but the holder."""
        return sum(system.memory_of(pid) for pid in system.processes_in(self.network) if pid != self.holder)
