# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one host knows about itself: its configuration, its platform identity, the state of its membership."""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ETC = Path("/etc/standin")
STATE_DIR = Path("/var/lib/standin")
PLATFORM_DIR = Path("/var/lib/standin-platform")
KUBERNETES_DIR = Path("/etc/kubernetes")
ETCD_DIR = Path("/var/lib/etcd")
CASSANDRA_DIR = Path("/var/lib/cassandra")

MARKER = STATE_DIR / "member"
"""Exists while this host is a member: ``standin-boot.service`` starts the services after a reboot only then."""

UNITS = (
    "standin-etcd",
    "standin-apiserver",
    "standin-controllers",
    "standin-execd",
    "standin-cassandra",
    "standin-membership",
    "standin-agent",
    "standin-api",
)

PLATFORM_SECRET_BYTES = 32

COMMAND_LOG = Path("/var/log/standin-commands.log")
"""One line for each of the vendor's commands that was started here; ``reset`` leaves it, so that tests can count."""


class StandinError(Exception):
    """Something the person at the keyboard must read; the message is complete by itself."""


@dataclass(frozen=True)
class NodeConfig:
    """``/etc/standin/node.json``, written by the lab: who this machine is."""

    name: str
    address: str
    prefix: int
    site: str
    version: str
    serial: str
    versions: tuple[str, ...] = ()
    profile: str = "small"


def parse_config(document: dict[str, Any]) -> NodeConfig:
    """Make a NodeConfig of the parsed ``node.json``; raises StandinError naming what is missing."""
    missing = [key for key in ("name", "address", "site", "version", "serial") if not document.get(key)]
    if missing:
        raise StandinError(f"stand-in: node.json lacks {', '.join(missing)}")
    return NodeConfig(
        name=str(document["name"]),
        address=str(document["address"]),
        prefix=int(document.get("prefix", 24)),
        site=str(document["site"]),
        version=str(document["version"]),
        serial=str(document["serial"]),
        versions=tuple(str(version) for version in document.get("versions", ())),
        profile=str(document.get("profile", "small")),
    )


def load(path: Path = ETC / "node.json") -> NodeConfig:
    """Read this host's configuration."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StandinError(f"stand-in: cannot read {path}: {error}") from error
    return parse_config(document)


def platform_secret(cfg: NodeConfig, directory: Path = PLATFORM_DIR) -> bytes:
    """Return the 32 secret bytes of this machine's platform, made on first use.

    They play the CPU's sealing identity: ``reset --delete-data`` does not touch them, other hardware or another owner
    epoch has other ones. Losing them loses every sealed copy of this host.
    """
    del cfg
    path = directory / "secret"
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(os.urandom(PLATFORM_SECRET_BYTES))
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        os.unlink(temporary)
    return path.read_bytes()


def platform_id(cfg: NodeConfig) -> str:
    """Return the public identity of the platform, as an AllowList would hold it (SHA-256, base64)."""
    digest = hashlib.sha256(b"stand-in platform identity\0" + platform_secret(cfg)).digest()
    return base64.b64encode(digest).decode("ascii")


# -- state of the membership ------------------------------------------------------------------------------------------
def write_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a whole file atomically, readable by root only unless told otherwise."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            os.fchmod(stream.fileno(), mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def read_state(directory: Path = STATE_DIR) -> dict[str, Any]:
    """Return what this host remembers of its membership; empty when it has none."""
    try:
        state = json.loads((directory / "state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(changes: dict[str, Any], directory: Path = STATE_DIR) -> dict[str, Any]:
    """Change some keys of the state (None deletes one) and return the whole."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(directory / ".lock"):
        state = read_state(directory)
        state.update(changes)
        state = {key: value for key, value in state.items() if value is not None}
        write_file(directory / "state.json", json.dumps(state, indent=1, sort_keys=True).encode() + b"\n")
    return state


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    import fcntl

    with open(path, "w", encoding="utf-8") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def is_member() -> bool:
    """Tell whether this host finished a ``create`` or ``join`` and was not removed since."""
    return MARKER.exists()


def note_command(name: str) -> None:
    """Append to the log of commands that ``name`` was started. Its arguments may hold a token and are left out."""
    with COMMAND_LOG.open("a", encoding="utf-8") as stream:
        stream.write(f"{utc_now()} {os.getpid()} {name}\n")


# -- small tools every part uses --------------------------------------------------------------------------------------
def utc_now() -> str:
    """Return the time as Kubernetes writes it, e.g. 2026-11-22T01:02:03Z."""
    return dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def systemctl(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run systemctl; raises StandinError with what it said when it fails."""
    done = subprocess.run(
        ["systemctl", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise StandinError(f"stand-in: systemctl {' '.join(arguments)} failed: {done.stderr.strip()}")
    return done


def start_units(*units: str) -> None:
    """Start systemd units without waiting for what they do."""
    systemctl("reset-failed", *units, check=False)
    systemctl("start", "--no-block", *units)


def stop_units(units: Iterable[str] = UNITS) -> None:
    """Stop systemd units, in the order of going down, and wait until their processes are gone."""
    systemctl("stop", *reversed(tuple(units)), check=False)
    systemctl("reset-failed", *units, check=False)


def kill_units(units: Iterable[str] = UNITS) -> None:
    """End systemd units without giving them time to finish anything, and wait until their processes are gone."""
    systemctl("kill", "--signal=KILL", *units, check=False)
    stop_units(units)


def port_open(address: str, port: int, timeout: float = 1.0) -> bool:
    """Tell whether something accepts TCP connections there."""
    try:
        with socket.create_connection((address, port), timeout=timeout):
            return True
    except OSError:
        return False


def wait_until(condition: Callable[[], bool], timeout: float, what: str, interval: float = 0.1) -> None:
    """Ask until it is true; raises StandinError saying ``what`` did not come within ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            raise StandinError(f"stand-in: {what} did not happen within {timeout:.0f} s")
        time.sleep(interval)
