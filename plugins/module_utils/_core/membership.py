# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Who is in, who is out, and what may be done to whom: the decision tables of joining, removing and resetting.

Pure. Every function returns all reasons at once; an empty list means yes.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from . import quorum, versions
from .model import Cluster, Member
from .reasons import Reason
from .testimony import Party, Testimony, Witness

NONE, MEMBER, LEFTOVER, UNKNOWN = "none", "member", "leftover", "unknown"

#: Roles of hosts that may be wiped because they were removed, and of those that a trial may live on.
SET_ASIDE_ROLES = ("dr", "spare", "rollback", "retired")
TRIAL_ROLES = ("dr", "spare", "rollback")

NO_REMOVAL_WITHOUT_QUORUM = (
    "Removal cannot work without quorum. Leave the read-only data centre serving, start fail_over in isolation, "
    "or call the vendor. Nodes that come back rejoin by themselves on reboot."
)

_REMOVE_THERE = (
    "Remove it on a survivor of that cluster first, unless another host was meant: then correct the inventory."
)

_TOKEN = re.compile(r"^[a-z0-9]{6}\.[a-z0-9]{16}\Z")


# -- this host's own membership ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SelfEvidence:
    """What a host can find out about itself.

    ``answer``: ``listed`` or ``not_listed`` by its own control plane, ``no_kubeconfig``, or why that did not answer
    (kinds of :mod:`_parse.kubectl`). ``api_status``: plain health on its own address, None when not asked or no answer.
    """

    state_present: bool
    answer: str
    api_status: int | None = None


def own_membership(evidence: SelfEvidence) -> tuple[str, str]:
    """``(membership, why)``.

    Refused and 401 count as out; a 204 health answer, or a member list that contains the host, counts as in.
    """
    if evidence.answer == "listed":
        return MEMBER, "its own control plane lists it"
    if evidence.api_status == 204:
        return MEMBER, "its DSM service answers that it is healthy"
    if not evidence.state_present:
        return NONE, "it holds no state of a cluster"
    if evidence.answer in ("not_listed", "refused", "unauthorized", "no_kubeconfig"):
        return LEFTOVER, f"it holds state of a cluster, but is out of it ({evidence.answer})"
    return UNKNOWN, f"it holds state of a cluster, whose control plane does not answer ({evidence.answer})"


# -- reset (law 1) -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ResetCase:
    """All that decides about a reset.

    ``fingerprint``: of the state on this host, None when unreadable. ``marker``: of this collection's own trial, None
    when there is none. ``own_listed``: members that its own control plane lists. ``trial_hosts``: names of the hosts
    that the inventory declares for trials.
    """

    subject: Party
    host_role: str
    membership: str
    membership_why: str
    fingerprint: str | None
    marker: dict[str, t.Any] | None
    opened: bool
    own_listed: tuple[Party, ...]
    trial_hosts: tuple[str, ...]
    approval: dict[str, t.Any] | None
    testimony: Testimony


def reset_reasons(because: str, case: ResetCase) -> list[Reason]:
    """Why this host may not be reset for this cause. Anything that is none of the three causes is refused."""
    table = {"removed": _reset_removed, "own_trial": _reset_own_trial, "retired": _reset_retired}.get(because)
    if table is None:
        return [Reason("CAUSE_UNKNOWN", f"{because!r} is no cause for a reset.", "Use removed, own_trial or retired.")]
    return table(case)


def _reset_removed(case: ResetCase) -> list[Reason]:
    reasons = []
    heard = case.testimony
    if case.host_role not in SET_ASIDE_ROLES:
        reasons.append(_role(case.host_role, SET_ASIDE_ROLES))
    if case.membership == MEMBER:
        reasons.append(
            Reason("STILL_MEMBER", f"this host is a member: {case.membership_why}.", "Remove it on a survivor first.")
        )
    elif case.membership == UNKNOWN:
        reasons.append(
            Reason(
                "MEMBERSHIP_UNKNOWN",
                f"nobody can say whether this host is a member: {case.membership_why}.",
                "Find out why its control plane neither answers nor refuses.",
            )
        )
    if heard.ledger is None:
        reasons.append(
            Reason(
                "LEDGER_MISSING",
                "the member set last recorded was not read in this run, so the witnesses' own lists stand for it.",
                "Run ledger with state read on the store, in this play.",
                hard=False,
            )
        )
    cluster = heard.production_fingerprint or _common_fingerprint(heard)
    witnesses = heard.members_of(cluster) if cluster else []
    reasons += _majority_reasons(case.subject, heard, witnesses)
    for witness in heard.members_of(None):
        if witness.lists(case.subject):
            reasons.append(
                Reason(
                    "STILL_LISTED",
                    f"{witness.host} still lists this host as a node of its cluster.",
                    "Remove it on a survivor, and wait until it is gone from Kubernetes and from the database ring.",
                )
            )
    if case.fingerprint and cluster and case.fingerprint != cluster:
        reasons.append(
            Reason(
                "OTHER_CLUSTER",
                "the state on this host belongs to another cluster than the one that testifies.",
                "If it is a trial of this collection, reset it because of own_trial.",
            )
        )
    return reasons


def _majority_reasons(subject: Party, heard: Testimony, witnesses: t.Sequence[Witness]) -> list[Reason]:
    """A majority of the recorded members must have been asked. Without a record: of all that the witnesses list.

    The subject itself is left out: it cannot testify, and a removal is often not recorded yet when its node is reset.
    """
    recorded = heard.recorded_members
    if not recorded:
        for witness in witnesses:
            recorded += [entry for entry in witness.listed if not any(entry.is_same_as(known) for known in recorded)]
    recorded = [member for member in recorded if not member.is_same_as(subject)]
    asked = [member for member in recorded if any(member.is_same_as(witness.party) for witness in witnesses)]
    needed = quorum.needed(len(recorded))
    if recorded and len(asked) >= needed:
        return []
    silent = [member.name for member in recorded if member not in asked]
    return [
        Reason(
            "TOO_FEW_WITNESSES",
            f"{len(asked)} of {len(recorded)} recorded members testified in this run, {needed} are needed"
            + (f"; silent: {', '.join(silent)}" if silent else "")
            + (f"; not understood: {', '.join(heard.unusable)}" if heard.unusable else "")
            + ".",
            "Run cluster_info on every member in this play, not more than two minutes before, "
            "and record the member set in the ledger after a removal.",
        )
    ]


def _common_fingerprint(heard: Testimony) -> str | None:
    """The cluster that the witnesses speak of, when they all speak of one."""
    found = {witness.fingerprint for witness in heard.members_of(None) if witness.fingerprint}
    return found.pop() if len(found) == 1 else None


def _reset_own_trial(case: ResetCase) -> list[Reason]:
    reasons = []
    if case.host_role not in TRIAL_ROLES:
        reasons.append(_role(case.host_role, TRIAL_ROLES))
    marker = case.marker
    if marker is None:
        reasons.append(
            Reason("NOT_OUR_TRIAL", "this host has no marker of a trial made by this collection.", "Use another cause.")
        )
    else:
        reasons += _marker_reasons(case, marker)
    production = {case.testimony.production_fingerprint, (marker or {}).get("production_fingerprint")} - {None, ""}
    if case.fingerprint and case.fingerprint in production:
        reasons.append(
            Reason("IS_PRODUCTION", "the cluster on this host has production's fingerprint.", "Remove the node first.")
        )
    elif not production:
        reasons.append(
            Reason(
                "LEDGER_MISSING",
                "production's fingerprint is not known here, so nobody can show that this is not production.",
                "Run ledger with state read on the store in this play, or accept it when the store is lost.",
                hard=False,
            )
        )
    told = [
        witness.host
        for witness in case.testimony.witnesses
        if case.fingerprint and witness.fingerprint == case.fingerprint and (witness.marker or {}).get("opened")
    ]
    creator = (marker or {}).get("created_on")
    if creator and all(witness.party.name != creator for witness in case.testimony.witnesses):
        reasons.append(
            Reason(
                "CREATOR_SILENT",
                f"{creator}, on which this trial was created, did not testify, so nobody can say that it was never "
                "opened to clients.",
                "Run cluster_info on it in this play.",
                hard=False,
            )
        )
    if case.opened or told or (marker or {}).get("opened"):
        reasons.append(
            Reason(
                "WAS_OPENED",
                "the cluster on this host was opened to clients, so it is production now.",
                "Its data is the only copy of what clients wrote since. Retire it only when a newer one is accepted.",
            )
        )
    for witness in case.testimony.members_of(None):
        if witness.fingerprint != case.fingerprint and witness.lists(case.subject):
            reasons.append(
                Reason("STILL_LISTED", f"{witness.host} lists this host as a node of its cluster.", _REMOVE_THERE)
            )
    allowed = {case.subject.name, *case.trial_hosts}
    strangers = sorted(entry.name for entry in _trial_members(case) if allowed.isdisjoint(entry.names))
    if strangers:
        reasons.append(
            Reason(
                "NOT_A_TRIAL_HOST",
                f"the trial has members that are not declared for trials: {', '.join(strangers)}.",
                "Name only DR, spare and rollback hosts in trial_hosts.",
            )
        )
    return reasons


def _marker_reasons(case: ResetCase, marker: t.Mapping[str, t.Any]) -> list[Reason]:
    reasons = []
    if not marker.get("run_id"):
        reasons.append(Reason("MARKER_INVALID", "the marker of the trial names no run.", "Look at it by hand."))
    if marker.get("host") != case.subject.name:
        reasons.append(
            Reason(
                "MARKER_FOREIGN",
                f"the marker was written for {marker.get('host')!r}, not for this host.",
                "Was this host renamed, or is its disk a copy of another's? Find out before anything is wiped.",
            )
        )
    made = marker.get("fingerprint")
    if made and case.fingerprint and made != case.fingerprint:
        reasons.append(
            Reason(
                "OTHER_CLUSTER",
                "the cluster on this host is not the one that the marker was written for.",
                "Somebody joined or created another one here since. Find out who.",
            )
        )
    return reasons


def _trial_members(case: ResetCase) -> list[Party]:
    """Members of the trial in anyone's eyes: its own, and of witnesses with the same fingerprint."""
    found = list(case.own_listed)
    if case.fingerprint:
        for witness in case.testimony.members_of(case.fingerprint):
            found += witness.listed
    return found


def _reset_retired(case: ResetCase) -> list[Reason]:
    reasons = []
    ledger = case.testimony.ledger
    newest = case.testimony.production_fingerprint
    if case.host_role != "retired":
        reasons.append(_role(case.host_role, ("retired",)))
    if ledger is None:
        reasons.append(
            Reason("LEDGER_MISSING", "the ledger was not read in this run.", "Run ledger with state read on the store.")
        )
    generations = {
        str(entry.get("fingerprint")): entry
        for entry in (ledger or {}).get("generations", [])
        if isinstance(entry, dict)
    }
    own = generations.get(case.fingerprint or "")
    if own is None or case.fingerprint == newest:
        reasons.append(
            Reason(
                "NOT_SUPERSEDED",
                "the ledger does not show that the cluster on this host was superseded by a newer one.",
                "If it was, record it in the ledger (a restored event of the newer one). Else it is production.",
            )
        )
    elif not own.get("fenced"):
        reasons.append(
            Reason("NOT_FENCED", "the ledger does not show that the old generation was fenced.", "Fence it first.")
        )
    if not generations.get(newest or "", {}).get("accepted"):
        reasons.append(
            Reason("NOT_ACCEPTED", "the ledger does not show that the newer generation was accepted.", "Accept it.")
        )
    witnesses = case.testimony.members_of(newest) if newest else []
    healthy = max((len(witness.up) for witness in witnesses), default=0)
    if healthy < 3:
        reasons.append(
            Reason(
                "SUCCESSOR_THIN",
                f"the newer generation shows {healthy} healthy nodes in this run, 3 are needed.",
                "Run cluster_info on its members in this play; expand it first.",
            )
        )
    backups = (ledger or {}).get("backups", {})
    verified = [
        name
        for name, entry in (backups.items() if isinstance(backups, dict) else ())
        if entry.get("verdict") == "ok" and entry.get("fingerprint") == newest
    ]
    if not verified:
        reasons.append(
            Reason("NO_VERIFIED_BACKUP", "the newer generation has no verified backup.", "Ship and verify one first.")
        )
    if any(witness.lists(case.subject) for witness in witnesses):
        reasons.append(Reason("STILL_LISTED", "the newer generation lists this host as a node.", _REMOVE_THERE))
    if not (case.approval or {}).get("by") or not (case.approval or {}).get("reason"):
        reasons.append(
            Reason("NOT_APPROVED", "no approval is recorded.", "Give approval with by and reason: a person decides.")
        )
    return reasons


def _role(role: str, allowed: t.Sequence[str]) -> Reason:
    return Reason(
        "ROLE_FORBIDS",
        f"the inventory declares this host as {role}; this is only done to {', '.join(allowed)} hosts.",
        "Check the inventory groups of this host. Do not change them to get past this.",
    )


# -- removal -----------------------------------------------------------------------------------------------------------


def removal_reasons(
    cluster: Cluster,
    target: Member,
    here: Party,
    also_dead: t.Sequence[str],
    minimum_size: int,
    testimony: Testimony,
) -> list[Reason]:
    """Why ``target`` may not leave ``cluster`` now, seen from the member ``here``."""
    reasons = []
    known = cluster.ring_known
    others = [member for member in cluster.members if member is not target]
    up = [member for member in others if member.up(known)]
    size = len(cluster.members)
    if target.answers_to(here.names):
        reasons.append(Reason("SELF_REMOVAL", f"{target.name} is this host itself.", "Run this on a survivor."))
    if not others:
        reasons.append(
            Reason(
                "LAST_NODE",
                f"{target.name} is the only node of this cluster.",
                "A cluster is not removed from itself. A trial ends with cluster_reset because of own_trial.",
            )
        )
    elif not quorum.survives_removal(size, len(up)):
        reasons.append(
            Reason(
                "QUORUM_LOST",
                f"{len(up)} of the {len(others)} other nodes are up; the quorum of {size} nodes is "
                f"{quorum.needed(size)} and that of {size - 1} is {quorum.needed(size - 1)}.",
                NO_REMOVAL_WITHOUT_QUORUM,
            )
        )
    if not known:
        reasons.append(
            Reason(
                "RING_UNKNOWN",
                f"the database ring could not be read: {cluster.ring_problem or 'no pod could be asked'}.",
                "Without it nobody can say which replicas are there.",
            )
        )
    named = set(also_dead)
    for member in others:
        if not member.up(known) and named.isdisjoint({member.name, *member.addresses}):
            reasons.append(
                Reason(
                    "OTHER_NODE_DOWN",
                    f"{member.name} is not healthy either.",
                    "Repair it first: it rejoins on reboot. If it is gone for good, name it in also_dead.",
                )
            )
    for member in up:
        if not named.isdisjoint({member.name, *member.addresses}):
            reasons.append(
                Reason(
                    "ALSO_DEAD_ALIVE", f"{member.name} is named in also_dead, but is up.", "Take it out of also_dead."
                )
            )
    for member in others:
        if member.ring is not None and member.ring.code[1] != "N":
            reasons.append(
                Reason(
                    "CHANGE_IN_PROGRESS",
                    f"{member.name} is {member.ring.code} in the database ring: another change is under way.",
                    "Wait until every node is normal. One change at a time.",
                )
            )
    if target.up(known) and len(others) < minimum_size:
        reasons.append(
            Reason(
                "BELOW_MINIMUM",
                f"{target.name} is healthy, and without it {len(others)} nodes are left of at least {minimum_size}.",
                "Add a node first.",
                hard=False,
            )
        )
    reasons += _view_reasons(cluster, testimony)
    return reasons


def _view_reasons(cluster: Cluster, testimony: Testimony) -> list[Reason]:
    """Members of this cluster that testified in this run must see the same nodes."""
    reasons = []
    mine = {member.name for member in cluster.members}
    for witness in testimony.members_of(cluster.fingerprint) if cluster.fingerprint else []:
        theirs = {entry.name for entry in witness.listed}
        if theirs != mine:
            reasons.append(
                Reason(
                    "VIEWS_DIFFER",
                    f"{witness.host} sees other nodes than this member: {', '.join(sorted(theirs ^ mine))}.",
                    "Wait until all members agree, and ask them again.",
                )
            )
    return reasons


# -- joining -----------------------------------------------------------------------------------------------------------


def join_input_reasons(
    token: str, peer: str, own_names: t.Iterable[str], members: t.Sequence[str] = ()
) -> list[Reason]:
    """What can be told from the arguments alone. The token itself is never repeated.

    :param members: names and addresses of the cluster's nodes, where they are known
    """
    reasons = []
    if not _TOKEN.match(token):
        reasons.append(
            Reason(
                "TOKEN_MALFORMED",
                "the token is not 6 plus 16 characters of a-z and 0-9 with a dot between.",
                "Take it from join_token. The sample in the vendor's article is not a token.",
            )
        )
    if not re.match(r"^[A-Za-z0-9][A-Za-z0-9.:-]{0,252}\Z", peer):
        reasons.append(Reason("PEER_MALFORMED", f"{peer!a} is neither an address nor a name.", "Give one address."))
    if peer in set(own_names):
        reasons.append(Reason("PEER_IS_SELF", "the peer is this host itself.", "Name a member of the cluster."))
    elif members and peer not in members:
        reasons.append(
            Reason(
                "PEER_NOT_MEMBER",
                f"{peer!a} is no node of the cluster, which has {', '.join(members)}.",
                "Name one of those. If it is an address that they share, accept this.",
                hard=False,
            )
        )
    return reasons


def token_reasons(expires: float | None, now: float) -> list[Reason]:
    """Whether the token has run out by this host's clock (seconds since the epoch; None when it is not known).

    Soft, because the cluster's clock decides and not this host's.
    """
    if expires is None or now < expires:
        return []
    return [
        Reason(
            "TOKEN_EXPIRED",
            f"the token expired {now - expires:.0f} s ago by the clock of this host.",
            "Take a new one from join_token, and begin again. Nothing is left behind of this try.",
            hard=False,
        )
    ]


def version_reasons(own: str | None, cluster: str | None) -> list[Reason]:
    """A node must run exactly the cluster's release [seed]; older than 3.15 there is no such plan [seed]."""
    reasons = []
    for whose, version in (("this host", own), ("the cluster", cluster)):
        if version and versions.too_old(version):
            reasons.append(
                Reason(
                    "DSM_TOO_OLD",
                    f"{whose} runs DSM {version}; the disaster recovery plan exists from 3.15 on.",
                    "Upgrade it with the vendor's procedure first.",
                )
            )
    if versions.same(own, cluster) is False:
        reasons.append(
            Reason(
                "VERSION",
                f"this host runs DSM {own}, the cluster runs {cluster}; the key copy is sealed for one release.",
                "Install the cluster's release on this host.",
                hard=False,
            )
        )
    return reasons


# -- creating ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CreateCase:
    """All that decides about bootstrapping a cluster on a host."""

    subject: Party
    host_role: str
    membership: str
    membership_why: str
    state_paths: tuple[str, ...]
    marker: dict[str, t.Any] | None
    run_id: str
    fingerprint: str | None
    testimony: Testimony


def create_reasons(case: CreateCase) -> list[Reason]:
    """Why no cluster may be bootstrapped here. A half-done create of the same run may go on."""
    reasons = []
    own_trial = case.marker is not None and case.marker.get("host") == case.subject.name
    same_run = own_trial and (case.marker or {}).get("run_id") == case.run_id
    if case.host_role not in TRIAL_ROLES:
        reasons.append(_role(case.host_role, TRIAL_ROLES))
    if case.fingerprint and case.fingerprint == case.testimony.production_fingerprint:
        reasons.append(Reason("IS_PRODUCTION", "the state on this host belongs to production.", "Look at it by hand."))
    if case.membership == MEMBER and not same_run:
        reasons.append(
            Reason(
                "ALREADY_MEMBER",
                f"this host is in a cluster: {case.membership_why}.",
                "If that is production, this is the wrong host: correct the inventory. If it is an earlier trial of "
                "this collection, reset it because of own_trial first.",
            )
        )
    elif case.membership == UNKNOWN and not same_run:
        reasons.append(
            Reason(
                "MEMBERSHIP_UNKNOWN",
                f"nobody can say whether this host is a member: {case.membership_why}.",
                "Find out why its control plane neither answers nor refuses.",
            )
        )
    if case.state_paths and not same_run and case.membership != MEMBER:
        reasons.append(
            Reason(
                "DATA_PRESENT",
                f"this host holds state that is not of this run: {', '.join(case.state_paths)}.",
                "Reset it first: because of own_trial for an earlier run, because of removed for a former member.",
            )
        )
    for witness in case.testimony.members_of(None):
        if witness.lists(case.subject) and not (same_run and witness.fingerprint == case.fingerprint):
            reasons.append(
                Reason("STILL_LISTED", f"{witness.host} lists this host as a node of its cluster.", _REMOVE_THERE)
            )
    return reasons


@dataclass(frozen=True)
class Probe:
    """A connection that was tried: ``open``, ``refused`` (something answered that nothing listens), or ``silent``."""

    address: str
    port: int
    outcome: str


def isolation_reasons(
    endpoints: t.Sequence[Probe], service_name: str, service_addresses: t.Sequence[str], own: t.Iterable[str]
) -> list[Reason]:
    """Why this host is not isolated.

    :param endpoints: production endpoints, tried from here
    :param service_addresses: what the service name resolves to here, and the declared service address
    :param own: every address of this host
    """
    reasons = []
    if not endpoints:
        reasons.append(
            Reason(
                "ISOLATION_UNDECLARED",
                "no production endpoint is declared, so isolation cannot be probed.",
                "Give isolation.production_endpoints.",
            )
        )
    reached = [f"{probe.address}:{probe.port}" for probe in endpoints if probe.outcome == "open"]
    refused = [f"{probe.address}:{probe.port}" for probe in endpoints if probe.outcome == "refused"]
    if reached:
        reasons.append(
            Reason(
                "NOT_ISOLATED",
                f"production can be reached from here: {', '.join(reached)}.",
                "Cut this host off from production, both ways, before a second cluster with the same keys starts.",
            )
        )
    if refused:
        reasons.append(
            Reason(
                "ISOLATION_UNPROVED",
                f"something refused a connection instead of staying silent: {', '.join(refused)}.",
                "Either a filter rejects (then accept this), or the way to production is open.",
                hard=False,
            )
        )
    here = sorted(set(service_addresses) & set(own))
    if here:
        reasons.append(
            Reason(
                "SERVICE_LEADS_HERE",
                f"the service {service_name or 'address'} leads to this host ({', '.join(here)}).",
                "Clients would find a cluster that is being tried out. Point it elsewhere first.",
            )
        )
    return reasons
