# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lean SFTP client against a server that answers late, short, out of order, in pieces, or not at all."""

from __future__ import annotations

import random
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _sftp
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import SftpSession
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sftp import (
    EndOfFile,
    ProtocolError,
    Sftp,
)


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def packet(kind: int, body: bytes) -> bytes:
    return struct.pack(">IB", len(body) + 1, kind) + body


class Server:
    """One file, read over a channel. ``seed`` decides order, length and slicing of the answers; 0: the straight way."""

    def __init__(self, content: bytes, seed: int = 0, fail_at: int = -1, hang_up_at: int = -1) -> None:
        self.content, self.fail_at, self.hang_up_at = content, fail_at, hang_up_at
        self.random = random.Random(seed) if seed else None
        self.incoming = b""
        self.answers: list[bytes] = []
        self.outgoing = b""
        self.sent = 0

    def sendall(self, s: bytes) -> None:
        self.incoming += s
        while len(self.incoming) >= 4:
            (length,) = struct.unpack_from(">I", self.incoming)
            if len(self.incoming) < 4 + length:
                return
            body, self.incoming = self.incoming[4 : 4 + length], self.incoming[4 + length :]
            self.answers.append(self._answer(body[0], body[1:]))

    def _answer(self, kind: int, body: bytes) -> bytes:
        if kind == 1:
            return packet(2, struct.pack(">I", 3) + text(b"posix-rename@openssh.com") + text(b"1"))
        number = body[:4]
        if kind == 3:
            return packet(102, number + text(b"h"))
        if kind == 8:
            return packet(105, number + struct.pack(">IQ", 1, len(self.content)))
        if kind == 4:
            return packet(101, number + struct.pack(">I", 0) + text(b"") + text(b""))
        if kind == 5:
            offset, length = struct.unpack(">QI", body[9:21])
            if self.fail_at >= 0 and offset >= self.fail_at:
                return packet(101, number + struct.pack(">I", 4) + text(b"I/O error") + text(b""))
            piece = self.content[offset : offset + length]
            if not piece:
                return packet(101, number + struct.pack(">I", 1) + text(b"eof") + text(b""))
            if self.random and self.random.random() < 0.3:
                piece = piece[: self.random.randint(1, len(piece))]
            return packet(103, number + text(piece))
        raise AssertionError(kind)

    def recv(self, nbytes: int) -> bytes:
        if not self.outgoing:
            if not self.answers:
                return b""
            at = self.random.randrange(len(self.answers)) if self.random else 0
            self.outgoing = self.answers.pop(at)
        count = min(nbytes, self.random.randint(1, 40_000) if self.random else nbytes)
        if self.hang_up_at >= 0 and self.sent + count > self.hang_up_at:
            return b""
        piece, self.outgoing = self.outgoing[:count], self.outgoing[count:]
        self.sent += len(piece)
        return piece


def read(server: Server, offset: int = 0, length: int | None = None) -> bytes:
    sftp = Sftp(server)
    handle = sftp.open_read("/f")
    size = sftp.fstat(handle).size
    got = bytearray()

    def sink(position: int, piece: memoryview) -> None:
        assert position == offset + len(got), "bytes out of order"
        got.extend(piece)

    sftp.read(handle, offset, size - offset if length is None else length, sink)
    sftp.close(handle)
    return bytes(got)


@given(st.integers(0, 3_000_000), st.integers(0, 1 << 30), st.data())
def test_any_server_order_gives_the_bytes_in_order(size: int, seed: int, data: st.DataObject) -> None:
    content = random.Random(size).randbytes(size)
    offset = data.draw(st.integers(0, size))
    assert read(Server(content, seed), offset) == content[offset:]


class Questions:
    """A server that can tell its limits, or cannot, and counts what it is asked."""

    def __init__(self, limits: bool) -> None:
        self.extensions = text(b"limits@openssh.com") + text(b"1") if limits else b""
        self.asked: list[int] = []
        self.answers: list[bytes] = []

    def sendall(self, s: bytes) -> None:
        kind, number = s[4], s[5:9]
        self.asked.append(kind)
        self.answers.append(
            {
                1: packet(2, struct.pack(">I", 3) + self.extensions),
                200: packet(201, number + struct.pack(">QQQQ", 262144, 261120, 65536, 0)),
                16: packet(104, number + struct.pack(">I", 1) + text(b"/root") * 2 + struct.pack(">I", 0)),
            }[kind]
        )

    def recv(self, nbytes: int) -> bytes:
        return self.answers.pop(0)


def test_the_round_trip_costs_no_question_where_one_was_asked_anyway() -> None:
    for limits, before, after in ((True, [1, 200], [1, 200]), (False, [1], [1, 16])):
        server = Questions(limits)
        sftp = Sftp(server)
        assert server.asked == before
        assert sftp.round_trip() == sftp.round_trip() > 0 and server.asked == after
        assert (sftp.read_length, sftp.write_length) == ((261120, 65536) if limits else (32768, 32768))


class Late(Questions):
    """Tells its limits when the next question has been asked, not before."""

    def __init__(self, limits: bytes) -> None:
        super().__init__(limits=True)
        self.limits = limits
        self.held: list[bytes] = []

    def sendall(self, s: bytes) -> None:
        if s[4] == 200:
            self.asked.append(200)
            self.held.append(packet(self.limits[0], s[5:9] + self.limits[1:]))
            return
        super().sendall(s)
        self.answers[-1:-1] = self.held
        self.held.clear()

    def recv(self, nbytes: int) -> bytes:
        assert self.answers, "waits for an answer that needs another question first"
        return super().recv(nbytes)


LIMITS = bytes((201,)) + struct.pack(">QQQQ", 262144, 131072, 65536, 0)


def test_the_first_question_goes_along_with_that_for_the_limits() -> None:
    server = Late(LIMITS)
    sftp = Sftp(server)
    assert sftp.realpath(".") == "/root" and server.asked == [1, 200, 16]
    assert (sftp.read_length, sftp.write_length) == (131072, 65536)
    assert sftp.round_trip() > 0 and server.asked == [1, 200, 16], "it was told by the answer about the limits"


def test_a_server_that_does_not_tell_its_limits_after_all_is_asked_for_little() -> None:
    refused = bytes((101,)) + struct.pack(">I", 8) + text(b"no") + text(b"")
    sftp = Sftp(Late(refused))
    assert sftp.realpath(".") == "/root" and (sftp.read_length, sftp.write_length) == (32768, 32768)


@pytest.mark.parametrize("answer", [bytes((103,)) + text(b"what?"), bytes((201,)) + b"12", bytes((201,))])
def test_limits_that_make_no_sense_are_told(answer: bytes) -> None:
    with pytest.raises(ProtocolError):
        Sftp(Late(answer)).realpath(".")


def test_whoever_gets_the_channel_lent_gets_it_without_an_answer_of_ours_under_way() -> None:
    server = Questions(limits=True)
    sftp = Sftp(server)
    channel, unheard, received = sftp.lend()
    assert channel is server and not unheard and not received and not server.answers


class Pieces:
    """A server with one directory in so many pieces. Counts how often somebody waited, and answers in any order."""

    def __init__(self, pieces: int, seed: int, fail: int = -1) -> None:
        self.pieces, self.fail = pieces, fail
        self.random = random.Random(seed)
        self.given = self.waited = 0
        self.asked: list[int] = []
        self.answers: list[bytes] = [packet(2, struct.pack(">I", 3))]

    def sendall(self, s: bytes) -> None:
        while s:
            (length,) = struct.unpack_from(">I", s)
            kind, number = s[4], s[5:9]
            self.asked.append(kind)
            s = s[4 + length :]
            if kind == 11:
                self.answers.append(packet(102, number + text(b"d")))
            elif kind == 12:
                self.answers.insert(self.random.randint(0, len(self.answers)), self._piece(number))
            elif kind == 7:
                self.answers.append(packet(105, number + struct.pack(">IQ", 1, 7)))
            elif kind == 4:
                self.answers.append(packet(101, number + struct.pack(">I", 0) + text(b"") + text(b"")))

    def _piece(self, number: bytes) -> bytes:
        self.given += 1
        if self.given - 1 == self.fail:
            return packet(101, number + struct.pack(">I", 4) + text(b"I/O error") + text(b""))
        if self.given > self.pieces:
            return packet(101, number + struct.pack(">I", 1) + text(b"eof") + text(b""))
        names = [b".", b"..", b"f%05d" % self.given] if self.given == 1 else [b"f%05d" % self.given]
        entries = b"".join(text(name) + text(b"") + struct.pack(">I", 0) for name in names)
        return packet(104, number + struct.pack(">I", len(names)) + entries)

    def recv(self, nbytes: int) -> bytes:
        self.waited += 1
        data = b"".join(self.answers)
        self.answers.clear()
        return data


@given(st.integers(0, 60), st.integers(0, 1 << 30))
def test_a_directory_of_any_length_is_listed_whole_and_in_order(pieces: int, seed: int) -> None:
    server = Pieces(pieces, seed)
    sftp = Sftp(server)
    assert [name for name, _attributes in sftp.listdir("/d")] == [f"f{number:05d}" for number in range(1, pieces + 1)]
    assert server.asked[-1] == 4 and sftp.lstat("/d").size == 7


def test_a_listing_costs_few_round_trips() -> None:
    waits = []
    for pieces in (1, 100):
        server = Pieces(pieces, 1)
        Sftp(server).listdir("/d")
        waits.append(server.waited)
    # The version, the handle and one answer more; and for a directory of ten thousand names a twelfth of its pieces.
    assert waits[0] == 3 and waits[1] < 20


def test_a_listing_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sftp, "MOST_LISTED", 100)
    server = Pieces(10**9, 1)
    sftp = Sftp(server)
    with pytest.raises(OSError, match="more than 100 entries") as caught:
        sftp.listdir("/d")
    assert caught.value.filename == "/d" and server.given < 120 and sftp.lstat("/d").size == 7


def test_names_without_end_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sftp, "LONGEST_LISTING", 600)
    server = Pieces(10**9, 1)
    with pytest.raises(OSError, match="more than 600 characters"):
        Sftp(server).listdir("/d")
    assert server.given < 120


def test_a_directory_that_is_too_large_is_no_fault_of_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sftp, "MOST_LISTED", 100)
    connection: Any = SimpleNamespace(open_sftp=lambda _meanwhile: Sftp(Pieces(10**9, 1)))
    with pytest.raises(OSError, match="more than 100 entries"):
        SftpSession(connection).listdir("/d")


def test_a_listing_that_brings_nothing_for_ever_is_given_up() -> None:
    server = Pieces(10**9, 1)
    server._piece = lambda number: packet(104, number + struct.pack(">I", 0))  # type: ignore[method-assign]
    with pytest.raises(ProtocolError):
        Sftp(server).listdir("/d")


@pytest.mark.parametrize("fail", [0, 1, 2, 5, 11])
def test_a_listing_that_fails_is_told_and_the_session_stays_usable(fail: int) -> None:
    server = Pieces(12, seed=fail, fail=fail)
    sftp = Sftp(server)
    with pytest.raises(OSError, match="I/O error"):
        sftp.listdir("/d")
    assert sftp.lstat("/d").size == 7 and server.asked[-2:] == [4, 7]


def test_an_answer_to_something_else_is_none_to_a_listing() -> None:
    version, handle = packet(2, struct.pack(">I", 3)), packet(102, struct.pack(">I", 1) + text(b"d"))
    for number, kind in ((99, 104), (2, 105)):
        with pytest.raises(ProtocolError, match="listing"):
            Sftp(Canned(version + handle + packet(kind, struct.pack(">II", number, 0)))).listdir("/d")


def test_a_file_that_ends_early_is_told() -> None:
    with pytest.raises(EndOfFile):
        read(Server(b"x" * 100_000), length=100_001)


def test_a_read_error_is_told_and_the_session_stays_usable() -> None:
    server = Server(b"x" * 3_000_000, fail_at=1_000_000)
    sftp = Sftp(server)
    handle = sftp.open_read("/f")
    with pytest.raises(OSError, match="I/O error"):
        sftp.read(handle, 0, 3_000_000, lambda _position, _piece: None)
    assert sftp.fstat(handle).size == 3_000_000


@pytest.mark.parametrize("cut", range(0, 200_000, 9_973))
def test_f11_a_connection_that_ends_anywhere_is_told(cut: int) -> None:
    with pytest.raises(EOFError):
        read(Server(b"x" * 200_000, seed=1, hang_up_at=cut))


class Canned:
    """Says what it was told to say."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def sendall(self, s: bytes) -> None:
        return

    def recv(self, nbytes: int) -> bytes:
        piece, self.answer = self.answer[:nbytes], self.answer[nbytes:]
        return piece


@pytest.mark.parametrize(
    "answer",
    [
        b"Welcome to this host!\n",
        packet(101, struct.pack(">I", 3)),
        packet(2, b"\0"),
        packet(2, struct.pack(">I", 2)),
        packet(2, struct.pack(">I", 3) + b"\0\0\0\x09abc"),
        b"\0\0\0\0\0",
    ],
)
def test_what_is_no_sftp_server_is_told(answer: bytes) -> None:
    with pytest.raises(ProtocolError):
        Sftp(Canned(answer))


def test_a_silent_end_is_told() -> None:
    with pytest.raises(EOFError):
        Sftp(Canned(b""))


def test_an_answer_to_another_request_is_told() -> None:
    version = packet(2, struct.pack(">I", 3))
    with pytest.raises(ProtocolError):
        Sftp(Canned(version + packet(105, struct.pack(">IIQ", 99, 1, 5)))).lstat("/f")


class Directories:
    """A server with one directory, whose answers to CLOSE come when the next question is asked, or the one after."""

    def __init__(self, late: int) -> None:
        self.late = late
        self.listed = 0
        self.asked: list[int] = []
        self.answers: list[bytes] = []
        self.held: list[bytes] = []

    def sendall(self, s: bytes) -> None:
        while s:
            (length,) = struct.unpack_from(">I", s)
            self._take(s[4], s[5:9], s[9 : 4 + length])
            s = s[4 + length :]

    def _take(self, kind: int, number: bytes, body: bytes) -> None:
        self.asked.append(kind)
        status = number + struct.pack(">I", 0) + text(b"") + text(b"")
        if kind == 4:
            self.held.append(packet(101, status))
            return
        if len(self.held) > self.late:
            self.answers.append(self.held.pop(0))
        if kind == 12:
            self.listed += 1
            name = number + struct.pack(">I", 1) + text(b"f") + text(b"") + struct.pack(">I", 0)
            end = number + struct.pack(">I", 1) + text(b"eof") + text(b"")
            self.answers.append(packet(104, name) if self.listed % 2 else packet(101, end))
            return
        self.answers.append(
            {
                1: lambda: packet(2, struct.pack(">I", 3)),
                3: lambda: packet(102, number + text(b"f")),
                5: lambda: packet(103, number + text(b"content")),
                7: lambda: packet(105, number + struct.pack(">IQ", 1, 7)),
                11: lambda: packet(102, number + text(b"d")),
            }[kind]()
        )

    def recv(self, nbytes: int) -> bytes:
        if not self.answers and self.held:
            self.answers.append(self.held.pop(0))
        assert self.answers, "waits for an answer to nothing"
        return self.answers.pop(0)


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_listing_does_not_wait_until_its_directory_is_closed(late: int) -> None:
    server = Directories(late)
    sftp = Sftp(server)
    assert [name for name, _attributes in sftp.listdir("/d")] == ["f"]
    # Nobody took the answer to CLOSE, which only comes when something else is asked.
    assert server.asked == [1, 11, 12, 12, 4] and len(server.held) == 1
    sftp.listdir("/d")
    assert sftp.lstat("/d/f").size == 7
    got: list[bytes] = []
    sftp.read(sftp.open_read("/d/f"), 0, 7, lambda _position, piece: got.append(bytes(piece)))
    assert got == [b"content"] and not server.held


def test_an_answer_that_nobody_asked_for_is_none_to_what_was_closed() -> None:
    server = Directories(0)
    sftp = Sftp(server)
    sftp.listdir("/d")
    handle = sftp.open_read("/d/f")
    sftp.listdir("/d")
    server.answers.append(packet(101, struct.pack(">II", 99, 0) + text(b"") + text(b"")))
    with pytest.raises(ProtocolError, match="does not belong"):
        sftp.read(handle, 0, 7, lambda _position, _piece: None)
