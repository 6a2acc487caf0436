# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The box in which hosts testify, and the action plugins that alone may open it."""

from __future__ import annotations

import json
import multiprocessing
import stat
from pathlib import Path

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.plugin_utils import _testimony
from ansible_collections.kmsops.fortanix_dsm.plugins.plugin_utils._testimony import Box, GuardAction, WitnessAction


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def box(tmp_path, clock):
    return Box(str(tmp_path / "box"), clock=lambda: clock[0])


def test_an_empty_box_is_testimony_of_nobody(box):
    taken = box.take()
    assert (taken["witnesses"], taken["ledger"], taken["nonce"]) == ({}, None, "")
    assert not Path(box.directory).exists(), "looking leaves no trace"


def test_the_newest_word_of_a_host_counts(box, clock):
    box.put("cluster_info", "n1", {"membership": "member"})
    clock[0] += 5
    box.put("cluster_info", "n1", {"membership": "none"})
    box.put("cluster_info", "n2", {"membership": "member"})
    witnesses = box.take()["witnesses"]
    assert witnesses["n1"] == {"membership": "none", "testimony_age": 0.0}
    assert sorted(witnesses) == ["n1", "n2"]


def test_what_is_older_than_two_minutes_counts_no_more(box, clock):
    box.put("cluster_info", "n1", {})
    box.put("ledger", "store", {"folded": {}})
    clock[0] += 120.0
    assert list(box.take()["witnesses"]) == ["n1"]
    clock[0] += 0.1
    assert (box.take()["witnesses"], box.take()["ledger"]) == ({}, None)


def test_what_comes_from_the_future_counts_not(box, clock):
    box.put("cluster_info", "n1", {})
    clock[0] -= 1
    assert box.take()["witnesses"] == {}


def test_a_word_with_another_nonce_counts_not(box):
    box.put("cluster_info", "n1", {})
    (entry,) = Path(box.directory).glob("*.json")
    entry.write_text(json.dumps(dict(json.loads(entry.read_text()), nonce="of another run")))
    assert box.take()["witnesses"] == {}


def test_the_last_ledger_counts(box, clock):
    box.put("ledger", "store", {"head": 1})
    clock[0] += 1
    box.put("ledger", "store2", {"head": 2})
    assert box.take()["ledger"] == {"head": 2}


def test_nobody_else_can_look_into_the_box(box):
    box.put("cluster_info", "n1", {})
    assert stat.S_IMODE(Path(box.directory).stat().st_mode) == 0o700
    for path in Path(box.directory).iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def _put(directory, host):
    Box(directory).put("cluster_info", host, {"membership": "member"})


def test_workers_that_testify_at_once_share_one_nonce(tmp_path):
    directory = str(tmp_path / "box")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_put, args=(directory, f"n{index}")) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(Box(directory).take()["witnesses"]) == 8


class Task:
    """What an action plugin sees of a task."""

    def __init__(self, args, delegate_to=None, async_val=0):
        self.args, self.delegate_to, self.async_val = args, delegate_to, async_val


@pytest.fixture
def action(monkeypatch, tmp_path):
    """Runs an action plugin; the module's answer and the arguments it got are lists."""
    monkeypatch.setattr(_testimony.C, "DEFAULT_LOCAL_TMP", str(tmp_path))
    monkeypatch.setattr(_testimony.ActionBase, "run", lambda self, tmp=None, task_vars=None: {})

    def run(kind, module, task, answer):
        plugin = kind.__new__(type("ActionModule", (kind,), {"MODULE": module}))
        plugin._task = task
        seen = []
        plugin._execute_module = lambda **options: seen.append(options) or dict(answer)
        return plugin.run(task_vars={"inventory_hostname": "alias"}), seen

    return run


GUARDS = ["cluster_create", "cluster_remove", "cluster_reset", "restore"]


@pytest.mark.parametrize("module", GUARDS)
def test_a_task_cannot_testify_for_others(action, module):
    result, seen = action(GuardAction, module, Task({"confirm": "dr1", "testimony": {"witnesses": {}}}), {})
    assert (result["failed"], result["error_code"], seen) == (True, "TESTIMONY_GIVEN", [])


def test_a_guard_gets_what_was_said_in_this_run(action):
    info = {"membership": "member", "invocation": {"module_args": {}}, "cluster": {"nodes": []}}
    action(WitnessAction, "cluster_info", Task({}, delegate_to="n1"), info)
    action(WitnessAction, "cluster_info", Task({}), info)
    action(WitnessAction, "ledger", Task({}, delegate_to="store"), {"folded": {"members": []}})
    _result, seen = action(GuardAction, "cluster_reset", Task({"confirm": "dr1"}), {"changed": True})
    (options,) = seen
    assert options["module_name"] == "kmsops.fortanix_dsm.cluster_reset"
    heard = options["module_args"]["testimony"]
    assert sorted(heard["witnesses"]) == ["alias", "n1"]
    assert "invocation" not in heard["witnesses"]["n1"]
    assert heard["ledger"] == {"folded": {"members": []}}
    assert options["module_args"]["confirm"] == "dr1"


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        (Task({}), {"failed": True, "membership": "member"}),
        (Task({}), {"unreachable": True}),
        (Task({}, async_val=60), {"ansible_job_id": "1", "started": 1}),
    ],
)
def test_who_fails_or_runs_in_the_background_testifies_nothing(action, task, answer):
    action(WitnessAction, "cluster_info", task, answer)
    _result, seen = action(GuardAction, "cluster_reset", Task({}), {})
    assert seen[0]["module_args"]["testimony"]["witnesses"] == {}


@pytest.mark.parametrize("module", [*GUARDS, "cluster_info", "ledger"])
def test_every_guard_and_every_witness_has_its_action_plugin(module):
    source = Path(_testimony.__file__).resolve().parents[1] / "action" / f"{module}.py"
    kind = "GuardAction" if module in GUARDS else "WitnessAction"
    text = source.read_text()
    assert f"class ActionModule({kind}):" in text and f'MODULE = "{module}"' in text
