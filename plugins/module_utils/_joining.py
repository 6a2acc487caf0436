# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""One join, from what is there to what has become of it."""

from __future__ import annotations

import re
import time
import typing as t

from ._cluster import ClusterReader, own_standing, wait_until
from ._core import membership as core
from ._core import topology
from ._core.model import Cluster, Member
from ._core.reasons import Reason
from ._core.strict import utc_seconds
from ._core.testimony import Party
from ._errors import CommandFailed, Refused, TimedOut, refuse_unless_accepted
from ._module import Outcome, Shell
from ._node import remove_markers, try_connection, write_marker
from ._parse.kubeadm import TOKEN_ANYWHERE
from ._runner import OperationResult, argv_reasons

OPERATION = "join"
EXCLUDES = ("create", "reset", "restore")
_POLL = 1.0
#: Seconds that a node may stay listed but not whole once the vendor's command has ended badly.
HALF_DONE_AFTER = 120.0


class Joining:
    """Body of ``cluster_join``."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._params = shell.params
        self._host = shell.host_identity()
        name = self._params["node_name"] or self._host.name
        self._me = Party(name, (self._host.name, *self._host.addresses))
        self._reader = ClusterReader(shell.runner, self._params["kubeconfig"], timeout=20.0)
        self._accepted: list[Reason] = []
        self._half_done_since: float | None = None
        self._argv = [
            "sdkms-cluster",
            "join",
            f"--peer={self._params['peer']}",
            f"--token={self._params['token']}",
            *self._params["extra_args"],
        ]

    def run(self) -> Outcome:
        begun = self._shell.operations.status(OPERATION)
        under_way = begun is not None and (begun.running or (begun.rc == 0 and not begun.reported))
        standing, why, cluster = self._standing()
        before = {"state": "member" if standing == core.MEMBER else "joining" if under_way else "absent"}
        self._check(standing, why, cluster, under_way)
        member = self._mine(cluster)
        if standing == core.MEMBER and member is not None and not (begun and begun.running):
            if topology.whole(member):
                if not self._shell.check_mode:
                    self._shell.operations.acknowledge(OPERATION)
                return self._outcome(False, before, "member", member, cluster)
            under_way = True
        if self._shell.check_mode:
            return self._outcome(not under_way, before, "member", None, None)
        if not under_way:
            self._prepare_marker()
        if not under_way or (begun and begun.running):
            self._start_or_attach()
        if not self._params["wait"]:
            return self._outcome(not under_way, before, "joining", None, None)
        return self._await(not under_way, before)

    def _standing(self) -> tuple[str, str, Cluster | None]:
        return own_standing(self._reader, self._params["kubeconfig"], self._me, self._params["state_paths"])

    def _mine(self, cluster: Cluster | None) -> Member | None:
        return cluster.member(*self._me.names) if cluster is not None else None

    def _check(self, standing: str, why: str, cluster: Cluster | None, under_way: bool) -> None:
        """Every reason against it, at once. What runs already was checked when it began."""
        params = self._params
        mine = {*self._me.names, "localhost", "127.0.0.1"}
        reasons = core.join_input_reasons(params["token"], params["peer"], mine, params["members"])
        reasons += argv_reasons(params["extra_args"])
        if standing == core.MEMBER:
            if cluster is None or cluster.member(params["peer"]) is None:
                reasons.append(
                    Reason(
                        "FOREIGN_MEMBER",
                        f"this host is a member of a cluster that {params['peer']} is no node of: {why}.",
                        "Find out which cluster it serves. Remove and reset it there before it joins another.",
                    )
                )
        elif not under_way:
            reasons += self._reasons_to_begin(standing, why, {one.code for one in reasons})
        self._accepted = refuse_unless_accepted(reasons, params["accept"], "This host does not join.")

    def _reasons_to_begin(self, standing: str, why: str, known: set[str]) -> list[Reason]:
        """``known``: codes of what is wrong with the arguments. A peer that cannot be meant is not knocked at."""
        params = self._params
        reasons = core.version_reasons(params["own_version"], params["cluster_version"])
        reasons += core.token_reasons(_seconds(params["token_expires"]), time.time())
        if standing != core.NONE:
            reasons.append(
                Reason(
                    "LEFTOVER" if standing == core.LEFTOVER else "MEMBERSHIP_UNKNOWN",
                    f"this host is not clean: {why}.",
                    "Old data merged into a ring can harm it. Reset this host with cluster_reset first.",
                )
            )
        meant = known.isdisjoint({"PEER_MALFORMED", "PEER_IS_SELF"})
        if meant and not any(try_connection(params["peer"], port).outcome == "open" for port in params["peer_ports"]):
            reasons.append(
                Reason(
                    "PEER_UNREACHABLE",
                    f"{params['peer']} answers on none of the ports {', '.join(map(str, params['peer_ports']))}.",
                    "Is it a member, is it up, and are the ports open from here?",
                )
            )
        for other in EXCLUDES:
            if self._shell.operations.running(other):
                reasons.append(Reason("OPERATION_CONFLICT", f"'{other}' runs on this host.", "Wait for it to end."))
        return reasons

    def _prepare_marker(self) -> None:
        """A host that joins is what it joins: a copy of the trial's marker, or no marker at all."""
        trial = self._params["trial"]
        if trial:
            write_marker(dict(trial, host=self._host.name, created_on=trial.get("host")))
        else:
            remove_markers()

    def _start_or_attach(self) -> None:
        self._shell.operations.start_or_attach(
            OPERATION,
            self._argv,
            timeout=5.0,
            secrets=[self._params["token"]],
            patterns=[TOKEN_ANYWHERE],
            wait=False,
            excludes=EXCLUDES,
        )

    def _await(self, changed: bool, before: dict[str, t.Any]) -> Outcome:
        try:
            _elapsed, seen = wait_until(
                self._look, self._params["timeout"], _POLL, f"{self._host.name} is a whole member"
            )
        except TimedOut as error:
            status = self._shell.operations.status(OPERATION)
            if status is not None and status.running and self._wants_approval(status):
                return self._outcome(changed, before, "awaiting_approval", None, None, words=status.output_tail)
            error.remedy = "Run this again: it attaches to the join and starts no other."
            error.details["output_tail"] = status.output_tail if status else ""
            raise
        if "member" in seen:
            return self._outcome(changed, before, "member", seen["member"], seen["cluster"])
        return self._outcome(changed, before, "awaiting_approval", None, None, words=seen["words"])

    def _look(self) -> tuple[bool, t.Any]:
        status = self._shell.operations.status(OPERATION)
        if status is not None and status.running:
            # What the cluster shows now is not the outcome yet, and asking it takes the time of a node that is busy.
            return False, {"standing": "the vendor's command runs", "operation_running": True, "node": None}
        standing, why, cluster = self._standing()
        member = self._mine(cluster)
        if standing == core.MEMBER and member is not None and topology.whole(member):
            ended = self._shell.operations.acknowledge(OPERATION)
            if ended is not None and ended.rc != 0 and not ended.reported:
                self._shell.warn(f"The join ended with exit code {ended.rc}, but this host is a whole member.")
            return True, {"member": member, "cluster": cluster}
        if status is not None and status.rc != 0 and standing != core.MEMBER:
            return True, self._failed(status)
        self._give_up_when_half_done(status, standing, member)
        return False, {"standing": why, "operation_running": False, "node": member.as_dict() if member else None}

    def _give_up_when_half_done(self, status: OperationResult | None, standing: str, member: Member | None) -> None:
        """A node that is listed after a join that ended badly may still become whole, but not for ever."""
        if status is None or status.rc == 0 or standing != core.MEMBER or member is None:
            self._half_done_since = None
            return
        now = time.monotonic()
        if self._half_done_since is None:
            self._half_done_since = now
        if now - self._half_done_since < HALF_DONE_AFTER:
            return
        self._shell.operations.acknowledge(OPERATION)
        raise CommandFailed(
            f"sdkms-cluster join ended with exit code {status.rc}. {member.name} is listed in the cluster, but has not "
            f"become whole for {HALF_DONE_AFTER:g} s: {status.output_tail.strip()[-300:] or 'no output'}",
            "JOIN_HALF_DONE",
            "Remove this node on a survivor (cluster_remove), wipe it (cluster_reset because removed), and join again.",
            rc=status.rc,
            output_tail=status.output_tail,
            node=member.as_dict(),
        )

    def _failed(self, ended: OperationResult) -> dict[str, t.Any]:
        self._shell.operations.acknowledge(OPERATION)
        if self._wants_approval(ended):
            return {"words": ended.output_tail}
        raise CommandFailed(
            f"sdkms-cluster join ended with exit code {ended.rc}, and this host is out: "
            f"{ended.output_tail.strip()[-300:] or 'no output'}",
            "JOIN_FAILED",
            "Read its words above. Did the token expire meanwhile (kubeadm token list on a member)? Is the release the "
            "cluster's? Is attestation reachable? Then begin again with a new token; reset what is left over first.",
            rc=ended.rc,
            output_tail=ended.output_tail,
        )

    def _wants_approval(self, status: OperationResult) -> bool:
        return re.search(self._params["approval_pattern"], status.output_tail) is not None

    def _outcome(
        self,
        changed: bool,
        before: dict[str, t.Any],
        state: str,
        member: Member | None,
        cluster: Cluster | None,
        words: str | None = None,
    ) -> Outcome:
        wanted = self._params["datacenter"]
        if member is not None and wanted and member.ring is not None and member.ring.datacenter != wanted:
            self._shell.warn(
                f"LABELLED_LATE: the database of {member.name} started in {member.ring.datacenter}, not in {wanted}. "
                "See the vendor's article 'Data Center Labeling'."
            )
        if (
            self._params["trial"]
            and cluster is not None
            and cluster.fingerprint != self._params["trial"]["fingerprint"]
        ):
            raise Refused(
                "This host joined another cluster than the trial it was meant for.",
                "OTHER_CLUSTER",
                "Its marker does not fit its cluster, so it cannot be reset as a trial. Find out who the peer is.",
            )
        return Outcome(
            changed,
            before,
            {"state": state},
            state=state,
            joined_at=member.created if member else None,
            version=self._params["cluster_version"],
            fingerprint=cluster.fingerprint if cluster else None,
            node=member.as_dict() if member else None,
            vendor_words=words,
            host=self._host.as_dict(),
            accepted=[reason.as_dict() for reason in self._accepted],
        )


def _seconds(moment: str | None) -> float | None:
    """Seconds since the epoch of a UTC time as ``join_token`` writes it.

    :raises Refused: it is none
    """
    if not moment:
        return None
    try:
        return utc_seconds(moment)
    except ValueError as error:
        raise Refused(
            f"token_expires cannot be read: {error}",
            "BAD_ARGUMENTS",
            "Give it as join_token returns it, such as 2026-11-22T01:02:03Z, or leave it out.",
        ) from None
