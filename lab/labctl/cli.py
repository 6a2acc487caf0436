# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The words of `lab/lab`: reads the command line, refuses what cannot be, and hands over to the modules beside it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence

from labctl import (
    clock,
    disks,
    faults,
    hosts,
    namespaces,
    network,
    paths,
    prerequisites,
    production,
    report,
    selftest,
    site,
    state,
)
from labctl.errors import LabError, NotRoot, UsageError
from labctl.podman import environ
from labctl.progress import Progress
from labctl.topology import CONTROLLER_NAMESPACE, Host, Topology, profiles

Action = Callable[[argparse.Namespace], int]
_EXIT_CODES = (
    "exit codes: 0 done, 1 failed, 2 wrong use, 3 already running, 4 not running, 5 not root, 6 Python too old, "
    "7 something is missing on this machine"
)


def main(argv: Sequence[str]) -> int:
    arguments = read(argv)
    try:
        if os.geteuid() != 0:
            raise NotRoot("the lab makes containers and networks and needs root", f"sudo lab/lab {arguments.command}")
        namespaces.leave_lab()
        action: Action = arguments.action
        code = action(arguments)
        sys.stdout.flush()
        return code
    except LabError as error:
        sys.stderr.write(f"lab: {error}\n")
        return error.code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0  # whoever reads has seen enough
    except KeyboardInterrupt:
        sys.stderr.write("lab: stopped by you. What is half-made is removed by the next lab/lab up or lab/lab down.\n")
        return 130


def read(argv: Sequence[str]) -> argparse.Namespace:
    """The command line as its command understands it; ends the program with code 2 where that cannot be."""
    if argv[:1] == ["load"]:
        argv = ["load", "--", *argv[1:]]  # its options are its own
    reader = parser()
    arguments, more = reader.parse_known_args(argv)
    if more and arguments.command == "fault" and not any(word.startswith("-") for word in more):
        arguments.parameters += more  # argparse does not take up positional words again after an option
    elif more:
        reader.error(f"unrecognized arguments: {' '.join(more)}")
    return arguments


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        prog="lab/lab",
        description="A rehearsal site on one machine: real hosts, a real Cassandra ring, a real Kubernetes control "
        "plane and a stand-in for DSM. Nothing of it can be reached from outside this machine.",
        epilog=_EXIT_CODES,
    )
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, action: Action, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        one.set_defaults(action=action)
        return one

    add("prerequisites", _prerequisites, "install the Debian packages that are missing on this machine")
    add("build", _build, "fetch and build what the lab is made of, into the cache")
    up = add("up", _up, "start the lab: hosts, network and, unless --bare, the production cluster")
    up.add_argument("--profile", default="small", choices=profiles(paths.LAB / "topology"))
    up.add_argument("--bare", action="store_true", help="hosts only, no cluster")
    up.add_argument("--purpose", default="by hand", help="who uses it and for what; shown to whoever else wants a lab")
    add("down", _down, "stop the lab; leaves no process, container, namespace, route or mount behind")
    status = add("status", _status, "a table of hosts and what is broken at present")
    status.add_argument("--json", action="store_true", help="the same for programs")
    add("inventory", _inventory, "print the path of the running lab's inventory")

    run = add("exec", _exec, "run a command where lab addresses exist (the controller of the site)")
    run.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD")
    shell = add("shell", _shell, "a root shell on a host, or at the controller")
    shell.add_argument("host", nargs="?")
    ssh = add("ssh", _ssh, "log in to a host as its administrator, or run a command there")
    ssh.add_argument("host")
    ssh.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD")

    power = add("power", _power, "switch a host on, off (in order) or cut its power")
    power.add_argument("what", choices=["on", "off", "cut"])
    power.add_argument("host")
    for name, action, text in (
        ("cut", _cut, "let nothing pass between two sites, both ways"),
        ("heal", _heal, "let everything pass between two sites again; without sites: undo all cuts and isolation"),
    ):
        pair = add(name, action, text)
        pair.add_argument("sites", nargs=2 if name == "cut" else "*", metavar="SITE")
    add("isolate", _isolate, "cut a site off from all others").add_argument("site")
    add("unplug", _unplug, "pull a host's network cable").add_argument("host")
    add("plug", _plug, "put a host's network cable back").add_argument("host")
    text = "block a host from all other sites, both ways; its own site and the controller still reach it"
    add("isolate-host", _isolate_host, text).add_argument("host")
    add("unisolate-host", _unisolate_host, "end the isolation of a host").add_argument("host")
    text = "lead the service address to a DSM host, or to none"
    add("service-address", _service_address, text).add_argument("host")

    fault = add("fault", _fault, "make the stand-in misbehave, or let it behave again")
    fault.add_argument("what", choices=["set", "clear", "list"])
    fault.add_argument("name", nargs="?")
    fault.add_argument("parameters", nargs="*", metavar="name=value")
    fault.add_argument("--node", metavar="HOST", help="one host only (else every DSM host)")
    add("approve", _approve, "approve a host that waits for Secure Node Join").add_argument("host")
    secure = add("secure-join", _secure_join, "let joins wait for an approval (Secure Node Join), or not")
    secure.add_argument("what", choices=["on", "off", "list"])
    load = add("load", _load, "fill production with accounts, keys and canaries; arguments go to lab/standin/load")
    load.add_argument("argv", nargs=argparse.REMAINDER, metavar="ARGUMENT")
    clock_ = add("clock", _clock, "move the clock of a host's services and sudo commands (+1d, -3h), or reset it")
    clock_.add_argument("host")
    clock_.add_argument("offset", help="+1d, -3h, +90s, or reset")
    disk = add("disk-full", _disk_full, "fill the disk that backups land on (landing or store), or empty it again")
    disk.add_argument("host")
    disk.add_argument("--leave", type=int, default=0, metavar="BYTES", help="how much stays free (0)")
    disk.add_argument("--clear", action="store_true", help="give the space back")
    text = "a new owner epoch: the host's platform identity changes, nothing else does"
    add("epoch-reset", _epoch_reset, text).add_argument("host")
    text = "another machine under the same name and address: empty disk, new serial number, platform and host key"
    add("hardware-replace", _hardware_replace, text).add_argument("host")
    proof = add("selftest", _selftest, "prove the lab's promises; one line for each, needs the lab to be down")
    proof.add_argument("--only", action="append", metavar="NAME", help="this proof only (may be repeated)")
    proof.add_argument("--list", action="store_true", help="show the names of the proofs")
    return root


# ---- what the commands do


def _topology() -> Topology:
    current = state.running()
    site.require_namespace()
    return site.topology_of(current)


def _prerequisites(_: argparse.Namespace) -> int:
    installed = prerequisites.install()
    print(f"installed: {' '.join(installed)}" if installed else "nothing is missing")
    return 0


def _build(_: argparse.Namespace) -> int:
    prerequisites.require()
    site.build(Progress())
    return 0


def _up(arguments: argparse.Namespace) -> int:
    prerequisites.require()
    progress = Progress()
    try:
        site.up(arguments.profile, bare=arguments.bare, purpose=arguments.purpose, progress=progress)
    except LabError as error:
        error.remedy = error.remedy or "look with lab/lab status; lab/lab up starts afresh, lab/lab down removes it"
        raise
    progress.say(f"the lab is up; inventory: {paths.STATE / 'inventory.yml'}")
    return 0


def _down(_: argparse.Namespace) -> int:
    site.down(Progress())
    return 0


def _status(arguments: argparse.Namespace) -> int:
    current = state.running()
    topology = _topology()
    print(report.as_json(current, topology) if arguments.json else report.as_table(current, topology))
    return 0


def _inventory(_: argparse.Namespace) -> int:
    state.running()
    print(paths.STATE / "inventory.yml")
    return 0


def _exec(arguments: argparse.Namespace) -> int:
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise UsageError("no command is given", "lab/lab exec CMD [ARGUMENT...]")
    _topology()
    _become(namespaces.command(CONTROLLER_NAMESPACE, *argv))
    return 1


def _shell(arguments: argparse.Namespace) -> int:
    topology = _topology()
    if arguments.host is None:
        _become(namespaces.command(CONTROLLER_NAMESPACE, os.environ.get("SHELL", "/bin/bash")))
    host = topology.host(arguments.host)
    terminal = ["--tty"] if sys.stdin.isatty() else []
    os.environ.update(environ())
    _become(["podman", "exec", "--interactive", *terminal, "--workdir", "/root", host.container, "/bin/bash", "-l"])
    return 1


def _ssh(arguments: argparse.Namespace) -> int:
    host = _topology().host(arguments.host)
    options = [
        f"UserKnownHostsFile={paths.STATE}/known_hosts",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "ConnectTimeout=10",
    ]
    flags = [part for option in options for part in ("-o", option)]
    login = f"administrator@{host.address}"
    argv = ["ssh", "-F", "none", "-i", f"{paths.STATE}/id_ed25519", *flags, login]
    _become(namespaces.command(CONTROLLER_NAMESPACE, *argv, *arguments.argv))
    return 1


def _become(argv: list[str]) -> None:
    """Ends this program by becoming another, so that signals and the exit code are that one's."""
    sys.stdout.flush()
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise LabError(f"cannot run {argv[0]}: {error.strerror}") from error


def _power(arguments: argparse.Namespace) -> int:
    hosts.power(_topology().host(arguments.host), arguments.what)
    return 0


def _cut(arguments: argparse.Namespace) -> int:
    topology = _topology()
    one, other = (topology.site(name) for name in arguments.sites)
    if one == other:
        raise UsageError("a site cannot be cut off from itself", "name two sites")
    network.cut(one, other)
    return 0


def _heal(arguments: argparse.Namespace) -> int:
    topology = _topology()
    if len(arguments.sites) not in (0, 1, 2):
        raise UsageError("too many sites", "name none, one or two")
    named = [topology.site(name) for name in arguments.sites]
    pairs = [(a, b) for i, a in enumerate(topology.sites) for b in topology.sites[i + 1 :]]
    for one, other in pairs:
        if all(place in (one, other) for place in named):
            network.heal(one, other)
    if not named:
        for host in topology.hosts:
            network.isolate(host, False)
            network.plug(host, True)
    return 0


def _isolate(arguments: argparse.Namespace) -> int:
    topology = _topology()
    one = topology.site(arguments.site)
    for other in topology.sites:
        if other != one:
            network.cut(one, other)
    return 0


def _unplug(arguments: argparse.Namespace) -> int:
    network.plug(_topology().host(arguments.host), False)
    return 0


def _plug(arguments: argparse.Namespace) -> int:
    network.plug(_topology().host(arguments.host), True)
    return 0


def _isolate_host(arguments: argparse.Namespace) -> int:
    network.isolate(_topology().host(arguments.host), True)
    return 0


def _unisolate_host(arguments: argparse.Namespace) -> int:
    network.isolate(_topology().host(arguments.host), False)
    return 0


def _service_address(arguments: argparse.Namespace) -> int:
    topology = _topology()
    target = None if arguments.host == "none" else topology.host(arguments.host)
    if target is not None and not target.is_dsm:
        names = ", ".join(host.name for host in topology.dsm_hosts)
        raise UsageError(f"{target.name} is no DSM host", f"take one of {names}, or none")
    network.lead_service_to(topology, target)
    return 0


def _fault(arguments: argparse.Namespace) -> int:
    topology = _topology()
    targets = [topology.host(arguments.node)] if arguments.node else list(topology.dsm_hosts)
    if arguments.what == "list":
        for host in targets:
            for name, parameters in faults.active(host).items():
                print(f"{host.name}  {name}  {json.dumps(parameters)}")
    elif arguments.what == "clear":
        faults.clear(targets, arguments.name)
    elif arguments.name is None or "=" in arguments.name:
        raise UsageError("the name of the fault is missing", "lab/lab fault set NAME [--node HOST] [name=value...]")
    else:
        faults.set_fault(targets, arguments.name, faults.parameters(arguments.parameters))
    return 0


def _approve(arguments: argparse.Namespace) -> int:
    topology = _topology()
    host = topology.host(arguments.host)
    sys.stdout.write(production.tool(production.healthy_member(topology), "approve-join", host.name))
    return 0


def _secure_join(arguments: argparse.Namespace) -> int:
    member = production.healthy_member(_topology())
    if arguments.what == "list":
        sys.stdout.write(production.standin(member, "membership", "pending"))
    else:
        sys.stdout.write(production.tool(member, "secure-join", arguments.what))
    return 0


def _load(arguments: argparse.Namespace) -> int:
    _topology()
    program = paths.LAB / "standin" / "load"
    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    _become(namespaces.command(CONTROLLER_NAMESPACE, sys.executable, str(program), *argv))
    return 1


def _clock(arguments: argparse.Namespace) -> int:
    host = _topology().host(arguments.host)
    if arguments.offset == "reset":
        clock.reset(host)
    else:
        clock.shift(host, arguments.offset)
    return 0


def _disk_full(arguments: argparse.Namespace) -> int:
    host = _topology().host(arguments.host)
    if arguments.clear:
        disks.empty(host)
    else:
        disks.fill(host, arguments.leave)
    return 0


def _epoch_reset(arguments: argparse.Namespace) -> int:
    hosts.epoch_reset(_dsm_host(arguments.host))
    return 0


def _hardware_replace(arguments: argparse.Namespace) -> int:
    site.replace_hardware(_dsm_host(arguments.host))
    return 0


def _dsm_host(name: str) -> Host:
    host = _topology().host(name)
    if not host.is_dsm:
        raise UsageError(f"{name} is no DSM host", "take a member, DR or spare host")
    return host


def _selftest(arguments: argparse.Namespace) -> int:
    if arguments.list:
        print("\n".join(selftest.names()))
        return 0
    prerequisites.require()
    return selftest.run(arguments.only)
