# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ring as nodetool prints it."""

from __future__ import annotations

import pytest
import recordings

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Unreadable
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._parse.nodetool import parse_status

LEGEND = "Status=Up/Down\n|/ State=Normal/Leaving/Joining/Moving\n"
HEADER = "--  Address     Load        Tokens  Owns (effective)  Host ID                               Rack \n"


def line(code="UN", address="10.0.0.1", load="217.92 KiB", owns="100.0%", last="1", rack="rack1"):
    return f"{code}  {address}  {load}  4       {owns}            4195f5ac-8cd3-4eff-acd8-c9f18632438{last}  {rack}\n"


def block(*lines, datacenter="dc1"):
    return f"Datacenter: {datacenter}\n===============\n{LEGEND}{HEADER}{''.join(lines)}\n"


@pytest.mark.parametrize("name", recordings.names("nodetool"))
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
