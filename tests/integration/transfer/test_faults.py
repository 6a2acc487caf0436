# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults while bytes move and while they rest. Numbers are those of the project's list of failure modes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import (
    _discover,
    _endpoint,
    _policy,
    _pull,
    _ranges,
    _stage,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import SftpEndpoint
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._pool import Pool
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import ConnectionLost
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.tests.integration.transfer.helpers import (
    FINGERPRINT,
    PATIENCE,
    Proxy,
    Site,
    Sshd,
    await_that,
    children,
    ended,
    run_module,
    ssh_target,
    tree,
)

MEBI = 1 << 20


def verified(site: Site) -> list[str]:
    """Verdicts of everything in the store."""
    result = run_module("backup_verify", {"store": str(site.store), "report_only": True})
    return [item["verdict"] for item in result.verdicts]


RANGE = 64 << 10
#: With how many workers a transfer begins; what each of them had begun may have to be sent again.
WORKERS = 2


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of 64 KiB and two workers from the start, so that a small backup is moved like a large one."""
    monkeypatch.setattr(_ranges, "SMALLEST", RANGE)
    monkeypatch.setattr(_ranges, "BIGGEST", RANGE)
    monkeypatch.setattr(_policy, "WORTH", RANGE)


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    begin_together(monkeypatch)


def begin_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gets anything to move before two workers are connected: neither is ready before the other has begun."""
    feed = _pull._Transfer._feed

    def wait(transfer: _pull._Transfer, member: Any) -> None:
        if transfer.report.workers >= 2:
            feed(transfer, member)

    monkeypatch.setattr(_pull._Transfer, "_feed", wait)


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list[_pull._Transfer]:
    """Every transfer that is begun."""
    begun: list[_pull._Transfer] = []
    run = _pull._Transfer.run

    def note(transfer: _pull._Transfer) -> _pull.TransferReport:
        begun.append(transfer)
        return run(transfer)

    monkeypatch.setattr(_pull._Transfer, "run", note)
    return begun


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connect again at once."""
    monkeypatch.setattr(_policy, "pause", lambda _failures, _chance: 0.0)


def big(site: Site, size: int = 3 * MEBI) -> Path:
    """A delivery of many ranges in no particular format."""
    path = site.source / "backup.bin"
    path.write_bytes(random.Random(7).randbytes(size))
    site.at(path, 600)
    return path


# -- the link ------------------------------------------------------------------------------------------------------


def test_f11_twenty_cuts_of_one_transfer(
    site: Site, proxy: Callable[..., Proxy], small_ranges: None, impatient: None, transfers: list[_pull._Transfer]
) -> None:
    size = 8 * MEBI
    path = big(site, size)
    choose = random.Random(11)
    # All twenty together are less than the file, so that each of them is reached.
    cuts = iter([choose.randrange(50_000, 400_000) for _index in range(20)])
    limits: dict[int, int] = {}

    def cut(seen: int, data: bytes) -> bytes | None:
        if link.connections not in limits:
            limits[link.connections] = next(cuts, 1 << 40)
        return None if seen + len(data) > limits[link.connections] else data

    link = proxy(site.sshd.port, cut)
    fails = 0
    while True:
        try:
            result = site.run(sources=[through(site, link)], workers=WORKERS)
            break
        except DsmError as error:
            assert {reason.code for reason in error.reasons} <= {"CONNECTION_LOST", "SSH_REFUSED"}, error
            assert not site.published()
            fails += 1
            assert fails < 21
    assert link.connections > 20
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    # Of all attempts together, also those that failed.
    again = sum(transfer.received for transfer in transfers) - size
    assert 0 <= again <= 20 * RANGE * WORKERS
    if not fails:
        assert result.report.resent == again and result.report.bytes == size + again
    assert verified(site) == ["ok"]


def test_f10_a_bit_flipped_in_flight_never_lands(site: Site, proxy: Callable[..., Proxy], small_ranges: None) -> None:
    path = big(site)
    flipped: list[int] = []

    def flip(seen: int, data: bytes) -> bytes:
        at = 1_000_000 - seen
        if not flipped and 0 <= at < len(data):
            flipped.append(link.connections)
            return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        return data

    link = proxy(site.sshd.port, flip)
    result = site.run(sources=[through(site, link)], workers=1)
    assert flipped == [1], "the connection that looked carries the data"
    assert link.connections == 2, "the flipped bit went unnoticed"
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f11_a_stalled_link_is_given_up(
    site: Site, proxy: Callable[..., Proxy], impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = _policy.Failures
    monkeypatch.setattr(_policy, "Failures", lambda _attempts: failures(2))
    # Of the readers alone: what else is answered may take the time that this machine needs.
    monkeypatch.setattr(_endpoint.SftpEndpoint, "patience", 1.0)
    big(site)
    wake = threading.Event()
    stalled = threading.Event()

    def stall(seen: int, data: bytes) -> bytes:
        # Once the link has stalled, nothing but the small packets of a handshake gets through any more.
        if seen > 500_000 or (stalled.is_set() and len(data) > 3000):
            stalled.set()
            wake.wait(2 * PATIENCE)
        return data

    link = proxy(site.sshd.port, stall)
    started = time.monotonic()
    with pytest.raises(DsmError) as caught:
        site.run(sources=[through(site, link)])
    wake.set()
    assert stalled.is_set() and time.monotonic() - started < PATIENCE
    assert [reason.code for reason in caught.value.reasons] == ["STALLED"]
    assert not site.published() and site.incoming, "what landed is kept"


@pytest.mark.parametrize("landed", [1, 10, 33, 60])
def test_f11_sshd_dies_and_comes_back(
    site: Site, own_server: Callable[..., Sshd], small_ranges: None, impatient: None, landed: int
) -> None:
    # Of 96 ranges at most 32 more are under way when it dies.
    path = big(site, 6 * MEBI)
    site.sshd = own_server()
    steps = []

    def step(name: str) -> None:
        steps.append(name)
        if steps.count("range landed") == landed and name == "range landed":
            site.sshd.stop()

    with pytest.raises(DsmError) as caught:
        site.run(checkpoint=step)
    assert {reason.code for reason in caught.value.reasons} <= {"SSH_REFUSED", "CONNECTION_LOST"}
    site.sshd.start()
    result = site.run()
    assert result.report.reused >= landed * RANGE
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def through(site: Site, link: Proxy) -> dict[str, Any]:
    """The source of a site, seen through a proxy."""
    hosts = site.sshd.directory / f"known_hosts_{link.port}"
    hosts.write_text(site.sshd.pinned(link.port))
    return site.sshd.login(path=f"{site.source}/*", port=link.port, known_hosts=str(hosts))


class Scissors:
    """Cuts a link so often: each time one of its two connections for data, whichever has carried so many bytes.

    The other one then goes no further than that before the lost one was built again, so that there is work left for it.
    """

    link: Proxy

    def __init__(self, times: int, after: int, connections: int = 2) -> None:
        """``connections`` is how many there are while nothing is lost."""
        self.times, self.after, self.connections = times, after, connections
        self.cuts = 0
        self._lock = threading.Lock()

    def __call__(self, seen: int, data: bytes) -> bytes | None:
        if seen > self.after:
            with self._lock:
                if self.cuts < self.times and self.link.connections == self.connections + self.cuts:
                    self.cuts += 1
                    return None
            await_that(
                lambda: self.link.connections >= self.connections + self.cuts, "the lost connection is not built again"
            )
        return data


def test_f11_one_connection_of_several_dies_again_and_again(
    site: Site, proxy: Callable[..., Proxy], small_ranges: None, impatient: None, together: None
) -> None:
    """The others go on meanwhile, and the transfer ends in the same run."""
    path = big(site, 4 * MEBI)
    scissors = Scissors(3, 200_000)
    link = scissors.link = proxy(site.sshd.port, scissors)
    result = site.run(sources=[through(site, link)], workers=2)
    assert scissors.cuts == 3, "too few connections were lost"
    assert link.connections == 2 + scissors.cuts, "each lost connection is built again, once"
    assert result.report.workers == 2
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f11_a_source_that_takes_one_connection_only_is_enough(
    site: Site, proxy: Callable[..., Proxy], small_ranges: None, impatient: None
) -> None:
    """What sshd does when MaxStartups is exceeded: it accepts and hangs up."""
    path = big(site)
    open_now: list[socket.socket] = []
    link = proxy(site.sshd.port, lambda _seen, data: data)
    create = socket.create_connection

    def one_at_a_time(address: Any, *arguments: Any) -> socket.socket:
        if address[1] == site.sshd.port and [item for item in open_now if item.fileno() >= 0]:
            raise ConnectionRefusedError
        made = create(address, *arguments)
        open_now.append(made)
        return made

    link.connect = one_at_a_time
    result = site.run(sources=[through(site, link)])
    assert result.report.workers == 1
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("limit", ["2:100:2", "3:30:4"])
def test_f11_a_source_that_lets_few_log_in_at_the_same_time_is_enough(
    site: Site, own_server: Callable[..., Sshd], small_ranges: None, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """MaxStartups is met by eight connections that log in together, as for a far source."""
    for name in ("AT_ONCE", "FEWEST"):
        monkeypatch.setattr(_policy, name, 8)
    path = big(site)
    site.sshd = own_server(f"MaxStartups {limit}", "LogLevel VERBOSE")
    result = site.run(workers=8)
    assert "MaxStartups" in (site.sshd.directory / "log").read_text(), "nobody was turned away"
    assert 1 <= result.report.workers <= 8 and result.report.notes == []
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f11_whoever_holds_all_logins_of_a_source_does_not_stop_what_is_connected(
    site: Site, own_server: Callable[..., Sshd], small_ranges: None, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers who do not log in take all that MaxStartups allows, from when the source was looked at."""
    for name in ("AT_ONCE", "FEWEST"):
        monkeypatch.setattr(_policy, name, 8)
    monkeypatch.setattr(Pool, "warm", lambda *_arguments: None)
    path = big(site)
    site.sshd = own_server("MaxStartups 2:100:2", "LogLevel VERBOSE")
    with contextlib.ExitStack() as strangers:

        def step(name: str) -> None:
            if name == "incoming made":
                for _count in range(2):
                    stranger = strangers.enter_context(socket.create_connection(("127.0.0.1", site.sshd.port)))
                    stranger.settimeout(PATIENCE)
                    assert stranger.recv(3) == b"SSH"

        # Slowly, so that all the others try.
        result = site.run(workers=8, checkpoint=step, rate_limit=2 * MEBI)
    turned_away = (site.sshd.directory / "log").read_text().count("past MaxStartups")
    assert turned_away == 7, "each tries once, what is connected is enough"
    assert result.report.workers == 1
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f09_a_worker_that_is_killed_costs_its_ranges_and_nothing_else(
    site: Site, small_ranges: None, together: None
) -> None:
    path = big(site)
    before = set(children(os.getpid()))
    killed = []

    def step(name: str) -> None:
        if name == "range landed" and not killed:
            busy = next(pid for pid in children(os.getpid()) if pid not in before)
            os.kill(busy, signal.SIGKILL)
            await_that(lambda: ended(busy), "it lives on")
            killed.append(busy)

    result = site.run(checkpoint=step, workers=WORKERS)
    assert killed and any(f"process {killed[0]}" in note and "SIGKILL" in note for note in result.notes)
    assert result.report.resent <= 20 * RANGE * WORKERS
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f09_a_worker_that_hangs_is_given_up(
    site: Site, small_ranges: None, together: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big(site)
    before = set(children(os.getpid()))
    stopped: list[int] = []
    bury = _pull._Transfer._bury

    def step(name: str) -> None:
        if name == "range landed" and not stopped:
            stopped.append(next(pid for pid in children(os.getpid()) if pid not in before))
            os.kill(stopped[0], signal.SIGSTOP)

    def later(transfer: _pull._Transfer) -> None:
        """It has been silent for long, and the others have not."""
        for member in transfer.pool.alive:
            if member.pid in stopped:
                transfer.lines[member.number].spoke = -1e9
        bury(transfer)

    monkeypatch.setattr(_pull._Transfer, "_bury", later)
    result = site.run(checkpoint=step, workers=WORKERS)
    assert stopped and any(f"process {stopped[0]}" in note for note in result.notes)
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f09_when_every_worker_is_killed_the_next_run_goes_on(site: Site, small_ranges: None) -> None:
    path = big(site)
    before = set(children(os.getpid()))
    landed = []

    def step(name: str) -> None:
        landed.append(name)
        if name == "range landed" and landed.count(name) == 5:
            for pid in set(children(os.getpid())) - before:
                os.kill(pid, signal.SIGKILL)

    with pytest.raises(DsmError) as caught:
        site.run(checkpoint=step, workers=WORKERS)
    assert [reason.code for reason in caught.value.reasons] == ["WORKERS_DIED"] and caught.value.reasons[0].remedy
    result = site.run()
    assert result.report.reused >= 5 * RANGE
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f09_workers_end_when_their_controller_is_killed(site: Site, small_ranges: None) -> None:
    """Nobody writes into the store without the lease."""
    big(site, 32 * MEBI)
    reading, writing = os.pipe()

    def step(name: str) -> None:
        if name == "range landed":
            os.write(writing, json.dumps(children(os.getpid())).encode())
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            site.run(checkpoint=step)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    workers = json.loads(os.read(reading, 65536))
    os.close(reading)
    os.close(writing)
    assert len(workers) == 8
    await_that(lambda: all(ended(pid) for pid in workers), "orphans go on writing")


def test_f09_a_local_worker_that_the_cap_holds_back_ends_with_its_controller(site: Site) -> None:
    big(site, 12 * MEBI)
    reading, writing = os.pipe()

    def step(name: str) -> None:
        if name == "source noted":
            os.write(writing, json.dumps(children(os.getpid())).encode())

    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            # At this rate each would need a minute for what it was given.
            site.run(step, sources=[{"path": f"{site.source}/*"}], rate_limit=100_000.0, workers=2)
        os._exit(0)
    workers = json.loads(os.read(reading, 65536))
    await_that(lambda: list(site.cluster.glob("incoming/*/journal.jsonl")), "nothing was begun")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)
    assert workers
    # Less than a second is what it looks for orders in; a piece of 1 MiB would keep it for ten.
    deadline = time.monotonic() + 5
    while not all(ended(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = [pid for pid in workers if not ended(pid)]
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    assert not alive


def test_a_local_source_under_a_low_cap_is_not_taken_for_dead(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pull, "DEAD_AFTER", 2.0)
    path = big(site, 3_000_000)
    result = site.run(sources=[{"path": f"{site.source}/*"}], rate_limit=400_000.0, workers=1)
    assert result.report.notes == []
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_cap_below_what_a_local_worker_waits_for_ends_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is paid for a piece is more than the patience with a disk that gives nothing."""
    monkeypatch.setattr(_endpoint.LocalEndpoint, "patience", 1.0)
    path = big(site, 250_000)
    result = site.run(sources=[{"path": f"{site.source}/*"}], rate_limit=40_000.0, workers=1)
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bandwidth_cap_holds_for_all_workers_together(site: Site, small_ranges: None, together: None) -> None:
    path = big(site, 2 * MEBI)
    result = site.run(rate_limit=MEBI, workers=WORKERS)
    assert result.report.workers == 2
    assert result.report.seconds >= 1.7, "faster than the cap"
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


# -- the source ----------------------------------------------------------------------------------------------------


def test_f12_a_local_file_that_another_of_its_size_and_time_replaces_is_no_mixture_of_both(
    site: Site, small_ranges: None
) -> None:
    path = big(site)
    other = site.source.parent / "other"
    other.write_bytes(random.Random(9).randbytes(path.stat().st_size))

    def replaced(name: str) -> None:
        if name == "range landed" and other.exists():
            os.utime(other, (path.stat().st_mtime,) * 2)
            other.replace(path)

    with pytest.raises(DsmError) as caught:
        site.run(replaced, sources=[{"path": f"{site.source}/*"}], workers=1)
    assert [reason.code for reason in caught.value.reasons] == ["SOURCE_CHANGED"] and not site.published()
    result = site.run(sources=[{"path": f"{site.source}/*"}])
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("how", ["rewritten", "appended", "truncated", "replaced", "removed"])
def test_f12_a_source_that_changes_while_it_is_read_is_never_published(
    site: Site, how: str, small_ranges: None
) -> None:
    path = big(site)
    done = []

    def step(name: str) -> None:
        if name != "range landed" or done:
            return
        done.append(name)
        if how == "rewritten":
            path.write_bytes(b"y" * path.stat().st_size)
        elif how == "appended":
            with open(path, "ab") as file:
                file.write(b"more")
        elif how == "truncated":
            os.truncate(path, 1000)
        elif how == "replaced":
            (site.source.parent / "new").write_bytes(b"z" * path.stat().st_size)
            os.replace(site.source.parent / "new", path)
        else:
            path.unlink()

    with pytest.raises(DsmError) as caught:
        site.run(checkpoint=step)
    assert [reason.code for reason in caught.value.reasons] == ["SOURCE_CHANGED"]
    assert not site.published() and not site.incoming
    if how != "removed":
        site.at(path, 300)
        result = site.run()
        assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f12_attempts_never_mix_two_versions_of_a_file(site: Site, small_ranges: None) -> None:
    path = big(site)
    kill_at(site, "range landed", 20)
    assert site.incoming
    path.write_bytes(random.Random(8).randbytes(path.stat().st_size))
    site.at(path, 300)
    result = site.run()
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert any("no longer the same" in note for note in result.notes)
    assert result.report.reused == 0 and not site.incoming


def test_a_drop_box_below_a_link_works_and_a_link_inside_it_is_not_followed(site: Site) -> None:
    (site.source / "20261122").mkdir()
    (site.source / "20261122" / "data.bin").write_bytes(b"x" * 1000)
    site.at(site.source / "20261122" / "data.bin", 600)
    (site.source.parent / "srv").symlink_to(site.source)
    source = {"path": f"{site.source.parent}/srv/*"}
    (site.source.parent / "secret").mkdir()
    (site.source.parent / "secret" / "data.bin").write_bytes(b"s" * 1000)
    site.at(site.source.parent / "secret" / "data.bin", 600)

    def swap(name: str) -> None:
        if name == "source noted":
            (site.source / "20261122").rename(site.source.parent / "aside")
            (site.source / "20261122").symlink_to(site.source.parent / "secret")

    with pytest.raises(DsmError) as caught:
        site.run(checkpoint=swap, sources=[source])
    assert [reason.code for reason in caught.value.reasons] == ["SOURCE_CHANGED"] and not site.published()
    (site.source / "20261122").unlink()
    (site.source.parent / "aside").rename(site.source / "20261122")
    assert site.run(sources=[source]).changed


def test_f10_a_bit_that_flips_before_anything_was_hashed_shows_against_the_hash_of_the_source(site: Site) -> None:
    path = big(site)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    source = site.sshd.login(path=f"{site.source}/*", hashes={str(path): digest})
    # Same size, same time: only the hash can tell that these are other bytes.
    status = path.stat()
    with open(path, "r+b") as file:
        file.seek(1_234_567)
        byte = file.read(1)[0]
        file.seek(1_234_567)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DsmError) as caught:
        site.run(sources=[source])
    assert [reason.code for reason in caught.value.reasons] == ["SOURCE_HASH"] and caught.value.reasons[0].remedy
    assert not site.published() and not site.incoming
    with open(path, "r+b") as file:
        file.seek(1_234_567)
        file.write(bytes([byte]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert site.run(sources=[source]).backups[0]["sha256"] == digest
    assert [item.source["hash"] for item in site.published().values()] == ["sha256"]


@pytest.mark.parametrize(("hashed", "code"), [(False, "DAMAGED"), (True, "SOURCE_HASH")])
def test_f10_a_bit_that_flips_between_landing_and_publishing(
    site: Site, small_ranges: None, monkeypatch: pytest.MonkeyPatch, hashed: bool, code: str
) -> None:
    """A range was right when it came; what is then read back for the hash of the whole is not."""
    path = big(site)
    hashes = {str(path): hashlib.sha256(path.read_bytes()).hexdigest()} if hashed else {}
    source = [site.sshd.login(path=f"{site.source}/*", hashes=hashes)]
    damaged: list[int] = []
    expect = _pull._WholeHash.expect

    def flip(whole: _pull._WholeHash, item: _ranges.Range, sha256: str) -> None:
        if len(damaged) == 0 and item.number > 10:
            damaged.append(item.offset)
            (landing,) = (site.cluster / "incoming").glob("*/data/backup.bin")
            with open(landing, "r+b") as file:
                file.seek(item.offset + 100)
                byte = file.read(1)[0]
                file.seek(item.offset + 100)
                file.write(bytes([byte ^ 1]))
        expect(whole, item, sha256)

    monkeypatch.setattr(_pull._WholeHash, "expect", flip)
    with pytest.raises(DsmError) as caught:
        site.run(sources=source)
    assert damaged and [reason.code for reason in caught.value.reasons] == [code]
    assert not site.published() and not site.incoming
    assert site.run(sources=source).backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


# -- death ---------------------------------------------------------------------------------------------------------


def kill_at(site: Site, name: str, count: int = 1, **changes: Any) -> bool:
    """Ship in another process that is killed with SIGKILL at the ``count``-th step of this name; whether it was."""
    seen = []

    def step(current: str) -> None:
        seen.append(current)
        if seen.count(name) == count and current == name:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            site.run(checkpoint=step, workers=WORKERS, **changes)
        finally:
            os._exit(0)
    _pid, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


STEPS = [
    "cluster directory",
    "store.json",
    "incoming made",
    "source noted",
    "range landed",
    "pulled",
    "verified",
    "directory made",
    "data moved",
    "manifest written",
    "incoming removed",
    "recorded",
]


@pytest.mark.parametrize("step", STEPS)
def test_f09_killed_at_every_step_and_run_again(site: Site, step: str, small_ranges: None) -> None:
    path = big(site, MEBI)
    assert kill_at(site, step), "the step was never reached"
    assert all(item.archive and item.archive.sha256 for item in site.published().values())
    result = site.run()
    (backup,) = result.backups
    assert backup["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert backup["already"] == (step in ("manifest written", "incoming removed", "recorded"))
    assert not site.incoming
    assert not (site.cluster / "lock").exists()
    assert len(list((site.cluster / "backups").iterdir())) == 1
    chain = ClusterStore.require(str(site.store), fingerprint=FINGERPRINT).ledger.trusted()
    assert [event.kind for event in chain.events].count("shipped") == 1
    assert verified(site) == ["ok"]


def test_f09_death_after_death_still_converges(site: Site, small_ranges: None) -> None:
    path = big(site, MEBI)
    for step in STEPS[2:10]:
        kill_at(site, step)
    assert site.run().backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert verified(site) == ["ok"]


def test_what_landed_before_the_death_is_used_but_only_after_hashing_it_again(site: Site, small_ranges: None) -> None:
    path = big(site)
    ranges = path.stat().st_size // RANGE
    kill_at(site, "range landed", ranges // 2)
    (landing,) = (site.cluster / "incoming").glob("*/data/backup.bin")
    (journal,) = (site.cluster / "incoming").glob("*/journal.jsonl")
    # Which ranges had landed is a matter of how quick each worker was.
    with open(journal, "rb") as lines:
        known, _begun = _ranges.read_journal(lines)
    with open(landing, "r+b") as file:
        file.seek(list(known["backup.bin"])[5].offset + 100)
        file.write(b"bit rot")
    result = site.run(workers=WORKERS)
    assert result.report.reused == (ranges // 2 - 1) * RANGE
    # What the run that died had begun counts.
    assert RANGE <= result.report.resent <= 20 * RANGE * WORKERS
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\n\n", b'{"path": "backup.bin", "offset": 0, "length": 9, "sha256": "x"}\n']
)
def test_a_damaged_journal_costs_time_and_nothing_else(site: Site, damage: bytes, small_ranges: None) -> None:
    path = big(site, MEBI)
    kill_at(site, "range landed", 8)
    (journal,) = (site.cluster / "incoming").glob("*/journal.jsonl")
    journal.write_bytes(damage)
    result = site.run()
    assert result.report.reused == 0
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f12_two_runs_never_mix_two_local_files_of_one_size_and_time(site: Site, small_ranges: None) -> None:
    """When a local file changed last in any way counts between two runs as it does within one."""
    path = big(site)
    times = path.stat()
    local = [{"path": f"{site.source}/*"}]
    assert kill_at(site, "range landed", 24, sources=local)
    other = site.source.parent / "other"
    other.write_bytes(random.Random(8).randbytes(times.st_size))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    result = site.run(sources=local)
    assert result.report.reused == 0 and not site.incoming
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert verified(site) == ["ok"]


def test_f12_a_delivery_that_vanished_while_it_was_waited_for_is_told(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = site.deliver("gone.tar.gz", age=0)
    site.deliver("there.tar.gz", age=900)
    look = _discover.discover

    def vanish(*arguments: Any) -> Any:
        path.unlink(missing_ok=True)
        return look(*arguments)

    monkeypatch.setattr(_discover, "discover", vanish)
    result = site.ship(quiet=1)
    assert result.codes == ["SOURCE_CHANGED"] and "gone.tar.gz vanished" in result.output, result.output
    assert len(site.published()) == 1


@pytest.mark.parametrize(("remote", "state"), [(True, True), (True, False), (False, True), (False, False)])
def test_what_an_earlier_version_left_goes_on_where_the_key_tells_all_that_is_known(
    site: Site, small_ranges: None, remote: bool, state: bool
) -> None:
    path = big(site)
    sources = [{**(site.sshd.login() if remote else {}), "path": f"{site.source}/*"}]
    assert kill_at(site, "range landed", 24, sources=sources)
    (note,) = site.cluster.glob("incoming/*/source.json")
    noted = json.loads(note.read_text())
    if not state:
        del noted["state"]
        note.write_text(json.dumps(noted))
    result = site.run(sources=sources)
    assert (result.report.reused > 0) == (remote or state) and not site.incoming
    assert result.backups[0]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


# -- two at once ---------------------------------------------------------------------------------------------------


def test_f08_a_second_shipper_is_refused_while_the_first_lives_and_takes_over_when_it_died(site: Site) -> None:
    big(site)
    ready, leave = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:

            def step(name: str) -> None:
                if name == "source noted":
                    os.write(ready[1], b"x")
                    os.read(leave[0], 1)

            site.run(checkpoint=step)
        finally:
            os._exit(0)
    os.close(ready[1])
    assert os.read(ready[0], 1) == b"x"
    for check in (False, True):
        refused = site.ship(check=check)
        assert refused.error_code == "LOCKED" and f"process {child}" in refused.msg, refused.output
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    result = site.ship()
    assert result.changed and "Took over" in result.notes[0], result.output
    assert verified(site) == ["ok"]


def test_f08_a_lease_of_another_host_is_believed_until_it_expires(site: Site) -> None:
    site.deliver()
    site.ship()
    lock = site.cluster / "lock"
    lease = {
        "run_id": "far",
        "host": "elsewhere",
        "boot_id": "b",
        "pid": 1,
        "started": 1,
        "acquired": "2026-01-01T00:00:00Z",
        "expires": "2099-01-01T00:00:00Z",
    }
    lock.write_text(json.dumps(lease))
    assert "elsewhere" in site.ship().msg
    lock.write_text(json.dumps({**lease, "expires": "2026-01-01T01:00:00Z"}))
    assert not site.ship().failed and not lock.exists()
    lock.write_text("damaged")
    assert site.ship().error_code == "LOCKED"


def test_a_lease_that_was_lost_publishes_nothing(site: Site) -> None:
    big(site)

    def step(name: str) -> None:
        if name == "pulled":
            (site.cluster / "lock").unlink()

    with pytest.raises(DsmError) as caught:
        site.run(checkpoint=step)
    assert [reason.code for reason in caught.value.reasons] == ["LEASE_LOST"]
    assert not site.published()


def test_many_writers_make_one_unbroken_ledger(site: Site) -> None:
    site.deliver()
    site.ship()
    writers = []
    for number in range(8):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                store = ClusterStore.require(str(site.store), fingerprint=FINGERPRINT)
                for index in range(10):
                    store.ledger.append(run_id=f"r{number}", kind="verified", subject=f"s{index}", data={"n": number})
                code = 0
            finally:
                os._exit(code)
        writers.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in writers)
    chain = ClusterStore.require(str(site.store), fingerprint=FINGERPRINT).ledger.trusted()
    assert len(chain.events) == 82


def test_an_event_that_was_half_written_is_dropped_by_the_next(site: Site) -> None:
    site.deliver()
    site.ship()
    path = site.cluster / "ledger.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + b'{"sequence": 3, "ti')
    args = {"store": str(site.store), "state": "appended", "kind": "joined", "subject": "dr1"}
    assert run_module("ledger", args, check=True).changed
    assert path.read_bytes() != before
    assert run_module("ledger", args).changed and not run_module("ledger", args).changed
    assert path.read_bytes().startswith(before)
    assert len(run_module("ledger", {"store": str(site.store), "state": "verified"}).events) == 3


# -- the disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(site: Site) -> Iterator[Callable[[int], None]]:
    """Puts a file system of so many KiB under the store."""
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")

    def mount(kibibytes: int) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k", "tmpfs", str(site.store)], check=True)

    yield mount
    subprocess.run(["umount", str(site.store)], check=False, capture_output=True)


def test_f13_what_does_not_fit_is_refused_before_the_first_byte(site: Site, tiny: Callable[[int], None]) -> None:
    tiny(4 * 1024)
    site.deliver("small.tar.gz", size=1_500_000, age=900)
    assert site.ship().changed
    big(site)
    before = site.snapshot()
    result = site.ship()
    assert result.error_code == "STORE_FULL" and result.details["bytes"] == 0 and result.remedy, result.output
    assert {path: digest for path, digest in site.snapshot().items() if "ledger" not in path} == {
        path: digest for path, digest in before.items() if "ledger" not in path
    }


def test_f13_what_an_unfinished_transfer_has_not_written_yet_is_not_counted_as_room(
    site: Site, tiny: Callable[[int], None], small_ranges: None
) -> None:
    """An unfinished file has its full length from the start, and holes."""
    tiny(6 * 1024)
    big(site)
    assert kill_at(site, "range landed", 3)
    with open(site.store / "filler", "wb") as file:
        file.write(b"f" * 3 * MEBI)
    with pytest.raises(DsmError) as caught:
        site.run()
    assert [reason.code for reason in caught.value.reasons] == ["STORE_FULL"]
    assert caught.value.details["bytes"] == 0 and site.incoming, "what had landed is kept"
    (site.store / "filler").unlink()
    assert site.run().report.reused >= 3 * RANGE


def blob(path: Path, size: int, age: float) -> Path:
    """A delivery in no particular format; each name has bytes of its own."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(random.Random(path.name).randbytes(size))
    moment = time.time() - age
    os.utime(path, (moment, moment))
    return path


def test_f13_what_is_left_of_a_dead_source_goes_when_its_room_is_needed_and_not_before(
    site: Site, tiny: Callable[[int], None], small_ranges: None
) -> None:
    """A disk died in the middle of a transfer and stays dead; another one delivers."""
    tiny(6 * 1024)
    dead = blob(site.source.parent / "dead" / "a.bin", 4 * MEBI, 900).parent
    assert kill_at(site, "range landed", 40, sources=[site.sshd.login(path=f"{dead}/*")])
    (left,) = site.incoming
    sources = [site.sshd.login(path=f"{directory}/*") for directory in (dead, site.source)]
    dead.rename(dead.parent / "away")
    blob(site.source / "b.bin", MEBI, 600)
    assert site.ship(sources=sources).codes == ["SOURCE_UNREADABLE"]
    assert len(site.published()) == 1 and site.incoming == [left]
    blob(site.source / "c.bin", 3 * MEBI, 300)
    result = site.ship(sources=sources)
    assert result.codes == ["SOURCE_UNREADABLE"] and len(site.published()) == 2 and not site.incoming
    assert left.name in result.output and "its room is needed" in result.output


def test_f13_what_is_left_of_a_delivery_that_is_gone_does_not_stop_the_next(
    site: Site, tiny: Callable[[int], None], small_ranges: None
) -> None:
    """It was taken away half-way; beside it lies one that is refused for good."""
    tiny(6 * 1024)
    path = blob(site.source / "a.bin", 4 * MEBI, 900)
    assert kill_at(site, "range landed", 40)
    path.unlink()
    (site.source / "zero.bin").touch()
    site.at(site.source / "zero.bin", 3000)
    blob(site.source / "b.bin", 4 * MEBI, 600)
    assert site.ship().codes == ["ZERO_LENGTH"]
    assert len(site.published()) == 1 and not site.incoming


def test_f13_what_is_left_of_a_path_that_is_no_source_any_more_does_not_stop_the_next(
    site: Site, tiny: Callable[[int], None], small_ranges: None
) -> None:
    """A run was killed, the operator corrected the path, DSM rotated its delivery."""
    tiny(8 * 1024)
    path = blob(site.source / "a.bin", 4 * MEBI, 900)
    assert kill_at(site, "range landed", 60, sources=[site.sshd.login(path=f"{site.source}/a*")])
    path.unlink()
    blob(site.source / "b.bin", 5 * MEBI, 600)
    assert site.ship().changed and len(site.published()) == 1 and not site.incoming


def test_f13_what_is_refused_now_goes_on_where_it_was(site: Site, small_ranges: None) -> None:
    """Something else comes meanwhile, and there is room for both."""
    path = big(site)
    content, times = path.read_bytes(), path.stat()
    assert kill_at(site, "range landed", 20)
    path.write_bytes(b"")
    site.deliver(age=900)
    assert site.ship().codes == ["ZERO_LENGTH"]
    assert len(site.published()) == 1 and len(site.incoming) == 1
    path.write_bytes(content)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert site.run().report.reused > 0 and len(site.published()) == 2 and not site.incoming


def test_f13_a_store_without_a_free_byte_recovers_by_itself(site: Site, tiny: Callable[[int], None]) -> None:
    """Law 3 on a real file system: what nobody could write any more into is pruned, and the next backup lands."""
    tiny(6 * 1024)
    for number in range(4):
        site.deliver(f"backup{number}.tar.gz", size=MEBI, age=900 - number)
    assert site.ship().changed and verified(site) == ["ok"] * 4
    known = set(site.published())
    site.deliver("backup9.tar.gz", size=MEBI + 300_000)
    filler = os.open(site.store / "filler", os.O_WRONLY | os.O_CREAT)
    with contextlib.suppress(OSError):
        while os.write(filler, bytes(4096)):
            pass
    os.close(filler)
    assert os.statvfs(site.store).f_bavail == 0
    for _hour in range(3):
        assert site.ship().error_code == "STORE_FULL"
        result = run_module("backup_prune", {"store": str(site.store), "keep": 2})
        assert not result.failed and result.verified_after >= 2, result.output
        if site.ship().changed:
            break
    assert set(site.published()) - known and len(known & set(site.published())) >= 2
    assert set(verified(site)) == {"ok"}


def test_f28_a_store_that_became_read_only_is_told(site: Site, tiny: Callable[[int], None]) -> None:
    """What the kernel does with a file system whose disk fails."""
    tiny(6 * 1024)
    site.deliver("first.tar.gz", age=900)
    assert site.ship().changed
    known = sorted(site.published())
    site.deliver("second.tar.gz")
    store = {"store": str(site.store)}
    subprocess.run(["mount", "-o", "remount,ro", str(site.store)], check=True)
    for result in (
        site.ship(run_id="run-2"),
        run_module("backup_prune", {**store, "keep": 1}),
        run_module("backup_verify", store),
        run_module("ledger", {**store, "state": "appended", "kind": "joined", "subject": "dr1"}),
    ):
        assert result.failed and "STORE_UNWRITABLE" in result.codes and "dmesg" in result.remedy, result.output
    assert sorted(site.published()) == known
    assert not run_module("backup_ship", staging(site, site.store.parent / "node")).failed
    subprocess.run(["mount", "-o", "remount,rw", str(site.store)], check=True)
    assert site.ship(run_id="run-3").changed and len(site.published()) == 2


@pytest.mark.parametrize(("number", "code"), [(errno.EROFS, "STORE_UNWRITABLE"), (errno.EIO, "TRANSFER_FAILED")])
def test_f28_a_backup_whose_place_cannot_be_written_stops_no_other(
    site: Site, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    """It has landed, and stays for the next run."""
    site.deliver("first.tar.gz", age=900)
    second = site.deliver("second.tar.gz")
    rename = os.rename

    def renamed(old: str, new: str) -> None:
        if "00000001-" in str(old):
            raise OSError(number, os.strerror(number), str(old))
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", renamed)
        with pytest.raises(DsmError) as caught:
            site.run()
    assert [reason.code for reason in caught.value.reasons] == [code]
    (published,) = site.published().values()
    assert published.source["path"] == str(second) and len(site.incoming) == 1
    assert site.run(run_id="run-2").report.bytes == 0 and len(site.published()) == 2


def test_f28_a_mount_below_a_backup_holds_that_one_and_no_other(site: Site, tiny: Callable[[int], None]) -> None:
    tiny(4 * 1024)
    for number in range(4):
        site.deliver(f"backup{number}.tar.gz", size=100_000, age=900 - number)
    assert site.ship().changed and verified(site) == ["ok"] * 4
    ids = sorted(site.published())
    one = {"store": str(site.store), "keep": 1, "max_copies": 1}
    held = site.cluster / "backups" / ids[0] / "data"
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(held)], check=True)
    try:
        result = run_module("backup_prune", one)
    finally:
        subprocess.run(["umount", str(held)], check=True)
    assert result.failed and result.remedy and set(result.codes) <= {"REMOVE_FAILED", "CLEANUP_FAILED"}, result.output
    assert result.details["removed"] == ids[1:3] and sorted(site.published()) == ids[3:]
    assert held.exists()
    assert run_module("backup_prune", one).changed
    assert sorted(path.name for path in (site.cluster / "backups").iterdir()) == ids[3:]


@pytest.mark.parametrize("offset", [1, 1_500_000, 2_999_999])
def test_f13_the_disk_fills_up_while_bytes_land(
    site: Site, tiny: Callable[[int], None], offset: int, small_ranges: None
) -> None:
    tiny(5 * 1024)
    site.deliver("small.tar.gz", size=100_000, age=900)
    site.ship()
    published = site.published()
    big(site)
    landed = 0
    steps = []

    def step(name: str) -> None:
        nonlocal landed
        steps.append(name)
        if name == "source noted" or name == "range landed":
            landed += RANGE
            if landed >= offset and not (site.store / "filler").exists():
                with open(site.store / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
                    while True:
                        file.write(b"f" * 4096)

    with pytest.raises(DsmError) as caught:
        site.run(checkpoint=step)
    assert {reason.code for reason in caught.value.reasons} == {"STORE_FULL"}
    (site.store / "filler").unlink()
    assert site.published() == published
    # Room is given back, unless all bytes had landed and only publishing was left to do.
    assert bool(site.incoming) == ("pulled" in steps)
    assert verified(site) == ["ok"]
    assert len(site.run().backups) == 2 and verified(site) == ["ok", "ok"]


def test_f13_a_node_that_is_full_gets_nothing(site: Site, tiny: Callable[[int], None], tmp_path: Path) -> None:
    big(site)
    store = tmp_path / "elsewhere"
    store.mkdir()
    shipped = site.ship(store=str(store))
    tiny(1024)
    args = {
        "state": "staged",
        "store": str(store),
        "cluster_id": shipped.cluster_id,
        "id": "newest",
        "push": site.sshd.login(path=str(site.store / "restore")),
    }
    result = run_module("backup_ship", args)
    assert result.error_code == "NODE_FULL" and result.remedy, result.output
    assert not (site.store / "restore").exists()


# -- at rest -------------------------------------------------------------------------------------------------------


@pytest.fixture
def kept(site: Site) -> Site:
    """A store with three backups: a file, a directory, a file."""
    site.deliver("one.tar.gz", age=900)
    (site.source / "two" / "dc1-n1").mkdir(parents=True)
    for name in ("a", "b"):
        (site.source / "two" / "dc1-n1" / name).write_bytes(name.encode() * 5000)
        site.at(site.source / "two" / "dc1-n1" / name, 800)
    site.deliver("three.tar.gz", age=700)
    assert site.ship().changed
    return site


def middle(site: Site) -> Path:
    return sorted((site.cluster / "backups").iterdir())[1]


def damage_flip(path: Path) -> None:
    target = path / "data" / "dc1-n1" / "a"
    data = bytearray(target.read_bytes())
    data[2500] ^= 1
    target.write_bytes(data)


def damage_link(path: Path) -> None:
    target = path / "data" / "dc1-n1" / "a"
    target.rename(path.parent.parent / "moved")
    target.symlink_to(path.parent.parent / "moved")


def damage_tampered(path: Path) -> None:
    manifest = path / "manifest.json"
    value = json.loads(manifest.read_text())
    (path / "data" / "dc1-n1" / "a").write_bytes(b"evil" * 1250)
    value["files"][0]["sha256"] = hashlib.sha256(b"evil" * 1250).hexdigest()
    manifest.write_text(json.dumps(value))


def damage_newer(path: Path) -> None:
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "schema": 99}))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "flipped bit": (damage_flip, "CORRUPT"),
    "truncated": (lambda path: os.truncate(path / "data" / "dc1-n1" / "a", 4999), "WRONG_SIZE"),
    "zero bytes": (lambda path: os.truncate(path / "data" / "dc1-n1" / "a", 0), "WRONG_SIZE"),
    "missing file": (lambda path: (path / "data" / "dc1-n1" / "a").unlink(), "MISSING_FILE"),
    "extra file": (lambda path: (path / "data" / "extra").write_bytes(b"x"), "EXTRA_FILE"),
    "no data": (lambda path: shutil.rmtree(path / "data"), "UNREADABLE"),
    "link": (damage_link, "NOT_A_FILE"),
    "directory for a file": (
        lambda path: ((path / "data" / "dc1-n1" / "a").unlink(), (path / "data" / "dc1-n1" / "a").mkdir()),
        "MISSING_FILE",
    ),
    "empty manifest": (lambda path: (path / "manifest.json").write_bytes(b""), "EMPTY"),
    "cut manifest": (lambda path: os.truncate(path / "manifest.json", 300), "UNREADABLE"),
    "newer manifest": (damage_newer, "NEWER_SCHEMA"),
    "foreign manifest": (lambda path: (path / "manifest.json").write_text('{"backup": true}'), "FOREIGN"),
    "tampered with sums": (damage_tampered, "CHECKSUM"),
    "manifest of another": (
        lambda path: shutil.copy(sorted(path.parent.iterdir())[0] / "manifest.json", path / "manifest.json"),
        "FOREIGN",
    ),
    "manifest is a directory": (
        lambda path: ((path / "manifest.json").unlink(), (path / "manifest.json").mkdir()),
        "UNREADABLE",
    ),
    "strange name": (lambda path: path.rename(path.parent / "00000002-yesterday"), "UNKNOWN"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_f23_f24_damage_is_found_reported_and_shipped_again(kept: Site, name: str) -> None:
    damage, code = DAMAGES[name]
    damage(middle(kept))
    result = run_module("backup_verify", {"store": str(kept.store)})
    assert result.failed and code in result.codes, result.output
    assert sorted(item["verdict"] for item in result.details["verdicts"]) == ["failed", "ok", "ok"]
    listed = run_module("backup_info", {"store": str(kept.store)})
    assert [item["verdict"] for item in listed.backups].count("failed") == 1
    again = kept.ship(run_id="run-2")
    assert again.changed and [item["already"] for item in again.backups] == [True, False, True], again.output
    assert verified(kept).count("ok") == 3
    newest = run_module("backup_verify", {"store": str(kept.store), "newest": True})
    assert [item["verdict"] for item in newest.verdicts] == ["ok"]


def test_a_directory_without_manifest_is_incomplete_and_never_counts(kept: Site) -> None:
    (middle(kept) / "manifest.json").unlink()
    listed = run_module("backup_info", {"store": str(kept.store)}).backups
    assert [item["state"] for item in listed] == ["published", "incomplete", "published"]
    named = run_module("backup_verify", {"store": str(kept.store), "ids": [middle(kept).name]})
    assert named.failed and named.codes == ["NO_MANIFEST"]


def test_f23_a_flipped_bit_at_any_place_of_a_backup_is_found(kept: Site) -> None:
    choose = random.Random(23)
    for path in sorted((kept.cluster / "backups").glob("*/data/**/*")):
        if not path.is_file():
            continue
        good = path.read_bytes()
        for _round in range(3):
            data = bytearray(good)
            data[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
            path.write_bytes(data)
            assert verified(kept).count("failed") == 1
        path.write_bytes(good)
    assert verified(kept) == ["ok", "ok", "ok"]


def test_nothing_published_is_a_failure_and_not_an_empty_success(site: Site) -> None:
    (site.source / "empty").touch()
    site.ship()
    nobody = run_module("backup_verify", {"store": str(site.store)})
    assert nobody.failed and nobody.codes == ["UNKNOWN_CLUSTER"] and nobody.remedy
    (site.source / "empty").unlink()
    site.deliver()
    kill_at(site, "incoming made")
    result = run_module("backup_verify", {"store": str(site.store)})
    assert result.failed and result.codes == ["NO_BACKUP"] and result.remedy


def test_an_old_newest_backup_is_stale(kept: Site) -> None:
    time.sleep(0.01)
    result = run_module("backup_verify", {"store": str(kept.store), "newest": True, "max_age": 0.0})
    assert result.failed and result.codes == ["STALE"]
    accepted = run_module("backup_verify", {"store": str(kept.store), "max_age": 0.0, "accept": ["STALE"]})
    assert not accepted.failed and [item["code"] for item in accepted.accepted] == ["STALE"]


def test_an_id_that_is_not_there_fails(kept: Site) -> None:
    result = run_module("backup_verify", {"store": str(kept.store), "ids": ["00000009-20261122T000000Z"]})
    assert result.failed and result.codes == ["NOT_PUBLISHED"]


def test_verify_in_check_mode_writes_nothing(kept: Site) -> None:
    before = tree(kept.store)
    assert not run_module("backup_verify", {"store": str(kept.store)}, check=True).failed
    assert tree(kept.store) == before


def test_a_rolled_back_ledger_is_told(kept: Site) -> None:
    verified(kept)
    kept.deliver("four.tar.gz", age=300)
    kept.ship()
    ledger = kept.cluster / "ledger.jsonl"
    lines = ledger.read_bytes().splitlines(keepends=True)
    ledger.write_bytes(b"".join(lines[:2]))
    result = run_module("backup_verify", {"store": str(kept.store)}, check=True)
    assert result.codes == ["LEDGER_ROLLED_BACK"], result.output


def test_a_broken_ledger_does_not_stop_shipping_and_is_told(kept: Site) -> None:
    ledger = kept.cluster / "ledger.jsonl"
    ledger.write_bytes(ledger.read_bytes().replace(b"shipped", b"skipped", 1))
    kept.deliver("four.tar.gz", age=300)
    result = kept.ship()
    assert result.failed and result.codes == ["LEDGER_BROKEN"] and len(kept.published()) == 4
    assert not kept.ship(accept=["LEDGER_BROKEN"]).failed
    for state in ("verified", "appended"):
        answer = run_module("ledger", {"store": str(kept.store), "state": state, "kind": "joined", "subject": "dr1"})
        assert answer.failed and answer.error_code == "LEDGER_BROKEN" and answer.remedy
    assert run_module("ledger", {"store": str(kept.store)}).problems


def test_staging_refuses_a_damaged_copy(kept: Site) -> None:
    damage_flip(middle(kept))
    target = kept.store.parent / "node"
    args = {
        "state": "staged",
        "store": str(kept.store),
        "cluster_id": FINGERPRINT[:16],
        "id": middle(kept).name,
        "push": kept.sshd.login(path=str(target)),
    }
    result = run_module("backup_ship", args)
    assert result.error_code == "CORRUPT" and result.remedy, result.output
    assert not [path for path in target.rglob("*") if path.is_file()]
    args["id"] = "00000009-20261122T000000Z"
    assert run_module("backup_ship", args).error_code == "NOT_PUBLISHED"
    args["id"], args["push"]["path"] = "newest", "relative"
    assert run_module("backup_ship", args).error_code == "BAD_TARGET"
    args["push"]["path"] = "/dev/null/nowhere"
    assert run_module("backup_ship", args).error_code == "BAD_TARGET"


def test_staging_killed_half_way_is_repeated(kept: Site) -> None:
    target = kept.store.parent / "node"
    partial = target / f".{middle(kept).name}.incoming" / "data" / "dc1-n1"
    partial.mkdir(parents=True)
    (partial / "a").write_bytes(b"half")
    (partial / "left over").symlink_to("/etc/passwd")
    args = {
        "state": "staged",
        "store": str(kept.store),
        "cluster_id": FINGERPRINT[:16],
        "id": middle(kept).name,
        "push": kept.sshd.login(path=str(target)),
    }
    assert run_module("backup_ship", args).changed
    assert tree(target / middle(kept).name / "data") == tree(middle(kept) / "data")
    assert [path.name for path in target.iterdir()] == [middle(kept).name] and Path("/etc/passwd").exists()


def test_f14_what_killed_stagings_left_on_the_node_goes_and_is_counted_as_room(
    site: Site, tiny: Callable[[int], None], tmp_path: Path
) -> None:
    big(site)
    store = tmp_path / "elsewhere"
    store.mkdir()
    (name,) = (item["id"] for item in site.ship(store=str(store)).backups)
    tiny(5 * 1024)
    target = site.store / "restore"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_bytes(b"kept")
    ids = {"own": name, "old": "00000007-20260101T000000Z", "young": "00000008-20260101T000000Z"}
    for which, backup_id in ids.items():
        data = target / f".{backup_id}.incoming" / "data"
        data.mkdir(parents=True)
        (data / "half").write_bytes(bytes(100_000 if which == "young" else 2_000_000))
        if which == "old":
            for path in (data / "half", data, data.parent):
                os.utime(path, (1, 1))
    strangers = [target / ".mine.incoming", target / "00000009-20260101T000000Z.incoming"]
    for path in strangers:
        path.mkdir()
        os.utime(path, (1, 1))
    # A link is nothing that a run has left.
    link = target / ".00000006-20260101T000000Z.incoming"
    link.symlink_to(outside)
    os.utime(link, (1, 1), follow_symlinks=False)
    before = tree(target)
    args = {**staging(site, target), "store": str(store)}
    planned = run_module("backup_ship", args, check=True)
    assert planned.changed and tree(target) == before
    done = run_module("backup_ship", args)
    assert done.changed, done.output
    young = target / f".{ids['young']}.incoming"
    assert sorted(target.iterdir()) == sorted([target / name, young, link, *strangers])
    assert (outside / "kept").exists() and not run_module("backup_ship", args).changed


def test_f14_leftovers_of_a_source_that_is_gone_are_cleared(site: Site, small_ranges: None) -> None:
    path = big(site)
    kill_at(site, "range landed", 3)
    path.unlink()
    site.deliver()
    result = site.run()
    assert [item["id"][:8] for item in result.backups] == ["00000002"]
    assert not site.incoming


# -- to the node -----------------------------------------------------------------------------------------------------


def staging(site: Site, target: Path, **login: Any) -> dict[str, Any]:
    return {
        "state": "staged",
        "store": str(site.store),
        "cluster_id": FINGERPRINT[:16],
        "id": "newest",
        "push": site.sshd.login(path=str(target), **login),
    }


def test_f11_staging_over_a_link_that_is_cut(
    site: Site, proxy: Callable[..., Proxy], small_ranges: None, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big(site, 8 * MEBI)
    site.ship()
    target = site.store.parent / "node"
    # When a few writes were confirmed.
    scissors = Scissors(4, 4_500, connections=3)
    link = scissors.link = proxy(site.sshd.port, scissors)
    source = through(site, link)
    begin_together(monkeypatch)
    args = staging(site, target, port=link.port, known_hosts=source["known_hosts"])
    result = run_module("backup_ship", {**args, "workers": 2})
    assert result.changed and result.workers == 2, result.output
    assert (scissors.cuts, link.connections) == (4, 7), "each lost connection is built again, once"
    assert (target / result.staged["id"] / "data" / path.name).read_bytes() == path.read_bytes()
    assert not run_module("backup_ship", staging(site, target)).changed


def test_f13_a_node_that_fills_up_while_bytes_land(
    site: Site, tiny: Callable[[int], None], tmp_path: Path, small_ranges: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    big(site)
    store = tmp_path / "elsewhere"
    store.mkdir()
    shipped = site.ship(store=str(store))
    tiny(2048)
    args = {**staging(site, site.store / "restore"), "store": str(store)}
    monkeypatch.setattr(_stage._Push, "check_room", lambda _push, _leaving: None)
    result = run_module("backup_ship", args)
    assert result.error_code == "NODE_FULL" and result.remedy, result.output
    assert shipped.changed and not list((site.store / "restore").iterdir()), "what had landed is removed"


def test_a_tree_with_empty_files_is_staged_as_it_is(site: Site) -> None:
    top = site.source / "t"
    (top / "a" / "b").mkdir(parents=True)
    for number in range(40):
        (top / "a" / f"file {number}").write_bytes(os.urandom(number))
    (top / "a" / "b" / "-x").write_bytes(b"x")
    for path in top.rglob("*"):
        site.at(path, 600)
    shipped = site.ship(accept=["ZERO_LENGTH_PART"])
    assert shipped.changed, shipped.output
    target = site.store.parent / "node"
    staged = run_module("backup_ship", staging(site, target))
    assert tree(target / staged.staged["id"] / "data") == tree(top)


def test_wrong_use_directories_without_end_on_the_node_end_in_no_traceback(site: Site) -> None:
    archive = site.deliver()
    (name,) = (item["id"] for item in site.ship().backups)
    target = site.store.parent / "node"
    args = staging(site, target)
    assert run_module("backup_ship", args).changed
    # Python's own rmtree, which clears away what a test leaves, can do no more than about 900.
    deep = "/".join("d" * 600)
    for top in (target / name / "data", target / f".{name}.incoming" / "data"):
        (target / name / "data" / "stray").touch()
        subprocess.run(["mkdir", "-p", top / deep], check=True)
        refused = run_module("backup_ship", args)
        assert refused.error_code == "BAD_TARGET" and refused.remedy, refused.output
        assert (top / deep).exists() and (target / name / "data" / archive.name).exists()
        subprocess.run(["rm", "-r", top / "d"], check=True)
    assert run_module("backup_ship", args).changed
    assert [path.name for path in (target / name / "data").iterdir()] == [archive.name]


def test_f11_a_worker_that_is_asked_connects_again_and_tells_the_clock(site: Site, proxy: Callable[..., Proxy]) -> None:
    link = proxy(site.sshd.port, lambda _seen, data: data)
    login = through(site, link)
    with Pool(1) as pool:
        session = pool.session(SftpEndpoint(ssh_target(login)))
        session.expect_clock()
        said = session.clock()
        assert said is not None and abs(said - time.time()) < 60
        link.cut()
        with pytest.raises(ConnectionLost):
            session.listdir(str(site.source))
        assert session.listdir(str(site.source)) == [] and link.connections == 2


def undeletable(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Nothing below a path that has this in it can be removed."""
    real = shutil.rmtree

    def rmtree(path: Any, *more: Any, **named: Any) -> None:
        if part in str(path):
            raise OSError(errno.EPERM, "Operation not permitted", str(path))
        real(path, *more, **named)

    monkeypatch.setattr(shutil, "rmtree", rmtree)


def half_landed_beside_a_newer_one(site: Site) -> Path:
    """What a dead run left of a large delivery; since then a smaller one was made."""
    big(site)
    assert kill_at(site, "range landed", 24)
    (left,) = site.incoming
    site.deliver("new.tar.gz", age=60)
    return left


def test_f28_what_a_dead_run_left_and_cannot_be_removed_stops_no_backup(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what is published already, nor what nobody can tell what it is of."""
    site.deliver()
    (published,) = site.run().backups
    for name in (published["id"], "00000009-20260101T000000Z"):
        (site.cluster / "incoming" / name).mkdir(parents=True)
        undeletable(monkeypatch, f"/incoming/{name}")
    site.deliver("second.tar.gz", 900)
    with pytest.raises(DsmError) as caught:
        site.run()
    assert caught.value.code == "CLEANUP_FAILED" and len(caught.value.reasons) == 2
    assert len(site.published()) == 2


def test_f12_two_local_files_are_not_mixed_where_the_leftover_cannot_be_removed(
    site: Site, small_ranges: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = big(site)
    times = path.stat()
    local = [{"path": f"{site.source}/*"}]
    assert kill_at(site, "range landed", 24, sources=local)
    other = site.source.parent / "other"
    other.write_bytes(random.Random(8).randbytes(times.st_size))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)
    (left,) = site.incoming
    undeletable(monkeypatch, f"/incoming/{left.name}")
    with pytest.raises(DsmError):
        site.run(sources=local)
    (manifest,) = site.published().values()
    assert manifest.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_f28_one_leftover_that_cannot_be_removed_stops_none_that_was_killed_while_it_was_published(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.deliver()
    (published,) = site.run().backups
    site.deliver("second.tar.gz", 900, age=700)
    assert kill_at(site, "data moved", 1)
    (site.cluster / "incoming" / published["id"]).mkdir(parents=True)
    undeletable(monkeypatch, f"/incoming/{published['id']}")
    with pytest.raises(DsmError):
        site.run()
    assert len(site.published()) == 2


def test_f28_what_has_no_room_and_cannot_be_removed_does_not_stop_the_newest(
    site: Site, small_ranges: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = half_landed_beside_a_newer_one(site)
    monkeypatch.setattr(ClusterStore, "free", lambda _store: (400_000, 1 << 40))
    undeletable(monkeypatch, f"/incoming/{left.name}")
    with pytest.raises(DsmError):
        site.run()
    assert len(site.published()) == 1


def test_what_landed_of_a_backup_that_is_too_large_for_now_is_kept(
    site: Site, small_ranges: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody raised the headroom; with the one from before it would go on."""
    half_landed_beside_a_newer_one(site)
    with monkeypatch.context() as patch:
        patch.setattr(ClusterStore, "capacity", lambda _store: 3 << 20)
        with pytest.raises(DsmError):
            site.run()
    assert site.run().report.reused > 0
