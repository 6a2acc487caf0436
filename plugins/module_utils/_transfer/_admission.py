# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Which of the backups that were found come into the store, what becomes of the others, and of what dead runs left."""

from __future__ import annotations

import contextlib
import functools
import os
import typing as t

from .._core import ledger
from .._core.catalogue import next_id
from .._core.manifest import Manifest
from .._core.room import Room, fitting, with_headroom
from .._core.strict import Invalid, load
from .._errors import DsmError, Reason
from ._disk import landed_bytes, read_bytes, remove_tree, store_full
from ._job import Job, Looked, ShipRequest, ShipResult
from ._store import ClusterStore


class Admission:
    """Admission of backups to a store, newest first, as far as there is room."""

    def __init__(
        self,
        request: ShipRequest,
        store: ClusterStore,
        result: ShipResult,
        known: t.Mapping[str, Manifest],
        looked: Looked,
    ) -> None:
        self.request = request
        self.store = store
        self.result = result
        #: what is published, by the identity of its source
        self.known = known
        self.looked = looked
        #: what has no room now, eldest first
        self.left: list[Job] = []
        #: unfinished transfers that go, and what a person is told of each
        self.dropped: dict[str, str] = {}

    def admit(self, jobs: list[Job]) -> list[Job]:
        """The newest that fit with headroom; the others are refused before the first byte (code STORE_FULL)."""
        jobs = self._possible(jobs)
        wanted = [job for job in jobs if job.key not in self.known]
        have_bytes, have_inodes = self.store.free()
        landed, kept = self._unfinished(wanted)
        limit = have_bytes + landed
        sizes = [(job.unit.size, len(job.unit.items)) for job in wanted]
        most = fitting(sizes[::-1], limit + sum(kept.values()), have_inodes, self.request.headroom)
        # What may be continued some day costs bytes on the link when it goes; what it keeps out would be no backup.
        while fitting(sizes[::-1], limit, have_inodes, self.request.headroom) < most:
            name = next(iter(kept))
            limit += kept.pop(name)
            self.dropped[name] = "its room is needed for what can come now"
        waiting = len(wanted) - most
        self.left, coming = wanted[:waiting], wanted[waiting:]
        if self.left:
            full = store_full(self.store.path, OSError(28, "not enough free space"))
            need = sum(size for size, _files in sizes)
            self.result.reasons.append(
                Reason(
                    full.code,
                    f"{need} bytes and {self.request.headroom:.0%} headroom are needed in {self.store.path}, "
                    f"{limit} bytes and {have_inodes} inodes are free. {_left_behind(self.left, coming)}",
                    full.remedy,
                )
            )
        largest = max((job.unit.size for job in coming), default=0)
        free = limit - sum(job.unit.size for job in coming)
        if with_headroom(largest, self.request.headroom) > free:
            self.result.notes.append(
                f"When this run has ended {free} bytes are free in {self.store.path}: the next backup of {largest} "
                "bytes will not fit. Expire old backups (playbook prune_backups) or grow the file system before it."
            )
        left = {job.key for job in self.left}
        return [job for job in jobs if job.key not in left]

    def number(self, jobs: list[Job]) -> None:
        """Ids: those of published and of unfinished transfers stay, new ones follow every number ever seen."""
        # What is to go and could not be removed is not continued.
        names = (name for name in self.store.incoming() if name not in self.dropped)
        unfinished = {self._source_key(name): name for name in names}
        seen = self.store.seen_ids()
        for job in jobs:
            if job.key in self.known:
                job.id = self.known[job.key].id
            elif job.key in unfinished:
                job.id = unfinished[job.key]
            else:
                job.id = next_id(seen, job.unit.newest)
                seen.append(job.id)

    def drop(self) -> None:
        """Remove the unfinished transfers that nobody continues, or whose room others need."""
        for name, why in self.dropped.items():
            if self._remove(name):
                self.result.notes.append(f"Dropped the unfinished transfer {name}: {why}.")

    def remember(self, coming: t.Sequence[str]) -> None:
        """Remember what has no room: behind newer ones (their keys) it never comes; else pruning makes room for the
        newest. Before anything comes, so that a run that dies meanwhile does not bring the old ones behind it."""
        if not self.left:
            return
        if coming:
            left = {job.key for job in self.left}
            for name in self.store.incoming():
                if self._source_key(name) in left:
                    # Its room was counted for those that come.
                    self._remove(name)
        headroom = self.request.headroom
        records = [
            (
                "no_room",
                job.key,
                {
                    "name": job.unit.name,
                    "host": job.source.endpoint.host,
                    **Room(with_headroom(job.unit.size, headroom), len(job.unit.items))._asdict(),
                    "newer": list(coming),
                },
            )
            for job in (self.left if coming else self.left[-1:])
        ]
        run_id, events = self.request.run_id, self.store.ledger.chain().events
        # A disk without any room takes no record either; then pruning has to make some first.
        with contextlib.suppress(DsmError):
            # Something smaller of another source may have come since it was said.
            forgotten = not coming and ledger.wanted_room(events) != (records[0][2]["bytes"], records[0][2]["files"])
            new = [one for one in records if forgotten or ledger.repeated(events, run_id, *one) is None]
            self.store.ledger.append_all(run_id, new)

    def _possible(self, jobs: list[Job]) -> list[Job]:
        """Without those that would not fit into the empty store, for which nothing else has to wait."""
        capacity = self.store.capacity()
        found = []
        for job in jobs:
            need = with_headroom(job.unit.size, self.request.headroom)
            if job.key in self.known or need <= capacity:
                found.append(job)
                continue
            self.looked.refuse([job])
            self.result.reasons.append(
                Reason(
                    "TOO_LARGE",
                    f"{job.unit.name} with headroom needs {need} bytes; {self.store.path} could hold {capacity} if it "
                    "were empty.",
                    "Look at that file: it may have holes, or be no backup. Else grow the file system of the store.",
                )
            )
        return found

    def _unfinished(self, wanted: t.Iterable[Job]) -> tuple[int, dict[str, int]]:
        """Bytes that this run need not find room for again, and those of transfers that only a later run may continue.

        What will never be continued goes, and its bytes are among the first. Never continued is what its source, which
        was looked at, no longer has as it was; unless it was only refused there now.
        """
        jobs = {job.key: job for job in wanted}
        landed, kept = 0, {}
        for name in self.store.incoming():
            size = landed_bytes(os.path.join(self.store.incoming_path, name))
            try:
                source = self._incoming_source(name)
            except (OSError, Invalid, DsmError):
                self.dropped[name] = "nobody can tell what it is of"
                landed += size
                continue
            job = jobs.get(str(source.get("key")))
            if job is not None and job.continues(source):
                landed += size
            elif job is None and self.looked.may_come(source):
                kept[name] = size
            else:
                self.dropped[name] = f"{source.get('name')} is no longer the same"
                landed += size
        return landed, kept

    def _source_key(self, backup_id: str) -> str:
        """Which bytes an unfinished transfer is about ('' if that cannot be read)."""
        try:
            return str(self._incoming_source(backup_id).get("key", ""))
        except (OSError, Invalid, DsmError):
            return ""

    def _incoming_source(self, backup_id: str) -> dict[str, t.Any]:
        return load(read_bytes(os.path.join(self.store.incoming_path, backup_id, "source.json")), "source.json")

    def _remove(self, name: str) -> bool:
        path = os.path.join(self.store.incoming_path, name)
        return self.result.attempt(functools.partial(remove_tree, path), self.store.path)


def _left_behind(left: t.Sequence[Job], coming: t.Sequence[Job]) -> str:
    """What becomes of those that have no room."""
    if not coming:
        return f"Nothing comes as long as the newest has no room; {len(left)} wait."
    return f"The newest come ({len(coming)}); those that are older ({len(left)}) stay where they are for good."
