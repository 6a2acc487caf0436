# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""One link: calibrate it, play the rounds, calibrate it again."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shipbench import calibration, ours, probe, profile, report, system
from shipbench.calibration import Measured
from shipbench.ends import SOURCE, End, await_words, tail
from shipbench.errors import BenchError
from shipbench.figures import shuffled
from shipbench.files import sha256
from shipbench.links import Link
from shipbench.meter import Meter
from shipbench.peers import OURS, Job, Peer, failure
from shipbench.report import Rows
from shipbench.server import Server
from shipbench.wire import Wire

PROBE_PORT = 5001
CALIBRATIONS = 3
#: How many datagrams show the losses of a link.
DATAGRAMS = 60_000
#: Rounds that may be played beyond the wanted ones, to replace those in which the link was off.
SPARE_ROUNDS = 2

Say = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What the user asked for, and what was prepared: the file at the source and its hash, tools, places."""

    rounds: int
    size: int
    seed: int
    smoke: bool
    workers: int | None
    peers: Sequence[Peer]
    absent: Sequence[str]
    file: Path
    digest: str
    scratch: Path
    package: Path
    modules: ours.Modules
    emulator: Path
    netem: bool
    #: where profiles go, None: none are made
    profiles: Path | None


class Session:
    """The rounds on one link."""

    def __init__(self, plan: Plan, link: Link, source: End, store: End, rows: Rows, say: Say) -> None:
        self.plan, self.link, self.source, self.store, self.rows, self.say = plan, link, source, store, rows, say
        self._work = plan.scratch / "work"
        self._place = plan.scratch / f"sshd-{link.name}"
        self._stopped: set[str] = set()

    def play(self, after_round: Callable[[], None]) -> None:
        """Everything on this link. Raises BenchError when it cannot be used at all."""
        plan = self.plan
        self._place.mkdir(mode=0o700)
        with Wire(
            self.link, self.source, self.store, emulator=plan.emulator, netem=plan.netem, scratch=plan.scratch
        ) as wire:
            self.say(f"{self.link.title}: {wire.means}")
            off = self._calibrate(wire, "before")
            if off and not plan.smoke:
                raise BenchError("the link is not what it says, so nothing is measured on it: " + "; ".join(off))
            server = Server(self.source, self._place).start()
            meter = Meter(wire, server, plan.scratch)
            try:
                self._rounds(meter, server, after_round)
                if plan.profiles is not None:
                    self._profile(meter, server, plan.profiles)
            finally:
                self.source.stop(server.pid)
            self._calibrate(wire, "after")

    # -- calibration ------------------------------------------------------------------------------------------------
    def _calibrate(self, wire: Wire, when: str) -> list[str]:
        """Measure the link, again if it is off (the machine may have been busy for a moment); why it is off at last."""
        off: list[str] = []
        for attempt in range(CALIBRATIONS):
            counters, used = wire.counters(), wire.processor_time()
            measured = self._probe(full=when == "before" and attempt == 0 and not self.plan.smoke)
            own = calibration.difference(wire.counters(), counters)
            seen = Measured(measured["rtt"], measured.get("rate", 0.0), measured["sent"], measured["lost"])
            off = [*calibration.off(self.link, seen), *calibration.emulator_off(self.link, own)]
            self.rows.add(
                {
                    "kind": "calibration",
                    "part": self.link.name,
                    "when": when,
                    "means": wire.means,
                    "measured": measured,
                    "checks": [check.as_dict() for check in calibration.checks(self.link, seen)],
                    "emulator": own,
                    "emulator_processor": wire.processor_time() - used,
                    "off": off,
                }
            )
            self.say("  " + calibration_line(measured, off))
            if not off:
                break
        return off

    def _probe(self, *, full: bool) -> dict[str, Any]:
        """Run the probes at both ends."""
        # What a busy machine keeps from the probes must not be taken for the link's doing.
        command = system.ahead([sys.executable, "-m", probe.__name__], 1)
        environment = {"PYTHONPATH": str(self.plan.package)}
        output = self.plan.scratch / "probe"
        serving = self.source.start(
            [*command, "serve", SOURCE, str(PROBE_PORT)], output=output, environment=environment
        )
        try:
            await_words(output, "ready", 10.0)
            numbers = (self.link.rate, DATAGRAMS // 10 if self.plan.smoke else DATAGRAMS, int(full))
            question = [*command, "ask", SOURCE, str(PROBE_PORT), *(str(number) for number in numbers)]
            path = f"PYTHONPATH={self.plan.package}"
            said = self.store.run(["env", path, *question], limit=120.0)
        finally:
            self.source.stop(serving)
        try:
            value: dict[str, Any] = json.loads(said)
        except ValueError:
            raise BenchError(f"The probes say nothing: {said[-300:]} {tail(output)}") from None
        return value

    # -- rounds -----------------------------------------------------------------------------------------------------
    def _rounds(self, meter: Meter, server: Server, after_round: Callable[[], None]) -> None:
        plan, names = self.plan, self._names()
        good = number = 0
        while good < plan.rounds and number < plan.rounds + SPARE_ROUNDS:
            number += 1
            order = [name for name in names if name not in self._stopped]
            spoilt = False
            for name in shuffled(order, seed=plan.seed, link=self.link.name, round_number=number):
                row = self._run(meter, server, name, number)
                self.rows.add(row)
                self.say(report.line(row))
                spoilt = spoilt or bool(row["link_off"])
            good += not spoilt
            after_round()

    def _names(self) -> list[str]:
        return [OURS, *(peer.name for peer in self.plan.peers if peer.runs_on(self.link.name))]

    def _profile(self, meter: Meter, server: Server, directory: Path) -> None:
        """Every tool that came home once more, with samples taken: slower by that, so nothing else is said of it."""
        data = self.plan.scratch / "perf.data"
        for name in self._names():
            if name in self._stopped:
                continue
            row = self._run(meter, server, name, 0, data)
            title = f"{name} on {self.link.title}, {row['bytes']} bytes in {row['seconds']:.1f} s under perf"
            place = directory / f"profile-{self.link.name}-{name}.txt"
            try:
                place.write_text(profile.text(f"{title}{row['why'] and ': ' + row['why']}", data), encoding="utf-8")
            except BenchError as error:
                # What was measured before does not become wrong by it.
                self.say(f"  no profile: {error.message} {row['why']}")
                return
            data.unlink()
            self.say(f"  {place.name}")

    def _run(self, meter: Meter, server: Server, name: str, number: int, perf: Path | None = None) -> dict[str, Any]:
        """One tool, once: into an empty directory, and every byte of the result hashed afterwards."""
        plan = self.plan
        shutil.rmtree(self._work, ignore_errors=True)
        self._work.mkdir(mode=0o700)
        target = self._work / "copy"
        limit = self.link.time_limit(plan.size)
        environment = {"HOME": str(plan.scratch / "home")}
        if name == OURS:
            argv = plan.modules.argv("backup_ship", ours.ship_options(self._work, str(plan.file), server, plan.workers))
            environment.update(plan.modules.environment)
        else:
            peer = next(peer for peer in plan.peers if peer.name == name)
            argv = peer.argv(Job(str(plan.file), str(target), server))
        if perf is not None:
            argv = profile.recorded(argv, perf)
        usage = meter.run(argv, limit=limit, environment=environment)
        why, told = self._verdict(name, usage.code, usage.output, target, limit)
        if usage.code is None and name != OURS:
            self._stopped.add(name)
        row = {
            "kind": "run",
            "part": self.link.name,
            "round": number,
            "tool": name,
            "bytes": plan.size,
            "ok": not why,
            "why": why,
            "link_off": calibration.emulator_off(self.link, usage.emulator),
            "landed": _landed_bytes(self._work),
            "told": told,
            **usage.as_dict(),
        }
        del row["output"]
        return row

    def _verdict(
        self, name: str, code: int | None, output: str, target: Path, limit: float
    ) -> tuple[str, Mapping[str, Any]]:
        """Why a run does not count ('' if it does), and what our module told about itself."""
        told: dict[str, Any] = {}
        try:
            if name == OURS and code is not None:
                result = ours.parse_result(output)
                told = {key: result[key] for key in ("workers", "seconds", "resent", "peak_rss") if key in result}
                target = ours.landed(self._work, self.plan.size)
        except BenchError as error:
            return error.message, told
        why = failure(code, output, limit)
        if not why and not target.is_file():
            why = "it landed nothing"
        if not why and sha256(target) != self.plan.digest:
            why = "what landed has another SHA-256"
        return why, told


def calibration_line(measured: Mapping[str, Any], off: Sequence[str]) -> str:
    """A calibration for a person."""
    text = f"round trip {measured['rtt'] * 1000:.2f} ms, lost {measured['lost']} of {measured['sent']}"
    if "rate" in measured:
        text += f", flood {measured['rate'] / 1e6:.0f} Mbit/s"
    if "tcp_1" in measured:
        text += f", TCP x1 {measured['tcp_1'] / 1e6:.0f}, x8 {measured['tcp_8'] / 1e6:.0f} ({measured['congestion']})"
    return text + (f"  OFF: {'; '.join(off)}" if off else "")


def _landed_bytes(directory: Path) -> int:
    """Bytes on disk below a directory; a file with holes counts what it has."""
    total = 0
    for place, _directories, files in os.walk(directory):
        total += sum(os.lstat(os.path.join(place, name)).st_blocks * 512 for name in files)
    return total
