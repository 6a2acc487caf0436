# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's key hierarchy: who can open what.

The real product promises [seed: backup and restore article] that a node encrypts the Cluster Master Key (CMK) with a
sealing key of its own, derived for that node *and that version of DSM*, and keeps the wrapped copy in the database.
Here the same thing happens with ordinary cryptography, so that "this backup opens on that node" is a fact of physics
and not of bookkeeping:

* ``sealing key = HKDF-SHA256(platform secret of the node, info = DSM version)``; a copy is AES-256-GCM under it.
  Nothing in the copy tells the generation, the platform or the version: a wrong one simply does not open.
* every row of the database is AES-256-GCM under ``HKDF-SHA256(CMK, info = generation and table)``; table, owner and id
  are authenticated, so rows can neither be moved nor be read under another generation.

The stand-in has no other way to a plaintext.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CMK_BYTES = 32
_NONCE_BYTES = 12
_SEALED_LABEL = b"kmsops stand-in sealed copy v1"
_ROW_LABEL = b"kmsops stand-in row v1"


class CannotOpen(Exception):
    """A row was not written under this CMK and generation, or it was altered or moved."""


def new_cmk() -> bytes:
    """Return a fresh random cluster master key of 32 bytes."""
    return os.urandom(CMK_BYTES)


def _derive(secret: bytes, *info: bytes) -> bytes:
    framed = b"".join(struct.pack(">H", len(part)) + part for part in info)
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=framed).derive(secret)


def seal(cmk: bytes, generation: int, platform_secret: bytes, version: str) -> bytes:
    """Wrap the CMK for one platform and one version of the software.

    The result holds a random nonce and a ciphertext; two calls never give the same bytes.
    """
    if len(cmk) != CMK_BYTES:
        raise ValueError(f"a cluster master key has {CMK_BYTES} bytes, not {len(cmk)}")
    if not platform_secret:
        raise ValueError("this node has no platform identity to seal for")
    nonce = os.urandom(_NONCE_BYTES)
    key = _derive(platform_secret, _SEALED_LABEL, version.encode())
    return nonce + AESGCM(key).encrypt(nonce, struct.pack(">I", generation) + cmk, _SEALED_LABEL)


def unseal(blob: bytes, platform_secret: bytes, version: str) -> tuple[bytes, int] | None:
    """Return (CMK, generation) when this platform and version sealed the copy, else None."""
    if len(blob) <= _NONCE_BYTES or not platform_secret:
        return None
    key = _derive(platform_secret, _SEALED_LABEL, version.encode())
    try:
        plain = AESGCM(key).decrypt(bytes(blob[:_NONCE_BYTES]), bytes(blob[_NONCE_BYTES:]), _SEALED_LABEL)
    except InvalidTag:
        return None
    return plain[4:], struct.unpack(">I", plain[:4])[0]


class RowCipher:
    """Encrypts and opens the rows of one CMK generation."""

    def __init__(self, cmk: bytes, generation: int) -> None:
        if len(cmk) != CMK_BYTES:
            raise ValueError(f"a cluster master key has {CMK_BYTES} bytes, not {len(cmk)}")
        self._cmk = cmk
        self._generation = struct.pack(">I", generation)
        self._keys: dict[str, AESGCM] = {}
        self._lookup_key = _derive(cmk, _ROW_LABEL, b"lookup", self._generation)
        self._token_key = AESGCM(_derive(cmk, _ROW_LABEL, b"token", self._generation))

    def _key(self, table: str) -> AESGCM:
        key = self._keys.get(table)
        if key is None:
            key = self._keys[table] = AESGCM(_derive(self._cmk, _ROW_LABEL, b"table", self._generation, table.encode()))
        return key

    @staticmethod
    def _place(table: str, owner: str, row_id: str) -> bytes:
        parts = (table.encode(), owner.encode(), row_id.encode())
        return b"".join(struct.pack(">H", len(part)) + part for part in parts)

    def close_row(self, table: str, owner: str, row_id: str, plain: bytes) -> bytes:
        """Encrypt one row for exactly this place in the database."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._key(table).encrypt(nonce, plain, self._place(table, owner, row_id))

    def open_row(self, table: str, owner: str, row_id: str, blob: bytes) -> bytes:
        """Decrypt one row; raises CannotOpen for another CMK, generation or place."""
        try:
            return self._key(table).decrypt(
                bytes(blob[:_NONCE_BYTES]), bytes(blob[_NONCE_BYTES:]), self._place(table, owner, row_id)
            )
        except (InvalidTag, ValueError) as error:
            raise CannotOpen(f"row {owner}/{row_id} of {table} does not open under this master key") from error

    def lookup(self, kind: str, value: str) -> str:
        """Return the blind index of a name (e-mail, object name …): equal names, equal index, nothing readable."""
        return hmac.new(self._lookup_key, (f"{kind}\0{value}").encode(), hashlib.sha256).hexdigest()

    def close_token(self, claims: bytes) -> bytes:
        """Encrypt the claims of a session token; every member of the cluster can open it."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._token_key.encrypt(nonce, claims, b"session")

    def open_token(self, blob: bytes) -> bytes | None:
        """Return the claims of a session token of this cluster, or None."""
        if len(blob) <= _NONCE_BYTES:
            return None
        try:
            return self._token_key.decrypt(blob[:_NONCE_BYTES], blob[_NONCE_BYTES:], b"session")
        except InvalidTag:
            return None
