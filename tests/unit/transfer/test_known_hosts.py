# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pinned host keys, compared with what OpenSSH's own tools write and say."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._known_hosts import (
    fingerprint,
    host_pattern,
    lookup,
    parse_key,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBkQkQ1y8l3cQ3mX9n8mQm5b8o1n7G3q8G6b7Vn3Tq0Y"
OTHER = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIC2l3cQ3mX9n8mQm5b8o1n7G3q8G6b7Vn3Tq0YBkQkQ1"


def found(text: str, host: str = "landing", port: int = 22) -> list[str]:
    return [f"{key.kind} {len(key.blob)}" for key in lookup(text, host, port).keys]


@pytest.mark.parametrize(
    ("line", "host", "port", "matches"),
    [
        (f"landing {KEY}", "landing", 22, True),
        (f"landing {KEY} a comment", "landing", 22, True),
        (f"LANDING {KEY}", "landing", 22, True),
        (f"landing,192.0.2.1 {KEY}", "192.0.2.1", 22, True),
        (f"landing {KEY}", "landing", 2222, False),
        (f"[landing]:2222 {KEY}", "landing", 2222, True),
        (f"[landing]:2222 {KEY}", "landing", 22, False),
        (f"land?ng {KEY}", "landing", 22, True),
        (f"*.example.org,!bad.example.org {KEY}", "good.example.org", 22, True),
        (f"*.example.org,!bad.example.org {KEY}", "bad.example.org", 22, False),
        (f"!landing {KEY}", "landing", 22, False),
        (f"# landing {KEY}", "landing", 22, False),
        (f"@cert-authority landing {KEY}", "landing", 22, False),
        (f"|1|not base64|x {KEY}", "landing", 22, False),
        ("", "landing", 22, False),
    ],
)
def test_patterns(line: str, host: str, port: int, matches: bool) -> None:
    assert bool(found(line, host, port)) is matches


def test_revoked_keys_are_kept_apart() -> None:
    pinned = lookup(f"landing {KEY}\n@revoked * {OTHER}\n", "landing", 22)
    assert [key.blob for key in pinned.keys] == [parse_key(KEY).blob]
    assert [key.blob for key in pinned.revoked] == [parse_key(OTHER).blob]


@pytest.mark.parametrize("line", ["landing ssh-ed25519", "@unheard landing " + KEY, "landing ssh-ed25519 !!!!"])
def test_lines_that_cannot_be_read_are_named(line: str) -> None:
    assert lookup(f"\n{line}\n", "landing", 22).unread == ("line 2",)


@pytest.mark.parametrize(
    "text", ["", "ssh-ed25519", "ssh-ed25519 ????", "ssh-rsa " + KEY.split()[1], "ssh-ed25519 AAAA"]
)
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_key(text)


def test_names_with_a_port() -> None:
    assert (host_pattern("h", 22), host_pattern("h", 2222)) == ("h", "[h]:2222")


def test_agrees_with_ssh_keygen(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    public = (tmp_path / "key.pub").read_text()
    listed = subprocess.check_output(["ssh-keygen", "-lf", str(tmp_path / "key.pub")], text=True)
    assert fingerprint(parse_key(public).blob) == listed.split()[1]
    hosts = tmp_path / "known_hosts"
    hosts.write_text(f"[192.0.2.9]:2222 {public}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(hosts)], check=True, capture_output=True)
    assert hosts.read_text().startswith("|1|")
    assert found(hosts.read_text(), "192.0.2.9", 2222) and not found(hosts.read_text(), "192.0.2.9", 22)
