# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Where bytes come from: a local directory (drop box) or a host over SFTP, behind one small interface.

An endpoint is a value: it can be handed to a forked worker, which then connects by itself. A session looks at what is
there, a reader takes the bytes, over a connection of its own or over that of a session. Paths are absolute text; bytes
that are not UTF-8 survive as surrogate escapes until somebody refuses them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import typing as t
from dataclasses import dataclass

from .._errors import DsmError, Refused
from ._known_hosts import host_pattern
from ._push import SftpWriter
from ._reader import Due, LocalReader, Reader, SftpReader, attributes_of
from ._sftp import Attributes, EndOfFile, ProtocolError, Sftp
from ._ssh import Connection, Dialled, SshTarget, connect

_Answer = t.TypeVar("_Answer")


class Session(t.Protocol):
    """One open connection to an endpoint. File errors are OSError, a broken connection is ``ConnectionLost``."""

    @property
    def round_trip(self) -> float:
        """Seconds of one question and its answer."""

    def lstat(self, path: str) -> Attributes:
        """Attributes without following a symbolic link."""

    def listdir(self, path: str) -> list[tuple[str, Attributes]]:
        """Names and attributes (not followed) of a directory, sorted."""

    def realpath(self, path: str) -> str:
        """The canonical path."""

    def read(self, path: str, limit: int) -> bytes:
        """A small file as a whole. Raises OSError (EFBIG if it has more than ``limit`` bytes)."""

    def expect_clock(self) -> None:
        """:meth:`clock` will be asked: find out while something else is."""

    def clock(self) -> float | None:
        """The clock of the host that the files are on (s since the epoch), None if it cannot be read."""

    def close(self) -> None:
        """End the connection."""


class Endpoint(t.Protocol):
    """A place to read from."""

    @property
    def label(self) -> str:
        """For messages."""

    @property
    def host(self) -> str:
        """The host's name as configured; empty: this host."""

    @property
    def place(self) -> str:
        """The host as its files are known by: behind one address several may answer, each at a port of its own."""

    def connect(self) -> Session:
        """A new session."""

    def reader(self, due: Due | None) -> Reader:
        """A new reader; ``due`` is asked before bytes are (see :class:`Stream`)."""

    def writer(self, due: Due | None) -> Reader:
        """A new writer, the other direction of a reader."""

    @property
    def patience(self) -> float:
        """How long (s) a reader may receive nothing before it is given up."""


@dataclass(frozen=True)
class LocalEndpoint:
    """Directories of this host."""

    host: str = ""
    place: str = ""

    @property
    def label(self) -> str:
        return "this host"

    def connect(self) -> Session:
        return LocalSession()

    def reader(self, due: Due | None) -> Reader:
        return LocalReader(due)

    def writer(self, due: Due | None) -> Reader:
        raise NotImplementedError("bytes are pushed to other hosts only")

    @property
    def patience(self) -> float:
        return 60.0


@dataclass(frozen=True)
class SftpEndpoint:
    """A host over SFTP."""

    target: SshTarget

    @property
    def host(self) -> str:
        return self.target.host

    @property
    def place(self) -> str:
        return host_pattern(self.target.host, self.target.port)

    @property
    def label(self) -> str:
        return self.target.label

    def connect(self, dialled: Dialled | None = None) -> SftpSession:
        return SftpSession(connect(self.target, dialled))

    def reader(self, due: Due | None) -> Reader:
        return SftpReader(connect(self.target), due)

    def writer(self, due: Due | None) -> Reader:
        return SftpWriter(connect(self.target), due)

    @property
    def patience(self) -> float:
        return self.target.stall_timeout


class LocalSession:
    """Files of this host. A drop box may be hostile: nothing but the regular file that was listed is ever read."""

    round_trip = 0.0

    def lstat(self, path: str) -> Attributes:
        return attributes_of(os.lstat(path))

    def listdir(self, path: str) -> list[tuple[str, Attributes]]:
        found = []
        for name in sorted(os.listdir(path)):
            # What vanished since is not there.
            with contextlib.suppress(FileNotFoundError):
                found.append((name, self.lstat(os.path.join(path, name))))
        return found

    def realpath(self, path: str) -> str:
        real = os.path.realpath(path)
        os.lstat(real)
        return real

    def read(self, path: str, limit: int) -> bytes:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            return _small(path, file.read(limit + 1), limit)

    def expect_clock(self) -> None:
        return

    def clock(self) -> float | None:
        return time.time()

    def close(self) -> None:
        return


class SftpSession:
    """Files of another host. SFTP begins with the first question about them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._begun: Sftp | None = None
        #: what its clock said, and when (``time.monotonic``): asking costs a shell there
        self._clock: tuple[float | None, float] | None = None
        self._clock_expected = False
        self._asking: threading.Thread | None = None

    def _sftp(self) -> Sftp:
        if self._begun is None:
            try:
                self._begun = self._connection.open_sftp(self._ask_clock_if_expected)
            except DsmError:
                self._connection.close()
                raise
        return self._begun

    def _guarded(self, call: t.Callable[[Sftp], _Answer]) -> _Answer:
        """Ask, and tell an answer about a file (OSError with a number that SFTP knows) from a broken connection."""
        try:
            return call(self._sftp())
        except (EOFError, ProtocolError) as error:
            raise self._connection.lost(error) from None
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EIO, errno.EFBIG):
                raise
            raise self._connection.lost(error) from None

    @property
    def round_trip(self) -> float:
        return self._guarded(lambda sftp: sftp.round_trip())

    def lstat(self, path: str) -> Attributes:
        return self._guarded(lambda sftp: sftp.lstat(path))

    def listdir(self, path: str) -> list[tuple[str, Attributes]]:
        return self._guarded(lambda sftp: sftp.listdir(path))

    def realpath(self, path: str) -> str:
        return self._guarded(lambda sftp: sftp.realpath(path))

    def read(self, path: str, limit: int) -> bytes:
        return _small(path, self._guarded(lambda sftp: _read(sftp, path, limit)), limit)

    def expect_clock(self) -> None:
        # A host may allow one channel at a time, and files are what this is for: they come first.
        self._clock_expected = True
        if self._begun is not None:
            self._ask_clock_if_expected()

    def _ask_clock_if_expected(self) -> None:
        if self._clock_expected and self._clock is None and self._asking is None:
            self._asking = threading.Thread(target=self._ask_clock, daemon=True)
            self._asking.start()

    def _ask_clock(self) -> None:
        said = self._connection.clock()
        self._clock = (said, time.monotonic())

    def clock(self) -> float | None:
        self.expect_clock()
        self._guarded(lambda _sftp: None)
        if self._asking is not None:
            self._asking.join()
        said, then = self._clock or (None, 0.0)
        # Never ahead of what it would say now: the answer took its time, and was in whole seconds.
        return None if said is None else said + time.monotonic() - then

    def reader(self, due: Due | None) -> SftpReader:
        """A reader over this very session: nothing may be asked until :meth:`SftpReader.hand_back`."""
        return SftpReader(self._connection, due, self._guarded(lambda sftp: sftp))

    def close(self) -> None:
        self._connection.close()


def _read(sftp: Sftp, path: str, limit: int) -> bytes:
    """A small file, and one byte more than ``limit`` of one that is not."""
    pieces: list[bytes] = []
    handle = sftp.open_read(path)
    try:
        length = min(sftp.fstat(handle).size, limit + 1)
        with contextlib.suppress(EndOfFile):
            sftp.read(handle, 0, length, lambda _position, piece: pieces.append(bytes(piece)))
    finally:
        sftp.close(handle)
    return b"".join(pieces)


def _small(path: str, data: bytes, limit: int) -> bytes:
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit} bytes", path)
    return data


def without_links(pattern: str, path: str) -> str:
    """A path of this host that ``pattern`` names or matches, without the symbolic links above its first wildcard.

    Below that nobody but DSM (or whoever broke into its drop box) makes links, and those are not followed.
    """
    if not path.startswith("/"):
        return path
    parts, below = pattern.rstrip("/").split("/"), path.rstrip("/").split("/")
    fixed = next((index for index, part in enumerate(parts) if set("*?[") & set(part)), len(parts) - 1)
    if below[:fixed] != parts[:fixed]:
        return path
    return os.path.join(os.path.realpath("/".join(parts[:fixed]) or "/"), *below[fixed:])


def check_local(path: str, store: str) -> None:
    """Refuse a local source that contains the store or lies in it (code SOURCE_IS_STORE)."""
    _check_apart(path, os.path.realpath(path), store)


def check_local_pattern(pattern: str, store: str) -> None:
    """As :func:`check_local`, for what is written: a link that whoever delivers called ``*`` is not followed."""
    _check_apart(pattern, without_links(pattern, pattern), store)


def _check_apart(path: str, real: str, store: str) -> None:
    mine = os.path.realpath(store)
    if os.path.commonpath([real, mine]) in (real, mine):
        raise Refused(
            f"The source {path} and {store}, where it is to go, lie inside one another.",
            "SOURCE_IS_STORE",
            "Give each a directory of its own, beside the other.",
        )
