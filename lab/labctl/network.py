# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's network: one namespace a host, one that routes between the sites, and none that leads outside.

All state is in the kernel: cuts and isolation are elements of nft sets in lab-wan, the service address is a
route there.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from labctl import namespaces, paths
from labctl.errors import LabError
from labctl.process import each, run
from labctl.topology import (
    CONTROLLER_ADDRESS,
    CONTROLLER_NAMESPACE,
    CONTROLLER_SITE,
    NETWORK,
    OUTSIDE_NAMESPACE,
    PREFIX,
    SERVICE_ADDRESS,
    WAN_NAMESPACE,
    Host,
    Site,
    Topology,
    mac_of,
)

PREFIX_OF_NAMES = "lab-"
_ROUTE_OWNER = "166"  # the routing protocol number that marks the blackhole route as this lab's

_RULES = f"""
table inet lab {{
    set cut {{
        type ifname . ifname
    }}
    set isolated {{
        type ipv4_addr
    }}
    chain forward {{
        type filter hook forward priority 0; policy accept;
        iifname . oifname @cut counter drop
        ip saddr @isolated ip daddr != {CONTROLLER_ADDRESS} counter drop
        ip daddr @isolated ip saddr != {CONTROLLER_ADDRESS} counter drop
    }}
}}
"""


def in_wan(*argv: str, stdin: str | None = None, check: bool = True) -> str:
    return run(namespaces.command(WAN_NAMESPACE, *argv), stdin=stdin, check=check).stdout


# ---- making and removing


def refuse_conflict() -> None:
    """Raises LabError if this machine itself uses addresses of the lab's range."""
    lab = ipaddress.ip_network(NETWORK)
    for route in json.loads(run(["ip", "-json", "route", "show", "table", "all"]).stdout or "[]"):
        target = str(route.get("dst", "default"))
        if target == "default" or ":" in target or str(route.get("protocol")) == _ROUTE_OWNER:
            continue
        if ipaddress.ip_network(target, strict=False).overlaps(lab):
            raise LabError(
                f"this machine has a route of its own to {target}, which overlaps the lab's {NETWORK}",
                "run the lab on a machine that does not use that network",
            )


def blackhole(present: bool) -> None:
    """Makes sure that nothing for a lab address can leave this machine, or takes that away again."""
    there = f"blackhole {NETWORK}" in run(["ip", "route", "show", "proto", _ROUTE_OWNER]).stdout
    if present and not there:
        run(["ip", "route", "add", "blackhole", NETWORK, "proto", _ROUTE_OWNER])
    elif there and not present:
        run(["ip", "route", "del", "blackhole", NETWORK, "proto", _ROUTE_OWNER])


def create(topology: Topology) -> None:
    """Makes the namespaces, bridges, cables and rules; nothing of the lab may be there."""
    names = [WAN_NAMESPACE, CONTROLLER_NAMESPACE, *(host.namespace for host in topology.hosts)]
    namespaces.remember_outside()
    run(["ip", "-batch", "-"], stdin="".join(f"netns add {name}\n" for name in names))
    _settings(WAN_NAMESPACE, ["net/ipv4/ip_forward=1", "net/ipv4/conf/all/rp_filter=0", *_bridged_is_not_routed()])
    lines = ["link set lo up"]
    for site in topology.sites:
        lines += [
            f"link add {site.bridge} address {site.mac} type bridge",
            f"addr add {site.gateway}/{PREFIX} dev {site.bridge}",
            f"link set {site.bridge} up",
        ]
    cables = [(host.link, host.namespace, host.site, host.address) for host in topology.hosts]
    cables.append(("v-ctl", CONTROLLER_NAMESPACE, topology.site(CONTROLLER_SITE), CONTROLLER_ADDRESS))
    for link, name, site, address in cables:
        lines += [
            f"link add {link} type veth peer name eth0 address {mac_of(address)} netns {name}",
            f"link set {link} master {site.bridge}",
            f"link set {link} up",
        ]
    in_wan("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
    each(cables, lambda cable: _plug_end(cable[1], cable[2], cable[3]))
    in_wan("nft", "-f", "-", stdin=_RULES)


def _bridged_is_not_routed() -> list[str]:
    """Where the kernel shows bridged packets to the rules for routed ones, hosts of one site would be cut off too."""
    return ["net/bridge/bridge-nf-call-iptables=0"] if Path("/proc/sys/net/bridge").is_dir() else []


def _plug_end(name: str, site: Site, address: str) -> None:
    _settings(name, ["net/ipv4/ip_nonlocal_bind=1"])
    lines = ["link set lo up", f"addr add {address}/{PREFIX} dev eth0", "link set eth0 up"]
    lines.append(f"route add default via {site.gateway}")
    run(namespaces.command(name, "ip", "-batch", "-"), stdin="\n".join(lines) + "\n")


def _settings(name: str, values: Iterable[str]) -> None:
    """Sets kernel switches of a namespace; IPv6 is off everywhere, the lab has no use for it."""
    pairs = ["net/ipv6/conf/all/disable_ipv6=1", *values]
    run(namespaces.command(name, "sysctl", "-q", "-w", *(pair.replace("/", ".") for pair in pairs)))


def present() -> list[str]:
    """The namespaces of a lab that are there."""
    directory = paths.namespace("")
    if not directory.is_dir():
        return []
    return sorted(path.name for path in directory.iterdir() if path.name.startswith(PREFIX_OF_NAMES))


def inodes() -> set[int]:
    """The identities of the hosts' networks, by which the kernel knows who stands in them."""
    others = (OUTSIDE_NAMESPACE, CONTROLLER_NAMESPACE)
    return {paths.namespace(name).stat().st_ino for name in present() if name not in others}


def remove() -> None:
    """Removes every namespace of the lab; cables first, because a namespace is taken down some time after its name."""
    if namespaces.exists(WAN_NAMESPACE):
        listed = run(namespaces.command(WAN_NAMESPACE, "ip", "-json", "link"), check=False).stdout
        links = [row["ifname"] for row in json.loads(listed or "[]") if row["ifname"].startswith("v-")]
        in_wan("ip", "-force", "-batch", "-", stdin="".join(f"link del {link}\n" for link in links), check=False)
    for name in present():
        run(["ip", "netns", "del", name], check=False)
    place = paths.namespace("")
    if place.is_dir() and not any(place.iterdir()):
        # iproute2 makes and mounts this with the first name on a machine, and never takes it away.
        run(["umount", str(place)], check=False)
        place.rmdir()


# ---- breaking and healing


def cut(one: Site, other: Site) -> None:
    in_wan("nft", "add", "element", "inet", "lab", "cut", _pair(one, other))


def heal(one: Site, other: Site) -> None:
    if cut_between(one, other):
        in_wan("nft", "delete", "element", "inet", "lab", "cut", _pair(one, other))


def _pair(one: Site, other: Site) -> str:
    return f"{{ {one.bridge} . {other.bridge}, {other.bridge} . {one.bridge} }}"


def _elements(name: str) -> list[Any]:
    listed = json.loads(in_wan("nft", "-j", "list", "set", "inet", "lab", name))
    return next((row["set"].get("elem", []) for row in listed["nftables"] if "set" in row), [])


def cuts() -> set[tuple[str, str]]:
    """The pairs of bridges between which nothing passes."""
    return {(pair["concat"][0], pair["concat"][1]) for pair in _elements("cut")}


def cut_between(one: Site, other: Site) -> bool:
    return (one.bridge, other.bridge) in cuts()


def isolated() -> set[str]:
    """The addresses that only their own site and the controller can reach."""
    return {str(address) for address in _elements("isolated")}


def isolate(host: Host, yes: bool) -> None:
    """Blocks a host from all other sites, both ways. A service address that leads to it is blocked with it."""
    addresses = [host.address]
    if service_host() == host.address:
        addresses.append(SERVICE_ADDRESS)
    now = isolated()
    todo = [address for address in addresses if (address in now) != yes]
    if todo:
        in_wan("nft", "add" if yes else "delete", "element", "inet", "lab", "isolated", f"{{ {', '.join(todo)} }}")


def plugged(host: Host) -> bool:
    return json.loads(in_wan("ip", "-json", "link", "show", "dev", host.link))[0]["flags"].count("UP") > 0


def plug(host: Host, yes: bool) -> None:
    in_wan("ip", "link", "set", host.link, "up" if yes else "down")


# ---- the service address


def service_host() -> str | None:
    """The address of the host that the service address leads to, or None."""
    routes = json.loads(in_wan("ip", "-json", "route", "show", SERVICE_ADDRESS) or "[]")
    return str(routes[0]["gateway"]) if routes else None


def lead_service_to(topology: Topology, target: Host | None) -> None:
    """Leads the service address to one DSM host, or to none. Only that host carries it: all others can probe it."""
    for host in topology.dsm_hosts:
        wanted = target is not None and host.name == target.name
        shown = run(namespaces.command(host.namespace, "ip", "-json", "addr", "show", "dev", "lo")).stdout
        carried = any(row["local"] == SERVICE_ADDRESS for row in json.loads(shown)[0]["addr_info"])
        if wanted != carried:
            verb = "add" if wanted else "del"
            run(namespaces.command(host.namespace, "ip", "addr", verb, f"{SERVICE_ADDRESS}/32", "dev", "lo"))
    if target is None:
        if service_host() is not None:
            in_wan("ip", "route", "del", SERVICE_ADDRESS)
    else:
        in_wan("ip", "route", "replace", SERVICE_ADDRESS, "via", target.address)
    blocked = isolated()
    wanted_block = target is not None and target.address in blocked
    if wanted_block != (SERVICE_ADDRESS in blocked):
        verb = "add" if wanted_block else "delete"
        in_wan("nft", verb, "element", "inet", "lab", "isolated", f"{{ {SERVICE_ADDRESS} }}")


def dropped() -> int:
    """How many packets cuts and isolation have thrown away since the lab was made."""
    listed = json.loads(in_wan("nft", "-j", "list", "chain", "inet", "lab", "forward"))
    rules = [row["rule"]["expr"] for row in listed["nftables"] if "rule" in row]
    return sum(part["counter"]["packets"] for expr in rules for part in expr if "counter" in part)
