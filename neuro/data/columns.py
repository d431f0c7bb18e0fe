"""Columns of text as a whole: a million rows without a loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Bool, Int

from neuro.data.manifest import unique_codes

pc: Any = pyarrow.compute  # makes its functions at import, where no type checker sees them

TEXT = pa.large_string()


def text_column(table: pa.Table, name: str) -> pa.Array:
    """Return a column without outer spaces; "" where a value, or the column, is missing."""
    if name not in table.column_names:
        return pa.repeat(pa.scalar("", TEXT), len(table))
    column = table[name].cast(TEXT).combine_chunks()
    return pc.fill_null(pc.utf8_trim_whitespace(column), "")


def with_column(table: pa.Table, name: str, column: pa.Array | pa.ChunkedArray) -> pa.Table:
    """Return a table with a column that may take the place of one of that name."""
    kept = [one for one in table.column_names if one != name]
    return table.select(kept).append_column(name, column)


def first_filled(*columns: pa.Array) -> pa.Array:
    """Return, row by row, the first value that is not empty."""
    column, *others = columns
    for other in others:
        column = pc.if_else(pc.equal(column, ""), other, column)
    return column


def patched(column: pa.Array, values: Mapping[int, str]) -> pa.Array:
    """Return a column with some other values, by row."""
    if not values:
        return column
    mask = np.zeros(len(column), bool)
    mask[list(values)] = True
    patches = pa.array([values[row] for row in sorted(values)], TEXT)
    return pc.replace_with_mask(column, pa.array(mask), patches)


def codes_in(column: pa.Array | pa.ChunkedArray) -> Int[np.ndarray, " rows"]:
    """Return a number for each value, from 0 in order of appearance, equal where the values are."""
    whole = column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])
    return unique_codes(whole)


def repeated(
    groups: Int[np.ndarray, " rows"], names: pa.Array | pa.ChunkedArray
) -> Bool[np.ndarray, " rows"]:
    """Return which rows have a name that another row of their group has too."""
    codes = codes_in(names)
    if not len(codes):
        return np.zeros(0, bool)
    pairs = groups * (codes.max() + 1) + codes
    _, inverse, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    return counts[inverse] > 1


def mask_of(values: pa.Array | pa.ChunkedArray) -> Bool[np.ndarray, " rows"]:
    """Return truth values as an array."""
    return np.asarray(values)


def first_row(mask: Bool[np.ndarray, " rows"]) -> int | None:
    """Return the first row that is true, if any."""
    rows = np.flatnonzero(mask)
    return int(rows[0]) if len(rows) else None
