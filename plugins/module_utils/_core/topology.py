# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Data centres: labels as wanted and as they are, and where a cluster is thin."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from . import quorum
from .model import MEMBER_APPS, Cluster, Member
from .reasons import Reason

_LABEL = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")


@dataclass(frozen=True)
class LabelPlan:
    """``change``: node name to the data centre it gets. ``overwrite``: those of them that had another one."""

    before: dict[str, str | None]
    after: dict[str, str | None]
    change: dict[str, str]
    overwrite: tuple[str, ...]
    reasons: tuple[Reason, ...]


def plan_labels(cluster: Cluster, wanted: t.Mapping[str, str]) -> LabelPlan:
    """What to label. First labelling is not relabelling; relabelling a node that holds data is never silent."""
    reasons: list[Reason] = []
    nodes = {member.name: member for member in cluster.members if member.in_kubernetes}
    unknown = sorted(set(wanted) - set(nodes))
    if unknown:
        reasons.append(
            Reason(
                "NODE_UNKNOWN",
                f"no such node: {', '.join(unknown)}. There are: {', '.join(sorted(nodes))}.",
                "Names are those of kubectl get nodes. Wait for the node object of a node that is joining.",
            )
        )
    invalid = sorted({name for name in wanted.values() if not _LABEL.match(name)})
    if invalid:
        reasons.append(
            Reason(
                "NAME_INVALID",
                f"not usable as a label: {', '.join(map(repr, invalid))}.",
                "Use letters, digits, dashes, dots and underscores, at most 63 of them.",
            )
        )
    reasons += _spelling(set(wanted.values()) | {m.datacenter for m in nodes.values() if m.datacenter})
    change = {
        name: datacenter
        for name, datacenter in sorted(wanted.items())
        if name in nodes and nodes[name].datacenter != datacenter
    }
    overwrite = tuple(name for name in change if nodes[name].datacenter)
    for name in overwrite:
        if nodes[name].ring is not None or not cluster.ring_known:
            reasons.append(
                Reason(
                    "RELABEL",
                    f"{name} holds data in {nodes[name].datacenter!r} and would move to {change[name]!r}.",
                    "Replica placement changes. Follow the vendor's data centre labelling article.",
                    hard=False,
                )
            )
    before = {name: member.datacenter for name, member in sorted(nodes.items())}
    after = {name: wanted.get(name, datacenter) for name, datacenter in before.items()}
    bare = sorted(name for name, datacenter in after.items() if not datacenter)
    if bare and any(after.values()):
        reasons.append(
            Reason(
                "PARTIAL_LABELS",
                f"without a data centre would remain: {', '.join(bare)}.",
                "Label all nodes: unlabelled ones land in a default data centre and break local quorum.",
                hard=False,
            )
        )
    return LabelPlan(before, after, change, overwrite, tuple(reasons))


def labelled_late(cluster: Cluster) -> list[str]:
    """Nodes whose database already lives in another data centre than their label says."""
    return [
        member.name
        for member in cluster.members
        if member.in_kubernetes
        and member.datacenter
        and member.ring is not None
        and member.ring.datacenter != member.datacenter
    ]


def whole(member: Member) -> bool:
    """Whether a node is all that a person would check: Ready, up and normal in the ring, its pods ready [inferred]."""
    return (
        member.ready is True
        and member.ring is not None
        and member.ring.normal
        and all(any(pod.app == app and pod.ready for pod in member.pods) for app in MEMBER_APPS)
    )


def _spelling(names: set[str]) -> list[Reason]:
    """Names that differ in case only are a typing error: the database takes them for two data centres."""
    folded: dict[str, set[str]] = {}
    for name in names:
        folded.setdefault(name.casefold(), set()).add(name)
    return [
        Reason(
            "NAME_SPELLING",
            f"one data centre, written in several ways: {', '.join(sorted(group))}.",
            "Write every data centre in one way, the way in which nodes are labelled already.",
        )
        for group in folded.values()
        if len(group) > 1
    ]


def thin_spots(cluster: Cluster) -> list[dict[str, str]]:
    """Where this cluster is weaker than a person may think, as ``{code, message}``."""
    found: list[tuple[str, str]] = []
    picture = cluster.picture()
    size, known = picture.everything.size, cluster.ring_known
    if size < 3:
        found.append(("FEWER_THAN_THREE_NODES", f"{size} nodes tolerate no failure; 3 are the least."))
    elif size % 2 == 0:
        found.append(
            ("EVEN_COUNT", f"{size} nodes tolerate {quorum.tolerated(size)} failures, no more than {size - 1} do.")
        )
    labelled = [member for member in cluster.members if member.datacenter]
    if labelled and len(picture.datacenters) < 3:
        found.append(
            ("FEWER_THAN_THREE_DATACENTERS", f"{len(picture.datacenters)} data centres: the larger one is all of it.")
        )
    bare = [member.name for member in cluster.members if not member.datacenter]
    if bare:
        found.append(("UNLABELLED", f"no data centre label, so no read-only mode: {', '.join(bare)}."))
    heaviest = max(picture.datacenters.items(), key=lambda item: item[1].size, default=None)
    if heaviest is not None and len(picture.datacenters) > 1:
        name, count = heaviest
        if size - count.size < quorum.needed(size):
            found.append(("ONE_SITE_DECIDES", f"losing {name} ({count.size} of {size} nodes) loses the global quorum."))
    for member in cluster.members:
        if not member.in_kubernetes:
            found.append(("RING_WITHOUT_NODE", f"the database ring knows {member.name}, Kubernetes does not."))
            continue
        if member.ready is not True:
            found.append(("NODE_NOT_READY", f"{member.name} is not ready."))
        if known and member.ring is None:
            found.append(("NODE_WITHOUT_RING", f"{member.name} is not in the database ring."))
        elif member.ring is not None and not member.ring.normal:
            found.append(("RING_NOT_NORMAL", f"{member.name} is {member.ring.code} in the database ring."))
        for app in MEMBER_APPS:
            if not any(pod.app == app and pod.ready for pod in member.pods):
                found.append(("POD_NOT_READY", f"{member.name} has no {app} pod that is ready."))
    for name in labelled_late(cluster):
        found.append(("LABELLED_LATE", f"{name} was labelled after its database had started in another data centre."))
    if not known:
        found.append(("RING_UNKNOWN", f"the database ring could not be read: {cluster.ring_problem or 'no pod'}."))
    if len({member.kubelet for member in cluster.members if member.kubelet}) > 1:
        found.append(("MIXED_VERSIONS", "nodes run different releases: an upgrade is under way or stopped half-way."))
    return [{"code": code, "message": message} for code, message in found]
