# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""A second store that follows a first: what it takes over, what it repairs, and when it does not believe the other.

Backups keep their ids and manifests, so that a copy can be told from a different backup by its digest alone. Nothing
is ever removed because the other site removed it, and no copy is replaced but a bad one by a good one of the same
bytes. Each store has a ledger of its own: what happened to the cluster is taken over from the other, even what the
other itself was told (a store that lost its ledger gets its history back); what happened to copies (shipped, verified,
pruned) is not.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, NamedTuple

from . import ledger
from .catalogue import StoreIdentity, store_problems
from .ledger import ORIGIN
from .strict import Invalid, Problem, digest, load, utc_seconds

#: Events about copies: each store has its own.
OF_COPIES = frozenset(("shipped", "verified", "pruned", "no_room"))
#: Key in the data of an event about a copy that was brought from another store, which it names.
COPIED_FROM = "copied_from"


class Here(NamedTuple):
    """A backup in this store. ``state``: ``good``; ``bad`` (verification failed, or it is lost or cut off); ``pruned``
    (retention let it go while it was good); ``held`` (not understood: nobody touches it). ``digest`` is "" where
    nothing says what its bytes were."""

    state: str
    digest: str = ""


class There(NamedTuple):
    """A backup in the other store: ``good``, ``bad`` by its verification there, or ``unclear``; and why."""

    state: str
    digest: str = ""
    why: str = ""


class Step(NamedTuple):
    """What happens to one backup: ``bring``, ``repair``, ``keep``, or ``leave`` with the reason."""

    id: str
    action: str
    problem: Problem | None = None


def candidates(here: Mapping[str, Here], listed: Iterable[str], *, only_repair: bool) -> list[str]:
    """The ids among those that the other store lists of which more must be known before :func:`plan` can decide."""
    wanted = []
    for name in listed:
        mine = here.get(name)
        if (mine is None and not only_repair) or (mine is not None and mine.state == "bad"):
            wanted.append(name)
    return sorted(wanted, reverse=True)


def plan(here: Mapping[str, Here], there: Mapping[str, There], *, only_repair: bool) -> list[Step]:
    """What to do about every backup of either store, the newest first: if anything goes wrong, that one is here."""
    steps = [_step(name, here.get(name), there.get(name), only_repair) for name in {**here, **there}]
    return sorted(filter(None, steps), key=lambda step: step.id, reverse=True)


def _step(name: str, mine: Here | None, other: There | None, only_repair: bool) -> Step | None:
    if mine is None:
        if only_repair or other is None:
            return None
        if other.state == "good":
            return Step(name, "bring")
        code = "OTHER_FAILED" if other.state == "bad" else "OTHER_UNCLEAR"
        return _leave(name, code, f"the other store's copy cannot be taken: {other.why}")
    if mine.state == "held":
        return _leave(name, "HELD", "it is not understood here, so nothing touches it")
    if mine.state == "pruned":
        return None
    contradict = bool(other and mine.digest and other.digest and mine.digest != other.digest)
    if mine.state == "good":
        if contradict and other and other.state == "good":
            return _leave(name, "DIVERGED", "the two stores have different backups of this id")
        return Step(name, "keep")
    if other is None:
        return _leave(name, "NO_OTHER_COPY", "it is bad here, and the other store does not have it")
    if other.state != "good":
        return _leave(name, "BOTH_FAILED", f"it is bad here, and so it is in the other store: {other.why}")
    if contradict:
        return _leave(name, "DIVERGED", "it is bad here, and the other store has a different backup of this id")
    return Step(name, "repair")


def _leave(name: str, code: str, message: str) -> Step:
    return Step(name, "leave", Problem(code, f"{name}: {message}"))


def choose(
    mine: Mapping[str, StoreIdentity],
    theirs: Mapping[str, StoreIdentity],
    *,
    cluster_id: str = "",
    fingerprint: str = "",
    may_create: bool = False,
) -> str:
    """Which cluster of the other store is meant. Raises :class:`Invalid` (UNKNOWN_CLUSTER, ANOTHER_CLUSTER)."""
    if cluster_id or fingerprint:
        meant = [
            name
            for name, identity in theirs.items()
            if name == cluster_id or (fingerprint and identity.generation_of(fingerprint))
        ]
    else:
        meant = [name for name in theirs if name in mine] or list(theirs)
    if len(meant) != 1:
        known = ", ".join(sorted(theirs)) or "no cluster"
        raise Invalid([Problem("UNKNOWN_CLUSTER", f"it holds {known}; that leaves it open which one is meant")])
    if meant[0] not in mine:
        problems = store_problems(mine, theirs[meant[0]].generations[-1].fingerprint, may_create=may_create)
        if problems:
            raise Invalid(problems)
    return meant[0]


def merged(mine: StoreIdentity | None, theirs: StoreIdentity, *, site: str, now: str, run_id: str) -> StoreIdentity:
    """This store's identity with the generations that the other one knows more of. Raises :class:`Invalid`."""
    identity = mine if mine is not None else StoreIdentity(theirs.cluster_id, ())
    for known, other in zip(identity.generations, theirs.generations):
        if known.fingerprint != other.fingerprint:
            message = (
                f"generation {known.generation} is {known.fingerprint[:16]} here and {other.fingerprint[:16]} there: "
                "two recoveries of the same cluster"
            )
            raise Invalid([Problem("ANOTHER_CLUSTER", message)])
    for other in theirs.generations[len(identity.generations) :]:
        identity = identity.with_generation(
            other.fingerprint,
            uid=other.uid,
            members=other.members,
            run_id=run_id,
            added_at=now,
            because=f"{other.because} (replicated from {site})",
        )
    return identity


def follow(seen: bytes, theirs: bytes) -> tuple[ledger.Chain, list[Problem]]:
    """The other store's ledger, and why it is not believed: it is broken, or is not what it was (``seen``) and more."""
    chain = ledger.read(theirs)
    if chain.problems:
        message = f"the ledger of the other store is broken after {len(chain.events)} events"
        return chain, [Problem("OTHER_LEDGER_BROKEN", message)]
    if not theirs.startswith(seen):
        message = (
            f"the ledger of the other store does not have all {seen.count(10)} events that it had at the last look"
        )
        return chain, [Problem("OTHER_LEDGER_ROLLED_BACK", message)]
    return chain, []


def taken_over(mine: Iterable[ledger.Event], theirs: Iterable[ledger.Event]) -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, subject and data of the events to record here: what happened to the cluster and was not recorded yet.

    Each says where it was recorded first. What began here comes home only if this ledger lost it.
    """
    known = {name for event in mine for name in (event.hash, _origin(event)["hash"])}
    taken = []
    for event in filter(None, map(ledger.understood, theirs)):
        origin = _origin(event)
        if event.kind not in OF_COPIES and origin["hash"] not in known:
            known.add(origin["hash"])
            taken.append((event.kind, event.subject, {**event.data, ORIGIN: origin}))
    return taken


def _origin(event: ledger.Event) -> dict[str, Any]:
    """Where an event was recorded first; by its hash there it is recognised in every store."""
    carried = event.data.get(ORIGIN)
    if isinstance(carried, dict) and isinstance(carried.get("hash"), str):
        return carried
    return {"sequence": event.sequence, "hash": event.hash, "time": event.time, "run_id": event.run_id}


class Copy(NamedTuple):
    """One backup at one site: id, when it was published there (UTC, None if nothing says), and its last verdict."""

    id: str
    published_at: str | None
    verdict: str


class Site(NamedTuple):
    """How new the backups of one site are. Times are UTC text."""

    site: str
    looked_at: str
    copies: int
    verified: int
    newest: str | None
    newest_published_at: str | None
    newest_verified: str | None
    newest_verified_published_at: str | None
    missing: int
    missing_since: str | None


def site(name: str, looked_at: str, copies: Iterable[Copy], missing: Iterable[Copy] = ()) -> Site:
    """The freshness of a site. ``missing``: those of its good copies that this store should have and has not."""
    known = sorted(copies)
    good = [copy for copy in known if copy.verdict == "ok"]
    last, verified = known[-1] if known else None, good[-1] if good else None
    lacking = list(missing)
    return Site(
        site=name,
        looked_at=looked_at,
        copies=len(known),
        verified=len(good),
        newest=last.id if last else None,
        newest_published_at=last.published_at if last else None,
        newest_verified=verified.id if verified else None,
        newest_verified_published_at=verified.published_at if verified else None,
        missing=len(lacking),
        missing_since=min((copy.published_at for copy in lacking if copy.published_at), default=None),
    )


def dump_site(found: Site) -> dict[str, Any]:
    """The document that remembers what was seen of the other site."""
    value: dict[str, Any] = {"schema": 1, **found._asdict()}
    return {**value, "checksum": digest(value)}


def parse_site(data: bytes) -> Site:
    """The inverse. Raises :class:`Invalid`."""
    value = load(data, "other.json")
    checksum, schema = value.pop("checksum", None), value.get("schema")
    if schema != 1 or isinstance(schema, bool) or checksum != digest(value):
        raise Invalid([Problem("UNREADABLE", "other.json is damaged, or of another release")])
    del value["schema"]
    return Site(**value)


def lag_problems(other: Site | None, now: float, max_lag: float) -> list[Problem]:
    """Why this store may be behind the other site by more than ``max_lag`` (s): NOT_REPLICATED, UNSEEN, BEHIND."""
    if other is None:
        return [Problem("NOT_REPLICATED", "nothing says what the other store has: it was never looked at from here")]
    found = []
    age = now - utc_seconds(other.looked_at)
    if age > max_lag:
        message = f"{other.site} was last looked at {age:.0f} s ago; {max_lag:.0f} s are allowed"
        found.append(Problem("UNSEEN", message))
    behind = now - utc_seconds(other.missing_since) if other.missing_since else 0.0
    if other.missing and (behind > max_lag or not other.missing_since):
        since = f"the oldest for {behind:.0f} s" if other.missing_since else "and nothing says since when"
        found.append(Problem("BEHIND", f"{other.missing} backups of {other.site} are not here, {since}"))
    return found


def unresolved(steps: Iterable[Step]) -> list[Problem]:
    """What a person must look at: everything that should be done and cannot be."""
    return [step.problem for step in steps if step.problem is not None and step.problem.code != "OTHER_FAILED"]


def concerns_of_other(steps: Iterable[Step]) -> list[str]:
    """Copies that are bad at the other site and were never here: that site's own verification tells its people."""
    return [step.problem.message for step in steps if step.problem is not None and step.problem.code == "OTHER_FAILED"]
