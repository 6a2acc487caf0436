# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in's ``sdkms-cluster``: create, join, remove, reset, with the flags the vendor's articles show.

What it prints is its own, differs between its "releases" and may be German; nobody should read it but people. Every
command may be killed anywhere: ``join`` and ``remove`` go on where they were when run again, ``create`` wants a
``reset --delete-data`` first, ``reset`` starts over. ``reset`` does not ask whether this host is still a member.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import hashlib
import ipaddress
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from standin import agent, cassandra, faults, kube, membership, node

WIDE_DASHES = "‐‑‒–—―−"  # noqa: RUF001 - the very characters that articles put in place of ASCII dashes
TOKEN = re.compile(r"^[a-z0-9]{6}\.[a-z0-9]{16}$")
LABEL_WINDOW_S = 10.0
STEPS = {
    "create": ("certificates", "control-plane", "database", "master-key", "backend", "done"),
    "join": ("token", "enrolled", "node-object", "control-plane", "database", "replication", "master-key", "done"),
    "remove": ("checked", "replication", "database", "etcd", "objects", "done"),
    "reset": ("stopped", "wiped", "done"),
}

# English of 5.4, English of 5.6, German
MESSAGES = {
    "banner": (
        "stand-in for DSM {version}: {command}",
        "[stand-in {version}] {command}",
        "Ersatz (stand-in) {version}: {command}",
    ),
    "certificates": ("making certificates", "issuing cluster PKI", "Zertifikate werden erzeugt"),
    "control-plane": ("starting the control plane", "control plane: starting", "Steuerungsebene startet"),
    "database": ("starting the database in {dc}", "database: starting ({dc})", "Datenbank startet in {dc}"),
    "master-key": ("sealing the master key", "sealing CMK", "Hauptschluessel wird versiegelt"),
    "created": ("Cluster created on {name}.", "OK: cluster is up on {name}", "Cluster auf {name} angelegt."),
    "checking-token": (
        "checking the token with {peer}",
        "enrolment: contacting {peer}",
        "Token wird bei {peer} geprueft",
    ),
    "pending": (
        "waiting for the approval of {name} in the trust centre",
        "enrolment: {name} awaits approval",
        "warte auf Freigabe von {name}",
    ),
    "joined": ("Node {name} joined the cluster.", "OK: {name} is a member", "Knoten {name} ist beigetreten."),
    "draining": ("{name} hands over its data", "{name}: draining", "{name} gibt seine Daten ab"),
    "dead": (
        "{name} does not answer; removing it from the ring without it",
        "{name}: unreachable, removing",
        "{name} antwortet nicht und wird entfernt",
    ),
    "removed": ("Node {name} removed.", "OK: {name} is out", "Knoten {name} entfernt."),
    "reset": (
        "All DSM data on this machine deleted.",
        "OK: local state wiped",
        "Alle Daten dieses Rechners geloescht.",
    ),
}


class Command:
    """One run of one command: its voice and its steps."""

    def __init__(self, name: str, cfg: node.NodeConfig) -> None:
        self.name, self.cfg = name, cfg
        self._steps = faults.Steps(name, STEPS[name])
        self._column = 2 if faults.speaks_german(name) else int(not cfg.version.startswith("5.4"))
        self.say("banner", version=cfg.version, command=name)

    def say(self, message: str, **values: str) -> None:
        """Tell the person how far it is."""
        print(MESSAGES[message][self._column].format(**values), flush=True)

    def at(self, step: str) -> None:
        """Come to a step (faults bite there)."""
        self._steps.at(step)


# -- create -----------------------------------------------------------------------------------------------------------
def create(cfg: node.NodeConfig, self_address: str, config_path: str) -> int:
    """Make a new cluster of one member on this machine."""
    command = Command("create", cfg)
    check_self(cfg, self_address)
    config_text = read_config(Path(config_path))
    state = node.read_state()
    if node.is_member():
        raise node.StandinError("stand-in: this machine is a member of a cluster already")
    if state:
        raise node.StandinError(
            f"stand-in: leftovers of an earlier cluster are here (phase {state.get('phase')}); "
            "sdkms-cluster reset --delete-data first"
        )
    node.write_state({"phase": "creating", "name": cfg.name, "version": cfg.version})
    born = (faults.active("birth-label") or {}).get("datacenter")
    datacenter = str(born or cassandra.DEFAULT_DATACENTER)

    command.at("certificates")
    command.say("certificates")
    kube.make_certificates(cfg)
    node.write_state(
        {
            "fingerprint": kube.cluster_name(),
            "datacenter": datacenter,
            "bootstrap": False,
            "database_joined": True,
            "etcd_initial_state": "new",
        }
    )
    cassandra.remember_members([{"name": cfg.name, "address": cfg.address}])

    command.at("control-plane")
    command.say("control-plane")
    node.start_units("standin-etcd", "standin-apiserver")
    command.at("database")
    command.say("database", dc=datacenter)
    node.start_units("standin-cassandra")
    cluster = kube.local(cfg)
    await_apiserver(cfg)
    populate(cluster, cfg, str(born) if born else None, config_text)
    node.start_units("standin-controllers", "standin-execd", "standin-membership", "standin-agent")
    cassandra.wait_serving(cfg, 180)

    command.at("master-key")
    command.say("master-key")
    from standin import db, sealing

    store = kube.retry(lambda: db.connect(cfg.address, 10.0), 60, "a connection to the database")
    try:
        store.create_schema({datacenter: 1})
        blob = sealing.seal(sealing.new_cmk(), 1, node.platform_secret(cfg), cfg.version)
        store.put_sealed_copy(cfg.name, 1, blob)
    finally:
        store.close()
    mark_data_held(cluster, cfg)

    command.at("backend")
    finish(cluster, cfg, "create")
    command.at("done")
    command.say("created", name=cfg.name)
    return 0


def check_self(cfg: node.NodeConfig, self_address: str) -> None:
    """Insist on an address with mask that this machine has."""
    if "/" not in self_address:
        raise node.StandinError("stand-in: --self wants ADDRESS/MASK")
    try:
        interface = ipaddress.ip_interface(self_address)
    except ValueError as error:
        raise node.StandinError(f"stand-in: --self: {error}") from error
    if str(interface.ip) != cfg.address:
        raise node.StandinError(f"stand-in: this machine has no address {interface.ip}")


def read_config(path: Path) -> str:
    """Return the text of the deployment settings; raises StandinError when they are none."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise node.StandinError(f"stand-in: cannot use {path}: {error}") from error
    if document is not None and not isinstance(document, dict):
        raise node.StandinError(f"stand-in: {path} is not a mapping")
    return text


def await_apiserver(cfg: node.NodeConfig) -> None:
    """Wait until this member's apiserver is ready."""
    node.wait_until(lambda: kube.apiserver_ready(cfg.address), 90, "the start of the apiserver", 0.2)


def populate(cluster: kube.Cluster, cfg: node.NodeConfig, datacenter: str | None, config_text: str) -> None:
    """Make the objects of a new cluster: this node, its pods, the first token, the configuration."""
    uid = kube.retry(cluster.uid, 30, "the first namespace")
    node.write_state({"uid": uid, "joined_at": node.utc_now()})
    cluster.create("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", kube.admin_binding())
    cluster.create("/api/v1/nodes", kube.node_object(cfg, datacenter))
    now = dt.datetime.now(dt.timezone.utc)
    cluster.create("/api/v1/namespaces/kube-system/secrets", kube.token_secret(kube.new_token(), now))
    cluster.publish_config(config_text)
    kube.retry(
        lambda: cluster.create(kube.STATEFUL_SET_PATH.rpartition("/")[0], kube.stateful_set(1)), 20, "the database set"
    )
    make_pods(cluster, cfg)


def make_pods(cluster: kube.Cluster, cfg: node.NodeConfig) -> None:
    """Make the database pod and the backend pod of this host."""
    node.write_state({"ordinal": kube.claim_ordinal(cluster, cfg)})
    backend = kube.pod_object(cfg, f"sdkms-{cfg.name}", "sdkms", kube.sdkms_image(cfg))
    cluster.create(kube.POD_PATH, backend)


def mark_data_held(cluster: kube.Cluster, cfg: node.NodeConfig) -> None:
    """Note on this host's database pod that it holds its share of the data."""
    annotation = {"metadata": {"annotations": {"stand-in/holds-data": node.utc_now()}}}
    cluster.merge(f"{kube.POD_PATH}/cassandra-{node.read_state()['ordinal']}", annotation)


def finish(cluster: kube.Cluster, cfg: node.NodeConfig, command: str) -> None:
    """Start the backend, wait until it listens, and make this host a member that comes back after a reboot."""
    node.start_units("standin-api")
    node.wait_until(lambda: node.port_open(cfg.address, 443), 60, "the start of the backend", 0.2)
    kube.set_replicas(cluster)
    node.write_state({"phase": "member", "database_joined": True, "member_since": node.utc_now()})
    node.write_file(node.MARKER, f"{command}\n".encode())
    with contextlib.suppress(kube.ApiError, OSError):  # the agent does it within seconds anyway
        agent.remember(cluster)


# -- join -------------------------------------------------------------------------------------------------------------
def join(cfg: node.NodeConfig, peer: str, token: str) -> int:
    """Make this machine a member of the peer's cluster."""
    command = Command("join", cfg)
    if node.is_member():
        raise node.StandinError("stand-in: this machine is a member of a cluster already")
    if not TOKEN.match(token):
        raise node.StandinError("stand-in: that is not a token")
    if peer in (cfg.address, cfg.name):
        raise node.StandinError("stand-in: a machine cannot join itself")
    command.at("token")
    command.say("checking-token", peer=peer)
    ca_pem = membership.discover(peer, token, secrets.token_hex(16))
    membership.check_token(peer, token, ca_pem)
    welcome = membership.enrol(cfg, peer, token, ca_pem)
    if welcome is None:
        command.say("pending", name=cfg.name)
        node.write_state({"phase": "awaiting_approval", "name": cfg.name, "version": cfg.version})
        while welcome is None:
            time.sleep(1.0)
            welcome = membership.enrol(cfg, peer, token, ca_pem)

    command.at("enrolled")
    fingerprint = hashlib.sha256(kube.certificate_der(ca_pem)).hexdigest()[:12]
    resumed = node.read_state().get("fingerprint") == f"dsm-{fingerprint}"
    kube.install_shared_pki(welcome["pki"])
    kube.make_member_certificate(cfg)
    node.write_state(
        {
            "phase": "joining",
            "name": cfg.name,
            "version": cfg.version,
            "uid": welcome["uid"],
            "fingerprint": kube.cluster_name(),
            "bootstrap": faults.active("no-bootstrap") is None,
        }
    )
    members = [member for member in welcome["members"] if member["name"] != cfg.name]
    cassandra.remember_members(members)
    peers = kube.at(peer)
    born = (faults.active("birth-label") or {}).get("datacenter")
    peers.create("/api/v1/nodes", kube.node_object(cfg, str(born) if born else None))
    appeared = time.monotonic()
    command.at("node-object")
    make_pods(peers, cfg)

    with ThreadPoolExecutor(max_workers=2) as pool:
        plane = pool.submit(join_control_plane, command, peers, welcome, resumed)
        base = pool.submit(join_database, command, peers, appeared)
        plane.result()
        base.result()
    cluster = kube.local(cfg)

    command.at("replication")
    with cluster.lock("database", cfg.name):
        copies = agent.set_replication(cluster, cfg, joining=cfg.name)
        if sum(copies.values()) > 1:
            cassandra.rebuild()
        mark_data_held(cluster, cfg)

    command.at("master-key")
    command.say("master-key")
    from standin import db, sealing

    cmk, generation = membership.receive_cmk(cfg, peer)
    blob = sealing.seal(cmk, generation, node.platform_secret(cfg), cfg.version)
    store = db.connect(cfg.address, 15.0)
    try:
        store.put_sealed_copy(cfg.name, generation, blob)
    finally:
        store.close()
    finish(cluster, cfg, "join")
    command.at("done")
    command.say("joined", name=cfg.name)
    return 0


def join_control_plane(command: Command, peers: kube.Cluster, welcome: dict[str, Any], resumed: bool) -> None:
    """Become a voting member of etcd and start this member's apiserver and agents."""
    cfg = command.cfg
    kube.make_certificates(cfg)
    command.at("control-plane")
    command.say("control-plane")
    etcd = kube.Etcd(welcome["etcd_endpoints"])
    with peers.lock("etcd", cfg.name):
        members = etcd.members()
        own = kube.etcd_member_of(members, cfg.address)
        if own is not None and not own.get("name") and not (resumed and (node.ETCD_DIR / "member").exists()):
            etcd.remove(own["ID"])
            own = None
        if own is None:
            members = etcd.add_learner(f"https://{cfg.address}:2380")
            own = kube.etcd_member_of(members, cfg.address)
        if own is None:
            raise node.StandinError("stand-in: etcd did not take this member")
        node.write_state(
            {
                "etcd_initial_cluster": kube.initial_cluster(members, cfg.name, cfg.address),
                "etcd_initial_state": "existing",
            }
        )
        kube.remember_etcd_endpoints(members)
        node.start_units("standin-etcd")
        own_id = own["ID"]
        node.wait_until(lambda: etcd.promote(own_id), 60, "the promotion of this member in etcd", 0.2)
    node.start_units("standin-apiserver")
    await_apiserver(cfg)
    node.write_state({"joined_at": node.utc_now()})
    node.start_units("standin-controllers", "standin-execd", "standin-membership", "standin-agent")


def join_database(command: Command, peers: kube.Cluster, appeared: float) -> None:
    """Wait for the label, then start the database in the data centre it names and wait until it is in the ring."""
    cfg = command.cfg
    state = node.read_state()
    datacenter = state.get("datacenter")
    if datacenter is None:
        datacenter = await_label(peers, cfg, appeared)
        options = cassandra.jvm_extra_opts(peers.get(kube.STATEFUL_SET_PATH))
        node.write_state({"datacenter": datacenter, "jvm_extra_opts": options})
    command.at("database")
    command.say("database", dc=str(datacenter))
    node.start_units("standin-cassandra")
    cassandra.wait_serving(cfg, 240)


def await_label(peers: kube.Cluster, cfg: node.NodeConfig, appeared: float) -> str:
    """Return the label ``datacenter`` of this node as soon as it has one, the default's name when it gets none.

    Where no member has a label nobody will give this one a label either, so only the knob makes it wait.
    """
    knob = faults.active("label-window")
    window = faults.number(knob or {}, "seconds", LABEL_WINDOW_S)
    while True:
        with contextlib.suppress(OSError, kube.ApiError):
            labels = peers.datacenters()
            if labels.get(cfg.name):
                return str(labels[cfg.name])
            if knob is None and labels and not any(labels.values()):
                return cassandra.DEFAULT_DATACENTER
        if time.monotonic() - appeared >= window:
            return cassandra.DEFAULT_DATACENTER
        time.sleep(0.2)


# -- remove -----------------------------------------------------------------------------------------------------------
def remove(cfg: node.NodeConfig, name: str) -> int:
    """Take another member out of this cluster."""
    command = Command("remove", cfg)
    if not node.is_member():
        raise node.StandinError("stand-in: this machine is not a member of a cluster")
    if name == cfg.name:
        raise node.StandinError("stand-in: run this on another member")
    cluster = kube.local(cfg)
    address = address_of(cluster, name)
    if address is None:
        raise node.StandinError(f"stand-in: this cluster has no node {name}")
    command.at("checked")
    with cluster.lock("membership", cfg.name):
        with cluster.lock("database", cfg.name):
            command.at("replication")
            agent.set_replication(cluster, cfg, leaving=name)
            command.at("database")
            alive = leave_ring(command, name, address)
        if faults.active("remove-purges-sealed-row") is not None:
            purge_sealed_copy(cfg, name)
        command.at("etcd")
        etcd = kube.Etcd([kube.etcd_url(cfg.address), *kube.known_etcd_endpoints(cfg)[1:]])
        member = kube.etcd_member_of(etcd.members(), address)
        if member is not None:
            etcd.remove(member["ID"])
        command.at("objects")
        kube.retry(lambda: delete_objects(cluster, name), 30, "the removal of the node's objects")
    if alive:
        with contextlib.suppress(kube.ApiError, OSError, node.StandinError):
            membership.client(address).request("POST", "/v1/leave", {})
            node.wait_until(lambda: not still_serves(address), 60, f"the end of the services of {name}", 0.2)
    with contextlib.suppress(kube.ApiError, OSError):
        agent.remember(cluster)
    command.at("done")
    command.say("removed", name=name)
    return 0


def still_serves(address: str) -> bool:
    """Tell whether any service of a member still answers at an address."""
    return any(node.port_open(address, port, 2.0) for port in (443, 6443, membership.PORT, 7000))


def address_of(cluster: kube.Cluster, name: str) -> str | None:
    """Return the address of a node, None when this cluster knows no such node."""
    found = cluster.get(f"/api/v1/nodes/{name}")
    for entry in (found or {}).get("status", {}).get("addresses", ()):
        if entry["type"] == "InternalIP":
            return str(entry["address"])
    return None


def leave_ring(command: Command, name: str, address: str) -> bool:
    """Take a host out of the database's ring, with its help when it answers; returns whether it answered."""
    from standin import db

    cfg = command.cfg
    store = db.connect(cfg.address, 15.0)
    try:
        host_id = next((member.host_id for member in store.ring() if member.address == address), None)
    finally:
        store.close()
    alive = node.port_open(address, membership.PORT, 3.0)
    if host_id is None:
        return alive
    if alive and node.port_open(address, 7000, 3.0):
        command.say("draining", name=name)
        try:
            membership.client(address, timeout=600.0).request("POST", "/v1/decommission", {})
        except (kube.ApiError, OSError) as error:
            raise node.StandinError(f"stand-in: {name} could not leave the ring: {error}") from error
        return True
    command.say("dead", name=name)
    deadline = time.monotonic() + 120
    while True:
        try:
            cassandra.nodetool("removenode", host_id)
        except node.StandinError as error:
            if "not found" in str(error):
                return alive
            if time.monotonic() >= deadline:
                raise
            time.sleep(2.0)
        else:
            return alive


def purge_sealed_copy(cfg: node.NodeConfig, name: str) -> None:
    """Delete the sealed copies of a removed node (nobody outside the vendor knows whether the real product does)."""
    from standin import db

    store = db.connect(cfg.address, 15.0)
    try:
        store.delete_sealed_copies(name)
    finally:
        store.close()


def delete_objects(cluster: kube.Cluster, name: str) -> None:
    """Delete the pods, the lease and the Node of a removed host, the Node last."""
    for pod in cluster.pods():
        if pod["spec"].get("nodeName") == name:
            cluster.delete(f"{kube.POD_PATH}/{pod['metadata']['name']}")
    cluster.delete(f"{agent.LEASES}/{name}")
    kube.set_replicas(cluster)
    cluster.delete(f"/api/v1/nodes/{name}")


# -- reset ------------------------------------------------------------------------------------------------------------
def reset(cfg: node.NodeConfig) -> int:
    """Stop everything and wipe this machine's part of whatever cluster; asks nobody."""
    command = Command("reset", cfg)
    with contextlib.suppress(FileNotFoundError):
        node.MARKER.unlink()
    stop_joins()
    node.kill_units()
    cassandra.wait_gone(60)
    command.at("stopped")
    for directory in (node.CASSANDRA_DIR, node.ETCD_DIR, node.KUBERNETES_DIR):
        wipe(directory)
    command.at("wiped")
    wipe(node.STATE_DIR)
    command.at("done")
    command.say("reset")
    return 0


def stop_joins() -> None:
    """End other runs of this program on this machine: a join that goes on would undo the reset."""
    own = {os.getpid(), os.getppid()}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in own:
            continue
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"standin.cluster_cli" in words:
                os.kill(int(entry.name), 9)


def wipe(directory: Path) -> None:
    """Empty a directory (it may be a mount point)."""
    if directory.is_dir():
        for entry in directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()


# -- arguments --------------------------------------------------------------------------------------------------------
def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(
        prog="sdkms-cluster", description="cluster administration of the stand-in for DSM", allow_abbrev=False
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="create|join|remove|reset")
    one = commands.add_parser("create", allow_abbrev=False)
    one.add_argument("--self", dest="self_address", required=True, metavar="IP/MASK")
    one.add_argument("--config", required=True, metavar="FILE")
    one = commands.add_parser("join", allow_abbrev=False)
    one.add_argument("--peer", required=True, metavar="ADDRESS")
    one.add_argument("--token", required=True, metavar="TOKEN")
    one = commands.add_parser("remove", allow_abbrev=False)
    one.add_argument("--node", required=True, metavar="NAME")
    one = commands.add_parser("reset", allow_abbrev=False)
    one.add_argument("--delete-data", action="store_true", required=True)
    return top


def refuse_wide_dashes(arguments: Sequence[str]) -> None:
    """Refuse what was copied from an article whose dashes are typographic, as the vendor's program does."""
    for argument in arguments:
        if any(dash in argument.partition("=")[0] for dash in WIDE_DASHES):
            raise SystemExit(f"sdkms-cluster (stand-in): unrecognized argument: {argument}")


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit code."""
    refuse_wide_dashes(arguments)
    options = parser().parse_args(arguments)
    if os.geteuid() != 0:
        raise node.StandinError("stand-in: must be run as root")
    cfg = node.load()
    node.note_command(options.command)
    if options.command == "create":
        return create(cfg, options.self_address, options.config)
    if options.command == "join":
        return join(cfg, options.peer, options.token)
    if options.command == "remove":
        return remove(cfg, options.node)
    return reset(cfg)


def main(arguments: Sequence[str]) -> int:
    """Run one command with the faults that are set around it."""

    def body() -> int:
        try:
            return run(arguments)
        except (node.StandinError, kube.ApiError, OSError, subprocess.SubprocessError) as error:
            text = str(error)
            print(text if text.startswith("stand-in") else f"stand-in: {error}", file=sys.stderr)
            return 1

    command = arguments[0] if arguments and arguments[0] in STEPS else "sdkms-cluster"
    return faults.around(command, body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
