# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of one tool: its time, and what both ends, the emulator and strangers used meanwhile."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shipbench import system
from shipbench.calibration import difference
from shipbench.ends import End, start, tail, wait
from shipbench.errors import BenchError
from shipbench.server import Server
from shipbench.wire import Counters, Wire

#: How often the memory of both ends is looked at (s).
SAMPLE = 0.2


@dataclass
class Usage:
    """What one run cost. Times in s, sizes in bytes, processor time of everything at that end.

    ``client`` is the store's end, ``server`` the source's. ``strangers`` is the fraction of all processors that
    whatever else ran on this machine used: it makes a run less comparable. ``busy`` is what both ends and the emulator
    used: near 1, the processors and not the link are the limit. Memory is PSS, sampled.
    """

    code: int | None
    seconds: float
    client_processor: float
    server_processor: float
    emulator_processor: float
    strangers: float
    busy: float
    client_memory: int
    server_memory: int
    wire: dict[str, int]
    retransmitted: int
    output: str
    emulator: Counters

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Meter:
    """Runs tools at the store's end and measures them. It must be PID 1 of its namespace: it reaps what tools leave."""

    def __init__(self, wire: Wire, server: Server, scratch: Path) -> None:
        self._wire, self._server, self._scratch = wire, server, scratch
        self._client: End = wire.store
        self._stays = {*wire.source.kept, *wire.store.kept, server.pid, *wire.processes}

    def run(self, argv: Sequence[str], *, limit: float, environment: Mapping[str, str]) -> Usage:
        """Run a command at the store's end for at most ``limit`` seconds."""
        wire, server = self._wire, self._server
        output = self._scratch / "tool"
        peak = [0, 0]

        def sample() -> None:
            for index, end in enumerate((self._client, server.end)):
                peak[index] = max(peak[index], end.memory())

        counters, sent, again = wire.counters(), wire.wire_bytes(), system.retransmitted(server.end.holder)
        before = (server.processor_time(), wire.processor_time(), system.machine_busy(), time.process_time())
        started = time.monotonic()
        pid = start(self._client.argv(argv), output=output, environment=environment)
        try:
            ended = wait(pid, limit, SAMPLE, sample)
            seconds = time.monotonic() - started
        except BaseException:
            self._end_visitors()
            os.waitpid(pid, 0)
            raise
        code, client = self._reap(pid, ended)
        server.settle()
        after = (server.processor_time(), wire.processor_time(), system.machine_busy(), time.process_time())
        used = [late - early for late, early in zip(after, before)]
        whole = time.monotonic() - started
        processors = os.cpu_count() or 1
        others = used[2] - used[0] - used[1] - used[3] - client
        later = wire.wire_bytes()
        return Usage(
            code=code,
            seconds=seconds,
            client_processor=client,
            server_processor=used[0],
            emulator_processor=used[1],
            strangers=max(0.0, others / (whole * processors)),
            busy=(client + used[0] + used[1]) / (whole * processors),
            client_memory=peak[0],
            server_memory=peak[1],
            wire={name: later[name] - value for name, value in sent.items()},
            retransmitted=system.retransmitted(server.end.holder) - again,
            output=tail(output, 1 << 20),
            emulator=difference(wire.counters(), counters),
        )

    def _reap(self, pid: int, ended: bool) -> tuple[int | None, float]:
        """Exit code (None if it was stopped) and processor time of a tool and of whatever it left behind."""
        self._end_visitors()
        _pid, status, usage = os.wait4(pid, 0)
        processor = usage.ru_utime + usage.ru_stime
        # Children that a tool did not wait for were handed to us: they count, and must be gone before the next run.
        end = time.monotonic() + 5.0
        while True:
            left = self._client.visitors()
            child, _status, usage = os.wait4(-1, os.WNOHANG)
            if child in self._stays:
                raise BenchError(
                    f"Process {child}, which should have stayed, has ended: server, link or an end is gone."
                )
            if child:
                processor += usage.ru_utime + usage.ru_stime
            elif not left:
                break
            elif time.monotonic() > end:
                raise BenchError("What a tool left behind does not end.")
            else:
                time.sleep(0.005)
        return (os.waitstatus_to_exitcode(status) if ended else None), processor

    def _end_visitors(self) -> None:
        """Kill whatever is at the store's end and does not belong there."""
        for child in self._client.visitors():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
