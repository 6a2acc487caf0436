# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the stand-in's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from memory_store import MemoryStore
from standin import kube
from standin_pki import make_authority


@pytest.fixture
def store() -> Any:
    return MemoryStore()


@pytest.fixture
def pki(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a cluster authority, where the stand-in looks for its certificates."""
    directory = tmp_path / "pki"
    directory.mkdir()
    make_authority(directory)
    monkeypatch.setattr(kube, "PKI", directory)
    monkeypatch.setattr(kube, "MEMBER_CERT", directory / "member.crt")
    monkeypatch.setattr(kube, "MEMBER_KEY", directory / "member.key")
    return directory
