# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Carrying out a restore on the node: what is staged, the journal, the operator's steps one after the other.

PRIVATE to the collection.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from typing import Any, Mapping, Sequence

from ._api import Api
from ._core import restore_plan
from ._core.manifest import FileEntry, tree_digest
from ._core.reasons import Reason, split
from ._core.restore_plan import Candidate
from ._errors import CommandFailed, DsmError, Refused, TimedOut, reasons_of
from ._files import read_json, write_json
from ._runner import Operations, fill_template

ARTICLE = (
    "Fortanix DSM Backup and Restore (SGX: Using SCP, AWS S3 or Azure Blob; Non-SGX), or"
    " Fortanix DSM Restoration Using Script - Automated"
)
PLACEHOLDERS = ("archive", "directory", "backup_id", "config", "kubeconfig", "run_id")
_CHUNK = 1024 * 1024
_UNSAFE = re.compile(r"[^a-z0-9_.-]+")


def filled_steps(params: Mapping[str, Any], candidate: Candidate) -> list[tuple[str, list[str]]]:
    """Name and argv of every step of the module's parameters.

    Raises :class:`TemplateMissing` when there are none, :class:`Refused` for a placeholder that nobody knows, and when
    no step uses the backup at all.
    """
    steps: Sequence[Mapping[str, Any]] = params["steps"]
    values = {
        "archive": candidate.path,
        "directory": candidate.path if os.path.isdir(candidate.path) else os.path.dirname(candidate.path),
        "backup_id": candidate.id,
        "config": params["config"],
        "kubeconfig": params["kubeconfig"],
        "run_id": params["run_id"] or "",
    }
    if not steps:
        fill_template(None, values, name="steps (what restores a backup)", article=ARTICLE)
    filled = [(step["name"], fill_template(step["argv"], values, name=step["name"], article=ARTICLE)) for step in steps]
    if not any("{archive}" in word or "{directory}" in word for step in steps for word in step["argv"]):
        raise Refused(
            "No step uses the placeholder archive or directory, so these steps would restore nothing that was chosen.",
            "TEMPLATE_PLACEHOLDER",
            f"Read the vendor article '{ARTICLE}' and put the placeholder where the backup belongs.",
        )
    if len({name for name, _argv in filled}) != len(filled):
        raise Refused("Two steps have the same name.", "STEPS_INVALID", "Give every step a name of its own.")
    return filled


def template_reasons(params: Mapping[str, Any], candidates: Sequence[Candidate]) -> list[Reason]:
    """What is wrong with the operator's steps, whichever candidate they will get."""
    try:
        for candidate in candidates[:1]:
            filled_steps(params, candidate)
    except DsmError as error:
        return reasons_of(error)
    return []


def choose(
    candidates: Sequence[Candidate], host: restore_plan.Host, params: Mapping[str, Any]
) -> tuple[Candidate | None, list[Reason], list[dict[str, Any]]]:
    """The first candidate that nothing speaks against, what was accepted about it, and why others were passed over."""
    passed_over: list[dict[str, Any]] = []
    ledger = (params["testimony"] or {}).get("ledger") or {}
    for candidate in candidates:
        reasons = restore_plan.candidate_reasons(candidate, host, params["expected_version"], ledger.get("cluster_id"))
        standing, accepted = split(reasons, params["accept"])
        if not standing:
            standing = staged_reasons(candidate, params["data_path"], params["free_factor"])
        if not standing:
            return candidate, accepted, passed_over
        passed_over.append({"id": candidate.id, "reasons": [reason.as_dict() for reason in standing]})
    return None, [], passed_over


def staged_reasons(candidate: Candidate, data_path: str, factor: float) -> list[Reason]:
    """Whether what is staged is what the store verified, and whether it fits. Reads every byte. All hard."""
    if not os.path.exists(candidate.path):
        return [Reason("NOT_STAGED", f"{candidate.id}: there is nothing at {candidate.path}", "Stage it again.")]
    size, hashes = _measure(candidate.path)
    if size == 0:
        return [Reason("EMPTY", f"{candidate.id}: what is at {candidate.path} is empty", "Stage it again.")]
    reasons = []
    if candidate.sha256 not in hashes:
        reasons.append(
            Reason("HASH", f"{candidate.id}: {candidate.path} is not what was verified at the store", "Stage it again.")
        )
    try:
        free = shutil.disk_usage(data_path).free
    except OSError as error:
        what = f"the space on {data_path} cannot be read: {error.strerror}"
        return [*reasons, Reason("NO_SPACE", what, "Give data_path: where the database keeps its files.")]
    if free < factor * size:
        reasons.append(
            Reason(
                "NO_SPACE",
                f"{candidate.id} has {size} bytes and {data_path} {free} free; {factor:g} times the size is needed",
                f"Make room on {data_path}.",
            )
        )
    return reasons


class Journal:
    """What a restore on this node has done, kept where a kill cannot take it away."""

    def __init__(self, state_dir: str) -> None:
        self.path = os.path.join(state_dir, "restore.json")
        self.entry: dict[str, Any] | None = read_json(self.path)

    def of(self, fingerprint: str | None) -> dict[str, Any] | None:
        """The entry, when it is about the cluster that is here now."""
        return self.entry if self.entry and self.entry.get("fingerprint") == fingerprint else None

    def note(self, **changes: Any) -> None:
        """Writes the entry with ``changes``."""
        self.entry = {**(self.entry or {}), **changes}
        write_json(self.path, self.entry)

    def begin(self, candidate: Candidate, fingerprint: str | None, run_id: str, steps: Sequence[str]) -> None:
        """A new entry in place of the old one."""
        self.entry = None
        self.note(
            candidate=candidate.id,
            sha256=candidate.sha256,
            fingerprint=fingerprint,
            run_id=run_id,
            steps=list(steps),
            step=None,
            done=0,
            state=restore_plan.RUNNING,
            started_at=_now(),
        )


def carry_out(steps: Sequence[tuple[str, list[str]]], journal: Journal, operations: Operations, timeout: float) -> None:
    """Runs the steps that the journal does not have yet, each once. A step that an earlier run began and that still
    runs, or that ended well after that run had died, is joined and not repeated. Any other one that was begun is
    noted as failed, since nobody knows what it left. Raises :class:`CommandFailed`."""
    entry = journal.entry or {}
    for number, (name, argv) in enumerate(steps):
        if number < int(entry.get("done", 0)):
            continue
        operation = _operation(number, name)
        begun = journal.entry is not None and journal.entry.get("step") == name
        earlier = operations.status(operation) if begun else None
        if not begun:
            _nothing_runs(operation, operations)
            operations.forget(operation)
            journal.note(step=name)
        if earlier is not None and not earlier.running:
            result = earlier
        else:
            result = operations.start_or_attach(operation, argv, timeout=timeout)
        if result.rc != 0:
            journal.note(state=restore_plan.FAILED, failed_at=_now(), rc=result.rc)
            how = "was interrupted" if result.rc is None else f"ended with exit code {result.rc}"
            raise CommandFailed(
                f"The restore step {name} {how}. The restore is half done.",
                "HALF_DONE",
                "Read the output. Then reset this host (cluster_reset because: own_trial), create the cluster again,"
                " and restore again, with another candidate if the backup is to blame.",
                step=name,
                rc=result.rc,
                output_tail=result.output_tail,
                journal=journal.path,
            )
        journal.note(done=number + 1)
    journal.note(state=restore_plan.DONE, step=None)


def await_service(api: Api, timeout: float) -> float:
    """Waits until the service answers its plain health question with 204; returns the seconds that took. Raises
    :class:`TimedOut` with what was seen last."""
    started = time.monotonic()
    while True:
        answer = api.ask_health("plain")
        if answer.status == 204:
            return round(time.monotonic() - started, 3)
        if time.monotonic() - started >= timeout:
            raise TimedOut(
                f"Every step ended well, but the service on {api.endpoint.label} is not up"
                f" ({answer.status or answer.failure}). Its master key may not open here.",
                "NOT_SERVING",
                "Stop and keep the logs. Is this backup newer than the join of this node, of the same DSM release and"
                " the same machine? To try another one: reset this host, create again, restore the other.",
                last_state=answer.as_dict(),
            )
        time.sleep(min(1.0, max(0.05, timeout / 100)))


def _operation(number: int, name: str) -> str:
    return f"restore-{number + 1:02d}-{_UNSAFE.sub('-', name.lower())[:40]}"


def _nothing_runs(operation: str, operations: Operations) -> None:
    earlier = operations.status(operation)
    if earlier is not None and earlier.running:
        raise Refused(
            f"The operation {operation} of an earlier restore still runs on this host since {earlier.started_at}.",
            "OPERATION_CONFLICT",
            "Wait for it to end, then reset this host, create the cluster again, and restore again.",
        )


def _measure(path: str) -> tuple[int, set[str]]:
    """Size in bytes and the hashes that may stand for it: of the file itself, and the tree digest of the manifest
    (SHA-256 over the lines that sha256sum prints, sorted by path)."""
    names = [""]
    if os.path.isdir(path):
        walked = [os.path.join(directory, one) for directory, _names, found in os.walk(path) for one in found]
        names = [os.path.relpath(one, path) for one in walked]
    entries = []
    for name in names:
        digest, size = _hash(os.path.join(path, name) if name else path)
        entries.append(FileEntry(name or os.path.basename(path), size, 0, digest))
    tree = tree_digest(entries)
    return sum(one.size for one in entries), {tree} if os.path.isdir(path) else {tree, entries[0].sha256}


def _hash(path: str) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as handle:
        while True:
            chunk = handle.read(_CHUNK)
            if not chunk:
                return digest.hexdigest(), size
            digest.update(chunk)
            size += len(chunk)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
