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
import shutil
import struct
import subprocess
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


def zipped(method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        archive.writestr("a", CONTENT)
    return data.getvalue()


def header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("a")
    member.type, member.size = kind, abs(size)
    data = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    if size < 0:
        data[124:136] = size.to_bytes(12, "big", signed=True)
        data[148:156] = b" " * 8
        data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


def with_more_holes(member: bytes) -> bytes:
    """A header behind which more of them are listed."""
    data = bytearray(member)
    data[482] = 1
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data)
    return bytes(data)


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
    "bzip2.zip": zipped(zipfile.ZIP_BZIP2),
    "lzma.zip": zipped(zipfile.ZIP_LZMA),
}
ZEROS = bytes(8 << 20)


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


@pytest.mark.parametrize(
    ("data", "pieces"),
    [(FORMATS["gz"], 1), (FORMATS["tar.gz"], 4), (FORMATS["tar"], 4), (bz2.compress(ZEROS), 8)],
    ids=["gz", "tar.gz", "tar", "zeros"],
)
def test_whoever_waits_sees_that_it_goes_on(data: bytes, pieces: int, tmp_path: Path) -> None:
    """With each of the three members, and with what is behind them; with each piece of what is short when packed."""
    (tmp_path / "a").write_bytes(data)
    ticks: list[int] = []
    _structure.check_file(str(tmp_path / "a"), lambda: ticks.append(1))
    assert len(ticks) >= pieces


def packed_as(method: int, packed: bytes, content: bytes, size: int) -> bytes:
    """A zip of one member whose entry says so of it."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a", packed)
    changed = bytearray(data.getvalue())
    for at in (changed.index(b"PK\3\4") + 8, changed.rindex(b"PK\1\2") + 10):
        struct.pack_into("<H4xIII", changed, at, method, zlib.crc32(content), len(packed), size)
    return bytes(changed)


def listed_again(data: bytes, times: int) -> bytes:
    """A zip of one member that names it many times: what is in it comes out as often."""
    start = data.rindex(b"PK\1\2")
    listed = data[start:-22] * times
    return data[:start] + listed + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, times, times, len(listed), start, 0)


def zip_of(members: int, method: int) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for number in range(members):
            archive.writestr(str(number), ZEROS[: 1 << 20])
    return data.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        bz2.compress(ZEROS),
        bz2.compress(ZEROS[: 1 << 20]) * 8,
        lzma.compress(ZEROS),
        bz2.compress(header(tarfile.REGTYPE, len(ZEROS)) + ZEROS + bytes(1024)),
        bz2.compress(header(tarfile.REGTYPE, 0) * (4 << 11)),
        bz2.compress(header(tarfile.REGTYPE, 0) + ZEROS),
        bz2.compress(with_more_holes(header(tarfile.GNUTYPE_SPARSE, 0)) + b"\1" * len(ZEROS)),
        zip_of(8, zipfile.ZIP_BZIP2),
        zip_of(8, zipfile.ZIP_LZMA),
    ],
    ids=["bzip2", "streams", "xz", "member", "members", "behind", "holes", "zip of bzip2", "zip of LZMA"],
)
def test_what_unpacks_to_more_than_anybody_waits_for_is_not_judged(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(data)
    assert _structure.check_file(str(tmp_path / "a"))[0], "it is short enough"
    # One member of a zip alone would not do.
    monkeypatch.setattr(_structure, "_UNPACKED", 3 << 20)
    monkeypatch.setattr(_structure, "_UNPACKED_RATIO", 20)
    assert _structure.check(str(tmp_path), ["a"]) == ("unknown", [])


@pytest.mark.parametrize(
    "data",
    [
        listed_again(zip_of(1, zipfile.ZIP_DEFLATED), 64),
        # Empty pieces, and behind them a letter.
        listed_again(packed_as(8, b"\0\0\0\xff\xff" * 20_000 + b"\1\1\0\xfe\xffx", b"x", 1), 64),
    ],
    ids=["much", "nothing"],
)
def test_a_member_of_a_zip_is_not_read_again_and_again(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(data)
    monkeypatch.setattr(_structure, "_UNPACKED", 3 << 20)
    monkeypatch.setattr(_structure, "_UNPACKED_RATIO", 20)
    # Newer readers of zips see through it themselves.
    assert _structure.check_file(str(tmp_path / "a")) in (("", ""), ("zip", "member 0 is damaged"))


HONEST = {**FORMATS, "zeros.gz": gzip.compress(ZEROS), "zeros.zip": zip_of(8, zipfile.ZIP_DEFLATED)}


@pytest.mark.parametrize("name", HONEST)
def test_no_honest_file_is_too_much(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_structure, "_UNPACKED", 0)
    (tmp_path / "a").write_bytes(HONEST[name])
    kind, problem = _structure.check_file(str(tmp_path / "a"))
    assert kind and not problem


@pytest.fixture
def holes(tmp_path: Path) -> Path:
    """A file with thirty of them."""
    if b"GNU tar" not in subprocess.check_output([shutil.which("tar") or "true", "--version"]):
        pytest.skip("no GNU tar on this machine")
    path = tmp_path / "holes"
    with open(path, "wb") as file:
        for number in range(30):
            # Whole blocks of the disk: zeros at their end would pass for the mark of an archive.
            file.seek(number * 196_608)
            file.write(CONTENT[:8_192])
        file.truncate(30 * 196_608)
    if path.stat().st_blocks * 512 > path.stat().st_size // 2:
        pytest.skip("no holes on this file system")
    return path


SPARSE = {
    "old": ["--format=gnu"],
    **{version: ["--format=posix", f"--sparse-version={version}"] for version in ("0.0", "0.1", "1.0")},
}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("version", SPARSE)
def test_a_tar_of_files_with_many_holes_is_walked(version: str, pack: Callable[[bytes], bytes], holes: Path) -> None:
    path = holes.parent / "a.tar"
    command = ["tar", "-cSf", path, *SPARSE[version], "-C", holes.parent, holes.name, holes.name]
    subprocess.run(command, check=True)
    whole = path.read_bytes()
    assert len(whole) < holes.stat().st_size
    path.write_bytes(pack(whole))
    assert _structure.check_file(str(path)) == ("tar" if pack is bytes else "gzip", "")
    marked = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for end in {*range(512, 4096, 100), *range(512, marked, 8_191), marked, marked + 512}:
        path.write_bytes(pack(whole[:end]))
        kind, problem = _structure.check_file(str(path))
        assert kind and problem.startswith("it ends "), (end, problem)


def test_a_list_of_holes_without_end_ends_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(with_more_holes(header(tarfile.GNUTYPE_SPARSE, 0)) + b"\1" * 100_000)
    assert _structure.check_file(str(tmp_path / "a.tar")) == ("tar", "it ends inside a member")


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


def with_properties(changed: bytes) -> bytes:
    """A zip whose last member is packed with LZMA in another way."""
    data = two_members(zipfile.ZIP_LZMA)
    usual = b"\5\0\x5d\0\0\x80\0"
    assert data.count(usual) == 1
    return data.replace(usual, b"\5\0" + changed)


LOCKED = {
    "encrypted": with_flags(two_members(), 1),
    "a patch": with_flags(two_members(), 0x20),
    "encrypted strongly": with_flags(two_members(), 0x41),
    "an unknown method": with_byte_in_list(two_members(), 10, 9),
    "a dictionary beyond all memory": with_properties(b"\x5d\xff\xff\xff\xff"),
    "LZMA as only its own tools read it": with_properties(b"\x62\0\0\x80\0"),
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


def lzma_of(content: bytes) -> bytes:
    """Without the size that an .lzma file says between its properties and its content."""
    data = lzma.compress(content, lzma.FORMAT_ALONE)
    return data[:5] + data[13:]


METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]


@pytest.mark.parametrize("method", METHODS)
def test_a_flipped_bit_in_a_member_of_a_zip_is_found(method: int, tmp_path: Path) -> None:
    whole = two_members(method)
    path = tmp_path / "a.zip"
    path.write_bytes(whole)
    assert _structure.check_file(str(path)) == ("zip", "")
    for at in range(whole.rindex(b"PK\3\4") + 100, whole.index(b"PK\1\2"), 4_001):
        data = bytearray(whole)
        data[at] ^= 1
        path.write_bytes(data)
        kind, problem = _structure.check_file(str(path))
        assert kind == "zip" and problem, at


@pytest.mark.parametrize(
    ("method", "packed"),
    [(zipfile.ZIP_BZIP2, bz2.compress(CONTENT)), (zipfile.ZIP_LZMA, b"\x09\4\5\0" + lzma_of(CONTENT))],
    ids=["bzip2", "LZMA"],
)
def test_a_member_that_is_not_what_the_list_says_is_damaged(method: int, packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    size = len(CONTENT)
    path.write_bytes(packed_as(method, packed, CONTENT, size))
    assert _structure.check_file(str(path)) == ("zip", "")
    for content, part, said in (
        (CONTENT[1:], packed, size),
        (CONTENT, packed, size + 1),
        (CONTENT, packed, size - 1),
        (CONTENT, packed, 0),
        (CONTENT, packed[:-1_000], size),
        (CONTENT, packed[:5], size),
        (CONTENT, b"", size),
    ):
        path.write_bytes(packed_as(method, part, content, said))
        kind, problem = _structure.check_file(str(path))
        assert kind == "zip" and problem, (len(content), len(part), said)


@pytest.mark.parametrize("method", METHODS)
def test_an_empty_member_is_good_however_it_is_packed(method: int, tmp_path: Path) -> None:
    """Some who write zips pack nothing at all."""
    (tmp_path / "a.zip").write_bytes(packed_as(method, b"", b"", 0))
    assert _structure.check_file(str(tmp_path / "a.zip")) == ("zip", "")


def test_a_member_of_which_only_the_list_knows_the_end_is_read_to_it(tmp_path: Path) -> None:
    """A chunk of LZMA2 is LZMA without a mark at its end."""
    content = b"dsm" * 100 + CONTENT[:1000]
    chunk = lzma.compress(content, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 16}])
    assert chunk[0] == 0xE0
    packed = chunk[6 : 6 + int.from_bytes(chunk[3:5], "big") + 1]
    properties = struct.pack("<BBHBI", 9, 20, 5, chunk[5], 1 << 16)
    data = packed_as(zipfile.ZIP_LZMA, properties + packed, content, len(content))
    (tmp_path / "a.zip").write_bytes(data)
    assert _structure.check_file(str(tmp_path / "a.zip")) == ("zip", "")
    (tmp_path / "a.zip").write_bytes(
        packed_as(zipfile.ZIP_LZMA, properties + packed, content[:-1] + b"x", len(content))
    )
    assert _structure.check_file(str(tmp_path / "a.zip")) == ("zip", "member a is damaged")


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
        (lambda: zip_of_zeros(zipfile.ZIP_LZMA), 0, ("zip", "")),
        (lambda: LOCKED["a dictionary beyond all memory"], 0, ("zip", "")),
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
    formats = [small, gzip.compress(small), bz2.compress(small), lzma.compress(small), *LOCKED.values()]
    formats.extend(map(two_members, METHODS))
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
