# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""After everything that was tried and refused the site is what it was before, healthy and complete."""

from __future__ import annotations

import json

import pytest

MEMBERS = ("dc1-n1", "dc2-n1", "dc3-n1")
SET_ASIDE = ("dr1", "spare1", "spare2")


def test_every_file_and_every_node_is_as_before(host):
    with host.sudo():
        before = host.file("/var/tmp/wrong_use_before").content_string.splitlines()
        after = host.run("/var/tmp/wrong_use_site").stdout.splitlines()
    assert before or host.backend.get_hostname() == "store"
    assert after == before


@pytest.mark.parametrize("question", ["", "?consistency=quorum", "?consistency=all"])
def test_every_member_answers_healthy(host, of, question):
    of(*MEMBERS)
    done = host.run(f"curl -ks -o /dev/null -w '%{{http_code}}' 'https://127.0.0.1/sys/v1/health{question}'")
    assert done.stdout == "204"


def test_production_has_its_members_and_no_other(host, of):
    of(*MEMBERS)
    with host.sudo():
        done = host.run("KUBECONFIG=/etc/kubernetes/admin.conf kubectl get nodes -o json")
    ready = [
        node["metadata"]["name"]
        for node in json.loads(done.stdout)["items"]
        for condition in node["status"]["conditions"]
        if condition["type"] == "Ready" and condition["status"] == "True"
    ]
    assert sorted(ready) == sorted(MEMBERS)


def test_hosts_that_were_set_aside_are_clean(host, of):
    of(*SET_ASIDE)
    with host.sudo():
        left = host.run(
            "find /etc/kubernetes /var/lib/etcd /var/lib/cassandra /var/lib/kmsops/trial.json -type f"
        ).stdout
    assert left == ""


def test_the_store_holds_its_one_good_backup(host, of):
    of("store")
    with host.sudo():
        manifests = host.run("find /srv/dsm-store -name manifest.json").stdout.split()
        incoming = host.run("find /srv/dsm-store/*/incoming -mindepth 1").stdout
    assert (len(manifests), incoming) == (1, "")
