# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What needs no link: verifying what is at rest, and a catalogue of ten thousand backups."""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from shipbench import ends, files, ours
from shipbench.errors import BenchError
from shipbench.figures import shuffled
from shipbench.options import Asked
from shipbench.ours import CLUSTER_ID, FINGERPRINT, Modules
from shipbench.report import Rows

#: Backups of the size asked for that are verified together, so that starting a process weighs little.
AT_REST = 4
CATALOGUE = 10_000
LIMIT = 1800.0
#: A common rule: something stays and something goes.
RETENTION = {"keep": 3, "max_age": 90 * 86400.0, "need": 0}

Say = Callable[[str], None]


def run_module(
    modules: Modules, name: str, options: Mapping[str, Any], *, check: bool = False
) -> tuple[dict[str, Any], float]:
    """Run a module here; its result and how long its process took (s). Raises BenchError when it failed."""
    output = modules.scratch / f"{name}.result"
    argv = modules.argv(name, options, check=check)
    started = time.monotonic()
    pid = ends.start(argv, output=output, environment=modules.environment)
    if not ends.wait(pid, LIMIT, LIMIT, lambda: None):
        os.kill(pid, 9)
    seconds = time.monotonic() - started
    os.waitpid(pid, 0)
    return ours.parse_result(output.read_text(encoding="utf-8", errors="replace")), seconds


def _local_source(path: Path) -> dict[str, Any]:
    return {"cluster": {"fingerprint": FINGERPRINT}, "sources": [{"path": str(path)}], "run_id": "bench"}


class AtRest:
    """backup_verify against reading the same files and hashing as much, all in shuffled rounds, from a cold cache."""

    def __init__(self, modules: Modules, disk: Path, scratch: Path, size: int) -> None:
        self._modules, self._disk, self._scratch, self._size = modules, disk, scratch, size

    def prepare(self) -> None:
        """Publish the backups, from a drop box in memory into a store on the disk."""
        store = self._disk / "store"
        store.mkdir(mode=0o700)
        drop_box = self._scratch / "drop-box"
        drop_box.mkdir(mode=0o700)
        for number in range(AT_REST):
            path = drop_box / f"backup-{number}"
            files.make_file(path, self._size, number)
            run_module(self._modules, "backup_ship", {"store": str(store), **_local_source(path)})
            path.unlink()
        drop_box.rmdir()
        self.paths = sorted(path for path in (store / CLUSTER_ID / "backups").glob("*/data/*") if path.is_file())
        if len(self.paths) != AT_REST:
            raise BenchError(f"{len(self.paths)} of {AT_REST} backups were published.")

    def round(self, number: int, seed: int) -> dict[str, float]:
        """Bytes a second of each of the three."""
        total = self._size * AT_REST
        measure: dict[str, Callable[[], float]] = {
            "disk": lambda: files.read_rate(self.paths),
            "hashlib": lambda: files.hash_rate(total),
            "verify": lambda: total / self._verify(),
        }
        rates = {}
        for name in shuffled(sorted(measure), seed=seed, link="verify", round_number=number):
            for path in self.paths:
                files.evict(path)
            rates[name] = measure[name]()
        return rates

    def _verify(self) -> float:
        options = {
            "store": str(self._disk / "store"),
            "cluster_id": CLUSTER_ID,
            "ids": [p.parts[-3] for p in self.paths],
        }
        result, seconds = run_module(self._modules, "backup_verify", options)
        verdicts = result.get("verdicts", [])
        if (
            sum(verdict.get("verdict") == "ok" and verdict.get("bytes") == self._size for verdict in verdicts)
            != AT_REST
        ):
            raise BenchError("backup_verify did not read all bytes and call them good.")
        return seconds


def at_rest(modules: Modules, asked: Asked, disk: Path, scratch: Path, rows: Rows, say: Say) -> None:
    """The goal verify-at-rest."""
    say("Verify at rest")
    subject = AtRest(modules, disk, scratch, asked.size)
    subject.prepare()
    for number in range(1, asked.rounds + 1):
        rates = subject.round(number, asked.seed)
        ratio = rates["verify"] / min(rates["disk"], rates["hashlib"])
        size = asked.size * AT_REST
        rows.add({"kind": "verify", "part": "verify", "round": number, "bytes": size, "value": ratio, **rates})
        shown = ", ".join(f"{name} {rate / 1e6:.0f} MB/s" for name, rate in sorted(rates.items()))
        say(f"  {number}  {shown}: {ratio:.2f}")


def make_catalogue(modules: Modules, support: Path, scratch: Path, count: int) -> tuple[Path, str]:
    """A store with ``count`` published and verified backups, one an hour up to now, and its cluster id."""
    store = scratch / "catalogue"
    store.mkdir(mode=0o700)
    sys.path[:0] = [str(modules.collections), str(support)]
    return store, str(importlib.import_module("many_backups").fill_store(store, count))


def catalogue(modules: Modules, asked: Asked, support: Path, scratch: Path, rows: Rows, say: Say) -> None:
    """The goal catalogue: the time of both modules' processes together."""
    say("Catalogue")
    count = min(CATALOGUE, 200) if asked.smoke else CATALOGUE
    store, cluster_id = make_catalogue(modules, support, scratch, count)
    common = {"store": str(store), "cluster_id": cluster_id}
    for number in range(1, asked.rounds + 1):
        listed, listing = run_module(modules, "backup_info", {**common, "details": False})
        planned, planning = run_module(modules, "backup_prune", {**common, **RETENTION}, check=True)
        for found, what in ((listed["backups"], "lists"), (planned["plan"], "plans for")):
            if len(found) != count:
                raise BenchError(f"It {what} {len(found)} of {count} backups.")
        row = {"backups": count, "listing": listing, "planning": planning, "value": listing + planning}
        rows.add({"kind": "catalogue", "part": "catalogue", "round": number, **row})
        say(f"  {number}  {count} backups: listed in {listing:.2f} s, pruning planned in {planning:.2f} s")
