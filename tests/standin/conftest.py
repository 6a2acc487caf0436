# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the stand-in's tests."""

from __future__ import annotations

from typing import Any

import pytest
from memory_store import MemoryStore


@pytest.fixture
def store() -> Any:
    return MemoryStore()
