# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's REST API: one process on each member, started as ``python3 -m standin.api``.

Port 443 speaks the published paths, verbs, bodies and status codes [code: DSM OpenAPI description]; errors are a status
and a plain sentence, as there. Port 4444 has the one address of the internal API that is publicly known [doc: CMK
rotation article]. The process listens at once and opens the master key behind that: until a sealed copy opens it is
``starting`` (no database yet) or ``sealed`` (no copy opens here), health is 500 and everything else 503.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import datetime
import json
import logging
import queue
import re
import signal
import ssl
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from standin import sealing
from standin.crypto import BadRequest
from standin.db import StoreUnavailable
from standin.vault import Caller, Conflict, NotAllowed, NotAuthenticated, NotFound, Vault

API_PORT = 443
CLUSTER_PORT = 4444
API_VERSION = "v1"
TLS_DIRECTORY = Path("/etc/standin/tls")
BANNER = "DSM-stand-in"
_MAX_BODY = 4 << 20
_RETRY_CONNECT_S = 0.5
_RETRY_SEALED_S = 3.0
_CHECK = ("meta", "cmk", "check")
_PLAIN_HEALTH = {None: "local_quorum", "quorum": "quorum", "all": "all"}

log = logging.getLogger("standin.api")


class NotServing(Exception):
    """The master key is not open here."""


def open_master_key(store: Any, platform_secret: bytes, version: str) -> sealing.RowCipher | None:
    """Try every sealed copy in the database; return the cipher that also opens the rows, or None.

    The check row is written by the first member that opens a fresh database; a copy of an older generation opens, but
    its cipher does not open the check row, and so does not count.
    """
    for copy in store.sealed_copies():
        opened = sealing.unseal(copy.blob, platform_secret, version)
        if opened is None:
            continue
        cipher = sealing.RowCipher(*opened)
        if store.get(*_CHECK) is None:
            store.put_new(*_CHECK, cipher.close_row(*_CHECK, b"open"))
        with contextlib.suppress(sealing.CannotOpen):
            cipher.open_row(*_CHECK, store.get(*_CHECK) or b"")
            return cipher
    return None


class Backend:
    """What the process knows: the database, and the vault once the master key is open."""

    def __init__(self, version: str, faults: Callable[[str], dict[str, Any] | None]) -> None:
        self.version = version
        self.faults = faults
        self.state = "starting"
        self._store: Any = None
        self._vault: Vault | None = None
        self._audit: queue.Queue[tuple[Caller | None, str]] = queue.Queue(maxsize=10_000)
        self._health_cache: dict[str | None, tuple[int, str]] = {}

    def open_forever(self, connect: Callable[[], Any], platform_secret: bytes) -> None:
        """Connect and unseal, again and again until it works; runs in a thread of its own."""
        while True:
            try:
                if self._store is None:
                    self._store = connect()
                cipher = open_master_key(self._store, platform_secret, self.version)
            except StoreUnavailable as error:
                if self.state != "starting":
                    log.warning("the database does not answer: %s", error)
                self.state = "starting"
                time.sleep(_RETRY_CONNECT_S)
                continue
            if cipher is not None:
                self.serve(self._store, cipher)
                return
            if self.state != "sealed":
                log.warning("SEALED: no copy of the cluster master key in the database opens on this node")
            self.state = "sealed"
            time.sleep(_RETRY_SEALED_S)

    def serve(self, store: Any, cipher: sealing.RowCipher) -> None:
        """Begin to answer."""
        self._store, self._vault = store, Vault(store, cipher)
        self.state = "serving"
        threading.Thread(target=self._write_audit, name="audit", daemon=True).start()
        log.warning("serving: the cluster master key is open")

    def vault(self) -> Vault:
        """Return the vault, or say why there is none."""
        if self._vault is None:
            raise NotServing(f"{BANNER}: {self.state}: the cluster master key is not open on this node")
        return self._vault

    def remember(self, caller: Caller | None, action: str) -> None:
        """Queue an audit record: crypto operations go on when the database takes no writes."""
        with contextlib.suppress(queue.Full):
            self._audit.put_nowait((caller, action))

    def _write_audit(self) -> None:
        while True:
            caller, action = self._audit.get()
            with contextlib.suppress(StoreUnavailable):
                self.vault().audit(caller, action)

    def health(self, consistency: str | None) -> tuple[int, str]:
        """Return status and text of a health answer; the database itself is asked each time."""
        if consistency not in _PLAIN_HEALTH:
            return 400, f"unknown consistency {consistency}"
        fault = self.faults("api-health") or {}
        answer = str(fault.get("answer", ""))
        if answer == "cached" and consistency in self._health_cache:
            return self._health_cache[consistency]
        if answer == "flapping":
            answer = "500" if int(time.monotonic()) % 2 else "204"
        if answer.isdigit():
            return int(answer), "" if answer == "204" else f"{BANNER}: fault"
        result = self._probe(_PLAIN_HEALTH[consistency])
        self._health_cache[consistency] = result
        return result

    def _probe(self, level: str) -> tuple[int, str]:
        if self._vault is None:
            return 500, f"{BANNER}: {self.state}"
        try:
            self._store.probe(level)
        except StoreUnavailable as error:
            return 500, f"{BANNER}: {error}"
        return 204, ""

    def version_view(self) -> dict[str, Any]:
        """Return the VersionResponse."""
        return {"version": self.version, "api_version": API_VERSION, "server_mode": "Sgx"}


# -- routes --------------------------------------------------------------------------------------------------------
class Request:
    """One request as the routes see it."""

    def __init__(self, backend: Backend, path: str, headers: Any, read_body: Callable[[], bytes]) -> None:
        parsed = urllib.parse.urlsplit(path)
        self.backend = backend
        self.path = parsed.path
        self.query = dict(urllib.parse.parse_qsl(parsed.query, keep_blank_values=True))
        self._headers = headers
        self._read_body = read_body
        self.who: Caller | None = None

    def json(self) -> Any:
        """Return the body, an object where there is one; {} when there is none."""
        data = self._read_body()
        try:
            body = json.loads(data) if data else {}
        except ValueError as error:
            raise BadRequest("the body is not JSON") from error
        if not isinstance(body, dict):
            raise BadRequest("the body is not a JSON object")
        return body

    def basic(self) -> tuple[str, str] | None:
        """Return name and secret of a Basic authorization."""
        scheme, _, value = (self._headers.get("Authorization") or "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            name, colon, secret = base64.b64decode(value.strip(), validate=True).decode().partition(":")
        except (binascii.Error, ValueError) as error:
            raise NotAuthenticated("the Authorization header is not Basic base64(name:secret)") from error
        if not colon:
            raise NotAuthenticated("the Authorization header is not Basic base64(name:secret)")
        return name, secret

    def caller(self) -> Caller:
        """Return who asks, by bearer token or by an app's API key."""
        vault = self.backend.vault()
        scheme, _, value = (self._headers.get("Authorization") or "").partition(" ")
        if scheme.lower() == "bearer":
            self.who = vault.caller_of_token(value.strip())
            return self.who
        basic = self.basic()
        if basic is None:
            raise NotAuthenticated("authenticate with a bearer token or an API key")
        self.who = vault.log_in(*basic)
        if self.who.kind != "app":
            raise NotAuthenticated("a user starts a session first")
        return self.who


def _authenticate(request: Request) -> Any:
    vault, basic, body = request.backend.vault(), request.basic(), request.json()
    if basic is None and body.get("method") == "password":
        basic = str(body.get("email", "")), str(body.get("password", ""))
    if basic is None:
        raise NotAuthenticated("authenticate with a user's password or an API key")
    request.who = vault.log_in(*basic)
    return vault.open_session(request.who)


def _sign_up(request: Request) -> Any:
    return request.backend.vault().sign_up(request.json())


def _export(request: Request) -> Any:
    return request.backend.vault().export_key(request.caller(), request.json())


def _info(request: Request) -> Any:
    return request.backend.vault().key(request.caller(), request.json())


def _with_body(name: str, **options: Any) -> Callable[[Request], Any]:
    return lambda request: getattr(request.backend.vault(), name)(request.caller(), request.json(), **options)


def _plain(name: str) -> Callable[[Request], Any]:
    return lambda request: getattr(request.backend.vault(), name)(request.caller())


def _of_id(name: str) -> Callable[[Request, str], Any]:
    return lambda request, item: getattr(request.backend.vault(), name)(request.caller(), item)


def _keys(request: Request) -> Any:
    return request.backend.vault().keys(request.caller(), request.query)


def _update_key(request: Request, kid: str) -> Any:
    return request.backend.vault().update_key(request.caller(), kid, request.json())


_ID = r"([0-9a-fA-F-]{36})"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
    (method, re.compile(f"^{path}$"), handler)
    for method, path, handler in (
        ("GET", "/sys/v1/version", lambda request: request.backend.version_view()),
        ("GET", "/sys/v1/info", lambda request: request.backend.version_view()),
        ("POST", "/sys/v1/session/auth", _authenticate),
        ("POST", "/sys/v1/session/refresh", _plain("refresh")),
        ("POST", "/sys/v1/session/terminate", _plain("terminate")),
        ("POST", "/sys/v1/session/select_account", _with_body("select_account")),
        ("POST", "/sys/v1/users", _sign_up),
        ("GET", "/sys/v1/users", _plain("users")),
        ("GET", "/sys/v1/users/accounts", _plain("user_accounts")),
        ("GET", f"/sys/v1/users/{_ID}", _of_id("user")),
        ("POST", "/sys/v1/accounts", _with_body("create_account")),
        ("GET", "/sys/v1/accounts", _plain("accounts")),
        ("GET", f"/sys/v1/accounts/{_ID}", _of_id("account")),
        ("POST", "/sys/v1/groups", _with_body("create_group")),
        ("GET", "/sys/v1/groups", _plain("groups")),
        ("GET", f"/sys/v1/groups/{_ID}", _of_id("group")),
        ("POST", "/sys/v1/apps", _with_body("create_app")),
        ("GET", "/sys/v1/apps", _plain("apps")),
        ("GET", f"/sys/v1/apps/{_ID}", _of_id("app")),
        ("DELETE", f"/sys/v1/apps/{_ID}", _of_id("delete_app")),
        ("GET", f"/sys/v1/apps/{_ID}/credential", _of_id("app_credential")),
        ("POST", "/crypto/v1/keys", _with_body("create_key")),
        ("PUT", "/crypto/v1/keys", _with_body("create_key", imported=True)),
        ("GET", "/crypto/v1/keys", _keys),
        ("POST", "/crypto/v1/keys/info", _info),
        ("POST", "/crypto/v1/keys/export", _export),
        ("PATCH", f"/crypto/v1/keys/{_ID}", _update_key),
        ("DELETE", f"/crypto/v1/keys/{_ID}", _of_id("delete_key")),
        ("POST", "/crypto/v1/encrypt", _with_body("encrypt")),
        ("POST", "/crypto/v1/decrypt", _with_body("decrypt")),
        ("POST", "/crypto/v1/sign", _with_body("sign")),
        ("POST", "/crypto/v1/verify", _with_body("verify")),
        ("POST", "/crypto/v1/mac", _with_body("mac")),
        ("POST", "/crypto/v1/macverify", _with_body("mac_verify")),
    )
]
CLUSTER_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Any]]] = [
    ("GET", re.compile("^/cluster/v1/key$"), lambda request: {"fetched_proposal_hash": None})
]
_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (BadRequest, 400),
    (NotAuthenticated, 401),
    (NotAllowed, 403),
    (NotFound, 404),
    (Conflict, 409),
    (StoreUnavailable, 503),
    (NotServing, 503),
    (sealing.CannotOpen, 500),
)
_ERRORS = tuple(kind for kind, _ in _STATUS)
_COLLECTIONS = ("/crypto/v1/keys", "/sys/v1/users", "/sys/v1/accounts", "/sys/v1/groups", "/sys/v1/apps")


def respond(
    routes: list[tuple[str, re.Pattern[str], Callable[..., Any]]], method: str, request: Request
) -> tuple[int, Any]:
    """Return status and body (an object, a sentence, or None for an empty one)."""
    if method == "GET" and request.path == "/sys/v1/health" and routes is ROUTES:
        status, text = request.backend.health(request.query.get("consistency"))
        return status, text or None
    known = False
    for verb, pattern, handler in routes:
        match = pattern.match(request.path)
        if not match:
            continue
        known = True
        if verb != method:
            continue
        try:
            result = handler(request, *match.groups())
        except _ERRORS as error:
            status = next(code for kind, code in _STATUS if isinstance(error, kind))
            return status, str(error)
        if method != "GET":
            request.backend.remember(request.who, f"{method} {request.path}")
        if result is None:
            return 204, None
        return (201 if method in ("POST", "PUT") and request.path in _COLLECTIONS else 200), result
    return (405, "the method is not allowed here") if known else (404, "there is nothing at this address")


# -- HTTP ----------------------------------------------------------------------------------------------------------
class Handler(BaseHTTPRequestHandler):
    """One TLS connection; the handshake is made in the connection's own thread."""

    protocol_version = "HTTP/1.1"
    server_version = BANNER
    sys_version = ""
    timeout = 60
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    server: Server

    def setup(self) -> None:
        """Make the TLS handshake, then what every handler does."""
        self.request.settimeout(self.timeout)
        self.request = self.server.tls_context().wrap_socket(self.request, server_side=True)
        super().setup()

    def _body(self) -> bytes:
        text = self.headers.get("Content-Length") or "0"
        if not text.isdigit() or int(text) > _MAX_BODY:
            self.close_connection = True
            raise BadRequest("the body is too long or of unknown length")
        return self.rfile.read(int(text))

    def _serve(self) -> None:
        body: bytes | None = None

        def read_body() -> bytes:
            nonlocal body
            if body is None:
                body = self._body()
            return body

        request = Request(self.server.backend, self.path, self.headers, read_body)
        status, answer = respond(self.server.routes, self.command, request)
        with contextlib.suppress(BadRequest):
            read_body()
        if isinstance(answer, str):
            data, kind = answer.encode(), "text/plain; charset=utf-8"
        else:
            data, kind = b"" if answer is None else json.dumps(answer).encode(), "application/json"
        self.send_response(status)
        if status // 100 == 3:
            self.send_header("Location", "/")
        if data:
            self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status != 204:
            self.wfile.write(data)
        if status >= 500 or request.path != "/sys/v1/health":
            log.info("%s %s %d", self.command, request.path, status)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; ``_serve`` logs what matters, without queries and headers."""


class Server(ThreadingHTTPServer):
    """A TLS server whose certificate can be spoiled by a fault."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], backend: Backend, routes: list[Any], context: ssl.SSLContext) -> None:
        super().__init__(address, Handler)
        self.backend = backend
        self.routes = routes
        self._context = context
        self._wrong: ssl.SSLContext | None = None

    def tls_context(self) -> ssl.SSLContext:
        """Return the node's certificate, or a wrong one while the fault ``api-certificate`` is set."""
        if self.backend.faults("api-certificate") is None:
            return self._context
        if self._wrong is None:
            self._wrong = wrong_certificate_context()
        return self._wrong

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a broken connection in a line; anything else with its traceback."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            return
        log.exception("request from %s failed", client_address[0])


def tls_context(directory: Path) -> ssl.SSLContext:
    """Return the server context of the node's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(directory / "api.crt", directory / "api.key")
    return context


def wrong_certificate_context() -> ssl.SSLContext:
    """Return a context with a fresh self-signed certificate of another name."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "not-this-one.invalid")])
    start = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) - datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    certificate = (
        builder.not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("not-this-one.invalid")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "api.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (Path(directory) / "api.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return tls_context(Path(directory))


def main() -> int:
    """Run until SIGTERM."""
    from standin import db, faults, node

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cassandra").setLevel(logging.CRITICAL)
    log.setLevel(logging.INFO)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    cfg = node.load()
    backend = Backend(cfg.version, faults.active)
    context = tls_context(TLS_DIRECTORY)
    for address, port, routes in (("0.0.0.0", API_PORT, ROUTES), (cfg.address, CLUSTER_PORT, CLUSTER_ROUTES)):
        server = Server((address, port), backend, routes, context)
        threading.Thread(target=server.serve_forever, args=(3600,), name=f"port-{port}", daemon=True).start()
    log.warning("%s %s listens on port %d; nothing here is the real product", BANNER, cfg.version, API_PORT)
    threading.Thread(
        target=backend.open_forever,
        args=(lambda: db.connect(cfg.address, 5.0), node.platform_secret(cfg)),
        name="opener",
        daemon=True,
    ).start()
    stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
