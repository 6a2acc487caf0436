# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What a run of shipping is asked for, works on, and tells."""

from __future__ import annotations

import time
import typing as t
from dataclasses import dataclass, field

from .._core.manifest import Manifest, Sealed
from .._core.strict import digest
from .._errors import DsmError, Reason
from ._discover import Source, Unit
from ._pull import TransferReport, local_failure
from ._store import Checkpoint, no_checkpoint


@dataclass(frozen=True)
class Cluster:
    """Whose backups these are, as cluster_info returned it."""

    fingerprint: str
    uid: str
    version: str
    members: tuple[t.Mapping[str, t.Any], ...]


@dataclass(frozen=True)
class ShipRequest:
    """Everything that decides a run of ``backup_ship``. Times in seconds, rate in bytes a second."""

    store: str
    cluster: Cluster
    sources: tuple[Source, ...]
    sealed_for: tuple[Sealed, ...] = ()
    snapshot_started: str | None = None
    #: seconds by which the clock that told it is ahead of ours; None: nobody measured it
    snapshot_skew: int | None = None
    #: what lay at the sources before that snapshot was asked for: by place and path of each that could be looked at,
    #: identities by name; None: nobody was to look
    there_before: t.Mapping[tuple[str, str], t.Mapping[str, t.Collection[str]]] | None = None
    #: identities of deliveries whose time had not come when somebody saw them
    ahead_of_time: frozenset[str] = frozenset()
    select: str = "all"
    quiet: float = 60.0
    patience: float = 300.0
    headroom: float = 0.1
    workers: int = 8
    rate_limit: float = 0.0
    new_cluster: bool = False
    accept: frozenset[str] = frozenset()
    run_id: str = ""
    identify: t.Callable[[str], str] | None = None
    checkpoint: Checkpoint = no_checkpoint
    say: t.Callable[[str], None] = lambda _line: None


@dataclass
class ShipResult:
    """What happened: one item per backup, and everything that was refused."""

    cluster_id: str = ""
    backups: list[dict[str, t.Any]] = field(default_factory=list)
    report: TransferReport = field(default_factory=TransferReport)
    reasons: list[Reason] = field(default_factory=list)
    accepted: list[Reason] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: of each source that could be looked at its place and path, and the identities of what lies there by name; in
    #: check mode only
    at_sources: list[dict[str, t.Any]] = field(default_factory=list)
    #: identities of those of them whose time has not come; in check mode only
    ahead_of_time: list[str] = field(default_factory=list)
    changed: bool = False

    def returns(self) -> dict[str, t.Any]:
        """Return values of the module."""
        return {
            "cluster_id": self.cluster_id,
            "backups": self.backups,
            "bytes": self.report.bytes,
            "resent": self.report.resent,
            "seconds": round(self.report.seconds, 3),
            "workers": self.report.workers,
            "peak_rss": self.report.peak_rss,
            "accepted": [reason.as_dict() for reason in self.accepted],
            "notes": self.notes,
            "at_sources": self.at_sources,
            "ahead_of_time": self.ahead_of_time,
        }

    def attempt(self, act: t.Callable[[], None], place: str) -> bool:
        """Do it; that the disk at ``place`` does not let it is told at the end, and stops no backup.

        Returns whether it was done.
        """
        try:
            act()
        except (DsmError, OSError) as caught:
            error = local_failure(place, caught) if isinstance(caught, OSError) else caught
            reason = Reason(error.code, error.message, error.remedy)
            if reason not in self.reasons:
                self.reasons.append(reason)
            return False
        return True


@dataclass(frozen=True)
class Past:
    """What the store knows of deliveries, by the identity of each."""

    #: what is published, and was not found broken
    known: t.Mapping[str, Manifest]
    #: everything that is published
    came: t.Mapping[str, Manifest]
    #: what never comes (again)
    gone: t.Collection[str]

    def complete(self, identity: str) -> bool:
        """Whether a delivery was complete: it was taken for that once."""
        return identity in self.came or identity in self.gone


@dataclass
class Job:
    """One backup to bring home."""

    source: Source
    unit: Unit
    skew: int | None
    snapshot_started: str | None
    snapshot_source: str
    accepted: list[str]
    round_trip: float = 0.0
    id: str = ""
    seen: float = field(default_factory=time.monotonic)
    #: what was published of deliveries that had its name before the snapshot was asked for
    had_its_name: list[Manifest] = field(default_factory=list)
    #: SHA-256 by path at the source, of those files of the backup that somebody hashed there
    hashes: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        known = self.source.hashes
        self.hashes = {item.source: known[item.source] for item in self.unit.items if item.source in known}

    @property
    def key(self) -> str:
        return self.unit.key(self.source.endpoint.place)

    def noted(self) -> dict[str, str]:
        """What is noted beside that which lands, for the run that continues it."""
        return {
            "key": self.key,
            "state": digest([*self.unit.state]),
            "name": self.unit.name,
            "place": self.source.endpoint.place,
            "path": self.source.path,
        }

    def continues(self, noted: t.Mapping[str, t.Any]) -> bool:
        """Whether what landed is of these very files: another one of the same size and time has the same key.

        Runs of earlier versions noted no state. Over SFTP it says nothing that the key does not say.
        """
        state = self.noted()["state"]
        return bool(noted.get("state", state if self.source.endpoint.host else None) == state)


@dataclass
class Looked:
    """What is known of the sources, once this run has looked at them."""

    #: places and paths of sources of which it is known what they hold
    at: set[tuple[str, str]] = field(default_factory=set)
    #: places and names of deliveries that were refused now, and may come later
    refused: set[tuple[str, str]] = field(default_factory=set)

    def refuse(self, jobs: t.Iterable[Job]) -> None:
        """Remember that these do not come now."""
        self.refused.update((job.source.endpoint.place, job.unit.name) for job in jobs)

    def may_come(self, noted: t.Mapping[str, t.Any]) -> bool:
        """Whether a later run may continue what was noted: nobody could look, or it or a directory above it was refused
        now."""
        if (noted.get("place"), noted.get("path")) not in self.at:
            return True
        name = f"{noted.get('name')}/"
        return any(place == noted.get("place") and name.startswith(f"{above}/") for place, above in self.refused)
