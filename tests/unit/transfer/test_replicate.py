# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second store on another disk: what comes, what is repaired, what is refused, and what a kill at any step leaves."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from many_backups import CLUSTER, FINGERPRINT, SEALED, Filler, golden, resealed

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import catalogue, ledger, replication
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.notes import Saying
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import Policy
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import digest
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import (
    _endpoint,
    _pull,
    _replicate,
    _store,
    _verify,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._disk import store_full
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import LocalEndpoint
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._info import info
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._keeping import say
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._other import Site
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._parts import adopt, bundles, put, states
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._prune import PruneRequest, prune
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._pull import (
    Progress,
    TransferPlan,
    TransferReport,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ranges import Range
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._replicate import (
    ReplicateRequest,
    ReplicateResult,
    replicate,
)
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sites import remember
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._verify import VerifyRequest, verify


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


class Stores:
    """A first store with backups, and an empty second one."""

    def __init__(self, root: Path) -> None:
        self.first, self.second = root / "first", root / "second"
        self.second.mkdir()
        self.filler = Filler(self.first, 8)

    def fill(self, *verdicts: str, **facts: Any) -> list[str]:
        made = [self.filler.publish(verdict, **facts) for verdict in verdicts]
        self.filler.close()
        return made

    def fill_anchored(self, count: int, **facts: Any) -> list[str]:
        """As :meth:`fill`, and each manifest names the event before it, as those that were really shipped do."""
        made = []
        for _index in range(count):
            head = self.filler.head
            anchor = {"sequence": head.sequence, "hash": head.hash} if head else {"sequence": 0, "hash": "0" * 64}
            made += self.fill("ok", ledger=anchor, **facts)
        return made

    def lose(self, here: str) -> None:
        """The disk of a store is gone."""
        root = self.second if here == "second" else self.first
        shutil.rmtree(root)
        root.mkdir()

    def run(self, check: bool = False, *, here: str = "second", **request: Any) -> ReplicateResult:
        there = {"second": self.first, "first": self.second}[here]
        chosen = {"workers": 1, "run_id": "replicate-1", **request}
        store = str(self.second if here == "second" else self.first)
        return replicate(ReplicateRequest(store, Site(LocalEndpoint(), str(there), "elsewhere"), **chosen), check)

    def killed_at(self, step: str) -> None:
        """A run dies when it has done this."""

        def at(done: str) -> None:
            if done == step:
                raise Killed

        with pytest.raises(Killed):
            self.run(checkpoint=at)
        # A dead process has no lease.
        (self.second / CLUSTER / "lock").unlink(missing_ok=True)

    def refused(self, **request: Any) -> DsmError:
        with pytest.raises(DsmError) as caught:
            self.run(**request)
        return caught.value

    def store(self, here: str = "second") -> ClusterStore:
        return ClusterStore.require(str(self.second if here == "second" else self.first))

    def folded(self, here: str = "second") -> ledger.Folded:
        return ledger.fold(self.store(here).ledger.trusted().events)

    def verdicts(self, here: str = "second") -> dict[str, str]:
        backups = info(str(self.second if here == "second" else self.first), "", "")["backups"]
        return {item["id"]: item["verdict"] for item in backups}

    def damage(self, name: str, here: str = "second", verified: bool = True) -> Path:
        """Flip a bit of a copy, and let verification find it."""
        (path,) = (p for p in (Path(self.store(here).data_path(name))).rglob("*") if p.is_file())
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        path.write_bytes(data)
        if verified:
            (verdict,) = verify(self.store(here), VerifyRequest(ids=[name], run_id="v")).verdicts
            assert verdict.verdict == "failed"
        return path


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return Stores(tmp_path)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes are copied by this process: the workers have tests of their own."""

    def copy(plan: TransferPlan, progress: Progress, _pool: Any) -> TransferReport:
        report = TransferReport()
        for item in plan.items:
            target = Path(plan.directory) / item.path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(item.source).read_bytes())
            report.sha256[item.path] = hashlib.sha256(target.read_bytes()).hexdigest()
            progress(1, 1, 1)
        return report

    monkeypatch.setattr(_replicate, "pull", copy)
    monkeypatch.setattr(_replicate, "Pool", lambda *_arguments: contextlib.nullcontext(object()))
    monkeypatch.setattr(_store.os, "fsync", lambda _descriptor: None)


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def codes(error: DsmError) -> list[str]:
    return sorted({reason.code for reason in error.reasons} or {error.code})


def test_a_second_store_has_what_the_first_has_and_its_own_evidence(stores: Stores) -> None:
    ids = stores.fill("ok", "", "ok", sealed=(golden(),), files=(("a/x", b"1" * 99), ("b", b"2" * 7)))
    joined = {"joined_at": "2026-11-21T00:00:00Z"}
    stores.filler.event("joined", "dr1", joined, time.time())
    stores.filler.close()
    before = tree(stores.first)
    planned = stores.run(check=True)
    assert list(stores.second.iterdir()) == [] and planned.changed
    done = stores.run()
    assert tree(stores.first) == before
    assert (planned.before, planned.after, planned.parts) == (done.before, done.after, done.parts)
    assert [item["id"] for item in done.backups] == ids[::-1] and all(item["published"] for item in done.backups)
    there, here = stores.store("first"), stores.store()
    assert [entry.manifest for entry in here.entries()] == [entry.manifest for entry in there.entries()]
    for name in ids:
        assert tree(Path(here.data_path(name))) == tree(Path(there.data_path(name)))
    # Its verdicts are its own: every byte was read here. What happened to the cluster is known here as well.
    assert stores.verdicts() == dict.fromkeys(ids, "ok") and stores.verdicts("first")[ids[1]] == "unverified"
    assert stores.folded().joins["dr1"]["joined_at"] == joined["joined_at"]
    assert [one["id"] for one in stores.folded().golden] == [one["id"] for one in stores.folded("first").golden]
    (event,) = (event for event in here.ledger.trusted().events if event.kind == "joined")
    assert event.data[ledger.ORIGIN]["hash"] == there.ledger.trusted().events[-1].hash
    assert (stores.second / CLUSTER / "other.jsonl").read_bytes() == before[f"{CLUSTER}/ledger.jsonl"]
    result = verify(here, VerifyRequest(run_id="v"))
    assert not result.reasons and {verdict.verdict for verdict in result.verdicts} == {"ok"}
    kept = tree(stores.second)
    again = stores.run()
    assert not again.changed and again.kept == 3 and again.backups == [] and again.events == 0
    assert {name for name, data in tree(stores.second).items() if kept.get(name) != data} <= {f"{CLUSTER}/other.json"}


def test_it_follows_the_first_but_not_into_removal(stores: Stores, quick: None) -> None:
    ids = stores.fill("ok", "ok", "ok", sealed=())
    stores.run()
    prune(stores.store("first"), PruneRequest(Policy(keep=1, max_copies=1), need=0), False)
    (new,) = stores.fill("ok", sealed=())
    done = stores.run()
    assert [item["id"] for item in done.backups] == [new]
    assert list(stores.verdicts()) == [*ids, new]
    # Its own retention: what it removed does not come home again, though the first still has it.
    prune(stores.store(), PruneRequest(Policy(keep=1, max_copies=1), need=0), False)
    assert list(stores.verdicts()) == [new]
    assert not stores.run().changed


def test_a_bad_copy_is_replaced_by_the_good_one_of_either_site(stores: Stores) -> None:
    ids = stores.fill("ok", "ok", sealed=())
    stores.run()
    good = tree(Path(stores.store().data_path(ids[0])))
    for here in ("second", "first"):
        stores.damage(ids[0], here)
        pin = Path(stores.store(here).backups_path) / ids[0] / "notes.json"
        pin.write_bytes(b"kept")
        planned = stores.run(check=True, here=here, only_repair=True)
        assert (planned.before["bad"], planned.after["bad"]) == ([ids[0]], [])
        done = stores.run(here=here, only_repair=True)
        assert done.before["bad"] == [ids[0]] and done.after == planned.after
        assert tree(Path(stores.store(here).data_path(ids[0]))) == good and pin.read_bytes() == b"kept"
        pin.unlink()
        assert stores.verdicts(here) == dict.fromkeys(ids, "ok")
        assert sorted(os.listdir(pin.parent)) == ["data", "manifest.json", "reads.json"]
        assert os.listdir(stores.store(here).repairs_path) == []
        assert not stores.run(here=here, only_repair=True).changed


@pytest.mark.parametrize("wreck", ["manifest", "data", "all", "swapped"])
def test_whatever_is_left_of_a_copy_it_comes_back_whole(stores: Stores, quick: None, wreck: str) -> None:
    ids = stores.fill("ok", "ok", sealed=())
    stores.run()
    backup = Path(stores.store().backups_path) / ids[1]
    whole = tree(backup / "data"), (backup / "manifest.json").read_bytes()
    if wreck == "manifest":
        (backup / "manifest.json").write_bytes(b"{}")
    elif wreck == "data":
        shutil.rmtree(backup / "data")
        verify(stores.store(), VerifyRequest(ids=[ids[1]]))
    elif wreck == "all":
        shutil.rmtree(backup)
    else:
        (backup / "manifest.json").unlink()
    if wreck == "manifest":
        # Not of this collection: nobody touches it but a person.
        assert codes(stores.refused(only_repair=True)) == ["HELD"]
        return
    stores.run(only_repair=True)
    assert (tree(backup / "data"), (backup / "manifest.json").read_bytes()) == whole
    assert stores.verdicts() == dict.fromkeys(ids, "ok")


def test_where_both_are_bad_nothing_is_touched(stores: Stores, quick: None) -> None:
    ids = stores.fill("ok", "ok", sealed=())
    stores.run()
    stores.damage(ids[0], "first")
    stores.damage(ids[0])
    stores.damage(ids[1], "first", verified=False)
    stores.damage(ids[1])
    before = tree(Path(stores.store().backups_path))
    error = stores.refused()
    assert codes(error) == ["BOTH_FAILED"] and len(error.reasons) == 2
    assert {item["id"]: item["action"] for item in error.details["backups"]} == {ids[0]: "leave", ids[1]: "repair"}
    assert tree(Path(stores.store().backups_path)) == before
    assert os.listdir(stores.store().repairs_path) == []


def test_a_copy_that_is_bad_there_is_not_taken(stores: Stores) -> None:
    ids = stores.fill("ok", "failed", "ok", sealed=())
    stores.damage(ids[0], "first", verified=False)
    error = stores.refused()
    assert codes(error) == ["OTHER_CORRUPT"] and ids[0] in str(error.reasons[0].message)
    assert list(stores.verdicts()) == [ids[2]] and stores.store().incoming() == []
    assert any(ids[1] in note for note in error.details["notes"])
    assert [site["missing"] for site in info(str(stores.second), "", "")["sites"]] == [0, 1]


def test_what_is_not_understood_there_is_not_passed_over(stores: Stores, quick: None) -> None:
    """A newer release, a changed manifest: it should be here and is not, so that is no success."""
    ids = stores.fill("ok", "ok", "ok", "ok", sealed=())
    manifest = [stores.filler.backups / name / "manifest.json" for name in ids]
    manifest[0].write_text(json.dumps({**json.loads(manifest[0].read_text()), "schema": 2}))
    manifest[1].write_bytes(manifest[2].read_bytes())
    manifest[2].unlink()
    error = stores.refused()
    assert codes(error) == ["OTHER_UNCLEAR"] and [reason.message[:8] for reason in error.reasons] == [
        ids[1][:8],
        ids[0][:8],
    ]
    assert list(stores.verdicts()) == ids[3:]
    assert info(str(stores.second), "", "")["sites"][1]["missing"] == 2


def test_f09_a_repair_that_was_not_tidied_up_does_not_cost_what_prune_unpublished_since(
    stores: Stores, quick: None
) -> None:
    """Its data are the good ones, whatever is left of the bad ones beside them."""
    ids = stores.fill("ok", "ok", sealed=())
    stores.run()
    stores.damage(ids[0])
    stores.killed_at("good manifest written")
    kept = stores.second / CLUSTER / "backups" / ids[0]
    assert (kept / "bad" / "data").is_dir()
    good = (kept / "data" / "backup.bin").read_bytes()
    stores.store().unpublish(ids[0])
    for _again in range(2):
        stores.run()
        assert (kept / "data" / "backup.bin").read_bytes() == good
    prune(stores.store(), PruneRequest(Policy(keep=2), run_id="p", need=0), False)
    assert stores.store().published(ids[0]) and (kept / "data" / "backup.bin").read_bytes() == good
    stores.run()
    assert not (kept / "bad").exists() and stores.store().published(ids[0])


def test_f25_a_manifest_that_was_changed_is_repaired_and_never_brought(stores: Stores, quick: None) -> None:
    ids = stores.fill("ok", "ok", sealed=(golden(),))
    there = stores.filler.backups / ids[1] / "manifest.json"
    right = there.read_bytes()
    resealed(there, sealed_for=[])
    error = stores.refused()
    assert codes(error) == ["OTHER_UNCLEAR"] and list(stores.verdicts()) == ids[:1]
    assert "the ledger there knows (manifest, sealed_for)" in error.reasons[0].message
    (site,) = [site for site in info(str(stores.second), "", "")["sites"] if not site["here"]]
    assert (site["newest_verified"], site["verified"], site["missing"]) == (ids[0], 1, 1)
    there.write_bytes(right)
    stores.run()
    here = stores.second / CLUSTER / "backups" / ids[1] / "manifest.json"
    resealed(here, sealed_for=[])
    assert stores.verdicts() == {ids[0]: "ok", ids[1]: "failed"}
    assert [step["action"] for step in stores.run().backups] == ["repair"]
    assert stores.verdicts() == dict.fromkeys(ids, "ok") and here.read_bytes() == right


def test_f25_a_bad_copy_is_not_repaired_with_a_manifest_that_this_ledger_does_not_know(
    stores: Stores, quick: None
) -> None:
    """The other site's ledger says the same as its changed manifest."""
    (name,) = stores.fill("ok", sealed=(golden(),))
    stores.run()
    before = (stores.second / CLUSTER / "backups" / name / "manifest.json").read_bytes()
    path = stores.second / CLUSTER / "backups" / name / "manifest.json"
    path.unlink()
    stores.lose("first")
    when = stores.filler.start + 3600.0
    stores.filler = Filler(stores.first, 8)
    stores.fill("ok", sealed=(), when=when)
    assert stores.filler.ids == [name]
    stores.second.joinpath(CLUSTER, "other.jsonl").unlink()
    error = stores.refused()
    assert codes(error) == ["BOTH_FAILED"] and "the ledger here knows (" in error.reasons[0].message
    assert "sealed_for" in error.reasons[0].message
    # Where only the bytes are bad, nothing but bytes is wanted.
    path.write_bytes(before)
    stores.damage(name)
    assert [step["action"] for step in stores.run().backups] == ["repair"]
    assert path.read_bytes() == before and stores.verdicts() == {name: "ok"}


def test_f25_what_an_older_release_repaired_with_another_manifest_of_the_same_bytes_is_good(
    stores: Stores, quick: None
) -> None:
    """Where both sites were shipped into, a repair brought the other's manifest, and the record stayed as it was."""
    name = stores.filler.publish("ok", sealed=())
    stores.filler.forget("manifest")
    stores.filler.close()
    path = stores.filler.backups / name / "manifest.json"
    resealed(path, source={**json.loads(path.read_text())["source"], "host": "192.0.2.7"})
    assert stores.verdicts("first") == {name: "ok"}
    resealed(path, version="5.4.2032")
    assert stores.verdicts("first") == {name: "failed"}


def test_two_stores_that_both_were_shipped_into_are_not_mixed(stores: Stores, quick: None) -> None:
    ids = stores.fill("ok", sealed=())
    stores.run()
    other = Filler(stores.first.parent / "third", 8)
    when = stores.filler.start + 3600.0
    other.publish("ok", files=(("backup.bin", b"something else"),), sealed=(), when=when)
    other.close()
    shutil.rmtree(stores.first)
    (stores.first.parent / "third").rename(stores.first)
    stores.second.joinpath(CLUSTER, "other.jsonl").unlink()
    before = tree(Path(stores.store().backups_path))
    assert codes(stores.refused()) == ["DIVERGED"]
    stores.damage(ids[0])
    assert codes(stores.refused()) == ["DIVERGED"]
    assert tree(Path(stores.store().backups_path)).keys() == before.keys()


def test_another_cluster_is_refused(stores: Stores, quick: None) -> None:
    stores.fill("ok")
    stores.run()
    before = tree(stores.second)
    shutil.rmtree(stores.first)
    fingerprint = hashlib.sha256(b"another").hexdigest()
    stores.filler = Filler(stores.first, 8, fingerprint)
    stores.fill("ok")
    assert stores.refused().code == "ANOTHER_CLUSTER"
    assert stores.refused(cluster_id=CLUSTER).code == "UNKNOWN_CLUSTER"
    assert stores.refused(only_repair=True, new_cluster=True).code in ("ANOTHER_CLUSTER", "UNKNOWN_CLUSTER")
    assert tree(stores.second) == before
    assert stores.run(new_cluster=True).changed
    assert sorted(path.name for path in stores.second.iterdir()) == sorted([CLUSTER, fingerprint[:16]])


def test_a_store_that_is_newer_broken_or_nowhere_is_refused(stores: Stores, quick: None) -> None:
    stores.fill("ok")
    path = stores.first / CLUSTER / "store.json"
    whole = path.read_bytes()
    value = json.loads(whole)
    for data, code in ((b"", "OTHER_EMPTY"), (json.dumps({**value, "schema": 99}).encode(), "OTHER_NEWER_SCHEMA")):
        path.write_bytes(data)
        assert stores.refused().code == code
    path.unlink()
    assert stores.refused().code == "OTHER_MISSING"
    assert list(stores.second.iterdir()) == []
    path.write_bytes(whole)
    stores.second = stores.first
    assert stores.refused().code == "SOURCE_IS_STORE"


def test_a_ledger_that_lost_events_is_refused_until_a_person_says_so(stores: Stores, quick: None) -> None:
    stores.fill("ok", "ok", sealed=())
    stores.run()
    path = stores.first / CLUSTER / "ledger.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    before = tree(stores.second)
    path.write_bytes(b"".join(lines[:-1]))
    assert stores.refused().code == "OTHER_LEDGER_ROLLED_BACK"
    path.write_bytes(b"".join([*lines[:1], *lines[2:]]))
    assert stores.refused().code == "OTHER_LEDGER_BROKEN"
    path.unlink()
    assert stores.refused().code == "OTHER_LEDGER_ROLLED_BACK"
    assert tree(stores.second) == before
    stores.filler.head = None
    (new,) = stores.fill("ok", sealed=())
    done = stores.run(accept=frozenset(["OTHER_LEDGER_ROLLED_BACK"]))
    assert [reason.code for reason in done.accepted] == ["OTHER_LEDGER_ROLLED_BACK"]
    assert new in stores.verdicts() and (stores.second / CLUSTER / "other.jsonl").read_bytes() == b"".join(lines)


def test_a_store_that_was_filled_again_from_the_other_knows_what_it_knew(stores: Stores, quick: None) -> None:
    ids = stores.fill_anchored(4, sealed=(SEALED,))
    stores.filler.event("proved", "dr1", {"backup": ids[0]}, time.time())
    stores.filler.event("joined", "dr2", {"version": "5.4"}, time.time())
    stores.filler.event("removed", "dr2", {}, time.time())
    stores.filler.close()
    stores.run()
    before = stores.folded()
    stores.lose("first")
    stores.run(here="first")
    after = stores.folded("first")
    assert [(one["node"], one["backup"]) for one in after.proved] == [("dr1", ids[0])]
    assert (after.joins.keys(), after.removed.keys(), after.members) == (
        before.joins.keys(), before.removed.keys(), before.members,
    )  # fmt: skip
    pruned = prune(stores.store("first"), PruneRequest(Policy(keep=2, max_copies=2), need=0), False)
    assert pruned.removed == [ids[1]]
    assert not verify(stores.store("first"), VerifyRequest()).reasons
    # The other one says that it is not the ledger it knew, and what to do; then both work as before.
    assert stores.refused().code == "OTHER_LEDGER_ROLLED_BACK"
    (stores.second / CLUSTER / "other.jsonl").rename(stores.second / CLUSTER / "other.jsonl.old")
    assert stores.run().events == 0
    assert not verify(stores.store(), VerifyRequest()).reasons
    assert prune(stores.store(), PruneRequest(Policy(keep=2, max_copies=2), need=0), False).removed == [ids[1]]
    stores.filler.event("joined", "dr3", {}, time.time())
    stores.filler.close()
    assert [stores.run(here=here).events for here in ("second", "first", "second", "first")] == [1, 0, 0, 0]
    assert "dr3" in stores.folded().joins


@pytest.mark.parametrize("told", ["observed_members", "joined"])
def test_an_older_word_of_the_other_site_costs_no_golden_copy(stores: Stores, quick: None, told: str) -> None:
    """The removal was recorded here; what the other store knew before it comes afterwards."""
    (gold,) = stores.fill("ok", sealed=(golden(),))
    stores.fill("ok", "ok", sealed=())
    stores.fill("ok", sealed=(golden(),))
    stores.run()
    for kind in ("joined", "removed"):
        stores.store().ledger.append(run_id="dr", kind=kind, subject="dr1", data={})
    seen = {"members": [{"name": "dc1-n1"}, {"name": "dr1"}], "fingerprint": FINGERPRINT}
    subject, data = (CLUSTER, seen) if told == "observed_members" else ("dr1", {})
    stores.filler.event(told, subject, data, time.time())
    stores.filler.close()
    assert stores.run(run_id="2").events == 1
    assert gold not in prune(stores.store(), PruneRequest(Policy(keep=2, max_copies=2), need=0), False).removed
    # Nor does a look that was taken here before the removal and recorded after it.
    stores.store().ledger.append(run_id="ship", kind="observed_members", subject=CLUSTER, data=seen)
    assert gold not in prune(stores.store(), PruneRequest(Policy(keep=2, max_copies=2), need=0), False).removed
    # Who serves again is no set-aside node any more.
    stores.store().ledger.append(run_id="dr", kind="expanded", subject="dr1", data={})
    assert gold in prune(stores.store(), PruneRequest(Policy(keep=2, max_copies=2), need=0), False).removed


def test_a_look_at_the_old_cluster_does_not_undo_a_recovery(stores: Stores, quick: None) -> None:
    stores.fill("ok", sealed=())
    recovered = hashlib.sha256(b"recovered").hexdigest()
    facts = {"fingerprint": recovered, "backup": stores.filler.ids[0], "drill": False}
    for number, members in enumerate(([{"name": "old"}], [{"name": "old"}, {"name": "older"}])):
        data = {"members": members, "fingerprint": FINGERPRINT}
        stores.filler.event("observed_members", CLUSTER, data, time.time())
        stores.filler.close()
        stores.run(run_id=str(number))
        stores.store().ledger.append(run_id="dr", kind="restored", subject="dr1", data=facts)
        assert stores.folded().production_fingerprint == recovered


@pytest.mark.parametrize("repaired", [False, True])
def test_a_ledger_that_lost_events_is_found_whatever_came_since(stores: Stores, quick: None, repaired: bool) -> None:
    """Neither what is recorded anew of its own backups nor what comes from the other store hides it."""
    stores.fill_anchored(2, sealed=())
    stores.filler.event("joined", "dr1", {}, time.time())
    (last,) = stores.fill_anchored(1, sealed=())
    stores.run()
    path = stores.first / CLUSTER / "ledger.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    if repaired:
        (stores.filler.backups / last / "manifest.json").unlink()
    stores.run(here="first")
    assert last in stores.folded("first").backups and "dr1" in stores.folded("first").joins
    # What the other store has of this ledger is no ledger of the other store.
    (stores.first / CLUSTER / "other.jsonl").unlink()
    with pytest.raises(DsmError) as caught:
        prune(stores.store("first"), PruneRequest(Policy(keep=1), need=0), False)
    assert caught.value.code == "LEDGER_ROLLED_BACK"


def test_a_copy_that_was_brought_and_recorded_late_is_known_to_be_brought(stores: Stores, quick: None) -> None:
    stores.fill_anchored(2, sealed=())

    for _backup in range(2):
        stores.killed_at("published")
    stores.run()
    (stores.second / CLUSTER / "other.jsonl").unlink()
    assert len(stores.folded().backups) == 2 and not verify(stores.store(), VerifyRequest()).reasons


def test_a_new_generation_comes_with_the_first_store(stores: Stores, quick: None) -> None:
    (old,) = stores.fill("ok", sealed=())
    stores.run()
    fingerprint = hashlib.sha256(b"recovered").hexdigest()
    identity = stores.store("first").identity.with_generation(
        fingerprint, uid="u2", members=("dr1",), run_id="r", added_at="2026-11-22T00:00:00Z", because=f"restored {old}"
    )
    (stores.first / CLUSTER / "store.json").write_bytes(catalogue.dump_identity(identity))
    (new,) = stores.fill("ok", sealed=(), fingerprint=fingerprint, generation=2)
    stores.run()
    assert [one.fingerprint for one in stores.store().identity.generations] == [FINGERPRINT, fingerprint]
    assert stores.verdicts() == {old: "ok", new: "ok"}
    # Two recoveries of the same cluster are no longer the same cluster.
    mine = stores.store().identity
    forked = catalogue.StoreIdentity(mine.cluster_id, mine.generations[:1]).with_generation(
        hashlib.sha256(b"fork").hexdigest(), uid="", members=(), run_id="", added_at="2026-11-22T00:00:00Z", because=""
    )
    (stores.first / CLUSTER / "store.json").write_bytes(catalogue.dump_identity(forked))
    assert stores.refused().code == "ANOTHER_CLUSTER"


def test_bundles_come_and_are_repaired(stores: Stores, tmp_path: Path) -> None:
    stores.fill("ok")
    secret = tmp_path / "bundle"
    secret.write_bytes(b"-----BEGIN CMS-----\nx")
    put(stores.store("first"), "config", str(secret), FINGERPRINT, "r", True)
    planned = stores.run(check=True)
    done = stores.run()
    (bundle,) = bundles(stores.store(), "config")
    assert done.parts == planned.parts == [f"config/{bundle.id}"]
    assert bundles(stores.store("first"), "config") == [bundle]
    path = stores.second / CLUSTER / "config" / bundle.id / "bundle.cms"
    path.write_bytes(b"-----BEGIN CMS-----\ny")
    assert states(stores.store(), read=True)[FINGERPRINT]["config"] == "failed"
    assert stores.run(only_repair=True).parts == done.parts
    assert path.read_bytes() == secret.read_bytes()
    with pytest.raises(DsmError, match="not what was stored"):
        adopt(stores.store(), bundle, b"-----BEGIN CMS-----\nz")
    assert path.read_bytes() == secret.read_bytes()


def test_what_does_not_fit_waits_and_the_newest_comes_first(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = stores.fill("ok", "ok", "ok", sealed=(), files=(("x", b"x" * 1000),))
    monkeypatch.setattr(ClusterStore, "free", lambda _self: (2300, 1 << 30))
    error = stores.refused()
    assert codes(error) == ["STORE_FULL"] and list(stores.verdicts()) == ids[1:]


def test_f18_freshness_of_both_sites_is_told_and_one_behind_is_no_success(stores: Stores, quick: None) -> None:
    ids = stores.fill("ok", "", sealed=())
    stores.run()
    here, other = info(str(stores.second), "", "")["sites"]
    assert (here["here"], other["here"], other["site"]) == (True, False, "elsewhere")
    assert here["newest"] == other["newest"] == here["newest_verified"] == ids[1]
    assert (other["newest_verified"], other["verified"], other["copies"], other["missing"]) == (ids[0], 1, 2, 0)
    assert not verify(stores.store(), VerifyRequest(max_lag=60.0)).reasons
    (told,) = verify(stores.store(), VerifyRequest(newest=True)).verdicts
    assert verify(stores.store(), VerifyRequest(ids=[told.id])).sites[1] == other
    then = "2026-01-01T00:00:00Z"
    remember(stores.store(), replication.site("elsewhere", then, [], [replication.Copy("x", then, "ok")]))
    behind = verify(stores.store(), VerifyRequest(max_lag=60.0)).reasons
    assert [(reason.code, reason.hard) for reason in behind] == [("UNSEEN", False), ("BEHIND", False)]
    path = stores.second / CLUSTER / "other.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"elsewhere", b"elsewherf"))
    (reason,) = verify(stores.store(), VerifyRequest(max_lag=60.0)).reasons
    assert (reason.code, reason.hard) == ("NOT_REPLICATED", False)
    assert [site["here"] for site in info(str(stores.second), "", "")["sites"]] == [True]


def test_it_may_die_at_every_step(stores: Stores, quick: None, tmp_path: Path) -> None:
    """F-numbers of shipping hold here too: whatever died, the next run ends with good copies and says nothing twice."""
    ids = stores.fill("ok", "ok", sealed=(golden(),))
    stores.filler.event("joined", "dr1", {"joined_at": "2026-11-21T00:00:00Z"}, time.time())
    stores.filler.close()
    secret = tmp_path / "bundle"
    secret.write_bytes(b"-----BEGIN CMS-----\nx")
    put(stores.store("first"), "config", str(secret), FINGERPRINT, "r", True)
    original = {name: tree(Path(stores.store("first").data_path(name))) for name in ids}

    def run_until(count: int) -> bool:
        left = iter(range(count))

        def at(_step: str) -> None:
            if next(left, None) is None:
                raise Killed

        try:
            stores.run(checkpoint=at)
        except Killed:
            # A dead process has no lease.
            (stores.second / CLUSTER / "lock").unlink(missing_ok=True)
            return False
        return True

    def converged() -> None:
        # What was published by the run that died, just before it could say so, is for the next verification.
        assert set(stores.verdicts().values()) <= {"ok", "unverified"} and list(stores.verdicts()) == ids
        assert set(stores.folded().backups) == {*ids}
        assert {name: tree(Path(stores.store().data_path(name))) for name in ids} == original
        events = stores.store().ledger.trusted().events
        assert sum(event.kind == "joined" for event in events) == 1
        assert not list(stores.second.rglob("bad")) and stores.store().incoming() == []
        assert not stores.run().changed

    step = 0
    while not run_until(step):
        stores.run()
        converged()
        shutil.rmtree(stores.second)
        stores.second.mkdir()
        step += 1
    assert step > 15
    # The same while a bad copy is exchanged.
    step = 0
    while True:
        stores.damage(ids[0])
        ended = run_until(step)
        damaged = stores.verdicts().get(ids[0])
        assert damaged in ("ok", "failed")
        stores.run()
        converged()
        step += 1
        if ended:
            break
    assert step > 10


def test_what_its_site_removes_meanwhile_is_no_failure(stores: Stores) -> None:
    ids = stores.fill("ok", "ok", sealed=())

    def at(step: str) -> None:
        if step == "place made":
            shutil.rmtree(stores.filler.backups / ids[1], ignore_errors=True)

    done = stores.run(checkpoint=at)
    assert list(stores.verdicts()) == ids[:1] and stores.store().incoming() == []
    assert done.notes == [f"{ids[1]} was removed from the other store meanwhile."]


def test_a_copy_that_is_being_read_is_exchanged_at_the_next_run(stores: Stores) -> None:
    (name,) = stores.fill("ok", sealed=())
    stores.run()
    stores.damage(name)
    before = tree(Path(stores.store().backups_path))
    with stores.store().reading(name):
        assert codes(stores.refused()) == ["BEING_READ"]
        assert {path: before[path] for path in before} == tree(Path(stores.store().backups_path))
    done = stores.run()
    # What had landed is there still.
    assert stores.verdicts() == {name: "ok"} and (done.report.bytes, done.report.reused) == (0, 10)


@pytest.mark.parametrize("where", ["on the way", "on the disk", "beside them", "nowhere to be found", "not given back"])
def test_bytes_that_are_damaged_never_count(
    stores: Stores, quick: None, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    stores.fill("ok", sealed=())
    copy = _replicate.pull

    def damaging(plan: TransferPlan, progress: Progress, pool: Any) -> TransferReport:
        report = copy(plan, progress, pool)
        if where == "on the way":
            report.sha256 = dict.fromkeys(report.sha256, "0" * 64)
        elif where == "on the disk":
            (Path(plan.directory) / plan.items[0].path).write_bytes(b"9876543210")
        elif where == "beside them":
            (Path(plan.directory) / "more").write_bytes(b"")
        elif where == "nowhere to be found":
            (Path(plan.directory) / plan.items[0].path).unlink()
        return report

    def broken_disk(*_arguments: Any) -> None:
        if where == "not given back":
            raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(_replicate, "pull", damaging)
    monkeypatch.setattr(_verify.os, "posix_fadvise", broken_disk)
    assert codes(stores.refused()) == ["OTHER_CORRUPT" if where == "on the way" else "DAMAGED"]
    assert stores.verdicts() == {} and stores.store().incoming() == []


def test_f10_a_byte_that_flips_after_its_range_was_hashed_is_refused(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges are not hashed a second time here: the manifest of the other store is what finds it."""
    (name,) = stores.fill("ok", sealed=(), files=(("a/x", b"1" * 99), ("b", b"2" * 7)))
    landed: list[str] = []
    expect = _pull._WholeHash.expect

    def flip(whole: _pull._WholeHash, item: Range, sha256: str) -> None:
        if whole._transfer.items[item.file].path == "b" and not landed:
            landed.append(sha256)
            (path,) = (stores.second / CLUSTER / "incoming").glob("*/data/b")
            path.write_bytes(b"2222223")
        expect(whole, item, sha256)

    monkeypatch.setattr(_pull._WholeHash, "expect", flip)
    error = stores.refused()
    assert codes(error) == ["OTHER_CORRUPT"] and "b is not what was published" in str(error.reasons[0].message)
    assert stores.verdicts() == {} and stores.store().incoming() == []
    assert landed == [hashlib.sha256(b"2" * 7).hexdigest()], "it was right when it landed"
    assert stores.run().changed and stores.verdicts() == {name: "ok"}


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM])
def test_a_copy_whose_place_cannot_be_written_stops_no_other(
    stores: Stores, quick: None, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    ids = stores.fill("ok", "ok", "ok", sealed=())
    stores.run()
    (new,) = stores.fill("ok", sealed=())
    for name in (ids[0], ids[2]):
        stores.damage(name)
    stuck = Path(stores.store().backups_path) / ids[2]
    rename = os.rename

    def renamed(old: str, new: str) -> None:
        if str(old).startswith(f"{stuck}/"):
            raise OSError(number, os.strerror(number), str(old))
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(_store.os, "rename", renamed)
        for run_id in ("1", "2"):
            error = stores.refused(run_id=run_id)
            assert codes(error) == ["TRANSFER_FAILED"] and str(stuck) in error.reasons[0].message
            assert "immutable" in error.reasons[0].remedy
            assert stores.verdicts() == {ids[0]: "ok", ids[1]: "ok", ids[2]: "failed", new: "ok"}
    stores.run()
    assert set(stores.verdicts().values()) == {"ok"} and os.listdir(stores.store().repairs_path) == []


def test_a_run_that_a_half_done_exchange_cannot_be_mended_for_does_the_rest(
    stores: Stores, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (first,) = stores.fill("ok", sealed=())
    stores.run()
    stores.damage(first)

    stores.killed_at("good data moved")
    (new,) = stores.fill("ok", sealed=())
    bad = Path(stores.store().backups_path) / first / "bad" / "data"
    rename = os.rename

    def renamed(old: str, new: str) -> None:
        if first in str(old):
            raise OSError(errno.EIO, "the disk is broken", str(old))
        rename(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(_store.os, "rename", renamed)
        assert codes(stores.refused()) == ["TRANSFER_FAILED"]
    assert stores.verdicts()[new] == "ok" and bad.is_dir()
    stores.run()
    assert stores.verdicts() == {first: "ok", new: "ok"}


@pytest.mark.parametrize("file", ["reads.json", "ledger.jsonl"])
def test_a_copy_that_cannot_be_recorded_is_here_nevertheless(
    stores: Stores, quick: None, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """The disk is full to the last block; there is room again later."""
    ids = stores.fill("ok", "ok", sealed=())
    stores.run(check=True)
    write = _verify.write_atomically

    def written(path: str, data: bytes) -> None:
        if file == os.path.basename(path):
            raise store_full(path, OSError(errno.ENOSPC, "no space"))
        write(path, data)

    append = _store.LedgerFile.append_all

    def append_all(self: _store.LedgerFile, run_id: str, records: Any) -> Any:
        if any(kind == "shipped" for kind, _subject, _data in records):
            raise store_full(file, OSError(errno.ENOSPC, "no space"))
        return append(self, run_id, records)

    with monkeypatch.context() as patch:
        patch.setattr(_verify, "write_atomically", written)
        if file == "ledger.jsonl":
            patch.setattr(_store.LedgerFile, "append_all", append_all)
            error = stores.refused()
            assert "STORE_FULL" in codes(error)
            assert all((stores.second / CLUSTER / "backups" / name / "manifest.json").exists() for name in ids)
        else:
            stores.run()
    stores.run()
    assert set(stores.folded().backups) == {*ids} and "failed" not in stores.verdicts().values()


def test_events_of_an_older_release_that_say_nonsense_stop_nobody(stores: Stores, quick: None) -> None:
    ids = stores.fill("ok", "ok", sealed=(SEALED,))
    path = stores.first / CLUSTER / "ledger.jsonl"
    for kind, subject, data in (
        ("verified", ids[0], {"verdict": "failed", "codes": 5}),
        ("shipped", ids[0][:-1], {"sealed_for": ["dr1"]}),
        ("pruned", ids[0][:-1], {"verdict": 5}),
        ("no_room", "key", {"newer": 5}),
        ("joined", "dr1", {"addresses": 5, "version": "5.4"}),
        ("observed_members", CLUSTER, {"members": [{"name": ["a"]}], "fingerprint": "f"}),
        ("restored", "dr1", {"fingerprint": FINGERPRINT, "backup": ids[0], "drill": "no"}),
    ):
        head = ledger.read(path.read_bytes()).head
        assert head is not None
        fields = {**head.as_dict(), "sequence": head.sequence + 1, "previous": head.hash}
        fields.update(kind=kind, subject=subject, data=data)
        del fields["hash"]
        with path.open("ab") as file:
            file.write(ledger.Event(hash=digest(fields), **fields).line())
    assert stores.verdicts("first") == {ids[0]: "failed", ids[1]: "ok"}
    assert prune(stores.store("first"), PruneRequest(Policy(keep=1), need=0), False).removed == []
    verify(stores.store("first"), VerifyRequest(run_id="v"))
    # Of what is taken over only that counts that can be recorded.
    assert stores.run().events == 1
    assert stores.folded().joins["dr1"]["version"] == "5.4" and "addresses" not in stores.folded().joins["dr1"]
    assert not stores.run().changed and stores.run().events == 0


def test_it_waits_for_whoever_works_on_the_store(stores: Stores) -> None:
    stores.fill("ok", sealed=())
    stores.run()
    stores.fill("ok", sealed=())
    somebody = subprocess.Popen(["sleep", "600"])
    try:
        owner = replace(_store.this_process(), pid=somebody.pid, started=_start(somebody.pid))
        lease = catalogue.Lease("", owner, "2026-11-22T00:00:00Z", "2026-11-22T00:15:00Z")
        (stores.second / CLUSTER / "lock").write_bytes(catalogue.dump_lease(lease))
        assert [stores.refused(check=check).code for check in (False, True)] == ["LOCKED", "LOCKED"]
    finally:
        somebody.kill()
        somebody.wait()
    done = stores.run()
    assert done.changed and "Took over the lease" in done.notes[0]


def _start(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_a_copy_on_paper_is_not_pruned_as_a_good_one_and_comes_home(stores: Stores, quick: None) -> None:
    ids = stores.fill("ok", "ok", sealed=(SEALED,)) + stores.fill("ok", "ok", sealed=())
    stores.run()
    verify(stores.store(), VerifyRequest(run_id="v"))
    shutil.rmtree(stores.store().data_path(ids[1]))
    request = PruneRequest(Policy(keep=2, max_copies=2), need=0, run_id="p")
    with pytest.raises(DsmError) as caught:
        prune(stores.store(), request, False)
    assert codes(caught.value) == ["MISSING_FILE"] and not stores.folded().pruned
    verify(stores.store(), VerifyRequest(ids=[ids[1]], run_id="v2"))
    prune(stores.store(), request, False)
    assert stores.folded().pruned[ids[1]]["verdict"] == "failed"
    done = stores.run(run_id="again")
    assert ids[1] in [item["id"] for item in done.backups if item["published"]]
    assert (Path(stores.store().data_path(ids[1])) / "backup.bin").read_bytes() == b"0123456789"


def test_what_a_killed_prune_unpublished_is_not_brought_and_is_kept_once_it_is_published_again(
    stores: Stores, quick: None
) -> None:
    ids = stores.fill("ok", "ok", sealed=())
    stores.run()
    verify(stores.store(), VerifyRequest(run_id="v"))
    stores.store().unpublish(ids[0])
    assert not any(item["published"] for item in stores.run(run_id="2").backups)
    stores.damage(ids[1])
    prune(stores.store(), PruneRequest(Policy(keep=1, max_copies=1), need=0, run_id="p"), False)
    assert stores.verdicts() == {ids[0]: "ok", ids[1]: "failed"}
    stores.run(run_id="3")
    assert stores.store().entry(ids[0]).state == stores.store().entry(ids[1]).state == "published"


def test_a_pinned_copy_whose_repair_was_killed_is_no_unfinished_removal(stores: Stores, quick: None) -> None:
    ids = stores.fill("ok", "ok", "ok", sealed=(golden(),))
    stores.run()
    policy = Policy(keep=1, failed_grace=0.0)
    first = ids[0]
    # it failed here, and (released) went with retention
    stores.damage(first)
    say(stores.store(), first, "released", Saying("j", "2026-11-22T00:00:00Z", "w"), True)
    assert prune(stores.store(), PruneRequest(policy, need=0, run_id="p"), False).removed == [first]
    # it came home again, and somebody pinned it
    stores.run()
    say(stores.store(), first, "pinned", Saying("j", "2026-11-22T00:00:00Z", "w"), True)
    # it fails again; the run that repairs it dies
    stores.damage(first)

    stores.killed_at("bad data aside")
    done = prune(stores.store(), PruneRequest(Policy(keep=1), need=0, run_id="p2"), False)
    assert (done.removed, done.cleared) == ([], [])
    assert os.path.isdir(os.path.join(stores.store().backups_path, first))


def test_a_golden_copy_whose_repair_was_killed_stays_golden(stores: Stores, quick: None) -> None:
    (gold,) = stores.fill("ok", sealed=(golden(),))
    stores.fill("ok", "ok", "ok", sealed=())
    stores.run()
    stores.damage(gold)

    stores.killed_at("good data moved")
    # Room is missing for the next one: failed copies go first.
    free = stores.store().free()[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClusterStore, "free", lambda _self: (0, 1000))
        done = prune(stores.store(), PruneRequest(Policy(keep=1), need=5, run_id="p"), False)
    assert gold not in done.removed and free


# -- one thing that fails stops no other -------------------------------------------------------------------------------
def test_f13_a_second_store_makes_room_for_a_larger_backup(
    stores: Stores, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first one does: what waits for room is remembered, and pruning there makes it."""
    stores.fill(*["ok"] * 5, sealed=(), files=(("x", b"x" * 1000),))
    stores.run()
    for name in stores.verdicts():
        verify(stores.store(), VerifyRequest(ids=[name], run_id="v"))
    (large,) = stores.fill("ok", sealed=(), files=(("x", b"x" * 2000),))

    def free(self: ClusterStore) -> tuple[int, int]:
        files = Path(self.backups_path).glob("*/data/**/*")
        return 6200 - sum(path.stat().st_size for path in files if path.is_file()), 1 << 30

    monkeypatch.setattr(ClusterStore, "free", free)
    for _again in range(2):
        assert stores.refused().code == "STORE_FULL"
        told = [event for event in stores.store().ledger.trusted().events if event.kind == "no_room"]
        assert [(event.subject, event.data["bytes"]) for event in told] == [(large, 2200)]
    prune(stores.store(), PruneRequest(Policy(keep=2), run_id="p"), False)
    stores.run()
    assert large in stores.verdicts() and len(stores.verdicts()) == 5


def failing(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, where: str, number: int) -> None:
    """A function that fails for every path that has ``where`` in it."""
    real = getattr(module, name)

    def fails(*arguments: Any, **named: Any) -> Any:
        (path,) = [one for one in arguments if isinstance(one, (str, Path))][:1] or [""]
        if where in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, fails)


def test_f28_one_manifest_there_that_cannot_be_read_stops_no_other(
    stores: Stores, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = stores.fill("ok", "ok", "ok", sealed=())
    failing(monkeypatch, _endpoint.LocalSession, "read", f"{ids[0]}/manifest.json", errno.EIO)
    assert codes(stores.refused()) == ["OTHER_UNCLEAR"] and list(stores.verdicts()) == ids[1:]


def test_f28_a_bundle_there_that_cannot_be_read_stops_nothing(
    stores: Stores, quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ids = stores.fill("ok", sealed=())
    for number in (1, 2):
        bundle = tmp_path / "b.cms"
        bundle.write_bytes(b"-----BEGIN CMS-----\nMII%d\n-----END CMS-----\n" % number)
        put(stores.store("first"), "config", str(bundle), FINGERPRINT, "", True)
    first, second = sorted(path.name for path in (stores.first / CLUSTER / "config").iterdir())
    failing(monkeypatch, _endpoint.LocalSession, "read", f"{first}/part.json", errno.EIO)
    error = stores.refused()
    assert codes(error) == ["OTHER_UNREADABLE"] and len(error.reasons) == 1
    assert list(stores.verdicts()) == ids and os.listdir(stores.second / CLUSTER / "config") == [second]


def test_f28_a_bundle_whose_place_cannot_be_written_stops_no_backup(
    stores: Stores, quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ids = stores.fill("ok", "ok", sealed=())
    bundle = tmp_path / "b.cms"
    bundle.write_bytes(b"-----BEGIN CMS-----\nMIIB\n-----END CMS-----\n")
    put(stores.store("first"), "config", str(bundle), FINGERPRINT, "", True)
    failing(monkeypatch, os, "mkdir", f"{stores.second}/{CLUSTER}/config", errno.EIO)
    stores.refused()
    assert list(stores.verdicts()) == ids


def test_f18_the_other_site_was_seen_also_where_a_repair_cannot_be_tidied_up(
    stores: Stores, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (name,) = stores.fill("ok", sealed=())
    stores.run()
    (stores.second / CLUSTER / "repair" / name).mkdir(parents=True)
    (stores.second / CLUSTER / "other.json").unlink()
    failing(monkeypatch, shutil, "rmtree", "/repair/", errno.EPERM)
    assert "sites" in stores.refused().details and (stores.second / CLUSTER / "other.json").exists()
