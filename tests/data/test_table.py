"""A table is text as it was written, whatever its format; a broken one is named with its line."""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from neuro.data.table import is_unknown, read_table
from neuro.errors import InputError

ROWS = [
    {"id": "001", "age": "1.0", "note": 'a, "b"\nc'},
    {"id": "1", "age": None, "note": "n/a"},
    {"id": "NA", "age": "05", "note": None},
]


def quoted(value, delimiter):
    value = value or ""
    if any(sign in value for sign in (delimiter, '"', "\n")):
        return '"' + value.replace('"', '""') + '"'
    return value


def delimited(delimiter, end="\n", bom=""):
    lines = [delimiter.join(ROWS[0])]
    lines += [delimiter.join(quoted(value, delimiter) for value in row.values()) for row in ROWS]
    return (bom + end.join(lines) + end).encode()


def write(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet_bytes(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def full(row):
    return {name: value for name, value in row.items() if value is not None}


FORMS = {
    "t.csv": delimited(","),
    "crlf.csv": delimited(",", end="\r\n"),
    "bom.csv": delimited(",", bom="\ufeff"),
    "t.tsv": delimited("\t"),
    "UPPER.TSV": delimited("\t"),
    "t.json": json.dumps(ROWS).encode(),
    "by_id.json": json.dumps(
        {row["id"]: {**full(row), "age": row["age"]} for row in ROWS}
    ).encode(),
    "t.jsonl": "\n\n".join(json.dumps(full(row)) for row in ROWS).encode(),
    "bom.jsonl": ("\ufeff" + "\n".join(map(json.dumps, ROWS))).encode(),
    "t.parquet": parquet_bytes(pa.Table.from_pylist(ROWS)),
    "dictionary.parquet": parquet_bytes(
        pa.table({n: pa.array([row[n] for row in ROWS]).dictionary_encode() for n in ROWS[0]})
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_same_text(tmp_path, name):  # S39
    table = read_table(write(tmp_path, name, FORMS[name]))
    assert table.to_pylist() == ROWS
    assert {str(column.type) for column in table.columns} == {"string"}


def test_ids_keep_their_zeros_even_where_all_of_them_are_numbers(tmp_path):  # S39
    path = write(tmp_path, "t.csv", "id,label\n001,0\n002,1\n")
    assert read_table(path)["id"].to_pylist() == ["001", "002"]


@pytest.mark.parametrize("content", ["a,b\n1,2\n\n  \n,\n3,4\n\n", "\n\n a , b \n1,2\n3,4"])
def test_blank_lines_and_spaces_around_names_do_not_count(tmp_path, content):
    table = read_table(write(tmp_path, "t.csv", content))
    assert table.to_pylist() == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_numbers_in_json_stay_as_they_are_written(tmp_path):
    path = write(tmp_path, "t.json", '[{"a": 1.0, "b": 1e3, "c": true, "d": null, "e": NaN}]')
    (row,) = read_table(path).to_pylist()
    assert row == {"a": "1.0", "b": "1e3", "c": "true", "d": None, "e": "NaN"}


def test_a_json_object_from_id_to_value_is_a_table_of_labels(tmp_path):
    table = read_table(write(tmp_path, "t.json", '{"001": 1, "002": null}'))
    assert table.to_pylist() == [{"id": "001", "label": "1"}, {"id": "002", "label": None}]


@pytest.mark.parametrize(
    ("column", "text"),
    [
        (pa.array([1, 2**62, None]), ["1", str(2**62), None]),
        (pa.array([1.0, 0.5, float("nan")]), ["1", "0.5", None]),
        (pa.array(np.array([0.1, 3, 1e-7], np.float32)), ["0.1", "3", "1e-7"]),
        (pa.array([True, False, None]), ["true", "false", None]),
        (pa.array(["001", "", "x"], pa.large_string()), ["001", None, "x"]),
    ],
)
def test_numbers_in_parquet_become_their_shortest_text(tmp_path, column, text):
    row = pa.table({"id": ["a", "b", "c"], "value": column})
    assert read_table(write(tmp_path, "t.parquet", parquet_bytes(row)))["value"].to_pylist() == text


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path):
    (tmp_path / "split=train").mkdir()
    path = write(tmp_path / "split=train", "t.parquet", parquet_bytes(pa.table({"id": ["a"]})))
    assert read_table(path).column_names == ["id"]


@pytest.mark.parametrize("value", [None, "", " ", "n/a", "N/A", "NA", "nan", "NaN", "NULL"])
def test_what_nobody_knows_has_many_spellings(value):
    assert is_unknown(value)


@pytest.mark.parametrize("value", ["0", "no", "unknown to us", "-", "negative"])
def test_a_value_is_not_unknown(value):
    assert not is_unknown(value)


MISTAKES = {
    ("t.xlsx", b"PK"): r"t\.xlsx: a table ends in \.csv.*got '\.xlsx'\. Export",
    ("t", b"a"): "got 'no suffix'",
    ("t.csv", b""): r"t\.csv is empty",
    ("t.csv", b"\n \n"): r"t\.csv is empty",
    ("t.csv", b"a,b\n"): r"t\.csv is empty: it has no row",
    ("t.json", b""): r"t\.json is empty|has no row",
    ("t.jsonl", b"\n"): "is empty",
    ("t.csv", b"a,b,a\n1,2,3\n"): r"t\.csv line 1: column 'a' occurs twice\. Rename",
    ("t.csv", b"\na, a\n1,2\n"): "line 2: column 'a' occurs twice",
    ("t.csv", b",b\n1,2\n"): r"line 1: every column has a name; column 1 of 2 has none\. Name",
    ("t.csv", b"a,b\n1,2\n\n3\n"): r"t\.csv line 4: every row .* 2; got 1\. Correct",
    ("t.csv", b'a,b\n"1\n1",2\n3,4,5\n'): r"line 4: .*got 3",
    ("t.tsv", b"a\tb\n1\t2\t3\n"): r"line 2: .*'\\t'",
    ("t.csv", b"a,b\n1,2\n3,J\xfcrgen\n"): r"t\.csv line 3: byte 0xfc is not UTF-8\. Save",
    ("t.csv", b"a,b\n1,2\n3,J\xfcrgen,4\n"): r"line 3: (byte 0xfc|every row)",
    ("t.csv", "a,b\n1,2\n".encode("utf-16")): "UTF-16.*Save it as UTF-8",
    ("t.jsonl", b'{"a": 1}\n{"a": "\xfc"}\n'): r"t\.jsonl line 2: byte 0xfc",
    ("t.csv", b"a;b\n1;2\n"): r"line 1: the columns are separated by ';'; .*'\,'\. Export",
    ("t.csv", b"a\tb\n1\t2\n"): r"separated by '\\t'.*rename it",
    ("t.tsv", b"a,b\n1,2\n"): r"separated by ','",
    ("t.csv", b'a,b\n1,"x\n2,y\n3,z\n'): r"line 2: quotes must be closed.*Correct the quotes",
    ("t.csv", b'a,b\n0,0\n1,"x\n2,"y\n3,z\n'): r"line 3: quotes must be closed",
    ("t.json", b'[{"a": 1},\n {"a": }]'): r"t\.json line 2: not valid JSON",
    ("t.jsonl", b'{"a": 1}\n\n{"a": 1'): r"t\.jsonl line 3: not valid JSON",
    ("t.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}'): r"line 2: key 'a' occurs twice",
    ("t.json", b'{"s1": 0, "s1": 1}'): "key 's1' occurs twice",
    ("t.json", b'{"s1": {"id": "s2"}}'): "record 's1': its field id says 's2'",
    ("t.json", b"3"): "a table in JSON is a list of objects.*got '3'",
    ("t.json", b'[{"a": 1}, 3]'): "record 2: a row is an object; got '3'",
    ("t.json", b'[{"a": [1]}]'): "record 1: field 'a' is a list; a cell holds one text",
    ("t.json", b'[{"a ": 1, "a": 2}]'): "column 'a' occurs twice",
    ("t.json", rb'[{"a": "\ud800"}]'): "half of a surrogate pair",
    ("t.parquet", b"no parquet"): r"t\.parquet cannot be read as Parquet",
    ("t.parquet", parquet_bytes(pa.table({"a": [[1]]}))): r"column 'a' cannot be read .*list",
    ("t.parquet", parquet_bytes(pa.table({"a": [b"\xff"]}))): r"column 'a' cannot .*binary",
    ("t.parquet", parquet_bytes(pa.table({"a": ["x"], " a": ["x"]}))): "'a' occurs twice",
}


@pytest.mark.parametrize(("file", "message"), MISTAKES.items(), ids=lambda one: repr(one)[:40])
def test_a_wrong_table_is_named_with_its_line_and_cure(tmp_path, file, message):
    path = write(tmp_path, *file)
    with pytest.raises(InputError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_table_that_is_absent_is_named(tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'x.csv'} is not a file")):
        read_table(tmp_path / "x.csv")


def test_a_row_longer_than_arrows_usual_block_is_read(tmp_path):
    row = {f"edge{index}": "0" * 20_000 for index in range(100)}
    path = write(tmp_path, "t.csv", f"{','.join(row)}\n{','.join(row.values())}\n")
    assert read_table(path).to_pylist() == [row]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_that_is_nested_too_deeply_is_an_error_that_names_the_file(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_text('{"a": ' * 100_000)
    with pytest.raises(InputError, match=rf"t\{suffix}.*A cell holds one text or number"):
        read_table(path)


def test_bytes_that_are_no_text_print_nothing(tmp_path, capfd):  # Arrow tells of them by itself
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n1,2\n\xd2,,\n")
    with pytest.raises(InputError, match="line 3: byte 0xd2 is not UTF-8"):
        read_table(path)
    assert capfd.readouterr() == ("", "")


def test_a_parquet_file_that_unpacks_to_more_than_a_table_has_is_refused(tmp_path):
    path = tmp_path / "t.parquet"
    column = pa.DictionaryArray.from_arrays(np.zeros(60_000_000, np.int8), ["a"])
    pq.write_table(pa.table({"a": column}), path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match="60,000,000 rows of 1 columns"):
        read_table(path)
