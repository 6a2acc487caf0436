# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""A second store over a real sshd whose login may read and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Callable

import pytest

from ansible_collections.kmsops.fortanix_dsm.tests.integration.transfer.helpers import (
    FINGERPRINT,
    Result,
    Site,
    Sshd,
    run_module,
    tree,
)

READ_ONLY = "ForceCommand internal-sftp -R"


class Two:
    """A first store that was shipped into, and a second one that may read it."""

    def __init__(self, site: Site, login: dict[str, Any], second: Path) -> None:
        self.site, self.login, self.second = site, login, second
        second.mkdir()

    def replicate(self, **options: Any) -> Result:
        given = {"store": str(self.second), "other": {**self.login, "name": "oor"}, "run_id": "replicate-1", **options}
        return run_module("backup_replicate", given)

    def verify(self, store: Path, **options: Any) -> Result:
        return run_module("backup_verify", {"store": str(store), **options})

    @property
    def data(self) -> dict[str, str]:
        """Every file of every backup of the second store."""
        return tree(self.second / FINGERPRINT[:16] / "backups")


@pytest.fixture
def two(site: Site, own_server: Callable[..., Sshd], tmp_path: Path) -> Two:
    for age in (900, 800):
        site.deliver(f"backup_{10000 - age}.tar.gz", 50_000, age)
    assert not site.ship().failed
    return Two(site, own_server(READ_ONLY).login(path=str(site.store)), tmp_path / "second")


def test_a_second_store_follows_the_first_which_does_nothing(two: Two) -> None:
    before = tree(two.site.store)
    done = two.replicate()
    assert not done.failed and done.changed and done.bytes > 100_000
    assert [item["published"] for item in done.backups] == [True, True]
    assert tree(two.site.store) == before
    published = {name: data for name, data in tree(two.site.cluster / "backups").items() if "reads.json" not in name}
    assert {name: data for name, data in two.data.items() if "reads.json" not in name} == published
    assert not two.replicate().changed
    checked = two.verify(two.second, max_lag=3600)
    assert not checked.failed
    assert [(found["here"], found["copies"], found["missing"]) for found in checked.sites] == [
        (True, 2, 0),
        (False, 2, 0),
    ]


def test_on_the_day_the_second_store_goes_on_as_the_first(two: Two) -> None:
    """Nothing is pulled a second time from where DSM delivers, and numbers go on."""
    assert not two.replicate().failed
    shutil.rmtree(two.site.store)
    again = two.site.ship(store=str(two.second))
    assert not again.failed and [item["already"] for item in again.backups] == [True, True]
    two.site.deliver("backup_9999.tar.gz", 20_000, 60)
    done = two.site.ship(store=str(two.second))
    assert not done.failed and [item["id"][:8] for item in done.backups if not item["already"]] == ["00000003"]
    assert not two.verify(two.second).failed


def test_a_bad_copy_is_repaired_over_the_wire(two: Two) -> None:
    assert not two.replicate().failed
    (name, *_more) = sorted(two.site.published())
    (path,) = (two.site.cluster / "backups" / name / "data").iterdir()
    good = path.read_bytes()
    path.write_bytes(good[:100] + b"?" + good[101:])
    assert two.verify(two.site.store).failed
    second = {**two.login, "path": str(two.second), "name": "second"}
    repaired = run_module(
        "backup_replicate", {"store": str(two.site.store), "other": second, "state": "repaired", "run_id": "repair-1"}
    )
    assert not repaired.failed and repaired.before["bad"] == [name]
    assert path.read_bytes() == good and not two.verify(two.site.store).failed


def test_a_store_that_cannot_be_reached_is_one_refusal(two: Two, own_server: Callable[..., Sshd]) -> None:
    server = own_server(READ_ONLY)
    server.stop()
    refused = two.replicate(other={**server.login(path=str(two.site.store))}, connect_timeout=5)
    assert refused.failed and refused.value["error_code"] == "SSH_REFUSED"
    assert list(two.second.iterdir()) == []
