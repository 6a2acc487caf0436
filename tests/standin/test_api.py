# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The API over real TLS and HTTP, on a database in memory."""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from standin import api, sealing

VERSION = "5.4.2031-standin"
PLATFORM = b"p" * 32


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


class Client:
    """Speaks to the server under test; ``api_key`` or ``token`` authenticates."""

    def __init__(self, port: int) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=120, context=context)
        self.authorization = ""

    def call(self, method: str, path: str, body: Any = None, authorization: str | None = None) -> tuple[int, Any]:
        headers = {"Authorization": self.authorization if authorization is None else authorization}
        data = None if body is None else json.dumps(body)
        self.connection.request(method, path, data, {key: value for key, value in headers.items() if value})
        answer = self.connection.getresponse()
        text = answer.read().decode()
        kind = answer.headers.get("Content-Type", "")
        return answer.status, json.loads(text) if kind == "application/json" else text

    def ok(self, method: str, path: str, body: Any = None) -> Any:
        status, answer = self.call(method, path, body)
        assert status // 100 == 2, (method, path, status, answer)
        return answer


@pytest.fixture
def faults() -> dict[str, dict[str, Any]]:
    return {}


@pytest.fixture
def backend(faults: dict[str, dict[str, Any]]) -> api.Backend:
    return api.Backend(VERSION, faults.get)


@pytest.fixture
def open_backend(store: Any, backend: api.Backend) -> api.Backend:
    cmk = sealing.new_cmk()
    store.put_sealed_copy("n1", 1, sealing.seal(cmk, 1, PLATFORM, VERSION))
    backend.open_forever(lambda: store, PLATFORM)
    return backend


def serve(backend: api.Backend, routes: list[Any]) -> Iterator[Client]:
    server = api.Server(("127.0.0.1", 0), backend, routes, api.wrong_certificate_context())
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    client = Client(server.server_address[1])
    yield client
    client.connection.close()
    server.shutdown()
    server.server_close()
    thread.join(5)


@pytest.fixture
def client(backend: api.Backend) -> Iterator[Client]:
    yield from serve(backend, api.ROUTES)


@pytest.fixture
def admin(open_backend: api.Backend, client: Client) -> Client:
    """A logged-in administrator with an account selected."""
    client.ok("POST", "/sys/v1/users", {"user_email": "Ops@example.com", "user_password": "correct horse"})
    session = client.ok("POST", "/sys/v1/session/auth", {"method": "password", "email": "ops@example.com",
                                                         "password": "correct horse"})  # fmt: skip
    client.authorization = f"Bearer {session['access_token']}"
    account = client.ok("POST", "/sys/v1/accounts", {"name": "ACME"})
    client.ok("POST", "/sys/v1/session/select_account", {"acct_id": account["acct_id"]})
    return client


@pytest.fixture
def app(admin: Client) -> Client:
    """The same client with the API key of an app in one group."""
    group = admin.ok("POST", "/sys/v1/groups", {"name": "canaries"})
    app = admin.ok("POST", "/sys/v1/apps", {"name": "canary", "add_groups": {group["group_id"]: ["ENCRYPT"]}})
    secret = admin.ok("GET", f"/sys/v1/apps/{app['app_id']}/credential")["credential"]["secret"]
    admin.authorization = "Basic " + b64(f"{app['app_id']}:{secret}".encode())
    return admin


def test_starting_answers_health_500_and_refuses_log_ins(client: Client) -> None:
    assert client.call("GET", "/sys/v1/health")[0] == 500
    status, text = client.call("POST", "/sys/v1/session/auth", {}, "Basic " + b64(b"a@b:c"))
    assert status == 503
    assert "stand-in" in text


def test_sealed_is_a_state_of_its_own(store: Any, backend: api.Backend, client: Client) -> None:
    store.put_sealed_copy("n1", 1, sealing.seal(sealing.new_cmk(), 1, b"another platform", VERSION))
    threading.Thread(target=backend.open_forever, args=(lambda: store, PLATFORM), daemon=True).start()
    for _ in range(6000):
        if backend.state == "sealed":
            break
        threading.Event().wait(0.02)
    assert backend.state == "sealed"
    assert [client.call("GET", f"/sys/v1/health{query}")[0] for query in ("", "?consistency=quorum")] == [500, 500]
    assert client.call("POST", "/sys/v1/session/auth", {}, "Basic " + b64(b"a@b:c"))[0] == 503
    assert client.call("GET", "/sys/v1/version")[1]["version"] == VERSION


def test_health_is_the_database_s(store: Any, open_backend: api.Backend, client: Client) -> None:
    def answers() -> list[int]:
        return [client.call("GET", f"/sys/v1/health{query}")[0] for query in
                ("", "?consistency=quorum", "?consistency=all")]  # fmt: skip

    assert answers() == [204, 204, 204]
    store.all = False
    assert answers() == [204, 204, 500]
    store.quorum = False
    assert answers() == [204, 500, 500]
    assert client.call("GET", "/sys/v1/health?consistency=one")[0] == 400


@pytest.mark.parametrize(("answer", "expected"), [("500", 500), ("302", 302), ("200", 200)])
def test_health_faults_bite(
    open_backend: api.Backend, client: Client, faults: dict[str, dict[str, Any]], answer: str, expected: int
) -> None:
    faults["api-health"] = {"answer": answer}
    assert client.call("GET", "/sys/v1/health?consistency=all")[0] == expected


def test_a_cached_health_answer_hides_a_loss(
    store: Any, open_backend: api.Backend, client: Client, faults: dict[str, dict[str, Any]]
) -> None:
    assert client.call("GET", "/sys/v1/health?consistency=quorum")[0] == 204
    faults["api-health"] = {"answer": "cached"}
    store.quorum = False
    assert client.call("GET", "/sys/v1/health?consistency=quorum")[0] == 204


def test_version_says_stand_in(client: Client) -> None:
    answer = client.ok("GET", "/sys/v1/version")
    assert answer == {"version": VERSION, "api_version": "v1", "server_mode": "Sgx"}
    assert client.ok("GET", "/sys/v1/info")["version"] == VERSION


def test_the_internal_port_knows_one_address_and_no_generation(open_backend: api.Backend) -> None:
    for client in serve(open_backend, api.CLUSTER_ROUTES):
        assert client.ok("GET", "/cluster/v1/key") == {"fetched_proposal_hash": None}
        assert client.call("POST", "/cluster/v1/key")[0] == 405
        assert client.call("GET", "/sys/v1/health")[0] == 404


def test_log_in_and_account(admin: Client) -> None:
    users = admin.ok("GET", "/sys/v1/users")
    assert [user["user_email"] for user in users] == ["ops@example.com"]
    assert "password" not in users[0]
    roles = admin.ok("GET", "/sys/v1/users/accounts")
    assert list(roles.values()) == [["ACCOUNTADMINISTRATOR", "STATEENABLED"]]
    assert admin.call("POST", "/sys/v1/accounts", {"name": "ACME"})[0] == 409
    assert admin.call("POST", "/sys/v1/users", {"user_email": "OPS@example.com", "user_password": "x" * 9})[0] == 409
    assert admin.call("POST", "/sys/v1/session/auth", {}, "Basic " + b64(b"ops@example.com:wrong"))[0] == 401


def test_a_terminated_session_is_over(admin: Client) -> None:
    assert admin.call("POST", "/sys/v1/session/refresh")[0] == 204
    assert admin.call("POST", "/sys/v1/session/terminate")[0] == 204
    assert admin.call("GET", "/sys/v1/users")[0] == 401


def test_nobody_without_credentials(open_backend: api.Backend, client: Client) -> None:
    for authorization in ("", "Bearer abc", "Bearer " + b64(bytes(80)), "Basic ???", "Basic " + b64(b"no colon")):
        assert client.call("GET", "/crypto/v1/keys", None, authorization)[0] == 401


def test_an_api_key_works_directly_and_in_a_session(app: Client) -> None:
    assert app.ok("GET", "/crypto/v1/keys") == []
    session = app.ok("POST", "/sys/v1/session/auth")
    assert session["token_type"] == "Bearer"
    assert app.call("GET", "/crypto/v1/keys", None, f"Bearer {session['access_token']}") == (200, [])
    assert app.call("POST", "/sys/v1/groups", {"name": "more"})[0] == 403


def test_the_life_of_a_key(app: Client) -> None:
    made = app.ok("POST", "/crypto/v1/keys", {"name": "k", "obj_type": "AES", "custom_metadata": {"sequence": "1"}})
    assert made["key_size"] == 256
    assert "material" not in made
    assert "value" not in made
    assert app.call("POST", "/crypto/v1/keys", {"name": "k", "obj_type": "AES"})[0] == 409
    assert app.ok("POST", "/crypto/v1/keys/info", {"name": "k"}) == made
    changed = app.ok("PATCH", f"/crypto/v1/keys/{made['kid']}", {"custom_metadata": {"sequence": "2"}})
    assert changed == dict(made, custom_metadata={"sequence": "2"})
    assert app.ok("GET", "/crypto/v1/keys?name=k") == [changed]
    assert app.ok("GET", "/crypto/v1/keys?custom_metadata.sequence=1") == []
    listing = app.ok("GET", "/crypto/v1/keys?with_metadata=true&limit=0")
    assert listing == {"metadata": {"total_count": 1, "filtered_count": 1}, "items": []}
    assert app.call("POST", "/crypto/v1/keys/export", {"name": "k"})[0] == 403
    assert app.call("DELETE", f"/crypto/v1/keys/{made['kid']}")[0] == 204
    assert app.call("POST", "/crypto/v1/keys/info", {"name": "k"})[0] == 404


@pytest.mark.parametrize("mode", ["GCM", "CBC", "CTR", "ECB"])
def test_aes_round_trips_and_refuses_another_ciphertext(app: Client, mode: str) -> None:
    key = {"kid": app.ok("POST", "/crypto/v1/keys", {"name": "k", "obj_type": "AES"})["kid"]}
    request = {"key": key, "alg": "AES", "mode": mode, "plain": b64(b"attack at dawn!")}
    sealed = app.ok("POST", "/crypto/v1/encrypt", request)
    answer = {field: sealed[field] for field in ("cipher", "iv", "tag") if field in sealed}
    assert app.ok("POST", "/crypto/v1/decrypt", {"key": key, "mode": mode, **answer})["plain"] == request["plain"]
    if mode == "GCM":
        spoiled = dict(answer, tag=b64(bytes(16)))
        assert app.call("POST", "/crypto/v1/decrypt", {"key": key, "mode": mode, **spoiled})[0] == 400


def test_known_answers(app: Client) -> None:
    # FIPS 197 C.3, RFC 4231 case 2, NIST GCM test case 16: what the API computes is the algorithm of that name.
    value = bytes.fromhex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f")
    made = app.ok("PUT", "/crypto/v1/keys", {"name": "aes", "obj_type": "AES", "value": b64(value)})
    assert made["origin"] == "External"
    plain = bytes.fromhex("00112233445566778899aabbccddeeff")
    answer = app.ok("POST", "/crypto/v1/encrypt", {"key": {"name": "aes"}, "alg": "AES", "mode": "ECB",
                                                   "plain": b64(plain)})  # fmt: skip
    assert base64.b64decode(answer["cipher"])[:16].hex() == "8ea2b7ca516745bfeafc49904b496089"
    app.ok("PUT", "/crypto/v1/keys", {"name": "mac", "obj_type": "HMAC", "value": b64(b"Jefe")})
    request = {"key": {"name": "mac"}, "alg": "SHA256", "data": b64(b"what do ya want for nothing?")}
    mac = app.ok("POST", "/crypto/v1/mac", request)["mac"]
    assert base64.b64decode(mac).hex() == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert app.ok("POST", "/crypto/v1/macverify", dict(request, mac=mac))["result"] is True
    assert app.ok("POST", "/crypto/v1/macverify", dict(request, mac=b64(bytes(32))))["result"] is False
    gcm_key = bytes.fromhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")
    app.ok("PUT", "/crypto/v1/keys", {"name": "gcm", "obj_type": "AES", "value": b64(gcm_key)})
    answer = app.ok("POST", "/crypto/v1/encrypt", {
        "key": {"name": "gcm"}, "alg": "AES", "mode": "GCM", "iv": b64(bytes.fromhex("cafebabefacedbaddecaf888")),
        "plain": b64(bytes.fromhex(
            "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
            "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39")),
        "ad": b64(bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2"))})  # fmt: skip
    assert base64.b64decode(answer["tag"]).hex() == "76fc6ece0f4e1768cddf8853bb2d551b"


@pytest.mark.parametrize(
    ("make", "mode"),
    [
        ({"obj_type": "EC", "elliptic_curve": "NistP256"}, None),
        ({"obj_type": "EC", "elliptic_curve": "Ed25519"}, None),
        ({"obj_type": "RSA", "key_size": 2048}, {"PKCS1_V15": {}}),
        ({"obj_type": "RSA", "key_size": 2048}, {"PSS": {"mgf": {"mgf1": {"hash": "SHA256"}}}}),
    ],
)
def test_signatures(app: Client, make: dict[str, Any], mode: Any) -> None:
    app.ok("POST", "/crypto/v1/keys", {"name": "signer", **make})
    request = {"key": {"name": "signer"}, "hash_alg": "SHA256", "data": b64(b"message"), "mode": mode}
    signature = app.ok("POST", "/crypto/v1/sign", request)["signature"]
    assert app.ok("POST", "/crypto/v1/verify", dict(request, signature=signature))["result"] is True
    other = dict(request, data=b64(b"another"), signature=signature)
    assert app.ok("POST", "/crypto/v1/verify", other)["result"] is False


def test_rsa_encryption_round_trips(app: Client) -> None:
    app.ok("POST", "/crypto/v1/keys", {"name": "rsa", "obj_type": "RSA", "key_size": 2048})
    for mode in (None, {"PKCS1_V15": {}}, {"OAEP": {"mgf": {"mgf1": {"hash": "SHA1"}}}}):
        request = {"key": {"name": "rsa"}, "alg": "RSA", "mode": mode, "plain": b64(b"short")}
        cipher = app.ok("POST", "/crypto/v1/encrypt", request)["cipher"]
        body = {"key": {"name": "rsa"}, "alg": "RSA", "mode": mode, "cipher": cipher}
        assert app.ok("POST", "/crypto/v1/decrypt", body)["plain"] == b64(b"short")


def test_writes_are_refused_without_quorum_and_reads_go_on(store: Any, app: Client) -> None:
    app.ok("POST", "/crypto/v1/keys", {"name": "k", "obj_type": "AES"})
    store.quorum = False
    assert app.call("POST", "/crypto/v1/keys", {"name": "k2", "obj_type": "AES"})[0] == 503
    assert app.call("POST", "/sys/v1/session/auth")[0] == 200
    request = {"key": {"name": "k"}, "alg": "AES", "mode": "GCM", "plain": b64(b"x")}
    assert app.call("POST", "/crypto/v1/encrypt", request)[0] == 200


def test_no_plaintext_reaches_the_database(store: Any, app: Client) -> None:
    app.ok("POST", "/crypto/v1/keys", {"name": "visible-name", "obj_type": "AES", "description": "visible-words"})
    everything = b"".join(store.rows.values()) + repr(list(store.rows)).encode()
    for word in (b"visible-name", b"visible-words", b"ops@example.com", b"ACME", b"correct horse"):
        assert word not in everything


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/nothing", None, 404),
        ("DELETE", "/sys/v1/version", None, 405),
        ("POST", "/crypto/v1/keys", {"obj_type": "AES"}, 400),
        ("POST", "/crypto/v1/keys", {"name": "k", "obj_type": "AES", "key_size": 100}, 400),
        ("POST", "/crypto/v1/keys", {"name": "k", "obj_type": "EC", "elliptic_curve": "Round"}, 400),
        ("POST", "/crypto/v1/keys", {"name": "k", "obj_type": "AES", "custom_metadata": {"n": 1}}, 400),
        ("POST", "/crypto/v1/encrypt", {"alg": "AES"}, 400),
        ("POST", "/crypto/v1/encrypt", {"key": {"name": "none"}, "alg": "AES", "plain": ""}, 404),
        ("POST", "/crypto/v1/keys", ["list"], 400),
    ],
)
def test_wrong_requests(app: Client, method: str, path: str, body: Any, status: int) -> None:
    assert app.call(method, path, body)[0] == status


def test_a_wrong_certificate_on_demand(open_backend: api.Backend, faults: dict[str, dict[str, Any]]) -> None:
    good = api.wrong_certificate_context()
    server = api.Server(("127.0.0.1", 0), open_backend, api.ROUTES, good)
    assert server.tls_context() is good
    faults["api-certificate"] = {}
    assert server.tls_context() is not good
    server.server_close()
