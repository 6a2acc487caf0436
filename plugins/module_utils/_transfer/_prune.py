# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Pruning: the only thing that removes backups, and only by a plan (``_core.retention``).

It works on a disk without a single free byte: nothing has to be written before something was removed. It survives
``kill -9`` anywhere: the manifest goes first, under another name, and what is left is finished by the next run.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
import typing as t
from dataclasses import dataclass, field

from .._core import ledger, retention, tables
from .._core.manifest import BACKUP_ID
from .._core.parts import missing
from .._core.strict import Problem, utc_text
from .._errors import DsmError, Reason, Refused, refuse_unless_accepted
from . import _metrics
from ._disk import remove_tree
from ._keeping import items, keep, lacking, lost_history, members, remains, tree_bytes
from ._parts import states
from ._store import BAD, Checkpoint, ClusterStore, Entry, Lease, as_reasons, no_checkpoint


@dataclass(frozen=True)
class PruneRequest:
    """What to remove from which part of the store. ``need`` None: room for one more like the newest, and ``headroom``
    (a fraction) of it, or for the one that was refused for want of room. ``incoming_grace`` (s): how long an unfinished
    transfer may rest."""

    policy: retention.Policy
    need: int | None = None
    headroom: float = 0.1
    incoming_grace: float = 604800.0
    accept: t.Sequence[str] = ()
    metrics: str | None = None
    require: t.Sequence[str] = ()
    run_id: str = ""
    checkpoint: Checkpoint = no_checkpoint


@dataclass
class PruneResult:
    """What was (in check mode: would be) removed, and everything that went wrong on the way."""

    plan: retention.Plan | None = None
    before: dict[str, list[str]] = field(default_factory=dict)
    after: dict[str, list[str]] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)
    freed: int = 0
    notes: list[str] = field(default_factory=list)
    accepted: list[Reason] = field(default_factory=list)
    failures: list[Reason] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return self.before != self.after

    def returns(self) -> dict[str, t.Any]:
        """Return values of the module."""
        plan = self.plan
        return {
            "plan": [described(one) for one in plan.decisions] if plan else [],
            "removed": self.removed,
            "cleared": self.cleared,
            "freed": self.freed,
            "verified": plan.verified if plan else 0,
            "verified_after": plan.verified_after if plan else 0,
            "frozen": plan.frozen if plan else "",
            "missing": plan.missing if plan else 0,
            "next_expiry": utc_text(plan.next_expiry) if plan and plan.next_expiry is not None else None,
            "notes": self.notes,
            "accepted": [reason.as_dict() for reason in self.accepted],
            "table": table(plan) if plan else [],
        }


def prune(store: ClusterStore, request: PruneRequest, check_mode: bool) -> PruneResult:
    """Plan, and unless in check mode carry it out. One item's failure is reported at the end and stops no other.

    Raises :class:`Refused` (KEEP_NOTHING, BAD_POLICY, LOCKED, PRUNE_INCOMPLETE, STORE_FULL, ...) and
    :class:`Unreadable` (LEDGER_BROKEN).
    """
    problems = retention.policy_problems(request.policy._replace(need=request.need or 0))
    for name in ("headroom", "incoming_grace"):
        if not 0 <= getattr(request, name) < float("inf"):
            problems.append(Problem("BAD_POLICY", f"{name} is {getattr(request, name):g}: it cannot be negative"))
    if problems:
        raise Refused(
            "This retention policy is refused; nothing was removed.",
            problems[0].code,
            "keep is the number of verified copies that always stay: give 1 or more, better 3.",
            reasons=as_reasons(problems),
        )
    _metrics.check_path(request.metrics)
    run = _Run(store, request, check_mode)
    run.go()
    if not check_mode:
        run.guarded("the metrics", run.tell)
    if run.result.failures:
        codes = {reason.code for reason in run.result.failures}
        raise Refused(
            f"Pruning is not complete ({len(run.result.removed)} removed, {len(run.result.failures)} not as wanted).",
            codes.pop() if len(codes) == 1 else "PRUNE_INCOMPLETE",
            reasons=run.result.failures,
            **run.result.returns(),
        )
    return run.result


class _Run:
    """One run of :func:`prune`."""

    def __init__(self, store: ClusterStore, request: PruneRequest, check_mode: bool) -> None:
        self.store = store
        self.request = request
        self.check_mode = check_mode
        self.result = PruneResult()
        self.policy = request.policy
        self.lease: Lease | None = None
        self.whole_run_locked = False
        #: events of the ledger that the plan knows
        self.events_seen = 0

    def go(self) -> None:
        """Look, tidy up, plan, remove."""
        result = self.result
        with contextlib.ExitStack() as stack:
            self._begin(stack)
            stale = self._stale()
            unfinished = self._unfinished(self.store.backup_names())
            if not self.check_mode:
                self._finish(dict.fromkeys(unfinished, ("UNFINISHED",)))
                for name, path in stale.items():
                    self.guarded(name, functools.partial(self._clear, name, path))
            plan = self._plan(0 if not self.check_mode else self._size(unfinished, stale.values()))
            result.plan = plan
            if plan.missing:
                result.failures.append(
                    Reason(
                        "STORE_FULL",
                        f"{plan.missing} bytes are missing for the next backup, and everything that is left must stay.",
                        "Enlarge the disk; or take away pins, release golden backups that are not the last of their "
                        "node, lower keep.",
                    )
                )
            going = [*unfinished, *(one.item.id for one in plan.removals)]
            result.before = {"backups": sorted(going), "incoming": sorted(stale)}
            if self.check_mode:
                result.removed = [one.item.id for one in plan.removals]
                result.cleared = [*unfinished, *stale]
                result.freed = sum(one.item.bytes for one in plan.removals)
                result.after = {"backups": [], "incoming": []}
                return
            chosen = {one.item.id: [reason.code for reason in one.reasons] for one in plan.removals}
            result.removed = self._finish({name: chosen[name] for name in chosen if self._unpublished(name)})
            result.after = {
                "backups": sorted({*going}.intersection(self.store.backup_names())),
                "incoming": sorted(name for name, path in stale.items() if os.path.lexists(path)),
            }

    # -- before anything is removed ---------------------------------------------------------------------------------
    def _begin(self, stack: contextlib.ExitStack) -> None:
        """Become the only one who changes this part of the store, also where no lease can be written any more."""
        if self.check_mode:
            taken_over = self.store.refuse_if_held()
        else:
            try:
                self.lease = stack.enter_context(self.store.lease(self.request.run_id))
                taken_over = self.lease.taken_over
            except Refused as error:
                if error.code != "STORE_FULL":
                    raise
                stack.enter_context(self.store.mutex())
                taken_over = self.store.refuse_if_held()
                self.whole_run_locked = True
            self.store.take_back()
        if taken_over:
            self.result.notes.append(f"Took over the lease of {taken_over}.")

    def _unfinished(self, names: t.Sequence[str]) -> list[str]:
        """Backups whose removal began and did not end."""
        bare = [name for name in names if not self.store.has_manifest(name)]
        # What was brought home again since is pruned no more, and may be a repair that was killed.
        pruned = ledger.fold(self.store.ledger.chain().events).pruned if bare else ()
        return [name for name in bare if name in pruned or self.store.entry(name).state == "removing"]

    def _stale(self) -> dict[str, str]:
        """Unfinished transfers and repairs, and bad bytes that good ones took the place of, that nobody touched for the
        grace: name -> directory. They never counted (F14)."""
        store = self.store
        found = {name: os.path.join(store.incoming_path, name) for name in store.incoming()}
        found.update((f"repair/{name}", os.path.join(store.repairs_path, name)) for name in store.repairs())
        for name in store.backup_names():
            aside = os.path.join(store.backups_path, name, BAD)
            if BACKUP_ID.match(name) and store.has_manifest(name) and os.path.isdir(aside):
                found[f"{name}/{BAD}"] = aside
        limit = time.time() - self.request.incoming_grace
        return {name: path for name, path in found.items() if _touched(path) < limit}

    def _size(self, unfinished: t.Iterable[str], stale: t.Iterable[str]) -> int:
        paths = [os.path.join(self.store.backups_path, name) for name in unfinished]
        return sum(map(tree_bytes, [*paths, *stale]))

    def _plan(self, will_be_free: int) -> retention.Plan:
        """The plan, made again without the copies that turn out not to be there as they were published."""
        now = time.time()
        chain = self.store.ledger.trusted()
        entries = self.store.entries()
        doubts = lost_history(self.store, chain, entries)
        self.result.accepted = refuse_unless_accepted(
            doubts, self.request.accept, "What happened in this store is not known; nothing was removed."
        )
        self.events_seen = len(chain.events)
        folded = ledger.fold(chain.events)
        found = items(self.store, keep(self.store, folded, entries), folded, now)
        if self.request.require:
            found = self._complete(found, entries)
        by_id = {entry.id: entry for entry in entries}
        self.policy = policy = self.request.policy._replace(need=self._need(entries, chain.events))
        looked_at: set[str] = set()
        while True:
            plan = retention.plan(
                found, policy, now=now, free=self.store.free()[0] + will_be_free, members=members(folded)
            )
            if not plan.removals:
                return plan
            floor = [
                one.item.id
                for one in plan.decisions
                if one.item.id not in looked_at and any(reason.code in ("FLOOR", "LAST_PAIR") for reason in one.reasons)
            ]
            wrecks = {name: problem for name in floor for problem in [lacking(self.store, by_id[name])] if problem}
            looked_at.update(floor)
            if not wrecks:
                return plan
            self.result.failures.extend(
                Reason(problem.code, problem.message, "Run backup_verify, and ship it again.")
                for problem in wrecks.values()
            )
            found = [one._replace(verdict="failed") if one.id in wrecks else one for one in found]

    def _complete(self, found: t.Iterable[retention.Item], entries: t.Iterable[Entry]) -> list[retention.Item]:
        """Copies that lack a required part do not count as verified (F06)."""
        known = states(self.store)
        lacking_one = {
            entry.id
            for entry in entries
            if entry.manifest is not None and missing(known.get(entry.manifest.fingerprint, {}), self.request.require)
        }
        return [
            one._replace(verdict="unverified") if one.id in lacking_one and one.verdict == "ok" else one
            for one in found
        ]

    def _need(self, entries: t.Sequence[Entry], events: t.Sequence[ledger.Event]) -> int:
        """Room for one more like the newest, and for the one that had no room when it was to be shipped."""
        if self.request.need is not None:
            return self.request.need
        sizes = [entry.manifest.bytes for entry in entries if entry.manifest is not None]
        expected = int(sizes[-1] * (1 + self.request.headroom)) if sizes else 0
        return max(expected, ledger.wanted_room(events))

    # -- removing ---------------------------------------------------------------------------------------------------
    def guarded(self, name: str, act: t.Callable[[], None]) -> bool:
        """Do it; a failure is noted and stops nothing else (F28). Whether it was done."""
        try:
            act()
        except DsmError as error:
            if error.code == "LEASE_LOST":
                raise
            self.result.failures.append(Reason(error.code, f"{name}: {error.message}", error.remedy))
        except OSError as error:
            self.result.failures.append(
                Reason(
                    "REMOVE_FAILED",
                    f"{name} could not be removed: {error.strerror or error} ({error.filename}).",
                    "Look for what protects it: an immutable flag, a mount, a lock. The next run tries again.",
                )
            )
        else:
            return True
        return False

    def tell(self) -> None:
        """Remember the policy and write the metrics."""
        self.store.refresh_index()
        _metrics.remember_policy(self.store, self.policy)
        if self.request.metrics is not None:
            _metrics.write(self.store, self.request.metrics)

    def _unpublished(self, name: str) -> bool:
        return self.guarded(name, functools.partial(self._unpublish, name))

    def _unpublish(self, name: str) -> None:
        """Take the manifest away if nobody pinned or reads the backup since the plan was made."""
        with contextlib.nullcontext() if self.whole_run_locked else self.store.mutex():
            nothing = ledger.fold(())
            for now in items(self.store, keep(self.store, nothing, [self.store.entry(name)]), nothing, time.time()):
                for hold in now.holds:
                    raise Refused(f"{hold.message}.", hold.code, "It was said after the plan was made: it stays.")
            self._refuse_if_less_stays()
            self.request.checkpoint("chosen")
            if self.lease is not None:
                self.lease.confirm()
                self.lease.renew()
            self.store.unpublish(name)
        self.request.checkpoint("unpublished")

    def _refuse_if_less_stays(self) -> None:
        """A verification may have found meanwhile that something is bad that was to stay (code STAYING_FAILED)."""
        if self.result.plan is None or self.store.ledger.length() == self.events_seen:
            return
        events = self.store.ledger.trusted().events
        backups = ledger.fold(events).backups
        for one in self.result.plan.decisions:
            if not one.remove and one.item.verdict == "ok" and backups.get(one.item.id, {}).get("verdict") == "failed":
                raise Refused(
                    f"{one.item.id}, which was to stay, failed a verification after the plan was made.",
                    "STAYING_FAILED",
                    "Run again: the plan is made anew.",
                )
        self.events_seen = len(events)

    def _finish(self, chosen: t.Mapping[str, t.Sequence[str]]) -> list[str]:
        """Remove the data of what is un-published, record it, then remove its directory. Returns what is gone."""
        sizes = {name: tree_bytes(os.path.join(self.store.backups_path, name)) for name in chosen}
        erased = [name for name in chosen if self.guarded(name, functools.partial(self._erase, name))]
        if erased:
            self._record({name: chosen[name] for name in erased})
        gone = [name for name in erased if self.guarded(name, functools.partial(self._drop, name))]
        self.result.freed += sum(sizes[name] for name in gone)
        return gone

    def _erase(self, name: str) -> None:
        remove_tree(os.path.join(self.store.backups_path, name, "data"))
        self.request.checkpoint("data removed")

    def _drop(self, name: str) -> None:
        remove_tree(os.path.join(self.store.backups_path, name))
        self.request.checkpoint("directory removed")

    def _record(self, chosen: t.Mapping[str, t.Sequence[str]]) -> None:
        folded = ledger.fold(self.store.ledger.trusted().events)
        records = []
        for name, codes in chosen.items():
            if name in folded.pruned:
                continue
            document = remains(self.store, name)
            source = document.get("source")
            known = folded.backups.get(name, {})
            records.append(
                (
                    "pruned",
                    name,
                    {
                        "codes": sorted(set(codes)),
                        "digest": str(document.get("digest", "")),
                        "bytes": document.get("bytes", 0),
                        "verdict": str(known.get("verdict", "unverified")) if document else "failed",
                        "key": str(source.get("key", "")) if isinstance(source, dict) else "",
                    },
                )
            )
        self.store.ledger.append_all(self.request.run_id, records)
        self.request.checkpoint("recorded")

    def _clear(self, name: str, directory: str) -> None:
        self.result.freed += tree_bytes(directory)
        remove_tree(directory)
        self.result.cleared.append(name)


def _touched(directory: str) -> float:
    """When anything in a directory was last written, or was moved into or out of it (s)."""
    stamps = [os.lstat(directory).st_mtime]
    for parent, _directories, files in os.walk(directory):
        stamps.extend(os.lstat(os.path.join(parent, file)).st_mtime for file in files)
    return max(stamps)


def described(one: retention.Decision) -> dict[str, t.Any]:
    """A decision as the module returns it."""
    return {
        "id": one.item.id,
        "remove": one.remove,
        "verdict": one.item.verdict,
        "bytes": one.item.bytes,
        "age": None if one.age is None else round(one.age),
        "reasons": [{"code": reason.code, "message": reason.message} for reason in one.reasons],
    }


def table(plan: retention.Plan) -> list[str]:
    """The plan for a person. Each backup's age is in the plan itself."""
    rows = []
    for one in plan.decisions:
        why = "; ".join(f"{reason.code}: {reason.message}" for reason in one.reasons)
        rows.append(tables.Row(one.item.id, one.item.bytes, (one.item.verdict, "goes" if one.remove else "stays", why)))
    return tables.lines(("BACKUP", "BYTES", "VERDICT", "", "WHY"), tables.condensed(rows))
