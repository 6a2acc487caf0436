# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the user asked for."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shipbench import peers
from shipbench.goals import ROUNDS, SIZE
from shipbench.links import LINKS

CHECKOUT = Path(__file__).resolve().parents[2]
OUTPUT = CHECKOUT / "build" / "bench"
LOCAL = ("verify", "catalogue")
MIB = 1 << 20


@dataclass(frozen=True)
class Asked:
    """What the user asked for."""

    only: tuple[str, ...]
    rounds: int
    size: int
    seed: int
    tools: tuple[str, ...]
    workers: int | None
    install: bool
    busy: bool
    output: Path
    keep: bool
    profile: bool

    @property
    def links(self) -> list[str]:
        """Names of the links to be measured."""
        return [name for name in LINKS if name in self.only]

    @property
    def smoke(self) -> bool:
        """Whether no goal can be judged by it."""
        return self.rounds < ROUNDS or self.size < SIZE


def parse(arguments: Sequence[str]) -> Asked:
    """The arguments; anything that cannot be meant ends with usage and exit code 2."""
    parser = argparse.ArgumentParser(prog="bench", description="Shipping against its peers. See bench/README.md.")
    everything = [*LINKS, *LOCAL]
    tools = [peer.name for peer in peers.PEERS]
    parser.add_argument("--only", default="", help=f"what to measure, comma separated: {', '.join(everything)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds on each link (default %(default)s)")
    parser.add_argument("--size", type=int, default=SIZE // MIB, help="size of the file in MiB (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the order within rounds (default %(default)s)")
    parser.add_argument("--tools", default="", help=f"peers, comma separated (default all): {', '.join(tools)}")
    parser.add_argument("--workers", type=int, help="option workers of backup_ship (default: its own)")
    parser.add_argument(
        "--no-install", action="store_true", help="install nothing; absent peers are reported as absent"
    )
    parser.add_argument("--busy", action="store_true", help="measure although the machine is busy; runs are marked")
    parser.add_argument(
        "--keep", action="store_true", help="keep what this commit's earlier run measured of other things"
    )
    parser.add_argument(
        "--profile", action="store_true", help="after the rounds of a link, each tool once more under perf (Linux)"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where results go (default build/bench)")
    given = parser.parse_args(list(arguments))
    only = tuple(name for name in given.only.split(",") if name) or tuple(everything)
    chosen = tuple(name for name in given.tools.split(",") if name) or tuple(tools)
    for name, known in [*((name, everything) for name in only), *((name, tools) for name in chosen)]:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    if given.rounds < 1 or given.size < 1:
        parser.error("rounds and size must be 1 or more")
    return Asked(
        only,
        given.rounds,
        given.size * MIB,
        given.seed,
        chosen,
        given.workers,
        not given.no_install,
        given.busy,
        given.output.resolve(),
        given.keep,
        given.profile,
    )
