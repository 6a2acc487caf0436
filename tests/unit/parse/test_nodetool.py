# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ring and the versions of the schema, as nodetool prints them."""

from __future__ import annotations

import pytest
import recordings

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Unreadable
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._parse.nodetool import (
    parse_schema_versions,
    parse_status,
)

LEGEND = "Status=Up/Down\n|/ State=Normal/Leaving/Joining/Moving\n"
HEADER = "--  Address     Load        Tokens  Owns (effective)  Host ID                               Rack \n"


def line(code="UN", address="10.0.0.1", load="217.92 KiB", owns="100.0%", last="1", rack="rack1"):
    return f"{code}  {address}  {load}  4       {owns}            4195f5ac-8cd3-4eff-acd8-c9f18632438{last}  {rack}\n"


def block(*lines, datacenter="dc1"):
    return f"Datacenter: {datacenter}\n===============\n{LEGEND}{HEADER}{''.join(lines)}\n"


@pytest.mark.parametrize("name", recordings.names("nodetool", "status"))
def test_recordings(name):
    ring = {entry.address: entry for entry in parse_status(recordings.text("nodetool", name))}
    assert sorted(entry.datacenter for entry in ring.values()) == ["dc1", "dc2", "dc3"]
    assert ring["10.66.3.11"].code == ("DN" if "one_down" in name else "UN")
    assert ring["10.66.1.11"].normal and ring["10.66.1.11"].up
    assert len({entry.host_id for entry in ring.values()}) == 3


@pytest.mark.parametrize("code", ["UN", "UL", "UJ", "UM", "DN", "DL", "DJ", "DM", "?N"])
def test_states(code):
    (entry,) = parse_status(block(line(code=code)))
    assert entry.code == code
    assert entry.normal is (code == "UN")
    assert entry.up is code.startswith("U")


@pytest.mark.parametrize("load", ["?", "0 bytes", "1.2 GiB", "104,3 KiB", "512 B", "3 TiB", "88.1 MB"])
def test_load_may_be_unknown_old_or_localised(load):
    assert len(parse_status(block(line(load=load)))) == 1


@pytest.mark.parametrize("owns", ["?", "33.3%", "33,3%", "100%"])
def test_ownership_may_be_unknown(owns):
    assert len(parse_status(block(line(owns=owns)).replace(" (effective)", ""))) == 1


@pytest.mark.parametrize(
    ("address", "parsed"),
    [("10.0.0.1:7000", "10.0.0.1"), ("[fd00::1]:7000", "fd00::1"), ("fd00::1", "fd00::1"), ("10.0.0.1", "10.0.0.1")],
)
def test_a_port_is_not_part_of_the_address(address, parsed):
    assert parse_status(block(line(address=address)))[0].address == parsed


def test_several_data_centres_one_with_spaces_in_its_name():
    text = block(line(), datacenter="dc 1") + block(line(address="10.0.0.2", last="2"), datacenter="dc2")
    assert [(entry.datacenter, entry.address) for entry in parse_status(text)] == [
        ("dc 1", "10.0.0.1"),
        ("dc2", "10.0.0.2"),
    ]


def test_the_machine_warns_and_nodetool_remarks():
    text = (
        "OpenJDK 64-Bit Server VM warning: Option UseConcMarkSweepGC was deprecated\n"
        + block(line())
        + "Note: Non-system keyspaces don't have the same replication settings, effective ownership is meaningless\n"
    )
    assert len(parse_status(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "nodetool: Failed to connect to '127.0.0.1:7199' - ConnectException: 'Connection refused'.\n",
        "Datacenter: dc1\n===============\n" + LEGEND,
        block(),
        block(line())[:-30],
        block(line()).rstrip("\n"),
        line(),
        block(line()).replace("Datacenter", "Rechenzentrum"),
        block(line()).replace("Address", "Adresse"),
        block(line(), "error: something\n"),
        block(line(code="XX")),
        block(line(code="UQ")),
        block(line(), line(address="10.0.0.2")),
        block(line(), line(last="2")),
        block(line().replace("4195f5ac", "null")),
        block(line()) + "Datacenter: dc2\nDatacenter: dc3\n" + HEADER + line(address="10.0.0.3", last="3"),
        block(line(load="a lot")),
    ],
)
def test_broken_truncated_localised_and_foreign_is_unreadable(text):
    with pytest.raises(Unreadable):
        parse_status(text)


@pytest.mark.parametrize("cut", range(1, 330, 3))
def test_cut_anywhere_it_is_unreadable_or_a_prefix(cut):
    text = block(line()) + block(line(address="10.0.0.2", last="2"), datacenter="dc2")
    try:
        ring = parse_status(text[: cut % len(text)])
    except Unreadable:
        return
    assert [entry.address for entry in ring] in (["10.0.0.1"], ["10.0.0.1", "10.0.0.2"])
    assert text[: cut % len(text)].endswith("\n")


# -- describecluster ---------------------------------------------------------------------------------------------------

ONE, OTHER = "2207c2a9-f598-3971-986b-2926e09e239d", "65e78f0e-e81e-30d8-a631-a65dff93bf82"
#: As Cassandra 3.11's DescribeCluster writes it: nothing follows the versions.
V3 = (
    "Cluster Information:\n"
    "\tName: sdkms\n"
    "\tSnitch: org.apache.cassandra.locator.DynamicEndpointSnitch\n"
    "\tPartitioner: org.apache.cassandra.dht.Murmur3Partitioner\n"
    "\tSchema versions:\n"
)
#: What 4.0, 4.1 and 5.0 write after them; nothing of it is about the schema.
V4_REST = (
    "Stats for all nodes:\n\tLive: 2\n\tJoining: 0\n\tMoving: 0\n\tLeaving: 0\n\tUnreachable: 1\n"
    "\nData Centers: \n\tdc1 #Nodes: 3 #Down: 1\n"
    "\nDatabase versions:\n\t4.1.9: [10.0.0.1:7000, 10.0.0.2:7000]\n\n"
    "Keyspaces:\n\tsystem -> Replication class: LocalStrategy {}\n"
)


def versions(*lines, rest=""):
    return V3 + "".join(f"\t\t{line}\n\n" for line in lines) + rest


@pytest.mark.parametrize("name", recordings.names("nodetool", "describecluster"))
def test_recorded_schema_versions(name):
    found = parse_schema_versions(recordings.text("nodetool", name))
    down = ("10.66.3.11",) if "one_down" in name else ()
    assert found.unreachable == down and list(found.versions) == ["40702449-8e72-34e9-81e0-05576f926eeb"]
    assert sorted((*found.by_address(), *down)) == ["10.66.1.11", "10.66.2.11", "10.66.3.11"]


@pytest.mark.parametrize("rest", ["", V4_REST], ids=["3.11", "4.0 and later"])
def test_schema_versions_of_old_and_new_releases(rest):
    agreed = parse_schema_versions(versions(f"{ONE}: [10.0.0.1, 10.0.0.2]", rest=rest))
    assert (agreed.versions, agreed.unreachable) == ({ONE: ("10.0.0.1", "10.0.0.2")}, ())
    text = versions(f"{OTHER}: [10.0.0.3]", "UNREACHABLE: [10.0.0.4, 10.0.0.5]", f"{ONE}: [10.0.0.1]", rest=rest)
    split = parse_schema_versions(text)
    assert split.versions == {ONE: ("10.0.0.1",), OTHER: ("10.0.0.3",)}
    assert split.unreachable == ("10.0.0.4", "10.0.0.5")


@pytest.mark.parametrize(
    ("address", "parsed"),
    [
        ("10.0.0.1:7000", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("[fd00:0:0:0:0:0:0:1]:7000", "fd00:0:0:0:0:0:0:1"),
        ("fd00:0:0:0:0:0:0:1", "fd00:0:0:0:0:0:0:1"),
        ("fe80:0:0:0:0:0:0:1%eth0", "fe80:0:0:0:0:0:0:1%eth0"),
    ],
)
def test_a_port_is_not_part_of_an_address_with_a_schema(address, parsed):
    assert parse_schema_versions(versions(f"{ONE}: [{address}, 10.9.9.9]")).versions == {ONE: (parsed, "10.9.9.9")}


def test_remarks_are_no_versions():
    text = "OpenJDK 64-Bit Server VM warning: deprecated\n" + versions(f"{ONE}: [10.0.0.1]", rest=V4_REST)
    remark = "WARN  10:00:00,000 something\n"
    assert parse_schema_versions(text.replace("\t\t" + ONE, remark + "\t\t" + ONE)).versions == {ONE: ("10.0.0.1",)}


GOOD = versions(f"{ONE}: [10.0.0.1, 10.0.0.2]", f"{OTHER}: [10.0.0.3]", rest=V4_REST)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "nodetool: Failed to connect to '127.0.0.1:7199' - ConnectException: 'Connection refused'.\n",
        block(line()),
        V3,
        V3 + "\n",
        versions(rest=V4_REST),
        versions("UNREACHABLE: [10.0.0.1]", rest=V4_REST),
        versions(f"{ONE}: [10.0.0.1]").rstrip("\n"),
        versions(f"{ONE}: [10.0.0.1]")[:-1],
        versions(f"{ONE}: [10.0.0.1]")[:-1] + " and so on\n\n",
        versions(f"{ONE}: []"),
        versions(f"{ONE}: [10.0.0.1,]"),
        versions(f"{ONE}: [10.0.0.1 10.0.0.2]"),
        versions(f"{ONE}: [10.0.0.1, null]"),
        versions(f"{ONE}: 10.0.0.1"),
        versions(f"{ONE[:-1]}: [10.0.0.1]"),
        versions("10.0.0.1: [" + ONE + "]"),
        versions("ERREICHBAR: [10.0.0.1]", f"{ONE}: [10.0.0.2]"),
        versions(f"{ONE}: [10.0.0.1]", f"{ONE}: [10.0.0.2]"),
        versions(f"{ONE}: [10.0.0.1, 10.0.0.1]"),
        versions(f"{ONE}: [10.0.0.1]", f"{OTHER}: [10.0.0.1:7000]"),
        versions(f"{ONE}: [10.0.0.1]", "UNREACHABLE: [10.0.0.1]"),
        GOOD + GOOD,
        GOOD.replace("Schema versions", "Schemaversionen"),
        GOOD.replace("Stats for all nodes:", "error: something"),
        GOOD.replace("\t\t" + OTHER, "\tKeyspaces: 3\n\t\t" + OTHER),
    ],
)
def test_broken_and_foreign_schema_versions_are_unreadable(text):
    with pytest.raises(Unreadable) as caught:
        parse_schema_versions(text)
    assert "describecluster" in caught.value.remedy


def test_schema_versions_cut_anywhere_are_unreadable_or_a_prefix_of_whole_versions():
    first, both = {ONE: ("10.0.0.1", "10.0.0.2")}, {ONE: ("10.0.0.1", "10.0.0.2"), OTHER: ("10.0.0.3",)}
    for cut in range(len(GOOD)):
        text = GOOD[:cut]
        try:
            found = parse_schema_versions(text)
        except Unreadable:
            continue
        assert found.versions == both or (found.versions == first and text.endswith("]\n\n")), text
