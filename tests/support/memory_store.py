# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A database in memory with the methods of ``standin.db.Store``, for tests of what needs no Cassandra."""

from __future__ import annotations

from standin import db


class MemoryStore:
    """Rows in a dictionary; ``quorum`` False refuses what Cassandra would refuse without a majority."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], bytes] = {}
        self.sealed: list[db.SealedCopy] = []
        self.quorum = True
        self.all = True

    def _write(self) -> None:
        if not self.quorum:
            raise db.StoreUnavailable("Unavailable at quorum")

    def get(self, table: str, owner: str, row_id: str) -> bytes | None:
        return self.rows.get((table, owner, row_id))

    def scan(self, table: str, owner: str) -> list[tuple[str, bytes]]:
        return sorted((key[2], value) for key, value in self.rows.items() if key[:2] == (table, owner))

    def put(self, table: str, owner: str, row_id: str, value: bytes, ttl_s: int = 0) -> None:
        self._write()
        self.rows[table, owner, row_id] = value

    def put_new(self, table: str, owner: str, row_id: str, value: bytes) -> bool:
        self._write()
        return self.rows.setdefault((table, owner, row_id), value) is value

    def delete(self, table: str, owner: str, row_id: str) -> None:
        self._write()
        self.rows.pop((table, owner, row_id), None)

    def put_sealed_copy(self, node: str, generation: int, blob: bytes) -> None:
        self._write()
        self.sealed.append(db.SealedCopy(node, blob))

    def sealed_copies(self) -> list[db.SealedCopy]:
        return list(self.sealed)

    def probe(self, consistency: str) -> None:
        if (consistency == "all" and not self.all) or (consistency in ("quorum", "all") and not self.quorum):
            raise db.StoreUnavailable(f"Unavailable at {consistency}")
