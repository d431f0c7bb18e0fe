"""An unknown label is never 0, and a table that joins to nothing says so with both sides."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from neuro.data.labels import LabelRules, join_labels
from neuro.data.table import read_table
from neuro.errors import InputError

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


def test_the_coding_does_not_depend_on_which_scans_are_at_hand():
    rows = table("abcd", y="xyzx")
    assert join(rows, studies=["a", "c"])[0].classes == join(rows)[0].classes
    assert column(rows, studies=["c", "a"]).tolist() == [2, 0]


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


# -- what values mean ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "classes", "coded"),
    [
        ("10", ("0", "1"), [1, 0]),
        (["1.0", "0"], ("0", "1"), [1, 0]),
        (["yes", "No"], ("no", "yes"), [1, 0]),
        (["FALSE", "true"], ("false", "true"), [0, 1]),
        (["true", "no", "1"], ("0", "1"), [1, 0, 1]),
        (["M", "F", "f"], ("F", "M"), [1, 0, 0]),
        (["2", "1"], ("1", "2"), [1, 0]),
        (["10", "9"], ("9", "10"), [1, 0]),
        (["grade 10", "grade 2"], ("grade 2", "grade 10"), [1, 0]),
    ],
)
def test_two_values_are_binary_in_their_natural_order(values, classes, coded):
    labels, _ = join(table(range(len(values)), y=values))
    assert (labels.task, labels.classes) == ("binary", classes)
    same(labels.values[:, 0], coded)


def test_the_coding_is_said(said):  # D49
    join(table("abcd", sex=["f", "m", "f", "n/a"]), names="sex")
    assert "label 'sex': binary" in said.text
    assert "f = 0 in 2, m = 1 in 1, unknown in 1 studies" in said.text


def test_classes_are_a_codebook_that_values_must_keep_to():  # D49
    rows = table("abc", sex="212")
    labels, _ = join(rows, names="sex", classes=[2, 1])
    assert labels.classes == ("2", "1")
    same(labels.values[:, 0], [0, 1, 0])
    with pytest.raises(
        InputError, match=r"row 'a' has '2' in column 'sex'; .* one of 0, 1.* 2 of 3"
    ):
        join(rows, names="sex", classes=["0", "1"])


def test_a_class_that_is_spelled_like_unknown_counts_when_it_is_listed():
    rows = table("abc", y=["NA", "mild", "severe"])
    assert np.isnan(column(rows)[0])
    same(column(rows, classes=["na", "mild", "severe"]), [0, 1, 2])


def test_rows_of_no_study_may_hold_other_values():
    same(column(table("abz", y="01?"), studies=["a", "b"], classes=["0", "1"]), [0, 1])


def test_uncertain_findings_are_unknown():  # S41
    rows = table("abc", y=["-1.0", "0.0", "1.0"], z=["1", "-1", ""])
    same(join(rows, names=["y", "z"])[0].values, [[NAN, 1], [0, NAN], [1, NAN]])
    labels, _ = join(rows)
    assert labels.task == "binary"
    same(labels.values[:, 0], [NAN, 0, 1])
    same(column(rows, task="multiclass"), [0, 1, 2])
    same(column(rows, classes=["0", "1", "-1"]), [2, 0, 1])


def test_that_uncertain_counts_as_unknown_is_said(said):
    join(table("abc", y=["-1", "0", "1"]))
    assert "-1 counts as unknown" in said.text


def test_the_task_follows_from_the_values(said):
    def decided(values):
        return join(table(range(len(values)), y=values))[0].task

    assert decided(range(10)) == "multiclass"
    assert decided(range(11)) == "regression"
    assert decided([f"{value}.50" for value in range(11)]) == "regression"
    assert decided([f"site {index}" for index in range(20)]) == "multiclass"
    assert decided(["1", "1.0", "01", "2"]) == "binary"
    assert "decided from the values; data.labels.task overrules" in said.text


def test_long_codes_are_not_rounded_together():
    codes = ["900000000000207008", "900000000000207009", "900000000000207010"]
    assert len(join(table("abc", y=codes))[0].classes) == 3


def test_numbers_stay_numbers_in_regression():
    rows = table("abcd", y=["-1", "1e2", " .5", "n/a"], z="1234")
    labels, _ = join(rows, names=["y", "z"], task="regression")
    same(labels.values, [[-1, 1], [100, 2], [0.5, 3], [NAN, 4]])
    assert labels.values.dtype == np.float32
    assert labels.classes == ()


# -- what a user can get wrong -------------------------------------------------------------------

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


def test_numbers_with_a_slip_are_not_taken_for_classes():
    ages = [*map(str, range(20, 40)), "4O"]
    with pytest.raises(InputError, match=r"20 different numbers, but also '4o'\. Correct"):
        join(table(range(21), y=ages))


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
    "yaml": ({"classes": [False, True]}, r'Write them in quotes: \["no", "yes"\]'),
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


def test_none_is_an_answer_and_not_unknown():
    rows = table("abc", y=["none", "left", "none"])
    same(column(rows, classes=["none", "left"]), [0, 1, 0])
    same(column(rows), [1, 0, 1])  # "left" < "none"
