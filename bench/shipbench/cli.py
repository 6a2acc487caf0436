# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command: what is asked for, what must be there, and a world of its own in which all of it happens."""

from __future__ import annotations

import contextlib
import os
import platform
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from shipbench import files, local, peers, report, system
from shipbench.ends import End
from shipbench.errors import BenchError
from shipbench.links import LINKS
from shipbench.options import CHECKOUT, LOCAL, MIB, Asked, parse
from shipbench.ours import Modules
from shipbench.report import Rows
from shipbench.session import Plan, Session
from shipbench.wire import compile_emulator, netem_works

LOCK = "\0kmsops-bench"
SYSTEM = {
    "ip": "iproute2",
    "tc": "iproute2",
    "sysctl": "procps",
    "nsenter": "util-linux",
    "gcc": "gcc",
    "openssl": "openssl",
}
PROFILER = {"perf": "linux-perf"}
#: What was published for the verification at rest; removed at the end and at the next start.
DISK = "kmsops-bench-store"
QUIET_FOR, QUIET_WITHIN = 2.0, 60.0


def say(text: str) -> None:
    """A line for the person who watches."""
    print(text, flush=True)


# -- outside ----------
def main(arguments: Sequence[str]) -> int:
    """The whole command; exit code 0, or 1 when it could not go on, 130 when it was interrupted."""
    asked = parse(arguments)
    try:
        with only_one():
            return outside(asked)
    except KeyboardInterrupt:
        return 130
    except BenchError as error:
        sys.stderr.write(f"bench: {error.message}" + (f" What to do: {error.remedy}" if error.remedy else "") + "\n")
        return 1


@contextlib.contextmanager
def only_one() -> Iterator[None]:
    """One bench a machine: two would measure each other. The kernel gives the name back whatever happens to us."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        try:
            lock.bind(LOCK)
        except OSError:
            raise BenchError("Another bench runs on this machine.", "Wait for it to end.") from None
        yield


def outside(asked: Asked) -> int:
    """Prepare what must be prepared in the machine's own world, then start another one and wait for it."""
    if os.geteuid() != 0:
        raise BenchError("Networks of its own need root.", "Run it as root.")
    need = 4 * asked.size + 512 * MIB
    if system.available_memory() < need:
        raise BenchError(f"{need // MIB} MiB of free memory are needed: files lie in memory.", "Give --size less.")
    asked.output.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(asked.output / DISK, ignore_errors=True)
    chosen = [peer for peer in peers.PEERS if peer.name in asked.tools]
    if asked.install and asked.links:
        prepare_system(chosen, {**SYSTEM, **(PROFILER if asked.profile else {})})
    emulator = compile_emulator(CHECKOUT / "bench" / "wan.c", asked.output) if asked.links else asked.output
    if not asked.busy and not asked.smoke:
        await_quiet()
    sys.stdout.flush()
    parent = os.getpid()
    system.new_process_namespace()
    child = os.fork()
    if child == 0:
        become_inside(asked, chosen, emulator, parent)
    return wait_for(child)


def prepare_system(chosen: Sequence[peers.Peer], commands: Mapping[str, str]) -> None:
    """Install what is missing, with a word about it."""
    missing = {package for command, package in commands.items() if shutil.which(command) is None}
    if "gcc" in missing:
        missing.add("libc6-dev")
    if shutil.which("sshd", path="/usr/sbin:/usr/local/sbin") is None:
        missing.add("openssh-server")
    if missing:
        done = subprocess.run([str(CHECKOUT / "requirements" / "system"), *sorted(missing)], check=False, timeout=900)
        if done.returncode != 0:
            raise BenchError(f"Debian packages are missing: {' '.join(sorted(missing))}", "Install them by hand.")
    peers.install(chosen, CHECKOUT)


def await_quiet() -> None:
    """Wait a while for the machine to become quiet. Raises BenchError if it does not."""
    end = time.monotonic() + QUIET_WITHIN
    while True:
        before = system.machine_busy()
        time.sleep(QUIET_FOR)
        share = (system.machine_busy() - before) / QUIET_FOR / (os.cpu_count() or 1)
        if share <= report.BUSY:
            return
        if time.monotonic() > end:
            raise BenchError(
                f"Something else uses {share:.0%} of this machine's processors.",
                "Let it end, or say --busy to have busy runs marked (ratios then mean less).",
            )


def wait_for(child: int) -> int:
    """Hand signals on once, and wait for the other world to end."""

    def hand_on(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, hand_on)
    _pid, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


# -- inside ----------
def become_inside(asked: Asked, chosen: Sequence[peers.Peer], emulator: Path, parent: int) -> NoReturn:
    """Body of the child, PID 1 of its world. When it or its parent ends, the kernel ends everything in it."""
    code = 1
    try:
        os.setsid()
        system.die_with_parent()
        outer = system.network_of()
        system.new_world()
        if os.getpid() != 1 or system.network_of() == outer:
            raise BenchError(f"No world of its own could be made (started by process {parent}).")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, interrupted)
        code = inside(asked, chosen, emulator)
    except KeyboardInterrupt:
        code = 130
    except BenchError as error:
        sys.stderr.write(f"bench: {error.message} {error.remedy}\n")
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def interrupted(_number: int, _frame: FrameType | None) -> None:
    """The first signal ends the measurement, and what was measured is written; later ones change nothing about that."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def inside(asked: Asked, chosen: Sequence[peers.Peer], emulator: Path) -> int:
    """Everything that is measured, and the reports of it whatever happens."""
    system.mount("tmpfs", "/run", "tmpfs", f"mode=0755,size={4 * asked.size + 256 * MIB}")
    scratch = Path("/run/kmsops-bench")
    (scratch / "home").mkdir(parents=True)
    # What a login shell of this machine does at the server's end is none of a tool's business.
    system.hide(os.path.join(pwd.getpwuid(os.geteuid()).pw_dir, ".bashrc"))
    disk = asked.output / DISK
    facts = machine_facts(asked, chosen)
    earlier = earlier_rows(asked, facts)
    rows = Rows(asked.output / "results.jsonl")
    for row in ({"kind": "facts", **facts}, *earlier):
        rows.add(row)
    complete = False
    write(asked.output, rows, facts, complete=complete)
    try:
        disk.mkdir(mode=0o700)
        modules = Modules(CHECKOUT / "build" / "collections", scratch)
        if asked.links:
            measure_links(asked, chosen, emulator, scratch, modules, rows, facts)
        for name in LOCAL:
            if name in asked.only:
                measure_local(name, asked, modules, disk, scratch, rows)
                write(asked.output, rows, facts, complete=False)
        complete = True
    except KeyboardInterrupt:
        say("Interrupted: what was measured is written, marked incomplete.")
        raise
    finally:
        shutil.rmtree(disk, ignore_errors=True)
        write(asked.output, rows, facts, complete=complete)
        rows.close()
    say((asked.output / "table.txt").read_text(encoding="utf-8"))
    say(f"Written: {asked.output}/results.jsonl, table.txt, summary.json")
    return 0


def measure_links(
    asked: Asked,
    chosen: Sequence[peers.Peer],
    emulator: Path,
    scratch: Path,
    modules: Modules,
    rows: Rows,
    facts: dict[str, Any],
) -> None:
    """Every link that was asked for; one that cannot be used does not keep the others from being measured."""
    source, store = (End(name, scratch).make() for name in ("source", "store"))
    present = [peer for peer in chosen if facts["peers"][peer.name]]
    plan = Plan(
        rounds=asked.rounds,
        size=asked.size,
        seed=asked.seed,
        smoke=asked.smoke,
        workers=asked.workers,
        peers=present,
        absent=[peer.name for peer in peers.PEERS if peer not in present],
        file=scratch / "backup.bin",
        digest=files.make_file(scratch / "backup.bin", asked.size, asked.seed),
        scratch=scratch,
        package=CHECKOUT / "bench",
        modules=modules,
        emulator=emulator,
        netem=netem_works(source),
        profiles=asked.output if asked.profile else None,
    )
    for name in asked.links:
        with part(name, rows, plan.absent):
            Session(plan, LINKS[name], source, store, rows, say).play(
                lambda: write(asked.output, rows, facts, complete=False)
            )
        write(asked.output, rows, facts, complete=False)
    (scratch / "backup.bin").unlink()
    shutil.rmtree(scratch / "work", ignore_errors=True)


def measure_local(name: str, asked: Asked, modules: Modules, disk: Path, scratch: Path, rows: Rows) -> None:
    """A measurement without a link; its failure is told in the summary and does not end the bench."""
    with part(name, rows, absent=[]):
        if name == "verify":
            local.at_rest(modules, asked, disk, scratch, rows, say)
        else:
            local.catalogue(modules, asked, CHECKOUT / "tests" / "support", scratch, rows, say)


@contextlib.contextmanager
def part(name: str, rows: Rows, absent: Sequence[str]) -> Iterator[None]:
    """A part of the bench: where it begins and ends in the rows. That it cannot go on does not end the others."""
    rows.add({"kind": "part", "part": name, "absent": list(absent)})
    try:
        yield
    except BenchError as error:
        say(f"  {name}: {error.message} {error.remedy}")
        rows.add({"kind": "unusable", "part": name, "why": error.message})
    rows.add({"kind": "end", "part": name})


def earlier_rows(asked: Asked, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """What is kept of the run before, if that was asked for."""
    place = asked.output / "results.jsonl"
    if not asked.keep or not place.exists():
        return []
    return report.kept(place.read_text(encoding="utf-8"), facts, asked.only)


def write(output: Path, rows: Rows, facts: dict[str, Any], *, complete: bool) -> None:
    """Table and summary of what is known by now; a reader never sees half of one."""
    facts["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    report.write(output, rows, facts, complete=complete)


def machine_facts(asked: Asked, chosen: Sequence[peers.Peer]) -> dict[str, Any]:
    """What a reader must know of the machine and of the tools; a peer that is absent has no version."""
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit.stdout.strip(),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "real_time": system.real_time(),
        "python": platform.python_version(),
        "only": list(asked.only),
        "seed": asked.seed,
        "rounds": asked.rounds,
        "bytes": asked.size,
        "workers": asked.workers,
        "peers": {peer.name: peers.version(peer) if peer in chosen else "" for peer in peers.PEERS},
    }
