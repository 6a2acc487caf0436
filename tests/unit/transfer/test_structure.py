# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that say themselves whether they are complete."""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import os
import random
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError, Refused, Unreadable
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
    "two-streams.xz": lzma.compress(CONTENT) + b"\0" * 8 + lzma.compress(CONTENT),
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
    # Half of two streams is one whole stream: nothing inside tells that the other is missing.
    whole = name.startswith("two-streams") and sixteenth == 8
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


def with_flags(data: bytes, flags: int) -> bytes:
    """A zip whose last member says so of itself, before its content and in the list."""
    changed = bytearray(data)
    for at in (changed.rindex(b"PK\3\4") + 6, changed.rindex(b"PK\1\2") + 8):
        changed[at : at + 2] = (int.from_bytes(changed[at : at + 2], "little") | flags).to_bytes(2, "little")
    return bytes(changed)


def with_byte_in_list(data: bytes, offset: int, value: int) -> bytes:
    changed = bytearray(data)
    changed[changed.rindex(b"PK\1\2") + offset] = value
    return bytes(changed)


def two_members(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("first", CONTENT)
        archive.writestr("second", CONTENT, method)
    return data.getvalue()


LOCKED = {
    "encrypted": with_flags(two_members(), 1),
    "a patch": with_flags(two_members(), 0x20),
    "encrypted strongly": with_flags(two_members(), 0x41),
    "an unknown method": with_byte_in_list(two_members(), 10, 9),
    "a method without bounds": two_members(zipfile.ZIP_BZIP2),
    "another method without bounds": two_members(zipfile.ZIP_LZMA),
}
LATER = with_byte_in_list(two_members(), 6, 99)


@pytest.mark.parametrize("name", [*LOCKED, "later"])
def test_what_cannot_be_opened_here_is_no_proof_of_damage(name: str, tmp_path: Path) -> None:
    data = LOCKED.get(name, LATER)
    (tmp_path / "a.zip").write_bytes(data)
    # Not even the list of the last one can be read, so nothing of it was checked.
    checked = "archive" if name in LOCKED else "unknown"
    assert _structure.check(str(tmp_path), ["a.zip"]) == (checked, [])
    (tmp_path / "a.zip").write_bytes(data[:-30])
    assert [one.code for one in _structure.check(str(tmp_path), ["a.zip"])[1]] == ["TRUNCATED"]


@pytest.mark.parametrize("name", LOCKED)
def test_a_member_that_can_be_opened_is_read_beside_one_that_cannot(name: str, tmp_path: Path) -> None:
    data = bytearray(LOCKED[name])
    data[data.index(CONTENT[:100]) + 50] ^= 1
    (tmp_path / "a.zip").write_bytes(data)
    assert _structure.check_file(str(tmp_path / "a.zip")) == ("zip", "member first is damaged")


@pytest.mark.parametrize(
    "change",
    [
        lambda end: end.__setitem__(slice(12, 20), struct.pack("<II", 1 << 30, 0)),
        lambda end: end.__setitem__(slice(12, 20), struct.pack("<II", 100, 1 << 30)),
    ],
)
def test_a_zip_whose_end_speaks_of_what_is_not_there_is_damaged(
    change: Callable[[bytearray], None], tmp_path: Path
) -> None:
    end = bytearray(FORMATS["zip"][-22:])
    change(end)
    (tmp_path / "a.zip").write_bytes(FORMATS["zip"][:-22] + end)
    kind, problem = _structure.check_file(str(tmp_path / "a.zip"))
    assert kind == "zip" and problem and "Errno" not in problem


def with_dictionary(code: int) -> bytes:
    """An .xz that asks whoever reads it for memory."""
    data = bytearray(lzma.compress(CONTENT))
    size = (data[12] + 1) * 4
    data[data.index(b"\x21\x01", 12) + 2] = code
    data[12 + size - 4 : 12 + size] = struct.pack("<I", zlib.crc32(data[12 : 12 + size - 4]))
    return bytes(data)


def with_many_members(count: int) -> bytes:
    member = b"PK\1\2" + struct.pack("<HHHHHHIIIHHHHHII", 20, 20, 1, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0)
    listed = b"".join(member + b"%05x" % number for number in range(count))
    first = b"PK\3\4" + bytes(26)
    more = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, count, count, len(listed), len(first))
    more += b"PK\6\7" + struct.pack("<IQI", 0, len(first) + len(listed), 1)
    return (
        first + listed + more + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 65535, 65535, (1 << 32) - 1, (1 << 32) - 1, 0)
    )


def header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("a")
    member.type, member.size = kind, abs(size)
    data = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        data[124:136] = size.to_bytes(12, "big", signed=True)
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def zip_of_zeros(method: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        archive.writestr("zeros", bytes(40 << 20))
    return data.getvalue()


@pytest.mark.parametrize(
    ("make", "zeros", "found"),
    [
        (lambda: with_dictionary(36), 0, ("", "")),
        (lambda: lzma.compress(CONTENT) + with_dictionary(36), 0, ("", "")),
        (lambda: with_many_members(200_000), 0, ("", "")),
        (lambda: with_many_members(2_000), 0, ("zip", "")),
        (lambda: zip_of_zeros(zipfile.ZIP_DEFLATED), 0, ("zip", "")),
        (lambda: zip_of_zeros(zipfile.ZIP_BZIP2), 0, ("zip", "")),
        (lambda: gzip.compress(bytes(40 << 20)), 0, ("gzip", "")),
        (lambda: bz2.compress(bytes(40 << 20)), 0, ("bzip2", "")),
        (lambda: lzma.compress(bytes(40 << 20), preset=0), 0, ("xz", "")),
        (lambda: header(tarfile.REGTYPE, -512), 100 << 20, ("tar", "a member has a negative size")),
        (lambda: header(tarfile.XHDTYPE, -512), 100 << 20, ("tar", "a member has a negative size")),
        (lambda: header(tarfile.XHDTYPE, 100 << 20), (100 << 20) + 1024, ("tar", "")),
    ],
)
def test_no_file_takes_more_memory_than_a_store_has(
    make: Callable[[], bytes], zeros: int, found: tuple[str, str], tmp_path: Path
) -> None:
    with open(tmp_path / "a", "wb") as file:
        end = file.write(make()) + zeros
        file.truncate(end)
    tracemalloc.start()
    try:
        assert _structure.check_file(str(tmp_path / "a")) == found
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_what_xz_itself_makes_is_read(tmp_path: Path) -> None:
    """``xz -9`` wants 64 MiB."""
    (tmp_path / "a.xz").write_bytes(with_dictionary(28))
    assert _structure.check_file(str(tmp_path / "a.xz")) == ("xz", "")


def test_every_xz_stream_counts(tmp_path: Path) -> None:
    data = bytearray(FORMATS["two-streams.xz"])
    data[len(data) // 2 + 50] ^= 1
    (tmp_path / "a.xz").write_bytes(data)
    assert _structure.check_file(str(tmp_path / "a.xz"))[1]


def test_what_is_behind_the_last_xz_stream_is_no_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.xz").write_bytes(lzma.compress(CONTENT) + b"something else")
    assert _structure.check_file(str(tmp_path / "a.xz")) == ("xz", "")


def test_a_size_of_any_length_is_none(tmp_path: Path) -> None:
    record = b"100020 size=%s\n" % (b"9" * 100_000)
    member = header(tarfile.XHDTYPE, len(record)) + record.ljust(_structure._padded(len(record)), b"\0")
    (tmp_path / "a.tar").write_bytes(member + header(tarfile.REGTYPE, 0) + bytes(1024))
    assert _structure.check_file(str(tmp_path / "a.tar")) == ("tar", "")


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A few bytes flipped, set, put in or taken out, most of them where a format keeps its own."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.choice(
            (chance.randrange(64), chance.randrange(len(changed)), len(changed) - chance.randrange(1, 120))
        )
        length = chance.choice((0, 1, 2, 4, 8))
        changed[at : at + length] = chance.choice(
            (b"\xff" * length, bytes(length), chance.randbytes(length), b"", b"\x80\0")
        )
    return bytes(changed[: chance.choice((len(changed), len(changed), chance.randrange(1, len(changed))))])


def sealed_anew(data: bytes) -> bytes:
    """A tar whose headers have the right sums again, so that the rest of them is looked at."""
    changed = bytearray(data)
    for at in range(0, len(data) - 511, 512):
        if changed[at + 257 : at + 262] == b"ustar":
            changed[at + 148 : at + 156] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)


def test_whatever_the_bytes_are_there_is_a_verdict(tmp_path: Path) -> None:
    chance = random.Random(7)
    small = tar(tarfile.PAX_FORMAT, 1).rstrip(b"\0") + bytes(1024)
    formats = [small, gzip.compress(small), bz2.compress(small), lzma.compress(small), two_members(), *LOCKED.values()]
    path = tmp_path / "a"
    verdicts = set()
    for _ in range(500):
        data = damaged(chance.choice(formats), chance)
        path.write_bytes(sealed_anew(data) if data[257:262] == b"ustar" else data)
        kind, problem = _structure.check_file(str(path))
        verdicts.add((kind, bool(problem)))
    assert {(kind, True) for kind in ("tar", "gzip", "bzip2", "xz", "zip")} < verdicts and ("", True) not in verdicts


@pytest.mark.parametrize(
    "error", [struct.error("x"), OverflowError("x"), RuntimeError("x"), IndexError("x"), OSError("x")]
)
def test_whatever_a_reader_raises_is_a_verdict(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(_structure, "_opened", broken)
    (tmp_path / "a.gz").write_bytes(FORMATS["gz"])
    assert _structure.check_file(str(tmp_path / "a.gz")) == ("gzip", "x")


class Failing(io.FileIO):
    """A file on a disk that fails behind its first bytes."""

    good = 0

    def readinto(self, buffer: Any) -> int | None:
        if self.tell() >= self.good:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(memoryview(buffer)[: self.good - self.tell()])

    def readall(self) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("good", [0, 600, 20_000])
@pytest.mark.parametrize("name", FORMATS)
def test_f28_a_disk_that_fails_is_not_told_as_a_file_that_was_cut(
    name: str, good: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_structure.io, "FileIO", Failing)
    monkeypatch.setattr(Failing, "good", good)
    path = tmp_path / name
    path.write_bytes(FORMATS[name])
    with pytest.raises(Unreadable) as caught:
        _structure.check(str(tmp_path), [name])
    assert (caught.value.code, caught.value.message) == ("UNREADABLE", f"{path}: Input/output error")


def test_what_ails_somebody_else_is_not_told_as_damage(tmp_path: Path) -> None:
    """The sign of life is a lease that may be lost, or may not be writable."""
    (tmp_path / "gz").write_bytes(FORMATS["gz"])

    def raising(error: Exception) -> DsmError:
        def tick() -> None:
            raise error

        with pytest.raises(DsmError) as caught:
            _structure.check_file(str(tmp_path / "gz"), tick)
        return caught.value

    assert raising(Refused("lost", "LEASE_LOST")).code == "LEASE_LOST"
    assert raising(OSError(errno.EROFS, "Read-only file system", "/store/lock")).message.startswith("/store/lock: Read")


def test_a_file_that_went_away_is_unreadable(table: Path) -> None:
    for path in ("absent.tar", "absent-TOC.txt"):
        with pytest.raises(Unreadable, match=r"absent.*: No such file"):
            _structure.check(str(table), [path])


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
        assert _structure._tar(_Sparse(stream)) == ""


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


def test_a_table_of_contents_that_is_none_is_not_read_to_its_end(table: Path) -> None:
    with open(table / "t" / "nb-1-big-TOC.txt", "ab") as file:
        file.truncate(100 << 20)
    tracemalloc.start()
    try:
        assert check(table) == ("snapshot", ["BAD_CONTENTS"])
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_of_many_missing_components_some_are_told(table: Path) -> None:
    (table / "t" / "nb-1-big-TOC.txt").write_text("".join(f"{number}.db\n" for number in range(5_000)))
    assert check(table) == ("snapshot", ["COMPONENT_MISSING"] * 10)


def test_whatever_a_table_is_there_is_a_verdict(table: Path) -> None:
    chance = random.Random(7)
    good = {path: path.read_bytes() for path in (table / "t").iterdir()}
    codes = set()
    for _ in range(200):
        path = chance.choice(list(good))
        path.write_bytes(damaged(good[path].ljust(200, b"\n"), chance))
        kind, problems = check(table)
        assert kind == "snapshot"
        codes.update(problems)
        path.write_bytes(good[path])
    assert codes == {"TRUNCATED", "COMPONENT_MISSING"}
