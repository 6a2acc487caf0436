# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's database: one keyspace in the real Cassandra ring.

All tables have the same shape, ``(owner, id) -> value``; every value except a sealed copy is a row that only the
cluster master key opens (see ``sealing``). Writes are made at QUORUM and nowhere else (a LOCAL_QUORUM write succeeds
in a cut-off data centre and would make two truths, measured); reads are made at QUORUM and fall back to LOCAL_QUORUM.

The Cassandra driver is imported when a connection is made, so the pure parts of the stand-in need no driver.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from typing import Any, NamedTuple

KEYSPACE = "dsm"
TABLES = ("directory", "security_objects", "sessions", "audit_log")
IN_DIRECTORY = frozenset({"meta", "lookups", "users", "accounts", "groups", "apps"})
"""Kinds of rows that share the table ``directory``: a restore starts a JVM for each table that it imports."""
_PROBE_ROW = ("probe", "1")
CONSISTENCIES = ("local_quorum", "quorum", "all")
_DATACENTER = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")
_REQUEST_TIMEOUT_S = 12.0
_STAY_LOCAL_S = 5.0
RING_PATIENCE_S = 120.0


class StoreUnavailable(Exception):
    """Cassandra did not answer with the consistency that was asked for."""


class SealedCopy(NamedTuple):
    """One wrapped copy of the cluster master key."""

    node: str
    blob: bytes


class RingMember(NamedTuple):
    """One member of the ring."""

    address: str
    host_id: str
    datacenter: str


def replication_cql(rf: dict[str, int]) -> str:
    """Return the replication map of CQL for copies per data centre, e.g. {"dc1": 1, "dc2": 1}."""
    if not rf:
        raise ValueError("a keyspace needs at least one data centre")
    for name, copies in rf.items():
        if not _DATACENTER.match(name) or copies < 1:
            raise ValueError(f"not a data centre with copies: {name!r}: {copies!r}")
    pairs = ", ".join(f"'{name}': {rf[name]}" for name in sorted(rf))
    return f"{{'class': 'NetworkTopologyStrategy', {pairs}}}"


def schema_cql(rf: dict[str, int]) -> list[str]:
    """Return the statements that create the keyspace and its tables."""
    statements = [f"CREATE KEYSPACE IF NOT EXISTS {KEYSPACE} WITH replication = {replication_cql(rf)}"]
    statements += [
        f"CREATE TABLE IF NOT EXISTS {KEYSPACE}.{table} (owner text, id text, value blob, PRIMARY KEY ((owner), id))"
        for table in TABLES
    ]
    statements.append(
        f"CREATE TABLE IF NOT EXISTS {KEYSPACE}.sealed_copies "
        "(node text, copy text, blob blob, PRIMARY KEY ((node), copy))"
    )
    return statements


class Store:
    """A connection to the Cassandra process of one node. Safe to use from several threads."""

    def __init__(self, cluster: Any, session: Any) -> None:
        self._cluster = cluster
        self._session = session
        self._prepared: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._local_until = 0.0

    # -- plumbing ---------------------------------------------------------------------------------------------------
    def _execute(self, cql: str, values: tuple[Any, ...] = (), consistency: str = "quorum") -> list[Any]:
        from cassandra import ConsistencyLevel, DriverException, InvalidRequest, OperationTimedOut
        from cassandra.cluster import NoHostAvailable
        from cassandra.protocol import ErrorMessage
        from cassandra.query import SimpleStatement

        level = getattr(ConsistencyLevel, consistency.upper())
        try:
            if values:
                with self._lock:
                    prepared = self._prepared.get(cql)
                    if prepared is None:
                        prepared = self._prepared[cql] = self._session.prepare(cql)
                statement = prepared.bind(values)
                statement.consistency_level = level
            else:
                statement = SimpleStatement(cql, consistency_level=level)
            return list(self._session.execute(statement))
        except InvalidRequest as error:
            raise StoreUnavailable(f"the database has no such table or keyspace: {error}") from error
        except (DriverException, ErrorMessage, OperationTimedOut, NoHostAvailable, OSError) as error:
            raise StoreUnavailable(f"{type(error).__name__} at {consistency}: {error}") from error

    def _read(self, cql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        if time.monotonic() >= self._local_until:
            try:
                return self._execute(cql, values)
            except StoreUnavailable:
                rows = self._execute(cql, values, "local_quorum")
                self._local_until = time.monotonic() + _STAY_LOCAL_S
                return rows
        return self._execute(cql, values, "local_quorum")

    def close(self) -> None:
        """End the connection."""
        self._cluster.shutdown()

    # -- schema -----------------------------------------------------------------------------------------------------
    def create_schema(self, rf: dict[str, int]) -> None:
        """Create keyspace and tables with ``rf`` copies per data centre; existing ones stay as they are."""
        for statement in schema_cql(rf):
            self._execute(statement)
        self._execute(f"INSERT INTO {KEYSPACE}.directory (owner, id, value) VALUES (?, ?, ?)", (*_PROBE_ROW, b""))

    def set_replication(self, rf: dict[str, int]) -> None:
        """Set the number of copies per data centre; the caller repairs or rebuilds where copies were added.

        The database refuses that while a member enters or leaves the ring, so it is tried again until that is over.
        """
        deadline = time.monotonic() + RING_PATIENCE_S
        while True:
            try:
                self._execute(f"ALTER KEYSPACE {KEYSPACE} WITH replication = {replication_cql(rf)}")
                return
            except StoreUnavailable as error:
                if "Cannot alter RF" not in str(error) or time.monotonic() >= deadline:
                    raise
            time.sleep(0.5)

    def replication(self) -> dict[str, int]:
        """Return the copies per data centre; empty when the keyspace does not exist."""
        rows = self._execute(
            "SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?", (KEYSPACE,), "one"
        )
        if not rows:
            return {}
        return {name: int(copies) for name, copies in rows[0].replication.items() if name != "class"}

    def describe_schema(self) -> str:
        """Return the CQL that makes this keyspace anew, as the database itself prints it."""
        rows = self._execute(f"DESCRIBE KEYSPACE {KEYSPACE}", (), "one")
        return "\n".join(row.create_statement for row in rows) + "\n"

    def apply_schema(self, statements: list[str]) -> None:
        """Drop the keyspace and make it anew from the statements of a backup."""
        self._execute(f"DROP KEYSPACE IF EXISTS {KEYSPACE}")
        for statement in statements:
            self._execute(statement)
        with self._lock:
            self._prepared.clear()

    def local_datacenter(self) -> str:
        """Return the name of the data centre that this Cassandra process belongs to."""
        return str(self._execute("SELECT data_center FROM system.local", (), "one")[0].data_center)

    def ring(self) -> list[RingMember]:
        """Return who is in the ring as this Cassandra process sees it, itself first; not whether they are up."""
        columns = "host_id, data_center"
        own = self._execute(f"SELECT broadcast_address AS address, {columns} FROM system.local", (), "one")
        peers = self._execute(f"SELECT peer AS address, {columns} FROM system.peers", (), "one")
        return [RingMember(str(row.address), str(row.host_id), str(row.data_center)) for row in [*own, *peers]]

    # -- sealed copies ----------------------------------------------------------------------------------------------
    def put_sealed_copy(self, node: str, generation: int, blob: bytes) -> None:
        """Keep a wrapped copy of the master key of one node.

        The generation is inside the wrapped copy and goes nowhere else: the database does not tell it.
        """
        del generation
        copy = hashlib.sha256(blob).hexdigest()
        self._execute(f"INSERT INTO {KEYSPACE}.sealed_copies (node, copy, blob) VALUES (?, ?, ?)", (node, copy, blob))

    def sealed_copies(self) -> list[SealedCopy]:
        """Return every wrapped copy in the database, of whichever node."""
        rows = self._read(f"SELECT node, blob FROM {KEYSPACE}.sealed_copies")
        return [SealedCopy(row.node, bytes(row.blob)) for row in rows]

    def delete_sealed_copies(self, node: str) -> None:
        """Drop all wrapped copies of one node (only with the knob ``remove-purges-sealed-row``)."""
        self._execute(f"DELETE FROM {KEYSPACE}.sealed_copies WHERE node = ?", (node,))

    # -- probes -----------------------------------------------------------------------------------------------------
    def probe(self, consistency: str) -> None:
        """Read the probe row at ``local_quorum``, ``quorum`` or ``all``; raises StoreUnavailable if that fails."""
        if consistency not in CONSISTENCIES:
            raise ValueError(f"unknown consistency {consistency!r}")
        self._execute(f"SELECT id FROM {KEYSPACE}.directory WHERE owner = ? AND id = ?", _PROBE_ROW, consistency)

    # -- rows -------------------------------------------------------------------------------------------------------
    @staticmethod
    def _home(table: str, owner: str) -> tuple[str, str]:
        """Return the Cassandra table and partition that hold a kind of rows of one owner."""
        return (
            (f"{KEYSPACE}.directory", f"{table}/{owner}") if table in IN_DIRECTORY else (f"{KEYSPACE}.{table}", owner)
        )

    def get(self, table: str, owner: str, row_id: str) -> bytes | None:
        """Return one row as it is stored, or None."""
        home, partition = self._home(table, owner)
        rows = self._read(f"SELECT value FROM {home} WHERE owner = ? AND id = ?", (partition, row_id))
        return bytes(rows[0].value) if rows else None

    def scan(self, table: str, owner: str) -> list[tuple[str, bytes]]:
        """Return all rows of one owner as (id, value), ordered by id."""
        home, partition = self._home(table, owner)
        rows = self._read(f"SELECT id, value FROM {home} WHERE owner = ?", (partition,))
        return [(row.id, bytes(row.value)) for row in rows]

    def put(self, table: str, owner: str, row_id: str, value: bytes, ttl_s: int = 0) -> None:
        """Write one row at QUORUM; ``ttl_s`` > 0 lets it expire."""
        home, partition = self._home(table, owner)
        cql = f"INSERT INTO {home} (owner, id, value) VALUES (?, ?, ?) USING TTL ?"
        self._execute(cql, (partition, row_id, value, ttl_s))

    def put_new(self, table: str, owner: str, row_id: str, value: bytes) -> bool:
        """Write one row unless there is one (a Paxos round); returns whether it was written."""
        home, partition = self._home(table, owner)
        cql = f"INSERT INTO {home} (owner, id, value) VALUES (?, ?, ?) IF NOT EXISTS"
        return bool(self._execute(cql, (partition, row_id, value))[0][0])

    def delete(self, table: str, owner: str, row_id: str) -> None:
        """Delete one row at QUORUM."""
        home, partition = self._home(table, owner)
        self._execute(f"DELETE FROM {home} WHERE owner = ? AND id = ?", (partition, row_id))

    def places(self, table: str) -> list[tuple[str, str]]:
        """Return (owner, id) of every row of a table that is not ``directory``."""
        return [(row.owner, row.id) for row in self._read(f"SELECT owner, id FROM {KEYSPACE}.{table}")]


def connect(address: str, timeout_s: float) -> Store:
    """Connect to the Cassandra process at ``address`` and to no other; raises StoreUnavailable after ``timeout_s``."""
    from cassandra import DriverException, OperationTimedOut
    from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile, NoHostAvailable
    from cassandra.policies import ConstantReconnectionPolicy, FallthroughRetryPolicy, WhiteListRoundRobinPolicy

    profile = ExecutionProfile(
        load_balancing_policy=WhiteListRoundRobinPolicy([address]),
        retry_policy=FallthroughRetryPolicy(),
        request_timeout=_REQUEST_TIMEOUT_S,
    )
    cluster = Cluster(
        [address],
        protocol_version=4,
        execution_profiles={EXEC_PROFILE_DEFAULT: profile},
        reconnection_policy=ConstantReconnectionPolicy(1.0, max_attempts=None),
        connect_timeout=timeout_s,
        control_connection_timeout=timeout_s,
        schema_event_refresh_window=-1,
        schema_metadata_enabled=False,
        token_metadata_enabled=False,
        executor_threads=2,
    )
    try:
        return Store(cluster, cluster.connect())
    except (DriverException, OperationTimedOut, NoHostAvailable, OSError) as error:
        cluster.shutdown()
        raise StoreUnavailable(f"no Cassandra at {address}: {error}") from error
