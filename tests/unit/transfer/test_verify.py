# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification fails closed: every way in which a stored backup can be wrong, and rotation that reads everything."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import io
import os
import random
import re
import shutil
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from many_backups import FINGERPRINT, Filler, golden, resealed

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import cron, manifest, rotation
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import Policy
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _metrics, _stage, _structure, _verify
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._info import info
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._keeping import read_reads
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._prune import PruneRequest, prune
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore, LedgerFile
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._verify import (
    VerifyRequest,
    VerifyResult,
    refuse_failed,
    table,
    verify,
)


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    return Filler(tmp_path, 8)


def store_of(filler: Filler) -> ClusterStore:
    return ClusterStore.require(str(filler.path.parent))


def run(filler: Filler, **request: Any) -> VerifyResult:
    return verify(store_of(filler), VerifyRequest(**{"run_id": "verify-1", **request}))


def codes(result: VerifyResult) -> list[list[str]]:
    return [sorted({reason.code for reason in verdict.reasons}) for verdict in result.verdicts]


def doubts(result: VerifyResult) -> list[str]:
    return [reason.code for reason in result.reasons]


def verdict_of(filler: Filler, index: int = -1) -> str:
    return str(info(str(filler.path.parent), "", "")["backups"][index]["verdict"])


def archive(size: int = 20_000) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as packed:
        for number in range(3):
            member = tarfile.TarInfo(f"dsm/nb-{number}-big-Data.db")
            member.size = size
            packed.addfile(member, io.BytesIO(random.Random(number).randbytes(size)))
    return out.getvalue()


def test_what_is_right_is_ok_and_recorded(filler: Filler) -> None:
    filler.publish("", files=(("backup.tar.gz", archive()),))
    filler.close()
    assert verdict_of(filler) == "unverified"
    (predicted,) = run(filler, record=False).verdicts
    assert verdict_of(filler) == "unverified" and read_reads(store_of(filler), filler.ids[0]) == {}
    (verdict,) = run(filler).verdicts
    assert (verdict.verdict, verdict.structure, verdict.files, verdict.partial) == ("ok", "archive", 1, False)
    assert predicted.verdict == "ok" and verdict.bytes == len(archive())
    assert verdict_of(filler) == "ok"
    assert list(read_reads(store_of(filler), filler.ids[0])) == ["backup.tar.gz"]
    assert info(str(filler.path.parent), "", "")["backups"][0]["last_full_read"]


def recorded(filler: Filler) -> list[tuple[str, dict[str, Any]]]:
    """What verifications wrote into the ledger, after what the filler did."""
    chain = store_of(filler).ledger.trusted()
    return [(one.subject, dict(one.data)) for one in chain.events if one.kind == "verified" and one.run_id != "fill"]


def test_the_evidence(filler: Filler) -> None:
    good = filler.publish("", files=(("a", b"12345"), ("b", b"678")), sealed=())
    bad = filler.publish()
    filler.close()
    kept = (filler.backups / bad / "manifest.json").read_bytes()
    (filler.backups / bad / "manifest.json").write_bytes(b"")
    result = run(filler)
    published = store_of(filler).published(good)
    assert recorded(filler) == [
        (good, {"verdict": "ok", "digest": published.digest, "bytes": 8, "codes": []}),
        (bad, {"verdict": "failed", "digest": "", "bytes": 0, "codes": ["EMPTY"]}),
    ]
    first, second = (verdict.as_dict() for verdict in result.verdicts)
    assert first.pop("seconds") < 60 and second.pop("seconds") == 0.0
    assert first == {
        "id": good,
        "verdict": "ok",
        "reasons": [],
        "bytes": 8,
        "structure": "unknown",
        "provenance": "by_source",
        "digest": published.digest,
        "published_at": published.published_at,
        "partial": False,
        "files": 2,
    }
    message = second["reasons"][0].pop("message")
    assert bad in message and second == {
        "id": bad,
        "verdict": "failed",
        "reasons": [{"code": "EMPTY"}],
        "bytes": 0,
        "structure": "unknown",
        "provenance": "unknown",
        "digest": "",
        "published_at": None,
        "partial": False,
        "files": 0,
    }
    (filler.backups / bad / "manifest.json").write_bytes(kept)
    assert verdict_of(filler) == "failed"
    assert (filler.path / "index.json").exists() and not (filler.path / "rotation.json").exists()


def test_a_slice_without_a_file_says_nothing(filler: Filler) -> None:
    name = filler.publish("", sealed=())
    filler.close()
    mine = rotation.slice_of(name, "backup.bin", 3)
    for turn in range(1, 4):
        run(filler, turn=turn, turns=3, run_id=str(turn))
    assert [subject for subject, data in recorded(filler)] == [name] and "partial" not in recorded(filler)[0][1]
    assert mine in (1, 2, 3)
    # So many that they are never all in the same slice, whatever the backup's name.
    two = filler.publish("", files=tuple((f"x{number}", b"1") for number in range(40)), sealed=())
    filler.close()
    turn = rotation.slice_of(two, "x1", 3)
    run(filler, turn=turn, turns=3, run_id="again")
    assert [data["partial"] for subject, data in recorded(filler) if subject == two] == [True]


def test_without_evidence_nothing_is_written(filler: Filler) -> None:
    filler.publish()
    filler.close()
    before = sorted(filler.path.rglob("*"))
    run(filler, record=False, turns=2)
    assert sorted(filler.path.rglob("*")) == before and recorded(filler) == []


# -- the bits ----------------------------------------------------------------------------------------------------------


def test_f10_every_flipped_bit_is_found(filler: Filler) -> None:
    name = filler.publish(files=(("a/backup.bin", bytes(64)), ("b", b"x")), sealed=())
    filler.close()
    path = filler.backups / name / "data" / "a" / "backup.bin"
    for position in range(0, 64, 7):
        flipped = bytearray(64)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        result = run(filler)
        assert codes(result) == [["CORRUPT"]] and "a/backup.bin" in result.verdicts[0].reasons[0].message
    assert verdict_of(filler) == "failed"
    path.write_bytes(bytes(64))
    assert codes(run(filler)) == [[]] and verdict_of(filler) == "ok"


@pytest.mark.parametrize("part", range(16))
def test_f02_truncated_at_every_sixteenth(filler: Filler, part: int) -> None:
    whole = archive()
    name = filler.publish(files=(("backup.tar.gz", whole),))
    filler.close()
    (filler.backups / name / "data" / "backup.tar.gz").write_bytes(whole[: len(whole) * part // 16])
    result = run(filler)
    assert codes(result) == [["CORRUPT", "WRONG_SIZE"]] and verdict_of(filler) == "failed"
    with pytest.raises(DsmError) as caught:
        refuse_failed(result, ["WRONG_SIZE", "CORRUPT"], False)
    assert {reason.code for reason in caught.value.reasons} == {"CORRUPT", "WRONG_SIZE"}


@pytest.mark.parametrize("part", range(1, 16))
def test_f02_a_stream_that_was_cut_before_it_was_hashed(filler: Filler, part: int) -> None:
    """All sums fit, because they were made of the cut file: its structure tells."""
    whole = archive()
    filler.publish(files=(("backup.tar.gz", whole[: len(whole) * part // 16]),))
    filler.close()
    assert codes(run(filler)) == [["TRUNCATED"]]


def test_f02_a_tar_that_was_cut_between_two_members(filler: Filler) -> None:
    plain = gzip.decompress(archive(512))
    filler.publish(files=(("backup.tar", plain[:2048]),))
    filler.publish(files=(("backup.tar", plain),))
    filler.close()
    assert codes(run(filler)) == [["TRUNCATED"], []]


def test_f02_a_cut_archive_is_found_in_the_slice_that_reads_it(filler: Filler) -> None:
    cut = archive()[:-100]
    name = filler.publish("", files=(("a.tar.gz", cut), ("b", b"1"), ("c", b"2"), ("d", b"3")), sealed=())
    filler.close()
    mine = rotation.slice_of(name, "a.tar.gz", 2)
    for turn in (1, 2):
        assert codes(run(filler, turn=turn, turns=2)) == [["TRUNCATED"] if turn == mine else []]


def test_files_that_are_missing_added_or_no_files(filler: Filler) -> None:
    for _index in range(4):
        filler.publish(files=(("data.db", b"1"), ("more.db", b"2")))
    filler.close()
    data = [filler.backups / name / "data" for name in filler.ids]
    (data[0] / "more.db").unlink()
    (data[1] / "third.db").write_bytes(b"3")
    (data[2] / "more.db").unlink()
    (data[2] / "more.db").symlink_to("data.db")
    shutil.rmtree(data[3])
    assert codes(run(filler)) == [["MISSING_FILE"], ["EXTRA_FILE"], ["NOT_A_FILE"], ["UNREADABLE"]]


def test_a_snapshot_lacks_a_component(filler: Filler) -> None:
    toc = b"Data.db\nTOC.txt\nDigest.crc32\n"
    good = (("n1/t/nb-1-big-Data.db", b"rows"), ("n1/t/nb-1-big-TOC.txt", toc), ("n1/t/nb-1-big-Digest.crc32", b"1"))
    filler.publish(files=good[:2])
    filler.publish(files=good)
    filler.close()
    assert codes(run(filler)) == [["COMPONENT_MISSING"], ["TRUNCATED"]]


def test_a_zip_that_nobody_here_can_open_is_ok_and_stops_nothing(filler: Filler) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as packed:
        packed.writestr("dsm", b"rows")
    locked = bytearray(out.getvalue())
    locked[locked.index(b"PK\1\2") + 8] |= 1
    for content in (bytes(locked), bytes(locked[:-30]), archive()):
        filler.publish(files=(("old.zip", content),))
    filler.close()
    result = run(filler)
    assert codes(result) == [[], ["TRUNCATED"], []] and result.verdicts[0].structure == "archive"


@pytest.mark.parametrize("turns", [1, 3])
def test_f28_a_disk_that_fails_while_the_structure_is_read(
    filler: Filler, monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """Everything was read once and was right, so nothing is known to be cut."""
    bad = filler.publish("", files=tuple((f"{number}.tar.gz", archive()) for number in range(8)))
    good = filler.publish("", files=(("backup.tar.gz", archive()),))
    filler.close()
    real = _structure._open

    def opened(path: str, tick: Callable[[], None]) -> Any:
        if bad in path:
            raise _structure._unreadable(path, OSError(errno.EIO, os.strerror(errno.EIO)))
        return real(path, tick)

    monkeypatch.setattr(_structure, "_open", opened)
    result = run(filler, turn=rotation.slice_of(bad, "0.tar.gz", turns), turns=turns)
    assert codes(result) == [["UNREADABLE"], []] and [one.id for one in result.verdicts] == [bad, good]
    assert result.verdicts[0].reasons[0].message.endswith(".tar.gz: Input/output error")


# -- documents ---------------------------------------------------------------------------------------------------------


def test_f24_every_bad_manifest_fails(filler: Filler) -> None:
    for _index in range(6):
        filler.publish()
    filler.close()
    paths = [filler.backups / name / "manifest.json" for name in filler.ids]
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    resealed(paths[2], schema=2)
    resealed(paths[3], fingerprint="ab" * 32)
    paths[4].write_bytes(paths[5].read_bytes())
    paths[5].unlink()
    paths[5].mkdir()
    result = run(filler)
    assert codes(result) == [["EMPTY"], ["UNREADABLE"], ["NEWER_SCHEMA"], ["FOREIGN"], ["FOREIGN"], ["UNREADABLE"]]
    assert {verdict.verdict for verdict in result.verdicts} == {"failed"}
    assert "NO_BACKUP" in doubts(result)


def test_what_is_no_directory_of_a_backup_fails_and_stops_nothing(filler: Filler) -> None:
    first = filler.publish("", sealed=())
    stray = f"00000002-{first[9:]}"
    (filler.backups / stray).write_bytes(b"")
    os.symlink("/nowhere", filler.backups / f"00000003-{first[9:]}")
    filler.ids += [stray, "3"]
    filler.publish("", sealed=())
    filler.close()
    result = run(filler)
    assert codes(result) == [[], ["UNREADABLE"], []] and "Not a directory" in result.verdicts[1].reasons[0].message
    assert codes(run(filler, ids=[stray])) == [["UNREADABLE"]]
    assert [one["state"] for one in info(str(filler.path.parent), "", "")["backups"]] == [
        "published", "failed", "incomplete", "published",
    ]  # fmt: skip


def test_a_file_of_before_the_calendar_is_late_like_any_other(filler: Filler) -> None:
    entry = manifest.FileEntry("backup.bin", 10, -(10**11), hashlib.sha256(b"0123456789").hexdigest())
    filler.publish("", sealed=(), recorded_files=(entry,))
    filler.close()
    result = run(filler, schedule=cron.parse("0 * * * *"))
    assert codes(result) == [[]] and doubts(result) == ["LATE"]
    assert "0001-01-01T00:00:00Z" in result.reasons[0].message


def test_f25_data_and_manifest_with_recomputed_sums_contradict_the_ledger(filler: Filler) -> None:
    name = filler.publish()
    filler.close()
    forged = b"9876543210"
    (filler.backups / name / "data" / "backup.bin").write_bytes(forged)
    path = filler.backups / name / "manifest.json"
    entry = manifest.FileEntry("backup.bin", 10, 1, hashlib.sha256(forged).hexdigest())
    resealed(path, files=[entry.__dict__], digest=manifest.tree_digest([entry]))
    assert codes(run(filler)) == [["TAMPERED"]] and verdict_of(filler) == "failed"


FORGERIES: dict[str, Any] = {
    "sealed_for": [],
    "snapshot_started": "2026-11-21T01:00:01Z",
    "published_at": "2001-01-01T00:00:00Z",
    "provenance": "proved_by_restore",
    "version": "5.4.2032",
    "accepted": ["SHRUNK"],
    "ledger": {"sequence": 0, "hash": "1" * 64},
}


@pytest.mark.parametrize("fact", FORGERIES)
def test_f25_a_manifest_that_says_something_else_of_the_same_files(filler: Filler, fact: str) -> None:
    name, other = filler.publish(sealed=(golden(),)), filler.publish(sealed=(golden(),))
    filler.close()
    resealed(filler.backups / name / "manifest.json", **{fact: FORGERIES[fact]})
    store_of(filler).refresh_index()
    assert codes(run(filler)) == [["TAMPERED"], []] and verdict_of(filler, 0) == "failed"
    resealed(filler.backups / other / "manifest.json", **{fact: FORGERIES[fact]})
    with pytest.raises(DsmError):
        _stage.newest(store_of(filler))


def test_f25_what_an_older_release_recorded_is_compared_fact_by_fact(filler: Filler) -> None:
    for _index in range(2):
        filler.publish("", sealed=(golden(),))
    filler.forget("manifest")
    filler.close()
    assert codes(run(filler)) == [[], []]
    resealed(filler.backups / filler.ids[0] / "manifest.json", sealed_for=[], version="5.4.2032")
    (verdict, _right) = run(filler).verdicts
    assert verdict.reasons[0].message == (
        f"{filler.ids[0]} has something else in its manifest than in the ledger (sealed_for, version): one was changed"
    )


def test_what_the_ledger_does_not_know_or_misses_is_said(filler: Filler) -> None:
    for _index in range(3):
        filler.publish()
    filler.close()
    filler.publish("")
    shutil.rmtree(filler.backups / filler.ids[0])
    (filler.backups / filler.ids[1] / "manifest.json").unlink()
    result = run(filler)
    assert doubts(result) == ["LOST", "UNRECORDED"]
    assert filler.ids[0] in result.reasons[0].message and filler.ids[1] in result.reasons[0].message
    assert filler.ids[3] in result.reasons[1].message
    assert not any(reason.hard for reason in result.reasons)
    assert [one.code for one in refuse_failed(result, ["LOST", "UNRECORDED"], False)] == ["LOST", "UNRECORDED"]
    with pytest.raises(DsmError):
        refuse_failed(result, ["LOST"], False)


def test_an_empty_store_fails(filler: Filler) -> None:
    result = run(filler)
    assert doubts(result) == ["NO_BACKUP"] and result.reasons[0].hard
    with pytest.raises(DsmError) as caught:
        refuse_failed(result, ["NO_BACKUP"], False)
    assert caught.value.code == "NO_BACKUP" and caught.value.message == "Verification failed: no backup was read."
    assert refuse_failed(result, [], True) == []


def test_good_backups_are_called_good_where_something_else_is_wrong(filler: Filler) -> None:
    filler.publish()
    filler.close()
    with pytest.raises(DsmError) as caught:
        refuse_failed(run(filler, require=["config"]), [], False)
    assert caught.value.message == "Verification failed, although what was read of 1 backups is good."


def test_a_ledger_that_cannot_be_trusted_is_said_and_nothing_else_is_asked_of_it(filler: Filler) -> None:
    filler.publish()
    head = filler.head
    assert head is not None
    filler.publish(ledger={"sequence": head.sequence, "hash": head.hash})
    filler.close()
    path = filler.path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    shutil.rmtree(filler.backups / filler.ids[0])
    path.write_bytes(lines[0])
    rolled = run(filler)
    assert doubts(rolled) == ["LEDGER_ROLLED_BACK"] and not rolled.reasons[0].hard
    path.write_bytes(lines[0].replace(b"5.4", b"5.5") + b"".join(lines[1:]))
    broken = run(filler)
    assert doubts(broken) == ["LEDGER_BROKEN"] and not broken.reasons[0].hard
    assert path.read_bytes().startswith(lines[0].replace(b"5.4", b"5.5")) and len(path.read_bytes().splitlines()) == 4


@pytest.mark.parametrize(("count", "said"), [(1, ""), (5, ""), (6, " and 1 more"), (7, " and 2 more")])
def test_many_names_are_cut_short(filler: Filler, count: int, said: str) -> None:
    for _index in range(count + 1):
        filler.publish()
    filler.close()
    for name in filler.ids[:count]:
        shutil.rmtree(filler.backups / name)
    (lost,) = run(filler, record=False).reasons
    names = ", ".join(filler.ids[: min(count, 5)])
    assert lost.message == f"{names}{said} was published and never pruned, and is not here any more."


def test_a_wreck_with_a_bad_manifest_is_failed_and_not_lost(filler: Filler) -> None:
    filler.publish()
    filler.publish()
    filler.close()
    (filler.backups / filler.ids[0] / "manifest.json").write_bytes(b"?")
    result = run(filler)
    assert doubts(result) == [] and [one.verdict for one in result.verdicts] == ["failed", "ok"]


def test_what_is_wrong_stands_out_of_the_table(filler: Filler) -> None:
    assert table([]) == ["There was nothing to read."]
    ids = [filler.publish() for _ in range(9)]
    filler.close()
    data = next((filler.backups / ids[4] / "data").iterdir())
    data.write_bytes(b"X" * data.stat().st_size)
    lines = table(run(filler).verdicts)
    assert [line.split("  ")[0] for line in lines] == [
        "BACKUP",
        f"{ids[0]} to {ids[3]} (4)",
        ids[4],
        f"{ids[5]} to {ids[8]} (4)",
    ]
    assert lines[0].split("  ")[0] == "BACKUP" and lines[0].split() == [
        "BACKUP",
        "BYTES",
        "READ",
        "READ",
        "VERDICT",
        "WHY",
    ]
    assert " whole " in lines[1] and "failed   " in lines[2] and "its SHA-256 differs" in lines[2]
    for name in ids:
        data = next((filler.backups / name / "data").iterdir())
        data.write_bytes(b"X" * data.stat().st_size)
    assert [line.split("  ")[0] for line in table(run(filler).verdicts)[1:]] == ids, "each that failed has its line"
    another = rotation.slice_of(ids[0], data.name, 3) % 3 + 1
    lines = table(run(filler, ids=ids[:1], turn=another, turns=3).verdicts)
    assert " nothing " in lines[1] and " ok" in lines[1]


def test_what_is_wrong_is_counted(filler: Filler) -> None:
    for content in (b"1", b"2", b"3"):
        filler.publish(files=(("a", content),))
    filler.close()
    (filler.backups / filler.ids[0] / "data" / "a").write_bytes(b"?")
    (filler.backups / filler.ids[1] / "data" / "a").unlink()
    result = run(filler)
    with pytest.raises(DsmError) as caught:
        refuse_failed(result, [], False)
    assert caught.value.message == "Verification failed (2 of 3 backups)." and caught.value.code == "VERIFY_FAILED"
    assert [one["verdict"] for one in caught.value.details["verdicts"]] == ["failed", "failed", "ok"]
    result.verdicts.pop(1)
    with pytest.raises(DsmError) as caught:
        refuse_failed(result, [], False)
    assert caught.value.code == "CORRUPT"


def test_a_file_that_is_not_right_was_not_read_in_full(filler: Filler) -> None:
    name = filler.publish(files=(("a", b"1"), ("b", b"2"), ("c", b"3")), sealed=())
    filler.close()
    data = filler.backups / name / "data"
    (data / "a").write_bytes(b"?")
    (data / "b").unlink()
    (data / "b").symlink_to("c")
    (verdict,) = run(filler).verdicts
    assert (verdict.files, verdict.bytes) == (2, 2)
    assert read_reads(store_of(filler), name) == {}


# -- the newest one ----------------------------------------------------------------------------------------------------


def test_f01_a_backup_that_is_due_and_did_not_come(filler: Filler) -> None:
    now = time.time()
    filler.publish(when=now - 7000)
    filler.close()
    hourly = cron.parse(f"{time.gmtime(now - 5000).tm_min} * * * *")
    assert doubts(run(filler, schedule=hourly, grace=1000.0)) == ["LATE"]
    assert doubts(run(filler, schedule=hourly, grace=6000.0)) == []
    assert doubts(run(filler, max_age=6900.0)) == ["STALE"]
    assert doubts(run(filler, max_age=7100.0)) == []


def test_a_much_smaller_one_is_noticed(filler: Filler) -> None:
    filler.publish(files=(("a", bytes(100)),))
    filler.publish(files=(("a", bytes(50)),))
    filler.close()
    assert doubts(run(filler, min_ratio=0.51)) == ["SHRUNK"]
    assert doubts(run(filler, min_ratio=0.5)) == [] and doubts(run(filler)) == []


def test_provenance(filler: Filler) -> None:
    filler.publish()
    filler.close()
    result = run(filler, provenance="by_template")
    assert doubts(result) == ["PROVENANCE"] and result.verdicts[0].provenance == "by_source"
    assert not result.reasons[0].hard
    filler.event("proved", "dr1", {"backup": filler.ids[0]}, time.time())
    filler.close()
    result = run(filler, provenance="by_template")
    assert doubts(result) == [] and result.verdicts[0].provenance == "proved_by_restore"
    filler.publish(provenance="by_template")
    filler.close()
    assert doubts(run(filler, provenance="by_template")) == []


# -- rotation ----------------------------------------------------------------------------------------------------------


def many_files(filler: Filler) -> None:
    for number in range(6):
        filler.publish(files=tuple((f"t{file}/Data.db", bytes([number, file])) for file in range(5)), sealed=())
    filler.close()


def test_f23_everything_is_read_within_t_runs_while_the_store_changes(filler: Filler) -> None:
    many_files(filler)
    at_first = {(name, f"t{file}/Data.db") for name in filler.ids for file in range(5)}
    read = 0
    for number in range(7):
        result = run(filler, turns=7)
        assert result.turn == number + 1
        read += sum(verdict.files for verdict in result.verdicts)
        filler.publish(sealed=())
        filler.close()
    store = store_of(filler)
    seen = {(name, path) for name in filler.ids for path in read_reads(store, name)}
    assert at_first <= seen and read < 30 + 7
    assert run(filler, turns=7).turn == 1
    assert run(filler, turns=3).turn == 1


def test_f23_a_flipped_byte_is_found_within_t_runs_and_half_a_look_does_not_excuse_it(filler: Filler) -> None:
    many_files(filler)
    name = filler.ids[2]
    (filler.backups / name / "data" / "t3" / "Data.db").write_bytes(b"!!")
    found = [turn for turn in range(1, 6) if any(run(filler, turn=turn, turns=5, run_id=str(turn)).verdicts[2].reasons)]
    assert found == [rotation.slice_of(name, "t3/Data.db", 5)]
    for turn in range(1, 6):
        if turn not in found:
            assert run(filler, turn=turn, turns=5, run_id=f"again {turn}").verdicts[2].verdict == "ok"
    assert verdict_of(filler, 2) == "failed"
    assert [verdict_of(filler, index) for index in (0, 1, 3, 4, 5)] == ["ok"] * 5


def test_half_a_look_verifies_nothing_that_was_not_verified_and_all_halves_do(filler: Filler) -> None:
    # So many that every slice has some, whatever the backup's name.
    filler.publish("", files=tuple((f"f{file}", b"1") for file in range(150)), sealed=())
    filler.close()
    seen = []
    for turn in (*range(1, 6), 1):
        result = run(filler, turn=turn, turns=5, run_id=str(turn))
        assert result.verdicts[0].partial
        seen.append(verdict_of(filler))
    assert seen == ["unverified"] * 4 + ["ok"] * 2
    assert info(str(filler.path.parent), "", "")["backups"][0]["last_full_read"]


def test_slices_of_another_rotation_do_not_add_up(filler: Filler) -> None:
    filler.publish("", files=tuple((f"f{file}", b"1") for file in range(150)), sealed=())
    filler.close()
    for turn, turns in ((1, 2), (1, 3), (2, 3), (2, 2)):
        run(filler, turn=turn, turns=turns, run_id=f"{turn}/{turns}")
        assert verdict_of(filler) == "unverified"
    run(filler, turn=1, turns=2, run_id="again")
    assert verdict_of(filler) == "ok"


def test_f23_a_copy_that_failed_is_good_again_when_all_its_slices_are(filler: Filler) -> None:
    name = filler.publish(files=tuple((f"f{file}", b"1") for file in range(150)), sealed=())
    filler.close()
    path = filler.backups / name / "data" / "f0"
    path.write_bytes(b"2")
    bad = rotation.slice_of(name, "f0", 2)
    good = 3 - bad
    for turn in (good, bad, good):
        run(filler, turn=turn, turns=2, run_id=f"damaged {turn}")
    assert verdict_of(filler) == "failed"
    path.write_bytes(b"1")
    run(filler, turn=bad, turns=2, run_id="mended")
    assert verdict_of(filler) == "ok", "both slices, after what failed"


def test_a_missing_file_is_noticed_in_every_slice(filler: Filler) -> None:
    many_files(filler)
    (filler.backups / filler.ids[0] / "data" / "t0" / "Data.db").unlink()
    for turn in range(1, 6):
        assert codes(run(filler, turn=turn, turns=5))[0] == ["MISSING_FILE"]


def test_a_cut_archive_is_noticed_in_its_slice(filler: Filler) -> None:
    cut = archive()[:-100]
    filler.publish(files=(("a.tar.gz", cut), ("b", b"1"), ("c", b"2"), ("d", b"3")))
    filler.close()
    found = [codes(run(filler, turn=turn, turns=3))[0] for turn in range(1, 4)]
    assert sorted(found) == [[], [], ["TRUNCATED"]]


def test_check_mode_takes_no_turn(filler: Filler) -> None:
    many_files(filler)
    assert [run(filler, turns=4, record=False).turn for _index in range(2)] == [1, 1]
    assert not (filler.path / "rotation.json").exists()
    (filler.path / "rotation.json").write_bytes(b"?")
    assert run(filler, turns=4).turn == 1 and run(filler, turns=4).turn == 2


def test_reads_that_are_not_understood_never_happened(filler: Filler) -> None:
    filler.publish()
    filler.close()
    run(filler)
    path = filler.backups / filler.ids[0] / "reads.json"
    assert info(str(filler.path.parent), "", "")["backups"][0]["last_full_read"]
    path.write_bytes(path.read_bytes()[:-9])
    assert info(str(filler.path.parent), "", "")["backups"][0]["last_full_read"] is None


# -- while others change the store ------------------------------------------------------------------------------------


def before_reading(monkeypatch: pytest.MonkeyPatch, name: str, act: Callable[[], object]) -> None:
    """Something happens after verify listed the store and before it comes to this backup."""
    real = ClusterStore.reading

    @contextlib.contextmanager
    def reading(self: ClusterStore, backup_id: str) -> Iterator[None]:
        if backup_id == name:
            monkeypatch.undo()
            act()
        with real(self, backup_id):
            yield

    monkeypatch.setattr(ClusterStore, "reading", reading)


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def pruned(filler: Filler, until: str = "") -> None:
    """Prune all but the newest; it is killed when it comes to a step."""

    def checkpoint(step: str) -> None:
        if step == until:
            raise Killed

    with contextlib.suppress(Killed):
        request = PruneRequest(Policy(keep=1, max_copies=1), need=0, run_id="prune-1", checkpoint=checkpoint)
        prune(store_of(filler), request, False)


def three(filler: Filler) -> list[str]:
    made = [filler.publish(sealed=()) for _index in range(3)]
    filler.close()
    return made


@pytest.mark.parametrize("until", ["unpublished", "data removed", "recorded", ""])
def test_f15_what_is_pruned_while_others_are_read_is_no_failure(
    filler: Filler, monkeypatch: pytest.MonkeyPatch, until: str
) -> None:
    ids = three(filler)
    before_reading(monkeypatch, ids[0], lambda: pruned(filler, until))
    result = run(filler)
    assert not (filler.backups / ids[0] / "manifest.json").exists(), "it was un-published when its turn came"
    # Killed right after it had un-published the first, prune left the second where it was.
    stayed = ids[1:] if until == "unpublished" else ids[2:]
    assert [(one.id, one.verdict) for one in result.verdicts] == [(name, "ok") for name in stayed]
    assert [subject for subject, _data in recorded(filler)] == stayed
    assert result.notes == [f"{name} was pruned before it could be read." for name in ids if name not in stayed]
    assert doubts(result) == [] and refuse_failed(result, [], False) == []
    assert result.sites[0]["copies"] == len(stayed)


def test_f15_the_last_remains_of_what_was_pruned_are_no_failure(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory is removed file by file, in any order: the manifest's other name may go first."""
    ids = three(filler)

    def half_removed() -> None:
        pruned(filler, "recorded")
        (filler.backups / ids[0] / "removed.json").unlink()

    before_reading(monkeypatch, ids[0], half_removed)
    result = run(filler)
    assert [(one.id, one.verdict) for one in result.verdicts] == [(ids[2], "ok")] and doubts(result) == []


def test_f15_what_was_named_and_is_pruned_meanwhile_is_missing(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = three(filler)
    before_reading(monkeypatch, ids[1], lambda: pruned(filler))
    result = run(filler, ids=ids[1:])
    assert codes(result) == [["NOT_PUBLISHED"], []] and result.notes == []
    assert [subject for subject, _data in recorded(filler)] == ids[2:]
    with pytest.raises(DsmError) as caught:
        refuse_failed(result, [], False)
    assert caught.value.code == "NOT_PUBLISHED"


@pytest.mark.parametrize("what", ["manifest.json", "data", "."])
def test_f23_what_is_gone_and_was_not_pruned_is_failed(
    filler: Filler, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    ids = three(filler)
    taken = filler.path.parent / "taken"
    before_reading(monkeypatch, ids[1], lambda: os.rename((filler.backups / ids[1] / what).resolve(), taken))
    result = run(filler)
    assert codes(result) == [[], ["UNREADABLE" if what == "data" else "NO_MANIFEST"], []] and result.notes == []
    assert [data["verdict"] for _subject, data in recorded(filler)] == ["ok", "failed", "ok"]


def test_f23_a_manifest_that_goes_bad_meanwhile_is_failed(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = three(filler)
    before_reading(monkeypatch, ids[1], lambda: (filler.backups / ids[1] / "manifest.json").write_bytes(b""))
    assert codes(run(filler)) == [[], ["EMPTY"], []]


def test_f23_a_wreck_that_is_pruned_meanwhile_was_one(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = three(filler)
    (filler.backups / ids[1] / "manifest.json").write_bytes(b"")
    before_reading(monkeypatch, ids[1], lambda: store_of(filler).unpublish(ids[1]))
    assert codes(run(filler)) == [[], ["EMPTY"], []]


def test_f15_the_newest_is_the_newest_that_is_left(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = three(filler)
    before_reading(monkeypatch, ids[2], lambda: store_of(filler).unpublish(ids[2]))
    result = run(filler, newest=True)
    assert [(one.id, one.verdict) for one in result.verdicts] == [(ids[1], "ok")]
    assert result.notes == [f"{ids[2]} was pruned before it could be read."]


def test_f23_nothing_left_to_read_is_no_success(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    name = filler.publish(sealed=())
    filler.close()
    before_reading(monkeypatch, name, lambda: store_of(filler).unpublish(name))
    result = run(filler)
    assert result.verdicts == [] and recorded(filler) == []
    with pytest.raises(DsmError) as caught:
        refuse_failed(result, ["NO_BACKUP"], False)
    assert caught.value.code == "NO_BACKUP" and caught.value.message == "Verification failed: no backup was read."


def test_f25_what_a_repair_brings_meanwhile_is_what_is_verified(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = three(filler)
    good = store_of(filler).published(ids[1])
    landed = filler.path / "repair" / ids[1]
    shutil.copytree(filler.backups / ids[1] / "data", landed / "data")
    forged = b"other bytes"
    (filler.backups / ids[1] / "data" / "backup.bin").write_bytes(forged)
    entry = manifest.FileEntry("backup.bin", len(forged), 1, hashlib.sha256(forged).hexdigest())
    bad = filler.backups / ids[1] / "manifest.json"
    resealed(bad, files=[entry.__dict__], digest=manifest.tree_digest([entry]))
    before_reading(monkeypatch, ids[1], lambda: store_of(filler).exchange(ids[1], good))
    result = run(filler)
    assert codes(result) == [[], [], []] and result.verdicts[1].digest == good.digest
    assert recorded(filler)[1][1]["digest"] == good.digest


def test_f15_what_is_pruned_while_the_store_is_listed_is_not_unknown(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store was listed, then the ledger is read, and prune was quick between the two."""
    ids = three(filler)
    real = LedgerFile.chain

    def chain(self: LedgerFile) -> Any:
        monkeypatch.undo()
        pruned(filler)
        return real(self)

    monkeypatch.setattr(LedgerFile, "chain", chain)
    result = run(filler)
    assert doubts(result) == [] and [one.id for one in result.verdicts] == ids[2:]


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_choosing(filler: Filler) -> None:
    for _index in range(3):
        filler.publish()
    filler.close()
    assert [one.id for one in run(filler).verdicts] == filler.ids
    assert [one.id for one in run(filler, newest=True).verdicts] == filler.ids[2:]
    result = run(filler, ids=[filler.ids[1], "nothing"])
    assert [one.id for one in result.verdicts] == [filler.ids[1], "nothing"]
    assert codes(result) == [[], ["NOT_PUBLISHED"]]


@contextlib.contextmanager
def held_by_somebody_else(filler: Filler) -> Iterator[None]:
    """Another process that lives has the lease."""
    until, done = os.pipe()
    hear, tell = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(done)
        with store_of(filler).lease("prune"):
            os.write(tell, b"!")
            os.read(until, 1)
        os._exit(0)
    os.read(hear, 1)
    try:
        yield
    finally:
        os.close(done)
        os.waitpid(child, 0)
        for descriptor in (until, hear, tell):
            os.close(descriptor)


def test_it_reads_nothing_that_prune_is_removing(filler: Filler) -> None:
    filler.publish()
    filler.publish()
    filler.close()
    store_of(filler).unpublish(filler.ids[0])
    result = run(filler)
    assert [one.id for one in result.verdicts] == filler.ids[1:]
    assert doubts(result) == ["LOST"], "nobody ends what was begun"
    assert "prune_backups" in result.reasons[0].remedy and "'pruned'" not in result.reasons[0].remedy
    with held_by_somebody_else(filler):
        assert doubts(run(filler)) == []
        shutil.rmtree(filler.backups / filler.ids[0])
        assert doubts(run(filler)) == ["LOST"], "a prune leaves the manifest under another name"


def test_what_is_pruned_while_verify_looks_around_is_not_lost(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    filler.publish()
    filler.publish()
    filler.close()
    judge = _verify._judge_store

    def meanwhile(*arguments: Any) -> None:
        shutil.rmtree(filler.backups / filler.ids[0])
        filler.event("pruned", filler.ids[0], {"codes": ["AGE"]}, time.time())
        filler.close()
        judge(*arguments)

    monkeypatch.setattr(_verify, "_judge_store", meanwhile)
    assert doubts(run(filler, newest=False)) == []


def test_the_other_cluster_is_another_store(tmp_path: Path, filler: Filler) -> None:
    """F16: a fingerprint that the store does not know is refused before anything is read."""
    filler.publish()
    filler.close()
    other = Filler(tmp_path, 1, fingerprint="ab" * 32)
    other.publish()
    other.close()
    assert ClusterStore.require(str(tmp_path), fingerprint=FINGERPRINT).identity.cluster_id == filler.cluster_id
    for wrong in ({}, {"fingerprint": "cd" * 32}, {"cluster_id": "ef" * 8}):
        with pytest.raises(DsmError) as caught:
            ClusterStore.require(str(tmp_path), **wrong)
        assert caught.value.code == "UNKNOWN_CLUSTER"
    os.rename(other.backups / other.ids[0], filler.backups / "00000002-20260101T000000Z")
    assert codes(run(_only(filler)))[1:] == [["FOREIGN"]]


def _only(filler: Filler) -> Filler:
    """The store without its other cluster."""
    for path in filler.path.parent.iterdir():
        if path != filler.path:
            shutil.rmtree(path)
    return filler


def test_two_verifications_at_once_do_not_call_a_good_backup_failed(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = filler.publish("", sealed=())
    filler.close()
    real = os.replace

    def replace(old: str, new: str) -> None:
        if new.endswith("reads.json"):
            monkeypatch.undo()
            assert run(filler, run_id="other").verdicts[0].verdict == "ok"
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    assert run(filler, run_id="one").verdicts[0].verdict == "ok"
    assert verdict_of(filler) == "ok" and name


def test_f23_what_a_shorter_run_found_bad_stays_bad_when_a_longer_one_ends(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = filler.publish("", files=(("a", b"1"), ("b", b"2")), sealed=())
    filler.close()
    real = _verify._content

    def content(data: str, item: Any, verdict: Any) -> bool:
        found = real(data, item, verdict)
        if item.path == "a":
            monkeypatch.undo()
            (filler.backups / name / "data" / "a").write_bytes(b"X")
            assert run(filler, ids=[name], run_id="short").verdicts[0].verdict == "failed"
        return found

    monkeypatch.setattr(_verify, "_content", content)
    run(filler, run_id="long")
    assert verdict_of(filler) == "failed"


def test_slices_do_not_lift_what_no_slice_can_see(filler: Filler) -> None:
    filler.publish(
        "",
        files=(
            ("t/nb-1-big-TOC.txt", b"Data.db\nIndex.db\n"),
            ("t/nb-1-big-Data.db", b"1"),
            *((f"f{n}", b"1") for n in range(50)),
        ),
        sealed=(),
    )
    filler.close()
    assert run(filler).verdicts[0].verdict == "failed" and verdict_of(filler) == "failed"
    for turn in (1, 2):
        run(filler, turn=turn, turns=2, run_id=str(turn))
    assert verdict_of(filler) == "failed"


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: resealed(path, schema=2),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes().replace(b"5.4.2031", b"5.4.2032")),
        lambda path: resealed(path, generation=7),
        lambda path: resealed(path, sealed_for=1),
        lambda path: resealed(path, id="00000009-20260101T000000Z"),
        lambda path: resealed(path, sequence=9, more=1),
        lambda path: resealed(path, files=[{"path": "../f", "size": 1, "mtime": 1, "sha256": "x"}]),
    ],
)
def test_f24_slices_lift_what_was_wrong_with_the_manifest_when_it_is_right_again(
    filler: Filler, harm: Callable[[Path], Any]
) -> None:
    """Otherwise a rotation would keep it failed, and retention frozen, for ever."""
    name = filler.publish(files=tuple((f"f{file}", b"1") for file in range(50)), sealed=())
    filler.close()
    path = filler.backups / name / "manifest.json"
    right = path.read_bytes()
    harm(path)
    run(filler, turn=1, turns=2, run_id="harmed")
    path.write_bytes(right)
    assert verdict_of(filler) == "failed"
    for turn in (2, 1):
        run(filler, turn=turn, turns=2, run_id=f"mended {turn}")
    assert verdict_of(filler) == "ok"


def test_f23_a_slice_that_is_right_does_not_hide_what_failed_before(filler: Filler) -> None:
    names = [filler.publish(files=tuple((f"f{file}", b"1") for file in range(50)), sealed=()) for _ in range(2)]
    filler.close()
    path = filler.backups / names[0] / "data" / "f0"
    path.write_bytes(b"2")
    bad = rotation.slice_of(names[0], "f0", 2)
    told = run(filler, turn=bad, turns=2, run_id="found")
    assert codes(told) == [["CORRUPT"], []] and doubts(told) == []
    later = run(filler, turn=3 - bad, turns=2, run_id="later")
    assert codes(later) == [[], []] and doubts(later) == ["STILL_FAILED"] and names[0] in later.reasons[0].message
    assert doubts(run(filler, ids=names[1:], turn=1, turns=2)) == []
    with pytest.raises(DsmError):
        refuse_failed(later, [], False)
    assert [reason.code for reason in refuse_failed(later, ["STILL_FAILED"], False)] == ["STILL_FAILED"]
    path.write_bytes(b"1")
    assert doubts(run(filler, run_id="whole")) == [] == doubts(run(filler, turn=bad, turns=2, run_id="last"))


def test_f23_who_is_contradicted_by_the_ledger_does_not_say_ok(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    for _index in range(2):
        filler.publish("", sealed=())
    filler.close()
    real = _verify._content

    def content(data: str, item: manifest.FileEntry, verdict: _verify.Verdict) -> bool:
        if filler.ids[0] in data:
            failed = {"verdict": "failed", "digest": verdict.digest, "codes": ["CORRUPT"]}
            filler.event("verified", filler.ids[0], failed, time.time())
            filler.close()
        return real(data, item, verdict)

    monkeypatch.setattr(_verify, "_content", content)
    result = run(filler)
    assert codes(result) == [["CONTRADICTED"], []] and result.verdicts[0].verdict == "failed"
    assert "CORRUPT" in result.verdicts[0].reasons[0].message and verdict_of(filler, 0) == "failed"
    with pytest.raises(DsmError):
        refuse_failed(result, [], False)


def test_what_else_is_recorded_meanwhile_contradicts_nothing(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    """News of others, and what does not doubt this one."""
    name, other = filler.publish("", sealed=()), filler.publish("", sealed=())
    filler.close()
    real = _verify._content

    def content(data: str, item: manifest.FileEntry, verdict: _verify.Verdict) -> bool:
        shipped = dict(store_of(filler).ledger.trusted().events[1].data)
        filler.event("shipped", other, shipped, time.time())
        filler.event("verified", other, {"verdict": "failed", "digest": shipped["digest"]}, time.time())
        filler.event("verified", name, {"verdict": "ok", "digest": verdict.digest}, time.time())
        filler.event("proved", name, {"backup": name}, time.time())
        filler.close()
        return real(data, item, verdict)

    monkeypatch.setattr(_verify, "_content", content)
    result = run(filler, ids=[name])
    assert codes(result) == [[]] and result.notes == [] and [subject for subject, _data in recorded(filler)] == [name]


def test_f09_what_is_recorded_as_shipped_meanwhile_stays_unverified(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    filler.publish("", sealed=())
    filler.close()
    (shipped,) = store_of(filler).ledger.trusted().events
    real = _verify._content

    def content(data: str, item: manifest.FileEntry, verdict: _verify.Verdict) -> bool:
        filler.event("shipped", filler.ids[0], dict(shipped.data), time.time())
        filler.close()
        return real(data, item, verdict)

    monkeypatch.setattr(_verify, "_content", content)
    result = run(filler)
    assert codes(result) == [[]] and "stays unverified" in result.notes[0] and verdict_of(filler) == "unverified"


# -- when the store itself fails ---------------------------------------------------------------------------------------


def test_f25_what_a_broken_ledger_found_good_is_not_verified(filler: Filler, tmp_path: Path) -> None:
    """What it said behind the break may be that all of it is bad."""
    for _index in range(2):
        filler.publish(sealed=())
    filler.close()
    with open(filler.path / "ledger.jsonl", "ab") as file:
        file.write(b"{}\n")
    said = info(str(filler.path.parent), "", "")
    assert [one["verdict"] for one in said["backups"]] == ["unverified"] * 2
    assert [one["reasons"][0]["code"] for one in said["backups"]] == ["LEDGER_BROKEN"] * 2
    assert said["sites"][0]["verified"] == 0
    _metrics.write(store_of(filler), str(tmp_path / "dsm.prom"))
    text = (tmp_path / "dsm.prom").read_text()
    (verified,) = re.findall(r"^(?!#)\S*(?<!un)verified_copies\S* (\S+)$", text, re.MULTILINE)
    assert float(verified) == 0
    with pytest.raises(DsmError) as caught:
        _stage.newest(store_of(filler))
    assert caught.value.code == "LEDGER_BROKEN"


def full(*_arguments: Any, **_named: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_f12_without_an_inode_left_everything_is_read_and_recorded(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No new file can be made; the ledger is there and can grow."""
    for _index in range(3):
        filler.publish("", sealed=())
    filler.close()
    real = os.open

    def opened(path: Any, flags: int, mode: int = 0o777, **named: Any) -> int:
        if flags & os.O_CREAT and not os.path.exists(path):
            full()
        return real(path, flags, mode, **named)

    monkeypatch.setattr(os, "open", opened)
    result = run(filler, turns=1)
    assert codes(result) == [[], [], []] and doubts(result) == []
    assert [verdict_of(filler, index) for index in range(3)] == ["ok"] * 3
    told = run(filler, turns=2)
    assert codes(told) == [[], [], []] and doubts(told) == ["STORE_FULL"]
    assert "rotation.json" in told.reasons[0].message


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "STORE_FULL"), (errno.EIO, "STORE_UNWRITABLE"), (errno.EBADF, "UNREADABLE")]
)
def test_f12_verdicts_that_cannot_be_recorded_are_told_and_end_nothing(
    filler: Filler, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    for _index in range(3):
        filler.publish("", sealed=())
    filler.close()

    def failing(*_arguments: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwrite", failing)
    (filler.backups / filler.ids[1] / "data" / "backup.bin").write_bytes(b"9876543210")
    result = run(filler)
    assert codes(result) == [[], ["CORRUPT"], []] and doubts(result) == [code] and result.reasons[0].hard


def test_f28_a_directory_that_the_kernel_does_not_open_fails_and_stops_nothing(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _index in range(3):
        filler.publish(sealed=())
    filler.close()
    real = os.open
    broken = str(filler.backups / filler.ids[1])

    def opened(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if path == broken:
            raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN), path)
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", opened)
    result = run(filler)
    assert codes(result) == [[], ["UNREADABLE"], []] and broken in result.verdicts[1].reasons[0].message
    monkeypatch.undo()
    assert [verdict_of(filler, index) for index in range(3)] == ["ok", "failed", "ok"]


def test_f25_a_tampered_copy_is_not_the_newest_to_stage(filler: Filler) -> None:
    ids = [filler.publish(sealed=()) for _index in range(2)]
    filler.close()
    forged = b"other bytes"
    (filler.backups / ids[1] / "data" / "backup.bin").write_bytes(forged)
    entry = manifest.FileEntry("backup.bin", len(forged), 1, hashlib.sha256(forged).hexdigest())
    resealed(
        filler.backups / ids[1] / "manifest.json",
        files=[entry.__dict__],
        digest=manifest.tree_digest([entry]),
        bytes=len(forged),
    )
    assert verdict_of(filler) == "failed"
    assert _stage.newest(store_of(filler)) == ids[0]
