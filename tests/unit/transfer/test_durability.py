# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Law 4 with the power going out: what a step needs is on the disk before the step is made.

A process that is killed loses nothing that it wrote, so no test that kills one sees whether anything was flushed. These
look at the calls and their order.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any, Callable

import pytest
from many_backups import Filler

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.manifest import Manifest
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import Policy
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import Refused
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _disk, _pull
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._discover import Item
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._endpoint import LocalEndpoint
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._prune import PruneRequest, prune
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ranges import Plan
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._sftp import Attributes
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore, LedgerFile

FILES = (("backup.bin", b"0123456789"), ("n1/t/Data.db", b"rows"))


class Calls:
    """What was flushed (with how many bytes), made, moved and removed below a directory, in order."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = os.path.realpath(root)
        self.made: list[str] = []
        self.flushed: dict[str, int] = {}
        for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, self._named(name, getattr(os, name)))
        real = os.fsync

        def fsync(descriptor: int) -> None:
            real(descriptor)
            path = self._short(os.readlink(f"/proc/self/fd/{descriptor}"))
            self.made.append(f"flush {path}")
            self.flushed[path] = os.fstat(descriptor).st_size

        monkeypatch.setattr(os, "fsync", fsync)

    def _short(self, path: str) -> str:
        # Whose the unfinished document is, does not matter here.
        return os.path.relpath(path, self.root).replace(f".{os.getpid()}.new", ".new")

    def _named(self, name: str, real: Callable[..., None]) -> Callable[..., None]:
        word = {"rename": "move", "replace": "move", "unlink": "remove", "rmdir": "remove"}.get(name, name)

        def call(*paths: Any, **named: Any) -> None:
            parent = named.get("dir_fd")
            above = os.readlink(f"/proc/self/fd/{parent}") if parent is not None else ""
            real(*paths, **named)
            # Of mkdir the second one is no path.
            told = [self._short(os.path.join(above, path)) for path in paths if isinstance(path, str)]
            self.made.append(" ".join([word, *told]))

        return call

    def assert_order(self, *steps: str) -> None:
        """Each of these was done, and was done for the last time before the next one was for the first time."""
        for step in steps:
            assert step in self.made, f"never: {step}\n" + "\n".join(self.made)
        for first, then in zip(steps, steps[1:]):
            last = len(self.made) - 1 - self.made[::-1].index(first)
            assert last < self.made.index(then), f"{first}: not before: {then}\n" + "\n".join(self.made)

    def first_removal(self, below: str) -> str:
        """The first call that removed anything in a directory, or it."""
        return next(one for one in self.made if one.startswith(f"remove {below}"))


@pytest.fixture
def filler(tmp_path: Path) -> Filler:
    return Filler(tmp_path, 8)


def store_of(filler: Filler) -> ClusterStore:
    return ClusterStore.require(str(filler.path.parent))


def arrived(filler: Filler) -> Manifest:
    """A backup that has arrived whole and is not published yet; nothing was ever published here."""
    name = filler.publish(files=FILES, sealed=())
    filler.close()
    manifest = store_of(filler).published(name)
    incoming = filler.path / "incoming" / name
    incoming.mkdir(parents=True)
    (filler.backups / name / "data").rename(incoming / "data")
    (filler.backups / name / "manifest.json").unlink()
    (filler.backups / name).rmdir()
    filler.backups.rmdir()
    return manifest


def test_f13_what_is_published_is_on_the_disk_before_its_manifest_is(
    filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = arrived(filler)
    store = store_of(filler)
    calls = Calls(filler.path, monkeypatch)
    store.publish(manifest.id, manifest)
    monkeypatch.undo()
    incoming, target = f"incoming/{manifest.id}", f"backups/{manifest.id}"
    moved = f"move {incoming}/data {target}/data"
    written = f"move {target}/manifest.json.new {target}/manifest.json"
    for directory in ("data", "data/n1", "data/n1/t"):
        calls.assert_order(f"flush {incoming}/{directory}", moved)
    calls.assert_order("mkdir backups", "flush .", moved)
    calls.assert_order(f"mkdir {target}", "flush backups", moved)
    calls.assert_order(moved, f"flush {incoming}", written)
    calls.assert_order(f"flush {target}/manifest.json.new", written)
    # The directory is flushed for its data, and again for its manifest.
    first, second = [at for at, made in enumerate(calls.made) if made == f"flush {target}"]
    assert calls.made.index(moved) < first < calls.made.index(f"flush {target}/manifest.json.new")
    assert calls.made.index(written) < second < calls.made.index(calls.first_removal(incoming))
    assert calls.flushed[f"{target}/manifest.json.new"] == (filler.path / target / "manifest.json").stat().st_size
    assert calls.made.count(moved) == calls.made.count(written) == 1
    assert store.published(manifest.id) == manifest and not (filler.path / incoming).exists()


def test_f13_a_repair_is_on_the_disk_step_by_step(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    name = filler.publish(files=FILES, sealed=())
    filler.close()
    store = store_of(filler)
    manifest = store.published(name)
    landed, target = f"repair/{name}", f"backups/{name}"
    for path, content in FILES:
        (filler.path / landed / "data" / path).parent.mkdir(parents=True, exist_ok=True)
        (filler.path / landed / "data" / path).write_bytes(content)
    calls = Calls(filler.path, monkeypatch)
    steps: dict[str, int] = {}
    store.checkpoint = lambda step: steps.update({step: len(calls.made)})
    store.exchange(name, manifest)
    monkeypatch.undo()
    bad = f"move {target}/manifest.json {target}/bad/manifest.json"
    aside = f"move {target}/data {target}/bad/data"
    moved = f"move {landed}/data {target}/data"
    written = f"move {target}/manifest.json.new {target}/manifest.json"
    calls.assert_order(f"flush {landed}/data/n1/t", bad, aside, moved, f"flush {landed}", written)
    calls.assert_order(f"flush {target}/manifest.json.new", written, calls.first_removal(f"{target}/bad"))
    calls.assert_order(calls.first_removal(f"{target}/bad"), calls.first_removal(landed))
    for step, made in (
        ("bad manifest.json aside", bad),
        ("bad data aside", aside),
        ("good data moved", moved),
        ("good manifest written", written),
    ):
        assert f"flush {target}" in calls.made[calls.made.index(made) : steps[step]], step
        if made in (bad, aside):
            assert f"flush {target}/bad" in calls.made[calls.made.index(made) : steps[step]], step


@pytest.mark.parametrize("how", ["publish", "exchange"])
def test_law_4_nothing_is_published_that_the_strict_reader_refuses(filler: Filler, how: str) -> None:
    manifest = arrived(filler)
    if how == "exchange":
        (filler.path / "incoming").rename(filler.path / "repair")
    before = sorted(filler.path.rglob("*"))
    unreadable = dataclasses.replace(manifest, source={**manifest.source, "clock_skew": 10**30})
    with pytest.raises(Refused) as refusal:
        getattr(store_of(filler), how)(manifest.id, unreadable)
    assert refusal.value.code == "BAD_MANIFEST" and "clock_skew" in str(refusal.value.as_result())
    assert sorted(filler.path.rglob("*")) == before
    getattr(store_of(filler), how)(manifest.id, manifest)
    assert store_of(filler).published(manifest.id) == manifest


def test_f13_what_is_unpublished_stays_so(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    name = filler.publish(files=FILES, sealed=())
    filler.close()
    calls = Calls(filler.path, monkeypatch)
    store_of(filler).unpublish(name)
    target = f"backups/{name}"
    assert calls.made == [f"move {target}/manifest.json {target}/removed.json", f"flush {target}"]
    # A wreck without a manifest is marked as well.
    (filler.backups / name / "removed.json").unlink()
    calls.made.clear()
    store_of(filler).unpublish(name)
    assert calls.made == [f"flush {target}"] and (filler.backups / name / "removed.json").exists()


def test_f13_what_is_published_again_stays_so(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else goes because it is there again."""
    name, other = (filler.publish(files=FILES, sealed=()) for _index in range(2))
    filler.close()
    store_of(filler).unpublish(other)
    calls = Calls(filler.path, monkeypatch)
    prune(store_of(filler), PruneRequest(Policy(keep=1, max_copies=1), need=0, run_id="prune-1"), False)
    monkeypatch.undo()
    assert [entry.id for entry in store_of(filler).entries()] == [other]
    calls.assert_order(
        f"move backups/{other}/removed.json backups/{other}/manifest.json",
        f"flush backups/{other}",
        f"move backups/{name}/manifest.json backups/{name}/removed.json",
        f"flush backups/{name}",
        calls.first_removal(f"backups/{name}/"),
    )


def test_f13_no_data_go_before_their_manifest_is_gone_for_good(filler: Filler, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing is forgotten before the ledger has it."""
    name = filler.publish(files=FILES, sealed=())
    for _index in range(2):
        filler.publish(sealed=())
    filler.close()
    calls = Calls(filler.path, monkeypatch)
    prune(store_of(filler), PruneRequest(Policy(keep=2, max_copies=2), need=0, run_id="prune-1"), False)
    monkeypatch.undo()
    target = f"backups/{name}"
    calls.assert_order(
        f"move {target}/manifest.json {target}/removed.json",
        f"flush {target}",
        calls.first_removal(f"{target}/"),
        f"remove {target}/data",
        "flush ledger.jsonl",
        f"remove {target}/removed.json",
        f"remove {target}",
    )


def test_f13_what_the_ledger_says_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = LedgerFile(str(path))
    calls = Calls(tmp_path, monkeypatch)
    data = {"verdict": "ok"}
    ledger.append(run_id="1", kind="verified", subject="one", data=data)
    assert calls.made == ["flush ledger.jsonl", "flush ."], "the first one makes the file"
    assert calls.flushed["ledger.jsonl"] == path.stat().st_size > 0
    calls.made.clear()
    ledger.append_all("2", [("verified", "two", data), ("verified", "three", data)])
    assert calls.made == ["flush ledger.jsonl"] and calls.flushed["ledger.jsonl"] == path.stat().st_size
    calls.made.clear()
    ledger.append(run_id="2", kind="verified", subject="four", data=data)
    assert calls.made == ["flush ledger.jsonl"] and calls.flushed["ledger.jsonl"] == path.stat().st_size
    assert [event.subject for event in ledger.trusted().events] == ["one", "two", "three", "four"]
    # What was said already, or is only predicted, writes nothing.
    calls.made.clear()
    ledger.append(run_id="2", kind="verified", subject="four", data=data)
    ledger.append(run_id="3", kind="verified", subject="five", data=data, write=False)
    assert calls.made == []


@pytest.mark.parametrize("before", [None, b"the old one, which is longer"])
def test_f13_a_document_is_replaced_when_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bytes | None
) -> None:
    if before is not None:
        (tmp_path / "store.json").write_bytes(before)
    calls = Calls(tmp_path, monkeypatch)
    _disk.write_atomically(str(tmp_path / "store.json"), b"the new one")
    assert calls.made == ["flush store.json.new", "move store.json.new store.json", "flush ."]
    assert calls.flushed["store.json.new"] == len(b"the new one")
    assert (tmp_path / "store.json").read_bytes() == b"the new one"


def test_f13_a_directory_of_ours_is_named_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(tmp_path, monkeypatch)
    _disk.make_directory(str(tmp_path / "backups"))
    assert calls.made == ["mkdir backups", "flush ."]


def test_f13_a_file_that_has_landed_is_flushed_before_its_hash_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty one too."""
    contents = {"a": b"0123456789", "empty": b"", "c": b"rows"}
    items = []
    for path, content in contents.items():
        (tmp_path / path).write_bytes(content)
        items.append(Item(path, path, Attributes(len(content), 0o100600, 1)))
    plan = Plan([len(content) for content in contents.values()])
    whole = _pull._WholeHash(_pull.TransferPlan(LocalEndpoint(), tuple(items), str(tmp_path), ""), plan)
    calls = Calls(tmp_path, monkeypatch)
    for content in (contents["a"], contents["c"]):
        item = plan.take(0, 1 << 20)
        assert item is not None and not whole.done
        plan.landed(item.number)
        whole.expect(item, hashlib.sha256(content).hexdigest())
        while whole.step():
            assert calls.made == [f"flush {path}" for path in whole.sha256]
    assert whole.done and list(whole.sha256) == list(contents)
