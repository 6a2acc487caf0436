# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""From options of ``backup_ship`` to requests, and what those of ``backup_replicate`` have in common with them.

Whatever cannot be meant is refused here, all of it at once.
"""

from __future__ import annotations

import typing as t

from .._core.manifest import Sealed
from .._core.strict import SHA256, utc_seconds
from .._errors import Reason, Refused
from ._discover import Source
from ._endpoint import Endpoint, LocalEndpoint, SftpEndpoint, without_links
from ._job import Cluster, ShipRequest
from ._ssh import SshTarget
from ._stage import StageRequest

Options = t.Mapping[str, t.Any]
MAX_WORKERS = 8


def silent(_line: str) -> None:
    return


def ship_request(
    options: Options,
    identify: t.Callable[[str], str] | None = None,
    say: t.Callable[[str], None] = silent,
) -> ShipRequest:
    """The request for ``state: published``. Raises :class:`Refused` (code BAD_OPTION)."""
    reasons = numbers(options, {f"sources[{index}]": source for index, source in enumerate(options["sources"])})
    if not options["sources"]:
        reasons.append(bad("sources is empty: nothing says where backups are delivered to"))
    for index, source in enumerate(options["sources"]):
        if source.get("host") and not source.get("user"):
            reasons.append(bad(f"sources[{index}] names a host and no user"))
        for path, sha256 in (source.get("hashes") or {}).items():
            if not SHA256.match(str(sha256)):
                reasons.append(bad(f"sources[{index}].hashes: {sha256!r} of {path} is no SHA-256 in lower-case hex"))
    for index, look in enumerate(options.get("there_before") or ()):
        for name, identity in look["backups"].items():
            if not isinstance(identity, str) or not SHA256.match(identity):
                reasons.append(bad(f"there_before[{index}].backups: {identity!r} of {name} is no identity of a backup"))
    started = options.get("snapshot_started") or None
    reasons += _utc("snapshot_started", started)
    for index, sealed in enumerate(options["sealed_for"]):
        reasons += _utc(f"sealed_for[{index}].joined_at", sealed.get("joined_at") or None)
    members = []
    for index, member in enumerate(options["cluster"]["members"]):
        if not isinstance(member.get("name"), str) or not member["name"]:
            reasons.append(bad(f"cluster.members[{index}] has no name"))
            continue
        members.append(
            {
                "name": member["name"],
                "addresses": [str(address) for address in member.get("addresses") or []],
                "host_id": str(member.get("host_id") or ""),
            }
        )
    refuse(reasons)
    cluster = options["cluster"]
    return ShipRequest(
        store=options["store"],
        cluster=Cluster(cluster["fingerprint"], cluster["uid"], cluster["version"], tuple(members)),
        sources=tuple(
            Source(
                endpoint(source, options),
                _resolved(source, source["path"]),
                source["layout"],
                _hashes(source),
                source.get("clock_skew"),
            )
            for source in options["sources"]
        ),
        sealed_for=tuple(
            Sealed(
                item["node"], item["platform_id"], item["version"], item.get("joined_at") or None, bool(item["member"])
            )
            for item in options["sealed_for"]
        ),
        snapshot_started=started,
        snapshot_skew=options.get("snapshot_clock_skew"),
        there_before=_there_before(options.get("there_before")),
        ahead_of_time=frozenset(options["ahead_of_time"]),
        select=options["select"],
        quiet=options["quiet"],
        patience=options["patience"],
        headroom=options["headroom"],
        workers=options["workers"],
        rate_limit=float(options["rate_limit"] or 0),
        new_cluster=options["new_cluster"],
        accept=frozenset(options["accept"]),
        run_id=options["run_id"],
        identify=identify,
        say=say,
    )


def stage_request(options: Options, say: t.Callable[[str], None] = silent) -> StageRequest:
    """The request for ``state: staged``. Raises :class:`Refused` (code BAD_OPTION)."""
    reasons = numbers(options, {"push": options["push"]})
    fingerprint = (options.get("cluster") or {}).get("fingerprint") or ""
    if not fingerprint and not options.get("cluster_id"):
        reasons.append(bad("neither cluster_id nor cluster says which cluster's backup is meant"))
    refuse(reasons)
    push = options["push"]
    return StageRequest(
        store=options["store"],
        cluster_id=options.get("cluster_id") or "",
        fingerprint=fingerprint,
        id=options["id"],
        target=_target(push, options),
        path=push["path"].rstrip("/") or "/",
        headroom=options["headroom"],
        workers=options["workers"],
        rate_limit=float(options["rate_limit"] or 0),
        say=say,
    )


def endpoint(source: Options, options: Options) -> Endpoint:
    return SftpEndpoint(_target(source, options)) if source.get("host") else LocalEndpoint()


def _resolved(source: Options, path: str) -> str:
    return path if source.get("host") else without_links(source["path"], path)


def _there_before(looks: t.Sequence[Options] | None) -> dict[tuple[str, str], dict[str, set[str]]] | None:
    if looks is None:
        return None
    found: dict[tuple[str, str], dict[str, set[str]]] = {}
    for look in looks:
        names = found.setdefault((look["place"], look["path"]), {})
        for name, identity in look["backups"].items():
            names.setdefault(name, set()).add(identity)
    return found


def _hashes(source: Options) -> dict[str, str]:
    return {_resolved(source, path): sha256 for path, sha256 in (source.get("hashes") or {}).items()}


def _target(login: Options, options: Options) -> SshTarget:
    return SshTarget(
        host=login["host"],
        user=login["user"],
        port=login["port"],
        key_file=login.get("key_file") or "",
        passphrase=login.get("passphrase") or "",
        host_key=login.get("host_key") or "",
        known_hosts=login.get("known_hosts") or "",
        connect_timeout=options["connect_timeout"],
        stall_timeout=options["stall_timeout"],
    )


def numbers(options: Options, logins: t.Mapping[str, Options]) -> list[Reason]:
    reasons = []
    if options["rate_limit"] is not None and options["rate_limit"] <= 0:
        reasons.append(bad(f"rate_limit is {options['rate_limit']}; give bytes a second, or leave it out for no limit"))
    if not 1 <= options["workers"] <= MAX_WORKERS:
        reasons.append(bad(f"workers is {options['workers']}; give 1 to {MAX_WORKERS}"))
    for name in ("quiet", "patience", "headroom"):
        if name in options and not 0 <= options[name] < float("inf"):
            reasons.append(bad(f"{name} is {options[name]}; it must not be negative"))
    for name in ("connect_timeout", "stall_timeout"):
        if not 0 < options[name] < float("inf"):
            reasons.append(bad(f"{name} is {options[name]}; it must be more than 0 seconds"))
    for name, login in logins.items():
        if not 0 < login.get("port", 22) < 65536:
            reasons.append(bad(f"{name}.port is {login['port']}"))
    return reasons


def _utc(name: str, value: str | None) -> list[Reason]:
    try:
        utc_seconds(value or "1970-01-01T00:00:00Z")
    except ValueError as error:
        return [bad(f"{name}: {error}")]
    return []


def bad(message: str) -> Reason:
    return Reason("BAD_OPTION", message + ".", "See ansible-doc for what this option may be.")


def refuse(reasons: t.Sequence[Reason]) -> None:
    if reasons:
        raise Refused("These options cannot be meant.", "BAD_OPTION", "Correct them.", reasons=reasons)
