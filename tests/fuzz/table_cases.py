"""Mutated tables: CSV, TSV, JSON, JSON lines and Parquet, as manifests with labels."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from mutations import Verbatim, as_json, changed, damaged, odd

from neuro.data.labels import LabelRules
from neuro.data.modes import Modes
from neuro.data.splits import SubjectSplits
from neuro.data.table_cohort import TableCohort

Case = Callable[[], object]
Rows = list[dict[str, Any]]

ROWS: Rows = [
    {
        "path": f"s{number}/t1.nii.gz",
        "study": f"s{number}",
        "subject": f"p{number % 3}",
        "modality": ("T1", "rsfMRI", "")[number % 3],
        "split": ("train", "val", "")[number % 3],
        "series": "",
        "repetition_time_s": "2.0" if number % 3 == 1 else "",
        "sex": ("F", "M", "n/a")[number % 3],
        "age": str(20 + number),
    }
    for number in range(6)
]


def begin(folder: Path) -> Rows:
    """Return the rows of a table that is sound but for two studies of a subject in two splits."""
    return ROWS


def delimited(rows: Rows, delimiter: str) -> bytes:
    """Return the rows as CSV."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, names, delimiter=delimiter, restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", errors="surrogatepass")


def parquet(rng: Random, rows: Rows) -> bytes:
    """Return the rows as Parquet, with columns of other types now and then."""
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in rows[0]}
    for name in rng.sample(list(columns), rng.randrange(3)):
        columns[name] = rng.choice(
            (
                pa.array([b"\xff\xfe"] * len(rows)),
                pa.array([[1, 2]] * len(rows)),
                pa.array([1.5, float("nan"), None, 1e300, -0.0, 1.0][: len(rows)]),
                pa.array([2**63 - 1] * len(rows)),
                pa.nulls(len(rows)),
                pa.array([{"a": 1}] * len(rows)),
                pa.array(range(len(rows)), pa.timestamp("ns")),
                pa.array(["a"] * len(rows)).dictionary_encode(),
                pa.array([True] * len(rows)),
            )
        )
    sink = io.BytesIO()
    pq.write_table(
        pa.table(columns), sink, compression=rng.choice(("none", "snappy", "gzip", "zstd"))
    )
    return sink.getvalue()


def case(rng: Random, rows: Rows, folder: Path) -> Case:
    """Write a table and return what reads it as a manifest with labels."""
    suffix = rng.choice((".csv", ".tsv", ".json", ".jsonl", ".parquet", ".csv"))
    is_content = rng.random() < 0.6
    if suffix in (".json", ".jsonl"):
        content: Any = rows if rng.random() < 0.7 else {row["study"]: row for row in rows}
        content = changed(rng, content) if is_content else content
        data = as_json(rng, content)
        if suffix == ".jsonl" and isinstance(content, list):
            data = b"\n".join(as_json(rng, one).replace(b"\n", b" ") for one in content)
    else:
        rows = [dict(row) for row in rows]
        if is_content:
            value = odd(rng)
            text = (
                value
                if isinstance(value, str) and not isinstance(value, Verbatim)
                else json.dumps(str(value))
            )
            if rng.random() < 0.8 or suffix == ".parquet":
                rng.choice(rows)[rng.choice(list(rows[0]))] = text.encode(errors="replace").decode()
            else:
                for row in rows:
                    row[text] = row.pop("study")
        data = (
            parquet(rng, rows)
            if suffix == ".parquet"
            else delimited(rows, "\t" if suffix == ".tsv" else ",")
        )
    if not is_content:
        data = damaged(rng, data)
    path = folder / f"table{suffix}"
    path.write_bytes(data)
    (folder / "s1").mkdir(exist_ok=True)
    (folder / "s1" / "t1.json").write_bytes(b'{"RepetitionTime": 2}')
    names = rng.choice((["sex"], ["age"], [], ["sex", "age"]))
    labels = LabelRules(file=None, names=names) if names else None
    modes = Modes(mapping=None, default="T1")
    splits = SubjectSplits(val=0.2, test=0.2)
    return lambda: list(TableCohort(path, folder, modes, splits, labels).manifest())
