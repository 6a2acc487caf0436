# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report. It is on disk from the first second, so that a rehearsal that dies leaves one that says `aborted`."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import tempfile
import typing as t

PASSED, FAILED, ABORTED = "passed", "failed", "aborted"


def utc(moment: float) -> str:
    """Seconds since the epoch as an ISO time in UTC."""
    return datetime.datetime.fromtimestamp(moment, tz=datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def human(seconds: float | None) -> str:
    """A duration as a person reads it; `not proven` where there is none."""
    if seconds is None:
        return "not proven"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"


class Report:
    """Everything that the rehearsal found out, written after every change (temporary file, fsync, rename)."""

    def __init__(self, directory: pathlib.Path, started: float) -> None:
        self.directory = directory
        self.data: dict[str, t.Any] = {
            "verdict": ABORTED,
            "reason": "the rehearsal has not come to its end",
            "started": utc(started),
            "seconds": 0.0,
            "aborted_in": None,
            "steps": [],
            "recovery_time_seconds": None,
            "recovery_point_seconds": None,
            "canaries": [],
            "known_ciphertexts": None,
            "production_before": None,
            "cluster_after": {"nodes": []},
            "stand_in": "This was a rehearsal with a stand-in for DSM, not with DSM itself.",
        }

    def begin(self, name: str, title: str, moment: float) -> dict[str, t.Any]:
        """A step starts. Until it is finished it is the step that a dead rehearsal died in."""
        step = {"name": name, "title": title, "start": utc(moment), "seconds": None, "outcome": None, "evidence": None}
        self.data["steps"].append(step)
        self.data["aborted_in"] = name
        self.write()
        return step

    def finish(self, step: dict[str, t.Any], outcome: str, seconds: float, evidence: t.Any) -> None:
        """A step is over. A step that passed without evidence is `not_proven`."""
        if outcome == PASSED and not evidence:
            outcome = "not_proven"
        step.update(outcome=outcome, seconds=round(seconds, 1), evidence=evidence)
        self.write()

    def conclude(self, verdict: str, reason: str, seconds: float) -> None:
        """The last word."""
        self.data.update(verdict=verdict, reason=reason, seconds=round(seconds, 1))
        if verdict != ABORTED:
            self.data["aborted_in"] = None
        self.write()

    def write(self) -> None:
        """Both files, each replaced whole."""
        self.directory.mkdir(parents=True, exist_ok=True)
        _replace(self.directory / "report.json", json.dumps(self.data, indent=2) + "\n")
        _replace(self.directory / "report.md", self.markdown())

    def markdown(self) -> str:
        """The page for people."""
        data = self.data
        lines = [
            "# Rehearsal of the disaster plan",
            "",
            f"**{data['verdict'].upper()}** ({data['reason']}).",
            f"Started {data['started']}, took {human(data['seconds'])}.",
            "",
            f"> {data['stand_in']}",
            "",
        ]
        if data["aborted_in"]:
            lines += [f"It ended in step `{data['aborted_in']}`.", ""]
        lines += [
            "| what | measured |",
            "|---|---|",
            f"| recovery time (machine) | {human(data['recovery_time_seconds'])} |",
            f"| recovery point (age of the canary that came back) | {human(data['recovery_point_seconds'])} |",
            f"| canaries proved | {_proved(data['canaries'])} |",
            f"| production's ciphertexts decrypted | {_ciphertexts(data['known_ciphertexts'])} |",
            f"| nodes afterwards | {', '.join(n['name'] for n in data['cluster_after']['nodes']) or 'not proven'} |",
            "",
            "| step | start | took | outcome |",
            "|---|---|---|---|",
        ]
        for step in data["steps"]:
            took = human(step["seconds"]) if step["seconds"] is not None else "-"
            lines.append(f"| {step['title']} | {step['start']} | {took} | {step['outcome'] or 'not finished'} |")
        lines.append("")
        for step in data["steps"]:
            if step["evidence"]:
                evidence = json.dumps(step["evidence"], indent=2)
                lines += [f"## {step['title']}", "", "```json", evidence, "```", ""]
        return "\n".join(lines)


def _proved(canaries: list[dict[str, t.Any]]) -> str:
    if not canaries:
        return "not proven"
    return f"{sum(1 for canary in canaries if canary['proved'])} of {len(canaries)}"


def _ciphertexts(known: dict[str, t.Any] | None) -> str:
    return f"{known['decrypted']} of {known['known']}, through every node" if known else "not proven"


def _replace(path: pathlib.Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
