# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""One bandwidth cap that several processes share, even when one of them is killed."""

from __future__ import annotations

import fcntl
import os
import struct
import time

#: Seconds of the rate that may be caught up at once after a pause.
BURST = 0.1


class Pace:
    """Says when bytes may be asked for so that all processes together stay under a rate.

    Made before the processes are forked; the memory it lives in is shared. The lock is one of ``fcntl``, which the
    kernel takes away from a process that dies.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("kmsops-pace", os.MFD_CLOEXEC)
        os.write(self._descriptor, struct.pack("d", 0.0))

    def due(self, count: int, rate: float) -> float:
        """Reserve ``count`` bytes at ``rate`` bytes a second; the time (``time.monotonic``) at which they are due."""
        fcntl.lockf(self._descriptor, fcntl.LOCK_EX)
        try:
            (free,) = struct.unpack("d", os.pread(self._descriptor, 8, 0))
            due = max(float(free), time.monotonic() - BURST)
            os.pwrite(self._descriptor, struct.pack("d", due + count / rate), 0)
            return due
        finally:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._descriptor)
