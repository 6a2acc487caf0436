# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading of untrusted documents."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.strict import (
    Checker,
    Invalid,
    canonical,
    load,
    utc_seconds,
    utc_text,
)


@given(st.integers(min_value=0, max_value=4_000_000_000))
def test_utc_text_and_seconds_are_inverse(seconds: int) -> None:
    assert utc_seconds(utc_text(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.99, "1970-01-01T00:00:01Z"),
        (-0.5, "1969-12-31T23:59:59Z"),
        (-62135596800, "0001-01-01T00:00:00Z"),
        (-62135596801, "0001-01-01T00:00:00Z"),
        (float("-inf"), "0001-01-01T00:00:00Z"),
        (253402300799.9, "9999-12-31T23:59:59Z"),
        (253402300800, "9999-12-31T23:59:59Z"),
        (10**400, "9999-12-31T23:59:59Z"),
    ],
)
def test_a_time_that_no_calendar_holds_has_a_text(seconds: float, text: str) -> None:
    assert utc_text(seconds) == text
    assert utc_seconds(text) < float("inf")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-11-22",
        "2026-11-22 00:00:00",
        "2026-11-22T00:00:00",
        "2026-11-22T00:00:00+01:00",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "\u0662026-11-22T00:00:00Z",
        "2026-11-22T00:00:00Z ",
    ],
)
def test_anything_but_utc_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        utc_seconds(text)


def test_fractions_of_seconds_are_kept() -> None:
    assert utc_seconds("1970-01-01T00:00:01.25Z") == 1.25
    assert utc_seconds("1970-01-01T00:00:01+00:00") == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "EMPTY"),
        (b" \n", "EMPTY"),
        (b"{", "UNREADABLE"),
        (b"[]", "UNREADABLE"),
        (b"null", "UNREADABLE"),
        (b'{"a": 1, "a": 2}', "UNREADABLE"),
        (b'{"a": {"b": 1, "b": 2}}', "UNREADABLE"),
        (b'{"a": NaN}', "UNREADABLE"),
        (b'{"a": Infinity}', "UNREADABLE"),
        (b'{"a": 1e999}', "UNREADABLE"),
        (b'{"a": [-1.5E+400]}', "UNREADABLE"),
        (b'{"a": %s}' % (b"1" * 5000), "UNREADABLE"),
        (b'{"a": "\xff"}', "UNREADABLE"),
        (b"[" * 100_000, "UNREADABLE"),
    ],
)
def test_a_document_that_is_no_plain_object_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(Invalid) as caught:
        load(data, "it")
    assert [problem.code for problem in caught.value.problems] == [code]


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none() | st.booleans()))
def test_canonical_form_does_not_depend_on_order(value: dict[str, object]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical(value) == canonical(backwards)
    assert json.loads(canonical(value)) == value


def test_a_checker_collects_everything_at_once() -> None:
    check = Checker("it")
    check.keys({"a": True, "x": 1}, "the document", {"a": int, "b": str})
    check.strings([1], "list")
    check.utc("yesterday", "time")
    with pytest.raises(Invalid) as caught:
        check.done()
    assert [problem.code for problem in caught.value.problems] == [
        "UNKNOWN_KEY",
        "WRONG_TYPE",
        "MISSING_KEY",
        "WRONG_TYPE",
        "WRONG_VALUE",
    ]
