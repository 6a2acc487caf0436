# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole site: up and down. Whatever is found half-made is removed first, so `up` and `down` can be repeated."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from labctl import (
    cache,
    cassandra,
    disks,
    hosts,
    image,
    inventory,
    kube,
    namespaces,
    network,
    paths,
    production,
    state,
    tls,
)
from labctl.errors import AlreadyRunning, LabError
from labctl.podman import containers
from labctl.process import await_condition, each
from labctl.progress import Progress
from labctl.state import Finding, State
from labctl.topology import CONTROLLER_NAMESPACE, Host, Topology, load

COMMAND = paths.LAB / "lab"
INVENTORY_COPY = paths.CHECKOUT / "build" / "lab" / "inventory.yml"


def build(progress: Progress) -> hosts.Caches:
    """Fetches and builds what is not in the cache yet."""
    with cache.building():
        # Compiling Kubernetes takes longest, and leaves room for what mostly waits for the network and one core.
        with ThreadPoolExecutor(max_workers=1) as pool:
            compiled = pool.submit(kube.build, progress)
            made = hosts.Caches(image.build(progress), cassandra.build(progress), compiled.result())
        for kind, key in (("base", image.base_key()), ("cassandra", cassandra.key()), ("kube", kube.key())):
            cache.forget_older(kind, key)
    progress.say("everything the lab is made of is in the cache")
    return made


def topology_of(current: State) -> Topology:
    return load(Path(current.checkout) / "lab" / "topology", current.profile)


def remains() -> list[str]:
    """What of a lab is on this machine."""
    return [*containers(), *(f"namespace {name}" for name in network.present()), *disks.mounted()]


def find(current: State | None) -> Finding:
    alive = current is not None and state.owner_alive(current)
    return state.judge(current, remains=bool(remains()), owner_alive=alive, boot_id=state.boot_id())


def up(profile: str, *, bare: bool, purpose: str, progress: Progress) -> State:
    topology = load(paths.LAB / "topology", profile)
    with state.only_one():
        current = state.read()
        finding = find(current)
        if current is not None and finding in (Finding.RUNNING, Finding.BUSY):
            raise AlreadyRunning(
                f"a lab is already {current.phase}: profile {current.profile}, purpose {current.purpose}, "
                f"started {current.began} from {current.checkout}",
                "use it, or take it down with lab/lab down",
            )
        caches = build(progress)
        if finding is Finding.BROKEN:
            progress.say("a lab was left half-made; removing it")
            _remove()
        network.refuse_conflict()
        current = replace(state.new(profile, purpose), image=caches.image, replaced={})
        state.save(current)
        progress.say(f"profile {profile}: network of {len(topology.sites)} sites, {len(topology.hosts)} hosts")
        network.blackhole(True)
        network.create(topology)
        _prepare(topology)
        progress.say("booting the hosts")
        each([host for host in topology.hosts if disks.directory_of(host)], disks.create)
        each(topology.hosts, lambda host: hosts.start(host, caches))
        hosts.await_ssh(topology.hosts)
        progress.say("every host answers by SSH")
        if bare:
            current = current.at(state.BARE)
        else:
            current = current.at("forming")
            state.save(current)
            production.form(topology, progress)
            current = current.at(state.READY)
        state.save(current)
        return current


def down(progress: Progress) -> None:
    with state.only_one():
        current = state.read()
        finding = find(current)
        if finding is Finding.BUSY and current is not None:
            raise AlreadyRunning(
                f"process {current.owner_pid} is at work on the lab", "stop it first, then lab/lab down"
            )
        if finding is Finding.NOTHING:
            network.blackhole(False)
            progress.say("there is no lab; nothing to do")
            return
        if current is not None:
            me = os.getpid()
            state.save(replace(current, phase="removing", owner_pid=me, owner_start=state.process_start(me)))
        _remove()
        network.blackhole(False)
        left = remains()
        if left:
            raise LabError(f"could not remove everything: {', '.join(left)}", "lab/lab down again")
        progress.say("the lab is down, nothing of it is left")


def _remove() -> None:
    networks = network.inodes()
    hosts.remove_all()
    await_condition("the end of every process on the hosts", lambda: _all_ended(networks), timeout=30)
    network.remove()
    disks.remove()
    shutil.rmtree(paths.STATE, ignore_errors=True)
    INVENTORY_COPY.unlink(missing_ok=True)


def _all_ended(networks: set[int]) -> bool:
    left = namespaces.processes(networks)
    if left:
        raise LabError(f"still there: {', '.join(map(str, left))}", "end them, then lab/lab down again")
    return True


def _prepare(topology: Topology) -> None:
    """Writes everything that hosts and controller need before the first boot: keys, secrets, certificates, names."""
    place = paths.STATE
    authority = tls.Authority("Lab of kmsops.fortanix_dsm (stand-in)")
    (place / "tls").mkdir()
    authority.write(place / "tls" / "ca.crt")
    password = secrets.token_urlsafe(18)
    hosts.write(place / "secrets.yml", json.dumps({"dsm_scp_password": password}, indent=2) + "\n", 0o600)
    delivery = hosts.new_key(place / "delivery_ed25519", "dsm delivers")
    material = {
        "login_key": hosts.new_key(place / "id_ed25519", "lab controller"),
        "pull_key": hosts.new_key(place / "pull_ed25519", "store pulls"),
        "delivery_public_key": delivery,
        "delivery_key": (place / "delivery_ed25519").read_text(encoding="ascii"),
        "landing_password_hash": hosts.password_hash(password),
    }
    for host in topology.hosts:
        hosts.prepare(topology, host, authority, material)
    hosts.write(place / "hosts", hosts.hosts_file(topology))
    _introduce(topology, {})


def _introduce(topology: Topology, replaced: Mapping[str, int]) -> None:
    """Writes down who the hosts are: node.json, known_hosts and the inventory. Written in place, they are mounted."""
    for host in topology.dsm_hosts:
        hosts.write_node(host, topology.profile, replaced.get(host.name, 0), topology.version)
    keys = {host.name: hosts.host_key(host) for host in topology.hosts}
    lines = [f"{host.name},{host.address} {keys[host.name]}" for host in topology.hosts]
    hosts.write(paths.STATE / "known_hosts", "\n".join(lines) + "\n")
    text = inventory.render(
        topology,
        state=paths.STATE,
        command=COMMAND,
        host_keys=keys,
        serials={host.name: host.serial(replaced.get(host.name, 0)) for host in topology.hosts},
    )
    hosts.write(paths.STATE / "inventory.yml", text, 0o600)
    hosts.write(INVENTORY_COPY, text, 0o600)


def replace_hardware(host: Host) -> None:
    """Puts another machine in the place of a host: an empty disk, another serial number, platform and host key."""
    current = state.running()
    topology = topology_of(current)
    replaced = {**(current.replaced or {}), host.name: (current.replaced or {}).get(host.name, 0) + 1}
    caches = build(Progress(quiet=True))
    hosts.remove(host)
    hosts.new_host_key(host)
    _introduce(topology, replaced)
    state.save(replace(current, replaced=replaced))
    hosts.start(host, caches)
    hosts.await_ssh((host,))


def require_namespace() -> None:
    if not namespaces.exists(CONTROLLER_NAMESPACE):
        raise LabError("the lab's network is gone", "lab/lab down, then lab/lab up")
