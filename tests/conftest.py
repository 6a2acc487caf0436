# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the collection and the lab's packages importable from a flat checkout in any directory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def _namespace(name: str, path: Path | None) -> None:
    module = ModuleType(name)
    module.__path__ = [str(path)] if path else []
    sys.modules.setdefault(name, module)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, sys.modules[name])


_namespace("ansible_collections", None)
_namespace("ansible_collections.kmsops", None)
_namespace("ansible_collections.kmsops.fortanix_dsm", ROOT)
for directory in (ROOT / "lab", ROOT / "lab" / "standin", ROOT / "tests" / "support"):
    sys.path.insert(0, str(directory))
