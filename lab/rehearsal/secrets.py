# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Looks for the rehearsal's secrets in everything that it left behind: reports, logs, records, process lists."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import subprocess
import typing as t

from rehearsal.commands import LAB

#: Where the product and the host's services write. config.yaml, where the vendor wants the SCP password, is elsewhere.
HOST_PLACES = ("/var/lib/kmsops", "/var/log", "/srv/dsm-store", "/tmp", "/var/tmp", "/home/administrator")
JOIN_TOKEN = re.compile(rb"(?<![a-z0-9.])[a-z0-9]{6}\.[a-z0-9]{16}(?![a-z0-9.])")
SHORTEST = 8


def planted(path: pathlib.Path) -> list[str]:
    """Every secret text that the lab made up for this run."""
    values: t.Any = json.loads(path.read_text(encoding="utf-8"))
    return sorted(value for name, value in values.items() if isinstance(value, str) and len(value) >= SHORTEST)


def in_files(directory: pathlib.Path, secrets: t.Sequence[str]) -> tuple[int, list[str]]:
    """How many files there are, and those that hold a secret or what looks like a join token."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    found = []
    for path in files:
        content = path.read_bytes()
        if any(secret.encode() in content for secret in secrets):
            found.append(str(path))
        elif JOIN_TOKEN.search(content):
            found.append(f"{path} (a join token)")
    return len(files), found


def on_host(host: str, secrets: t.Sequence[str]) -> list[str]:
    """Files of a host, and its process list, that hold a secret. The secrets travel on standard input.

    :raises RuntimeError: the search did not even find the copy of the secrets that it laid down itself
    """
    script = "\n".join(
        [
            "umask 077",
            "control=$(mktemp /var/tmp/control.XXXXXX)",
            "trap 'rm -f $control' EXIT",
            "cat >$control",
            "echo $control",
            f"grep -rlFs -f $control {' '.join(HOST_PLACES)}",
            "if ps -eo args | grep -qF -f $control; then echo 'the process list'; fi",
            "if ps -eo args | grep -qE -e '--token=[a-z0-9]{6}[.]'; then echo 'the process list (a join token)'; fi",
        ]
    )
    done = subprocess.run(
        [str(LAB), "ssh", host, f"sudo sh -c {shlex.quote(script)}"],
        input="\n".join(secrets) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    control, *found = done.stdout.splitlines()
    if control not in found:
        raise RuntimeError(f"the search for secrets on {host} does not find what it laid down itself")
    return [f"{host}: {line}" for line in found if line != control]
