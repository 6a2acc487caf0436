# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deliveries go from a source only if the store has every byte of them, verified; never by their name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from module_run import Answer, FakeOperations, FakeRunner, run

HOST = "192.0.2.50"
OLD = 1_700_000_000


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    path = tmp_path / "landing" / "backup"
    path.mkdir(parents=True)
    return path


def deliver(drop: Path, number: int, *, directory: bool = False, mtime: int = OLD, **facts: Any) -> dict[str, Any]:
    """A delivery, and what backup_info says about it."""
    name = drop / f"backup_{number}"
    files = (
        {f"n1/t{part}/Data.db": bytes([number, part]) for part in (1, 2)} if directory else {name.name: b"x" * number}
    )
    listed = []
    for relative, content in files.items():
        path = name / relative if directory else name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        os.utime(path, (mtime, mtime))
        sha256 = hashlib.sha256(content).hexdigest()
        listed.append({"path": relative, "size": len(content), "mtime": mtime, "sha256": sha256})
    source = {"host": HOST, "path": str(name), "layout": "single"}
    described = {"id": f"b{number}", "sequence": number, "published": True, "verified": True, "files": listed}
    return {**described, "source": source, **facts}


def clean(drop: Path, backups: list[dict[str, Any]], check: bool = False, **options: Any) -> Answer:
    params = {"backups": backups, "host": HOST, "root": str(drop), "older_than": 86400, "keep": 1, **options}
    return run("source_clean", params, check=check, runner=FakeRunner(), operations=FakeOperations())


def reasons(answer: Answer) -> dict[str, list[str]]:
    return {one["id"]: [reason["code"] for reason in one["reasons"]] for one in answer.result["stays"]}


def files(drop: Path) -> list[str]:
    return sorted(str(path.relative_to(drop)) for path in drop.rglob("*") if not path.is_dir())


def test_old_and_verified_deliveries_go(drop: Path) -> None:
    backups = [deliver(drop, 1), deliver(drop, 2, directory=True), deliver(drop, 3), deliver(drop, 4)]
    (drop / "stranger").write_bytes(b"1")
    planned = clean(drop, backups, check=True)
    assert planned.result["removed"] == ["b1", "b2", "b3"] and len(files(drop)) == 6
    done = clean(drop, backups)
    assert done.result["removed"] == ["b1", "b2", "b3"] and done.result["freed"] == 1 + 4 + 3
    assert files(drop) == ["backup_4", "stranger"] and not (drop / "backup_2").exists()
    assert reasons(done) == {"b4": ["NEWEST"]}
    again = clean(drop, backups)
    assert not again.result["changed"] and reasons(again) == {"b4": ["NEWEST"]}


def test_whatever_speaks_against_it_is_said(drop: Path, tmp_path: Path) -> None:
    import time

    outside = tmp_path / "elsewhere"
    outside.mkdir()
    backups = [
        deliver(drop, 1, verified=False),
        deliver(drop, 2, published=False),
        deliver(drop, 3, mtime=int(time.time()) - 1000),
        deliver(outside, 4),
        deliver(drop, 5, files=[]),
        deliver(drop, 6),
        deliver(drop, 7),
        deliver(drop, 8, directory=True),
        deliver(drop, 9),
        deliver(drop, 10),
        deliver(drop, 11),
    ]
    backups[5]["source"]["layout"] = "merged"
    (drop / "backup_7").write_bytes(b"y" * 7)
    os.utime(drop / "backup_7", (OLD, OLD))
    (drop / "backup_8" / "n1" / "t1" / "Data.db").unlink()
    (drop / "backup_9").unlink()
    (drop / "backup_9").symlink_to(drop / "backup_1")
    os.utime(drop / "backup_10", (OLD + 1, OLD + 1))
    before = files(drop)
    answer = clean(drop, backups)
    assert answer.result["removed"] == ["b8"], "what a killed run left of a delivery goes too"
    assert files(drop) == [path for path in before if not path.startswith("backup_8/")]
    assert answer.result["diff"]["before"]["files"] and answer.result["diff"]["after"] == {"files": []}
    assert reasons(answer) == {
        "b1": ["NOT_VERIFIED"],
        "b2": ["NOT_VERIFIED"],
        "b3": ["TOO_YOUNG"],
        "b4": ["OUTSIDE"],
        "b5": ["NOT_DESCRIBED", "TOO_YOUNG"],
        "b6": ["LAYOUT", "TOO_YOUNG"],
        "b7": ["CHANGED"],
        "b9": ["UNREADABLE"],
        "b10": ["CHANGED"],
        "b11": ["NEWEST"],
    }


def test_a_link_on_the_way_leads_nowhere(drop: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    backup = deliver(elsewhere, 1, directory=True)
    (drop / "backup_1").symlink_to(elsewhere / "backup_1")
    backup["source"]["path"] = str(drop / "backup_1")
    answer = clean(drop, [backup, deliver(drop, 2)])
    assert reasons(answer)["b1"] == ["LINK", "LINK"] and len(files(elsewhere)) == 2


@pytest.mark.parametrize("path", ["../up", "/etc/passwd", "a/../../b", "", "a\nb"])
def test_names_that_climb_are_not_followed(drop: Path, path: str) -> None:
    backup = deliver(drop, 1)
    backup["files"][0]["path"] = path
    assert reasons(clean(drop, [backup, deliver(drop, 2)]))["b1"] == ["NOT_DESCRIBED", "TOO_YOUNG"]


def test_another_source_is_not_ours(drop: Path) -> None:
    backup = deliver(drop, 1)
    backup["source"]["host"] = "192.0.2.51"
    answer = clean(drop, [backup, {"id": "wreck", "state": "failed"}, deliver(drop, 2)])
    assert reasons(answer) == {"b2": ["NEWEST"]} and files(drop) == ["backup_1", "backup_2"]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"older_than": 3599}, "TOO_EAGER"),
        ({"older_than": float("nan")}, "TOO_EAGER"),
        ({"older_than": float("inf")}, "TOO_EAGER"),
        ({"keep": 0}, "KEEP_NOTHING"),
        ({"root": "/"}, "BAD_ROOT"),
        ({"root": "/home"}, "BAD_ROOT"),
        ({"root": "/nonexistent/drop"}, "BAD_ROOT"),
    ],
)
def test_wrong_use(drop: Path, options: dict[str, Any], code: str) -> None:
    answer = clean(drop, [deliver(drop, 1), deliver(drop, 2)], **options)
    assert answer.failed and answer.result["error_code"] == code and answer.result["remedy"]
    assert len(files(drop)) == 2
