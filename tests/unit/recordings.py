# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Outputs of the real tools, recorded in the lab.

``fixtures/recorded/<tool>/<version>_<date>_<what>.<ext>``. To add one, run the tool in the lab, put its output there
under a name with its version and the date, and it is part of every test that goes over that tool's recordings.
Tokens keep their public half and lose their secret one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

RECORDED = Path(__file__).resolve().parent / "fixtures" / "recorded"
_NAME = re.compile(r"^(?P<version>.+)_(?P<date>\d{4}-\d{2}-\d{2})_(?P<what>[a-z_]+)\.(?P<ext>[a-z]+)$")


def names(tool, what=""):
    """File names of a tool's recordings whose subject starts with ``what``; a name without version and date fails."""
    found = []
    for path in sorted((RECORDED / tool).iterdir()):
        match = _NAME.match(path.name)
        if match is None:
            raise ValueError(f"{path} has no version and date in its name")
        if match.group("what").startswith(what):
            found.append(path.name)
    if not found:
        raise ValueError(f"there is no recording of {tool} {what}")
    return found


def text(tool, name):
    return (RECORDED / tool / name).read_text(encoding="utf-8")


def failures(tool):
    """Recorded failures: ``{name: {argv, rc, stdout, stderr}}``."""
    merged = {}
    for name in names(tool, "failures"):
        merged.update(json.loads(text(tool, name)))
    return merged
