# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Room that ends at any byte, deaths on the way to the node, and what a slow connection costs.

Numbers are those of the project's list of failure modes.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import utc_text
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import (
    _offers,
    _policy,
    _pool,
    _pull,
    _ranges,
    _sftp,
    _store,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._discover import Source
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import Session
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._request import stage_request
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import ConnectionLost
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._stage import StageResult, stage
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.plugins.modules import backup_ship
from ansible_collections.kmsops.fortanix_dsm.tests.integration.transfer.helpers import (
    FINGERPRINT,
    PATIENCE,
    Proxy,
    Site,
    Sshd,
    run_module,
    tree,
)

MEBI = 1 << 20
PAGE = 4096
RANGE = 64 << 10


@pytest.fixture(autouse=True)
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small backup is moved like a large one."""
    monkeypatch.setattr(_ranges, "SMALLEST", RANGE)
    monkeypatch.setattr(_ranges, "BIGGEST", RANGE)
    monkeypatch.setattr(_policy, "WORTH", RANGE)


def delivered(site: Site, name: str, size: int, age: float = 600) -> Path:
    path = site.source / name
    path.write_bytes(random.Random(name).randbytes(size))
    site.at(path, age)
    return path


# -- room ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def resize(site: Site) -> Iterator[Callable[[int], None]]:
    """The store is a file system of its own; sets how many bytes there are beside those that are taken."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(site.store)], check=True)

    def to(free: int) -> None:
        now = os.statvfs(site.store)
        size = (now.f_blocks - now.f_bfree) * now.f_frsize + free
        subprocess.run(["mount", "-o", f"remount,size={size}", str(site.store)], check=True)

    yield to
    subprocess.run(["umount", str(site.store)], check=False, capture_output=True)


@pytest.mark.parametrize(("where", "least", "most"), [("before", 0, 7), ("data", 7, 128), ("end", 128, 137)])
def test_f13_room_ends_at_any_byte(
    site: Site,
    resize: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    least: int,
    most: int,
) -> None:
    """Whatever is being written when the last page is gone: what was published before is as it was, and the next run,
    with room, ends well. Somebody else took the room, after it had been looked at."""
    source = [{"path": f"{site.source}/*"}]
    delivered(site, "first", 50_000)
    site.run(sources=source, quiet=0)
    monkeypatch.setattr(ClusterStore, "free", lambda _store: (1 << 40, 1 << 20))
    monkeypatch.setattr(ClusterStore, "capacity", lambda _store: 1 << 40)
    choose = random.Random(where)
    refused = 0
    for number in range(6):
        before = site.published()
        path = delivered(site, f"next {number}", MEBI // 2)
        resize(choose.randrange(least, most) * PAGE)
        try:
            site.run(sources=source, quiet=0, run_id=f"run-{number}")
        except DsmError as error:
            refused += 1
            assert {reason.code for reason in error.reasons} | {error.code} == {"STORE_FULL"}, error
            assert all(reason.remedy for reason in error.reasons or [error])
        after = site.published()
        assert before.items() <= after.items()
        for name, manifest in after.items():
            for entry in manifest.files:
                found = (site.cluster / "backups" / name / "data" / entry.path).read_bytes()
                assert hashlib.sha256(found).hexdigest() == entry.sha256
        resize(8 * MEBI)
        result = site.run(sources=source, quiet=0, run_id=f"again-{number}")
        assert len(site.published()) == 2 + number and not site.incoming
        assert result.backups[-1]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert not ClusterStore.require(str(site.store), fingerprint=FINGERPRINT).ledger.chain().problems
    assert refused == 6 or (where == "end" and refused), "there was room"


def test_f13_the_next_backup_is_thought_of(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fits is taken, since a copy is worth more than room; that the next one will not fit is said now."""
    path = delivered(site, "now", 100_000)
    for free, said in ((220_000, False), (209_000, True)):
        monkeypatch.setattr(ClusterStore, "free", lambda _store, free=free: (free, 100))
        site.run(sources=[{"path": f"{site.source}/*"}], quiet=0)
        notes = site.run(sources=[{"path": f"{site.source}/*"}], quiet=0).notes
        assert not notes, "nothing came, so nothing has changed"
        site.at(path, 500 - said)
        notes = site.run(sources=[{"path": f"{site.source}/*"}], quiet=0).notes
        assert any("the next backup of 100000 bytes will not fit" in note for note in notes) is said
    assert len(site.published()) == 3


# -- to the node -----------------------------------------------------------------------------------------------------


def pushed(site: Site, target: Path, checkpoint: Callable[[str], None] = lambda _step: None) -> StageResult:
    defaults = {name: spec.get("default") for name, spec in backup_ship.argument_spec().items()}
    push = {name: spec.get("default") for name, spec in backup_ship.login_spec().items()}
    push.update(site.sshd.login(path=str(target)))
    options: dict[str, Any] = {
        **defaults,
        "store": str(site.store),
        "cluster_id": FINGERPRINT[:16],
        "id": "newest",
        "sources": [],
        "push": push,
        "workers": 2,
    }
    return stage(dataclasses.replace(stage_request(options), checkpoint=checkpoint), False)


STEPS = ["directory made", "range landed", "pushed", "manifest written", "old one removed", "renamed"]


def test_f09_killed_at_every_step_on_the_way_to_the_node(site: Site, tmp_path: Path) -> None:
    """Under the backup's name there is what was there before, or nothing, or all of it; and the next run ends well."""
    delivered(site, "backup.bin", MEBI)
    site.run(sources=[{"path": f"{site.source}/*"}], quiet=0)
    target = tmp_path / "node"
    (name,) = site.published()
    whole = tree(site.cluster / "backups" / name)
    old = None
    for step in STEPS:
        child = os.fork()
        if child == 0:
            try:
                pushed(site, target, lambda at, last=step: os.kill(os.getpid(), signal.SIGKILL) if at == last else None)
            finally:
                os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "the step was never reached"
        there = tree(target / name) if (target / name).exists() else None
        assert there == {"old one removed": None, "renamed": whole}.get(step, old)
        result = pushed(site, target)
        assert result.changed == (step != "renamed")
        assert tree(target / name) == whole and [path.name for path in target.iterdir()] == [name]
        # For the next step there is something else in the way.
        (target / name / "manifest.json").write_bytes(b"{}")
        old = tree(target / name)


@pytest.fixture
def node(site: Site) -> Path:
    """Where the one backup of the store is to go."""
    delivered(site, "backup.bin", MEBI)
    site.run(sources=[{"path": f"{site.source}/*"}], quiet=0)
    return site.store.parent / "node"


def pushed_meanwhile(site: Site, target: Path) -> str:
    """What another run that begins now is told; one that may go on ends when it has made its directory."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pushed(site, target, lambda at: os._exit(0) if at == "directory made" else None)
        except DsmError as error:
            os.write(writing, error.code.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with open(reading, "rb") as file:
        return file.read().decode()


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("step", ["directory made", "pushed"])
def test_f08_one_run_at_a_time_pushes_a_backup_to_a_place(
    site: Site, node: Path, monkeypatch: pytest.MonkeyPatch, step: str, alone: bool
) -> None:
    """Whoever started the first was ended, the module on the store went on; then it was started again. ``alone``: the
    store takes no new file, and only one place at a time can be pushed to."""
    plain = os.open

    def full(path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if "/staging." in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        return plain(path, flags, *arguments, **named)

    if alone:
        monkeypatch.setattr(os, "open", full)
    told: list[str] = []

    def look(at: str) -> None:
        if at == step and not told:
            told.extend(pushed_meanwhile(site, target) for target in (node, node.parent / "another"))

    assert pushed(site, node, look).changed
    assert told == ["LOCKED", "LOCKED" if alone else ""]
    (name,) = site.published()
    assert tree(node / name / "data") == tree(site.cluster / "backups" / name / "data")
    assert not pushed(site, node).changed


@pytest.mark.parametrize("size", [None, 1])
def test_what_somebody_else_changed_on_the_node_is_not_taken_for_the_backup(
    site: Site, node: Path, size: int | None
) -> None:
    """A run of another store, which has locks of its own."""

    def change(at: str) -> None:
        if at == "manifest written":
            (path,) = node.glob(".*.incoming/data/backup.bin")
            path.unlink()
            if size is not None:
                path.write_bytes(bytes(size))

    with pytest.raises(DsmError) as caught:
        pushed(site, node, change)
    assert caught.value.code == "LOCKED"
    (name,) = site.published()
    assert not (node / name).exists()
    assert pushed(site, node).changed
    assert tree(node / name / "data") == tree(site.cluster / "backups" / name / "data")


# -- the link ------------------------------------------------------------------------------------------------------


def through(site: Site, link: Proxy) -> dict[str, Any]:
    """The source of a site, seen through a proxy."""
    hosts = site.sshd.directory / f"known_hosts_{link.port}"
    hosts.write_text(site.sshd.pinned(link.port))
    return site.sshd.login(path=f"{site.source}/*", port=link.port, known_hosts=str(hosts))


def test_f11_a_link_that_is_cut_while_the_source_is_looked_at(
    site: Site, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice it is built again; a link that never lasts is told, and nothing was begun."""
    delivered(site, "backup.bin", 100_000)
    link = proxy(site.sshd.port, lambda _seen, data: data)
    discover, looks = _offers.discover, 0

    def look(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks <= lost:
            link.cut()
        return discover(*arguments)

    monkeypatch.setattr(_offers, "discover", look)
    lost = 3
    with pytest.raises(DsmError) as caught:
        site.run(sources=[through(site, link)])
    assert looks == 3 and [reason.code for reason in caught.value.reasons] == ["CONNECTION_LOST"]
    assert not site.published() and not site.incoming
    lost, looks = 2, 0
    assert site.run(sources=[through(site, link)]).changed
    assert looks == 4, "two that failed, one that did not, and the second look"


def test_f11_a_worker_that_is_lost_while_the_clock_of_a_source_is_asked(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backup that was announced, that is before anything is chosen. It stops no other source."""
    other = site.source.parent / "other"
    other.mkdir()
    delivered(site, "new.bin", 1000).rename(other / "new.bin")
    delivered(site, "backup.bin", 1000)
    skew, asked = _offers._skew, 0

    def ask(session: Session, source: Source) -> int | None:
        nonlocal asked
        if source.path.startswith(str(site.source)):
            asked += 1
            if asked <= lost:
                raise ConnectionLost("the worker is gone", "CONNECTION_LOST", "")
        return skew(session, source)

    monkeypatch.setattr(_offers, "_skew", ask)
    sources = [site.sshd.login(path=f"{site.source}/*"), site.sshd.login(path=f"{other}/*")]
    announced = {"snapshot_started": utc_text(time.time() - 86_400), "snapshot_clock_skew": 0}
    lost = 3
    with pytest.raises(DsmError) as caught:
        site.run(sources=sources, **announced)
    assert [reason.code for reason in caught.value.reasons] == ["CONNECTION_LOST"]
    assert [manifest.source["path"] for manifest in site.published().values()] == [str(other / "new.bin")]
    lost, asked = 2, 0
    assert site.run(sources=sources, **announced).changed
    assert len(site.published()) == 2


def test_f11_all_connections_are_lost_when_the_last_byte_is_here(
    site: Site, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker is lost with its connection, and the next backup comes as well, without waiting for anything."""
    for name in ("one", "two"):
        delivered(site, name, MEBI)
    link = proxy(site.sshd.port, lambda _seen, data: data)
    alive: list[int] = []
    close = _pool.Pool.close

    def closed(pool: _pool.Pool) -> None:
        alive.append(len(pool.alive))
        close(pool)

    landed: list[str] = []

    def step(name: str) -> None:
        landed.append(name)
        if name == "range landed" and landed.count(name) % (MEBI // RANGE) == 0:
            link.cut()

    monkeypatch.setattr(_pool.Pool, "close", closed)
    result = site.run(checkpoint=step, sources=[through(site, link)], workers=2)
    assert alive == [2] and result.report.notes == []
    assert result.report.resent <= _pull.DOUBLED * 2 * RANGE
    assert len(site.published()) == 2


# -- slow ----------------------------------------------------------------------------------------------------------


def test_f11_a_connection_that_stands_still_costs_few_ranges_twice(
    site: Site, proxy: Callable[..., Proxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one fetches some of what it holds once more, and no more than that: lossy links are full already."""
    path = delivered(site, "backup.bin", 3 * MEBI)
    feed = _pull._Transfer._feed
    doubled: set[int] = set()

    def together(transfer: _pull._Transfer, member: Any) -> None:
        if transfer.report.workers >= 2:
            feed(transfer, member)
            doubled.add(transfer.doubled)

    monkeypatch.setattr(_pull._Transfer, "_feed", together)
    go_on, lock = threading.Event(), threading.Lock()
    slow: list[int] = []

    def treat(seen: int, data: bytes) -> bytes:
        # Whichever carries data first.
        with lock:
            if not slow and seen > 20_000:
                slow.append(threading.get_ident())
        if threading.get_ident() in slow:
            go_on.wait(PATIENCE)
        return data

    link = proxy(site.sshd.port, treat)
    landed: list[str] = []
    most = _pull.DOUBLED * 2

    def step(name: str) -> None:
        landed.append(name)
        if landed.count("range landed") == 48 - _ranges.RANGES_AHEAD + most:
            go_on.set()

    result = site.run(checkpoint=step, sources=[through(site, link)], workers=2)
    assert go_on.is_set(), "the other one did not help"
    assert max(doubled) == most and result.report.resent <= most * RANGE
    assert result.report.bytes == path.stat().st_size + result.report.resent
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


# -- what landed ---------------------------------------------------------------------------------------------------


def _lost_lease(site: Site, monkeypatch: pytest.MonkeyPatch, **_unused: Any) -> dict[str, Any]:
    """Somebody removed the lock by hand."""
    monkeypatch.setattr(_store, "RENEW_SECONDS", -1)
    return {"step": lambda: (site.cluster / "lock").unlink(missing_ok=True), "code": "LEASE_LOST"}


def _no_login(
    site: Site, own_server: Callable[..., Sshd], proxy: Callable[..., Proxy], **_unused: Any
) -> dict[str, Any]:
    """The host lets nobody in while it goes down."""
    server = own_server()
    allowed = server.directory / "authorized"
    key = allowed.read_text()
    link = proxy(server.port, lambda _seen, data: data)
    known = server.directory / "known of the link"
    known.write_text(server.pinned(link.port))

    def step() -> None:
        allowed.write_text("")
        link.cut()

    login = server.login(path=f"{site.source}/*", port=link.port, known_hosts=str(known))
    return {
        "step": step,
        "code": "AUTH_REFUSED",
        "mend": lambda: allowed.write_text(key),
        "sources": [login],
        "rate_limit": 3e6,
    }


@pytest.mark.parametrize("happens", [_lost_lease, _no_login], ids=lambda case: case.__name__.strip("_"))
def test_f09_what_landed_outlives_whatever_says_nothing_about_it(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    own_server: Callable[..., Sshd],
    proxy: Callable[..., Proxy],
    happens: Callable[..., dict[str, Any]],
) -> None:
    delivered(site, "one", 2 * MEBI)
    case = happens(site=site, monkeypatch=monkeypatch, own_server=own_server, proxy=proxy)
    code, step, mend = case.pop("code"), case.pop("step"), case.pop("mend", lambda: None)
    landed: list[str] = []

    def at(name: str) -> None:
        if name == "range landed":
            landed.append(name)
            if len(landed) == 3:
                step()

    options = {"sources": [{"path": f"{site.source}/*"}], "quiet": 0, **case}
    with pytest.raises(DsmError) as caught:
        site.run(at, **options)
    assert {reason.code for reason in caught.value.reasons} | {caught.value.code} >= {code}, caught.value
    (left,) = site.incoming
    assert (left / "journal.jsonl").read_bytes().count(b"\n") >= 3
    monkeypatch.undo()
    mend()
    again = site.run(**options)
    assert len(site.published()) == 1 and not site.incoming and again.report.bytes < 2 * MEBI


def test_f09_what_landed_outlives_a_tool_that_is_missing(site: Site) -> None:
    """The command that says whose bytes they are was not installed; tens of GB need not come again for that."""
    delivered(site, "one", MEBI)
    source = [{"path": f"{site.source}/*"}]
    result = site.ship(sources=source, identify_argv=["/nonexistent/identify", "{path}"])
    assert result.failed and not site.published() and len(site.incoming) == 1, result.output
    again = site.ship(sources=source)
    assert len(site.published()) == 1 and again.bytes == 0 and not site.incoming, again.output


def test_another_staging_that_ends_meanwhile_is_in_nobodys_way(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered(site, "one", MEBI)
    site.run(sources=[{"path": f"{site.source}/*"}], quiet=0)
    node = site.store.parent / "node"
    other = node / ".00000077-20261122T005300Z.incoming"
    other.mkdir(parents=True)
    plain = _sftp.Sftp.listdir

    def listdir(self: _sftp.Sftp, path: str) -> Any:
        if path == str(other):
            other.rmdir()
        return plain(self, path)

    monkeypatch.setattr(_sftp.Sftp, "listdir", listdir)
    args = {"state": "staged", "store": str(site.store), "cluster_id": site.cluster.name, "id": "newest"}
    result = run_module("backup_ship", {**args, "push": site.sshd.login(path=str(node))})
    assert result.changed and not other.exists(), result.output
