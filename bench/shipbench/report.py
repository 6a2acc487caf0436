# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left when the bench ends: lines of JSON for every run, a table for people, a summary of the goals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from shipbench.figures import spread
from shipbench.goals import Results, judge_all, times
from shipbench.links import LINKS
from shipbench.peers import OURS

SCHEMA = 1
#: A run during which strangers used more than this share of the processors is marked.
BUSY = 0.10


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

    def of(self, link: str) -> list[dict[str, Any]]:
        """The runs of one link."""
        return [row for row in self.all if row["kind"] == "run" and row["link"] == link]


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
        f"{'cpu store':>11}{'cpu source':>11}{'MB store':>10}{'MB source':>10}{'wire':>7}{'resent':>8}"
    )
    text = []
    for link in LINKS.values():
        mine = [row for row in rows if row["link"] == link.name]
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
        f"{median('client_memory') / 1e6:10.0f}{median('server_memory') / 1e6:10.0f}"
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
        "rounds": results.rounds,
        "bytes": results.size,
        **facts,
        "links": [row for row in rows if row["kind"] == "calibration"],
        "busy_runs": sum(row["strangers"] > BUSY for row in runs),
        "runs": len(runs),
        "goals": judge_all(results),
    }


def fill(results: Results, rows: Rows) -> None:
    """Bring what the rows say into the results that goals are judged by."""
    for name, found in results.links.items():
        mine = rows.of(name)
        found.rounds = {number: dict(of_round) for number, of_round in times(mine).items()}
        found.busy = sum(row["strangers"] > BUSY for row in mine)
        found.failed = [
            f"ours, round {row['round']}: {row['why']}" for row in mine if row["tool"] == OURS and not row["ok"]
        ]
    peaks = [
        float(row["client_memory"]) for row in rows.all if row["kind"] == "run" and row["tool"] == OURS and row["ok"]
    ]
    if peaks:
        results.local["memory"] = peaks


def write(output: Path, results: Results, rows: Rows, facts: Mapping[str, Any], *, complete: bool) -> None:
    """Write table.txt and summary.json, each replaced as a whole."""
    value = summary(results, rows.all, facts, complete)
    runs = [row for row in rows.all if row["kind"] == "run"]
    state = "" if complete else "INCOMPLETE\n"
    state += "SMOKE RUN: no goal can be judged by it\n" if results.smoke else ""
    absent = [name for name, version in facts["peers"].items() if not version]
    state += f"Absent: {', '.join(absent)}\n" if absent else ""
    text = "\n".join(part for part in (state, table(runs) if runs else "", goals_table(value["goals"])) if part)
    for name, content in (("table.txt", text), ("summary.json", json.dumps(value, indent=1, sort_keys=True) + "\n")):
        unfinished = output / f"{name}.new"
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(output / name)
