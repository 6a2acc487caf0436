# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left when the bench ends: lines of JSON for every run, a table for people, a summary of the goals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from shipbench.errors import BenchError
from shipbench.figures import spread
from shipbench.goals import LinkResult, Results, judge_all, times
from shipbench.links import LINKS
from shipbench.peers import OURS

SCHEMA = 1
#: A run during which strangers used more than this share of the processors is marked.
BUSY = 0.10
#: What must be the same for the results of two runs to stand side by side.
SAME = ("commit", "kernel", "processors", "rounds", "bytes", "workers", "peers")


class Rows:
    """Every run as one line of JSON, written as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.all: list[dict[str, Any]] = []
        self._file: TextIO = open(path, "w", encoding="utf-8")  # noqa: SIM115

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row, and write it down."""
        self.all.append(row)
        self._file.write(json.dumps(row, sort_keys=True) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def line(row: Mapping[str, Any]) -> str:
    """One run for a person who watches."""
    what = f"{row['bytes'] / row['seconds'] / 1e6:7.1f} MB/s" if row["ok"] else f"{'-':>7}     "
    marks = "" if row["ok"] else f"  {row['why']}"
    marks += "  (machine busy)" if row["strangers"] > BUSY else ""
    return f"  {row['round']}  {row['tool']:<15}{row['seconds']:8.2f} s {what}{marks}"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What every tool did on every link: medians over rounds, and what it cost."""
    head = (
        f"{'tool':<16}{'MB/s':>8}{'low':>8}{'high':>8}{'n':>4}{'of':>4}"
        f"{'cpu store':>11}{'cpu source':>11}{'busy':>7}{'MB store':>10}{'MB source':>10}{'wire':>7}{'resent':>8}"
    )
    text = []
    for link in LINKS.values():
        mine = [row for row in rows if row["part"] == link.name]
        if not mine:
            continue
        text += ["", link.title, head]
        text += [_tool(name, [row for row in mine if row["tool"] == name]) for name in _order(mine)]
    return "\n".join(text).strip() + "\n"


def _order(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return sorted({row["tool"] for row in rows}, key=lambda name: (name != OURS, name))


def _tool(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    good = [row for row in rows if row["ok"]]
    rates = spread([row["bytes"] / row["seconds"] / 1e6 for row in good])
    if rates is None:
        return f"{name:<16}{'-':>8}{'':>16}{0:>4}{len(rows):>4}  {rows[-1]['why']}"

    def median(key: str) -> float:
        found = spread([row[key] for row in good])
        return found.median if found else 0.0

    wire = spread([row["wire"]["store_received"] / row["bytes"] for row in good])
    return (
        f"{name:<16}{rates.median:8.1f}{rates.low:8.1f}{rates.high:8.1f}{rates.n:>4}{len(rows):>4}"
        f"{median('client_processor'):9.2f} s{median('server_processor'):9.2f} s"
        f"{median('busy') * 100:5.0f} %{median('client_memory') / 1e6:10.0f}{median('server_memory') / 1e6:10.0f}"
        f"{wire.median if wire else 0:7.3f}{median('retransmitted'):8.0f}"
    )


def goals_table(goals: Sequence[Mapping[str, Any]]) -> str:
    """The goals for a person."""
    text = [f"{'goal':<18}{'want':>11}{'median':>10}{'low':>10}{'high':>10}{'n':>4}  met"]
    for goal in goals:
        want = f"{'<=' if goal['at_most'] else '>='} {_number(goal['want'])}"
        figures = "".join(f"{_number(goal[key]):>10}" for key in ("median", "low", "high"))
        met = {True: "yes", False: "NO", None: "not claimed"}[goal["met"]]
        against = f" (against {goal['against']})" if goal.get("against") else ""
        why = f": {'; '.join(goal['why'])}" if goal["why"] else ""
        text.append(f"{goal['name']:<18}{want:>11}{figures}{goal['n']:>4}  {met}{against}{why}")
    return "\n".join(text) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value:.2f}"


def summary(
    results: Results, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any], complete: bool
) -> dict[str, Any]:
    """The content of summary.json."""
    runs = [row for row in rows if row["kind"] == "run"]
    return {
        "schema": SCHEMA,
        "complete": complete,
        "smoke": results.smoke,
        **facts,
        "links": [row for row in rows if row["kind"] == "calibration"],
        "busy_runs": sum(row["strangers"] > BUSY for row in runs),
        "runs": len(runs),
        "goals": judge_all(results),
    }


def results_of(rows: Sequence[Mapping[str, Any]], *, rounds: int, size: int) -> Results:
    """What goals are judged by, from nothing but the rows."""
    results = Results(rounds=rounds, size=size)
    for row in rows:
        if row["kind"] == "part" and row["part"] in LINKS:
            results.links[row["part"]] = LinkResult(absent=list(row["absent"]))
        elif row["kind"] == "unusable" and row["part"] not in LINKS:
            results.failed.setdefault(row["part"], []).append(row["why"])
        elif row["kind"] in ("verify", "catalogue"):
            results.local.setdefault(row["kind"], []).append(row["value"])
    for name, found in results.links.items():
        mine = [row for row in rows if row.get("part") == name]
        runs = [row for row in mine if row["kind"] == "run"]
        found.rounds = {number: dict(of_round) for number, of_round in times(runs).items()}
        found.runs = len(runs)
        found.busy = sum(row["strangers"] > BUSY for row in runs)
        found.failed = [f"ours, round {r['round']}: {r['why']}" for r in runs if r["tool"] == OURS and not r["ok"]]
        last = {row["when"]: row["off"] for row in mine if row["kind"] == "calibration"}
        found.off = [reason for reasons in last.values() for reason in reasons]
        found.off += [row["why"] for row in mine if row["kind"] == "unusable"]
    peaks = [float(row["client_memory"]) for row in rows if row["kind"] == "run" and row["tool"] == OURS and row["ok"]]
    if peaks:
        results.local["memory"] = peaks
    return results


def unfinished(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parts that were begun and not ended."""
    begun = [row["part"] for row in rows if row["kind"] == "part"]
    ended = {row["part"] for row in rows if row["kind"] == "end"}
    return [part for part in begun if part not in ended]


def kept(text: str, facts: Mapping[str, Any], asked: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of an earlier run that stay beside those of this one: finished parts that are not measured again.

    Raises BenchError unless both runs are of the same code, machine, and size.
    """
    rows: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    if not rows:
        return []
    differing = [name for name in SAME if rows[0].get(name) != facts[name]]
    if differing or str(facts["commit"]).endswith("-dirty"):
        raise BenchError(
            f"The earlier results cannot stay beside new ones: they differ in {', '.join(differing or ['changes'])}.",
            "Leave out --keep, or measure with the same commit, machine, rounds and size.",
        )
    left_out = {*unfinished(rows), *asked}
    return [row for row in rows if "part" in row and row["part"] not in left_out]


def write(output: Path, rows: Rows, facts: Mapping[str, Any], *, complete: bool) -> None:
    """Write table.txt and summary.json, each replaced as a whole."""
    results = results_of(rows.all, rounds=facts["rounds"], size=facts["bytes"])
    value = summary(results, rows.all, facts, complete)
    runs = [row for row in rows.all if row["kind"] == "run"]
    state = "" if complete else "INCOMPLETE\n"
    state += "SMOKE RUN: no goal can be judged by it\n" if results.smoke else ""
    absent = [name for name, version in facts["peers"].items() if not version]
    state += f"Absent: {', '.join(absent)}\n" if absent else ""
    text = "\n".join(part for part in (state, table(runs) if runs else "", goals_table(value["goals"])) if part)
    for name, content in (("table.txt", text), ("summary.json", json.dumps(value, indent=1, sort_keys=True) + "\n")):
        half = output / f"{name}.new"
        half.write_text(content, encoding="utf-8")
        half.replace(output / name)
