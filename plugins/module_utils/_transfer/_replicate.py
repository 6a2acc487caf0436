# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""A second store: it pulls what the first has and it has not, and either repairs its bad copies from the other.

Each copy is checked against the manifest of the other store while it lands, read again from the disk, and only then
published or exchanged. What is decided is in :mod:`replication`, which has no files.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import typing as t
from dataclasses import dataclass, field, replace

from .._core import ledger, parts, replication
from .._core.catalogue import StoreIdentity, dump_identity
from .._core.manifest import BACKUP_ID, Manifest
from .._core.replication import Here, Step, There
from .._core.room import Room, fitting, with_headroom
from .._core.strict import Invalid, Problem, load, utc_text
from .._errors import DsmError, Reason, Refused, Unreadable, reasons_of
from . import _structure
from ._disk import (
    landed_bytes,
    make_directory,
    read_bytes,
    remove_strangers,
    remove_tree,
    store_full,
    write_atomically,
)
from ._endpoint import LocalEndpoint, check_local
from ._keeping import NOT_OURS, keep, ledger_of_other, tampered
from ._other import (
    Look,
    Site,
    copies_there,
)
from ._parts import FILE, LARGEST, adopt, wanted
from ._pool import Pool
from ._progress import Lines
from ._pull import (
    TRANSIENT,
    TransferPlan,
    TransferReport,
    local_failure,
    pull,
)
from ._sites import remember, sites
from ._ssh import require_python
from ._store import Checkpoint, ClusterStore, Lease, as_reasons, identities, no_checkpoint
from ._verify import read_back, remember_reads

_REMEDIES = {
    "BOTH_FAILED": "Run backup_verify there. If it is good there, check the memory of both hosts, then run again. If "
    "not, ship it again while a source still has it; else it is lost. Neither copy was touched.",
    "OTHER_CORRUPT": "Run backup_verify there, then repair it there or ship it again. Nothing of it is published here. "
    "If it is good there, check the memory of both hosts, then run again.",
    "OTHER_UNCLEAR": "Run backup_verify there. If its manifest is of a newer release, update the collection here.",
    "NO_OTHER_COPY": "Ship it again while a source still has it. It was not touched.",
    "DIVERGED": "Two stores were shipped into and gave one number to different backups. Nothing was touched. Keep "
    "one of them as the first from now on, and take the backups of the other from where they are.",
    "HELD": "Look at it with backup_info: it may be of a newer release or of another cluster.",
    "OTHER_LEDGER_BROKEN": "Put the copy of its ledger that is in this store (other.jsonl) back there. To replicate "
    "backups nevertheless, accept OTHER_LEDGER_BROKEN; then nothing of that ledger is taken over.",
    "OTHER_LEDGER_ROLLED_BACK": "It was put back to an older state, or replaced. The copy in this store (other.jsonl) "
    "has what is missing there. To replicate backups nevertheless, accept OTHER_LEDGER_ROLLED_BACK. If that state is "
    "the true one from now on (a lost store that was filled again from this one), move other.jsonl out of the way.",
}


@dataclass(frozen=True)
class ReplicateRequest:
    """Everything that decides a run of ``backup_replicate``; rate in bytes a second."""

    store: str
    other: Site
    only_repair: bool = False
    cluster_id: str = ""
    fingerprint: str = ""
    new_cluster: bool = False
    headroom: float = 0.1
    workers: int = 8
    rate_limit: float = 0.0
    accept: frozenset[str] = frozenset()
    run_id: str = ""
    checkpoint: Checkpoint = no_checkpoint
    say: t.Callable[[str], None] = lambda _line: None


@dataclass
class ReplicateResult:
    """What was done, and everything that was refused."""

    cluster_id: str = ""
    backups: list[dict[str, t.Any]] = field(default_factory=list)
    kept: int = 0
    parts: list[str] = field(default_factory=list)
    events: int = 0
    sites: list[dict[str, t.Any]] = field(default_factory=list)
    report: TransferReport = field(default_factory=TransferReport)
    reasons: list[Reason] = field(default_factory=list)
    accepted: list[Reason] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    before: dict[str, t.Any] = field(default_factory=dict)
    after: dict[str, t.Any] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        """Whether anything but evidence was (would be) written."""
        return self.before != self.after

    def returns(self) -> dict[str, t.Any]:
        """Return values of the module."""
        return {
            "cluster_id": self.cluster_id,
            "backups": self.backups,
            "kept": self.kept,
            "parts": self.parts,
            "events": self.events,
            "sites": self.sites,
            "bytes": self.report.bytes,
            "resent": self.report.resent,
            "seconds": round(self.report.seconds, 3),
            "workers": self.report.workers,
            "peak_rss": self.report.peak_rss,
            "accepted": [reason.as_dict() for reason in self.accepted],
            "notes": self.notes,
        }


def replicate(request: ReplicateRequest, check_mode: bool) -> ReplicateResult:
    """Take over what the other store has, and repair what is bad here.

    What is good is published even when something else is refused; all refusals are raised together at the end
    (:class:`Refused`, details: the result). In check mode nothing is written.
    """
    require_python()
    if isinstance(request.other.endpoint, LocalEndpoint):
        check_local(request.other.root, request.store)
    # The workers come first: nothing that has connections or threads may be forked.
    with Pool(0 if check_mode else request.workers, bool(request.other.endpoint.host)) as pool:
        run = _Run(request, None if check_mode else pool)
        run.go()
    result = run.result
    if result.reasons:
        codes = {reason.code for reason in result.reasons}
        done = sum(item["published"] for item in result.backups)
        raise Refused(
            f"Replication is not complete ({len(result.reasons)} refused, {done} published).",
            codes.pop() if len(codes) == 1 else "REPLICATION_INCOMPLETE",
            reasons=result.reasons,
            **result.returns(),
        )
    return result


@dataclass
class _Met:
    """What the first look at the other store shows."""

    mine: StoreIdentity | None
    theirs: StoreIdentity
    text: bytes
    events: tuple[ledger.Event, ...]
    trusted: bool


class _Run:
    """One run of :func:`replicate`."""

    def __init__(self, request: ReplicateRequest, pool: Pool | None) -> None:
        self.request = request
        #: None in check mode
        self.pool = pool
        self.result = ReplicateResult()
        self.manifests: dict[str, Manifest] = {}
        self.broken_ledger = False
        #: the newest, where there is no room for it
        self.waiting: Step | None = None

    def go(self) -> None:
        """Look, decide, act."""
        with self.request.other.look() as look:
            met = self._meet(look)
            store = self._store(met)
            self.result.cluster_id = store.identity.cluster_id
            if self.pool is None:
                note = store.refuse_if_held() if os.path.isdir(store.path) else ""
                self._note_takeover(note)
                self._decide(look, store, met)
                self._predict(store, met)
                return
            make_directory(store.path)
        with store.lease(self.request.run_id) as lease:
            self._note_takeover(lease.taken_over)
            # What was decided before the lease was held may be old.
            with self.request.other.look() as look:
                met = self._meet(look)
                store = self._store(met)
                if store.identity != met.mine:
                    write_atomically(os.path.join(store.path, "store.json"), dump_identity(store.identity))
                self.request.checkpoint("store.json")
                self._guarded(store, store.finish_exchanges)
                self._guarded(store, store.take_back)
                self._decide(look, store, met)
                self._record_published(store, met)
                self._take_over_events(store, met)
                self._take_parts(look, store)
            self._guarded(store, lambda: self._ask_for_room(store))
            for step in self.steps:
                if not self._carry_out(step, store, lease):
                    break
            self._guarded(store, lambda: self._tidy_up(store))
            self._remember_other(store, met)
            self._tell(store)

    def _guarded(self, store: ClusterStore, act: t.Callable[[], None]) -> None:
        """Do it; that the disk does not let it is told at the end, and stops nothing else."""
        try:
            act()
        except OSError as error:
            self.result.reasons += reasons_of(local_failure(store.path, error))
        except DsmError as error:
            self.result.reasons += reasons_of(error)

    def _note_takeover(self, who: str) -> None:
        if who:
            self.result.notes.append(f"Took over the lease of {who}.")

    # -- may this be done at all ------------------------------------------------------------------------------------
    def _meet(self, look: Look) -> _Met:
        """Refuse another cluster and a ledger that is not believed."""
        request = self.request
        mine, theirs = identities(request.store), look.identities()
        try:
            cluster_id = replication.choose(
                mine,
                theirs,
                cluster_id=request.cluster_id,
                fingerprint=request.fingerprint,
                may_create=request.new_cluster and not request.only_repair,
            )
            if request.only_repair and cluster_id not in mine:
                raise Invalid([Problem("UNKNOWN_CLUSTER", f"this store holds nothing of {cluster_id} to repair")])
            replication.merged(mine.get(cluster_id), theirs[cluster_id], site="", now="", run_id="")
        except Invalid as error:
            raise Refused(
                f"The store in {request.other.endpoint.label}:{request.other.root} is none to replicate from.",
                error.problems[0].code,
                "Check other and store, name the cluster with cluster_id. To keep a second cluster in this store, say "
                "new_cluster: true once.",
                reasons=as_reasons(error.problems),
            ) from None
        text = look.ledger(cluster_id)
        seen = ledger_of_other(ClusterStore(request.store, mine[cluster_id])) if cluster_id in mine else b""
        chain, doubts = replication.follow(seen, text)
        reasons = [Reason(item.code, f"{item.message}.", _REMEDIES[item.code], hard=False) for item in doubts]
        standing = [reason for reason in reasons if reason.code not in request.accept]
        if standing:
            raise Refused("The other store is not followed; nothing was done.", standing[0].code, reasons=standing)
        self.result.accepted = reasons
        whole = text[: len(text) - chain.torn]
        return _Met(mine.get(cluster_id), theirs[cluster_id], whole, chain.events, not doubts)

    def _store(self, met: _Met) -> ClusterStore:
        """This store's part of the cluster, with the generations that the other one knows."""
        request = self.request
        identity = replication.merged(
            met.mine, met.theirs, site=request.other.name, now=utc_text(time.time()), run_id=request.run_id
        )
        return ClusterStore(request.store, identity, request.checkpoint)

    # -- what is to be done -----------------------------------------------------------------------------------------
    def _decide(self, look: Look, store: ClusterStore, met: _Met) -> None:
        chain = store.ledger.chain()
        self.broken_ledger = bool(chain.problems)
        if self.broken_ledger:
            self._soft("LEDGER_BROKEN", "The ledger of this store is broken; nothing is recorded in it.")
        folded = ledger.fold(chain.events)
        self.recorded = folded.backups
        self.here = _here(store, folded)
        listed = look.copies(met.theirs.cluster_id)
        self.there = copies_there(ledger.fold(met.events), listed)
        steps = replication.plan(
            self.here, self._look_closer(look, store, met, listed), only_repair=self.request.only_repair
        )
        self.result.kept = sum(step.action == "keep" for step in steps)
        for problem in replication.unresolved(steps):
            self.result.reasons.append(Reason(problem.code, f"{problem.message}.", _REMEDIES[problem.code]))
        left = [step for step in steps if step.problem is not None]
        self.result.notes += [
            step.problem.message for step in left if step.problem and step.problem.code == "OTHER_FAILED"
        ]
        self.steps = self._room(store, [step for step in steps if step.action in ("bring", "repair")])
        self.result.backups += [_told(step) for step in left]
        self.events = []
        if met.trusted and not self.request.only_repair and not self.broken_ledger:
            self.events = replication.taken_over(chain.events, met.events)
        self.bundles = self._bundles(look, store)
        self.result.before = {
            "missing": sorted(step.id for step in self.steps if step.action == "bring"),
            "bad": sorted(step.id for step in self.steps if step.action == "repair"),
            "parts": [f"{one.part}/{one.id}" for one in self.bundles],
            "events": len(self.events),
            "generations": [one.fingerprint for one in met.mine.generations] if met.mine else [],
        }

    def _soft(self, code: str, message: str) -> None:
        reason = Reason(code, message, "Module ledger, state verified, says where.", hard=False)
        (self.result.accepted if code in self.request.accept else self.result.reasons).append(reason)

    def _look_closer(self, look: Look, store: ClusterStore, met: _Met, listed: t.Sequence[str]) -> dict[str, There]:
        """What is there; of everything that may be brought or repaired the manifest, too."""
        folded = ledger.fold(met.events).backups
        there = {}
        for name in listed:
            failed = self.there[name].verdict == "failed"
            why = "its verification failed there" if failed else ""
            there[name] = There("bad" if failed else "good", str(folded.get(name, {}).get("digest", "")), why)
        for name in replication.candidates(self.here, listed, only_repair=self.request.only_repair):
            if there[name].state != "good":
                continue
            try:
                manifest = look.manifest(met.theirs, name)
            except FileNotFoundError:
                # Half-made or half-removed: no backup.
                del there[name], self.there[name]
                continue
            except Invalid as error:
                there[name] = self._unclear(name, str(error))
                continue
            except Refused as error:
                # The disk there does not give this one; a link that is lost would be none of this.
                if error.code != "OTHER_UNREADABLE":
                    raise
                there[name] = self._unclear(name, error.message)
                continue
            mine = self._intact_manifest(store, name)
            known = {} if mine is not None else self.recorded.get(name, {})
            other_than = _other_than(manifest, there=folded.get(name, {}), here=known)
            if other_than:
                there[name] = self._unclear(name, other_than)
                continue
            if mine is not None and mine.digest == manifest.digest:
                # Of the other copy nothing is wanted but the bytes.
                manifest = mine
            there[name] = There("good", manifest.digest)
            self.manifests[name] = manifest
        return there

    def _unclear(self, name: str, why: str) -> There:
        """What the ledger there found good was something else."""
        self.there[name] = self.there[name]._replace(verdict="unverified")
        return There("unclear", why=why)

    def _intact_manifest(self, store: ClusterStore, name: str) -> Manifest | None:
        """The manifest that a bad copy has here, if the ledger knows it so."""
        entry, record = store.entry(name), self.recorded.get(name)
        return entry.manifest if record and tampered(entry, record) is None else None

    def _room(self, store: ClusterStore, steps: t.Sequence[Step]) -> list[Step]:
        """The newest that fit with headroom; the others are refused before the first byte (code STORE_FULL)."""
        free, inodes = store.free()
        landed = sum(landed_bytes(path) for path in (store.incoming_path, store.repairs_path))
        sizes = [(self.manifests[step.id].bytes, len(self.manifests[step.id].files)) for step in steps]
        chosen = steps[: fitting(sizes, free + landed, inodes, self.request.headroom)]
        self.waiting = steps[0] if steps and not chosen else None
        if len(chosen) < len(steps):
            need = sum(size for size, _files in sizes)
            full = store_full(store.path, OSError(28, "not enough free space"))
            self.result.reasons.append(
                Reason(
                    full.code,
                    f"{need} bytes and {self.request.headroom:.0%} headroom are needed in {store.path}, "
                    f"{free + landed} bytes and {inodes} inodes are free: {len(steps) - len(chosen)} of {len(steps)} "
                    "backups wait.",
                    full.remedy,
                )
            )
        return list(chosen)

    def _ask_for_room(self, store: ClusterStore) -> None:
        """Let pruning make room for the newest, if there is none: what is older comes behind it."""
        if self.waiting is None or self.broken_ledger:
            return
        manifest = self.manifests[self.waiting.id]
        wanted = Room(with_headroom(manifest.bytes, self.request.headroom), len(manifest.files))
        if ledger.wanted_room(store.ledger.chain().events) != wanted:
            data = {"name": manifest.id, "host": self.request.other.name, **wanted._asdict(), "newer": []}
            store.ledger.append_all(self.request.run_id, [("no_room", self.waiting.id, data)])

    def _bundles(self, look: Look, store: ClusterStore) -> list[parts.Bundle]:
        found = []
        for part in parts.PARTS:
            names = wanted(
                store, part, look.names(store.identity.cluster_id, part), only_repair=self.request.only_repair
            )
            for name in sorted(names):
                try:
                    found += list(look.bundles(store.identity.cluster_id, part, [name]))
                except Refused as error:
                    if error.code != "OTHER_UNREADABLE":
                        raise
                    # The disk there does not give this one; the others come.
                    self.result.reasons.append(Reason(error.code, error.message, error.remedy))
        return sorted(found, key=lambda bundle: (bundle.part, bundle.id))

    def _predict(self, store: ClusterStore, met: _Met) -> None:
        self.result.parts = self.result.before["parts"]
        self.result.events = self.result.before["events"]
        self.result.backups += [_told(step, bytes=self.manifests[step.id].bytes) for step in self.steps]
        self.result.after = {"missing": [], "bad": [], "parts": [], "events": 0, "generations": _known(store)}
        self.result.sites = sites(store, keep(store, _folded(store), store.entries()), time.time())

    def _record_published(self, store: ClusterStore, met: _Met) -> None:
        """What a run published and died before recording it is recorded now; nobody verified it.

        It was brought if the event that it was published after is one of the other ledger.
        """
        there = {event.hash for event in met.events}
        unknown = [name for name, mine in self.here.items() if mine.state == "good" and name not in self.recorded]
        entries = [] if self.broken_ledger else [store.entry(name) for name in sorted(unknown)]
        records = []
        for entry in entries:
            if entry.manifest is not None:
                brought = entry.manifest.ledger["hash"] in there
                came = {replication.COPIED_FROM: self.request.other.name} if brought else {}
                records.append(("shipped", entry.id, {**ledger.shipped_data(entry.manifest), **came}))
        store.ledger.append_all(self.request.run_id, records)

    # -- events and bundles -----------------------------------------------------------------------------------------
    def _take_over_events(self, store: ClusterStore, met: _Met) -> None:
        """First record, then remember what was seen: a run that was killed in between repeats neither."""
        store.ledger.append_all(self.request.run_id, self.events)
        self.result.events = len(self.events)
        self.request.checkpoint("events taken over")
        if met.trusted and met.text != ledger_of_other(store):
            write_atomically(os.path.join(store.path, "other.jsonl"), met.text)
        self.request.checkpoint("ledger copied")

    def _take_parts(self, look: Look, store: ClusterStore) -> None:
        for bundle in self.bundles:
            try:
                adopt(store, bundle, look.read(bundle.cluster_id, bundle.part, bundle.id, FILE, limit=LARGEST))
            except FileNotFoundError:
                continue
            except DsmError as error:
                self.result.reasons += reasons_of(error)
                continue
            except OSError as error:
                self.result.reasons += reasons_of(local_failure(store.path, error))
                continue
            self.result.parts.append(f"{bundle.part}/{bundle.id}")
            self.request.checkpoint("bundle stored")

    # -- one backup -------------------------------------------------------------------------------------------------
    def _carry_out(self, step: Step, store: ClusterStore, lease: Lease) -> bool:
        """Fetch, check and publish one backup; false where the other store cannot be reached any more."""
        manifest = self.manifests[step.id]
        try:
            with self.request.other.look() as look:
                items = look.items(manifest)
        except (DsmError, Invalid) as error:
            return self._failed(step, manifest, error)
        base = store.repairs_path if step.action == "repair" else store.incoming_path
        place = os.path.join(base, step.id)
        data = os.path.join(place, "data")
        try:
            self._prepare(base, place, manifest)
            plan = TransferPlan(
                endpoint=self.request.other.endpoint,
                items=items,
                directory=data,
                journal=os.path.join(place, "journal.jsonl"),
                workers=self.request.workers,
                rate_limit=self.request.rate_limit,
                # _judge compares every one of them with the manifest.
                known=frozenset(entry.path for entry in manifest.files),
                round_trip=look.session.round_trip,
            )
            report = pull(plan, self._progress(step, lease), self.pool)
            self.result.report.add(report)
            self.result.notes += report.notes
            self.request.checkpoint("pulled")
            self._judge(manifest, report, data, lease)
            lease.confirm()
            self.request.checkpoint("verified")
            if step.action == "repair":
                store.exchange(step.id, manifest)
            else:
                store.publish(step.id, manifest)
        except OSError as error:
            # What landed is right; it is the place where it belongs that cannot be written.
            return self._failed(step, manifest, local_failure(store.path, error))
        except (DsmError, Invalid) as error:
            # What is left of a transfer that only the link interrupted is worth keeping; of any other it is not.
            if getattr(error, "code", "") not in TRANSIENT | {"BEING_READ", "LEASE_LOST", "STORE_UNWRITABLE"}:
                self._guarded(store, lambda: remove_tree(place))
            return self._failed(step, manifest, error)
        # It is here whatever becomes of the record: the next run makes up for it.
        self._guarded(store, lambda: self._record(step, store, manifest))
        self.here[step.id] = Here("good", manifest.digest)
        self.result.backups.append(_told(step, bytes=manifest.bytes, published=True))
        return True

    def _progress(self, step: Step, lease: Lease) -> t.Callable[[int, int, int], None]:
        lines = Lines(f"{step.id} from {self.request.other.name}", self.request.say)

        def progress(done: int, total: int, workers: int) -> None:
            lease.renew()
            lines(done, total, workers)
            self.request.checkpoint("range landed")

        return progress

    def _prepare(self, base: str, place: str, manifest: Manifest) -> None:
        """A place for what lands; one that holds anything else than these very bytes is emptied."""
        mark = {"key": f"copy of {manifest.digest}", "name": manifest.id, "host": self.request.other.name, "path": ""}
        try:
            if load(read_bytes(os.path.join(place, "source.json")), "source.json") != mark:
                remove_tree(place)
        except (FileNotFoundError, NotADirectoryError, Invalid, DsmError):
            remove_tree(place)
        for directory in (base, place):
            make_directory(directory)
        write_atomically(os.path.join(place, "source.json"), json.dumps(mark).encode("ascii"))
        make_directory(os.path.join(place, "data"))
        remove_strangers(os.path.join(place, "data"), {entry.path for entry in manifest.files})
        self.request.checkpoint("place made")

    def _judge(self, manifest: Manifest, report: TransferReport, data: str, lease: Lease) -> None:
        """What landed is what the manifest says, by its hash on the way and by what the disk gives back."""
        wrong = [entry.path for entry in manifest.files if report.sha256[entry.path] != entry.sha256]
        if wrong:
            raise Invalid([Problem("CORRUPT", f"{path} is not what was published") for path in wrong])
        problems = read_back(data, manifest, lease.renew)
        if problems:
            told = "; ".join(problem.message for problem in problems)
            raise Unreadable(
                f"{manifest.id} landed and cannot be read back; nothing was published ({told}).",
                "DAMAGED",
                "Check the memory and the disk of this host, then run again.",
            )
        _kind, broken = _structure.check(data, [entry.path for entry in manifest.files], lease.renew)
        if broken:
            raise Invalid(broken)

    def _failed(self, step: Step, manifest: Manifest, error: DsmError | Invalid) -> bool:
        """Why a copy was not taken, which is no failure if its site removed it meanwhile; whether to go on."""
        if isinstance(error, Invalid):
            code = "BOTH_FAILED" if step.action == "repair" else "OTHER_CORRUPT"
            reasons = [
                Reason(code, f"{step.id} in the other store: {item.message}.", _REMEDIES[code])
                for item in error.problems
            ]
        else:
            reasons = [replace(one, remedy=one.remedy or error.remedy) for one in reasons_of(error)]
        reachable = isinstance(error, Invalid) or error.code not in TRANSIENT
        if reachable and step.action == "bring" and self._gone(manifest):
            self.result.notes.append(f"{step.id} was removed from the other store meanwhile.")
            del self.there[step.id]
            return True
        self.result.reasons += reasons
        self.result.backups.append(_told(step, bytes=manifest.bytes, reasons=reasons))
        return reachable

    def _gone(self, manifest: Manifest) -> bool:
        """Whether the other store does not have this backup any more; no, where that cannot be told."""
        try:
            with self.request.other.look() as look:
                look.read(manifest.cluster_id, "backups", manifest.id, "manifest.json")
        except FileNotFoundError:
            return True
        except DsmError:
            return False
        return False

    def _record(self, step: Step, store: ClusterStore, manifest: Manifest) -> None:
        """What is known now of this store's copy: that it is here, and that every byte was read and found right."""
        with contextlib.suppress(OSError, DsmError):
            remember_reads(store, step.id, [entry.path for entry in manifest.files])
        self.request.checkpoint("published")
        if self.broken_ledger:
            return
        came = {replication.COPIED_FROM: self.request.other.name}
        verified = {
            "verdict": "ok",
            "digest": manifest.digest,
            "bytes": manifest.bytes,
            "codes": [],
            **came,
        }
        # A repaired one may have been shipped here: nothing says that the event before it was never in this ledger.
        shipped = {**ledger.shipped_data(manifest), **(came if step.action == "bring" else {})}
        known = step.action == "repair" and step.id in self.recorded
        records = [*([] if known else [("shipped", step.id, shipped)]), ("verified", step.id, verified)]
        store.ledger.append_all(self.request.run_id, records)
        self.request.checkpoint("recorded")

    # -- afterwards -------------------------------------------------------------------------------------------------
    def _tidy_up(self, store: ClusterStore) -> None:
        """Better copies that landed once and are not needed any more."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(store.repairs_path):
                if self.here.get(name, Here("bad")).state != "bad":
                    remove_tree(os.path.join(store.repairs_path, name))

    def _remember_other(self, store: ClusterStore, met: _Met) -> None:
        """How new the other site's backups are, and which of them should be here and are not."""
        missing = [
            copy
            for name, copy in self.there.items()
            if copy.verdict != "failed" and self.here.get(name, Here("bad")).state == "bad"
        ]
        now = utc_text(time.time())
        remember(store, replication.site(self.request.other.name, now, self.there.values(), missing))

    def _tell(self, store: ClusterStore) -> None:
        good = {item["id"] for item in self.result.backups if item["published"]}
        before = self.result.before
        self.result.after = {
            "missing": [name for name in before["missing"] if name not in good],
            "bad": [name for name in before["bad"] if name not in good],
            "parts": [name for name in before["parts"] if name not in self.result.parts],
            "events": 0,
            "generations": _known(store),
        }
        store = ClusterStore(self.request.store, store.identity)
        self.result.sites = sites(store, keep(store, _folded(store), store.entries()), time.time())


def _known(store: ClusterStore) -> list[str]:
    return [one.fingerprint for one in store.identity.generations]


def _folded(store: ClusterStore) -> ledger.Folded:
    return ledger.fold(store.ledger.chain().events)


def _here(store: ClusterStore, folded: ledger.Folded) -> dict[str, Here]:
    """What this store has, had, and should have."""
    found: dict[str, Here] = {}
    for name, data in folded.pruned.items():
        if data.get("verdict") != "failed":
            found[name] = Here("pruned")
    for name, data in folded.backups.items():
        # Published once and never pruned: if it is not here, it is lost.
        found[name] = Here("bad", str(data.get("digest", "")))
    for one in keep(store, folded, store.entries()):
        name = one.entry.id
        if not BACKUP_ID.match(name):
            continue
        record = str(folded.backups.get(name, {}).get("digest", ""))
        if one.entry.state == "removing":
            found[name] = Here("pruned")
        elif any(problem.code in NOT_OURS for problem in one.problems):
            found[name] = Here("held")
        else:
            known = record or (one.entry.manifest.digest if one.entry.manifest is not None else "")
            found[name] = Here("bad" if one.verdict == "failed" else "good", known)
    return found


def _other_than(manifest: Manifest, *, there: t.Mapping[str, t.Any], here: t.Mapping[str, t.Any]) -> str:
    """Why a manifest of the other store is not believed: a ledger knows another one. '' if none does, or if the ledger
    here knows other bytes: then it is another backup."""
    known = [("there", ledger.contradictions(manifest, there))]
    if here.get("digest") == manifest.digest:
        known.append(("here", ledger.contradictions(manifest, here)))
    for where, facts in known:
        if facts:
            return f"its manifest is not the one that the ledger {where} knows ({', '.join(facts)})"
    return ""


def _told(step: Step, *, bytes: int = 0, published: bool = False, reasons: t.Sequence[Reason] = ()) -> dict[str, t.Any]:
    told = [{"code": one.code, "message": one.message} for one in reasons]
    if step.problem is not None:
        told.append({"code": step.problem.code, "message": step.problem.message})
    return {"id": step.id, "action": step.action, "bytes": bytes, "published": published, "reasons": told}
