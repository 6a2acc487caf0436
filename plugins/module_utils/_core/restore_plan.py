# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a host may be restored onto, which backup is worth trying, and what a restore that stopped half-way means.

PRIVATE to the collection.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Mapping, Sequence

from .reasons import Reason
from .testimony import Testimony

#: Inventory roles of hosts that may hold a restored cluster.
ROLES = ("dr", "rollback")
RUNNING, FAILED, DONE, RESTORED = "running", "failed", "steps_done", "restored"

_AGAIN = (
    "Reset this host (cluster_reset because: own_trial), create the cluster again, and restore again."
    " Nothing of production is needed for that."
)


@dataclass(frozen=True)
class Candidate:
    """A staged backup. ``sha256`` is the hash of the file, or the tree digest of the manifest for a directory."""

    id: str
    path: str
    sha256: str
    version: str | None
    snapshot_started: str | None
    verified: bool
    cluster_id: str | None
    sealed_for: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Host:
    """The host that would be restored onto, as read now. ``nodes``: names of its cluster's nodes."""

    name: str
    role: str
    serial: str | None
    version: str | None
    fingerprint: str | None
    nodes: tuple[str, ...]
    marker: Mapping[str, Any] | None


def candidate_of(option: Mapping[str, Any]) -> Candidate:
    """From a module option."""
    return Candidate(
        option["id"],
        option["path"],
        option["sha256"].lower(),
        option.get("version"),
        option.get("snapshot_started"),
        bool(option.get("verified")),
        option.get("cluster_id"),
        tuple(option.get("sealed_for") or ()),
    )


def host_reasons(host: Host, heard: Testimony | None) -> list[Reason]:
    """Why nothing at all may be restored onto this host.

    ``heard`` is what the action plugin gathered; without it the module was called directly.
    """
    if heard is None:
        return [
            Reason(
                "TESTIMONY_MISSING",
                "nobody else was heard in this play",
                "Call the module by its full name in a task, so that its action plugin gathers what others said.",
            )
        ]
    reasons = []
    if host.role not in ROLES:
        reasons.append(
            Reason(
                "NOT_A_DR_HOST",
                f"the inventory declares {host.name} to be {host.role}, not one of {', '.join(ROLES)}",
                "Check the inventory groups, and that this is the host you mean.",
            )
        )
    reasons.extend(_cluster_reasons(host))
    others = {one.fingerprint for one in heard.witnesses if one.party.name != host.name and one.fingerprint}
    if host.fingerprint is not None and host.fingerprint in others | {heard.production_fingerprint}:
        reasons.append(
            Reason(
                "IS_PRODUCTION",
                f"the cluster on {host.name} is production, or has other members",
                "Nothing is ever restored over it. Choose a DR host that was set aside, and create a cluster there.",
            )
        )
    if heard.production_fingerprint is None:
        reasons.append(
            Reason(
                "LEDGER_MISSING",
                "production's fingerprint was not read from the ledger in this play",
                "Run ledger with state read on the store before this, or accept the code when the store is lost.",
                hard=False,
            )
        )
    return reasons


def candidate_reasons(
    candidate: Candidate, host: Host, expected_version: str | None, cluster_id: str | None = None
) -> list[Reason]:
    """What is doubtful about one candidate for this host. All soft: trying it on an empty node harms nothing.

    ``cluster_id`` is the one of the ledger that was read in this play.
    """
    reasons = []
    if cluster_id and candidate.cluster_id and candidate.cluster_id != cluster_id:
        message = f"{candidate.id} is a backup of the cluster {candidate.cluster_id}, the ledger is about {cluster_id}"
        reasons.append(_soft("FOREIGN_BACKUP", message))
    if not candidate.verified:
        reasons.append(_soft("UNVERIFIED", f"{candidate.id} was never verified at the store"))
    wanted = candidate.version or expected_version
    if host.version is None or wanted is None:
        reasons.append(
            _soft("VERSION", f"the version of {'this host' if host.version is None else candidate.id} is not known")
        )
    elif host.version != wanted:
        reasons.append(_soft("VERSION", f"{candidate.id} is of DSM {wanted}, this host runs {host.version}"))
    sealed = [entry for entry in candidate.sealed_for if entry.get("node") == host.name]
    joined = _moment(sealed[-1].get("joined_at")) if sealed else None
    started = _moment(candidate.snapshot_started)
    if not sealed:
        reasons.append(
            _soft("JOIN_UNKNOWN", f"{candidate.id} does not say that the master key is sealed for {host.name}")
        )
    elif joined is None or started is None:
        what = "when this host joined" if joined is None else "when its snapshot started"
        reasons.append(_soft("JOIN_UNKNOWN", f"{candidate.id} does not say {what}"))
    elif started < joined:
        reasons.append(
            _soft(
                "OLDER_THAN_JOIN",
                f"the snapshot of {candidate.id} started {candidate.snapshot_started}, before this host joined"
                f" ({sealed[-1].get('joined_at')}): its master key cannot be opened here",
            )
        )
    if sealed and sealed[-1].get("platform_id") and host.serial and sealed[-1]["platform_id"] != host.serial:
        reasons.append(_soft("PLATFORM", f"{candidate.id} names a copy of the master key for another machine"))
    return reasons


def journal_reasons(journal: Mapping[str, Any] | None, ids: Sequence[str], steps: Sequence[str]) -> list[Reason]:
    """Why a restore into this very cluster that stopped, or one of another backup, stands in the way."""
    if journal is None:
        return []
    state, done = journal.get("state"), journal.get("candidate")
    if state == FAILED:
        return [
            Reason(
                "HALF_DONE",
                f"a restore of {done} stopped in the step {journal.get('step')!r}, and nobody can say what it left",
                _AGAIN,
            )
        ]
    if done not in ids:
        word = "was restored" if state in (DONE, RESTORED) else "is being restored"
        return [Reason("ALREADY_RESTORED", f"{done} {word} here, and it is not one of the candidates", _AGAIN)]
    if state != RESTORED and list(journal.get("steps") or ()) != list(steps):
        return [Reason("HALF_DONE", f"a restore of {done} with other steps stopped half-way", _AGAIN)]
    return []


def _cluster_reasons(host: Host) -> list[Reason]:
    reasons = []
    if host.fingerprint is None or not host.nodes:
        return [Reason("NO_CLUSTER", f"no cluster answers on {host.name}", "Create it first (module cluster_create).")]
    if set(host.nodes) != {host.name}:
        reasons.append(
            Reason(
                "NOT_SINGLE_NODE",
                f"the cluster on {host.name} has the nodes {', '.join(host.nodes)}; a restore needs one of its own",
                "Restore before expanding. A cluster that others belong to is never overwritten.",
            )
        )
    marker = host.marker or {}
    if marker.get("host") != host.name or marker.get("fingerprint") != host.fingerprint:
        reasons.append(
            Reason(
                "FOREIGN_CLUSTER",
                f"the cluster on {host.name} was not created by this collection for a recovery",
                "Create it with cluster_create: only such a cluster is known to be empty.",
            )
        )
    return reasons


def _soft(code: str, message: str) -> Reason:
    return Reason(code, message, f"Take another candidate, or accept {code} and see whether it opens.", hard=False)


def _moment(text: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return moment.astimezone(timezone.utc) if moment.tzinfo else None
