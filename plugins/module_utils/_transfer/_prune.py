# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Pruning: the only thing that removes backups, and only by a plan (``_core.retention``).

It works on a disk without a single free byte: nothing has to be written before something was removed. It survives
``kill -9`` anywhere: the manifest goes first, under another name. The next run publishes again what has lost nothing
else, because what was to stay may have failed since, and ends the removal of the rest.
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
from .._core.room import Room
from .._core.strict import Problem, utc_text
from .._errors import DsmError, Reason, Refused, refuse_unless_accepted
from . import _metrics
from ._disk import remove_tree
from ._keeping import complete, counted_once, items, keep, lacking, lost_history, members, remains, tree_size
from ._store import BAD, REMOVED, Checkpoint, ClusterStore, Entry, Lease, as_reasons, no_checkpoint

_ANEW = "Run again: the plan is made anew."
_WRECK = "It stays for now. Run backup_verify, which records it as failed; then repair it or ship it again."
_REMEDIES = {
    "MISSING_FILE": _WRECK,
    "WRONG_SIZE": _WRECK,
    "UNREADABLE": "It stays for now, and counts as not verified. Check the disk and its log, then run again.",
}


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
            "missing_inodes": plan.missing_files if plan else 0,
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
        #: what check mode sees as published again
        self.undone: dict[str, Entry] = {}
        #: what the ledger amounted to when it was looked at last, and of how many events
        self.folded = ledger.fold(())
        self.events_seen = 0
        #: something that was to stay failed: nothing goes any more
        self.less_stays = False

    def go(self) -> None:
        """Look, tidy up, plan, remove."""
        result = self.result
        with contextlib.ExitStack() as stack:
            self._begin(stack)
            stale = self._stale()
            unfinished, undone = self._begun()
            self.result.notes.extend(
                f"{entry.id} was un-published by a run that did not end: it is published again and judged anew."
                for entry in undone
            )
            if self.check_mode:
                self.undone = {entry.id: entry for entry in undone}
            else:
                for entry in undone:
                    self.guarded(entry.id, functools.partial(self._republish, entry.id))
                self._finish(dict.fromkeys(unfinished, ("UNFINISHED",)))
                for name, path in stale.items():
                    self.guarded(name, functools.partial(self._clear, name, path))
            plan = self._plan(Room() if not self.check_mode else self._size(unfinished, stale.values()))
            result.plan = plan
            lacking_room = [f"{plan.missing} bytes"] * bool(plan.missing)
            lacking_room += [f"{plan.missing_files} inodes"] * bool(plan.missing_files)
            if lacking_room:
                result.failures.append(
                    Reason(
                        "STORE_FULL",
                        f"{' and '.join(lacking_room)} are missing for the next backup, and everything that is left "
                        "must stay.",
                        "Enlarge the disk; or take away pins, release golden backups that are not the last of their "
                        "node, lower keep.",
                    )
                )
            going = [*unfinished, *(one.item.id for one in plan.removals)]
            begun = sorted(entry.id for entry in undone)
            result.before = {"backups": sorted(going), "incoming": sorted(stale), "unpublished": begun}
            if self.check_mode:
                result.removed = [one.item.id for one in plan.removals]
                result.cleared = [*unfinished, *stale]
                result.freed = sum(one.item.bytes for one in plan.removals)
                result.after = {"backups": [], "incoming": [], "unpublished": []}
                return
            result.removed = self._finish(self._unpublished(plan.removals))
            result.after = {
                "backups": sorted({*going}.intersection(self.store.backup_names())),
                "incoming": sorted(name for name, path in stale.items() if os.path.lexists(path)),
                "unpublished": [name for name in begun if self.store.entry(name).state == "removing"],
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
            self.guarded("incoming", self.store.take_back)
        if taken_over:
            self.result.notes.append(f"Took over the lease of {taken_over}.")

    def _begun(self) -> tuple[list[str], list[Entry]]:
        """Removals that a run began and did not end: those to end, because bytes are gone, and those to undo (as what
        they become), about which the plan decides. A wreck is undone whatever is left of it: it counts for nothing."""
        store = self.store
        bare = [name for name in store.backup_names() if not store.has_manifest(name)]
        # What was brought home again since is pruned no more, and may be a repair that was killed.
        pruned = ledger.fold(store.ledger.chain().events).pruned if bare else ()
        ending, undone = [], []
        for name in bare:
            if name in pruned:
                ending.append(name)
            elif store.entry(name).state == "removing":
                entry = store.entry(name, REMOVED)
                problem = lacking(store, entry)
                if problem is None:
                    undone.append(entry)
                elif problem.code == "UNREADABLE":
                    self.result.failures.append(Reason(problem.code, problem.message, _REMEDIES[problem.code]))
                else:
                    ending.append(name)
        return ending, undone

    def _stale(self) -> dict[str, str]:
        """Unfinished transfers and repairs, and bad bytes that good ones took the place of, that nobody touched for the
        grace: name -> directory. They never counted (F14)."""
        store = self.store
        found = {name: os.path.join(store.incoming_path, name) for name in store.incoming()}
        found.update((f"repair/{name}", os.path.join(store.repairs_path, name)) for name in store.repairs())
        for name in store.backup_names():
            aside = os.path.join(store.backups_path, name, BAD)
            if BACKUP_ID.match(name) and os.path.isdir(aside) and store.has_manifest(name):
                found[f"{name}/{BAD}"] = aside
        limit = time.time() - self.request.incoming_grace
        return {name: path for name, path in found.items() if _touched(path) < limit}

    def _size(self, unfinished: t.Iterable[str], stale: t.Iterable[str]) -> Room:
        paths = [os.path.join(self.store.backups_path, name) for name in unfinished]
        return tree_size(*paths, *stale)

    def _plan(self, will_be_free: Room) -> retention.Plan:
        """The plan, made again without the copies that turn out not to be there as they were published."""
        now = time.time()
        chain = self.store.ledger.trusted()
        entries = [self.undone.get(entry.id, entry) for entry in self.store.entries()]
        doubts = lost_history(self.store, chain, entries)
        self.result.accepted = refuse_unless_accepted(
            doubts, self.request.accept, "What happened in this store is not known; nothing was removed."
        )
        self.events_seen = len(chain.events)
        self.folded = folded = ledger.fold(chain.events)
        found = items(self.store, keep(self.store, folded, entries), folded, now)
        by_id = {entry.id: entry for entry in entries}
        need = self._need(entries, chain.events)
        self.policy = policy = self.request.policy._replace(need=need.bytes, need_files=need.files)
        looked_at: set[str] = set()
        while True:
            once, instead = counted_once(found, entries)
            counted = complete(self.store, once, entries, self.request.require, policy.keep)
            free, inodes = self.store.free()
            plan = retention.plan(
                counted,
                policy,
                now=now,
                free=free + will_be_free.bytes,
                free_files=inodes + will_be_free.files,
                members=members(folded),
            )
            if not plan.removals:
                break
            floor = [
                one.item.id
                for one in plan.decisions
                if one.item.id not in looked_at and any(reason.code in ("FLOOR", "LAST_PAIR") for reason in one.reasons)
            ]
            doubtful = {name: problem for name in floor for problem in [lacking(self.store, by_id[name])] if problem}
            looked_at.update(floor)
            if not doubtful:
                break
            self.result.failures.extend(
                Reason(problem.code, problem.message, _REMEDIES[problem.code]) for problem in doubtful.values()
            )
            found = [_held(one, doubtful[one.id]) if one.id in doubtful else one for one in found]
        self.result.notes.extend(
            f"{name} counts as not verified: {newer} is the same delivery." for name, newer in instead.items()
        )
        return plan

    def _need(self, entries: t.Sequence[Entry], events: t.Sequence[ledger.Event]) -> Room:
        """Room for one more like the newest, and for the one that had no room when it was to be shipped."""
        if self.request.need is not None:
            return Room(self.request.need)
        newest = [entry.manifest for entry in entries if entry.manifest is not None][-1:]
        size = int(newest[0].bytes * (1 + self.request.headroom)) if newest else 0
        files = len(newest[0].files) if newest else 0
        waiting = ledger.wanted_room(events)
        return Room(max(size, waiting.bytes), max(files, waiting.files))

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
                    f"{name} could not be changed: {error.strerror or error} ({error.filename}).",
                    "Look for what protects it: an immutable flag, a mount, a lock. The next run tries again.",
                )
            )
        else:
            return True
        return False

    def tell(self) -> None:
        """Remember the policy and write the metrics."""
        self.store.refresh_index()
        _metrics.remember_policy(self.store, self.policy, self.request.require)
        if self.request.metrics is not None:
            _metrics.write(self.store, self.request.metrics)

    def _unpublished(self, removals: t.Iterable[retention.Decision]) -> dict[str, list[str]]:
        """Un-publish what the plan chose, until less stays than it counted on; each with the codes that chose it."""
        done = {}
        for one in removals:
            if self.less_stays:
                break
            if self.guarded(one.item.id, functools.partial(self._unpublish, one)):
                done[one.item.id] = [reason.code for reason in one.reasons]
        return done

    def _unpublish(self, chosen: retention.Decision) -> None:
        """Take the manifest away if nobody reads the backup, and nothing that happened since the plan keeps it."""
        name = chosen.item.id
        with contextlib.nullcontext() if self.whole_run_locked else self.store.mutex():
            entry = self.store.entry(name)
            self._look_again(entry)
            # The disk did not give its manifest when the plan was made, or a verification found it good since.
            if chosen.item.verdict == "failed" and self._verdict(entry) != "failed":
                raise Refused("it was failed when the plan was made, and is not any more.", "NOT_FAILED", _ANEW)
            self.request.checkpoint("chosen")
            if self.lease is not None:
                self.lease.confirm()
                self.lease.renew()
            self.store.unpublish(name)
        self.request.checkpoint("unpublished")

    def _verdict(self, entry: Entry) -> str:
        (kept,) = keep(self.store, self.folded, [entry])
        return kept.verdict

    def _look_again(self, entry: Entry) -> None:
        """What others recorded or said since the plan was made counts until the first byte of a backup goes: that it is
        pinned, golden or proved, and that something failed which was to stay (code STAYING_FAILED)."""
        if self.store.ledger.length() != self.events_seen:
            events = self.store.ledger.trusted().events
            self.folded = ledger.fold(events)
            self._refuse_if_less_stays()
            self.events_seen = len(events)
        for now in items(self.store, keep(self.store, self.folded, [entry]), self.folded, time.time()):
            for hold in (*now.holds, *retention.golden(now, members(self.folded))):
                raise Refused(f"{hold.message}.", hold.code, "It was said after the plan was made: it stays.")

    def _refuse_if_less_stays(self) -> None:
        for one in self.result.plan.decisions if self.result.plan is not None else ():
            planned, now = one.item.verdict, self.folded.backups.get(one.item.id, {}).get("verdict")
            if not one.remove and (planned == "ok" != now or (planned == "unverified" and now == "failed")):
                self.less_stays = True
                raise Refused(
                    f"{one.item.id}, which was to stay, failed a verification after the plan was made: nothing more "
                    "goes, and what was un-published is published again.",
                    "STAYING_FAILED",
                    _ANEW,
                )

    def _confirm(self) -> None:
        """Whoever took the lease over may have undone an un-publication, or begun another."""
        if self.lease is not None:
            self.lease.confirm()

    def _republish(self, name: str) -> None:
        self._confirm()
        self.store.republish(name)
        self.request.checkpoint("published again")

    def _finish(self, chosen: t.Mapping[str, t.Sequence[str]]) -> list[str]:
        """Remove the data of what is un-published, record it, then remove its directory. Returns what is gone."""
        sizes = {name: tree_size(os.path.join(self.store.backups_path, name)).bytes for name in chosen}
        erased = []
        for name in chosen:
            if self.less_stays:
                self.guarded(name, functools.partial(self._republish, name))
            elif self.guarded(name, functools.partial(self._erase, name)):
                erased.append(name)
        if erased:
            self._record({name: chosen[name] for name in erased})
        gone = [name for name in erased if self.guarded(name, functools.partial(self._drop, name))]
        self.result.freed += sum(sizes[name] for name in gone)
        return gone

    def _erase(self, name: str) -> None:
        """Remove its data, which nothing undoes; publish it again instead if it has to stay after all."""
        self._confirm()
        if self.result.plan is not None:
            try:
                self._look_again(self.store.entry(name, REMOVED))
            except DsmError:
                self._republish(name)
                raise
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
            (kept,) = keep(self.store, folded, [self.store.entry(name, REMOVED)])
            records.append(
                (
                    "pruned",
                    name,
                    {
                        "codes": sorted(set(codes)),
                        "digest": str(document.get("digest", "")),
                        "bytes": document.get("bytes", 0),
                        # As the plan judged it: what was failed may come home again.
                        "verdict": kept.verdict,
                        "key": str(source.get("key", "")) if isinstance(source, dict) else "",
                    },
                )
            )
        self.store.ledger.append_all(self.request.run_id, records)
        self.request.checkpoint("recorded")

    def _clear(self, name: str, directory: str) -> None:
        self.result.freed += tree_size(directory).bytes
        remove_tree(directory)
        self.result.cleared.append(name)


def _held(item: retention.Item, problem: Problem) -> retention.Item:
    """An item without what is there of it on paper only: it counts no more, and stays until a verification tells. What
    goes before that is recorded as good, and neither repaired nor shipped again; so it makes no room either."""
    if problem.code != "UNREADABLE":
        return item._replace(verdict="failed", holds=(*item.holds, Problem("WRECK", problem.message)))
    verdict = "failed" if item.verdict == "failed" else "unverified"
    return item._replace(verdict=verdict, holds=(*item.holds, problem))


def _touched(directory: str) -> float:
    """When anything in a directory was last written, or was moved into or out of it (s)."""
    try:
        stamps = [os.lstat(directory).st_mtime]
        for parent, _directories, files in os.walk(directory):
            stamps.extend(os.lstat(os.path.join(parent, file)).st_mtime for file in files)
        return max(stamps)
    except OSError:
        # What the disk does not tell about, or is being changed at this moment.
        return time.time()


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
