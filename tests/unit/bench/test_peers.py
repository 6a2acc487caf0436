# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""How peers are called, what their words mean, and how our own modules are."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from shipbench import ours, peers
from shipbench.ends import SOURCE, End
from shipbench.errors import BenchError
from shipbench.peers import EQUAL_WORK, GCM, PEERS, Job
from shipbench.server import Server, client_config, server_config

ARGV = {peer.name: peer for peer in PEERS}


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("/data/backup.bin", "/store/copy", Server(End("source", tmp_path), tmp_path))


@pytest.mark.parametrize("name", [peer.name for peer in PEERS])
def test_every_peer_pulls_the_file_to_where_it_is_looked_for(job: Job, name: str) -> None:
    words = " ".join(ARGV[name].argv(job))
    assert "/data/backup.bin" in words
    assert "/store/copy" in words
    assert words.index("/data/backup.bin") < words.rindex("/store/copy")


@pytest.mark.parametrize("name", ["scp-gcm", EQUAL_WORK, "sftp", "rsync", "lftp"])
def test_tuned_peers_use_the_fastest_cipher(job: Job, name: str) -> None:
    assert GCM in " ".join(ARGV[name].argv(job))


def test_scp_as_installed_is_told_nothing(job: Job) -> None:
    assert GCM not in " ".join(ARGV["scp"].argv(job))


@pytest.mark.parametrize("name", [peer.name for peer in PEERS if peer.name != "rclone"])
def test_no_peer_reads_the_users_own_configuration(job: Job, name: str) -> None:
    assert f"-F {job.server.ssh_config}" in " ".join(ARGV[name].argv(job))


def test_equal_work_compares_both_hashes(job: Job) -> None:
    shell, option, script = ARGV[EQUAL_WORK].argv(job)
    assert (shell, option) == ("sh", "-c")
    assert script.count("openssl dgst -sha256") == 2
    assert script.startswith(shlex.join(ARGV["scp-gcm"].argv(job)))
    assert ARGV[EQUAL_WORK].runs_on("lan")
    assert not ARGV[EQUAL_WORK].runs_on("1g-80ms")


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("OpenSSH_9.2p1 Debian-2+deb12u5, OpenSSL 3.0.15 3 Sep 2024", "9.2p1"),
        ("rsync  version 3.2.7  protocol version 31", "3.2.7"),
        ("LFTP | Version 4.9.2 | Copyright (c) 1996-2020 Alexander V. Lukyanov", "4.9.2"),
        ("rclone v1.60.1-DEV\n- os/version: debian 12.5 (64 bit)", "1.60.1-DEV"),
        ("something else", ""),
    ],
)
def test_versions(said: str, version: str) -> None:
    assert peers.parse_version(said) == version


def test_failures_are_told_to_people() -> None:
    assert peers.failure(0, "warning", 60) == ""
    assert peers.failure(None, "", 60) == "stopped after 60 s"
    assert peers.failure(255, "a\nConnection closed\n", 60) == "exit code 255: Connection closed"
    assert peers.failure(-9, "", 60) == "exit code -9"


def test_the_server_is_bound_to_the_benchs_own_address(tmp_path: Path) -> None:
    lines = server_config(tmp_path).splitlines()
    assert [line for line in lines if line.startswith("ListenAddress")] == [f"ListenAddress {SOURCE}"]
    assert "StrictHostKeyChecking yes" in client_config(tmp_path)


# -- ours ----------
def test_our_module_gets_its_arguments_in_a_file(job: Job, tmp_path: Path) -> None:
    modules = ours.Modules(tmp_path / "collections", tmp_path)
    options = ours.ship_options(Path("/store"), "/data/backup.bin", job.server, None)
    assert "workers" not in options
    assert ours.ship_options(Path("/store"), "/data/backup.bin", job.server, 3)["workers"] == 3
    _python, _m, module, place = modules.argv("backup_ship", options, check=True)
    assert module.endswith("plugins.modules.backup_ship")
    arguments = json.loads(Path(place).read_text())["ANSIBLE_MODULE_ARGS"]
    assert arguments["sources"][0]["path"] == "/data/backup.bin"
    assert arguments["_ansible_check_mode"] is True


def test_the_result_of_a_module() -> None:
    assert ours.parse_result('a warning\n{"changed": true, "workers": 4}\n') == {"changed": True, "workers": 4}


@pytest.mark.parametrize(
    ("said", "message"),
    [('{"failed": true, "msg": "The store is full."}', "store is full"), ("Traceback", "Traceback")],
)
def test_a_module_that_failed_says_why(said: str, message: str) -> None:
    with pytest.raises(BenchError, match=message):
        ours.parse_result(said)


def test_exactly_one_file_must_have_been_published(tmp_path: Path) -> None:
    data = tmp_path / ours.CLUSTER_ID / "backups" / "00000001-20261122T000000Z" / "data"
    data.mkdir(parents=True)
    with pytest.raises(BenchError, match="0 files"):
        ours.landed(tmp_path, 3)
    (data / "x").write_bytes(b"abc")
    assert ours.landed(tmp_path, 3) == data / "x"
    (data / "y").write_bytes(b"abd")
    with pytest.raises(BenchError, match="2 files"):
        ours.landed(tmp_path, 3)
