# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every role says the same of its variables in argument_specs, defaults and README, and passes on what it takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLES = sorted((Path(__file__).resolve().parents[3] / "roles").iterdir())
ROW = re.compile(r"^\| `([a-z0-9_]+)` \| (\w+) \| (.*?) \| (.*) \|$", re.MULTILINE)


def options(role: Path) -> dict[str, dict[str, Any]]:
    """Options of every entry point of a role."""
    specs = yaml.safe_load((role / "meta" / "argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"]
    return {name: option for spec in specs.values() for name, option in spec.get("options", {}).items()}


@pytest.fixture(params=ROLES, ids=lambda role: role.name)
def role(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


def test_a_readme_names_every_variable_with_its_type(role: Path) -> None:
    found = {
        name: kind for name, kind, _default, _text in ROW.findall((role / "README.md").read_text(encoding="utf-8"))
    }
    assert found == {name: option["type"] for name, option in options(role).items()}


def test_defaults_are_those_of_the_specification(role: Path) -> None:
    defaults = yaml.safe_load((role / "defaults" / "main.yml").read_text(encoding="utf-8"))
    specified = options(role)
    assert set(defaults) <= set(specified), "a default of no variable"
    differing = {
        name: (option["default"], defaults.get(name))
        for name, option in specified.items()
        if "default" in option and name in defaults and option["default"] != defaults[name]
    }
    assert differing == {}
    for name, option in specified.items():
        text = " ".join([option["description"]] if isinstance(option["description"], str) else option["description"])
        for taken in re.findall(r"Taken from C\((dsm_\w+)\)", text):
            assert taken in str(defaults[name]), f"{name} is not taken from {taken}"


def test_what_a_role_takes_it_uses(role: Path) -> None:
    files = [path for part in ("tasks", "vars", "templates") for path in sorted((role / part).glob("*"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    unused = [name for name in options(role) if not re.search(rf"\b{name}\b", text)]
    assert unused == []
