"""A table that joins to nothing says so with both sides; ids are text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from label_tables import NAN, column, join, same, table

from neuro.errors import InputError


def test_ids_are_text():  # S39
    labels, _ = join(table(["1", "001", "01"], y="011"), studies=["001", "1", "0001"])
    same(labels.values[:, 0], [1, 0, NAN])
    with pytest.raises(InputError, match=r"'1', '2'.*'001', '002'.*leading zeros"):
        join(table(["1", "2"], y="01"), studies=["001", "002"])


def test_an_id_named_na_is_an_id():
    same(column(table(["NA", "nan"], y="01")), [0, 1])


def test_the_order_of_rows_and_of_studies_does_not_matter():
    rng = np.random.default_rng(0)
    ids = [f"s{index}" for index in range(50)]
    rows = table(ids, y=rng.choice(["b", "a", "C ", "c", "10", "9", "n/a"], 50))
    labels, _ = join(rows)
    assert labels.classes == ("9", "10", "a", "b", "C")
    for _ in range(5):
        order = rng.permutation(50)
        shuffled, _ = join(rows.take(pa.array(order)), studies=ids)
        assert shuffled.classes == labels.classes
        same(shuffled.values, labels.values)
        moved, _ = join(rows, studies=[ids[index] for index in order])
        same(moved.values, labels.values[order])


@pytest.mark.parametrize("ids", [["sub-01", "sub-02"], ["01", "02"]])
@pytest.mark.parametrize("subjects", [["sub-02", "sub-01", "sub-02"], ["02", "01", "02"]])
def test_subjects_join_with_and_without_their_prefix(ids, subjects):
    rows = table(ids, key="participant_id", y="01")
    same(column(rows, studies=["p", "q", "r"], subjects=subjects), [1, 0, 1])


def test_study_ids_come_before_subject_ids_unless_the_column_says_subject():
    ids, studies, subjects = ["1", "2"], ["1", "2"], ["2", "1"]
    assert column(table(ids, key="id", y="01"), studies=studies, subjects=subjects)[0] == 0
    assert column(table(ids, key="subject", y="01"), studies=studies, subjects=subjects)[0] == 1


@pytest.mark.parametrize(
    "kind", [list, tuple, pa.array, lambda ids: pa.chunked_array([ids[:1], ids[1:]])]
)
def test_ids_come_as_python_or_arrow(kind):
    ids = ["a", "b", "c"]
    labels, known = join(table("cba", y="012"), studies=kind(ids), subjects=kind(ids))
    same(labels.values[:, 0], [2, 1, 0])
    assert known.all()


def test_large_text_from_another_source_is_text_too():
    rows = table("ab", y="01").cast(
        pa.schema([("study", pa.large_string()), ("y", pa.large_string())])
    )
    same(column(rows, studies=pa.array(["b", "a"], pa.large_string())), [1, 0])


def test_the_key_is_found_by_name_before_the_first_column():
    rows = pa.table({"y": ["0", "1"], "subject_id": ["p", "q"], "study_id": ["a", "b"]})
    same(column(rows, studies=["b", "a"], subjects=["q", "p"]), [1, 0])
    named = pa.table({"MRN": ["a", "b"], "y": ["0", "1"]})
    same(column(named, studies=["b", "a"]), [1, 0])
    same(column(rows, studies=["q", "p"], key="subject_id"), [1, 0])


def test_a_partial_join_is_said_with_both_sides(said):
    join(table([*"abcdefghi", None], y="0101010101"), studies=["a", "b", "x", "y"])
    assert "2 of 4 studies have a row, by study id in column 'study'" in said.text
    assert "2 studies have no row: 'x', 'y'" in said.text
    assert "8 rows name no study: 'c', 'd', 'e', 'f', 'g' and 3 more" in said.text


def test_a_join_to_nothing_shows_both_sides_and_a_cure():  # S39
    rows = pa.table({"id": list("abcdefg"), "mrn": list("1234567"), "y": list("0101010")})
    with pytest.raises(InputError) as error:
        join(rows, studies=["7", "8"], subjects=["p7", "p8"])
    message = str(error.value)
    assert message == (
        "labels.csv: no id of column 'id' is a study or a subject. The table has 'a', 'b', 'c', "
        "'d', 'e' and 2 more; the studies are '7', '8' of the subjects 'p7', 'p8'. "
        "Column 'mrn' names 1 of them: set data.labels.key=mrn."
    )
    with pytest.raises(InputError, match=r"'u', 'v'.*'7', '8'.*data\.labels\.key"):
        join(table("uv", y="01"), studies=["7", "8"])


@pytest.mark.parametrize(("one", "other"), [("0", "1"), ("0", None), ("x", "y")])
def test_an_id_twice_must_agree(one, other):
    rows = table("abcb", y=[one, one, "1", other])
    with pytest.raises(InputError, match=r"labels\.csv: id 'b' has two rows .* 'y': .*Keep one"):
        join(rows, studies=["a", "b", "c"])
    agreed = table("abcb", y=["0", "1", "1", "1.0"])
    same(column(agreed, studies=["a", "b", "c"]), [0, 1, 1])


def test_a_subject_twice_with_and_without_prefix_must_agree():
    with pytest.raises(InputError, match=r"has two rows that differ in column 'y': '0' and '1'"):
        join(table(["sub-1", "1"], key="subject", y="01"), studies=["a"], subjects=["1"])
