# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real sshd on an unprivileged port of this machine, a source that DSM might deliver to, and an empty store."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.manifest import Manifest
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _discover, _ssh
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._request import ship_request
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ship import ShipResult, ship
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.plugins.modules import (
    backup_info,
    backup_prune,
    backup_replicate,
    backup_ship,
    backup_verify,
    ledger,
)

MODULES = {
    "backup_info": backup_info,
    "backup_prune": backup_prune,
    "backup_replicate": backup_replicate,
    "backup_ship": backup_ship,
    "backup_verify": backup_verify,
    "ledger": ledger,
}
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", "")) or ""
FINGERPRINT = hashlib.sha256(b"the production cluster").hexdigest()
OTHER = hashlib.sha256(b"another cluster").hexdigest()
CANARY = "canary-7f3a-passphrase"
#: Seconds after which something that must happen is taken not to; it is never waited for that long.
PATIENCE = 120.0
MEMBERS = [{"name": f"dc{n}-n1", "addresses": [f"192.0.2.{n}"], "host_id": f"host-{n}"} for n in (1, 2, 3)]


def keygen(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A fresh key pair."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)], check=True, timeout=60
    )
    return path


def free_port() -> int:
    """A port on which nobody listens.

    Below those that the kernel hands out by itself: neither does anybody get it by chance until it is used, nor can a
    connection to it become one to itself.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(10_000, lowest) if lowest > 10_001 else random.randrange(1024, lowest)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


def await_that(condition: Callable[[], Any], what: str) -> Any:
    """Wait until something holds, on a machine of any speed; returns what it is then."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def _parents() -> dict[int, list[int]]:
    """The children of every process."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            found.setdefault(parent, []).append(int(entry.name))
    return found


def children(pid: int) -> list[int]:
    """Processes that a process started and that it has not buried."""
    return _parents().get(pid, [])


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on."""
    parents = _parents()
    found = list(parents.get(pid, []))
    for child in found:
        found.extend(parents.get(child, []))
    return found


def ended(pid: int) -> bool:
    """Whether a process has ended; it may still wait to be asked how. Its files are closed then."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@dataclass
class Sshd:
    """One server with its own keys; ``options`` are lines of its configuration."""

    directory: Path
    port: int = 0
    options: list[str] = field(default_factory=list)
    process: subprocess.Popen[bytes] | None = None

    @property
    def client_key(self) -> Path:
        return self.directory / "client"

    @property
    def host_key(self) -> Path:
        return self.directory / "host"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    def start(self) -> Sshd:
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in (self.client_key, self.host_key):
            if not path.exists():
                keygen(path)
        (self.directory / "authorized").write_text((self.directory / "client.pub").read_text())
        subsystem = (
            [] if any(line.startswith("Subsystem") for line in self.options) else ["Subsystem sftp internal-sftp"]
        )
        config = [
            f"HostKey {self.host_key}",
            f"AuthorizedKeysFile {self.directory / 'authorized'}",
            f"PidFile {self.directory / 'pid'}",
            "ListenAddress 127.0.0.1",
            "UsePAM no",
            "StrictModes no",
            "PermitRootLogin prohibit-password",
            "PasswordAuthentication no",
            *subsystem,
            *(line for line in self.options if line != "Subsystem none"),
        ]
        (self.directory / "config").write_text("\n".join(config) + "\n")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        again = self.port
        while not self._listens(again or free_port()):
            # Only a port that nobody was told yet may be another one.
            assert not again, (self.directory / "log").read_text()
        self.known_hosts.write_text(self.pinned(self.port))
        return self

    def _listens(self, port: int) -> bool:
        """Start on a port; False if somebody else has it."""
        log = self.directory / "log"
        log.write_text("")
        self.port = port
        self.process = subprocess.Popen(
            [SSHD, "-D", "-f", str(self.directory / "config"), "-p", str(port), "-E", str(log)],
            start_new_session=True,
        )
        process = self.process
        await_that(lambda: "Server listening" in log.read_text() or process.poll() is not None, "sshd does not listen")
        return process.poll() is None

    def pinned(self, port: int) -> str:
        """The line of known_hosts for this server, seen at a port of this machine."""
        kind, blob = (self.directory / "host.pub").read_text().split()[:2]
        return f"[127.0.0.1]:{port} {kind} {blob}\n"

    def new_host_key(self) -> None:
        """The host was reinstalled, or somebody is in between."""
        for path in (self.host_key, self.directory / "host.pub"):
            path.unlink()
        keygen(self.host_key)

    def stop(self) -> None:
        """Kill the listener and every session, as a power cut would."""
        if self.process is not None and self.process.poll() is None:
            # So that it starts no session while we look for them.
            os.kill(self.process.pid, signal.SIGSTOP)
            for pid in [self.process.pid, *descendants(self.process.pid)]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(PATIENCE)
        self.process = None

    def login(self, **changes: Any) -> dict[str, Any]:
        """Options of a source or target on this server."""
        return {
            "host": "127.0.0.1",
            "port": self.port,
            "user": getpass.getuser(),
            "key_file": str(self.client_key),
            "known_hosts": str(self.known_hosts),
            **changes,
        }


def ssh_target(login: dict[str, Any]) -> _ssh.SshTarget:
    """Where the options of a login lead."""
    names = ("host", "user", "port", "key_file", "known_hosts")
    return _ssh.SshTarget(**{name: login[name] for name in names})


class Proxy:
    """Stands between the store and sshd: cuts, stalls or damages what flows to the store."""

    def __init__(self, port: int, treat: Callable[[int, bytes], bytes | None]) -> None:
        self.upstream = port
        self.treat = treat
        self.connections = 0
        self.connect: Callable[..., socket.socket] = socket.create_connection
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self.listener.accept()
            except OSError:
                return
            try:
                server = self.connect(("127.0.0.1", self.upstream), 5)
            except OSError:
                client.close()
                continue
            # It waits as long as the two ends do.
            server.settimeout(None)
            self.connections += 1
            self.sockets += [client, server]
            threading.Thread(target=self._pump, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._pump, args=(server, client, self.treat), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, treat: Any) -> None:
        seen = 0
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                if not data:
                    break
                out = treat(seen, data) if treat else data
                seen += len(data)
                if out is None:
                    break
                target.sendall(out)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def cut(self) -> None:
        """All connections that are there now end at once."""
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.listener.close()
        for sock in self.sockets:
            sock.close()


@dataclass
class Result:
    """What a module returned, and everything that it printed."""

    value: dict[str, Any]
    output: str

    def __getattr__(self, name: str) -> Any:
        return self.value[name]

    @property
    def failed(self) -> bool:
        return bool(self.value.get("failed"))

    @property
    def codes(self) -> list[str]:
        return sorted({self.value.get("error_code", ""), *(item["code"] for item in self.value.get("reasons", []))})


def run_module(module: str, args: dict[str, Any], check: bool = False, **request: Any) -> Result:
    """Run a module as Ansible would: JSON arguments in, one JSON result on stdout, in a process of its own.

    The process is forked from this one, where everything is imported already. ``hide``: libraries it must not find,
    ``python``: the oldest version that it takes for good enough, ``environ``: what its environment has besides.
    """
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        child = os.fork()
        if child == 0:
            _child(module, args, check, request, stdout.fileno(), stderr.fileno())
        _pid, status = os.waitpid(child, 0)
        stdout.seek(0)
        stderr.seek(0)
        output, errors = stdout.read().decode(), stderr.read().decode()
    # Nothing but the result may be printed: not a warning, not a traceback.
    assert errors == "" and os.WIFEXITED(status), errors
    return Result(json.loads(output), output)


def _child(module: str, args: dict[str, Any], check: bool, request: dict[str, Any], stdout: int, stderr: int) -> None:
    code = 99
    try:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ.pop("SSH_AUTH_SOCK", None)
        os.environ.update(request.get("environ", {}))
        for name in request.get("hide", ()):
            sys.modules[name] = None  # type: ignore[assignment]
        if "python" in request:
            _ssh.MINIMUM_PYTHON = tuple(request["python"])
        with patch_module_args({**args, "_ansible_check_mode": check}):
            MODULES[module].main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass
class Site:
    """A store and a source on this machine's sshd."""

    sshd: Sshd
    source: Path
    store: Path

    def deliver(self, name: str = "sdkms_backup_20261122.tar.gz", size: int = 300_000, age: float = 600) -> Path:
        """What DSM might put there: a complete archive of about ``size`` bytes, ``age`` seconds ago."""
        payload = self.source.parent / f"payload-{name}"
        payload.write_bytes(os.urandom(size))
        path = self.source / name
        # It is there as a whole or not at all, whoever looks meanwhile.
        draft = self.source.parent / f"draft-{name}"
        with tarfile.open(draft, "w:gz") as archive:
            archive.add(payload, "dsm/table/nb-1-big-Data.db")
        payload.unlink()
        self.at(draft, age)
        draft.replace(path)
        return path

    def at(self, path: Path, age: float) -> None:
        moment = time.time() - age
        os.utime(path, (moment, moment))

    def args(self, **changes: Any) -> dict[str, Any]:
        """Options of backup_ship that work."""
        return {
            "store": str(self.store),
            "cluster": {"fingerprint": FINGERPRINT, "uid": "u-1", "version": "5.4.2031", "members": MEMBERS},
            "sources": [self.sshd.login(path=f"{self.source}/*")],
            "quiet": 0.2,
            "patience": 3,
            "run_id": "run-1",
            **({"snapshot_clock_skew": 0} if "snapshot_started" in changes else {}),
            **changes,
        }

    def run(self, checkpoint: Callable[[str], None] = lambda _step: None, **changes: Any) -> ShipResult:
        """Ship inside this process, where a test can look in at every step. Raises what the module would report."""
        defaults = {name: spec.get("default") for name, spec in backup_ship.argument_spec().items()}
        options = {**defaults, **self.args(**changes)}
        login = {name: spec.get("default") for name, spec in backup_ship.login_spec().items()}
        options["sources"] = [{"layout": "single", **login, **source} for source in options["sources"]]
        return ship(dataclasses.replace(ship_request(options), checkpoint=checkpoint), False)

    def published(self) -> dict[str, Manifest]:
        """What the store counts as published."""
        store = ClusterStore.find(str(self.store), fingerprint=FINGERPRINT)
        entries = store.entries() if store else []
        return {entry.id: entry.manifest for entry in entries if entry.manifest is not None}

    def ship(self, check: bool = False, request: dict[str, Any] | None = None, **changes: Any) -> Result:
        return run_module("backup_ship", self.args(**changes), check, **(request or {}))

    @property
    def cluster(self) -> Path:
        return self.store / FINGERPRINT[:16]

    @property
    def incoming(self) -> list[Path]:
        """Unfinished transfers."""
        return list(self.cluster.glob("incoming/*"))

    def snapshot(self) -> dict[str, str]:
        """Every file of the store and its hash."""
        return tree(self.store)


def growing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was written to since it was looked at last, whoever looks and however quickly."""
    look = _discover.discover

    def grow() -> None:
        with open(path, "ab") as file:
            file.write(b"x" * 1000)
        # Never old enough to be taken at once, however long it takes until somebody looks.
        os.utime(path, (time.time() + 3600,) * 2)

    def grown(*arguments: Any) -> Any:
        grow()
        return look(*arguments)

    grow()

    monkeypatch.setattr(_discover, "discover", grown)


def tree(root: Path) -> dict[str, str]:
    """Relative path and hash of every file below ``root``."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
