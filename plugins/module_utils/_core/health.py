# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What three health answers of one endpoint mean, and what several endpoints mean together.

``GET /sys/v1/health`` answers 204 when the service handles requests [doc]; with ``consistency=quorum`` an error means
that the global quorum is lost [seed]; with ``consistency=all`` it means that some replica does not answer [doc].
Anything that is neither 204 nor 5xx comes from something else than a healthy service (a load balancer, a cache, a
portal), so nothing is concluded from it [inferred].

PRIVATE to the collection.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping, NamedTuple

#: The only three questions that are ever sent: name -> query string.
QUESTIONS = {"plain": "", "quorum": "?consistency=quorum", "all": "?consistency=all"}

STATES = ("full", "degraded", "read_only", "down", "unreachable", "split_brain", "unknown")

#: Failures below HTTP: a connection was refused or timed out, or what answered could not be verified.
NO_CONNECTION = ("refused", "timeout", "unresolved", "no_route", "reset")
NOT_VERIFIED = ("tls",)

_YES, _NO, _SILENT, _ODD = "yes", "no", "silent", "odd"


class Answer(NamedTuple):
    """One answer: the HTTP status, or ``None`` and the kind of ``failure``."""

    status: int | None
    failure: str | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For results."""
        return {"status": self.status, "failure": self.failure, "seconds": round(self.seconds, 3)}


class Verdict(NamedTuple):
    """The state of one endpoint and why."""

    state: str
    reason: str


def wants_second_reading(answers: Mapping[str, Answer]) -> bool:
    """Whether these answers look like read-only mode, which a second, reading probe has to decide."""
    return _meaning(answers["plain"]) == _YES and _meaning(answers["quorum"]) in (_NO, _SILENT)


def classify(answers: Mapping[str, Answer], second_reading: bool | None = None) -> Verdict:
    """The state of one endpoint from its answers to ``plain``, ``quorum`` and ``all``.

    ``second_reading``: whether a request that reads (log-in, else version) was answered after them while the quorum
    question failed again; ``None`` when it was not tried. Without it a missing quorum is not called read-only.
    """
    plain, quorum, everyone = (_meaning(answers[name]) for name in ("plain", "quorum", "all"))
    if any(answer.failure in NOT_VERIFIED for answer in answers.values()):
        return Verdict("unknown", "the certificate could not be verified, so nobody knows who answered")
    if _ODD in (plain, quorum, everyone):
        odd = ", ".join(
            f"{name} {answer.status or answer.failure}" for name, answer in answers.items() if _meaning(answer) == _ODD
        )
        return Verdict("unknown", f"neither 204 nor 5xx ({odd}): something else than the service may be answering")
    if plain == _SILENT:
        if quorum == _SILENT and everyone == _SILENT:
            return Verdict("unreachable", f"no connection ({answers['plain'].failure})")
        return Verdict("unknown", "the answers came and went between three questions")
    if plain == _NO:
        if quorum == _YES or everyone == _YES:
            return Verdict("unknown", "the answers contradict one another")
        return Verdict("down", f"the service answers {answers['plain'].status}")
    if quorum == _YES:
        if everyone == _YES:
            return Verdict("full", "all replicas answer")
        return Verdict("degraded", "the global quorum is there, but some replica does not answer")
    if everyone == _YES:
        return Verdict("unknown", "the answers contradict one another")
    if second_reading:
        return Verdict("read_only", "the global quorum is lost; requests that only read are answered")
    if second_reading is None:
        return Verdict("unknown", "the global quorum is lost, and no request that reads was tried")
    return Verdict("unknown", "the global quorum did not answer once, but a second reading did not confirm it")


def summarise(endpoints: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """One state for all ``endpoints`` (each with ``state``, and ``cluster`` where the caller knows which cluster the
    endpoint belongs to). Two clusters that serve at the same time are a split brain."""
    known = list(endpoints)
    states = [endpoint["state"] for endpoint in known]
    clusters = sorted(
        {
            endpoint["cluster"]
            for endpoint in known
            if endpoint.get("cluster") and endpoint["state"] in ("full", "degraded", "read_only")
        }
    )
    writable = [state for state in states if state in ("full", "degraded")]
    if len(clusters) > 1:
        state = "split_brain"
    elif writable:
        state = "full" if all(one == "full" for one in states) else "degraded"
    else:
        state = next((one for one in ("read_only", "unknown", "down") if one in states), "unreachable")
        if not states:
            state = "unknown"
    return {
        "state": state,
        "endpoints": len(states),
        "serving": sum(one in ("full", "degraded", "read_only") for one in states),
        "writable": bool(writable) and state != "split_brain",
        "clusters": clusters,
        "states": {name: states.count(name) for name in STATES if name in states},
    }


def _meaning(answer: Answer) -> str:
    if answer.status == 204:
        return _YES
    if answer.status is not None:
        return _NO if 500 <= answer.status <= 599 else _ODD
    return _SILENT if answer.failure in NO_CONNECTION else _ODD
