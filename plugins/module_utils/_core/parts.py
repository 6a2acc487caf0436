# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What a recovery needs beside the data: the escrowed configuration, and the secrets of a site without SGX (F06).

A bundle is encrypted to people before it comes here; the store keeps it, and cannot read it. It serves every backup of
its generation, the newest one counts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Iterable, Mapping, Sequence

from .manifest import BACKUP_ID
from .strict import SHA256, Checker, Invalid, Problem, digest, load

SCHEMA = 1
KIND = "kmsops.fortanix_dsm/part"
PARTS = ("config", "secrets")
#: DER of the object identifiers of CMS enveloped and authenticated-enveloped data (RFC 5652, RFC 5083).
_ENVELOPED = (bytes.fromhex("06092a864886f70d010703"), bytes.fromhex("060b2a864886f70d0109100117"))
_PEM = b"-----BEGIN CMS-----"
_TOP: dict[str, Any] = {
    "schema": int,
    "kind": str,
    "cluster_id": str,
    "part": str,
    "id": str,
    "fingerprint": str,
    "stored_at": str,
    "run_id": str,
    "bytes": int,
    "sha256": str,
    "checksum": str,
}


@dataclass(frozen=True)
class Bundle:
    """One stored bundle; ``bytes`` and ``sha256`` are of the encrypted file."""

    cluster_id: str
    part: str
    id: str
    fingerprint: str
    stored_at: str
    run_id: str
    bytes: int
    sha256: str


def is_encrypted(head: bytes) -> bool:
    """Whether a file that begins so is CMS enveloped data, in PEM or DER: the store takes no secret in the clear."""
    return head.lstrip().startswith(_PEM) or (head[:1] == b"\x30" and any(mark in head[:32] for mark in _ENVELOPED))


def dump(bundle: Bundle) -> bytes:
    """The bytes of ``part.json``."""
    value = {"schema": SCHEMA, "kind": KIND, **asdict(bundle)}
    value["checksum"] = digest(value)
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode("ascii")


def parse(data: bytes, *, cluster_id: str, part: str, bundle_id: str) -> Bundle:
    """The bundle's document. Raises :class:`Invalid`: EMPTY, UNREADABLE, UNKNOWN_SCHEMA, CHECKSUM, FOREIGN, ..."""
    check = Checker(f"{part} {bundle_id}")
    value = load(data, check.what)
    if value.get("kind") != KIND or isinstance(value.get("schema"), bool) or value.get("schema") != SCHEMA:
        raise Invalid([Problem("UNKNOWN_SCHEMA", f"{check.what}: kind or schema is not understood")])
    if not check.keys(value, "the document", _TOP):
        check.done()
    if digest({name: item for name, item in value.items() if name != "checksum"}) != value["checksum"]:
        check.add("CHECKSUM", "its own checksum does not match")
    if (value["cluster_id"], value["part"], value["id"]) != (cluster_id, part, bundle_id):
        check.add("FOREIGN", f"it is {value['part']} {value['id']} of {value['cluster_id']}")
    if not BACKUP_ID.match(value["id"]) or not SHA256.match(value["sha256"]) or value["bytes"] < 1:
        check.add("WRONG_VALUE", "id, size or SHA-256 is impossible")
    check.utc(value["stored_at"], "stored_at")
    check.done()
    return Bundle(**{name: value[name] for name in _TOP if name not in ("schema", "kind", "checksum")})


def newest(bundles: Iterable[Bundle], fingerprint: str) -> Bundle | None:
    """The bundle that counts for a generation: the one with the highest number."""
    mine = [bundle for bundle in bundles if bundle.fingerprint == fingerprint]
    return max(mine, key=lambda bundle: bundle.id, default=None)


def missing(states: Mapping[str, str], required: Sequence[str]) -> list[Problem]:
    """Why a backup with these states of its parts (``ok``, ``missing``, ``failed``) is incomplete."""
    return [
        Problem("INCOMPLETE", f"part {part} is {states.get(part, 'missing')}")
        for part in required
        if states.get(part) != "ok"
    ]
