# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Forms the production cluster with an operator's commands: create, token, joins, and a wait until all is healthy.

Two things are unlike life, to be quick: a Node object is born with its label, and the joiners' databases, which have
nothing to take over yet, do not stream. Both are knobs of the stand-in, set for this time only.
"""

from __future__ import annotations

import http.client
import ssl

from labctl import faults, inventory, namespaces, network, paths
from labctl.errors import LabError
from labctl.podman import in_container
from labctl.process import await_condition, each
from labctl.progress import Progress
from labctl.topology import CONTROLLER_NAMESPACE, PREFIX, Host, Topology

KUBECONFIG = "/etc/kubernetes/admin.conf"
KUBE = ("env", f"KUBECONFIG={KUBECONFIG}")
BORN_LABELLED, NO_BOOTSTRAP = "birth-label", "no-bootstrap"


def form(topology: Topology, progress: Progress) -> None:
    first, *others = topology.members
    for host in topology.members:
        faults.set_fault([host], BORN_LABELLED, {"datacenter": host.site.name})
    faults.set_fault(others, NO_BOOTSTRAP, {})
    try:
        _form(topology, first, others, progress)
    finally:
        for knob in (BORN_LABELLED, NO_BOOTSTRAP):
            faults.clear(topology.members, knob)


def _form(topology: Topology, first: Host, others: list[Host], progress: Progress) -> None:
    progress.say(f"{first.name}: sdkms-cluster create")
    create = ["sdkms-cluster", "create", f"--self={first.address}/{PREFIX}", "--config", inventory.CONFIG_PATH]
    in_container(first.container, create, timeout=180)
    await_health([first], "plain", timeout=60)
    progress.say(f"{first.name} serves; {', '.join(host.name for host in others)}: sdkms-cluster join")
    each(others, lambda host: join(first, host, alone=False))
    network.lead_service_to(topology, first)
    await_health(topology.members, "all", timeout=120)
    progress.say("every member answers healthy for all")


def join(first: Host, host: Host, *, alone: bool = True) -> None:
    """Joins a host to the cluster of ``first`` with a token of its own; its Node is born labelled.

    ``alone`` is False where the caller sets that knob for several hosts.
    """
    token = in_container(first.container, [*KUBE, "kubeadm", "token", "create"]).stdout.strip()
    argv = ["sdkms-cluster", "join", f"--peer={first.address}", f"--token={token}"]
    if alone:
        faults.set_fault([host], BORN_LABELLED, {"datacenter": host.site.name})
    try:
        in_container(host.container, argv, timeout=300, secrets=[token])
    finally:
        if alone:
            faults.clear([host], BORN_LABELLED)


def standin(host: Host, module: str, *argv: str, timeout: float = 60.0) -> str:
    """Runs one of the stand-in's own commands on a host, as root, and returns what it prints."""
    command = ["env", "PYTHONPATH=/opt/standin", "python3", "-m", f"standin.{module}", *argv]
    return in_container(host.container, command, timeout=timeout).stdout


def tool(host: Host, name: str, *argv: str, timeout: float = 60.0) -> str:
    """Runs one of the lab's own commands around the stand-in on a host, as root, and returns what it prints."""
    return in_container(host.container, [f"{inventory.TOOLS}/{name}", *argv], timeout=timeout).stdout


def healthy_member(topology: Topology) -> Host:
    """A member that answers plain health. Raises LabError if there is none."""
    for host in topology.members:
        if health(host, "plain") == 204:
            return host
    raise LabError("no member of production is healthy", "look with lab/lab status")


def health(host: Host, question: str, *, timeout: float = 3.0) -> int | None:
    """The status code of a host's health answer (plain, quorum or all) as the controller gets it; None without one."""
    query = "" if question == "plain" else f"?consistency={question}"

    def ask() -> int | None:
        context = ssl.create_default_context(cafile=str(paths.STATE / "tls" / "ca.crt"))
        connection = http.client.HTTPSConnection(host.address, 443, timeout=timeout, context=context)
        try:
            connection.request("GET", f"/sys/v1/health{query}")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    return namespaces.inside(CONTROLLER_NAMESPACE, ask)


def await_health(members: tuple[Host, ...] | list[Host], question: str, *, timeout: float) -> None:
    """Returns when every one of ``members`` answers 204 to the health question."""

    def one(host: Host) -> None:
        seen: list[int | None] = [None]

        def healthy() -> bool:
            seen[0] = health(host, question)
            if seen[0] != 204:
                raise LabError(f"{host.name} answers {seen[0] or 'nothing'}")
            return True

        await_condition(f"health ({question}) of {host.name}", healthy, timeout=timeout, interval=0.3)

    each(members, one)
