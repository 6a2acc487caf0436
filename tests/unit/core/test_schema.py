# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the nodes have one schema, and kept it."""

from __future__ import annotations

import json

import pytest

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core import schema
from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.schema import SchemaVersions

OLD, NEW = "2207c2a9-f598-3971-986b-2926e09e239d", "65e78f0e-e81e-30d8-a631-a65dff93bf82"


def seen(old=(), new=(), unreachable=()):
    versions = {version: tuple(who) for version, who in ((OLD, old), (NEW, new)) if who}
    return SchemaVersions(versions, tuple(unreachable))


@pytest.mark.parametrize(
    ("versions", "standing"),
    [
        (None, schema.UNKNOWN),
        (seen("abc"), schema.AGREED),
        (seen("a"), schema.AGREED),
        (seen("ab", unreachable="c"), schema.AGREED),
        (seen("ab", "c"), schema.SPLIT),
        (seen("a", "b", unreachable="c"), schema.SPLIT),
    ],
)
def test_standing(versions, standing):
    assert schema.standing(versions) == standing


@pytest.mark.parametrize(
    ("before", "after", "movement", "kept"),
    [
        (None, None, schema.UNKNOWN, None),
        (seen("abc"), None, schema.UNKNOWN, None),
        (None, seen("abc"), schema.UNKNOWN, None),
        (seen("abc"), seen("abc"), schema.UNCHANGED, OLD),
        (seen("abc"), seen("cba"), schema.UNCHANGED, OLD),
        (seen("abc"), seen(new="abc"), schema.CHANGED, None),
        (seen("abc"), seen("ab", "c"), schema.CHANGED, None),
        # a node went down, came back, came or left: what counts is that it has the same version
        (seen("abc"), seen("ab", unreachable="c"), schema.UNCHANGED, OLD),
        (seen("ab", unreachable="c"), seen("abc"), schema.UNCHANGED, OLD),
        (seen("ab", unreachable="c"), seen("ab", "c"), schema.CHANGED, None),
        (seen("ab"), seen("abc"), schema.UNCHANGED, OLD),
        (seen("ab"), seen("ab", "c"), schema.CHANGED, None),
        (seen("abc"), seen("ab"), schema.UNCHANGED, OLD),
        # a disagreement that somebody accepted
        (seen("ab", "c"), seen("ab", "c"), schema.UNCHANGED, None),
        (seen("ab", "c"), seen("abc"), schema.CHANGED, None),
        (seen("ab", "c"), seen(new="abc"), schema.CHANGED, None),
        (seen("ab", "c"), seen("ab", "cd"), schema.UNCHANGED, None),
    ],
)
def test_movement(before, after, movement, kept):
    assert schema.movement(before, after) == movement
    assert schema.kept_version(before, after) == kept


def test_reasons_are_soft_and_name_versions_and_addresses():
    split = schema.split_reason(seen(["10.0.0.1", "10.0.0.2"], ["10.0.0.3"], ["10.0.0.4"]))
    assert f"{OLD} on 10.0.0.1, 10.0.0.2; {NEW} on 10.0.0.3; no answer from 10.0.0.4." in split.message
    changed = schema.changed_reason(seen(["10.0.0.1"]), seen(new=["10.0.0.1"]), "2026-11-22T00:10:00Z")
    assert f"Before: {OLD} on 10.0.0.1. After: {NEW} on 10.0.0.1." in changed.message
    assert "2026-11-22T00:10:00Z" in changed.message and "start another" in changed.remedy
    assert [(one.code, one.hard) for one in (split, changed)] == [("SCHEMA_SPLIT", False), ("SCHEMA_CHANGED", False)]


@pytest.mark.parametrize("versions", [seen("abc"), seen("ab", "c"), seen("a", unreachable="bc")])
def test_a_note_keeps_all(versions):
    assert schema.of_note(json.loads(json.dumps(versions.as_note()))) == versions


@pytest.mark.parametrize("note", [None, {}, {"versions": {}}, {"other": 1}])
def test_a_note_that_holds_none_is_none(note):
    assert schema.of_note(note) is None
