# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Is a file complete in itself? Asked of formats that say so themselves; nothing is assumed of any other.

A stream that was cut while it was written leaves a file that is stable, has a size and a hash, and is worthless.
Archive formats carry an end mark, Cassandra carries a digest and a table of contents beside every table [doc].
"""

from __future__ import annotations

import bz2
import collections
import copy
import errno
import gzip
import io
import itertools
import lzma
import os
import re
import tarfile
import typing as t
import zipfile
import zlib

from .._core.strict import Problem
from .._errors import DsmError, Unreadable

_PIECE = 1 << 20
#: More than nineteen digits are no size of anything.
_PAX_SIZE = re.compile(rb"(?:^|\n)\d+ size=(\d{1,19})\n")
#: Nothing asks for more at once but the list of a zip with very many members, which takes ten times its size of memory.
_LONGEST_READ = 8 << 20
_XZ = b"\xfd7zXZ\0"
#: ``xz -9`` asks for 65 MiB; whoever wrote the file may ask for 4 GiB.
_XZ_MEMORY = 96 << 20
#: Flags of a member of a zip that is encrypted, a patch, or encrypted in another way.
_LOCKED = 0x1 | 0x20 | 0x40
#: What is packed by other methods ``zipfile`` unpacks in pieces of any size.
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UNBOUNDED = (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
#: Beyond both nobody waits for the end: a megabyte of bzip2 can unpack to a terabyte. gzip never gets there, it unpacks
#: to 1032 times its size at most.
_UNPACKED = 1 << 30
_UNPACKED_RATIO = 1100
#: Cassandra lists a dozen components.
_LONGEST_TOC = 64 << 10
#: Of each table: any number may be listed, and all that is told is kept in memory.
_TOLD_MISSING = 10


Tick = t.Callable[[], None]


def no_tick() -> None:
    """For callers that need no sign of life."""


class _NotForUs(Exception):
    """This cannot be looked into here: it takes more memory or time than a store can be expected to have, or a later
    reader."""


def _unreadable(path: str, error: OSError) -> Unreadable:
    return Unreadable(f"{error.filename or path}: {error.strerror or error}", "UNREADABLE", "Check the disk.")


class _Stream(t.Protocol):
    def read(self, count: int, /) -> bytes:
        """As of any file."""


class _File(io.BufferedReader):
    """A file whose own errors are never taken for those of what is in it. It ticks as it is read and unpacked."""

    def __init__(self, raw: io.FileIO, path: str, tick: Tick) -> None:
        super().__init__(raw)
        self._path = path
        self._tick = tick
        self._spent = 0

    def read(self, count: int | None = -1) -> bytes:
        """As any file, but nothing that is long at once."""
        try:
            if count and count > _LONGEST_READ:
                if count > os.fstat(self.fileno()).st_size:
                    raise EOFError("it says that it has more than there is")
                raise _NotForUs
            data = super().read(count)
        except OSError as error:
            raise _unreadable(self._path, error) from None
        # Counted too: of a zip the same bytes can be read for every member, and nothing come out of them.
        self.spend(len(data))
        return data

    def spend(self, count: int) -> None:
        """To be told how much was unpacked of it, by whoever does so. It ends what would go on for hours."""
        try:
            self._tick()
        except OSError as error:
            raise _unreadable(self._path, error) from None
        self._spent += count
        if self._spent > _UNPACKED and self._spent > _UNPACKED_RATIO * os.fstat(self.fileno()).st_size:
            raise _NotForUs


class _Unpacked:
    """What comes out of a file, which counts it."""

    def __init__(self, stream: _Stream, file: _File) -> None:
        self._stream = stream
        self._file = file

    def read(self, count: int) -> bytes:
        data = self._stream.read(count)
        self._file.spend(len(data))
        return data


def _open(path: str, tick: Tick) -> _File:
    try:
        return _File(io.FileIO(path), path, tick)
    except OSError as error:
        raise _unreadable(path, error) from None


def check(directory: str, paths: t.Iterable[str], tick: Tick = no_tick) -> tuple[str, list[Problem]]:
    """What could be checked (``archive``, ``snapshot``, both joined by ``+``, or ``unknown``) and what is broken.

    ``tick`` is called again and again while this takes its time. Raises :class:`Unreadable` where the disk fails.
    """
    listed = list(paths)
    problems: list[Problem] = []
    kinds = set()
    for path in listed:
        kind, problem = check_file(os.path.join(directory, path), tick)
        if kind:
            kinds.add("archive")
        if problem:
            problems.append(Problem("TRUNCATED", f"{path} is not a complete {kind} file: {problem}"))
    found, broken = _cassandra(directory, listed, tick)
    if found:
        kinds.add("snapshot")
    return "+".join(sorted(kinds)) or "unknown", problems + broken


def check_file(path: str, tick: Tick = no_tick) -> tuple[str, str]:
    """The format of one file ('' if it is none that says when it is complete, or one that cannot be looked into
    here) and what is wrong ('' if nothing). Raises :class:`Unreadable` where the disk fails."""
    with _open(path, tick) as file:
        kind = _kind(file.read(512))
        if not kind:
            return "", ""
        file.seek(0)
        try:
            return kind, _content(kind, file)
        except DsmError:
            raise
        except _NotForUs:
            return "", ""
        except OSError as error:
            # Readers of archives give theirs no number, and a zip can ask them to seek to nowhere.
            if error.errno == errno.EINVAL:
                return kind, "it names a place that is not in it"
            if error.errno is not None:
                raise _unreadable(path, error) from None
            return kind, str(error) or type(error).__name__
        except Exception as error:
            # Hostile bytes make the readers raise nearly anything, and none of it may stop those that come after.
            return kind, str(error) or type(error).__name__


def _content(kind: str, file: _File) -> str:
    if kind == "tar":
        return _tar(file)
    if kind == "zip":
        return _zip(file)
    with _opened(kind, file) as stream:
        return _stream(_Unpacked(stream, file))


def _kind(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return "tar"
    for kind, magic in (("gzip", b"\x1f\x8b\x08"), ("bzip2", b"BZh"), ("xz", _XZ), ("zip", b"PK\x03\x04")):
        if head.startswith(magic):
            return kind
    return ""


def _opened(kind: str, file: _File) -> t.BinaryIO:
    if kind == "gzip":
        return t.cast(t.BinaryIO, gzip.open(file, "rb"))
    return t.cast(t.BinaryIO, bz2.open(file, "rb") if kind == "bzip2" else io.BufferedReader(_Xz(file)))


class _Xz(io.RawIOBase):
    """What is in an .xz file. ``lzma.open`` cannot be told how much memory it may take."""

    def __init__(self, file: _File) -> None:
        super().__init__()
        self._file = file
        self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: t.Any) -> int:
        """The next bytes, of all streams in it; what else is behind a stream is no part of it, as for ``lzma.open``."""
        data = b""
        while not data:
            packed = b""
            if bool(self._decoder.eof):
                packed = self._behind()
                if not packed or packed[: len(_XZ)] != _XZ[: len(packed)]:
                    return 0
                self._decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY)
            elif bool(self._decoder.needs_input):
                packed = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not packed:
                    raise EOFError("it ends without the mark that ends a stream")
            try:
                data = self._decoder.decompress(packed, len(buffer))
            except lzma.LZMAError as error:
                # Nothing else tells it from damage.
                if "limit" in str(error):
                    raise _NotForUs from None
                raise
        buffer[: len(data)] = data
        return len(data)

    def _behind(self) -> bytes:
        """What follows a stream, without the zeros that may stand before another."""
        packed = self._decoder.unused_data.lstrip(b"\0")
        more = b"more"
        while more and not packed:
            more = self._file.read(io.DEFAULT_BUFFER_SIZE)
            packed = more.lstrip(b"\0")
        return packed


def _zip(file: _File) -> str:
    """Read the list at its end, and every member that can be opened here: to lack the key is no proof of damage."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if not member.flag_bits & _LOCKED:
                    try:
                        _member(archive, member, file)
                    except zipfile.BadZipFile:
                        return f"member {member.filename} is damaged"
    except NotImplementedError:
        raise _NotForUs from None
    return ""


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, file: _File) -> None:
    if member.compress_type in _BOUNDED:
        with archive.open(member) as content:
            _drain(_Unpacked(content, file))
    elif member.compress_type in _UNBOUNDED:
        # As it lies there: of that the list has no checksum.
        raw = copy.copy(member)
        raw.compress_type, raw.file_size = zipfile.ZIP_STORED, member.compress_size
        del raw.CRC
        with archive.open(raw) as packed:
            decoder = bz2.BZ2Decompressor() if member.compress_type == zipfile.ZIP_BZIP2 else _lzma(packed, member)
            if decoder is not None:
                _unpack(packed, decoder, member, file)


def _lzma(packed: _Stream, member: zipfile.ZipInfo) -> lzma.LZMADecompressor | None:
    """None if it cannot be unpacked here. A member lacks the size that stands before the content of an .lzma file."""
    properties = packed.read(9)[4:]
    if properties:
        literal, position = properties[0] % 9, properties[0] // 9 % 5
        if literal + position > 4 or int.from_bytes(properties[1:], "little") > _XZ_MEMORY:
            return None
    decoder = lzma.LZMADecompressor(lzma.FORMAT_ALONE)
    decoder.decompress(properties + member.file_size.to_bytes(8, "little"))
    return decoder


def _unpack(
    packed: _Stream,
    decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor,
    member: zipfile.ZipInfo,
    file: _File,
) -> None:
    size = checksum = 0
    while not bool(decoder.eof) and size <= member.file_size:
        piece = b""
        if bool(decoder.needs_input):
            piece = packed.read(io.DEFAULT_BUFFER_SIZE)
            if not piece:
                break
        data = decoder.decompress(piece, _PIECE)
        file.spend(len(data))
        size += len(data)
        checksum = zlib.crc32(data, checksum)
    if (size, checksum) != (member.file_size, member.CRC):
        raise zipfile.BadZipFile


def _stream(stream: _Stream) -> str:
    """Read a compressed stream to its end mark, which its reader checks, and a tar archive inside it to its own."""
    first = stream.read(512)
    if first[257:262] == b"ustar":
        return _tar(stream, first)
    _drain(stream)
    return ""


def _drain(stream: _Stream) -> None:
    while stream.read(_PIECE):
        pass


def _tar(stream: _Stream, first: bytes = b"") -> str:
    """Walk a tar archive header by header to its two empty blocks; '' if they are there.

    ``tarfile`` takes the end of the file for the end of the archive, so a cut between two members would pass.
    """
    block = first or stream.read(512)
    empty = 0
    size: int | None = None
    while empty < 2:
        if len(block) < 512:
            return "it ends without the mark that ends an archive"
        if block.count(0) == 512:
            empty += 1
        else:
            empty = 0
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if header.size < 0:
                return "a member has a negative size"
            if header.type == tarfile.XHDTYPE and header.size <= _PIECE:
                record = stream.read(_padded(header.size))
                if len(record) < header.size:
                    return "it ends inside a member"
                # A member of 8 GiB or more has its size here, in front of its own header.
                found = _PAX_SIZE.search(record[: header.size])
                size = int(found.group(1)) if found else None
            else:
                if header.type == tarfile.GNUTYPE_SPARSE and not _skip_holes(stream, block[482]):
                    return "it ends inside a member"
                if not _skip(stream, _padded(header.size if size is None else size)):
                    return "it ends inside a member"
                size = None
        block = stream.read(512)
    _drain(stream)
    return ""


def _padded(size: int) -> int:
    return (size + 511) // 512 * 512


def _skip(stream: _Stream, left: int) -> bool:
    while left:
        piece = stream.read(min(left, _PIECE))
        if not piece:
            return False
        left -= len(piece)
    return True


def _skip_holes(stream: _Stream, more: int) -> bool:
    """Skip the list of the holes that found no room in the header. It is no part of the member's size."""
    while more:
        block = stream.read(512)
        if len(block) < 512:
            return False
        more = block[504]
    return True


def _cassandra(directory: str, paths: t.Sequence[str], tick: Tick) -> tuple[bool, list[Problem]]:
    """Every SSTable has the components that its table of contents lists, and data that match its digest."""
    by_directory: dict[str, set[str]] = collections.defaultdict(set)
    for path in paths:
        by_directory[os.path.dirname(path)].add(os.path.basename(path))
    problems: list[Problem] = []
    found = False
    for parent, names in sorted(by_directory.items()):
        for name in sorted(name for name in names if name.endswith("-TOC.txt")):
            found = True
            prefix = name[: -len("TOC.txt")]
            with _open(os.path.join(directory, parent, name), tick) as file:
                listed = file.read(_LONGEST_TOC + 1)
            if len(listed) > _LONGEST_TOC:
                message = f"{os.path.join(parent, name)} is larger than any table of contents that Cassandra writes"
                problems.append(Problem("BAD_CONTENTS", message))
                continue
            components = (line.strip() for line in listed.decode("ascii", "replace").split("\n"))
            lacking = (prefix + component for component in components if component and prefix + component not in names)
            problems.extend(
                Problem("COMPONENT_MISSING", f"{os.path.join(parent, component)} is missing")
                for component in itertools.islice(lacking, _TOLD_MISSING)
            )
        for name in sorted(name for name in names if name.endswith("-Digest.crc32")):
            data = name[: -len("Digest.crc32")] + "Data.db"
            if data in names and not _digest_matches(os.path.join(directory, parent), name, data, tick):
                problems.append(
                    Problem("TRUNCATED", f"{os.path.join(parent, data)} does not match Cassandra's own digest of it")
                )
    return found, problems


def _digest_matches(directory: str, digest: str, data: str, tick: Tick) -> bool:
    """Cassandra's ``Digest.crc32`` is the CRC-32 of the whole data file, in decimal [doc]."""
    with _open(os.path.join(directory, digest), tick) as file:
        expected = file.read(64).strip()
    checksum = 0
    with _open(os.path.join(directory, data), tick) as file:
        while True:
            piece = file.read(_PIECE)
            if not piece:
                break
            checksum = zlib.crc32(piece, checksum)
    return expected == str(checksum).encode("ascii")
