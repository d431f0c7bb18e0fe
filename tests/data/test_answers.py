"""Right answers score 1, and what cannot be understood is wrong."""

from __future__ import annotations

import math

import pytest

from neuro.data.answers import Answer, plain, score, unique


def answer(said, target="male", *, study="a", task="sex"):
    return Answer(
        study_id=study, task=task, modalities=("T1",), prompt="?", target=target, said=said
    )


@pytest.mark.parametrize("said", ["male", "Male", " male ", "male.", "MALE."])
def test_case_spaces_and_a_full_stop_do_not_matter(said):
    assert answer(said).is_exact


@pytest.mark.parametrize(
    "said", ["", "female", "male or female", "male female", "not male", "mal", "ma le", "<image>"]
)
def test_anything_else_is_wrong(said):  # D63
    assert not answer(said).is_exact
    assert not answer(said, target="female" if said != "female" else "male").is_exact


def test_plain_keeps_what_matters():
    assert plain("  On the  LEFT\nside. ") == "on the left side"
    assert plain("61.5") == "61.5"


def test_right_answers_of_the_book_score_one(question_book):  # D63
    answers = []
    for name, question in question_book.templates.items():
        for index, text in enumerate((question.answers or {"61": "61"}).values()):
            answers.append(answer(text, text, study=f"{name}{index}", task=name))
    assert set(score(answers).values()) == {1.0}


def test_the_answers_of_the_book_are_not_confused(question_book):  # D63
    for question in question_book.templates.values():
        texts = set((question.answers or {}).values())
        for one in texts:
            assert [answer(one, other).is_exact for other in texts].count(True) == 1


def test_an_answer_that_says_nothing_stays_in_the_denominator():  # D63
    answers = [answer("male"), answer("hm"), answer(""), answer("male")]
    assert score(answers)["exact_match"] == 0.5
    assert score(answers)["balanced_accuracy"] == 0.5


def test_a_frequent_answer_does_not_hide_a_rare_one():
    answers = [answer("male")] * 9 + [answer("male", "female")]
    scores = score(answers)
    assert scores["exact_match"] == 0.9
    assert scores["balanced_accuracy"] == scores["balanced_accuracy_sex"] == 0.5


def test_a_frequent_task_does_not_hide_a_rare_one():
    answers = [answer("male")] * 8 + [answer("left", "right", task="side")] * 2
    scores = score(answers)
    assert scores["balanced_accuracy"] == 0.5
    assert (scores["exact_match_sex"], scores["exact_match_side"]) == (1.0, 0.0)


def test_without_answers_there_is_no_figure():
    assert math.isnan(score([])["exact_match"])


def test_a_study_that_two_ranks_answered_counts_once():
    answers = [answer("male", study=name) for name in "cabac"]
    assert [one.study_id for one in unique(answers)] == ["a", "b", "c"]
