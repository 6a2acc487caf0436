# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is known of the running lab between two commands, and what `up` may do about what it finds.

Only what cannot be read from the machine is kept: who started the lab, from which checkout and how far it came.
Cuts, isolation, power and the service address are read from the kernel and from podman whenever they are asked for.
"""

from __future__ import annotations

import enum
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from labctl import paths
from labctl.errors import AlreadyRunning, NotRunning

SCHEMA = 1
BARE, READY = "bare", "ready"
LOCK = "\0kmsops-lab"
UNFINISHED = ("creating", "forming", "removing")


@dataclass(frozen=True)
class State:
    """``phase`` is creating, forming or removing while ``owner_pid`` works on it, then bare or ready."""

    checkout: str
    profile: str
    purpose: str
    phase: str
    owner_pid: int
    owner_start: str
    boot_id: str
    began: str
    image: str = ""
    replaced: dict[str, int] | None = None
    schema: int = SCHEMA

    def at(self, phase: str) -> State:
        return replace(self, phase=phase)


class Finding(enum.Enum):
    NOTHING = "nothing is there"
    RUNNING = "a lab is running"
    BUSY = "another command is starting or stopping the lab"
    BROKEN = "a lab was left half-made"


def judge(state: State | None, *, remains: bool, owner_alive: bool, boot_id: str) -> Finding:
    """What a lab command finds on this machine.

    ``remains`` says whether any container, namespace or route of a lab is there; ``owner_alive`` whether the process
    that the state names still runs; ``boot_id`` is the machine's present one.
    """
    if state is None:
        return Finding.BROKEN if remains else Finding.NOTHING
    if state.boot_id != boot_id:
        return Finding.BROKEN
    if state.phase in UNFINISHED:
        return Finding.BUSY if owner_alive else Finding.BROKEN
    return Finding.RUNNING if remains else Finding.BROKEN


def file() -> Path:
    return paths.STATE / "state.json"


def new(profile: str, purpose: str) -> State:
    return State(
        checkout=str(paths.CHECKOUT),
        profile=profile,
        purpose=purpose,
        phase="creating",
        owner_pid=os.getpid(),
        owner_start=process_start(os.getpid()),
        boot_id=boot_id(),
        began=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def save(state: State) -> None:
    """Writes the state so that a reader, or a crash, sees the old one or the new one and nothing else."""
    paths.STATE.mkdir(mode=0o700, exist_ok=True)
    draft = file().with_suffix(".new")
    draft.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")
    os.replace(draft, file())


def read() -> State | None:
    """The state of the lab, or None if there is none that can be understood."""
    try:
        data = json.loads(file().read_text(encoding="utf-8"))
        if data.get("schema") != SCHEMA:
            return None
        return State(**data)
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return None


def running() -> State:
    """The state of a lab whose hosts are up. Raises NotRunning."""
    state = read()
    if state is None or state.boot_id != boot_id():
        raise NotRunning("the lab is not running", "lab/lab up")
    if state.phase in ("creating", "removing"):
        raise NotRunning(f"the lab is {state.phase}, it cannot be used yet", "wait for that command, or lab/lab up")
    return state


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def process_start(pid: int) -> str:
    """The start time of a process in clock ticks after boot (field 22 of stat), or '' if there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def owner_alive(state: State) -> bool:
    return state.owner_start != "" and process_start(state.owner_pid) == state.owner_start


@contextmanager
def only_one() -> Iterator[None]:
    """Held while a lab is made or removed. An abstract socket: the kernel frees it, and it leaves no file behind."""
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        lock.bind(LOCK)
    except OSError as error:
        lock.close()
        busy = read()
        who = f" (process {busy.owner_pid}, {busy.checkout}, {busy.purpose})" if busy else ""
        raise AlreadyRunning(
            f"another command is making or removing the lab{who}", "wait until it has ended, or stop it first"
        ) from error
    with lock:
        yield
