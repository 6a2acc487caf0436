# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""One backup that was started, or that fired by itself, and whether its snapshots are of one schema."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone

from . import _schedule
from ._cluster import ClusterReader, wait_until
from ._core import schema
from ._core.model import Cluster
from ._core.reasons import Reason
from ._core.schema import SchemaVersions
from ._errors import CommandFailed, DsmError, TimedOut, reasons_of, refuse_unless_accepted
from ._module import Shell
from ._runner import fill_template

OPERATION = "backup-now"
#: Seconds before a firing at which the schema is looked at: late, because what changes earlier harms nothing.
_BEFORE_FIRING = 30.0


@dataclass(frozen=True)
class Started:
    """A backup, from before it began until its snapshot had started.

    :param started: UTC time that the snapshot started at or after, None where nothing was started
    :param started_by: UTC time that it had started by, None where that is not known
    :param discarded: when those began that do not count, because the schema changed meanwhile
    """

    started: str | None
    before: Cluster
    schema_before: SchemaVersions | None
    schema_after: SchemaVersions | None
    accepted: list[Reason]
    started_by: str | None = None
    attached: bool = False
    waited_for: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)

    @property
    def changed_reason(self) -> Reason | None:
        """Why it may not fit together, if anything is known to speak against it."""
        before, after = self.schema_before, self.schema_after
        if before is None or after is None or schema.movement(before, after) != schema.CHANGED:
            return None
        return schema.changed_reason(before, after, self.started)

    def members(self, after: Cluster) -> list[dict[str, t.Any]]:
        """Nodes that were members and up both before and after, and are no younger than the snapshot."""
        found = []
        for member in after.members:
            earlier = self.before.member(member.name)
            young = self.started is not None and member.created and member.created > self.started
            if earlier is not None and earlier.up(self.before.ring_known) and member.up(after.ring_known) and not young:
                shown = member.as_dict()
                found.append({key: shown[key] for key in ("name", "addresses", "host_id", "datacenter")})
        return found


class BackingUp:
    """Body of ``backup_run``."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._params = shell.params
        self._reader = ClusterReader(shell.runner, shell.params["kubeconfig"])
        self._silent = "an earlier call started the backup and did not note them"

    def run(self) -> tuple[Started, Cluster]:
        """The backup, and the cluster after it."""
        backup = self._now() if self._params["mode"] == "now" else self._at_firing()
        after = backup.before if self._shell.check_mode else self._reader.read()
        if schema.movement(backup.schema_before, backup.schema_after) == schema.UNKNOWN:
            self._shell.warn(
                f"SCHEMA_UNKNOWN: the versions of the database's schema are not known ({self._silent}), so nobody can "
                "tell whether it stayed the same while the snapshots were being taken."
            )
        return backup, after

    def _now(self) -> Started:
        """Start one. If the schema changed meanwhile, start one more, and that is all."""
        values = {"kubeconfig": self._params["kubeconfig"], "run_id": self._params["run_id"] or ""}
        article = self._params["article"]
        argv = fill_template(self._params["argv"], values, name="argv (what starts a backup)", article=article)
        first = self._start(argv)
        if first.changed_reason is None:
            return first
        discarded = [first.started or ""]
        try:
            second = self._start(argv)
        except DsmError as error:
            error.reasons = (*reasons_of(error), first.changed_reason)
            error.details["discarded"] = discarded
            raise
        second = replace(
            second,
            accepted=list(dict.fromkeys([*first.accepted, *second.accepted])),
            waited_for=sorted({*first.waited_for, *second.waited_for}),
            discarded=discarded,
        )
        return self._fitting(second, "A backup was started twice, and neither counts.")

    def _start(self, argv: list[str]) -> Started:
        """Start a backup once nothing is in its way, or attach to one that an earlier call of this run left."""
        name, check = _operation_name(self._params["run_id"]), self._shell.check_mode
        attaching = bool(self._params["run_id"]) and self._shell.operations.would_attach(name, argv)
        waited_for: list[str] = []
        accepted: list[Reason] = []
        if attaching:
            versions = self._ask()
        else:
            if not check:
                self._clear(name, argv)
            waited_for, accepted = _schedule.wait_for_running(self._shell, self._reader)
            versions, more = self._agreed(self._params["timeout"], "No backup is started.")
            accepted += more
        before = self._reader.read()
        if check:
            return Started(None, before, versions, versions, accepted, waited_for=waited_for)
        note = versions.as_note() if versions is not None else None
        done = self._shell.operations.start_or_attach(name, argv, timeout=self._params["timeout"], note=note)
        if done.rc != 0:
            raise CommandFailed(
                f"Starting the backup ended with {'no exit code' if done.rc is None else f'exit code {done.rc}'}.",
                "BACKUP_NOT_STARTED",
                "Read the output, and see whether a backup arrives all the same before starting another.",
                rc=done.rc,
                output_tail=done.output_tail,
            )
        return Started(
            done.started_at,
            before,
            schema.of_note(done.note) if done.attached else versions,
            self._ask(),
            accepted,
            _schedule.text_of(datetime.now(timezone.utc)),
            done.attached,
            waited_for,
        )

    def _clear(self, name: str, argv: list[str]) -> None:
        """One that an earlier call left behind, and that this one may not attach to, is waited for and forgotten."""
        left = self._shell.operations.status(name)
        if left is not None and left.running:
            self._shell.operations.start_or_attach(name, argv, timeout=self._params["timeout"])
        self._shell.operations.forget(name)

    def _at_firing(self) -> Started:
        """Wait for the schedule. What it starts cannot be repeated here: the next firing is another backup."""
        firing = _schedule.next_firing(self._params)
        started, before = _schedule.text_of(firing), self._reader.read()
        if self._shell.check_mode:
            versions, accepted = self._agreed(0.0, "")
            return Started(started, before, versions, versions, accepted)
        _schedule.wait_until(firing - timedelta(seconds=_BEFORE_FIRING))
        message = f"The scheduled backup of {started} does not count."
        versions, accepted = self._agreed(_schedule.seconds_until(firing), message)
        _schedule.wait_until(firing)
        return self._fitting(Started(started, before, versions, self._ask(), accepted), message)

    def _agreed(self, timeout: float, message: str) -> tuple[SchemaVersions | None, list[Reason]]:
        """Wait until all nodes have one schema. That nobody can be asked stands in the way of nothing.

        :returns: who has which version, and the soft reasons that were accepted
        :raises Refused: they still disagree, and that is not accepted
        """
        splits: list[SchemaVersions] = []

        def one_version() -> tuple[bool, SchemaVersions | None]:
            seen = self._ask()
            if seen is not None and schema.standing(seen) == schema.SPLIT:
                splits.append(seen)
                return False, seen
            # Silence after a disagreement does not mean that it has been settled.
            return seen is not None or not splits, seen

        check = self._shell.check_mode
        try:
            return wait_until(one_version, 0.0 if check else timeout, _schedule.POLL_SECONDS, "one schema")[1], []
        except TimedOut:
            reason = schema.split_reason(splits[-1])
        if check:
            self._shell.warn(f"{reason.code}: {reason.message} It will be waited for.")
            return splits[-1], []
        return splits[-1], refuse_unless_accepted([reason], self._params["accept"], message)

    def _fitting(self, backup: Started, message: str) -> Started:
        """Refuse a backup whose schema changed meanwhile, unless that is accepted."""
        reason = backup.changed_reason
        if reason is None:
            return backup
        accept, discarded = self._params["accept"], backup.discarded
        accepted = refuse_unless_accepted([reason], accept, message, discarded=[*discarded, backup.started])
        return replace(backup, accepted=[*backup.accepted, *accepted])

    def _ask(self) -> SchemaVersions | None:
        versions, problem = self._reader.schema()
        self._silent = problem or self._silent
        return versions


def _operation_name(run_id: str | None) -> str:
    return OPERATION + ("-" + re.sub(r"[^a-z0-9_.-]", "-", run_id.lower()) if run_id else "")[:50]
