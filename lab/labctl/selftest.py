# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab proves its own promises: one line for each, with the evidence, and the sum in the last line."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Sequence

from labctl import proofs, proofs_data, site, state
from labctl.errors import AlreadyRunning, LabError, UsageError
from labctl.progress import Progress
from labctl.proofs import Proof

ALL: tuple[Proof, ...] = (*proofs.WITHOUT_LAB, *proofs.WITH_HOSTS, *proofs_data.WITH_PRODUCTION)


def names() -> list[str]:
    return [proof.name for proof in ALL]


def run(only: Sequence[str] | None) -> int:
    """Runs the proofs, or only those named. The lab must be down before, and is down afterwards."""
    unknown = sorted(set(only or ()) - set(names()))
    if unknown:
        raise UsageError(f"there is no proof {', '.join(unknown)}", f"take one of {', '.join(names())}")
    if state.read() is not None or site.remains():
        raise AlreadyRunning("the self-test needs the machine without a lab", "lab/lab down")
    failed = passed = 0
    try:
        for stage, group in (
            (None, proofs.WITHOUT_LAB),
            ("bare", proofs.WITH_HOSTS),
            ("production", proofs_data.WITH_PRODUCTION),
        ):
            chosen = [proof for proof in group if only is None or proof.name in only]
            if chosen and stage is not None:
                _stand_up(bare=stage == "bare")
            for proof in chosen:
                if _prove(proof):
                    passed += 1
                else:
                    failed += 1
            if chosen and stage is not None:
                site.down(Progress(quiet=True))
    finally:
        site.down(Progress(quiet=True))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def _stand_up(*, bare: bool) -> None:
    site.up("small", bare=bare, purpose="selftest", progress=Progress(quiet=True))


def _prove(proof: Proof) -> bool:
    begin = time.monotonic()
    try:
        evidence, good = proof.body(), True
    except LabError as error:
        evidence, good = error.message, False
    except Exception:
        evidence, good = traceback.format_exc(), False
    word = "ok  " if good else "FAIL"
    print(f"{word} {proof.name}: {proof.promise} [{evidence}] ({time.monotonic() - begin:.1f} s)")
    sys.stdout.flush()
    return good
