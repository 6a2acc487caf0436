# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stores with published backups, made in bulk without shipping anything."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any, Sequence

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import catalogue, ledger
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import manifest as manifests
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import digest, utc_seconds, utc_text
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore

FINGERPRINT = hashlib.sha256(b"the production cluster").hexdigest()
CLUSTER = FINGERPRINT[:16]
MEMBERS = tuple({"name": f"dc{n}-n1", "addresses": [f"192.0.2.{n}"], "host_id": f"host-{n}"} for n in (1, 2, 3))
SEALED = manifests.Sealed("dr1", "SN-1", "5.4.2031", "2026-11-21T00:00:00Z", False)
SNAPSHOT = "2026-11-21T01:00:00Z"


def golden() -> manifests.Sealed:
    """As SEALED, while the node was a member."""
    return manifests.Sealed("dr1", "SN-1", "5.4.2031", "2026-11-21T00:00:00Z", True)


def resealed(path: Path, **changes: Any) -> None:
    """A manifest changed by somebody who knows how its checksum is made."""
    value = {**json.loads(path.read_text()), **changes}
    value.pop("checksum")
    value["checksum"] = digest(value)
    path.write_text(json.dumps(value))


class Filler:
    """Publishes backups of a few bytes, one an hour up to now, and writes the ledger at the end."""

    def __init__(self, root: Path, count: int = 0, fingerprint: str = FINGERPRINT) -> None:
        self.fingerprint = fingerprint
        self.cluster_id = fingerprint[:16]
        self.path = root / self.cluster_id
        self.backups = self.path / "backups"
        self.backups.mkdir(parents=True)
        facts: dict[str, Any] = {"uid": "u", "members": (), "run_id": "r", "because": "first"}
        identity = catalogue.StoreIdentity(self.cluster_id, ()).with_generation(
            fingerprint, added_at="2026-01-01T00:00:00Z", **facts
        )
        (self.path / "store.json").write_bytes(catalogue.dump_identity(identity))
        self.start = time.time() - count * 3600.0
        self.head: ledger.Event | None = None
        self.lines: list[bytes] = []
        self.ids: list[str] = []

    def event(self, kind: str, subject: str, data: dict[str, Any], when: float) -> None:
        """One event more; :meth:`close` writes it. Modules may have appended others since the last time."""
        written = self.path / "ledger.jsonl"
        if not self.lines and written.exists():
            self.head = ledger.read(written.read_bytes()).head
        self.head = ledger.make(self.head, time=utc_text(when), run_id="fill", kind=kind, subject=subject, data=data)
        self.lines.append(self.head.line())

    def publish(
        self,
        verdict: str = "ok",
        *,
        files: Sequence[tuple[str, bytes]] = (("backup.bin", b"0123456789"),),
        sealed: tuple[manifests.Sealed, ...] = (SEALED,),
        **facts: Any,
    ) -> str:
        """One backup with its events ``shipped`` and ``verified`` (``verdict`` '' leaves the second out)."""
        sequence = len(self.ids) + 1
        when = facts.pop("when", self.start + sequence * 3600.0)
        recorded_files = facts.pop("recorded_files", ())
        name = f"{sequence:08d}-{catalogue.stamp(int(when))}"
        data = self.backups / name / "data"
        entries = []
        for path, content in files:
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            (data / path).write_bytes(content)
            entries.append(manifests.FileEntry(path, len(content), int(when), hashlib.sha256(content).hexdigest()))
        fields: dict[str, Any] = {
            "cluster_id": self.cluster_id,
            "fingerprint": self.fingerprint,
            "generation": 1,
            "id": name,
            "sequence": sequence,
            "published_at": utc_text(when),
            "run_id": "fill",
            "version": "5.4.2031",
            "members": MEMBERS,
            "snapshot_started": SNAPSHOT if any(one.member for one in sealed) else None,
            "snapshot_source": "observed" if any(one.member for one in sealed) else "unknown",
            "sealed_for": sealed,
            "provenance": "by_source",
            "structure": "unknown",
            "source": {
                "host": "landing", "path": name, "layout": "single", "key": f"key-{sequence}", "hash": "none",
                "clock_skew": 0,
            },
            "files": recorded_files or tuple(entries),
            **facts,
        }  # fmt: skip
        manifest = manifests.Manifest(**fields)
        (self.backups / name / "manifest.json").write_bytes(manifests.dump(manifest))
        self.ids.append(name)
        self.event("shipped", name, ledger.shipped_data(manifest), when)
        if verdict:
            self.event("verified", name, {"verdict": verdict, "digest": manifest.digest}, when)
        return name

    def forget(self, fact: str) -> None:
        """No event that is not written yet says this of a backup, as if an older release had made it."""
        events = [json.loads(line) for line in self.lines]
        self.lines.clear()
        self.head = None
        for one in events:
            data = {name: value for name, value in one["data"].items() if name != fact}
            self.event(one["kind"], one["subject"], data, utc_seconds(one["time"]))

    def close(self) -> Filler:
        """Write the ledger."""
        with open(self.path / "ledger.jsonl", "ab") as file:
            file.writelines(self.lines)
        self.lines.clear()
        return self


def fill_store(root: Path | str, count: int) -> str:
    """A store of ``count`` verified backups, as a run of verification left it; returns the cluster id."""
    filler = Filler(Path(root), count)
    for _index in range(count):
        filler.publish()
    filler.close()
    ClusterStore.require(str(root)).refresh_index()
    return filler.cluster_id
