# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""Proof of the bits: backups read again, and failed unless everything about them is understood and right."""

from __future__ import annotations

import hashlib
import os
import stat
import time
import typing as t
from dataclasses import dataclass, field

from .._core.manifest import FileEntry, Manifest
from .._core.strict import Problem, utc_seconds, utc_text
from .._errors import DsmError, Reason
from . import _structure
from ._store import ClusterStore, Entry

_PIECE = 1 << 20


@dataclass
class Verdict:
    """``ok`` or ``failed`` for one backup, with every reason, the bytes that were read and the time (s) it took."""

    id: str
    verdict: str
    reasons: list[Problem]
    bytes: int = 0
    seconds: float = 0.0
    structure: str = "unknown"
    digest: str = ""
    published_at: str | None = None

    def as_dict(self) -> dict[str, t.Any]:
        """For a module's result."""
        value = dict(self.__dict__)
        value["reasons"] = [{"code": item.code, "message": item.message} for item in self.reasons]
        return value


@dataclass
class VerifyResult:
    """Verdicts, and what is wrong with the store as a whole."""

    verdicts: list[Verdict] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)


def verify(
    store: ClusterStore, ids: t.Sequence[str], *, newest: bool, max_age: float | None, run_id: str, record: bool
) -> VerifyResult:
    """Read the chosen backups (all, the newest, or those named) and record each verdict in the ledger.

    ``max_age`` (s) is how old the newest published backup may be. Nothing published is a failure, not an empty success.
    """
    entries = {entry.id: entry for entry in store.entries()}
    published = [entry for entry in entries.values() if entry.manifest is not None]
    result = VerifyResult()
    _freshness(store, published, max_age, result)
    _ledger(store, published, result)
    if ids:
        chosen = [entries.get(name) or _absent(name) for name in ids]
    elif newest:
        chosen = published[-1:]
    else:
        chosen = [entry for entry in entries.values() if entry.state != "incomplete"]
    broken = bool(store.ledger.chain().problems)
    for entry in chosen:
        verdict = verify_entry(store, entry)
        result.verdicts.append(verdict)
        if record and not broken and entry.id in entries:
            data = {
                "verdict": verdict.verdict,
                "digest": verdict.digest,
                "bytes": verdict.bytes,
                "codes": sorted({item.code for item in verdict.reasons}),
            }
            store.ledger.append(run_id=run_id, kind="verified", subject=entry.id, data=data)
    return result


def _absent(name: str) -> Entry:
    return Entry(name, "failed", None, (Problem("NOT_PUBLISHED", f"there is no backup {name!r}"),))


def verify_entry(store: ClusterStore, entry: Entry) -> Verdict:
    """Manifest, presence, size, SHA-256, structure of one backup."""
    started = time.monotonic()
    if entry.manifest is None:
        return Verdict(entry.id, "failed", list(entry.problems))
    manifest = entry.manifest
    verdict = Verdict(entry.id, "failed", [], digest=manifest.digest, published_at=manifest.published_at)
    data = store.data_path(entry.id)
    try:
        _presence(data, manifest, verdict)
        for item in manifest.files:
            _content(data, item, verdict)
        if not verdict.reasons:
            verdict.structure, problems = _structure.check(data, [item.path for item in manifest.files])
            verdict.reasons.extend(problems)
    except OSError as error:
        verdict.reasons.append(Problem("UNREADABLE", f"{error.filename or data}: {error.strerror or error}"))
    verdict.verdict = "failed" if verdict.reasons else "ok"
    verdict.seconds = round(time.monotonic() - started, 3)
    return verdict


def _presence(data: str, manifest: Manifest, verdict: Verdict) -> None:
    """Exactly the files of the manifest, regular ones, of the right size."""
    wanted = {item.path: item.size for item in manifest.files}
    found = set()

    def unlistable(error: OSError) -> None:
        raise error

    for directory, directories, files in os.walk(data, onerror=unlistable):
        for name in [*files, *(item for item in directories if os.path.islink(os.path.join(directory, item)))]:
            path = os.path.join(directory, name)
            relative = os.path.relpath(path, data)
            found.add(relative)
            status = os.lstat(path)
            if relative not in wanted:
                verdict.reasons.append(Problem("EXTRA_FILE", f"{relative!r} is not in the manifest"))
            elif not stat.S_ISREG(status.st_mode):
                verdict.reasons.append(Problem("NOT_A_FILE", f"{relative} is no regular file"))
            elif status.st_size != wanted[relative]:
                message = f"{relative} has {status.st_size} bytes, {wanted[relative]} were published"
                verdict.reasons.append(Problem("WRONG_SIZE", message))
    verdict.reasons.extend(
        Problem("MISSING_FILE", f"{relative} is missing") for relative in sorted(set(wanted) - found)
    )


def _content(data: str, item: FileEntry, verdict: Verdict) -> None:
    path = os.path.join(data, item.path)
    if not os.path.isfile(path) or os.path.islink(path):
        return
    whole = hashlib.sha256()
    with open(path, "rb") as file:
        while True:
            piece = file.read(_PIECE)
            if not piece:
                break
            whole.update(piece)
            verdict.bytes += len(piece)
    if whole.hexdigest() != item.sha256:
        verdict.reasons.append(Problem("CORRUPT", f"{item.path} is not what was published: its SHA-256 differs"))


def _freshness(store: ClusterStore, published: t.Sequence[Entry], max_age: float | None, result: VerifyResult) -> None:
    manifests = [entry.manifest for entry in published if entry.manifest is not None]
    if not manifests:
        result.reasons.append(
            Reason("NO_BACKUP", f"{store.path} holds no published backup.", "Run playbook ship_backups.")
        )
        return
    last = manifests[-1]
    age = time.time() - utc_seconds(last.published_at)
    if max_age is not None and age > max_age:
        result.reasons.append(
            Reason(
                "STALE",
                f"the newest backup {last.id} was published {age:.0f} s ago; {max_age:.0f} s are allowed.",
                "Look at the backup job of the cluster and at the last run of ship_backups.",
                hard=False,
            )
        )
    if age < -300:
        result.reasons.append(
            Reason(
                "CLOCK_SKEW",
                f"the newest backup {last.id} was published in the future ({last.published_at}, it is "
                f"{utc_text(time.time())}).",
                "Repair time synchronisation of the store.",
                hard=False,
            )
        )


def _ledger(store: ClusterStore, published: t.Sequence[Entry], result: VerifyResult) -> None:
    """The ledger holds together, and still has the event that each manifest says was its last."""
    chain = store.ledger.chain()
    for problem in chain.problems:
        result.reasons.append(
            Reason("LEDGER_BROKEN", problem.message, "Module ledger, state verified, says where.", hard=False)
        )
    hashes = {event.sequence: event.hash for event in chain.events}
    for entry in published if not chain.problems else ():
        anchor = entry.manifest.ledger if entry.manifest is not None else {"sequence": 0}
        if anchor["sequence"] and hashes.get(anchor["sequence"]) != anchor["hash"]:
            result.reasons.append(
                Reason(
                    "LEDGER_ROLLED_BACK",
                    f"{entry.id} was published after event {anchor['sequence']}, which the ledger does not have so.",
                    "Events were lost: put back the newest copy of ledger.jsonl.",
                    hard=False,
                )
            )
            return


def refuse_failed(result: VerifyResult, accept: t.Collection[str], report_only: bool) -> list[Reason]:
    """Raise with all reasons if anything failed; returns the soft reasons that were accepted."""
    standing = [reason for reason in result.reasons if reason.hard or reason.code not in accept]
    accepted = [reason for reason in result.reasons if reason not in standing]
    for verdict in result.verdicts:
        standing.extend(
            Reason(problem.code, f"{verdict.id}: {problem.message}", "Ship it again while the source still has it.")
            for problem in verdict.reasons
        )
    if standing and not report_only:
        failed = sum(verdict.verdict != "ok" for verdict in result.verdicts)
        codes = {reason.code for reason in standing}
        raise DsmError(
            f"Verification failed ({failed} of {len(result.verdicts)} backups).",
            codes.pop() if len(codes) == 1 else "VERIFY_FAILED",
            reasons=standing,
            verdicts=[verdict.as_dict() for verdict in result.verdicts],
        )
    return accepted
