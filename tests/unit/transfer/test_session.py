# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A session with a host: what is asked when, and what it costs in round trips."""

from __future__ import annotations

import threading
import time
from typing import Callable, cast

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import SftpSession
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sftp import Attributes, Sftp
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import Connection, ConnectionLost


class Files:
    """The only file there is."""

    def lstat(self, _path: str) -> Attributes:
        return Attributes(7, 0o100600, 1)


class Host:
    """A connection that notes what is asked, and whose SFTP begins when the clock was asked for, if it is to be."""

    def __init__(self, waits_for_clock: bool = False, refuses: bool = False) -> None:
        self.asked: list[str] = []
        self.closed = False
        self.waits_for_clock, self.refuses = waits_for_clock, refuses
        self._clock_asked = threading.Event()

    def open_sftp(self, meanwhile: Callable[[], None]) -> Sftp:
        self.asked.append("channel")
        if self.refuses:
            raise Refused("No SFTP.", "SFTP_MISSING")
        meanwhile()
        if self.waits_for_clock:
            assert self._clock_asked.wait(60), "the clock is asked for when SFTP has begun"
        self.asked.append("sftp")
        return cast(Sftp, Files())

    def clock(self) -> float | None:
        self.asked.append("clock")
        self._clock_asked.set()
        return time.time()

    def lost(self, error: BaseException) -> ConnectionLost:
        return ConnectionLost(str(error))

    def close(self) -> None:
        self.closed = True


def session(host: Host) -> SftpSession:
    return SftpSession(cast(Connection, host))


def test_nothing_is_asked_before_somebody_wants_to_know() -> None:
    host = Host()
    asked = session(host)
    assert host.asked == []
    asked.expect_clock()
    assert host.asked == [], "files come first: a host may allow one channel at a time"
    assert asked.lstat("/f").size == 7 and asked.lstat("/f").size == 7
    assert host.asked.count("channel") == host.asked.count("sftp") == 1 and host.asked[0] == "channel"


def test_an_expected_clock_is_asked_for_while_sftp_begins() -> None:
    host = Host(waits_for_clock=True)
    asked = session(host)
    asked.expect_clock()
    asked.lstat("/f")
    assert host.asked == ["channel", "clock", "sftp"]
    said = asked.clock()
    assert said is not None and abs(said - time.time()) < 60 and host.asked.count("clock") == 1


def test_a_clock_that_nobody_expects_is_not_asked_for() -> None:
    host = Host()
    asked = session(host)
    asked.lstat("/f")
    assert host.asked == ["channel", "sftp"]
    assert asked.clock() is not None and host.asked[2:] == ["clock"]


def test_a_clock_that_is_wanted_at_once_comes_after_the_channel_for_files() -> None:
    host = Host()
    assert session(host).clock() is not None and host.asked[0] == "channel" and host.asked.count("clock") == 1


def test_a_host_without_sftp_is_let_go() -> None:
    host = Host(refuses=True)
    with pytest.raises(Refused) as refusal:
        session(host).lstat("/f")
    assert refusal.value.code == "SFTP_MISSING" and host.closed
