# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Openability is physics: the wrong platform, version, generation or place opens nothing."""

from __future__ import annotations

from typing import Any

import pytest
from standin import api, sealing

VERSION = "5.4.2031-standin"
HERE, THERE = b"h" * 32, b"t" * 32


def test_a_copy_opens_on_its_platform_and_version_only() -> None:
    cmk = sealing.new_cmk()
    blob = sealing.seal(cmk, 7, HERE, VERSION)
    assert sealing.unseal(blob, HERE, VERSION) == (cmk, 7)
    assert sealing.unseal(blob, THERE, VERSION) is None
    assert sealing.unseal(blob, HERE, "5.6.2919-standin") is None


@pytest.mark.parametrize("cut", [0, 11, 12, 13, 27, 63])
def test_a_truncated_copy_does_not_open(cut: int) -> None:
    assert sealing.unseal(sealing.seal(sealing.new_cmk(), 1, HERE, VERSION)[:cut], HERE, VERSION) is None


def test_every_bit_of_a_copy_is_authenticated() -> None:
    blob = bytearray(sealing.seal(sealing.new_cmk(), 1, HERE, VERSION))
    for index in range(len(blob)):
        blob[index] ^= 1
        assert sealing.unseal(bytes(blob), HERE, VERSION) is None
        blob[index] ^= 1


def test_a_copy_tells_nothing_and_differs_each_time() -> None:
    cmk = sealing.new_cmk()
    first, second = (sealing.seal(cmk, 1, HERE, VERSION) for _ in range(2))
    assert first != second
    assert len(first) == len(sealing.seal(cmk, 4_000_000, HERE, VERSION))
    assert cmk not in first
    assert VERSION.encode() not in first


def test_a_platform_without_identity_seals_nothing() -> None:
    with pytest.raises(ValueError, match="platform identity"):
        sealing.seal(sealing.new_cmk(), 1, b"", VERSION)


def test_a_row_opens_under_its_key_generation_and_place_only() -> None:
    cmk = sealing.new_cmk()
    cipher = sealing.RowCipher(cmk, 1)
    blob = cipher.close_row("apps", "acct", "id", b"plain")
    assert cipher.open_row("apps", "acct", "id", blob) == b"plain"
    assert b"plain" not in blob
    for other, place in (
        (sealing.RowCipher(cmk, 2), ("apps", "acct", "id")),
        (sealing.RowCipher(sealing.new_cmk(), 1), ("apps", "acct", "id")),
        (cipher, ("users", "acct", "id")),
        (cipher, ("apps", "acct2", "id")),
        (cipher, ("apps", "acc", "tid")),
    ):
        with pytest.raises(sealing.CannotOpen):
            other.open_row(*place, blob)


def test_names_are_looked_up_blind() -> None:
    cmk = sealing.new_cmk()
    cipher = sealing.RowCipher(cmk, 1)
    assert cipher.lookup("user", "a@b") == sealing.RowCipher(cmk, 1).lookup("user", "a@b")
    assert cipher.lookup("user", "a@b") != cipher.lookup("app", "a@b")
    assert cipher.lookup("user", "a@b") != sealing.RowCipher(cmk, 2).lookup("user", "a@b")


def test_the_backend_opens_with_its_own_copy_among_many(store: Any) -> None:
    cmk = sealing.new_cmk()
    for node, secret in (("n1", THERE), ("n2", HERE)):
        store.put_sealed_copy(node, 1, sealing.seal(cmk, 1, secret, VERSION))
    assert api.open_master_key(store, HERE, VERSION) is not None
    assert api.open_master_key(store, THERE, VERSION) is not None
    assert api.open_master_key(store, b"x" * 32, VERSION) is None
    assert api.open_master_key(store, HERE, "5.6.2919-standin") is None


def test_a_copy_of_an_older_generation_opens_but_serves_nothing(store: Any) -> None:
    old, new = sealing.new_cmk(), sealing.new_cmk()
    store.put_sealed_copy("n1", 2, sealing.seal(new, 2, THERE, VERSION))
    assert api.open_master_key(store, THERE, VERSION) is not None
    store.put_sealed_copy("dr", 1, sealing.seal(old, 1, HERE, VERSION))
    assert api.open_master_key(store, HERE, VERSION) is None
