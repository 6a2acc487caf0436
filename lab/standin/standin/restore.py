# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's restore: plays the vendor's commands that no public text describes.

Two families, so that the product can depend on neither: ``restore-all --archive PATH`` and the four steps
``stop-backend``, ``load-database --from PATH``, ``check-unseal``, ``start-backend``. Both replace the whole keyspace
of a freshly created single-node cluster, the sealed copies of its own master key included, by ``nodetool import``.
Whether the node can then open anything is decided by the sealed copies in the backup and by nothing here.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from standin import db, faults, node

WORK = node.CASSANDRA_DIR / "restore"
STEPS = ("unpack", "stop", "schema", "import", "start")
LOAD_STEPS = ("unpack", "schema", "import")
_COMPONENT = re.compile(r"^[a-z]{2}-.+-(big|bti)-[A-Za-z0-9.]+$")
_KEYSPACE = re.compile(r"\bCREATE KEYSPACE (?:IF NOT EXISTS )?(\w+)\b", re.IGNORECASE)


# -- reading a backup ----------------------------------------------------------------------------------------------
def adapt_schema(text: str, rf: dict[str, int]) -> list[str]:
    """Return the statements of a backup's schema with the replication of this cluster instead of the old one's."""
    statements = [statement.strip() for statement in re.split(r";\s*(?:\n|$)", text) if statement.strip()]
    adapted: list[str] = []
    for statement in statements:
        keyspace = _KEYSPACE.match(statement)
        if keyspace:
            if keyspace[1] != db.KEYSPACE:
                raise node.StandinError(f"stand-in: the backup holds keyspace {keyspace[1]}, not {db.KEYSPACE}")
            adapted.insert(0, f"CREATE KEYSPACE {db.KEYSPACE} WITH replication = {db.replication_cql(rf)}")
        elif re.match(rf"CREATE (TABLE|TYPE|INDEX) (IF NOT EXISTS )?{db.KEYSPACE}\.", statement, re.IGNORECASE):
            adapted.append(statement)
        else:
            raise node.StandinError(f"stand-in: the backup's schema holds something else: {statement[:60]!r}")
    if not adapted or not adapted[0].startswith("CREATE KEYSPACE"):
        raise node.StandinError("stand-in: the backup's schema creates no keyspace")
    return adapted


def unpack(source: Path, target: Path) -> None:
    """Put the files of a backup, archive or directory, under ``target``; raises StandinError for a broken one."""
    if source.is_dir():
        archives = sorted(source.rglob("*.tar.gz"))
        if archives and not list(source.rglob("keyspace.cql")):
            if len(archives) > 1:
                raise node.StandinError(f"stand-in: {source} holds {len(archives)} archives, name one")
            source = archives[0]
        else:
            shutil.copytree(source, target)
            return
    target.mkdir(parents=True)
    try:
        with tarfile.open(source, "r:*") as archive:
            for member in archive:
                place = (target / member.name).resolve()
                if not place.is_relative_to(target.resolve()) or not (member.isfile() or member.isdir()):
                    raise node.StandinError(f"stand-in: the archive holds {member.name!r}, which no backup does")
                if member.isdir():
                    continue
                place.parent.mkdir(parents=True, exist_ok=True)
                stream = archive.extractfile(member)
                with place.open("wb") as sink:
                    shutil.copyfileobj(stream, sink, 1 << 20)  # type: ignore[arg-type]
    except (OSError, tarfile.TarError, EOFError) as error:
        raise node.StandinError(f"stand-in: {source} is no whole backup: {error}") from error


def find_tables(root: Path) -> tuple[str, dict[str, list[Path]]]:
    """Return the schema and, for each table, the directories (one a member) that hold its files."""
    schemas = sorted(root.rglob("keyspace.cql"))
    if not schemas:
        raise node.StandinError("stand-in: this is no backup: it holds no schema")
    tables: dict[str, list[Path]] = {}
    for directory in sorted({path.parent for path in root.rglob("*-Data.db")}):
        tables.setdefault(directory.name, []).append(directory)
    if not tables:
        raise node.StandinError("stand-in: this is no backup: it holds no tables")
    if "sealed_copies" not in tables:
        raise node.StandinError("stand-in: this is no backup of the database: it holds no sealed copies")
    return schemas[0].read_text(encoding="utf-8"), tables


def clean(directory: Path) -> None:
    """Leave only SSTable components in a directory: what else a snapshot holds is not for import."""
    for path in directory.iterdir():
        if not _COMPONENT.match(path.name):
            path.unlink()


# -- doing ---------------------------------------------------------------------------------------------------------
def stop_backend() -> None:
    """Stop the API of this node."""
    node.systemctl("stop", "standin-api")


def start_backend(cfg: node.NodeConfig, timeout: float = 60.0) -> bool:
    """Start the API of this node and wait for a verdict; returns whether it serves."""
    node.systemctl("reset-failed", "standin-api", check=False)
    node.systemctl("start", "standin-api")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        connection = http.client.HTTPSConnection(cfg.address, 443, timeout=10, context=context)
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/sys/v1/health")
            answer = connection.getresponse()
            if answer.status == 204:
                return True
            if b"sealed" in answer.read():
                return False
        connection.close()
        time.sleep(0.2)
    raise node.StandinError(f"stand-in: the backend gave no verdict within {timeout:.0f} s")


def load_database(
    cfg: node.NodeConfig, source: Path, steps: faults.Steps, before_replacing: Callable[[], None] = lambda: None
) -> None:
    """Replace the keyspace of this single-node cluster by that of a backup, once that has been found readable."""
    from standin import cassandra

    if not source.exists():
        raise node.StandinError(f"stand-in: there is no {source}")
    others = [member["name"] for member in cassandra.known_members() if member["address"] != cfg.address]
    if others:
        raise node.StandinError(
            f"stand-in: a restore needs a single-node cluster; members are also {', '.join(others)}"
        )
    steps.at("unpack")
    shutil.rmtree(WORK, ignore_errors=True)
    try:
        unpack(source, WORK / "files")
        schema, tables = find_tables(WORK / "files")
        store = db.connect(cfg.address, 20.0)
        try:
            rf = {store.local_datacenter(): 1}
            statements = adapt_schema(schema, rf)
            before_replacing()
            steps.at("schema")
            store.apply_schema(statements)
            steps.at("import")
            for table in sorted(tables):
                import_table(table, tables[table])
            drop_rows(store)
        finally:
            store.close()
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


def import_table(table: str, directories: list[Path]) -> None:
    """Load the files of one table, of all members, with the database's own import."""
    from standin import cassandra

    parts = []
    for number, directory in enumerate(directories):
        clean(directory)
        # The database silently finds nothing in a directory whose last parts are not KEYSPACE/TABLE, both of letters,
        # digits and underscores only (SSTable descriptor patterns of Cassandra 5.0): a node's name has a dash.
        part = WORK / "import" / str(number) / db.KEYSPACE / table
        part.parent.mkdir(parents=True, exist_ok=True)
        directory.rename(part)
        parts.append(str(part))
    cassandra.nodetool("import", db.KEYSPACE, table, *parts)
    left = [part for part in parts if list(Path(part).glob("*-Data.db"))]
    if left:
        raise node.StandinError(f"stand-in: the database did not take all files of {table}: {', '.join(left)}")
    print(f"stand-in: {table}: {len(directories)} parts loaded", flush=True)


def drop_rows(store: db.Store) -> None:
    """The fault ``restore-drops-rows``: lose some rows without a word."""
    parameters = faults.active("restore-drops-rows")
    if parameters is None:
        return
    faults.spend("restore-drops-rows")
    table, percent = str(parameters.get("table", "security_objects")), faults.number(parameters, "percent", 10.0)
    places = store.places(table)
    for owner, row_id in places[: max(1, round(len(places) * percent / 100))]:
        store.delete(table, owner, row_id)


def opens(cfg: node.NodeConfig) -> bool:
    """Tell whether a sealed copy in the database opens on this node."""
    from standin import api

    store = db.connect(cfg.address, 20.0)
    try:
        return api.open_master_key(store, node.platform_secret(cfg), cfg.version) is not None
    finally:
        store.close()


def _verdict(is_open: bool) -> int:
    if is_open:
        print("stand-in: the master key is open")
        return 0
    print("stand-in: SEALED: no copy of the master key in this database opens on this node", file=sys.stderr)
    return 1


def restore_all(cfg: node.NodeConfig, archive: Path) -> int:
    """Family A: everything at once."""
    steps = faults.Steps("restore-all", STEPS)

    def stop() -> None:
        steps.at("stop")
        stop_backend()

    load_database(cfg, archive, steps, stop)
    steps.at("start")
    return _verdict(start_backend(cfg))


def run(command: str, arguments: Sequence[str]) -> int:
    """Carry out one of the commands; returns its exit code."""
    parser = argparse.ArgumentParser(prog=command, description=f"{command} of the stand-in; not the real product")
    option = {"restore-all": "--archive", "load-database": "--from", "apply-config": "--config"}.get(command)
    if option:
        parser.add_argument(option, dest="path", required=True, type=Path)
    options = parser.parse_args(arguments)
    if os.geteuid() != 0:
        raise node.StandinError(f"stand-in: {command} must be run as root")
    cfg = node.load()
    node.note_command(command)
    if not node.is_member():
        raise node.StandinError("stand-in: this host has no cluster; create one first")
    if command == "restore-all":
        return restore_all(cfg, options.path)
    if command == "stop-backend":
        stop_backend()
        return 0
    if command == "load-database":
        load_database(cfg, options.path, faults.Steps("load-database", LOAD_STEPS))
        return 0
    if command == "check-unseal":
        return _verdict(opens(cfg))
    if command == "start-backend":
        return _verdict(start_backend(cfg))
    from standin import backup

    if command == "apply-config":
        return backup.apply_config(cfg, options.path)
    return backup.backup_now(cfg)


COMMANDS = (
    "restore-all",
    "stop-backend",
    "load-database",
    "check-unseal",
    "start-backend",
    "apply-config",
    "backup-now",
)


def main(arguments: Sequence[str]) -> int:
    """``python3 -m standin.restore COMMAND ARGUMENTS``, called by the scripts in /opt/fortanix/standin/bin."""
    if not arguments or arguments[0] not in COMMANDS:
        print(f"usage: standin.restore {'|'.join(COMMANDS)} [ARGUMENTS]", file=sys.stderr)
        return 2
    command, rest = arguments[0], arguments[1:]

    def body() -> int:
        try:
            return run(command, rest)
        except (node.StandinError, db.StoreUnavailable, OSError, subprocess.TimeoutExpired) as error:
            text = str(error)
            print(text if text.startswith("stand-in") else f"stand-in: {command}: {text}", file=sys.stderr)
            return 1

    return faults.around(command, body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
