# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""The engine without a store around it: everything that matches a source goes into a directory."""

from __future__ import annotations

import os
import sys

from .._errors import Refused
from ._discover import Source, discover
from ._pool import Pool
from ._progress import for_stream
from ._pull import Progress, TransferPlan, TransferReport, pull


def fetch(
    source: Source,
    directory: str,
    *,
    workers: int = 8,
    rate_limit: float = 0.0,
    progress: Progress | None = None,
) -> TransferReport:
    """Pull the one backup that matches ``source`` into ``directory``/data; the journal is beside it.

    Without ``progress`` it is shown on stderr, as a bar where that is a terminal.

    Nothing in this process may have started threads yet. Raises what :func:`pull` raises, and :class:`Refused` when
    not exactly one backup matches or it is not acceptable (empty, a device, ...).
    """
    with Pool(workers, bool(source.endpoint.host), source.endpoint) as pool:
        session = pool.session(source.endpoint)
        units = discover(session, source)
        if len(units) != 1:
            raise Refused(f"{len(units)} backups match {source.label}.", "BAD_SOURCE", "Name exactly one.")
        if units[0].reasons:
            raise Refused(f"{units[0].name} cannot be taken.", units[0].reasons[0].code, reasons=units[0].reasons)
        data = os.path.join(directory, "data")
        os.makedirs(data, mode=0o700, exist_ok=True)
        plan = TransferPlan(
            endpoint=source.endpoint,
            items=units[0].items,
            directory=data,
            journal=os.path.join(directory, "journal.jsonl"),
            workers=workers,
            rate_limit=rate_limit,
            round_trip=session.round_trip,
        )
        return pull(plan, progress or for_stream(os.path.basename(units[0].name), sys.stderr), pool)
