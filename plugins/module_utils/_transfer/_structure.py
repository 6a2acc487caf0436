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
import gzip
import lzma
import os
import re
import tarfile
import typing as t
import zipfile
import zlib

from .._core.strict import Problem

_PIECE = 1 << 20
_PAX_SIZE = re.compile(rb"(?:^|\n)\d+ size=(\d+)\n")
_BROKEN = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError, zipfile.BadZipFile, ValueError)


Tick = t.Callable[[], None]


def no_tick() -> None:
    """For callers that need no sign of life."""


def check(directory: str, paths: t.Iterable[str], tick: Tick = no_tick) -> tuple[str, list[Problem]]:
    """What could be checked (``archive``, ``snapshot``, both joined by ``+``, or ``unknown``) and what is broken.

    ``tick`` is called again and again while this takes its time.
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
    """The format of one file ('' if it is none that says when it is complete) and what is wrong ('' if nothing)."""
    with open(path, "rb") as file:
        head = file.read(512)
    kind = _kind(head)
    if not kind:
        return "", ""
    try:
        if kind == "tar":
            with open(path, "rb") as file:
                return kind, _tar(file, tick)
        if kind == "zip":
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            return kind, f"member {bad} is damaged" if bad else ""
        with _opened(kind, path) as stream:
            return kind, _stream(stream, tick)
    except _BROKEN as error:
        return kind, str(error) or type(error).__name__


def _kind(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return "tar"
    for kind, magic in (("gzip", b"\x1f\x8b\x08"), ("bzip2", b"BZh"), ("xz", b"\xfd7zXZ\0"), ("zip", b"PK\x03\x04")):
        if head.startswith(magic):
            return kind
    return ""


def _opened(kind: str, path: str) -> t.BinaryIO:
    if kind == "gzip":
        return t.cast(t.BinaryIO, gzip.open(path, "rb"))
    return t.cast(t.BinaryIO, bz2.open(path, "rb") if kind == "bzip2" else lzma.open(path, "rb"))


def _stream(stream: t.BinaryIO, tick: Tick) -> str:
    """Read a compressed stream to its end mark, which its reader checks, and a tar archive inside it to its own."""
    first = stream.read(512)
    if first[257:262] == b"ustar":
        return _tar(stream, tick, first)
    _drain(stream, tick)
    return ""


def _drain(stream: t.BinaryIO, tick: Tick) -> None:
    while stream.read(_PIECE):
        tick()


def _tar(stream: t.BinaryIO, tick: Tick, first: bytes = b"") -> str:
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
            if header.type == tarfile.XHDTYPE and header.size <= _PIECE:
                record = stream.read(_padded(header.size))
                if len(record) < header.size:
                    return "it ends inside a member"
                # A member of 8 GiB or more has its size here, in front of its own header.
                found = _PAX_SIZE.search(record[: header.size])
                size = int(found.group(1)) if found else None
            else:
                if not _skip(stream, _padded(header.size if size is None else size), tick):
                    return "it ends inside a member"
                size = None
        block = stream.read(512)
    _drain(stream, tick)
    return ""


def _padded(size: int) -> int:
    return (size + 511) // 512 * 512


def _skip(stream: t.BinaryIO, left: int, tick: Tick) -> bool:
    while left:
        piece = stream.read(min(left, _PIECE))
        if not piece:
            return False
        left -= len(piece)
        tick()
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
            with open(os.path.join(directory, parent, name), encoding="ascii", errors="replace") as file:
                components = [line.strip() for line in file if line.strip()]
            problems.extend(
                Problem("COMPONENT_MISSING", f"{os.path.join(parent, prefix + component)} is missing")
                for component in components
                if prefix + component not in names
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
    with open(os.path.join(directory, digest), "rb") as file:
        expected = file.read(64).strip()
    checksum = 0
    with open(os.path.join(directory, data), "rb") as file:
        while True:
            piece = file.read(_PIECE)
            if not piece:
                break
            checksum = zlib.crc32(piece, checksum)
            tick()
    return expected == str(checksum).encode("ascii")
