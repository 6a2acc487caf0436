# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pruning beside shipping and staging, over a real sshd. Numbers are those of the project's list of failure modes."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Iterator

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import ledger
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.retention import Policy
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._errors import DsmError
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer import _ship
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._prune import PruneRequest, prune
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._ssh import ConnectionLost
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._transfer._store import ClusterStore
from ansible_collections.kmsops.fortanix_dsm.tests.integration.transfer.helpers import FINGERPRINT, Site, run_module

ONE = Policy(keep=1, max_copies=1)


def prune_now(site: Site, policy: Policy = ONE) -> list[str]:
    """In a process's own words: ids that went."""
    store = ClusterStore.require(str(site.store))
    return prune(store, PruneRequest(policy, need=0, run_id="prune-1"), False).removed


def verified(site: Site) -> list[str]:
    result = run_module("backup_verify", {"store": str(site.store), "report_only": True, "accept": ["LOST"]})
    return [item["verdict"] for item in result.verdicts]


def delivered(site: Site, *ages: int) -> list[str]:
    """Ids of deliveries of these ages, shipped and verified."""
    for age in ages:
        site.deliver(f"backup_{10000 - age}.tar.gz", 20_000, age)
    assert not site.ship().failed
    assert set(verified(site)) == {"ok"}
    return sorted(site.published())


def test_what_was_pruned_does_not_come_home_again(site: Site) -> None:
    """The source still has it."""
    ids = delivered(site, 900, 800, 700)
    assert prune_now(site) == ids[:2]
    again = site.ship()
    assert not again.failed and not again.changed and sorted(site.published()) == ids[2:]
    site.deliver("backup_9999.tar.gz", 20_000, 60)
    assert not site.ship().failed
    assert [name[:8] for name in sorted(site.published())] == ["00000003", "00000004"]


def test_a_copy_that_was_pruned_because_it_failed_comes_home_again(site: Site) -> None:
    ids = delivered(site, 900, 800)
    data = next((site.cluster / "backups" / ids[0] / "data").iterdir())
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert "failed" in verified(site)
    assert prune_now(site) == ids[:1]
    assert not site.ship().failed
    assert [name[:8] for name in sorted(site.published())] == ["00000002", "00000003"]
    assert verified(site) == ["ok", "ok"]


def test_f15_prune_at_every_step_of_a_shipment(site: Site) -> None:
    """It waits for the shipper; what is published is complete at every moment."""
    ids = delivered(site, 900, 800)
    site.deliver("backup_9999.tar.gz", 50_000, 60)
    steps: list[str] = []

    def at(step: str) -> None:
        steps.append(step)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                prune_now(site)
            except DsmError as error:
                code = 0 if error.code == "LOCKED" else 2
            finally:
                os._exit(code)
        _pid, status = os.waitpid(child, 0)
        assert os.WEXITSTATUS(status) == 0, step
        for name, manifest in site.published().items():
            for entry in manifest.files:
                assert (site.cluster / "backups" / name / "data" / entry.path).stat().st_size == entry.size

    site.run(checkpoint=at)
    assert {"incoming made", "pulled", "verified", "data moved", "manifest written", "recorded"} <= set(steps)
    assert sorted(site.published())[:2] == ids and set(verified(site)) == {"ok"}
    assert prune_now(site) == ids


def test_f22_prune_while_a_backup_is_pushed_to_the_node(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that a restore reads stays and arrives whole; the others go."""
    ids = delivered(site, 900, 800, 700)
    real = ClusterStore.reading

    @contextlib.contextmanager
    def reading(store: ClusterStore, backup_id: str) -> Iterator[None]:
        with real(store, backup_id):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    prune_now(site)
                except DsmError as error:
                    code = 0 if error.code == "BEING_READ" and error.details["removed"] == [ids[1]] else 2
                finally:
                    os._exit(code)
            assert os.WEXITSTATUS(os.waitpid(child, 0)[1]) == 0
            yield

    monkeypatch.setattr(ClusterStore, "reading", reading)
    node = tmp_path / "node"
    result = run_module(
        "backup_ship",
        {
            "store": str(site.store),
            "cluster": {"fingerprint": FINGERPRINT},
            "state": "staged",
            "id": ids[0],
            "push": site.sshd.login(path=str(node)),
        },
    )
    assert not result.failed, result.value
    assert sorted(site.published()) == [ids[0], ids[2]]
    (staged,) = (node / ids[0] / "data").iterdir()
    (stored,) = (site.cluster / "backups" / ids[0] / "data").iterdir()
    assert staged.read_bytes() == stored.read_bytes()
    assert prune_now(site) == [ids[0]]


def test_f13_a_full_store_recovers_when_a_backup_can_land(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing landed for 30 days because the disk is full; one prune, and the next one lands."""
    ids = delivered(site, 900, 800, 700)
    size = max(manifest.bytes for manifest in site.published().values())
    taken = shutil.disk_usage(site.store).total

    def free(store: ClusterStore) -> tuple[int, int]:
        left = 3 * size - sum(manifest.bytes for manifest in site.published().values())
        return min(left, taken), 1000

    monkeypatch.setattr(ClusterStore, "free", free)
    site.deliver("backup_9999.tar.gz", 10_000, 60)
    with pytest.raises(DsmError) as caught:
        site.run()
    assert caught.value.code == "STORE_FULL" and sorted(site.published()) == ids
    store = ClusterStore.require(str(site.store))
    done = prune(store, PruneRequest(Policy(keep=1, max_age=1e9)), False)
    assert done.removed and set(done.removed) < set(ids)
    site.run()
    assert len(site.published()) == 4 - len(done.removed)


# -- a store that was full -------------------------------------------------------------------------------------------

DAY = 86400.0


def room_for(monkeypatch: pytest.MonkeyPatch, site: Site, capacity: int) -> None:
    """The disk holds so many bytes of backups."""

    def free(_store: ClusterStore) -> tuple[int, int]:
        return capacity - sum(manifest.bytes for manifest in site.published().values()), 1000

    monkeypatch.setattr(ClusterStore, "free", free)


def names(site: Site) -> list[str]:
    """Files that the published backups were, in the order of their numbers."""
    return [os.path.basename(str(one.source["path"])) for _id, one in sorted(site.published().items())]


def full_for_a_month(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three verified copies that fill the disk, and what was delivered on each of the 30 days since; names of these."""
    for day in (33, 32, 31):
        site.deliver(f"day_{day}.tar.gz", 20_000, day * DAY)
    assert not site.ship().failed and set(verified(site)) == {"ok"}
    room_for(monkeypatch, site, int(3.5 * max(manifest.bytes for manifest in site.published().values())))
    days = [f"day_{day:02}.tar.gz" for day in range(30, 0, -1)]
    for day, name in zip(range(30, 0, -1), days):
        site.deliver(name, 20_000, day * DAY)
    return days


def make_room(site: Site) -> list[str]:
    """Pruning as it is scheduled: two verified copies stay whatever happens."""
    store = ClusterStore.require(str(site.store))
    return prune(store, PruneRequest(Policy(keep=2, max_age=90 * DAY)), False).removed


def test_f13_a_store_that_was_full_for_30_days_recovers_with_the_newest(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = full_for_a_month(site, monkeypatch)
    with pytest.raises(DsmError) as caught:
        site.run()
    assert caught.value.code == "STORE_FULL" and names(site) == ["day_33.tar.gz", "day_32.tar.gz", "day_31.tar.gz"]
    assert "30 wait" in str(caught.value.reasons[0].message)
    assert len(make_room(site)) == 1
    with pytest.raises(DsmError) as caught:
        site.run()
    assert caught.value.code == "STORE_FULL" and "29" in str(caught.value.reasons[0].message)
    assert names(site) == ["day_32.tar.gz", "day_31.tar.gz", days[-1]], "the newest came first"
    assert verified(site) == ["ok"] * 3
    # Those that had no room are never taken for newer than it, also when there is room for them again.
    assert not site.run().changed
    monkeypatch.undo()
    assert not site.run().changed and names(site)[-1] == days[-1]
    site.deliver("now.tar.gz", 20_000, 60)
    assert site.run().changed and names(site)[-2:] == [days[-1], "now.tar.gz"]


def test_f13_what_had_no_room_comes_when_nothing_newer_did(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    days = full_for_a_month(site, monkeypatch)
    with pytest.raises(DsmError):
        site.run()
    monkeypatch.undo()
    assert site.run().changed and names(site)[3:] == days, "all of them, the eldest first"


def test_f09_a_run_that_dies_when_the_newest_came_brings_nothing_older_behind_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    days = full_for_a_month(site, monkeypatch)
    make_room(site)

    def die(step: str) -> None:
        if step == "manifest written":
            raise RuntimeError(step)

    with pytest.raises(RuntimeError):
        site.run(checkpoint=die)
    assert names(site)[-1] == days[-1]
    monkeypatch.undo()
    assert not site.run().changed and names(site)[-1] == days[-1]


def test_f13_what_has_no_room_is_recorded_once_however_often_the_link_breaks(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_for_a_month(site, monkeypatch)
    store = ClusterStore.require(str(site.store))

    def left() -> int:
        return sum(event.kind == "no_room" for event in store.ledger.chain().events)

    def broken(*_plan: object) -> None:
        raise ConnectionLost("The link broke.")

    counts = []
    for run in range(4):
        if run == 2:
            make_room(site)
            monkeypatch.setattr(_ship, "pull", broken)
        with pytest.raises(DsmError):
            site.run(run_id=f"run-{run}")
        counts.append(left())
    assert counts == [1, 1, 30, 30], "the newest that waits; then the 29 that are left for it"


def test_f13_pruning_makes_room_for_a_backup_that_is_larger_than_the_one_before(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is room for another one like the newest, so that pruning alone would be content."""
    ids = delivered(site, 900, 800, 700)
    size = max(manifest.bytes for manifest in site.published().values())
    room_for(monkeypatch, site, int(4.5 * size))
    assert make_room(site) == []
    site.deliver("large.tar.gz", 32_000, 60)
    for _again in range(2):
        with pytest.raises(DsmError) as caught:
            site.run()
        assert caught.value.code == "STORE_FULL" and sorted(site.published()) == ids
    assert make_room(site) == ids[:1]
    assert site.run().changed and names(site)[-1] == "large.tar.gz"
    assert verified(site) == ["ok"] * 3
    events = ClusterStore.require(str(site.store)).ledger.chain().events
    assert ledger.wanted_room(events) == (0, 0), "it came, so its room is not wanted"


def test_f13_that_a_large_one_has_no_room_is_said_again_when_a_small_one_of_another_source_came(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered(site, 900, 800, 700)
    size = max(manifest.bytes for manifest in site.published().values())
    room_for(monkeypatch, site, int(4.5 * size))
    site.deliver("large.tar.gz", 32_000, 60)
    with pytest.raises(DsmError):
        site.run()
    other = tmp_path / "other"
    other.mkdir()
    (other / "small").write_bytes(b"x")
    site.at(other / "small", 600)
    assert site.run(sources=[{"path": f"{other}/*"}]).changed
    events = ClusterStore.require(str(site.store)).ledger
    assert ledger.wanted_room(events.chain().events) == (0, 0)
    for _again in range(2):
        with pytest.raises(DsmError):
            site.run()
        assert ledger.wanted_room(events.chain().events) > (32_000, 1)
    assert sum(event.kind == "no_room" for event in events.chain().events) == 2
