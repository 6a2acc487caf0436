# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pruning a store on disk: killed at every step, raced, starved of space, and lied to.

Numbers are those of the project's list of failure modes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator

import pytest
from many_backups import CLUSTER, SEALED, SNAPSHOT, Filler, golden, resealed

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import catalogue, ledger
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.notes import Saying
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import Policy
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import utc_text
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _metrics, _prune, _store
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._keeping import say
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._prune import (
    PruneRequest,
    PruneResult,
    prune,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._verify import VerifyRequest, verify

TWO = Policy(keep=2, max_copies=2)


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    return Filler(tmp_path, 8)


def fill(filler: Filler, *verdicts: str, **facts: Any) -> list[str]:
    """Backups that nothing but their verdict tells apart, sealed for nobody."""
    facts.setdefault("sealed", ())
    made = [filler.publish(verdict, **facts) for verdict in verdicts]
    filler.close()
    return made


def store_of(filler: Filler) -> ClusterStore:
    return ClusterStore.require(str(filler.path.parent))


def run(filler: Filler, policy: Policy = TWO, check: bool = False, **request: Any) -> PruneResult:
    request.setdefault("need", 0)
    return prune(store_of(filler), PruneRequest(policy, run_id="prune-1", **request), check)


def refused(filler: Filler, policy: Policy = TWO, **request: Any) -> DsmError:
    with pytest.raises(DsmError) as caught:
        run(filler, policy, **request)
    return caught.value


def here(filler: Filler) -> list[str]:
    """Numbers of what is published."""
    return [entry.id[7] for entry in store_of(filler).entries() if entry.state == "published"]


def here_ids(filler: Filler) -> list[str]:
    return [entry.id for entry in store_of(filler).entries() if entry.state == "published"]


def events(filler: Filler, kind: str = "pruned") -> dict[str, Any]:
    chain = ClusterStore.require(str(filler.path.parent)).ledger.trusted()
    return {event.subject: event.data for event in chain.events if event.kind == kind}


def snapshot(filler: Filler) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(filler.path.rglob("*")) if path.is_file()}


def test_it_removes_what_the_plan_says_and_records_it(filler: Filler) -> None:
    ids = fill(filler, "ok", "failed", "ok", "", "ok", "ok")
    before = snapshot(filler)
    digest = store_of(filler).published(ids[0]).digest
    planned = run(filler, check=True)
    assert snapshot(filler) == before
    done = run(filler)
    assert planned.removed == [ids[1], ids[0], ids[2], ids[3]] and done.removed == planned.removed
    assert (planned.before, planned.after) == (done.before, done.after)
    assert here(filler) == ["5", "6"] and sorted(os.listdir(filler.backups)) == ids[4:]
    recorded = events(filler)
    assert list(recorded) == done.removed
    assert recorded[ids[0]] == {
        "codes": ["COUNT"], "digest": digest, "bytes": 10, "verdict": "ok", "key": "key-1",
    }  # fmt: skip
    assert [recorded[name]["verdict"] for name in ids[:4]] == ["ok", "failed", "ok", "unverified"]
    assert done.freed >= 4 * 10
    after = snapshot(filler)
    again = run(filler)
    assert not again.changed and again.removed == [] and snapshot(filler) == after
    assert set(json.loads((filler.path / "index.json").read_text())["manifests"]) == set(ids[4:])
    told = {line.split()[0]: line.split()[3:5] for line in done.returns()["table"][1:]}
    assert told[ids[0]] == ["goes", "COUNT:"] and told[ids[5]][0] == "stays"


def test_a_plan_for_many_is_a_short_table(filler: Filler) -> None:
    ids = fill(filler, *["ok"] * 8)
    lines = run(filler, Policy(keep=1, max_age=10.0**8), check=True).returns()["table"]
    assert lines[1].startswith(f"{ids[0]} to {ids[6]} (7)  70 ") and lines[2].startswith(ids[7]) and len(lines) == 3
    lines = run(filler, Policy(keep=1, max_copies=2), check=True).returns()["table"]
    assert lines[1].startswith(f"{ids[0]} to {ids[5]} (6)  60 ") and " goes   COUNT: " in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ids[6:]


def test_what_it_returns(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    returned = run(filler, Policy(keep=1, max_copies=2, max_age=10.0**8)).returns()
    plan, lines = returned.pop("plan"), returned.pop("table")
    assert returned == {
        "removed": ids[:1],
        "cleared": [],
        "freed": returned["freed"],
        "verified": 3,
        "verified_after": 2,
        "frozen": "",
        "missing": 0,
        "missing_inodes": 0,
        "next_expiry": returned["next_expiry"],
        "notes": [],
        "accepted": [],
    }
    assert returned["freed"] > 10 and str(returned["next_expiry"]).endswith("Z")
    assert [(one["id"], one["remove"], one["verdict"], one["bytes"]) for one in plan] == [
        (ids[0], True, "ok", 10),
        (ids[1], False, "ok", 10),
        (ids[2], False, "ok", 10),
    ]
    assert plan[0]["age"] == 3600 and plan[0]["reasons"][0]["message"].startswith("the 2 verified")
    assert len(lines) == 4 and lines[0].split() == ["BACKUP", "BYTES", "VERDICT", "WHY"]
    unknown = Filler(filler.path.parent.parent / "other", 1)
    fill(unknown, "failed")
    returned = run(unknown).returns()
    assert returned["frozen"] == "nothing in the store is verified" and returned["plan"][0]["age"] is None
    assert returned["next_expiry"] is None and (returned["verified"], returned["verified_after"]) == (0, 0)


def test_metrics_and_policy_are_written_at_the_end(filler: Filler, tmp_path: Path) -> None:
    fill(filler, "ok", "ok", "ok", "ok")
    path = tmp_path / "dsm.prom"
    run(filler, Policy(keep=1, max_copies=1, max_age=10.0**8), metrics=str(path), check=True)
    assert not path.exists() and not (filler.path / "retention.json").exists()
    run(filler, Policy(keep=1, max_copies=1, max_age=10.0**8), metrics=str(path), need=7)
    text = path.read_text()
    assert f'kmsops_dsm_store_verified_copies{{cluster="{CLUSTER}"}} 1\n' in text
    assert (
        "next_expiry_timestamp_seconds{" in text and text.endswith("# EOF\n") and path.stat().st_mode & 0o777 == 0o644
    )
    policy = Policy(keep=1, max_copies=1, max_age=10.0**8, need=7)
    assert _metrics.read_policy(store_of(filler)) == (policy, [])
    for bad in (
        b"",
        b"{}",
        b'{"schema": 1}',
        b'{"schema": 1, "keep": 0}',
        b'{"schema": 2, "keep": 1}',
        b'{"schema": 1, "keep": 1, "require": ["nothing"]}',
        b'{"schema": 1, "keep": 1, "require": 1}',
    ):
        (filler.path / "retention.json").write_bytes(bad)
        assert _metrics.read_policy(store_of(filler)) == (None, [])
    # A release that did not remember what is required.
    (filler.path / "retention.json").write_bytes(b'{"schema": 1, "keep": 1}')
    assert _metrics.read_policy(store_of(filler)) == (Policy(keep=1), [])
    _metrics.write(store_of(filler), str(path))
    assert "next_expiry" not in path.read_text()


def test_f01_f19_times_in_the_metrics_advance_with_verified_copies_and_with_nothing_else(
    filler: Filler, tmp_path: Path
) -> None:
    """They are absolute: an alarm on their age rings whatever became of the mails, also when nobody writes them."""
    fill(filler, "ok")
    path = tmp_path / "dsm.prom"

    def stamps() -> tuple[float, float]:
        began = time.time()
        _metrics.write(store_of(filler), str(path))
        shown = dict(re.findall(r"(?m)^kmsops_dsm_store_(\w+){.*} (\S+)$", path.read_text()))
        assert began - 1 <= float(shown["written_timestamp_seconds"]) <= time.time()
        return float(shown["last_success_timestamp_seconds"]), began

    first, _began = stamps()
    for verdict in ("", "failed"):
        fill(filler, verdict)
        assert stamps()[0] == first
    fill(filler, "ok")
    last, began = stamps()
    assert first + 3 * 3600 == last < began


def test_metrics_that_cannot_be_written_undo_nothing(
    filler: Filler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(filler, "ok", "ok", "ok")

    def broken(_store: ClusterStore, path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(_metrics, "write", broken)
    error = refused(filler, metrics=str(tmp_path / "dsm.prom"))
    assert error.code == "REMOVE_FAILED" and "dsm.prom" in error.reasons[0].message
    assert error.details["removed"] == ids[:1]


@pytest.mark.parametrize(
    ("policy", "more", "code"),
    [
        (Policy(keep=0), {}, "KEEP_NOTHING"),
        (Policy(keep=2, max_copies=1), {}, "BAD_POLICY"),
        (TWO, {"need": -1}, "BAD_POLICY"),
        (TWO, {"headroom": -0.1}, "BAD_POLICY"),
        (TWO, {"headroom": float("inf")}, "BAD_POLICY"),
        (TWO, {"incoming_grace": float("nan")}, "BAD_POLICY"),
        (TWO, {"metrics": "relative.prom"}, "BAD_METRICS"),
        (TWO, {"metrics": "/nonexistent/dsm.prom"}, "BAD_METRICS"),
    ],
)
def test_wrong_use_removes_nothing(filler: Filler, policy: Policy, more: dict[str, Any], code: str) -> None:
    fill(filler, "ok", "ok", "ok", "ok")
    before = snapshot(filler)
    error = refused(filler, policy, **more)
    assert error.code == code and error.remedy
    assert snapshot(filler) == before


# -- kill -9 -----------------------------------------------------------------------------------------------------------


def killing(at: int) -> Callable[[str], None]:
    counter = itertools.count()

    def checkpoint(_step: str) -> None:
        if next(counter) == at:
            raise Killed

    return checkpoint


def dead(filler: Filler) -> None:
    """The process that held the lease is gone."""
    with contextlib.suppress(FileNotFoundError):
        (filler.path / "lock").unlink()


def test_f09_killed_at_every_step_and_run_again(tmp_path: Path) -> None:
    """The floor stands at every moment, what is half removed is no backup, and the next run ends as one that lived."""
    steps, unfinished = 0, False
    for at in itertools.count():
        root = tmp_path / str(at)
        filler = Filler(root, 8)
        ids = fill(filler, "ok", "failed", "ok", "ok", "ok")
        try:
            run(filler, checkpoint=killing(at))
        except Killed:
            steps += 1
        dead(filler)
        assert {"4", "5"} <= set(here(filler))
        for entry in store_of(filler).entries():
            if entry.state == "published":
                assert (filler.backups / entry.id / "data" / "backup.bin").read_bytes() == b"0123456789"
        done = run(filler)
        assert here(filler) == ["4", "5"] and sorted(os.listdir(filler.backups)) == ids[3:]
        recorded = events(filler)
        assert sorted(recorded) == ids[:3]
        assert {tuple(data["codes"]) for data in recorded.values()} <= {
            ("COUNT",),
            ("COUNT", "FAILED"),
            ("UNFINISHED",),
        }
        unfinished = unfinished or any(data["codes"] == ["UNFINISHED"] for data in recorded.values())
        assert not run(filler).changed
        shutil.rmtree(root)
        if done.plan is not None and not done.changed:
            break
    assert steps == 3 * 4 + 1 and unfinished


def test_f09_killed_while_the_directory_itself_was_removed(filler: Filler) -> None:
    """Manifest and data are gone, recorded it is, a note is left."""
    ids = fill(filler, "ok", "ok", "ok")
    run(filler)
    (filler.backups / ids[0]).mkdir()
    (filler.backups / ids[0] / "notes.json").write_text("{}")
    done = run(filler)
    assert sorted(os.listdir(filler.backups)) == ids[1:]
    assert done.removed == [] and done.changed


def test_f09_what_is_recorded_already_does_not_keep_the_next_one_from_it(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok")
    run(filler, Policy(keep=3, max_copies=3))
    (filler.backups / ids[0]).mkdir()
    (filler.backups / ids[0] / "notes.json").write_text("{}")
    store_of(filler).unpublish(ids[1])
    shutil.rmtree(filler.backups / ids[1] / "data")
    assert run(filler).changed
    assert {name: data["codes"] for name, data in events(filler).items()} == {
        ids[0]: ["COUNT"],
        ids[1]: ["UNFINISHED"],
    }


def fails(filler: Filler, name: str) -> None:
    """A bit flips, and verification finds it."""
    (filler.backups / name / "data" / "backup.bin").write_bytes(b"012345678X")
    verify(store_of(filler), VerifyRequest(ids=[name], run_id=f"verify-{name}"))


def intact(filler: Filler, names: Iterable[str]) -> list[str]:
    """What has all its bytes, published or not."""
    files = [(name, filler.backups / name / "data" / "backup.bin") for name in names]
    return [name for name, path in files if path.exists() and path.read_bytes() == b"0123456789"]


def verified(filler: Filler) -> list[str]:
    backups = ledger.fold(store_of(filler).ledger.trusted().events).backups
    published = [entry.id for entry in store_of(filler).entries() if entry.state == "published"]
    return [name for name in published if backups[name]["verdict"] == "ok"]


ONE = Policy(keep=1, max_copies=1)


def test_f09_what_lost_only_its_manifest_is_published_again_if_the_other_one_failed_meanwhile(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok")
    with pytest.raises(Killed):
        run(filler, ONE, checkpoint=killing(1))
    dead(filler)
    assert here(filler) == ["2"]
    fails(filler, ids[1])
    planned = run(filler, ONE, check=True)
    assert here(filler) == ["2"] and planned.before == {"backups": [], "incoming": [], "unpublished": ids[:1]}
    done = run(filler, ONE)
    assert (done.before, done.after, done.notes) == (planned.before, planned.after, planned.notes)
    assert done.changed and ids[0] in done.notes[0] and done.removed == planned.removed == []
    assert verified(filler) == ids[:1] == intact(filler, ids) and events(filler) == {}
    assert [one["reasons"][0]["code"] for one in done.returns()["plan"]] == ["FLOOR", "NEWEST"]
    assert not run(filler, ONE).changed


def test_f09_killed_again_and_again_while_what_was_to_stay_fails(tmp_path: Path) -> None:
    """What had all its bytes when the other one failed is there at the end, whatever was killed before and after."""
    undone = 0
    for first, second in itertools.product(range(10), range(8)):
        filler = Filler(tmp_path / f"{first}-{second}", 8)
        ids = fill(filler, "ok", "ok", "ok")
        with contextlib.suppress(Killed):
            run(filler, ONE, checkpoint=killing(first))
        dead(filler)
        fails(filler, ids[2])
        left = intact(filler, ids)
        with contextlib.suppress(Killed):
            run(filler, ONE, checkpoint=killing(second))
        dead(filler)
        undone += bool(run(filler, ONE).notes)
        assert verified(filler) == intact(filler, ids) == left[-1:], (first, second)
        assert {"3"} <= set(here(filler)) and not run(filler, ONE).changed
    assert undone


@pytest.mark.parametrize("at", range(8))
def test_what_fails_during_a_run_ends_it_before_the_next_byte_goes(filler: Filler, at: int) -> None:
    """Three surplus copies; one of the two that were to stay fails at every step before the last of them is erased."""
    ids = fill(filler, *["ok"] * 5)
    steps, left = itertools.count(), []

    def checkpoint(step: str) -> None:
        if next(steps) == at:
            fails(filler, ids[4])
            left.extend(intact(filler, ids[:4]))
            assert step in ("chosen", "unpublished", "data removed")

    error = refused(filler, checkpoint=checkpoint)
    assert [reason.code for reason in error.reasons] == ["STAYING_FAILED"], "once, not for each that was left"
    assert left == intact(filler, ids) == verified(filler) and len(left) >= 2
    assert set(events(filler)) == set(ids[:4]) - set(left) == set(error.details["removed"])


def test_a_pair_that_fails_during_a_run_keeps_the_one_before_it(filler: Filler) -> None:
    """Nobody had verified either of the two that a node can open."""
    ids = fill(filler, "", "", sealed=(SEALED,)) + fill(filler, "ok", "ok")
    told = []

    def checkpoint(step: str) -> None:
        if step == "unpublished" and not told:
            told.append(step)
            fails(filler, ids[1])

    assert refused(filler, checkpoint=checkpoint).code == "STAYING_FAILED"
    assert here(filler) == ["1", "2", "3", "4"]
    codes = {one["id"]: [reason["code"] for reason in one["reasons"]] for one in run(filler).returns()["plan"]}
    assert "LAST_PAIR" in codes[ids[0]] and codes[ids[1]] == ["COUNT"]


def test_a_run_that_ends_reads_the_ledger_no_more(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(filler, *["ok"] * 40)
    real, folds, told = ledger.fold, [], []

    def fold(events: Any) -> ledger.Folded:
        folds.append(1)
        return real(events)

    def checkpoint(step: str) -> None:
        if step == "unpublished" and not told:
            told.append(step)
            fails(filler, ids[-1])
            monkeypatch.setattr(ledger, "fold", fold)

    assert refused(filler, checkpoint=checkpoint).code == "STAYING_FAILED"
    assert len(folds) == 1 and len(here(filler)) == 40


def test_f09_what_the_disk_does_not_tell_about_is_neither_ended_nor_undone(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    store_of(filler).unpublish(ids[0])
    with monkeypatch.context() as patched:
        broken(patched, f"{ids[0]}/data/backup.bin")
        error = refused(filler)
    assert error.code == "UNREADABLE" and "Check the disk" in error.reasons[0].remedy
    assert store_of(filler).entry(ids[0]).state == "removing" and intact(filler, ids) == ids
    assert run(filler).removed == ids[:1]


@pytest.mark.parametrize(("wreck", "state"), [("gone", "incomplete"), ("damaged", "failed")])
def test_f09_a_wreck_that_was_unpublished_is_the_wreck_that_it_was(filler: Filler, wreck: str, state: str) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    path = filler.backups / ids[0] / "manifest.json"
    path.write_bytes(b"{") if wreck == "damaged" else path.unlink()
    before = snapshot(filler)
    store_of(filler).unpublish(ids[0])
    policy = Policy(keep=1, failed_grace=1e9)
    planned = run(filler, policy, check=True)
    done = run(filler, policy)
    assert store_of(filler).entry(ids[0]).state == state
    assert {name: snapshot(filler).get(name) for name in before} == before
    assert (done.before, done.after) == (planned.before, planned.after) and done.changed and not done.removed
    store_of(filler).unpublish(ids[0])
    assert run(filler).removed == ids[:1] and events(filler)[ids[0]]["verdict"] == "failed"


def test_f09_what_cannot_be_published_again_stays_for_the_next_run(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    store_of(filler).unpublish(ids[0])
    real = os.rename

    def rename(source: str, target: str) -> None:
        if str(source).endswith("removed.json"):
            raise OSError(errno.EROFS, "Read-only file system", source)
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename)
        error = refused(filler)
    assert error.code == "REMOVE_FAILED" and "Read-only" in error.reasons[0].message
    assert intact(filler, ids) == ids and error.details["removed"] == []
    assert run(filler).removed == ids[:1]


def test_what_was_shipped_again_while_it_was_unpublished_counts_once(filler: Filler) -> None:
    """The delivery was still at its source when nothing of it was published."""
    ids = fill(filler, "ok", "ok")
    store_of(filler).unpublish(ids[1])
    manifest = store_of(filler).entry(ids[1], "removed.json").manifest
    assert manifest is not None
    ids += fill(filler, "ok", source=manifest.source)
    done = run(filler)
    assert done.removed == [] and verified(filler) == ids
    told = {one["id"]: one["verdict"] for one in done.returns()["plan"]}
    assert list(told.values()) == ["ok", "unverified", "ok"]
    assert any(f"{ids[1]} counts as not verified: {ids[2]}" in note for note in done.notes)
    ids += fill(filler, "ok")
    assert run(filler).removed == ids[:2] and events(filler)[ids[1]]["verdict"] == "ok"


def test_f01_two_copies_of_one_delivery_are_one_verified_copy_in_the_metrics_too(
    filler: Filler, tmp_path: Path
) -> None:
    """An alarm on too few copies must not take them for two."""
    ids = fill(filler, "ok", "ok", "")
    source = store_of(filler).published(ids[1]).source
    fill(filler, "ok", source=source)
    path = tmp_path / "dsm.prom"
    plan = run(filler, Policy(keep=1, max_age=10.0**8), metrics=str(path)).plan
    shown = dict(re.findall(r"(?m)^kmsops_dsm_store_(\w+){.*} (\S+)$", path.read_text()))
    assert plan is not None and plan.verified == 2 and here(filler) == ["1", "2", "3", "4"]
    assert (shown["verified_copies"], shown["unverified_copies"], shown["bytes"]) == ("2", "2", "40")


def test_f09_a_removal_is_recorded_when_its_data_is_gone(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    seen: dict[str, bool] = {}
    run(filler, checkpoint=lambda step: seen.update({step: (filler.backups / ids[0] / "data").exists()}))
    assert seen == {
        "chosen": True,
        "unpublished": True,
        "data removed": False,
        "recorded": False,
        "directory removed": False,
    }


# -- others at the same time -------------------------------------------------------------------------------------------


def test_f08_a_living_owner_is_not_disturbed_and_a_dead_one_is_taken_over(filler: Filler) -> None:
    fill(filler, "ok", "ok", "ok")
    me = _store.this_process()
    alive = catalogue.Owner(me.host, me.boot_id, os.getppid(), _store._start_time(os.getppid()) or 0)
    lease = catalogue.Lease("ship-7", alive, utc_text(time.time()), utc_text(time.time() + 900))
    (filler.path / "lock").write_bytes(catalogue.dump_lease(lease))
    for check in (True, False):
        error = refused(filler, check=check)
        assert error.code == "LOCKED" and "ship-7" in error.message
    assert here(filler) == ["1", "2", "3"]
    gone = catalogue.Owner(me.host, me.boot_id, 999_999_999, 1)
    lease = catalogue.Lease("ship-7", gone, utc_text(time.time()), utc_text(time.time() + 900))
    (filler.path / "lock").write_bytes(catalogue.dump_lease(lease))
    done = run(filler)
    assert "Took over the lease of run ship-7" in done.notes[0] and len(done.removed) == 1


def test_f08_whoever_lost_the_lease_removes_nothing_more(filler: Filler) -> None:
    fill(filler, "ok", "ok", "ok", "ok")
    me = _store.this_process()
    other = catalogue.Lease("ship-8", catalogue.Owner("elsewhere", "b", 1, 1), utc_text(0), utc_text(time.time() + 900))
    steps = itertools.count()

    def checkpoint(step: str) -> None:
        if step == "chosen" and next(steps) == 1:
            (filler.path / "lock").write_bytes(catalogue.dump_lease(other))

    error = refused(filler, checkpoint=checkpoint)
    assert error.code == "LEASE_LOST" and me.host != "elsewhere" and not error.reasons, "it ended there"
    assert here(filler) == ["2", "3", "4"]
    assert catalogue.parse_lease((filler.path / "lock").read_bytes()) == other


def test_f08_whoever_lost_the_lease_before_the_first_byte_went_erases_nothing(filler: Filler) -> None:
    """The other one may have published it again."""
    ids = fill(filler, "ok", "ok", "ok")
    other = catalogue.Lease("ship-8", catalogue.Owner("elsewhere", "b", 1, 1), utc_text(0), utc_text(time.time() + 900))

    def checkpoint(step: str) -> None:
        if step == "unpublished":
            (filler.path / "lock").write_bytes(catalogue.dump_lease(other))

    assert refused(filler, checkpoint=checkpoint).code == "LEASE_LOST"
    assert intact(filler, ids) == ids
    dead(filler)
    assert run(filler).removed == ids[:1]


def test_f08_a_long_removal_keeps_its_lease(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(filler, "ok", "ok", "ok", "ok", "ok")
    monkeypatch.setattr(_store, "RENEW_SECONDS", -1.0)
    real, late, expiries = time.time, itertools.count(1000, 1000), []

    def checkpoint(step: str) -> None:
        if step == "unpublished":
            expiries.append(catalogue.parse_lease((filler.path / "lock").read_bytes()).expires)
            passed = next(late)
            monkeypatch.setattr(time, "time", lambda: real() + passed)

    run(filler, checkpoint=checkpoint)
    assert len(expiries) == 3 and expiries == sorted(set(expiries))


def test_f22_what_is_being_read_stays_and_the_rest_goes(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok")
    with store_of(filler).reading(ids[0]):
        error = refused(filler)
        assert error.code == "BEING_READ" and ids[0] in error.reasons[0].message
        assert here(filler) == ["1", "3", "4"]
        assert (filler.backups / ids[0] / "data" / "backup.bin").read_bytes() == b"0123456789"
    assert run(filler).removed == [ids[0]]


def test_f22_a_reader_that_comes_too_late_is_told(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    store = store_of(filler)
    run(filler)
    with store.reading(ids[0]), pytest.raises(DsmError) as caught:
        store.published(ids[0])
    assert caught.value.code == "NOT_PUBLISHED"


def test_f15_a_pin_between_plan_and_act_is_honoured(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok")
    store = store_of(filler)
    pinned = iter(ids[1:2])

    def checkpoint(step: str) -> None:
        if step == "unpublished":
            for name in pinned:
                say(store, name, "pinned", Saying("j.doe", "2026-11-22T00:00:00Z", "wait"), True)

    error = refused(filler, checkpoint=checkpoint)
    assert error.code == "PINNED" and "j.doe" in error.reasons[0].message
    assert here(filler) == ["2", "3", "4"]


def test_f15_unfinished_transfers_are_not_touched_before_their_grace(filler: Filler) -> None:
    fill(filler, "ok", "ok")
    for name, age in (("00000008-20260101T000000Z", 100), ("00000009-20260101T000000Z", 300)):
        path = filler.path / "incoming" / name
        path.mkdir(parents=True)
        for file in ("journal.jsonl", "source.json"):
            (path / file).write_text("{}")
        os.utime(path / "source.json", (1, 1))
        os.utime(path / "journal.jsonl", (time.time() - age,) * 2)
        os.utime(path, (1, 1))
    (filler.path / "incoming" / "00000010-20260101T000000Z").mkdir()
    done = run(filler, incoming_grace=200)
    assert done.cleared == ["00000009-20260101T000000Z"]
    assert sorted(os.listdir(filler.path / "incoming")) == ["00000008-20260101T000000Z", "00000010-20260101T000000Z"]


def test_f14_what_a_killed_repair_left_goes_after_the_grace(filler: Filler) -> None:
    """Bad bytes beside the good ones, and a better copy that nobody ever used; not what may still be wanted."""
    ids = fill(filler, "ok", "ok", "failed", "ok")
    aside = [filler.backups / name / "bad" for name in ids]
    better = [filler.path / "repair" / name for name in ids[:2]]
    for path in (*aside, *better):
        (path / "data").mkdir(parents=True)
        (path / "data" / "backup.bin").write_bytes(b"bad")
        for part in (path / "data" / "backup.bin", path):
            os.utime(part, (1, 1))
    # Moved aside just now, and what is moved keeps its time.
    os.utime(aside[1])
    # Its manifest was put aside, and no good one came yet: all that there is of it.
    (filler.backups / ids[2] / "manifest.json").rename(aside[2] / "manifest.json")
    for path in (aside[2] / "manifest.json", aside[2]):
        os.utime(path, (1, 1))
    (better[1] / "source.json").write_bytes(b"{}")
    left = [aside[1], aside[2], better[1]]
    gone = [f"{ids[0]}/bad", f"{ids[3]}/bad", f"repair/{ids[0]}"]
    policy = Policy(keep=4, failed_grace=1e9)
    planned = run(filler, policy, check=True)
    assert sorted(planned.cleared) == gone and all(path.exists() for path in (*aside, *better))
    done = run(filler, policy)
    assert (done.before, done.after, sorted(done.cleared)) == (planned.before, planned.after, gone)
    assert [path for path in (*aside, *better) if path.exists()] == left
    assert done.before["incoming"] == gone and done.freed == 9 and done.removed == []
    assert not run(filler, policy).changed


def test_f28_bad_bytes_that_cannot_be_removed_stop_nothing_else(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    for name in ids[:2]:
        (filler.backups / name / "bad").mkdir()
        os.utime(filler.backups / name / "bad", (1, 1))
    remove = _prune.remove_tree

    def stubborn(path: str) -> None:
        if path.endswith(f"{ids[0]}/bad"):
            raise OSError(errno.EPERM, "Operation not permitted", path)
        remove(path)

    monkeypatch.setattr(_prune, "remove_tree", stubborn)
    error = refused(filler)
    assert error.code == "REMOVE_FAILED" and f"{ids[0]}/bad" in error.reasons[0].message
    assert error.details["cleared"] == [f"{ids[1]}/bad"]


def test_f15_a_backup_that_is_being_published_right_now_is_no_wreck(filler: Filler) -> None:
    """Its data is in backups/, its manifest is not, its directory in incoming/ is there: the next ship goes on."""
    ids = fill(filler, "ok", "ok", "ok")
    name = ids[0]
    (filler.backups / name / "manifest.json").unlink()
    (filler.path / "incoming" / name).mkdir(parents=True)
    run(filler, Policy(keep=1, max_copies=1))
    assert (filler.path / "incoming" / name / "data" / "backup.bin").exists()


# -- the disk ----------------------------------------------------------------------------------------------------------


def locked(filler: Filler) -> bool:
    """Whether nobody else could decide about this part of the store now."""
    descriptor = os.open(filler.path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_f15_a_pin_waits_while_a_removal_is_decided_and_not_longer(filler: Filler) -> None:
    fill(filler, "ok", "ok", "ok")
    seen: dict[str, bool] = {}
    run(filler, checkpoint=lambda step: seen.update({step: locked(filler)}))
    assert seen == {
        "chosen": True,
        "unpublished": False,
        "data removed": False,
        "recorded": False,
        "directory removed": False,
    }


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """Nothing new can be written until something was removed."""
    state = {"full": True}
    real_open, real_rmtree = os.open, shutil.rmtree

    def no_space(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if state["full"] and flags & (os.O_CREAT | os.O_RDWR) and not os.path.exists(path):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return real_open(path, flags, *more, **named)

    def rmtree(path: Any, *more: Any, **named: Any) -> None:
        real_rmtree(path, *more, **named)
        state["full"] = False

    monkeypatch.setattr(os, "open", no_space)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    yield state


def test_f13_a_disk_without_a_single_free_byte_is_no_trap(filler: Filler, full: dict[str, bool]) -> None:
    """Not even the lease can be written."""
    ids = fill(filler, "ok", "ok", "ok", "ok")
    looked: list[bool] = []
    done = run(filler, checkpoint=lambda _step: looked.append(locked(filler)))
    assert looked and all(looked), "nobody else can change this part of the store meanwhile"
    assert done.removed == ids[:2] and not full["full"]
    assert sorted(events(filler)) == ids[:2]
    assert not (filler.path / "lock").exists()


def test_f13_what_was_unpublished_on_a_full_disk_goes_at_the_next_run(filler: Filler, full: dict[str, bool]) -> None:
    """Publishing it again needs no byte either."""
    ids = fill(filler, "ok", "ok", "ok", "ok")
    with pytest.raises(Killed):
        run(filler, checkpoint=killing(3))
    assert here(filler) == ["3", "4"] and full["full"]
    assert run(filler).removed == ids[:2] and sorted(events(filler)) == ids[:2]


def test_f13_a_removal_for_space_that_was_killed_happens_at_the_next_run(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although expiry by age rests for long."""
    ids = fill(filler, "ok", "ok", "ok")
    monkeypatch.setattr(ClusterStore, "free", lambda _self: (30 - 10 * len(intact(filler, ids)), 1000))
    frozen = Policy(keep=2, max_age=1e9, fresh_within=0.0)
    with pytest.raises(Killed):
        run(filler, frozen, need=10, checkpoint=killing(1))
    dead(filler)
    planned = run(filler, frozen, need=10, check=True)
    assert planned.removed == ids[:1] and planned.returns()["frozen"]
    assert run(filler, frozen, need=10).removed == ids[:1] and events(filler)[ids[0]]["codes"] == ["SPACE"]


def test_f13_a_copy_on_paper_makes_no_room_before_a_verification_has_told(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    (filler.backups / ids[2] / "data" / "backup.bin").write_bytes(b"01234")
    monkeypatch.setattr(ClusterStore, "free", lambda _self: (0, 1000))
    error = refused(filler, Policy(keep=1, max_age=1e9), need=15)
    assert sorted(reason.code for reason in error.reasons) == ["STORE_FULL", "WRONG_SIZE"]
    fails(filler, ids[2])
    fill(filler, "ok")
    assert run(filler, Policy(keep=1, max_age=1e9), need=10).removed == [ids[2]]
    assert events(filler)[ids[2]]["verdict"] == "failed"


def test_f13_surplus_makes_room_for_the_next_backup(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is full recovers by itself; one whose floor is all that is left says what is missing."""
    ids = fill(filler, "ok", "ok", "ok", "ok")
    space = {"free": 5}
    monkeypatch.setattr(ClusterStore, "free", lambda _self: (space["free"], 1000))
    keep_all = Policy(keep=2, max_age=1e9)
    done = run(filler, keep_all, need=None)
    assert done.removed == ids[:1]  # 10 bytes and 10 % are needed
    assert events(filler)[ids[0]]["codes"] == ["SPACE"]
    space["free"] = 0
    error = refused(filler, keep_all, need=None)
    assert error.code == "STORE_FULL" and "1 bytes are missing" in error.reasons[0].message
    assert here(filler) == ["2", "3", "4"]
    assert run(filler, keep_all, need=None, headroom=0.0).removed == [ids[1]]
    assert refused(filler, keep_all, need=None, headroom=0.0, check=True).code == "STORE_FULL"
    fill(filler, "ok", files=(("backup.bin", bytes(40)),))
    assert refused(filler, Policy(keep=3, max_age=1e9), need=None, headroom=0.5, check=True).details["missing"] == 60


def test_f13_an_empty_store_wants_no_room(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClusterStore, "free", lambda _self: (0, 1000))
    assert run(filler, need=None).returns()["missing"] == 0


def test_f26_a_flood_of_deliveries_pushes_out_no_golden_pair_and_nothing_within_the_window(filler: Filler) -> None:
    """Who has the credentials of production can deliver as much as he likes, all of it good to read."""
    (pair,) = fill(filler, "ok", sealed=(golden(),))
    mine = fill(filler, "ok", "ok", "ok")
    now = time.time()
    for number in range(20):
        fill(filler, "ok", when=now - 60 + number)
    flooded = run(filler, Policy(keep=2, max_copies=5), check=True)
    assert set(mine) < set(flooded.removed) and pair not in flooded.removed
    window = Policy(keep=2, max_copies=5, max_age=86400.0, keep_within=86400.0)
    done = run(filler, window)
    assert done.removed == [] and set(os.listdir(filler.backups)) > {pair, *mine}


def test_f26_a_flood_that_fills_the_disk_pushes_out_surplus_and_nothing_that_must_stay(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law 3 lets surplus go for the next backup whatever its age, or a full store would never recover."""
    (pair,) = fill(filler, "ok", sealed=(golden(),))
    mine, held = fill(filler, "ok", "ok")
    say(store_of(filler), held, "pinned", Saying("j.doe", utc_text(0), "the audit"), True)
    window = Policy(keep=2, max_copies=50, max_age=86400.0, keep_within=86400.0)
    size, capacity = 10, 100
    monkeypatch.setattr(ClusterStore, "free", lambda _self: (capacity - size * len(here(filler)), capacity))
    now, delivered, gone = time.time(), 0, []
    for number in range(20):
        if len(here(filler)) < capacity // size:
            fill(filler, "ok", when=now - 60 + number)
            delivered += 1
        gone += run(filler, window, need=None, headroom=0.0).removed
    assert delivered == 20 and mine in gone and not {pair, held} & set(gone)


def test_f28_one_item_that_cannot_be_removed_stops_nothing_else(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok")
    real = _prune.remove_tree

    def held(path: str) -> None:
        if ids[0] in path:
            raise DsmError(f"{path} could not be removed: Operation not permitted.", "CLEANUP_FAILED", "chattr -i")
        real(path)

    with monkeypatch.context() as patched:
        patched.setattr(_prune, "remove_tree", held)
        error = refused(filler)
    assert error.code == "CLEANUP_FAILED" and ids[0] in error.reasons[0].message
    assert error.details["removed"] == [ids[1]]
    assert here(filler) == ["3", "4"]
    assert run(filler).cleared == [] and sorted(os.listdir(filler.backups)) == ids[2:]


def test_f28_an_error_of_the_system_is_one_items_too(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok")
    real = os.rename

    def rename(source: str, target: str) -> None:
        if ids[0] in str(source):
            raise PermissionError(errno.EPERM, "Operation not permitted", source)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    error = refused(filler)
    assert error.code == "REMOVE_FAILED" and "immutable" in error.reasons[0].remedy
    assert here(filler) == ["1", "3", "4"]


# -- what is not as it seems -------------------------------------------------------------------------------------------


def test_f23_a_copy_that_is_only_on_paper_is_no_floor(filler: Filler) -> None:
    """The newest verified copies have lost a file and half of one: older ones stay instead."""
    ids = fill(filler, "ok", "ok", "ok", "ok", "ok")
    (filler.backups / ids[4] / "data" / "backup.bin").unlink()
    (filler.backups / ids[3] / "data" / "backup.bin").write_bytes(b"01234")
    error = refused(filler)
    assert sorted(reason.code for reason in error.reasons) == ["MISSING_FILE", "WRONG_SIZE"]
    assert error.details["removed"] == ids[:1]
    assert [one["verdict"] for one in error.details["plan"]] == ["ok", "ok", "ok", "failed", "failed"]
    assert here(filler) == ["2", "3", "4", "5"]


def broken(monkeypatch: pytest.MonkeyPatch, path: str, times: int = 10**6) -> None:
    """The disk does not tell of this file, for so many times."""
    real, left = os.lstat, itertools.repeat(0, times)

    def lstat(name: Any, **more: Any) -> os.stat_result:
        if str(name).endswith(path) and next(left, None) is not None:
            raise OSError(errno.EIO, "Input/output error", str(name))
        return real(name, **more)

    monkeypatch.setattr(os, "lstat", lstat)


@pytest.mark.parametrize("trouble", ["gone", "once", "always"])
def test_f23_what_is_found_lacking_is_not_removed_by_the_same_run(
    filler: Filler, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """The newest copy that a node can open lacks a file, or the disk says once that it cannot tell."""
    ids = fill(filler, "ok", "ok", sealed=(SEALED,)) + fill(filler, "ok", "ok")
    path = filler.backups / ids[1] / "data" / "backup.bin"
    if trouble == "gone":
        path.unlink()
    else:
        broken(monkeypatch, f"{ids[1]}/data/backup.bin", 1 if trouble == "once" else 10**6)
    error = refused(filler)
    verdict, code, hold = {"gone": ("failed", "MISSING_FILE", "WRECK")}.get(
        trouble, ("unverified", *["UNREADABLE"] * 2)
    )
    assert error.code == code and error.details["removed"] == [] and events(filler) == {}
    plan = {one["id"]: one for one in error.details["plan"]}
    assert plan[ids[1]]["verdict"] == verdict and plan[ids[1]]["reasons"][0]["code"] == hold
    assert [reason["code"] for reason in plan[ids[0]]["reasons"]] == ["LAST_PAIR"]
    assert "It stays for now" in error.reasons[0].remedy and here(filler) == ["1", "2", "3", "4"]
    if trouble == "once":
        assert run(filler).removed == ids[:1]


def test_f23_what_a_verification_finds_lacking_goes_as_failed(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    (filler.backups / ids[2] / "data" / "backup.bin").unlink()
    assert refused(filler, ONE).details["removed"] == ids[:1]
    assert refused(filler, ONE).details["removed"] == [], "however often"
    verify(store_of(filler), VerifyRequest(ids=[ids[2]], run_id="v"))
    ids += fill(filler, "ok")
    assert run(filler, ONE).removed == [ids[2], ids[1]]
    assert {name: data["verdict"] for name, data in events(filler).items()} == {
        ids[0]: "ok",
        ids[1]: "ok",
        ids[2]: "failed",
    }


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("wreck", ["tampered", "damaged"])
def test_f25_what_the_plan_takes_for_failed_is_recorded_so(filler: Filler, wreck: str, killed: bool) -> None:
    """The ledger says ok of it, of other bytes: recorded as good, it would never come home again."""
    ids = fill(filler, "ok", "ok", "ok")
    path = filler.backups / ids[0] / "manifest.json"
    if wreck == "damaged":
        path.write_bytes(path.read_bytes().replace(b'"5.4.2031"', b'"5.4.2032"'))
    else:
        forged = Filler(filler.path.parent / "forged", 8)
        name = forged.publish("ok", files=(("backup.bin", b"forged"),), sealed=(), when=filler.start + 3600)
        assert name == ids[0]
        shutil.copytree(forged.backups / name, filler.backups / name, dirs_exist_ok=True)
    if killed:
        with pytest.raises(Killed):
            run(filler, checkpoint=killing(2))
        dead(filler)
    run(filler)
    assert here(filler) == ["2", "3"] and events(filler)[ids[0]]["verdict"] == "failed"


def test_a_wreck_that_is_none_when_its_turn_comes_stays(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk did not give its manifest when the plan was made."""
    ids = fill(filler, "ok", "ok", "ok", "ok")
    path = filler.backups / ids[0] / "manifest.json"
    good = path.read_bytes()
    path.write_bytes(b"")
    real = _prune.retention.plan

    def plan(*given: Any, **named: Any) -> Any:
        made = real(*given, **named)
        path.write_bytes(good)
        return made

    with monkeypatch.context() as patched:
        patched.setattr(_prune.retention, "plan", plan)
        error = refused(filler)
    assert error.code == "NOT_FAILED" and error.details["removed"] == ids[1:2]
    assert run(filler).removed == ids[:1]


def test_f24_what_is_not_understood_is_not_counted(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok", "ok")
    (filler.backups / ids[4] / "manifest.json").write_bytes(b"")
    path = filler.backups / ids[3] / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"5.4.2031"', b'"5.4.2032"'))
    assert run(filler).removed == ids[:1]
    assert here(filler) == ["2", "3"]


def test_f24_a_backup_that_lost_its_manifest_is_no_half_done_removal(filler: Filler) -> None:
    """Its data may be all that is left of it: a rule may let it go, nothing else does."""
    ids = fill(filler, "ok", "ok", "ok", "ok")
    (filler.backups / ids[1] / "manifest.json").unlink()
    done = run(filler, Policy(keep=1, max_age=1e9))
    assert (done.removed, done.cleared, done.changed) == ([], [], False)
    assert (filler.backups / ids[1] / "data" / "backup.bin").exists()
    assert run(filler, Policy(keep=1, max_age=1e9, failed_grace=1.0)).removed == [ids[1]]
    assert events(filler)[ids[1]] == {"codes": ["FAILED"], "digest": "", "bytes": 0, "verdict": "failed", "key": ""}


def test_f24_what_the_ledger_never_heard_of_goes_as_unverified(filler: Filler) -> None:
    name = filler.publish(sealed=())
    filler.lines.clear()
    filler.head = None
    fill(filler, "ok", "ok")
    assert run(filler).removed == [name] and events(filler)[name]["verdict"] == "unverified"


def test_f06_without_a_required_part_nothing_counts_as_verified(filler: Filler) -> None:
    fill(filler, "ok", "ok", "ok")
    done = run(filler, require=["config"])
    assert [one["verdict"] for one in done.returns()["plan"]] == ["unverified"] * 3 and not done.changed


def test_f24_what_is_not_ours_is_never_removed(filler: Filler) -> None:
    ids = fill(filler, *["ok"] * 6)
    for name, old, new in (
        (ids[0], b'"schema": 1', b'"schema": 2'),
        (ids[1], b"kmsops.fortanix_dsm/backup", b"kmsops.fortanix_dsm/others"),
        (ids[2], b'"schema": 1', b'"schema": 0'),
    ):
        path = filler.backups / name / "manifest.json"
        path.write_bytes(path.read_bytes().replace(old, new))
    (filler.backups / "12345678-by-hand").mkdir()
    assert run(filler, Policy(keep=1, max_copies=1, failed_grace=0.0)).removed == ids[3:5]
    assert sorted(os.listdir(filler.backups)) == [*ids[:3], ids[5], "12345678-by-hand"]


def test_f25_a_manifest_that_contradicts_the_ledger_is_not_counted(filler: Filler) -> None:
    """Data and manifest were replaced, with sums that fit: the ledger remembers other ones."""
    ids = fill(filler, "ok", "ok", "ok", "ok")
    for index in (2, 3):
        shutil.rmtree(filler.backups / ids[index])
        forged = Filler(filler.path.parent / "forged" / str(index), 8)
        forged.ids = ids[:index]
        name = forged.publish(
            "ok", files=(("backup.bin", b"forged"),), sealed=(), when=filler.start + (index + 1) * 3600
        )
        assert name == ids[index]
        shutil.copytree(forged.backups / name, filler.backups / name)
    assert run(filler).removed == []


def test_unreadable_notes_count_as_a_pin(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    (filler.backups / ids[0] / "notes.json").write_bytes(b"{")
    done = run(filler)
    assert done.removed == []
    assert done.returns()["plan"][0]["reasons"][0]["code"] == "NOTES_UNREADABLE"


def test_a_broken_ledger_stops_it_and_a_rolled_back_one_asks(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    path = filler.path / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0].replace(b"5.4", b"5.5"), *lines[1:]]))
    assert refused(filler).code == "LEDGER_BROKEN"
    path.write_bytes(b"".join(lines))
    anchored = {"sequence": 6, "hash": json.loads(lines[5])["hash"]}
    filler.publish("", ledger=anchored, sealed=())
    assert here(filler) == ["1", "2", "3", "4"]
    path.write_bytes(b"".join(lines[:-1]))
    assert refused(filler).code == "LEDGER_ROLLED_BACK"
    assert here(filler) == ["1", "2", "3", "4"]
    done = run(filler, Policy(keep=1, max_copies=1), accept=["LEDGER_ROLLED_BACK"])
    assert done.removed == ids[:1] and done.accepted[0].code == "LEDGER_ROLLED_BACK"


def test_several_failures_have_one_name_together(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok", "ok")
    (filler.backups / ids[4] / "data" / "backup.bin").unlink()
    with store_of(filler).reading(ids[0]):
        error = refused(filler)
    assert error.code == "PRUNE_INCOMPLETE"
    assert sorted(reason.code for reason in error.reasons) == ["BEING_READ", "MISSING_FILE"]
    assert error.message == "Pruning is not complete (1 removed, 2 not as wanted)."


def test_check_mode_counts_what_would_become_free(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half removed and forgotten things make room too."""
    ids = fill(filler, "ok", "ok", "ok")
    store_of(filler).unpublish(ids[0])
    shutil.rmtree(filler.backups / ids[0] / "data")
    stale = filler.path / "incoming" / "00000009-20260101T000000Z"
    stale.mkdir(parents=True)
    (stale / "journal.jsonl").write_bytes(bytes(500))
    for path in (stale / "journal.jsonl", stale):
        os.utime(path, (1, 1))
    left = sum(path.stat().st_size for path in (filler.backups / ids[0]).rglob("*") if path.is_file()) + 500
    monkeypatch.setattr(ClusterStore, "free", lambda _self: (0, 1000))
    planned = run(filler, need=left, check=True)
    assert planned.removed == [] and planned.cleared == [ids[0], stale.name]
    assert planned.before == {"backups": [ids[0]], "incoming": [stale.name], "unpublished": []}
    assert refused(filler, need=left + 1, check=True).details["missing"] == 1
    monkeypatch.undo()
    done = run(filler)
    assert (done.before, done.after) == (planned.before, planned.after)
    assert done.freed == left and done.cleared == [stale.name]


@pytest.mark.parametrize("days", [-400, -1, 1, 400])
def test_f17_a_clock_that_jumps_removes_nothing(filler: Filler, monkeypatch: pytest.MonkeyPatch, days: int) -> None:
    fill(filler, *["ok"] * 6)
    policy = Policy(keep=1, max_age=5 * 3600.0)
    assert not run(filler, policy).changed
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * 86400)
    assert not run(filler, policy).changed


# -- pins and pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", "../incoming", "/tmp", "00000001-20260101T000000Z", "00000001\n"])
def test_a_pin_lands_on_a_backup_and_nowhere_else(filler: Filler, name: str) -> None:
    fill(filler, "ok")
    (filler.path / "incoming").mkdir()
    before = snapshot(filler)
    with pytest.raises(DsmError) as caught:
        say(store_of(filler), name, "pinned", Saying("j.doe", utc_text(0), "x"), True)
    assert caught.value.code == "NOT_PUBLISHED" and snapshot(filler) == before


def test_what_is_being_removed_cannot_be_pinned_any_more(filler: Filler) -> None:
    (name,) = fill(filler, "ok")
    store_of(filler).unpublish(name)
    with pytest.raises(DsmError):
        say(store_of(filler), name, "pinned", Saying("j.doe", utc_text(0), "x"), True)
    assert not (filler.backups / name / "notes.json").exists()


def test_golden_backups_stay_until_released_and_the_last_pair_even_then(filler: Filler) -> None:
    gold = fill(filler, "ok", "ok", sealed=(golden(),))
    plain = fill(filler, "ok", "ok", "ok")
    assert run(filler).removed == plain[:1]
    store = store_of(filler)
    for name in gold:
        say(store, name, "released", Saying("j.doe", "2026-11-22T00:00:00Z", "dr1 is scrapped"), True)
    done = run(filler)
    assert done.removed == gold[:1]
    codes = {item["id"]: [reason["code"] for reason in item["reasons"]] for item in done.returns()["plan"]}
    assert codes[gold[1]] == ["LAST_PAIR"]


def test_a_backup_that_no_node_can_open_is_nobodys_last_pair(filler: Filler) -> None:
    """It started before the node joined."""
    late = dataclasses.replace(golden(), joined_at="2026-11-21T02:00:00Z")
    ids = fill(filler, "ok", sealed=(late,)) + fill(filler, "ok", "ok")
    assert run(filler).removed == ids[:1]


def test_a_wreck_that_nobody_recorded_is_as_old_as_its_directory(filler: Filler) -> None:
    fill(filler, "ok", "ok")
    wreck = filler.backups / "00000003-20260101T000000Z"
    wreck.mkdir()
    (wreck / "manifest.json").write_bytes(b"{}")
    os.utime(wreck, (filler.start, filler.start))
    (item,) = [one for one in run(filler, check=True).returns()["plan"] if one["id"] == wreck.name]
    assert item["verdict"] == "failed" and item["age"] == pytest.approx(2 * 3600, abs=2)


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/nowhere"), lambda path: path.write_bytes(b"")])
def test_f28_what_is_no_directory_of_a_backup_stops_nothing(filler: Filler, make: Callable[[Path], Any]) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok")
    stray = filler.backups / "00000000-20260101T000000Z"
    make(stray)
    error = refused(filler)
    # What it is, a person must find out.
    assert error.code == "REMOVE_FAILED" and [stray.name in one.message for one in error.reasons] == [True]
    assert here(filler) == ["3", "4"] and error.details["removed"] == ids[:2] and os.path.lexists(stray)


def test_f17_a_source_whose_clock_ran_before_the_calendar_removes_nothing_more(filler: Filler) -> None:
    source = {"host": "l", "path": "p", "layout": "single", "key": "k", "hash": "none", "clock_skew": -(10**11)}
    fill(filler, "ok", "ok", "ok", source=source)
    made = run(filler, Policy(keep=1, max_age=1.0)).returns()
    assert made["removed"] == [] and "0001-01-01T00:00:00Z" in made["frozen"]


def test_a_pair_that_a_rehearsal_proved_counts_as_pinned(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok", sealed=(SEALED,))
    filler.event("proved", SEALED.node, {"backup": ids[0]}, filler.start)
    filler.close()
    done = run(filler)
    assert done.removed == [ids[1]]
    assert done.returns()["plan"][0]["reasons"][0]["code"] == "GOLDEN"


@pytest.mark.parametrize("late", ["chosen", "unpublished"])
def test_a_pair_that_is_proved_while_others_go_stays(filler: Filler, late: str) -> None:
    """Also one that was un-published by then."""
    ids = fill(filler, *["ok"] * 5, sealed=(SEALED,))
    counted = itertools.count()

    def checkpoint(step: str) -> None:
        if step == late and next(counted) == (0 if late == "chosen" else 2):
            store_of(filler).ledger.append(run_id="r", kind="proved", subject=SEALED.node, data={"backup": ids[1]})

    error = refused(filler, checkpoint=checkpoint)
    assert error.code == "GOLDEN" and ids[1] in error.reasons[0].message
    assert error.details["removed"] == [ids[0], ids[2]] and here(filler) == ["2", "4", "5"]
    assert run(filler).removed == []


def test_a_golden_copy_stays_if_its_release_is_taken_back_or_its_node_set_aside_meanwhile(filler: Filler) -> None:
    other = dataclasses.replace(golden(), node="dr2", platform_id="SN-2")
    members = [{"name": "dr2"}]
    filler.event("observed_members", CLUSTER, {"fingerprint": "f", "members": members}, filler.start)
    ids = fill(filler, "ok", "ok", sealed=(golden(),)) + fill(filler, "ok", sealed=(other,))
    ids += fill(filler, "ok", "ok") + fill(filler, "ok", sealed=(golden(), other))
    store, saying = store_of(filler), Saying("j.doe", "2026-11-22T00:00:00Z", "dr1 is scrapped")
    for name in ids[:2]:
        say(store, name, "released", saying, True)
    told = []

    def checkpoint(step: str) -> None:
        if step == "unpublished" and not told:
            told.append(step)
            say(store, ids[1], "unpinned", saying, True)
            store.ledger.append(run_id="r", kind="set_aside", subject="dr2", data={})

    error = refused(filler, checkpoint=checkpoint)
    assert [reason.code for reason in error.reasons] == ["GOLDEN", "GOLDEN"]
    assert error.details["removed"] == [ids[0], ids[3]] and here(filler) == ["2", "3", "5", "6"]


def test_golden_for_a_member_does_not_fill_the_store(filler: Filler) -> None:
    filler.event("observed_members", CLUSTER, {"fingerprint": "f", "members": [{"name": "dr1"}]}, filler.start)
    gold = fill(filler, *["ok"] * 5, sealed=(golden(),))
    assert run(filler).removed == gold[:3]


def test_a_pin_ends_a_day_after_its_time(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    end = int(time.time()) + 1000
    say(store_of(filler), ids[0], "pinned", Saying("j.doe", utc_text(0), "drill", utc_text(end)), True)
    for late, expected in ((86400, []), (86401, ids[:1])):
        monkeypatch.setattr(time, "time", lambda late=late: end + late)
        assert run(filler).removed == expected


def test_ids_are_never_used_again(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok", "ok")
    run(filler)
    assert ids[0] in store_of(filler).seen_ids()
    assert not ledger.fold(store_of(filler).ledger.trusted().events).backups.keys() & set(ids[:2])


@pytest.mark.parametrize("wreck", ["damaged", "gone"])
def test_a_golden_copy_that_lost_its_manifest_stays(filler: Filler, wreck: str) -> None:
    gold = filler.publish(sealed=(golden(),))
    for _index in range(3):
        filler.publish(sealed=())
    filler.close()
    path = filler.backups / gold / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"bytes"', b'"bytez"')) if wreck == "damaged" else path.unlink()
    assert [one["id"] for one in ledger.fold(store_of(filler).ledger.trusted().events).golden] == [gold]
    assert run(filler, Policy(keep=2, failed_grace=0.0)).removed == []


def test_f23_a_last_pair_that_is_only_on_paper_is_none(filler: Filler) -> None:
    first, second = (filler.publish(sealed=(SEALED,)) for _index in range(2))
    for _index in range(2):
        filler.publish(sealed=())
    filler.close()
    shutil.rmtree(filler.backups / second / "data")
    with pytest.raises(DsmError):
        run(filler, Policy(keep=2, max_copies=2))
    assert (filler.backups / first / "manifest.json").exists()


def test_a_copy_that_fails_while_others_are_removed_ends_the_removal(filler: Filler) -> None:
    """After the first of two surplus copies was un-published, one of the two that were to stay fails."""
    ids = [filler.publish(sealed=()) for _index in range(4)]
    filler.close()
    told = []

    def at(step: str) -> None:
        if step == "unpublished" and not told:
            told.append(step)
            (filler.backups / ids[3] / "data" / "backup.bin").write_bytes(b"012345678X")
            verify(store_of(filler), VerifyRequest(ids=[ids[3]], run_id="meanwhile"))

    with pytest.raises(DsmError) as caught:
        run(filler, Policy(keep=2, max_copies=2), checkpoint=at)
    assert caught.value.code == "STAYING_FAILED"
    backups = ledger.fold(store_of(filler).ledger.trusted().events).backups
    assert [name for name, one in backups.items() if one["verdict"] == "ok"] == ids[:3] == verified(filler)


def test_f25_a_golden_copy_stays_golden_whatever_its_manifest_is_made_to_say(filler: Filler) -> None:
    gold = fill(filler, "ok", "ok", sealed=(golden(),))
    fill(filler, "ok", "ok", "ok")
    for name in gold:
        resealed(filler.backups / name / "manifest.json", sealed_for=[])
    assert run(filler, TWO._replace(failed_grace=0.0)).removed == [filler.ids[2]]
    assert here(filler) == ["1", "2", "4", "5"]


def test_f25_a_forged_pair_takes_the_place_of_no_real_one(filler: Filler) -> None:
    (real,) = fill(filler, "ok", sealed=(golden(),))
    say(store_of(filler), real, "released", Saying("j.doe", "2026-11-22T00:00:00Z", "dr1 is scrapped"), True)
    fill(filler, "ok", "ok", "ok")
    forged = {"sealed_for": [golden().__dict__], "snapshot_started": SNAPSHOT, "snapshot_source": "observed"}
    resealed(filler.backups / filler.ids[3] / "manifest.json", **forged)
    done = run(filler)
    (first,) = [one for one in done.plan.decisions if one.item.id == real] if done.plan else []
    assert not first.remove and [reason.code for reason in first.reasons] == ["LAST_PAIR"]


def test_f28_a_wreck_that_the_disk_does_not_tell_about_is_as_young_as_can_be(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the others are decided about."""
    ids = fill(filler, "ok", "ok", "ok", "ok")
    wreck = filler.backups / "00000003-20260101T000000Z"
    wreck.mkdir()
    (wreck / "part").write_bytes(b"1")
    real = os.lstat

    def lstat(path: Any, **named: Any) -> os.stat_result:
        if str(path).startswith(str(wreck)) and not str(path).endswith(".json"):
            raise OSError(errno.EUCLEAN, os.strerror(errno.EUCLEAN), path)
        return real(path, **named)

    monkeypatch.setattr(os, "lstat", lstat)
    done = run(filler, check=True)
    assert done.removed == ids[:2]
    _metrics.write(store_of(filler), str(filler.path / "dsm.prom"))


# -- room and required parts ------------------------------------------------------------------------------------------
def disk(monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
    """A disk that has so many bytes for the data of published backups."""

    def free(self: ClusterStore) -> tuple[int, int]:
        files = Path(self.backups_path).glob("*/data/**/*")
        return capacity - sum(path.stat().st_size for path in files if path.is_file()), 1 << 30

    monkeypatch.setattr(ClusterStore, "free", free)


def test_f06_a_missing_bundle_does_not_cost_every_verified_copy_of_the_data(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be made again. Hourly backups come after the nightly verification, and the disk is full."""
    ids = fill(filler, "ok", "ok", "ok", "ok", "", "", "")
    disk(monkeypatch, 70)
    removed = []
    for _night in range(3):
        removed += run(filler, Policy(keep=3), require=["config"], need=10).removed
        fill(filler, "")
    assert removed == [ids[0], *ids[4:6]] and set(ids[1:4]) <= {*here_ids(filler)}
    oldest = run(filler, Policy(keep=3), True, require=["config"]).returns()["plan"][0]
    assert (oldest["verdict"], [reason["code"] for reason in oldest["reasons"]]) == ("unverified", ["FLOOR"])


def test_f06_the_newest_that_is_right_stays_where_the_one_after_it_is_a_wreck(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(filler, "ok", "ok", "")
    shutil.rmtree(filler.backups / ids[1] / "data")
    monkeypatch.setattr(ClusterStore, "free", lambda _self: (0, 1000))
    error = refused(filler, Policy(keep=1), require=["config"], need=10)
    assert ids[0] in here_ids(filler) and {reason.code for reason in error.reasons} == {"MISSING_FILE", "STORE_FULL"}


def test_of_two_copies_of_one_delivery_the_other_counts_where_the_newer_is_a_wreck(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"host": "landing", "path": "x", "layout": "single", "key": "same", "hash": "none", "clock_skew": 0}
    ids = fill(filler, "ok", "ok", source=source) + fill(filler, "")
    shutil.rmtree(filler.backups / ids[1] / "data")
    monkeypatch.setattr(ClusterStore, "free", lambda _self: (0, 1000))
    with pytest.raises(DsmError):
        run(filler, Policy(keep=1), need=10)
    assert ids[0] in here_ids(filler)


def test_metrics_count_as_pruning_counts_where_a_part_is_missing(filler: Filler, tmp_path: Path) -> None:
    fill(filler, "ok", "ok", "ok")
    path = tmp_path / "dsm.prom"
    done = run(filler, Policy(keep=1, max_age=1e9), need=0, require=["config"], metrics=str(path))
    told = dict(re.findall(r"^kmsops_dsm_store_(\w+)\{.*\} (\S+)$", path.read_text(), re.M))
    assert done.plan and done.plan.verified == 0 and done.plan.frozen
    assert (told["verified_copies"], told["expiry_frozen"]) == ("0", "1")
    assert "last_success_timestamp_seconds" not in told, "or the alarm on its age would never ring"


def test_f28_an_unfinished_transfer_that_cannot_be_removed_stops_no_pruning(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = fill(filler, "ok", "ok", "ok")
    (filler.path / "incoming" / ids[0] / "data").mkdir(parents=True)
    real = shutil.rmtree

    def rmtree(path: Any, *more: Any, **named: Any) -> None:
        if "/incoming/" in str(path):
            raise OSError(errno.EPERM, "Operation not permitted", str(path))
        real(path, *more, **named)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(DsmError) as caught:
        run(filler, Policy(keep=1, max_copies=1), need=0)
    assert caught.value.details.get("removed"), caught.value


def test_f28_a_file_in_incoming_that_the_disk_does_not_tell_about_stops_no_pruning(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(filler, "ok", "ok", "ok")
    stale = filler.path / "incoming" / "00000009-20260101T000000Z"
    stale.mkdir(parents=True)
    (stale / "journal.jsonl").write_text("")
    real = os.lstat

    def lstat(path: Any, *more: Any, **named: Any) -> os.stat_result:
        if str(path).endswith("journal.jsonl"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return real(path, *more, **named)

    monkeypatch.setattr(os, "lstat", lstat)
    assert len(run(filler, Policy(keep=1, max_copies=1)).removed) == 2 and stale.exists()


def test_f13_a_store_without_inodes_recovers_by_itself(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shipping refuses what has more files than there are inodes."""
    many = tuple((f"n1/{number}", b"1") for number in range(20))
    ids = fill(filler, *["ok"] * 6, files=many)
    filler.event("no_room", "key-7", {"name": "x", "host": "h", "bytes": 22, "files": 25, "newer": []}, time.time())
    filler.close()

    def free(self: ClusterStore) -> tuple[int, int]:
        return 1 << 40, 121 - sum(1 for _path in Path(self.backups_path).glob("*/data/*/*"))

    monkeypatch.setattr(ClusterStore, "free", free)
    error = refused(filler, Policy(keep=5), need=None)
    assert error.code == "STORE_FULL" and "4 inodes are missing" in error.reasons[0].message
    assert (error.details["missing"], error.details["missing_inodes"]) == (0, 4)
    assert run(filler, Policy(keep=3), need=None).removed == ids[:2]


def test_check_mode_knows_which_inodes_become_free(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    many = tuple((f"n1/{number}", b"1") for number in range(20))
    ids = fill(filler, *["ok"] * 4, files=many)
    store_of(filler).unpublish(ids[0])
    (filler.backups / ids[0] / "data" / "n1" / "0").unlink()

    def free(self: ClusterStore) -> tuple[int, int]:
        return 1 << 40, 85 - sum(1 for path in Path(self.backups_path).rglob("*") if path.is_file())

    monkeypatch.setattr(ClusterStore, "free", free)
    planned = run(filler, Policy(keep=1), True, need=None)
    done = run(filler, Policy(keep=1), need=None)
    assert (planned.removed, planned.cleared, done.removed) == ([], ids[:1], [])


def test_news_that_doubt_nothing_stop_nothing(filler: Filler) -> None:
    ids = fill(filler, "ok", "ok", "ok", "")

    def at(step: str) -> None:
        if step == "chosen":
            filler.event("proved", "dr1", {"backup": ids[2]}, time.time())
            filler.close()

    assert run(filler, checkpoint=at).removed == ids[:1]
