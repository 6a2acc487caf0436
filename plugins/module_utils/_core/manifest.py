# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The manifest of a published backup: what was stored, where it came from, and which node may open it.

A backup is published by the appearance of its manifest and by nothing else (law 4). The document carries a checksum of
itself, the SHA-256 of every file, the identity of the cluster, and ``sealed_for``: the nodes whose sealed copy of the
cluster master key the database held when the snapshot started (law 2). The reader is strict: unreadable, empty,
foreign, newer or unknown is an error, never a guess.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Iterable, Mapping

from .strict import SHA256, Checker, Invalid, Problem, digest, load

SCHEMA = 1
KIND = "kmsops.fortanix_dsm/backup"
BACKUP_ID = re.compile(r"^(\d{8})-(\d{8}T\d{6}Z)\Z", re.ASCII)
CLUSTER_ID = re.compile(r"^[0-9a-f]{16}\Z", re.ASCII)
PROVENANCE = ("by_source", "by_template", "proved_by_restore")
SNAPSHOT_SOURCES = ("observed", "attested", "unknown")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TEXT_OR_NULL = (str, type(None))
_MEMBER: dict[str, Any] = {"name": str, "addresses": list, "host_id": str}
_SEALED: dict[str, Any] = {"node": str, "platform_id": str, "version": str, "joined_at": _TEXT_OR_NULL, "member": bool}
_FILE = {"path": str, "size": int, "mtime": int, "sha256": str}
_SOURCE: dict[str, Any] = {
    "host": str,
    "path": str,
    "layout": str,
    "key": str,
    "hash": str,
    "clock_skew": (int, type(None)),
}
_LEDGER = {"sequence": int, "hash": str}
_TOP: dict[str, Any] = {
    "schema": int,
    "kind": str,
    "cluster_id": str,
    "fingerprint": str,
    "generation": int,
    "id": str,
    "sequence": int,
    "published_at": str,
    "run_id": str,
    "version": str,
    "members": list,
    "snapshot_started": _TEXT_OR_NULL,
    "snapshot_source": str,
    "sealed_for": list,
    "provenance": str,
    "structure": str,
    "source": dict,
    "files": list,
    "bytes": int,
    "digest": str,
    "accepted": list,
    "ledger": dict,
    "checksum": str,
}


@dataclass(frozen=True)
class FileEntry:
    """One stored file: path relative to ``data/``, size in bytes, source's mtime (s since the epoch), SHA-256 (hex)."""

    path: str
    size: int
    mtime: int
    sha256: str


@dataclass(frozen=True)
class Sealed:
    """A node for which the database held a sealed copy of the master key; ``joined_at`` UTC, ``member`` then."""

    node: str
    platform_id: str
    version: str
    joined_at: str | None
    member: bool


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``; times are UTC text, sizes bytes, hashes lower-case hex."""

    cluster_id: str
    fingerprint: str
    generation: int
    id: str
    sequence: int
    published_at: str
    run_id: str
    version: str
    members: tuple[Mapping[str, Any], ...]
    snapshot_started: str | None
    snapshot_source: str
    sealed_for: tuple[Sealed, ...]
    provenance: str
    structure: str
    source: Mapping[str, Any]
    files: tuple[FileEntry, ...]
    accepted: tuple[str, ...] = ()
    ledger: Mapping[str, Any] = field(default_factory=lambda: {"sequence": 0, "hash": "0" * 64})
    #: of the document that it was read from; '' of one that was made here
    checksum: str = field(default="", compare=False)

    @property
    def bytes(self) -> int:
        """Sum of the sizes of all files."""
        return sum(entry.size for entry in self.files)

    @property
    def digest(self) -> str:
        """The one hash of the whole backup, see :class:`tree_digest`."""
        return tree_digest(self.files)

    @property
    def archive(self) -> FileEntry | None:
        """The file, where the backup is a single file."""
        return self.files[0] if len(self.files) == 1 and "/" not in self.files[0].path else None

    def as_dict(self) -> dict[str, Any]:
        """The document without its checksum, as it is returned to playbooks and hashed."""
        value = dict(self.__dict__)
        del value["checksum"]
        for name in ("sealed_for", "files"):
            value[name] = [dict(item.__dict__) for item in value[name]]
        value.update(
            schema=SCHEMA,
            kind=KIND,
            bytes=self.bytes,
            digest=self.digest,
            members=[{name: _copied(item) for name, item in member.items()} for member in self.members],
            source=dict(self.source),
            ledger=dict(self.ledger),
            accepted=list(self.accepted),
        )
        return value


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def tree_digest(files: Iterable[FileEntry]) -> str:
    """SHA-256 over lines ``<sha256>  <path>\\n`` sorted by path: the output of ``sha256sum`` for the same tree."""
    total = hashlib.sha256()
    for entry in sorted(files, key=lambda item: item.path.encode("utf-8")):
        total.update(f"{entry.sha256}  {entry.path}\n".encode())
    return total.hexdigest()


def path_problem(path: str) -> str | None:
    """Why ``path`` is no safe relative path, or None."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if not path or path.startswith("/") or path.endswith("/"):
        return "is not a relative path to a file"
    if _CONTROL.search(path):
        return "holds control characters"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "leaves its directory"
    return None


def checksum(manifest: Manifest) -> str:
    """SHA-256 of the document in canonical form: of all that it says, not of the files only."""
    return digest(manifest.as_dict())


def dump(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: readable JSON with its own checksum. What it writes, :class:`parse` accepts."""
    value = manifest.as_dict()
    value["checksum"] = checksum(manifest)
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode("ascii")


def parse(data: bytes, *, cluster_id: str = "", backup_id: str = "") -> Manifest:
    """The manifest in ``data``; with ``cluster_id`` and ``backup_id`` also that it belongs where it was found.

    Raises :class:`Invalid` with every problem: EMPTY, UNREADABLE, NEWER_SCHEMA, UNKNOWN_SCHEMA, FOREIGN, CHECKSUM, ...
    """
    check = Checker(f"manifest of {backup_id}" if backup_id else "manifest")
    value = load(data, check.what)
    _schema(value, check)
    if not check.keys(value, "the document", _TOP):
        check.done()
    body = {name: item for name, item in value.items() if name != "checksum"}
    if digest(body) != value["checksum"]:
        check.add("CHECKSUM", "its own checksum does not match: it was changed or damaged after publication")
    _identity(value, check, cluster_id, backup_id)
    _contents(value, check)
    check.done()
    manifest = Manifest(
        members=tuple(value["members"]),
        sealed_for=tuple(Sealed(**item) for item in value["sealed_for"]),
        files=tuple(FileEntry(**item) for item in value["files"]),
        accepted=tuple(value["accepted"]),
        **{
            name: value[name]
            for name in _TOP
            if name not in ("schema", "kind", "bytes", "digest", "members", "sealed_for", "files", "accepted")
        },
    )
    if manifest.bytes != value["bytes"]:
        check.add("INCONSISTENT", f"bytes says {value['bytes']}, the files make {manifest.bytes}")
    if manifest.digest != value["digest"]:
        check.add("INCONSISTENT", "digest does not follow from the files")
    check.done()
    return manifest


def parse_known(data: bytes) -> Manifest:
    """The manifest in bytes that :class:`parse` accepted before: nothing is checked again."""
    value = json.loads(data)
    for name in ("schema", "kind", "bytes", "digest"):
        del value[name]
    value["sealed_for"] = tuple([Sealed(**item) for item in value["sealed_for"]])
    value["files"] = tuple([FileEntry(**item) for item in value["files"]])
    value["members"] = tuple(value["members"])
    value["accepted"] = tuple(value["accepted"])
    return Manifest(**value)


def _schema(value: Mapping[str, Any], check: Checker) -> None:
    """Kind and schema come first: of a newer document nothing else may be judged."""
    if value.get("kind") != KIND:
        raise Invalid([Problem("FOREIGN", f"{check.what}: it is not a manifest of this collection")])
    schema = value.get("schema")
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        raise Invalid([Problem("UNKNOWN_SCHEMA", f"{check.what}: schema {schema!r} is unknown")])
    if schema > SCHEMA:
        raise Invalid(
            [Problem("NEWER_SCHEMA", f"{check.what}: schema {schema} is newer than {SCHEMA}: update the collection")]
        )


def _identity(value: Mapping[str, Any], check: Checker, cluster_id: str, backup_id: str) -> None:
    if not CLUSTER_ID.match(value["cluster_id"]):
        check.add("WRONG_VALUE", "cluster_id is not 16 hex digits")
    if cluster_id and value["cluster_id"] != cluster_id:
        check.add("FOREIGN", f"it belongs to cluster {value['cluster_id']}, this is the store of {cluster_id}")
    if not SHA256.match(value["fingerprint"]):
        check.add("WRONG_VALUE", "fingerprint is not 64 hex digits")
    match = BACKUP_ID.match(value["id"])
    if not match:
        check.add("WRONG_VALUE", f"id {value['id']!r} is not one of this collection")
    elif int(match.group(1)) != value["sequence"]:
        check.add("INCONSISTENT", f"id {value['id']} does not carry sequence {value['sequence']}")
    if backup_id and value["id"] != backup_id:
        check.add("FOREIGN", f"it is the manifest of {value['id']}")
    if value["generation"] < 1:
        check.add("WRONG_VALUE", f"generation {value['generation']} does not exist")
    if value["provenance"] not in PROVENANCE:
        check.add("WRONG_VALUE", f"provenance {value['provenance']!r} is unknown")
    if value["snapshot_source"] not in SNAPSHOT_SOURCES:
        check.add("WRONG_VALUE", f"snapshot_source {value['snapshot_source']!r} is unknown")
    if (value["snapshot_started"] is None) != (value["snapshot_source"] == "unknown"):
        check.add("INCONSISTENT", "snapshot_started and snapshot_source contradict each other")
    check.utc(value["published_at"], "published_at")
    check.utc(value["snapshot_started"], "snapshot_started")


def _contents(value: Mapping[str, Any], check: Checker) -> None:
    if check.keys(value["source"], "source", _SOURCE):
        _seconds(value["source"]["clock_skew"] or 0, "source.clock_skew", check)
    if check.keys(value["ledger"], "ledger", _LEDGER) and not SHA256.match(value["ledger"]["hash"]):
        check.add("WRONG_VALUE", "ledger.hash is not a SHA-256")
    check.strings(value["accepted"], "accepted")
    for index, member in enumerate(_objects(value["members"], "members", check)):
        if check.keys(member, f"members[{index}]", _MEMBER):
            check.strings(member["addresses"], f"members[{index}].addresses")
    for index, sealed in enumerate(_objects(value["sealed_for"], "sealed_for", check)):
        if check.keys(sealed, f"sealed_for[{index}]", _SEALED):
            check.utc(sealed["joined_at"], f"sealed_for[{index}].joined_at")
    seen = set()
    files = _objects(value["files"], "files", check)
    if not files:
        check.add("EMPTY", "it lists no file")
    for index, entry in enumerate(files):
        where = f"files[{index}]"
        if not check.keys(entry, where, _FILE):
            continue
        problem = path_problem(entry["path"])
        if problem:
            check.add("BAD_NAME", f"{where}: {entry['path']!r} {problem}")
        if entry["path"] in seen:
            check.add("INCONSISTENT", f"{where}: {entry['path']!r} is listed twice")
        seen.add(entry["path"])
        if entry["size"] < 0:
            check.add("WRONG_VALUE", f"{where}: size {entry['size']}")
        _seconds(entry["mtime"], f"{where}.mtime", check)
        if not SHA256.match(entry["sha256"]):
            check.add("WRONG_VALUE", f"{where}: {entry['sha256']!r} is not a SHA-256")


def _seconds(value: int, where: str, check: Checker) -> None:
    """What a system can say, however wrong its clock is; nobody can reckon with more."""
    if abs(value) >= 1 << 64:
        check.add("WRONG_VALUE", f"{where} is no time of any system")


def _objects(items: list[Any], where: str, check: Checker) -> list[dict[str, Any]]:
    if all(isinstance(item, dict) for item in items):
        return items
    check.add("WRONG_TYPE", f"{where} is not a list of objects")
    return []
