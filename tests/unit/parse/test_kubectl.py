# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lists as kubectl prints them, and why it fails."""

from __future__ import annotations

import json

import pytest
import recordings

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Unreadable
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._parse import kubectl


@pytest.mark.parametrize("name", recordings.names("kubectl", "nodes"))
def test_recorded_nodes(name):
    nodes = {node.name: node for node in kubectl.parse_nodes(recordings.text("kubectl", name))}
    assert {"dc1-n1", "dc2-n1", "dc3-n1"} <= set(nodes)
    assert nodes["dc2-n1"].addresses == ("10.66.2.11",)
    assert nodes["dc2-n1"].datacenter == "dc2"
    assert nodes["dc2-n1"].ready is True
    assert nodes["dc3-n1"].ready is (None if "unknown" in name else True)
    assert nodes["dc1-n1"].created.endswith("Z")


@pytest.mark.parametrize("name", recordings.names("kubectl", "pods"))
def test_recorded_pods(name):
    pods = kubectl.parse_pods(recordings.text("kubectl", name))
    apps = {(pod.app, pod.node) for pod in pods if pod.ready}
    assert {("cassandra", "dc1-n1"), ("sdkms", "dc1-n1")} <= apps


RUNNING_JOBS = [
    {"kind": "CronJob", "metadata": {"name": "nightly"}, "status": {"active": [{"kind": "Job", "name": "nightly-1"}]}},
    {"kind": "CronJob", "metadata": {"name": "idle"}, "status": {"lastScheduleTime": "2026-11-22T00:10:00Z"}},
    {"kind": "CronJob", "metadata": {"name": "never"}},
    {"kind": "Job", "metadata": {"name": "nightly-1"}, "status": {"active": 1}},
    {"kind": "Job", "metadata": {"name": "nightly-0"}, "status": {"succeeded": 1}},
]


def test_running_jobs():
    assert kubectl.parse_running(json.dumps({"kind": "List", "items": RUNNING_JOBS})) == ["nightly", "nightly-1"]
    assert kubectl.parse_running(json.dumps({"kind": "List", "items": []})) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        '{"kind": "List"}',
        '{"kind": "PodList", "items": []}',
        '{"kind": "List", "items": [{"kind": "Pod", "metadata": {"name": "x"}}]}',
        '{"kind": "List", "items": [{"kind": "Job", "metadata": {}}]}',
        '{"kind": "List", "items": [1]}',
    ],
)
def test_running_jobs_that_cannot_be_read_are_not_none(text):
    with pytest.raises(Unreadable):
        kubectl.parse_running(text)


@pytest.mark.parametrize("name", recordings.names("kubectl", "namespace"))
def test_recorded_uid(name):
    assert len(kubectl.parse_uid(recordings.text("kubectl", name))) == 36


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("refused", kubectl.REFUSED),
        ("unauthorized", kubectl.UNAUTHORIZED),
        ("not_verified", kubectl.NOT_VERIFIED),
        ("timeout", kubectl.NO_ANSWER),
        ("not_found", kubectl.NOT_FOUND),
        ("no_quorum_json", kubectl.NO_QUORUM),
        ("no_quorum_text", kubectl.NO_QUORUM),
        ("asks_for_a_name", kubectl.OTHER),
    ],
)
def test_recorded_failures(name, kind):
    failure = recordings.failures("kubectl")[name]
    assert failure["rc"] == 1
    assert kubectl.failure_kind(failure["stderr"]) == kind


def test_forbidden_is_not_a_sign_of_being_out():
    """An apiserver that was restarted without etcd quorum answers 403 to everybody [lab]."""
    stderr = 'Error from server (Forbidden): nodes is forbidden: User "kubernetes-admin" cannot list resource "nodes"'
    assert kubectl.failure_kind(stderr) == kubectl.OTHER


def test_an_expired_certificate_is_not_a_sign_of_being_out():
    stderr = "Unable to connect to the server: x509: certificate has expired or is not yet valid"
    assert kubectl.failure_kind(stderr) == kubectl.NOT_VERIFIED


def test_the_empty_list_of_a_control_plane_without_quorum_is_no_list():
    failure = recordings.failures("kubectl")["no_quorum_json"]
    assert json.loads(failure["stdout"])["items"] == []
    for parse in (kubectl.parse_nodes, kubectl.parse_pods):
        with pytest.raises(Unreadable) as caught:
            parse(failure["stdout"], failure["rc"])
        assert "exit code 1" in str(caught.value)


def test_a_cluster_without_nodes_does_not_exist():
    with pytest.raises(Unreadable):
        kubectl.parse_nodes('{"kind": "List", "items": []}')
    assert kubectl.parse_pods('{"kind": "PodList", "items": []}') == []


def node(**changes):
    value = {
        "kind": "Node",
        "metadata": {"name": "n1", "creationTimestamp": "2026-11-22T01:00:00Z"},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": "Hostname", "address": "n1"}]},
    }
    value.update(changes)
    return value


def listed(*items, kind="List"):
    return json.dumps({"kind": kind, "items": list(items)})


def test_a_node_that_has_not_reported_is_neither_ready_nor_unready():
    (found,) = kubectl.parse_nodes(listed(node()))
    assert (found.ready, found.addresses, found.datacenter) == (None, ("10.0.0.1",), None)


@pytest.mark.parametrize(
    ("status", "ready"), [("True", True), ("False", False), ("Unknown", None), ("vielleicht", None)]
)
def test_readiness(status, ready):
    conditions = [{"type": "MemoryPressure", "status": "False"}, {"type": "Ready", "status": status}]
    (found,) = kubectl.parse_nodes(listed(node(status={"addresses": [], "conditions": conditions})))
    assert found.ready is ready


def test_a_pod_that_is_being_deleted_is_not_ready():
    pod = {
        "metadata": {"name": "cassandra-0", "namespace": "default", "deletionTimestamp": "2026-11-22T01:00:00Z"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }
    (found,) = kubectl.parse_pods(listed(pod))
    assert found.ready is False


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No resources found\n",
        "null",
        "[]",
        '"x"',
        listed(node())[:-2],
        listed(node(), kind="Status"),
        '{"kind": "List"}',
        '{"kind": "List", "items": {}}',
        listed("n1"),
        listed({"kind": "Pod", "metadata": {"name": "p"}, "status": {"phase": "Running"}}),
        listed(node(metadata={"creationTimestamp": "x"})),
        listed(node(metadata={"name": "n1"})),
        listed(node(status={"addresses": "10.0.0.1"})),
        listed(node(status={"conditions": "Ready"})),
    ],
)
def test_broken_nodes_are_unreadable(text):
    with pytest.raises(Unreadable):
        kubectl.parse_nodes(text)


@pytest.mark.parametrize("cut", range(1, 400, 7))
def test_a_list_that_is_cut_off_is_unreadable(cut):
    text = listed(node(), node()).strip()
    with pytest.raises(Unreadable):
        kubectl.parse_nodes(text[: -min(cut, len(text) - 1)])


@pytest.mark.parametrize("text", ["", "{}", '{"metadata": {}}', '{"metadata": {"uid": ""}}', '{"metadata": []}'])
def test_an_object_without_uid_is_unreadable(text):
    with pytest.raises(Unreadable):
        kubectl.parse_uid(text)
