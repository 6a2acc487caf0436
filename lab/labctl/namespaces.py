# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Network namespaces. Lab addresses exist only inside them; this module is the only door.

``nsenter --net`` is used and never ``ip netns exec``: the latter remounts /sys and hides the control groups.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from labctl import paths
from labctl.process import run
from labctl.topology import CONTROLLER_NAMESPACE, OUTSIDE_NAMESPACE

Result = TypeVar("Result")
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _enter(namespace: Path) -> None:
    handle = os.open(namespace, os.O_RDONLY)
    try:
        if _libc.setns(handle, _CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(namespace))
    finally:
        os.close(handle)


def leave_lab() -> None:
    """Moves this process into the network that `up` was called from: the command may be called inside ``lab exec``."""
    here = os.stat("/proc/self/ns/net").st_ino
    controller, outside = paths.namespace(CONTROLLER_NAMESPACE), paths.namespace(OUTSIDE_NAMESPACE)
    if controller.exists() and outside.exists() and controller.stat().st_ino == here:
        _enter(outside)


def remember_outside() -> None:
    """Gives the network that this process stands in a name, so that a later command can go back to it."""
    run(["ip", "netns", "attach", OUTSIDE_NAMESPACE, str(os.getpid())])


def command(name: str, *argv: str) -> list[str]:
    """The argument list that runs ``argv`` in a namespace of the lab."""
    return ["nsenter", f"--net={paths.namespace(name)}", *argv]


def exists(name: str) -> bool:
    return paths.namespace(name).exists()


def inside(name: str, action: Callable[[], Result]) -> Result:
    """Runs ``action`` in a thread of its own that stands in namespace ``name`` (namespaces belong to threads)."""
    result: list[Result] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            _enter(paths.namespace(name))
            result.append(action())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, name=f"in-{name}")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def processes(networks: set[int]) -> list[int]:
    """The processes that stand in one of these networks (inode numbers of namespaces)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (place / "ns" / "net").stat().st_ino in networks:
                found.append(int(place.name))
    return found


def answers(name: str, address: str, port: int, *, timeout: float = 1.0) -> bool:
    """True if a TCP connection from namespace ``name`` is accepted within ``timeout`` seconds."""

    def attempt() -> bool:
        try:
            with socket.create_connection((address, port), timeout=timeout):
                return True
        except OSError:
            return False

    return inside(name, attempt)


def ssh_banner(name: str, address: str, *, timeout: float = 1.0) -> bool:
    """True if an SSH server greets a connection from namespace ``name`` within ``timeout`` seconds."""

    def attempt() -> bool:
        try:
            with socket.create_connection((address, 22), timeout=timeout) as connection:
                connection.settimeout(timeout)
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    return inside(name, attempt)
