# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A real sshd at the source's end, with keys and a configuration of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from shipbench import system
from shipbench.ends import SOURCE, End, await_words
from shipbench.errors import BenchError

HOST = "source"
_SBIN = "/usr/sbin:/usr/local/sbin:/sbin:"


def user() -> str:
    """Who logs in: the user who runs the bench."""
    return pwd.getpwuid(os.geteuid()).pw_name


def server_config(directory: Path) -> str:
    """Configuration of the server: OpenSSH's defaults but for where its files are and who may come."""
    return "".join(
        f"{line}\n"
        for line in (
            f"ListenAddress {SOURCE}",
            "Port 22",
            f"HostKey {directory / 'host'}",
            f"AuthorizedKeysFile {directory / 'client.pub'}",
            f"PidFile {directory / 'sshd.pid'}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "PermitRootLogin prohibit-password",
            "Subsystem sftp internal-sftp",
        )
    )


def client_config(directory: Path) -> str:
    """Configuration of every OpenSSH client: the pinned host, the key, and nothing of this machine's."""
    return "".join(
        f"{line}\n"
        for line in (
            f"Host {HOST}",
            f"  HostName {SOURCE}",
            f"  User {user()}",
            f"  IdentityFile {directory / 'client'}",
            "  IdentitiesOnly yes",
            f"  UserKnownHostsFile {directory / 'known_hosts'}",
            "  GlobalKnownHostsFile /dev/null",
            "  StrictHostKeyChecking yes",
            "  LogLevel ERROR",
        )
    )


@dataclass
class Server:
    """The server and the files of its clients."""

    end: End
    directory: Path
    pid: int = 0

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"

    def start(self) -> Server:
        """Make keys and start; returns when it listens."""
        for name in ("host", "client"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(self.directory / name)],
                check=True,
                timeout=30,
            )
        (self.directory / "sshd_config").write_text(server_config(self.directory), encoding="utf-8")
        self.ssh_config.write_text(client_config(self.directory), encoding="utf-8")
        key = (self.directory / "host.pub").read_text(encoding="ascii").split()
        (self.directory / "known_hosts").write_text(f"{SOURCE} {key[0]} {key[1]}\n", encoding="ascii")
        program = shutil.which("sshd", path=_SBIN + os.environ.get("PATH", ""))
        if program is None:
            raise BenchError("There is no sshd.", "apt-get install openssh-server")
        Path("/run/sshd").mkdir(exist_ok=True)
        return self._listen(program)

    def _listen(self, program: str) -> Server:
        log = self.directory / "sshd.log"
        self.pid = self.end.start([program, "-D", "-e", "-f", str(self.directory / "sshd_config")], output=log)
        await_words(log, "Server listening", 10.0)
        return self

    def processor_time(self) -> float:
        """Processor time (s) of the server and of the sessions that have ended."""
        return system.processor_time(self.pid, children=True)

    def settle(self, limit: float = 5.0) -> None:
        """Wait until the server has taken notice of the last session's end: only then is its time counted."""
        end = time.monotonic() + limit
        while self.end.visitors() or system.children(self.pid):
            if time.monotonic() > end:
                raise BenchError(f"Sessions of sshd did not end within {limit:g} s.")
            time.sleep(0.01)
