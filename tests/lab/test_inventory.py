# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The inventory: the groups of a real site, every host once, and connection variables without templates."""

from __future__ import annotations

from pathlib import Path

import yaml
from labctl import inventory, paths, topology


def rendered(profile: str = "small") -> dict:
    site = topology.load(paths.LAB / "topology", profile)
    text = inventory.render(
        site,
        state=Path("/run/kmsops-lab"),
        command=Path("/somewhere/lab/lab"),
        host_keys={host.name: f"ssh-ed25519 KEY-OF-{host.name}" for host in site.hosts},
        serials={host.name: host.serial() for host in site.hosts},
    )
    return yaml.safe_load(text)["all"]


def test_every_host_stands_in_its_group() -> None:
    groups = {name: sorted(group["hosts"]) for name, group in rendered()["children"].items()}
    assert groups == {
        "dsm_nodes": ["dc1-n1", "dc2-n1", "dc3-n1"],
        "dsm_dr_nodes": ["dr1"],
        "dsm_spare_nodes": ["spare1", "spare2"],
        "dsm_rollback_nodes": [],
        "dsm_backup_sources": ["landing"],
        "dsm_store": ["store"],
    }


def test_connections_hold_no_template() -> None:
    everything = rendered()
    variables = [everything["vars"]]
    variables += [host for group in everything["children"].values() for host in group["hosts"].values()]
    connection = [(key, value) for each in variables for key, value in each.items() if key.startswith("ansible_")]
    assert len(connection) > 10
    assert not [key for key, value in connection if "{{" in str(value)]


def test_host_keys_are_checked() -> None:
    words = rendered()["vars"]["ansible_ssh_common_args"]
    assert "StrictHostKeyChecking=yes" in words
    assert "UserKnownHostsFile=/run/kmsops-lab/known_hosts" in words


def test_no_secret_is_written_down() -> None:
    assert rendered()["vars"]["dsm_backup"]["scp"]["password"] == "{{ dsm_scp_password }}"


def test_a_host_is_told_as_an_operator_would() -> None:
    host = rendered()["children"]["dsm_dr_nodes"]["hosts"]["dr1"]
    assert (host["ansible_host"], host["dsm_address"], host["dsm_prefix"]) == ("10.66.9.11", "10.66.9.11", 24)
    assert (host["dsm_datacenter"], host["dsm_serial"]) == ("oor", "STANDIN-DR1-001")


def test_isolation_and_service_name_the_rehearsal_host() -> None:
    variables = rendered()["vars"]
    assert variables["dsm_isolate_argv"] == ["/somewhere/lab/lab", "isolate-host", "dr1"]
    assert variables["dsm_unisolate_argv"] == ["/somewhere/lab/lab", "unisolate-host", "dr1"]
    assert variables["dsm_open_service_steps"][0]["argv"] == ["/somewhere/lab/lab", "service-address", "dr1"]


def test_both_restore_families_take_one_backup() -> None:
    for steps in inventory.RESTORE_FAMILIES.values():
        words = [word for step in steps for word in step["argv"] if word.startswith("{")]
        assert len(words) == 1
        assert all(step["argv"][0].startswith("/") for step in steps)


def test_the_newer_release_is_the_other_way_in_everything() -> None:
    small, newer = rendered(), rendered("newer")
    for one, scp, layout, steps in ((small, "password", "single", 1), (newer, "private key", "per_node", 4)):
        source = one["children"]["dsm_backup_sources"]["hosts"]["landing"]["dsm_backup_source"]
        assert one["vars"]["dsm_backup"]["scp"]["authmode"] == scp
        assert (source["layout"], len(one["vars"]["dsm_restore_steps"])) == (layout, steps)
    assert "password" not in newer["vars"]["dsm_backup"]["scp"]
    assert source["path"].endswith("/backup/*/*")  # the parts, one for each node


def test_after_a_recovery_the_store_itself_takes_the_deliveries() -> None:
    for one in (rendered(), rendered("newer")):
        variables = one["vars"]
        store = one["children"]["dsm_store"]["hosts"]["store"]["ansible_host"]
        before, after = variables["dsm_backup"], variables["dsm_recovery_backup"]
        assert after == {**before, "scp": {**before["scp"], "server_ip": store}}
        delivered = one["children"]["dsm_backup_sources"]["hosts"]["landing"]["dsm_backup_source"]
        assert variables["dsm_recovery_sources"] == [{"path": delivered["path"], "layout": delivered["layout"]}]
