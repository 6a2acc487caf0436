# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The API's client: what it sends, what it verifies, and how it says what went wrong."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsm_api import HOST, make_certificates

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._api import Api, ApiError, Endpoint

SECRET = "c2VjcmV0LWFwaS1rZXk="


class Scripted:
    """A TLS server that answers every connection with the same bytes, and keeps what it was sent."""

    def __init__(self, directory: Path) -> None:
        make_certificates(directory)
        self.ca_path = str(directory / "ca.crt")
        self.answer = b""
        self.seen: list[bytes] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(directory / "api.crt", directory / "api.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._context = context
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _peer = self._listener.accept()
            except OSError:
                return
            try:
                with self._context.wrap_socket(raw, server_side=True) as secured:
                    self.seen.append(secured.recv(65536))
                    secured.sendall(self.answer)
            except OSError:
                continue

    def api(self, host: str | None = HOST, timeout: float = 60.0) -> Api:
        return Api(Endpoint("127.0.0.1", self.port, host), self.ca_path, timeout)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Scripted]:
    found = Scripted(tmp_path)
    yield found
    found.close()


def http(status: int, body: bytes = b"", head: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), head, body)


def test_the_address_is_asked_under_the_name_that_clients_use(server: Scripted) -> None:
    server.answer = http(204)
    assert server.api().ask_health("quorum").status == 204
    sent = server.seen[0].decode()
    assert sent.startswith("GET /sys/v1/health?consistency=quorum HTTP/1.1\r\n")
    assert f"Host: {HOST}:{server.port}\r\n" in sent and "no-cache" in sent


def test_another_name_in_the_certificate_is_not_trusted(server: Scripted) -> None:
    server.answer = http(204)
    answer = server.api("other.example.test").ask_health("plain")
    assert (answer.status, answer.failure) == (None, "tls")
    with pytest.raises(ApiError) as caught:
        server.api("other.example.test").version()
    assert caught.value.code == "API_TLS" and "right host" in caught.value.remedy
    assert server.seen == []


def test_an_unknown_authority_is_not_trusted(server: Scripted, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    make_certificates(tmp_path / "other")
    api = Api(Endpoint("127.0.0.1", server.port, HOST), str(tmp_path / "other" / "ca.crt"))
    assert api.ask_health("plain").failure == "tls"


def test_a_redirect_is_an_answer_and_is_not_followed(server: Scripted) -> None:
    server.answer = http(302, head=b"Location: https://127.0.0.1:1/\r\n")
    assert server.api().ask_health("plain").status == 302
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", "reset"),
        (b"SSH-2.0-OpenSSH\r\n", "body"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhal", "reset"),
        (http(200, b"<html>"), "body"),
        (http(200, b"[]"), "body"),
        (http(200, b"{}"), "body"),
        (http(401, b"secret words"), "status"),
    ],
)
def test_answers_that_are_none_have_a_kind(server: Scripted, answer: bytes, kind: str) -> None:
    server.answer = answer
    with pytest.raises(ApiError) as caught:
        server.api().version()
    assert caught.value.kind == kind
    assert "secret words" not in str(caught.value) + str(caught.value.as_result())


def test_what_cannot_be_reached_has_a_kind(server: Scripted) -> None:
    unused = socket.create_server(("127.0.0.1", 0))
    port = unused.getsockname()[1]
    silent = Api(Endpoint("127.0.0.1", port), server.ca_path, timeout=0.2)
    assert silent.ask_health("plain").failure == "timeout"
    unused.close()
    assert silent.ask_health("plain").failure == "refused"
    assert Api(Endpoint("no-such-name.invalid"), server.ca_path).ask_health("plain").failure == "unresolved"


def test_a_session_is_opened_used_and_ended(server: Scripted) -> None:
    server.answer = http(200, b'{"access_token": "bearer-1", "version": "5.4.2031"}')
    api = server.api()
    api.log_in(api_key=SECRET)
    api.version()
    api.log_out()
    heads = [sent.decode() for sent in server.seen]
    assert f"Authorization: Basic {SECRET}\r\n" in heads[0]
    assert "Authorization: Bearer bearer-1\r\n" in heads[1]
    assert heads[2].startswith("POST /sys/v1/session/terminate")
    api.version()
    assert "Authorization" not in server.seen[3].decode()


@pytest.mark.parametrize("answer", [http(401, b"no"), http(500), http(200, b"{}"), http(200, b"[]"), http(200, b"x")])
def test_a_log_in_that_gives_no_session_is_an_error_without_the_credential(server: Scripted, answer: bytes) -> None:
    server.answer = answer
    with pytest.raises(ApiError) as caught:
        server.api().log_in(api_key=SECRET)
    assert SECRET not in str(caught.value.as_result())


def test_a_session_that_cannot_be_ended_is_nobodys_trouble(server: Scripted) -> None:
    server.answer = http(200, b'{"access_token": "bearer-1"}')
    api = server.api()
    api.log_in(api_key=SECRET)
    server.answer = b""
    api.log_out()
