# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which hosts there are, where they stand and what their links look like: one profile is one file in lab/topology."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from labctl.errors import UsageError

NETWORK = "10.66.0.0/16"
PREFIX = 24
CONTROLLER_SITE = "oor"
CONTROLLER_ADDRESS = "10.66.9.5"
SERVICE_ADDRESS = "10.66.100.1"
SERVICE_NAME = "dsm.lab.test"
WAN_NAMESPACE = "lab-wan"
CONTROLLER_NAMESPACE = "lab-ctl"
OUTSIDE_NAMESPACE = "lab-outside"  # a name for the network that the lab was started from

GROUPS = {
    "member": "dsm_nodes",
    "dr": "dsm_dr_nodes",
    "spare": "dsm_spare_nodes",
    "rollback": "dsm_rollback_nodes",
    "landing": "dsm_backup_sources",
    "store": "dsm_store",
}
DSM_ROLES = frozenset({"member", "dr", "spare", "rollback"})
VERSIONS = ("5.4.2031-standin", "5.6.2919-standin")
RESTORES = ("script", "steps")
DELIVERIES = ("password", "key")
_NAME = re.compile(r"[a-z][a-z0-9-]{0,11}[a-z0-9]")


@dataclass(frozen=True)
class Site:
    name: str
    number: int

    @property
    def bridge(self) -> str:
        return f"br-{self.name}"

    @property
    def gateway(self) -> str:
        return f"10.66.{self.number}.1"

    @property
    def subnet(self) -> str:
        return f"10.66.{self.number}.0/{PREFIX}"

    @property
    def mac(self) -> str:
        """A bridge without an address of its own takes its lowest port's, which changes as hosts come and go."""
        return f"02:66:0a:42:{self.number:02x}:01"


@dataclass(frozen=True)
class Host:
    name: str
    role: str
    site: Site
    address: str

    @property
    def namespace(self) -> str:
        return f"lab-{self.name}"

    @property
    def container(self) -> str:
        return f"lab-{self.name}"

    @property
    def link(self) -> str:
        """The end of the host's cable inside lab-wan."""
        return f"v-{self.name}"

    @property
    def mac(self) -> str:
        return mac_of(self.address)

    @property
    def group(self) -> str:
        return GROUPS[self.role]

    @property
    def is_dsm(self) -> bool:
        return self.role in DSM_ROLES

    def serial(self, replaced: int = 0) -> str:
        """The serial number of the machine; every hardware replacement (counted by ``replaced``) brings a new one."""
        return f"STANDIN-{self.name.upper()}-{replaced + 1:03d}"


@dataclass(frozen=True)
class Topology:
    profile: str
    description: str
    sites: tuple[Site, ...]
    hosts: tuple[Host, ...]
    version: str = VERSIONS[0]
    restore: str = RESTORES[0]
    delivery: str = DELIVERIES[0]

    @property
    def layout(self) -> str:
        """How a delivery looks, as the product calls it: releases from 5.6 make a directory with a part per node."""
        return "single" if self.version.startswith("5.4.") else "per_node"

    def site(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise UsageError(f"there is no site {name}", f"take one of {', '.join(s.name for s in self.sites)}")

    def host(self, name: str) -> Host:
        for host in self.hosts:
            if host.name == name:
                return host
        raise UsageError(f"there is no host {name}", f"take one of {', '.join(h.name for h in self.hosts)}")

    def by_role(self, role: str) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host.role == role)

    @property
    def members(self) -> tuple[Host, ...]:
        return self.by_role("member")

    @property
    def dsm_hosts(self) -> tuple[Host, ...]:
        return tuple(host for host in self.hosts if host.is_dsm)

    @property
    def landing(self) -> Host:
        return self.by_role("landing")[0]

    @property
    def store(self) -> Host:
        return self.by_role("store")[0]


def mac_of(address: str) -> str:
    return "02:66:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def profiles(directory: Path) -> list[str]:
    return sorted(path.stem for path in directory.glob("*.yml"))


def load(directory: Path, profile: str) -> Topology:
    path = directory / f"{profile}.yml"
    if profile not in profiles(directory):
        raise UsageError(f"there is no profile {profile}", f"take one of {', '.join(profiles(directory))}")
    return parse(profile, yaml.safe_load(path.read_text(encoding="utf-8")))


def parse(profile: str, data: Mapping[str, Any]) -> Topology:
    """Makes a topology from a profile's content. Raises UsageError that names all its mistakes at once."""
    sites = tuple(Site(str(name), int(number)) for name, number in data["sites"].items())
    by_name = {site.name: site for site in sites}
    wrong: list[str] = []
    hosts: list[Host] = []
    if CONTROLLER_SITE not in by_name:
        wrong.append(f"site {CONTROLLER_SITE}, where the controller stands, is missing")
    if len({site.number for site in sites}) != len(sites) or any(not 1 <= s.number <= 99 for s in sites):
        wrong.append("site numbers are to be different and between 1 and 99")
    for entry in data["hosts"]:
        name, role, address = str(entry["name"]), str(entry["role"]), str(entry["address"])
        if not _NAME.fullmatch(name):
            wrong.append(f"host name {name!r} is not 2 to 13 of a-z, 0-9 and '-', beginning with a letter")
        if role not in GROUPS:
            wrong.append(f"{name}: role {role} is none of {', '.join(GROUPS)}")
        site = by_name.get(str(entry["site"]))
        if site is None:
            wrong.append(f"{name}: there is no site {entry['site']}")
            continue
        if ipaddress.ip_address(address) not in ipaddress.ip_network(site.subnet):
            wrong.append(f"{name}: {address} is not in {site.subnet} of site {site.name}")
        hosts.append(Host(name, role, site, address))
    reserved = {CONTROLLER_ADDRESS, SERVICE_ADDRESS, *(site.gateway for site in sites)}
    for what, values in (("name", [h.name for h in hosts]), ("address", [h.address for h in hosts])):
        wrong += [f"{what} {value} is given twice" for value in sorted({v for v in values if values.count(v) > 1})]
    wrong += [f"{h.name}: address {h.address} is the lab's own" for h in hosts if h.address in reserved]
    roles = [host.role for host in hosts]
    wrong += [
        f"there must be exactly one host of role {role}" for role in ("landing", "store") if roles.count(role) != 1
    ]
    if "member" not in roles:
        wrong.append("there is no member")
    ways = {"version": VERSIONS, "restore": RESTORES, "delivery": DELIVERIES}
    chosen = {name: str(data.get(name, known[0])) for name, known in ways.items()}
    wrong += [f"{n}: {chosen[n]} is none of {', '.join(known)}" for n, known in ways.items() if chosen[n] not in known]
    if wrong:
        raise UsageError(f"profile {profile} is wrong: {'; '.join(wrong)}", f"correct lab/topology/{profile}.yml")
    return Topology(profile, str(data.get("description", "")), sites, tuple(hosts), **chosen)
