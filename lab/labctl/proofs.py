# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Proofs about hosts, network and life cycle. A proof returns its evidence, or raises LabError with what it saw."""

from __future__ import annotations

import contextlib
import ipaddress
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labctl import clock, disks, hosts, namespaces, network, paths, production, site, state
from labctl.errors import LabError
from labctl.podman import containers, podman
from labctl.process import await_condition, run
from labctl.topology import (
    CONTROLLER_NAMESPACE,
    NETWORK,
    OUTSIDE_NAMESPACE,
    SERVICE_ADDRESS,
    WAN_NAMESPACE,
    Host,
    Topology,
)

_COMMAND = [str(site.COMMAND)]


@dataclass(frozen=True)
class Proof:
    name: str
    promise: str
    body: Callable[[], str]


def topology() -> Topology:
    return site.topology_of(state.running())


def demand(good: bool, otherwise: str) -> None:
    if not good:
        raise LabError(otherwise)


# ---- traces on the machine


_LAB_MOUNTS = ("/netns", "kmsops-lab", "/overlay/")


def traces() -> dict[str, set[str]]:
    """Everything that a lab could leave behind, as this machine has it now."""
    mounts = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    loops = run(["losetup", "--noheadings", "--raw", "--output", "BACK-FILE"], check=False).stdout.splitlines()
    return {
        "container": set(containers()),
        "namespace": {path.name for path in paths.namespace("").glob("*")},
        "route": set(run(["ip", "route", "show", "table", "all"]).stdout.splitlines()),
        "link": {line.split(":")[1] for line in run(["ip", "-oneline", "link"]).stdout.splitlines()},
        "table of nft": set(run(["nft", "list", "tables"]).stdout.splitlines()),
        "mount": {
            line.split()[1] for line in mounts if "/netns" in line or "kmsops-lab" in line or "/overlay/" in line
        },
        "loop device": {line for line in loops if "kmsops-lab" in line},
        "process": _processes(),
        "file": {
            str(path) for path in (paths.STATE, site.INVENTORY_COPY, Path("/var/tmp/kmsops-lab")) if path.exists()
        },
    }


def _processes() -> set[str]:
    """The processes that hold a container of the lab, or that stand in one of its networks."""
    found = set()
    inside = {str(number) for number in namespaces.processes(network.inodes())}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if place.name in inside or ("conmon" in words and f" -n {network.PREFIX_OF_NAMES}" in words):
                found.add(f"{place.name} {words[:60]}")
    return found


def left_over(before: dict[str, set[str]], networks: set[int]) -> list[str]:
    """What is there and was not before; ``networks`` are the identities of networks that are gone by now."""
    now = traces()
    now["process"] |= {str(number) for number in namespaces.processes(networks)}
    return sorted(f"{kind} {item}" for kind, items in now.items() for item in items - before[kind])


def call(*argv: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
    return run([*_COMMAND, *argv], check=False, timeout=timeout)


# ---- proofs that start and stop the lab themselves


def down_leaves_nothing() -> str:
    before = traces()
    demand(call("up", "--bare", "--purpose", "selftest").returncode == 0, "up failed")
    networks = network.inodes()
    there = sum(len(items) for items in traces().values()) - sum(len(items) for items in before.values())
    demand(call("down").returncode == 0, "down failed")
    rest = left_over(before, networks)
    demand(not rest, f"left behind: {'; '.join(rest)}")
    again = call("down")
    demand(again.returncode == 0, f"a second down failed: {again.stderr}")
    return f"{there} traces while it ran, none after down; a second down is quiet"


def second_up_is_refused() -> str:
    demand(call("up", "--bare", "--purpose", "selftest").returncode == 0, "up failed")
    try:
        before = containers()
        again = call("up", "--bare")
        demand(again.returncode == 3 and "already" in again.stderr, f"exit code {again.returncode}: {again.stderr}")
        demand(containers() == before, "the second up changed the containers")
        return "exit code 3, nothing touched"
    finally:
        call("down")


def not_running_is_told() -> str:
    answers = [call(*argv) for argv in (("status",), ("exec", "true"), ("ssh", "dr1", "true"), ("inventory",))]
    demand(all(answer.returncode == 4 for answer in answers), f"exit codes {[a.returncode for a in answers]}")
    demand(all("lab/lab up" in answer.stderr for answer in answers), "the remedy is not told")
    return "exit code 4 and the remedy, for status, exec, ssh and inventory"


def killed_up_is_repaired() -> str:
    points: list[tuple[str, Callable[[], bool]]] = [
        ("its state is written", lambda: state.file().exists()),
        ("namespaces are being made", lambda: len(network.present()) > 2),
        ("a disk is mounted", lambda: bool(disks.mounted())),
        ("containers are being made", lambda: len(containers()) > 1),
        ("hosts boot", lambda: len(containers()) >= 8),
        ("production is being formed", lambda: (found := state.read()) is not None and found.phase == "forming"),
    ]
    before = traces()
    for where, reached in points:
        flags = [] if where == "production is being formed" else ["--bare"]
        child = subprocess.Popen(
            [*_COMMAND, "up", *flags], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            await_condition(f"`up` to come to where {where}", reached, timeout=60, interval=0.01)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        networks = network.inodes()
        after = call("up", "--bare", "--purpose", "selftest")
        demand(after.returncode == 0, f"killed where {where}: the next up failed: {after.stderr}")
        silent = [host.name for host in topology().hosts if not _reaches(CONTROLLER_NAMESPACE, host.address)]
        demand(not silent, f"killed where {where}: after the next up {', '.join(silent)} do not answer")
        networks |= network.inodes()
        demand(call("down").returncode == 0, f"killed where {where}: down failed")
        rest = left_over(before, networks)
        demand(not rest, f"killed where {where}: left behind: {'; '.join(rest)}")
    return f"killed at {len(points)} points, the next up made a whole lab each time"


# ---- proofs about hosts and network


def _reaches(name: str, address: str, port: int = 22) -> bool:
    return namespaces.answers(name, address, port, timeout=1.0)


@contextmanager
def _listening() -> Iterator[list[str]]:
    """Collects the packets from or to a lab address that any interface of the machine outside the lab sees."""
    seen: list[str] = []
    lab = ipaddress.ip_network(NETWORK)
    done = threading.Event()
    sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(0x0003))

    def listen() -> None:
        while not done.is_set():
            if not select.select([sniffer], [], [], 0.1)[0]:
                continue
            packet, origin = sniffer.recvfrom(65535)
            if origin[1] == 0x0800 and len(packet) >= 20:
                ends = [ipaddress.ip_address(part) for part in struct.unpack("!4s4s", packet[12:20])]
                if any(end in lab for end in ends):
                    seen.append(f"{ends[0]} > {ends[1]} on {origin[0]}")
            elif origin[1] == 0x0806 and len(packet) >= 28 and ipaddress.ip_address(packet[24:28]) in lab:
                seen.append(f"ARP for {ipaddress.ip_address(packet[24:28])} on {origin[0]}")

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()
        sniffer.close()


def nothing_leaves() -> str:
    site_now = topology()
    addresses = [host.address for host in site_now.hosts] + [SERVICE_ADDRESS, "10.66.200.200"]
    outside = _outside_addresses()
    with _listening() as seen:
        answered = [a for a in addresses for port in (22, 443) if _reaches(OUTSIDE_NAMESPACE, a, port)]
        escaped = [
            f"{name} reaches {address}"
            for name in (CONTROLLER_NAMESPACE, WAN_NAMESPACE, site_now.members[0].namespace, site_now.store.namespace)
            for address in outside
            if _reaches(name, address, 53)
        ]
    demand(not answered, f"from outside these answer: {', '.join(answered)}")
    demand(not escaped, "; ".join(escaped))
    demand(not seen, f"packets outside the lab: {'; '.join(sorted(set(seen))[:5])}")
    demand(f"blackhole {NETWORK}" in run(["ip", "route"]).stdout, "the blackhole route is missing")
    ways = _ways_out()
    demand(not ways, f"links that lead out of the lab: {', '.join(ways)}")
    return f"{len(addresses)} addresses silent from outside, {len(outside)} of outside unreachable, no packet seen"


def _outside_addresses() -> list[str]:
    """Addresses of this machine itself and one of the documentation range, where nothing of the lab may come to."""
    words = run(["ip", "-4", "-oneline", "addr", "show", "scope", "global"]).stdout.split("\n")
    own = [line.split()[3].partition("/")[0] for line in words if line]
    return [*own, "198.51.100.1"]


def _ways_out() -> list[str]:
    """Links in the lab's namespaces that are neither loopback, bridge nor cable, and cables with one end outside."""
    ways = []
    for name in network.present():
        if name == OUTSIDE_NAMESPACE:
            continue
        for line in run(namespaces.command(name, "ip", "-oneline", "link")).stdout.splitlines():
            link = line.split(": ")[1].partition("@")[0]
            if link not in ("lo", "eth0") and not link.startswith(("br-", "v-")):
                ways.append(f"{name}/{link}")
    machine = run(["ip", "-oneline", "link", "show", "type", "veth"]).stdout
    return ways + [f"outside/{line.split(': ')[1]}" for line in machine.splitlines() if "link-netns lab-" in line]


def cuts_really_cut() -> str:
    here = topology()
    one, two = here.members[0], here.members[1]
    third = here.members[2]
    demand(
        _reaches(one.namespace, two.address) and _reaches(two.namespace, one.address), "not reachable before the cut"
    )
    network.cut(one.site, two.site)
    demand(not _reaches(one.namespace, two.address), f"{one.name} still reaches {two.name}")
    demand(not _reaches(two.namespace, one.address), f"{two.name} still reaches {one.name}")
    demand(_reaches(one.namespace, third.address), f"{one.name} lost {third.name} too")
    demand(_reaches(one.namespace, here.landing.address), f"{one.name} lost its own site too")
    network.heal(one.site, two.site)
    demand(_reaches(one.namespace, two.address), "not reachable after healing")
    return "both ways, that pair only, healed at once"


def isolation_of_a_host() -> str:
    here = topology()
    host, neighbour, far = here.by_role("dr")[0], here.by_role("spare")[0], here.members[0]
    network.lead_service_to(here, host)
    network.isolate(host, True)
    blocked = {
        f"{far.name} reaches it": _reaches(far.namespace, host.address),
        f"it reaches {far.name}": _reaches(host.namespace, far.address),
        f"{far.name} reaches it by the service address": _reaches(far.namespace, SERVICE_ADDRESS),
    }
    wrong = [what for what, so in blocked.items() if so]
    demand(not wrong, "; ".join(wrong))
    demand(_reaches(neighbour.namespace, host.address), f"{neighbour.name} of its own site lost it")
    demand(_reaches(CONTROLLER_NAMESPACE, host.address), "the controller lost it")
    network.isolate(host, False)
    demand(_reaches(far.namespace, host.address), "not reachable after the isolation ended")
    demand(_reaches(far.namespace, SERVICE_ADDRESS), "the service address is still blocked")
    network.lead_service_to(here, None)
    demand(not network.isolated(), f"still isolated: {network.isolated()}")
    return "blocked both ways and by the service address; its site and the controller kept it"


def service_address_leads() -> str:
    here = topology()
    probe = here.by_role("spare")[0].namespace
    demand(not _reaches(probe, SERVICE_ADDRESS), "it answers before it leads anywhere")
    for host in (here.members[0], here.by_role("dr")[0]):
        network.lead_service_to(here, host)
        demand(_reaches(probe, SERVICE_ADDRESS), f"it does not lead to {host.name}")
        demand(network.service_host() == host.address, f"the route does not lead to {host.name}")
    network.lead_service_to(here, None)
    demand(not _reaches(probe, SERVICE_ADDRESS), "it still answers after `none`")
    return "nowhere, a member, the DR node, nowhere"


def power_and_cable() -> str:
    host = topology().by_role("spare")[0]
    root = f"/proc/{podman('inspect', '--format', '{{.State.Pid}}', host.container).stdout.strip()}/root"
    Path(root, "var/lib/lab-selftest").write_text("kept", encoding="ascii")
    for action in ("off", "cut"):
        hosts.power(host, action)
        demand(not _reaches(CONTROLLER_NAMESPACE, host.address), f"it still answers after `power {action}`")
        hosts.power(host, "on")
        demand(
            _reaches(CONTROLLER_NAMESPACE, host.address), f"it does not answer after `power {action}` and `power on`"
        )
    kept = podman("exec", host.container, "cat", "/var/lib/lab-selftest").stdout
    demand(kept == "kept", "its disk was lost")
    network.plug(host, False)
    demand(not _reaches(CONTROLLER_NAMESPACE, host.address), "it still answers without a cable")
    network.plug(host, True)
    await_condition("the host with its cable", lambda: _reaches(CONTROLLER_NAMESPACE, host.address), timeout=10)
    return "off, power cut and unplugged are silent; the disk stays"


def reboot_comes_back() -> str:
    host = topology().by_role("spare")[0]
    begun = _started(host)
    podman("exec", "--detach", host.container, "systemctl", "reboot")
    await_condition("a reboot", lambda: _started(host) != begun, timeout=30)
    hosts.await_ssh((host,), timeout=30)
    return "reboots by itself and answers again"


def _started(host: Host) -> str:
    return podman("inspect", "--format", "{{.State.StartedAt}}", host.container).stdout.strip()


def disk_fills() -> str:
    host = topology().store
    target = f"{disks.directory_of(host)}/selftest"
    write = ["podman", "exec", host.container, "dd", "if=/dev/zero", f"of={target}", "bs=1M", "count=2", "status=none"]
    disks.fill(host, leave=0)
    full = run(write, check=False)
    demand(full.returncode != 0 and "No space left" in full.stderr, f"it was not full: {full.stderr}")
    disks.empty(host)
    run(write)
    podman("exec", host.container, "rm", target)
    return "no space left on device, and free again"


def clock_is_moved() -> str:
    host = topology().by_role("spare")[0]

    def ahead() -> float:
        answer = call("ssh", host.name, "sudo", "date", "+%s")
        demand(answer.returncode == 0, f"no answer: {answer.stderr}")
        return float(answer.stdout) - time.time()

    clock.shift(host, "+1d")
    moved = ahead()
    units = podman("exec", host.container, "systemctl", "show", "--property=Environment", *clock.UNITS).stdout
    clock.reset(host)
    back = ahead()
    demand(abs(moved - 86400) < 60, f"moved by {moved:.0f} s instead of a day")
    demand(units.count("FAKETIME=+1d") == len(clock.UNITS), f"not every service has the other clock: {units}")
    demand(abs(back) < 60, f"after the reset it is still {back:.0f} s off")
    return "one day ahead for sudo commands and the stand-in's services, and back"


def keys_are_pinned() -> str:
    good = call("ssh", "dr1", "hostname")
    demand(good.stdout.strip() == "dr1", f"no log-in: {good.stderr}")
    keys = [line.split()[2] for line in (paths.STATE / "known_hosts").read_text(encoding="ascii").splitlines()]
    demand(len(set(keys)) == len(keys) == len(topology().hosts), "hosts share a host key")
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in paths.STATE.iterdir() if path.name in _SECRET}
    demand(set(modes.values()) == {"0o600"} and len(modes) == len(_SECRET), f"modes {modes}")
    return f"{len(keys)} hosts, as many host keys; secrets are root's alone"


_SECRET = ("secrets.yml", "id_ed25519", "pull_ed25519", "delivery_ed25519")


def hardware_is_replaced() -> str:
    host = topology().by_role("spare")[1]
    before = hosts.host_key(host)
    serial = podman("exec", host.container, "dmidecode", "-s", "system-serial-number").stdout.strip()
    site.replace_hardware(host)
    after = podman("exec", host.container, "dmidecode", "-s", "system-serial-number").stdout.strip()
    demand(serial == host.serial(0) and after == host.serial(1), f"serial numbers {serial} and {after}")
    demand(hosts.host_key(host) != before, "the host key is the old one")
    answer = call("ssh", host.name, "hostname")
    demand(answer.stdout.strip() == host.name, f"no log-in to the new machine: {answer.stderr}")
    return f"{serial} became {after}, with a host key of its own"


def stray_commands_are_refused() -> str:
    wrong = [("cut", "dc1", "dc1"), ("cut", "dc1", "nowhere"), ("power", "off", "nobody"), ("service-address", "store")]
    codes = [call(*argv).returncode for argv in wrong]
    demand(codes == [2] * len(wrong), f"exit codes {codes}")
    demand(not network.cuts() and network.service_host() is None, "something was changed")
    return "exit code 2, nothing changed"


def health_is_silent_without_cluster() -> str:
    codes = {host.name: production.health(host, "plain") for host in topology().dsm_hosts}
    demand(set(codes.values()) == {None}, f"answers {codes}")
    return "no API listens on a host that was set up and no more"


def nobody_waits_for_time() -> str:
    begin = time.monotonic()
    call("status")
    took = time.monotonic() - begin
    demand(took < 5, f"status took {took:.1f} s")
    return f"status answers in {took:.1f} s"


WITHOUT_LAB = (
    Proof("not-running", "without a lab every command says so", not_running_is_told),
    Proof("down", "down leaves nothing", down_leaves_nothing),
    Proof("second-up", "a second lab is refused", second_up_is_refused),
    Proof("killed-up", "killed in up, the next up repairs", killed_up_is_repaired),
)
WITH_HOSTS = (
    Proof("containment", "nothing of the lab is reachable from outside and nothing leaves", nothing_leaves),
    Proof("keys", "every host has a key of its own that the controller knows", keys_are_pinned),
    Proof("wrong-use", "commands that cannot be are refused", stray_commands_are_refused),
    Proof("status", "the table is quick", nobody_waits_for_time),
    Proof("no-cluster", "hosts without a cluster serve nothing", health_is_silent_without_cluster),
    Proof("cut", "cuts really cut", cuts_really_cut),
    Proof("isolate-host", "a host is blocked from other sites", isolation_of_a_host),
    Proof("service-address", "the service address leads where it is told", service_address_leads),
    Proof("power", "power and cable", power_and_cable),
    Proof("reboot", "a host can be rebooted from inside", reboot_comes_back),
    Proof("disk-full", "a full disk is full", disk_fills),
    Proof("clock", "a host's clock can be wrong", clock_is_moved),
    Proof("hardware", "replaced hardware is another machine", hardware_is_replaced),
)
