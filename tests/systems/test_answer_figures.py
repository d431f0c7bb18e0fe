"""Figures of a test, of its controls and of its parts, with intervals that know about subjects."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from neuro.data.answers import Answer, AnswerBook
from neuro.data.conversation import Conversation, Turn
from neuro.systems.answer_figures import figures_of

GOLDS = {
    "sex": ["male", "female"] * 4 + ["male"],
    "age": ["20", "30", "40"],
    "report": [f"A lesion of {size} mm in the lobe on the left of it." for size in "abcd"],
}


def book():
    return AnswerBook.of(
        Conversation(
            id=f"{task}{place}",
            task=task,
            turns=(Turn("user", ("?",)), Turn("assistant", (gold,))),
            images=(),
        )
        for task, golds in GOLDS.items()
        for place, gold in enumerate(golds)
    )


def answer(place, said, target, *, task="sex", subject=None, kind="single", likeliest="", **more):
    return Answer(
        study_id=f"{task}{place}",
        subject=subject or str(place),
        task=task,
        task_type=kind,
        modalities=more.get("modalities", ("T1",)),
        prompt="",
        target=target,
        said=said,
        likeliest=likeliest,
    )


def found(answers, **controls):
    """Return the value of each figure by (finding, name with control)."""
    figures = figures_of({"": answers, **controls}, book(), num_resamples=50)
    return {one.row[:2]: one for one in figures}


def test_right_answers_of_every_kind_reach_one():  # D63
    answers = [
        answer(place, gold, gold, task=task, likeliest=gold if task == "sex" else "")
        for task, golds in GOLDS.items()
        for place, gold in enumerate(golds)
    ]
    told = found(answers)
    for finding in ("all", *GOLDS, "type/single", "images/T1"):
        assert told[finding, "exact_match"].value == 1.0
        assert told[finding, "unparsed"].value == 0.0
    for name in ("balanced_accuracy", "macro_f1", "bleu", "chrf", "rouge1", "rougeL", "pearson"):
        assert told["all", name].value == pytest.approx(1.0)
    assert told["all", "mae"].value == 0.0
    assert told["sex", "likelihood_balanced_accuracy"].value == 1.0
    assert told["all", "likelihood_exact_match"].value == 1.0
    assert ("age", "likelihood_exact_match") not in told


def test_the_majority_is_what_training_says_most_often():
    answers = [answer(place, "x", gold) for place, gold in enumerate(["male", "female", "female"])]
    told = found(answers)
    assert told["all", "exact_match_majority"].value == pytest.approx(1 / 3)
    assert told["sex", "balanced_accuracy_majority"].value == 0.5
    assert told["all", "exact_match"].value == 0.0


def test_the_most_probable_answer_has_its_own_figures():
    pairs = [("male", "female"), ("female", "female"), ("female", "female")]
    answers = [answer(place, "hm", gold, likeliest=one) for place, (one, gold) in enumerate(pairs)]
    other = [replace(one, likeliest="female") for one in answers]
    told = found([*answers, answer(3, "20", "20", task="age")], _zero=other)
    assert told["all", "likelihood_exact_match"].value == pytest.approx(2 / 3)
    assert told["sex", "exact_match"].value == 0.0
    assert told["all", "likelihood_exact_match_zero"].value == 1.0
    assert told["all", "likelihood_exact_match_majority"].value == 0.0  # "male", and no numbers


def test_a_part_is_measured_as_if_it_were_alone():
    answers = [
        answer(0, "male", "male"),
        answer(1, "male", "female", kind="comparison", modalities=("T1", "T1")),
        answer(2, "male", "male", kind="multimodal", modalities=("rsfMRI", "T1")),
        answer(3, "30", "20", task="age", kind="multimodal", modalities=("T1", "rsfMRI")),
    ]
    told = found(answers)
    expected = {
        "all": 2 / 4,
        "sex": 2 / 3,
        "age": 0.0,
        "type/single": 1.0,
        "type/comparison": 0.0,
        "type/multimodal": 1 / 2,
        "images/T1": 1 / 2,
        "images/T1-rsfMRI": 1 / 2,
    }
    for finding, value in expected.items():
        assert told[finding, "exact_match"].value == pytest.approx(value), finding
    assert told["age", "mae"].value == 10.0


def test_an_interval_is_of_subjects_not_of_questions():
    """Ten questions about each of ten heads, all right or all wrong: ten things are known."""
    rng = random.Random(1)
    right = [place % 2 == 0 for place in range(10)]
    of_one = [
        answer(10 * head + place, gold if right[head] else "hm", gold, subject=f"head{head}")
        for head in range(10)
        for place, gold in enumerate(rng.choices(["male", "female"], k=10))
    ]
    alone = [answer(place, one.said, one.target) for place, one in enumerate(of_one)]
    wide, narrow = (figures_of({"": answers}, book())[0] for answers in (of_one, alone))
    assert wide.name == narrow.name == "exact_match"
    assert wide.value == narrow.value == 0.5
    assert wide.low < narrow.low < 0.5 < narrow.high < wide.high
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_what_is_logged_has_names_that_do_not_meet():
    golds = ["male", "female"]
    answers = [answer(*pair, pair[1], likeliest="male") for pair in enumerate(golds)]
    answers += [answer(5, "male", "male", task="T1")]  # a task may be called so
    figures = figures_of({"": answers, "_zero": answers}, book(), num_resamples=50)
    logged = [name for one in figures for name in one.logged]
    assert len(logged) == len({*logged})
    assert {
        "exact_match",
        "exact_match_low",
        "exact_match_high",
        "balanced_accuracy_zero_low",
        "exact_match_sex",
        "exact_match_sex_zero",
        "exact_match_T1",
        "exact_match_majority",
        "exact_match/images/T1",
        "exact_match/type/single",
        "likelihood_exact_match_low",
        "unparsed",
        "macro_f1",
    } <= {*logged}
    assert not [name for name in logged if "/" in name and "zero" in name]
    assert all(math.isfinite(value) for one in figures for value in one.logged.values())


@pytest.mark.parametrize(
    "task", ["all", "low", "high", "shuffled", "zero", "zero_low", "majority", "sex_zero", "a/b"]
)
def test_no_name_of_a_task_overwrites_another_figure(task):
    answers = [answer(place, gold, gold) for place, gold in enumerate(["male", "female"])]
    wrong = [answer(7, "x", "y", task=task)]
    zero = [answer(place, "hm", one.target) for place, one in enumerate(answers)]
    figures = figures_of({"": answers + wrong, "_zero": zero}, book(), num_resamples=50)
    names = [one.row[:2] for one in figures]
    assert len(names) == len({*names})
    logged = [pair for one in figures for pair in one.logged.items()]
    values = dict(logged)
    assert len(logged) == len(values)
    assert values["exact_match"] == pytest.approx(2 / 3)
    assert values["exact_match_sex"] == 1.0
    assert values["exact_match_zero"] == values["exact_match_sex_zero"] == 0.0
    assert values[f"exact_match/task/{task}"] == 0.0


def test_a_constant_and_an_unread_answer_are_as_far_from_the_numbers():
    answers = [answer(place, "hm", gold, task="age") for place, gold in enumerate(["20", "45"])]
    told = found(answers)
    assert told["age", "mae"].value == told["age", "mae_majority"].value == 12.5


def test_every_figure_is_logged_beside_those_of_the_controls():
    answers = [
        answer(place, gold, gold, task=task)
        for task, golds in GOLDS.items()
        for place, gold in enumerate(golds)
    ]
    turned = [
        replace(one, said=other.said) for one, other in zip(answers, answers[::-1], strict=True)
    ]
    figures = figures_of({"": answers, "_shuffled": turned}, book(), num_resamples=50)
    values = {name: value for one in figures for name, value in one.logged.items()}
    for name in ("exact_match", "balanced_accuracy", "macro_f1", "bleu", "chrf", "rouge1"):
        assert values[f"{name}_shuffled"] < values[name] == pytest.approx(1.0)
    for name in ("mae", "mae_age"):
        assert values[f"{name}_shuffled"] > values[name] == 0.0


def test_how_close_texts_are_has_an_interval_by_subjects():
    gold = "a lesion on the left side"
    said = [gold, "a lesion on the right side"] * 4
    told = found([answer(place, text, gold, task="report") for place, text in enumerate(said)])
    for name in ("bleu", "chrf", "rouge1", "rougeL"):
        figure = told["all", name]
        assert figure.low < figure.value < figure.high <= 1.0


def test_a_control_that_was_not_run_has_no_figures():
    answers = [answer(0, "male", "male")]
    assert not [name for _, name in found(answers, _zero=[]) if "zero" in name]
