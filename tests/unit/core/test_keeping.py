# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stands beside the manifests: notes and pins, freshness, rotation, metrics."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import (
    cron,
    freshness,
    ledger,
    manifest,
    metrics,
    notes,
    rotation,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.notes import Notes, Saying
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import Item, Policy, plan
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import Invalid, digest, utc_seconds

CLUSTER, BACKUP = "aa" * 8, "00000001-20261122T000000Z"
SAID = Saying("j.doe", "2026-11-22T00:00:00Z", "audit")
LATER = Saying("a.roe", "2026-11-23T00:00:00Z", "audit")
NOW = utc_seconds("2026-11-22T12:00:00Z")


# -- notes and pins ----------------------------------------------------------------------------------------------------


def test_notes_survive_the_round_trip() -> None:
    said = Notes().said("noted", SAID).said("released", SAID).said("pinned", Saying("x", SAID.at, "y", SAID.at))
    assert notes.parse(notes.dump(said, CLUSTER, BACKUP), CLUSTER, BACKUP) == said
    assert notes.parse(notes.dump(Notes(), CLUSTER, BACKUP), CLUSTER, BACKUP) == Notes()


def test_f15_nobody_shortens_the_pin_of_somebody_else_without_a_word() -> None:
    def pin(who: str, until: str | None) -> Saying:
        return Saying(who, SAID.at, f"asked by {who}", until)

    endless, short, longer = pin("a", None), pin("b", "2026-11-25T00:00:00Z"), pin("c", "2026-11-26T00:00:00Z")
    held = Notes().said("pinned", endless).said("pinned", short)
    assert (held.pin, held.notes) == (endless, (short,)) and held.said("pinned", short) is held
    late = utc_seconds("2027-11-25T00:00:00Z")
    assert held.holds(late)
    assert Notes().said("pinned", short).said("pinned", longer) == Notes(pin=longer, notes=(short,))
    assert Notes().said("pinned", short).said("pinned", endless).pin == endless
    assert held.said("unpinned", short).pin is None
    daily = held
    for day in range(10, 20):
        daily = daily.said("pinned", Saying("job", SAID.at, "prolonged", f"2026-12-{day}T00:00:00Z"))
    assert (daily.pin, [note.until for note in daily.notes]) == (endless, [short.until, "2026-12-19T00:00:00Z"])
    mine = held.said("pinned", pin("a", "2026-11-23T00:00:00Z"))
    assert mine.pin == pin("a", "2026-11-23T00:00:00Z") and not mine.holds(late)


def test_saying_the_same_again_is_no_news() -> None:
    pinned = Notes().said("pinned", SAID)
    assert pinned.pin == SAID and pinned.said("pinned", LATER) is pinned
    assert pinned.said("pinned", Saying("j.doe", SAID.at, "other")).pin != SAID
    assert pinned.said("pinned", Saying("j.doe", SAID.at, "audit", "2027-01-01T00:00:00Z")).pin != SAID
    assert Notes().said("unpinned", SAID) == Notes() and Notes().said("unpinned", SAID) is not pinned
    quiet = Notes()
    assert quiet.said("unpinned", SAID) is quiet
    released = pinned.said("released", SAID)
    assert (released.pin, released.released) == (None, SAID) and released.said("released", LATER) is released
    both = released.said("pinned", SAID)
    assert both.released == SAID and both.said("released", LATER).pin is None
    assert released.said("unpinned", SAID) == Notes() and pinned.said("unpinned", SAID) == Notes()
    noted = Notes().said("noted", SAID)
    assert noted.notes == (SAID,) and noted.said("noted", Saying("j.doe", LATER.at, "audit")) is noted
    assert noted.said("noted", LATER).notes == (SAID, LATER)
    assert noted.said("noted", Saying("j.doe", SAID.at, "more")).notes[1].why == "more"


def test_a_pin_holds_until_a_day_after_its_end() -> None:
    assert Notes().holds(NOW) == []
    (hold,) = Notes(pin=SAID).holds(NOW)
    assert hold.code == "PINNED" and hold.message == "pinned by j.doe at 2026-11-22T00:00:00Z: audit"
    ending = Notes(pin=Saying("j.doe", SAID.at, "audit", "2026-11-22T12:00:00Z"))
    assert "until 2026-11-22T12:00:00Z: audit" in ending.holds(NOW + 86400)[0].message
    assert ending.holds(NOW + 86401) == []
    assert Notes(released=SAID, notes=(SAID,)).holds(NOW) == []


def changed(change: dict[str, Any], resealed: bool = True) -> bytes:
    value = {**json.loads(notes.dump(Notes(pin=SAID), CLUSTER, BACKUP)), **change}
    if resealed:
        value["checksum"] = digest({name: item for name, item in value.items() if name != "checksum"})
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "EMPTY"),
        (b"{", "UNREADABLE"),
        (b"{}", "UNKNOWN_SCHEMA"),
        (changed({"schema": 2}), "UNKNOWN_SCHEMA"),
        (changed({"schema": True}), "UNKNOWN_SCHEMA"),
        (changed({"kind": "other"}), "UNKNOWN_SCHEMA"),
        (changed({"more": 1}), "UNKNOWN_KEY"),
        (json.dumps({"kind": notes.KIND, "schema": 1, "id": BACKUP}).encode(), "MISSING_KEY"),
        (changed({"pin": None}, resealed=False), "CHECKSUM"),
        (changed({"id": "other"}), "FOREIGN"),
        (changed({"cluster_id": "other"}), "FOREIGN"),
        (changed({"notes": [1]}), "WRONG_TYPE"),
        (changed({"pin": {"who": "x"}}), "MISSING_KEY"),
        (changed({"released": {"who": "x", "at": "now", "why": "", "until": None}}), "WRONG_VALUE"),
        (changed({"pin": {"who": "x", "at": SAID.at, "why": "", "until": "soon"}}), "WRONG_VALUE"),
    ],
)
def test_notes_that_are_not_understood_are_an_error(data: bytes, code: str) -> None:
    with pytest.raises(Invalid) as caught:
        notes.parse(data, CLUSTER, BACKUP)
    assert code in [problem.code for problem in caught.value.problems]


# -- freshness ---------------------------------------------------------------------------------------------------------


def published(when: str, size: int = 100, started: str | None = None, mtime: str | None = None) -> manifest.Manifest:
    return manifest.Manifest(
        CLUSTER, "aa" * 32, 1, BACKUP, 1, when, "r", "5.4", (), started, "observed" if started else "unknown", (),
        "by_source", "unknown", {}, (manifest.FileEntry("a", size, int(utc_seconds(mtime or when)), "0" * 64),),
    )  # fmt: skip


def codes(*backups: manifest.Manifest, now: float = NOW, **limits: Any) -> list[str]:
    if "schedule" in limits:
        limits["schedule"] = cron.parse(limits["schedule"])
    return [problem.code for problem in freshness.problems(backups, now=now, **limits)]


@pytest.mark.parametrize(
    ("schedule", "grace", "due"),
    [
        ("0 * * * *", 0, "2026-11-22T12:00:00Z"),
        ("0 * * * *", 1, "2026-11-22T11:00:00Z"),
        ("* * * * *", 30, "2026-11-22T11:59:00Z"),
        ("30 3 * * *", 0, "2026-11-22T03:30:00Z"),
        ("30 13 * * *", 0, "2026-11-21T13:30:00Z"),
        ("0 0 * * 1", 0, "2026-11-16T00:00:00Z"),
        ("0 0 1 * *", 86400 * 22, "2026-10-01T00:00:00Z"),
        ("0 0 29 2 *", 0, "2024-02-29T00:00:00Z"),
    ],
)
def test_last_due(schedule: str, grace: float, due: str) -> None:
    assert freshness.last_due(cron.parse(schedule), NOW, grace) == utc_seconds(due)


@given(st.integers(0, 10_000_000), st.sampled_from(["7 * * * *", "*/13 2-5 * * *", "0 0 * * 0,3", "1 1 1 1 *"]))
def test_last_due_is_the_last(offset: int, text: str) -> None:
    schedule, now = cron.parse(text), NOW + offset
    due = freshness.last_due(schedule, now, 0.0)
    assert due is not None and due <= now
    assert schedule.next_after(datetime.fromtimestamp(due, tz=timezone.utc)).timestamp() > now


def test_late() -> None:
    hourly = {"schedule": "0 * * * *", "grace": 1800.0}  # due at 11:00
    assert codes(published("2026-11-22T11:10:00Z"), **hourly) == []
    assert codes(published("2026-11-22T10:55:00Z"), **hourly) == []
    assert codes(published("2026-11-22T10:54:59Z"), **hourly) == ["LATE"]
    assert codes(published("2026-11-22T11:50:00Z", mtime="2026-11-22T10:10:00Z"), **hourly) == ["LATE"]
    assert codes(published("2026-11-22T11:10:00Z", mtime="2027-01-01T00:00:00Z"), **hourly) == []
    assert codes(published("2026-11-22T11:50:00Z", started="2026-11-22T10:00:00Z"), **hourly) == ["LATE"]
    assert codes(published("2026-11-22T11:50:00Z", started="2026-11-22T11:00:05Z", mtime=SAID.at), **hourly) == []
    text = freshness.problems([published(SAID.at)], now=NOW, schedule=cron.parse("0 * * * *"), grace=60.0)[0].message
    assert "2026-11-22T11:00:00Z" in text and "2026-11-22T00:00:00Z" in text and "60 s later" in text


def test_stale_skewed_shrunk_and_absent() -> None:
    assert codes() == ["NO_BACKUP"]
    last = published("2026-11-22T11:00:00Z")
    assert codes(last, max_age=3600.0) == [] and codes(last, max_age=3599.0) == ["STALE"]
    assert codes(last, now=NOW - 3900) == [] and codes(last, now=NOW - 3901) == ["CLOCK_SKEW"]
    assert codes(published(SAID.at, 200), last, min_ratio=0.5) == []
    assert codes(published(SAID.at, 201), last, min_ratio=0.5) == ["SHRUNK"]
    assert codes(published(SAID.at, 900), published(SAID.at, 100), last, min_ratio=0.5) == []
    assert codes(last, min_ratio=5.0) == []
    assert codes(published(SAID.at, 200), published("2026-11-22T11:00:00Z", 1)) == []
    due = published("2026-11-22T11:59:50Z", mtime="2026-11-22T11:55:00Z")
    assert codes(due, schedule="0 * * * *", now=NOW) == [] and codes(due, schedule="0 * * * *", now=NOW + 1) == []


# -- rotation ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("1/1", (1, 1)), ("3/7", (3, 7)), ("7/7", (7, 7)), ("auto/7", (None, 7)), ("auto/1", (None, 1))],
)
def test_slices(text: str, parsed: tuple[int | None, int]) -> None:
    assert rotation.parse_slice(text) == parsed


@pytest.mark.parametrize(
    "text", ["", "0/7", "8/7", "1/0", "auto/0", "auto", "-1/7", "1/7\n", "1/7/7", "x/7", "1/99999"]
)
def test_what_is_no_slice(text: str) -> None:
    with pytest.raises(ValueError, match="slice"):
        rotation.parse_slice(text)


@given(st.text(max_size=40), st.integers(1, 50))
def test_every_file_has_one_turn(path: str, turns: int) -> None:
    assert 1 <= rotation.slice_of(BACKUP, path, turns) <= turns
    assert rotation.slice_of(BACKUP, path, turns) == rotation.slice_of(BACKUP, path, turns)


def test_slices_are_about_equal() -> None:
    taken = [rotation.slice_of(f"{number:08d}", "backup.tar.gz", 7) for number in range(7000)]
    assert all(900 < taken.count(turn) < 1100 for turn in range(1, 8))


def test_turns() -> None:
    assert [rotation.turn_after(turn, 3) for turn in (1, 2, 3)] == [2, 3, 1]
    assert rotation.next_turn(rotation.dump_turn(3, 7), 7) == 3
    assert rotation.next_turn(rotation.dump_turn(7, 7), 7) == 7
    for bad in (b"", b"[]", b'{"schema": 1, "next": true, "turns": 7}', b'{"schema": 1, "next": "3", "turns": 7}'):
        assert rotation.next_turn(bad, 7) == 1
    assert rotation.next_turn(rotation.dump_turn(3, 8), 7) == 1
    assert rotation.next_turn(rotation.dump_turn(0, 7), 7) == rotation.next_turn(rotation.dump_turn(8, 7), 7) == 1
    assert rotation.next_turn(b'{"schema": 2, "next": 3, "turns": 7}', 7) == 1


def test_reads() -> None:
    reads = {"a/b": SAID.at}
    assert rotation.parse_reads(rotation.dump_reads(BACKUP, reads), BACKUP) == reads
    for bad, code in (
        (rotation.dump_reads("other", reads), "FOREIGN"),
        (rotation.dump_reads(BACKUP, {"a": "yesterday"}), "WRONG_VALUE"),
        (rotation.dump_reads(BACKUP, {"a": 1}), "WRONG_TYPE"),  # type: ignore[dict-item]
        (rotation.dump_reads(BACKUP, reads).replace(b'"schema": 1', b'"schema": 2'), "FOREIGN"),
        (rotation.dump_reads(BACKUP, reads).replace(b"fortanix_dsm/reads", b"fortanix_dsm/other"), "FOREIGN"),
        (rotation.dump_reads(BACKUP, reads).replace(b'"kind"', b'"kinds"'), "UNKNOWN_KEY"),
    ):
        with pytest.raises(Invalid) as caught:
            rotation.parse_reads(bad, BACKUP)
        assert code in [problem.code for problem in caught.value.problems]


# -- the ledger's part -------------------------------------------------------------------------------------------------


def events(*said: tuple[str, str, dict[str, Any]]) -> list[ledger.Event]:
    made: list[ledger.Event] = []
    for kind, subject, data in said:
        head = made[-1] if made else None
        made.append(ledger.make(head, time=SAID.at, run_id="r", kind=kind, subject=subject, data=data))
    return made


def test_verdicts() -> None:
    said = events(
        ("verified", "a", {"verdict": "ok"}),
        ("verified", "b", {"verdict": "ok"}),
        ("verified", "b", {"verdict": "failed", "partial": True}),
        ("verified", "b", {"verdict": "ok", "partial": True}),
        ("verified", "c", {"verdict": "ok", "partial": True}),
        ("verified", "d", {}),
        ("shipped", "e", {}),
    )
    assert ledger.verdicts(said) == {"a": "ok", "b": "failed", "d": "failed"}


CORRUPT = {"verdict": "failed", "codes": ["CORRUPT"]}
#: how files fit together is seen by no slice
BLIND = {"verdict": "failed", "codes": ["COMPONENT_MISSING", "CORRUPT"]}
SLICED = {"verdict": "ok", "partial": True, "digest": "d", "turns": 3, "slices": 2}


@pytest.mark.parametrize(
    ("said", "whole"),
    [
        ([{"slice": 1}, {"slice": 3}], True),
        ([{"slice": 3}, {"slice": 3}, {"slice": 1}], True),
        ([{"slice": 1}, {"slice": 1}], False),
        ([{"slice": 1}, {}], False),
        ([{"slice": 1}, {"slice": 3, "digest": "other"}], False),
        ([{"slice": 1}, {"slice": 3, "turns": 4}], False),
        ([{"slice": 1}, {"slice": 3, "slices": 1}], True),
        ([{"slice": 1}, {"slice": 3, "slices": 3}], False),
        ([{"slice": 1}, {"slice": 3, **CORRUPT}, {"slice": 3}], False),
        ([{"slice": 1}, {"slice": 3, **CORRUPT}, {"slice": 3}, {"slice": 1}], True),
        ([{"partial": False, **BLIND}, {"slice": 3}, {"slice": 1}], False),
        ([{"partial": False, **BLIND}, {"slice": 3, **CORRUPT}, {"slice": 3}, {"slice": 1}], False),
        ([{"verdict": "failed"}, {"slice": 3}, {"slice": 1}], False),
        ([{"partial": False, **BLIND}, {"partial": False}], True),
        ([{}, {}], False),
    ],
)
def test_slices_add_up_to_a_whole(said: list[dict[str, Any]], whole: bool) -> None:
    told = events(("shipped", "a", {}), *(("verified", "a", {**SLICED, **one}) for one in said))
    before = "failed" if any("verdict" in one for one in said) else "unverified"
    assert ledger.fold(told).backups["a"]["verdict"] == ("ok" if whole else before)
    assert ledger.verdicts(told).get("a", "unverified") == ("ok" if whole else before)


def test_slices_of_what_was_there_before_do_not_count_for_what_was_brought_again() -> None:
    first, second = ("verified", "a", {**SLICED, "slice": 1}), ("verified", "a", {**SLICED, "slice": 3})
    told = events(("shipped", "a", {}), first, ("shipped", "a", {}), second)
    assert ledger.fold(told).backups["a"]["verdict"] == "unverified" and not ledger.verdicts(told)
    other = events(("shipped", "a", {}), first, ("verified", "b", {**SLICED, "slice": 3}))
    assert ledger.fold(other).backups["a"]["verdict"] == "unverified"


def test_what_was_pruned_is_no_backup_any_more() -> None:
    folded = ledger.fold(events(("shipped", "a", {}), ("shipped", "b", {}), ("pruned", "a", {"codes": ["AGE"]})))
    assert list(folded.backups) == ["b"] and folded.pruned["a"]["codes"] == ["AGE"]
    partly = ledger.fold(events(("shipped", "a", {}), ("verified", "a", {"verdict": "ok", "partial": True})))
    assert (partly.backups["a"]["verdict"], partly.backups["a"]["checked_at"]) == ("unverified", SAID.at)


# -- metrics -----------------------------------------------------------------------------------------------------------


def test_metrics() -> None:
    items = [
        Item("a", 1, "ok", 10, 100.0, 100.0),
        Item("c", 3, "failed", 30, 300.0, 300.0),
        Item("b", 2, "ok", 20, 200.5, 200.5),
        Item("d", 4, "unverified", 40, 400.0, 400.0),
    ]
    made = plan(items, Policy(keep=1, max_age=1000.0, need=500), now=450.0, free=77)
    text = metrics.render(metrics.Facts(CLUSTER, items, made, 77, 450.0, 99.0, 200.5))
    lines = text.splitlines()
    assert lines[-1] == "# EOF" and text.endswith("\n")
    shown = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert shown == {
        f'kmsops_dsm_store_{name}{{cluster="{CLUSTER}"}}': value
        for name, value in {
            "last_success_timestamp_seconds": "200.500",
            "last_success_age_seconds": "249.500",
            "last_success_bytes": "20",
            "verified_copies": "2",
            "unverified_copies": "1",
            "failed_copies": "1",
            "bytes": "100",
            "free_bytes": "77",
            "missing_bytes": str(500 - 77 - 10 - 30),
            "missing_inodes": "0",
            "expiry_frozen": "0",
            "next_expiry_timestamp_seconds": str(450 + 1000),
            "least_recent_read_timestamp_seconds": "99",
            "written_timestamp_seconds": "450",
        }.items()
    }
    assert len([line for line in lines if line.startswith("# TYPE ") and line.endswith(" gauge")]) == 14
    assert len([line for line in lines if line.startswith("# HELP kmsops_dsm_store_")]) == 14


def test_what_is_not_known_is_absent_not_zero() -> None:
    failed = [Item("a", 1, "failed", 10, 100.0, 100.0)]
    shown = metrics.values(metrics.Facts(CLUSTER, failed, None, 1, 2.0, None))
    assert set(shown) == {
        "verified_copies", "unverified_copies", "failed_copies", "bytes", "free_bytes", "written_timestamp_seconds",
    }  # fmt: skip
    frozen = plan(failed, Policy(keep=1, max_age=1.0), now=0.0, free=0)
    shown = metrics.values(metrics.Facts(CLUSTER, failed, frozen, 1, 2.0, None))
    assert (shown["expiry_frozen"], shown["missing_bytes"]) == (1, 0) and "next_expiry_timestamp_seconds" not in shown
    future = [Item("a", 1, "ok", 10, 100.0, 100.0)]
    assert metrics.values(metrics.Facts(CLUSTER, future, None, 1, 2.0, None, 100.0))["last_success_age_seconds"] == 0.0
