# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running the lab's command and the product's playbooks, each with its own log."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import threading
import time
import typing as t

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]
LAB = CHECKOUT / "lab" / "lab"
STOP_GRACE = 20.0
#: In the environment of everything that a rehearsal starts: the checkout that it was started from.
TAG = "KMSOPS_REHEARSAL"


class CommandFailed(Exception):
    """A command ended with another code than 0; `log` holds all it said."""

    def __init__(self, argv: list[str], rc: int, log: pathlib.Path) -> None:
        super().__init__(f"{' '.join(argv[:4])} ended with {rc}; all it said is in {log}")
        self.rc = rc
        self.log = log


class Commands:
    """The only door from the rehearsal to processes. Children run in sessions of their own and are stopped with us.

    Two may run at the same time: the second one from a thread, and silently.
    """

    def __init__(self, logs: pathlib.Path, progress: t.Callable[[str], None], verbose: bool) -> None:
        self.logs = logs
        self.progress = progress
        self.verbose = verbose
        self.children: set[subprocess.Popen[bytes]] = set()
        self._number = 0

    def lab(self, *words: str, log: str) -> str:
        """`lab/lab WORDS`; what it printed on stdout."""
        return self.run([str(LAB), *words], self._log(log))

    def playbook(
        self, playbook: str, variables: dict[str, t.Any], log: str, silent: bool = False
    ) -> list[dict[str, t.Any]]:
        """Run a playbook (a path, or one of the collection by FQCN) inside the lab; the evidence lines of its tasks."""
        path = self._log(log)
        evidence = path.with_suffix(".jsonl")
        argv = [str(LAB), "exec", str(CHECKOUT / ".venv" / "bin" / "ansible-playbook")]
        argv += ["--inventory", str(CHECKOUT / "build" / "lab" / "inventory.yml")]
        argv += ["--extra-vars", f"@{self.secrets}", "--extra-vars", json.dumps(variables)]
        argv.append(playbook)
        with _Follower(evidence, (lambda _: None) if silent else self.progress):
            self.run(argv, path, {"KMSOPS_EVIDENCE": str(evidence), **ansible_environment()}, silent)
        return read_evidence(evidence)

    @property
    def secrets(self) -> pathlib.Path:
        """Where the lab keeps what an operator would keep in a vault."""
        return pathlib.Path(os.environ.get("KMSOPS_LAB_STATE", "/run/kmsops-lab")) / "secrets.yml"

    def run(
        self, argv: list[str], log: pathlib.Path, environment: dict[str, str] | None = None, silent: bool = False
    ) -> str:
        """Run to the end; everything it says goes to its log, and to the terminal with V=1 unless it is ``silent``."""
        said: list[bytes] = []
        verbose = self.verbose and not silent
        with open(log, "ab") as stream:
            child = subprocess.Popen(
                argv,
                cwd=CHECKOUT,
                env={**os.environ, **(environment or {}), TAG: str(CHECKOUT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stream if not verbose else subprocess.STDOUT,
                start_new_session=True,
            )
            self.children.add(child)
            try:
                for line in child.stdout or ():
                    stream.write(line)
                    stream.flush()
                    said.append(line)
                    if verbose:
                        os.write(1, line)
                rc = child.wait()
            finally:
                self._stop(child)
        if rc != 0:
            raise CommandFailed([os.path.basename(argv[0]), *argv[1:]], rc, log)
        return b"".join(said).decode("utf-8", "replace")

    def stop(self) -> None:
        """Stop the running children and their children."""
        for child in tuple(self.children):
            self._stop(child)

    def _stop(self, child: subprocess.Popen[bytes]) -> None:
        """Politely, then for good."""
        self.children.discard(child)
        if child.poll() is not None:
            return
        for number in (signal.SIGINT, signal.SIGKILL):
            try:
                os.killpg(child.pid, number)
                child.wait(timeout=STOP_GRACE)
                return
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue

    def _log(self, name: str) -> pathlib.Path:
        self._number += 1
        self.logs.mkdir(parents=True, exist_ok=True)
        return self.logs / f"{self._number:02d}-{name}.log"


class _Follower:
    """Tells the person which task runs, by reading the evidence as it grows."""

    def __init__(self, path: pathlib.Path, progress: t.Callable[[str], None]) -> None:
        self.path = path
        self.progress = progress
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> _Follower:
        self.path.touch()
        self.thread.start()
        return self

    def __exit__(self, *unused: object) -> None:
        self.over.set()
        self.thread.join()

    def _follow(self) -> None:
        """Told is what still runs at the next look: a task that is skipped is over by then, and never happened."""
        running = told = ""
        with open(self.path, encoding="utf-8") as stream:
            while not self.over.wait(0.25):
                before = running
                for line in stream:
                    entry = _decoded(line)
                    if entry.get("kind") == "task":
                        own = entry["action"].startswith("kmsops.")
                        running = entry["task"].split(" : ", 1)[-1] if own else ""
                if running and running == before and running != told:
                    told = running
                    self.progress(running)


def ansible_environment() -> dict[str, str]:
    """How the rehearsal runs Ansible: quick, quiet, with its results as evidence and all diffs in the logs."""
    return {
        "ANSIBLE_COLLECTIONS_PATH": str(CHECKOUT / "build" / "collections"),
        "ANSIBLE_HOME": str(CHECKOUT / "build" / "ansible"),
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DIFF_ALWAYS": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "ANSIBLE_LOCALHOST_WARNING": "0",
        "ANSIBLE_DISPLAY_SKIPPED_HOSTS": "0",
        "ANSIBLE_INJECT_FACT_VARS": "0",
        "ANSIBLE_CALLBACK_PLUGINS": str(CHECKOUT / "lab" / "rehearsal" / "callback"),
        "ANSIBLE_CALLBACKS_ENABLED": "evidence",
    }


def read_evidence(path: pathlib.Path) -> list[dict[str, t.Any]]:
    """The evidence lines of a playbook, oldest first."""
    with open(path, encoding="utf-8") as stream:
        return [entry for entry in (_decoded(line) for line in stream) if entry]


def results(evidence: list[dict[str, t.Any]], module: str) -> list[dict[str, t.Any]]:
    """The results of one of the collection's modules, skipped ones left out."""
    action = f"kmsops.fortanix_dsm.{module}"
    return [
        entry["result"]
        for entry in evidence
        if entry.get("action") == action and entry["kind"] == "ok" and not entry["result"].get("skipped")
    ]


def _decoded(line: str) -> dict[str, t.Any]:
    try:
        entry = json.loads(line)
    except ValueError:  # the last line of a playbook that was killed
        return {}
    return entry if isinstance(entry, dict) else {}


def end_orphans(checkout: pathlib.Path = CHECKOUT) -> int:
    """End what a rehearsal of this checkout that was killed left running; how many processes it was.

    They carry its mark. The monitors of the hosts' containers do so too, and are left to ``lab/lab down``.
    """
    mark = f"{TAG}={checkout}".encode()
    ended = 0
    for entry in pathlib.Path("/proc").iterdir():
        try:
            if not entry.name.isdigit() or (entry / "comm").read_text(encoding="utf-8").strip() == "conmon":
                continue
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
                ended += 1
        except OSError:  # it ended meanwhile
            continue
    return ended


def elapsed(since: float) -> float:
    """Seconds since a moment of the monotonic clock."""
    return time.monotonic() - since
