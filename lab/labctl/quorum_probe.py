# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on a lab host (by standard input, with Debian's driver): one read and one write at each consistency level.

Talks to the database alone and knows nothing of the stand-in: what fails here was refused by Cassandra itself.
Usage: python3 - ADDRESS prepare JSON-OF-REPLICATION | ADDRESS probe VALUE | ADDRESS drop. Prints JSON.
"""

from __future__ import annotations

import json
import sys

from cassandra import ConsistencyLevel
from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
from cassandra.policies import FallthroughRetryPolicy, WhiteListRoundRobinPolicy
from cassandra.query import SimpleStatement

LEVELS = ("LOCAL_QUORUM", "QUORUM", "ALL")


def main() -> None:
    address, action, *rest = sys.argv[1:]
    profile = ExecutionProfile(
        load_balancing_policy=WhiteListRoundRobinPolicy([address]),
        retry_policy=FallthroughRetryPolicy(),
        request_timeout=15,
    )
    cluster = Cluster(
        [address], protocol_version=4, execution_profiles={EXEC_PROFILE_DEFAULT: profile}, connect_timeout=15
    )
    session = cluster.connect()

    def ask(cql: str, level: str) -> list[tuple]:
        return list(session.execute(SimpleStatement(cql, consistency_level=getattr(ConsistencyLevel, level))))

    result = {}
    if action == "prepare":
        words = ", ".join(f"'{dc}': {count}" for dc, count in json.loads(rest[0]).items())
        replication = f"{{'class': 'NetworkTopologyStrategy', {words}}}"
        session.execute(f"CREATE KEYSPACE IF NOT EXISTS selftest WITH replication = {replication}")
        session.execute("CREATE TABLE IF NOT EXISTS selftest.t (id int PRIMARY KEY, v text)")
    elif action == "drop":
        session.execute("DROP KEYSPACE selftest")
    else:
        for level in LEVELS:
            for verb, cql in (
                ("write", f"INSERT INTO selftest.t (id, v) VALUES (1, '{rest[0]}')"),
                ("read", "SELECT v FROM selftest.t WHERE id = 1"),
            ):
                try:
                    rows = ask(cql, level)
                    result[f"{verb} {level}"] = rows[0][0] if rows else "ok"
                except Exception as error:
                    result[f"{verb} {level}"] = f"refused: {type(error).__name__}"
    print(json.dumps(result))
    cluster.shutdown()


main()
