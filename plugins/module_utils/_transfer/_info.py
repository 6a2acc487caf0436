# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The catalogue of a store, for playbooks and for people."""

from __future__ import annotations

import dataclasses
import os
import time
import typing as t

from .._core import ledger, tables
from .._core.openability import classify, copy_of, describe
from .._core.parts import missing
from ._keeping import Kept, keep, last_full_read, proved_pairs
from ._parts import states
from ._sites import sites
from ._store import ClusterStore, identities

#: What a list says of each backup; the rest is said by its description.
_LISTED = ("sequence", "bytes", "version", "published_at", "snapshot_started")


def info(
    root: str, cluster_id: str, fingerprint: str, details: bool = True, require: t.Sequence[str] = ()
) -> dict[str, t.Any]:
    """Return values of ``backup_info``. Raises ``Refused`` (STORE_MISSING, UNKNOWN_CLUSTER) or ``Unreadable``."""
    if cluster_id or fingerprint:
        stores = [ClusterStore.require(root, cluster_id=cluster_id, fingerprint=fingerprint)]
    else:
        stores = [ClusterStore(root, identity) for identity in identities(root).values()]
    backups: list[dict[str, t.Any]] = []
    incoming: list[str] = []
    clusters = []
    known: list[dict[str, t.Any]] = []
    for store in stores:
        folded = ledger.fold(store.ledger.chain().events)
        parts = states(store, read=True)
        kept = keep(store, folded, store.entries())
        proved = proved_pairs(folded)
        backups.extend(_described(store, one, proved, details, parts, require) for one in kept)
        known.extend(sites(store, kept, time.time()))
        incoming.extend(store.incoming())
        clusters.append(
            {
                "cluster_id": store.identity.cluster_id,
                "generations": [dataclasses.asdict(item) for item in store.identity.generations],
            }
        )
    return {"clusters": clusters, "backups": backups, "incoming": incoming, "sites": known, "table": table(backups)}


def _described(
    store: ClusterStore,
    one: Kept,
    proved: frozenset[tuple[str, str]],
    details: bool,
    parts: t.Mapping[str, t.Mapping[str, str]],
    require: t.Sequence[str],
) -> dict[str, t.Any]:
    entry = one.entry
    said = one.notes.as_dict()
    found = dict(parts.get(entry.manifest.fingerprint, {}) if entry.manifest is not None else {})
    lacks = missing(found, require)
    whole = entry.manifest is not None and one.verdict != "failed"
    common: dict[str, t.Any] = {
        "id": entry.id,
        "cluster_id": store.identity.cluster_id,
        "state": entry.state,
        "published": entry.manifest is not None,
        "complete": whole and not lacks,
        "verdict": one.verdict,
        "verified": one.verdict == "ok",
        "pin": said["pin"],
        "reasons": [{"code": item.code, "message": item.message} for item in [*one.problems, *lacks]],
    }
    if details:
        common.update(
            verified_at=one.verified_at,
            last_full_read=last_full_read(store, entry),
            parts={"data": "ok" if whole else "failed", **found},
            released=said["released"],
            notes=said["notes"],
        )
    if entry.manifest is None:
        return common
    copy = copy_of(entry.manifest)
    if not details:
        kinds = {item.node: classify(copy, item.node, proved=proved).kind for item in entry.manifest.sealed_for}
        listed = {name: getattr(entry.manifest, name) for name in _LISTED}
        return {**listed, **common, "pairs": [{"node": node, "kind": kind} for node, kind in kinds.items()]}
    described = describe(entry.manifest)
    data = store.data_path(entry.id)
    for pair in described["pairs"]:
        pair["kind"] = classify(copy, pair["node"], proved=proved).kind
    archive = described["archive"]
    return {**described, **common, "path": os.path.join(data, archive) if archive else data}


def _shown(item: t.Mapping[str, t.Any]) -> str:
    lacks = item["published"] and not item["complete"] and item["verdict"] != "failed"
    return "incomplete" if lacks else str(item["state"])


def table(backups: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """Lines of a table: id, size, state, verdict, start of the snapshot, pin, worth to each node."""
    rows = []
    for item in backups:
        worth = ", ".join(f"{pair['node']}: {pair['kind']}" for pair in item.get("pairs", ()))
        why = "; ".join(reason["message"] for reason in item["reasons"])
        started = item.get("snapshot_started") or "unknown"
        pin = item["pin"]["who"] if item["pin"] else "-"
        last = "; ".join(filter(None, (worth, why)))
        rows.append((item["id"], str(item.get("bytes", "-")), _shown(item), item["verdict"], started, pin, last))
    return tables.lines(("BACKUP", "BYTES", "STATE", "VERDICT", "SNAPSHOT STARTED", "PIN", "WORTH TO"), rows)
