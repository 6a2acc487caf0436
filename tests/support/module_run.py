# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a module's ``main()`` whole in this process: real arguments, redaction and result; fake commands."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from ansible.module_utils import basic

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _module
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import CommandFailed
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._runner import Completed, OperationResult, redact

PACKAGE = "ansible_collections.kmsops.fortanix_dsm.plugins"


class FakeRunner:
    """Answers commands from a table: first words of argv -> text, ``(rc, stdout, stderr)``, or a function of argv."""

    def __init__(self, answers: Mapping[tuple[str, ...], Any] | None = None) -> None:
        self.answers = dict(answers or {})
        self.actions: list[dict[str, Any]] = []
        self.calls: list[list[str]] = []

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float = 60.0,
        check: bool = True,
        stdin: str | None = None,
        secrets: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        reading: bool = False,
    ) -> Completed:
        words = list(argv)
        self.calls.append(words)
        rc, out, err = self._answer(words)
        shown = [redact(word, secrets) for word in words]
        if not reading:
            self.actions.append({"argv": shown, "rc": rc, "seconds": 0.0})
        if check and rc != 0:
            raise CommandFailed(f"{' '.join(shown)} ended with exit code {rc}", argv=shown, rc=rc)
        return Completed(shown, rc, redact(out, secrets), redact(err, secrets), 0.0)

    def _answer(self, words: list[str]) -> tuple[int, str, str]:
        for length in range(len(words), 0, -1):
            if tuple(words[:length]) in self.answers:
                answer = self.answers[tuple(words[:length])]
                answer = answer(words) if callable(answer) else answer
                return (0, answer, "") if isinstance(answer, str) else answer
        raise CommandFailed(f"The program {words[0]} was not found on this host.", "TOOL_MISSING", tool=words[0])


@dataclass
class FakeOperations:
    """Detached operations without processes. ``ends`` maps a name to an exit code (0 when absent); ``effect`` is called
    with name and argv when one starts."""

    ends: dict[str, int | None] = field(default_factory=dict)
    effect: Callable[[str, list[str]], None] | None = None
    actions: list[dict[str, Any]] = field(default_factory=list)
    started: list[tuple[str, list[str]]] = field(default_factory=list)
    records: dict[str, OperationResult] = field(default_factory=dict)
    now: str = "2030-01-01T00:00:00Z"

    def status(self, name: str) -> OperationResult | None:
        return self.records.get(name)

    def running(self, name: str) -> list[str]:
        ours = [one for one in self.records if one == name or one.startswith(f"{name}-")]
        return [one for one in ours if self.records[one].running]

    def would_attach(self, name: str, argv: Sequence[str], report_within: float = 3600.0) -> bool:
        before = self.records.get(name)
        return before is not None and (before.running or not before.reported)

    def acknowledge(self, name: str) -> OperationResult | None:
        result = self.records.get(name)
        if result is not None and not result.running and not result.reported:
            self.records[name] = replace(result, reported=True)
        return result

    def forget(self, name: str) -> None:
        if name in self.records and not self.records[name].running:
            del self.records[name]

    def start_or_attach(
        self,
        name: str,
        argv: Sequence[str],
        *,
        timeout: float,
        secrets: Sequence[str] = (),
        wait: bool = True,
        report_within: float = 3600.0,
        patterns: Sequence[str] = (),
        excludes: Sequence[str] = (),
        note: Mapping[str, Any] | None = None,
    ) -> OperationResult:
        shown = [redact(word, secrets) for word in argv]
        before = self.records.get(name)
        attached = self.would_attach(name, argv)
        if not attached:
            self.started.append((name, list(argv)))
            if self.effect is not None:
                self.effect(name, list(argv))
        rc = self.ends.get(name, 0)
        started_at = before.started_at if before is not None and attached else self.now
        kept = before.note if before is not None and attached else note
        output = redact("output of " + name, secrets)
        result = OperationResult(rc, output, started_at, attached, 0.0, False, wait, kept)
        self.records[name] = result
        self.actions.append({"argv": shown, "rc": rc, "seconds": 0.0})
        return result


@dataclass
class Answer:
    """What a module printed: ``result`` parsed, ``text`` everything on both outputs."""

    result: dict[str, Any]
    text: str

    @property
    def failed(self) -> bool:
        return bool(self.result.get("failed"))


def run(
    name: str,
    params: Mapping[str, Any],
    *,
    check: bool = False,
    runner: FakeRunner | None = None,
    operations: FakeOperations | None = None,
) -> Answer:
    """Runs a module as Ansible would, but for commands: ``runner`` and ``operations`` stand for those."""
    module = importlib.import_module(f"{PACKAGE}.modules.{name}")
    given = {
        "ANSIBLE_MODULE_ARGS": {
            **params,
            "_ansible_check_mode": check,
            "_ansible_diff": True,
            "_ansible_remote_tmp": "/tmp",
            "_ansible_keep_remote_files": False,
        }
    }
    out, err = io.StringIO(), io.StringIO()
    runner = runner if runner is not None else FakeRunner()
    patches = [
        mock.patch.object(basic, "_ANSIBLE_ARGS", json.dumps(given).encode()),
        mock.patch.object(_module, "LocalRunner", lambda: runner),
    ]
    if hasattr(basic, "_ANSIBLE_PROFILE"):
        patches.append(mock.patch.object(basic, "_ANSIBLE_PROFILE", "legacy"))
    if operations is not None:
        operations.actions = runner.actions
        patches.append(mock.patch.object(_module, "Operations", lambda **_unused: operations))
    for patch in patches:
        patch.start()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            module.main()
    except SystemExit:
        pass
    finally:
        for patch in patches:
            patch.stop()
        sys.stdout.flush()
    return Answer(json.loads(out.getvalue().strip().splitlines()[-1]), out.getvalue() + err.getvalue())


def constructed(name: str) -> dict[str, Any]:
    """The arguments that a module gives to AnsibleModule: its specification, as it is in force."""
    module = importlib.import_module(f"{PACKAGE}.modules.{name}")
    seen: dict[str, Any] = {}

    class Stop(Exception):
        pass

    def record(**arguments: Any) -> None:
        seen.update(arguments)
        raise Stop

    with mock.patch.object(_module, "TellingModule", record), suppress(Stop):
        module.main()
    return seen
