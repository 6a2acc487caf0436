# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a backup is worth to one node (law 2)."""

from __future__ import annotations

import itertools

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.manifest import Sealed
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.openability import Copy, classify

JOINED, BEFORE, AFTER = "2026-11-21T10:00:00Z", "2026-11-21T09:59:59Z", "2026-11-21T10:00:01Z"
JOINED_SECONDS = 1795255200


def sealed(**changes: object) -> Sealed:
    facts: dict[str, object] = {
        "node": "dr1",
        "platform_id": "S1",
        "version": "5.4",
        "joined_at": JOINED,
        "member": True,
        **changes,
    }
    return Sealed(**facts)  # type: ignore[arg-type]


def copy(started: str | None = AFTER, mtime: int | None = JOINED_SECONDS + 60, *records: Sealed) -> Copy:
    return Copy("b1", started, mtime, records or (sealed(),))


def test_a_snapshot_that_started_while_the_node_was_a_member_is_golden() -> None:
    pair = classify(copy(), "dr1", platform_id="S1", version="5.4")
    assert (pair.kind, pair.reasons) == ("golden", ())


def test_a_snapshot_at_the_very_second_of_the_join_is_not_older() -> None:
    assert classify(copy(JOINED), "dr1").kind == "golden"


@pytest.mark.parametrize(
    ("backup", "options", "kind", "codes"),
    [
        (copy(BEFORE), {}, "impossible", ["OLDER_THAN_JOIN"]),
        (copy(None, JOINED_SECONDS - 1), {}, "impossible", ["OLDER_THAN_JOIN"]),
        (copy(None, JOINED_SECONDS), {}, "presumed", ["SNAPSHOT_UNKNOWN"]),
        (copy(None, None), {}, "presumed", ["SNAPSHOT_UNKNOWN"]),
        (copy(AFTER, 1, sealed(member=False)), {}, "presumed", ["NOT_MEMBER"]),
        (copy(AFTER, 1, sealed(joined_at=None)), {}, "presumed", ["JOIN_UNKNOWN"]),
        (copy(AFTER, 1, sealed(platform_id="")), {"platform_id": "S2"}, "presumed", ["PLATFORM_UNKNOWN"]),
        (copy(AFTER, 1, sealed(version="")), {"version": "5.6"}, "presumed", ["VERSION_UNKNOWN"]),
        (copy(), {"platform_id": "S2"}, "impossible", ["PLATFORM"]),
        (copy(), {"version": "5.6"}, "impossible", ["VERSION"]),
        (
            copy(BEFORE),
            {"platform_id": "S2", "version": "5.6"},
            "impossible",
            ["PLATFORM", "VERSION", "OLDER_THAN_JOIN"],
        ),
        (copy(AFTER, 1, sealed(node="dr2")), {}, "impossible", ["NOT_SEALED"]),
        (copy(AFTER, 1, sealed(version="5.2"), sealed()), {"version": "5.4"}, "golden", []),
    ],
)
def test_classes_and_reasons(backup: Copy, options: dict[str, str], kind: str, codes: list[str]) -> None:
    pair = classify(backup, "dr1", **options)
    assert (pair.kind, [reason.code for reason in pair.reasons]) == (kind, codes)


def test_a_proof_outweighs_doubts_but_no_contradiction() -> None:
    proved = frozenset({("b1", "dr1")})
    doubtful = copy(None, None, sealed(member=False, joined_at=None))
    assert classify(doubtful, "dr1", proved=proved).kind == "proved"
    assert classify(doubtful, "dr1", proved=frozenset({("b2", "dr1")})).kind == "presumed"
    assert classify(copy(), "dr1", platform_id="S2", proved=proved).kind == "impossible"


def test_golden_needs_every_fact() -> None:
    """Whole table: start, join, membership, platform, version each known-good, unknown or bad."""
    for started, joined, member, platform, version in itertools.product(
        (AFTER, None, BEFORE), (JOINED, None), (True, False), ("S1", "", "S2"), ("5.4", "", "5.6")
    ):
        record = sealed(joined_at=joined, member=member, platform_id=platform, version=version)
        pair = classify(copy(started, JOINED_SECONDS + 60, record), "dr1", platform_id="S1", version="5.4")
        contradicted = platform == "S2" or version == "5.6" or (started == BEFORE and joined is not None)
        complete = (started, joined, member, platform, version) == (AFTER, JOINED, True, "S1", "5.4")
        assert pair.kind == ("impossible" if contradicted else "golden" if complete else "presumed")
        assert bool(pair.reasons) == (pair.kind != "golden")
