# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs one module of the collection as Ansible would: arguments on stdin, one JSON result on stdout, own process."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

from ansible.module_utils.testing import patch_module_args

runpy.run_path(str(Path(__file__).resolve().parents[2] / "conftest.py"))


def main() -> None:
    request = json.load(sys.stdin)
    for name in request.get("hide", ()):
        sys.modules[name] = None  # type: ignore[assignment]
    module = importlib.import_module(f"ansible_collections.kmsops.fortanix_dsm.plugins.modules.{request['module']}")
    if request.get("python"):
        ssh = importlib.import_module("ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh")
        ssh.MINIMUM_PYTHON = tuple(request["python"])
    with patch_module_args({**request["args"], "_ansible_check_mode": request.get("check", False)}):
        module.main()


main()
