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
from concurrent.futures import ThreadPoolExecutor

from rehearsal.commands import LAB

#: Where the product and the host's services write. config.yaml, where the vendor wants the SCP password, is elsewhere.
#: The store's ledger and manifests are among them, and the product's records of operations; the journal comes apart.
HOST_PLACES = ("/var/lib/kmsops", "/var/log", "/srv/dsm-store", "/tmp", "/var/tmp", "/home/administrator")
JOIN_TOKEN = re.compile(rb"(?<![a-z0-9.])[a-z0-9]{6}\.[a-z0-9]{16}(?![a-z0-9.])")
SECRET_NAME = re.compile("_(password|key)$")
SHORTEST = 8
JOURNAL_READ = "the journal was read"


def planted(path: pathlib.Path) -> list[str]:
    """Every secret text that the lab made up for this run: passwords and keys, not the names and identifiers with them.

    An account's identifier stands in every uncompressed backup, and may.
    """
    values: t.Any = json.loads(path.read_text(encoding="utf-8"))
    return sorted(
        value
        for name, value in values.items()
        if SECRET_NAME.search(name) and isinstance(value, str) and len(value) >= SHORTEST
    )


def in_files(directory: pathlib.Path, secrets: t.Sequence[str]) -> tuple[int, list[str]]:
    """How many files there are, and those that hold a secret or what looks like a join token."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return len(files), [one for path in files for one in in_file(path, secrets)]


def in_file(path: pathlib.Path, secrets: t.Sequence[str]) -> list[str]:
    """The file if it holds a secret or what looks like a join token, else nothing."""
    content = path.read_bytes()
    if any(secret.encode() in content for secret in secrets):
        return [str(path)]
    return [f"{path} (a join token)"] if JOIN_TOKEN.search(content) else []


def on_hosts(hosts: t.Sequence[str], secrets: t.Sequence[str]) -> list[str]:
    """What :func:`on_host` finds on several hosts, asked at the same time."""
    with ThreadPoolExecutor(max_workers=8) as pool:
        return [one for found in pool.map(lambda host: on_host(host, secrets), hosts) for one in found]


def on_host(host: str, secrets: t.Sequence[str]) -> list[str]:
    """Files of a host, its journal and its process list, that hold a secret. The secrets travel on standard input.

    :raises RuntimeError: the search did not even find what it laid down itself, in a file and in the journal
    """
    token = "(^|[^a-z0-9.])[a-z0-9]{6}[.][a-z0-9]{16}($|[^a-z0-9.])"
    script = "\n".join(
        [
            "umask 077",
            "control=$(mktemp /var/tmp/control.XXXXXX)",
            "journal=$(mktemp /var/tmp/journal.XXXXXX)",
            "trap 'rm -f $control $journal' EXIT",
            "cat >$control",
            "echo $control",
            "logger -t control $control",
            "journalctl --sync",
            "journalctl --quiet --no-pager --output=cat >$journal",
            "grep -qF $control $journal && echo 'the journal was read'",
            f"grep -rlFs -f $control --exclude=${{journal##*/}} {' '.join(HOST_PLACES)}",
            f"grep -rlEs -e '{token}' /var/lib/kmsops | sed 's/$/ (a join token)/'",
            "if grep -qF -f $control $journal; then echo 'the journal'; fi",
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
    if not {control, JOURNAL_READ} <= set(found):
        raise RuntimeError(f"the search for secrets on {host} does not find what it laid down itself: {found}")
    return [f"{host}: {line}" for line in found if line not in (control, JOURNAL_READ)]
