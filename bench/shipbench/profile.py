# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where processor time goes: what perf saw of both ends during one more run of a tool, outside of the rounds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from shipbench import system

#: Samples a second of each processor; no round number, so that nothing that happens regularly hits or misses them all.
FREQUENCY = 997
#: Lines below this share (%) are left out.
LEAST = "0.5"
TABLES = (("by process and library", "comm,dso"), ("by function", "comm,dso,symbol"))


def recorded(argv: Sequence[str], data: Path) -> list[str]:
    """The command that runs ``argv`` while all processors are sampled into the file ``data``."""
    return ["perf", "record", "--quiet", "-a", "-F", str(FREQUENCY), "-o", str(data), "--", *argv]


def text(title: str, data: Path) -> str:
    """Tables of what was recorded. Raises BenchError when perf cannot read it."""
    parts = [title]
    for name, sort in TABLES:
        command = ["perf", "report", "--stdio", "-q", "--percent-limit", LEAST, "--sort", sort, "-i", str(data)]
        missing = ("perf is not there.", "Install Debian's linux-perf.")
        printed = system.output(command, 300, missing=missing, failed="perf cannot report")
        # Columns that only some events have are empty; of a library without symbols the first table has the sum.
        lines = [re.sub(r"(\s+-)*\s*$", "", line) for line in printed.splitlines() if line.strip()]
        lines = [line for line in lines if not re.search(r"0x[0-9a-f]{16}$", line)]
        parts.append("\n".join([f"{name} (% of all samples)", *lines]))
    return "\n\n".join(parts) + "\n"
