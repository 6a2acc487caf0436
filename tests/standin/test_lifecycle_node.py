# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's node: configuration, platform identity, state."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from standin import node

DOCUMENT: dict[str, Any] = {
    "name": "dc1-n1",
    "address": "192.0.2.11",
    "prefix": 24,
    "site": "dc1",
    "serial": "SN-1",
    "version": "5.4.2031-standin",
    "versions": ["5.4.2031-standin", "5.6.2919-standin"],
}


def test_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    path.write_text(json.dumps(DOCUMENT), encoding="utf-8")
    cfg = node.load(path)
    assert (cfg.name, cfg.address, cfg.prefix, cfg.site) == ("dc1-n1", "192.0.2.11", 24, "dc1")
    assert cfg.versions == ("5.4.2031-standin", "5.6.2919-standin")


def test_missing_keys_are_named_together() -> None:
    with pytest.raises(node.StandinError, match="site, serial"):
        node.parse_config({key: value for key, value in DOCUMENT.items() if key not in ("site", "serial")})


def test_configuration_that_is_not_json(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(node.StandinError, match="cannot read"):
        node.load(path)


def test_platform_secret_is_made_once_and_is_private(tmp_path: Path) -> None:
    cfg = node.parse_config(DOCUMENT)
    first = node.platform_secret(cfg, tmp_path / "platform")
    assert len(first) == node.PLATFORM_SECRET_BYTES
    assert node.platform_secret(cfg, tmp_path / "platform") == first
    assert stat.S_IMODE((tmp_path / "platform" / "secret").stat().st_mode) == 0o600
    assert node.platform_secret(cfg, tmp_path / "other") != first
    assert [entry.name for entry in (tmp_path / "platform").iterdir()] == ["secret"]


def test_state_merges_and_forgets(tmp_path: Path) -> None:
    assert node.read_state(tmp_path) == {}
    node.write_state({"phase": "joining", "ordinal": 2}, tmp_path)
    assert node.write_state({"phase": "member", "ordinal": None}, tmp_path) == {"phase": "member"}
    assert node.read_state(tmp_path) == {"phase": "member"}
    assert stat.S_IMODE((tmp_path / "state.json").stat().st_mode) == 0o600


def test_a_torn_state_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text('{"phase": ', encoding="utf-8")
    assert node.read_state(tmp_path) == {}


def test_write_file_leaves_no_draft_behind_when_it_fails(tmp_path: Path) -> None:
    (tmp_path / "name").mkdir()
    with pytest.raises(OSError, match="name"):
        node.write_file(tmp_path / "name", b"x")
    assert [entry.name for entry in tmp_path.iterdir()] == ["name"]


def test_wait_says_what_did_not_come() -> None:
    with pytest.raises(node.StandinError, match="the dawn did not happen within 0 s"):
        node.wait_until(lambda: False, 0, "the dawn")


def test_commands_are_counted_without_their_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node, "COMMAND_LOG", tmp_path / "commands.log")
    for name in ("join", "reset", "join"):
        node.note_command(name)
    lines = (tmp_path / "commands.log").read_text(encoding="utf-8").splitlines()
    assert [line.split()[2:] for line in lines] == [["join"], ["reset"], ["join"]]
