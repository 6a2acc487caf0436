# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Topology: every profile in the repository is sound, and a wrong one is told all its mistakes."""

from __future__ import annotations

import ipaddress

import pytest
from labctl import paths, topology
from labctl.errors import UsageError

PROFILES = topology.profiles(paths.LAB / "topology")


def good() -> dict:
    return {
        "sites": {"dc1": 1, "oor": 9},
        "hosts": [
            {"name": "dc1-n1", "role": "member", "site": "dc1", "address": "10.66.1.11"},
            {"name": "landing", "role": "landing", "site": "dc1", "address": "10.66.1.50"},
            {"name": "store", "role": "store", "site": "oor", "address": "10.66.9.50"},
        ],
    }


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_sound(profile: str) -> None:
    site = topology.load(paths.LAB / "topology", profile)
    addresses = [host.address for host in site.hosts] + [topology.CONTROLLER_ADDRESS]
    lab = ipaddress.ip_network(topology.NETWORK)
    assert all(ipaddress.ip_address(address) in lab for address in addresses)
    macs = {topology.mac_of(address) for address in addresses} | {place.mac for place in site.sites}
    assert len(macs) == len(addresses) + len(site.sites)
    assert site.members
    assert site.landing.site in {member.site for member in site.members}
    assert site.store.site.name == topology.CONTROLLER_SITE
    assert all(host.site.name == "oor" for host in site.hosts if host.role in ("dr", "spare", "rollback"))


def test_small_is_what_the_documents_name() -> None:
    site = topology.load(paths.LAB / "topology", "small")
    assert {host.name: host.address for host in site.hosts} == {
        "dc1-n1": "10.66.1.11",
        "dc2-n1": "10.66.2.11",
        "dc3-n1": "10.66.3.11",
        "landing": "10.66.1.50",
        "dr1": "10.66.9.11",
        "spare1": "10.66.9.12",
        "spare2": "10.66.9.13",
        "store": "10.66.9.50",
    }


def test_names_fit_the_kernel() -> None:
    for profile in PROFILES:
        site = topology.load(paths.LAB / "topology", profile)
        assert all(len(host.link) <= 15 for host in site.hosts)
        assert all(len(place.bridge) <= 15 for place in site.sites)


def test_links_and_addresses_follow_from_the_host() -> None:
    host = topology.parse("good", good()).host("dc1-n1")
    assert host.mac == "02:66:0a:42:01:0b"
    assert (host.namespace, host.container, host.link) == ("lab-dc1-n1", "lab-dc1-n1", "v-dc1-n1")
    assert host.site.gateway == "10.66.1.1"
    assert host.serial() != host.serial(1)


def test_all_mistakes_are_told_at_once() -> None:
    wrong = good()
    wrong["hosts"] += [
        {"name": "Dc1_n2", "role": "member", "site": "dc1", "address": "10.66.1.12"},
        {"name": "dc1-n3", "role": "king", "site": "dc1", "address": "10.66.2.13"},
        {"name": "dc1-n4", "role": "member", "site": "dc7", "address": "10.66.7.1"},
        {"name": "dc1-n1", "role": "member", "site": "dc1", "address": "10.66.1.11"},
        {"name": "store2", "role": "store", "site": "oor", "address": topology.CONTROLLER_ADDRESS},
    ]
    with pytest.raises(UsageError) as caught:
        topology.parse("wrong", wrong)
    for part in (
        "'Dc1_n2' is not",
        "role king",
        "10.66.2.13 is not in 10.66.1.0/24",
        "no site dc7",
        "name dc1-n1 is given twice",
        "address 10.66.1.11 is given twice",
        "address 10.66.9.5 is the lab's own",
        "exactly one host of role store",
    ):
        assert part in caught.value.message
    assert caught.value.code == 2


def test_a_site_for_the_controller_is_needed() -> None:
    wrong = good()
    wrong["sites"] = {"dc1": 1}
    wrong["hosts"].pop()
    with pytest.raises(UsageError, match="controller"):
        topology.parse("wrong", wrong)


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    site = topology.parse("good", good())
    with pytest.raises(UsageError) as caught:
        site.host("dc9-n9")
    assert "dc1-n1" in caught.value.remedy
    with pytest.raises(UsageError):
        site.site("dc9")
    with pytest.raises(UsageError) as caught:
        topology.load(paths.LAB / "topology", "../topology/small")
    assert "small" in caught.value.remedy
