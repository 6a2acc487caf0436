# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The marker of a canary: whole or not at all, and its age by content."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.canary import (
    CanaryError,
    Marker,
    failed_proofs,
    marker_of,
    recovery_point_seconds,
)

MARKER = Marker(7, "2026-11-22T00:00:00Z", "Yw==", "aXY=", "dA==", "bQ==", "cw==")


def test_a_marker_survives_the_way_through_metadata() -> None:
    metadata = MARKER.as_metadata()
    assert all(isinstance(value, str) for value in metadata.values())
    assert marker_of({**metadata, "owner": "somebody else's"}) == MARKER


@pytest.mark.parametrize("metadata", [None, {}, {"owner": "x"}])
def test_no_marker_is_no_error(metadata: dict[str, str] | None) -> None:
    assert marker_of(metadata) is None


@pytest.mark.parametrize("field", [key for key in MARKER.as_metadata() if not key.endswith("schema")])
def test_half_a_marker_is_an_error(field: str) -> None:
    metadata = {key: value for key, value in MARKER.as_metadata().items() if key != field}
    with pytest.raises(CanaryError, match="lacks"):
        marker_of(metadata)


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [("schema", "2", "schema"), ("sequence", "seven", "sequence"), ("written_at", "2026-11-22T00:00:00", "zone")],
)
def test_a_marker_of_somebody_else_is_an_error(field: str, value: Any, word: str) -> None:
    with pytest.raises(CanaryError, match=word):
        marker_of({**MARKER.as_metadata(), "kmsops-canary-" + field: value})


@pytest.mark.parametrize(
    ("written", "reference", "seconds"),
    [
        ("2026-11-22T00:00:00Z", "2026-11-22T00:05:00Z", 300.0),
        ("2026-11-22T00:00:00Z", "2026-11-22T01:05:00+01:00", 300.0),
        ("2026-11-22T00:00:10Z", "2026-11-22T00:00:00Z", -10.0),
        ("2026-11-22T00:00:00Z", "2026-11-22T00:00:00.500Z", 0.5),
    ],
)
def test_the_age_is_by_content(written: str, reference: str, seconds: float) -> None:
    assert recovery_point_seconds(written, reference) == seconds


def test_a_proof_that_did_not_hold_is_named() -> None:
    assert failed_proofs({"decrypt": True, "mac": False, "signature": False}) == ["mac", "signature"]
