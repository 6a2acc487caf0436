# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""After the plan three nodes out of region hold production's data, and the ledger says where it came from."""

from __future__ import annotations

import json

import pytest

NODES = ("dr1", "spare1", "spare2")
STORE = "/srv/dsm-store"


def test_three_nodes_are_ready(host, of):
    of(*NODES)
    with host.sudo():
        done = host.run("KUBECONFIG=/etc/kubernetes/admin.conf kubectl get nodes -o json")
    nodes = json.loads(done.stdout)["items"]
    ready = [
        node["metadata"]["name"]
        for node in nodes
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready" and condition["status"] == "True"
    ]
    assert sorted(ready) == sorted(NODES)


@pytest.mark.parametrize("question", ["", "?consistency=quorum", "?consistency=all"])
def test_every_node_answers_healthy(host, of, question):
    of(*NODES)
    done = host.run(f"curl -ks -o /dev/null -w '%{{http_code}}' 'https://127.0.0.1/sys/v1/health{question}'")
    assert done.stdout == "204"


def test_the_ledger_says_what_was_restored_and_proved(host, of):
    of("store")
    with host.sudo():
        events = [json.loads(line) for line in host.run(f"cat {STORE}/*/ledger.jsonl").stdout.splitlines()]
    kinds = [event["kind"] for event in events]
    story = ["joined", "set_aside", "trial_created", "restored", "proved", "expanded"]
    places = [kinds.index(kind) for kind in story]
    assert places == sorted(places), kinds
    restored = [event for event in events if event["kind"] == "restored"]
    assert len(restored) == 1, "restored twice"
    assert restored[0]["data"]["drill"] is False


def test_the_service_was_fenced_opened_accepted_and_is_backed_up_again(host, of):
    of("store")
    with host.sudo():
        events = [json.loads(line) for line in host.run(f"cat {STORE}/*/ledger.jsonl").stdout.splitlines()]
        old, new = json.loads(host.run(f"cat {STORE}/*/store.json").stdout)["generations"]
    about = {kind: [event for event in events if event["kind"] == kind] for kind in ("fenced", "accepted", "shipped")}
    assert [event["data"]["fingerprint"] for event in about["fenced"]] == [old["fingerprint"]]
    assert about["fenced"][0]["data"]["probed"] == ["10.66.1.11", "10.66.2.11", "10.66.3.11"]
    assert [(event["data"]["fingerprint"], event["data"]["by"]) for event in about["accepted"]] == [
        (new["fingerprint"], "the story")
    ]
    first = [event["subject"] for event in about["shipped"] if event["data"]["fingerprint"] == new["fingerprint"]]
    assert len(first) == 1, "a second run took a second backup"
    verdicts = [
        event["data"]["verdict"] for event in events if event["kind"] == "verified" and event["subject"] in first
    ]
    assert verdicts[-1] == "ok"
    kinds = [event["kind"] for event in events]
    assert kinds.index("fenced") < kinds.index("accepted") < len(kinds) - kinds[::-1].index("shipped")


def test_the_new_cluster_cannot_overwrite_production_backups(host, of):
    of("dr1")
    with host.sudo():
        derived = host.run("find /var/lib/kmsops -name '*.yaml'").stdout.split()
        assert derived, "the cluster was not created with a configuration of its own"
        for path in derived:
            assert "/home/dsmbackup/backup" not in host.file(path).content_string, path


def test_no_settings_of_any_member_name_where_production_delivered_to(host, of):
    """On the DR node and one spare the operator had left production's file, on the other one without a destination."""
    of(*NODES)
    with host.sudo():
        settings = host.file("/etc/dsm/config.yaml")
        assert "10.66.1.50" not in settings.content_string
        assert "10.66.9.50" in settings.content_string
        assert settings.mode == 0o600


def test_every_command_ran_as_often_as_it_had_to_and_no_more(host, of):
    """The join outlived its controller and was not repeated; create and load-database died once each."""
    of("dr1")
    with host.sudo():
        started = [line.split()[2] for line in host.file("/var/log/standin-commands.log").content_string.splitlines()]
    assert started.count("join") == 1
    assert started.count("create") == 3, "died, restore died, recovered"
    assert started.count("reset") == 3, "removed, two trials that were half done"
    assert started.count("load-database") == 2
    assert started.count("start-backend") == 1


def test_the_backup_came_with_a_part_of_every_member(host, of):
    of("store")
    with host.sudo():
        parts = host.run(f"ls {STORE}/*/backups/*/data").stdout.split()
    assert {"dc1-n1", "dc2-n1", "dc3-n1", "dr1"} <= set(parts), parts
