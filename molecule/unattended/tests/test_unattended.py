# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What DSM's key can do at the store, and what the store did by itself."""

from __future__ import annotations

import json

import pytest

STORE = "/srv/dsm-store"
SSH = "-o BatchMode=yes -i /etc/dsm/delivery_ed25519"
PLACE = "kmsops-drop@10.66.9.50"


def sftp(host, *lines):
    """The exit code and all words of a batch; a line with a dash in front may fail."""
    batch = "\\n".join(lines)
    with host.sudo():
        done = host.run(f"printf '{batch}\\n' | sftp -q {SSH} -b - {PLACE}")
    return done.rc, done.stdout + done.stderr


def test_the_key_of_dsm_lists_and_writes_in_one_directory(host, of):
    of("dc1-n1")
    rc, told = sftp(host, "pwd", "put /etc/hostname probe", "ls", "rm probe")
    assert rc == 0 and "/incoming" in told and "probe" in told


@pytest.mark.parametrize(
    "line",
    [
        "get /etc/passwd /tmp/stolen",
        "get /../../etc/passwd /tmp/stolen",
        "get /srv/dsm-store/store.json /tmp/stolen",
        "put /etc/hostname /probe",
        "mkdir /probe",
        "rename /incoming /elsewhere",
        "chmod 777 /",
    ],
)
def test_the_key_of_dsm_reaches_nothing_else(host, of, line):
    of("dc1-n1")
    rc, told = sftp(host, line)
    assert rc != 0 and ("denied" in told or "No such file" in told or "not found" in told), told


@pytest.mark.parametrize("command", ["id", "-N -W 127.0.0.1:22", "-tt"])
def test_the_key_of_dsm_opens_no_shell_and_forwards_nothing(host, of, command):
    of("dc1-n1")
    options, words = (command, "") if command.startswith("-") else ("", command)
    with host.sudo():
        # The exit code of ssh is said and not returned: testinfra takes 255 for its own way being broken.
        done = host.run(f"ssh {SSH} {options} {PLACE} {words} </dev/null; echo rc=$?")
    assert done.stdout.splitlines()[-1] in ("rc=1", "rc=255"), done.stdout
    assert "uid=" not in done.stdout and "SSH-2.0" not in done.stdout


def test_a_link_that_dsm_leaves_leads_nowhere(host, of):
    """It may make one; it is looked up inside the drop box."""
    of("dc1-n1")
    rc, told = sftp(host, "symlink /etc/passwd probe", "-get probe /tmp/stolen", "rm probe")
    assert rc == 0 and ("No such file" in told or "not found" in told), told


def test_the_store_has_what_dsm_delivered_and_proved_it(host, of):
    of("store")
    with host.sudo():
        events = [json.loads(line) for line in host.run(f"cat {STORE}/*/ledger.jsonl").stdout.splitlines()]
        waiting = host.run("ls /srv/dsm-drop/incoming").stdout.split()
        metrics = host.file(f"{STORE}/dsm.prom").content_string
    shipped = [event for event in events if event["kind"] == "shipped"]
    assert len(shipped) == len(waiting) == 3, "pulling removes nothing"
    good = [event["subject"] for event in events if event["kind"] == "verified" and event["data"]["verdict"] == "ok"]
    assert {event["subject"] for event in shipped} == set(good)
    assert len(good) >= 5, "each when it came, two once more"
    assert "verified_copies{" in metrics and "last_success_timestamp_seconds" in metrics


def test_what_runs_by_itself_can_write_nowhere_else(host, of):
    of("store")
    with host.sudo():
        for job, network in (("ship", "no"), ("verify", "yes"), ("prune", "yes")):
            names = ("ProtectSystem", "PrivateNetwork", "NoNewPrivileges", "Result")
            asked = " ".join(f"-p {name}" for name in names)
            told = host.run(f"systemctl show {asked} kmsops-store-{job}.service").stdout.split()
            wanted = {"ProtectSystem=strict", f"PrivateNetwork={network}", "NoNewPrivileges=yes", "Result=success"}
            assert set(told) == wanted
        assert host.run("systemctl is-enabled kmsops-store-ship.timer").stdout.strip() == "enabled"


def test_the_store_came_by_its_software_without_a_network(host, of):
    of("store")
    with host.sudo():
        done = host.run("/opt/kmsops/store-venv/bin/ansible-playbook --version")
    assert done.rc == 0 and "core " in done.stdout
