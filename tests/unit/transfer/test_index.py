# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The index is only a cache: with it, without it and with a wrong one the catalogue says the same."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Callable

import pytest
from many_backups import Filler, fill_store

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import catalogue, ledger, manifest, rotation
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.notes import Saying
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import utc_seconds
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError, Unreadable
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _store
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._info import info
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._keeping import (
    keep,
    least_recent_read,
    say,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore, LedgerFile


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    made = Filler(tmp_path, 4)
    for verdict in ("ok", "failed", "", "ok"):
        made.publish(verdict)
    return made.close()


def everything(filler: Filler) -> dict[str, Any]:
    """What is said of the store, but for the moment at which it was looked at."""
    said = info(str(filler.path.parent), "", "")
    for site in said["sites"]:
        assert site.pop("looked_at")
    return said


def indexed(filler: Filler) -> Path:
    ClusterStore.require(str(filler.path.parent)).refresh_index()
    return filler.path / "index.json"


def test_with_an_index_the_same_is_said_and_nothing_is_checked_twice(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = everything(filler)
    before = indexed(filler).read_bytes()
    strict: list[str] = []
    real = manifest.parse
    monkeypatch.setattr(_store.manifests, "parse", lambda *a, **named: strict.append("") or real(*a, **named))
    assert everything(filler) == without and strict == []
    filler.publish("ok")
    filler.close()
    assert len(everything(filler)["backups"]) == 5 and len(strict) == 1
    assert indexed(filler).read_bytes() != before
    strict.clear()
    assert everything(filler)["backups"][4]["verdict"] == "ok" and strict == []


def test_f23_one_flipped_bit_in_a_manifest_or_the_ledger_is_seen_in_spite_of_the_index(filler: Filler) -> None:
    indexed(filler)
    path = filler.backups / filler.ids[0] / "manifest.json"
    data = bytearray(path.read_bytes())
    data[data.index(b"5.4.2031")] ^= 1
    path.write_bytes(data)
    assert everything(filler)["backups"][0]["reasons"][0]["code"] == "CHECKSUM"
    book = filler.path / "ledger.jsonl"
    data = bytearray(book.read_bytes())
    data[data.index(b"5.4.2031")] ^= 1
    book.write_bytes(data)
    (problem,) = ClusterStore.require(str(filler.path.parent)).ledger.chain().problems
    assert problem.code == "CHAIN"


def test_a_ledger_that_lost_its_end_or_grew_a_torn_line(filler: Filler) -> None:
    indexed(filler)
    book = filler.path / "ledger.jsonl"
    whole = book.read_bytes()
    book.write_bytes(whole + b'{"torn')
    chain = ClusterStore.require(str(filler.path.parent)).ledger.chain()
    assert (len(chain.events), chain.torn, chain.problems) == (7, 6, ())
    book.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert len(ClusterStore.require(str(filler.path.parent)).ledger.chain().events) == 3


def resealed(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def harm(data: bytes) -> bytes:
        value = json.loads(data)
        change(value)
        value.pop("checksum")
        value["checksum"] = catalogue.digest(value)
        return json.dumps(value).encode()

    return harm


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: b"",
        lambda data: data[:-30],
        lambda data: b"{}",
        lambda data: data.replace(b'"ledger_bytes": ', b'"ledger_bytes": 1'),
        resealed(lambda value: value.update(rules=1)),
        resealed(lambda value: value.update(rules=True)),
        resealed(lambda value: value.pop("manifests")),
        resealed(lambda value: value.update(ledger_bytes=10**9)),
        resealed(lambda value: value.update(ledger_bytes=-1)),
        resealed(lambda value: value.update(manifests={})),
    ],
)
def test_a_bad_index_changes_nothing(filler: Filler, harm: Callable[[bytes], bytes]) -> None:
    without = everything(filler)
    path = indexed(filler)
    path.write_bytes(harm(path.read_bytes()))
    assert everything(filler) == without
    assert len(ClusterStore.require(str(filler.path.parent)).ledger.chain().events) == 7


def test_a_list_says_less_than_a_description(tmp_path: Path) -> None:
    fill_store(tmp_path, 3)
    full = info(str(tmp_path), "", "")
    brief = info(str(tmp_path), "", "", details=False)
    assert brief["table"] == full["table"] and [item["id"] for item in brief["backups"]]
    for short, long in zip(brief["backups"], full["backups"]):
        assert {name: long[name] for name in short if name != "pairs"} == {
            name: value for name, value in short.items() if name != "pairs"
        }
        assert "files" in long and "files" not in short
        assert [(pair["node"], pair["kind"]) for pair in long["pairs"]] == [
            (pair["node"], pair["kind"]) for pair in short["pairs"]
        ]


def test_the_catalogue_says_what_it_knows_of_each(filler: Filler) -> None:
    forged = filler.backups / filler.ids[3] / "manifest.json"
    value = json.loads(forged.read_text())
    value.pop("checksum")
    value["files"][0]["sha256"] = "ab" * 32
    value["digest"] = manifest.tree_digest([manifest.FileEntry(**value["files"][0])])
    forged.write_text(json.dumps({**value, "checksum": catalogue.digest(value)}))
    newest = filler.publish("ok")
    listed = {item["id"]: item for item in everything(filler)["backups"]}
    assert [listed[name]["verdict"] for name in filler.ids] == ["ok", "failed", "unverified", "failed", "unverified"]
    assert listed[filler.ids[0]]["verified_at"] and listed[filler.ids[2]]["verified_at"] is None
    assert [reason["code"] for reason in listed[filler.ids[3]]["reasons"]] == ["TAMPERED"]
    assert listed[newest]["reasons"] == [] and listed[newest]["published"] is True


def test_a_saying_is_written_once_and_only_when_it_is_news(filler: Filler) -> None:
    store, name = ClusterStore.require(str(filler.path.parent)), filler.ids[0]
    path = filler.backups / name / "notes.json"
    said = Saying("j.doe", "2026-11-22T00:00:00Z", "audit")
    before, after = say(store, name, "pinned", said, False)
    assert (before.pin, after.pin) == (None, said) and not path.exists()
    say(store, name, "pinned", said, True)
    written = path.stat().st_mtime_ns
    before, after = say(store, name, "pinned", Saying("j.doe", "2026-11-23T00:00:00Z", "audit"), True)
    assert before == after and path.stat().st_mtime_ns == written
    assert everything(filler)["backups"][0]["pin"]["who"] == "j.doe"


def test_since_when_everything_was_read(filler: Filler) -> None:
    store = ClusterStore.require(str(filler.path.parent))

    def since() -> float | None:
        folded = ledger.fold(store.ledger.chain().events)
        return least_recent_read(store, keep(store, folded, store.entries()))

    assert since() is None
    for index, name in enumerate(filler.ids):
        reads = rotation.dump_reads(name, {"backup.bin": f"2026-11-2{index}T00:00:00Z"})
        (filler.backups / name / "reads.json").write_bytes(reads)
    assert since() == utc_seconds("2026-11-20T00:00:00Z")
    (filler.backups / filler.ids[0] / "manifest.json").unlink()
    assert since() == utc_seconds("2026-11-21T00:00:00Z")
    (filler.backups / filler.ids[2] / "reads.json").unlink()
    assert since() is None


@pytest.mark.parametrize("when", [1, 2])
def test_an_index_made_while_an_event_is_written(filler: Filler, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """Another process is in the middle of an append at the first or the second of the two reads of accepted()."""
    filler.publish()
    filler.close()
    path = filler.path / "ledger.jsonl"
    store = ClusterStore.require(str(filler.path.parent))
    whole = path.read_bytes()
    line = ledger.make(
        store.ledger.chain().head,
        time="2026-11-22T00:00:00Z",
        run_id="x",
        kind="accepted",
        subject="c",
        data={"fingerprint": "f"},
    ).line()
    seen = []
    real = _store.read_bytes

    def reading(name: str) -> bytes:
        if name == str(path):
            seen.append(name)
            path.write_bytes(whole + (line[:100] if len(seen) == when else line if len(seen) > when else b""))
        return real(name)

    monkeypatch.setattr(_store, "read_bytes", reading)
    store.refresh_index()
    monkeypatch.undo()
    path.write_bytes(whole + line)  # the other process ended its write
    assert len(ClusterStore.require(str(filler.path.parent)).ledger.trusted().events) == whole.count(b"\n") + 1


# -- what one process knows of the ledger ----------------------------------------------------------------------------
def append(book: LedgerFile, subject: str) -> ledger.Event:
    event, new = book.append(run_id="r", kind="joined", subject=subject, data={"host_id": subject})
    assert new
    return event


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the lines that were checked."""
    numbers: list[int] = []
    real = ledger._event

    def count(line: bytes, number: int, previous: str) -> ledger.Event:
        numbers.append(number)
        return real(line, number, previous)

    monkeypatch.setattr(ledger, "_event", count)
    return numbers


def test_no_line_is_checked_twice_however_many_are_appended(tmp_path: Path, checked: list[int]) -> None:
    book = LedgerFile(str(tmp_path / "ledger.jsonl"))
    for number in range(30):
        append(book, f"n{number}")
        assert book.length() == number + 1
    assert checked == []
    other = LedgerFile(book.path)
    assert append(other, "theirs").sequence == 31 and checked == [*range(1, 31)]
    assert append(book, "mine").previous == book.chain().events[-2].hash and checked == [*range(1, 31), 31]
    whole = (tmp_path / "ledger.jsonl").read_bytes()
    assert book.chain() == ledger.read(whole)
    assert book.accepted() == (len(whole), hashlib.sha256(whole).hexdigest())


def later(path: Path) -> None:
    """Return when a write would leave another time: the kernel's clock of files goes in steps."""
    probe = path.with_name("probe")
    while True:
        probe.write_bytes(b"x")
        if probe.stat().st_ctime_ns != path.stat().st_ctime_ns:
            return


def flip(data: bytes) -> bytes:
    return data.replace(b'"n1"', b'"nX"', 1)


@pytest.mark.parametrize(
    ("harm", "events", "codes"),
    [
        (flip, 1, ["CHAIN"]),
        (lambda data: flip(data) + b'{"torn', 1, ["CHAIN"]),
        (lambda data: b"\n".join(data.split(b"\n")[:2]) + b"\n", 2, []),
        (lambda data: b"".join(data.splitlines(True)[1:]), 0, ["CHAIN"]),
        (lambda data: data + b"{}\n", 3, ["MISSING_KEY"]),
        (lambda data: data + b'{"torn', 3, []),
        (lambda data: b"", 0, []),
    ],
)
def test_f25_what_happens_to_the_ledger_behind_the_back_of_a_process_is_seen(
    tmp_path: Path, harm: Callable[[bytes], bytes], events: int, codes: list[str]
) -> None:
    path = tmp_path / "ledger.jsonl"
    book = LedgerFile(str(path))
    for number in range(3):
        append(book, f"n{number}")
    later(path)
    with open(path, "r+b") as file:
        data = file.read()
        file.seek(0)
        file.truncate()
        file.write(harm(data))
    chain = book.chain()
    assert (len(chain.events), [problem.code for problem in chain.problems][: len(codes)]) == (events, codes)
    assert chain == ledger.read(harm(data))
    assert book.length() == harm(data).count(b"\n")
    if codes:
        assert book.accepted() == (0, "")
        with pytest.raises(Unreadable):
            append(book, "n9")
    else:
        assert append(book, "n9").sequence == events + 1
        assert book.chain() == ledger.read(path.read_bytes())


def test_f08_a_torn_line_that_another_process_replaces_by_one_of_its_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a file system whose clock goes in steps so long that both were written in one."""
    path = tmp_path / "ledger.jsonl"
    book, other = LedgerFile(str(path)), LedgerFile(str(path))
    append(book, "n0")
    before = path.read_bytes()
    length = len(append(other, "n1").line())
    path.write_bytes(before + b"x" * length)
    real = _store._state
    monkeypatch.setattr(_store, "_state", lambda descriptor: real(descriptor)[:3])
    assert len(book.chain().events) == 1 and book.chain().torn == length
    append(other, "n2")
    assert path.stat().st_size == len(before) + length
    assert append(book, "n3").sequence == 3
    assert [event.subject for event in LedgerFile(str(path)).chain().events] == ["n0", "n2", "n3"]


def test_f12_an_event_that_was_taken_back_is_nobodys_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process read it before it was, and one of its length came within one step of the clock."""
    path = tmp_path / "ledger.jsonl"
    writer, reader = LedgerFile(str(path)), LedgerFile(str(path))
    append(writer, "n0")
    real, state = os.fsync, _store._state
    monkeypatch.setattr(_store, "_state", lambda descriptor: state(descriptor)[:3])

    def full(_descriptor: int) -> None:
        assert len(reader.chain().events) == 2
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DsmError):
        append(writer, "n1")
    monkeypatch.setattr(os, "fsync", real)
    append(writer, "n2")
    assert append(reader, "n3").sequence == 3
    chain = LedgerFile(str(path)).chain()
    assert chain.problems == () and [event.subject for event in chain.events] == ["n0", "n2", "n3"]
    with open(path, "r+b") as file:
        file.truncate(10)
    monkeypatch.setattr(_store, "_state", lambda _descriptor: (1,))
    reader.chain()
    path.write_bytes(b"")
    assert append(reader, "n4").sequence == 1


def test_another_ledger_in_its_place_and_none(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    book, other = LedgerFile(str(path)), LedgerFile(str(tmp_path / "other.jsonl"))
    append(book, "n0")
    append(other, "m0")
    os.replace(other.path, path)
    assert [event.subject for event in book.chain().events] == ["m0"]
    path.unlink()
    assert book.chain().events == () and book.length() == 0 and book.accepted() == (0, "")
    assert append(book, "n1").sequence == 1
    path.unlink()
    path.mkdir()
    with pytest.raises(Unreadable) as caught:
        book.chain()
    assert caught.value.code == "UNREADABLE"


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, "STORE_FULL"), (errno.EIO, "STORE_UNWRITABLE")])
def test_f12_an_event_that_had_no_room_never_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    book = LedgerFile(str(tmp_path / "ledger.jsonl"))
    append(book, "n0")
    real = os.fsync

    def full(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DsmError) as caught:
        append(book, "n1")
    assert caught.value.code == code
    monkeypatch.setattr(os, "fsync", real)
    assert len(book.chain().events) == 1 == len(LedgerFile(book.path).chain().events)
    assert append(book, "n2").sequence == 2
