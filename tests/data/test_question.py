"""A column becomes a question whose answers are all in the book."""

from __future__ import annotations

import re

import pytest

from neuro.data.conversation import Image, ImagePart
from neuro.data.question import Question, QuestionBook, conversation_about, report_of
from neuro.errors import InputError

SEX = Question(ask="Male or female?", modality="T1", answers={"m": "male", "f": "female"})


@pytest.mark.parametrize(("value", "answer"), [("m", "male"), ("M", "male"), ("F", "female")])
def test_a_value_has_one_answer_whatever_its_case(value, answer):
    assert SEX.answer(value, where="here") == answer


@pytest.mark.parametrize("value", ["1", "2", "0", "man", "m ale", ""])
def test_a_value_that_the_book_does_not_know_is_an_error(value):  # D49
    with pytest.raises(InputError, match=rf"^row 7: value '{value}' .*knows m, f.*question_book"):
        SEX.answer(value, where="row 7")


def test_numbers_written_as_numbers_in_a_config_are_known():
    coded = Question(ask="Which?", modality="T1", answers={1: "male", 2: "female"})
    assert coded.answer("2", where="here") == "female"
    with pytest.raises(InputError, match="knows 1, 2"):
        coded.answer("0", where="here")


def test_without_answers_the_value_is_the_answer():
    assert Question(ask="How old?", modality="T1").answer("61.5", where="here") == "61.5"


def test_a_book_names_what_it_holds_when_asked_for_something_else():
    book = QuestionBook({"sex": SEX})
    assert book["sex"] is SEX
    with pytest.raises(InputError, match=r"names 'mood'.*exist for sex\."):
        book["mood"]


def test_the_question_stands_below_all_its_images():
    images = [Image(path=name, modality="T1", subject="1") for name in "ab"]
    conversation = conversation_about(
        study_id="x", name="sex", ask="Male or female?", answer="male", images=images, split="val"
    )
    asked, answered = conversation.turns
    assert (asked.role, asked.parts) == (
        "user",
        (ImagePart(0), ImagePart(1), "\nMale or female?"),
    )
    assert (answered.role, answered.parts) == ("assistant", ("male",))
    assert (conversation.id, conversation.task, conversation.split) == ("x", "sex", "val")


def test_sentences_are_told_for_every_answer_or_for_none():
    told = {"ask": "Male or female?", "modality": "T1", "sentences": {"male": "A man."}}
    answers = {"m": "male", "f": "female"}
    with pytest.raises(InputError, match=r"'Male or female\?' has sentences.*none for female"):
        Question(**told, answers=answers)
    with pytest.raises(InputError, match="none for numbers"):
        Question(**told)
    Question(**told, answers={"m": "male"})


@pytest.mark.parametrize(
    ("extra", "compared"),
    [
        ({}, False),
        ({"same": "Same?"}, False),
        ({"sentences": {"male": "He."}}, False),
        ({"same": "Same?", "sentences": {"male": "He."}}, True),
    ],
)
def test_what_has_a_question_and_sentences_can_be_compared(extra, compared):
    assert Question(ask="?", modality="T1", answers={"m": "male"}, **extra).is_compared is compared


def test_a_report_keeps_the_order_of_the_answers(question_book):
    first, second = "There is no lesion.", "This is a man."
    answers = {"lesion": "none", "age": "61", "sex": "male"}
    assert report_of(answers, question_book) == f"{first} {second}"
    assert report_of(dict(reversed(answers.items())), question_book) == f"{second} {first}"


def test_the_shipped_book_tells_different_answers_differently(question_book):
    told = [
        sentence
        for name, question in question_book.templates.items()
        if name != "gender"
        for sentence in (question.sentences or {}).values()
    ]
    assert len(set(told)) == len(told) > 15


def test_the_shipped_book_asks_without_answering(question_book):  # D37
    for name, question in question_book.templates.items():
        said = set((question.answers or {}).values())
        named = said & set(re.findall(r"\w+", question.ask.lower()))
        assert len(named) != 1, f"{name} names one of its answers only"
        compared = {"same", "different"} & set(re.findall(r"\w+", (question.same or "").lower()))
        assert len(compared) != 1, f"{name} compares and names one of its answers only"
