# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""What other hosts said in this run, as the guards' action plugins gathered it (law 5 of the design)."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Party:
    """A node as someone names it: by name, by addresses, by the database's host id."""

    name: str
    addresses: tuple[str, ...] = ()
    host_id: str | None = None

    @property
    def names(self) -> frozenset[str]:
        return frozenset(part for part in (self.name, *self.addresses, self.host_id) if part)

    def is_same_as(self, other: Party) -> bool:
        return not self.names.isdisjoint(other.names)


@dataclass(frozen=True)
class Witness:
    """One host's ``cluster_info`` of this run. ``listed`` are the nodes that its cluster consists of, in its eyes."""

    host: str
    party: Party
    membership: str
    fingerprint: str | None
    listed: tuple[Party, ...]
    up: tuple[str, ...]
    version: str | None
    marker: dict[str, t.Any] | None

    def lists(self, party: Party) -> bool:
        return any(entry.is_same_as(party) for entry in self.listed)


@dataclass(frozen=True)
class Testimony:
    """All witnesses and what the store's ledger holds. ``ledger`` is None when it was not read in this run."""

    witnesses: tuple[Witness, ...] = ()
    ledger: dict[str, t.Any] | None = None
    unusable: tuple[str, ...] = field(default=())

    def members_of(self, fingerprint: str | None) -> list[Witness]:
        """Witnesses that are live members of the cluster with this fingerprint (of any, when it is None)."""
        return [
            witness
            for witness in self.witnesses
            if witness.membership == "member" and (fingerprint is None or witness.fingerprint == fingerprint)
        ]

    @property
    def recorded_members(self) -> list[Party]:
        """The member set that was last recorded."""
        return [_party(entry) for entry in (self.ledger or {}).get("members", []) if isinstance(entry, dict)]

    def host_id_of(self, name: str) -> str | None:
        """The database's host id of a node when it joined, as recorded."""
        joins = (self.ledger or {}).get("joins")
        joined = joins.get(name) if isinstance(joins, dict) else None
        value = joined.get("host_id") if isinstance(joined, dict) else None
        return str(value) if value else None

    @property
    def production_fingerprint(self) -> str | None:
        """The fingerprint of the generation that serves, as recorded."""
        value = (self.ledger or {}).get("production_fingerprint")
        return str(value) if value else None


def read(raw: t.Mapping[str, t.Any] | None) -> Testimony | None:
    """Testimony out of the action plugin's dictionary, or None when there is none.

    A witness whose answer has not the expected form is named in ``unusable`` and counts for nothing.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("witnesses"), dict):
        return None
    witnesses: list[Witness] = []
    unusable: list[str] = []
    for host, result in raw["witnesses"].items():
        try:
            witnesses.append(_witness(str(host), result))
        except (KeyError, TypeError, AttributeError):
            unusable.append(str(host))
    ledger = raw.get("ledger")
    folded = ledger.get("folded") if isinstance(ledger, dict) else None
    return Testimony(tuple(witnesses), folded if isinstance(folded, dict) else None, tuple(unusable))


def _witness(host: str, result: t.Mapping[str, t.Any]) -> Witness:
    cluster = result["cluster"] or {}
    nodes = cluster.get("nodes") or []
    marker = result.get("marker")
    return Witness(
        host,
        _party(result["host"]),
        str(result["membership"]),
        cluster.get("fingerprint"),
        tuple(_party(node) for node in nodes),
        tuple(str(node["name"]) for node in nodes if node.get("up")),
        cluster.get("version"),
        marker if isinstance(marker, dict) else None,
    )


def _party(entry: t.Mapping[str, t.Any]) -> Party:
    return Party(
        str(entry["name"]),
        tuple(str(address).partition("/")[0] for address in entry.get("addresses") or ()),
        str(entry["host_id"]) if entry.get("host_id") else None,
    )
