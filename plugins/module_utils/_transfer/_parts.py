# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Bundles in the store, ``config/<id>/`` and ``secrets/<id>/``: the encrypted file, and ``part.json`` last."""

from __future__ import annotations

import hashlib
import os
import time
import typing as t

from .._core import catalogue, parts
from .._core.strict import Invalid, utc_text
from .._errors import DsmError, Refused, Unreadable
from ._disk import make_directory, read_bytes, remove_tree, write_atomically
from ._store import ClusterStore

LARGEST = 64 << 20
FILE = "bundle.cms"


def bundles(store: ClusterStore, part: str) -> list[parts.Bundle]:
    """The bundles whose documents are understood, by number."""
    found = []
    for name in _names(store, part):
        try:
            data = read_bytes(os.path.join(store.path, part, name, "part.json"))
            found.append(parts.parse(data, cluster_id=store.identity.cluster_id, part=part, bundle_id=name))
        except (FileNotFoundError, NotADirectoryError, Invalid, DsmError):
            continue
    return found


def _names(store: ClusterStore, part: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.join(store.path, part)))
    except (FileNotFoundError, NotADirectoryError):
        return []


def states(store: ClusterStore, read: bool = False) -> dict[str, dict[str, str]]:
    """Fingerprint of each generation -> part -> ``ok``, ``missing`` or ``failed``; with ``read`` every byte is read."""
    known = {part: bundles(store, part) for part in parts.PARTS}
    return {
        generation.fingerprint: {
            part: _state(store, parts.newest(known[part], generation.fingerprint), read) for part in parts.PARTS
        }
        for generation in store.identity.generations
    }


def _state(store: ClusterStore, bundle: parts.Bundle | None, read: bool) -> str:
    if bundle is None:
        return "missing"
    path = os.path.join(store.path, bundle.part, bundle.id, FILE)
    try:
        if os.lstat(path).st_size != bundle.bytes:
            return "failed"
        if read and hashlib.sha256(read_bytes(path)).hexdigest() != bundle.sha256:
            return "failed"
    except FileNotFoundError:
        return "missing"
    except (OSError, DsmError):
        return "failed"
    return "ok"


def wanted(store: ClusterStore, part: str, listed: t.Iterable[str], *, only_repair: bool) -> frozenset[str]:
    """Which bundles of another site are to be had: those that are damaged here, and those that are not here."""
    known = {bundle.id: bundle for bundle in bundles(store, part)}
    here = _names(store, part)
    found = set()
    for name in listed:
        damaged = name in here and (name not in known or _state(store, known[name], True) != "ok")
        if damaged or (name not in here and not only_repair):
            found.add(name)
    return frozenset(found)


def adopt(store: ClusterStore, bundle: parts.Bundle, data: bytes) -> None:
    """Store a bundle of another site as it is there, under the same id. Raises :class:`Unreadable` (CORRUPT)."""
    if len(data) != bundle.bytes or hashlib.sha256(data).hexdigest() != bundle.sha256:
        raise Unreadable(
            f"Bundle {bundle.part} {bundle.id} of the other store is not what was stored there.",
            "CORRUPT",
            "Make the bundle again and store it with module backup_part.",
        )
    directory = os.path.join(store.path, bundle.part, bundle.id)
    make_directory(os.path.dirname(directory))
    make_directory(directory)
    write_atomically(os.path.join(directory, FILE), data)
    write_atomically(os.path.join(directory, "part.json"), parts.dump(bundle))


def put(
    store: ClusterStore, part: str, source: str, fingerprint: str, run_id: str, write: bool
) -> tuple[parts.Bundle | None, parts.Bundle]:
    """Store a bundle unless the newest of its generation is the same; returns that one, and the one that counts now.

    Raises :class:`Refused` (SOURCE_UNREADABLE, SOURCE_EMPTY, TOO_LARGE, NOT_ENCRYPTED, UNKNOWN_GENERATION, LOCKED).
    """
    data = _readable(source)
    if store.identity.generation_of(fingerprint) is None:
        raise Refused(
            f"The store knows no generation {fingerprint[:16]} of cluster {store.identity.cluster_id}.",
            "UNKNOWN_GENERATION",
            "Take the fingerprint from cluster_info, or leave it out for the newest generation.",
        )
    sha256 = hashlib.sha256(data).hexdigest()
    before = parts.newest(bundles(store, part), fingerprint)
    if before is not None and before.sha256 == sha256 and _state(store, before, True) == "ok":
        return before, before
    now = time.time()
    name = catalogue.next_id(_names(store, part), int(now))
    cluster_id = store.identity.cluster_id
    bundle = parts.Bundle(cluster_id, part, name, fingerprint, utc_text(now), run_id, len(data), sha256)
    if write:
        with store.lease(run_id):
            directory = os.path.join(store.path, part, name)
            make_directory(os.path.dirname(directory))
            make_directory(directory)
            try:
                write_atomically(os.path.join(directory, FILE), data)
                write_atomically(os.path.join(directory, "part.json"), parts.dump(bundle))
            except DsmError:
                remove_tree(directory)
                raise
    return before, bundle


def _readable(source: str) -> bytes:
    """The bytes of an encrypted bundle."""
    try:
        if os.stat(source).st_size > LARGEST:
            raise Refused(f"{source} is too large for a bundle.", "TOO_LARGE", f"A bundle has at most {LARGEST} bytes.")
        with open(source, "rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise Refused(
            f"{source} cannot be read: {error.strerror}.", "SOURCE_UNREADABLE", "Give a file on the store."
        ) from None
    if not data:
        raise Refused(f"{source} is empty.", "SOURCE_EMPTY", "Make the bundle again.")
    if not parts.is_encrypted(data[:4096]):
        raise Refused(
            f"{source} is not encrypted, so it does not come into the store.",
            "NOT_ENCRYPTED",
            "Encrypt it to a recipient: openssl cms -encrypt -binary -aes256 -outform PEM -in FILE RECIPIENT.pem",
        )
    return data
