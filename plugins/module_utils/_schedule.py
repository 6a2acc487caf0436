# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The cluster's own backup schedule: when it fires next, and what it started that still runs."""

from __future__ import annotations

import time
import typing as t
from datetime import datetime, timedelta, timezone

from ._cluster import ClusterReader
from ._config_file import ConfigFile
from ._core import config_text, cron
from ._errors import Reason, Refused, refuse_unless_accepted
from ._module import Shell

POLL_SECONDS = 2.0


def next_firing(params: dict[str, t.Any]) -> datetime:
    """The next firing, or a refusal when there is no schedule or the firing is too far away to wait for."""
    text = params["schedule"]
    try:
        if text is None:
            block = config_text.read_block(ConfigFile(params["config"], "").read(), "backup") or {}
            text = str(block.get("cron_schedule") or "")
        now = datetime.now(timezone.utc)
        firing = cron.parse(text).next_after(now)
    except ValueError as error:
        raise Refused(
            f"There is no schedule to wait for: {error}",
            "SCHEDULE_INVALID",
            "Give schedule, or configure the backups first (module backup_config).",
        ) from error
    if firing - now > timedelta(seconds=params["timeout"]):
        raise Refused(
            f"The next scheduled backup is at {text_of(firing)}, which is more than {params['timeout']:g} s away.",
            "TOO_FAR_AWAY",
            "Raise timeout, or start one now (mode: now).",
            next_firing=text_of(firing),
        )
    return firing


def wait_until(moment: datetime) -> None:
    """Until the clock says so, also when it is set meanwhile."""
    while True:
        left = seconds_until(moment)
        if left <= 0:
            return
        time.sleep(min(left, 5.0))


def seconds_until(moment: datetime) -> float:
    """By the clock; negative once it is over."""
    return (moment - datetime.now(timezone.utc)).total_seconds()


def wait_for_running(shell: Shell, reader: ClusterReader) -> tuple[list[str], list[Reason]]:
    """Wait until no scheduled backup runs. One that fires later is as young as ours, so it does no harm.

    :returns: what ran, and the soft reasons that were accepted
    :raises Refused: one still runs after the time-out, and that is not accepted
    """
    params = shell.params
    deadline = time.monotonic() + params["timeout"]
    seen: set[str] = set()
    while True:
        running = reader.running_jobs(params["scheduled"])
        seen.update(running)
        if not running or shell.check_mode:
            return sorted(seen), []
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    reason = Reason(
        "BACKUP_IN_FLIGHT",
        f"{', '.join(running)} has been running for {params['timeout']:g} s. Its snapshot is older than that of a "
        "new one would be, and what arrives next could be either.",
        f"Look why it does not end (kubectl get cronjobs,jobs --all-namespaces). If it is dead, delete it; if only the "
        f"names match by chance, set scheduled to an expression that tells them apart. Now: {params['scheduled']}",
        hard=False,
    )
    return sorted(seen), refuse_unless_accepted([reason], params["accept"], "No backup is started.")


def text_of(moment: datetime) -> str:
    """UTC, to the second."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
