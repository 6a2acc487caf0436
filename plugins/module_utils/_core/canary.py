# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a canary is, how it is kept in the cluster, and what proves it.

A canary is three keys. What is known about them (a ciphertext, a MAC and a signature over one short text that holds the
sequence number and the time) stands in the ``custom_metadata`` of the first key, written in one request. After a
restore the text that comes back from decryption says how old the restored data is: by content, not by a file's date.

PRIVATE to the collection.
"""

from __future__ import annotations

import base64
from datetime import datetime, timezone
from typing import Any, Mapping, NamedTuple

SCHEMA = "1"
PREFIX = "kmsops-canary-"
_FIELDS = ("schema", "sequence", "written_at", "cipher", "iv", "tag", "mac", "signature")
#: Kinds of keys: name suffix, and the request to make one as the published API description has it [doc].
KEYS: dict[str, tuple[str, dict[str, Any]]] = {
    "cipher": ("", {"obj_type": "AES", "key_size": 256, "key_ops": ["ENCRYPT", "DECRYPT", "APPMANAGEABLE"]}),
    "mac": ("-mac", {"obj_type": "HMAC", "key_size": 256, "key_ops": ["MACGENERATE", "MACVERIFY", "APPMANAGEABLE"]}),
    "signature": (
        "-sign",
        {"obj_type": "EC", "elliptic_curve": "NistP256", "key_ops": ["SIGN", "VERIFY", "APPMANAGEABLE"]},
    ),
}


class CanaryError(ValueError):
    """The marker in the cluster is not one of ours, or only half of one."""


class Marker(NamedTuple):
    """What is known: base64 texts as the API gives them, ``sequence`` from 1, ``written_at`` as ``…T…Z``."""

    sequence: int
    written_at: str
    cipher: str
    iv: str
    tag: str
    mac: str
    signature: str

    def as_metadata(self) -> dict[str, str]:
        """For ``custom_metadata``, whose values are texts [doc]."""
        return {PREFIX + "schema": SCHEMA, **{PREFIX + key: str(value) for key, value in self._asdict().items()}}


def plain_text(name: str, sequence: int, written_at: str) -> str:
    """The short text under all three, base64 as the API wants it."""
    return base64.b64encode(f"kmsops canary {name} {sequence} {written_at}".encode()).decode()


def marker_of(metadata: Mapping[str, Any] | None) -> Marker | None:
    """The marker in ``custom_metadata``, ``None`` when there is none yet. Raises :class:`CanaryError`."""
    ours = {key[len(PREFIX) :]: value for key, value in (metadata or {}).items() if key.startswith(PREFIX)}
    if not ours:
        return None
    if ours.get("schema") != SCHEMA:
        raise CanaryError(f"its schema is {ours.get('schema')!r}; this release knows {SCHEMA!r}")
    missing = sorted(set(_FIELDS) - set(ours))
    if missing:
        raise CanaryError(f"it lacks {', '.join(missing)}")
    try:
        sequence = int(str(ours["sequence"]))
        parse_time(str(ours["written_at"]))
    except ValueError as error:
        raise CanaryError(f"its sequence or time cannot be read: {error}") from error
    return Marker(sequence, *(str(ours[field]) for field in _FIELDS[2:]))


def parse_time(text: str) -> datetime:
    """``2026-11-22T01:02:03Z`` (fractions and offsets too). ``ValueError`` for anything without a zone."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone; write UTC with a Z at its end")
    return moment.astimezone(timezone.utc)


def recovery_point_seconds(written_at: str, reference: str) -> float:
    """Age of the canary that came back, at ``reference`` (the disaster), in seconds. Negative when it is younger."""
    return round((parse_time(reference) - parse_time(written_at)).total_seconds(), 3)


def failed_proofs(proofs: Mapping[str, bool]) -> list[str]:
    """Names of the proofs that did not hold."""
    return [name for name, held in proofs.items() if not held]
