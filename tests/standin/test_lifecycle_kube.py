# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pure parts of the stand-in's Kubernetes side."""

from __future__ import annotations

import datetime as dt
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from standin import cassandra, kube, node
from standin_pki import CFG

UTC = dt.timezone.utc


def test_kubeadm_gets_two_documents_and_no_loopback() -> None:
    first, second = (json.loads(text) for text in kube.kubeadm_config(CFG).split("---\n"))
    assert first["localAPIEndpoint"] == {"advertiseAddress": "192.0.2.9", "bindPort": 6443}
    assert first["nodeRegistration"]["name"] == "dr1"
    assert set(second["apiServer"]["certSANs"]) >= {"192.0.2.9", "dr1"}


def test_etcd_starts_alone_or_into_a_cluster() -> None:
    assert "--initial-cluster=dr1=https://192.0.2.9:2380" in kube.etcd_arguments(CFG, {})
    state = {"etcd_initial_cluster": "a=https://192.0.2.1:2380", "etcd_initial_state": "existing"}
    arguments = kube.etcd_arguments(CFG, state)
    assert "--initial-cluster=a=https://192.0.2.1:2380" in arguments
    assert "--initial-cluster-state=existing" in arguments


MEMBERS: list[dict[str, Any]] = [
    {"ID": "1", "name": "dc1-n1", "peerURLs": ["https://192.0.2.1:2380"], "clientURLs": ["https://192.0.2.1:2379"]},
    {"ID": "2", "peerURLs": ["https://192.0.2.2:2380"], "isLearner": True},
    {"ID": "3", "peerURLs": ["https://192.0.2.9:2380"], "isLearner": True},
]


def test_members_that_have_not_started_get_a_name() -> None:
    assert kube.initial_cluster(MEMBERS, "dr1", "192.0.2.9") == (
        "dc1-n1=https://192.0.2.1:2380,starting-2=https://192.0.2.2:2380,dr1=https://192.0.2.9:2380"
    )


def test_etcd_members_are_found_by_address() -> None:
    assert kube.etcd_member_of(MEMBERS, "192.0.2.9") == MEMBERS[2]
    assert kube.etcd_member_of(MEMBERS, "192.0.2.99") is None


def test_endpoints_are_remembered_without_learners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube, "ETCD_ENDPOINTS", tmp_path / "endpoints.json")
    assert kube.known_etcd_endpoints(CFG) == ["https://192.0.2.9:2379"]
    kube.remember_etcd_endpoints(MEMBERS)
    assert kube.known_etcd_endpoints(CFG) == ["https://192.0.2.9:2379", "https://192.0.2.1:2379"]


def test_a_token_is_a_token_and_lives_a_day() -> None:
    token = kube.new_token()
    assert re.fullmatch(r"[a-z0-9]{6}\.[a-z0-9]{16}", token)
    assert token != kube.new_token()
    secret = kube.token_secret(token, dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert secret["stringData"]["expiration"] == "2026-01-03T03:04:05Z"
    assert f"{secret['stringData']['token-id']}.{secret['stringData']['token-secret']}" == token


def test_a_lock_expires() -> None:
    spec = {"renewTime": "2026-01-02T03:04:05.000000Z", "leaseDurationSeconds": 90}
    now = dt.datetime(2026, 1, 2, 3, 5, 30, tzinfo=UTC)
    assert not kube.lease_expired({"spec": spec}, now)
    assert kube.lease_expired({"spec": spec}, now + dt.timedelta(seconds=6))


def test_a_node_appears_not_ready_and_unlabelled() -> None:
    first = kube.node_object(CFG, None)
    assert "datacenter" not in first["metadata"]["labels"]
    ready = next(entry for entry in first["status"]["conditions"] if entry["type"] == "Ready")
    assert ready["status"] == "False"
    assert kube.node_object(CFG, "oor")["metadata"]["labels"]["datacenter"] == "oor"


def test_a_pod_keeps_the_time_of_its_last_change() -> None:
    pod = kube.pod_object(CFG, "cassandra-3", "cassandra", kube.CASSANDRA_IMAGE)
    first = kube.pod_status(CFG, pod, False, 0)
    assert first["containerStatuses"][0]["ready"] is False
    old = "2026-01-02T03:04:05Z"
    pod["status"] = {"startTime": old, "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": old}]}
    again = kube.pod_status(CFG, pod, True, 0)
    assert [entry["lastTransitionTime"] for entry in again["conditions"]] == [old] * 4
    assert kube.pod_status(CFG, pod, False, 0)["conditions"][1]["lastTransitionTime"] != old


class FakeCluster:
    """Pods of a cluster in which others win some races."""

    def __init__(self, pods: dict[str, str], lost: set[str] = frozenset()) -> None:  # type: ignore[assignment]
        self._pods, self._lost = pods, set(lost)
        self.created: list[str] = []

    def pods(self, selector: str) -> list[dict[str, Any]]:
        assert selector == "app=cassandra"
        return [{"metadata": {"name": name}, "spec": {"nodeName": owner}} for name, owner in self._pods.items()]

    def create(self, path: str, body: dict[str, Any]) -> bool:
        name = body["metadata"]["name"]
        if name in self._lost:
            return False
        self.created.append(name)
        return True


def test_the_smallest_free_number_is_taken() -> None:
    cluster = FakeCluster({"cassandra-0": "a", "cassandra-2": "c"})
    assert kube.claim_ordinal(cluster, CFG) == 1  # type: ignore[arg-type]
    assert cluster.created == ["cassandra-1"]


def test_a_lost_race_takes_the_next_number() -> None:
    cluster = FakeCluster({"cassandra-0": "a"}, lost={"cassandra-1"})
    assert kube.claim_ordinal(cluster, CFG) == 2  # type: ignore[arg-type]


def test_a_repeated_join_keeps_its_number() -> None:
    cluster = FakeCluster({"cassandra-0": "a", "cassandra-1": "dr1"})
    assert kube.claim_ordinal(cluster, CFG) == 1  # type: ignore[arg-type]
    assert cluster.created == []


def test_the_member_certificate_serves_and_asks(pki: Path) -> None:
    kube.make_member_certificate(CFG)
    certificate = x509.load_pem_x509_certificate((pki / "member.crt").read_bytes())
    organizations = {part.value for part in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)}
    assert organizations == {"system:masters", "standin:members"}
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "dr1" in names.get_values_for_type(x509.DNSName)
    assert (pki / "member.key").stat().st_mode & 0o077 == 0


def test_the_shared_keys_travel(pki: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in kube.SHARED_PKI:
        if not (pki / name).exists():
            (pki / name).parent.mkdir(exist_ok=True)
            (pki / name).write_text(name, encoding="ascii")
    files = kube.shared_pki()
    name = kube.cluster_name()
    monkeypatch.setattr(kube, "PKI", tmp_path / "other")
    kube.install_shared_pki(files)
    assert kube.shared_pki() == files
    assert kube.cluster_name() == name
    assert (tmp_path / "other" / "etcd" / "ca.key").stat().st_mode & 0o077 == 0


def test_copies_count_members_that_hold_data() -> None:
    ring = [("192.0.2.1", "dc1"), ("192.0.2.2", "dc1"), ("192.0.2.3", "dc2"), ("192.0.2.4", "dc3")]
    assert cassandra.replication_for(ring, {"192.0.2.1", "192.0.2.2", "192.0.2.3"}) == {"dc1": 2, "dc2": 1}


def test_seeds_leave_out_a_host_that_has_yet_to_join() -> None:
    members = [{"name": "a", "address": "192.0.2.1"}, {"name": "b", "address": "192.0.2.2"}]
    assert cassandra.seeds_for("192.0.2.2", members, joined=False) == ["192.0.2.1"]
    assert cassandra.seeds_for("192.0.2.2", members, joined=True) == ["192.0.2.2", "192.0.2.1"]
    assert cassandra.seeds_for("192.0.2.2", [], joined=False) == ["192.0.2.2"]


def test_the_database_is_configured_for_its_place() -> None:
    files = cassandra.render(
        Path("/data"), cluster_name="dsm-1", address="192.0.2.9", datacenter="oor", seeds=["192.0.2.1"], bootstrap=True
    )
    settings = json.loads(files["cassandra.yaml"])
    assert settings["auto_snapshot"] is False
    assert settings["seed_provider"][0]["parameters"] == [{"seeds": "192.0.2.1"}]
    assert files["cassandra-rackdc.properties"] == "dc=oor\nrack=rack1\n"


def test_jvm_options_of_the_stateful_set() -> None:
    plain = kube.stateful_set(3)
    assert cassandra.jvm_extra_opts(plain) == ""
    assert cassandra.jvm_extra_opts(None) == ""
    environment = plain["spec"]["template"]["spec"]["containers"][0]["env"]
    environment.append({"name": "JVM_EXTRA_OPTS", "value": cassandra.IGNORE_DC})
    assert cassandra.jvm_extra_opts(plain) == cassandra.IGNORE_DC


def test_database_processes_are_found_by_their_class(tmp_path: Path) -> None:
    for number, words in {
        "12": b"java\0org.apache.cassandra.service.CassandraDaemon\0",
        "13": b"java\0Other\0",
    }.items():
        (tmp_path / number).mkdir()
        (tmp_path / number / "cmdline").write_bytes(words)
    (tmp_path / "meminfo").touch()
    assert cassandra.processes(tmp_path) == [12]


def test_a_lock_of_a_dead_process_of_this_host_is_free(tmp_path: Path) -> None:
    (tmp_path / "12").mkdir()
    held = {"spec": {"holderIdentity": "dr1/12"}}
    assert not kube.holder_gone(held, "dr1", tmp_path)
    assert not kube.holder_gone({"spec": {"holderIdentity": "other/13"}}, "dr1", tmp_path)
    assert kube.holder_gone({"spec": {"holderIdentity": "dr1/13"}}, "dr1", tmp_path)


class Leases:
    """Lease objects with the apiserver's optimistic lock; ``request`` is what Http has."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0

    def request(self, method: str, path: str, body: Any = None, content_type: str = "") -> Any:
        if method == "GET":
            if self.lease is None:
                raise kube.ApiError(404, "NotFound", path)
            return json.loads(json.dumps(self.lease))
        if method == "DELETE":
            self.lease = None
            return None
        if method == "POST" and self.lease is not None:
            raise kube.ApiError(409, "AlreadyExists", path)
        if method == "PUT" and body["metadata"]["resourceVersion"] != str(self.version):
            raise kube.ApiError(409, "Conflict", path)
        self.version += 1
        self.lease = json.loads(json.dumps(body))
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        return self.lease


def held_by(holder: str, renewed: str) -> Leases:
    leases = Leases()
    spec = {"holderIdentity": holder, "leaseDurationSeconds": 45, "renewTime": renewed}
    leases.request("POST", "/leases", {"metadata": {"name": "standin-lock-x"}, "spec": spec})
    return leases


def test_a_free_lock_is_taken_and_given_back() -> None:
    leases = Leases()
    with kube.Cluster(leases).lock("x", "dr1"):  # type: ignore[arg-type]
        assert leases.lease is not None
        assert leases.lease["spec"]["holderIdentity"].startswith("dr1/")
    assert leases.lease is None


def test_a_held_lock_is_waited_for_and_named() -> None:
    leases = held_by("dc1-n1/1", kube.micro_now())
    with pytest.raises(node.StandinError, match="lock x"), kube.Cluster(leases).lock("x", "dr1", timeout=0):  # type: ignore[arg-type]
        pytest.fail("two hold one lock")
    assert leases.lease is not None


@pytest.mark.parametrize(
    ("holder", "renewed"),
    [("dc1-n1/1", "2026-01-02T03:04:05.000000Z"), ("dr1/999999999", kube.micro_now())],
    ids=["not renewed for long", "its process is gone"],
)
def test_a_forgotten_lock_is_taken_over(holder: str, renewed: str) -> None:
    leases = held_by(holder, renewed)
    with kube.Cluster(leases).lock("x", "dr1", timeout=0):  # type: ignore[arg-type]
        assert leases.lease is not None
        assert leases.lease["spec"]["holderIdentity"] != holder
    assert leases.lease is None
