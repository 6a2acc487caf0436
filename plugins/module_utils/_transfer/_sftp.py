# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""A lean SFTP version 3 client over anything that looks like an SSH channel.

Why not ``paramiko.SFTPClient``: it reassembles and re-slices every packet and is 2.5 times slower than this at reading
(measured), and it decodes file names, so that a name that is not UTF-8 breaks a whole listing. Of the channel only
``sendall``, ``recv`` and ``settimeout`` are used. Specification: draft-ietf-secsh-filexfer-02 and OpenSSH's PROTOCOL
for the extensions.
"""

from __future__ import annotations

import collections
import errno
import os
import struct
import time
import typing as t

_INIT, _VERSION, _OPEN, _CLOSE, _READ, _WRITE, _LSTAT, _FSTAT = 1, 2, 3, 4, 5, 6, 7, 8
_OPENDIR, _READDIR, _REMOVE, _MKDIR, _RMDIR, _REALPATH = 11, 12, 13, 14, 15, 16
_STATUS, _HANDLE, _DATA, _NAME, _ATTRS, _EXTENDED, _EXTENDED_REPLY = 101, 102, 103, 104, 105, 200, 201
_OK, _EOF, _NO_SUCH_FILE, _PERMISSION_DENIED = 0, 1, 2, 3
_OPEN_READ, _OPEN_WRITE, _OPEN_CREATE, _OPEN_TRUNCATE = 0x01, 0x02, 0x08, 0x10
_BIGGEST_PACKET = 1 << 28
_TAKE = 1 << 26

#: What a server must take in one read request without being asked for its limits, with room for the header.
SAFE_LENGTH = 32768
#: What is asked for at most in one request, whatever the server would take.
LONGEST = 261120
DEPTH = 32
#: Questions for the next entries of a directory that are under way together, at first and at most.
LISTED_TOGETHER = 2, 8
#: Entries of one directory, and characters of their names. A server that lists without end must not fill the memory.
MOST_LISTED, LONGEST_LISTING = 1_000_000, 64 << 20

Sink = t.Callable[[int, memoryview], None]
#: (name, attributes) of one directory entry
Listed = t.Tuple[str, "Attributes"]


class Channel(t.Protocol):
    """The calls of an SSH channel that are needed."""

    def sendall(self, s: bytes) -> None: ...

    def recv(self, nbytes: int) -> bytes: ...

    def settimeout(self, timeout: float | None) -> None: ...

    def send(self, s: bytes) -> int: ...

    def send_ready(self) -> bool: ...

    def recv_ready(self) -> bool: ...


class ProtocolError(Exception):
    """The other side does not speak SFTP version 3, or stopped in the middle of a packet."""


class EndOfFile(Exception):
    """A file ended before the bytes that were asked for."""


class Attributes(t.NamedTuple):
    """What SFTP tells of a file; times in seconds since the epoch, of the other side's clock.

    ``changed_ns``: when it last changed in any way (ctime, ns); 0 over SFTP, which does not tell. Nobody can set it, so
    that another file of the same size and time shows. Not the inode: some mounts give a file another one at any time.
    """

    size: int
    mode: int
    mtime: int
    changed_ns: int = 0


class Space(t.NamedTuple):
    """Free space of a file system, for this user: bytes and inodes."""

    bytes: int
    inodes: int


def encode(path: str) -> bytes:
    """A path as the bytes that the other side gave (names need not be UTF-8)."""
    return path.encode("utf-8", "surrogateescape")


def text(value: bytes) -> bytes:
    """A string as it goes over the wire."""
    return struct.pack(">I", len(value)) + value


def parse_attributes(body: bytes) -> Attributes:
    """The attributes of an ATTRS packet, behind the number of its request."""
    return _Reader(body).attributes()


def status_error(body: bytes, path: str) -> Exception:
    """What a STATUS packet (behind the number of its request) says: :class:`EndOfFile` or an OSError."""
    return _status_error(_Reader(body), path)


def handle_of(body: bytes) -> bytes:
    """The handle in a HANDLE packet (behind the number of its request), as requests carry it."""
    if not 4 < len(body) <= 4 + 256 or int.from_bytes(body[:4], "big") != len(body) - 4:
        raise ProtocolError("a malformed handle")
    return body


class _Reader:
    """Takes fields from the body of one packet."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._at = 0

    def _take(self, count: int) -> bytes:
        if count > len(self._body) - self._at:
            raise ProtocolError("a packet is shorter than its fields")
        self._at += count
        return self._body[self._at - count : self._at]

    def int32(self) -> int:
        return int.from_bytes(self._take(4), "big")

    def int64(self) -> int:
        return int.from_bytes(self._take(8), "big")

    def text(self) -> bytes:
        return self._take(self.int32())

    def left(self) -> bool:
        return self._at < len(self._body)

    def attributes(self) -> Attributes:
        flags = self.int32()
        size = self.int64() if flags & 1 else 0
        if flags & 2:
            self._take(8)
        mode = self.int32() if flags & 4 else 0
        mtime = 0
        if flags & 8:
            self.int32()
            mtime = self.int32()
        if flags & 0x80000000:
            for _index in range(self.int32()):
                self.text()
                self.text()
        return Attributes(size, mode, mtime)


class Sftp:
    """One SFTP session. Metadata calls are one request at a time; :meth:`read` and :meth:`write` are pipelined."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._buffer = b""
        self._number = 0
        #: numbers of requests whose answers nobody waits for
        self._unheard: set[int] = set()
        #: number of the question for the server's limits until it is answered, and when it was asked
        self._limits: tuple[int, float] | None = None
        channel.sendall(struct.pack(">IBI", 5, _INIT, 3))
        kind, body = self._packet()
        if kind != _VERSION or len(body) < 4:
            raise ProtocolError("the answer is not one of an SFTP server")
        reader = _Reader(body)
        self.version = reader.int32()
        self.extensions: dict[bytes, bytes] = {}
        while reader.left():
            name = reader.text()
            self.extensions[name] = reader.text()
        if self.version < 3:
            raise ProtocolError(f"the server speaks SFTP version {self.version}; 3 is needed")
        self._lengths = SAFE_LENGTH, SAFE_LENGTH
        self._round_trip: float | None = None
        if b"limits@openssh.com" in self.extensions:
            # Nothing waits for the answer but what needs it: the first question goes along.
            number, frame = self.frame(_EXTENDED, text(b"limits@openssh.com"))
            self._limits = number, time.monotonic()
            channel.sendall(frame)

    def _limited(self, asked_at: float, kind: int, body: bytes) -> None:
        """The server's limits, if it tells them after all."""
        self._limits = None
        self._round_trip = time.monotonic() - asked_at
        if kind == _EXTENDED_REPLY:
            reader = _Reader(body)
            reader.int32()
            reader.int64()
            longest_read, longest_write = reader.int64(), reader.int64()
            self._lengths = min(longest_read or SAFE_LENGTH, LONGEST), min(longest_write or SAFE_LENGTH, LONGEST)
        elif kind != _STATUS:
            raise ProtocolError(f"packet type {kind} instead of {_EXTENDED_REPLY}")

    @property
    def read_length(self) -> int:
        """Bytes that one question for bytes may ask for."""
        self._hear_limits()
        return self._lengths[0]

    @property
    def write_length(self) -> int:
        """Bytes that one request may write."""
        self._hear_limits()
        return self._lengths[1]

    def round_trip(self) -> float:
        """Seconds of a question and its answer: of one that had to be asked, else of one for this."""
        self._hear_limits()
        if self._round_trip is None:
            started = time.monotonic()
            self.realpath(".")
            self._round_trip = time.monotonic() - started
        return self._round_trip

    # -- packets ----------------------------------------------------------------------------------------------------
    def _fill(self, count: int) -> None:
        parts = [self._buffer]
        have = len(self._buffer)
        while have < count:
            piece = self._channel.recv(_TAKE)
            if not piece:
                raise EOFError
            parts.append(piece)
            have += len(piece)
        self._buffer = b"".join(parts)

    def _packet(self) -> tuple[int, bytes]:
        self._fill(5)
        length, kind = struct.unpack_from(">IB", self._buffer)
        if not 1 <= length <= _BIGGEST_PACKET:
            raise ProtocolError("the answer is not one of an SFTP server")
        self._fill(4 + length)
        body = self._buffer[5 : 4 + length]
        self._buffer = self._buffer[4 + length :]
        return kind, body

    def _aside(self, kind: int, body: bytes) -> bool:
        """Take an answer that nobody waits for; whether it was one."""
        number = int.from_bytes(body[:4], "big")
        if self._limits is not None and number == self._limits[0]:
            self._limited(self._limits[1], kind, body)
            return True
        if number in self._unheard:
            self._unheard.discard(number)
            return True
        return False

    def _next(self) -> tuple[int, bytes]:
        """The next answer that somebody waits for."""
        while True:
            kind, body = self._packet()
            if not self._aside(kind, body):
                return kind, body

    def _hear_limits(self) -> None:
        """Wait until the server has told its limits."""
        while self._limits is not None:
            self._hear_one()

    def _hear_all(self) -> None:
        """Wait for all answers that nobody waited for."""
        while self._limits is not None or self._unheard:
            self._hear_one()

    def _hear_one(self) -> None:
        if not self._aside(*self._packet()):
            raise ProtocolError("an answer does not belong to a request")

    def lend(self) -> tuple[Channel, set[int], bytes]:
        """The channel itself, for somebody who reads many answers at once; numbers of requests whose answers may come
        and mean nothing; and what has come already. Nothing may be asked here until :meth:`resume`."""
        self._hear_limits()
        unheard, received = self._unheard, self._buffer
        self._unheard, self._buffer = set(), b""
        return self._channel, unheard, received

    def resume(self, unheard: set[int], received: bytes) -> None:
        """Take the channel back: answers to these requests may still come, and this has come already."""
        self._unheard, self._buffer = unheard, received

    def frame(self, kind: int, payload: bytes) -> tuple[int, bytes]:
        """A request as it goes over the wire, and its number."""
        self._number = (self._number + 1) & 0xFFFFFFFF
        return self._number, struct.pack(">IBI", len(payload) + 5, kind, self._number) + payload

    def _call(self, kind: int, payload: bytes, expected: int, path: str = "") -> _Reader:
        number, frame = self.frame(kind, payload)
        self._channel.sendall(frame)
        got, body = self._next()
        reader = _Reader(body)
        if reader.int32() != number:
            raise ProtocolError("an answer does not belong to the request")
        if got == _STATUS and expected != _STATUS:
            raise _status_error(reader, path)
        if got != expected:
            raise ProtocolError(f"packet type {got} instead of {expected}")
        if got == _STATUS:
            code = reader.int32()
            if code != _OK:
                raise _os_error(code, reader, path)
        return reader

    # -- metadata ---------------------------------------------------------------------------------------------------
    def lstat(self, path: str) -> Attributes:
        """Attributes without following a symbolic link. Raises OSError."""
        return self._call(_LSTAT, text(encode(path)), _ATTRS, path).attributes()

    def realpath(self, path: str) -> str:
        """The canonical absolute path, symbolic links resolved. Raises OSError."""
        reader = self._call(_REALPATH, text(encode(path)), _NAME, path)
        if reader.int32() < 1:
            raise ProtocolError("an empty answer to REALPATH")
        return reader.text().decode("utf-8", "surrogateescape")

    def listdir(self, path: str) -> list[Listed]:
        """All entries of a directory but ``.`` and ``..``, sorted by name. Raises OSError."""
        handle = self._call(_OPENDIR, text(encode(path)), _HANDLE, path).text()
        entries: list[Listed] = []
        together, most = LISTED_TOGETHER
        try:
            known = size = 0
            while self._list_on(handle, path, together, entries):
                if len(entries) == known:
                    raise ProtocolError("a listing that brings nothing and does not end")
                size += sum(len(name) for name, _attributes in entries[known:])
                if len(entries) > MOST_LISTED or size > LONGEST_LISTING:
                    what = f"it has more than {MOST_LISTED} entries, or names of more than {LONGEST_LISTING} characters"
                    raise OSError(errno.EFBIG, what, path)
                known, together = len(entries), min(most, 2 * together)
        finally:
            # Whether that went well changes nothing, and waiting for it is a round trip.
            number, frame = self.frame(_CLOSE, text(handle))
            self._channel.sendall(frame)
            self._unheard.add(number)
        return sorted(entry for entry in entries if entry[0] not in (".", ".."))

    def _list_on(self, handle: bytes, path: str, together: int, entries: list[Listed]) -> bool:
        """Ask for so many further pieces of a directory at once; whether there may be more behind them."""
        requests = [self.frame(_READDIR, text(handle)) for _index in range(together)]
        asked = {number for number, _frame in requests}
        self._channel.sendall(b"".join(frame for _number, frame in requests))
        more = True
        while asked:
            kind, body = self._next()
            reader = _Reader(body)
            number = reader.int32()
            if number not in asked or kind not in (_NAME, _STATUS):
                raise ProtocolError("an answer does not belong to the listing of a directory")
            asked.discard(number)
            if kind == _STATUS:
                error = _status_error(reader, path)
                if not isinstance(error, EndOfFile):
                    self._unheard |= asked
                    raise error
                more = False
                continue
            for _index in range(reader.int32()):
                name = reader.text().decode("utf-8", "surrogateescape")
                reader.text()
                entries.append((name, reader.attributes()))
        return more

    def mkdir(self, path: str, mode: int = 0o700) -> None:
        """Make one directory. Raises OSError."""
        self._call(_MKDIR, text(encode(path)) + struct.pack(">II", 4, mode), _STATUS, path)

    def remove(self, path: str) -> None:
        """Remove a file. Raises OSError."""
        self._call(_REMOVE, text(encode(path)), _STATUS, path)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory. Raises OSError."""
        self._call(_RMDIR, text(encode(path)), _STATUS, path)

    def rename(self, old: str, new: str) -> None:
        """Rename, atomically and over an existing file where the server can. Raises OSError."""
        both = text(encode(old)) + text(encode(new))
        if b"posix-rename@openssh.com" in self.extensions:
            self._call(_EXTENDED, text(b"posix-rename@openssh.com") + both, _STATUS, new)
        else:
            self._call(18, both, _STATUS, new)

    def fsync(self, handle: bytes) -> None:
        """Flush a file to disk where the server can (``fsync@openssh.com``)."""
        if b"fsync@openssh.com" in self.extensions:
            self._call(_EXTENDED, text(b"fsync@openssh.com") + text(handle), _STATUS)

    def space(self, path: str) -> Space | None:
        """Free space where the server can tell (``statvfs@openssh.com``), else None. Raises OSError."""
        if b"statvfs@openssh.com" not in self.extensions:
            return None
        reader = self._call(_EXTENDED, text(b"statvfs@openssh.com") + text(encode(path)), _EXTENDED_REPLY, path)
        values = [reader.int64() for _index in range(8)]
        return Space(values[1] * values[4], values[7])

    # -- files ------------------------------------------------------------------------------------------------------
    def open_read(self, path: str) -> bytes:
        """A handle for reading. Raises OSError."""
        return self._call(_OPEN, text(encode(path)) + struct.pack(">II", _OPEN_READ, 0), _HANDLE, path).text()

    def open_write(self, path: str, mode: int = 0o600) -> bytes:
        """A handle for writing a new or emptied file. Raises OSError."""
        flags = _OPEN_WRITE | _OPEN_CREATE | _OPEN_TRUNCATE
        return self._call(_OPEN, text(encode(path)) + struct.pack(">III", flags, 4, mode), _HANDLE, path).text()

    def fstat(self, handle: bytes) -> Attributes:
        """Attributes of an open file."""
        return self._call(_FSTAT, text(handle), _ATTRS).attributes()

    def close(self, handle: bytes) -> None:
        """Close a handle."""
        self._call(_CLOSE, text(handle), _STATUS)

    def write(self, handle: bytes, pieces: t.Iterable[bytes], path: str = "") -> int:
        """Write ``pieces`` one after the other from offset 0, pipelined. Returns the bytes written, raises OSError."""
        waiting: collections.deque[int] = collections.deque()
        offset = 0
        for piece in pieces:
            for start in range(0, len(piece), self.write_length):
                part = piece[start : start + self.write_length]
                number, frame = self.frame(_WRITE, text(handle) + struct.pack(">QI", offset, len(part)) + part)
                self._channel.sendall(frame)
                waiting.append(number)
                offset += len(part)
                if len(waiting) >= DEPTH:
                    self._written(waiting, path)
        while waiting:
            self._written(waiting, path)
        return offset

    def _written(self, waiting: collections.deque[int], path: str) -> None:
        kind, body = self._next()
        reader = _Reader(body)
        number = reader.int32()
        if kind != _STATUS or number not in waiting:
            raise ProtocolError("an answer does not belong to a write")
        waiting.remove(number)
        code = reader.int32()
        if code != _OK:
            error = _os_error(code, reader, path)
            while waiting:
                waiting.remove(_Reader(self._next()[1]).int32())
            raise error

    def read(self, handle: bytes, offset: int, length: int, sink: Sink) -> None:
        """Read ``length`` bytes from ``offset`` and give them to ``sink(position, bytes)`` strictly in order.

        Requests are pipelined. Bytes are handed on as they come, not put together first. A server that answers out of
        order or shorter than asked is legal: what is early waits (bounded by the pipeline), what is missing is asked
        for again. Raises :class:`EndOfFile` when the file ends early, EOFError when the connection does, OSError.
        """
        _Pipeline(self, handle, offset, length, sink).run()


class _Pipeline:
    """One pipelined read."""

    def __init__(self, sftp: Sftp, handle: bytes, offset: int, length: int, sink: Sink) -> None:
        self._sftp = sftp
        self._handle = text(handle)
        self._next, self._end = offset, offset + length
        self._sink = sink
        #: request number -> (position, length), in the order of positions
        self._asked: collections.OrderedDict[int, tuple[int, int]] = collections.OrderedDict()
        self._early: dict[int, bytes] = {}

    def run(self) -> None:
        sftp = self._sftp
        sftp._hear_all()
        self._refill()
        data, at = sftp._buffer, 0
        sftp._buffer = b""
        while self._asked:
            # The header of a DATA packet is 13 bytes, and no STATUS packet is shorter.
            while len(data) - at < 13:
                data, at = data[at:] + self._receive(), 0
            length, kind, number, count = struct.unpack_from(">IBII", data, at)
            if number not in self._asked or number in self._early:
                raise ProtocolError("an answer does not belong to a read")
            if kind == _STATUS:
                while len(data) - at < 4 + length:
                    data, at = data[at:] + self._receive(), 0
                body = data[at + 5 : at + 4 + length]
                sftp._buffer = data[at + 4 + length :]
                self._failed(number, body)
            if kind != _DATA or length != count + 9 or not 0 < count <= self._asked[number][1]:
                raise ProtocolError("a malformed answer to a read")
            at += 13
            position, wanted = self._asked[number]
            in_order = number == next(iter(self._asked))
            kept = []
            left = count
            while left:
                if at == len(data):
                    data, at = self._receive(), 0
                piece = memoryview(data)[at : at + left]
                if in_order:
                    self._sink(position, piece)
                else:
                    kept.append(bytes(piece))
                position += len(piece)
                at += len(piece)
                left -= len(piece)
            if in_order:
                self._settle(number, position, wanted - count)
            else:
                self._early[number] = b"".join(kept)
            if len(self._asked) <= DEPTH * 3 // 4:
                self._refill()
        sftp._buffer = data[at:]

    def _receive(self) -> bytes:
        piece = self._sftp._channel.recv(_TAKE)
        if not piece:
            raise EOFError
        return piece

    def _settle(self, number: int, position: int, missing: int) -> None:
        """The first request was answered: ask for what is missing of it, or hand on what came early behind it."""
        while True:
            del self._asked[number]
            if missing:
                self._again(position, missing)
                return
            if not self._asked:
                return
            number, (position, wanted) = next(iter(self._asked.items()))
            if number not in self._early:
                return
            early = self._early.pop(number)
            self._sink(position, memoryview(early))
            position += len(early)
            missing = wanted - len(early)

    def _again(self, position: int, missing: int) -> None:
        number, frame = self._request(position, missing)
        self._asked[number] = (position, missing)
        self._asked.move_to_end(number, last=False)
        self._sftp._channel.sendall(frame)

    def _request(self, position: int, length: int) -> tuple[int, bytes]:
        return self._sftp.frame(_READ, self._handle + struct.pack(">QI", position, length))

    def _refill(self) -> None:
        """Ask for more, several requests in one packet."""
        frames = []
        while self._next < self._end and len(self._asked) < DEPTH:
            length = min(self._sftp.read_length, self._end - self._next)
            number, frame = self._request(self._next, length)
            self._asked[number] = (self._next, length)
            self._next += length
            frames.append(frame)
        if frames:
            self._sftp._channel.sendall(b"".join(frames))

    def _failed(self, number: int, body: bytes) -> t.NoReturn:
        """A read was refused: take the answers that are still under way, then say why."""
        del self._asked[number]
        while len(self._asked) > len(self._early):
            late = _Reader(self._sftp._packet()[1]).int32()
            self._asked.pop(late, None)
        reader = _Reader(body)
        reader.int32()
        raise _status_error(reader, "")


def _status_error(reader: _Reader, path: str) -> Exception:
    code = reader.int32()
    return EndOfFile() if code == _EOF else _os_error(code, reader, path)


def _os_error(code: int, reader: _Reader, path: str) -> OSError:
    """The error of a status: SFTP version 3 knows few, everything else (a full disk as well) is a plain failure."""
    number = {_NO_SUCH_FILE: errno.ENOENT, _PERMISSION_DENIED: errno.EACCES}.get(code, errno.EIO)
    message = reader.text().decode("utf-8", "replace") if reader.left() else ""
    return OSError(number, message or os.strerror(number), path)
