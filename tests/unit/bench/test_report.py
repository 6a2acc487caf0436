# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left of a bench: lines, table, summary; and the link emulator's and netem's commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shipbench import cli, report, wire
from shipbench.ends import End
from shipbench.goals import GOALS, LinkResult, Results
from shipbench.links import LINKS
from shipbench.peers import OURS, PEERS


def run(tool: str, number: int, seconds: float, why: str = "", strangers: float = 0.0) -> dict[str, Any]:
    return {
        "kind": "run",
        "link": "lan",
        "tool": tool,
        "round": number,
        "bytes": 1 << 30,
        "seconds": seconds,
        "ok": not why,
        "why": why,
        "link_off": [],
        "strangers": strangers,
        "client_processor": 1.0,
        "server_processor": 2.0,
        "client_memory": 90_000_000,
        "server_memory": 20_000_000,
        "retransmitted": 3,
        "wire": {"store_received": 1.02 * (1 << 30)},
    }


FACTS = {"peers": {peer.name: "" if peer.name == "lftp" else "1.0" for peer in PEERS}, "kernel": "6.1"}


@pytest.fixture
def rows(tmp_path: Path) -> report.Rows:
    rows = report.Rows(tmp_path / "results.jsonl")
    for number in range(1, 6):
        rows.add(run(OURS, number, 2.0))
        rows.add(run("scp", number, 4.0 if number > 1 else 2.1, strangers=0.5 if number == 2 else 0.0))
        rows.add(run("rsync", number, 9.0, why="stopped after 90 s"))
    return rows


@pytest.fixture
def results(rows: report.Rows) -> Results:
    results = Results(links={"lan": LinkResult(absent=["lftp"])})
    report.fill(results, rows)
    return results


def test_every_run_is_a_line(rows: report.Rows, tmp_path: Path) -> None:
    rows.close()
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["tool"] for line in lines[:3]] == [OURS, "scp", "rsync"]
    assert len(lines) == 15


def test_the_summary_holds_every_goal(rows: report.Rows, results: Results) -> None:
    value = report.summary(results, rows.all, FACTS, complete=True)
    assert [goal["name"] for goal in value["goals"]] == [goal.name for goal in GOALS]
    scp = next(goal for goal in value["goals"] if goal["name"] == "lan-scp")
    assert (scp["median"], scp["low"], scp["high"], scp["n"], scp["met"]) == (2.0, 1.05, 2.0, 5, True)
    assert (value["complete"], value["smoke"], value["busy_runs"], value["runs"]) == (True, False, 1, 15)
    memory = next(goal for goal in value["goals"] if goal["name"] == "memory")
    assert (memory["median"], memory["met"]) == (90_000_000, True)


def test_a_run_of_ours_that_failed_is_in_the_summary(rows: report.Rows, results: Results) -> None:
    rows.add(run(OURS, 6, 1.0, why="what landed has another SHA-256"))
    report.fill(results, rows)
    value = report.summary(results, rows.all, FACTS, complete=True)
    scp = next(goal for goal in value["goals"] if goal["name"] == "lan-scp")
    assert scp["met"] is False
    assert scp["why"] == ["ours, round 6: what landed has another SHA-256"]


def test_what_is_written_can_be_read_and_says_what_is_missing(
    rows: report.Rows, results: Results, tmp_path: Path
) -> None:
    report.write(tmp_path, results, rows, FACTS, complete=False)
    assert json.loads((tmp_path / "summary.json").read_text())["complete"] is False
    text = (tmp_path / "table.txt").read_text()
    assert text.startswith("INCOMPLETE\nAbsent: lftp\n")
    assert "stopped after 90 s" in text
    assert "not claimed: not run" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.jsonl", "summary.json", "table.txt"]


def test_the_table_puts_ours_first(rows: report.Rows) -> None:
    lines = report.table(rows.all).splitlines()
    assert lines[0] == LINKS["lan"].title
    assert [line.split()[0] for line in lines[1:]] == ["tool", "ours", "rsync", "scp"]
    assert "536.9" in lines[2]


def test_a_busy_machine_marks_a_run() -> None:
    assert "machine busy" in report.line(run("scp", 1, 2.0, strangers=0.2))
    assert "machine busy" not in report.line(run("scp", 1, 2.0))
    assert "536.9 MB/s" in report.line(run("scp", 1, 2.0))
    assert "stopped" in report.line(run("scp", 1, 2.0, why="stopped after 60 s"))


# -- commands ----------
def test_netem_is_told_the_links_promises() -> None:
    words = " ".join(wire.netem_argv(LINKS["1g-80ms-loss"]))
    assert words == "tc qdisc add dev wan0 root netem limit 11000 delay 40ms rate 1000000000bit loss 0.05%"
    assert "loss" not in wire.netem_argv(LINKS["200m-80ms"])


def test_the_emulator_is_told_the_links_promises(tmp_path: Path) -> None:
    source, store = End("source", tmp_path, holder=7), End("store", tmp_path, holder=8)
    words = wire.emulator_argv(Path("wan"), source, store, LINKS["1g-80ms-loss"])
    assert words[:8] == ["wan", "/proc/7/ns/net", "/proc/8/ns/net", "wan0", "1000000000", "40000", "500", "80000"]


def test_only_names_that_exist_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.parse([]).links == list(LINKS)
    assert cli.parse(["--only", ""]).only == (*LINKS, *cli.LOCAL)
    assert cli.parse(["--only", "lan,verify"]).links == ["lan"]
    for wrong in (["--only", "wan"], ["--rounds", "0"], ["--size", "0"], ["--tools", "ftp"]):
        with pytest.raises(SystemExit) as caught:
            cli.parse(wrong)
        assert caught.value.code == 2
    assert "'ftp' is none of scp" in capsys.readouterr().err


def test_a_small_or_short_run_is_a_smoke_run() -> None:
    assert not cli.parse([]).smoke
    assert cli.parse(["--rounds", "4"]).smoke
    assert cli.parse(["--size", "1023"]).smoke


def test_a_person_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(cli, "LOCK", f"\0kmsops-bench-test-{id(monkeypatch)}")
    assert cli.main(["--only", "lan"]) == 1
    assert "Run it as root" in capsys.readouterr().err
