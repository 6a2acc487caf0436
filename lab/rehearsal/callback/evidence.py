# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes one JSON line for each task result, so that the rehearsal can quote what really happened."""

from __future__ import annotations

DOCUMENTATION = r"""
name: evidence
type: notification
short_description: One JSON line for each task result
description:
  - Appends a line to the file that E(KMSOPS_EVIDENCE) names. Censored results are left out whole.
requirements:
  - a rehearsal that sets the variable
"""

import json
import os
import time

from ansible.plugins.callback import CallbackBase

# Never written: what was passed in, and what is long.
DROPPED = ("invocation", "diff", "actions", "before", "after", "stdout_lines", "stderr_lines", "exception")


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "evidence"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._path = os.environ.get("KMSOPS_EVIDENCE")
        self._started = {}

    def _write(self, line):
        if self._path:
            with open(self._path, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(line, default=str) + "\n")

    def _result(self, kind, result):
        task = result._task
        outcome = result._result
        if task.no_log or outcome.get("_ansible_no_log"):
            return
        items = outcome.get("results") if task.loop is not None else None
        for one in items if isinstance(items, list) else [outcome]:
            if not isinstance(one, dict) or one.get("_ansible_no_log"):
                continue
            self._write(
                {
                    "at": round(time.time(), 3),
                    "kind": kind,
                    "host": result._host.get_name(),
                    "task": task.get_name(),
                    "action": task.action,
                    "seconds": round(time.time() - self._started.get(task._uuid, time.time()), 3),
                    "result": {key: value for key, value in one.items() if key not in DROPPED},
                }
            )

    def v2_playbook_on_task_start(self, task, is_conditional):
        self._started[task._uuid] = time.time()
        self._write({"at": round(time.time(), 3), "kind": "task", "task": task.get_name(), "action": task.action})

    def v2_runner_on_ok(self, result):
        self._result("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._result("failed", result)

    def v2_runner_on_unreachable(self, result):
        self._result("unreachable", result)

    def v2_playbook_on_stats(self, stats):
        hosts = {host: stats.summarize(host) for host in sorted(stats.processed)}
        self._write({"at": round(time.time(), 3), "kind": "stats", "hosts": hosts})
