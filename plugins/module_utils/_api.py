# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The DSM API over HTTPS with the standard library: one address, one name to verify, no redirects, no proxies.

An address is asked by itself (a load balancer hides a read-only data centre and a dead node [inferred]), while the
certificate is verified for the name that clients use. There is no way to switch verification off.

PRIVATE to the collection.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import time
from typing import Any, Mapping, NamedTuple

from ._core import health
from ._errors import DsmError


def api_spec(timeout: float = 10.0) -> dict[str, Any]:
    """Options of the doc fragment ``api``."""
    return {"ca_path": {"type": "path"}, "ca_pem": {"type": "str"}, "timeout": {"type": "float", "default": timeout}}


_LARGEST_BODY = 4 * 1024 * 1024


class ApiError(DsmError):
    """The API could not be asked, or did not answer as its description says.

    ``kind``: below HTTP ``refused``, ``timeout``, ``unresolved``, ``no_route``, ``reset``, ``tls``; else ``status`` or
    ``body``. ``status`` is the HTTP status or ``None``.
    """

    def __init__(self, message: str, kind: str, status: int | None = None, remedy: str = "") -> None:
        super().__init__(message, "API_" + kind.upper(), remedy=remedy, status=status)
        self.kind = kind
        self.status = status


class Response(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes


class Endpoint(NamedTuple):
    """Where to connect (``address``, ``port``) and whom to expect there (``host``, the name in the certificate)."""

    address: str
    port: int = 443
    host: str | None = None

    @property
    def label(self) -> str:
        """For messages."""
        place = f"{self.address}:{self.port}"
        return f"{self.host} at {place}" if self.host else place


class _Connection(http.client.HTTPSConnection):
    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext, timeout: float) -> None:
        super().__init__(endpoint.host or endpoint.address, endpoint.port, timeout=timeout, context=context)
        self._endpoint = endpoint
        self._tls = context

    def connect(self) -> None:
        raw = socket.create_connection((self._endpoint.address, self._endpoint.port), self.timeout)
        try:
            self.sock = self._tls.wrap_socket(raw, server_hostname=self._endpoint.host or self._endpoint.address)
        except BaseException:
            raw.close()
            raise


class Api:
    """One endpoint; after :meth:`log_in` with a session. ``timeout`` is for one answer, in seconds."""

    def __init__(
        self, endpoint: Endpoint, ca_path: str | None = None, timeout: float = 10.0, ca_pem: str | None = None
    ) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._bearer: str | None = None
        try:
            self._context = ssl.create_default_context(cafile=ca_path, cadata=ca_pem or None)
        except (OSError, ValueError) as error:
            raise DsmError(
                f"The certification authorities in {ca_path or 'ca_pem'} cannot be used: {error}",
                "CA_UNREADABLE",
                remedy="Give ca_path (a file on this host) or ca_pem (its text) the authority of the API certificate.",
            ) from error

    def request(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Response:
        """Sends one request and reads the whole answer, whatever its status. Raises :class:`ApiError` below HTTP."""
        connection = _Connection(self.endpoint, self._context, self._timeout)
        sent = {"Accept": "application/json", "Cache-Control": "no-cache", "Connection": "close", **(headers or {})}
        if self._bearer and "Authorization" not in sent:
            sent["Authorization"] = "Bearer " + self._bearer
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        try:
            connection.request(method, path, body=data, headers=sent)
            answer = connection.getresponse()
            text = answer.read(_LARGEST_BODY)
            if answer.length:
                raise http.client.IncompleteRead(text, answer.length)
            return Response(answer.status, text)
        except (OSError, http.client.HTTPException) as error:
            kind = _kind(error)
            raise ApiError(
                f"{method} {path.split('?', 1)[0]} on {self.endpoint.label}: {_words(kind, error)}",
                kind,
                remedy=_REMEDIES.get(kind, "Check that the DSM service is up and that nothing stands between."),
            ) from error
        finally:
            connection.close()

    def call(self, method: str, path: str, body: Any = None, allow: tuple[int, ...] = ()) -> Any:
        """Sends one request and returns the JSON of a 2xx answer (``None`` for an empty one), or ``None`` for a status
        in ``allow``. Any other status is an :class:`ApiError` of kind ``status``; the answer's text is not repeated,
        since nobody knows what it holds."""
        response = self.request(method, path, body)
        if response.status in allow:
            return None
        if not 200 <= response.status <= 299:
            raise ApiError(
                f"{method} {path.split('?', 1)[0]} on {self.endpoint.label} answered {response.status}",
                "status",
                response.status,
                _STATUS_REMEDIES.get(response.status, "See the audit log of the account for the reason."),
            )
        if not response.body:
            return None
        try:
            return json.loads(response.body)
        except ValueError as error:
            raise ApiError(
                f"{method} {path.split('?', 1)[0]} on {self.endpoint.label} did not answer with JSON",
                "body",
                response.status,
            ) from error

    def log_in(
        self,
        api_key: str | None = None,
        user: str | None = None,
        password: str | None = None,
        account_id: str | None = None,
    ) -> None:
        """Opens a session [doc: POST /sys/v1/session/auth]: an app with its API key, or a local user with a password
        (who then selects an account). Raises :class:`ApiError`."""
        basic = api_key or base64.b64encode(f"{user}:{password}".encode()).decode()
        response = self.request("POST", "/sys/v1/session/auth", headers={"Authorization": "Basic " + basic})
        if not 200 <= response.status <= 299:
            raise ApiError(
                f"Logging in on {self.endpoint.label} was answered with {response.status}",
                "status",
                response.status,
                _LOGIN_REMEDIES.get(response.status, "The service cannot serve log-ins: see its health first."),
            )
        try:
            token = json.loads(response.body)["access_token"]
        except (ValueError, KeyError, TypeError) as error:
            raise ApiError(f"Logging in on {self.endpoint.label} gave no session", "body", response.status) from error
        self._bearer = str(token)
        if account_id:
            self.call("POST", "/sys/v1/session/select_account", {"acct_id": account_id})

    def log_out(self) -> None:
        """Ends the session; a session that cannot be ended expires by itself, so nothing is raised."""
        if self._bearer:
            with contextlib.suppress(ApiError):
                self.request("POST", "/sys/v1/session/terminate")
            self._bearer = None

    def health_answers(self) -> dict[str, health.Answer]:
        """The three answers *plain, quorum, all*; no other question is ever sent."""
        return {name: self.ask_health(name) for name in health.QUESTIONS}

    def ask_health(self, name: str) -> health.Answer:
        """One of the three answers."""
        started = time.monotonic()
        try:
            status: int | None = self.request("GET", "/sys/v1/health" + health.QUESTIONS[name]).status
            failure = None
        except ApiError as error:
            status, failure = None, error.kind
        return health.Answer(status, failure, time.monotonic() - started)

    def version(self) -> dict[str, Any]:
        """``version``, ``api_version``, ``server_mode`` … [doc: GET /sys/v1/version]. Raises :class:`ApiError`."""
        found = self.call("GET", "/sys/v1/version")
        if not isinstance(found, dict) or not isinstance(found.get("version"), str):
            raise ApiError(f"GET /sys/v1/version on {self.endpoint.label} holds no version", "body", 200)
        return found


_REMEDIES = {
    "tls": "Is this the right host? Give ca_path the authority that signed the API certificate, and host its name.",
    "unresolved": "Check the name and the resolver of this host.",
}
_STATUS_REMEDIES = {
    401: "The session is not valid: check the credential.",
    403: "The app or user may not do this: check its permissions in the group.",
    404: "There is no such object: check the name and the group of the app.",
}
_LOGIN_REMEDIES = {
    401: "The credential is wrong, or belongs to another cluster.",
    403: "The credential may not log in: is the app or user enabled?",
}


def _kind(error: Exception) -> str:
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return "reset"
    if isinstance(error, ssl.SSLError):
        return "tls"
    if isinstance(error, (socket.timeout, TimeoutError)):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, socket.gaierror):
        return "unresolved"
    if isinstance(error, (ConnectionError, http.client.RemoteDisconnected, http.client.IncompleteRead)):
        return "reset"
    if isinstance(error, http.client.HTTPException):
        return "body"
    return "no_route"


def _words(kind: str, error: Exception) -> str:
    words = {
        "tls": "the certificate could not be verified",
        "timeout": "no answer in time",
        "refused": "the connection was refused",
        "unresolved": "the name does not resolve",
        "reset": "the connection broke",
        "body": "the answer is not HTTP",
        "no_route": "no connection",
    }[kind]
    detail = getattr(error, "verify_message", "") if kind == "tls" else ""
    return words + (f" ({detail})" if detail else "")
