# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""How far a transfer is, for people: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
import typing as t

_BAR = 24
_LINE_SECONDS = 10.0
_BAR_SECONDS = 0.2


class Speed:
    """Bytes a second over the last while (half of it forgotten every ten seconds)."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._at: tuple[float, int] | None = None

    def seen(self, now: float, done: int) -> float:
        """``done`` bytes at the time ``now`` (s)."""
        if self._at is None or done < self._at[1]:
            self._at = (now, done)
            return self._rate
        seconds, moved = now - self._at[0], done - self._at[1]
        if seconds <= 0:
            return self._rate
        self._at = (now, done)
        kept = 0.5 ** (seconds / 10.0) if self._rate else 0.0
        self._rate = kept * self._rate + (1.0 - kept) * moved / seconds
        return self._rate


def size(count: float) -> str:
    """Bytes for a person."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB"):
        count /= 1024
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} GiB"


def left(seconds: float) -> str:
    """A time that is left, for a person."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def describe(done: int, total: int, workers: int, rate: float) -> str:
    """One line without the name of what is moved."""
    part = f"{size(done)} of {size(total)} ({100 * done // max(1, total)} %)"
    if done >= total:
        return part
    # What is not known yet is not said.
    pace = [f"{size(rate)}/s"] if rate else []
    if workers:
        pace.append(f"over {workers} connection{'' if workers == 1 else 's'}")
    ahead = [f"about {left((total - done) / rate)} left"] if rate else []
    return ", ".join([part, *filter(None, [" ".join(pace)]), *ahead])


class Lines:
    """Says one line at the beginning, every ten seconds and at the end."""

    def __init__(self, name: str, say: t.Callable[[str], None], clock: t.Callable[[], float] = time.monotonic) -> None:
        self._name, self._say, self._clock = name, say, clock
        self._speed = Speed()
        self._said: float | None = None

    def __call__(self, done: int, total: int, workers: int) -> None:
        now = self._clock()
        rate = self._speed.seen(now, done)
        if done >= total or self._said is None or now - self._said >= _LINE_SECONDS:
            self._said = now
            self._say(f"{self._name}: {describe(done, total, workers, rate)}")


class Bar:
    """Draws one line over and over."""

    def __init__(self, name: str, stream: t.TextIO, clock: t.Callable[[], float] = time.monotonic) -> None:
        self._name, self._stream, self._clock = name, stream, clock
        self._speed = Speed()
        self._drawn: float | None = None
        self._width = 0

    def __call__(self, done: int, total: int, workers: int) -> None:
        now = self._clock()
        rate = self._speed.seen(now, done)
        if done < total and self._drawn is not None and now - self._drawn < _BAR_SECONDS:
            return
        self._drawn = now
        full = _BAR * done // max(1, total)
        text = f"{self._name} [{'#' * full}{'.' * (_BAR - full)}] {describe(done, total, workers, rate)}"
        # What the line before had more is wiped.
        self._stream.write("\r" + text.ljust(self._width) + ("\n" if done >= total else ""))
        self._stream.flush()
        self._width = len(text)


def for_stream(name: str, stream: t.TextIO) -> t.Callable[[int, int, int], None]:
    """What fits a stream: a bar on a terminal, lines anywhere else."""
    if stream.isatty():
        return Bar(name, stream)

    def say(line: str) -> None:
        stream.write(line + "\n")
        stream.flush()

    return Lines(name, say)
