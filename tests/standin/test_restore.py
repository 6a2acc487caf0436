# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup of the stand-in is made of, and how it is read back; the database itself is tested in the lab."""

from __future__ import annotations

import io
import json
import re
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest
from standin import backup, cassandra, db, faults, node, restore

SCHEMA = "".join(f"{statement};\n\n" for statement in db.schema_cql({"dc1": 1, "dc2": 2, "dc3": 1}))


def snapshot_tar(files: dict[str, bytes]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    stream.seek(0)
    return stream


TABLE = "security_objects-0123456789abcdef0123456789abcdef"
AUDIT = "audit_log-0123456789abcdef0123456789abcdef"


@pytest.fixture(autouse=True)
def faults_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "faults"
    directory.mkdir()
    monkeypatch.setattr(faults, "FAULTS_DIR", directory)
    return directory


def test_the_schema_is_given_the_replication_of_the_new_cluster() -> None:
    statements = restore.adapt_schema(SCHEMA.replace("IF NOT EXISTS ", ""), {"oor": 1})
    assert statements[0] == "CREATE KEYSPACE dsm WITH replication = {'class': 'NetworkTopologyStrategy', 'oor': 1}"
    assert not [statement for statement in statements if "dc1" in statement]
    assert len(statements) == len(db.schema_cql({"dc1": 1}))
    assert all(f"dsm.{table} " in "".join(statements) for table in db.TABLES)


@pytest.mark.parametrize(
    "text",
    ["", "CREATE TABLE dsm.a (b int PRIMARY KEY);", "CREATE KEYSPACE other WITH replication = {};",
     "CREATE KEYSPACE dsm WITH replication = {};\nDROP KEYSPACE system_auth;",
     "CREATE KEYSPACE dsm WITH replication = {};\nCREATE TABLE other.a (b int PRIMARY KEY);"],
)  # fmt: skip
def test_a_schema_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(node.StandinError, match="backup"):
        restore.adapt_schema(text, {"oor": 1})


@pytest.mark.parametrize("name", ["dc1'}; DROP", "", "a b"])
def test_a_data_centre_name_cannot_end_the_statement(name: str) -> None:
    with pytest.raises(ValueError, match="data centre"):
        db.replication_cql({name: 1})


def test_a_snapshot_is_unpacked_by_table(tmp_path: Path) -> None:
    stream = snapshot_tar({f"{TABLE}/nb-1-big-Data.db": b"data", f"{AUDIT}/nb-1-big-Data.db": b"log", "README": b""})
    assert backup.unpack_snapshot(stream, tmp_path, backup.tables_of("backup", {"backup": {}})) == 2
    assert (tmp_path / "security_objects/nb-1-big-Data.db").read_bytes() == b"data"
    assert (tmp_path / "audit_log/nb-1-big-Data.db").exists()


@pytest.mark.parametrize(
    ("section", "exclude", "tables"),
    [
        ("backup", False, {"audit_log", "security_objects"}),
        ("backup", True, {"security_objects"}),
        ("auditBackup", True, {"audit_log"}),
    ],
)
def test_the_audit_log_is_taken_or_left(tmp_path: Path, section: str, exclude: bool, tables: set[str]) -> None:
    stream = snapshot_tar({f"{TABLE}/nb-1-big-Data.db": b"data", f"{AUDIT}/nb-1-big-Data.db": b"log"})
    document = {"backup": {"exclude_auditlog": exclude}}
    backup.unpack_snapshot(stream, tmp_path / "x", backup.tables_of(section, document))
    assert {path.name for path in (tmp_path / "x").iterdir()} == tables


def test_a_snapshot_that_was_cut_off_is_noticed() -> None:
    whole = snapshot_tar({f"{TABLE}/nb-1-big-Data.db": b"d" * 3000})
    backup.require_whole_tar(whole)
    assert whole.tell() == 0
    for size in (0, 512, 3584):
        with pytest.raises(node.StandinError, match="ends early"):
            backup.require_whole_tar(io.BytesIO(whole.getvalue()[:size]))


def staged(tmp_path: Path) -> Path:
    stage = tmp_path / "files"
    for member in ("n1", "n2"):
        for table in ("security_objects", "sealed_copies"):
            (stage / member / table).mkdir(parents=True)
            (stage / member / table / "nb-1-big-Data.db").write_bytes(b"x" * 4000)
            (stage / member / table / "manifest.json").write_bytes(b"{}")
    (stage / "keyspace.cql").write_text(SCHEMA)
    return stage


@pytest.mark.parametrize("as_directory", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_what_is_delivered_is_read_back_in_either_form(tmp_path: Path, as_directory: bool, inside: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    path = backup.pack(staged(tmp_path), out, "sdkms_backup_20260102T030405Z", as_directory)
    assert path.name == ("sdkms_backup_20260102T030405Z" + ("" if as_directory else ".tar.gz"))
    restore.unpack(out if inside else path, tmp_path / "back")
    schema, tables = restore.find_tables(tmp_path / "back")
    assert schema == SCHEMA
    assert {name: len(parts) for name, parts in tables.items()} == {"security_objects": 2, "sealed_copies": 2}
    restore.clean(tables["sealed_copies"][0])
    assert [path.name for path in tables["sealed_copies"][0].iterdir()] == ["nb-1-big-Data.db"]


# Where Cassandra 5.0 looks for the files of a table (Directories and Descriptor, LEGACY_SSTABLE_DIR_PATTERN).
TAKEN = re.compile(r".*/(\w+)/(\w+)$")


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A nodetool that takes what the real one takes, and says nothing of what it leaves."""
    taken: list[str] = []

    def nodetool(command: str, keyspace: str, table: str, *directories: str) -> str:
        for directory in directories:
            place = TAKEN.match(directory)
            if command == "import" and place and place.groups() == (keyspace, table):
                for path in Path(directory).iterdir():
                    path.unlink()
                taken.append(directory)
        return ""

    monkeypatch.setattr(cassandra, "nodetool", nodetool)
    monkeypatch.setattr(restore, "WORK", tmp_path / "work")
    return taken


def test_the_files_of_every_member_are_taken(tmp_path: Path, imports: list[str]) -> None:
    stage = staged(tmp_path)
    (stage / "n1").rename(stage / "dc1-n1")
    tables = restore.find_tables(stage)[1]
    for table in tables:
        restore.import_table(table, tables[table])
    assert len(imports) == 4


def test_files_that_the_database_leaves_are_noticed(
    tmp_path: Path, imports: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cassandra, "nodetool", lambda *arguments: "")
    tables = restore.find_tables(staged(tmp_path))[1]
    with pytest.raises(node.StandinError, match="did not take all files of sealed_copies"):
        restore.import_table("sealed_copies", tables["sealed_copies"])


def test_a_backup_of_the_audit_log_alone_is_no_backup_of_the_database(tmp_path: Path) -> None:
    stage = staged(tmp_path)
    for member in ("n1", "n2"):
        (stage / member / "sealed_copies").rename(stage / member / "audit_log")
    with pytest.raises(node.StandinError, match="no sealed copies"):
        restore.find_tables(stage)


@pytest.mark.parametrize("fault", ["backup-zero-bytes", "backup-truncated"])
def test_a_spoiled_archive_is_refused_before_anything_is_dropped(
    tmp_path: Path, faults_directory: Path, fault: str
) -> None:
    path = backup.pack(staged(tmp_path), tmp_path, "b", False)
    before = path.stat().st_size
    (faults_directory / f"{fault}.json").write_text("{}")
    backup.damage(path)
    assert path.stat().st_size == (0 if fault == "backup-zero-bytes" else before // 2)
    with pytest.raises(node.StandinError, match="no whole backup"):
        restore.unpack(path, tmp_path / "back")


def test_a_part_can_be_missing(tmp_path: Path, faults_directory: Path) -> None:
    (faults_directory / "backup-part-missing.json").write_text('{"times": 1}')
    stage = staged(tmp_path)
    backup.spoil(stage)
    assert list(restore.find_tables(stage)[1]) == ["sealed_copies"]
    assert faults.active("backup-part-missing") is None


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd"])
def test_an_archive_cannot_write_elsewhere(tmp_path: Path, name: str) -> None:
    path = tmp_path / "b.tar"
    path.write_bytes(snapshot_tar({name: b"x"}).getvalue())
    with pytest.raises(node.StandinError, match="which no backup does"):
        restore.unpack(path, tmp_path / "back")


def test_what_is_no_backup_says_so(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(node.StandinError, match="no schema"):
        restore.find_tables(tmp_path / "x")
    (tmp_path / "x/keyspace.cql").write_text(SCHEMA)
    with pytest.raises(node.StandinError, match="no tables"):
        restore.find_tables(tmp_path / "x")


SCP = {"server_ip": "192.0.2.1", "username": "backup", "password": "s3cret", "path": "/srv/in/"}


def test_a_password_is_in_no_argument() -> None:
    argv, extra = backup.scp_command(SCP, Path("/x/b.tar.gz"))
    assert argv[-1] == "backup@192.0.2.1:/srv/in/"
    assert not [word for word in argv if "s3cret" in word]
    assert extra == {"SSHPASS": "s3cret"}
    argv, extra = backup.scp_command(dict(SCP, authmode="private key"), Path("/x/b.tar.gz"), 800)
    assert argv[:2] == ["scp", "-q"]
    assert argv[argv.index("-i") + 1] == backup.DEFAULT_IDENTITY
    assert argv[argv.index("-l") + 1] == "800"
    assert extra == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("backup:\n\tcron_schedule: x\n", "not YAML"),
        ("- a\n", "not a mapping"),
        ("backup: []\n", "not a mapping"),
        ("backup: {}\n", "cron_schedule"),
        ("backup: {cron_schedule: '61 * * * *'}\n", "no minute"),
        ("backup: {cron_schedule: '1 * * * *', backup_mode: copy}\n", "backup_mode"),
        ("auditBackup: {cron_schedule: '1 * * * *', scp: {path: /x}}\n", "server_ip, username"),
    ],
)
def test_a_configuration_that_cannot_be_carried_out_is_refused(text: str, words: str) -> None:
    with pytest.raises(node.StandinError, match=words):
        backup.parse_config(text)


@pytest.mark.parametrize(
    ("version", "directory", "names"),
    [
        ("5.4.2031-standin", False, ["sdkms_backup_NOW", "sdkms_audit_backup_NOW"]),
        ("5.6.2919-standin", True, ["NOW", "audit-NOW"]),
        ("6.0.1-standin", True, ["NOW", "audit-NOW"]),
    ],
)
def test_the_form_differs_by_release(version: str, directory: bool, names: list[str], faults_directory: Path) -> None:
    assert backup.whole_directory(version) is directory
    assert [backup.delivery_name(version, section, "NOW") for section in backup.SECTIONS] == names
    (faults_directory / "backup-fixed-name.json").write_text("{}")
    fixed = [backup.delivery_name(version, "backup", started) for started in ("NOW", "LATER")]
    assert fixed[0] == fixed[1] != names[0]


@pytest.mark.parametrize("as_directory", [True, False])
def test_the_backup_of_another_cluster_comes_under_this_one_s_name(
    tmp_path: Path, faults_directory: Path, as_directory: bool
) -> None:
    other = backup.pack(staged(tmp_path), tmp_path, "other", as_directory)
    (faults_directory / "backup-foreign.json").write_text(json.dumps({"path": str(other)}))
    path = tmp_path / "mine"
    if as_directory:
        path.mkdir()
    path = path if as_directory else path.with_suffix(".tar.gz")
    backup.damage(path)
    restore.unpack(path, tmp_path / "back")
    assert restore.find_tables(tmp_path / "back")[0] == SCHEMA


def test_a_detached_backup_reports_when_it_began_and_goes_on(tmp_path: Path) -> None:
    mark = tmp_path / "mark"

    def work(report: Any) -> None:
        report("begun")
        mark.write_text("done")

    assert backup.detach(work, 120) == "begun"
    for _ in range(12_000):
        if mark.exists() and mark.read_text():
            break
        threading.Event().wait(0.01)
    assert mark.read_text() == "done"


def test_a_detached_backup_that_dies_is_noticed() -> None:
    assert backup.detach(lambda report: None, 120) == ""
