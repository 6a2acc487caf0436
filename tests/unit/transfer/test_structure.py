# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that say themselves whether they are complete."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Callable

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _structure

CONTENT = random.Random(1).randbytes(40_000)


def tar(form: int = tarfile.GNU_FORMAT, members: int = 3) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=form) as archive:
        for number in range(members):
            member = tarfile.TarInfo(f"dsm/{'long' * 30}/{number}")
            member.size = len(CONTENT)
            archive.addfile(member, io.BytesIO(CONTENT))
    return data.getvalue()


def zipped() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", CONTENT)
    return data.getvalue()


FORMATS = {
    "tar.gz": gzip.compress(tar()),
    "gz": gzip.compress(CONTENT),
    "two-streams.gz": gzip.compress(CONTENT) + gzip.compress(CONTENT),
    "tar": tar(),
    "pax.tar": tar(tarfile.PAX_FORMAT),
    "tar.bz2": bz2.compress(tar()),
    "tar.xz": lzma.compress(tar()),
    "zip": zipped(),
}


@pytest.mark.parametrize("name", FORMATS)
def test_complete_archives_pass(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    assert _structure.check(str(tmp_path), [name]) == ("archive", [])


@pytest.mark.parametrize("sixteenth", range(1, 16))
@pytest.mark.parametrize("name", FORMATS)
def test_f02_an_archive_cut_at_any_sixteenth_is_found(name: str, sixteenth: int, tmp_path: Path) -> None:
    data = FORMATS[name]
    (tmp_path / name).write_bytes(data[: len(data) * sixteenth // 16])
    kind, problems = _structure.check(str(tmp_path), [name])
    # Half of two gzip streams is one whole gzip stream: nothing inside tells that the other is missing.
    whole = name == "two-streams.gz" and sixteenth == 8
    assert kind == "archive" and [problem.code for problem in problems] == ([] if whole else ["TRUNCATED"])


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.endswith("tar")])
def test_f02_the_last_byte_counts(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMATS[name][:-1])
    assert _structure.check_file(str(tmp_path / name))[1]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_f02_a_tar_that_was_cut_is_found_although_what_packed_it_ended_well(
    form: int, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    """``tar`` died, and the program behind it took the end of its input for the end."""
    whole = tar(form, members=2)
    marked = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    path = tmp_path / "a"
    # Of the two empty blocks at the end one alone is no mark.
    for end in {*range(512, marked, 8_191), *range(512, 3 * 512, 100), marked, marked + 512}:
        path.write_bytes(pack(whole[:end]))
        kind, problem = _structure.check_file(str(path))
        assert kind and problem.startswith("it ends "), (end, problem)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_of_any_length_and_name_are_walked(form: int, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=form, errors="surrogateescape") as archive:
        for number, size in enumerate((0, 1, 511, 512, 513, 1024, 40_000)):
            # The record in front of the first member fills its block to the last byte.
            member = tarfile.TarInfo(f"{number}\udcff" if number else "0")
            member.size = size
            member.pax_headers = {"comment": "x" * (1 if number else 499)}
            archive.addfile(member, io.BytesIO(CONTENT[:size]))
    assert _structure.check_file(str(tmp_path / "a.tar")) == ("tar", "")


@pytest.mark.parametrize(("name", "pieces"), [("gz", 1), ("tar.gz", 4), ("tar", 4)])
def test_whoever_waits_sees_that_it_goes_on(name: str, pieces: int, tmp_path: Path) -> None:
    """With each of the three members, and with what is behind them."""
    (tmp_path / name).write_bytes(FORMATS[name])
    ticks: list[int] = []
    _structure.check_file(str(tmp_path / name), lambda: ticks.append(1))
    assert len(ticks) >= pieces


def test_an_error_without_a_word_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_kind: str, _path: str) -> None:
        raise EOFError

    monkeypatch.setattr(_structure, "_opened", broken)
    (tmp_path / "a.gz").write_bytes(FORMATS["gz"])
    assert _structure.check_file(str(tmp_path / "a.gz")) == ("gzip", "EOFError")


def test_a_tar_cut_between_two_members_is_found(tmp_path: Path) -> None:
    one, three = tar(members=1), tar()
    end_of_first = len(one.rstrip(b"\0")) // 512 * 512 + 512
    (tmp_path / "a.tar").write_bytes(three[:end_of_first])
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert len(archive.getnames()) == 1, "tarfile itself sees nothing wrong"
    assert _structure.check_file(str(tmp_path / "a.tar")) == ("tar", "it ends without the mark that ends an archive")


def test_a_member_beyond_eight_gigabytes_is_skipped_by_its_real_size(tmp_path: Path) -> None:
    size = (8 << 30) + 5
    member = tarfile.TarInfo("huge")
    member.size = size
    path = tmp_path / "huge.tar"
    with open(path, "wb") as file:
        file.write(member.tobuf(tarfile.PAX_FORMAT))
        # No block of it is to be taken for the mark at the end.
        file.write(b"x" * 1024)
        file.seek((size + 511) // 512 * 512 - 1024, os.SEEK_CUR)
        file.write(b"\0" * 1024)
    with open(path, "rb") as stream:
        assert _structure._tar(_Sparse(stream), _structure.no_tick) == ""


class _Sparse:
    """Skips the long hole instead of reading it."""

    def __init__(self, file: io.BufferedReader) -> None:
        self.file = file
        self.size = os.fstat(file.fileno()).st_size

    def read(self, count: int) -> bytes:
        if count == _structure._PIECE and self.size - self.file.tell() > 4 * count:
            self.file.seek(count, os.SEEK_CUR)
            return b"\0" * count
        return self.file.read(count)


def test_a_flipped_bit_in_a_compressed_archive_is_found(tmp_path: Path) -> None:
    data = bytearray(FORMATS["gz"])
    data[len(data) // 2] ^= 1
    (tmp_path / "a.gz").write_bytes(data)
    assert _structure.check(str(tmp_path), ["a.gz"])[1]


@pytest.mark.parametrize("content", [b"x", b"", b"PK", CONTENT, b"\x28\xb5\x2f\xfd rest"])
def test_nothing_is_assumed_of_other_formats(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    assert _structure.check(str(tmp_path), ["file"]) == ("unknown", [])


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """One SSTable as Cassandra writes it."""
    (tmp_path / "t").mkdir()
    for component in ("Data.db", "Index.db", "Statistics.db"):
        (tmp_path / "t" / f"nb-1-big-{component}").write_bytes(CONTENT)
    (tmp_path / "t" / "nb-1-big-Digest.crc32").write_text(str(zlib.crc32(CONTENT)))
    (tmp_path / "t" / "nb-1-big-TOC.txt").write_text("Data.db\nIndex.db\nStatistics.db\nDigest.crc32\nTOC.txt\n")
    return tmp_path


def check(root: Path) -> tuple[str, list[str]]:
    kind, problems = _structure.check(str(root), [str(path.relative_to(root)) for path in root.rglob("*.*")])
    return kind, sorted(problem.code for problem in problems)


def test_a_complete_snapshot_passes(table: Path) -> None:
    assert check(table) == ("snapshot", [])
    ticks: list[int] = []
    _structure.check(str(table), ["t/nb-1-big-Data.db", "t/nb-1-big-Digest.crc32"], lambda: ticks.append(1))
    assert ticks


@pytest.mark.parametrize("component", ["Data.db", "Index.db", "Statistics.db", "Digest.crc32"])
def test_f06_each_missing_component_is_found(table: Path, component: str) -> None:
    (table / "t" / f"nb-1-big-{component}").unlink()
    assert check(table) == ("snapshot", ["COMPONENT_MISSING"])


def test_a_table_of_contents_that_nobody_can_read_lists_what_is_not_there(table: Path) -> None:
    (table / "t" / "nb-1-big-TOC.txt").write_bytes(b"Data\xff.db\n")
    assert check(table) == ("snapshot", ["COMPONENT_MISSING"])


@pytest.mark.parametrize("sixteenth", range(16))
def test_f02_a_cut_table_is_found(table: Path, sixteenth: int) -> None:
    (table / "t" / "nb-1-big-Data.db").write_bytes(CONTENT[: len(CONTENT) * sixteenth // 16])
    assert check(table) == ("snapshot", ["TRUNCATED"])
