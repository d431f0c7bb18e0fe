"""Shares, means over classes and over tasks, and numbers: each as its definition says."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import pytest
import torch
from sklearn import metrics

from neuro.metrics.answers import answer_figures
from neuro.metrics.resamples import draw_counts


@dataclass
class Read:
    """An answer as it was read."""

    label: str | None = None
    gold_label: str = ""
    task: str = "sex"
    kind: str = "classes"
    number: float = math.nan
    gold_number: float = math.nan

    @property
    def is_right(self):
        return self.label == self.gold_label if self.kind == "classes" else self.number == 40.0

    @property
    def is_parsed(self):
        return self.label is not None if self.kind == "classes" else math.isfinite(self.number)


def read(task, gold, said):
    """Return answers to one question whose right answer is ``gold``; None names no class."""
    return [Read(one, gold, task) for one in said]


def figures(grades, counts=None):
    return {name: value.tolist() for name, value in answer_figures(grades, counts).items()}


def test_classes_and_then_tasks_count_alike():
    given = [
        *read("sex", "male", ["male", "male", "female", None]),  # 2 of 4
        *read("sex", "female", ["female"]),  # 1 of 1
        *read("side", "left", ["right", "right", None]),  # 0 of 3
        *read("side", "right", ["right", "left"]),  # 1 of 2
    ]
    found = figures(given)
    assert found["balanced_accuracy"] == pytest.approx((0.75 + 0.25) / 2)
    assert found["exact_match"] == pytest.approx(4 / 10)
    assert found["unparsed"] == pytest.approx(2 / 10)
    male, female, left, right = 2 * 2 / (4 + 2), 2 * 1 / (1 + 2), 0.0, 2 * 1 / (2 + 3)
    expected = ((male + female) / 2 + (left + right) / 2) / 2
    assert found["macro_f1"] == pytest.approx(expected)


def test_a_frequent_answer_does_not_hide_a_rare_one():
    found = figures([*read("sex", "male", ["male"] * 9), *read("sex", "female", ["male"])])
    assert (found["exact_match"], found["balanced_accuracy"]) == (0.9, 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_one_task_is_measured_as_scikit_learn_does(seed):
    rng = random.Random(seed)
    gold = rng.choices("abc", k=60)
    said = [rng.choice([*"abcd", None, one, one]) for one in gold]  # d is never right
    found = figures([Read(*pair) for pair in zip(said, gold, strict=True)])
    words = [one or "nothing" for one in said]
    named = sorted({*gold, *words} - {"nothing"})
    assert found["macro_f1"] == pytest.approx(
        metrics.f1_score(gold, words, labels=named, average="macro", zero_division=0)
    )
    recalls = metrics.recall_score(gold, words, labels=[*"abc"], average="macro")
    assert found["balanced_accuracy"] == pytest.approx(recalls)


def test_right_answers_reach_one_and_silence_stays_in_every_denominator():  # D63
    gold = [*"aabbbc"]
    assert {*figures([Read(one, one) for one in gold]).values()} == {1.0, 0.0}  # unparsed is 0
    silent = figures([Read(None, one) for one in gold])
    assert silent == {
        "exact_match": 0.0,
        "unparsed": 1.0,
        "balanced_accuracy": 0.0,
        "macro_f1": 0.0,
    }
    half = figures([*read("sex", "a", ["a", None]), *read("sex", "b", ["b", None])])
    assert (half["exact_match"], half["balanced_accuracy"]) == (0.5, 0.5)
    assert half["macro_f1"] == pytest.approx(2 / 3)  # all that was said is right


def test_numbers_are_off_by_what_they_are_off():
    said, gold = [20.0, 40.0, 70.0], [30.0, 40.0, 50.0]
    given = [
        Read(kind="number", task="age", number=one, gold_number=other)
        for one, other in zip(said, gold, strict=True)
    ]
    found = figures([*given, *read("sex", "a", ["a"])])
    assert found["mae"] == pytest.approx(10.0)
    assert found["pearson"] == pytest.approx(float(torch.tensor([said, gold]).corrcoef()[0, 1]))
    assert found["balanced_accuracy"] == 1.0  # of the other task alone
    assert found["exact_match"] == pytest.approx(2 / 4)


def test_numbers_of_two_tasks_have_no_common_unit():
    given = [Read(kind="number", task=name, number=1.0, gold_number=2.0) for name in "ab"]
    assert {*figures(given)} == {"exact_match", "unparsed"}


def test_a_resample_is_what_its_answers_alone_would_give():
    rng = random.Random(0)
    given = [
        Read(rng.choice(["a", "b", None]), rng.choice("ab"), rng.choice("xy")) for _ in "o" * 20
    ]
    given += [
        Read(kind="number", task="age", number=rng.random(), gold_number=rng.random())
        for _ in range(20)
    ]
    counts = draw_counts([str(place // 2) for place in range(len(given))], 5)
    drawn = figures(given, counts)
    for resample, own in enumerate(counts.long().tolist()):
        members = [one for one, times in zip(given, own, strict=True) for _ in range(times)]
        for name, value in figures(members).items():
            assert drawn[name][resample] == pytest.approx(value), name
