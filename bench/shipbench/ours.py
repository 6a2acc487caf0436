# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ours: the modules of the collection as they are, each run as a process with its arguments in a file.

What is measured is all that the module does on the store: finding the backup, taking the lease, pulling, hashing,
checking, flushing, publishing, recording. What Ansible needs to bring a module to a host is not in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipbench.ends import SOURCE
from shipbench.errors import BenchError
from shipbench.server import Server, user

PACKAGE = "ansible_collections.kmsops.fortanix_dsm.plugins.modules"
#: Whose backups these are, as far as a store wants to know.
FINGERPRINT = hashlib.sha256(b"the cluster of the bench").hexdigest()
CLUSTER_ID = FINGERPRINT[:16]


@dataclass(frozen=True)
class Modules:
    """Where the collection is, and a place for files of arguments."""

    collections: Path
    scratch: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a module's process needs beside the common environment."""
        return {"PYTHONPATH": str(self.collections), "PYTHONDONTWRITEBYTECODE": "1"}

    def argv(self, module: str, options: Mapping[str, Any], *, check: bool = False) -> list[str]:
        """The command that runs a module. Only one at a time: its arguments are in one file."""
        place = self.scratch / f"{module}.json"
        arguments = {**options, "_ansible_check_mode": check}
        place.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": arguments}), encoding="utf-8")
        return [sys.executable, "-m", f"{PACKAGE}.{module}", str(place)]


def ship_options(store: Path, source: str, server: Server, workers: int | None) -> dict[str, Any]:
    """Options of backup_ship for a pull from the other end."""
    options: dict[str, Any] = {
        "store": str(store),
        "cluster": {"fingerprint": FINGERPRINT},
        "sources": [
            {
                "host": SOURCE,
                "user": user(),
                "path": source,
                "key_file": str(server.directory / "client"),
                "known_hosts": str(server.directory / "known_hosts"),
            }
        ],
        "run_id": "bench",
    }
    if workers is not None:
        options["workers"] = workers
    return options


def parse_result(text: str) -> dict[str, Any]:
    """A module's result from what it printed. Raises BenchError with its own words when it failed."""
    for line in reversed(text.strip().splitlines()):
        try:
            result = json.loads(line)
        except ValueError:
            continue
        if isinstance(result, dict) and result.get("failed"):
            raise BenchError(str(result.get("msg", "the module failed")))
        if isinstance(result, dict):
            return result
    raise BenchError(f"The module said nothing that can be read: {text.strip()[-300:]}")


def landed(store: Path, size: int) -> Path:
    """The one published file of ``size`` bytes in a store. Raises BenchError if there is not exactly one."""
    found = []
    for directory, _directories, files in os.walk(store / CLUSTER_ID / "backups"):
        found += [Path(directory, name) for name in files if os.path.getsize(os.path.join(directory, name)) == size]
    if len(found) != 1:
        raise BenchError(f"{len(found)} files of {size} bytes were published, not one.")
    return found[0]
