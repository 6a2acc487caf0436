# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This plugin util is PRIVATE to the collection. It can change at any time.

"""What other hosts testified in this run of Ansible, kept on the controller (law 5 of the design).

``cluster_info`` and ``ledger`` put their results into a box in the controller process's private temporary directory,
which ends with the process. The guards' action plugins take from the box what is fresh and hand it to their module.
A playbook has no way to write into it.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import secrets
import time
import typing as t

from ansible import constants as C
from ansible.plugins.action import ActionBase

#: Seconds for which a testimony counts.
MAX_AGE = 120.0
NAMESPACE = "kmsops.fortanix_dsm"


class Box:
    """The box. Workers of one Ansible process share it; ages are measured with the controller's monotonic clock."""

    def __init__(self, directory: str | None = None, clock: t.Callable[[], float] = time.monotonic) -> None:
        self.directory = directory or os.path.join(C.DEFAULT_LOCAL_TMP, "kmsops_testimony")
        self._clock = clock

    def put(self, kind: str, host: str, result: dict[str, t.Any]) -> None:
        """Keep a result; the newest of a kind and host counts.

        :param kind: ``cluster_info`` or ``ledger``
        :param host: inventory name of the host that the module ran on
        """
        nonce = self._nonce(make=True)
        entry = {"kind": kind, "host": host, "nonce": nonce, "at": self._clock(), "result": result}
        name = hashlib.sha256(f"{kind}\0{host}".encode()).hexdigest()
        path = os.path.join(self.directory, f"{name}.json")
        staged = f"{path}.{secrets.token_hex(8)}"
        with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as handle:
            json.dump(entry, handle)
        os.replace(staged, path)

    def take(self, max_age: float = MAX_AGE) -> dict[str, t.Any]:
        """All that is younger than ``max_age`` seconds: ``{now, nonce, witnesses: {host: result}, ledger: result}``."""
        nonce = self._nonce(make=False)
        witnesses: dict[str, t.Any] = {}
        ledgers: list[tuple[float, t.Any]] = []
        for entry in self._entries():
            age = self._clock() - entry["at"]
            if entry["nonce"] != nonce or not 0 <= age <= max_age:
                continue
            if entry["kind"] == "ledger":
                ledgers.append((entry["at"], entry["result"]))
            else:
                witnesses[entry["host"]] = dict(entry["result"], testimony_age=round(age, 1))
        return {
            "now": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "nonce": nonce,
            "witnesses": witnesses,
            "ledger": max(ledgers, key=lambda pair: pair[0])[1] if ledgers else None,
        }

    def _entries(self) -> t.Iterator[dict[str, t.Any]]:
        if not os.path.isdir(self.directory):
            return
        for name in sorted(os.listdir(self.directory)):
            if name.endswith(".json"):
                with open(os.path.join(self.directory, name), encoding="utf-8") as handle:
                    yield json.load(handle)

    def _nonce(self, make: bool) -> str:
        path = os.path.join(self.directory, "nonce")
        if make and not os.path.exists(path):
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            staged = f"{path}.{secrets.token_hex(8)}"
            with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
                handle.write(secrets.token_hex(16))
            try:
                os.link(staged, path)  # the first of several workers wins
            except FileExistsError:
                pass
            finally:
                os.unlink(staged)
        try:
            with open(path, encoding="ascii") as handle:
                return handle.read()
        except FileNotFoundError:
            return ""


class _ModuleAction(ActionBase):
    """Runs the module of the same name on the host."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = True
    MODULE = ""

    def _run_module(self, arguments: dict[str, t.Any], task_vars: dict[str, t.Any]) -> dict[str, t.Any]:
        answer: dict[str, t.Any] = self._execute_module(
            module_name=f"{NAMESPACE}.{self.MODULE}",
            module_args=arguments,
            task_vars=task_vars,
            wrap_async=self._task.async_val,
        )
        return answer


class WitnessAction(_ModuleAction):
    """A module whose result is testimony. Failed and background runs testify nothing."""

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        result.update(self._run_module(dict(self._task.args), task_vars))
        if not result.get("failed") and not result.get("unreachable") and not self._task.async_val:
            host = self._task.delegate_to or task_vars.get("inventory_hostname") or ""
            kept = {key: value for key, value in result.items() if key not in ("invocation", "diff", "warnings")}
            Box().put(self.MODULE, str(host), kept)
        return result


class GuardAction(_ModuleAction):
    """A module that can hurt: it gets what others testified in this run, and nothing that a task says."""

    def run(self, tmp: t.Any = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if "testimony" in arguments:
            remedy = (
                "Leave testimony out, and run cluster_info (and ledger) for the hosts that must be heard before this."
            )
            result.update(
                failed=True,
                changed=False,
                error_code="TESTIMONY_GIVEN",
                reasons=[],
                remedy=remedy,
                details={},
                msg=f"testimony is gathered from this run's own results and cannot be passed in. {remedy}",
            )
            return result
        result.update(self._run_module(dict(arguments, testimony=Box().take()), task_vars or {}))
        return result
