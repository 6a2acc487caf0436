# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The engine without a store around it: one backup goes into a directory, at a terminal and without Ansible.

It is run with ``python3 -m``; ``--help`` says how.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import sys
import typing as t

from .._core.manifest import path_problem
from .._errors import DsmError, Refused
from ._discover import Source, discover
from ._disk import read_bytes, write_atomically
from ._endpoint import Endpoint, LocalEndpoint, SftpEndpoint, check_local, without_links
from ._pool import Pool
from ._progress import for_stream
from ._pull import Progress, TransferPlan, TransferReport, pull
from ._ssh import SshTarget

_REMOTE = re.compile(r"^(?:(?P<user>[^@/:]+)@)?(?P<host>\[[^\]/]+\]|[^:/\[\]]+):(?P<path>.+)\Z", re.DOTALL)


def fetch(
    source: Source,
    directory: str,
    *,
    workers: int = 8,
    rate_limit: float = 0.0,
    progress: Progress | None = None,
) -> TransferReport:
    """Pull the one backup that matches ``source`` into ``directory``/data; the journal is beside it.

    Without ``progress`` it is shown on stderr, as a bar where that is a terminal.

    Nothing in this process may have started threads yet. Raises what :func:`pull` raises, and :class:`Refused` when
    not exactly one backup matches or it is not acceptable (nothing but empty files, a device, ...).
    """
    with Pool(workers, bool(source.endpoint.host), source.endpoint) as pool:
        session = pool.session(source.endpoint)
        units = discover(session, source)
        if len(units) != 1:
            raise Refused(f"{len(units)} backups match {source.label}.", "BAD_SOURCE", "Name exactly one.")
        hard = [reason for reason in units[0].reasons if reason.hard]
        if hard:
            raise Refused(f"{units[0].name} cannot be taken.", hard[0].code, reasons=hard)
        if not source.endpoint.host:
            check_local(units[0].name, directory)
        data = os.path.join(directory, "data")
        os.makedirs(data, mode=0o700, exist_ok=True)
        _claim(directory, data, units[0].key(source.endpoint.place))
        plan = TransferPlan(
            endpoint=source.endpoint,
            items=units[0].items,
            directory=data,
            journal=os.path.join(directory, "journal.jsonl"),
            workers=workers,
            rate_limit=rate_limit,
            round_trip=session.round_trip,
        )
        return pull(plan, progress or for_stream(os.path.basename(units[0].name), sys.stderr), pool)


def _claim(directory: str, data: str, key: str) -> None:
    """A directory is for one version of one backup: what landed of another one is never mixed with it."""
    path = os.path.join(directory, "source")
    try:
        known = read_bytes(path).decode("ascii", "replace")
    except FileNotFoundError:
        known = "" if os.listdir(data) else key
        if known:
            write_atomically(path, key.encode("ascii"))
    if known != key:
        raise Refused(
            f"{directory} holds something else: another backup, or what this one was before it changed at the source.",
            "ANOTHER_BACKUP",
            "Give an empty directory, or remove what is in this one.",
        )


def _own_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def main(arguments: t.Sequence[str] | None = None) -> int:
    """What the command line does: progress goes to stderr, hashes as ``sha256sum -c`` reads them to stdout."""
    parser = argparse.ArgumentParser(
        prog="fetch",
        description="Fetch one backup over several SFTP connections. Run again after an interruption, it goes on.",
    )
    parser.add_argument("source", help="directory, file or glob that one backup matches: [user@]host:/path or /path")
    parser.add_argument("directory", help="where it goes: its files into DIRECTORY/data")
    parser.add_argument("--port", type=int, default=22)
    parser.add_argument("--key", default="", metavar="FILE", help="private key (default: the keys of the agent)")
    parser.add_argument("--known-hosts", default=os.path.expanduser("~/.ssh/known_hosts"), metavar="FILE")
    parser.add_argument("--layout", choices=("single", "per_node", "together"), default="single")
    parser.add_argument("--workers", type=int, choices=range(1, 9), default=8, metavar="1-8", help="connections")
    parser.add_argument("--rate-limit", type=float, default=0.0, metavar="N", help="bytes a second, of all together")
    options = parser.parse_args(arguments)
    if not 0 <= options.rate_limit < float("inf"):
        parser.error(f"--rate-limit {options.rate_limit:g}: give bytes a second, or leave it out")
    problem = path_problem(options.directory.strip("/") or "data")
    if problem and problem != "leaves its directory":
        parser.error(f"directory {options.directory!r} {problem}")
    remote = _REMOTE.match(options.source)
    endpoint: Endpoint = LocalEndpoint()
    if remote:
        user = remote["user"] or _own_name()
        if not user:
            parser.error("this user has no name here: give user@host:/path")
        endpoint = SftpEndpoint(
            SshTarget(
                remote["host"].strip("[]"),
                user,
                options.port,
                options.key,
                known_hosts=options.known_hosts,
            )
        )
    try:
        path = remote["path"] if remote else without_links(options.source, options.source)
        source = Source(endpoint, path, options.layout)
        report = fetch(source, options.directory, workers=options.workers, rate_limit=options.rate_limit)
        for name, sha256 in sorted(report.sha256.items()):
            sys.stdout.write(f"{sha256}  {os.path.join(options.directory, 'data', name)}\n")
        sys.stdout.flush()
    except DsmError as error:
        told = error.as_result()
        sys.stderr.write(f"fetch: {told['msg']}\nWhat to do: {told['remedy']}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"fetch: {error.filename or 'stdout'}: {error.strerror or error}.\n")
        # What could not be written is not tried again when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nfetch: stopped. Run the same again: what has landed is checked and used.\n")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
