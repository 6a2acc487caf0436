# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running commands: argument lists only, a time limit always, and the command's own words when it fails."""

from __future__ import annotations

import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from labctl.errors import LabError, MissingPrerequisite

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    check: bool = True,
    stdin: str | None = None,
    cwd: str | None = None,
    environ: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    remedy: str = "",
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end (``timeout`` in seconds). Raises LabError with the end of its output when it fails.

    ``secrets`` are texts that no message may show; ``remedy`` is what to do when the command fails.
    """

    def shown(text: str) -> str:
        for secret in secrets:
            text = text.replace(secret, "********")
        return text

    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            cwd=cwd,
            env=dict(environ) if environ is not None else None,
            check=False,
        )
    except FileNotFoundError as error:
        raise MissingPrerequisite(f"command {argv[0]} is not there", "lab/lab prerequisites") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{shown(shlex.join(argv))}` did not end within {timeout:g} s", remedy) from error
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise LabError(f"`{shown(shlex.join(argv))}` failed with exit code {done.returncode}: {shown(words)}", remedy)
    return done


def each(items: Iterable[Item], action: Callable[[Item], Result], *, workers: int = 8) -> list[Result]:
    """Does ``action`` for every item at the same time and returns the results in order; the first failure is raised."""
    todo = list(items)
    if not todo:
        return []
    with ThreadPoolExecutor(max_workers=min(workers, len(todo))) as pool:
        return list(pool.map(action, todo))


def await_condition(what: str, condition: Callable[[], Any], *, timeout: float, interval: float = 0.1) -> Any:
    """Asks until ``condition()`` is true and returns its value; raises LabError after ``timeout`` seconds.

    A condition may raise LabError: that counts as "not yet", and the last one is told when the time is up.
    """
    pause = threading.Event()
    end = time.monotonic() + timeout
    last = ""
    while True:
        try:
            value = condition()
            if value:
                return value
        except LabError as error:
            last = f"; last answer: {error.message}"
        if time.monotonic() >= end:
            raise LabError(f"{what}: not within {timeout:g} s{last}")
        pause.wait(interval)
