# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""One bootstrap of a cluster on a DR node, from what is there to what has become of it."""

from __future__ import annotations

import datetime
import ipaddress
import re
import typing as t

from ._cluster import ClusterReader, own_standing, wait_until
from ._core import derived_config, topology
from ._core.config_text import ConfigTextError
from ._core.membership import MEMBER, CreateCase, create_reasons, version_reasons
from ._core.reasons import Reason
from ._core.testimony import Party
from ._errors import CommandFailed, Refused, TimedOut, refuse_unless_accepted
from ._isolation import probe_isolation
from ._module import Outcome, Shell, identity_reasons, require_testimony
from ._node import local_fingerprint, present_state, read_marker, write_marker, write_private

OPERATION = "create"
EXCLUDES = ("join", "reset", "restore")
RUNS = "/var/lib/kmsops/runs"
_RUN_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_POLL = 2.0
#: Seconds that a cluster gets to become whole after its command failed: a kubelet reports every ten [doc].
_LAST_CHANCE = 15.0


class Creating:
    """Body of ``cluster_create``."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._params = shell.params
        self._host = shell.host_identity()
        self._me = Party(self._host.name, tuple(self._host.addresses))
        self._reader = ClusterReader(shell.runner, self._params["kubeconfig"], timeout=20.0)
        self._heard = require_testimony(shell.params)
        self._derived: derived_config.Derived | None = None
        self._accepted: list[Reason] = []
        if not _RUN_ID.match(self._params["run_id"]):
            raise Refused(
                f"run_id {self._params['run_id']!r} is not usable as a file name.",
                "RUN_ID_INVALID",
                "Use letters, digits, dashes, dots and underscores, at most 64 of them.",
            )
        self._path = f"{RUNS}/{self._params['run_id']}/config.yaml"

    def run(self) -> Outcome:
        marker = read_marker()
        standing, why, cluster = own_standing(
            self._reader, self._params["kubeconfig"], self._me, self._params["state_paths"]
        )
        fingerprint = local_fingerprint(self._params["kubeconfig"])
        ours = marker is not None and marker["run_id"] == self._params["run_id"] and marker["host"] == self._host.name
        status = self._shell.operations.status(OPERATION)
        under_way = ours and status is not None and status.running
        before = {"cluster": fingerprint}
        member = cluster.member(*self._me.names) if cluster is not None else None
        if ours and not under_way and standing == MEMBER and member is not None and topology.whole(member):
            return self._settle(marker or {}, before, fingerprint)
        if not under_way:
            self._check(standing, why, marker, fingerprint)
        if self._shell.check_mode:
            return self._outcome(True, before, {"cluster": fingerprint or "(a new one)"}, fingerprint, marker)
        self._shell.require_confirmed_host(
            self._params["confirm"], self._params["expected_addresses"], self._params["expected_serial"]
        )
        if not ours:
            marker = self._prepare()
        elif not under_way:
            self._write_config()
        self._start_and_wait()
        return self._settle(marker or {}, before, None)

    def _check(self, standing: str, why: str, marker: dict[str, t.Any] | None, fingerprint: str | None) -> None:
        """Every reason against it, at once: host, state, isolation, configuration."""
        params = self._params
        reasons = identity_reasons(
            self._host, params["confirm"], params["expected_addresses"], params["expected_serial"]
        )
        reasons += create_reasons(
            CreateCase(
                subject=self._me,
                host_role=params["host_role"],
                membership=standing,
                membership_why=why,
                state_paths=tuple(present_state(params["state_paths"])),
                marker=marker,
                run_id=params["run_id"],
                fingerprint=fingerprint,
                testimony=self._heard,
            )
        )
        reasons += self_address_reasons(params["self_address"], self._host.addresses)
        reasons += version_reasons(params["own_version"], None)
        reasons += self._config_reasons()
        reasons += probe_isolation(params["isolation"], self._host.every_address)
        for other in EXCLUDES:
            if self._shell.operations.running(other):
                reasons.append(Reason("OPERATION_CONFLICT", f"'{other}' runs on this host.", "Wait for it to end."))
        self._accepted = refuse_unless_accepted(
            reasons, params["accept"], f"No cluster is created on {self._host.name}."
        )

    def _config_reasons(self) -> list[Reason]:
        params = self._params
        try:
            with open(params["config"], encoding="utf-8") as handle:
                text = handle.read()
            self._derived = derived_config.derive(text, params["drop_directory"])
        except FileNotFoundError:
            return [
                Reason(
                    "CONFIG_MISSING",
                    f"there is no {params['config']} on this host.",
                    "Put the escrowed config.yaml of the cluster there.",
                )
            ]
        except (OSError, UnicodeDecodeError) as error:
            return [
                Reason(
                    "CONFIG_UNREADABLE",
                    f"{params['config']} cannot be read: {type(error).__name__}.",
                    "Look at it: it must be a file of UTF-8 text. Take it from escrow again.",
                )
            ]
        except ConfigTextError as error:
            return [
                Reason(
                    "CONFIG_INVALID",
                    f"{params['config']}, line {error.line}: {error.problem}.",
                    "Correct it, with spaces and every key once.",
                )
            ]
        return derived_config.derived_reasons(self._derived, params["drop_directory"], params["forbidden_paths"])

    def _prepare(self) -> dict[str, t.Any]:
        """The derived configuration and the marker, in this order, before anything starts."""
        self._write_config()
        marker = {
            "schema": 1,
            "run_id": self._params["run_id"],
            "host": self._host.name,
            "created_at": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "fingerprint": None,
            "production_fingerprint": self._heard.production_fingerprint,
        }
        write_marker(marker)
        return marker

    def _write_config(self) -> None:
        if self._derived is not None:
            write_private(self._path, self._derived.text)

    def _start_and_wait(self) -> None:
        argv = ["sdkms-cluster", "create", f"--self={self._params['self_address']}", "--config", self._path]
        timeout = self._params["timeout"]
        ended = self._shell.operations.start_or_attach(OPERATION, argv, timeout=timeout, excludes=EXCLUDES)
        try:
            patience = self._params["timeout"] if ended.rc == 0 else _LAST_CHANCE
            wait_until(self._look, patience, _POLL, "the new cluster is whole")
        except TimedOut as error:
            raise CommandFailed(
                f"sdkms-cluster create ended with exit code {ended.rc}, but there is no whole cluster: "
                f"{ended.output_tail.strip()[-300:] or 'no output'}",
                "CREATE_INCOMPLETE",
                "Run this again with the same run_id. If it stays, reset it because of own_trial, and repeat.",
                rc=ended.rc,
                output_tail=ended.output_tail,
                last_state=error.details.get("last_state"),
            ) from None
        if ended.rc != 0:
            self._shell.warn(f"sdkms-cluster create ended with exit code {ended.rc}, but the cluster is whole.")

    def _look(self) -> tuple[bool, t.Any]:
        cluster = self._reader.read(prefer_node=self._host.name)
        member = cluster.member(*self._me.names)
        return member is not None and topology.whole(member), member.as_dict() if member else None

    def _settle(self, marker: dict[str, t.Any], before: dict[str, t.Any], known: str | None) -> Outcome:
        """Complete the marker with the fingerprint, which exists only now."""
        fingerprint = known or local_fingerprint(self._params["kubeconfig"])
        if fingerprint is not None and fingerprint in (
            self._heard.production_fingerprint,
            marker.get("production_fingerprint"),
        ):
            raise Refused("The cluster on this host has production's fingerprint.", "IS_PRODUCTION", "Do not touch it.")
        changed = known is None or marker.get("fingerprint") != fingerprint
        if marker.get("fingerprint") != fingerprint and not self._shell.check_mode:
            marker = dict(marker, fingerprint=fingerprint)
            write_marker(marker)
        return self._outcome(changed, before, {"cluster": fingerprint}, fingerprint, marker)

    def _outcome(
        self,
        changed: bool,
        before: dict[str, t.Any],
        after: dict[str, t.Any],
        fingerprint: str | None,
        marker: dict[str, t.Any] | None,
    ) -> Outcome:
        return Outcome(
            changed,
            before,
            after,
            fingerprint=fingerprint,
            derived_config=self._path,
            marker=marker,
            removed_blocks=list(self._derived.removed) if self._derived else [],
            host=self._host.as_dict(),
            accepted=[reason.as_dict() for reason in self._accepted],
        )


def self_address_reasons(self_address: str, own: t.Sequence[str]) -> list[Reason]:
    """``--self`` takes an address of this host *with* its mask [seed]."""
    if "/" not in self_address:
        return [
            Reason(
                "SELF_WITHOUT_MASK",
                f"self_address {self_address!r} has no mask.",
                "Give it with the mask of its network, such as 192.0.2.11/24.",
            )
        ]
    try:
        address = str(ipaddress.ip_interface(self_address).ip)
    except ValueError:
        return [
            Reason(
                "SELF_MALFORMED",
                f"self_address {self_address!a} is no address with a mask.",
                "Type it by hand, such as 192.0.2.11/24: a copied one may carry a typographic dash.",
            )
        ]
    if address not in own:
        return [
            Reason(
                "SELF_NOT_HERE",
                f"{address} is no address of this host, which has {', '.join(own) or 'none'}.",
                "Is this the right host?",
            )
        ]
    return []
