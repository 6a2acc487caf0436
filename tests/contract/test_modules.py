# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One contract over all modules: what the documentation claims is read from it and held, most of it by running it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from module_docs import BASE_RETURNS, COLLECTION, MODULES, ROOT, action_groups, documents, lines_of_code, source
from module_run import constructed

SECRET_NAME = re.compile(r"(^|_)(password|passphrase|secret|secrets|api_key|token|secret_settings)$")
ATTRIBUTES = {"check_mode", "diff_mode", "idempotent", "action_group"}


def walk(options: Mapping[str, Any], spec: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Path, documentation and specification of every option at every depth; ``None`` for the side that lacks it."""
    for name in sorted({*options, *spec}):
        documented, specified = options.get(name), spec.get(name)
        yield where + name, documented, specified
        yield from walk(
            (documented or {}).get("suboptions") or {}, (specified or {}).get("options") or {}, f"{where}{name}."
        )


@pytest.fixture(params=MODULES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_modules_of_the_design_are_all_here() -> None:
    assert set(MODULES) >= {
        "backup_config", "backup_info", "backup_run", "backup_ship", "backup_verify", "canary", "cluster_create",
        "cluster_info", "cluster_join", "cluster_remove", "cluster_reset", "cluster_wait_for", "datacenter_label",
        "health_info", "join_token", "ledger", "restore",
    }  # fmt: skip


def test_options_are_documented_as_they_are(name: str) -> None:
    differences = []
    for where, documented, specified in walk(documents()[name]["doc"]["options"], constructed(name)["argument_spec"]):
        if documented is None or specified is None:
            differences.append(f"{where} is {'not documented' if documented is None else 'no option'}")
            continue
        for key, default in (("type", "str"), ("elements", None), ("required", False), ("default", None)):
            if documented.get(key, default) != specified.get(key, default):
                differences.append(f"{where}: {key} {documented.get(key)!r}, really {specified.get(key)!r}")
        if list(documented.get("choices") or []) != list(specified.get("choices") or []):
            differences.append(f"{where}: choices {documented.get('choices')}, really {specified.get('choices')}")
        if not documented.get("description"):
            differences.append(f"{where} has no description")
    assert differences == []


def test_what_is_secret_is_marked_as_secret(name: str) -> None:
    open_secrets = [
        where
        for where, _documented, specified in walk({}, constructed(name)["argument_spec"])
        if SECRET_NAME.search(where.rsplit(".", 1)[-1]) and not specified.get("no_log")
    ]
    assert open_secrets == []


def test_attributes_are_stated(name: str) -> None:
    attributes = documents()[name]["doc"]["attributes"]
    assert set(attributes) >= ATTRIBUTES
    for attribute, stated in attributes.items():
        assert stated["support"] in ("full", "partial", "none", "N/A"), attribute
        assert stated["description"], attribute
        assert stated["support"] == "full" or stated.get("details"), f"{attribute} is not full, and nobody says why"
    assert constructed(name)["supports_check_mode"] is (attributes["check_mode"]["support"] == "full")


def test_a_module_is_in_the_action_group_that_it_names_and_in_no_other(name: str) -> None:
    stated = documents()[name]["doc"]["attributes"]["action_group"]["membership"]
    groups = [f"{COLLECTION}.{group}" for group, names in action_groups().items() if name in names]
    assert ([stated] if isinstance(stated, str) else stated) == groups
    assert len(groups) == 1


def test_action_groups_name_modules_that_exist() -> None:
    assert {one for names in action_groups().values() for one in names} == set(MODULES)


def test_guards_have_their_action_plugin(name: str) -> None:
    takes_testimony = "testimony" in constructed(name)["argument_spec"]
    plugin = ROOT / "plugins" / "action" / f"{name}.py"
    assert plugin.exists() is (takes_testimony or name in ("cluster_info", "ledger"))
    if takes_testimony:
        assert "GuardAction" in plugin.read_text()


def test_a_module_is_thin(name: str) -> None:
    assert lines_of_code(name) < 150


def test_a_module_says_whose_it_is(name: str) -> None:
    lines = source(name).splitlines()
    assert lines[0] == "#!/usr/bin/python"
    header = "\n".join(lines[:8])
    assert "SPDX-License-Identifier: GPL-3.0-or-later" in header
    assert "GNU General Public License v3.0+" in header
    doc = documents()[name]["doc"]
    assert doc["module"] == name and doc["version_added"] and doc["author"] and doc["short_description"]
    assert not doc["short_description"].endswith(".")


def test_examples_could_be_run(name: str) -> None:
    tasks = yaml.safe_load(documents()[name]["examples"])
    ours = [task for task in tasks if f"{COLLECTION}.{name}" in task]
    assert ours and all(task.get("name") for task in tasks)
    arguments = constructed(name)
    rules = {
        key: arguments[key]
        for key in ("mutually_exclusive", "required_together", "required_one_of", "required_if")
        if key in arguments
    }
    for task in ours:
        given = task[f"{COLLECTION}.{name}"]
        plain = {key: value for key, value in given.items() if "{{" not in str(value)}
        spec = {
            key: dict(value, required=bool(value.get("required")) and key not in given)
            for key, value in arguments["argument_spec"].items()
        }
        unknown = set(given) - set(spec)
        assert not unknown, f"{task['name']}: {unknown}"
        checked = ArgumentSpecValidator(spec, **(rules if plain == given else {})).validate(plain)
        assert checked.error_messages == [], task["name"]


def test_documentation_needs_only_ascii_and_names_no_workplace(name: str) -> None:
    text = source(name)
    assert text.isascii()
    assert not re.search(r"/work/|/tmp/team|\blab\b|[Ss]tand-in\b", text)


def test_returns_are_described(name: str) -> None:
    for key, described in (documents()[name]["return"] or {}).items():
        assert described.get("description") and described.get("type") and described.get("returned"), key
        assert key in BASE_RETURNS or key not in ("path", "dest"), "Ansible adds to results with such a key by itself"


@pytest.mark.parametrize("path", sorted((ROOT / "plugins" / "doc_fragments").glob("*.py")), ids=lambda path: path.stem)
def test_every_doc_fragment_is_used(path: Path) -> None:
    assert any(f"{COLLECTION}.{path.stem}" in source(name) for name in MODULES)
