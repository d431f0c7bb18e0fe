"""Comparisons and reports are balanced, within one split, and never give an answer away."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from neuro.data.conversation import Image, ImagePart
from neuro.data.phantom_talk import PhantomTalk
from neuro.data.question import QuestionBook
from neuro.errors import InputError

MODALITIES = ("T1", "rsfMRI", "dMRI")
LEVELS = {
    "sex": ("male", "female"),
    "lesion": ("none", "left", "right"),
    "tract": ("left", "right"),
}


def make_talk(question_book, num_subjects=600, modalities=MODALITIES, levels=LEVELS, splits=None):
    draw = random.Random(0)
    subjects = [f"{number:04d}" for number in range(num_subjects)]
    images = {
        (subject, modality): Image(path=f"{subject}/{modality}", modality=modality, subject=subject)
        for subject in subjects
        for modality in modalities
    }
    answers = {
        subject: {name: draw.choice(own) for name, own in levels.items()} for subject in subjects
    }
    splits = splits or {
        subject: ("train", "val", "test")[number % 3] for number, subject in enumerate(subjects)
    }
    return PhantomTalk(images, answers, splits, question_book)


@pytest.fixture(scope="module")
def talk(question_book):
    return make_talk(question_book)


@pytest.fixture(scope="module")
def comparisons(talk):
    return [one for subject in talk.answers for one in talk.comparisons(subject)]


def of_task(comparisons, ending):
    return [one for one in comparisons if one.task.endswith(ending)]


# ---------------------------------------------------------------- comparisons


def test_each_subject_is_compared_with_others_of_its_split(talk, comparisons):
    assert len({one.id for one in comparisons}) == len(comparisons)
    for subject in talk.answers:
        own = [one for one in comparisons if one.images[1].subject == subject]
        (first, told), *more = (one.task.split("_") for one in own)
        if talk.splits[subject] == "train":  # in both ways
            ((second, asked),) = more
            assert (told, asked) == ("reference", "same")
            assert first != second
        else:
            assert not more
        for one in own:
            reference, target = (image.subject for image in one.images)
            assert one.kind == "comparison"
            assert target == subject != reference
            assert talk.splits[reference] == talk.splits[target] == one.split


def test_both_shapes_and_each_question_are_about_equally_frequent(comparisons):
    tasks = Counter(one.task for one in comparisons)
    assert set(tasks) == {f"{name}_{shape}" for name in LEVELS for shape in ("reference", "same")}
    assert min(tasks.values()) > 0.6 * len(comparisons) / 6


def test_a_reference_takes_four_turns_and_the_last_one_alone_answers(
    talk, comparisons, question_book
):  # D37
    for one in of_task(comparisons, "_reference"):
        name = one.task.removesuffix("_reference")
        told, noted, asked, answered = one.turns
        reference, target = (talk.answers[image.subject][name] for image in one.images)
        assert told.parts == (ImagePart(0), f"\n{question_book[name].sentences[reference]}")
        assert noted.parts == (question_book.noted,)
        assert asked.parts == (ImagePart(1), f"\n{question_book[name].ask}")
        assert answered.parts == (target,)
        assert {image.modality for image in one.images} == {question_book[name].modality}


def test_what_is_told_of_the_reference_says_nothing_about_the_target(comparisons):  # D37
    for name, levels in LEVELS.items():
        pairs = Counter(
            (one.metadata["reference_label"], one.metadata["subject_label"])
            for one in of_task(comparisons, f"{name}_reference")
        )
        total = sum(pairs.values())
        assert set(pairs) == {(told, asked) for told in levels for asked in levels}
        same = sum(count for (told, asked), count in pairs.items() if told == asked)
        assert abs(same / total - 1 / len(levels)) < 0.15


def test_two_heads_stand_within_the_text_and_half_are_the_same(talk, comparisons, question_book):
    asked = of_task(comparisons, "_same")
    for one in asked:
        name = one.task.removesuffix("_same")
        question, answer = one.turns
        assert question.parts == (
            "First: ",
            ImagePart(0),
            "\nSecond: ",
            ImagePart(1),
            f"\n{question_book[name].same}",
        )
        first, second = (talk.answers[image.subject][name] for image in one.images)
        assert answer.parts == ("same" if first == second else "different",)
    for name in LEVELS:
        said = Counter(one.turns[-1].text for one in of_task(asked, f"{name}_same"))
        assert 0.35 < said["same"] / said.total() < 0.65


def test_a_comparison_says_in_its_metadata_who_was_compared(talk, comparisons):
    for one in comparisons:
        name = one.task.rsplit("_", 1)[0]
        reference, target = (image.subject for image in one.images)
        labels = talk.answers[reference][name], talk.answers[target][name]
        assert one.metadata == {
            "task": one.task,
            "reference_id": reference,
            "subject_id": target,
            "reference_label": labels[0],
            "subject_label": labels[1],
            "comparison_type": "same" if labels[0] == labels[1] else "different",
        }


def test_comparisons_are_the_same_each_time(question_book, comparisons):
    again = make_talk(question_book)
    found = [one for subject in again.answers for one in again.comparisons(subject)]
    assert found == comparisons


def test_nobody_is_compared_across_splits_or_with_himself(question_book):
    splits = {"0000": "train", "0001": "train", "0002": "val"}
    talk = make_talk(question_book, num_subjects=3, splits=splits)
    assert not [*talk.comparisons("0002")]
    both = [*talk.comparisons("0000")]
    assert len(both) == 2
    for one in both:
        assert {image.subject for image in one.images} == {"0000", "0001"}


def test_what_has_no_answer_is_neither_asked_nor_compared(question_book):
    talk = make_talk(question_book)
    answers = {
        subject: {name: one for name, one in own.items() if name != "sex" or subject < "0300"}
        for subject, own in talk.answers.items()
    }
    answers["0599"] = {}
    few = PhantomTalk(talk.images, answers, talk.splits, question_book)
    assert [one.task for one in few.singles("0301")] == ["lesion", "tract"]
    assert {few.joint(subject).task for subject in list(answers)[300:599]} == {"lesion", "tract"}
    assert not [*few.comparisons("0599")]
    compared = [one for subject in answers for one in few.comparisons(subject)]
    sexes = [one for one in compared if one.task.startswith("sex")]
    assert sexes
    assert all(image.subject < "0300" for one in sexes for image in one.images)


def test_what_cannot_be_compared_is_left_out_or_an_error(question_book):
    ages = make_talk(question_book, levels={"age": ("50", "60"), "sex": ("male", "female")})
    tasks = {one.task for subject in ages.answers for one in ages.comparisons(subject)}
    assert tasks == {"sex_reference", "sex_same"}
    alone = make_talk(question_book, levels={"age": ("50", "60")})
    with pytest.raises(InputError, match=r"data\.comparisons.*got age"):
        next(alone.comparisons("0000"))


# ---------------------------------------------------------------- reports


def test_a_report_tells_each_answer_below_all_images_of_a_head(talk, question_book):
    for subject, answers in talk.answers.items():
        report = talk.report(subject)
        asked, told = report.turns
        images = [ImagePart(index) for index in range(3)]
        assert asked.parts == (*images, f"\n{question_book.report}")
        assert [image.modality for image in report.images] == list(MODALITIES)
        assert {image.subject for image in report.images} == {subject}
        sentences = [question_book[name].sentences[answer] for name, answer in answers.items()]
        assert told.text == " ".join(sentences)
        assert (report.task, report.kind) == ("report", "multimodal")
        assert report.split == talk.splits[subject]


def test_a_report_shows_the_images_that_there_are(question_book):
    talk = make_talk(question_book, num_subjects=3, modalities=("T1", "dMRI"))
    assert [image.modality for image in talk.report("0001").images] == ["T1", "dMRI"]


def test_what_has_no_sentence_is_not_told(question_book):
    talk = make_talk(question_book, levels={"age": ("50", "60"), "sex": ("male",)})
    assert talk.report("0000").turns[-1].text == "This is a man."
    alone = make_talk(question_book, levels={"age": ("50", "60")})
    with pytest.raises(InputError, match=r"data\.report.*got age"):
        alone.report("0000")


def test_words_of_the_book_are_taken(question_book):
    sex = replace(question_book["sex"], sentences={"male": "He.", "female": "She."})
    book = QuestionBook({"sex": sex}, noted="Yes.", report="Well?")
    talk = make_talk(book, levels={"sex": ("male", "female")})
    asked, told = talk.report("0000").turns
    assert (asked.parts[-1], told.text) in {("\nWell?", "He."), ("\nWell?", "She.")}
    compared = [one for subject in talk.answers for one in talk.comparisons(subject)]
    noted = {one.turns[1].text for one in of_task(compared, "_reference")}
    assert noted == {"Yes."}
