# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Profiles: with a stand-in for perf, because not every machine lets it look."""

from __future__ import annotations

from pathlib import Path

import pytest
from shipbench import profile
from shipbench.errors import BenchError

PERF = """#!/bin/sh
case "$*" in
*"-i $PWD/good "*|*"-i $PWD/good")
    echo
    echo "  61.00%  python  libcrypto.so.3   -      -  "
    echo "   9.00%  sshd    libc.so.6   "
    echo "   0.94%  python  libcrypto.so.3  [.] 0x000000000029c2d0"
    echo ;;
*) echo "file is empty" >&2; exit 1 ;;
esac
"""


def perf(path: Path, monkeypatch: pytest.MonkeyPatch, text: str = PERF) -> None:
    (path / "perf").write_text(text, encoding="utf-8")
    (path / "perf").chmod(0o755)
    monkeypatch.setenv("PATH", str(path), prepend=":")
    monkeypatch.chdir(path)


def test_the_command_itself_is_not_changed(tmp_path: Path) -> None:
    argv = ["python", "-m", "module", "a b"]
    assert profile.recorded(argv, tmp_path / "data")[-len(argv) - 1 :] == ["--", *argv]


def test_a_profile_has_a_title_and_both_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perf(tmp_path, monkeypatch)
    parts = profile.text("ours on LAN", tmp_path / "good").split("\n\n")
    assert parts[0] == "ours on LAN"
    assert [part.splitlines()[0].split(" (")[0] for part in parts[1:]] == [name for name, _sort in profile.TABLES]
    shares = ["  61.00%  python  libcrypto.so.3", "   9.00%  sshd    libc.so.6"]
    assert all(part.splitlines()[1:] == shares for part in parts[1:])


def test_what_cannot_be_reported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perf(tmp_path, monkeypatch)
    with pytest.raises(BenchError, match="file is empty"):
        profile.text("", tmp_path / "bad")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(BenchError, match="perf is not there"):
        profile.text("", tmp_path / "good")
