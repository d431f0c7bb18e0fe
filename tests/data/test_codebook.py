"""What the values of a label stand for follows from the whole table, and from nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from label_tables import NAN, column, join, same, table

from neuro.errors import InputError


def test_the_coding_does_not_depend_on_which_scans_are_at_hand():
    rows = table("abcd", y="xyzx")
    assert join(rows, studies=["a", "c"])[0].classes == join(rows)[0].classes
    assert column(rows, studies=["c", "a"]).tolist() == [2, 0]


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


def test_numbers_with_a_slip_are_not_taken_for_classes():
    ages = [*map(str, range(20, 40)), "4O"]
    with pytest.raises(InputError, match=r"20 different numbers, but also '4o'\. Correct"):
        join(table(range(21), y=ages))


def test_none_is_an_answer_and_not_unknown():
    rows = table("abc", y=["none", "left", "none"])
    same(column(rows, classes=["none", "left"]), [0, 1, 0])
    same(column(rows), [1, 0, 1])  # "left" < "none"


def test_values_with_thousands_of_digits_are_classes_like_others():
    from neuro.data.codebook import _natural

    values = ["grade 10", "grade " + "9" * 5000, "grade 2", "grade 02", "grade x"]
    assert sorted(values, key=_natural) == [
        "grade 02",
        "grade 2",
        "grade 10",
        "grade " + "9" * 5000,
        "grade x",
    ]
