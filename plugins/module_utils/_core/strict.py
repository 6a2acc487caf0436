# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Reading of untrusted documents: one strict JSON reader, one UTC format, one canonical form to hash.

What a store holds may be truncated, foreign, edited or newer than this code. Every reader here fails closed: whatever
is not exactly understood is a :class:`Problem`, never a default (law 4).
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import math
import re
from typing import Any, Iterable, Mapping, NamedTuple, Tuple, Type, Union

UTC_FORMAT = re.compile(r"^(\d{4})-(\d{2})-(\d{2})T(\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,6}))?(?:Z|\+00:00)\Z", re.ASCII)
SHA256 = re.compile(r"^[0-9a-f]{64}\Z", re.ASCII)
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
Kinds = Union[Type[Any], Tuple[Type[Any], ...]]


class Problem(NamedTuple):
    """One thing that is wrong: a stable ``code`` and a ``message`` for a person."""

    code: str
    message: str


class Invalid(ValueError):
    """A document that cannot be trusted; ``problems`` has all reasons at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: list[Problem] = list(problems)
        super().__init__("; ".join(problem.message for problem in self.problems))


def utc_text(seconds: float) -> str:
    """Seconds since the epoch as ``2026-11-22T00:53:00Z`` (whole seconds, rounded down); a time that no calendar holds,
    which a broken clock may say, becomes the nearest that one does."""
    bounded = min(max(seconds, -62135596800), 253402300799)
    moment = datetime.datetime.fromtimestamp(int(bounded // 1), tz=datetime.timezone.utc)
    # strftime leaves the zeros in front of a year out.
    return f"{moment.replace(tzinfo=None).isoformat()}Z"


@functools.lru_cache(maxsize=65536)
def utc_seconds(text: str) -> float:
    """The inverse of :class:`utc_text`; fractions are allowed. Raises ValueError for anything that is not plain UTC."""
    match = UTC_FORMAT.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a UTC time like 2026-11-22T00:53:00Z")
    year, month, day, hour, minute, second = (int(match.group(index)) for index in range(1, 7))
    moment = datetime.datetime(year, month, day, hour, minute, second, tzinfo=datetime.timezone.utc)
    fraction = float(f"0.{match.group(7)}") if match.group(7) else 0.0
    return moment.timestamp() + fraction


def canonical(value: Any) -> bytes:
    """The one byte form of a JSON value that hashes are made of: sorted keys, no spaces, ASCII."""
    return _CANONICAL.encode(value).encode("ascii")


def digest(value: Any) -> str:
    """SHA-256 (hex) of the canonical form."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(key for index, (key, _value) in enumerate(pairs) if key in dict(pairs[:index]))
        raise ValueError(f"key {twice!r} is given twice")
    return result


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _finite(text: str) -> float:
    """Python reads 1e999 as infinity, which no JSON can say again: nothing that holds it could be hashed."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs, parse_float=_finite, parse_constant=_constant)


def load(data: bytes, what: str) -> dict[str, Any]:
    """Parse ``data`` as one JSON object in UTF-8; duplicate keys, numbers that are not finite and anything but an
    object are refused."""
    if not data.strip():
        raise Invalid([Problem("EMPTY", f"{what} is empty")])
    try:
        value = _DECODER.decode(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise Invalid([Problem("UNREADABLE", f"{what} is not valid JSON ({error})")]) from None
    if not isinstance(value, dict):
        raise Invalid([Problem("UNREADABLE", f"{what} is not a JSON object")])
    return value


class Checker:
    """Collects everything that is wrong with one document, so that a person learns all of it at once."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.problems: list[Problem] = []

    def add(self, code: str, message: str) -> None:
        """Note that the document ``message`` (the name of the document is put before it)."""
        self.problems.append(Problem(code, f"{self.what}: {message}"))

    def keys(self, value: Mapping[str, Any], where: str, expected: Mapping[str, Kinds]) -> bool:
        """Exactly the ``expected`` keys with values of the expected types (bool is no int)."""
        if _plainly_right(value, expected):
            return True
        before = len(self.problems)
        for name in sorted(set(value) - set(expected)):
            self.add("UNKNOWN_KEY", f"{where} has the unknown key {name!r}")
        for name, kinds in expected.items():
            if name not in value:
                self.add("MISSING_KEY", f"{where} lacks {name!r}")
            elif not isinstance(value[name], kinds) or (isinstance(value[name], bool) and not accepts_bool(kinds)):
                self.add("WRONG_TYPE", f"{where} has a {type(value[name]).__name__} as {name!r}")
        return len(self.problems) == before

    def strings(self, value: Any, where: str) -> bool:
        """A list of strings."""
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return True
        self.add("WRONG_TYPE", f"{where} is not a list of strings")
        return False

    def utc(self, value: str | None, where: str) -> None:
        """A UTC time or null."""
        if value is None:
            return
        try:
            utc_seconds(value)
        except ValueError as error:
            self.add("WRONG_VALUE", f"{where}: {error}")

    def done(self) -> None:
        """Raise :class:`Invalid` if anything was wrong."""
        if self.problems:
            raise Invalid(self.problems)


def _plainly_right(value: Mapping[str, Any], expected: Mapping[str, Kinds]) -> bool:
    """The usual case, quickly: the same keys, and every value of exactly an expected type."""
    if len(value) != len(expected):
        return False
    for name, kinds in expected.items():
        found = type(value.get(name, expected))
        if found is not kinds and not (isinstance(kinds, tuple) and found in kinds):
            return False
        if name not in value:
            return False
    return True


def accepts_bool(kinds: Kinds) -> bool:
    """Whether ``kinds`` names bool itself (JSON true must not pass for the number 1)."""
    return kinds is bool or (isinstance(kinds, tuple) and bool in kinds)
