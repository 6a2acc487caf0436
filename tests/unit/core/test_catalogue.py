# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The store's identity, ids and lease."""

from __future__ import annotations

import itertools
import json
from typing import Any, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import catalogue as c
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import Invalid, digest

FIRST, SECOND, OTHER = "aa" * 32, "bb" * 32, "cc" * 32
FACTS: dict[str, Any] = {
    "uid": "u",
    "members": ("dc1-n1",),
    "run_id": "r",
    "added_at": "2026-11-22T00:00:00Z",
    "because": "first",
}
STORE = c.StoreIdentity("aa" * 8, ()).with_generation(FIRST, **FACTS)


def test_identity_survives_the_round_trip_and_grows_only_by_new_fingerprints() -> None:
    grown = STORE.with_generation(SECOND, **FACTS)
    assert c.parse_identity(c.dump_identity(grown), "aa" * 8) == grown
    assert [item.generation for item in grown.generations] == [1, 2]
    assert grown.with_generation(SECOND, **FACTS) is grown
    assert grown.generation_of(OTHER) is None


def resealed(change: Callable[[dict[str, Any]], None]) -> bytes:
    value = json.loads(c.dump_identity(STORE))
    value.pop("checksum")
    change(value)
    value["checksum"] = digest(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "EMPTY"),
        (b"{}", "FOREIGN"),
        (c.dump_identity(STORE)[:-9], "UNREADABLE"),
        (c.dump_identity(STORE).replace(b'"u"', b'"v"'), "CHECKSUM"),
        (resealed(lambda value: value.update(schema=2)), "NEWER_SCHEMA"),
        (resealed(lambda value: value.update(schema=None)), "UNKNOWN_SCHEMA"),
        (resealed(lambda value: value.update(cluster_id="cc" * 8)), "FOREIGN"),
        (resealed(lambda value: value.update(generations=[])), "EMPTY"),
        (resealed(lambda value: value.update(generations=[1])), "WRONG_TYPE"),
        (resealed(lambda value: value["generations"][0].update(generation=2)), "INCONSISTENT"),
        (resealed(lambda value: value["generations"][0].update(fingerprint=SECOND)), "INCONSISTENT"),
        (resealed(lambda value: value["generations"][0].update(fingerprint="x")), "WRONG_VALUE"),
        (
            resealed(lambda value: value["generations"].append({**value["generations"][0], "generation": 2})),
            "INCONSISTENT",
        ),
    ],
)
def test_a_store_that_is_not_understood_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(Invalid) as caught:
        c.parse_identity(data, "aa" * 8)
    assert code in [problem.code for problem in caught.value.problems]


@pytest.mark.parametrize("fingerprint", ["", "aa" * 31, "AA" * 32, "zz" * 32, "aa" * 32 + "\n"])
def test_what_is_no_fingerprint_names_no_cluster(fingerprint: str) -> None:
    with pytest.raises(Invalid):
        c.cluster_id_of(fingerprint)


def test_f16_a_store_takes_only_its_own_cluster() -> None:
    store = {"aa" * 8: STORE}
    assert not c.store_problems({}, OTHER, may_create=False)
    assert not c.store_problems(store, FIRST, may_create=False)
    assert not c.store_problems(store, OTHER, may_create=True)
    (problem,) = c.store_problems(store, OTHER, may_create=False)
    assert problem.code == "ANOTHER_CLUSTER" and "aa" * 8 in problem.message and "cc" * 8 in problem.message


ids = st.builds(c.next_id, st.just(()), st.integers(0, 1 << 34))


@given(st.lists(ids | st.text(max_size=30)), st.integers(-(1 << 40), 1 << 40))
def test_f17_a_new_id_is_higher_than_every_id_ever_seen_whatever_the_clock_says(seen: list[str], mtime: int) -> None:
    new = c.next_id(seen, mtime)
    assert c.BACKUP_ID.match(new)
    assert all(new > old for old in seen if c.BACKUP_ID.match(old))


def test_ids_count_on() -> None:
    seen: list[str] = []
    for mtime in (1_800_000_000, 1_700_000_000, 0):
        seen.append(c.next_id(seen, mtime))
    assert [item[:8] for item in seen] == ["00000001", "00000002", "00000003"]
    assert seen == sorted(seen)


ME = c.Owner("store", "boot-1", 100, 5000)
NOW = 1_795_000_000.0


def test_lease_table() -> None:
    """Who, where, alive, expired: the whole table."""
    for host, boot, same, alive, expired in itertools.product(
        ("store", "elsewhere"), ("boot-1", "boot-0"), (True, False), (True, False), (True, False)
    ):
        owner = c.Owner(host, boot, 100 if same else 200, 5000)
        expires = "2020-01-01T00:00:00Z" if expired else "2099-01-01T00:00:00Z"
        verdict, reason = c.decide_lease(c.Lease("r", owner, "2020-01-01T00:00:00Z", expires), ME, alive, NOW)
        if owner == ME:
            expected = "mine"
        elif host == "elsewhere":
            expected = "dead" if expired else "held"
        else:
            expected = "held" if boot == "boot-1" and alive else "dead"
        assert verdict == expected
        assert (reason == "") == (verdict == "mine")
    assert c.decide_lease(None, ME, False, NOW) == ("free", "")


def test_f08_a_reused_pid_is_not_the_owner() -> None:
    lease = c.Lease("r", c.Owner("store", "boot-1", 100, 4999), "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z")
    assert c.decide_lease(lease, ME, False, NOW)[0] == "dead"


def test_lease_round_trip_and_strictness() -> None:
    lease = c.Lease("r", ME, "2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z")
    assert c.parse_lease(c.dump_lease(lease)) == lease
    for data in (b"", b"{}", c.dump_lease(lease)[:-5], c.dump_lease(lease).replace(b"2099", b"soon")):
        with pytest.raises(Invalid):
            c.parse_lease(data)
