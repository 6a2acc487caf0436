# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The hosts: what each is given before its first boot, and its power."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from labctl import disks, inventory, namespaces, paths, tls
from labctl.errors import LabError
from labctl.podman import LABEL, containers, in_container, podman
from labctl.process import await_condition, each, run
from labctl.topology import CONTROLLER_NAMESPACE, PREFIX, SERVICE_ADDRESS, SERVICE_NAME, VERSIONS, Host, Topology

STANDIN_CODE = paths.LAB / "standin" / "standin"


@dataclass(frozen=True)
class Caches:
    """What is mounted into a DSM host."""

    image: str
    cassandra: Path
    kube: Path


def directory(host: Host) -> Path:
    return paths.STATE / "nodes" / host.name


def faults_directory(host: Host) -> Path:
    return directory(host) / "faults"


# ---- keys and files


def new_key(path: Path, comment: str) -> str:
    """Writes an SSH key pair (the private half mode 0600) and returns the public line."""
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    line = f"{public} {comment}"
    write(path, private.decode(), 0o600)
    write(path.with_name(path.name + ".pub"), line + "\n", 0o644)
    return line


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as handle:
        handle.write(text)
    path.chmod(mode)


def hosts_file(topology: Topology) -> str:
    lines = ["127.0.0.1 localhost", f"{SERVICE_ADDRESS} {SERVICE_NAME}"]
    return "\n".join([*lines, *(f"{host.address} {host.name}" for host in topology.hosts)]) + "\n"


def config_yaml(host: Host) -> str:
    """The deployment settings that this DSM host was installed with; no backup is configured in the beginning."""
    return f"""\
# Deployment settings of {host.name} (a stand-in, not DSM). Keys that nobody outside the vendor knows are left alone by
# everything that edits this file.
cluster:
  service_name: {SERVICE_NAME}   # what clients use
  service_address: {SERVICE_ADDRESS}
  ntp: [10.66.9.5]
attestation:
  mode: offlineWithTrustedNodeIdentity
"""


def prepare(topology: Topology, host: Host, authority: tls.Authority, material: Mapping[str, Any]) -> None:
    """Lays ready everything that the host takes over at its first boot."""
    place = directory(host)
    standin = place / "etc-standin"
    seed = standin / "seed"
    shutil.rmtree(place, ignore_errors=True)
    seed.mkdir(parents=True)
    seed.chmod(0o700)
    faults_directory(host).mkdir()
    files = seed / "files"
    new_host_key(host)
    write(files / "home/administrator/.ssh/authorized_keys", f"{material['login_key']}\n", 0o600)
    (files / "home/administrator/.ssh").chmod(0o700)
    if host.is_dsm:
        (standin / "tls").mkdir()
        authority.write(standin / "tls" / "ca.crt")
        names, addresses = [host.name, SERVICE_NAME], [host.address, SERVICE_ADDRESS]
        authority.issue(host.name, names, addresses, standin / "tls" / "api.crt", standin / "tls" / "api.key")
        write(files / inventory.CONFIG_PATH.lstrip("/"), config_yaml(host), 0o600)
        write(files / "etc/dsm/delivery_ed25519", material["delivery_key"], 0o600)
    if host.role == "landing":
        write(seed / "setup", _landing_setup(material), 0o700)
    if host.role == "store":
        # The store is a landing host too: the one that is left when production and its own are gone.
        directory_setup = f"install -d -o administrator -g administrator -m 0750 {inventory.STORE_PATH}\n"
        write(seed / "setup", _landing_setup(material) + directory_setup, 0o700)


def _host_key_file(host: Host) -> Path:
    return directory(host) / "etc-standin/seed/files/etc/ssh/ssh_host_ed25519_key"


def new_host_key(host: Host) -> None:
    """Makes the SSH host key that the host takes over at its first boot."""
    new_key(_host_key_file(host), f"root@{host.name}")


def host_key(host: Host) -> str:
    """The public SSH host key of a host, as known_hosts has it: type and key."""
    text = _host_key_file(host).with_suffix(".pub").read_text(encoding="ascii")
    return " ".join(text.split()[:2])


def write_node(host: Host, profile: str, replaced: int, version: str) -> None:
    """Writes node.json of a DSM host in place (it is mounted)."""
    node = {
        "name": host.name,
        "address": host.address,
        "prefix": PREFIX,
        "site": host.site.name,
        "serial": host.serial(replaced),
        "version": version,
        "versions": list(VERSIONS),
        "profile": profile,
    }
    write(directory(host) / "etc-standin" / "node.json", json.dumps(node, indent=2) + "\n")


def _landing_setup(material: Mapping[str, Any]) -> str:
    user, path = inventory.LANDING_USER, inventory.LANDING_PATH
    return f"""\
#!/bin/bash
set -euo pipefail
useradd --create-home --shell /bin/bash --password '{material["landing_password_hash"]}' {user}
install -d -o {user} -g {user} -m 0700 /home/{user}/.ssh
install -d -o {user} -g {user} -m 0750 {path}
cat >/home/{user}/.ssh/authorized_keys <<'KEYS'
{material["pull_key"]}
{material["delivery_public_key"]}
KEYS
chown {user}: /home/{user}/.ssh/authorized_keys
chmod 0600 /home/{user}/.ssh/authorized_keys
"""


# ---- life


def start(host: Host, caches: Caches) -> None:
    """Makes the container of a host and boots it."""
    mounts = [
        (paths.STATE / "hosts", "/etc/hosts", "ro"),
        (paths.STATE / "known_hosts", "/etc/ssh/ssh_known_hosts", "ro"),
        (directory(host) / "etc-standin", "/etc/standin", "ro"),
    ]
    if host.is_dsm:
        mounts += [
            (caches.cassandra, "/opt/cassandra", "ro"),
            (caches.kube, "/opt/kube", "ro"),
            (STANDIN_CODE, "/opt/standin/standin", "ro"),
            (faults_directory(host), "/var/lib/standin-faults", "rw"),
        ]
    own_disk = disks.directory_of(host)
    if own_disk is not None:
        mounts.append((disks.mount_point(host), own_disk, "rw"))
    volumes = [part for source, target, mode in mounts for part in ("--volume", f"{source}:{target}:{mode}")]
    podman(
        "run", "--detach", "--pull=never", "--name", host.container, "--hostname", host.name, "--label", LABEL,
        "--network", f"ns:{paths.namespace(host.namespace)}", "--no-hosts", "--systemd=always", "--restart=always",
        *volumes, caches.image, "/sbin/init",
        timeout=120,
    )  # fmt: skip


def await_ssh(hosts: tuple[Host, ...], *, timeout: float = 60.0) -> None:
    """Returns when the SSH server of every host greets the controller."""

    def one(host: Host) -> None:
        await_condition(
            f"SSH of {host.name} ({host.address})",
            lambda: namespaces.ssh_banner(CONTROLLER_NAMESPACE, host.address),
            timeout=timeout,
        )

    each(hosts, one)


def remove(host: Host) -> None:
    podman("rm", "--force", "--time", "0", "--volumes", host.container)


def remove_all() -> None:
    """Removes every container that carries the lab's label, running or not."""
    names = list(containers())
    if names:
        podman("rm", "--force", "--time", "0", "--volumes", *names, timeout=120)


def power(host: Host, action: str) -> None:
    """on, off (in order) or cut (as when the cable is pulled); asking for what already is changes nothing."""
    there = containers().get(host.container)
    if there is None:
        raise LabError(f"{host.name} has no container", "lab/lab down, then lab/lab up")
    runs = there == "running"
    if action == "on" and not runs:
        podman("start", host.container)
        await_ssh((host,))
    elif action == "off" and runs:
        podman("stop", "--time", "30", host.container, timeout=60)
    elif action == "cut" and runs:
        podman("stop", "--time", "0", host.container)


def password_hash(password: str) -> str:
    return run(["openssl", "passwd", "-6", "-stdin"], stdin=password).stdout.strip()


def epoch_reset(host: Host) -> None:
    """Gives the host another platform identity, as a reset of the owner epoch does; its data stays where it is."""
    script = "rm -rf /var/lib/standin-platform/* && systemctl try-restart standin-api standin-membership"
    in_container(host.container, ["/bin/sh", "-c", script])
