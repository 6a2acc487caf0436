# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Editing two blocks of the vendor's file leaves every other byte alone, and anything doubtful is refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.config_text import (
    ConfigTextError,
    blocks,
    read_block,
    write_block,
)

FILE = """\
# deployment of ACME
cluster:
  name: acme   # do not touch
  list:
  - one
  - two
script: |
  #!/bin/sh
  backup:
  \tno: yaml here
backup:                       # hourly
  cron_schedule: "10 * * * *" # UTC
  backup_mode: snapshot
  # where to
  scp:
    server_ip: 192.0.2.50
    authmode: password
    username: 'admin''s'
    password: "pa\\"ss # word"
    path: /home/dsmbackup/backup

# the rest
sgx: {attestation: onlineWithTrustedNodeIdentity}
tail:
- a
"""
BACKUP = {
    "cron_schedule": "10 * * * *",
    "backup_mode": "snapshot",
    "scp": {
        "server_ip": "192.0.2.50",
        "authmode": "password",
        "username": "admin's",
        "password": 'pa"ss # word',
        "path": "/home/dsmbackup/backup",
    },
}


def test_reads_what_a_yaml_library_reads() -> None:
    assert read_block(FILE, "backup") == BACKUP
    assert read_block(FILE, "auditBackup") is None
    assert [block.key for block in blocks(FILE)] == ["cluster", "script", "backup", "sgx", "tail"]


def test_the_same_content_is_the_same_bytes() -> None:
    assert write_block(FILE, "backup", read_block(FILE, "backup")) is FILE
    assert write_block(FILE, "auditBackup", None) is FILE


def test_a_change_touches_its_line_only() -> None:
    wanted = {**BACKUP, "cron_schedule": "0 3 * * *", "scp": {**BACKUP["scp"], "password": "new: one"}}
    changed = write_block(FILE, "backup", wanted)
    different = [(old, new) for old, new in zip(FILE.splitlines(), changed.splitlines(), strict=True) if old != new]
    assert different == [
        ('  cron_schedule: "10 * * * *" # UTC', '  cron_schedule: "0 3 * * *"  # UTC'),
        ('    password: "pa\\"ss # word"', '    password: "new: one"'),
    ]
    assert read_block(changed, "backup") == wanted


def test_new_blocks_go_to_the_end_and_old_ones_can_go() -> None:
    added = write_block(FILE, "auditBackup", {"cron_schedule": "0 * * * *", "scp": {"port": 22, "on": True}})
    assert added.startswith(FILE)
    assert yaml.safe_load(added)["auditBackup"] == {"cron_schedule": "0 * * * *", "scp": {"port": 22, "on": True}}
    assert write_block(added, "auditBackup", None) == FILE
    without = write_block(FILE, "backup", None)
    assert read_block(without, "backup") is None
    assert "\n# the rest\nsgx:" in without


def test_a_file_without_newline_at_its_end_and_one_of_windows() -> None:
    assert write_block("a: 1", "backup", {"x": 1}) == "a: 1\nbackup:\n  x: 1\n"
    windows = FILE.replace("\n", "\r\n")
    assert read_block(windows, "backup") == BACKUP
    changed = write_block(windows, "backup", {**BACKUP, "new": [1, "two"]})
    assert changed.count("\n") == changed.count("\r\n")
    assert read_block(changed, "backup") == {**BACKUP, "new": [1, "two"]}


def test_an_empty_block_can_be_filled() -> None:
    assert read_block("backup:\nother: 1\n", "backup") == {}
    assert write_block("backup:\nother: 1\n", "backup", {"x": "y"}) == "backup:\n  x: y\nother: 1\n"


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("backup:\n\tcron_schedule: x\n", 2, "tab"),
        ("backup:\n  a: 1\t2\n", 2, "tab"),
        ("other:\n\t- x\nbackup:\n  a: 1\n", 2, "tab"),
        ("backup:\n  a: 1\n  a: 2\n", 3, "twice"),
        ("backup:\n  a: 1\nother: 1\nbackup:\n  a: 2\n", 4, "twice"),
        ("other: 1\nother: 2\nbackup:\n  a: 1\n", 2, "twice"),
        ("backup: {a: 1}\n", 1, "indented block"),
        ("backup: &anchor\n  a: 1\n", 1, "indented block"),
        ("backup:\n  a: *other\n", 2, "anchors"),
        ("backup:\n  a: !!str 1\n", 2, "anchors"),
        ("backup:\n  a: [1, 2]\n", 2, "flow"),
        ("backup:\n  a: |\n    text\n", 3, "several lines"),
        ("backup:\n  a: text\n    goes on\n", 3, "several lines"),
        ("backup:\n  a: 'open\n", 2, "does not end"),
        ('backup:\n  a: "x" y\n', 2, "follows"),
        ("backup:\n  a: b: c\n", 2, "quoted"),
        ("backup:\n    a: 1\n  b: 2\n", 3, "less"),
        ("backup:\n  a: 1\n    b: 2\n", 3, "lines"),
        ("backup:\n  - a\n", 2, "key: value"),
        ("backup:\n- a\n", 2, "other than"),
        ("backup:\n  a:\n    - b: 1\n", 3, "plain values"),
        ("a: 1\n---\nbackup:\n  a: 1\n", 2, "document"),
        ("  a: 1\nbackup:\n  a: 1\n", 1, "key"),
        ("<<: x\n", 1, "key"),
    ],
)
def test_what_cannot_be_edited_without_guessing_is_refused_with_its_line(text: str, line: int, word: str) -> None:
    with pytest.raises(ConfigTextError) as caught:
        write_block(text, "backup", {"a": 2})
    assert caught.value.line == line
    assert word in str(caught.value)


KEYS = st.one_of(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.sampled_from(["on", "no", "null", "12"]))
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(10**9), 10**9),
    st.text(st.characters(blacklist_categories=("Cs", "Cc"), blacklist_characters="\u2028\u2029\x85\ufeff")),
    st.sampled_from(["yes", "null", "~", "1.5", "0x10", "012", "- a", "a: b", "#", "a #b", " x", "x ", "'", '"', ""]),
)
MAPPINGS = st.recursive(
    st.dictionaries(KEYS, st.one_of(SCALARS, st.lists(SCALARS, min_size=1, max_size=3)), min_size=1, max_size=4),
    lambda inner: st.dictionaries(KEYS, st.one_of(SCALARS, inner), min_size=1, max_size=3),
    max_leaves=6,
)


@given(MAPPINGS, MAPPINGS)
def test_whatever_is_written_is_read_back_here_and_by_a_library(one: dict[str, Any], other: dict[str, Any]) -> None:
    rest = "cluster:\n  a: 1\n"
    text = write_block(rest, "backup", one)
    assert read_block(text, "backup") == one
    assert yaml.safe_load(text)["backup"] == one
    again = write_block(text + "\n# tail\nz: 1\n", "backup", other)
    assert read_block(again, "backup") == other
    assert yaml.safe_load(again) == {"cluster": {"a": 1}, "backup": other, "z": 1}
    assert again.startswith(rest) and again.endswith("\n# tail\nz: 1\n")
