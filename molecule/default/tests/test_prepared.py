# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""After preparation and a drill the DR node is empty, production is whole, and the store has what the node opened."""

from __future__ import annotations

import json

import pytest

MEMBERS = ("dc1-n1", "dc2-n1", "dc3-n1")
STORE = "/srv/dsm-store"


def kubectl(host, *words):
    with host.sudo():
        done = host.run(f"KUBECONFIG=/etc/kubernetes/admin.conf kubectl {' '.join(words)}")
    assert done.rc == 0, done.stderr
    return done.stdout


def test_the_dr_node_holds_nothing_of_a_cluster(host, of):
    of("dr1")
    with host.sudo():
        for path in ("/etc/kubernetes/admin.conf", "/var/lib/etcd/member", "/var/lib/cassandra/data"):
            assert not host.file(path).exists, path
    assert not host.process.filter(comm="java")


def test_production_has_its_three_nodes_and_no_fourth(host, of):
    of(*MEMBERS)
    nodes = json.loads(kubectl(host, "get", "nodes", "-o", "json"))["items"]
    assert sorted(node["metadata"]["name"] for node in nodes) == sorted(MEMBERS)


def test_no_token_of_ours_is_left(host, of):
    of("dc1-n1")
    secrets = json.loads(kubectl(host, "get", "secrets", "--namespace", "kube-system", "-o", "json"))["items"]
    tokens = [one for one in secrets if one["type"] == "bootstrap.kubernetes.io/token"]
    assert not [one for one in tokens if "kmsops" in json.dumps(one.get("data", {}))]


@pytest.fixture
def cluster(host, of):
    of("store")
    with host.sudo():
        found = host.run(f"ls {STORE}").stdout.split()
        assert len(found) == 1, found
        yield f"{STORE}/{found[0]}"


def test_a_published_backup_is_sealed_for_the_dr_node_as_a_member(host, cluster):
    manifests = host.run(f"ls {cluster}/backups/*/manifest.json").stdout.split()
    assert manifests
    sealed = [one for path in manifests for one in json.loads(host.file(path).content_string)["sealed_for"]]
    assert [one for one in sealed if one["node"] == "dr1" and one["member"] and one["joined_at"]]


def test_nothing_half_done_is_left_in_the_store(host, cluster):
    assert host.run(f"find {cluster}/incoming -type f").stdout == ""


def test_the_ledger_tells_the_story_in_order(host, cluster):
    lines = host.file(f"{cluster}/ledger.jsonl").content_string.splitlines()
    kinds = [json.loads(line)["kind"] for line in lines]
    story = ["joined", "backup_started", "shipped", "verified", "removed", "set_aside"]
    places = [kinds.index(kind) for kind in story]
    assert places == sorted(places), kinds
    assert kinds.count("set_aside") == 1, "the second run recorded something again"


def test_the_pulling_key_can_do_nothing_but_read(host, of):
    of("landing")
    with host.sudo():
        line = host.file("/home/dsmbackup/.ssh/authorized_keys").content_string
    assert 'restrict,command="internal-sftp -R"' in line


def test_the_drill_was_recorded_to_its_end(host, cluster):
    events = [json.loads(line) for line in host.file(f"{cluster}/ledger.jsonl").content_string.splitlines()]
    drill = [event for event in events if event["kind"] in ("trial_created", "restored", "proved", "trial_reset")]
    assert [event["kind"] for event in drill] == ["trial_created", "restored", "proved", "trial_reset"]
    assert {event["subject"] for event in drill} == {"dr1"}
    assert drill[1]["data"]["drill"] is True
    assert drill[0]["data"]["fingerprint"] == drill[3]["data"]["fingerprint"]


def test_every_command_ran_as_often_as_it_had_to_and_no_more(host, of):
    """The create outlived its controller and was not repeated."""
    of("dr1")
    with host.sudo():
        started = [line.split()[2] for line in host.file("/var/log/standin-commands.log").content_string.splitlines()]
    assert started == ["join", "reset", "create", "restore-all", "reset"]


def test_the_isolation_of_the_drill_is_lifted(host, of):
    of("dr1")
    assert host.addr("10.66.1.11").port(22).is_reachable


def test_no_backup_of_the_trial_was_even_tried(host, of):
    """Its config.yaml said every minute, to production's own directory."""
    of("dr1")
    with host.sudo():
        assert "* * * * *" in host.file("/etc/dsm/config.yaml").content_string
        assert not host.file("/var/log/standin-backup.log").exists
