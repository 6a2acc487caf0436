# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""``kubeadm token list`` and ``kubeadm token create``.

Facts of the real tool: an empty list prints nothing at all, in every format; ``-o json`` prints a stream of objects
and no array, without a TTL; the text columns are misaligned where a value is ``<never>`` and descriptions hold spaces,
so columns cannot be cut; an expired token is listed as ``<invalid>`` until the cleaner comes.
"""

from __future__ import annotations

import datetime
import json
import re
import typing as t
from dataclasses import dataclass

from .._errors import Unreadable

#: A bootstrap token [doc]; the vendor's article prints a sample that is none.
TOKEN = re.compile(r"^[a-z0-9]{6}\.[a-z0-9]{16}\Z")
#: The same anywhere in a text, to hide it.
TOKEN_ANYWHERE = r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b"

_HEADER = re.compile(r"^TOKEN\s+TTL\s+EXPIRES\s+USAGES\s+DESCRIPTION")
_TTL = re.compile(r"^(?:\d+(?:\.\d+)?(?:ns|us|ms|s|m|h|d|y))+\Z")


@dataclass(frozen=True)
class Token:
    """A bootstrap token. ``expires`` is UTC, or None for one that never expires; ``invalid`` is the tool's own mark."""

    token: str
    expires: datetime.datetime | None
    usages: tuple[str, ...]
    description: str
    invalid: bool = False

    @property
    def token_id(self) -> str:
        """The public half, as ``kubeadm token delete`` takes it."""
        return self.token[:6]

    def seconds_left(self, now: datetime.datetime) -> float:
        """How long it is still good, in seconds; 0 when it has expired, infinite when it never does."""
        if self.invalid:
            return 0.0
        if self.expires is None:
            return float("inf")
        return max(0.0, (self.expires - now).total_seconds())


def parse_token_list(text: str) -> list[Token]:
    """Tokens in either format; the first character tells which.

    :raises Unreadable: anything that is not wholly understood
    """
    if not text.strip():
        return []
    if text.lstrip().startswith(("{", "[")):
        return _parse_json(text)
    return _parse_text(text)


def parse_created_token(text: str) -> str:
    """The token that ``kubeadm token create`` printed: the last line that is one, since old releases warn first.

    :raises Unreadable: no line is a token (the text itself is not repeated, it may hold one)
    """
    for line in reversed(text.splitlines()):
        if TOKEN.match(line.strip()):
            return line.strip()
    raise Unreadable("kubeadm token create printed no token.", remedy="Run kubeadm token list on that member.")


def _parse_json(text: str) -> list[Token]:
    decoder = json.JSONDecoder()
    position = 0
    tokens: list[Token] = []
    while True:
        while position < len(text) and text[position].isspace():
            position += 1
        if position == len(text):
            return tokens
        try:
            value, position = decoder.raw_decode(text, position)
        except ValueError:
            raise _unreadable("it is cut off or is not JSON") from None
        tokens.append(_from_object(value))


def _from_object(value: t.Any) -> Token:
    if not isinstance(value, dict) or value.get("kind", "BootstrapToken") != "BootstrapToken":
        raise _unreadable("an object is no BootstrapToken")
    token, usages = value.get("token"), value.get("usages", [])
    if not isinstance(token, str) or not TOKEN.match(token) or not isinstance(usages, list):
        raise _unreadable("an object has no well-formed token")
    expires = value.get("expires")
    return Token(
        token,
        None if expires is None else _time(expires),
        tuple(str(usage) for usage in usages),
        str(value.get("description") or ""),
    )


def _parse_text(text: str) -> list[Token]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not _HEADER.match(lines[0]):
        raise _unreadable("its first line is not the known header")
    return [_from_line(line) for line in lines[1:]]


def _from_line(line: str) -> Token:
    words = line.split()
    if len(words) < 6 or not TOKEN.match(words[0]):
        raise _unreadable("a line is cut off or does not start with a token")
    ttl, expires = words[1], words[2]
    if ttl not in ("<forever>", "<invalid>") and not _TTL.match(ttl):
        raise _unreadable("a line has an unknown time to live")
    if (expires == "<never>") != (ttl == "<forever>"):
        raise _unreadable("a line contradicts itself about its expiry")
    description = " ".join(words[4:-1])
    return Token(
        words[0],
        None if expires == "<never>" else _time(expires),
        tuple(words[3].split(",")),
        "" if description == "<none>" else description,
        invalid=ttl == "<invalid>",
    )


def _time(value: t.Any) -> datetime.datetime:
    try:
        moment = datetime.datetime.fromisoformat(str(value).replace("Z", "+00:00"))
    except ValueError:
        raise _unreadable("an expiry is not a time") from None
    if moment.tzinfo is None:
        raise _unreadable("an expiry has no time zone")
    return moment.astimezone(datetime.timezone.utc)


def _unreadable(problem: str) -> Unreadable:
    return Unreadable(
        f"The output of kubeadm token list cannot be understood: {problem}.",
        remedy="Run it by hand on that member, and report its version with the output (tokens removed).",
        tool="kubeadm",
    )
