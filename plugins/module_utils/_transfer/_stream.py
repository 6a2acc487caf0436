# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Many ranges of many files over one SFTP session, without ever letting the pipeline run dry.

A request for the next range is under way before the last one has been answered, files are opened while others are
read, and bytes are written and hashed as they come: nothing is put together first. What is asked for and not yet here
is bounded (``budget``), and that bounds the memory.
"""

from __future__ import annotations

import collections
import errno
import hashlib
import os
import struct
import time
import typing as t

from ._changed import changed, same_file
from ._sftp import (
    Attributes,
    EndOfFile,
    ProtocolError,
    Sftp,
    encode,
    handle_of,
    parse_attributes,
    status_error,
    text,
)

_CLOSE, _OPEN, _READ, _FSTAT = 4, 3, 5, 8
_STATUS, _HANDLE, _DATA, _ATTRS = 101, 102, 103, 105
_TAKE = 1 << 26
#: Bytes that are asked for and not here yet, of one connection, and the length of one request.
BUDGET = 3 << 20
REQUEST = 64 << 10


class LocalFault(Exception):
    """The receiving side failed; ``cause`` is its OSError."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Landing:
    """One range on its way: onto this disk, written at its place and hashed in order; or from it to a node."""

    def __init__(self, number: int, file: int, offset: int, length: int, path: str) -> None:
        self.number, self.file = number, file
        self.offset, self.end = offset, offset + length
        #: up to where bytes were moved and hashed, and up to where they were asked for
        self.at = self.asked = offset
        self.length = length
        self.hash = hashlib.sha256()
        #: writes that a node has not confirmed
        self.pending = 0
        self._path = path
        self._descriptor = -1
        self._early: dict[int, bytes] = {}

    def again(self) -> None:
        """The connection is a new one: go on where the bytes that are here end."""
        self.asked = self.at
        self._early.clear()

    def restart(self) -> None:
        """The connection is a new one, and what the old one delivered to the node is not known."""
        self.at, self.pending = self.offset, 0
        self.hash = hashlib.sha256()

    def write(self, position: int, piece: memoryview) -> None:
        """Take bytes. What comes before its turn waits; requests are bounded, so that is too."""
        if position != self.at:
            self._early[position] = bytes(piece)
            return
        self._put(piece)
        while self._early and self.at in self._early:
            self._put(memoryview(self._early.pop(self.at)))

    def _put(self, piece: memoryview) -> None:
        try:
            self._open(os.O_WRONLY)
            written = os.pwrite(self._descriptor, piece, self.at)
            while written < len(piece):
                written += os.pwrite(self._descriptor, piece[written:], self.at + written)
        except OSError as error:
            raise LocalFault(error) from None
        self.hash.update(piece)
        self.at += len(piece)

    def read(self, length: int) -> bytes:
        """The next bytes from this disk, at most ``length``."""
        try:
            self._open(os.O_RDONLY)
            piece = os.pread(self._descriptor, min(length, self.end - self.at), self.at)
            if not piece:
                raise OSError(errno.EIO, "it is shorter than it was", self._path)
        except OSError as error:
            raise LocalFault(error) from None
        self.hash.update(piece)
        self.at += len(piece)
        return piece

    def _open(self, how: int) -> None:
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, how | os.O_NOFOLLOW | os.O_CLOEXEC)

    def close(self) -> None:
        """Close the file; harmless if it is not open."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class _File:
    """One file at the source as this session sees it."""

    def __init__(self, path: str, expected: Attributes) -> None:
        self.path, self.expected = path, expected
        self.handle = b""
        self.users = 0
        #: ranges whose bytes are all here already
        self.complete: list[Landing] = []


class Stream:
    """Reads ranges over one channel. Ranges are given by :meth:`offer`, :meth:`take` returns those that are complete.

    ``due`` reserves bytes under the shared bandwidth cap and says when they may be asked for (None: no cap).
    """

    def __init__(
        self,
        sftp: Sftp,
        due: t.Callable[[int], float] | None,
        budget: int = BUDGET,
        request: int = REQUEST,
    ) -> None:
        self._sftp = sftp
        self._channel, self._unheard, self._data = sftp.lend()
        self._due = due
        self._budget = budget
        self._request = min(request, sftp.read_length)
        self._files: dict[int, _File] = {}
        #: ranges that are not asked for completely, by readiness of their file
        self._waiting: collections.deque[Landing] = collections.deque()
        self._sealing: set[int] = set()
        #: request number -> what its answer means
        self._reads: dict[int, tuple[Landing, int, int]] = {}
        self._calls: dict[int, tuple[int, _File, Landing | None]] = {}
        self._held: tuple[float, bytes, int, tuple[Landing, int, int]] | None = None
        self._outstanding = 0
        self._at = 0
        self.received = 0

    # -- what is to be read -----------------------------------------------------------------------------------------
    def offer(self, landing: Landing, path: str, expected: Attributes) -> None:
        """Read this range too. ``expected``: what the file was when it was listed; anything else is SourceChanged."""
        landing.again()
        file = self._files.get(landing.file)
        if file is None:
            self.close_files()
            file = self._files[landing.file] = _File(path, expected)
            payload = text(encode(path)) + struct.pack(">II", 1, 0)
            self._call(_OPEN, payload, file, None)
        file.users += 1
        if landing.at < landing.end:
            self._waiting.append(landing)
        elif file.handle:
            self._seal(landing)
        else:
            file.complete.append(landing)

    @property
    def unasked(self) -> int:
        """Bytes of ranges that are here and not asked for yet."""
        return sum(landing.end - landing.asked for landing in self._waiting)

    @property
    def wake(self) -> float | None:
        """When (``time.monotonic``) a request may be sent that the bandwidth cap holds back; None if there is none."""
        return self._held[0] if self._held else None

    @property
    def expects(self) -> bool:
        """Whether answers are under way."""
        return bool(self._reads or self._calls)

    # -- requests ---------------------------------------------------------------------------------------------------
    def _call(self, kind: int, payload: bytes, file: _File, landing: Landing | None) -> None:
        number, frame = self._sftp.frame(kind, payload)
        self._calls[number] = (kind, file, landing)
        self._channel.sendall(frame)

    def refill(self) -> None:
        """Ask for as much as the budget and the bandwidth cap allow, many requests in one packet."""
        frames: list[bytes] = []
        if self._outstanding > self._budget * 3 // 4:
            # Each packet costs; a few requests together cost as much as one.
            return
        if self._held is not None:
            when, frame, number, meaning = self._held
            if time.monotonic() < when:
                return
            self._held = None
            frames.append(frame)
            self._sent(number, meaning)
        while self._waiting and self._outstanding < self._budget and self._held is None:
            landing = self._ready()
            if landing is None:
                break
            file = self._files[landing.file]
            length = min(self._request, landing.end - landing.asked)
            number, frame = self._sftp.frame(_READ, file.handle + struct.pack(">QI", landing.asked, length))
            meaning = (landing, landing.asked, length)
            landing.asked += length
            if landing.asked == landing.end:
                self._waiting.remove(landing)
            if self._due is not None:
                when = self._due(length)
                if when > time.monotonic():
                    self._held = (when, frame, number, meaning)
                    break
            frames.append(frame)
            self._sent(number, meaning)
        if frames:
            self._channel.sendall(b"".join(frames))

    def _ready(self) -> Landing | None:
        """The first range whose file is open."""
        return next((item for item in self._waiting if self._files[item.file].handle), None)

    def _sent(self, number: int, meaning: tuple[Landing, int, int]) -> None:
        self._reads[number] = meaning
        self._outstanding += meaning[2]

    # -- answers ----------------------------------------------------------------------------------------------------
    def take(self) -> list[Landing]:
        """Take what the channel has (it waits as long as the channel's timeout allows) and return complete ranges.

        Raises ``socket.timeout`` when nothing came, EOFError when the connection ended, :class:`LocalFault`,
        :class:`SourceChanged`, :class:`ProtocolError`, OSError for a refusal of the source.
        """
        finished: list[Landing] = []
        data = self._channel.recv(_TAKE)
        if not data:
            raise EOFError
        data, at = (self._data[self._at :] + data, 0) if self._at < len(self._data) else (data, 0)
        self._data, self._at = b"", 0
        while True:
            if self._current is None:
                # No packet that may come is shorter than the 13 bytes in front of the bytes of a DATA packet.
                if len(data) - at < 13:
                    break
                length, kind, number, count = struct.unpack_from(">IBII", data, at)
                if kind != _DATA:
                    if length > 1 << 20:
                        raise ProtocolError("a packet is longer than any answer")
                    if len(data) - at < 4 + length:
                        break
                    self._answer(kind, number, data[at + 9 : at + 4 + length], finished)
                    at += 4 + length
                    continue
                meaning = self._reads.get(number)
                if meaning is None or length != count + 9 or not 0 < count <= meaning[2]:
                    raise ProtocolError("a malformed answer to a read")
                at += 13
                self._current = (number, meaning[1], count)
            at = self._take(data, at, finished)
            if at == len(data):
                break
        self._data, self._at = data, at
        return finished

    _current: tuple[int, int, int] | None = None

    def _take(self, data: bytes, at: int, finished: list[Landing]) -> int:
        """Hand on the bytes of the current DATA packet that are here."""
        number, position, left = t.cast("tuple[int, int, int]", self._current)
        landing, asked_at, wanted = self._reads[number]
        size = min(left, len(data) - at)
        if size:
            landing.write(position, memoryview(data)[at : at + size])
            self.received += size
        if size < left:
            self._current = (number, position + size, left - size)
            return at + size
        self._current = None
        del self._reads[number]
        self._outstanding -= wanted
        missing = asked_at + wanted - (position + size)
        if missing:
            self._again(landing, position + size, missing)
        elif landing.at == landing.end and landing.number not in self._sealing:
            self._seal(landing)
        return at + size

    def _seal(self, landing: Landing) -> None:
        """The file must still be what it was when its last byte was read."""
        self._sealing.add(landing.number)
        file = self._files[landing.file]
        self._call(_FSTAT, file.handle, file, landing)

    def _again(self, landing: Landing, position: int, missing: int) -> None:
        """A short answer is legal: ask for the rest of it."""
        number, frame = self._sftp.frame(
            _READ, self._files[landing.file].handle + struct.pack(">QI", position, missing)
        )
        self._sent(number, (landing, position, missing))
        self._channel.sendall(frame)

    def _answer(self, kind: int, number: int, body: bytes, finished: list[Landing]) -> None:
        """Anything that is not data."""
        if number in self._reads:
            landing = self._reads[number][0]
            file = self._files[landing.file]
            error = status_error(body, file.path) if kind == _STATUS else ProtocolError("no data")
            raise changed(file.path, "it ended early") if isinstance(error, EndOfFile) else error
        if number in self._unheard:
            self._unheard.discard(number)
            return
        if number not in self._calls:
            raise ProtocolError("an answer does not belong to a request")
        asked, file, waiting = self._calls.pop(number)
        if kind == _STATUS:
            if asked != _CLOSE:
                raise status_error(body, file.path)
        elif asked == _OPEN and kind == _HANDLE:
            file.handle = handle_of(body)
            self._call(_FSTAT, file.handle, file, None)
            for landing in file.complete:
                self._seal(landing)
        elif asked == _FSTAT and kind == _ATTRS:
            same_file(file.path, file.expected, parse_attributes(body))
            if waiting is not None:
                self._sealing.discard(waiting.number)
                self._release(waiting.file)
                finished.append(waiting)
        else:
            raise ProtocolError(f"packet type {kind} is no answer to a request of type {asked}")

    def _release(self, number: int) -> None:
        """A range is complete. Its file stays open for the next one until another file is opened."""
        self._files[number].users -= 1

    def hand_back(self) -> None:
        """Nothing is read any more: let the session ask again. All files must be closed."""
        self._sftp.resume(self._unheard | set(self._calls), self._data[self._at :])

    def close_files(self) -> None:
        """Close every file that nothing is read from."""
        for number, file in [(number, file) for number, file in self._files.items() if not file.users]:
            del self._files[number]
            self._call(_CLOSE, file.handle, file, None)
