# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Progress lines with elapsed time, on standard error so that standard output stays the answer."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Progress:
    """Says what is being done now. The time shown is seconds since this command began."""

    def __init__(self, quiet: bool = False) -> None:
        self._begin = time.monotonic()
        self._quiet = quiet

    @property
    def elapsed(self) -> float:
        return time.monotonic() - self._begin

    def say(self, text: str) -> None:
        if not self._quiet:
            sys.stderr.write(f"[{self.elapsed:6.1f} s] {text}\n")
            sys.stderr.flush()

    @contextmanager
    def patience(self, text: str, every: float = 60.0) -> Iterator[None]:
        """Says ``text`` again and again (``every`` seconds) while something long and silent goes on."""
        over = threading.Event()

        def remind() -> None:
            while not over.wait(every):
                self.say(text)

        thread = threading.Thread(target=remind, name="patience", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
