# SPDX-FileCopyrightText: The kmsops.fortanix_dsm contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables: thousands of backups with nothing of their own to say share a line, and what matters never hides in one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.kmsops.fortanix_dsm.plugins.module_utils._core.tables import FEW, Row, condensed, lines

ROWS = st.lists(
    st.builds(Row, st.from_regex(r"[0-9]{3}", fullmatch=True), st.integers(0, 99), st.sampled_from([("a",), ("b",)]),
              st.booleans()),
    max_size=30,
)  # fmt: skip


def test_neighbours_of_which_the_same_is_said_share_a_line() -> None:
    stay = [Row(f"{number}", 10, ("stays",)) for number in range(1, 2001)]
    goes = [Row(f"{number}", 1, ("goes",), alone=True) for number in range(5)]
    pinned = Row("1000", 10, ("stays", "pinned"))
    found = condensed([*goes, *stay[:999], pinned, *stay[1000:]])
    assert found[:5] == [(f"{number}", "1", "goes") for number in range(5)]
    assert found[5:] == [
        ("1 to 999 (999)", "9990", "stays"),
        ("1000", "10", "stays", "pinned"),
        ("1001 to 2000 (1000)", "10000", "stays"),
    ]


def test_a_few_stand_by_themselves() -> None:
    for count in range(FEW + 1):
        assert len(condensed([Row(str(number), 1, ("stays",)) for number in range(count)])) == count
    assert len(condensed([Row(str(number), 1, ("stays",)) for number in range(FEW + 1)])) == 1


@given(ROWS)
def test_nothing_is_lost(rows: list[Row]) -> None:
    found = condensed(rows)
    assert sum(int(cells[1]) for cells in found) == sum(row.bytes for row in rows)
    counts = [int(cells[0].partition("(")[2].rstrip(")") or 1) for cells in found]
    assert sum(counts) == len(rows)
    assert {cells[0] for cells in found} >= {row.id for row in rows if row.alone}
    first = 0
    for cells, count in zip(found, counts):
        assert {row.said for row in rows[first : first + count]} == {cells[2:]}
        first += count


def test_columns_stand_under_their_headings() -> None:
    assert lines(("A", "LONG", "WHY"), [("1", "2", "because it is long"), ("333", "4", "")]) == [
        "A    LONG  WHY",
        "1    2     because it is long",
        "333  4",
    ]
    assert lines(("A", "B"), []) == ["A  B"]
