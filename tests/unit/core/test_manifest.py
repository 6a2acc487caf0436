# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a backup: what is written is read back, and whatever is not exactly understood is refused."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import manifest as m
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import Invalid, digest

FINGERPRINT = "ab" * 32
ID = "00000007-20261122T005300Z"
GOOD = m.Manifest(
    cluster_id=FINGERPRINT[:16],
    fingerprint=FINGERPRINT,
    generation=1,
    id=ID,
    sequence=7,
    published_at="2026-11-22T00:53:10Z",
    run_id="run-1",
    version="5.4.2031",
    members=({"name": "dc1-n1", "addresses": ["192.0.2.1"], "host_id": "h-1"},),
    snapshot_started="2026-11-22T00:52:00Z",
    snapshot_source="observed",
    sealed_for=(m.Sealed("dr1", "SERIAL", "5.4.2031", "2026-11-21T00:00:00Z", True),),
    provenance="by_source",
    structure="archive",
    source={"host": "landing", "path": "/b/x", "layout": "single", "key": "k", "hash": "none", "clock_skew": 0},
    files=(m.FileEntry("dc1/a b.db", 3, 1, "01" * 32), m.FileEntry("-z", 4, 2, "02" * 32)),
    accepted=("PART_EMPTY",),
    ledger={"sequence": 3, "hash": "03" * 32},
)


def resealed(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The document with a change and a checksum that fits it again: only its content can give it away."""
    value = json.loads(m.dump(GOOD))
    value.pop("checksum")
    change(value)
    value["checksum"] = digest(value)
    return json.dumps(value).encode()


def codes(data: bytes, **where: str) -> list[str]:
    with pytest.raises(Invalid) as caught:
        m.parse(data, **where)
    return [problem.code for problem in caught.value.problems]


def test_what_is_written_is_read_back() -> None:
    assert m.parse(m.dump(GOOD), cluster_id=GOOD.cluster_id, backup_id=ID) == GOOD
    assert m.parse_known(m.dump(GOOD)) == GOOD


@pytest.mark.parametrize(
    "facts",
    [
        *({"provenance": name} for name in ("by_source", "by_template", "proved_by_restore")),
        {"snapshot_source": "attested"},
        {"snapshot_started": None, "snapshot_source": "unknown"},
        {"sealed_for": (m.Sealed("dr1", "", "", None, False),)},
    ],
)
def test_every_kind_of_manifest_is_understood(facts: dict[str, Any]) -> None:
    manifest = dataclasses.replace(GOOD, **facts)
    assert m.parse(m.dump(manifest)) == m.parse_known(m.dump(manifest)) == manifest


def test_the_first_manifest_of_a_store_follows_no_event() -> None:
    first = m.Manifest(**{name: value for name, value in GOOD.__dict__.items() if name != "ledger"})
    assert m.parse(m.dump(first)).ledger == {"sequence": 0, "hash": "0" * 64}


names = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/"), min_size=1
).filter(lambda name: name not in (".", ".."))
entries = st.builds(
    m.FileEntry,
    path=st.lists(names, min_size=1, max_size=4).map("/".join),
    size=st.integers(0, 1 << 60),
    mtime=st.integers(0, 1 << 33),
    sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
)


@given(st.lists(entries, min_size=1, max_size=6, unique_by=lambda entry: entry.path))
def test_any_tree_survives_the_round_trip(files: list[m.FileEntry]) -> None:
    manifest = dataclasses.replace(GOOD, files=tuple(files))
    assert m.parse(m.dump(manifest)) == manifest


@given(st.data())
@settings(max_examples=300)
def test_no_single_changed_byte_passes(data: st.DataObject) -> None:
    original = m.dump(GOOD)
    at = data.draw(st.integers(0, len(original) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != original[at]))
    changed = original[:at] + bytes([other]) + original[at + 1 :]
    try:
        parsed = m.parse(changed, cluster_id=GOOD.cluster_id, backup_id=ID)
    except Invalid:
        return
    # White space between tokens is the only thing that does not carry meaning.
    assert parsed == GOOD and original[at : at + 1].isspace()


@pytest.mark.parametrize("sixteenth", range(16))
def test_f24_a_cut_manifest_is_refused(sixteenth: int) -> None:
    data = m.dump(GOOD)
    assert codes(data[: len(data) * sixteenth // 16]) in (["EMPTY"], ["UNREADABLE"])


def test_f24_a_manifest_of_somebody_else_is_refused() -> None:
    assert codes(b'{"schema": 1, "version": "1.0"}') == ["FOREIGN"]
    assert codes(m.dump(GOOD), cluster_id="cd" * 8) == ["FOREIGN"]
    assert codes(m.dump(GOOD), backup_id="00000008-20261122T005300Z") == ["FOREIGN"]


@pytest.mark.parametrize(
    ("schema", "code"), [(2, "NEWER_SCHEMA"), (0, "UNKNOWN_SCHEMA"), (True, "UNKNOWN_SCHEMA"), ("1", "UNKNOWN_SCHEMA")]
)
def test_f24_a_newer_or_unknown_schema_is_refused(schema: object, code: str) -> None:
    assert codes(resealed(lambda value: value.update(schema=schema))) == [code]


def test_tampering_with_a_hash_breaks_the_checksum() -> None:
    value = json.loads(m.dump(GOOD))
    value["files"][0]["sha256"] = "ff" * 32
    assert "CHECKSUM" in codes(json.dumps(value).encode())


def first_file(**changes: object) -> Callable[[dict[str, Any]], None]:
    return lambda value: value["files"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda value: value.update(files=[]), "EMPTY"),
        (lambda value: value.update(extra=1), "UNKNOWN_KEY"),
        (lambda value: value.pop("members"), "MISSING_KEY"),
        (lambda value: value.update(bytes="7"), "WRONG_TYPE"),
        (lambda value: value.update(sequence=8), "INCONSISTENT"),
        (lambda value: value.update(id="x"), "WRONG_VALUE"),
        (lambda value: value.update(id="00000007-20261122T005300Z\n"), "WRONG_VALUE"),
        (lambda value: value.update(cluster_id="xyz"), "WRONG_VALUE"),
        (lambda value: value.update(fingerprint="AB" * 32), "WRONG_VALUE"),
        (lambda value: value.update(generation=0), "WRONG_VALUE"),
        (lambda value: value.update(generation=True), "WRONG_TYPE"),
        (lambda value: value.update(provenance="believed"), "WRONG_VALUE"),
        (lambda value: value.update(snapshot_source="guessed"), "WRONG_VALUE"),
        (lambda value: value.update(snapshot_source="unknown"), "INCONSISTENT"),
        (lambda value: value.update(snapshot_started=None), "INCONSISTENT"),
        (lambda value: value.update(snapshot_started="soon"), "WRONG_VALUE"),
        (lambda value: value.update(published_at="2026-11-22"), "WRONG_VALUE"),
        (lambda value: value.update(bytes=8), "INCONSISTENT"),
        (lambda value: value.update(digest="00" * 32), "INCONSISTENT"),
        (lambda value: value.update(members=[1]), "WRONG_TYPE"),
        (lambda value: value.update(members=[{"name": "a", "addresses": [1], "host_id": ""}]), "WRONG_TYPE"),
        (lambda value: value["sealed_for"][0].update(joined_at="then"), "WRONG_VALUE"),
        (lambda value: value["sealed_for"][0].update(member=1), "WRONG_TYPE"),
        (lambda value: value["ledger"].update(hash="short"), "WRONG_VALUE"),
        (lambda value: value["source"].update(clock_skew="0"), "WRONG_TYPE"),
        (lambda value: value["source"].pop("host"), "MISSING_KEY"),
        (lambda value: value["ledger"].pop("sequence"), "MISSING_KEY"),
        (lambda value: value.update(accepted=[1]), "WRONG_TYPE"),
        (first_file(path="../etc/passwd"), "BAD_NAME"),
        (first_file(path="/etc/passwd"), "BAD_NAME"),
        (first_file(path="a/"), "BAD_NAME"),
        (first_file(path="a//b"), "BAD_NAME"),
        (first_file(path="a/./b"), "BAD_NAME"),
        (first_file(path="a\nb"), "BAD_NAME"),
        (first_file(path="a\udcff"), "BAD_NAME"),
        (first_file(path=""), "BAD_NAME"),
        (first_file(path="-z"), "INCONSISTENT"),
        (first_file(size=-1), "WRONG_VALUE"),
        (first_file(mtime=1 << 64), "WRONG_VALUE"),
        (first_file(mtime=-(10**400)), "WRONG_VALUE"),
        (lambda value: value["source"].update(clock_skew=10**400), "WRONG_VALUE"),
        (first_file(size=3.0), "WRONG_TYPE"),
        (first_file(sha256="zz" * 32), "WRONG_VALUE"),
        (first_file(mode=1), "UNKNOWN_KEY"),
    ],
)
def test_f25_recomputed_sums_do_not_make_nonsense_acceptable(
    change: Callable[[dict[str, Any]], None], code: str
) -> None:
    assert code in codes(resealed(change), cluster_id=GOOD.cluster_id, backup_id=ID)


def test_a_file_that_is_listed_twice_is_refused_although_all_sums_fit() -> None:
    twice = dataclasses.replace(GOOD, files=(GOOD.files[0], GOOD.files[0]))
    assert codes(m.dump(twice)) == ["INCONSISTENT"]


def test_what_is_wrong_with_each_file_is_told() -> None:
    def change(value: dict[str, Any]) -> None:
        value["files"][0]["mode"] = 1
        value["files"][1]["path"] = ".."

    assert codes(resealed(change)) == ["UNKNOWN_KEY", "BAD_NAME"]


def test_all_problems_are_told_at_once() -> None:
    def change(value: dict[str, Any]) -> None:
        value.update(provenance="believed", generation=0)
        value["files"][0]["path"] = ".."

    assert codes(resealed(change)) == ["WRONG_VALUE", "WRONG_VALUE", "BAD_NAME"]


def test_the_digest_is_what_sha256sum_would_give(tmp_path: Path) -> None:
    for name, content in (("b", b"1"), ("a c", b"2")):
        (tmp_path / name).write_bytes(content)
    sums = subprocess.run(
        "sha256sum -- 'a c' b | sha256sum | cut -c1-64", shell=True, cwd=tmp_path, check=True, capture_output=True
    ).stdout.decode()
    files = [
        m.FileEntry(name, 1, 1, subprocess.check_output(["sha256sum", tmp_path / name], text=True)[:64])
        for name in ("b", "a c")
    ]
    assert m.tree_digest(files) == sums.strip()


def test_a_single_file_is_an_archive_and_a_tree_is_not() -> None:
    assert GOOD.archive is None
    assert dataclasses.replace(GOOD, files=GOOD.files[:1]).archive is None
    assert dataclasses.replace(GOOD, files=GOOD.files[1:]).archive == GOOD.files[1]
