# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Pinned host keys: which keys may a host show, by a literal key or by OpenSSH's ``known_hosts``.

paramiko reads ``known_hosts`` too, but knows neither ``@revoked`` nor negated patterns and skips lines that it does not
understand, so a revoked key would pass. Format: sshd(8), SSH_KNOWN_HOSTS FILE FORMAT.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
import hashlib
import hmac
import typing as t


class HostKey(t.NamedTuple):
    """One public key: its type (``ssh-ed25519`` ...) and its blob."""

    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """``SHA256:...`` as ssh-keygen -l prints it."""
        return fingerprint(self.blob)


class Pinned(t.NamedTuple):
    """The keys that a host may show and those that are revoked."""

    keys: tuple[HostKey, ...]
    revoked: tuple[HostKey, ...]
    unread: tuple[str, ...]


def fingerprint(blob: bytes) -> str:
    """``SHA256:...`` of a public key blob."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode("ascii").rstrip("=")


def parse_key(text: str) -> HostKey:
    """A literal public key, ``ssh-ed25519 AAAA... comment``. Raises ValueError."""
    words = text.split()
    if len(words) < 2:
        raise ValueError("a host key is given as 'ssh-ed25519 AAAA...'")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the second word of the host key is not base64") from None
    length = int.from_bytes(blob[:4], "big")
    if blob[4 : 4 + length] != words[0].encode("ascii", "replace") or len(blob) <= 4 + length:
        raise ValueError(f"the host key is not of the type {words[0]!r} that its first word says")
    return HostKey(words[0], blob)


def host_pattern(host: str, port: int) -> str:
    """How ``known_hosts`` names a host: ``host``, or ``[host]:port`` off port 22."""
    return host if port == 22 else f"[{host}]:{port}"


def lookup(text: str, host: str, port: int) -> Pinned:
    """The keys that ``text`` (a ``known_hosts`` file) pins for a host. Lines that cannot be read are named."""
    name = host_pattern(host, port)
    keys: list[HostKey] = []
    revoked: list[HostKey] = []
    unread: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        marker = words.pop(0) if words[0].startswith("@") else ""
        if len(words) < 3 or marker not in ("", "@revoked", "@cert-authority"):
            unread.append(f"line {number}")
            continue
        if marker == "@cert-authority" or not _matches(words[0], name):
            continue
        try:
            key = parse_key(" ".join(words[1:3]))
        except ValueError:
            unread.append(f"line {number}")
            continue
        (revoked if marker else keys).append(key)
    return Pinned(tuple(keys), tuple(revoked), tuple(unread))


def _matches(patterns: str, name: str) -> bool:
    """Whether a list of patterns (comma-separated, ``!`` negates, ``|1|salt|hash`` hashed) names a host."""
    if patterns.startswith("|1|"):
        try:
            salt, expected = (base64.b64decode(part, validate=True) for part in patterns[3:].split("|"))
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(hmac.new(salt, name.encode("utf-8"), hashlib.sha1).digest(), expected)
    found = False
    for pattern in patterns.split(","):
        # A bracket is no wildcard here: it belongs to [host]:port.
        plain = pattern.lstrip("!").replace("[", "[[]").lower()
        if fnmatch.fnmatchcase(name.lower(), plain):
            if pattern.startswith("!"):
                return False
            found = True
    return found
