# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lab refuses or cannot do: one sentence, one remedy, one exit code for each kind."""

from __future__ import annotations


class LabError(Exception):
    """A failure that a person reads. ``remedy`` says what to do next; ``code`` is the exit code of the command."""

    code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}. What to do: {self.remedy}." if self.remedy else f"{self.message}."


class UsageError(LabError):
    code = 2


class AlreadyRunning(LabError):
    code = 3


class NotRunning(LabError):
    code = 4


class NotRoot(LabError):
    code = 5


class MissingPrerequisite(LabError):
    code = 7
