# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person sees of `make rehearsal`: the steps, how far they are, and a verdict."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pathlib
import shutil
import signal
import sys
import time
import typing as t

from rehearsal import report as reports
from rehearsal.commands import CHECKOUT, CommandFailed, Commands, elapsed, end_orphans
from rehearsal.plan import NotProven, Plan, Step
from rehearsal.wheelhouse import NoWheels

PASSED, FAILED, ABORTED = 0, 1, 2
LAB_FILES = CHECKOUT / "build" / "lab"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Aborted(BaseException):
    """Somebody asked the rehearsal to stop. Not an Exception: no step may swallow it."""


class Terminal:
    """Progress line by line, each with the time since the start."""

    def __init__(self, started: float) -> None:
        self.started = started

    def line(self, text: str) -> None:
        seconds = elapsed(self.started)
        print(f"[{int(seconds // 60):2d}:{int(seconds % 60):02d}] {text}", flush=True)

    def detail(self, text: str) -> None:
        self.line(f"        {text}")


def main(arguments: list[str]) -> int:
    """Run the whole rehearsal; 0 only when every step passed with evidence."""
    parser = argparse.ArgumentParser(
        prog="make rehearsal",
        description="Plays the vendor's disaster plan in the lab. V=1 shows Ansible's output, KEEP=1 keeps the lab.",
    )
    parser.parse_args(arguments)
    if os.geteuid() != 0:
        sys.stderr.write("rehearse: the lab makes network namespaces, which only root may. Run: sudo make rehearsal\n")
        return FAILED
    with contextlib.ExitStack() as until_the_end:
        try:
            until_the_end.enter_context(_only_one())
        except BlockingIOError:
            sys.stderr.write("rehearse: another rehearsal of this checkout runs. Wait for its end, or stop it first.\n")
            return FAILED
        return _rehearse()


def _rehearse() -> int:
    started = time.monotonic()
    terminal = Terminal(started)
    directory = CHECKOUT / "build" / "rehearsal"
    shutil.rmtree(directory, ignore_errors=True)
    verbose = os.environ.get("V", "") == "1"
    commands = Commands(directory / "logs", terminal.detail, verbose)
    orphans = end_orphans()
    if orphans:
        terminal.line(f"Ended {orphans} processes of an earlier rehearsal that was killed")
    plan = Plan(commands, LAB_FILES / "of-rehearsal")
    report = reports.Report(directory, time.time())
    report.write()

    def stop(number: int, frame: t.Any) -> None:
        for one in SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise Aborted(f"stopped by {signal.Signals(number).name}")

    for number in SIGNALS:
        signal.signal(number, stop)
    verdict, reason = reports.ABORTED, ""
    try:
        for step in plan.steps():
            _play(step, plan, report, terminal)
        verdict, reason = reports.PASSED, "every step was carried out and proved"
    except Aborted as request:
        reason = str(request)
    except (CommandFailed, NotProven, NoWheels) as failure:
        verdict, reason = reports.FAILED, str(failure)
    except Exception as defect:
        reason = f"crashed with {type(defect).__name__}: {defect}"
    finally:
        commands.stop()
        report.data.update(plan.findings)
        report.conclude(verdict, reason, elapsed(started))
    terminal.line(f"{verdict}: {reason}")
    _leave(plan, commands, terminal)
    _table(report, directory)
    return {reports.PASSED: PASSED, reports.FAILED: FAILED}.get(verdict, ABORTED)


@contextlib.contextmanager
def _only_one() -> t.Iterator[None]:
    """Held while a rehearsal runs; the kernel lets go of it when the process dies in whatever way.

    :raises BlockingIOError: another process holds it
    """
    LAB_FILES.mkdir(parents=True, exist_ok=True)
    with open(LAB_FILES / "rehearsal-lock", "w", encoding="ascii") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _play(step: Step, plan: Plan, report: reports.Report, terminal: Terminal) -> None:
    terminal.line(step.title)
    started = time.monotonic()
    entry = report.begin(step.name, step.title, time.time())
    outcome, evidence = reports.FAILED, None
    try:
        evidence = step.action()
        outcome = reports.PASSED
    except Aborted:
        outcome = reports.ABORTED
        raise
    finally:
        report.data.update(plan.findings)
        report.finish(entry, outcome, elapsed(started), evidence)
    if entry["outcome"] != reports.PASSED:
        raise NotProven(f"step {step.name} left no evidence")


def _leave(plan: Plan, commands: Commands, terminal: Terminal) -> None:
    """Take down what this rehearsal brought up, unless the person wants to look at it."""
    if not plan.lab_is_ours:
        return
    if os.environ.get("KEEP", "") == "1":
        terminal.line("The lab stays up (KEEP=1). Look around with lab/lab status; take it down with make lab-down.")
        return
    terminal.line("Take the lab down")
    try:
        commands.lab("down", log="lab-down")
        plan.forget_lab()
    except CommandFailed as failure:
        terminal.line(str(failure))


def _table(report: reports.Report, directory: pathlib.Path) -> None:
    data = report.data
    width = max([len(step["title"]) for step in data["steps"]] + [40])
    print()
    for step in data["steps"]:
        took = reports.human(step["seconds"]) if step["seconds"] is not None else "-"
        print(f"  {step['title']:<{width}}  {took:>12}  {step['outcome'] or 'not finished'}")
    print(f"  {'-' * width}")
    print(f"  {'recovery time (machine)':<{width}}  {reports.human(data['recovery_time_seconds']):>12}")
    print(f"  {'recovery point (age of the canary)':<{width}}  {reports.human(data['recovery_point_seconds']):>12}")
    known = data["known_ciphertexts"]
    decrypted = f"{known['decrypted']} of {known['known']}" if known else "not proven"
    print(f"  {'ciphertexts of production decrypted':<{width}}  {decrypted:>12}")
    print(f"  {'canaries proved':<{width}}  {sum(c['proved'] for c in data['canaries']):>12}")
    print(f"  {'verdict':<{width}}  {data['verdict'].upper():>12}")
    print(f"\n  {data['reason']}")
    print(f"  {directory / 'report.md'}  {directory / 'report.json'}")
