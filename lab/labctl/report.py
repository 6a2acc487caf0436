# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The state of the running lab as a person likes to read it, and as a program does. Everything is asked for now."""

from __future__ import annotations

import json
from typing import Any

from labctl import disks, faults, namespaces, network, production
from labctl.podman import containers
from labctl.process import each
from labctl.state import State
from labctl.topology import CONTROLLER_NAMESPACE, SERVICE_ADDRESS, SERVICE_NAME, Host, Topology


def gather(current: State, topology: Topology) -> dict[str, Any]:
    power = containers()
    isolated, service = network.isolated(), network.service_host()

    def look(host: Host) -> dict[str, Any]:
        runs = power.get(host.container) == "running"
        return {
            "name": host.name,
            "role": host.role,
            "site": host.site.name,
            "address": host.address,
            "power": "on" if runs else "off",
            "ssh": runs and namespaces.ssh_banner(CONTROLLER_NAMESPACE, host.address),
            "health": _health(host) if runs and host.is_dsm else "",
            "service": service == host.address,
            "isolated": host.address in isolated,
            "unplugged": not network.plugged(host),
            "disk_full": disks.is_full(host),
            "faults": sorted(faults.active(host)),
        }

    bridges = {site.bridge: site.name for site in topology.sites}
    cuts = sorted({tuple(sorted((bridges[one], bridges[other]))) for one, other in network.cuts()})
    return {
        "profile": current.profile,
        "phase": current.phase,
        "purpose": current.purpose,
        "checkout": current.checkout,
        "began": current.began,
        "hosts": each(topology.hosts, look),
        "cuts": [list(pair) for pair in cuts],
        "packets_dropped": network.dropped(),
    }


def _health(host: Host) -> str:
    """The best of the three health answers, or what the host says instead; '-' where no API listens."""
    for question in ("all", "quorum", "plain"):
        code = production.health(host, question, timeout=2.0)
        if code is None:
            return "-"
        if code == 204:
            return question
    return f"HTTP {code}"


def as_json(current: State, topology: Topology) -> str:
    return json.dumps(gather(current, topology), indent=2)


def as_table(current: State, topology: Topology) -> str:
    found = gather(current, topology)
    rows = [("HOST", "ROLE", "SITE", "ADDRESS", "POWER", "SSH", "HEALTH", "NOTES")]
    for host in found["hosts"]:
        notes = [word for word in ("service", "isolated", "unplugged", "disk_full") if host[word]]
        notes += [f"fault:{name}" for name in host["faults"]]
        ssh = "yes" if host["ssh"] else "no"
        rows.append(
            (
                host["name"],
                host["role"],
                host["site"],
                host["address"],
                host["power"],
                ssh,
                host["health"],
                " ".join(notes),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    cuts = ", ".join(f"{one} | {other}" for one, other in found["cuts"]) or "none"
    head = (
        f"Lab {found['profile']} is {found['phase']} since {found['began']} ({found['purpose']}), "
        f"from {found['checkout']}"
    )
    foot = f"Cuts: {cuts}. Service {SERVICE_NAME} {SERVICE_ADDRESS}. Packets dropped: {found['packets_dropped']}."
    return "\n".join([head, "", *lines, "", foot])
