# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who we are measured against: how each is called at its best, and what it verifies.

All of them pull, as we do, and all but the default ``scp`` are told to use AES-128-GCM. None of them hashes what it
fetched or flushes it to disk; only the tool named equal work does the first.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shipbench.ends import SOURCE
from shipbench.server import HOST, Server, user

GCM = "aes128-gcm@openssh.com"
OURS = "ours"
EQUAL_WORK = "scp-gcm-sha256"


@dataclass(frozen=True)
class Job:
    """One transfer: the file at the source, and where its copy shall land at the store's end."""

    source: str
    target: str
    server: Server


@dataclass(frozen=True)
class Peer:
    """A tool. ``command`` and ``package`` are what must be installed; ``links`` None means all of them."""

    name: str
    title: str
    command: str
    package: str
    version: Sequence[str]
    argv: Callable[[Job], list[str]]
    links: tuple[str, ...] | None = None

    def runs_on(self, link: str) -> bool:
        """Whether it takes part on a link."""
        return self.links is None or link in self.links


def _ssh(job: Job) -> list[str]:
    return ["-F", str(job.server.ssh_config)]


def _scp(job: Job) -> list[str]:
    return ["scp", "-q", *_ssh(job), f"{HOST}:{job.source}", job.target]


def _scp_gcm(job: Job) -> list[str]:
    return ["scp", "-q", "-c", GCM, *_ssh(job), f"{HOST}:{job.source}", job.target]


def _sftp(job: Job) -> list[str]:
    return ["sftp", "-q", "-B", "261120", "-R", "256", "-c", GCM, *_ssh(job), f"{HOST}:{job.source}", job.target]


def _rsync(job: Job) -> list[str]:
    shell = shlex.join(["ssh", *_ssh(job), "-c", GCM])
    return ["rsync", "-W", "--inplace", "-t", "-e", shell, f"{HOST}:{job.source}", job.target]


def _lftp(job: Job) -> list[str]:
    shell = shlex.join(["ssh", "-a", "-x", *_ssh(job), "-c", GCM])
    script = (
        f'set sftp:connect-program "{shell}"; set sftp:max-packets-in-flight 64; set net:max-retries 2; '
        f"set cmd:fail-exit true; pget -n 8 {job.source} -o {job.target}; bye"
    )
    return ["lftp", "--norc", "-e", script, f"sftp://{user()}:none@{HOST}"]


def _rclone(job: Job) -> list[str]:
    return [
        *("rclone", "--config", "/dev/null", "-q", "copyto", f":sftp:{job.source}", job.target),
        *("--sftp-host", SOURCE, "--sftp-user", user(), "--sftp-key-file", str(job.server.directory / "client")),
        *("--sftp-known-hosts-file", str(job.server.directory / "known_hosts")),
        *("--sftp-disable-hashcheck", "--ignore-checksum", "--sftp-chunk-size", "255k", "--sftp-concurrency", "16"),
        *("--multi-thread-streams", "8", "--multi-thread-cutoff", "1M"),
    ]


def _equal_work(job: Job) -> list[str]:
    """scp, then SHA-256 of both files at the same time, with the fastest command of Debian for it, and compared."""
    remote = shlex.join(["ssh", *_ssh(job), "-c", GCM, HOST, f"openssl dgst -sha256 -r {shlex.quote(job.source)}"])
    local = shlex.join(["openssl", "dgst", "-sha256", "-r", job.target])
    notes = shlex.quote(job.target + ".sha256")
    script = (
        f"{shlex.join(_scp_gcm(job))} && "
        f"{{ {remote} >{notes} & there=$!; here=$({local} | cut -c1-64); wait $there; }} && "
        f'[ "$here" = "$(cut -c1-64 {notes})" ]; code=$?; rm -f {notes}; exit $code'
    )
    return ["sh", "-c", script]


PEERS = (
    Peer("scp", "scp, as installed", "scp", "openssh-client", ("ssh", "-V"), _scp),
    Peer("scp-gcm", "scp, aes128-gcm", "scp", "openssh-client", ("ssh", "-V"), _scp_gcm),
    Peer(
        EQUAL_WORK,
        "scp, aes128-gcm, then SHA-256 at both ends",
        "scp",
        "openssh-client",
        ("ssh", "-V"),
        _equal_work,
        ("lan",),
    ),
    Peer("sftp", "sftp -B 261120 -R 256, aes128-gcm", "sftp", "openssh-client", ("ssh", "-V"), _sftp),
    Peer("rsync", "rsync -W --inplace, aes128-gcm", "rsync", "rsync", ("rsync", "--version"), _rsync),
    Peer("lftp", "lftp pget -n 8, aes128-gcm", "lftp", "lftp", ("lftp", "--version"), _lftp),
    Peer("rclone", "rclone, 8 streams", "rclone", "rclone", ("rclone", "version"), _rclone),
)
#: Those whose work is comparable by the wire alone; the best of them is what "best peer" means.
RIVALS = tuple(peer.name for peer in PEERS if peer.name != EQUAL_WORK)


def parse_version(text: str) -> str:
    """A version from what a tool says of itself ('' if it says none)."""
    found = re.search(r"(?:OpenSSH_|version\s+|Version\s+|v)(\d[\w.+~-]*)", text)
    return found.group(1) if found else ""


def version(peer: Peer) -> str:
    """The installed version of a peer, '' if it is absent."""
    if shutil.which(peer.command) is None:
        return ""
    done = subprocess.run(list(peer.version), capture_output=True, text=True, check=False, timeout=30)
    return parse_version(done.stdout + done.stderr) or "unknown"


def install(peers: Sequence[Peer], checkout: Path) -> None:
    """Install the packages of absent peers, in the words of requirements/system; what cannot be had stays absent."""
    packages = sorted({peer.package for peer in peers if shutil.which(peer.command) is None})
    for package in packages:
        subprocess.run([str(checkout / "requirements" / "system"), package], check=False, timeout=600)


def failure(code: int | None, output: str, limit: float) -> str:
    """Why a run of a tool does not count, for a person ('' if it ended well)."""
    if code == 0:
        return ""
    if code is None:
        return f"stopped after {limit:.0f} s"
    last = output.strip().rsplit("\n", 1)[-1][-300:]
    return f"exit code {code}: {last}" if last else f"exit code {code}"
