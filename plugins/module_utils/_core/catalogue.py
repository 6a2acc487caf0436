# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The store's own documents and decisions: ``store.json``, ids, the lease, and what a directory in the store is.

A number counted in the store decides what is newer, never a clock: clocks jump (F17). The lease says who may change a
cluster's part of the store; it is taken over only from an owner that is provably gone, or after it expired elsewhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Iterable, Mapping, Sequence

from .manifest import BACKUP_ID, CLUSTER_ID
from .strict import SHA256, Checker, Invalid, Problem, digest, load, utc_seconds

SCHEMA = 1
KIND = "kmsops.fortanix_dsm/store"
_STORE = {"schema": int, "kind": str, "cluster_id": str, "generations": list, "checksum": str}
_GENERATION = {
    "generation": int,
    "fingerprint": str,
    "uid": str,
    "members": list,
    "run_id": str,
    "added_at": str,
    "because": str,
}
_LEASE = {"run_id": str, "host": str, "boot_id": str, "pid": int, "started": int, "acquired": str, "expires": str}


@dataclass(frozen=True)
class Generation:
    """One life of the cluster: a restored cluster has a new Kubernetes CA and so a new fingerprint."""

    generation: int
    fingerprint: str
    uid: str
    members: tuple[str, ...]
    run_id: str
    added_at: str
    because: str


@dataclass(frozen=True)
class StoreIdentity:
    """The content of ``store.json``: whose backups these are."""

    cluster_id: str
    generations: tuple[Generation, ...]

    def generation_of(self, fingerprint: str) -> Generation | None:
        """The generation with this fingerprint, or None: another cluster."""
        for item in self.generations:
            if item.fingerprint == fingerprint:
                return item
        return None

    def with_generation(self, fingerprint: str, **facts: Any) -> StoreIdentity:
        """The identity with one more generation (unchanged if it is known)."""
        if self.generation_of(fingerprint):
            return self
        added = Generation(generation=len(self.generations) + 1, fingerprint=fingerprint, **facts)
        return StoreIdentity(self.cluster_id, (*self.generations, added))


def cluster_id_of(fingerprint: str) -> str:
    """The name of a cluster in the store: the first 16 hex digits of its first generation's fingerprint."""
    if not SHA256.match(fingerprint):
        raise Invalid([Problem("WRONG_VALUE", f"{fingerprint!r} is not a fingerprint: 64 lower-case hex digits")])
    return fingerprint[:16]


def dump_identity(identity: StoreIdentity) -> bytes:
    """The bytes of ``store.json``."""
    value: dict[str, Any] = {"schema": SCHEMA, "kind": KIND, "cluster_id": identity.cluster_id}
    value["generations"] = [dict(asdict(item), members=list(item.members)) for item in identity.generations]
    value["checksum"] = digest(value)
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def parse_identity(data: bytes, directory: str) -> StoreIdentity:
    """``store.json`` of the cluster directory named ``directory``. Raises Invalid: EMPTY, FOREIGN, ..."""
    check = Checker("store.json")
    value = load(data, check.what)
    if value.get("kind") != KIND:
        raise Invalid([Problem("FOREIGN", "store.json is not one of this collection")])
    schema = value.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise Invalid([Problem("UNKNOWN_SCHEMA", f"store.json has the unknown schema {schema!r}")])
    if schema > SCHEMA:
        raise Invalid(
            [Problem("NEWER_SCHEMA", f"store.json has schema {schema}, newer than {SCHEMA}: update the collection")]
        )
    if not check.keys(value, "the document", _STORE):
        check.done()
    if digest({name: item for name, item in value.items() if name != "checksum"}) != value["checksum"]:
        check.add("CHECKSUM", "its own checksum does not match: it was changed or damaged")
    if not CLUSTER_ID.match(value["cluster_id"]) or value["cluster_id"] != directory:
        check.add("FOREIGN", f"it belongs to cluster {value['cluster_id']!r} but stands in {directory!r}")
    generations = []
    for index, item in enumerate(value["generations"]):
        where = f"generations[{index}]"
        if not isinstance(item, dict):
            check.add("WRONG_TYPE", f"{where} is not an object")
        elif check.keys(item, where, _GENERATION) and check.strings(item["members"], f"{where}.members"):
            if not SHA256.match(item["fingerprint"]):
                check.add("WRONG_VALUE", f"{where}.fingerprint is not 64 hex digits")
            if item["generation"] != index + 1:
                check.add("INCONSISTENT", f"{where} carries the number {item['generation']}")
            check.utc(item["added_at"], f"{where}.added_at")
            generations.append(Generation(**dict(item, members=tuple(item["members"]))))
    if not value["generations"]:
        check.add("EMPTY", "it has no generation")
    elif generations and generations[0].fingerprint[:16] != value["cluster_id"]:
        check.add("INCONSISTENT", "its cluster id does not follow from its first fingerprint")
    if len({item.fingerprint for item in generations}) != len(generations):
        check.add("INCONSISTENT", "a fingerprint is listed twice")
    check.done()
    return StoreIdentity(value["cluster_id"], tuple(generations))


@dataclass(frozen=True)
class Index:
    """Which bytes the strict readers accepted before: SHA-256 of each manifest, and of the ledger's first bytes.

    It is only a cache. Every byte is read and hashed again; what differs by one bit is read strictly.
    """

    manifests: Mapping[str, str]
    ledger_bytes: int
    ledger_sha256: str


NO_INDEX = Index({}, 0, "")
#: To be counted up when a reader becomes stricter: what an older one accepted is then read again.
_RULES = 2


def dump_index(index: Index) -> bytes:
    """The bytes of ``index.json``."""
    value: dict[str, Any] = {"rules": _RULES, **asdict(index)}
    value["checksum"] = digest(value)
    return (json.dumps(value) + "\n").encode("ascii")


def parse_index(data: bytes) -> Index:
    """The inverse; nothing is known where it is not understood."""
    try:
        value = load(data, "index.json")
        checksum, rules = value.pop("checksum", None), value.get("rules")
        if checksum != digest(value) or rules != _RULES or isinstance(rules, bool):
            return NO_INDEX
        return Index(value["manifests"], value["ledger_bytes"], value["ledger_sha256"])
    except (Invalid, KeyError):
        return NO_INDEX


def next_id(seen: Iterable[str], newest_mtime: int) -> str:
    """The id of the next backup: one more than every number ever seen, and the delivery's time for people to read."""
    numbers = [int(match.group(1)) for match in map(BACKUP_ID.match, seen) if match]
    return f"{max(numbers, default=0) + 1:08d}-{stamp(newest_mtime)}"


def stamp(seconds: int) -> str:
    """``20261122T005300Z``; a time that no calendar holds becomes the nearest that one does."""
    import datetime

    bounded = min(max(seconds, 0), 253402300799)
    return datetime.datetime.fromtimestamp(bounded, tz=datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")


@dataclass(frozen=True)
class Owner:
    """A process: host name, boot id, pid, start time in clock ticks since boot (a reused pid has another one)."""

    host: str
    boot_id: str
    pid: int
    started: int


@dataclass(frozen=True)
class Lease:
    """Who may change this cluster's part of the store; times are UTC text."""

    run_id: str
    owner: Owner
    acquired: str
    expires: str


def dump_lease(lease: Lease) -> bytes:
    """The bytes of ``lock``."""
    value = dict(asdict(lease.owner), run_id=lease.run_id, acquired=lease.acquired, expires=lease.expires)
    return (json.dumps(value, sort_keys=True) + "\n").encode("ascii")


def parse_lease(data: bytes) -> Lease:
    """The lease in ``lock``. Raises :class:`Invalid`."""
    check = Checker("lock")
    value = load(data, check.what)
    if check.keys(value, "the document", _LEASE):
        check.utc(value["acquired"], "acquired")
        check.utc(value["expires"], "expires")
    check.done()
    owner = Owner(value["host"], value["boot_id"], value["pid"], value["started"])
    return Lease(value["run_id"], owner, value["acquired"], value["expires"])


def decide_lease(lease: Lease | None, me: Owner, alive: bool, now: float) -> tuple[str, str]:
    """What to do with the lease that is there: ``free``, ``mine``, ``dead`` (take over) or ``held``, and the reason.

    ``alive`` says whether the owner's process runs on this host and boot. A living owner here is never robbed, however
    late it is; an owner on another host, which cannot be looked at, is believed until its lease expires.
    """
    if lease is None:
        return "free", ""
    if lease.owner == me:
        return "mine", ""
    who = f"run {lease.run_id or '?'} (process {lease.owner.pid} on {lease.owner.host}, since {lease.acquired})"
    if lease.owner.host == me.host:
        if lease.owner.boot_id != me.boot_id:
            return "dead", f"{who}: the host was restarted since"
        return ("held", who) if alive else ("dead", f"{who}: that process no longer exists")
    if utc_seconds(lease.expires) <= now:
        return "dead", f"{who}: the lease expired {lease.expires}"
    return "held", f"{who}, until {lease.expires}"


def store_problems(identities: Mapping[str, StoreIdentity], fingerprint: str, *, may_create: bool) -> Sequence[Problem]:
    """Why bytes of the cluster with ``fingerprint`` may not go into a store of ``identities``; empty: they may."""
    if any(identity.generation_of(fingerprint) for identity in identities.values()) or may_create or not identities:
        return ()
    known = ", ".join(
        f"{name} (now {identity.generations[-1].fingerprint[:16]})" for name, identity in sorted(identities.items())
    )
    return (
        Problem(
            "ANOTHER_CLUSTER",
            f"this store belongs to {known}; the cluster that was named has the fingerprint {fingerprint[:16]}...",
        ),
    )
