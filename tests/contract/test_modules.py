# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One contract over all modules: what the documentation claims is read from it and held, most of it by running it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from module_docs import BASE_RETURNS, COLLECTION, MODULES, ROOT, action_groups, documents, lines_of_code, source
from module_run import constructed
from worlds import WORLDS, CanaryWritten, World

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
        "backup_config", "backup_info", "backup_part", "backup_pin", "backup_prune", "backup_replicate", "backup_run",
        "backup_ship", "backup_verify", "canary", "cluster_create",
        "cluster_info", "cluster_join", "cluster_remove", "cluster_reset", "cluster_wait_for", "datacenter_label",
        "health_info", "join_token", "ledger", "restore", "source_clean", "source_hash",
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
    assert "-".join(("SPDX", "License", "Identifier: GPL-3.0-or-later")) in header
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


def test_source_is_ascii_and_names_neither_the_lab_nor_the_stand_in(name: str) -> None:
    text = source(name)
    assert text.isascii()
    assert not re.search(r"\blab\b|[Ss]tand-in\b", text)


def test_returns_are_described(name: str) -> None:
    for key, described in (documents()[name]["return"] or {}).items():
        assert described.get("description") and described.get("type") and described.get("returned"), key
        assert key in BASE_RETURNS or key not in ("path", "dest"), "Ansible adds to results with such a key by itself"
        assert key not in ("skipped", "results", "unreachable", "exception"), "to Ansible it says how the task ended"


@pytest.mark.parametrize("path", sorted((ROOT / "plugins" / "doc_fragments").glob("*.py")), ids=lambda path: path.stem)
def test_every_doc_fragment_is_used(path: Path) -> None:
    assert any(f"{COLLECTION}.{path.stem}" in source(name) for name in MODULES)


# -- what is claimed is run --------------------------------------------------------------------------------------------


@pytest.fixture(params=WORLDS, ids=lambda kind: kind.__name__)
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    found = request.param(tmp_path, monkeypatch)
    yield found
    found.close()


def stated(world: World, attribute: str) -> str:
    """What the module claims; where it claims ``partial``, nothing is claimed for writing new evidence."""
    support = documents()[world.module]["doc"]["attributes"][attribute]["support"]
    return "none" if support == "partial" and isinstance(world, CanaryWritten) else str(support)


def test_every_module_has_a_world() -> None:
    assert {kind.module for kind in WORLDS} == set(MODULES)


def test_check_mode_touches_nothing_and_predicts_the_change(world: World) -> None:
    before = world.observe()
    planned = world.call(check=True)
    assert not planned.failed, planned.text
    assert world.observe() == before
    done = world.call()
    assert not done.failed, done.text
    assert planned.result["changed"] is done.result["changed"]
    assert planned.result["before"] == done.result["before"]
    if done.result["changed"]:
        assert world.observe() != before


def test_a_second_run_is_quiet_where_that_is_claimed(world: World) -> None:
    first = world.call()
    assert not first.failed, first.text
    after_first = world.observe()
    planned, second = world.call(check=True), world.call()
    assert not second.failed, second.text
    if stated(world, "idempotent") in ("full", "partial"):
        assert planned.result["changed"] is second.result["changed"] is False
        assert second.result["before"] == second.result["after"]
        assert (
            second.result.get("diff", {"before": 0, "after": 0})["before"]
            == second.result.get("diff", {"before": 0, "after": 0})["after"]
        )
        assert world.observe()[1:] == after_first[1:], "a second run ran a command that acts"


def test_the_difference_is_what_before_and_after_say(world: World) -> None:
    result = world.call().result
    if stated(world, "diff_mode") in ("none", "N/A"):
        assert not result.get("diff")
        return
    assert result["changed"] is (result["before"] != result["after"])
    if result["before"] is not None:
        assert result["diff"] == {"before": result["before"], "after": result["after"]}
        assert all(isinstance(side, (dict, str)) for side in result["diff"].values()), "Ansible shows nothing else"


def test_returns_are_what_is_documented(world: World) -> None:
    result = world.call().result
    documented = documents()[world.module]["return"] or {}
    always = {key for key, described in documented.items() if described["returned"] in ("success", "always")}
    assert always - set(result) == set(), "documented, but not returned"
    assert set(result) - set(documented) - BASE_RETURNS == set(), "returned, but not documented"
    kinds = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}
    for key in set(result) & set(documented):
        assert result[key] is None or isinstance(result[key], kinds[documented[key]["type"]]), key


@pytest.mark.parametrize("check", [False, True], ids=["really", "in check mode"])
def test_a_refusal_has_a_shape_and_touches_nothing(world: World, check: bool) -> None:
    world.operations.effect = None
    warmed = world.call(check=True, **world.refused)
    before = world.observe()
    answer = world.call(check=check, **world.refused)
    assert answer.failed and warmed.failed, answer.text
    result = answer.result
    assert re.fullmatch(r"[A-Z][A-Z0-9_]+", result["error_code"]) and result["error_code"] != "INTERNAL"
    assert result["msg"] and "Traceback" not in answer.text
    assert result["remedy"], "nobody says what to do next"
    assert isinstance(result["details"], dict)
    assert (result["changed"], result["actions"]) == (False, [])
    assert result["reasons"], "nobody says why"
    for reason in result["reasons"]:
        assert set(reason) == {"code", "message", "remedy", "hard"}
        assert re.fullmatch(r"[A-Z][A-Z0-9_]+", reason["code"]) and reason["message"]
        assert reason["remedy"], f"{reason['code']} says not what to do next"
    assert world.observe() == before


def test_wrong_arguments_are_told_all_at_once_like_any_refusal(world: World) -> None:
    before = world.observe()
    required = [key for key, spec in constructed(world.module)["argument_spec"].items() if spec.get("required")]
    answer = world.call(**dict.fromkeys(required), no_such_option=1, neither_this="x")
    result = answer.result
    assert answer.failed and result["error_code"] == "BAD_ARGUMENTS"
    told = " ".join(reason["message"] for reason in result["reasons"])
    assert all(word in told for word in [*required, "no_such_option", "neither_this"])
    assert result["remedy"] and all(reason["remedy"] for reason in result["reasons"])
    assert (result["changed"], result["actions"]) == (False, []) and "Traceback" not in answer.text
    assert world.observe() == before


def calls_of(name: str) -> Iterator[tuple[str, ast.Call]]:
    """Where plugins make an object of the class ``name``."""
    for path in sorted((ROOT / "plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and name in (getattr(node.func, "id", ""), getattr(node.func, "attr", "")):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_every_reason_says_what_to_do_next() -> None:
    found = list(calls_of("Reason"))
    silent = [
        where
        for where, call in found
        if len(call.args) < 3 and not {"remedy", None} & {one.arg for one in call.keywords}
    ]
    assert len(found) > 100 and silent == []


def test_every_refusal_says_what_to_do_next() -> None:
    silent = [
        where
        for where, call in calls_of("Refused")
        if len(call.args) < 3 and not {"remedy", "reasons"} & {one.arg for one in call.keywords}
    ]
    assert silent == []


def planted(
    options: Mapping[str, Any], spec: Mapping[str, Any], secrets: list[str], deep: bool = False
) -> dict[str, Any]:
    """``options`` with a secret of its own in every option that is marked as one (and that is a text)."""
    out = dict(options)
    for key, specified in spec.items():
        value = out.get(key)
        if specified.get("no_log") and isinstance(value, str):
            secrets.append(value)
        elif specified.get("no_log") and specified.get("type") == "str" and deep:
            out[key] = f"canary-{len(secrets)}-of-{key}"
            secrets.append(out[key])
        elif specified.get("no_log") and specified.get("type") == "dict" and deep:
            out[key] = {"account": {"secret_key": f"canary-{len(secrets)}-of-{key}"}}
            secrets.append(f"canary-{len(secrets)}-of-{key}")
        elif isinstance(value, dict) and specified.get("options"):
            out[key] = planted(value, specified["options"], secrets, deep)
        elif isinstance(value, list) and specified.get("options"):
            out[key] = [planted(one, specified["options"], secrets, deep) for one in value]
    return out


@pytest.mark.parametrize("deep", [False, True], ids=["as given", "in every option"])
def test_a_secret_is_in_no_output(world: World, deep: bool) -> None:
    secrets: list[str] = []
    params = planted(world.params, constructed(world.module)["argument_spec"], secrets, deep)
    answers = [world.call(check=check, **params) for check in (True, False)]
    answers.append(world.call(**{**params, **world.refused}))
    for answer in answers:
        assert [secret for secret in secrets if secret in answer.text] == []
    for path in world.state.rglob("*"):
        if path.is_file():
            assert [secret for secret in secrets if secret.encode() in path.read_bytes()] == [], path.name


def test_an_unexpected_error_tells_a_person_what_to_do_and_no_value(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _module

    def broken(_body: Any) -> Any:
        def body(_shell: Any) -> Any:
            raise KeyError("canary-in-an-exception")

        return body

    real = _module.run_module

    def run_broken(spec: Any, body: Any, **more: Any) -> None:
        real(spec, broken(body), **more)

    import importlib

    module = importlib.import_module(f"ansible_collections.kmsops.fortanix_dsm.plugins.modules.{world.module}")
    target = module if hasattr(module, "run_module") else _module
    monkeypatch.setattr(target, "run_module", run_broken)
    answer = world.call()
    assert answer.failed and answer.result["error_code"] == "INTERNAL"
    assert "canary-in-an-exception" not in answer.text and "Traceback" not in answer.text
    assert answer.result["remedy"]
