# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real sshd on an unprivileged port of this machine, a source that DSM might deliver to, and an empty store."""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

HERE = Path(__file__).resolve().parent
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", "")) or ""
FINGERPRINT = hashlib.sha256(b"the production cluster").hexdigest()
OTHER = hashlib.sha256(b"another cluster").hexdigest()
CANARY = "canary-7f3a-passphrase"
MEMBERS = [{"name": f"dc{n}-n1", "addresses": [f"192.0.2.{n}"], "host_id": f"host-{n}"} for n in (1, 2, 3)]


def keygen(path: Path, kind: str = "ed25519", passphrase: str = "") -> Path:
    """A fresh key pair."""
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(path)], check=True, timeout=60
    )
    return path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.2).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


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
        self.port = self.port or free_port()
        (self.directory / "authorized").write_text((self.directory / "client.pub").read_text())
        self.pin()
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
        self.process = subprocess.Popen(
            [SSHD, "-D", "-f", str(self.directory / "config"), "-p", str(self.port), "-E", str(self.directory / "log")],
            start_new_session=True,
        )
        wait_for_port(self.port, self.process)
        return self

    def pin(self) -> None:
        kind, blob = (self.directory / "host.pub").read_text().split()[:2]
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {kind} {blob}\n")

    def new_host_key(self) -> None:
        """The host was reinstalled, or somebody is in between."""
        for path in (self.host_key, self.directory / "host.pub"):
            path.unlink()
        keygen(self.host_key)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
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


class Proxy:
    """Stands between the store and sshd: cuts, stalls or damages what flows to the store."""

    def __init__(self, port: int, treat: Callable[[int, bytes], bytes | None]) -> None:
        self.upstream = port
        self.treat = treat
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _address = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.upstream), 5)
            except OSError:
                return
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
    """Run a module in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(HERE / "drive.py")],
        check=False,
        input=json.dumps({"module": module, "args": args, "check": check, **request}),
        capture_output=True,
        text=True,
        timeout=120,
        env={key: value for key, value in os.environ.items() if key != "SSH_AUTH_SOCK"} | request.get("environ", {}),
    )
    assert done.stdout, done.stderr
    # The agent's socket aside, nothing but the result may be printed: not a warning, not a traceback.
    assert done.stderr == "", done.stderr
    return Result(json.loads(done.stdout), done.stdout + done.stderr)


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
        with tarfile.open(path, "w:gz") as archive:
            archive.add(payload, "dsm/table/nb-1-big-Data.db")
        payload.unlink()
        self.at(path, age)
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
            "quiet": 1,
            "patience": 3,
            "run_id": "run-1",
            **changes,
        }

    def ship(self, check: bool = False, request: dict[str, Any] | None = None, **changes: Any) -> Result:
        return run_module("backup_ship", self.args(**changes), check, **(request or {}))

    @property
    def cluster(self) -> Path:
        return self.store / FINGERPRINT[:16]

    def snapshot(self) -> dict[str, str]:
        """Every file of the store and its hash."""
        return tree(self.store)


def tree(root: Path) -> dict[str, str]:
    """Relative path and hash of every file below ``root``."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }
