"""Tables of labels and how they are joined, for tests."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from neuro.data.labels import LabelRules, join_labels

NAN = float("nan")


def table(ids, key="study", **columns):
    columns = {key: ids, **columns}
    return pa.table({name: pa.array(list(map(text, values))) for name, values in columns.items()})


def text(value):
    return None if value is None else str(value)


def join(rows, names: str | list[str] = "y", studies=None, subjects=None, **rules):
    studies = rows.column(0).to_pylist() if studies is None else studies
    return join_labels(
        rows,
        LabelRules(file=None, names=names, **rules),
        studies=studies,
        subjects=studies if subjects is None else subjects,
        where="labels.csv",
    )


def column(rows, **kwargs):
    return join(rows, **kwargs)[0].values[:, 0]


def same(one, other):
    np.testing.assert_array_equal(one, np.float32(other))
