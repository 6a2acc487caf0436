# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The membership service of the stand-in, port 7443: what members ask of each other.

A joining host knows nothing but a peer and a token. ``hello`` proves to it with the token that the cluster CA it gets
is the right one; ``enrol`` checks the token with the apiserver once more, checks version and approval and hands over
the control plane's shared keys. From then on both sides show certificates of that CA: ``cmk`` (attestation and
hand-over of the master key), ``decommission``, ``leave``, ``snapshot``, ``restart-api``.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import ssl
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO
from urllib.parse import parse_qs, quote, urlsplit

from standin import cassandra, faults, kube, node

PORT = 7443
REQUESTS_PATH = "/api/v1/namespaces/kube-system/configmaps/standin-join-requests"
BOOTSTRAPPERS = "system:bootstrappers"


class Refused(Exception):
    """A request that this member does not serve; status and reason go back to the caller."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


# -- the client's side ------------------------------------------------------------------------------------------------
def client(address: str, timeout: float = 15.0) -> kube.Http:
    """Return a mutually authenticated connection to the membership service of a member."""
    return kube.Http(address, PORT, ca=kube.PKI / "ca.crt", cert=kube.MEMBER_CERT, key=kube.MEMBER_KEY, timeout=timeout)


def hello_proof(token: str, nonce: str, ca_pem: str) -> str:
    """Return what only a holder of the token can say about a CA certificate."""
    secret = token.partition(".")[2].encode("ascii")
    message = nonce.encode("ascii") + hashlib.sha256(kube.certificate_der(ca_pem)).digest()
    return hmac.new(secret, message, hashlib.sha256).hexdigest()


def discover(peer: str, token: str, nonce: str) -> str:
    """Return the CA certificate of the cluster a peer belongs to, proven by the token; raises StandinError."""
    query = f"/v1/hello?token_id={quote(token.partition('.')[0])}&nonce={nonce}"
    try:
        answer = kube.Http(peer, PORT, ca=None, timeout=10.0).request("GET", query)
    except kube.ApiError as error:
        raise node.StandinError(f"stand-in: {peer} refused: {error.message}") from error
    except OSError as error:
        raise node.StandinError(f"stand-in: no member of a cluster answers at {peer}: {error}") from error
    if not hmac.compare_digest(hello_proof(token, nonce, answer["ca"]), answer["proof"]):
        raise node.StandinError(f"stand-in: {peer} does not know this token, it may be an impostor")
    return str(answer["ca"])


def check_token(peer: str, token: str, ca_pem: str) -> None:
    """Let the peer's apiserver itself judge the token; raises StandinError when it does not accept it."""
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    api = kube.Http(peer, 6443, ca=None, ca_data=ca_pem, token=token)
    try:
        api.request("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    except kube.ApiError as error:
        if error.status == 401:
            raise node.StandinError("stand-in: the token is not valid (any more)") from error
        raise node.StandinError(f"stand-in: the apiserver of {peer} cannot check the token: {error}") from error
    except OSError as error:
        raise node.StandinError(f"stand-in: the apiserver of {peer} does not answer: {error}") from error


def enrol(cfg: node.NodeConfig, peer: str, token: str, ca_pem: str) -> dict[str, Any] | None:
    """Ask to be let in; returns what a member needs, or None while a person has yet to approve."""
    body = {
        "name": cfg.name,
        "address": cfg.address,
        "version": cfg.version,
        "platform_id": node.platform_id(cfg),
    }
    try:
        answer = kube.Http(peer, PORT, ca=None, ca_data=ca_pem, token=token).request("POST", "/v1/enrol", body)
    except kube.ApiError as error:
        raise node.StandinError(f"stand-in: {peer} does not let this host in: {error.message}") from error
    except OSError as error:
        raise node.StandinError(f"stand-in: lost {peer}: {error}") from error
    return None if answer["state"] == "pending" else dict(answer)


def receive_cmk(cfg: node.NodeConfig, peer: str) -> tuple[bytes, int]:
    """Attest to a peer and get the master key and its generation from it."""
    body = {"node": cfg.name, "version": cfg.version, "platform_id": node.platform_id(cfg)}
    try:
        answer = client(peer, timeout=30.0).request("POST", "/v1/cmk", body)
    except (kube.ApiError, OSError) as error:
        raise node.StandinError(f"stand-in: attestation to {peer} failed: {error}") from error
    return base64.b64decode(answer["cmk"]), int(answer["generation"])


def _address_of(member: str) -> str:
    for known in cassandra.known_members():
        if known["name"] == member:
            return known["address"]
    return member


def fetch_snapshot(member: str, tag: str, fileobj: BinaryIO) -> int:
    """Write a tar of a member's snapshot ``tag`` of the keyspace to ``fileobj``; returns its bytes.

    ``member`` is a name or address; the snapshot is made when that member has none of this tag. Names in the tar are
    ``<table directory>/<file>``. Raises ApiError or OSError; a tar that ends early was cut off.
    """
    total = 0
    answer = client(_address_of(member), timeout=600.0).open("GET", f"/v1/snapshot?tag={quote(tag)}")
    with contextlib.closing(answer):
        while chunk := answer.read(1 << 20):
            fileobj.write(chunk)
            total += len(chunk)
    return total


def drop_snapshot(member: str, tag: str) -> None:
    """Delete a member's snapshot ``tag``."""
    client(_address_of(member), timeout=60.0).request("POST", "/v1/snapshot-drop", {"tag": tag})


# -- the server's side ------------------------------------------------------------------------------------------------
class Service:
    """What one member does for others; every method returns the JSON of the answer or raises Refused."""

    def __init__(self, cfg: node.NodeConfig) -> None:
        self.cfg = cfg
        self._decommission = threading.Lock()
        self._snapshots = threading.Lock()

    def cluster(self) -> kube.Cluster:
        """Return the cluster as this member's apiserver shows it."""
        return kube.local(self.cfg)

    # -- for hosts that hold a token ----------------------------------------------------------------------------------
    def hello(self, token_id: str, nonce: str) -> dict[str, Any]:
        """Give the CA certificate and prove with the token that it is the right one."""
        if not ((token_id.isalnum() and token_id.islower()) or token_id.isdigit()):
            raise Refused(400, "that is not the id of a token")
        secret = self.cluster().get(f"/api/v1/namespaces/kube-system/secrets/bootstrap-token-{token_id}")
        if secret is None:
            raise Refused(403, "the token is not valid (any more)")
        secret_part = base64.b64decode(secret["data"]["token-secret"]).decode("ascii")
        ca_pem = (kube.PKI / "ca.crt").read_text(encoding="ascii")
        return {"ca": ca_pem, "proof": hello_proof(f"{token_id}.{secret_part}", nonce, ca_pem)}

    def enrol(self, token: str, body: dict[str, Any]) -> dict[str, Any]:
        """Let a host in: token, version, name, approval; then the control plane's shared keys."""
        cluster = self.cluster()
        self._review(cluster, token)
        name, address = str(body["name"]), str(body["address"])
        if body["version"] != self.cfg.version:
            raise Refused(409, f"it runs {body['version']}, this cluster runs {self.cfg.version}")
        for existing in cluster.nodes():
            addresses = [entry["address"] for entry in existing.get("status", {}).get("addresses", ())]
            same_name = existing["metadata"]["name"] == name
            if same_name != (address in addresses):
                raise Refused(409, f"this cluster has a node {existing['metadata']['name']} at {addresses[0]} already")
        if secure_join(cluster) and not self._approved(cluster, body):
            return {"state": "pending"}
        etcd = kube.Etcd(kube.known_etcd_endpoints(self.cfg)).members()
        return {
            "state": "enrolled",
            "pki": kube.shared_pki(),
            "uid": cluster.uid(),
            "members": cassandra.known_members(),
            "etcd_endpoints": [url for member in etcd for url in member.get("clientURLs", ())],
        }

    def _review(self, cluster: kube.Cluster, token: str) -> None:
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        status = cluster.http.request("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)["status"]
        groups = (status.get("user") or {}).get("groups") or []
        if not status.get("authenticated") or BOOTSTRAPPERS not in groups:
            raise Refused(403, "the token is not valid (any more)")

    def _approved(self, cluster: kube.Cluster, body: dict[str, Any]) -> bool:
        name, platform_id = str(body["name"]), str(body["platform_id"])
        found = cluster.get(REQUESTS_PATH)
        request = json.loads(((found or {}).get("data") or {}).get(name, "{}"))
        if request.get("platform_id") == platform_id:
            return request.get("state") == "approved"
        _record(cluster, name, {"platform_id": platform_id, "state": "pending", "since": node.utc_now()})
        return False

    # -- for members --------------------------------------------------------------------------------------------------
    def cmk(self, body: dict[str, Any]) -> dict[str, Any]:
        """Attest a host and give it the master key this member can open."""
        if faults.active("attestation-unreachable") is not None:
            raise Refused(503, "the attestation service does not answer")
        if body["version"] != self.cfg.version or not body["platform_id"]:
            raise Refused(403, "the quote does not match this cluster's software")
        opened = open_cmk(self.cfg)
        if opened is None:
            raise Refused(503, "this member holds no master key that it can open (sealed)")
        return {"cmk": base64.b64encode(opened[0]).decode("ascii"), "generation": opened[1]}

    def decommission(self) -> dict[str, Any]:
        """Stream this member's data away and leave the ring; a second request waits for the first."""
        with self._decommission:
            if not node.read_state().get("decommissioned"):
                node.write_state({"phase": "leaving"})
                try:
                    # forced: else Cassandra refuses for its own system_distributed (3 copies) in a cluster of 3
                    cassandra.nodetool("decommission", "--force")
                except node.StandinError as error:
                    raise Refused(500, str(error)) from error
                node.write_state({"decommissioned": True})
        return {"state": "left the ring"}

    def leave(self) -> dict[str, Any]:
        """Stop every service of this host, which is no member any more; its data stays where it is."""
        leave_cluster()
        return {"state": "stopping"}

    def restart_api(self) -> dict[str, Any]:
        """Restart this member's backend and wait until it listens again."""
        node.systemctl("restart", "standin-api")
        node.wait_until(lambda: node.port_open(self.cfg.address, 443), 60, "the restart of the backend", 0.2)
        return {"state": "restarted"}

    def snapshot(self, tag: str, write: Callable[[BinaryIO], None]) -> None:
        """Hand the tar of a snapshot to ``write`` as a stream, making the snapshot first when there is none."""
        if not tag or not all(letter.isalnum() or letter in "-_" for letter in tag):
            raise Refused(400, "a snapshot's tag has letters, digits, - and _")
        root = node.CASSANDRA_DIR / "data" / cassandra.KEYSPACE
        with self._snapshots:
            if not list(root.glob(f"*/snapshots/{tag}")):
                cassandra.nodetool("snapshot", "-t", tag, cassandra.KEYSPACE)
        directories = sorted(root.glob(f"*/snapshots/{tag}"))
        if not directories:
            raise Refused(500, f"there is no snapshot {tag} although nodetool made it")
        with subprocess.Popen(  # a pipe, so that nothing of the backup is written to disk here
            [sys.executable, "-m", "standin.membership", "tar", *map(str, directories)],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        ) as process:
            if process.stdout is None:
                raise Refused(500, "no pipe")
            write(process.stdout)  # type: ignore[arg-type]

    def snapshot_drop(self, tag: str) -> dict[str, Any]:
        """Delete a snapshot."""
        cassandra.nodetool("clearsnapshot", "-t", tag, "--", cassandra.KEYSPACE)
        return {"state": "dropped"}


def leave_cluster() -> None:
    """Make this host a former member: nothing starts at boot any more, everything stops; its data stays."""
    with contextlib.suppress(FileNotFoundError):
        node.MARKER.unlink()
    node.write_state({"phase": "removed"})
    # by a unit of its own: this process belongs to one of those that are stopped
    subprocess.run(
        ["systemd-run", "--quiet", "--no-block", "--collect", "systemctl", "stop", *reversed(node.UNITS)], check=True
    )


def open_cmk(cfg: node.NodeConfig) -> tuple[bytes, int] | None:
    """Return the newest master key that this host's platform and version can open in the database, if any."""
    from standin import db, sealing

    store = db.connect(cfg.address, 10.0)
    try:
        copies = store.sealed_copies()
    finally:
        store.close()
    secret = node.platform_secret(cfg)
    opened = [pair for copy in copies if (pair := sealing.unseal(copy.blob, secret, cfg.version)) is not None]
    return max(opened, key=lambda pair: pair[1], default=None)


def secure_join(cluster: kube.Cluster) -> bool:
    """Tell whether joins wait for a person: Secure Node Join of the cluster, or one of the knobs for it here."""
    if any(faults.active(knob) is not None for knob in ("join-pending", "secure-join")):
        return True
    settings = ((cluster.get(REQUESTS_PATH) or {}).get("metadata") or {}).get("annotations") or {}
    return settings.get("stand-in/secure-node-join") == "on"


def set_secure_join(cluster: kube.Cluster, setting: str) -> None:
    """Switch Secure Node Join of the cluster ``on`` or ``off``."""
    if setting not in ("on", "off"):
        raise node.StandinError("stand-in: Secure Node Join is on or off")
    annotations = {"stand-in/secure-node-join": setting}
    metadata = {"name": "standin-join-requests", "namespace": "kube-system", "annotations": annotations}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    if not cluster.create("/api/v1/namespaces/kube-system/configmaps", body):
        cluster.merge(REQUESTS_PATH, {"metadata": {"annotations": annotations}})


def _record(cluster: kube.Cluster, name: str, request: dict[str, str]) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "standin-join-requests", "namespace": "kube-system"},
        "data": {name: json.dumps(request)},
    }
    if not cluster.create("/api/v1/namespaces/kube-system/configmaps", body):
        cluster.merge(REQUESTS_PATH, {"data": body["data"]})


def pending(cluster: kube.Cluster) -> dict[str, dict[str, str]]:
    """Return the join requests that nobody approved yet, by node name."""
    data = (cluster.get(REQUESTS_PATH) or {}).get("data") or {}
    requests = {name: json.loads(text) for name, text in data.items()}
    return {name: request for name, request in requests.items() if request["state"] == "pending"}


def approve(cluster: kube.Cluster, name: str) -> None:
    """Approve a pending join, as a sysadmin does in the real product's trust centre."""
    waiting = pending(cluster)
    if name not in waiting:
        raise node.StandinError(f"stand-in: {name} asks for nothing; waiting: {', '.join(sorted(waiting)) or 'nobody'}")
    _record(cluster, name, {**waiting[name], "state": "approved"})


class Handler(BaseHTTPRequestHandler):
    """HTTP around Service."""

    protocol_version = "HTTP/1.0"
    service: Service

    def do_GET(self) -> None:
        """hello (open) and snapshot (members)."""
        parts = urlsplit(self.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path == "/v1/hello":
            self._answer(lambda: self.service.hello(query.get("token_id", ""), query.get("nonce", "")))
        elif parts.path == "/v1/snapshot" and self._is_member():
            try:
                self.service.snapshot(query.get("tag", ""), self._stream)
            except Refused as error:
                self._send(error.status, {"error": str(error)})
            except node.StandinError as error:
                self._send(500, {"error": str(error)})
        else:
            self._send(404, {"error": "not found"})

    def do_POST(self) -> None:
        """enrol (token) and everything members ask of members."""
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        actions: dict[str, Callable[[], dict[str, Any]]] = {
            "/v1/cmk": lambda: self.service.cmk(body),
            "/v1/decommission": self.service.decommission,
            "/v1/leave": self.service.leave,
            "/v1/restart-api": self.service.restart_api,
            "/v1/snapshot-drop": lambda: self.service.snapshot_drop(str(body["tag"])),
        }
        if self.path == "/v1/enrol":
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            self._answer(lambda: self.service.enrol(token, body))
        elif self.path in actions and self._is_member():
            self._answer(actions[self.path])
        else:
            self._send(404, {"error": "not found"})

    def _is_member(self) -> bool:
        certificate = self.connection.getpeercert()  # type: ignore[attr-defined]
        subject = [pair for part in (certificate or {}).get("subject", ()) for pair in part]
        return ("organizationName", "standin:members") in subject

    def _answer(self, action: Callable[[], dict[str, Any]]) -> None:
        try:
            self._send(200, action())
        except Refused as error:
            self._send(error.status, {"error": str(error)})
        except Exception as error:
            self.log_error("%s failed: %r", self.path.partition("?")[0], error)
            self._send(503, {"error": f"this member cannot do it now: {type(error).__name__}: {error}"})

    def _send(self, status: int, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, source: BinaryIO) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-tar")
        self.end_headers()
        while chunk := source.read(1 << 20):
            self.wfile.write(chunk)

    def log_request(self, code: Any = "-", size: Any = "-") -> None:
        """Log method, path without query, status."""
        del size
        self.log_message("%s %s %s", self.command, self.path.partition("?")[0], code)


class Server(ThreadingHTTPServer):
    """One thread a connection; the TLS handshake happens in that thread, so that a silent client blocks nobody."""

    daemon_threads = True
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection."""
        request.settimeout(900)
        try:
            secured = self.context.wrap_socket(request, server_side=True)
        except (OSError, ssl.SSLError):
            return
        with secured:
            super().finish_request(secured, client_address)


def serve() -> None:
    """Run the service until it is stopped."""
    cfg = node.load()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(str(kube.MEMBER_CERT), str(kube.MEMBER_KEY))
    context.load_verify_locations(str(kube.PKI / "ca.crt"))
    context.verify_mode = ssl.CERT_OPTIONAL
    Handler.service = Service(cfg)
    server = Server((cfg.address, PORT), Handler)
    server.context = context
    server.serve_forever()


def rolling_restart(cfg: node.NodeConfig) -> None:
    """Restart the backend of every member, one after the other; stops at the first that does not come back."""
    for member in sorted(cassandra.known_members(), key=lambda known: known["name"]):
        try:
            client(member["address"], timeout=90.0).request("POST", "/v1/restart-api", {})
        except (kube.ApiError, OSError) as error:
            raise node.StandinError(f"stand-in: {member['name']}: {error}; the rest is untouched") from error
        print(f"stand-in {cfg.version}: {member['name']} restarted", flush=True)


def check_health(cfg: node.NodeConfig) -> int:
    """Print what a person looks at first; returns 0 only when all of it is well."""
    wrong = 0
    for item in kube.local(cfg).nodes():
        ready = any(
            entry["type"] == "Ready" and entry["status"] == "True" for entry in item["status"].get("conditions", ())
        )
        wrong += not ready
        print(f"node {item['metadata']['name']}: {'Ready' if ready else 'NotReady'}")
    for question in ("", "?consistency=quorum", "?consistency=all"):
        try:
            answer = kube.Http(cfg.address, 443, ca=None, timeout=15.0).open("GET", f"/sys/v1/health{question}")
            status = str(answer.status)
            answer.close()
        except kube.ApiError as error:
            status = str(error.status)
        except OSError as error:
            status = type(error).__name__
        wrong += status != "204"
        print(f"health{question}: {status}")
    return 1 if wrong else 0


def _write_tar(directories: list[str]) -> None:
    from pathlib import Path

    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for directory in map(Path, directories):
            for path in sorted(directory.iterdir()):
                if path.is_file():
                    archive.add(path, arcname=f"{directory.parent.parent.name}/{path.name}")


def main(arguments: list[str]) -> int:
    """``python3 -m standin.membership serve|pending|approve NODE|secure-join on/off|rolling-restart|check-health``."""
    if arguments == ["serve"]:
        serve()
    elif arguments == ["pending"]:
        for name, request in sorted(pending(kube.local(node.load())).items()):
            print(name, request["platform_id"], request["since"])
    elif arguments[:1] == ["approve"] and len(arguments) == 2:
        approve(kube.local(node.load()), arguments[1])
    elif arguments[:1] == ["secure-join"] and len(arguments) == 2:
        set_secure_join(kube.local(node.load()), arguments[1])
    elif arguments == ["rolling-restart"]:
        rolling_restart(node.load())
    elif arguments == ["check-health"]:
        return check_health(node.load())
    elif arguments[:1] == ["tar"]:
        _write_tar(arguments[1:])
    else:
        print((main.__doc__ or "").replace("``", ""), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except node.StandinError as failure:
        sys.exit(str(failure))
