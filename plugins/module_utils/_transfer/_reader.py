# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Taking bytes from a place: over SFTP, or from the files of this host."""

from __future__ import annotations

import collections
import errno
import os
import socket
import time
import typing as t

from .._errors import DsmError, Refused
from ._changed import changed, gone, same_file
from ._sftp import Attributes, ProtocolError, Sftp
from ._ssh import Connection
from ._stream import REQUEST, Landing, Stream

_PIECE = 1 << 20

#: Reserves bytes under the bandwidth cap and says when (``time.monotonic``) they may be asked for.
Due = t.Callable[[int], float]


class Reader(t.Protocol):
    """Takes ranges by :meth:`offer` and delivers them by :meth:`step`, many at a time."""

    #: seconds of one round trip to the source
    round_trip: float
    #: bytes so far
    received: int

    @property
    def unasked(self) -> int:
        """Bytes of ranges that are here and not asked for yet."""

    @property
    def wake(self) -> float | None:
        """When something may be asked for that the bandwidth cap holds back; None if nothing is held back."""

    @property
    def expects(self) -> bool:
        """Whether anything is under way, so that :meth:`step` makes sense and silence is a bad sign."""

    def offer(self, landing: Landing, path: str, expected: Attributes) -> None:
        """Read this range too. ``expected``: what the file was when it was listed."""

    def refill(self) -> None:
        """Ask for as much as may be asked for."""

    def step(self, seconds: float) -> list[Landing]:
        """Wait at most ``seconds`` for bytes, take them, return the ranges that are complete."""

    def close_files(self) -> None:
        """Close the files that nothing is read from."""

    def explain(self, error: Exception) -> DsmError | None:
        """The error for a person that an exception of the others means; None for those of this host's own disk."""

    def close(self) -> None:
        """End the connection."""


class SftpReader(Stream):
    """Reads over an SSH connection; over an SFTP session of its own, or over ``sftp`` until :meth:`hand_back`."""

    def __init__(self, connection: Connection, due: Due | None, sftp: Sftp | None = None) -> None:
        self._connection = connection
        try:
            sftp = sftp or connection.open_sftp()
            self.round_trip = sftp.round_trip()
        except (EOFError, ProtocolError, OSError) as error:
            connection.close()
            raise connection.lost(error) from None
        except BaseException:
            connection.close()
            raise
        super().__init__(sftp, due)

    def hand_back(self) -> None:
        self._channel.settimeout(self._connection.target.stall_timeout)
        super().hand_back()

    def step(self, seconds: float) -> list[Landing]:
        self._channel.settimeout(seconds)
        try:
            return self.take()
        except socket.timeout:
            return []

    def explain(self, error: Exception) -> DsmError | None:
        if isinstance(error, DsmError):
            return error
        if isinstance(error, FileNotFoundError):
            return gone(str(error.filename))
        if isinstance(error, PermissionError) and error.filename:
            return unreadable(str(error.filename))
        if isinstance(error, OSError) and error.errno == errno.EIO and error.filename:
            return read_error(error)
        if isinstance(error, (EOFError, OSError, ProtocolError)):
            return self._connection.lost(error)
        return None

    def close(self) -> None:
        self._connection.close()


class LocalReader:
    """Reads files of this host. A drop box may be hostile: nothing but the regular file that was listed is read."""

    round_trip = 0.0

    def __init__(self, due: Due | None) -> None:
        self._due = due
        self._waiting: collections.deque[tuple[Landing, str, Attributes]] = collections.deque()
        #: until when the bandwidth cap holds back what comes next
        self._held = 0.0
        self.received = 0

    @property
    def wake(self) -> float | None:
        return self._held if self._held > time.monotonic() else None

    @property
    def unasked(self) -> int:
        return sum(landing.end - landing.at for landing, _path, _expected in self._waiting)

    @property
    def expects(self) -> bool:
        return bool(self._waiting) and self.wake is None

    def offer(self, landing: Landing, path: str, expected: Attributes) -> None:
        landing.again()
        self._waiting.append((landing, path, expected))

    def refill(self) -> None:
        return

    def step(self, seconds: float) -> list[Landing]:
        landing, path, expected = self._waiting[0]
        deadline = time.monotonic() + seconds
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _same(descriptor, path, expected)
            if os.readlink(f"/proc/self/fd/{descriptor}") != path:
                raise changed(path, "a directory above it became a symbolic link")
            while landing.at < landing.end:
                most = _PIECE if self._due is None else REQUEST
                piece = os.pread(descriptor, min(most, landing.end - landing.at), landing.at)
                if not piece:
                    raise changed(path, f"it ended after {landing.at} of {expected.size} bytes")
                landing.write(landing.at, memoryview(piece))
                self.received += len(piece)
                if self._due is not None:
                    # What was read is paid for before the next is.
                    self._held = self._due(len(piece))
                if time.monotonic() > deadline or self.wake is not None:
                    break
            _same(descriptor, path, expected)
        finally:
            os.close(descriptor)
        if landing.at < landing.end:
            return []
        self._waiting.popleft()
        return [landing]

    def close_files(self) -> None:
        return

    def explain(self, error: Exception) -> DsmError | None:
        if isinstance(error, DsmError):
            return error
        if isinstance(error, FileNotFoundError):
            return gone(str(error.filename))
        if isinstance(error, PermissionError):
            return unreadable(str(error.filename))
        if isinstance(error, OSError):
            if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
                return changed(str(error.filename), "it is no regular file any more")
            return read_error(error)
        return None

    def close(self) -> None:
        self._waiting.clear()


def attributes_of(status: os.stat_result) -> Attributes:
    """What is known of a file of this host."""
    return Attributes(status.st_size, status.st_mode, int(status.st_mtime), status.st_ctime_ns)


def _same(descriptor: int, path: str, expected: Attributes) -> None:
    same_file(path, expected, attributes_of(os.fstat(descriptor)))


def unreadable(path: str) -> Refused:
    """The error for a file at the source that this user may not read (code SOURCE_UNREADABLE)."""
    return Refused(
        f"{path} cannot be read at the source: permission denied.",
        "SOURCE_UNREADABLE",
        "Let the user of this source read the delivered files (group or ACL); it needs no right to write.",
    )


def read_error(error: OSError) -> Refused:
    """The error for a file at the source that cannot be read for any other reason (code SOURCE_UNREADABLE)."""
    return Refused(
        f"{error.filename or 'a file'} cannot be read at the source: {error.strerror or error}.",
        "SOURCE_UNREADABLE",
        "Check the disk of the source and the log of its sshd, then run again.",
    )
