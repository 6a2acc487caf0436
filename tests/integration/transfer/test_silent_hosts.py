# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hosts that fall silent at one request, or talk too much; sshd cannot be made to do that, so paramiko serves here."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct
import threading
from pathlib import Path
from typing import Any, Callable, Iterator

import paramiko
import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._pull import TRANSIENT
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import WINDOW
from ansible_collections.kmsops.fortanix_dsm.tests.integration.transfer.helpers import PATIENCE, Site


class Host(paramiko.ServerInterface):
    """Answers everything up to one request, and that one much later than anybody waits."""

    def __init__(self, silent_at: str, over: threading.Event) -> None:
        self.silent_at, self.over = silent_at, over

    def _pass(self, here: str) -> None:
        if self.silent_at == here:
            self.over.wait(2 * PATIENCE)

    def check_auth_publickey(self, username: str, key: Any) -> int:
        self._pass("login")
        return paramiko.AUTH_SUCCESSFUL

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_channel_request(self, kind: str, number: int) -> int:
        self._pass("channel")
        return paramiko.OPEN_SUCCEEDED

    def check_channel_subsystem_request(self, channel: Any, name: str) -> bool:
        self._pass("subsystem")
        return super().check_channel_subsystem_request(channel, name)

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        return False


class Mute(paramiko.Transport):
    """Never says whether a command was begun (MSG_CHANNEL_FAILURE, which no subsystem gets here)."""

    def _send_user_message(self, data: Any) -> None:
        if data.asbytes()[0] != 100:
            super()._send_user_message(data)


class Files(paramiko.SFTPServerInterface):
    def list_folder(self, path: str) -> Any:
        return [paramiko.SFTPAttributes.from_stat(os.lstat(f"{path}/{n}"), n) for n in os.listdir(path)]

    def lstat(self, path: str) -> Any:
        return paramiko.SFTPAttributes.from_stat(os.lstat(path))

    def open(self, path: str, flags: int, attributes: Any) -> Any:
        handle = paramiko.SFTPHandle(flags)
        handle.readfile = Path(path).open("rb")  # type: ignore[attr-defined]  # noqa: SIM115 - whoever has the handle closes it
        handle.stat = lambda: self.lstat(path)  # type: ignore[method-assign]
        return handle


class Loud(paramiko.SFTPServer):
    """Prints more than a channel may hold before it answers anything."""

    def start_subsystem(self, name: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        for _mebibyte in range(2 * (WINDOW >> 20)):
            channel.sendall_stderr(b"!" * (1 << 20))
        super().start_subsystem(name, transport, channel)


@pytest.fixture
def silent(site: Site) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Logins at hosts that fall silent at one request, or print all the time."""
    listeners: list[socket.socket] = []
    over = threading.Event()
    key = paramiko.PKey.from_path(str(site.sshd.host_key))

    def serve(listener: socket.socket, where: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = listener.accept()
                transport = (Mute if where == "command" else paramiko.Transport)(client)
                transport.add_server_key(key)
                transport.set_subsystem_handler("sftp", Loud if where == "print" else paramiko.SFTPServer, Files)
                transport.start_server(event=threading.Event(), server=Host(where, over))

    def make(where: str) -> dict[str, Any]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, where), daemon=True).start()
        port = listener.getsockname()[1]
        pinned = site.store.parent / f"pinned-{where}"
        pinned.write_text(site.sshd.pinned(port))
        return site.sshd.login(path=f"{site.source}/*", port=port, known_hosts=str(pinned))

    yield make
    over.set()
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize("where", ["login", "channel", "subsystem"])
def test_f11_a_host_that_falls_silent_is_given_up_and_may_be_tried_again(
    site: Site, silent: Callable[[str], dict[str, Any]], where: str
) -> None:
    """Nobody refused anything, so that what has landed is kept."""
    site.deliver()
    result = site.ship(sources=[silent(where)], connect_timeout=1, stall_timeout=1)
    assert result.failed and set(result.codes) <= TRANSIENT and result.remedy, result.output


def test_a_host_that_never_says_whether_it_tells_its_clock_is_not_waited_for(
    site: Site, silent: Callable[[str], dict[str, Any]]
) -> None:
    site.deliver()
    result = site.ship(sources=[silent("command")], connect_timeout=5, stall_timeout=5)
    assert result.backups[0]["published"], result.output


def test_what_a_server_prints_beside_its_answers_holds_nothing_up(
    site: Site, silent: Callable[[str], dict[str, Any]]
) -> None:
    """As a login shell's profile does, or ``sftp-server -e``; it is kept nowhere."""
    site.deliver()
    result = site.ship(sources=[silent("print")], connect_timeout=5, stall_timeout=5, workers=1)
    assert result.backups[0]["published"], result.output


# -- the agent -----------------------------------------------------------------------------------------------------


@pytest.fixture
def agent(site: Site) -> Iterator[Callable[[str], str]]:
    """Sockets of agents with one defect each."""
    listeners: list[socket.socket] = []
    kind, blob = (site.sshd.directory / "client.pub").read_text().split()[:2]
    key = base64.b64decode(blob)
    offer = struct.pack(">BI", 12, 1) + b"".join(struct.pack(">I", len(part)) + part for part in (key, kind.encode()))

    def answer(defect: str, asked: int) -> bytes | None:
        if asked == 11 and defect.startswith("sign"):
            return offer
        return {"nonsense": b"\x0c\0\0\0\1\0\0\0\1\xff\0\0\0\1\xff", "sign: refused": b"\x05"}.get(defect)

    def talk(client: socket.socket, defect: str) -> None:
        with contextlib.suppress(OSError):
            while defect != "hangs up" and (asked := client.recv(1 << 16)):
                said = answer(defect, asked[4])
                if said is not None:
                    client.sendall(struct.pack(">I", len(said)) + said)
                elif defect == "sign: hangs up":
                    break
        client.close()

    def serve(listener: socket.socket, defect: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = listener.accept()
                threading.Thread(target=talk, args=(client, defect), daemon=True).start()

    def make(defect: str) -> str:
        listeners.append(socket.socket(socket.AF_UNIX))
        path = str(site.store.parent / "agent")
        listeners[-1].bind(path)
        listeners[-1].listen()
        threading.Thread(target=serve, args=(listeners[-1], defect), daemon=True).start()
        return path

    yield make
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(
    "defect", ["hangs up", "silent", "nonsense", "sign: hangs up", "sign: silent", "sign: refused"]
)
def test_an_agent_that_does_not_do_its_work_is_told_and_stops_no_other_source(
    site: Site, agent: Callable[[str], str], defect: str
) -> None:
    site.deliver()
    login = {**site.sshd.login(path=f"{site.source}/*"), "key_file": None}
    path = agent(defect)
    result = site.ship(
        sources=[login, {"path": f"{site.source}/*"}],
        connect_timeout=2,
        request={"environ": {"SSH_AUTH_SOCK": path}},
    )
    assert result.failed and result.codes == ["AUTH_REFUSED"] and result.remedy, result.output
    (reason,) = result.reasons
    assert path in reason["message"] and ("sign" in defect) == ("does not sign" in reason["message"]), reason
    assert len(site.published()) == 1
