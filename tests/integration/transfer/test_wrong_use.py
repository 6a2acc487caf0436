# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Wrong use of shipping, over a real sshd: a code, every reason at once, a remedy, and a store that is as it was.

Every case begins with a store that holds one good backup, so that there is something to lose. The many ways in which
each of these can come about are in test_refusals.py and test_faults.py.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.kmsops.fortanix_dsm.tests.integration.transfer.helpers import (
    MEMBERS,
    OTHER,
    Result,
    Site,
    Sshd,
    free_port,
    growing,
    keygen,
    run_module,
)


@pytest.fixture
def kept(site: Site) -> Site:
    """A store with one good backup, whose source is delivered no more."""
    path = site.deliver("kept.tar.gz", size=50_000, age=900)
    assert site.ship().changed
    path.unlink()
    return site


def refused(site: Site, expected: list[str], attempt: Callable[[], Result], error_code: str = "") -> Result:
    """Refused for exactly these reasons; no file of the store has changed but for what its ledger notes of the try."""
    before = {path: digest for path, digest in site.snapshot().items() if not path.endswith("ledger.jsonl")}
    result = attempt()
    after = {path: digest for path, digest in site.snapshot().items() if not path.endswith("ledger.jsonl")}
    assert result.failed and "Traceback" not in result.output
    assert sorted(reason["code"] for reason in result.reasons) == sorted(expected), result.output
    assert result.error_code == (error_code or expected[0]), result.output
    assert all(reason["message"] and reason["remedy"] for reason in result.reasons)
    assert result.remedy and (result.changed, result.actions) == (False, [])
    assert after == before
    assert len(site.published()) == 1
    return result


def test_wrong_use_empty_truncated_and_growing_backup(kept: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three at once: each is told by its name."""
    good = kept.deliver("cut.tar.gz").read_bytes()
    (kept.source / "cut.tar.gz").write_bytes(good[: len(good) // 2])
    (kept.source / "empty.tar.gz").touch()
    for name in ("cut.tar.gz", "empty.tar.gz"):
        kept.at(kept.source / name, 600)
    growing(kept.source / "growing.bin", monkeypatch)
    expected = ["GROWING", "TRUNCATED", "ZERO_LENGTH"]
    result = refused(kept, expected, lambda: kept.ship(quiet=1, patience=1), "SHIP_INCOMPLETE")
    assert all(name in result.msg for name in ("cut.tar.gz", "empty.tar.gz", "growing.bin"))


def test_wrong_use_foreign_backup(kept: Site) -> None:
    kept.deliver()
    template = ["echo", OTHER, "{path}"]
    refused(kept, ["FOREIGN"], lambda: kept.ship(identify_argv=template))


def test_wrong_use_store_of_another_cluster(kept: Site) -> None:
    kept.deliver()
    other = {"fingerprint": OTHER, "version": "5.4.2031", "members": MEMBERS}
    result = refused(kept, ["ANOTHER_CLUSTER"], lambda: kept.ship(cluster=other))
    assert OTHER[:16] in result.msg


@pytest.fixture
def tiny(site: Site) -> Iterator[None]:
    """The store is a file system of one MiB."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(site.store)], check=True)
    yield
    subprocess.run(["umount", str(site.store)], check=False, capture_output=True)


def test_wrong_use_store_full(tiny: None, kept: Site) -> None:
    kept.deliver(size=900_000)
    result = refused(kept, ["STORE_FULL"], kept.ship)
    assert result.details["bytes"] == 0


def test_wrong_use_what_would_not_fit_into_the_empty_store_holds_nothing_else_up(tiny: None, kept: Site) -> None:
    """Such as a file with holes, which costs nothing to deliver; with the time it has it is always the newest."""
    with (kept.source / "giant").open("wb") as file:
        file.truncate(8 << 40)
    kept.at(kept.source / "giant", -86400)
    before = len(kept.published())
    kept.deliver("good.tar.gz")
    result = kept.ship()
    assert result.codes == ["TOO_LARGE"] and result.remedy and len(kept.published()) == before + 1, result.output
    assert "no_room" not in (kept.cluster / "ledger.jsonl").read_text()


def test_wrong_use_store_full_to_the_last_byte(tiny: None, kept: Site) -> None:
    """Not even a lease can be written."""
    kept.deliver()
    with open(kept.store / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"f" * 4096)
    refused(kept, ["STORE_FULL"], kept.ship)


def test_wrong_use_ssh_refused(kept: Site, tmp_path: Path) -> None:
    """Where nothing listens, and where the key is not known."""
    nobody = [kept.sshd.login(path=f"{kept.source}/*", port=free_port())]
    refused(kept, ["SSH_REFUSED"], lambda: kept.ship(sources=nobody))
    key = keygen(tmp_path / "stranger")
    stranger = [kept.sshd.login(path=f"{kept.source}/*", key_file=str(key))]
    refused(kept, ["AUTH_REFUSED"], lambda: kept.ship(sources=stranger))


def test_wrong_use_several_sources_are_told_at_once(kept: Site, tmp_path: Path) -> None:
    sources = [
        kept.sshd.login(path=f"{kept.source}/*", port=free_port()),
        kept.sshd.login(path=f"{kept.source}/*", key_file=str(keygen(tmp_path / "stranger"))),
    ]
    refused(kept, ["AUTH_REFUSED", "SSH_REFUSED"], lambda: kept.ship(sources=sources), "SHIP_INCOMPLETE")


def test_wrong_use_host_key_changed(kept: Site, own_server: Callable[..., Sshd]) -> None:
    sshd = own_server()
    known = sshd.known_hosts.read_text()
    sshd.stop()
    sshd.new_host_key()
    sshd.start()
    sshd.known_hosts.write_text(known)
    source = [sshd.login(path=f"{kept.source}/*", known_hosts=str(sshd.known_hosts))]
    result = refused(kept, ["HOST_KEY_CHANGED"], lambda: kept.ship(sources=source))
    assert "known_hosts" in result.remedy or "key" in result.remedy


@pytest.mark.parametrize(
    ("lacking", "code"), [({"hide": ["paramiko"]}, "NO_PARAMIKO"), ({"python": [99, 0]}, "PYTHON_TOO_OLD")]
)
def test_wrong_use_no_paramiko_or_python_too_old(kept: Site, lacking: dict[str, Any], code: str) -> None:
    kept.deliver()
    refused(kept, [code], lambda: kept.ship(request=lacking))


def test_wrong_use_rate_and_workers(kept: Site) -> None:
    kept.deliver()
    for changes in ({"rate_limit": 0}, {"rate_limit": -1}, {"workers": 0}, {"workers": 100}):
        refused(kept, ["BAD_OPTION"], lambda changes=changes: kept.ship(**changes))
    refused(kept, ["BAD_OPTION", "BAD_OPTION"], lambda: kept.ship(rate_limit=-1, workers=100))


def test_wrong_use_source_that_is_empty_absent_or_the_store(kept: Site) -> None:
    refused(kept, ["SOURCE_EMPTY"], kept.ship)
    (kept.source / "20261122").mkdir()
    refused(kept, ["EMPTY_DIRECTORY"], kept.ship)
    absent = [kept.sshd.login(path=f"{kept.source}/absent/*")]
    refused(kept, ["SOURCE_UNREADABLE"], lambda: kept.ship(sources=absent))
    # The destination lies in the source, and the source in the destination.
    for path in (kept.store.parent, f"{kept.store.parent}/*", kept.store, f"{kept.cluster}/backups/*"):
        refused(kept, ["SOURCE_IS_STORE"], lambda path=path: kept.ship(sources=[{"path": str(path)}]))


def test_wrong_use_source_of_odd_things_and_names(kept: Site) -> None:
    """A device, a way out of the tree, and names that no document can hold; spaces and a dash in front do no harm."""
    top = kept.source / "-rf a b"
    top.mkdir()
    (top / "- good").write_bytes(b"x")
    (top / "link").symlink_to("/etc/passwd")
    expected = ["SYMLINK_OUTSIDE", "NOT_A_FILE", "BAD_NAME", "BAD_NAME"]
    if os.geteuid() == 0:
        subprocess.run(["mknod", str(top / "disk"), "b", "7", "200"], check=True)
    else:
        os.mkfifo(top / "disk")
    (top / "new\nline").write_bytes(b"x")
    (top / os.fsdecode(b"bad\xff")).write_bytes(b"x")
    refused(kept, expected, kept.ship, "SHIP_INCOMPLETE")
    for path in [path for path in top.iterdir() if path.name != "- good"]:
        path.unlink()
    kept.at(top / "- good", 600)
    assert kept.ship().changed and len(kept.published()) == 2
    newline = [kept.sshd.login(path=f"{kept.source}/a\nb")]
    assert kept.ship(sources=newline).error_code == "BAD_SOURCE"


def test_wrong_use_key_permissions_passphrase_and_unknown_host(kept: Site, tmp_path: Path) -> None:
    open_key, locked, nobody = keygen(tmp_path / "open"), keygen(tmp_path / "locked", "ed25519", "p"), tmp_path / "none"
    open_key.chmod(0o644)
    nobody.write_text("")
    for code, login in (
        ("KEY_PERMISSIONS", {"key_file": str(open_key)}),
        ("PASSPHRASE", {"key_file": str(locked)}),
        ("UNKNOWN_HOST", {"known_hosts": str(nobody)}),
    ):
        source = [kept.sshd.login(path=f"{kept.source}/*", **login)]
        refused(kept, [code], lambda source=source: kept.ship(sources=source))


def test_wrong_use_no_sftp_at_the_source(kept: Site, own_server: Callable[..., Sshd]) -> None:
    kept.deliver()
    source = [own_server("Subsystem none").login(path=f"{kept.source}/*")]
    refused(kept, ["SFTP_MISSING"], lambda: kept.ship(sources=source))


def test_wrong_use_damaged_or_missing_backup_is_not_staged(kept: Site, tmp_path: Path) -> None:
    target = tmp_path / "node"
    args = {
        "state": "staged",
        "store": str(kept.store),
        "cluster_id": kept.cluster.name,
        "id": "19700101T000000Z",
        "push": kept.sshd.login(path=str(target)),
    }
    refused(kept, ["NOT_PUBLISHED"], lambda: run_module("backup_ship", args))
    (data,) = (path for path in kept.cluster.rglob("data/*") if path.is_file())
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    (backup,) = kept.published()
    refused(kept, ["CORRUPT"], lambda: run_module("backup_ship", {**args, "id": backup}))
    assert not [path for path in target.rglob("*") if path.is_file()]
