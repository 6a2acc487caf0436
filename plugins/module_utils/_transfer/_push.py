# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The other direction: ranges of files of this host are written to a node, over a connection of its own.

The same orders, the same bounds and the same plan as for reading; what is under way and not confirmed by the node is
bounded, and a range counts when the node has flushed it to its disk.
"""

from __future__ import annotations

import collections
import errno
import socket
import struct
import time
import typing as t

from .._errors import DsmError, Refused
from ._sftp import Attributes, ProtocolError, encode, handle_of, status_error, text
from ._ssh import Connection
from ._stream import BUDGET, REQUEST, Landing

_OPEN, _CLOSE, _WRITE, _EXTENDED = 3, 4, 6, 200
_STATUS, _HANDLE = 101, 102
_OPEN_WRITE, _OPEN_CREATE = 0x02, 0x08
_FSYNC = b"fsync@openssh.com"
_TAKE = 1 << 20


class _File:
    """One file at the node."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.handle = b""
        self.users = 0


class SftpWriter:
    """Writes ranges over an SSH connection of its own; looks like a :class:`Reader` to the worker."""

    def __init__(self, connection: Connection, due: t.Callable[[int], float] | None) -> None:
        self._connection = connection
        try:
            self._sftp = connection.open_sftp()
            self.round_trip = self._sftp.round_trip()
        except (EOFError, ProtocolError, OSError) as error:
            connection.close()
            raise connection.lost(error) from None
        except BaseException:
            connection.close()
            raise
        self._channel, _unheard, _received = self._sftp.lend()
        self._due = due
        self._request = min(REQUEST, self._sftp.write_length)
        self._files: dict[int, _File] = {}
        self._waiting: collections.deque[Landing] = collections.deque()
        #: request number -> what its answer means: kind, file, range, bytes
        self._asked: dict[int, tuple[int, _File, Landing | None, int]] = {}
        self._outstanding = 0
        self._out = b""
        self._in = b""
        self._held = 0.0
        self.received = 0

    @property
    def unasked(self) -> int:
        """Bytes of ranges that are here and not sent yet."""
        return sum(item.end - item.at for item in self._waiting)

    @property
    def wake(self) -> float | None:
        """When more may be sent that the bandwidth cap holds back; None if nothing is held back."""
        return self._held if self._held > time.monotonic() else None

    @property
    def expects(self) -> bool:
        """Whether anything is under way."""
        return bool(self._asked or self._out)

    def offer(self, landing: Landing, path: str, expected: Attributes) -> None:
        """Send this range too."""
        landing.restart()
        file = self._files.get(landing.file)
        if file is None:
            self.close_files()
            file = self._files[landing.file] = _File(path)
            flags = struct.pack(">III", _OPEN_WRITE | _OPEN_CREATE, 4, 0o600)
            self._call(_OPEN, text(encode(path)) + flags, file, None)
        file.users += 1
        self._waiting.append(landing)

    def close_files(self) -> None:
        """Close every file that nothing is written to."""
        for number, file in [(number, file) for number, file in self._files.items() if not file.users]:
            del self._files[number]
            self._call(_CLOSE, file.handle, file, None)

    def _call(self, kind: int, payload: bytes, file: _File, item: Landing | None, size: int = 0) -> None:
        number, frame = self._sftp.frame(kind, payload)
        self._asked[number] = (kind, file, item, size)
        self._out += frame

    def refill(self) -> None:
        """Put as much into the pipeline as the budget and the bandwidth cap allow."""
        while self._waiting and self._outstanding < BUDGET and len(self._out) < 4 * REQUEST and self.wake is None:
            item = next((item for item in self._waiting if self._files[item.file].handle), None)
            if item is None:
                return
            file = self._files[item.file]
            at = item.at
            piece = item.read(self._request)
            self._call(_WRITE, file.handle + struct.pack(">Q", at) + text(piece), file, item, len(piece))
            item.pending += 1
            self._outstanding += len(piece)
            if item.at == item.end:
                self._waiting.remove(item)
            if self._due is not None:
                self._held = self._due(len(piece))

    def step(self, seconds: float) -> list[Landing]:
        """Send and take answers, waiting at most ``seconds``; the ranges that the node has confirmed."""
        finished: list[Landing] = []
        moved = False
        while self._out and self._channel.send_ready():
            sent = self._channel.send(self._out[: REQUEST // 2])
            if not sent:
                raise EOFError
            self._out = self._out[sent:]
            moved = True
            if len(self._out) < REQUEST:
                self.refill()
        if moved and not self._channel.recv_ready():
            return finished
        self._channel.settimeout(seconds)
        try:
            data = self._channel.recv(_TAKE)
        except socket.timeout:
            return finished
        if not data:
            raise EOFError
        self._in += data
        while len(self._in) >= 4:
            (length,) = struct.unpack_from(">I", self._in)
            if not 5 <= length <= _TAKE:
                raise ProtocolError("a packet is longer or shorter than any answer")
            if len(self._in) < 4 + length:
                break
            kind, number = struct.unpack_from(">BI", self._in, 4)
            self._answer(kind, number, self._in[9 : 4 + length], finished)
            self._in = self._in[4 + length :]
        return finished

    def _answer(self, kind: int, number: int, body: bytes, finished: list[Landing]) -> None:
        if number not in self._asked:
            raise ProtocolError("an answer does not belong to a request")
        asked, file, item, size = self._asked.pop(number)
        if asked == _OPEN and kind == _HANDLE:
            file.handle = handle_of(body)
            return
        if kind != _STATUS:
            raise ProtocolError(f"packet type {kind} is no answer to a request of type {asked}")
        if int.from_bytes(body[:4], "big"):
            raise status_error(body, file.path)
        if asked == _WRITE and item is not None:
            self._outstanding -= size
            self.received += size
            item.pending -= 1
            if item.at == item.end and not item.pending:
                self._flush(file, item, finished)
        elif asked == _EXTENDED and item is not None:
            self._complete(item, finished)

    def _flush(self, file: _File, item: Landing, finished: list[Landing]) -> None:
        """All bytes of a range are there: to the disk with them, where the node can be asked to."""
        if _FSYNC in self._sftp.extensions:
            self._call(_EXTENDED, text(_FSYNC) + file.handle, file, item)
        else:
            self._complete(item, finished)

    def _complete(self, item: Landing, finished: list[Landing]) -> None:
        self._files[item.file].users -= 1
        finished.append(item)

    def explain(self, error: Exception) -> DsmError | None:
        """The error for a person that an exception means."""
        if isinstance(error, DsmError):
            return error
        if isinstance(error, OSError) and error.filename and error.errno in (errno.ENOENT, errno.EACCES, errno.EIO):
            return Refused(
                f"{self._connection.target.label}: {error.filename} cannot be written: {error.strerror}.",
                "BAD_TARGET",
                "Give a directory that the user may write and that has room for the backup.",
            )
        if isinstance(error, (EOFError, OSError, ProtocolError)):
            return self._connection.lost(error)
        return None

    def close(self) -> None:
        """End the connection."""
        self._connection.close()
