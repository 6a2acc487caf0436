# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Deliveries go from a source only if the store has every byte of them, verified; never by their name."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from module_run import Answer, FakeOperations, FakeRunner, run

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils import _source_files
from ansible_collections.kmsops.fortanix_dsm.plugins.modules import source_clean

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


def written_to(path: Path) -> None:
    path.write_bytes(b"a new backup, which nobody has")


def replaced(path: Path) -> None:
    """By one that looks the same: content of the same size, and its time."""
    other = path.with_name("other")
    other.write_bytes(b"y" * path.stat().st_size)
    os.utime(other, (OLD, OLD))
    other.replace(path)


def overwritten(path: Path) -> None:
    """In place, and its time put back."""
    path.write_bytes(b"y" * path.stat().st_size)
    os.utime(path, (OLD, OLD))


def moved_away(path: Path) -> None:
    """By a person, to keep it; a link is left where it was."""
    parent = path.parent
    parent.rename(parent.with_name("kept"))
    parent.symlink_to(parent.with_name("kept"))


def meanwhile(monkeypatch: pytest.MonkeyPatch, last: str, act: Callable[[], None]) -> None:
    """Something happens when the file whose name ends so, of all that are read, has been read."""
    real = source_clean.difference

    def difference(file: Any, root: str) -> Any:
        found = real(file, root)
        if file.path.endswith(last):
            act()
        return found

    monkeypatch.setattr(source_clean, "difference", difference)


@pytest.mark.parametrize("change", [written_to, replaced, overwritten, moved_away, Path.unlink])
def test_a_delivery_that_changes_while_others_are_read_stays_as_a_whole(
    drop: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    backups = [deliver(drop, 1, directory=True), deliver(drop, 2), deliver(drop, 3)]
    meanwhile(monkeypatch, "backup_2", lambda: change(drop / "backup_1" / "n1" / "t2" / "Data.db"))
    done = clean(drop, backups)
    assert done.result["removed"] == ["b2"] and done.result["freed"] == 2
    assert reasons(done) == {"b1": ["CHANGED"], "b3": ["NEWEST"]}
    assert (drop / "backup_1" / "n1" / "t1" / "Data.db").exists()
    assert done.result["diff"]["after"]["files"][0] == str(drop / "backup_1" / "n1" / "t1" / "Data.db")


def test_the_rest_stays_when_a_file_changes_while_others_of_its_delivery_go(
    drop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups = [deliver(drop, 1, directory=True), deliver(drop, 2)]
    real = os.unlink

    def unlink(path: Any, *more: Any, **named: Any) -> None:
        real(path, *more, **named)
        written_to(drop / "backup_1" / "n1" / "t2" / "Data.db")

    monkeypatch.setattr(os, "unlink", unlink)
    done = clean(drop, backups)
    assert (done.result["changed"], done.result["removed"], done.result["freed"]) == (True, [], 2)
    assert reasons(done)["b1"] == ["CHANGED"] and "backup_1/n1/t2/Data.db" in files(drop)


def test_a_hard_link_in_a_delivery_that_went_before_is_no_change(drop: Path) -> None:
    """Landing hosts that keep what is equal once (rsync --link-dest, cp -al)."""
    backups = [deliver(drop, number, directory=True) for number in (1, 2, 3)]
    for part in ("t1", "t2"):
        second = drop / "backup_2" / "n1" / part / "Data.db"
        second.unlink()
        os.link(drop / "backup_1" / "n1" / part / "Data.db", second)
    backups[1]["files"] = backups[0]["files"]
    assert clean(drop, backups).result["removed"] == ["b1", "b2"]


def test_directories_that_dsm_delivers_to_stay(tmp_path: Path) -> None:
    """Source /drop/*/backup_*: the root is /drop, and each node has a directory of its own there."""
    drop = tmp_path / "drop" / "landing"
    backups = [deliver(drop / f"n{number}", number, directory=number == 2) for number in (1, 2, 3)]
    assert clean(drop, backups).result["removed"] == ["b1", "b2"]
    assert os.listdir(drop / "n1") == os.listdir(drop / "n2") == []


def test_f28_a_delivery_that_cannot_be_removed_stops_no_other(drop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backups = [deliver(drop, number) for number in (1, 2, 3)]
    real = os.unlink

    def unlink(path: Any, *more: Any, **named: Any) -> None:
        if str(path).endswith("backup_1"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        real(path, *more, **named)

    monkeypatch.setattr(os, "unlink", unlink)
    told = clean(drop, backups)
    assert told.failed and told.result["error_code"] == "REMOVE_FAILED" and told.result["remedy"]
    assert [(one["code"], "backup_1 cannot be" in one["message"]) for one in told.result["reasons"]] == [
        ("REMOVE_FAILED", True)
    ]
    details = told.result["details"]
    assert (details["removed"], details["freed"]) == (["b2"], 2)
    assert {one["id"] for one in details["stays"]} == {"b1", "b3"}
    assert files(drop) == ["backup_1", "backup_3"]


@pytest.mark.parametrize(("only", "gone"), [(None, ["b1", "b2", "b3"]), (["b2", "b4", "b9"], ["b2"]), ([], [])])
def test_only_what_is_named_goes_and_all_others_count(drop: Path, only: list[str] | None, gone: list[str]) -> None:
    backups = [deliver(drop, number) for number in (1, 2, 3, 4)]
    done = clean(drop, backups, only=only)
    assert done.result["removed"] == gone
    assert reasons(done) == ({} if only == [] else {"b4": ["NEWEST"]})
    assert len(files(drop)) == 4 - len(gone)


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


def test_a_mount_that_gives_a_file_another_inode_at_any_time_is_cleaned(tmp_path: Path) -> None:
    path = tmp_path / "sdkms.tar.gz"
    path.write_bytes(b"backup")
    os.utime(path, (1, 1))
    now = _source_files.state(str(path))
    assert now is not None and _source_files._same(now._replace(inode=7), now)
    other = now._replace(inode=7, ctime=now.ctime + 1, links=now.links - 1)
    assert not _source_files._same(now, other) and _source_files._same(now, other._replace(inode=now.inode))
    assert not any(_source_files._same(now, now._replace(**{name: 1})) for name in ("device", "size", "mtime", "ctime"))


def test_where_a_mount_has_no_ctime_of_its_own_another_inode_is_another_file() -> None:
    """sshfs gives mtime as ctime, so that nothing but the inode says that somebody put another file there."""
    before = _source_files.State(device=1, inode=10, size=100, mtime=7, ctime=7, links=1)
    assert _source_files._same(before, before) and not _source_files._same(before, before._replace(inode=11))
