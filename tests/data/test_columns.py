"""Columns of text do what a loop over rows would."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from neuro.data.columns import codes_in, first_filled, first_row, patched, repeated, text_column


def column(*values):
    return pa.array(values, pa.large_string())


def test_a_column_of_text_has_no_holes_and_no_outer_spaces():
    table = pa.table({"a": pa.chunked_array([[" 001 ", None], ["", "x\t"]])})
    assert text_column(table, "a").to_pylist() == ["001", "", "", "x"]
    assert text_column(table, "b").to_pylist() == ["", "", "", ""]


def test_the_first_value_that_is_not_empty_counts():
    filled = first_filled(column("a", "", ""), column("x", "b", ""), column("y", "z", "c"))
    assert filled.to_pylist() == ["a", "b", "c"]


def test_a_patch_changes_its_rows_only():
    assert patched(column("a", "b", "c"), {2: "z", 0: "x"}).to_pylist() == ["x", "b", "z"]
    assert patched(column("a"), {}).to_pylist() == ["a"]


def test_codes_are_equal_where_values_are():
    assert codes_in(column("b", "a", "b")).tolist() == [0, 1, 0]


def test_a_name_is_repeated_within_its_group_only():
    groups = np.array([0, 0, 1, 1, 2])
    assert repeated(groups, column("a", "a", "a", "b", "b")).tolist() == [True, True] + [False] * 3
    assert repeated(groups[:0], column()).tolist() == []


def test_the_first_true_row_is_found():
    assert first_row(np.array([False, True, True])) == 1
    assert first_row(np.array([False])) is None
