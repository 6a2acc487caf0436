# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rehearsal's search for secrets finds them."""

from __future__ import annotations

import json
import pathlib

from rehearsal import secrets


def test_a_secret_and_a_token_are_found_and_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text("sdkms-cluster join --token=abcdef.0123456789abcdef", encoding="utf-8")
    (tmp_path / "report.json").write_bytes(b"\xff\x00 canary-secret-1 \xff")
    (tmp_path / "report.md").write_text("node01.example and 20261122t010203z.tar.gz are no secrets", encoding="utf-8")
    count, found = secrets.in_files(tmp_path, ["canary-secret-1"])
    assert count == 3
    assert [pathlib.Path(one).name for one in found] == ["a.log (a join token)", "report.json"]


def test_short_values_and_other_things_are_no_secrets(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "secrets.yml"
    values = {
        "dsm_scp_password": "long-enough",
        "dsm_api_key": "also-long-enough",
        "b_key": "short",
        "c_key": 12345678,
        "d_key": ["x"],
        "dsm_account_id": "an-identifier-and-no-secret",
        "dsm_operator": "operator@lab.test",
    }
    path.write_text(json.dumps(values), encoding="utf-8")
    assert secrets.planted(path) == ["also-long-enough", "long-enough"]
