# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""``kubectl get -o json`` of nodes, pods, jobs and namespaces, and how kubectl fails.

Fact of the real tool: without etcd quorum ``get -o json`` prints an *empty list* and ends with exit code 1. So an
exit code that is not 0 is never a list, and a cluster without nodes does not exist.
"""

from __future__ import annotations

import json
import re
import typing as t

from .._core.model import DATACENTER_LABEL, KubeNode, Pod
from .._errors import Unreadable

REFUSED, UNAUTHORIZED, NOT_VERIFIED, NO_ANSWER, NO_QUORUM, NOT_FOUND, OTHER = (
    "refused",
    "unauthorized",
    "not_verified",
    "no_answer",
    "no_quorum",
    "not_found",
    "other",
)

_FAILURES = (
    # Not "Forbidden": an apiserver that was restarted without etcd quorum says that to everybody.
    (UNAUTHORIZED, r"\(Unauthorized\)"),
    (NOT_VERIFIED, r"x509: |tls: "),
    (NO_QUORUM, r"etcdserver: |etcd cluster is unavailable"),
    (NOT_FOUND, r"\(NotFound\)"),
    (REFUSED, r"connection refused|was refused - did you specify"),
    (NO_ANSWER, r"i/o timeout|no route to host|network is unreachable|TLS handshake timeout|deadline exceeded|Timeout"),
)


def failure_kind(stderr: str) -> str:
    """Why kubectl failed. kubectl speaks English only, so its words can be read; unknown ones are ``other``."""
    for kind, pattern in _FAILURES:
        if re.search(pattern, stderr):
            return kind
    return OTHER


def parse_nodes(text: str, rc: int = 0) -> list[KubeNode]:
    """Node objects.

    :raises Unreadable: an exit code other than 0, no JSON list, an object without a name, or no node at all
    """
    nodes = [_node(item) for item in _items(text, rc, "nodes", "Node")]
    if not nodes:
        raise _unreadable("nodes", "the list is empty, and a cluster without nodes does not exist")
    return nodes


def parse_pods(text: str, rc: int = 0) -> list[Pod]:
    """Pod objects; the list may be empty."""
    return [_pod(item) for item in _items(text, rc, "pods", "Pod")]


def parse_uid(text: str, rc: int = 0) -> str:
    """``metadata.uid`` of one object."""
    value = _json(text, rc, "object")
    uid = _at(value, "metadata", "uid")
    if not isinstance(uid, str) or not uid:
        raise _unreadable("object", "it has no uid")
    return uid


def parse_running(text: str, rc: int = 0) -> list[str]:
    """Names of the CronJobs and Jobs of a mixed list that have something running now."""
    items = _json(text, rc, "jobs")
    items = items.get("items") if isinstance(items, dict) and items.get("kind") == "List" else None
    if not isinstance(items, list):
        raise _unreadable("jobs", "it is not a list of objects")
    found = []
    for item in items:
        name = _at(item, "metadata", "name")
        if _at(item, "kind") not in ("CronJob", "Job") or not isinstance(name, str):
            raise _unreadable("jobs", "an item is no CronJob and no Job, or has no name")
        # A CronJob lists its running Jobs, a Job counts its running pods; both leave the field out when there are none.
        if _at(item, "status", "active"):
            found.append(name)
    return sorted(set(found))


def _items(text: str, rc: int, what: str, kind: str) -> list[dict[str, t.Any]]:
    value = _json(text, rc, what)
    items = value.get("items") if isinstance(value, dict) else None
    if not isinstance(items, list) or value.get("kind") not in ("List", f"{kind}List"):
        raise _unreadable(what, "it is not a list of objects")
    for item in items:
        if not isinstance(item, dict) or item.get("kind", kind) != kind:
            raise _unreadable(what, f"an item is no {kind}")
    return items


def _json(text: str, rc: int, what: str) -> t.Any:
    if rc != 0:
        raise _unreadable(what, f"kubectl ended with exit code {rc}, so what it printed does not count")
    try:
        return json.loads(text)
    except ValueError:
        raise _unreadable(what, "it is empty, cut off, or not JSON") from None


def _node(item: dict[str, t.Any]) -> KubeNode:
    name, created = _at(item, "metadata", "name"), _at(item, "metadata", "creationTimestamp")
    addresses, conditions = _at(item, "status", "addresses") or [], _at(item, "status", "conditions") or []
    if not isinstance(name, str) or not name or not isinstance(created, str):
        raise _unreadable("nodes", "a node has no name or no creation time")
    if not isinstance(addresses, list) or not isinstance(conditions, list):
        raise _unreadable("nodes", f"the status of {name} has another form than expected")
    label = (_at(item, "metadata", "labels") or {}).get(DATACENTER_LABEL)
    return KubeNode(
        name,
        tuple(
            str(entry["address"])
            for entry in addresses
            if entry.get("type") in ("InternalIP", "ExternalIP") and entry.get("address")
        ),
        _condition(conditions),
        str(label) if label else None,
        created,
        str(_at(item, "status", "nodeInfo", "kubeletVersion") or ""),
    )


def _pod(item: dict[str, t.Any]) -> Pod:
    name, phase = _at(item, "metadata", "name"), _at(item, "status", "phase")
    if not isinstance(name, str) or not name or not isinstance(phase, str):
        raise _unreadable("pods", "a pod has no name or no phase")
    node, address = _at(item, "spec", "nodeName"), _at(item, "status", "podIP")
    conditions = _at(item, "status", "conditions") or []
    if not isinstance(conditions, list):
        raise _unreadable("pods", f"the status of {name} has another form than expected")
    # Set when the pod is being deleted: whatever its conditions still say, nobody can rely on it.
    leaving = _at(item, "metadata", "deletionTimestamp") is not None
    return Pod(
        name,
        str((_at(item, "metadata", "labels") or {}).get("app") or ""),
        str(node) if node else None,
        phase,
        phase == "Running" and _condition(conditions) is True and not leaving,
        str(address) if address else None,
        str(_at(item, "metadata", "namespace") or "default"),
    )


def _condition(conditions: list[dict[str, t.Any]]) -> bool | None:
    """Condition ``Ready``: True, False, or None for ``Unknown`` and for a node that has not reported yet."""
    for condition in conditions:
        if condition.get("type") == "Ready":
            return {"True": True, "False": False}.get(str(condition.get("status")))
    return None


def _at(value: t.Any, *path: str) -> t.Any:
    for key in path:
        if not isinstance(value, dict):
            return None
        value = value.get(key)
    return value


def _unreadable(what: str, problem: str) -> Unreadable:
    return Unreadable(
        f"The output of kubectl get {what} cannot be understood: {problem}.",
        remedy="Run it by hand on that member with the same KUBECONFIG.",
        tool="kubectl",
    )
