# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the modules claim about themselves, as ``ansible-doc`` understands it."""

from __future__ import annotations

import ast
import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COLLECTION = "kmsops.fortanix_dsm"
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("*.py"))
#: Returned by every module, so no module documents them again unless it has more to say.
BASE_RETURNS = {"changed", "actions", "before", "after", "diff", "invocation", "warnings", "deprecations"}
_STRINGS = ("DOCUMENTATION", "EXAMPLES", "RETURN")


@functools.lru_cache(maxsize=None)
def documents() -> dict[str, dict[str, Any]]:
    """Module -> ``{doc, examples, return}``, fragments merged."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "ansible_collections" / "kmsops"
        place.mkdir(parents=True)
        (place / "fortanix_dsm").symlink_to(ROOT)
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible-doc"),
                "-t",
                "module",
                "--json",
                *(f"{COLLECTION}.{name}" for name in MODULES),
            ],
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": directory, "ANSIBLE_HOME": directory},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return {name.rsplit(".", 1)[1]: found for name, found in json.loads(done.stdout).items()}


def source(name: str) -> str:
    """The text of a module."""
    return (ROOT / "plugins" / "modules" / f"{name}.py").read_text()


def lines_of_code(name: str) -> int:
    """Lines that are neither blank, comment, docstring nor one of the three documentation strings."""
    text = source(name)
    skipped: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        documentation = isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in _STRINGS
        docstring = (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )  # fmt: skip
        if (documentation or docstring) and node.end_lineno is not None:
            skipped.update(range(node.lineno, node.end_lineno + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in skipped
        for number, line in enumerate(text.splitlines(), 1)
    )


@functools.lru_cache(maxsize=None)
def action_groups() -> dict[str, list[str]]:
    """``meta/runtime.yml``: group -> modules, short names."""
    groups = yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text())["action_groups"]
    return {group: [name.rsplit(".", 1)[1] for name in names] for group, names in groups.items()}
