# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults of the stand-in: a file for each, in a directory of the host that the stand-in reads whenever it matters."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from labctl import hosts
from labctl.errors import UsageError
from labctl.topology import Host


def active(host: Host) -> dict[str, dict[str, Any]]:
    """The faults that are set on a host: name -> parameters."""
    place = hosts.faults_directory(host)
    found = sorted(place.glob("*.json")) if place.is_dir() else []
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in found}


def set_fault(targets: Iterable[Host], name: str, parameters: dict[str, Any]) -> None:
    for host in targets:
        draft = hosts.faults_directory(host) / f".{name}"
        hosts.write(draft, json.dumps(parameters) + "\n")
        draft.rename(hosts.faults_directory(host) / f"{name}.json")


def clear(targets: Iterable[Host], name: str | None) -> None:
    for host in targets:
        for fault in active(host):
            if name in (None, fault):
                (hosts.faults_directory(host) / f"{fault}.json").unlink(missing_ok=True)


def parameters(words: Iterable[str]) -> dict[str, Any]:
    """k=v words as parameters; a value that reads as JSON (a number, true, a list) is taken as that."""
    result: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise UsageError(f"{word!r} is not name=value", "lab/lab fault set NAME [--node HOST] [name=value...]")
        try:
            result[name] = json.loads(value)
        except ValueError:
            result[name] = value
    return result
