# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Misbehaviour on demand.

A fault is a file ``/var/lib/standin-faults/<name>.json`` with its parameters; ``lab fault set`` writes it. ``times``
says how often it bites before it goes away by itself; without it, it stays until it is cleared.

Command faults, around every vendor command (``command=`` limits one to a command, e.g. ``join``, ``kubeadm``):

=================== ==================================================================================================
hang                prints its banner and never returns (``seconds=``: then it goes on)
exit0-did-nothing   says it is done, exits 0, and has done nothing
nonzero-did-it      does the whole work and exits ``rc`` (default 3)
dies-half-way       kills itself without a word when it comes to step ``step`` (default: the middle one it knows)
asks-a-question     asks, and does not go on without a ``yes`` on its standard input
noise               prints a lot that looks like failure before and after, to both outputs
other-language      speaks German
slow                rests ``seconds`` (default 5) before every step
=================== ==================================================================================================

Knobs of the stand-in (not misbehaviour, but behaviours of the real product nobody knows, or settings a site has):
``remove-purges-sealed-row``, ``label-window`` (``seconds=``), ``birth-label`` (``datacenter=``), ``no-bootstrap``,
``join-pending`` (Secure Node Join), ``member-lies`` (``hide=NAME,ADDRESS`` or ``invent=NAME like=NAME``).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FAULTS_DIR = Path("/var/lib/standin-faults")
COMMAND_FAULTS = (
    "hang",
    "exit0-did-nothing",
    "nonzero-did-it",
    "dies-half-way",
    "asks-a-question",
    "noise",
    "other-language",
    "slow",
)
_FOREVER_S = 10 * 365 * 86400.0


def active(name: str, directory: Path | None = None) -> dict[str, Any] | None:
    """Return the parameters of a fault that is set, or None. An empty file is a fault without parameters."""
    try:
        text = ((directory or FAULTS_DIR) / f"{name}.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    document = json.loads(text) if text.strip() else {}
    if not isinstance(document, dict):
        raise ValueError(f"fault {name} is not an object of parameters")
    return document


def spend(name: str, directory: Path | None = None) -> None:
    """Count one bite of a fault that has ``times``; the last one removes it."""
    parameters = active(name, directory)
    if parameters is None or "times" not in parameters:
        return
    path = (directory or FAULTS_DIR) / f"{name}.json"
    left = int(parameters["times"]) - 1
    if left <= 0:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({**parameters, "times": left}), encoding="utf-8")
    os.replace(temporary, path)


def for_command(name: str, command: str, directory: Path | None = None) -> dict[str, Any] | None:
    """Return the parameters of a command fault if it is set and meant for this command."""
    parameters = active(name, directory)
    if parameters is None:
        return None
    meant = str(parameters.get("command", ""))
    return parameters if meant in ("", command) else None


def number(parameters: dict[str, Any], key: str, default: float) -> float:
    """Return a numeric parameter; ``lab fault set`` may have written it as text."""
    return float(parameters.get(key, default))


class Steps:
    """The step counter of one command: where ``dies-half-way`` and ``slow`` bite."""

    def __init__(self, command: str, names: Sequence[str], directory: Path | None = None) -> None:
        self.command = command
        self.names = tuple(names)
        self.directory = directory

    def at(self, name: str) -> None:
        """Come to a step; may rest there, may never return."""
        if name not in self.names:
            raise ValueError(f"{self.command} has no step {name}")
        slow = for_command("slow", self.command, self.directory)
        if slow is not None:
            time.sleep(number(slow, "seconds", 5.0))
        dies = for_command("dies-half-way", self.command, self.directory)
        if dies is not None and name == str(dies.get("step", self.names[len(self.names) // 2])):
            spend("dies-half-way", self.directory)
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)


def speaks_german(command: str) -> bool:
    """Tell whether the fault ``other-language`` is set for this command."""
    return for_command("other-language", command) is not None


def around(command: str, body: Callable[[], int]) -> int:
    """Run a command's body with whatever faults are set around it; returns the exit code."""
    found = {name: parameters for name in COMMAND_FAULTS if (parameters := for_command(name, command)) is not None}
    for name in found:
        if name not in ("dies-half-way", "slow"):
            spend(name)
    if "noise" in found:
        _noise("W")
    if "hang" in found:
        print(f"stand-in {command}: working", flush=True)
        time.sleep(number(found["hang"], "seconds", _FOREVER_S))
    if "asks-a-question" in found:
        print(f"stand-in {command}: this may take long. Continue? (yes/no) ", end="", flush=True)
        if sys.stdin.readline().strip() != "yes":
            print("\nstand-in: not confirmed, nothing done", file=sys.stderr)
            return 1
    if "exit0-did-nothing" in found:
        print(f"stand-in {command}: done")
        return 0
    result = body()
    if "noise" in found:
        _noise("E")
    if "nonzero-did-it" in found:
        print(f"stand-in {command}: error: lost connection to the progress channel", file=sys.stderr)
        return int(number(found["nonzero-did-it"], "rc", 3))
    return result


def _noise(level: str) -> None:
    for line in range(200):
        stream = sys.stderr if line % 2 else sys.stdout
        print(
            f"{level}1122 03:04:05.{line:06d}   4242 reflector.go:561] error: connection refused, retrying", file=stream
        )
    sys.stdout.flush()
    sys.stderr.flush()


def lie(text: str, parameters: dict[str, Any]) -> str:
    """Return a true answer of kubectl or nodetool without the members it ``hide``s or with one it ``invent``s.

    ``hide`` and ``like`` are names or addresses separated by commas; an invented member looks like ``like``.
    """
    hidden = {word for word in str(parameters.get("hide", "")).split(",") if word}
    invented, like = str(parameters.get("invent", "")), str(parameters.get("like", ""))
    try:
        document = json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if not hidden.intersection(line.split())]
        if invented and like:
            lines += [line.replace(like, invented) for line in lines if like in line.split()]
        return "".join(line + "\n" for line in lines)
    if isinstance(document, dict) and isinstance(document.get("items"), list):
        items = [item for item in document["items"] if not hidden.intersection(_names(item))]
        if invented and like:
            items += [json.loads(json.dumps(item).replace(like, invented)) for item in items if like in _names(item)]
        document["items"] = items
    return json.dumps(document, indent=4) + "\n"


def _names(item: dict[str, Any]) -> set[str]:
    metadata, spec = item.get("metadata") or {}, item.get("spec") or {}
    return {str(metadata.get("name")), str(spec.get("nodeName"))}


def main(arguments: Sequence[str]) -> int:
    """``python3 -m standin.faults wrap NAME PROGRAM ARGUMENTS``: a real program with faults around it."""
    if len(arguments) < 3 or arguments[0] != "wrap":
        print("usage: standin.faults wrap NAME PROGRAM [ARGUMENTS]", file=sys.stderr)
        return 2
    name, program, rest = arguments[1], arguments[2], list(arguments[3:])
    steps = Steps(name, ("before", "run", "after"))

    def body() -> int:
        import subprocess

        steps.at("run")
        lies = active("member-lies")
        if lies is None:
            return subprocess.call([program, *rest])
        done = subprocess.run([program, *rest], stdout=subprocess.PIPE, check=False)
        sys.stdout.write(lie(done.stdout.decode("utf-8", "replace"), lies))
        return done.returncode

    return around(name, body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
