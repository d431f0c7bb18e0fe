"""An unknown label is never 0, and wrong rules say what to set."""

from __future__ import annotations

import numpy as np
import pytest
from label_tables import NAN, join, same, table

from neuro.data.labels import LabelRules
from neuro.data.table import read_table
from neuro.errors import InputError

# -- the join ------------------------------------------------------------------------------------


def test_a_study_without_a_row_is_unknown_and_not_negative():  # S40
    labels, known = join(table("ab", y="01"), studies=["b", "c", "a"])
    same(labels.values[:, 0], [1, NAN, 0])
    assert known.tolist() == [True, False, True]


@pytest.mark.parametrize("spelling", [None, "", " ", "n/a", "N/A", "NA", "nan", "NaN", "null"])
@pytest.mark.parametrize(
    ("task", "others"),
    [("binary", "01"), ("multilabel", "01"), ("multiclass", "xyz"), ("regression", "123")],
)
def test_unknown_is_never_a_number_in_any_task(spelling, task, others):  # S40, S41
    rows = table(["u", *others], y=[spelling, *others])
    for given in (task, None):
        labels, known = join(rows, task=given)
        assert np.isnan(labels.values).ravel().tolist() == [True] + [False] * len(others)
        assert known.tolist() == [False] + [True] * len(others)


def test_one_unknown_finding_leaves_the_others_of_its_study():  # S41
    rows = table("abc", y=[1, None, None], z=[None, 0, "n/a"])
    labels, known = join(rows, names=["y", "z"])
    same(labels.values, [[1, NAN], [NAN, 0], [NAN, NAN]])
    assert known.tolist() == [True, True, False]
    kept = labels.take(known)
    same(kept.values, [[1, NAN], [NAN, 0]])
    same(labels.take(np.array([1, 1])).values, [[NAN, 0], [NAN, 0]])
    assert (kept.names, kept.task) == (("y", "z"), "multilabel")


# -- what values mean ----------------------------------------------------------------------------


def test_the_coding_is_said(said):  # D49
    join(table("abcd", sex=["f", "m", "f", "n/a"]), names="sex")
    assert "label 'sex': binary" in said.text
    assert "f = 0 in 2, m = 1 in 1, unknown in 1 studies" in said.text


WRONG_TABLES = {
    "key": ({"key": "studi"}, r"data\.labels\.key names 'studi', .*labels\.csv; .*'study'\?"),
    "column": ({"names": ["yy"]}, r"data\.label names 'yy'.*it has study, y, .*mean 'y'\?"),
    "far column": ({"names": ["prognosis"]}, "it has study, y, .* Take one of these"),
    "not a number": ({"task": "regression"}, "row 'a' has 'x' in column 'y'; .*finite number"),
    "not a finding": ({"names": ["y", "z"]}, "row 'a' has 'x' .*multilabel label is one of 0, 1"),
    "two of two": ({"names": "two", "task": "multilabel"}, "row 'b' has '2'.* 1 of 3 rows"),
    "three values": ({"task": "binary"}, r"3 values, x, y, z; a binary label has two\. Set"),
    "one value": ({"names": "z"}, r"'z' is '1' in each of the 3 studies .*nothing to tell apart"),
    "one class": ({"names": "y", "studies": ["b"]}, "'y' is 'y' in each of the 1 studies"),
    "one sign": ({"names": "sign"}, "'sign' is '1' in each of the 2 studies"),
    "no label": ({"names": ["no"]}, r"every label is unknown: of 3 studies none has .* no\. Name"),
    "infinite": ({"names": "inf", "task": "regression"}, "row 'b' has 'inf'"),
    "too large": ({"names": "big", "task": "regression"}, "row 'b' has '1e39'"),
    "comma": ({"names": "comma", "task": "regression"}, r"row 'a' has '1,5'.* with a point"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_TABLES.values(), ids=WRONG_TABLES)
def test_a_wrong_label_names_the_row_or_the_column_and_a_cure(wrong, message):
    rows = table(
        "abc",
        y="xyz",
        z="111",
        two="021",
        sign=["1", "-1", "1"],
        no=["", "n/a", "NaN"],
        inf=["1", "inf", "2"],
        big=["1", "1e39", "2"],
        comma=["1,5", "2", "3"],
    )
    with pytest.raises(InputError, match=message) as error:
        join(rows, **wrong)
    assert "\n" not in str(error.value)


WRONG_RULES = {
    "task": ({"task": "survival"}, "task=survival must be one of binary, multilabel"),
    "unlabelled": ({"unlabelled": "zero"}, "unlabelled=zero must be exclude or mask"),
    "name twice": ({"names": ["y", "y"]}, r"each column once; got \['y', 'y'\]"),
    "many classes": ({"names": ["y", "z"], "task": "multiclass"}, "takes one column.* names 2"),
    "classes of many": ({"names": ["y", "z"], "classes": ["0", "1"]}, "got y, z as multilabel"),
    "classes of numbers": ({"task": "regression", "classes": ["0", "1"]}, "as regression"),
    "three of two": ({"task": "binary", "classes": list("abc")}, "must be two different values"),
    "case": ({"classes": ["F", "f"]}, r"two or more different .*case does not count.* got F, f"),
    "one": ({"classes": ["F"]}, "two or more"),
    "yaml": ({"classes": [False, True]}, r"""in quotes: 'data.labels.classes=\["no", "yes"\]'"""),
    "classes as text": ({"classes": "no"}, r"must be a list; got 'no'. Write 'data.labels.clas"),
    "a number as a name": (
        {"names": [202001]},
        r"""got 202001.*'data\.label=\["001", "2020_01"\]'""",
    ),
    "a number alone": ({"names": 7}, r"data\.label takes names; got 7"),
    "rules of nothing": (
        {"names": [], "task": "binary", "key": "id"},
        "task, data.labels.key says",
    ),
    "a file of nothing": (
        {"names": None, "file": "y.csv"},
        r"labels\.file says .*data\.label names",
    ),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_RULES.values(), ids=WRONG_RULES)
def test_wrong_rules_name_the_setting_and_a_cure(wrong, message):
    with pytest.raises(InputError, match=message):
        LabelRules(**{"file": None, "names": "y", **wrong})


# -- a real table --------------------------------------------------------------------------------


def test_a_real_participants_table(real_data):
    path = real_data / "ds002748" / "participants.tsv"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    rows = read_table(path)
    subjects = [one.removeprefix("sub-") for one in rows["participant_id"].to_pylist()]
    studies = [f"{subject}_T1w" for subject in subjects]
    known_codes = np.array([one != "n/a" for one in rows["ICD-10"].to_pylist()])
    found = {
        name: join(rows, names=name, studies=studies, subjects=subjects)
        for name in ("gender", "age", "group", "ICD-10", "MADRS")
    }
    assert found["gender"][0].classes == ("f", "m")  # D49
    assert found["group"][0].classes == ("control", "depr")
    assert found["age"][0].task == "regression"
    assert found["age"][0].values[0] == float(rows["age"][0].as_py())
    assert found["ICD-10"][0].classes[0] == "F32.0"
    assert (found["ICD-10"][1] == known_codes).all()  # S40
    assert not known_codes.all()
