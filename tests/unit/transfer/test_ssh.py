# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the SSH library is loaded: without what only makes it slow, and with it where it cannot do without."""

from __future__ import annotations

import importlib
import random
import socket
import sys
import threading
from pathlib import Path
from typing import cast

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import _Buffered, load_paramiko

OPTIONAL = "try:\n    import invoke\nexcept ImportError:\n    invoke = None\n"


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        mine = socket.create_connection(server.getsockname()[:2], 60)
        theirs, _address = server.accept()
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
