# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the commands of a DSM node print, for a node that is not there."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CREATED = "2026-11-01T00:00:00Z"


def ip_addresses(*addresses: str) -> str:
    """``ip -o addr show``."""
    lines = ["1: lo    inet 127.0.0.1/8 scope host lo\\       valid_lft forever preferred_lft forever"]
    lines += [f"2: eth0    inet {one}/24 brd 192.0.2.255 scope global eth0\\   valid_lft forever" for one in addresses]
    return "\n".join(lines) + "\n"


def nodes_json(nodes: Mapping[str, str], datacenter: str | None = None) -> str:
    """``kubectl get nodes -o json``: name -> address, all Ready."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": [_node(*one, datacenter) for one in nodes.items()]})


def pods_json(nodes: Mapping[str, str]) -> str:
    """``kubectl get pods --all-namespaces -o json``: a database and a backend on each node."""
    items = []
    for number, (name, address) in enumerate(nodes.items()):
        items.append(_pod(f"cassandra-{number}", "cassandra", name, address))
        items.append(_pod(f"sdkms-{name}", "sdkms", name, address))
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": items})


def nodetool_status(nodes: Mapping[str, str], datacenter: str = "dc1") -> str:
    """``nodetool status`` with everyone up and normal."""
    lines = [
        f"Datacenter: {datacenter}",
        "===============",
        "Status=Up/Down",
        "|/ State=Normal/Leaving/Joining/Moving",
        "--  Address     Load       Tokens  Owns (effective)  Host ID                               Rack",
    ]
    for number, address in enumerate(nodes.values()):
        host_id = f"5d3c3f0e-55a8-4a7e-9d4e-{number:012d}"
        lines.append(f"UN  {address}  101.5 KiB  16      100.0%            {host_id}  rack1")
    return "\n".join(lines) + "\n\n"


SCHEMA = "2207c2a9-f598-3971-986b-2926e09e239d"


def nodetool_describecluster(versions: Mapping[str, Sequence[str]]) -> str:
    """``nodetool describecluster``: version of the schema (or ``UNREACHABLE``) -> addresses."""
    lines = [
        "Cluster Information:",
        "\tName: sdkms",
        "\tSnitch: org.apache.cassandra.locator.GossipingPropertyFileSnitch",
        "\tDynamicEndPointSnitch: enabled",
        "\tPartitioner: org.apache.cassandra.dht.Murmur3Partitioner",
        "\tSchema versions:",
    ]
    for version, addresses in versions.items():
        lines += [f"\t\t{version}: [{', '.join(addresses)}]", ""]
    return "\n".join([*lines, "Stats for all nodes:", "\tLive: 3", ""])


def jobs_json(cron_jobs: Mapping[str, bool]) -> str:
    """CronJobs by name; those that are True have a Job running."""
    items: list[dict[str, Any]] = [
        {
            "kind": "CronJob",
            "metadata": {"name": name, "namespace": "default"},
            "status": {"active": [{"kind": "Job", "name": f"{name}-1"}]} if running else {},
        }
        for name, running in cron_jobs.items()
    ]
    return json.dumps({"kind": "List", "items": items})


def commands(name: str, nodes: Mapping[str, str], serial: str = "SN-1") -> dict[tuple[str, ...], Any]:
    """Answers of a member ``name`` of a cluster of ``nodes``, for a FakeRunner."""
    nodetool = ("kubectl", "exec", "-n", "default", "cassandra-0", "--", "nodetool")
    return {
        ("ip", "-o", "addr", "show"): ip_addresses(nodes.get(name, "192.0.2.99")),
        ("dmidecode", "-s", "system-serial-number"): serial + "\n",
        ("kubectl", "get", "nodes"): nodes_json(nodes),
        ("kubectl", "get", "pods"): pods_json(nodes),
        ("kubectl", "get", "cronjobs,jobs"): jobs_json({}),
        ("kubectl", "get", "namespace"): json.dumps({"kind": "Namespace", "metadata": {"uid": "uid-" + name}}),
        (*nodetool, "status"): nodetool_status(nodes),
        (*nodetool, "describecluster"): nodetool_describecluster({SCHEMA: list(nodes.values())}),
    }


def kubeconfig(path: Path, ca_pem: str) -> str:
    """An admin.conf whose CA decides the fingerprint; returns its path."""
    data = base64.b64encode(ca_pem.encode()).decode()
    path.write_text(f"apiVersion: v1\nclusters:\n- cluster:\n    certificate-authority-data: {data}\n")
    return str(path)


def witness(name: str, fingerprint: str, members: Sequence[str], membership: str = "member") -> dict[str, Any]:
    """A result of cluster_info as testimony."""
    nodes = [{"name": one, "addresses": [], "up": True, "host_id": None} for one in members]
    return {
        "host": {"name": name, "addresses": []},
        "membership": membership,
        "fingerprint": fingerprint,
        "cluster": {"fingerprint": fingerprint, "nodes": nodes, "version": "5.4.2031"},
        "marker": None,
    }


def _node(name: str, address: str, datacenter: str | None) -> dict[str, Any]:
    labels = {"kubernetes.io/hostname": name, **({"datacenter": datacenter} if datacenter else {})}
    return {
        "kind": "Node",
        "metadata": {"name": name, "creationTimestamp": CREATED, "labels": labels},
        "status": {
            "addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}],
            "conditions": [{"type": "Ready", "status": "True"}],
            "nodeInfo": {"kubeletVersion": "v1.32.0"},
        },
    }


def _pod(name: str, app: str, node: str, address: str) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": app}},
        "spec": {"nodeName": node},
        "status": {
            "phase": "Running",
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"ready": True, "name": app}],
        },
    }
