# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Between the two ends: a pair of interfaces, shaped by the kernel's netem or by our own emulator below TCP."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from shipbench import system
from shipbench.ends import DEVICE, NETWORK, PREFIX, SOURCE, STORE, End, start, tail, wait
from shipbench.errors import BenchError
from shipbench.links import ETHERNET, HEADER, Link

#: Stock limits of socket memory (bytes), whatever this machine's are, so that results of two machines can be compared.
SETTINGS = {
    "net.ipv4.tcp_rmem": "4096 131072 6291456",
    "net.ipv4.tcp_wmem": "4096 16384 4194304",
    "net.ipv4.tcp_no_metrics_save": "1",
}
CONGESTION = "cubic"
#: Largest packet that the kernel hands to the emulator unsegmented (bytes): the grain of its timing.
GRAIN = 32768
SEED = 20220126

Counters = Mapping[str, Mapping[str, int]]


def compile_emulator(source: Path, directory: Path) -> Path:
    """Compile the emulator once for each state of its source. Raises BenchError with the compiler's words."""
    made = directory / f"kmsops-wan-{hashlib.sha256(source.read_bytes()).hexdigest()[:16]}"
    if not made.exists():
        for old in directory.glob("kmsops-wan-*"):
            old.unlink()
        unfinished = directory / f"kmsops-wan-{os.getpid()}.new"
        command = ["gcc", "-O2", "-Wall", "-Wextra", "-pthread", "-o", str(unfinished), str(source)]
        missing = ("There is no gcc for the link emulator.", "apt-get install gcc libc6-dev")
        system.output(command, 120, missing=missing, failed="The link emulator does not compile")
        unfinished.replace(made)
    return made


def netem_works(end: End) -> bool:
    """Whether this kernel has netem. Asked in a network of ours, on its loopback, and taken away again."""
    try:
        end.run(["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])
    except BenchError:
        return False
    end.run(["tc", "qdisc", "del", "dev", "lo", "root"])
    return True


def netem_argv(link: Link) -> list[str]:
    """The command that shapes one direction of a link with the kernel's netem."""
    return [
        *("tc", "qdisc", "add", "dev", DEVICE, "root", "netem", "limit", str(link.queue_packets())),
        *("delay", f"{link.rtt * 500:g}ms", "rate", f"{link.rate}bit", str(ETHERNET - HEADER)),
        *(("loss", f"{link.loss * 100:g}%") if link.loss else ()),
    ]


def emulator_argv(program: Path, source: End, store: End, link: Link) -> list[str]:
    """The command of our emulator: a is the source, b the store."""
    numbers = (link.rate, int(link.rtt * 500_000), int(link.loss * 1_000_000), int(link.queue * 1_000_000), SEED)
    return [str(program), source.namespace, store.namespace, DEVICE, *(str(number) for number in numbers)]


class Wire:
    """A link that is up. Use it in a ``with`` block; it is taken down at its end."""

    def __init__(self, link: Link, source: End, store: End, *, emulator: Path, netem: bool, scratch: Path) -> None:
        self.link, self.source, self.store = link, source, store
        self._program, self._scratch = emulator, scratch
        self.means = "pair" if not link.shaped else "netem" if netem else "emulator"
        self._pid = 0
        self._ask: int | None = None
        self._told = scratch / "emulator"
        self._read = 0

    def __enter__(self) -> Wire:
        try:
            self._up()
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._down()

    def _up(self) -> None:
        if self.means == "emulator":
            self._start_emulator()
        else:
            ends = ("type", "veth", "peer", "name", DEVICE, "netns", str(self.store.holder))
            self.source.run(["ip", "link", "add", DEVICE, *ends])
        for end, address in ((self.source, SOURCE), (self.store, STORE)):
            self._configure(end, address)
        for end, address in ((self.source, SOURCE), (self.store, STORE)):
            self._route(end, address)
        if self.means == "netem":
            for end in (self.source, self.store):
                end.run(netem_argv(self.link))

    def _configure(self, end: End, address: str) -> None:
        end.run(["ip", "address", "add", f"{address}/{PREFIX}", "dev", DEVICE])
        end.run(["sysctl", "-q", "-w", *(f"{name}={value}" for name, value in SETTINGS.items())])
        end.run(["ip", "link", "set", DEVICE, "up"])
        if self.means == "emulator":
            end.run(["ip", "link", "set", DEVICE, "txqueuelen", "10000", "gso_max_size", str(GRAIN)])
        elif self.means == "netem":
            # netem loses and times what the kernel hands over, so that must be single segments.
            end.run(["ip", "link", "set", DEVICE, "gso_max_segs", "1"])

    def _route(self, end: End, address: str) -> None:
        """Streams of this link use one congestion control, whatever this machine's is (a network's own setting may not
        be allowed here, a route's is).
        """
        kernel = ("proto", "kernel", "scope", "link", "src", address)
        end.run(["ip", "route", "replace", NETWORK, "dev", DEVICE, *kernel, "congctl", CONGESTION])

    def _start_emulator(self) -> None:
        reading, self._ask = os.pipe()
        try:
            argv = emulator_argv(self._program, self.source, self.store, self.link)
            # Its lateness must not depend on how busy the tools, or the probes, keep the processors.
            self._pid = start(system.ahead(argv, 2), output=self._told, stdin=reading)
        finally:
            os.close(reading)
        if self._answer(5.0) != "ready":
            raise BenchError(f"The link emulator did not start: {tail(self._told)}")

    def _answer(self, limit: float) -> str:
        """The emulator's next line ('' if none comes within ``limit`` seconds or it has ended)."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            with open(self._told, encoding="utf-8", errors="replace") as file:
                file.seek(self._read)
                line = file.readline()
            if line.endswith("\n"):
                self._read += len(line)
                return line.strip()
            if wait(self._pid, 0.01, 0.01, lambda: None):
                break
        return ""

    def _down(self) -> None:
        if self._pid:
            if self._ask is not None:
                os.close(self._ask)
            if not wait(self._pid, 3.0, 3.0, lambda: None):
                os.kill(self._pid, 9)
            os.waitpid(self._pid, 0)
            self._pid, self._ask = 0, None
        else:
            with contextlib.suppress(BenchError):
                self.source.run(["ip", "link", "delete", DEVICE])

    def counters(self) -> Counters:
        """The emulator's own counters of each direction; nothing where there is none."""
        if not self._pid or self._ask is None:
            return {}
        os.write(self._ask, b"?\n")
        line = self._answer(5.0)
        if not line:
            raise BenchError("The link emulator gives no answer.")
        value: Counters = json.loads(line)
        return value

    @property
    def processes(self) -> set[int]:
        """The emulator, where there is one."""
        return {self._pid} if self._pid else set()

    def processor_time(self) -> float:
        """Processor time (s) that the emulator has used."""
        return system.processor_time(self._pid) if self._pid else 0.0

    def wire_bytes(self) -> dict[str, int]:
        """Bytes that each end sent and received so far, with the headers that there were on the wire."""
        counters = self.counters()
        if counters:
            there, back = counters["a_to_b"], counters["b_to_a"]
            return {
                "source_sent": there["offered_bytes"],
                "store_received": there["delivered_bytes"],
                "store_sent": back["offered_bytes"],
                "source_received": back["delivered_bytes"],
            }
        source = system.interface_bytes(self.source.holder, DEVICE)
        store = system.interface_bytes(self.store.holder, DEVICE)
        return {
            "source_sent": source[1],
            "store_received": store[0],
            "store_sent": store[1],
            "source_received": source[0],
        }
