# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""podman with a configuration of the lab's own; the user's is never read and never changed."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labctl import paths
from labctl.process import run

LABEL = "kmsops-lab"
IMAGE = "localhost/kmsops-lab"
BASE_IMAGE = "localhost/kmsops-lab-base"

# crun fails on mixed control groups and podman asks for limits that a plain root may not set, so both are stated.
_CONFIG = """\
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc={processes}:{processes}"]
pids_limit = 0
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
"""


def environ() -> dict[str, str]:
    """The environment for podman. Writes the lab's configuration into the cache when that is to be changed."""
    files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 20000)
    processes = min(int(Path("/proc/sys/kernel/pid_max").read_text(encoding="ascii")), 32768)
    text = _CONFIG.format(files=files, processes=processes)
    path = paths.cache() / "containers.conf"
    if not path.exists() or path.read_text(encoding="ascii") != text:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(text, encoding="ascii")
        os.replace(draft, path)
    return {**os.environ, "CONTAINERS_CONF": str(path)}


def podman(
    *argv: str,
    timeout: float = 60.0,
    check: bool = True,
    stdin: str | None = None,
    secrets: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    return run(["podman", *argv], timeout=timeout, check=check, stdin=stdin, environ=environ(), secrets=secrets)


def in_container(
    container: str,
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    check: bool = True,
    stdin: str | None = None,
    secrets: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Runs a command as root inside a container."""
    flags = ["-i"] if stdin is not None else []
    return podman("exec", *flags, container, *argv, timeout=timeout, check=check, stdin=stdin, secrets=secrets)


def containers() -> dict[str, str]:
    """The lab's containers, running or not: name -> podman's word for its state. Without podman there are none."""
    if shutil.which("podman") is None:
        return {}
    listed = podman("ps", "--all", "--filter", f"label={LABEL}", "--format", "json").stdout
    rows: list[dict[str, Any]] = json.loads(listed or "[]")
    return {row["Names"][0]: str(row["State"]) for row in rows}


def image_exists(name: str) -> bool:
    return podman("image", "exists", name, check=False).returncode == 0
