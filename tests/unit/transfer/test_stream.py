# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ranges over one session: a server that answers late, short, out of order, in pieces, lies, or goes away."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._changed import SourceChanged
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._reader import SftpReader
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sftp import (
    Attributes,
    ProtocolError,
    Sftp,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import SshTarget
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._stream import (
    Landing,
    LocalFault,
    Stream,
)

MODE = stat.S_IFREG | 0o600
MTIME = 1_790_000_000


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


class Server:
    """Files by name. ``seed`` decides order, length and slicing of answers, 0: the straight way."""

    def __init__(self, files: dict[str, bytes], seed: int = 0, hang_up_after: int = 1 << 60) -> None:
        self.files, self.left = files, hang_up_after
        self.random = random.Random(seed) if seed else None
        self.incoming = self.outgoing = b""
        self.answers: list[bytes] = []
        self.handles: dict[bytes, str] = {}
        self.mtime = MTIME
        self.asked = self.most_asked = self.sent = 0
        self.opened = 0

    def settimeout(self, timeout: float | None) -> None:
        return

    def sendall(self, s: bytes) -> None:
        self.incoming += s
        while len(self.incoming) >= 4:
            (length,) = struct.unpack_from(">I", self.incoming)
            if len(self.incoming) < 4 + length:
                return
            body, self.incoming = self.incoming[4 : 4 + length], self.incoming[4 + length :]
            self.answers.append(self._answer(body[0], body[1:]))

    def _answer(self, kind: int, body: bytes) -> bytes:
        number, rest = body[:4], body[4:]
        if kind == 1:
            return packet(2, struct.pack(">I", 3))
        (length,) = struct.unpack_from(">I", rest)
        name, rest = rest[4 : 4 + length], rest[4 + length :]
        if kind == 3:
            path = name.decode()
            if path not in self.files:
                return packet(101, number + struct.pack(">I", 2) + text(b"No such file") + text(b""))
            self.opened += 1
            handle = b"handle-%d" % self.opened
            self.handles[handle] = path
            return packet(102, number + text(handle))
        content = self.files[self.handles[name]]
        if kind == 8:
            return packet(105, number + struct.pack(">IQIII", 1 | 4 | 8, len(content), MODE, self.mtime, self.mtime))
        if kind == 4:
            del self.handles[name]
            return packet(101, number + struct.pack(">I", 0) + text(b"") + text(b""))
        offset, length = struct.unpack(">QI", rest)
        assert kind == 5 and length > 0, "an empty read"
        self.asked += length
        self.most_asked = max(self.most_asked, self.asked)
        piece = content[offset : offset + length]
        if not piece:
            return packet(101, number + struct.pack(">I", 1) + text(b"eof") + text(b""))
        if self.random and self.random.random() < 0.3:
            self.asked -= length - (cut := self.random.randint(1, len(piece)))
            piece = piece[:cut]
        self.sent += len(piece)
        return packet(103, number + text(piece))

    def recv(self, nbytes: int) -> bytes:
        if not self.outgoing:
            if not self.answers:
                raise AssertionError("waits for an answer to nothing")
            self.outgoing = self.answers.pop(self.random.randrange(len(self.answers)) if self.random else 0)
            if self.outgoing[4] == 103:
                self.asked -= len(self.outgoing) - 13
        count = min(len(self.outgoing), self.random.randint(1, 9_000) if self.random else nbytes)
        self.left -= count
        if self.left < 0:
            return b""
        piece, self.outgoing = self.outgoing[:count], self.outgoing[count:]
        return piece


def listed(content: bytes) -> Attributes:
    return Attributes(len(content), MODE, MTIME)


def target(tmp_path: Path, name: str, size: int) -> str:
    path = tmp_path / name
    path.write_bytes(b"\0" * size)
    return str(path)


def run(server: Server, landings: list[Landing], files: dict[str, bytes], budget: int = 60_000) -> list[Landing]:
    """Offer all ranges and take what comes until all are complete."""
    stream = Stream(Sftp(server), None, budget=budget, request=7_000)
    names = list(files)
    finished: list[Landing] = []
    for landing in landings:
        stream.offer(landing, names[landing.file], listed(files[names[landing.file]]))
    while stream.expects or stream.unasked:
        stream.refill()
        finished += stream.take()
    stream.close_files()
    return finished


@given(
    st.lists(st.integers(1, 200_000), min_size=1, max_size=4),
    st.integers(0, 1 << 30),
    st.lists(st.integers(200, 300_000), max_size=4),
)
def test_every_range_arrives_over_any_number_of_connections(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int, cuts: list[int]
) -> None:
    choose = random.Random(seed)
    files = {f"/f{index}": choose.randbytes(size) for index, size in enumerate(sizes)}
    tmp_path = tmp_path_factory.mktemp("landing")
    waiting: list[Landing] = []
    for index, (name, content) in enumerate(files.items()):
        path, at = target(tmp_path, name[1:], len(content)), 0
        while at < len(content):
            length = min(len(content) - at, choose.randint(1, 90_000))
            waiting.append(Landing(len(waiting), index, at, length, path))
            at += length
    choose.shuffle(waiting)
    everything = list(waiting)
    for cut in [*cuts, 1 << 60]:
        server = Server(files, seed, hang_up_after=cut)
        try:
            done = run(server, waiting, files)
        except EOFError:
            # What was complete and not sealed yet is offered again as well.
            continue
        assert sorted(item.number for item in done) == sorted(item.number for item in waiting)
        assert server.most_asked <= 60_000 + 7_000
        assert not [handle for handle in server.handles if handle != b"handle-%d" % server.opened]
        break
    for index, (name, content) in enumerate(files.items()):
        assert (tmp_path / name[1:]).read_bytes() == content
        for landing in everything:
            if landing.file == index:
                part = content[landing.end - landing.length : landing.end]
                assert landing.hash.digest() == hashlib.sha256(part).digest()
            landing.close()


def one(tmp_path: Path, content: bytes) -> list[Landing]:
    return [Landing(1, 0, 0, len(content), target(tmp_path, "f", len(content)))]


def test_a_handle_that_is_none_is_not_waited_for(tmp_path: Path) -> None:
    class Liar(Server):
        def _answer(self, kind: int, body: bytes) -> bytes:
            return packet(102, body[:4] + text(b"")) if kind == 3 else super()._answer(kind, body)

    with pytest.raises(ProtocolError):
        run(Liar({"/f": b"x"}), one(tmp_path, b"x"), {"/f": b"x"})


def test_what_a_lost_connection_delivered_is_not_asked_for_again(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(500_000)
    (landing,) = one(tmp_path, content)
    with pytest.raises(EOFError):
        run(Server({"/f": content}, hang_up_after=300_000), [landing], {"/f": content})
    here = landing.at
    assert 200_000 < here < 300_000
    server = Server({"/f": content})
    assert run(server, [landing], {"/f": content}) == [landing]
    assert server.sent == len(content) - here
    landing.close()


@pytest.mark.parametrize("actual", [b"", b"x" * 999, b"x" * 1001])
def test_f12_a_file_of_another_size_is_told(tmp_path: Path, actual: bytes) -> None:
    with pytest.raises(SourceChanged):
        run(Server({"/f": actual}), one(tmp_path, b"x" * 1000), {"/f": b"x" * 1000})


def test_f12_a_file_that_was_touched_while_it_was_read_is_told(tmp_path: Path) -> None:
    content = b"x" * 100_000
    server = Server({"/f": content})
    stream = Stream(Sftp(server), None, budget=20_000, request=5_000)
    (landing,) = one(tmp_path, content)
    stream.offer(landing, "/f", listed(content))
    with pytest.raises(SourceChanged):
        for step in range(100):
            stream.refill()
            assert not stream.take(), "a range was complete before its file was looked at again"
            if step == 10:
                server.mtime += 1


def test_a_file_that_is_gone_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(Server({}), one(tmp_path, b"x"), {"/f": b"x"})


class Lying(Server):
    """Answers reads with something that is no answer to them."""

    lie = b""

    def _answer(self, kind: int, body: bytes) -> bytes:
        return self.lie.replace(b"NUMB", body[:4]) if kind == 5 else super()._answer(kind, body)


@pytest.mark.parametrize(
    "lie",
    [
        packet(103, b"\0\0\x99\x99" + text(b"xx")),
        packet(103, b"NUMB" + text(b"x" * 9)),
        packet(103, b"NUMB" + text(b"")),
        packet(103, b"NUMB" + struct.pack(">I", 5) + b"x"),
        packet(105, b"NUMB" + struct.pack(">IQ", 1, 5)),
        packet(101, b"\0\0\x99\x99" + struct.pack(">I", 4) + text(b"") + text(b"")),
        struct.pack(">IB", 1 << 30, 105) + b"NUMB" + b"\0" * 20,
    ],
)
def test_an_answer_that_is_none_is_told(tmp_path: Path, lie: bytes) -> None:
    server = Lying({"/f": b"x" * 8})
    server.lie = lie
    with pytest.raises(ProtocolError):
        run(server, one(tmp_path, b"x" * 8), {"/f": b"x" * 8})


def test_a_read_error_is_told_with_its_path(tmp_path: Path) -> None:
    server = Lying({"/f": b"x" * 8})
    server.lie = packet(101, b"NUMB" + struct.pack(">I", 4) + text(b"I/O error") + text(b""))
    with pytest.raises(OSError, match="I/O error") as caught:
        run(server, one(tmp_path, b"x" * 8), {"/f": b"x" * 8})
    assert caught.value.filename == "/f"


def test_a_disk_that_refuses_is_no_fault_of_the_connection(tmp_path: Path) -> None:
    landing = Landing(1, 0, 0, 8, str(tmp_path / "absent" / "f"))
    with pytest.raises(LocalFault) as caught:
        run(Server({"/f": b"x" * 8}), [landing], {"/f": b"x" * 8})
    assert isinstance(caught.value.cause, FileNotFoundError)


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    target(tmp_path, "elsewhere", 8)
    os.symlink("elsewhere", tmp_path / "f")
    with pytest.raises(LocalFault):
        run(Server({"/f": b"y" * 8}), [Landing(1, 0, 0, 8, str(tmp_path / "f"))], {"/f": b"y" * 8})
    assert (tmp_path / "elsewhere").read_bytes() == b"\0" * 8


def test_the_bandwidth_cap_holds_requests_back(tmp_path: Path) -> None:
    content = b"x" * 40_000
    reserved: list[int] = []

    def due(count: int) -> float:
        reserved.append(count)
        return time.monotonic() + (0.05 if len(reserved) == 3 else -1)

    server = Server({"/f": content})
    stream = Stream(Sftp(server), due, request=10_000)
    (landing,) = one(tmp_path, content)
    stream.offer(landing, "/f", listed(content))
    stream.take()
    stream.refill()
    assert reserved == [10_000] * 3 and server.asked == 20_000
    assert stream.wake is not None and stream.wake > time.monotonic()
    stream.refill()
    assert server.asked == 20_000, "asked for before it was due"
    time.sleep(max(0.0, stream.wake - time.monotonic()))
    stream.refill()
    assert stream.wake is None and server.asked == 40_000 and reserved == [10_000] * 4
    while landing.at < landing.end:
        stream.take()
    assert landing.hash.digest() == hashlib.sha256(content).digest()


@given(st.integers(0, 1 << 30))
def test_a_session_that_was_lent_goes_on_where_the_ranges_end(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    files = {"/a": random.Random(seed).randbytes(50_000)}
    server = Server(files, seed)
    sftp = Sftp(server)
    path = target(tmp_path_factory.mktemp("lent"), "a", 50_000)
    for _again in range(2):
        # What was asked before comes among the answers to what is read, and means nothing.
        _channel, unheard, received = sftp.lend()
        handle = b"earlier"
        server.handles[handle] = "/a"
        number, frame = sftp.frame(4, text(handle))
        server.sendall(frame)
        sftp.resume(unheard | {number}, received)
        stream = Stream(sftp, None, budget=60_000, request=7_000)
        landing = Landing(1, 0, 0, 50_000, path)
        stream.offer(landing, "/a", listed(files["/a"]))
        finished: list[Landing] = []
        while stream.unasked or not finished:
            stream.refill()
            finished += stream.take()
        assert finished[0].hash.digest() == hashlib.sha256(files["/a"]).digest()
        stream.close_files()
        stream.hand_back()
        again = sftp.open_read("/a")
        assert sftp.fstat(again).size == 50_000
        sftp.close(again)
    assert server.handles == {}


def test_a_session_that_was_lent_is_as_patient_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sftp, "round_trip", lambda _sftp: 0.001)
    waits: list[float | None] = []

    class Patient(Server):
        def settimeout(self, timeout: float | None) -> None:
            waits.append(timeout)

    files = {"/a": b"x" * 1000}
    connection: Any = SimpleNamespace(target=SshTarget("192.0.2.1", "dsm", stall_timeout=17.0))
    reader = SftpReader(connection, None, Sftp(Patient(files)))
    reader.offer(Landing(1, 0, 0, 1000, target(tmp_path, "a", 1000)), "/a", listed(files["/a"]))
    finished: list[Landing] = []
    while not finished:
        reader.refill()
        finished += reader.step(0.2)
    reader.close_files()
    reader.hand_back()
    assert waits[0] == 0.2 and waits[-1] == 17.0


def test_a_session_that_was_lent_goes_on_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    class Sliced(Server):
        longest = 1 << 20

        def recv(self, nbytes: int) -> bytes:
            return super().recv(min(nbytes, self.longest))

    files = {"/a": b"x" * 1000}
    server = Sliced(files)
    sftp = Sftp(server)
    stream = Stream(sftp, None, budget=60_000, request=7_000)
    stream.offer(Landing(1, 0, 0, 1000, target(tmp_path, "a", 1000)), "/a", listed(files["/a"]))
    while stream.expects or stream.unasked:
        stream.refill()
        stream.take()
    stream.close_files()
    server.longest = 5
    assert stream.take() == []
    stream.hand_back()
    assert sftp.fstat(sftp.open_read("/a")).size == 1000
