# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups as the product makes them: a Cassandra snapshot of every reachable member, always full, by ``scp``.

``backup:`` and ``auditBackup:`` of ``config.yaml`` say when and where to [doc: audit log backup article]. What no
public text tells (names, archive or directories, compression) differs by release here, so that nobody depends on it:

* 5.4: one file ``sdkms_backup_<UTC>.tar.gz`` (``sdkms_audit_backup_…`` for the audit job);
* 5.6 and later: a directory ``<UTC>/<node>/…`` without compression (``audit-<UTC>/…``).

A backup without ``scp`` stays in /var/lib/standin/backup.

Faults: ``backup-not-made``, ``backup-zero-bytes``, ``backup-truncated``, ``backup-part-missing`` (``table=``),
``backup-growing`` (``seconds=`` that the delivery takes), ``backup-foreign`` (``path=`` of a backup of another cluster
that is delivered instead). Knobs: ``backup-ballast`` (``megabytes=``), ``backup-fixed-name`` (every delivery has the
same name, so that each one overwrites the one before).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from standin import cron, db, faults, node

SECTIONS = ("backup", "auditBackup")
AUDIT_TABLES = ("audit_log",)
LOCAL_DIRECTORY = node.STATE_DIR / "backup"
STAGE = node.STATE_DIR / "backup-stage"
LOCK = Path("/run/standin-backup.lock")
LOG = Path("/var/log/standin-backup.log")
CONFIG_CACHE = node.STATE_DIR / "config.yaml"
DEFAULT_IDENTITY = "/etc/dsm/delivery_ed25519"
_TABLE = re.compile(r"^(?P<table>[a-z_0-9]+)-[0-9a-f]{32}$")
_SCP_TIMEOUT_S = 3600
_LOCK_WAIT_S = 90.0


def stamp(moment: dt.datetime | None = None) -> str:
    """Return a UTC time as it stands in names of backups."""
    return (moment or dt.datetime.now(dt.timezone.utc)).strftime("%Y%m%dT%H%M%SZ")


def say(text: str) -> None:
    """Append a line to the stand-in's backup log on this node."""
    with LOG.open("a", encoding="utf-8") as stream:
        stream.write(f"{stamp()} stand-in: {text}\n")


def words(error: BaseException) -> str:
    """Return what an error says without the banner that it may carry."""
    return str(error).removeprefix("stand-in: ")


# -- what is due ---------------------------------------------------------------------------------------------------
def parse_config(text: str) -> dict[str, Any]:
    """Return ``config.yaml`` as a mapping; raises StandinError for anything the stand-in could not carry out."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise node.StandinError(f"stand-in: config.yaml is not YAML: {error}") from error
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise node.StandinError("stand-in: config.yaml is not a mapping")
    for name in SECTIONS:
        section = document.get(name)
        if section is None:
            continue
        if not isinstance(section, dict):
            raise node.StandinError(f"stand-in: {name}: in config.yaml is not a mapping")
        try:
            cron.parse(str(section.get("cron_schedule", "")))
        except ValueError as error:
            raise node.StandinError(f"stand-in: {name}: cron_schedule: {error}") from error
        if section.get("backup_mode", "snapshot") != "snapshot":
            raise node.StandinError(f"stand-in: {name}: unknown backup_mode {section['backup_mode']!r}")
        scp = section.get("scp")
        if scp is not None:
            missing = [key for key in ("server_ip", "username", "path") if not (isinstance(scp, dict) and scp.get(key))]
            if missing:
                raise node.StandinError(f"stand-in: {name}: scp lacks {', '.join(missing)}")
    return document


def due(document: dict[str, Any], moment: dt.datetime) -> list[str]:
    """Return the sections whose schedule fires in the minute of ``moment``; cron is UTC."""
    return [
        name
        for name in SECTIONS
        if document.get(name) and cron.parse(str(document[name]["cron_schedule"])).fires(moment)
    ]


def tables_of(section: str, document: dict[str, Any]) -> Callable[[str], bool]:
    """Return which tables a job takes: the audit job only the audit log, the other one all or all but that."""
    if section == "auditBackup":
        return lambda table: table in AUDIT_TABLES
    if (document.get("backup") or {}).get("exclude_auditlog"):
        return lambda table: table not in AUDIT_TABLES
    return lambda table: True


def whole_directory(version: str) -> bool:
    """Tell whether this release delivers a directory (5.6 and later) and not one archive."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return (major, minor) >= (5, 6)


def read_config(cfg: node.NodeConfig) -> dict[str, Any]:
    """Return the cluster's configuration: of the cluster itself, or the copy that the agent keeps."""
    from standin import kube

    with contextlib.suppress(kube.ApiError, OSError):
        text = kube.local(cfg).read_config()
        if text is not None:
            return parse_config(text)
    try:
        return parse_config(CONFIG_CACHE.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise node.StandinError("stand-in: this host has no config.yaml of a cluster") from error


# -- taking --------------------------------------------------------------------------------------------------------
def require_whole_tar(stream: IO[bytes]) -> None:
    """Refuse a tar without its end mark: the connection broke; leaves the stream at its start."""
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - 1024))
    if size < 1024 or stream.read().strip(b"\0"):
        raise node.StandinError(f"the snapshot ends early, after {size} bytes")
    stream.seek(0)


def unpack_snapshot(stream: IO[bytes], target: Path, wanted: Callable[[str], bool]) -> int:
    """Unpack a member's snapshot into ``target/<table>/``; returns the number of files."""
    files = 0
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            path = Path(member.name)
            tables = [found["table"] for part in path.parts if (found := _TABLE.match(part))]
            if not member.isfile() or not tables or not wanted(tables[-1]):
                continue
            source = archive.extractfile(member)
            place = target / tables[-1] / path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)  # type: ignore[arg-type]
            files += 1
    return files


def collect(members: Sequence[dict[str, str]], tag: str, target: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Fetch the snapshot of every reachable member at once; returns who answered, raises without a majority."""
    from standin import kube, membership

    answered: list[str] = []
    problems: list[str] = []

    def one(member: dict[str, str]) -> None:
        spool = target / f".{member['name']}.tar"
        try:
            with spool.open("w+b") as stream:
                membership.fetch_snapshot(member["address"], tag, stream)
                require_whole_tar(stream)
                unpack_snapshot(stream, target / member["name"], wanted)
            answered.append(member["name"])
        except (OSError, tarfile.TarError, node.StandinError, kube.ApiError) as error:
            shutil.rmtree(target / member["name"], ignore_errors=True)
            problems.append(f"{member['name']}: {error}")
        finally:
            spool.unlink(missing_ok=True)

    threads = [threading.Thread(target=one, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for problem in problems:
        say(f"no snapshot of {problem}")
    if len(answered) < len(members) // 2 + 1:
        raise node.StandinError(
            f"stand-in: no backup: only {len(answered)} of {len(members)} members gave a snapshot, "
            f"fewer than a quorum: {'; '.join(problems)}"
        )
    return sorted(answered)


def add_ballast(target: Path, megabytes: int) -> None:
    """Add a file of random bytes: the knob that makes a backup as big as a story needs it."""
    with (target / "ballast.bin").open("wb") as stream:
        for _ in range(megabytes):
            stream.write(os.urandom(1 << 20))


def spoil(stage: Path) -> None:
    """Apply the faults that change what is inside."""
    parameters = faults.active("backup-part-missing")
    if parameters is not None:
        faults.spend("backup-part-missing")
        table = str(parameters.get("table", "security_objects"))
        for path in stage.rglob("*-Data.db"):
            if path.parent.name == table:
                path.unlink()


def pack(stage: Path, directory: Path, name: str, as_directory: bool) -> Path:
    """Turn the staged files into what is delivered; returns its path under ``directory``."""
    if as_directory:
        return stage.rename(directory / name)
    path = directory / f"{name}.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        archive.add(stage, arcname=name)
    return path


def delivery_name(version: str, section: str, started: str) -> str:
    """Return the name of a delivery without its suffix, by release."""
    audit = section == "auditBackup"
    if faults.active("backup-fixed-name") is not None:
        started = "latest"
    if whole_directory(version):
        return f"audit-{started}" if audit else started
    return f"sdkms_audit_backup_{started}" if audit else f"sdkms_backup_{started}"


def damage(path: Path) -> None:
    """Apply the faults that spoil the finished delivery."""
    foreign = faults.active("backup-foreign")
    if foreign is not None:
        faults.spend("backup-foreign")
        if path.is_dir():
            shutil.rmtree(path)
            shutil.copytree(str(foreign["path"]), path)
        else:
            shutil.copyfile(str(foreign["path"]), path)
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    if faults.active("backup-zero-bytes") is not None:
        faults.spend("backup-zero-bytes")
        for item in files:
            os.truncate(item, 0)
    if faults.active("backup-truncated") is not None:
        faults.spend("backup-truncated")
        biggest = max(files, key=lambda item: item.stat().st_size)
        os.truncate(biggest, biggest.stat().st_size // 2)


# -- delivering ----------------------------------------------------------------------------------------------------
def scp_command(scp: dict[str, Any], path: Path, limit_kbit: int = 0) -> tuple[list[str], dict[str, str]]:
    """Return argv and extra environment that deliver ``path``; a password never stands in the argv."""
    argv = ["scp", "-q", "-r", "-o", "StrictHostKeyChecking=yes", "-o", "ConnectTimeout=15"]
    if limit_kbit:
        argv += ["-l", str(limit_kbit)]
    target = f"{scp['username']}@{scp['server_ip']}:{str(scp['path']).rstrip('/')}/"
    if str(scp.get("authmode", "password")) == "password":
        argv += ["-o", "PubkeyAuthentication=no", "-o", "NumberOfPasswordPrompts=1", str(path), target]
        return ["sshpass", "-e", *argv], {"SSHPASS": str(scp.get("password", ""))}
    identity = str(scp.get("private_key_file", DEFAULT_IDENTITY))
    return [*argv, "-o", "BatchMode=yes", "-i", identity, str(path), target], {}


def deliver(scp: dict[str, Any] | None, path: Path) -> None:
    """Deliver a finished backup; raises StandinError when ``scp`` did not succeed."""
    if scp is None:
        LOCAL_DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.rename(LOCAL_DIRECTORY / path.name)
        return
    limit = 0
    growing = faults.active("backup-growing")
    if growing is not None:
        faults.spend("backup-growing")
        size = sum(item.stat().st_size for item in [path, *path.rglob("*")] if item.is_file())
        limit = max(1, int(size * 8 / 1000 / faults.number(growing, "seconds", 60.0)))
    argv, extra = scp_command(scp, path, limit)
    done = subprocess.run(
        argv,
        env={**os.environ, **extra},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=_SCP_TIMEOUT_S,
    )
    if done.returncode:
        raise node.StandinError(f"stand-in: scp to {scp['server_ip']} failed: {done.stderr.strip()[:300]}")


# -- one backup ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def _alone() -> Iterator[None]:
    with LOCK.open("w") as stream:
        deadline = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= deadline:
                    raise node.StandinError("stand-in: another backup is still running on this node") from error
                time.sleep(0.2)
        yield


def schema_text(address: str) -> str:
    """Return the schema of the keyspace as the database describes it."""
    store = db.connect(address, 10.0)
    try:
        return store.describe_schema()
    finally:
        store.close()


def perform(cfg: node.NodeConfig, section: str, begun: Callable[[], None] = lambda: None) -> Path | None:
    """Make and deliver one backup; ``begun`` is called when the first snapshot exists. Returns the delivered name."""
    from standin import cassandra

    if faults.active("backup-not-made") is not None:
        faults.spend("backup-not-made")
        begun()
        say(f"{section}: done")
        return None
    with contextlib.ExitStack() as afterwards, _alone():
        document = read_config(cfg)
        if not document.get(section):
            raise node.StandinError(f"stand-in: config.yaml has no {section}: section, so there is no backup to make")
        started = stamp()
        tag = f"{section.lower()}-{started}"
        members = cassandra.known_members() or [{"name": cfg.name, "address": cfg.address}]
        afterwards.callback(drop_snapshots, members, tag)  # when the next backup may begin already
        shutil.rmtree(STAGE, ignore_errors=True)
        stage = STAGE / "files"
        stage.mkdir(mode=0o700, parents=True)
        try:
            cassandra.nodetool("snapshot", "-t", tag, db.KEYSPACE)
            begun()
            say(f"{section}: snapshot {tag} begun")
            answered = collect(members, tag, stage, tables_of(section, document))
            path = finish(cfg, stage, answered, delivery_name(cfg.version, section, started))
            size = sum(item.stat().st_size for item in [path, *path.rglob("*")] if item.is_file())
            deliver(document[section].get("scp"), path)
            say(f"{section}: delivered {path.name}, {size} bytes, members {' '.join(answered)}")
        finally:
            shutil.rmtree(STAGE, ignore_errors=True)
    return Path(path.name)


def finish(cfg: node.NodeConfig, stage: Path, members: Sequence[str], name: str) -> Path:
    """Add schema and ballast to the collected files, pack them, and spoil them where a fault says so."""
    schema = schema_text(cfg.address)
    for place in [stage / member for member in members] if whole_directory(cfg.version) else [stage]:
        place.mkdir(exist_ok=True)
        (place / "keyspace.cql").write_text(schema, encoding="utf-8")
    ballast = faults.active("backup-ballast")
    if ballast is not None:
        add_ballast(stage / members[0], int(faults.number(ballast, "megabytes", 8)))
    spoil(stage)
    path = pack(stage, STAGE, name, whole_directory(cfg.version))
    damage(path)
    return path


def drop_snapshots(members: Sequence[dict[str, str]], tag: str) -> None:
    """Let every member that can be reached forget a snapshot."""
    from standin import kube, membership

    for member in members:
        with contextlib.suppress(OSError, node.StandinError, kube.ApiError):
            membership.drop_snapshot(member["address"], tag)


def run_scheduled(cfg: node.NodeConfig, section: str | None = None) -> list[str]:
    """Make the backups that are due now (or the one named), one after the other; returns the names delivered.

    Called by the one member that leads this run. A failure is logged and does not keep the other section from running.
    """
    names = due(read_config(cfg), dt.datetime.now(dt.timezone.utc)) if section is None else [section]
    delivered: list[str] = []
    for name in names:
        try:
            path = perform(cfg, name)
        except (node.StandinError, db.StoreUnavailable, OSError, subprocess.TimeoutExpired) as error:
            say(f"{name}: FAILED: {words(error)}")
            continue
        if path is not None:
            delivered.append(path.name)
    return delivered


# -- backup now ----------------------------------------------------------------------------------------------------
def detach(work: Callable[[Callable[[str], None]], None], timeout_s: float = 120.0) -> str:
    """Do ``work`` in a session of its own; return what it first reports ("" when it said nothing and ended)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)

        def report(text: str) -> None:
            with contextlib.suppress(OSError):
                os.write(writer, text.encode() + b"\n")

        try:
            work(report)
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    return _first_line(reader, timeout_s)


def _first_line(reader: int, timeout_s: float) -> str:
    import select

    deadline = time.monotonic() + timeout_s
    data = b""
    with os.fdopen(reader, "rb", buffering=0) as stream:
        while b"\n" not in data and (left := deadline - time.monotonic()) > 0:
            if not select.select([stream], [], [], left)[0]:
                break
            chunk = stream.read(4096)
            if not chunk:
                break
            data += chunk
    return data.partition(b"\n")[0].decode()


def backup_now(cfg: node.NodeConfig) -> int:
    """Begin a backup and return when its first snapshot exists; the rest goes on without the caller."""

    def work(report: Callable[[str], None]) -> None:
        try:
            perform(cfg, "backup", lambda: report("begun"))
        except (node.StandinError, db.StoreUnavailable, OSError, subprocess.TimeoutExpired) as error:
            say(f"backup: FAILED: {words(error)}")
            report(f"stand-in: {words(error)}")

    answer = detach(work)
    if answer == "begun":
        print("stand-in: backup begun")
        return 0
    print(answer or "stand-in: the backup did not begin in time", file=sys.stderr)
    return 1


def apply_config(cfg: node.NodeConfig, path: Path) -> int:
    """Make a file the cluster's configuration."""
    from standin import kube

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise node.StandinError(f"stand-in: cannot read {path}: {error}") from error
    parse_config(text)
    try:
        kube.local(cfg).publish_config(text)
    except (kube.ApiError, OSError) as error:
        raise node.StandinError(f"stand-in: the cluster did not take the configuration: {error}") from error
    print(f"stand-in: configuration {hashlib.sha256(text.encode()).hexdigest()[:12]} applied")
    return 0
