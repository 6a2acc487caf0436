# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The fingerprint of a cluster: SHA-256 of the public key (DER SubjectPublicKeyInfo) of its Kubernetes CA.

A new cluster makes a new CA, so two clusters never share it, while the nodes of one cluster all do [inferred].
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_SEQUENCE = 0x30
_EXPLICIT_VERSION = 0xA0


def fingerprint(pem: str) -> str:
    """64 hexadecimal digits for the first certificate in a PEM text.

    :raises ValueError: there is no certificate, or it cannot be decoded
    """
    match = _PEM.search(pem)
    if match is None:
        raise ValueError("there is no PEM certificate in it")
    try:
        der = base64.b64decode("".join(match.group(1).split()), validate=True)
    except binascii.Error as error:
        raise ValueError(f"the certificate is not base64: {error}") from None
    return hashlib.sha256(subject_public_key_info(der)).hexdigest()


def subject_public_key_info(der: bytes) -> bytes:
    """The SubjectPublicKeyInfo of a DER certificate (RFC 5280, section 4.1), tag and length included.

    :raises ValueError: this is no certificate, or it is cut off
    """
    _tag, body, end, _whole = _element(der, 0)
    tag, body, end, _whole = _element(der[:end], body)
    if tag != _SEQUENCE:
        raise ValueError("this is not an X.509 certificate")
    position = body
    first_tag, _body, after, _whole = _element(der[:end], position)
    if first_tag == _EXPLICIT_VERSION:
        position = after
    for _field in ("serialNumber", "signature", "issuer", "validity", "subject"):
        _tag, _body, position, _whole = _element(der[:end], position)
    tag, _body, _after, whole = _element(der[:end], position)
    if tag != _SEQUENCE:
        raise ValueError("the certificate has no public key where one belongs")
    return whole


def _element(data: bytes, start: int) -> tuple[int, int, int, bytes]:
    """Tag, start of the contents, end, and all bytes of the DER element at ``start``."""
    if start + 2 > len(data):
        raise ValueError("the certificate is cut off")
    tag, length, body = data[start], data[start + 1], start + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or body + size > len(data):
            raise ValueError("the certificate is cut off")
        length = int.from_bytes(data[body : body + size], "big")
        body += size
    end = body + length
    if end > len(data):
        raise ValueError("the certificate is cut off")
    return tag, body, end, data[start:end]
