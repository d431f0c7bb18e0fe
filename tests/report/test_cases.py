"""What is shown is what is clearest, of every finding, and nothing that is not known."""

from __future__ import annotations

import math

import pytest
import torch

from neuro.data.predictions import Predictions
from neuro.report.cases import Case, telling_cases

NAN = math.nan


def told(task, outputs, truth, classes=()):
    outputs, truth = torch.tensor(outputs), torch.tensor(truth)
    ids = tuple(f"s{row}" for row in range(len(outputs)))
    names = tuple(f"x{column}" for column in range(truth.shape[1]))
    return Predictions(
        studies=ids,
        subjects=ids,
        outputs=outputs,
        truth=truth,
        names=names,
        task=task,
        classes=classes,
    )


def test_the_most_confident_mistake_comes_first_and_what_is_present_among_the_right_ones():
    said = told(
        "binary",
        [[0.9], [0.2], [0.99], [0.4], [0.01], [0.7], [0.95]],
        [[0.0], [1.0], [NAN], [1.0], [0.0], [1.0], [1.0]],
    )
    wrong, right = telling_cases(said, 3)
    assert [case.row for case in wrong] == [0, 1, 3]
    assert [case.row for case in right] == [6, 5, 4]


def test_findings_take_turns_and_no_study_is_shown_twice():
    outputs = [[0.99, 0.98, 0.97], [0.9, 0.8, 0.2], [0.8, 0.7, 0.6], [0.1, 0.1, 0.1]]
    said = told("multilabel", outputs, [[0.0, 0.0, 0.0]] * 3 + [[NAN, 0.0, 0.0]])
    wrong, right = telling_cases(said, 3)
    assert wrong == [Case(0, 0), Case(1, 1), Case(2, 2)]
    assert len({case.row for case in right}) == len(right) == 2


def test_of_many_findings_as_many_are_shown_as_asked_for():
    outputs = torch.rand(200, 82, generator=torch.Generator().manual_seed(0))
    said = told("multilabel", outputs.tolist(), (outputs < 0.3).float().tolist())
    for found in telling_cases(said, 5):
        assert len({case.output for case in found}) == len(found) == 5


def test_of_classes_the_one_that_was_said_is_looked_at():
    outputs = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.9, 0.1, 0.0]]
    said = told("multiclass", outputs, [[0.0], [2.0], [NAN], [0.0]], ("a", "b", "c"))
    wrong, right = telling_cases(said, 4)
    assert wrong == [Case(1, 1)]
    assert right == [Case(3, 0), Case(0, 0)]


def test_of_numbers_the_farthest_and_the_closest_are_shown_in_spreads_of_their_labels():
    said = told(
        "regression",
        [[10.0, 100.0], [24.0, 100.0], [30.0, 200.0]],
        [[10.0, 100.0], [20.0, 110.0], [30.0, NAN]],
    )
    wrong, right = telling_cases(said, 1)
    assert wrong == [Case(1, 1)]  # ten of 5 and not four of 8
    assert right[0].row in (0, 2)


@pytest.mark.parametrize("task", ["binary", "regression", "multiclass"])
@pytest.mark.parametrize("truth", [1.0, NAN])
def test_one_study_is_shown_once_and_what_is_not_known_is_not(task, truth):
    width = 2 if task == "multiclass" else 1
    said = told(task, [[0.5] * width], [[truth]], ("a", "b") if width > 1 else ())
    wrong, right = telling_cases(said, 4)
    assert len(wrong + right) == (0 if math.isnan(truth) else 1)
    assert telling_cases(said, 0) == ([], [])
