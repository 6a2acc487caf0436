# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Shipping: from what the sources deliver to published backups in the store."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import typing as t
from dataclasses import replace

from .._core import ledger
from .._core.manifest import FileEntry, Manifest
from .._core.openability import describe
from .._core.strict import utc_text
from .._errors import DsmError, Reason, Refused
from . import _structure
from ._admission import Admission
from ._discover import Source, check_pattern, expand, tidy
from ._disk import make_directory, pieces, remove_strangers, remove_tree, write_atomically
from ._endpoint import LocalEndpoint, LocalSession, check_local, check_local_pattern
from ._job import Job, Past, ShipRequest, ShipResult
from ._keeping import usable
from ._offers import Offers
from ._pool import Pool
from ._progress import Lines
from ._pull import TransferPlan, local_failure, pull
from ._ssh import require_python
from ._store import ClusterStore, Lease, as_reasons, identities

#: Codes after which what has landed of a backup is of no use, or takes room that others need. Whatever else ends a
#: transfer says nothing about these bytes: they are checked again before they are used.
_OF_NO_USE = frozenset(("SOURCE_CHANGED", "DAMAGED", "STORE_FULL", "TRANSFER_FAILED"))


class _Unfit(Refused):
    """What landed is refused for what it is."""


def ship(request: ShipRequest, check_mode: bool) -> ShipResult:
    """Pull every backup that the sources hold and the store does not, and publish each as soon as it is verified.

    What is good is published even when something else is refused; all refusals are raised together at the end
    (:class:`Refused`, details: the result). In check mode nothing is written, and the result says what would happen.
    """
    require_python()
    for source in request.sources:
        if isinstance(source.endpoint, LocalEndpoint):
            _refuse_store(source, request.store)
    if check_mode:
        store = _open(request, create=False)
        run = _Run(request, store, None)
        note = store.refuse_if_held() if os.path.isdir(store.path) else ""
        run.go(None, note)
    else:
        remote = any(source.endpoint.host for source in request.sources)
        # The workers come first: nothing that has connections or threads may be forked.
        with Pool(request.workers, remote, request.sources[0].endpoint if request.sources else None) as pool:
            run = _hold(request, pool)
    if run.result.reasons:
        _raise(run.result)
    return run.result


def _refuse_store(source: Source, store: str) -> None:
    """Refuse a local source that is, holds or lies in the store, also where only its wildcards lead there."""
    try:
        check_pattern(source)
        check_local_pattern(source.path, store)
        found = expand(LocalSession(), source.path)
    except DsmError as error:
        if error.code == "SOURCE_IS_STORE":
            raise
        # It is told with those of all other sources.
        return
    for match in found:
        # A link is refused by itself: whoever may make one in a drop box must not stop everything else.
        if not match.short and not os.path.islink(match.path):
            check_local(match.path, store)


def _open(request: ShipRequest, create: bool) -> ClusterStore:
    return ClusterStore.open(
        request.store,
        request.cluster.fingerprint,
        uid=request.cluster.uid,
        members=[str(member.get("name", "")) for member in request.cluster.members],
        run_id=request.run_id,
        new_cluster=request.new_cluster,
        create=create,
        checkpoint=request.checkpoint,
    )


def _hold(request: ShipRequest, pool: Pool) -> _Run:
    """Ship under the lease. A part of the store that was made for nothing is gone afterwards."""
    there = set(identities(request.store))
    store = _open(request, create=True)
    with store.lease(request.run_id) as lease:
        run = _Run(request, store, pool)
        run.go(lease, lease.taken_over)
        unused = store.identity.cluster_id not in there and store.unmake()
    if unused:
        # Whoever came in between has made it his own; then it is not empty.
        with contextlib.suppress(OSError):
            os.rmdir(store.path)
    return run


def _raise(result: ShipResult) -> t.NoReturn:
    codes = {reason.code for reason in result.reasons}
    done = [item["id"] for item in result.backups if item["published"]]
    raise Refused(
        f"Shipping is not complete ({len(result.reasons)} refused, {len(done)} published).",
        codes.pop() if len(codes) == 1 else "SHIP_INCOMPLETE",
        reasons=result.reasons,
        **result.returns(),
    )


class _Run:
    """One run of :func:`ship`."""

    def __init__(self, request: ShipRequest, store: ClusterStore, pool: Pool | None) -> None:
        self.request = request
        self.store = store
        #: None in check mode
        self.pool = pool
        self.result = ShipResult(cluster_id=store.identity.cluster_id)
        self.broken_ledger = False

    def go(self, lease: Lease | None, taken_over: str) -> None:
        """Everything that happens under the lease."""
        if taken_over:
            self.result.notes.append(f"Took over the lease of {taken_over}.")
        if lease is not None:
            make_directory(self.store.incoming_path)
            self.result.attempt(self.store.take_back, self.store.path)
        self._check_ledger()
        past = self._past()
        known = past.known
        offers = Offers(self.request, self.pool, self.result, past)
        try:
            found = offers.collect()
            admission = Admission(self.request, self.store, self.result, known, offers.looked)
            jobs = admission.admit(found)
            admission.number(jobs)
            if lease is not None:
                admission.drop()
                if not self.broken_ledger:
                    admission.remember([job.key for job in jobs if job.key not in known])
            for job in jobs:
                if job.key in known:
                    self._add(job, known[job.key], published=True, already=True)
                else:
                    self._one(job, offers, lease)
        finally:
            offers.close()
        if lease is not None and (known or self.result.changed):
            self._observe()

    def _past(self) -> Past:
        """What the store knows of deliveries. A backup that a run published and died before recording it is recorded
        now."""
        recorded, pruned = set(), set()
        for event in self.store.ledger.chain().events:
            if event.kind == "shipped":
                recorded.add(event.subject)
            elif event.kind == "pruned" and event.data.get("verdict") != "failed":
                pruned.add(str(event.data.get("key")))
        sound = {entry.id for entry in usable(self.store)}
        known, came = {}, {}
        for entry in self.store.entries():
            if entry.manifest is None:
                continue
            if entry.id not in recorded and self.pool is not None:
                self._record("shipped", entry.id, ledger.shipped_data(entry.manifest))
            key = str(entry.manifest.source["key"])
            came[key] = entry.manifest
            if entry.id in sound:
                known[key] = entry.manifest
        # What retention removed while it was good does not come home again; what had no room when something newer
        # came never comes behind it.
        gone = pruned | ledger.passed_over(self.store.ledger.chain().events, {*known, *pruned})
        return Past(known, came, gone)

    def _check_ledger(self) -> None:
        chain = self.store.ledger.chain()
        if chain.problems:
            self.broken_ledger = True
            self._soft(
                Reason(
                    "LEDGER_BROKEN",
                    f"The ledger is broken after {len(chain.events)} events; nothing is recorded in it.",
                    "Module ledger with state verified says where. Shipping goes on, its record is missing.",
                    hard=False,
                )
            )

    def _soft(self, reason: Reason) -> None:
        (self.result.accepted if reason.code in self.request.accept else self.result.reasons).append(reason)

    def _record(self, kind: str, subject: str, data: t.Mapping[str, t.Any]) -> None:
        if not self.broken_ledger:
            self.store.ledger.append(run_id=self.request.run_id, kind=kind, subject=subject, data=data)

    def _observe(self) -> None:
        """The member set goes to the store with every ship, if it is another than the one on record."""
        cluster = self.request.cluster
        if not cluster.members or self.broken_ledger:
            return
        data = {
            "fingerprint": cluster.fingerprint,
            "uid": cluster.uid,
            "version": cluster.version,
            "members": [dict(member) for member in cluster.members],
        }
        events = [event for event in self.store.ledger.chain().events if event.kind == "observed_members"]
        if not events or dict(events[-1].data) != data:
            self._record("observed_members", self.store.identity.cluster_id, data)

    def _one(self, job: Job, offers: Offers, lease: Lease | None) -> None:
        if lease is None:
            self.result.changed = True
            manifest = self._manifest(job, {}, "unknown", utc_text(time.time()))
            self._add(job, manifest, published=False, already=False)
            return
        try:
            manifest = self._bring(job, offers, lease)
        except (DsmError, OSError) as caught:
            error = local_failure(self.store.path, caught) if isinstance(caught, OSError) else caught
            self.result.reasons.extend(
                [replace(reason, remedy=reason.remedy or error.remedy) for reason in error.reasons]
                or [tidy(error, job.source)]
            )
            return
        self.result.changed = True
        self._add(job, manifest, published=True, already=False)

    def _bring(self, job: Job, offers: Offers, lease: Lease) -> Manifest:
        """Pull, check, publish and record one backup."""
        at = self.request.checkpoint
        incoming = os.path.join(self.store.incoming_path, job.id)
        data = os.path.join(incoming, "data")
        make_directory(incoming)
        at("incoming made")
        source = job.noted()
        write_atomically(os.path.join(incoming, "source.json"), json.dumps(source).encode("utf-8"))
        make_directory(data)
        at("source noted")
        plan = TransferPlan(
            endpoint=job.source.endpoint,
            items=job.unit.items,
            directory=data,
            journal=os.path.join(incoming, "journal.jsonl"),
            workers=self.request.workers,
            rate_limit=self.request.rate_limit,
            known=frozenset(item.path for item in job.unit.items if item.source in job.hashes),
            round_trip=job.round_trip,
        )

        lines = Lines(job.unit.name, self.request.say)

        def progress(done: int, total: int, workers: int) -> None:
            lease.renew()
            lines(done, total, workers)
            at("range landed")

        try:
            remove_strangers(data, {item.path for item in job.unit.items})
            report = pull(plan, progress, self.pool)
            self.result.report.add(report)
            self.result.notes += report.notes
            at("pulled")
            offers.unchanged(job)
            _same_as_source(job, report.sha256)
            kind, problems = _structure.check(data, [item.path for item in job.unit.items], lease.renew)
            if problems:
                raise _Unfit(
                    f"{job.unit.name} is not complete.",
                    problems[0].code,
                    "The backup job of the cluster was cut off while it wrote. Let it run again.",
                    reasons=as_reasons(problems),
                )
            self._doubt_what_grew(job, data, lease)
            manifest = self._manifest(job, report.sha256, kind, utc_text(time.time()))
            self._refuse_foreign(manifest, data)
        except DsmError as error:
            if isinstance(error, _Unfit) or error.code in _OF_NO_USE:
                remove_tree(incoming)
            raise
        lease.confirm()
        at("verified")
        self.store.publish(job.id, manifest)
        self._record("shipped", job.id, ledger.shipped_data(manifest))
        at("recorded")
        return manifest

    def _doubt_what_grew(self, job: Job, data: str, lease: Lease) -> None:
        """No new backup begins with the bytes of the one before: that was not complete yet when it was published."""
        if any(_continues(data, before, lease.renew) for before in job.had_its_name):
            self.result.notes.append(
                f"{job.unit.name} is what was published of it before, written on: it is not recorded when its "
                f"snapshot started. A delivery was not complete after {self.request.quiet:g} s without change (quiet)."
            )
            job.snapshot_started, job.snapshot_source = None, "unknown"

    def _refuse_foreign(self, manifest: Manifest, data: str) -> None:
        """Ask the operator's command whose bytes these are, and look for them in other clusters' parts of the store."""
        cluster = self.request.cluster
        if self.request.identify is not None:
            said = self.request.identify(os.path.join(data, manifest.archive.path) if manifest.archive else data)
            if not any(mark and mark in said for mark in (cluster.fingerprint, cluster.uid)):
                raise _Unfit(
                    f"{manifest.source['path']} is not a backup of this cluster: identify_argv names neither its "
                    "fingerprint nor its uid.",
                    "FOREIGN",
                    "Check sources, and run the command of identify_argv by hand.",
                )
        for identity in identities(self.request.store).values():
            if identity.cluster_id == self.store.identity.cluster_id:
                continue
            for entry in ClusterStore(self.request.store, identity).entries():
                if entry.manifest is not None and entry.manifest.digest == manifest.digest:
                    raise _Unfit(
                        f"These bytes are backup {entry.id} of cluster {identity.cluster_id}.",
                        "FOREIGN",
                        "The source is the one of another cluster: correct sources.",
                    )

    def _manifest(self, job: Job, sha256: t.Mapping[str, str], structure: str, now: str) -> Manifest:
        generation = self.store.identity.generation_of(self.request.cluster.fingerprint)
        head = self.store.ledger.chain().head
        return Manifest(
            cluster_id=self.store.identity.cluster_id,
            fingerprint=self.request.cluster.fingerprint,
            generation=generation.generation if generation else 1,
            id=job.id,
            sequence=int(job.id.split("-")[0]),
            published_at=now,
            run_id=self.request.run_id,
            version=self.request.cluster.version,
            members=self.request.cluster.members,
            snapshot_started=job.snapshot_started,
            snapshot_source=job.snapshot_source,
            sealed_for=self.request.sealed_for,
            provenance="by_template" if self.request.identify is not None else "by_source",
            structure=structure,
            source={
                "host": job.source.endpoint.host,
                "path": job.unit.name,
                "layout": job.source.layout,
                "key": job.key,
                "hash": "sha256" if all(item.source in job.hashes for item in job.unit.items) else "none",
                "clock_skew": job.skew,
            },
            files=tuple(
                FileEntry(item.path, item.attributes.size, item.attributes.mtime, sha256.get(item.path, ""))
                for item in job.unit.items
            ),
            accepted=tuple(job.accepted),
            ledger={"sequence": head.sequence, "hash": head.hash} if head else {"sequence": 0, "hash": "0" * 64},
        )

    def _add(self, job: Job, manifest: Manifest, *, published: bool, already: bool) -> None:
        described = describe(manifest)
        # Where a file lies depends on the layout, and on links: nobody should have to work it out.
        there = {item.path: item.source for item in job.unit.items}
        described["files"] = [{**file, "source_path": there[file["path"]]} for file in described["files"]]
        if not published:
            described.update(sha256=None, digest=None, published_at=None)
        self.result.backups.append({"published": published, "already": already, **described})


def _continues(data: str, before: Manifest, tick: t.Callable[[], None]) -> bool:
    """Whether every file of an earlier backup is the beginning of the one that landed in its place."""
    paths = [os.path.join(data, file.path) for file in before.files]
    if not all(os.path.isfile(path) and os.path.getsize(path) >= file.size for path, file in zip(paths, before.files)):
        return False
    for path, file in zip(paths, before.files):
        beginning, left = hashlib.sha256(), file.size
        for piece in pieces(path):
            tick()
            beginning.update(piece[:left])
            left -= len(piece[:left])
            if not left:
                break
        if beginning.hexdigest() != file.sha256:
            return False
    return True


def _same_as_source(job: Job, sha256: t.Mapping[str, str]) -> None:
    """What landed is what somebody hashed at the source, where somebody did (code SOURCE_HASH)."""
    for item in job.unit.items:
        wanted = job.hashes.get(item.source)
        if wanted is not None and wanted != sha256[item.path]:
            raise _Unfit(
                f"{item.source} has the SHA-256 {wanted} at the source; what landed has {sha256[item.path]}.",
                "SOURCE_HASH",
                "Its bytes were damaged on the way or in memory, or the file was replaced. What landed was thrown "
                "away: run again. If it happens again, check the memory of both hosts.",
            )
