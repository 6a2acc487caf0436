# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)

# This module util is PRIVATE to the collection. It can change at any time.

"""One error tree. Every error carries a code, a sentence, all its reasons at once, and what to do next."""

from __future__ import annotations

import typing as t

from ._core.reasons import Reason, split


class DsmError(Exception):
    """Base of all errors that this collection raises on purpose.

    :param message: one sentence for a person
    :param code: stable upper-case name, returned as ``error_code``
    :param remedy: what to do next
    :param reasons: every reason, not only the first
    :param details: anything else that helps, JSON-like and free of secrets
    """

    default_code = "FAILED"
    #: What to do next where nobody said anything better.
    default_remedy = "Read the details, put right what they show, and run this again."

    def __init__(
        self, message: str, code: str = "", remedy: str = "", reasons: t.Sequence[Reason] = (), **details: t.Any
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.remedy = remedy
        self.reasons = tuple(reasons)
        self.details = details

    def as_result(self) -> dict[str, t.Any]:
        """What a module returns when it fails: ``msg, error_code, reasons, remedy, details``.

        There is always a reason and always a remedy: whoever reads them needs no second way for the other case.
        """
        told = list(dict.fromkeys(reason.remedy for reason in self.reasons if reason.remedy))
        remedy = self.remedy or " ".join(told) or self.default_remedy
        reasons = self.reasons or (Reason(self.code, self.message, remedy),)
        return {
            "msg": _sentence(self.message, self.reasons),
            "error_code": self.code,
            "reasons": [dict(reason.as_dict(), remedy=reason.remedy or remedy) for reason in reasons],
            "remedy": remedy,
            "details": dict(self.details),
        }


class Refused(DsmError):
    """Nothing was done, because doing it would be wrong or because nobody could show that it is right."""

    default_code = "REFUSED"


class CommandFailed(DsmError):
    """A command could not be started, or ended with an exit code that is not zero."""

    default_code = "COMMAND_FAILED"
    default_remedy = "Read what the command said, put that right on this host, and run this again: it looks anew."


class TimedOut(DsmError):
    """A condition was not seen in time. ``details['last_state']`` holds what was seen last."""

    default_code = "TIMED_OUT"
    default_remedy = "See last_state for what is missing. Running this again waits on; it repeats nothing blindly."


class TemplateMissing(DsmError):
    """The operator has not supplied an argv template. ``details['article']`` names what to read."""

    default_code = "TEMPLATE_MISSING"


class Unreadable(DsmError):
    """An answer that cannot be understood. It is never taken for an empty or a good one."""

    default_code = "UNREADABLE"
    default_remedy = "Look at it by hand on that host. Nothing is concluded from an answer that is not understood."


def refuse_unless_accepted(
    reasons: t.Sequence[Reason], accept: t.Sequence[str], message: str, code: str = "", **details: t.Any
) -> list[Reason]:
    """Raise :class:`Refused` with all reasons, unless every one of them is soft and accepted.

    :param code: ``error_code`` of the refusal; the code of the first hard reason (else the first one) when empty
    :returns: the soft reasons that were accepted, to be recorded
    """
    standing, accepted = split(reasons, accept)
    if not standing:
        return accepted
    first = next((reason for reason in standing if reason.hard), standing[0])
    details["accepted"] = sorted({reason.code for reason in accepted})
    raise Refused(message, code or first.code, reasons=standing, **details)


def reasons_of(error: DsmError) -> list[Reason]:
    """The reasons of a refusal, to be told together with others: its own, or itself as one."""
    return list(error.reasons) or [Reason(error.code, error.message, error.remedy)]


def _sentence(message: str, reasons: t.Sequence[Reason]) -> str:
    if not reasons:
        return message
    told = [f"{one.code}: {one.message.rstrip('.')}{'' if one.hard else ' (soft)'}" for one in reasons]
    return f"{message} {'; '.join(told)}."


__all__ = (
    "CommandFailed",
    "DsmError",
    "Reason",
    "Refused",
    "TemplateMissing",
    "TimedOut",
    "Unreadable",
    "reasons_of",
    "refuse_unless_accepted",
)
