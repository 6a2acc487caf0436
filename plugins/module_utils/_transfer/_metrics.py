# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The metrics file of a store, and the retention policy that was last carried out, which it needs to look ahead."""

from __future__ import annotations

import json
import os
import time
import typing as t

from .._core import ledger, metrics, parts, retention
from .._core.strict import Invalid, load, utc_seconds
from .._errors import DsmError, Refused
from ._disk import read_bytes, write_atomically
from ._keeping import complete, counted_once, items, keep, least_recent_read, members
from ._store import ClusterStore


def check_path(path: str | None) -> None:
    """Raise :class:`Refused` (code BAD_METRICS) unless a metrics file can be there, before anything else is done."""
    if path is not None and not (
        os.path.isabs(path) and path.endswith(".prom") and os.path.isdir(os.path.dirname(path))
    ):
        raise Refused(
            f"Metrics cannot be written to {path}.",
            "BAD_METRICS",
            "Give an absolute path that ends with .prom in the existing textfile directory of the node exporter.",
        )


def write(store: ClusterStore, path: str) -> None:
    """Write the metrics of a store as a whole, readable for all. Raises :class:`Refused` or OSError."""
    now = time.time()
    folded = ledger.fold(store.ledger.chain().events)
    entries = store.entries()
    kept = keep(store, folded, entries)
    # As pruning counts, or a store that it calls too small would look large enough here.
    once, _instead = counted_once(items(store, kept, folded, now), entries)
    policy, require = read_policy(store)
    found = complete(store, once, entries, require, policy.keep if policy else 0)
    free, inodes = store.free()
    plan = None
    if policy is not None:
        out = members(folded)
        plan = retention.plan(found, policy, now=now, free=free, free_files=inodes, members=out)
    counted = {one.id for one in found if one.verdict == "ok"}
    good = [entry.manifest for entry in entries if entry.id in counted and entry.manifest is not None]
    last = utc_seconds(good[-1].published_at) if good else None
    facts = metrics.Facts(store.identity.cluster_id, found, plan, free, now, least_recent_read(store, kept), last)
    write_atomically(path, metrics.render(facts).encode("ascii"), mode=0o644)


def remember_policy(store: ClusterStore, policy: retention.Policy, require: t.Sequence[str]) -> None:
    """Keep the policy that was carried out, and the parts that it required; written only when it is another."""
    if (policy, sorted(require)) != read_policy(store):
        value = {"schema": 1, "require": sorted(require), **policy._asdict()}
        data = json.dumps(value, sort_keys=True).encode("ascii")
        write_atomically(os.path.join(store.path, "retention.json"), data)


def read_policy(store: ClusterStore) -> tuple[retention.Policy | None, list[str]]:
    """The policy that was last carried out and the parts that it required; None if it is not known, it only serves to
    look ahead."""
    try:
        value = load(read_bytes(os.path.join(store.path, "retention.json")), "retention.json")
        require = value.pop("require", [])
        if value.pop("schema", None) != 1 or not set(require) <= set(parts.PARTS):
            return None, []
        policy = retention.Policy(**value)
        return (None, []) if retention.policy_problems(policy) else (policy, sorted(require))
    except (FileNotFoundError, DsmError, Invalid, TypeError):
        return None, []
