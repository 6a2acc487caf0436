# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong use: each is answered with a code, all reasons and a remedy; nothing is published and nothing is lost."""

from __future__ import annotations

import contextlib
import errno
import gzip
import json
import os
import posixpath
import re
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Callable, Sequence

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import utc_seconds, utc_text
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _discover, _endpoint, _offers
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import LocalSession
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import GCM, connect
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.tests.integration.transfer.helpers import (
    CANARY,
    FINGERPRINT,
    MEMBERS,
    OTHER,
    PATIENCE,
    Result,
    Site,
    Sshd,
    await_that,
    free_port,
    growing,
    keygen,
    run_module,
    ssh_target,
    tree,
)


def refused(result: Result, code: str) -> str:
    """The refusal has this code, is about this only, and says what to do."""
    assert result.failed and code in result.codes, result.output
    assert set(result.codes) <= {code, "SHIP_INCOMPLETE"}, result.output
    assert result.remedy, result.output
    assert "Traceback" not in result.output
    return str(result.msg)


# -- the other host ------------------------------------------------------------------------------------------------


def test_f16_a_changed_host_key_is_refused_with_both_fingerprints(
    site: Site, own_server: Callable[..., Sshd], tmp_path: Path
) -> None:
    sshd = own_server()
    site.deliver()
    site.sshd = sshd
    pinned = subprocess.check_output(["ssh-keygen", "-lf", f"{sshd.host_key}.pub"], text=True).split()[1]
    sshd.stop()
    sshd.new_host_key()
    known = sshd.known_hosts.read_text()
    sshd.start()
    sshd.known_hosts.write_text(known)
    shown = subprocess.check_output(["ssh-keygen", "-lf", f"{sshd.host_key}.pub"], text=True).split()[1]
    message = refused(site.ship(), "HOST_KEY_CHANGED")
    assert pinned in message and shown in message
    assert not site.published()


def test_wrong_use_f16_an_unknown_host_is_told_its_fingerprint(site: Site, tmp_path: Path) -> None:
    site.deliver()
    empty = tmp_path / "known_hosts"
    empty.write_text("")
    shown = subprocess.check_output(["ssh-keygen", "-lf", f"{site.sshd.host_key}.pub"], text=True).split()[1]
    source = site.sshd.login(path=f"{site.source}/*", known_hosts=str(empty))
    assert shown in refused(site.ship(sources=[source]), "UNKNOWN_HOST")
    source["known_hosts"] = None
    refused(site.ship(sources=[source]), "UNKNOWN_HOST")
    source["known_hosts"] = str(tmp_path / "absent")
    refused(site.ship(sources=[source]), "HOST_KEY_UNREADABLE")
    source["host_key"] = "ssh-ed25519 nonsense!"
    refused(site.ship(sources=[source]), "HOST_KEY_UNREADABLE")


def test_a_key_of_another_type_is_a_changed_key(site: Site, tmp_path: Path) -> None:
    site.deliver()
    key = keygen(tmp_path / "other", "ecdsa")
    public = " ".join((tmp_path / "other.pub").read_text().split()[:2])
    source = site.sshd.login(path=f"{site.source}/*", host_key=public)
    refused(site.ship(sources=[source]), "HOST_KEY_CHANGED")
    assert key.exists()


def test_a_revoked_key_is_refused_although_it_is_pinned(site: Site, tmp_path: Path) -> None:
    site.deliver()
    hosts = tmp_path / "known_hosts"
    public = " ".join(Path(f"{site.sshd.host_key}.pub").read_text().split()[:2])
    hosts.write_text(site.sshd.known_hosts.read_text() + f"@revoked * {public}\n")
    source = site.sshd.login(path=f"{site.source}/*", known_hosts=str(hosts))
    refused(site.ship(sources=[source]), "HOST_KEY_REVOKED")


def test_a_literal_host_key_is_enough(site: Site) -> None:
    site.deliver()
    public = Path(f"{site.sshd.host_key}.pub").read_text().strip()
    source = site.sshd.login(path=f"{site.source}/*", host_key=public, known_hosts=None)
    assert site.ship(sources=[source]).changed


def test_a_host_where_nothing_listens(site: Site) -> None:
    refused(site.ship(sources=[site.sshd.login(path=f"{site.source}/*", port=free_port())]), "SSH_REFUSED")


def test_a_host_that_is_no_ssh_server(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def answer() -> None:
            connection, _address = listener.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 300)
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        refused(site.ship(sources=[site.sshd.login(path=f"{site.source}/*", port=port)]), "SSH_REFUSED")


def test_a_host_that_says_nothing_does_not_hang(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        source = site.sshd.login(path=f"{site.source}/*", port=port)
        refused(site.ship(sources=[source], connect_timeout=1), "SSH_REFUSED")


def test_a_name_that_does_not_resolve(site: Site) -> None:
    refused(site.ship(sources=[site.sshd.login(path="/x/*", host="no-such-host.invalid")]), "SSH_UNREACHABLE")


def test_wrong_use_no_sftp_subsystem(site: Site, own_server: Callable[..., Sshd]) -> None:
    site.deliver()
    site.sshd = own_server("Subsystem none")
    refused(site.ship(), "SFTP_MISSING")


def test_wrong_use_a_subsystem_that_only_talks(site: Site, own_server: Callable[..., Sshd]) -> None:
    site.deliver()
    site.sshd = own_server("Subsystem sftp /bin/echo This account is not available.")
    refused(site.ship(), "SFTP_MISSING")


def test_a_user_who_may_only_use_sftp_is_enough(site: Site, own_server: Callable[..., Sshd]) -> None:
    site.deliver()
    site.sshd = own_server("ForceCommand internal-sftp -R")
    result = site.ship()
    assert result.changed and result.backups[0]["source"]["clock_skew"] is None, result.output


def test_a_host_that_allows_one_channel_gives_its_files_and_not_its_clock(
    site: Site, own_server: Callable[..., Sshd]
) -> None:
    site.deliver()
    site.sshd = own_server("MaxSessions 1")
    result = site.ship()
    assert result.changed and result.backups[0]["source"]["clock_skew"] is None, result.output


# -- keys ----------------------------------------------------------------------------------------------------------


def test_a_key_that_the_host_does_not_know(site: Site, tmp_path: Path) -> None:
    site.deliver()
    key = keygen(tmp_path / "stranger")
    refused(site.ship(sources=[site.sshd.login(path=f"{site.source}/*", key_file=str(key))]), "AUTH_REFUSED")


def test_wrong_use_a_key_that_others_may_read(site: Site, tmp_path: Path) -> None:
    key = keygen(tmp_path / "open")
    key.chmod(0o640)
    assert "0640" in refused(site.ship(sources=[site.sshd.login(path="/x/*", key_file=str(key))]), "KEY_PERMISSIONS")


@pytest.mark.parametrize("content", [None, "", "nonsense\n", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_wrong_use_a_key_that_is_none(site: Site, tmp_path: Path, content: str | None) -> None:
    key = tmp_path / "key"
    if content is not None:
        key.write_text(content)
        key.chmod(0o600)
    refused(site.ship(sources=[site.sshd.login(path="/x/*", key_file=str(key))]), "KEY_UNREADABLE")


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_wrong_use_a_passphrase_missing_or_wrong(site: Site, tmp_path: Path, kind: str) -> None:
    site.deliver()
    key = keygen(tmp_path / "key", kind, CANARY)
    authorized = site.sshd.directory / "authorized"
    before = authorized.read_text()
    authorized.write_text(before + Path(f"{key}.pub").read_text())
    try:
        outputs = []
        source = site.sshd.login(path=f"{site.source}/*", key_file=str(key))
        missing = site.ship(sources=[source])
        assert "no passphrase was given" in refused(missing, "PASSPHRASE")
        wrong = site.ship(sources=[{**source, "passphrase": CANARY + "-wrong"}])
        refused(wrong, "PASSPHRASE")
        right = site.ship(sources=[{**source, "passphrase": CANARY}])
        assert right.changed, right.output
        outputs += [missing.output, wrong.output, right.output, *(read_all(site.store))]
        assert not [text for text in outputs if CANARY in text], "the passphrase leaked"
    finally:
        authorized.write_text(before)


def read_all(root: Path) -> list[str]:
    """The text of every document in a store (not of the backups themselves)."""
    return [path.read_text() for path in root.rglob("*") if path.is_file() and path.parent.name != "data"]


def test_f53_a_secret_among_all_options_reaches_no_output(site: Site, tmp_path: Path) -> None:
    """Also where a refusal talks about the very source that carries it, and where the defect handler answers."""
    site.deliver()
    key = keygen(tmp_path / "key", "ed25519", CANARY)
    for changes in (
        {"path": "/absent/*"},
        {"path": f"{site.source}/*", "port": free_port()},
        {"path": f"{site.source}/*", "host": "no-such-host.invalid"},
        {"path": f"{site.source}/*", "host_key": "x"},
        {"path": "relative"},
    ):
        source = site.sshd.login(key_file=str(key), passphrase=CANARY, **changes)
        result = site.ship(sources=[source])
        assert result.failed and CANARY not in result.output


def test_an_agent_holds_the_key(site: Site, tmp_path: Path) -> None:
    site.deliver()
    agent = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(agent)], stdout=subprocess.DEVNULL)
    try:
        await_that(agent.exists, "the agent does not start")
        environ = {"SSH_AUTH_SOCK": str(agent)}
        source = site.sshd.login(path=f"{site.source}/*", key_file=None)
        refused(site.ship(sources=[source], request={"environ": environ}), "AUTH_REFUSED")
        subprocess.run(
            ["ssh-add", "-q", str(site.sshd.client_key)], env={**os.environ, **environ}, check=True, capture_output=True
        )
        result = site.ship(sources=[source], request={"environ": environ})
        assert result.changed, result.output
    finally:
        process.terminate()
        process.wait(PATIENCE)


def test_no_key_and_no_agent(site: Site) -> None:
    refused(site.ship(sources=[site.sshd.login(path="/x/*", key_file=None)]), "AUTH_REFUSED")


# -- this host -----------------------------------------------------------------------------------------------------


def test_no_paramiko(site: Site) -> None:
    site.deliver()
    result = site.ship(request={"hide": ["paramiko"]})
    assert "paramiko" in refused(result, "NO_PARAMIKO")


def test_python_too_old(site: Site) -> None:
    site.deliver()
    refused(site.ship(request={"python": [99, 0]}), "PYTHON_TOO_OLD")


def test_no_store(site: Site) -> None:
    refused(site.ship(store=str(site.store / "absent")), "STORE_MISSING")


@pytest.mark.parametrize(
    "changes",
    [
        {"rate_limit": 0},
        {"rate_limit": -1},
        {"workers": 0},
        {"workers": 100},
        {"quiet": -1},
        {"headroom": -0.5},
        {"sources": []},
        {"sources": [{"path": "/x/*", "host": "h"}]},
        {"sources": [{"path": "/x/*", "hashes": {"/x/a": "md5"}}]},
        {"sources": [{"path": "/x/*", "host": "h", "user": "u", "port": 0}]},
        {"snapshot_started": "yesterday"},
        {"sealed_for": [{"node": "dr1", "joined_at": "2026-11-22"}]},
        {"cluster": {"fingerprint": FINGERPRINT, "members": [{"addresses": []}]}},
        {"stall_timeout": 0},
    ],
)
def test_wrong_use_options_that_cannot_be_meant(site: Site, changes: dict[str, Any]) -> None:
    refused(site.ship(**changes), "BAD_OPTION")


def test_wrong_use_all_bad_options_are_told_at_once(site: Site) -> None:
    result = site.ship(rate_limit=-1, workers=0, snapshot_started="x")
    assert len(result.reasons) == 3


@pytest.mark.parametrize("fingerprint", ["", "x", "AB" * 32, FINGERPRINT[:-1]])
def test_what_is_no_fingerprint(site: Site, fingerprint: str) -> None:
    refused(site.ship(cluster={"fingerprint": fingerprint}), "BAD_FINGERPRINT")


# -- the store -----------------------------------------------------------------------------------------------------


def test_f16_the_store_of_another_cluster_is_refused_before_the_first_byte(site: Site) -> None:
    site.deliver()
    site.ship()
    before = site.snapshot()
    other = {"fingerprint": OTHER, "version": "5.4.2031", "members": MEMBERS}
    message = refused(site.ship(cluster=other), "ANOTHER_CLUSTER")
    assert FINGERPRINT[:16] in message and OTHER[:16] in message
    assert site.snapshot() == before
    refused(site.ship(cluster=other, new_cluster=True), "FOREIGN")


def test_a_recovered_cluster_ships_into_its_old_store(site: Site) -> None:
    site.deliver()
    first = site.ship()
    event = {
        "store": str(site.store),
        "cluster_id": first.cluster_id,
        "state": "appended",
        "kind": "restored",
        "subject": "dr1",
        "data": {"backup": first.backups[0]["id"], "fingerprint": OTHER, "drill": True},
    }
    recovered = {"fingerprint": OTHER, "version": "5.4.2031", "members": MEMBERS[:1]}
    run_module("ledger", event)
    refused(site.ship(cluster=recovered), "ANOTHER_CLUSTER")
    event["data"] = {**event["data"], "drill": False}
    assert run_module("ledger", event).changed
    site.deliver("after.tar.gz", age=300)
    assert site.ship(cluster=recovered, check=True).changed
    result = site.ship(cluster=recovered)
    assert [item["generation"] for item in result.backups] == [1, 2], result.output
    assert result.cluster_id == first.cluster_id
    assert run_module("backup_verify", {"store": str(site.store)}).verdicts[1]["verdict"] == "ok"


def test_a_newer_store_is_refused(site: Site) -> None:
    site.deliver()
    site.ship()
    path = site.cluster / "store.json"
    value = json.loads(path.read_text())
    value["schema"] = 2
    path.write_text(json.dumps(value))
    before = site.snapshot()
    for result in (site.ship(), run_module("backup_info", {"store": str(site.store)})):
        assert "STORE_NEWER_SCHEMA" in result.codes and result.failed
    assert site.snapshot() == before


@pytest.mark.parametrize("damage", ["", "{", '{"schema": 1}'])
def test_a_store_that_cannot_be_understood_is_refused(site: Site, damage: str) -> None:
    site.deliver()
    site.ship()
    (site.cluster / "store.json").write_text(damage)
    assert site.ship().error_code.startswith("STORE_")


def test_wrong_use_the_source_is_the_store(site: Site) -> None:
    refused(site.ship(sources=[{"path": str(site.store)}]), "SOURCE_IS_STORE")
    refused(site.ship(sources=[{"path": f"{site.store}/*/backups"}]), "SOURCE_IS_STORE")
    refused(site.ship(sources=[{"path": "relative/*"}]), "BAD_SOURCE")
    site.deliver()
    site.ship()
    before = site.snapshot()
    parent = site.store.parent
    for path in (parent, f"{parent}/*", f"{parent}/st*re", f"{parent}/*/*/backups/*", f"{parent}/*/*"):
        refused(site.ship(sources=[{"path": str(path)}]), "SOURCE_IS_STORE")
    assert site.snapshot() == before
    # A link in a drop box is one bad delivery among others.
    (site.source / "store").symlink_to(site.store)
    site.deliver("new.tar.gz", age=300)
    result = site.ship(sources=[{"path": f"{site.source}/*"}])
    refused(result, "SYMLINK_OUTSIDE")
    assert [item["published"] for item in result.details["backups"]] == [True, True]


# -- the source ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["relative/*", "", "/x/../etc/*", "/x\n/*", "/x/./*"], ids=["relative", "empty", "climbs", "newline", "dot"]
)
def test_wrong_use_paths_that_cannot_be_used(site: Site, path: str) -> None:
    refused(site.ship(sources=[site.sshd.login(path=path)]), "BAD_SOURCE")


def test_wrong_use_a_source_without_backups(site: Site) -> None:
    refused(site.ship(), "SOURCE_EMPTY")
    assert not list(site.store.iterdir()), "a refusal made a part of the store"
    refused(site.ship(sources=[site.sshd.login(path=f"{site.source}/absent/*")]), "SOURCE_UNREADABLE")


def test_f01_zero_bytes_are_refused_and_the_good_one_is_published(site: Site) -> None:
    site.deliver("good.tar.gz", age=900)
    (site.source / "empty.tar.gz").touch()
    site.at(site.source / "empty.tar.gz", 600)
    refused(site.ship(), "ZERO_LENGTH")
    assert [item.source["path"] for item in site.published().values()] == [str(site.source / "good.tar.gz")]


def test_wrong_use_an_empty_directory(site: Site) -> None:
    (site.source / "20261122").mkdir()
    refused(site.ship(), "EMPTY_DIRECTORY")


def test_wrong_use_odd_things_in_a_backup_are_all_told(site: Site) -> None:
    top = site.source / "20261122"
    top.mkdir()
    (top / "good").write_bytes(b"x")
    (top / "empty").touch()
    (top / "hollow").mkdir()
    (top / "link").symlink_to("/etc/passwd")
    (top / "inner").symlink_to("good")
    os.mkfifo(top / "pipe")
    (top / "new\nline").write_bytes(b"x")
    (top / os.fsdecode(b"bad\xff")).write_bytes(b"x")
    result = site.ship()
    expected = ["BAD_NAME", "EMPTY_PART", "NOT_A_FILE", "SHIP_INCOMPLETE", "SYMLINK_OUTSIDE", "ZERO_LENGTH_PART"]
    assert result.codes == expected and len(result.reasons) == 6, result.output
    for name in ("link", "pipe", "new\nline", os.fsdecode(b"bad\xff")):
        (top / name).unlink()
    refused(site.ship(accept=["EMPTY_PART"]), "ZERO_LENGTH_PART")
    for path in top.rglob("*"):
        os.utime(path, (1_790_000_000, 1_790_000_000), follow_symlinks=False)
    accepted = site.ship(accept=["EMPTY_PART", "ZERO_LENGTH_PART"])
    assert accepted.changed, accepted.output
    assert [item["path"] for item in accepted.backups[0]["files"]] == ["empty", "good", "inner"]
    assert accepted.backups[0]["accepted"] == ["EMPTY_PART", "ZERO_LENGTH_PART"]
    assert not site.ship().changed


def test_wrong_use_names_with_spaces_and_dashes_do_no_harm(site: Site) -> None:
    site.deliver("-rf a b;c $(x) 'q'.tar.gz")
    result = site.ship()
    assert result.changed, result.output
    target = site.store.parent / "node"
    staged = run_module(
        "backup_ship",
        {
            "state": "staged",
            "store": str(site.store),
            "cluster_id": result.cluster_id,
            "id": result.backups[0]["id"],
            "push": site.sshd.login(path=str(target)),
        },
    )
    assert Path(staged.staged["path"]).is_file()


def test_a_link_to_the_newest_backup_is_not_a_second_one(site: Site) -> None:
    path = site.deliver()
    (site.source / "latest").symlink_to(path.name)
    assert len(site.ship().backups) == 1
    (site.source / "elsewhere").symlink_to("/etc/passwd")
    refused(site.ship(), "SYMLINK_OUTSIDE")


def test_a_link_to_the_newest_is_not_a_second_one_where_the_path_of_the_source_is_a_link(site: Site) -> None:
    path = site.deliver()
    (site.source / "latest.tar.gz").symlink_to(path.name)
    (site.source.parent / "var").symlink_to(site.source)
    assert len(site.ship(sources=[site.sshd.login(path=f"{site.source.parent}/var/*")]).backups) == 1


def test_a_link_in_the_middle_of_a_path_publishes_nothing_and_stops_nothing_else(site: Site, tmp_path: Path) -> None:
    (site.source / "n1").mkdir()
    good = site.deliver("ok.tar.gz").rename(site.source / "n1" / "ok.tar.gz")
    (tmp_path / "foreign").mkdir()
    site.deliver("foreign.tar.gz").rename(tmp_path / "foreign" / "foreign.tar.gz")
    (site.source / "evil").symlink_to(tmp_path / "foreign")
    assert "evil" in refused(site.ship(sources=[site.sshd.login(path=f"{site.source}/*/*")]), "SYMLINK_OUTSIDE")
    assert [item.source["path"] for item in site.published().values()] == [str(good)]
    # It may lead to where the store is, and its name may be the pattern itself.
    (site.source / "evil").unlink()
    (site.source / "*").symlink_to(site.store.parent)
    for pattern in ("*/*", "*/*/*", "*"):
        result = site.ship(sources=[{"path": f"{site.source}/{pattern}"}])
        assert "SYMLINK_OUTSIDE" in result.codes and "SOURCE_IS_STORE" not in result.codes, result.output


def close(monkeypatch: pytest.MonkeyPatch, *closed: Path) -> None:
    """Nobody may list these directories."""
    listdir = LocalSession.listdir

    def refuse(session: LocalSession, path: str) -> Any:
        if Path(path) in closed:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listdir(session, path)

    monkeypatch.setattr(LocalSession, "listdir", refuse)


def test_a_node_that_may_not_be_looked_at_is_told_and_the_others_are_published(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for node in ("n1", "n2"):
        (site.source / node).mkdir()
        site.deliver(f"{node}.tar.gz").rename(site.source / node / "x.tar.gz")
    close(monkeypatch, site.source / "n2")
    refused(site.ship(sources=[{"path": f"{site.source}/*/*"}]), "SOURCE_UNREADABLE")
    assert [item.source["path"] for item in site.published().values()] == [str(site.source / "n1" / "x.tar.gz")]


@pytest.mark.parametrize("closed", ["n2", "n2/inner"])
def test_with_a_backup_that_cannot_be_looked_at_nobody_believes_that_the_newest_came(
    site: Site, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    """How old it is nobody can tell, whether nothing of it was seen or only a part."""
    for number, age in enumerate((1200, 900, 600)):
        (site.source / f"n{number}" / "inner").mkdir(parents=True)
        site.deliver(f"{number}.tar.gz", age=age).rename(site.source / f"n{number}" / "x.tar.gz")
        (site.source / f"n{number}" / "inner" / "y").write_bytes(b"y")
        site.at(site.source / f"n{number}" / "inner" / "y", age)
    sources = [{"path": f"{site.source}/*"}]
    with monkeypatch.context() as patched:
        close(patched, site.source / closed)
        assert closed in refused(site.ship(sources=sources, select="newest"), "SOURCE_UNREADABLE")
        assert [item.source["path"] for item in site.published().values()] == [str(site.source / "n1")]
        refused(site.ship(sources=sources, select="newest", run_id="run-2"), "SOURCE_UNREADABLE")
    result = site.ship(sources=sources, select="newest", run_id="run-3")
    assert result.changed and [item["source"]["path"] for item in result.backups] == [str(site.source / "n2")]


def test_where_the_newest_is_wanted_and_none_can_be_looked_at_each_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("n1", "n2"):
        (site.source / name).mkdir()
    close(monkeypatch, site.source / "n1", site.source / "n2")
    result = site.ship(sources=[{"path": f"{site.source}/*"}], select="newest")
    told = refused(result, "SOURCE_UNREADABLE")
    assert "n1" in told and "n2" in told and not site.published()


def test_an_empty_delivery_may_be_the_newest(site: Site) -> None:
    site.deliver()
    (site.source / "empty").mkdir()
    assert "empty" in refused(site.ship(select="newest"), "EMPTY_DIRECTORY")
    assert len(site.published()) == 1


def test_f04_a_node_whose_directory_is_empty_is_told(site: Site) -> None:
    for node in ("n1", "n2", "n3"):
        (site.source / "b" / node).mkdir(parents=True)
        if node != "n2":
            site.deliver(f"{node}.tar.gz").rename(site.source / "b" / node / "x.tar.gz")
    source = {"path": f"{site.source}/*/*", "layout": "per_node"}
    assert "n2" in refused(site.ship(sources=[source]), "EMPTY_PART")
    assert not site.published()
    assert site.ship(sources=[source], accept=["EMPTY_PART"]).changed


def test_f04_a_node_that_delivered_nothing_is_told(site: Site) -> None:
    for node in ("dc1-n1", "dc2-n1"):
        (site.source / "t" / node).mkdir(parents=True)
        (site.source / "t" / node / "data").write_bytes(b"x")
        site.at(site.source / "t" / node / "data", 600)
    source = site.sshd.login(path=f"{site.source}/*/*", layout="per_node")
    refused(site.ship(sources=[source]), "PARTS_MISSING")
    assert site.ship(sources=[source], accept=["PARTS_MISSING"]).changed


def test_f04_a_file_beside_the_nodes_is_no_node(site: Site) -> None:
    """Three members, two delivered, and a note lies beside their directories."""
    for path in ("dc1-n1/data", "dc2-n1/data", "README"):
        (site.source / "t" / path).parent.mkdir(parents=True, exist_ok=True)
        (site.source / "t" / path).write_bytes(b"x")
        site.at(site.source / "t" / path, 600)
    source = site.sshd.login(path=f"{site.source}/*/*", layout="per_node")
    result = site.ship(sources=[source])
    assert result.codes == ["PARTS_MISSING", "SHIP_INCOMPLETE", "STRAY_FILE"], result.output
    refused(site.ship(sources=[source], accept=["PARTS_MISSING"]), "STRAY_FILE")
    refused(site.ship(sources=[source], accept=["STRAY_FILE"]), "PARTS_MISSING")
    assert site.ship(sources=[source], accept=["PARTS_MISSING", "STRAY_FILE"]).changed
    (one,) = site.published().values()
    assert [file.path for file in one.files] == ["README", "dc1-n1/data", "dc2-n1/data"]


def delivered_by_nodes(site: Site, directories: int, files: Sequence[str]) -> dict[str, Any]:
    """Of three members so many directories, and files beside them; what to ship."""
    top = site.source / "20261122"
    for path in [*(f"n{number}/data.bin" for number in range(directories)), *files]:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(b"x")
        site.at(top / path, 600)
    members = [{"name": f"n{number}", "addresses": [], "host_id": ""} for number in range(3)]
    return {
        "sources": [site.sshd.login(path=f"{site.source}/*/*", layout="per_node")],
        "cluster": {**site.args()["cluster"], "members": members},
    }


@pytest.mark.parametrize("markers", [2, 3])
def test_f04_a_node_that_delivered_nothing_but_its_marker_is_told(site: Site, markers: int) -> None:
    """Each of three nodes delivers a directory and a marker, which is accepted. A directory is missing."""
    options = delivered_by_nodes(site, 2, [f"n{number}.done" for number in range(markers)])
    refused(site.ship(**options, accept=["STRAY_FILE"]), "PARTS_MISSING")
    assert not site.published()


def test_nobody_is_told_to_remove_what_the_nodes_delivered(site: Site) -> None:
    """Three directories, and more files beside them: a marker of each node, and a list."""
    options = delivered_by_nodes(site, 3, ["n0.done", "n1.done", "n2.done", "SHA256SUMS"])
    result = site.ship(**options)
    message = refused(result, "STRAY_FILE")
    assert "directories (3, the first is " in message and "files (4, the first is " in message
    assert "remove " not in f"{message} {result.remedy}".lower()
    assert site.ship(**options, accept=["STRAY_FILE"]).changed


@pytest.mark.parametrize("sixteenth", range(1, 16, 2))
def test_f02_a_delivery_cut_at_any_sixteenth_is_refused(site: Site, sixteenth: int) -> None:
    path = site.deliver()
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * sixteenth // 16])
    site.at(path, 600)
    refused(site.ship(), "TRUNCATED")
    assert not site.published() and not site.incoming


def test_f03_a_run_that_overwrites_its_last_good_file_with_a_broken_one(site: Site) -> None:
    """The same name at the source, cut anywhere: what was published under it stays as it was."""
    path = site.deliver("backup.tar.gz", age=900)
    sources = [{"path": f"{site.source}/*"}]
    assert site.run(sources=sources).changed
    good, kept = path.read_bytes(), tree(site.cluster / "backups")
    for sixteenth in range(0, 16, 3):
        path.write_bytes(good[: len(good) * sixteenth // 16])
        site.at(path, 600)
        with pytest.raises(DsmError) as caught:
            site.run(sources=sources)
        assert [reason.code for reason in caught.value.reasons] == ["TRUNCATED" if sixteenth else "ZERO_LENGTH"]
        assert tree(site.cluster / "backups") == kept and not site.incoming


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount")
def test_f07_a_source_without_a_free_byte_gives_what_is_complete_and_is_left_as_it_is(site: Site) -> None:
    """Its disk filled up while a backup was written."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(site.source)], check=True)
    try:
        whole, cut = site.source / "whole.tar.gz", site.source / "cut.tar.gz"
        whole.write_bytes(gzip.compress(os.urandom(100_000)))
        backup = gzip.compress(os.urandom(900_000))
        with open(cut, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.tell() < len(backup):
                file.write(backup[file.tell() : file.tell() + 4096])
        assert 0 < cut.stat().st_size < len(backup)
        for path in (whole, cut):
            site.at(path, 600)
        before = tree(site.source)
        result = site.ship()
        assert "cut.tar.gz" in refused(result, "TRUNCATED")
        assert [item.source["path"] for item in site.published().values()] == [str(whole)]
        assert tree(site.source) == before and not site.incoming
    finally:
        subprocess.run(["umount", str(site.source)], check=False, capture_output=True)


def test_a_growing_delivery_is_refused_until_it_is_quiet(site: Site) -> None:
    path = site.source / "growing.bin"
    with pytest.MonkeyPatch.context() as monkeypatch:
        growing(path, monkeypatch)
        refused(site.ship(quiet=1, patience=2), "GROWING")
    assert not site.published()
    result = site.ship(quiet=1, patience=PATIENCE)
    assert result.changed and result.backups[0]["bytes"] == path.stat().st_size, result.output


def test_f01_a_backup_that_was_announced_and_never_came(site: Site) -> None:
    site.deliver(age=3600)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
    refused(site.ship(snapshot_started=started, patience=1), "NO_NEW_BACKUP")


def test_an_announced_backup_is_waited_for(site: Site) -> None:
    site.deliver("old.tar.gz", age=3600)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 10))
    timer = threading.Timer(2, lambda: site.deliver("new.tar.gz", age=0))
    timer.start()
    result = site.ship(snapshot_started=started, patience=PATIENCE, quiet=1)
    timer.join()
    assert result.changed, result.output
    assert [item["snapshot_started"] for item in result.backups] == [None, started]


def ticks(monkeypatch: pytest.MonkeyPatch, ahead: int) -> None:
    """The clock of the source, in seconds ahead of the store's."""
    monkeypatch.setattr(_endpoint.SftpSession, "clock", lambda _session: time.time() + ahead)


def told(site: Site) -> dict[str, tuple[str | None, str]]:
    """By name, when a published backup is said to have been started, and who says so."""
    return {
        posixpath.basename(one.source["path"]): (one.snapshot_started, one.snapshot_source)
        for one in site.published().values()
    }


def all_codes(site: Site, **changes: Any) -> set[str]:
    """What a run refuses."""
    try:
        site.run(**changes)
    except DsmError as error:
        return {error.code, *(reason.code for reason in error.reasons)}
    return set()


def test_f17_a_clock_a_day_off_makes_no_golden_backup(site: Site) -> None:
    site.deliver(age=30)
    tomorrow = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 86_400))
    refused(site.ship(snapshot_started=tomorrow, patience=1), "CLOCK_SKEW")
    assert not site.published()


def test_f17_what_lay_there_before_the_snapshot_is_not_taken_for_it_by_a_fast_clock(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the source is four minutes fast, and the store knows that."""
    ticks(monkeypatch, 240)
    site.deliver("old.tar.gz", age=60 - 240)
    started = utc_text(time.time())
    with pytest.raises(DsmError) as caught:
        site.run(snapshot_started=started, patience=1)
    assert [reason.code for reason in caught.value.reasons] == ["NO_NEW_BACKUP"]
    site.deliver("new.tar.gz", age=-240)
    site.run(snapshot_started=started)
    assert [one.snapshot_started for one in site.published().values()] == [None, started]


def test_f17_a_slow_clock_makes_nothing_older(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks(monkeypatch, -240)
    site.deliver("old.tar.gz", age=60 + 240)
    started = utc_text(time.time() - 10)
    site.deliver("new.tar.gz", age=240)
    site.run(snapshot_started=started, patience=PATIENCE, snapshot_clock_skew=0)
    assert [one.snapshot_started for one in site.published().values()] == [None, started]


@pytest.mark.parametrize(
    ("skew", "accept", "source"),
    [(None, [], "unknown"), (None, ["CLOCK_SKEW"], "attested"), (0, [], "observed"), (60, [], "unknown")],
)
def test_f17_where_no_clock_is_told_nobody_has_observed_when_a_snapshot_started(
    site: Site, own_server: Callable[..., Sshd], skew: int | None, accept: list[str], source: str
) -> None:
    """As role backup_store lets the store in. What is delivered is shipped, whatever is known of its age."""
    sshd = own_server("ForceCommand internal-sftp -R")
    sources = [sshd.login(path=f"{site.source}/*", **({} if skew is None else {"clock_skew": skew}))]
    started = utc_text(time.time() - 30)
    site.deliver(age=0)
    result = site.ship(snapshot_started=started, sources=sources, accept=accept)
    assert result.codes == (["NO_NEW_BACKUP"] if skew else [""]), result.output
    (one,) = site.published().values()
    assert (one.snapshot_source, one.snapshot_started) == (source, None if source == "unknown" else started)
    assert ("was not read" in result.output) == (skew is None and not accept)


def test_f17_a_store_whose_own_clock_is_fast_makes_no_old_delivery_golden(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cluster and landing host agree. The delivery was made two minutes before the snapshot that is announced."""
    fast = 240
    ticks(monkeypatch, -fast)
    site.deliver("old.tar.gz", age=fast + 120)
    for told_by in (None, -fast):
        with pytest.raises(DsmError) as caught:
            site.run(snapshot_started=utc_text(time.time() - fast), patience=1, snapshot_clock_skew=told_by)
        assert "NO_NEW_BACKUP" in {caught.value.code, *(reason.code for reason in caught.value.reasons)}
    assert [one.snapshot_started for one in site.published().values()] == [None]


def test_f17_a_store_whose_own_clock_is_slow_knows_the_new_delivery(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cluster and landing host agree, and the clock of a member was measured."""
    slow = 120
    ticks(monkeypatch, slow)
    started = utc_text(time.time() + slow - 60)
    site.deliver("new.tar.gz", age=30 - slow)
    site.run(snapshot_started=started, patience=1, snapshot_clock_skew=slow)
    assert [one.snapshot_started for one in site.published().values()] == [started]


def test_f17_an_old_delivery_is_not_new_because_the_clock_of_its_host_was_set_back(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was four minutes fast when the delivery came, a minute ago, and nothing has shipped that since."""
    site.deliver("old.tar.gz", age=60 - 240)
    ticks(monkeypatch, 0)
    assert "NO_NEW_BACKUP" in all_codes(site, snapshot_started=utc_text(time.time()), patience=1)
    assert told(site) == {"old.tar.gz": (None, "unknown")}


def test_f17_a_time_that_comes_while_somebody_waits_says_nothing_either(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks(monkeypatch, 0)
    site.deliver("old.tar.gz", age=-12)
    assert "NO_NEW_BACKUP" in all_codes(site, snapshot_started=utc_text(time.time()), patience=5)
    assert told(site) == {"old.tar.gz": (None, "unknown")}


def test_f17_a_time_that_was_kept_on_the_way_is_not_of_the_slow_clock_of_the_landing_host(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks(monkeypatch, -240)
    site.deliver("old.tar.gz", age=200)
    assert "NO_NEW_BACKUP" in all_codes(site, snapshot_started=utc_text(time.time()), patience=1)
    assert told(site) == {"old.tar.gz": (None, "unknown")}


def test_f17_what_is_known_was_written_by_the_clock_of_its_day(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the source was set right since the old one was shipped."""
    ticks(monkeypatch, 240)
    site.deliver("old.tar.gz", age=60 - 240)
    site.run()
    ticks(monkeypatch, 0)
    started = utc_text(time.time())
    assert "NO_NEW_BACKUP" in all_codes(site, snapshot_started=started, patience=1)
    site.deliver("new.tar.gz", age=-1)
    site.run(snapshot_started=started, patience=PATIENCE)
    assert told(site) == {"old.tar.gz": (None, "unknown"), "new.tar.gz": (started, "observed")}


@pytest.mark.parametrize("skew", [-3600, 3600])
def test_f17_a_member_an_hour_off_is_told_whichever_way(site: Site, skew: int) -> None:
    site.deliver("new.tar.gz", age=5)
    started = utc_text(time.time() + skew - 30)
    assert all_codes(site, snapshot_started=started, snapshot_clock_skew=skew) >= {"CLOCK_SKEW"}
    assert not site.published()
    site.run(snapshot_started=started, snapshot_clock_skew=skew, accept=["CLOCK_SKEW"])
    assert told(site) == {"new.tar.gz": (started, "attested")}


def test_f17_where_nobody_read_the_clock_of_the_member_nobody_has_observed_when_a_snapshot_started(
    site: Site,
) -> None:
    """It is an hour slow, and the delivery half an hour old."""
    site.deliver("old.tar.gz", age=1800)
    started = utc_text(time.time() - 3600)
    result = site.run(snapshot_started=started, snapshot_clock_skew=None)
    assert told(site) == {"old.tar.gz": (None, "unknown")}
    assert any("the member that told it was not read" in note for note in result.notes)


def test_f17_a_source_without_news_may_have_any_clock(site: Site, own_server: Callable[..., Sshd]) -> None:
    sshd = own_server("ForceCommand internal-sftp -R")
    other = site.source.parent / "retired"
    other.mkdir()
    site.deliver("old.tar.gz", age=86400).rename(other / "old.tar.gz")
    retired = sshd.login(path=f"{other}/*", clock_skew=400)
    site.run(sources=[retired])
    site.deliver("new.tar.gz", age=5)
    started = utc_text(time.time() - 60)
    sources = [sshd.login(path=f"{site.source}/*", clock_skew=0), retired]
    site.run(sources=sources, snapshot_started=started, patience=1)
    assert told(site) == {"old.tar.gz": (None, "unknown"), "new.tar.gz": (started, "observed")}
    # What is new there waits, and nothing else.
    site.at(other / "old.tar.gz", 40)
    site.deliver("newer.tar.gz", age=4)
    started = utc_text(time.time() - 6)
    assert "CLOCK_SKEW" in all_codes(site, sources=sources, snapshot_started=started, patience=1)
    assert told(site)["newer.tar.gz"] == (started, "observed") and len(site.published()) == 3


def test_f17_what_lay_there_before_a_backup_was_asked_for_is_not_that_backup(site: Site) -> None:
    """Whatever its time says."""
    site.deliver("old.tar.gz", age=0)
    look = site.ship(check=True, quiet=0, patience=0)
    assert not look.failed and len(look.at_sources[0]["backups"]) == 1, look.output
    started = utc_text(time.time() - 60)
    seen = {"there_before": look.at_sources}
    assert "NO_NEW_BACKUP" in all_codes(site, snapshot_started=started, patience=1, **seen)
    site.deliver("new.tar.gz", age=0)
    result = site.run(snapshot_started=started, patience=PATIENCE, **seen)
    assert told(site) == {"old.tar.gz": (None, "unknown"), "new.tar.gz": (started, "observed")}
    assert result.at_sources == []


def test_what_a_look_refuses_is_told_as_there(site: Site) -> None:
    (site.source / "empty").touch()
    site.deliver("old.tar.gz", age=0)
    look = site.ship(check=True, quiet=60, patience=0)
    assert look.failed and len(look.details["at_sources"][0]["backups"]) == 2, look.output


def look_before(site: Site, **changes: Any) -> Any:
    """What role backup_ship keeps before it asks for a backup."""
    look = site.ship(check=True, quiet=0, patience=0, **changes)
    return look.details["at_sources"] if look.failed else look.at_sources


@pytest.mark.parametrize("accept", [[], ["CLOCK_SKEW"]])
def test_f17_what_was_half_written_before_a_backup_was_asked_for_is_not_that_backup(
    site: Site, accept: list[str]
) -> None:
    path, whole = half_written(site)
    before = look_before(site)
    started = utc_text(time.time() - 1)
    path.write_bytes(whole)
    result = site.run(snapshot_started=started, patience=2, there_before=before, accept=accept)
    assert told(site) == {"old.tar.gz": (None, "unknown")}
    assert any("was there before the snapshot" in note for note in result.notes), result.notes


def half_written(site: Site, name: str = "old.tar.gz") -> tuple[Path, bytes]:
    """A delivery that somebody still writes, and what it will be."""
    path = site.deliver(name, age=0)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    return path, whole


def sources_told(site: Site) -> set[str]:
    return {one.snapshot_source for one in site.published().values()}


def test_f17_a_name_of_two_sources_is_not_vouched_for_by_the_other_one(site: Site) -> None:
    """Of one node's directory two sources take different files; what the first takes was published."""
    run = site.source / "run"
    run.mkdir()
    keys, data = (site.sshd.login(path=f"{run}/*.{kind}", layout="per_node") for kind in ("key", "tar.gz"))
    (run / "a.key").write_bytes(b"k" * 1000)
    site.at(run / "a.key", 100)
    site.run(sources=[keys], accept=["PARTS_MISSING"])
    path, whole = half_written(site)
    path = path.rename(run / "old.tar.gz")
    before = look_before(site, sources=[keys, data], accept=["PARTS_MISSING"])
    path.write_bytes(whole)
    site.run(
        sources=[keys, data],
        snapshot_started=utc_text(time.time() - 1),
        patience=1,
        there_before=before,
        accept=["PARTS_MISSING"],
    )
    assert len(site.published()) == 2 and sources_told(site) == {"unknown"}


def test_f17_what_is_in_a_directory_that_nobody_could_look_into_before_is_not_new(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = site.source / "run-1"
    run.mkdir()
    sources = [site.sshd.login(path=f"{site.source}/*/*.tar.gz")]
    path, whole = half_written(site)
    path = path.rename(run / "old.tar.gz")
    listdir = _endpoint.SftpSession.listdir

    def denied(session: _endpoint.SftpSession, directory: str) -> Any:
        if directory == str(run):
            raise PermissionError(errno.EACCES, "Permission denied", directory)
        return listdir(session, directory)

    with monkeypatch.context() as patch:
        patch.setattr(_endpoint.SftpSession, "listdir", denied)
        before = look_before(site, sources=sources)
    assert list(before[0]["backups"]) == [str(run)]
    path.write_bytes(whole)
    site.run(sources=sources, snapshot_started=utc_text(time.time() - 1), patience=2, there_before=before)
    assert told(site) == {"old.tar.gz": (None, "unknown")}


def test_f17_what_a_timer_ships_meanwhile_is_not_what_is_waited_for(site: Site) -> None:
    path, whole = half_written(site)
    before = look_before(site)
    started = utc_text(time.time() - 1)
    path.write_bytes(whole)
    site.run()
    assert "NO_NEW_BACKUP" in all_codes(site, snapshot_started=started, patience=1, there_before=before)
    late = threading.Timer(3, site.deliver, ("new.tar.gz",), {"age": 0})
    late.start()
    site.run(snapshot_started=started, patience=PATIENCE, there_before=before)
    late.join()
    assert told(site) == {"old.tar.gz": (None, "unknown"), "new.tar.gz": (started, "observed")}


def test_f17_a_time_that_comes_between_two_runs_says_nothing(site: Site) -> None:
    """As the role does it: one run looks and waits in vain, the next one ships."""
    started = utc_text(time.time())
    site.deliver("old.tar.gz", age=-14)
    look = site.ship(check=True, snapshot_started=started, patience=1)
    assert "NO_NEW_BACKUP" in look.codes, look.output
    early = look.details["ahead_of_time"]
    await_that(lambda: time.time() > utc_seconds(started) + 6, "time stands still")
    assert "NO_NEW_BACKUP" in all_codes(site, snapshot_started=started, patience=1, ahead_of_time=early)
    assert told(site) == {"old.tar.gz": (None, "unknown")}


def test_f17_what_changes_while_another_source_is_waited_for_is_seen_when_it_has_changed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time has not come then, and has come when all are seen to be quiet."""
    other = site.source.parent / "other"
    other.mkdir()
    sources = [site.sshd.login(path=f"{path}/*") for path in (other, site.source)]
    started = utc_text(time.time() - 5)
    early = site.deliver("early.tar.gz", age=0).rename(other / "early.tar.gz")
    slow = site.deliver("slow.tar.gz", age=-8)
    whole = early.read_bytes()
    early.write_bytes(whole[:500])
    looked, done = threading.Event(), threading.Event()

    def settle(*arguments: Any) -> Any:
        looked.set()
        return _discover.settle(*arguments)

    monkeypatch.setattr(_offers, "settle", settle)

    def grow() -> None:
        assert looked.wait(PATIENCE)
        early.write_bytes(whole)
        site.at(early, -16)
        while not done.wait(0.3) and time.time() < early.stat().st_mtime - 5:
            with slow.open("ab") as file:
                file.write(b"\0")

    growing_ = threading.Thread(target=grow)
    growing_.start()
    try:
        all_codes(site, sources=sources, snapshot_started=started, patience=PATIENCE, quiet=2)
    finally:
        looked.set()
        done.set()
        growing_.join()
    assert told(site)["early.tar.gz"] == (None, "unknown")


def test_f17_a_host_that_starts_again_is_waited_for(site: Site, own_server: Callable[..., Sshd]) -> None:
    sshd = site.sshd = own_server()
    started = utc_text(time.time() - 5)
    site.deliver("old.tar.gz", age=100)
    seen = threading.Event()

    def restart() -> None:
        assert seen.wait(PATIENCE)
        sshd.stop()
        time.sleep(4)  # longer than a connection that breaks is built again
        sshd.start()
        site.deliver("new.tar.gz", age=0)

    again = threading.Thread(target=restart)
    again.start()
    threading.Timer(2, seen.set).start()
    try:
        site.run(snapshot_started=started, patience=PATIENCE)
    finally:
        again.join()
    assert told(site) == {"old.tar.gz": (None, "unknown"), "new.tar.gz": (started, "observed")}


def test_f17_what_is_observed_goes_before_what_is_attested(site: Site, own_server: Callable[..., Sshd]) -> None:
    sshd = own_server("ForceCommand internal-sftp -R")
    other = site.source.parent / "other"
    other.mkdir()
    started = utc_text(time.time() - 60)
    site.deliver("far.tar.gz", age=-400).rename(other / "far.tar.gz")
    site.deliver("new.tar.gz", age=5)
    sources = [sshd.login(path=f"{path}/*", clock_skew=skew) for path, skew in ((other, 400), (site.source, 0))]
    site.run(sources=sources, snapshot_started=started, patience=1, accept=["CLOCK_SKEW"])
    assert told(site) == {"far.tar.gz": (None, "unknown"), "new.tar.gz": (started, "observed")}


def test_f17_the_newest_is_not_what_was_half_written_before(site: Site) -> None:
    path, whole = half_written(site)
    before = look_before(site)
    started = utc_text(time.time() - 10)
    site.deliver("new.tar.gz", age=5)
    path.write_bytes(whole)
    result = site.run(snapshot_started=started, patience=1, there_before=before, select="newest")
    assert told(site) == {"new.tar.gz": (started, "observed")}
    assert any("does not count as the newest" in note for note in result.notes), result.notes


@pytest.mark.parametrize("again", [False, True])
def test_f17_what_was_published_as_half_and_is_written_on_is_no_new_backup(site: Site, again: bool) -> None:
    """Of a format that shows nowhere that it ends; a new backup of the same name begins in another way."""
    path = site.source / "backup.bin"
    path.write_bytes(b"\x01" + os.urandom(5000))
    site.at(path, 100)
    site.run()
    before = look_before(site)
    started = utc_text(time.time() - 1)
    path.write_bytes((b"\x01" + os.urandom(5000) if again else path.read_bytes()) + os.urandom(5000))
    result = site.run(snapshot_started=started, patience=2, there_before=before)
    assert sources_told(site) == ({"unknown", "observed"} if again else {"unknown"})
    assert any("written on" in note for note in result.notes) == (not again), result.notes


def test_f17_a_name_is_used_again_after_what_had_it_was_pruned(site: Site) -> None:
    site.deliver("backup.tar.gz", age=6000)
    site.run()
    site.deliver("other.tar.gz", age=300)
    site.run()
    assert not run_module("backup_verify", {"store": str(site.store)}).failed
    pruned = run_module("backup_prune", {"store": str(site.store), "keep": 1, "max_copies": 1})
    assert set(told(site)) == {"other.tar.gz"}, pruned.output
    before = look_before(site)
    site.deliver("backup.tar.gz", age=-2)
    started = utc_text(time.time())
    site.run(snapshot_started=started, patience=PATIENCE, there_before=before)
    assert told(site)["backup.tar.gz"] == (started, "observed")


@pytest.mark.parametrize("identity", [["x"], {"a": 1}, 5, None, "x"])
def test_wrong_use_what_lay_there_before_has_no_identity(site: Site, identity: Any) -> None:
    path = site.deliver(age=0)
    before = look_before(site)
    before[0]["backups"][str(path)] = identity
    message = refused(site.ship(snapshot_started=utc_text(time.time() - 60), there_before=before), "BAD_OPTION")
    assert str(path) in message and not site.published()


def test_a_look_tells_what_ansible_can_read_whatever_the_names(site: Site) -> None:
    (site.source / os.fsdecode(b"bad\xff")).write_bytes(b"x")
    site.deliver(age=0)
    look = site.ship(check=True, quiet=0, patience=0)
    json.dumps(look.value, ensure_ascii=False).encode("utf-8")
    assert f"{site.source}/bad\\udcff" in look.details["at_sources"][0]["backups"]


def test_f17_what_was_half_written_before_is_not_waited_for(site: Site) -> None:
    path, whole = half_written(site)
    before = look_before(site)
    started = utc_text(time.time() - 1)
    path.write_bytes(whole)
    late = threading.Timer(3, site.deliver, ("new.tar.gz",), {"age": 0})
    late.start()
    site.run(snapshot_started=started, patience=PATIENCE, there_before=before)
    late.join()
    assert told(site) == {"old.tar.gz": (None, "unknown"), "new.tar.gz": (started, "observed")}


def test_f17_of_several_new_backups_the_youngest_is_not_older_than_what_was_announced(site: Site) -> None:
    started = utc_text(time.time() - 60)
    site.deliver("first.tar.gz", age=40)
    site.deliver("second.tar.gz", age=20)
    site.run(snapshot_started=started)
    assert told(site) == {"first.tar.gz": (None, "unknown"), "second.tar.gz": (started, "observed")}


def test_f17_a_name_that_is_used_again_is_a_new_backup_where_the_one_before_was_shipped(site: Site) -> None:
    site.deliver("backup.tar.gz", age=0)
    site.run()
    before = look_before(site)
    site.deliver("backup.tar.gz", age=-2)
    started = utc_text(time.time())
    site.run(snapshot_started=started, patience=PATIENCE, there_before=before)
    assert [one.snapshot_source for one in site.published().values()] == ["unknown", "observed"]


def test_f17_one_file_that_lay_there_before_makes_a_backup_of_several_no_new_one(site: Site) -> None:
    """Whatever its time says."""
    together = [site.sshd.login(path=f"{site.source}/*", layout="together")]
    site.deliver("a.tar.gz", age=0)
    site.deliver("b.tar.gz", age=0)
    site.run(sources=together)
    before = look_before(site, sources=together)
    site.deliver("b.tar.gz", age=0, size=200_000)
    started = utc_text(time.time() - 60)
    codes = all_codes(site, sources=together, snapshot_started=started, patience=1, there_before=before)
    assert "NO_NEW_BACKUP" in codes
    assert [one.snapshot_source for one in site.published().values()] == ["unknown", "unknown"]


@pytest.mark.parametrize(("accept", "source"), [([], "unknown"), (["CLOCK_SKEW"], "attested")])
def test_f17_where_nobody_could_look_before_nobody_has_observed_when_a_snapshot_started(
    site: Site, accept: list[str], source: str
) -> None:
    site.deliver("old.tar.gz", age=0)
    away = site.source.parent / "away"
    site.source.rename(away)
    before = look_before(site)
    assert before == []
    away.rename(site.source)
    started = utc_text(time.time() - 60)
    result = site.run(snapshot_started=started, patience=2, there_before=before, accept=accept)
    assert told(site) == {"old.tar.gz": (None if source == "unknown" else started, source)}
    assert any("nobody could look" in note for note in result.notes) == (source == "unknown"), result.notes


def test_f17_a_source_that_could_not_be_looked_at_is_not_waited_for_by_the_one_that_could(site: Site) -> None:
    """Both bring something new, the one that nobody could look at before is first."""
    other = site.source.parent / "other"
    other.mkdir()
    sources = [site.sshd.login(path=f"{path}/*") for path in (other, site.source)]
    before = look_before(site, sources=sources[1:])
    started = utc_text(time.time() - 60)
    site.deliver("unseen.tar.gz", age=0).rename(other / "unseen.tar.gz")
    late = threading.Timer(3, site.deliver, ("new.tar.gz",), {"age": 0})
    late.start()
    site.run(sources=sources, snapshot_started=started, patience=PATIENCE, there_before=before)
    late.join()
    assert told(site) == {"unseen.tar.gz": (None, "unknown"), "new.tar.gz": (started, "observed")}


def test_f17_a_backup_of_which_a_part_is_still_missing_is_waited_for(site: Site) -> None:
    source = [site.sshd.login(path=f"{site.source}/run-1/*", layout="per_node")]
    run = site.source / "run-1"
    run.mkdir()
    started = utc_text(time.time() - 60)
    site.deliver("n1.tar.gz", age=0).rename(run / "n1.tar.gz")

    def rest() -> None:
        for name in ("n2.tar.gz", "n3.tar.gz"):
            site.deliver(name, age=0).rename(run / name)

    late = threading.Timer(3, rest)
    late.start()
    site.run(sources=source, snapshot_started=started, patience=PATIENCE)
    late.join()
    ((_id, one),) = site.published().items()
    assert (one.snapshot_started, len(one.files)) == (started, 3)


def test_f17_of_two_clocks_told_for_one_source_the_one_that_makes_nothing_younger_counts(
    site: Site, own_server: Callable[..., Sshd]
) -> None:
    sshd = own_server("ForceCommand internal-sftp -R")
    site.deliver("old.tar.gz", age=0)
    sources = [sshd.login(path=f"{site.source}/*", **told) for told in ({}, {"clock_skew": 0}, {"clock_skew": 200})]
    codes = all_codes(site, sources=sources, snapshot_started=utc_text(time.time() - 60), patience=1)
    assert "NO_NEW_BACKUP" in codes
    assert [one.source["clock_skew"] for one in site.published().values()] == [200]


def test_a_source_without_news_costs_the_next_one_nothing(site: Site, own_server: Callable[..., Sshd]) -> None:
    """What came lies there quietly, and no clock is told: that is seen only by whoever looks for some time."""
    sshd = own_server("ForceCommand internal-sftp -R")
    other = site.source.parent / "silent"
    other.mkdir()
    site.deliver("old.tar.gz", age=86400).rename(other / "old.tar.gz")
    silent = sshd.login(path=f"{other}/*", clock_skew=0)
    site.run(sources=[silent])
    site.deliver("new.tar.gz", age=300)
    started = utc_text(time.time() - 600)
    sources = [silent, sshd.login(path=f"{site.source}/*", clock_skew=0)]
    site.run(sources=sources, snapshot_started=started, quiet=3, patience=6)
    assert told(site)["new.tar.gz"] == (started, "observed")


def test_f17_deliveries_from_the_future_are_shipped_in_the_order_of_the_store(site: Site) -> None:
    site.deliver("future.tar.gz", age=-86_400)
    first = site.ship()
    assert first.changed, first.output
    site.deliver("past.tar.gz", age=86_400)
    second = site.ship()
    assert [item["sequence"] for item in second.backups] == [2, 1]
    assert run_module("backup_info", {"store": str(site.store)}).backups[-1]["source"]["path"].endswith("past.tar.gz")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a device")
def test_wrong_use_a_device_among_many_files(site: Site) -> None:
    top = site.source / "t"
    top.mkdir()
    (top / "good").write_bytes(b"x")
    subprocess.run(["mknod", str(top / "disk"), "b", "7", "200"], check=True)
    refused(site.ship(), "NOT_A_FILE")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else at the source")
def test_wrong_use_one_unreadable_file_among_many(site: Site, tmp_path: Path) -> None:
    """The source's user is not the one who delivered. Nothing of the backup is published, others are."""
    with tempfile.TemporaryDirectory() as name:
        open_to_all = Path(name)
        open_to_all.chmod(0o755)
        sshd = Sshd(open_to_all / "sshd", options=["ForceCommand internal-sftp -R"]).start()
        try:
            source = open_to_all / "backup"
            (source / "t").mkdir(parents=True)
            for number in range(20):
                (source / "t" / f"part {number}").write_bytes(os.urandom(1000))
            (source / "t" / "part 7").chmod(0o600)
            (source / "whole").write_bytes(os.urandom(5000))
            for path in source.rglob("*"):
                site.at(path, 600)
            login = sshd.login(path=f"{source}/*", user="nobody")
            result = site.ship(sources=[login])
            assert "part 7" in refused(result, "SOURCE_UNREADABLE")
            assert [item.archive.path for item in site.published().values() if item.archive] == ["whole"]
            assert len(site.incoming) == 1, "what landed is of use when that is put right"
            (source / "t" / "part 7").chmod(0o644)
            assert len(site.ship(sources=[login]).backups) == 2 and not site.incoming
        finally:
            sshd.stop()


def test_wrong_use_quota_exceeded(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system says EDQUOT, which no file system of this test can be made to say."""
    site.deliver("kept.tar.gz", age=900)
    assert site.ship().changed
    kept = site.published()
    site.deliver()
    write = os.pwrite

    def over_quota(descriptor: int, data: bytes, offset: int) -> int:
        if "/data/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", over_quota)
    assert "quota" in refused(site.ship(), "STORE_FULL")
    assert site.published() == kept and not site.incoming


@pytest.mark.parametrize("option", ["Ciphers aes128-ctr", "Ciphers aes256-gcm@openssh.com", "RekeyLimit 1M"])
def test_servers_with_other_ciphers_and_with_rekeying(site: Site, own_server: Callable[..., Sshd], option: str) -> None:
    path = site.deliver(size=9_000_000)
    site.sshd = own_server(option)
    result = site.ship()
    assert result.changed and result.bytes == path.stat().st_size, result.output


def test_wrong_use_a_key_with_a_cipher_that_nobody_knows_here(site: Site, tmp_path: Path) -> None:
    key = tmp_path / "k"
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", CANARY, "-Z", "chacha20-poly1305@openssh.com", "-f", str(key)]
    subprocess.run(argv, check=True)
    result = site.ship(sources=[site.sshd.login(path=f"{site.source}/*", key_file=str(key), passphrase=CANARY)])
    refused(result, "KEY_UNREADABLE")
    assert "ssh-keygen -p" in result.output and CANARY not in result.output


def test_f08_a_part_that_another_run_takes_away_at_this_moment(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It made the part of the store, found nothing, and took it away between our look and our lease."""
    site.deliver()
    look = ClusterStore.open

    def opened(*arguments: Any, **facts: Any) -> ClusterStore:
        found = look(*arguments, **facts)
        with found.lease("other"):
            assert found.unmake()
        os.rmdir(found.path)
        return found

    monkeypatch.setattr(ClusterStore, "open", opened)
    refused(site.ship(), "LOCKED")
    monkeypatch.undo()
    assert site.ship().changed


@pytest.mark.parametrize("host", ["127.0.0..1", "a" * 64 + ".example"])
def test_a_host_name_that_is_none_stops_no_other_source(site: Site, host: str) -> None:
    site.deliver()
    good, bad = site.sshd.login(path=f"{site.source}/*"), site.sshd.login(path="/x", host=host)
    for sources in ([good, bad], [bad, good]):
        refused(site.ship(sources=sources), "SSH_UNREACHABLE")
        assert len(site.published()) == 1


def test_hashes_of_a_drop_box_below_a_link_are_compared(site: Site, tmp_path: Path) -> None:
    archive = site.deliver()
    (tmp_path / "link").symlink_to(site.source)
    told = {f"{tmp_path}/link/{archive.name}": "0" * 64}
    refused(site.ship(sources=[{"path": f"{tmp_path}/link/*", "hashes": told}]), "SOURCE_HASH")
    assert not site.published()


@pytest.mark.parametrize(
    ("allowed", "chosen"),
    [
        ("chacha20-poly1305@openssh.com,aes256-ctr,aes128-ctr,aes256-gcm@openssh.com,aes128-gcm@openssh.com", GCM[0]),
        ("aes256-ctr,aes256-gcm@openssh.com", GCM[1]),
        ("aes256-ctr", "aes256-ctr"),
    ],
)
def test_aes_gcm_is_preferred_whatever_the_server_lists_first(
    own_server: Callable[..., Sshd], allowed: str, chosen: str
) -> None:
    sshd = own_server(f"Ciphers {allowed}", "LogLevel DEBUG1")
    with contextlib.closing(connect(ssh_target(sshd.login()))) as connection:
        connection.open_sftp().realpath(".")
    told = (sshd.directory / "log").read_text()
    assert re.findall(r"kex: (?:client->server|server->client) cipher: (\S+)", told) == [chosen, chosen], told


def test_identify_argv_tells_foreign_backups(site: Site) -> None:
    site.deliver()
    refused(site.ship(identify_argv=["echo", "{path}"]), "FOREIGN")
    assert not site.published()
    assert site.ship(identify_argv=["echo", "{nothing}"]).error_code == "TEMPLATE_PLACEHOLDER"
    result = site.ship(identify_argv=["echo", FINGERPRINT, "{path}"])
    assert result.backups[0]["provenance"] == "by_template", result.output
