# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the bench says to a person when it cannot go on."""

from __future__ import annotations


class BenchError(Exception):
    """The bench cannot go on: ``message`` says why, ``remedy`` what to do."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
