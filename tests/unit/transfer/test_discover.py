# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a source is asked: every question is a round trip."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _discover
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._discover import Source, discover
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import (
    LocalEndpoint,
    LocalSession,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sftp import Attributes


class Asked(LocalSession):
    """Files of this host, whose listings tell everything, or no kinds of files."""

    def __init__(self, kinds: bool) -> None:
        self.kinds = kinds
        self.questions: list[str] = []

    def lstat(self, path: str) -> Attributes:
        self.questions.append(f"lstat {Path(path).name}")
        return super().lstat(path)

    def listdir(self, path: str) -> list[tuple[str, Attributes]]:
        self.questions.append(f"listdir {Path(path).name}")
        found = [
            (name, LocalSession().lstat(f"{path}/{name}")) for name in sorted(p.name for p in Path(path).iterdir())
        ]
        return [(name, item if self.kinds else item._replace(mode=0)) for name, item in found]


@pytest.mark.parametrize(
    ("kinds", "questions"), [(True, ["listdir in"]), (False, ["listdir in", "lstat a", "lstat b", "lstat link"])]
)
def test_a_match_is_looked_at_once(tmp_path: Path, kinds: bool, questions: list[str]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for name in ("a", "b"):
        (source / name).write_bytes(b"x")
    (source / "link").symlink_to("a")
    session = Asked(kinds)
    units = discover(session, Source(LocalEndpoint(), f"{source}/*"))
    assert [Path(unit.name).name for unit in units] == ["a", "b"]
    assert [stat.S_IFMT(unit.items[0].attributes.mode) for unit in units] == [stat.S_IFREG] * 2
    assert session.questions == questions


class Endless(LocalSession):
    """A source that never ends: each directory has a directory and ten files."""

    asked = 0

    def lstat(self, path: str) -> Attributes:
        return Attributes(0, stat.S_IFDIR | 0o700, 1)

    def listdir(self, path: str) -> list[tuple[str, Attributes]]:
        self.asked += 1
        file = Attributes(1, stat.S_IFREG | 0o600, 1)
        return [("d", self.lstat("d")), *((f"f{number}", file) for number in range(10))]


@pytest.mark.parametrize(
    ("most", "code", "asked"), [(10**6, "TOO_DEEP", _discover.DEEPEST + 1), (100, "TOO_MANY_FILES", 66)]
)
def test_directories_without_end_are_refused_once_and_not_followed(
    monkeypatch: pytest.MonkeyPatch, most: int, code: str, asked: int
) -> None:
    monkeypatch.setattr(_discover, "MOST_ENTRIES", most)
    session = Endless()
    (unit,) = discover(session, Source(LocalEndpoint(), "/b"))
    assert [reason.code for reason in unit.reasons if reason.hard][-1:] == [code]
    assert [reason.code for reason in unit.reasons].count(code) == 1 and unit.reasons[-1].remedy
    assert session.asked <= asked and len(unit.items) <= 10 * asked


def test_a_real_tree_that_is_deeper_than_any_stack_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "b"
    top.mkdir()
    monkeypatch.chdir(top)
    for _level in range(1500):
        os.mkdir("a")
        os.chdir("a")
    Path("f").write_bytes(b"x")
    (unit,) = discover(LocalSession(), Source(LocalEndpoint(), str(top)))
    assert [reason.code for reason in unit.reasons] == ["TOO_DEEP"] and not unit.items
    monkeypatch.undo()
    subprocess.run(["rm", "-r", str(top)], check=True)


class Twice(LocalSession):
    """A server that lists every name twice."""

    def listdir(self, path: str) -> list[tuple[str, Attributes]]:
        return [entry for entry in super().listdir(path) for _again in range(2)]


def test_a_name_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"x")
    (unit,) = discover(Twice(), Source(LocalEndpoint(), f"{tmp_path}/d"))
    assert [reason.code for reason in unit.reasons] == ["LISTED_TWICE"] and unit.reasons[0].remedy


def test_files_of_one_name_in_several_directories_keep_apart(tmp_path: Path) -> None:
    for node in ("n1", "n2"):
        (tmp_path / node).mkdir()
        (tmp_path / node / "data.db").write_bytes(b"x")
    (unit,) = discover(LocalSession(), Source(LocalEndpoint(), f"{tmp_path}/*/data.db", "together"))
    assert [item.path for item in unit.items] == ["n1/data.db", "n2/data.db"] and not unit.reasons
    (alone,) = discover(LocalSession(), Source(LocalEndpoint(), f"{tmp_path}/n1/*", "together"))
    assert [item.path for item in alone.items] == ["data.db"]


@pytest.mark.parametrize("name", [b"a\xff", b"a\nb", b"a\x1b[2J"])
def test_a_directory_of_a_bad_name_is_refused_and_no_other(tmp_path: Path, name: bytes) -> None:
    bad = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    for directory in (bad, tmp_path / "good"):
        directory.mkdir()
        (directory / "data.db").write_bytes(b"x")
    units = discover(LocalSession(), Source(LocalEndpoint(), f"{tmp_path}/*"))
    codes = {unit.name: [reason.code for reason in unit.reasons] for unit in units}
    assert codes == {str(bad): ["BAD_NAME"], str(tmp_path / "good"): []}
    assert all(reason.message.isprintable() for unit in units for reason in unit.reasons)


def test_what_vanishes_while_a_directory_is_listed_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backup").write_bytes(b"x")
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: [*listdir(path), "gone"])
    units = discover(LocalSession(), Source(LocalEndpoint(), f"{tmp_path}/*"))
    assert [unit.name for unit in units] == [f"{tmp_path}/backup"]


def test_a_name_without_wildcards_is_asked_for_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    session = Asked(kinds=True)
    assert len(discover(session, Source(LocalEndpoint(), f"{tmp_path}/a"))) == 1
    assert session.questions == ["lstat a"]


# -- more than one directory -----------------------------------------------------------------------------------------


def told(session: LocalSession, pattern: str, layout: str = "single") -> dict[str, list[str]]:
    """The codes of each unit that a pattern below the top matches, by its path there."""
    return {
        unit.name: [reason.code for reason in unit.reasons]
        for unit in discover(session, Source(LocalEndpoint(), pattern, layout))
    }


def node(top: Path, name: str) -> Path:
    """A directory of a node with one delivery."""
    (top / name).mkdir(parents=True)
    (top / name / "x.bin").write_bytes(b"x")
    return top / name / "x.bin"


@pytest.mark.parametrize("pattern", ["*/*", "*/x.bin"])
@pytest.mark.parametrize("layout", ["single", "per_node"])
def test_a_link_above_the_last_part_is_refused_by_itself_and_not_followed(
    tmp_path: Path, pattern: str, layout: str
) -> None:
    drop = tmp_path / "in"
    good, _foreign = node(drop, "n1"), node(tmp_path, "foreign")
    (drop / "evil").symlink_to(tmp_path / "foreign")
    name = good if layout == "single" else good.parent
    assert told(LocalSession(), f"{drop}/{pattern}", layout) == {
        str(name): [],
        str(drop / "evil"): ["SYMLINK_OUTSIDE"],
    }
    (both,) = told(LocalSession(), f"{drop}/{pattern}", "together").values()
    assert both == ["SYMLINK_OUTSIDE"], "which of its files are missing cannot be told"


def test_a_link_at_a_part_without_wildcards_is_not_followed_below_one(tmp_path: Path) -> None:
    drop = tmp_path / "in"
    good, _foreign = node(drop / "n1", "now"), node(tmp_path, "foreign")
    (drop / "n2").mkdir()
    (drop / "n2" / "now").symlink_to(tmp_path / "foreign")
    (drop / "n3").mkdir()
    assert told(LocalSession(), f"{drop}/*/now/*") == {str(good): [], str(drop / "n2" / "now"): ["SYMLINK_OUTSIDE"]}


def test_a_link_to_what_counts_for_itself_is_no_second_one_in_the_middle_either(tmp_path: Path) -> None:
    good = node(tmp_path, "n1")
    (tmp_path / "log").write_bytes(b"x")
    (tmp_path / "latest").symlink_to("n1")
    (tmp_path / "latest.log").symlink_to("log")
    (tmp_path / "n1" / "newest").symlink_to("x.bin")
    assert told(LocalSession(), f"{tmp_path}/*/*") == {str(good): []}


def test_a_link_to_a_file_is_no_backup_where_a_directory_is_meant(tmp_path: Path) -> None:
    drop = tmp_path / "in"
    good = node(drop, "n1")
    (drop / ".hidden").write_bytes(b"x")
    (drop / "link").symlink_to(".hidden")
    assert told(LocalSession(), f"{drop}/*/*") == {str(good): [], str(drop / "link"): ["SYMLINK_OUTSIDE"]}


class Counting(LocalSession):
    """Counts how often it is asked where something really is."""

    asked = 0

    def realpath(self, path: str) -> str:
        self.asked += 1
        return super().realpath(path)


def test_a_link_to_the_newest_is_no_second_one_below_a_link_that_the_operator_wrote(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / "data" / f"d{number}").mkdir(parents=True)
        (tmp_path / "data" / f"d{number}" / "x").write_bytes(b"x")
    (tmp_path / "data" / "d1" / "latest").symlink_to("x")
    (tmp_path / "backup").symlink_to("data")
    session = Counting()
    assert len(told(session, f"{tmp_path}/backup/*/*")) == 50
    assert session.asked == 2, "where the source is and where the link leads, whatever else is there"


class Closed(LocalSession):
    """One path of this host says nothing but this."""

    def __init__(self, question: str, path: Path, error: OSError) -> None:
        self.question, self.closed, self.error = question, str(path), error

    def lstat(self, path: str) -> Attributes:
        if (self.question, self.closed) == ("lstat", path):
            raise self.error
        return super().lstat(path)

    def listdir(self, path: str) -> list[tuple[str, Attributes]]:
        if (self.question, self.closed) == ("listdir", path):
            raise self.error
        return super().listdir(path)


@pytest.mark.parametrize(
    ("error", "codes"),
    [
        (PermissionError(13, "Permission denied"), ["SOURCE_UNREADABLE"]),
        (OSError(5, "Input/output error"), ["SOURCE_UNREADABLE"]),
        (FileNotFoundError(2, "No such file"), None),
        (NotADirectoryError(20, "Not a directory"), None),
    ],
)
@pytest.mark.parametrize(
    ("question", "pattern", "at"),
    [("listdir", "*/*", "n2"), ("lstat", "*/x.bin", "n2/x.bin"), ("lstat", "*/b/*", "n2/b")],
)
def test_what_cannot_be_looked_at_is_told_and_what_is_beside_it_comes(
    tmp_path: Path, question: str, pattern: str, at: str, error: OSError, codes: list[str] | None
) -> None:
    for name in ("n1", "n2"):
        node(tmp_path / name, "b")
        (tmp_path / name / "x.bin").write_bytes(b"x")
    found = told(Closed(question, tmp_path / at, error), f"{tmp_path}/{pattern}")
    assert found.pop(str(tmp_path / at), None) == codes
    assert found and set(map(tuple, found.values())) == {()}
    assert all(name.startswith(f"{tmp_path}/n1/") for name in found)


@pytest.mark.parametrize("at", ["", "/n1", "/n1/b"])
def test_how_old_it_is_is_known_of_what_was_seen_as_a_whole(tmp_path: Path, at: str) -> None:
    node(tmp_path / "d", "n1/b")
    node(tmp_path / "d", "n2")
    source = Source(LocalEndpoint(), f"{tmp_path}/*")
    session = Closed("listdir", Path(f"{tmp_path}/d{at}"), PermissionError(13, "Permission denied"))
    assert [unit.ageless for unit in discover(session, source)] == [True]
    assert [unit.ageless for unit in discover(LocalSession(), source)] == [False]


@pytest.mark.parametrize(
    "odd",
    [
        lambda path: path.symlink_to("/etc/passwd"),
        lambda path: path.with_name("da\nta").write_bytes(b"data"),
        os.mkfifo,
    ],
)
def test_f17_a_backup_of_which_not_all_was_seen_has_no_age(tmp_path: Path, odd: Callable[[Path], object]) -> None:
    """What was not looked at may be the youngest of it, and the rest have the time of an older one (cp -p)."""
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "backup.bin").write_bytes(b"x")
    source = Source(LocalEndpoint(), f"{tmp_path}/*")
    assert [unit.ageless for unit in discover(LocalSession(), source)] == [False]
    odd(tmp_path / "day" / "data")
    assert [unit.ageless for unit in discover(LocalSession(), source)] == [True]


def test_a_path_that_was_written_and_cannot_be_looked_at_is_refused_as_the_whole_source(tmp_path: Path) -> None:
    error = PermissionError(13, "Permission denied")
    for question, pattern in (("lstat", f"{tmp_path}"), ("listdir", f"{tmp_path}/*/*")):
        with pytest.raises(Refused) as refusal:
            told(Closed(question, tmp_path, error), pattern)
        assert refusal.value.code == "SOURCE_UNREADABLE" and refusal.value.remedy


@pytest.mark.parametrize("layout", ["per_node", "together"])
def test_an_empty_directory_is_no_part_of_a_backup(tmp_path: Path, layout: str) -> None:
    (tmp_path / "b" / "n1").mkdir(parents=True)
    assert list(told(LocalSession(), f"{tmp_path}/b/*", layout).values()) == [["EMPTY_DIRECTORY"]]
    node(tmp_path / "b", "n2")
    assert list(told(LocalSession(), f"{tmp_path}/b/*", layout).values()) == [["EMPTY_PART"]]


@pytest.mark.parametrize("layout", ["per_node", "together"])
def test_f04_a_loose_file_beside_directories_is_no_part(tmp_path: Path, layout: str) -> None:
    """Where every node delivers a file there is nothing loose. Whatever there is more of, directories are parts."""
    (tmp_path / "b").mkdir()
    for name in ("n1.tar", "n2.tar"):
        (tmp_path / "b" / name).write_bytes(b"x")
    source = Source(LocalEndpoint(), f"{tmp_path}/b/*", layout)
    (unit,) = discover(LocalSession(), source)
    assert (unit.parts, unit.reasons) == (2, ())
    for parts, name in enumerate(("n3", "n4", "n5"), 1):
        node(tmp_path / "b", name)
        (unit,) = discover(LocalSession(), source)
        told = [(reason.code, reason.hard) for reason in unit.reasons]
        if layout == "together":
            assert told == []
            continue
        assert (unit.parts, told) == (parts, [("STRAY_FILE", False)])
        assert f"directories ({parts}, the first is {tmp_path}/b/n3)" in unit.reasons[0].message
        assert f"files (2, the first is {tmp_path}/b/n1.tar)" in unit.reasons[0].message
    assert len(unit.items) == 5, "accepted, it comes with the others"


def test_directories_without_any_file_are_no_backup_whatever_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "b" / "hollow").mkdir(parents=True)
    assert told(LocalSession(), f"{tmp_path}/b") == {f"{tmp_path}/b": ["EMPTY_DIRECTORY"]}


def test_a_file_that_was_replaced_by_one_of_its_size_and_time_is_another(tmp_path: Path) -> None:
    path, other = tmp_path / "b", tmp_path / "other"
    for number, file in enumerate((path, other)):
        file.write_bytes(b"%d" % number)
        os.utime(file, (1, 1))
    source = Source(LocalEndpoint(), str(path))
    (before,) = discover(LocalSession(), source)
    (again,) = discover(LocalSession(), source)
    os.replace(other, path)
    (after,) = discover(LocalSession(), source)
    assert before.state == again.state != after.state
    assert before.key("h") == after.key("h"), "what the store has published keeps its name"
