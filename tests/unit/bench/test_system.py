# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What /proc says, read from recorded texts."""

from __future__ import annotations

import os
import sys

import pytest
from shipbench import system
from shipbench.errors import BenchError

STAT = "4242 (a (tool) x) S 1 4242 4242 0 -1 4194304 500 900 0 0 150 50 30 20 20 0 1 0 7700 1000 200 0"
SNMP = (
    "Ip: Forwarding DefaultTTL\nIp: 1 64\n"
    "Tcp: RtoAlgorithm InSegs OutSegs RetransSegs InErrs\nTcp: 1 900 800 17 0\nUdp: InDatagrams\nUdp: 3\n"
)
DEVICES = (
    "Inter-|   Receive                                                |  Transmit\n"
    " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls\n"
    "    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0\n"
    "  wan0: 1073741      20    0    0    0     0          0         0     4096      10    0    0    0     0\n"
)


def test_processor_time_of_a_command_with_brackets_in_its_name() -> None:
    assert system.parse_processor_time(STAT, children=False) == 200 / system.TICK
    assert system.parse_processor_time(STAT, children=True) == 250 / system.TICK


def test_the_parent_of_a_command_with_brackets_in_its_name() -> None:
    assert system.parse_parent(STAT) == 1


def test_a_child_counts_until_it_was_waited_for() -> None:
    """What it used is only then its parent's."""
    child = os.posix_spawn(sys.executable, [sys.executable, "-c", "sum(range(10**6))"], os.environ)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    before = system.processor_time(os.getpid(), children=True)
    assert child in system.children(os.getpid())
    os.waitpid(child, 0)
    assert child not in system.children(os.getpid())
    assert system.processor_time(os.getpid(), children=True) > before


def test_busy_time_leaves_idle_and_interrupts_out() -> None:
    assert system.parse_busy("cpu  100 20 30 9000 500 7 8 9 0 0\ncpu0 1 1 1 1\n") == 150 / system.TICK


def test_memory_is_the_share_of_what_is_shared() -> None:
    assert system.parse_pss("7f00-7fff ---p [rollup]\nRss:  9000 kB\nPss:  2048 kB\nPss_Anon:  1 kB\n") == 2 << 20
    assert system.parse_pss("") == 0


def test_bytes_of_an_interface() -> None:
    assert system.parse_interface(DEVICES, "wan0") == (1073741, 4096)
    assert system.parse_interface(DEVICES, "eth0") == (0, 0)


def test_segments_that_were_sent_again() -> None:
    assert system.parse_retransmitted(SNMP) == 17


@pytest.mark.parametrize(("allowed", "before"), [(True, ["chrt", "--rr", "2"]), (False, [])])
def test_real_time_priority_is_used_where_it_is_allowed(monkeypatch, allowed: bool, before: list[str]) -> None:
    monkeypatch.setattr(system, "real_time", lambda: allowed)
    assert system.ahead(["wan", "x"], 2) == [*before, "wan", "x"]


def test_this_process_has_memory_and_used_time() -> None:
    assert system.memory_of(1 << 30) == 0
    assert system.available_memory() > 0
    assert system.network_of() == system.network_of("self")


def test_a_command_is_there_and_works_or_its_own_words_are_told() -> None:
    missing = ("There is no such tool.", "Install it.")
    assert system.output(["echo", "yes"], 10, missing=missing, failed="It fails") == "yes\n"
    with pytest.raises(BenchError) as absent:
        system.output(["kmsops-no-such-tool"], 10, missing=missing, failed="It fails")
    assert (absent.value.message, absent.value.remedy) == missing
    with pytest.raises(BenchError) as failed:
        system.output(["sh", "-c", "echo because >&2; exit 3"], 10, missing=missing, failed="It fails")
    assert failed.value.message == "It fails: because"
