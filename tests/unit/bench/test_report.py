# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is left of a bench: lines, table, summary; and the link emulator's and netem's commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shipbench import cli, options, report, wire
from shipbench.ends import End
from shipbench.errors import BenchError
from shipbench.goals import GOALS
from shipbench.links import LINKS
from shipbench.peers import OURS, PEERS


def run(tool: str, number: int, seconds: float, why: str = "", strangers: float = 0.0) -> dict[str, Any]:
    return {
        "kind": "run",
        "part": "lan",
        "tool": tool,
        "round": number,
        "bytes": 1 << 30,
        "seconds": seconds,
        "ok": not why,
        "why": why,
        "link_off": [],
        "strangers": strangers,
        "busy": 0.9,
        "client_processor": 1.0,
        "server_processor": 2.0,
        "client_memory": 90_000_000,
        "server_memory": 20_000_000,
        "retransmitted": 3,
        "wire": {"store_received": 1.02 * (1 << 30)},
    }


FACTS = {
    "peers": {peer.name: "" if peer.name == "lftp" else "1.0" for peer in PEERS},
    "commit": "abc",
    "kernel": "6.1",
    "processors": 2,
    "rounds": 5,
    "bytes": 1 << 30,
    "workers": None,
}


PART = {"kind": "part", "part": "lan", "absent": ["lftp"]}
END = {"kind": "end", "part": "lan"}


def calibration(when: str, off: list[str]) -> dict[str, Any]:
    return {"kind": "calibration", "part": "lan", "when": when, "off": off}


@pytest.fixture
def rows(tmp_path: Path) -> report.Rows:
    rows = report.Rows(tmp_path / "results.jsonl")
    rows.add({"kind": "facts", **FACTS})
    rows.add(PART)
    for number in range(1, 6):
        rows.add(run(OURS, number, 2.0))
        rows.add(run("scp", number, 4.0 if number > 1 else 2.1, strangers=0.5 if number == 2 else 0.0))
        rows.add(run("rsync", number, 9.0, why="stopped after 90 s"))
    return rows


def goals(rows: report.Rows, **more: Any) -> dict[str, Any]:
    results = report.results_of(rows.all, **{"rounds": 5, "size": 1 << 30, **more})
    return {goal["name"]: goal for goal in report.summary(results, rows.all, FACTS, complete=True)["goals"]}


def test_every_run_is_a_line(rows: report.Rows, tmp_path: Path) -> None:
    rows.close()
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["tool"] for line in lines[2:5]] == [OURS, "scp", "rsync"]
    assert len(lines) == 17


def test_the_summary_holds_every_goal(rows: report.Rows) -> None:
    found = goals(rows)
    assert list(found) == [goal.name for goal in GOALS]
    scp = found["lan-scp"]
    assert (scp["median"], scp["low"], scp["high"], scp["n"], scp["met"]) == (2.0, 1.05, 2.0, 5, True)
    assert scp["busy_runs"] == 1
    assert (found["memory"]["median"], found["memory"]["met"]) == (90_000_000, True)
    assert found["1g-20ms"]["why"] == ["not run"]


def test_the_summary_says_what_kind_of_run_it_was(rows: report.Rows) -> None:
    value = report.summary(report.results_of(rows.all, rounds=1, size=1 << 30), rows.all, FACTS, complete=False)
    assert (value["complete"], value["smoke"], value["busy_runs"], value["runs"]) == (False, True, 1, 15)
    assert value["kernel"] == "6.1"


def test_a_run_of_ours_that_failed_is_in_the_summary(rows: report.Rows) -> None:
    rows.add(run(OURS, 6, 1.0, why="what landed has another SHA-256"))
    scp = goals(rows)["lan-scp"]
    assert scp["met"] is False
    assert scp["why"] == ["ours, round 6: what landed has another SHA-256"]


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ([calibration("before", ["rtt"]), calibration("before", [])], []),
        ([calibration("before", []), calibration("after", ["rtt"])], ["the link is off: rtt"]),
        ([{"kind": "unusable", "part": "lan", "why": "no sshd"}], ["the link is off: no sshd"]),
    ],
)
def test_the_last_calibration_counts(rows: report.Rows, more: list[dict[str, Any]], why: list[str]) -> None:
    for row in more:
        rows.add(row)
    scp = goals(rows)["lan-scp"]
    assert scp["why"] == why
    assert scp["met"] is (None if why else True)


def test_measurements_without_a_link(rows: report.Rows) -> None:
    for number in range(1, 6):
        rows.add({"kind": "verify", "part": "verify", "round": number, "value": 0.95})
    rows.add({"kind": "unusable", "part": "catalogue", "why": "no such module"})
    found = goals(rows)
    assert (found["verify-at-rest"]["median"], found["verify-at-rest"]["met"]) == (0.95, True)
    assert (found["catalogue"]["met"], found["catalogue"]["why"]) == (False, ["no such module"])


def test_what_is_written_can_be_read_and_says_what_is_missing(rows: report.Rows, tmp_path: Path) -> None:
    report.write(tmp_path, rows, FACTS, complete=False)
    assert json.loads((tmp_path / "summary.json").read_text())["complete"] is False
    text = (tmp_path / "table.txt").read_text()
    assert text.startswith("INCOMPLETE\nAbsent: lftp\n")
    assert "stopped after 90 s" in text
    assert "not claimed: not run" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.jsonl", "summary.json", "table.txt"]


# -- keeping what was measured before ----------
def text_of(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_finished_parts_that_are_not_measured_again_are_kept() -> None:
    other = {**PART, "part": "1g-20ms"}
    text = text_of({"kind": "facts", **FACTS}, PART, run("scp", 1, 2.0), END, other, run("scp", 1, 2.0))
    assert report.kept(text, FACTS, ["verify"]) == [PART, run("scp", 1, 2.0), END, run("scp", 1, 2.0)]
    assert report.kept(text_of({"kind": "facts", **FACTS}, PART, END), FACTS, ["lan"]) == []
    assert report.kept("", FACTS, ["lan"]) == []


def test_an_unfinished_part_is_not_kept() -> None:
    text = text_of({"kind": "facts", **FACTS}, PART, run("scp", 1, 2.0))
    assert report.kept(text, FACTS, ["verify"]) == []


@pytest.mark.parametrize("name", report.SAME)
def test_results_of_another_kind_are_not_mixed(name: str) -> None:
    text = text_of({"kind": "facts", **FACTS}, PART, END)
    with pytest.raises(BenchError, match=name):
        report.kept(text, {**FACTS, name: "another"}, ["verify"])


def test_results_of_changed_code_are_not_mixed() -> None:
    facts = {**FACTS, "commit": "abc-dirty"}
    with pytest.raises(BenchError, match="changes"):
        report.kept(text_of({"kind": "facts", **facts}, PART, END), facts, ["verify"])


def test_the_table_puts_ours_first(rows: report.Rows) -> None:
    lines = report.table([row for row in rows.all if row["kind"] == "run"]).splitlines()
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
    assert words == "tc qdisc add dev wan0 root netem limit 10000 delay 40ms rate 1000000000bit 24 loss 0.05%"
    assert "loss" not in wire.netem_argv(LINKS["200m-80ms"])


def test_the_emulator_is_told_the_links_promises(tmp_path: Path) -> None:
    source, store = End("source", tmp_path, holder=7), End("store", tmp_path, holder=8)
    words = wire.emulator_argv(Path("wan"), source, store, LINKS["1g-80ms-loss"])
    assert words[:8] == ["wan", "/proc/7/ns/net", "/proc/8/ns/net", "wan0", "1000000000", "40000", "500", "80000"]


def test_only_names_that_exist_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert options.parse([]).links == list(LINKS)
    assert options.parse(["--only", ""]).only == (*LINKS, *options.LOCAL)
    assert options.parse(["--only", "lan,verify"]).links == ["lan"]
    for wrong in (["--only", "wan"], ["--rounds", "0"], ["--size", "0"], ["--tools", "ftp"]):
        with pytest.raises(SystemExit) as caught:
            options.parse(wrong)
        assert caught.value.code == 2
    assert "'ftp' is none of scp" in capsys.readouterr().err


def test_a_small_or_short_run_is_a_smoke_run() -> None:
    assert not options.parse([]).smoke
    assert options.parse(["--rounds", "4"]).smoke
    assert options.parse(["--size", "1023"]).smoke


def test_a_person_who_is_not_root_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(cli, "LOCK", f"\0kmsops-bench-test-{id(monkeypatch)}")
    assert cli.main(["--only", "lan"]) == 1
    assert "Run it as root" in capsys.readouterr().err
