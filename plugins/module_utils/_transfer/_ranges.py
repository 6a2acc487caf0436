# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Which bytes are still to be moved, and who moves them. Pure: no files, no clock, no processes.

A transfer is a list of files. Each is cut into ranges as they are asked for, so that the length of a range can follow
what is left and how fast it goes. Every byte belongs to exactly one state: open, lent to workers, or landed.
"""

from __future__ import annotations

import array
import collections
import itertools
import json
import typing as t

from .._core.strict import SHA256, Invalid, load

MEBI = 1 << 20
#: Bytes of the shortest and of the longest range.
SMALLEST = MEBI // 2
BIGGEST = 8 * MEBI
#: How long (s) a range may be on its way.
RANGE_SECONDS = 0.3
#: Bytes that a worker has ahead of those that it is reading, and the ranges in which it has them, at most.
AHEAD = 4 << 20
RANGES_AHEAD = 16
#: For how long (s) a connection that is tried may have something to do.
TRIED_SECONDS = 0.5


class Range(t.NamedTuple):
    """Bytes ``offset`` to ``offset + length`` of file number ``file``.

    With ``sha256`` they are said to be on the disk already and are to be hashed there, else to be transferred.
    """

    number: int
    file: int
    offset: int
    length: int
    sha256: str = ""

    @property
    def end(self) -> int:
        """The first offset behind it."""
        return self.offset + self.length


class Piece(t.NamedTuple):
    """One journalled range of a file and its SHA-256 ('' where it was begun and nobody knows how far it came)."""

    offset: int
    length: int
    sha256: str = ""


class Pieces:
    """Ranges of one file that have landed, in the order of their offsets; of two at the same offset the later counts.

    Of a long transfer over a slow link there are very many: each takes 48 bytes here.
    """

    def __init__(self, pieces: t.Iterable[Piece] = ()) -> None:
        self._offsets, self._lengths, self._sha256 = array.array("q"), array.array("q"), bytearray()
        for piece in pieces:
            self.add(piece)

    def add(self, piece: Piece) -> None:
        """One more, with its SHA-256."""
        self._offsets.append(piece.offset)
        self._lengths.append(piece.length)
        self._sha256 += bytes.fromhex(piece.sha256)

    def __iter__(self) -> t.Iterator[Piece]:
        offsets = self._offsets
        order = sorted(range(len(offsets)), key=offsets.__getitem__)
        for here, following in itertools.zip_longest(order, itertools.islice(order, 1, None)):
            if following is None or offsets[following] != offsets[here]:
                sha256 = self._sha256[32 * here : 32 * here + 32].hex()
                yield Piece(offsets[here], self._lengths[here], sha256)

    def within(self, size: int) -> t.Iterator[Piece]:
        """Without those that overlap others, are empty or do not fit a file of so many bytes."""
        at = 0
        for piece in self:
            if piece.length >= 1 and piece.offset >= at and piece.offset + piece.length <= size:
                yield piece
                at = piece.offset + piece.length


class Plan:
    """The state of a transfer of files of these sizes (bytes).

    ``claimed``: for each file the ranges that a journal says have landed. They are lent for checking before anything is
    transferred. Those that overlap, are empty or do not fit the file are left out.
    """

    def __init__(self, sizes: t.Sequence[int], claimed: t.Sequence[Pieces] = ()) -> None:
        self.sizes = tuple(sizes)
        self.total = sum(sizes)
        self.landed_bytes = 0
        self._number = 0
        self._open: collections.deque[tuple[int, int, int]] = collections.deque()
        #: ranges to be checked that were lent to nobody yet, and those that came back unchecked
        self._claims = self._claimed(claimed)
        self._checks: collections.deque[Range] = collections.deque()
        self._lent: dict[int, Range] = {}
        self._lent_bytes = 0
        self._holders: dict[int, list[int]] = {}
        #: per file: landed ranges (offset -> end) at or behind the frontier, and the frontier itself
        self._landed: list[dict[int, int]] = [{} for _size in sizes]
        self._frontier = [0] * len(sizes)
        for file, size in enumerate(sizes):
            at = 0
            for piece in claimed[file].within(size) if claimed else ():
                if piece.offset > at:
                    self._open.append((file, at, piece.offset))
                at = piece.offset + piece.length
            if at < size:
                self._open.append((file, at, size))

    def _made(self, file: int, offset: int, length: int, sha256: str = "") -> Range:
        self._number += 1
        return Range(self._number, file, offset, length, sha256)

    def _claimed(self, claimed: t.Sequence[Pieces]) -> t.Iterator[Range]:
        """One after the other: as ranges they would take much more memory."""
        for file, pieces in enumerate(claimed):
            for piece in pieces.within(self.sizes[file]):
                yield self._made(file, piece.offset, piece.length, piece.sha256)

    # -- lending ----------------------------------------------------------------------------------------------------
    def _lend(self, worker: int, item: Range) -> Range:
        self._lent[item.number] = item
        self._lent_bytes += item.length
        self._holders[item.number] = [worker]
        return item

    def take_check(self, worker: int) -> Range | None:
        """Lend the next range that is said to be there; None when all are lent or checked."""
        item = self._checks.popleft() if self._checks else next(self._claims, None)
        return None if item is None else self._lend(worker, item)

    def take(self, worker: int, length: int) -> Range | None:
        """Lend the next range to be transferred, about ``length`` bytes; None when nothing is open."""
        if not self._open:
            return None
        file, start, end = self._open.popleft()
        # What would be left over as a splinter goes along.
        size = end - start if end - start < length + SMALLEST // 2 else length
        if start + size < end:
            self._open.appendleft((file, start + size, end))
        return self._lend(worker, self._made(file, start, size))

    def double(self, worker: int, slow: t.Iterable[int]) -> Range | None:
        """Lend the first of these ranges that only one other worker has once more; None if there is none."""
        for number in slow:
            holders = self._holders[number]
            if len(holders) == 1 and worker not in holders:
                holders.append(worker)
                return self._lent[number]
        return None

    def landed(self, number: int) -> Range | None:
        """A range is on the disk and hashed; None if another worker was first."""
        lent = self._lent.pop(number, None)
        if lent is None:
            return None
        self._returned(lent)
        self.landed_bytes += lent.length
        self._landed[lent.file][lent.offset] = lent.end
        return lent

    def refuted(self, number: int) -> Range | None:
        """A range that was to be checked is not what the journal says: it is transferred like any other."""
        lent = self._lent.pop(number, None)
        if lent is None:
            return None
        self._returned(lent)
        self._open.appendleft((lent.file, lent.offset, lent.end))
        return lent

    def give_back(self, worker: int) -> list[Range]:
        """A worker is gone: what only it had is open again. Returns those ranges."""
        returned = []
        for number in [number for number, holders in self._holders.items() if worker in holders]:
            self._holders[number].remove(worker)
            if self._holders[number]:
                continue
            lent = self._lent.pop(number)
            self._returned(lent)
            returned.append(lent)
            if lent.sha256:
                self._checks.appendleft(lent)
        self._open.extendleft((item.file, item.offset, item.end) for item in reversed(returned) if not item.sha256)
        return returned

    def _returned(self, lent: Range) -> None:
        del self._holders[lent.number]
        self._lent_bytes -= lent.length

    # -- state ------------------------------------------------------------------------------------------------------
    @property
    def done(self) -> bool:
        """Whether every byte has landed."""
        return self.landed_bytes == self.total

    @property
    def open_bytes(self) -> int:
        """Bytes that are lent to nobody."""
        return self.total - self.landed_bytes - self._lent_bytes

    def held_by(self, worker: int) -> list[Range]:
        """What a worker has and has not delivered."""
        return [self._lent[number] for number, holders in self._holders.items() if worker in holders]

    def frontier(self, file: int) -> int:
        """Up to where a file has landed without a gap (bytes)."""
        landed = self._landed[file]
        while self._frontier[file] in landed:
            self._frontier[file] = landed.pop(self._frontier[file])
        return self._frontier[file]


def range_length(open_bytes: int, workers: int, rate: float, tried: bool = False) -> int:
    """How long the next range should be (bytes).

    Long ranges cost least. They are short near the end, so that all workers end together, and on slow connections
    (``rate``: bytes a second of this one, 0: unknown): hashing the whole waits for the range that is out longest. One
    that is ``tried`` beside others that work counts as slow until it has shown that it is not.
    """
    wanted = min(BIGGEST, open_bytes // (4 * max(1, workers)))
    if rate or tried:
        wanted = min(wanted, int(rate * RANGE_SECONDS))
    return max(SMALLEST, wanted // SMALLEST * SMALLEST)


def wants_more(ranges: int, held: int, rate: float, tried: bool = False) -> bool:
    """Whether a worker that has so many ``ranges`` of ``held`` bytes together should get another one. ``rate`` and
    ``tried`` as for :func:`range_length`: others do what such a connection was not given."""
    ahead = min(AHEAD, int(rate * TRIED_SECONDS)) if tried else AHEAD
    return ranges < RANGES_AHEAD and (held < ahead or ranges < 2)


# -- the journal -----------------------------------------------------------------------------------------------------


def journal_line(path: str, piece: Piece) -> bytes:
    """One line of the journal. It begins with a newline, which ends a line that a killed run left unfinished."""
    value: dict[str, t.Any] = {"path": path, "offset": piece.offset, "length": piece.length}
    if piece.sha256:
        value["sha256"] = piece.sha256
    return b"\n" + json.dumps(value, sort_keys=True).encode("ascii") + b"\n"


def read_journal(lines: t.Iterable[bytes]) -> tuple[dict[str, Pieces], dict[str, int]]:
    """What a journal says has landed, by path, and how many bytes were only begun.

    A line that was damaged costs the range that it speaks of and no other. Of two lines about the same bytes the later
    counts. Nothing in it is trusted before it was hashed again.
    """
    landed: dict[str, Pieces] = {}
    begun: dict[str, dict[int, int]] = {}
    for line in lines:
        if line == b"\n":
            continue
        try:
            value = load(line, "journal")
        except Invalid:
            continue
        path, sha256 = value.get("path"), value.get("sha256")
        offset, length = _natural(value.get("offset")), _natural(value.get("length"))
        if not isinstance(path, str) or offset < 0 or length < 1:
            continue
        if sha256 is None:
            begun.setdefault(path, {})[offset] = length
        elif isinstance(sha256, str) and SHA256.match(sha256):
            if path not in landed:
                landed[path] = Pieces()
            landed[path].add(Piece(offset, length, sha256))
            begun.get(path, {}).pop(offset, None)
    return landed, {path: sum(lengths.values()) for path, lengths in begun.items() if lengths}


def _natural(value: t.Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value < 1 << 63 else -1
