# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's API over real TLS in this process, on a database in memory, with a certificate that verifies."""

from __future__ import annotations

import base64
import copy
import datetime
import http.client
import ipaddress
import json
import ssl
import threading
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from memory_store import MemoryStore
from standin import api, sealing

HOST = "dsm.example.test"
VERSION = "5.4.2031-standin"
_PLATFORM = b"p" * 32


class Site:
    """One endpoint. ``store.quorum`` and ``store.all`` decide its health; ``faults`` are the stand-in's."""

    def __init__(self, directory: Path, store: MemoryStore | None = None) -> None:
        self.store = store or MemoryStore()
        self.faults: dict[str, dict[str, Any]] = {}
        self.backend = api.Backend(VERSION, self.faults.get)
        self.ca_path = str(directory / "ca.crt")
        if not (directory / "ca.crt").exists():
            make_certificates(directory)
        self._server = api.Server(("127.0.0.1", 0), self.backend, api.ROUTES, api.tls_context(directory))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.port = int(self._server.server_address[1])
        self.api_key = self.account_id = self.group_id = ""

    def open(self) -> Site:
        """Makes the master key, or opens the one that the store holds a copy of."""
        if not self.store.sealed_copies():
            self.store.put_sealed_copy("n1", 1, sealing.seal(sealing.new_cmk(), 1, _PLATFORM, VERSION))
        self.backend.open_forever(lambda: self.store, _PLATFORM)
        return self

    def with_app(self) -> Site:
        """Makes an account with an app, and keeps its API key."""
        user = {"user_email": "ops@example.test", "user_password": "correct horse"}
        self._call("POST", "/sys/v1/users", user)
        basic = "Basic " + base64.b64encode(b"ops@example.test:correct horse").decode()
        bearer = "Bearer " + self._call("POST", "/sys/v1/session/auth", None, basic)["access_token"]
        account = self._call("POST", "/sys/v1/accounts", {"name": "ACME"}, bearer)
        self._call("POST", "/sys/v1/session/select_account", {"acct_id": account["acct_id"]}, bearer)
        group = self._call("POST", "/sys/v1/groups", {"name": "canaries"}, bearer)["group_id"]
        app = self._call("POST", "/sys/v1/apps", {"name": "canary", "add_groups": {group: []}}, bearer)["app_id"]
        secret = self._call("GET", f"/sys/v1/apps/{app}/credential", None, bearer)["credential"]["secret"]
        self.api_key = base64.b64encode(f"{app}:{secret}".encode()).decode()
        self.account_id, self.group_id = account["acct_id"], group
        return self

    def copy_of_database(self) -> MemoryStore:
        """What a backup taken now holds."""
        return copy.deepcopy(self.store)

    def endpoint(self) -> dict[str, Any]:
        """For module options."""
        return {"address": "127.0.0.1", "port": self.port, "host": HOST}

    def close(self) -> None:
        """Nobody answers any more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def _call(self, method: str, path: str, body: Any, authorization: str = "") -> Any:
        context = ssl.create_default_context(cafile=self.ca_path)
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=context)
        headers = {"Authorization": authorization} if authorization else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if answer.status // 100 != 2:
            raise RuntimeError(f"{method} {path}: {answer.status} {text}")
        return json.loads(text) if text else None


def make_certificates(directory: Path) -> None:
    """A CA and a certificate of HOST that it signed: ca.crt, api.crt, api.key."""
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    end = start + datetime.timedelta(days=3)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Test CA")])
    ca = (
        x509.CertificateBuilder(ca_name, ca_name, ca_key.public_key(), x509.random_serial_number(), start, end)
        .add_extension(x509.BasicConstraints(True, None), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    names = [x509.DNSName(HOST), x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = (
        x509.CertificateBuilder(ca_name, name, key.public_key(), x509.random_serial_number(), start, end)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "ca.crt").write_bytes(ca.public_bytes(pem))
    (directory / "api.crt").write_bytes(leaf.public_bytes(pem))
    (directory / "api.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
