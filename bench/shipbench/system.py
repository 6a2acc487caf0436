# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The few calls to the kernel that Python 3.9 has no name for, and what /proc says about processes and ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from shipbench.errors import BenchError

_NEWNS, _NEWIPC, _NEWNET, _NEWPID = 0x00020000, 0x08000000, 0x40000000, 0x20000000
_MS_REC_PRIVATE = 0x4000 | (1 << 18)
_MS_BIND = 0x1000
_PDEATHSIG = 1
TICK = os.sysconf("SC_CLK_TCK")
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def new_process_namespace() -> None:
    """The next child becomes PID 1 of a namespace of its own: when it ends, the kernel ends all in it."""
    _check(_libc.unshare(_NEWPID), "unshare")


def new_world() -> None:
    """Mounts and network of this process's own: nothing that it mounts or sends is seen outside."""
    _check(_libc.unshare(_NEWNS | _NEWNET | _NEWIPC), "unshare")
    _check(_libc.mount(b"none", b"/", None, _MS_REC_PRIVATE, None), "mount / private")
    mount("proc", "/proc", "proc")


def mount(source: str, target: str, kind: str, options: str = "") -> None:
    """Mount a file system of ``kind`` in this process's world."""
    _check(_libc.mount(source.encode(), os.fsencode(target), kind.encode(), 0, options.encode()), f"mount {target}")


def hide(path: str) -> None:
    """Let a file look empty in this process's world, if it is there."""
    if os.path.exists(path):
        _check(_libc.mount(b"/dev/null", os.fsencode(path), None, _MS_BIND, None), f"hide {path}")


def die_with_parent() -> None:
    """Be killed when the process that started this one ends, however it ends."""
    _check(_libc.prctl(_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl")


def real_time() -> bool:
    """Whether processes may be given real-time priority here."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        return False
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return True


def ahead(argv: Sequence[str], priority: int) -> list[str]:
    """The command that runs ``argv`` before everything of lower or no real-time priority, where that is allowed."""
    return ["chrt", "--rr", str(priority), *argv] if real_time() else list(argv)


def network_of(pid: int | str = "self") -> int:
    """Which network namespace a process stands in."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def processes_in(network: int) -> Iterator[int]:
    """The processes that stand in a network namespace."""
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if network_of(place.name) == network:
                yield int(place.name)


def children(pid: int) -> list[int]:
    """Children of a process, also those that have ended and that it has not waited for."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if parse_parent((place / "stat").read_text(encoding="utf-8", errors="replace")) == pid:
                found.append(int(place.name))
    return found


def parse_parent(text: str) -> int:
    """The parent from the text of /proc/PID/stat."""
    return int(text.rpartition(")")[2].split()[1])


def memory_of(pid: int) -> int:
    """Bytes of memory of a process, its share of what it shares with others (PSS); 0 if it is gone."""
    with contextlib.suppress(OSError):
        return parse_pss(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"))
    return 0


def parse_pss(text: str) -> int:
    """Bytes from the text of smaps_rollup; 0 where a process has no memory of its own left."""
    found = re.search(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def processor_time(pid: int, *, children: bool = False) -> float:
    """Processor time (s) of a process, with that of the children it has waited for if asked."""
    return parse_processor_time(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8"), children=children)


def parse_processor_time(text: str, *, children: bool) -> float:
    """Processor time (s) from the text of /proc/PID/stat. A command's name may hold blanks and brackets."""
    fields = text.rpartition(")")[2].split()
    return sum(int(value) for value in fields[11 : 15 if children else 13]) / TICK


def machine_busy() -> float:
    """Seconds for which all processors together were busy since boot, interrupts left out."""
    return parse_busy(Path("/proc/stat").read_text(encoding="ascii"))


def parse_busy(text: str) -> float:
    """Busy seconds (user, nice, system) from the text of /proc/stat."""
    return sum(int(value) for value in text.split("\n", 1)[0].split()[1:4]) / TICK


def interface_bytes(pid: int, device: str) -> tuple[int, int]:
    """Bytes that an interface of a process's network (received, sent)."""
    return parse_interface(Path(f"/proc/{pid}/net/dev").read_text(encoding="ascii"), device)


def parse_interface(text: str, device: str) -> tuple[int, int]:
    """(received, sent) bytes from the text of /proc/net/dev."""
    for line in text.splitlines():
        name, _colon, rest = line.partition(":")
        if name.strip() == device:
            fields = rest.split()
            return int(fields[0]), int(fields[8])
    return 0, 0


def retransmitted(pid: int) -> int:
    """TCP segments that a process's network has sent again."""
    return parse_retransmitted(Path(f"/proc/{pid}/net/snmp").read_text(encoding="ascii"))


def parse_retransmitted(text: str) -> int:
    """RetransSegs from the text of /proc/net/snmp."""
    names, values = (line.split() for line in text.splitlines() if line.startswith("Tcp:"))
    return int(dict(zip(names, values))["RetransSegs"])


def available_memory() -> int:
    """Bytes of memory that are free or could be made so."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(encoding="ascii"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else 0


def output(argv: Sequence[str], limit: float, *, missing: tuple[str, str], failed: str) -> str:
    """What a command prints within ``limit`` seconds. Raises BenchError: with both parts of ``missing`` (what is wrong
    and the remedy) where there is no such command, with ``failed`` and the command's own words where it fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=limit)
    except FileNotFoundError:
        raise BenchError(*missing) from None
    if done.returncode != 0:
        raise BenchError(f"{failed}: {done.stderr.strip()}")
    return done.stdout
