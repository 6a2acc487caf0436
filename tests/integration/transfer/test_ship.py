# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shipping, listing, verifying and staging against a real sshd."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import utc_text
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import (
    _fetch,
    _policy,
    _pull,
    _ranges,
    _ssh,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._discover import Source
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import (
    LocalEndpoint,
    Session,
    SftpEndpoint,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._fetch import fetch
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._pool import Member, Pool
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sftp import Sftp
from ansible_collections.kmsops.fortanix_dsm.tests.integration.transfer.helpers import (
    PATIENCE,
    Site,
    Sshd,
    ended,
    run_module,
    ssh_target,
)

SEALED = [
    {
        "node": "dr1",
        "platform_id": "SERIAL-1",
        "version": "5.4.2031",
        "joined_at": "2026-11-21T10:00:00Z",
        "member": True,
    }
]


def test_a_delivery_is_published_listed_and_verified(site: Site) -> None:
    archive = site.deliver()
    result = site.ship(sealed_for=SEALED)
    assert not result.failed, result.output
    assert result.changed
    (backup,) = result.backups
    assert backup["published"] and not backup["already"]
    assert backup["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert backup["sealed_for"] == SEALED and backup["provenance"] == "by_source"
    assert result.bytes == archive.stat().st_size and result.peak_rss < 200 << 20
    listed = run_module("backup_info", {"store": str(site.store)})
    assert [item["id"] for item in listed.backups] == [backup["id"]]
    assert listed.backups[0]["verdict"] == "unverified"
    verified = run_module("backup_verify", {"store": str(site.store), "run_id": "run-1"})
    assert [item["verdict"] for item in verified.verdicts] == ["ok"] and not verified.changed
    assert verified.verdicts[0]["structure"] == "archive"
    again = run_module("backup_info", {"store": str(site.store), "cluster_id": result.cluster_id})
    assert again.backups[0]["verified"] is True
    kinds = [event["kind"] for event in run_module("ledger", {"store": str(site.store), "state": "verified"}).events]
    assert kinds == ["shipped", "observed_members", "verified"]


def test_a_second_run_changes_nothing(site: Site) -> None:
    site.deliver()
    assert site.ship().changed
    before = site.snapshot()
    second = site.ship(run_id="run-2")
    assert not second.changed and second.diff["before"] == second.diff["after"]
    assert [item["already"] for item in second.backups] == [True]
    assert site.snapshot() == before


def test_several_sources_come_together_the_eldest_first_and_one_that_is_away_stops_no_other(
    site: Site, own_server: Callable[..., Sshd], tmp_path: Path
) -> None:
    """Two hosts and a drop box; then one of the hosts is gone."""
    host, box = Site(own_server(), tmp_path / "host", site.store), Site(site.sshd, tmp_path / "box", site.store)
    for place in (host, box):
        place.source.mkdir()
    sources = [
        site.sshd.login(path=f"{site.source}/*"),
        host.sshd.login(path=f"{host.source}/*"),
        {"path": f"{box.source}/*"},
    ]
    for number, place in enumerate((box, host, site, host, box)):
        place.deliver(f"backup_{number}.tar.gz", size=50_000, age=900 - 100 * number)
    result = site.ship(sources=sources)
    assert not result.failed, result.output
    came = [os.path.basename(one.source["path"]) for _id, one in sorted(site.published().items())]
    assert came == [f"backup_{number}.tar.gz" for number in range(5)]
    host.sshd.stop()
    site.deliver("backup_5.tar.gz", age=90)
    box.deliver("backup_6.tar.gz", age=80)
    again = site.ship(sources=sources)
    assert again.error_code == "SSH_REFUSED" and len(site.published()) == 7, again.output
    assert not run_module("backup_verify", {"store": str(site.store), "run_id": "run-1"}).failed


def test_the_host_of_the_first_source_is_called_ahead_and_no_other(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later source may have to wait for minutes until it is asked."""
    called: list[int] = []
    dial = _ssh.dial
    monkeypatch.setattr(_ssh, "dial", lambda target: called.append(target.port) or dial(target))
    (tmp_path / "box").mkdir()
    host, box = site.sshd.login(path=f"{site.source}/*"), {"path": f"{tmp_path}/box/*"}
    site.deliver()
    assert site.run(sources=[box, host]).changed and called == []
    site.run(sources=[host, box])
    assert called == [site.sshd.port]


def test_check_mode_predicts_exactly_and_writes_nothing(site: Site) -> None:
    site.deliver()
    before = site.snapshot()
    predicted = site.ship(check=True)
    assert predicted.changed and site.snapshot() == before
    real = site.ship()
    assert [item["id"] for item in predicted.backups] == [item["id"] for item in real.backups]
    assert predicted.diff == real.diff
    assert not site.ship(check=True).changed


def test_a_directory_per_node_keeps_its_tree(site: Site) -> None:
    top = site.source / "20261122T0100Z"
    for node in ("dc1-n1", "dc2-n1", "dc3-n1"):
        (top / node / "dsm").mkdir(parents=True)
        (top / node / "dsm" / "nb-1-big-Data.db").write_bytes(node.encode() * 1000)
        site.at(top / node / "dsm" / "nb-1-big-Data.db", 600)
    result = site.ship()
    assert not result.failed, result.output
    assert [item["path"] for item in result.backups[0]["files"]] == [
        f"{node}/dsm/nb-1-big-Data.db" for node in ("dc1-n1", "dc2-n1", "dc3-n1")
    ]
    per_node = site.ship(sources=[site.sshd.login(path=f"{site.source}/*/*", layout="per_node")], store=str(site.store))
    assert len(per_node.backups) == 1 and per_node.backups[0]["files"] == result.backups[0]["files"]


@pytest.mark.parametrize("layout", ["single", "per_node", "together"])
def test_it_is_told_where_each_file_lies_at_the_source_whatever_the_layout(site: Site, layout: str) -> None:
    """Before it comes, so that it can be hashed there; afterwards; and when it was there before."""
    (site.source / "b" / "n1").mkdir(parents=True)
    for name in ("n1/part-1", "n1/part-2", "n1/part-3"):
        (site.source / "b" / name).write_bytes(name.encode())
        site.at(site.source / "b" / name, 600)
    (site.source / "b" / "n1" / "link").symlink_to("part-1")
    pattern = f"{site.source}/b/*" if layout == "single" else f"{site.source}/b/n1/part-*"
    sources = [site.sshd.login(path=pattern, layout=layout)]
    for result in (site.ship(check=True, sources=sources), site.ship(sources=sources), site.ship(sources=sources)):
        (backup,) = result.backups
        told = {file["path"]: file["source_path"] for file in backup["files"]}
        parts = {name: f"{site.source}/b/n1/{name}" for name in ("part-1", "part-2", "part-3")}
        assert told == (parts if layout != "single" else {**parts, "link": parts["part-1"]})


def test_a_local_drop_box_needs_no_ssh(site: Site) -> None:
    site.deliver()
    result = site.ship(sources=[{"path": f"{site.source}/*"}], request={"hide": ["paramiko"]})
    assert not result.failed, result.output
    assert result.backups[0]["published"]


def test_snapshot_started_makes_the_pair_golden(site: Site) -> None:
    site.deliver("old.tar.gz", age=3600)
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 60))
    site.deliver("new.tar.gz", age=30)
    result = site.ship(sealed_for=SEALED, snapshot_started=started)
    assert not result.failed, result.output
    assert [(item["snapshot_started"], item["pairs"][0]["kind"]) for item in result.backups] == [
        (None, "presumed"),
        (started, "golden"),
    ]
    folded = run_module("ledger", {"store": str(site.store)}).folded
    assert [(item["id"], item["node"]) for item in folded["golden"]] == [(result.backups[1]["id"], "dr1")]


def test_staging_puts_the_published_bytes_on_the_node(site: Site) -> None:
    archive = site.deliver()
    shipped = site.ship()
    target = site.store.parent / "node" / "restore"
    args = {
        "state": "staged",
        "store": str(site.store),
        "cluster_id": shipped.cluster_id,
        "id": "newest",
        "push": site.sshd.login(path=str(target)),
    }
    predicted = run_module("backup_ship", args, check=True)
    assert predicted.changed and not target.exists()
    staged = run_module("backup_ship", args)
    assert staged.changed and staged.staged["sha256"] == shipped.backups[0]["sha256"]
    landed = (target / shipped.backups[0]["id"] / "data" / archive.name).read_bytes()
    assert staged.staged["path"] == str(target / shipped.backups[0]["id"] / "data" / archive.name)
    assert landed == archive.read_bytes()
    assert not run_module("backup_ship", args).changed
    (target / shipped.backups[0]["id"] / "data" / archive.name).write_bytes(landed[:-1] + b"x")
    repaired = run_module("backup_ship", args)
    assert repaired.changed and json.dumps(repaired.staged)
    assert (target / shipped.backups[0]["id"] / "data" / archive.name).read_bytes() == archive.read_bytes()


def test_what_landed_goes_to_the_disk_while_the_rest_is_still_coming(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte once, after it was hashed; nothing is left for the end to wait for."""
    path = site.source / "backup.bin"
    path.write_bytes(bytes(5_000_000))
    site.at(path, 600)
    given: list[tuple[int, int]] = []

    def note(_descriptor: int, at: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        given.append((at, length))

    monkeypatch.setattr(os, "posix_fadvise", note)
    site.run(sources=[{"path": str(path)}])
    assert len(given) > 1 and given[0][0] == 0
    assert [at + length for at, length in given] == [*(at for at, _length in given[1:]), 5_000_000]


def test_the_engine_without_a_store_shows_how_far_it_is(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    archive = site.deliver(size=3_000_000)
    login = site.sshd.login()
    directory = site.store / "plain"
    report = fetch(Source(SftpEndpoint(ssh_target(login)), str(archive)), str(directory), workers=2)
    assert (directory / "data" / archive.name).read_bytes() == archive.read_bytes()
    assert report.sha256 == {archive.name: hashlib.sha256(archive.read_bytes()).hexdigest()}
    assert 0 < report.peak_rss < 200 << 20
    shown = capfd.readouterr()
    assert shown.out == "" and "(100 %)" in shown.err and archive.name in shown.err
    again = fetch(Source(SftpEndpoint(ssh_target(login)), str(archive)), str(directory), workers=2)
    assert again.bytes == 0 and again.reused == archive.stat().st_size and again.sha256 == report.sha256


def test_overlapping_sources_are_one_backup(site: Site) -> None:
    site.deliver()
    overlapping = [site.sshd.login(path=f"{site.source}/{end}") for end in ("*", "sdkms*")]
    with pytest.raises(KeyboardInterrupt):
        site.run(sources=overlapping, checkpoint=interrupt("pulled"))
    for _again in range(2):
        assert not site.ship(sources=overlapping).failed
        assert len(site.published()) == 1


def interrupt(wanted: str) -> Callable[[str], None]:
    def step(name: str) -> None:
        if name == wanted:
            raise KeyboardInterrupt

    return step


def test_files_of_one_name_of_several_nodes_are_one_backup(site: Site) -> None:
    for node in ("n1", "n2"):
        (site.source / node).mkdir()
        (site.source / node / "data.db").write_bytes(os.urandom(100_000))
        site.at(site.source / node / "data.db", 600)
    assert not site.ship(sources=[site.sshd.login(path=f"{site.source}/*/data.db", layout="together")]).failed
    (manifest,) = site.published().values()
    found = {entry.path: entry.sha256 for entry in manifest.files}
    assert found == {
        f"{node}/data.db": hashlib.sha256((site.source / node / "data.db").read_bytes()).hexdigest()
        for node in ("n1", "n2")
    }


@pytest.mark.parametrize("size", [4_000_000, 8_000_000])
def test_a_directory_is_for_one_version_of_one_backup(tmp_path: Path, size: int) -> None:
    """What was interrupted goes on, but never with what the source became meanwhile."""
    source, out = tmp_path / "backup", tmp_path / "out"
    first = os.urandom(8_000_000)
    source.write_bytes(first)

    def stop(done: int, _total: int, _workers: int) -> None:
        if done > 2_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(Source(LocalEndpoint(), str(source)), str(out), workers=2, progress=stop)
    moment = source.stat().st_mtime
    source.write_bytes(os.urandom(size))
    os.utime(source, (1, 1))
    with pytest.raises(Refused, match="holds something else"):
        fetch(Source(LocalEndpoint(), str(source)), str(out), workers=2)
    source.write_bytes(first)
    os.utime(source, (moment, moment))
    fetch(Source(LocalEndpoint(), str(source)), str(out), workers=2)
    assert (out / "data" / "backup").read_bytes() == first
    stranger = tmp_path / "stranger"
    (stranger / "data").mkdir(parents=True)
    (stranger / "data" / "backup").write_bytes(b"mine")
    with pytest.raises(Refused, match="holds something else"):
        fetch(Source(LocalEndpoint(), str(source)), str(stranger), workers=2)
    with pytest.raises(Refused) as caught:
        fetch(Source(LocalEndpoint(), str(out / "data" / "backup")), str(out), workers=2)
    assert caught.value.code == "SOURCE_IS_STORE" and (stranger / "data" / "backup").read_bytes() == b"mine"


class Terminal:
    """The command line of the engine, with a terminal for what it says to a person."""

    def __init__(self, collections: Path, *words: str, stdout: str = "") -> None:
        self.screen, theirs = pty.openpty()
        # As in front of a person, also where this test was begun in the background, where Ctrl-C is ignored.
        argv = ["env", "--default-signal=INT", sys.executable, "-m", _fetch.__name__, *words]
        environment = {**os.environ, "PYTHONPATH": str(collections), "SSH_AUTH_SOCK": ""}
        self.process = subprocess.Popen(
            argv,
            stdout=os.open(stdout, os.O_WRONLY) if stdout else subprocess.PIPE,
            stderr=theirs,
            env=environment,
            text=True,
            start_new_session=True,
        )
        os.close(theirs)
        self.shown = ""

    def look(self) -> bool:
        """Take what was drawn since; False once nobody draws any more."""
        with contextlib.suppress(OSError):
            piece = os.read(self.screen, 65536).decode()
            self.shown += piece
            return bool(piece)
        return False

    def end(self) -> tuple[int, str]:
        """Exit code, and what went to stdout."""
        while self.look():
            pass
        os.close(self.screen)
        told, _nothing = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, told


def test_at_a_terminal_there_is_a_bar_and_what_was_interrupted_goes_on(site: Site, tmp_path: Path) -> None:
    # Under the cap it would take half a minute.
    archive = site.deliver(size=30_000_000)
    place = f"127.0.0.1:{archive}"
    login = ["--port", str(site.sshd.port), "--key", str(site.sshd.client_key)]
    known = ["--known-hosts", str(site.sshd.known_hosts)]
    collections = tmp_path / "collections"
    (collections / "ansible_collections" / "kmsops").mkdir(parents=True)
    here = Path(_fetch.__file__).parents[3]
    (collections / "ansible_collections" / "kmsops" / "fortanix_dsm").symlink_to(here)
    stranger = Terminal(collections, place, str(tmp_path), *login, "--known-hosts", os.devnull)
    assert stranger.end() == (1, "") and "is unknown" in stranger.shown and "What to do: " in stranger.shown
    interrupted = Terminal(collections, place, str(tmp_path), *login, *known, "--rate-limit", "1e6")
    while f"{archive.name} [" not in interrupted.shown:
        assert interrupted.look(), interrupted.shown
    os.killpg(interrupted.process.pid, signal.SIGINT)
    assert interrupted.end() == (130, "") and "stopped. Run the same again" in interrupted.shown
    fetched = Terminal(collections, place, str(tmp_path), *login, *known)
    code, told = fetched.end()
    assert code == 0 and f"\r{archive.name} [{'#' * 24}]" in fetched.shown and "Traceback" not in fetched.shown
    full = Terminal(collections, place, str(tmp_path), *login, *known, stdout="/dev/full")
    assert full.end()[0] == 1 and "stdout: No space left" in full.shown and "Traceback" not in full.shown
    wrong = Terminal(collections, place, f"{tmp_path}/a\nb", *login, *known)
    assert wrong.end() == (2, "") and "control characters" in wrong.shown
    (tmp_path / "link").symlink_to(archive.parent)
    linked = Terminal(collections, str(tmp_path / "link" / archive.name), str(tmp_path / "linked"))
    assert linked.end()[0] == 0
    checked = subprocess.run(["sha256sum", "-c"], input=told, capture_output=True, text=True, check=True)
    assert checked.stdout == f"{tmp_path / 'data' / archive.name}: OK\n"
    assert (tmp_path / "data" / archive.name).read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("round_trip", "cap", "connections"), [(0.0005, {}, 2), (0.08, {}, 4), (0.08, {"rate_limit": 50e6}, 2)]
)
def test_a_far_source_is_asked_over_more_connections_from_the_start(
    site: Site, monkeypatch: pytest.MonkeyPatch, round_trip: float, cap: dict[str, float], connections: int
) -> None:
    """Unless a limit to the bandwidth needs no more."""
    warmed, begun = [], []
    warm, growth = Pool.warm, _policy.Growth

    def warming(pool: Pool, endpoint: SftpEndpoint, rate: float, count: int) -> None:
        warmed.append(count)
        warm(pool, endpoint, rate, count)

    def beginning(limit: int, workers: int, processors: int) -> _policy.Growth:
        begun.append(workers)
        return growth(limit, workers, processors)

    monkeypatch.setattr(_policy, "AT_ONCE", 4)
    monkeypatch.setattr(_policy, "WORTH", 1000)
    monkeypatch.setattr(_policy, "Growth", beginning)
    monkeypatch.setattr(Pool, "warm", warming)
    monkeypatch.setattr(Sftp, "round_trip", lambda _sftp: round_trip)
    site.deliver()
    site.run(**cap)
    assert (warmed, begun) == ([connections], [connections])


def test_a_connection_that_did_not_help_is_taken_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three for the first third of the bytes, then two."""
    piece, let_go = 1 << 16, []
    size = 200 * piece
    letting, feeding = _pull._Transfer._let_go, _pull._Transfer._feed
    patience = time.monotonic() + 30

    def watch(transfer: _pull._Transfer, member: Member) -> None:
        let_go.append(transfer.plan.done)
        letting(transfer, member)

    def feed(transfer: _pull._Transfer, member: Member) -> None:
        """Everybody gets something, and nobody the last before the third was let go."""
        last = 3 * transfer.plan.open_bytes < size and time.monotonic() < patience
        if transfer.report.workers == 3 and (let_go or not last or transfer.lines[member.number].spare):
            feeding(transfer, member)

    for module, name in ((_ranges, "SMALLEST"), (_ranges, "BIGGEST"), (_policy, "WORTH")):
        monkeypatch.setattr(module, name, piece)
    monkeypatch.setattr(_policy, "FEWEST", 3)
    monkeypatch.setattr(_policy, "AT_ONCE", 3)
    monkeypatch.setattr(_policy.Growth, "wanted", lambda _growth, _now, _moved, left: 3 if 3 * left > 2 * size else 2)
    monkeypatch.setattr(_pull._Transfer, "_let_go", watch)
    monkeypatch.setattr(_pull._Transfer, "_feed", feed)
    path = site.source / "backup.bin"
    path.write_bytes(random.Random(7).randbytes(size))
    site.at(path, 600)
    result = site.run()
    assert let_go == [False, True, True]
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def logins(site: Site) -> int:
    """How often anybody was let in."""
    return (site.sshd.directory / "log").read_text().count("Accepted publickey")


def test_the_connection_that_looked_moves_the_bytes_and_looks_again(site: Site) -> None:
    site.deliver("a")
    site.deliver("b", age=500)
    before = logins(site)
    assert len([item for item in site.run(workers=1).backups if item["published"]]) == 2
    assert logins(site) == before + 1
    assert all(item["already"] for item in site.run(workers=8).backups)
    assert logins(site) == before + 2, "nothing was new, and more than one logged in"


@pytest.mark.parametrize("step", ["source noted", "pulled"])
@pytest.mark.parametrize("workers", [1, 2])
def test_the_worker_that_looked_may_die(site: Site, monkeypatch: pytest.MonkeyPatch, step: str, workers: int) -> None:
    archive = site.deliver()
    session, asked = Pool.session, []

    def remember(pool: Pool, endpoint: SftpEndpoint) -> Session:
        made = session(pool, endpoint)
        asked.append((pool, made))
        return made

    def kill(reached: str) -> None:
        if reached == step and len(asked) == 1:
            victim = next(member for member in asked[0][0].alive if member.asked)
            os.kill(victim.pid, signal.SIGKILL)
            os.waitid(os.P_PID, victim.pid, os.WEXITED | os.WNOWAIT)
            asked.append(asked[0])

    monkeypatch.setattr(Pool, "session", remember)
    if (step, workers) == ("source noted", 1):
        # Nobody is left who could move anything.
        with pytest.raises(Refused) as refusal:
            site.run(kill, workers=workers)
        assert [reason.code for reason in refusal.value.reasons] == ["WORKERS_DIED"]
        assert not site.published() and len(site.incoming) == 1
    site.run(kill, workers=workers)
    stored = site.published()
    assert [manifest.archive.sha256 for manifest in stored.values() if manifest.archive] == [
        hashlib.sha256(archive.read_bytes()).hexdigest()
    ]


def test_f09_a_worker_that_hangs_while_it_looks_costs_itself_and_nothing_else(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two workers the one that is asked first is stopped and waited for in vain: the other looks."""
    archive = site.deliver()
    session = Pool.session
    stopped: list[int] = []

    def stop(pool: Pool, endpoint: SftpEndpoint) -> Session:
        if not stopped:
            stopped.append(pool.alive[0].pid)
            os.kill(stopped[0], signal.SIGSTOP)
            monkeypatch.setattr(pool.alive[0].pipe, "poll", lambda *_seconds: False)
        return session(pool, endpoint)

    monkeypatch.setattr(Pool, "session", stop)
    result = site.run(workers=2)
    assert ended(stopped[0])
    assert [item["sha256"] for item in result.backups] == [hashlib.sha256(archive.read_bytes()).hexdigest()]


def test_hashes_hold_for_every_source_that_names_the_file(site: Site) -> None:
    """Two sources that overlap are one backup; which of them knew the hash does not matter."""
    archive = site.deliver()
    right, wrong = hashlib.sha256(archive.read_bytes()).hexdigest(), "0" * 64
    for first, second, third in [
        ({str(archive): wrong}, {}, {}),
        ({}, {str(archive): wrong}, {}),
        ({str(archive): right}, {str(archive): wrong}, {}),
        ({str(archive): right}, {str(archive): wrong}, {str(archive): right}),
    ]:
        sources = [
            site.sshd.login(path=str(archive), hashes=first),
            site.sshd.login(path=f"{site.source}/*", hashes=second),
            site.sshd.login(path=f"{site.source}/*.gz", hashes=third),
        ]
        result = site.ship(sources=sources)
        assert result.codes == ["SOURCE_HASH"] and result.remedy and not site.published(), result.output
    sources[1]["hashes"] = {str(archive): right, f"{archive}.typo": right}
    result = site.ship(sources=sources[:2])
    assert [manifest.source["hash"] for manifest in site.published().values()] == ["sha256"], result.output
    (note,) = [note for note in result.notes if "belong to no file" in note]
    assert f"{archive}.typo" in note


def test_two_hosts_behind_one_address_are_two_sources(site: Site, own_server: Callable[..., Sshd]) -> None:
    """As through a jump host; name, size and time are equal."""
    # Nobody but root may write above a directory that sshd confines to.
    with tempfile.TemporaryDirectory(dir="/var/lib") as top:
        logins = []
        for number in (1, 2):
            root = Path(top) / f"root{number}"
            (root / "backup").mkdir(parents=True)
            archive = root / "backup" / "dsm.img"
            archive.write_bytes(bytes([number]) * 200_000)
            os.utime(archive, (1_700_000_000, 1_700_000_000))
            logins.append(own_server(f"ChrootDirectory {root}").login(path="/backup/*"))
        Path(top).chmod(0o755)
        assert site.ship(sources=logins).changed
        assert len({manifest.digest for manifest in site.published().values()}) == 2
        assert not site.ship(sources=logins).changed


def ahead(site: Site, seconds: int) -> None:
    """A backup is in the store that was delivered with a time which has not come yet."""
    site.deliver("ahead.tar.gz", age=-seconds)
    assert site.ship().changed


def test_f17_a_time_ahead_is_not_the_new_backup_that_is_waited_for(site: Site) -> None:
    ahead(site, 7200)
    started = utc_text(time.time())
    result = site.ship(snapshot_started=started, run_id="run-2", patience=1)
    assert result.codes == ["NO_NEW_BACKUP"], result.output
    # Nor is one that is there for the first time.
    site.deliver("ahead too.tar.gz", age=-86400)
    result = site.ship(snapshot_started=started, run_id="run-3", patience=1)
    assert "NO_NEW_BACKUP" in result.codes, result.output
    site.deliver("new.tar.gz", age=-1)
    result = site.ship(snapshot_started=started, run_id="run-4")
    assert not result.failed, result.output
    told = {
        manifest.archive.path: manifest.snapshot_started for manifest in site.published().values() if manifest.archive
    }
    assert told == {"ahead.tar.gz": None, "ahead too.tar.gz": None, "new.tar.gz": started}


def test_f17_a_time_ahead_does_not_stay_the_newest(site: Site) -> None:
    site.deliver("tomorrow.tar.gz", age=-86400)
    assert site.ship(select="newest").changed
    site.deliver("now.tar.gz", age=10)
    result = site.ship(select="newest", run_id="run-2")
    assert result.changed and len(site.published()) == 2, result.output
    assert any("has not come yet" in note for note in result.notes)


def test_f17_a_clock_that_says_nonsense_makes_no_backup_that_nobody_can_read(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.deliver()
    with monkeypatch.context() as patch:
        patch.setattr(_ssh.Connection, "clock", lambda _connection: 1e30)
        for number in (1, 2):
            with pytest.raises(Refused) as refusal:
                site.run(run_id=f"run-{number}")
            assert any("clock_skew" in reason.message for reason in refusal.value.reasons)
            assert not list(site.cluster.glob("backups/*")) and len(site.incoming) == 1
    result = site.run(run_id="run-3")
    assert len(site.published()) == 1 and result.report.bytes == 0
