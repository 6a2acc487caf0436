# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What is known of a cluster: plain values, no input or output, no clock."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from . import quorum

#: Label key of the data centre of a node [doc].
DATACENTER_LABEL = "datacenter"
#: Pods that a healthy member runs: label ``app`` [doc for sdkms; inferred for cassandra].
MEMBER_APPS = ("cassandra", "sdkms")


@dataclass(frozen=True)
class KubeNode:
    """One Node object. ``ready`` is None when the control plane does not know. ``created`` is UTC, ISO 8601."""

    name: str
    addresses: tuple[str, ...]
    ready: bool | None
    datacenter: str | None
    created: str
    kubelet: str


@dataclass(frozen=True)
class Pod:
    """One Pod object."""

    name: str
    app: str
    node: str | None
    phase: str
    ready: bool
    address: str | None
    namespace: str = "default"

    def as_dict(self) -> dict[str, t.Any]:
        """For results."""
        return {"name": self.name, "app": self.app, "phase": self.phase, "ready": self.ready, "address": self.address}


@dataclass(frozen=True)
class RingNode:
    """One line of ``nodetool status``. ``code`` such as ``UN``: up or down, then normal, leaving, joining, moving."""

    datacenter: str
    code: str
    address: str
    host_id: str
    rack: str

    @property
    def up(self) -> bool:
        return self.code[0] == "U"

    @property
    def normal(self) -> bool:
        return self.code == "UN"


@dataclass(frozen=True)
class Member:
    """A node of the cluster as all sources together show it.

    ``in_kubernetes`` is False for a node that only the database ring still knows (a removal that stopped half-way); its
    name is then its ring address. ``ring`` is None where the ring was read and does not know the node, or was not read.
    """

    name: str
    addresses: tuple[str, ...]
    ready: bool | None
    datacenter: str | None
    created: str
    ring: RingNode | None
    pods: tuple[Pod, ...] = ()
    in_kubernetes: bool = True
    kubelet: str = ""

    def up(self, ring_known: bool) -> bool:
        """Counts for quorum: Ready in Kubernetes and, where the ring was read, up and normal there."""
        if not self.in_kubernetes:
            return self.ring is not None and self.ring.normal
        return self.ready is True and (not ring_known or (self.ring is not None and self.ring.normal))

    def answers_to(self, names: t.Iterable[str]) -> bool:
        """Whether any of these names, addresses or host ids is this member's."""
        mine = {self.name, *self.addresses}
        if self.ring is not None:
            mine.update((self.ring.address, self.ring.host_id))
        return not mine.isdisjoint(names)

    def as_dict(self) -> dict[str, t.Any]:
        """For results."""
        return {
            "name": self.name,
            "addresses": list(self.addresses),
            "ready": self.ready,
            "datacenter": self.datacenter,
            "created": self.created,
            "host_id": self.ring.host_id if self.ring else None,
            "ring": self.ring.code if self.ring else None,
            "ring_datacenter": self.ring.datacenter if self.ring else None,
            "pods": [pod.as_dict() for pod in self.pods],
            "in_kubernetes": self.in_kubernetes,
            "kubelet": self.kubelet,
        }


@dataclass(frozen=True)
class Cluster:
    """A cluster as one member shows it. ``ring_known`` is False when no database pod could be asked."""

    members: tuple[Member, ...]
    ring_known: bool
    uid: str | None = None
    fingerprint: str | None = None
    version: str | None = None
    server_mode: str | None = None
    ring_problem: str | None = None
    health: dict[str, t.Any] = field(default_factory=dict)

    def member(self, *names: str) -> Member | None:
        """The member that answers to any of these names, addresses or host ids."""
        return next((member for member in self.members if member.answers_to(names)), None)

    def picture(self) -> quorum.Picture:
        return quorum.picture((member.datacenter, member.up(self.ring_known)) for member in self.members)


def compose(
    nodes: t.Iterable[KubeNode], pods: t.Iterable[Pod], ring: t.Sequence[RingNode] | None
) -> tuple[Member, ...]:
    """Bring Node objects, pods and ring together. ``ring`` None means: not read.

    A ring address is a node's own or that of its database pod [inferred: the pod network may be the host's or not].
    """
    members = []
    left = list(ring or ())
    pods = list(pods)
    for node in nodes:
        own = tuple(pod for pod in pods if pod.node == node.name)
        known = {*node.addresses, *(pod.address for pod in own if pod.app == "cassandra" and pod.address)}
        found = next((entry for entry in left if entry.address in known), None)
        if found is not None:
            left.remove(found)
        members.append(
            Member(
                node.name, node.addresses, node.ready, node.datacenter, node.created, found, own, kubelet=node.kubelet
            )
        )
    for entry in left:
        members.append(Member(entry.address, (entry.address,), None, entry.datacenter, "", entry, in_kubernetes=False))
    return tuple(members)
