# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where things are: the checkout that this command belongs to, the running lab's state, and the cache."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent.parent
LAB = CHECKOUT / "lab"
STATE = Path("/run/kmsops-lab")


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "kmsops-lab"


def namespace(name: str) -> Path:
    return Path("/run/netns") / name
