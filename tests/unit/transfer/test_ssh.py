# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the SSH library is loaded: without what only makes it slow, and with it where it cannot do without."""

from __future__ import annotations

import importlib
import random
import socket
import struct
import sys
import threading
from pathlib import Path
from typing import cast

import paramiko
import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _ssh
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import (
    Connection,
    Dialled,
    SshTarget,
    _Buffered,
    connect,
    dial,
    load_paramiko,
)

#: How long (s) anything may take on a busy machine.
PATIENCE = 60.0
OPTIONAL = "try:\n    import invoke\nexcept ImportError:\n    invoke = None\n"


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = socket.create_connection(server.getsockname()[:2], PATIENCE)
        theirs, _address = server.accept()
        theirs.settimeout(PATIENCE)
    return mine, theirs


def test_a_buffered_socket_gives_every_byte_in_order_whatever_is_asked_for() -> None:
    mine, theirs = connected()
    sent = random.Random(1).randbytes(3_000_000)
    mine.settimeout(10)
    writer = threading.Thread(target=lambda: (theirs.sendall(sent), theirs.close()), daemon=True)
    writer.start()
    buffered, chance, got = _Buffered(mine), random.Random(2), bytearray()
    while len(got) <= len(sent) and (piece := buffered.recv(chance.choice((1, 16, 4096, 32768, 1 << 20)))):
        got += piece
    assert got == sent and buffered.recv(16) == b""
    mine.close()


def test_a_buffered_socket_is_the_socket_in_everything_else() -> None:
    mine, theirs = connected()
    buffered = _Buffered(mine)
    buffered.settimeout(0.01)
    assert buffered.gettimeout() == mine.gettimeout() and buffered.fileno() == mine.fileno()
    for _again in range(2):
        with pytest.raises(socket.timeout):
            buffered.recv(1)
    theirs.sendall(b"late")
    assert buffered.recv(2) + buffered.recv(100) == b"late"
    assert buffered.send(b"back") == 4 and theirs.recv(10) == b"back"
    buffered.close()
    assert theirs.recv(1) == b""
    with pytest.raises(OSError):
        buffered.recv(1)


class Noted:
    """A socket that notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def setsockopt(self, level: int, option: int, value: int) -> None:
        assert (level, option, value) == (socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self.done.append("promptly")

    def recv_into(self, buffer: bytearray) -> int:
        self.done.append("received")
        buffer[:4] = b"data"
        return 4


def test_what_comes_while_logging_in_is_acknowledged_at_once_and_nothing_later() -> None:
    noted = Noted()
    buffered = _Buffered(cast(socket.socket, noted))
    assert [buffered.recv(2), buffered.recv(2), buffered.recv(9)] == [b"da", b"ta", b"data"]
    buffered.prompt = False
    assert buffered.recv(9) == b"data"
    assert noted.done == ["promptly", "received", "promptly", "received", "received"]


class Session:
    """A transport that gives one channel, over which an SFTP server speaks; nobody logs in."""

    def __init__(self) -> None:
        self.sock = _Buffered(cast(socket.socket, Noted()))
        self.prompt_at_subsystem = False
        version = struct.pack(">IBI", 5, 2, 3)
        self.open_session = lambda window_size, timeout: self
        self.settimeout = self.sendall = lambda _what: None
        self.recv = lambda _count: version
        self.close = self.gettimeout = lambda: None
        self.recv_stderr_ready = lambda: False

    def invoke_subsystem(self, name: str) -> None:
        assert name == "sftp"
        self.prompt_at_subsystem = self.sock.prompt


def test_a_session_that_has_begun_ends_the_promptness() -> None:
    session = Session()
    Connection(SshTarget("192.0.2.1", "dsm"), cast("paramiko.Transport", session)).open_sftp()
    assert session.prompt_at_subsystem and not session.sock.prompt


# -- dialling ahead --------------------------------------------------------------------------------------------------


def test_a_connection_that_was_begun_is_taken_when_it_is_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        dialled = dial(SshTarget("127.0.0.1", "dsm", server.getsockname()[1]))
        assert dialled is not None
        mine = dialled.take(PATIENCE)
        theirs, _address = server.accept()
        theirs.settimeout(PATIENCE)
        assert mine is not None and mine.gettimeout() == PATIENCE
        theirs.sendall(b"SSH")
        assert mine.recv(3) == b"SSH"
        mine.close()
        assert theirs.recv(1) == b""


def test_nobody_listens_where_it_was_dialled() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    dialled = dial(SshTarget("127.0.0.1", "dsm", port))
    with pytest.raises(ConnectionRefusedError):
        # On this host the refusal may have come at once.
        if dialled is None:
            raise ConnectionRefusedError
        dialled.take(PATIENCE)


def test_a_host_that_does_not_answer_is_not_waited_for_longer_than_that() -> None:
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            writing.send(bytes(1 << 20))
    with pytest.raises(TimeoutError):
        Dialled(writing).take(0.01)
    assert writing.fileno() == -1, "closed"
    reading.close()


def test_a_connection_that_waited_for_long_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = connected()
    dialled = Dialled(mine)
    monkeypatch.setattr(_ssh, "STALE", -1.0)
    assert dialled.take(PATIENCE) is None and theirs.recv(1) == b"", "the server was told"


@pytest.mark.parametrize("found", [[], [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 22))] * 2])
def test_a_host_with_several_addresses_is_not_dialled_ahead(
    monkeypatch: pytest.MonkeyPatch, found: list[object]
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_what, **_how: found)
    assert dial(SshTarget("dsm.example.com", "dsm")) is None


def test_a_name_that_means_nothing_is_not_dialled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_what: object, **_how: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert dial(SshTarget("dsm.example.com", "dsm")) is None


def test_what_was_dialled_is_hung_up_when_there_is_no_key_to_log_in_with(tmp_path: Path) -> None:
    mine, theirs = connected()
    with pytest.raises(Refused) as refusal:
        connect(SshTarget("127.0.0.1", "dsm", known_hosts=str(tmp_path / "none")), Dialled(mine))
    assert refusal.value.code == "HOST_KEY_UNREADABLE" and theirs.recv(1) == b""


@pytest.fixture
def libraries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for libraries of our own; those that are loaded already are forgotten meanwhile."""
    for name in ("paramiko", "invoke"):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path


@pytest.mark.parametrize(("text", "taken"), [(OPTIONAL, False), ("import invoke\n", True)])
def test_paramiko_is_loaded_without_invoke_where_it_can_be(libraries: Path, text: str, taken: bool) -> None:
    (libraries / "paramiko.py").write_text(f'{text}__version__ = "4.0.0"\n', encoding="utf-8")
    (libraries / "invoke.py").write_text("", encoding="utf-8")
    paramiko = load_paramiko()
    assert (paramiko.invoke is not None) == taken
    assert ("invoke" in sys.modules) == taken and importlib.import_module("invoke").__file__


def test_what_is_loaded_already_is_taken(libraries: Path) -> None:
    (libraries / "paramiko.py").write_text(f'{OPTIONAL}__version__ = "4.0.0"\n', encoding="utf-8")
    (libraries / "invoke.py").write_text("", encoding="utf-8")
    invoke = importlib.import_module("invoke")
    assert load_paramiko().invoke is invoke and load_paramiko() is sys.modules["paramiko"]


@pytest.mark.parametrize("version", ["3.4.1", "2.12.0"])
def test_an_old_paramiko_is_refused(libraries: Path, version: str) -> None:
    (libraries / "paramiko.py").write_text(f'__version__ = "{version}"\n', encoding="utf-8")
    with pytest.raises(Refused) as caught:
        load_paramiko()
    assert caught.value.code == "NO_PARAMIKO" and version in caught.value.message


def test_no_paramiko_is_refused(libraries: Path) -> None:
    (libraries / "paramiko.py").write_text("raise ImportError('half installed')\n", encoding="utf-8")
    with pytest.raises(Refused) as caught:
        load_paramiko()
    assert caught.value.code == "NO_PARAMIKO" and caught.value.remedy
    assert "invoke" not in sys.modules


class Clock:
    """A transport and its channel, over which a host says what it takes for the time."""

    def __init__(self, said: bytes) -> None:
        self.said = said

    def open_session(self, timeout: float) -> Clock:
        return self

    def settimeout(self, seconds: float) -> None:
        return

    def exec_command(self, command: str) -> None:
        assert "date" in command

    def recv(self, count: int) -> bytes:
        piece, self.said = self.said[:count], self.said[count:]
        return piece

    def close(self) -> None:
        return


@pytest.mark.parametrize(
    ("said", "clock"),
    [
        (b"1795223580\n", 1795223580.0),
        (b"99999999999\n", 99999999999.0),
        (b"100000000000\n", None),
        (b"9" * 30 + b"\n", None),
        (b"9" * 1000, None),
        (b"-5\n", None),
        (b"", None),
        (b"command not found", None),
    ],
)
def test_f17_a_clock_tells_the_time_or_nothing(said: bytes, clock: float | None) -> None:
    target = SshTarget("192.0.2.1", "dsm")
    assert Connection(target, cast(paramiko.Transport, Clock(said))).clock() == clock
