# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Kubernetes side of a member: real etcd, real kube-apiserver, real kubeadm; no kubelet.

The stand-in plays the kubelet: it makes the Node and Pod objects itself. ``python3 -m standin.kube run ROLE`` is what
the units start; it works out the flags and becomes ``labkube``.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import http.client
import json
import os
import secrets
import ssl
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from standin import node

LABKUBE = "/opt/kube/labkube"
KUBEADM = "/opt/kube/kubeadm"
KUBERNETES_VERSION = "v1.32.13"
PKI = node.KUBERNETES_DIR / "pki"
ETCD_ENDPOINTS = node.STATE_DIR / "etcd-endpoints.json"
MEMBER_CERT = PKI / "standin-member.crt"
MEMBER_KEY = PKI / "standin-member.key"
CONFIG_SECRET = "sdkms-config"
TOKEN_TTL = dt.timedelta(hours=24)

SHARED_PKI = (
    "ca.crt",
    "ca.key",
    "sa.pub",
    "sa.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "etcd/ca.crt",
    "etcd/ca.key",
)
"""What a control plane hands to a joining one, as ``kubeadm join --control-plane`` does."""


class ApiError(Exception):
    """An HTTP service answered with an error status."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Http:
    """JSON over TLS to one server; a new connection for every request."""

    def __init__(
        self,
        address: str,
        port: int,
        *,
        ca: str | Path | None,
        cert: str | Path | None = None,
        key: str | Path | None = None,
        token: str | None = None,
        timeout: float = 15.0,
        ca_data: str | None = None,
    ) -> None:
        self.address, self.port, self.timeout, self._token = address, port, timeout, token
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if ca is None and ca_data is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        else:
            context.load_verify_locations(cafile=str(ca) if ca else None, cadata=ca_data)
        if cert:
            context.load_cert_chain(str(cert), str(key))
        self._context = context

    def open(
        self, method: str, path: str, body: Any = None, content_type: str = "application/json"
    ) -> http.client.HTTPResponse:
        """Send a request and return the answer unread; raises ApiError for a status of 400 and above, OSError."""
        connection = http.client.HTTPSConnection(self.address, self.port, timeout=self.timeout, context=self._context)
        headers = {"Accept": "application/json"}
        data = None
        if body is not None:
            data = json.dumps(body).encode()
            headers["Content-Type"] = content_type
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        try:
            connection.request(method, path, body=data, headers=headers)
            answer = connection.getresponse()
        except http.client.HTTPException as error:
            connection.close()
            raise OSError(f"{self.address}:{self.port} spoke no HTTP: {error!r}") from error
        if answer.status >= 400:
            raw = answer.read()
            connection.close()
            try:
                document = json.loads(raw)
            except ValueError:
                document = {}
            message = document.get("message") or document.get("error") or raw.decode("utf-8", "replace")[:300]
            raise ApiError(answer.status, str(document.get("reason", answer.reason)), str(message))
        return answer

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """Send a request and return the parsed answer (None when it is empty)."""
        answer = self.open(method, path, body, content_type)
        raw = answer.read()
        answer.close()
        return json.loads(raw) if raw.strip() else None


class Cluster:
    """The few things the stand-in does with Kubernetes objects."""

    def __init__(self, http_client: Http) -> None:
        self.http = http_client

    # -- generic ------------------------------------------------------------------------------------------------------
    def get(self, path: str) -> dict[str, Any] | None:
        """Return one object, or None when there is none."""
        try:
            document: dict[str, Any] = self.http.request("GET", path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return document

    def create(self, path: str, body: dict[str, Any]) -> bool:
        """Create an object; False when one of that name exists already."""
        try:
            self.http.request("POST", path, body)
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True

    def merge(self, path: str, body: dict[str, Any]) -> None:
        """Change some fields of an object."""
        self.http.request("PATCH", path, body, "application/merge-patch+json")

    def delete(self, path: str) -> None:
        """Delete an object at once; it may be gone already."""
        try:
            self.http.request("DELETE", path, {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0})
        except ApiError as error:
            if error.status != 404:
                raise

    # -- facts --------------------------------------------------------------------------------------------------------
    def uid(self) -> str:
        """Return what identifies this cluster: the UID of the namespace kube-system."""
        namespace = self.get("/api/v1/namespaces/kube-system")
        if namespace is None:
            raise node.StandinError("stand-in: this cluster has no namespace kube-system yet")
        return str(namespace["metadata"]["uid"])

    def nodes(self) -> list[dict[str, Any]]:
        """Return all Node objects."""
        return list(self.http.request("GET", "/api/v1/nodes")["items"])

    def pods(self, selector: str = "") -> list[dict[str, Any]]:
        """Return the Pod objects of the default namespace, e.g. of ``app=cassandra``."""
        query = f"?labelSelector={selector.replace('=', '%3D')}" if selector else ""
        return list(self.http.request("GET", f"/api/v1/namespaces/default/pods{query}")["items"])

    def datacenters(self) -> dict[str, str | None]:
        """Return the label ``datacenter`` of every node by name, None for a node that has none."""
        objects = [item["metadata"] for item in self.nodes()]
        return {metadata["name"]: (metadata.get("labels") or {}).get("datacenter") for metadata in objects}

    # -- config.yaml of the cluster -----------------------------------------------------------------------------------
    def read_config(self) -> str | None:
        """Return the text of the cluster's ``config.yaml``."""
        found = self.get(f"/api/v1/namespaces/kube-system/secrets/{CONFIG_SECRET}")
        if found is None:
            return None
        return base64.b64decode(found["data"]["config.yaml"]).decode("utf-8")

    def publish_config(self, text: str) -> None:
        """Make a text the cluster's ``config.yaml``; every member's agent takes it up within seconds."""
        data = {"config.yaml": base64.b64encode(text.encode("utf-8")).decode("ascii")}
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": CONFIG_SECRET, "namespace": "kube-system"},
            "data": data,
        }
        if not self.create("/api/v1/namespaces/kube-system/secrets", body):
            self.merge(f"/api/v1/namespaces/kube-system/secrets/{CONFIG_SECRET}", {"data": data})

    # -- locks --------------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def lock(self, name: str, holder: str, ttl_s: int = 45, timeout: float = 600.0) -> Iterator[None]:
        """Hold a cluster-wide lock (a Lease object, renewed while it is held).

        It is taken over when its holder has not renewed it for ``ttl_s``, and at once when the holder was a process of
        this same host that is gone.
        """
        identity = f"{holder}/{os.getpid()}"
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
        own = f"{path}/standin-lock-{name}"
        spec = {"holderIdentity": identity, "leaseDurationSeconds": ttl_s}
        deadline = time.monotonic() + timeout
        while True:
            body = {
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": f"standin-lock-{name}", "namespace": "kube-system"},
                "spec": {**spec, "renewTime": micro_now()},
            }
            if self.create(path, body):
                break
            found = self.get(own)
            if found is not None and (lease_expired(found) or holder_gone(found, holder)):
                body["metadata"] = {**body["metadata"], "resourceVersion": found["metadata"]["resourceVersion"]}  # type: ignore[dict-item]
                try:
                    self.http.request("PUT", own, body)
                    break
                except ApiError as error:
                    if error.status not in (404, 409):
                        raise
            if time.monotonic() >= deadline:
                raise node.StandinError(f"stand-in: another operation holds the lock {name} of this cluster")
            time.sleep(0.2)
        released = threading.Event()

        def renew() -> None:
            while not released.wait(ttl_s / 4):
                with contextlib.suppress(ApiError, OSError):
                    self.merge(own, {"spec": {"renewTime": micro_now()}})

        renewer = threading.Thread(target=renew, name=f"lock {name}", daemon=True)
        renewer.start()
        try:
            yield
        finally:
            released.set()
            renewer.join(timeout=20)
            with contextlib.suppress(ApiError, OSError):
                self.delete(own)


def lease_expired(lease: dict[str, Any], now: dt.datetime | None = None) -> bool:
    """Tell whether a Lease was not renewed for its duration."""
    renewed = dt.datetime.strptime(lease["spec"]["renewTime"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=dt.timezone.utc)
    age = ((now or dt.datetime.now(dt.timezone.utc)) - renewed).total_seconds()
    return age > float(lease["spec"]["leaseDurationSeconds"])


def holder_gone(lease: dict[str, Any], host: str, proc: Path = Path("/proc")) -> bool:
    """Tell whether a lock is held by a process of ``host`` (this one) that does not run any more."""
    holder, _, process = str(lease["spec"].get("holderIdentity", "")).partition("/")
    return holder == host and not (proc / process).is_dir()


def micro_now() -> str:
    """Return the time as a Lease's ``renewTime`` wants it."""
    return dt.datetime.now(dt.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def local(cfg: node.NodeConfig, timeout: float = 15.0) -> Cluster:
    """Return the cluster as this member's own apiserver shows it."""
    return at(cfg.address, timeout)


def at(address: str, timeout: float = 15.0) -> Cluster:
    """Return the cluster as the apiserver of some member shows it, with this member's certificate."""
    return Cluster(Http(address, 6443, ca=PKI / "ca.crt", cert=MEMBER_CERT, key=MEMBER_KEY, timeout=timeout))


def removed_meanwhile(cfg: node.NodeConfig, members: list[dict[str, str]]) -> bool:
    """Tell whether another member says that this host is no node of the cluster any more; unknown counts as no."""
    for member in members:
        if member["address"] == cfg.address:
            continue
        try:
            return at(member["address"], timeout=4.0).get(f"/api/v1/nodes/{cfg.name}") is None
        except (ApiError, OSError):
            continue
    return False


# -- certificates -----------------------------------------------------------------------------------------------------
def kubeadm_config(cfg: node.NodeConfig) -> str:
    """Return kubeadm's configuration for this member."""
    documents = [
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "InitConfiguration",
            "localAPIEndpoint": {"advertiseAddress": cfg.address, "bindPort": 6443},
            "nodeRegistration": {"name": cfg.name, "criSocket": "unix:///run/stand-in-has-none.sock"},
        },
        {
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "ClusterConfiguration",
            "kubernetesVersion": KUBERNETES_VERSION,
            "clusterName": "dsm-standin",
            "certificatesDir": str(PKI),
            "encryptionAlgorithm": "ECDSA-P256",
            "networking": {"serviceSubnet": "10.96.0.0/12"},
            "apiServer": {"certSANs": [cfg.address, cfg.name, "127.0.0.1", "localhost"]},
            "etcd": {"local": {"dataDir": str(node.ETCD_DIR)}},
        },
    ]
    return "---\n".join(json.dumps(document, indent=1) + "\n" for document in documents)


def make_certificates(cfg: node.NodeConfig) -> None:
    """Make every certificate and kubeconfig of this member with the real kubeadm; keeps the CAs that are there."""
    config = node.STATE_DIR / "kubeadm.yaml"
    node.write_file(config, kubeadm_config(cfg).encode())
    for phase in (["certs", "all"], ["kubeconfig", "admin"], ["kubeconfig", "super-admin"]):
        _kubeadm("init", "phase", *phase, "--config", str(config))
    make_member_certificate(cfg)


def _kubeadm(*arguments: str) -> str:
    done = subprocess.run(
        [KUBEADM, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=120
    )
    if done.returncode:
        raise node.StandinError(f"stand-in: kubeadm {' '.join(arguments[:4])} failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def make_member_certificate(cfg: node.NodeConfig) -> None:
    """Make the one certificate the stand-in's own services use, as server and as client, signed by the cluster's CA."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    authority = x509.load_pem_x509_certificate((PKI / "ca.crt").read_bytes())
    authority_key = serialization.load_pem_private_key((PKI / "ca.key").read_bytes(), None)
    key = ec.generate_private_key(ec.SECP256R1())
    names = [(NameOID.ORGANIZATION_NAME, "system:masters"), (NameOID.ORGANIZATION_NAME, "standin:members")]
    subject = x509.Name([x509.NameAttribute(oid, value) for oid, value in [*names, (NameOID.COMMON_NAME, cfg.name)]])
    sans = x509.SubjectAlternativeName(
        [
            x509.DNSName(cfg.name),
            x509.DNSName("localhost"),
            x509.IPAddress(ipaddress.ip_address(cfg.address)),
            x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        ]
    )
    now = dt.datetime.now(dt.timezone.utc).replace(tzinfo=None)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=365))
        .add_extension(sans, critical=False)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .sign(authority_key, hashes.SHA256())  # type: ignore[arg-type]
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    node.write_file(MEMBER_KEY, pem)
    node.write_file(MEMBER_CERT, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def certificate_der(pem: str) -> bytes:
    """Return the first certificate of a PEM text as DER."""
    return ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE-----") :].strip())


def cluster_name() -> str:
    """Return the name the database of this cluster has: another cluster's data refuses to start under it."""
    der = certificate_der((PKI / "ca.crt").read_text(encoding="ascii"))
    return f"dsm-{hashlib.sha256(der).hexdigest()[:12]}"


def shared_pki() -> dict[str, str]:
    """Return the files a joining control plane needs, by their path under the PKI directory."""
    return {name: (PKI / name).read_text(encoding="ascii") for name in SHARED_PKI}


def install_shared_pki(files: dict[str, str]) -> None:
    """Put the files of ``shared_pki`` of another member in place."""
    for name in SHARED_PKI:
        node.write_file(PKI / name, files[name].encode("ascii"), 0o600 if name.endswith(".key") else 0o644)


# -- what the units run -----------------------------------------------------------------------------------------------
def etcd_arguments(cfg: node.NodeConfig, state: dict[str, Any]) -> list[str]:
    """Return etcd's flags; the initial ones count only for an empty data directory."""
    pki = PKI / "etcd"
    client, peer = f"https://{cfg.address}:2379", f"https://{cfg.address}:2380"
    return [
        f"--name={cfg.name}",
        f"--data-dir={node.ETCD_DIR}",
        f"--listen-client-urls=https://127.0.0.1:2379,{client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={state.get('etcd_initial_cluster', f'{cfg.name}={peer}')}",
        f"--initial-cluster-state={state.get('etcd_initial_state', 'new')}",
        f"--initial-cluster-token={state.get('fingerprint', 'stand-in')}",
        "--client-cert-auth=true",
        f"--cert-file={pki}/server.crt",
        f"--key-file={pki}/server.key",
        f"--trusted-ca-file={pki}/ca.crt",
        "--peer-client-cert-auth=true",
        f"--peer-cert-file={pki}/peer.crt",
        f"--peer-key-file={pki}/peer.key",
        f"--peer-trusted-ca-file={pki}/ca.crt",
        # else etcd takes a new member only when all others have been connected for 5 s: joins at once would fail
        "--strict-reconfig-check=false",
        "--log-level=warn",
        "--unsafe-no-fsync",
    ]


def apiserver_arguments(cfg: node.NodeConfig, etcd_endpoints: list[str]) -> list[str]:
    """Return kube-apiserver's flags."""
    return [
        f"--advertise-address={cfg.address}",
        "--bind-address=0.0.0.0",
        "--secure-port=6443",
        f"--etcd-servers={','.join(etcd_endpoints)}",
        f"--etcd-cafile={PKI}/etcd/ca.crt",
        f"--etcd-certfile={PKI}/apiserver-etcd-client.crt",
        f"--etcd-keyfile={PKI}/apiserver-etcd-client.key",
        f"--tls-cert-file={PKI}/apiserver.crt",
        f"--tls-private-key-file={PKI}/apiserver.key",
        f"--client-ca-file={PKI}/ca.crt",
        f"--kubelet-client-certificate={PKI}/apiserver-kubelet-client.crt",
        f"--kubelet-client-key={PKI}/apiserver-kubelet-client.key",
        f"--kubelet-certificate-authority={PKI}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={PKI}/sa.pub",
        f"--service-account-signing-key-file={PKI}/sa.key",
        "--service-cluster-ip-range=10.96.0.0/12",
        "--authorization-mode=Node,RBAC",
        "--enable-bootstrap-token-auth=true",
        "--endpoint-reconciler-type=none",
        "--disable-admission-plugins=ServiceAccount",
        "--profiling=false",
        "--v=0",
    ]


def run(role: str) -> None:
    """Become one of the roles of ``labkube``."""
    cfg = node.load()
    os.environ["GOGC"] = "30"
    if role == "etcd":
        arguments = ["etcd", *etcd_arguments(cfg, node.read_state())]
    elif role == "apiserver":
        arguments = ["kube-apiserver", *apiserver_arguments(cfg, known_etcd_endpoints(cfg))]
    elif role == "controllers":
        arguments = ["controllers", str(node.KUBERNETES_DIR / "super-admin.conf")]
    elif role == "execd":
        arguments = ["execd", ":10250", f"{PKI}/apiserver.crt", f"{PKI}/apiserver.key", f"{PKI}/ca.crt"]
    else:
        raise node.StandinError(f"stand-in: no such role {role}")
    os.execv(LABKUBE, ["labkube", *arguments])


def apiserver_ready(address: str) -> bool:
    """Tell whether the apiserver at an address says it is ready."""
    try:
        answer = Http(address, 6443, ca=None, timeout=3.0).open("GET", "/readyz")
        answer.close()
    except (ApiError, OSError):
        return False
    return True


# -- etcd membership --------------------------------------------------------------------------------------------------
class Etcd:
    """The membership of etcd, through the JSON gateway every etcd serves."""

    def __init__(self, endpoints: list[str], timeout: float = 8.0) -> None:
        self._endpoints = endpoints
        self._timeout = timeout

    def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        last: Exception | None = None
        for endpoint in self._endpoints:
            parts = urlsplit(endpoint)
            http_client = Http(
                str(parts.hostname),
                int(parts.port or 2379),
                ca=PKI / "etcd/ca.crt",
                cert=PKI / "apiserver-etcd-client.crt",
                key=PKI / "apiserver-etcd-client.key",
                timeout=self._timeout,
            )
            try:
                answer: dict[str, Any] = http_client.request("POST", path, body)
            except OSError as error:
                last = error
                continue
            return answer
        raise last or OSError("no etcd endpoint is known")

    def members(self) -> list[dict[str, Any]]:
        """Return etcd's own list of members."""
        return list(self._call("/v3/cluster/member/list", {})["members"])

    def add_learner(self, peer_url: str) -> list[dict[str, Any]]:
        """Announce a member that will start; returns all members."""
        return list(self._call("/v3/cluster/member/add", {"peerURLs": [peer_url], "isLearner": True})["members"])

    def promote(self, member_id: str) -> bool:
        """Make a learner a voter; False while it has not caught up."""
        try:
            self._call("/v3/cluster/member/promote", {"ID": member_id})
        except ApiError as error:
            if "in sync" in error.message or "not ready" in error.message or error.status in (503, 504):
                return False
            if "can only promote a learner" in error.message:
                return True
            raise
        return True

    def remove(self, member_id: str) -> None:
        """Remove a member; it may be gone already."""
        try:
            self._call("/v3/cluster/member/remove", {"ID": member_id})
        except ApiError as error:
            if error.status != 404 and "not found" not in error.message:
                raise


def etcd_url(address: str) -> str:
    """Return the client endpoint of the etcd at an address."""
    return f"https://{address}:2379"


def known_etcd_endpoints(cfg: node.NodeConfig) -> list[str]:
    """Return the endpoints of all members as last seen, this host's own first."""
    own = etcd_url(cfg.address)
    try:
        known = json.loads(ETCD_ENDPOINTS.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = []
    return [own, *sorted(str(url) for url in known if url != own)]


def remember_etcd_endpoints(members: list[dict[str, Any]]) -> None:
    """Keep the endpoints of the voting members for the next start of the apiserver."""
    urls = sorted(url for member in members if not member.get("isLearner") for url in member.get("clientURLs", ()))
    data = json.dumps(urls).encode()
    if not ETCD_ENDPOINTS.exists() or ETCD_ENDPOINTS.read_bytes() != data:
        node.write_file(ETCD_ENDPOINTS, data)


def etcd_member_of(members: list[dict[str, Any]], address: str) -> dict[str, Any] | None:
    """Return etcd's member at an address, started or not."""
    wanted = f"https://{address}:2380"
    return next((member for member in members if wanted in member.get("peerURLs", ())), None)


def initial_cluster(members: list[dict[str, Any]], own_name: str, own_address: str) -> str:
    """Return etcd's ``--initial-cluster`` for a member that starts into an existing cluster.

    A member that has not started yet has no name there; etcd compares addresses only, so it gets one.
    """
    own_url = f"https://{own_address}:2380"
    parts = []
    for member in members:
        for url in member["peerURLs"]:
            name = own_name if url == own_url else member.get("name") or f"starting-{member['ID']}"
            parts.append(f"{name}={url}")
    return ",".join(parts)


# -- tokens -----------------------------------------------------------------------------------------------------------
def new_token() -> str:
    """Return a bootstrap token: six and sixteen of a-z and 0-9."""
    letters = string.ascii_lowercase + string.digits
    return f"{_random(letters, 6)}.{_random(letters, 16)}"


def _random(letters: str, count: int) -> str:
    return "".join(secrets.choice(letters) for _ in range(count))


def token_secret(token: str, now: dt.datetime, ttl: dt.timedelta = TOKEN_TTL) -> dict[str, Any]:
    """Return the Secret that makes a token valid, as ``kubeadm init`` writes it."""
    token_id, token_secret_part = token.split(".")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": f"bootstrap-token-{token_id}", "namespace": "kube-system"},
        "stringData": {
            "token-id": token_id,
            "token-secret": token_secret_part,
            "expiration": (now + ttl).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "usage-bootstrap-authentication": "true",
            "usage-bootstrap-signing": "true",
            "auth-extra-groups": "system:bootstrappers:kubeadm:default-node-token",
            "description": "The default bootstrap token generated by stand-in 'sdkms-cluster create'.",
        },
    }


def admin_binding() -> dict[str, Any]:
    """Return the binding without which ``admin.conf`` may do nothing."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "kubeadm:cluster-admins"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [
            {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "kubeadm:cluster-admins"},
        ],
    }


# -- objects ----------------------------------------------------------------------------------------------------------
def condition(kind: str, true: bool, reason: str, message: str, now: str, since: str) -> dict[str, str]:
    """Return one condition of a Node or Pod."""
    return {
        "type": kind,
        "status": "True" if true else "False",
        "reason": reason,
        "message": message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": since,
    }


def node_status(cfg: node.NodeConfig, ready: bool, since: str) -> dict[str, Any]:
    """Return the status of this host's Node object."""
    now = node.utc_now()
    machine = hashlib.sha256(cfg.serial.encode()).hexdigest()
    fine = [
        condition(kind, False, reason, message, now, since)
        for kind, reason, message in (
            ("MemoryPressure", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            ("DiskPressure", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            ("PIDPressure", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        )
    ]
    reason, message = ("KubeletReady", "kubelet is posting ready status (stand-in)")
    if not ready:
        reason, message = ("KubeletNotReady", "stand-in is starting")
    return {
        "addresses": [{"type": "InternalIP", "address": cfg.address}, {"type": "Hostname", "address": cfg.name}],
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "allocatable": {"cpu": "4", "memory": "7Gi", "pods": "110"},
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        "nodeInfo": {
            "machineID": machine[:32],
            "systemUUID": machine[32:],
            "bootID": boot_id(),
            "kernelVersion": os.uname().release,
            "osImage": "Debian GNU/Linux 12 (bookworm)",
            "containerRuntimeVersion": "stand-in://1",
            "kubeletVersion": KUBERNETES_VERSION,
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": "amd64",
        },
        "conditions": [*fine, condition("Ready", ready, reason, message, now, since)],
    }


def boot_id() -> str:
    """Return what changes with every boot of this host (the kernel's own id is shared by all containers)."""
    started = int(os.stat("/proc/1").st_ctime)
    return hashlib.sha256(f"{os.uname().nodename}{started}".encode()).hexdigest()[:32]


def node_object(cfg: node.NodeConfig, datacenter: str | None) -> dict[str, Any]:
    """Return this host's Node object as it first appears: not ready, and unlabelled unless the site labels at birth."""
    labels = {
        "kubernetes.io/hostname": cfg.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "node-role.kubernetes.io/control-plane": "",
    }
    if datacenter:
        labels["datacenter"] = datacenter
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": cfg.name, "labels": labels},
        "status": node_status(cfg, False, node.utc_now()),
    }


def pod_object(cfg: node.NodeConfig, name: str, app: str, image: str) -> dict[str, Any]:
    """Return a Pod object bound to this host."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
        "spec": {
            "nodeName": cfg.name,
            "hostNetwork": True,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": app, "image": image}],
            "tolerations": [{"operator": "Exists"}],
        },
    }


def pod_status(cfg: node.NodeConfig, pod: dict[str, Any], ready: bool, restarts: int) -> dict[str, Any]:
    """Return a Pod's status for a service that is up (``ready``) or coming."""
    now = node.utc_now()
    container = pod["spec"]["containers"][0]
    before = pod.get("status") or {}
    old = next((c for c in before.get("conditions", ()) if c["type"] == "Ready"), None)
    word = "True" if ready else "False"
    since = old["lastTransitionTime"] if old and old["status"] == word else now
    started = before.get("startTime") or now
    reason = {} if ready else {"reason": "ContainersNotReady"}
    return {
        "phase": "Running",
        "hostIP": cfg.address,
        "podIP": cfg.address,
        "podIPs": [{"ip": cfg.address}],
        "startTime": started,
        "conditions": [
            {"type": "Initialized", "status": "True", "lastTransitionTime": started},
            {"type": "Ready", "status": word, "lastTransitionTime": since, **reason},
            {"type": "ContainersReady", "status": word, "lastTransitionTime": since, **reason},
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": started},
        ],
        "containerStatuses": [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": f"stand-in://{container['image']}",
                "ready": ready,
                "restartCount": restarts,
                "started": ready,
                "state": {"running": {"startedAt": since}},
            }
        ],
    }


def stateful_set(replicas: int) -> dict[str, Any]:
    """Return the StatefulSet ``cassandra`` whose environment an operator edits to set ``ignore_dc``."""
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": "cassandra", "namespace": "default", "labels": {"app": "cassandra"}},
        "spec": {
            "replicas": replicas,
            "serviceName": "cassandra",
            "selector": {"matchLabels": {"app": "cassandra"}},
            "template": {
                "metadata": {"labels": {"app": "cassandra"}},
                "spec": {
                    "containers": [
                        {
                            "name": "cassandra",
                            "image": CASSANDRA_IMAGE,
                            "env": [{"name": "CASSANDRA_CLUSTER_NAME", "value": "dsm-standin"}],
                        }
                    ]
                },
            },
        },
    }


CASSANDRA_IMAGE = "stand-in/cassandra:5.0.6"
STATEFUL_SET_PATH = "/apis/apps/v1/namespaces/default/statefulsets/cassandra"
POD_PATH = "/api/v1/namespaces/default/pods"


def sdkms_image(cfg: node.NodeConfig) -> str:
    """Return the image name of the backend; its tag is the version."""
    return f"stand-in/sdkms:{cfg.version}"


def claim_ordinal(cluster: Cluster, cfg: node.NodeConfig) -> int:
    """Create the pod ``cassandra-<n>`` of this host with the smallest free number; returns the number.

    The apiserver decides races between hosts that join at once.
    """
    taken = {}
    for pod in cluster.pods("app=cassandra"):
        taken[pod["metadata"]["name"]] = pod["spec"].get("nodeName")
    for name, owner in taken.items():
        if owner == cfg.name:
            return int(name.rsplit("-", 1)[1])
    number = 0
    while True:
        name = f"cassandra-{number}"
        if name not in taken and cluster.create(POD_PATH, pod_object(cfg, name, "cassandra", CASSANDRA_IMAGE)):
            return number
        number += 1


def set_replicas(cluster: Cluster) -> None:
    """Let the StatefulSet's replica count say how many database pods there are."""
    cluster.merge(STATEFUL_SET_PATH, {"spec": {"replicas": len(cluster.pods("app=cassandra"))}})


def retry(action: Callable[[], Any], timeout: float, what: str, interval: float = 0.2) -> Any:
    """Repeat something while the cluster is not ready for it; raises the last error after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return action()
        except (ApiError, OSError) as error:
            if time.monotonic() >= deadline:
                raise node.StandinError(f"stand-in: {what} failed for {timeout:.0f} s: {error}") from error
            time.sleep(interval)


def main(arguments: list[str]) -> int:
    """``python3 -m standin.kube run ROLE``."""
    if len(arguments) != 2 or arguments[0] != "run":
        print("usage: standin.kube run etcd|apiserver|controllers|execd", file=sys.stderr)
        return 2
    run(arguments[1])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except node.StandinError as failure:
        sys.exit(str(failure))
