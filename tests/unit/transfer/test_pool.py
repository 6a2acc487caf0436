# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes that move bytes: they share one cap, obey, and end when whoever gives the orders does."""

from __future__ import annotations

import ctypes
import multiprocessing.connection
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import cast

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _pool, _ssh
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import LocalEndpoint, SftpEndpoint
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._pace import Pace
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._pool import Pool
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._reader import LocalReader
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import ConnectionLost, SshTarget
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._worker import (
    Connect,
    Connected,
    Job,
    Rest,
    Resting,
    Worker,
)

#: How long (s) anything may take on a busy machine.
PATIENCE = 60.0


def gone(pid: int) -> bool:
    """Whether a process has ended (it may still wait to be asked how)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


#: Page faults of a process that takes twelve megabytes in small steps and gives them back, again and again.
FAULTS = """
import resource, runpy, sys
runpy.run_path(sys.argv[2])
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _pool, _ssh
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def take():
    held = [bytearray() for _number in range(4)]
    for piece in held:
        for _step in range(96):
            piece += bytes(32 << 10)
if sys.argv[1] == "kept":
    _pool._keep_freed_memory()
for _again in range(5):
    take()
before = faults()
for _again in range(50):
    take()
print(faults() - before)
"""


def test_what_a_worker_gives_back_is_there_when_it_takes_again() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how, str(Path(__file__).parents[2] / "conftest.py")]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    assert faults("kept") < faults("given back") / 10


def test_another_c_library_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    real = ctypes.CDLL
    for missing in (lambda _name: object(), lambda _name: real("/nonexistent")):
        monkeypatch.setattr(ctypes, "CDLL", missing)
        _pool._keep_freed_memory()


def test_several_processes_share_one_cap() -> None:
    pace = Pace()
    started = time.monotonic()
    children = []
    for _number in range(4):
        child = os.fork()
        if child == 0:
            due = [pace.due(1000, 100_000.0) for _index in range(25)]
            os._exit(0 if due == sorted(due) else 1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    # 100 000 bytes at 100 000 a second are due within one second, but for what may be caught up at once.
    assert pace.due(1000, 100_000.0) - started >= 0.8
    pace.close()


def test_a_pause_is_not_caught_up_at_once() -> None:
    pace = Pace()
    first = pace.due(1000, 10_000.0)
    time.sleep(0.5)
    assert pace.due(1000, 10_000.0) - first >= 0.35
    pace.close()


def test_the_cap_survives_who_is_killed_in_the_middle_of_it() -> None:
    pace = Pace()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"x")
        while True:
            pace.due(1, 1e12)
    os.read(reading, 1)
    time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    def left_behind(_number: int, _frame: object) -> None:
        raise AssertionError("the lock was left behind")

    before = signal.signal(signal.SIGALRM, left_behind)
    signal.alarm(120)
    pace.due(1, 1e12)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    pace.close()
    os.close(reading)
    os.close(writing)


def test_workers_answer_and_end_with_the_pool() -> None:
    with Pool(3, remote=False) as pool:
        pids = [member.pid for member in pool.members]
        for member in pool.members:
            member.send(Rest())
        answers: list[int] = []
        deadline = time.monotonic() + 120
        while len(answers) < 3 and time.monotonic() < deadline:
            for member, message in pool.hear(0.1):
                assert isinstance(message, Resting) and 0 < message.memory < 1 << 30
                answers.append(member.number)
        assert sorted(answers) == [0, 1, 2]
    assert all(gone(pid) for pid in pids)


def test_a_worker_that_died_is_told_once_and_takes_no_orders() -> None:
    with Pool(2, remote=False) as pool:
        victim = pool.members[0]
        os.kill(victim.pid, signal.SIGKILL)
        heard = pool.hear(120.0)
        assert heard == [(victim, None)]
        assert "SIGKILL" in victim.end() and pool.alive == [pool.members[1]]
        victim.send(Rest())
        assert pool.hear(0.0) == []


def test_workers_end_when_their_parent_is_killed() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        pool = Pool(4, remote=False)
        os.write(writing, " ".join(str(member.pid) for member in pool.members).encode())
        signal.pause()
    workers = [int(pid) for pid in os.read(reading, 1000).split()]
    assert len(workers) == 4 and not any(gone(pid) for pid in workers)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    deadline = time.monotonic() + 120
    while not all(gone(pid) for pid in workers):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.01)
    os.close(reading)
    os.close(writing)


def test_what_a_worker_said_before_is_no_answer_to_a_question() -> None:
    nobody = SftpEndpoint(SshTarget("192.0.2.1", "dsm"))
    with Pool(2) as pool:
        for member in pool.members:
            member.send(Rest())
        for _again in range(2):
            with pytest.raises(Refused) as refusal:
                pool.session(nobody).expect_clock()
            assert refusal.value.code == "UNKNOWN_HOST"
        assert pool.alive == pool.members and pool.nearest(nobody) == pool.members


def test_a_worker_that_dies_while_it_is_asked_is_not_waited_for() -> None:
    nobody = SftpEndpoint(SshTarget("192.0.2.1", "dsm"))
    with Pool(1) as pool:
        os.kill(pool.members[0].pid, signal.SIGKILL)
        with pytest.raises(ConnectionLost) as lost:
            pool.session(nobody).expect_clock()
        assert lost.value.code == "WORKERS_DIED" and pool.alive == []
        with pytest.raises(Refused) as refusal:
            pool.session(nobody)
        assert refusal.value.code == "UNKNOWN_HOST", "there is nobody to ask, and this process did not either"


def test_f09_a_worker_that_hangs_while_it_is_asked_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is stopped answers never, so that it need not be waited for long."""
    monkeypatch.setattr(_pool, "ANSWER_SECONDS", 0.1)
    nobody = SftpEndpoint(SshTarget("192.0.2.1", "dsm", connect_timeout=0.0, stall_timeout=0.0))
    with Pool(2) as pool:
        stopped = pool.members[0]
        os.kill(stopped.pid, signal.SIGSTOP)
        with pytest.raises(ConnectionLost) as lost:
            pool.session(nobody).expect_clock()
        assert lost.value.code == "WORKERS_DIED" and gone(stopped.pid)
        assert pool.alive == pool.members[1:]


def test_a_host_is_called_once_for_the_first_question_and_by_nobody_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        endpoint = SftpEndpoint(SshTarget("127.0.0.1", "dsm", server.getsockname()[1]))
        with Pool(3, remote=False, first=endpoint) as pool:
            theirs, _address = server.accept()
            theirs.settimeout(PATIENCE)
            os.kill(pool.members[0].pid, signal.SIGKILL)
            assert theirs.recv(1) == b"", "nobody but the first worker held it"
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_library_that_is_missing_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise Refused("No paramiko.", "NO_PARAMIKO")

    monkeypatch.setattr(_ssh, "load_paramiko", missing)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        endpoint = SftpEndpoint(SshTarget("127.0.0.1", "dsm", server.getsockname()[1]))
        with pytest.raises(Refused):
            Pool(3, first=endpoint)
        theirs, _address = server.accept()
        theirs.settimeout(PATIENCE)
        assert theirs.recv(1) == b""


@pytest.mark.parametrize("up", [True, False])
def test_a_connection_that_is_up_already_does_not_wait_for_its_turn(tmp_path: Path, up: bool) -> None:
    mine, theirs = multiprocessing.connection.Pipe()
    worker = Worker(theirs, cast(Pace, None))
    if up:
        worker._endpoint, worker._reader = LocalEndpoint(), LocalReader(None)
    mine.send(Job(LocalEndpoint(), str(tmp_path), 0.0))
    mine.send(Connect(3600.0))
    worker._obey()
    worker._work()
    assert mine.poll() == up and (not up or mine.recv() == Connected(0.0))


def test_who_was_asked_moves_the_bytes_first() -> None:
    hosts = [SftpEndpoint(SshTarget(f"192.0.2.{number}", "dsm")) for number in (1, 2, 3)]
    with Pool(3, remote=False) as pool:
        first, second, third = pool.members
        second.asked.add(hosts[0])
        third.asked.add(hosts[1])
        assert pool.nearest(hosts[0]) == [second, first, third]
        assert pool.nearest(hosts[1]) == [third, first, second]
        assert pool.nearest(hosts[2]) == [first, second, third]
