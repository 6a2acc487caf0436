# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a cluster is thin, which labels are wanted, and what a whole member is."""

from __future__ import annotations

import dataclasses

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import model, topology


def member(
    name, datacenter="dc1", ring="UN", ring_datacenter=None, ready=True, pods=("cassandra", "sdkms"), kubelet="v1"
):
    address = f"10.0.0.{name[1:]}"
    entry = (
        model.RingNode(ring_datacenter or datacenter or "datacenter1", ring, address, f"id-{name}", "r")
        if ring
        else None
    )
    own = tuple(model.Pod(f"{app}-{name}", app, name, "Running", True, address) for app in pods)
    return model.Member(name, (address,), ready, datacenter, "2026-11-22T00:00:00Z", entry, own, kubelet=kubelet)


def cluster(*members, ring_known=True):
    return model.Cluster(tuple(members), ring_known)


def codes(*members, ring_known=True):
    return sorted({spot["code"] for spot in topology.thin_spots(cluster(*members, ring_known=ring_known))})


def spread(*datacenters):
    return [member(f"n{index}", datacenter) for index, datacenter in enumerate(datacenters)]


@pytest.mark.parametrize(
    ("datacenters", "expected"),
    [
        (("dc1", "dc2", "dc3"), []),
        (("dc1", "dc1", "dc2", "dc2", "dc3"), []),
        (("dc1",), ["FEWER_THAN_THREE_DATACENTERS", "FEWER_THAN_THREE_NODES"]),
        ((None,), ["FEWER_THAN_THREE_NODES", "UNLABELLED"]),
        (("dc1", "dc2"), ["FEWER_THAN_THREE_DATACENTERS", "FEWER_THAN_THREE_NODES", "ONE_SITE_DECIDES"]),
        (("dc1", "dc1", "dc2"), ["FEWER_THAN_THREE_DATACENTERS", "ONE_SITE_DECIDES"]),
        (("dc1", "dc1", "dc2", "dc3"), ["EVEN_COUNT", "ONE_SITE_DECIDES"]),
        (("dc1", "dc2", "dc3", "oor"), ["EVEN_COUNT"]),
        (("dc1", "dc2", None), ["FEWER_THAN_THREE_DATACENTERS", "UNLABELLED"]),
        ((None, None, None), ["UNLABELLED"]),
    ],
)
def test_layouts(datacenters, expected):
    assert codes(*spread(*datacenters)) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ready": False}, ["NODE_NOT_READY"]),
        ({"ready": None}, ["NODE_NOT_READY"]),
        ({"ring": "DN"}, ["RING_NOT_NORMAL"]),
        ({"ring": "UJ"}, ["RING_NOT_NORMAL"]),
        ({"ring": None}, ["NODE_WITHOUT_RING"]),
        ({"pods": ("cassandra",)}, ["POD_NOT_READY"]),
        ({"pods": ()}, ["POD_NOT_READY"]),
        ({"ring_datacenter": "datacenter1"}, ["LABELLED_LATE"]),
        ({"kubelet": "v2"}, ["MIXED_VERSIONS"]),
    ],
)
def test_one_node_that_is_not_well(changes, expected):
    first, second, _third = spread("dc1", "dc2", "dc3")
    assert codes(first, second, member("n2", "dc3", **changes)) == expected
    whole = topology.whole(member("n2", "dc3", **changes))
    assert whole is (expected in (["LABELLED_LATE"], ["MIXED_VERSIONS"]))


def test_a_ring_that_is_not_known_is_one_finding_and_not_three():
    members = [dataclasses.replace(one, ring=None) for one in spread("dc1", "dc2", "dc3")]
    assert codes(*members, ring_known=False) == ["RING_UNKNOWN"]


def test_a_ghost_in_the_ring_is_found():
    ghost = model.Member("10.0.0.9", ("10.0.0.9",), None, "dc3", "", member("n9").ring, in_kubernetes=False)
    assert "RING_WITHOUT_NODE" in codes(*spread("dc1", "dc2", "dc3"), ghost)


def test_a_plan_changes_what_differs_and_nothing_else():
    seen = cluster(member("n0", "dc1"), member("n1", None, ring_datacenter="dc2"), member("n2", None, ring=None))
    plan = topology.plan_labels(seen, {"n0": "dc1", "n1": "dc2", "n2": "dc3"})
    assert plan.change == {"n1": "dc2", "n2": "dc3"}
    assert (plan.overwrite, plan.reasons) == ((), ())
    assert plan.before == {"n0": "dc1", "n1": None, "n2": None}
    assert plan.after == {"n0": "dc1", "n1": "dc2", "n2": "dc3"}


def test_relabelling_a_node_without_data_is_no_reason():
    seen = cluster(member("n0", "dc1"), member("n1", "dc2"), member("n2", "dc9", ring=None))
    plan = topology.plan_labels(seen, {"n0": "dc1", "n1": "dc2", "n2": "dc3"})
    assert (plan.overwrite, plan.reasons) == (("n2",), ())


def test_relabelling_is_a_reason_while_nobody_knows_whether_there_is_data():
    seen = cluster(member("n0", "dc9", ring=None), ring_known=False)
    assert [reason.code for reason in topology.plan_labels(seen, {"n0": "dc1"}).reasons] == ["RELABEL"]


def test_a_node_that_only_the_ring_knows_cannot_be_labelled():
    ghost = model.Member("10.0.0.9", ("10.0.0.9",), None, "dc3", "", member("n9").ring, in_kubernetes=False)
    plan = topology.plan_labels(cluster(member("n0", "dc1"), ghost), {"n0": "dc1", "10.0.0.9": "dc2"})
    assert [reason.code for reason in plan.reasons] == ["NODE_UNKNOWN"]


def test_spelling_is_compared_with_what_is_there_already():
    seen = cluster(member("n0", "DC1"), member("n1", None, ring_datacenter="dc1"))
    assert "NAME_SPELLING" in [reason.code for reason in topology.plan_labels(seen, {"n1": "dc1"}).reasons]
