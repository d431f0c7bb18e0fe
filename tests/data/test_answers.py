"""Right answers are read as right, whatever their kind, and what cannot be understood is wrong."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import replace

import pytest

from neuro.data.answers import (
    MOST_CLASSES,
    RULES,
    Answer,
    AnswerBook,
    label_in,
    number_in,
    plain,
    unique,
)
from neuro.data.conversation import Conversation, Turn

SEXES = ("female", "male")


def talk(task, gold, label=None, name="a"):
    turns = (Turn("user", ("?",)), Turn("assistant", (gold,)))
    metadata = {} if label is None else {"subject_label": label}
    return Conversation(id=name, task=task, turns=turns, images=(), metadata=metadata)


def book_of(*golds, task="sex", times=2):
    """Return the book of some gold answers: texts, or texts with their labels."""
    pairs = [one if isinstance(one, tuple) else (one, None) for one in golds]
    return AnswerBook.of(talk(task, *pair) for pair in pairs for _ in range(times))


def answer(said, target="male", *, task="sex", label="", study="a", task_type="single"):
    return Answer(
        study_id=study,
        subject=study,
        task=task,
        task_type=task_type,
        modalities=("T1",),
        prompt="?",
        target=target,
        said=said,
        label=label,
    )


def grade(book, *args, **more):
    (found,) = book.grade([answer(*args, **more)])
    return found


# ---------------------------------------------------------------- words


@pytest.mark.parametrize("said", ["male", "Male", " male ", "male.", "MALE."])
def test_case_spaces_and_a_full_stop_do_not_matter(said):
    assert answer(said).is_exact
    assert grade(book_of(*SEXES), said).is_right


def test_plain_keeps_what_matters():
    assert plain("  On the  LEFT\nside. ") == "on the left side"
    assert plain("61.5") == "61.5"


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("female", "female"),  # not 'male', which is a part of it
        ("This person is male, I think", "male"),
        ("(Male)", "male"),
        ("males", None),
        ("mal", None),
        ("ma le", None),
        ("", None),
        ("<image>", None),
        ("not male", None),
        ("not male but female", "female"),
        ("non-male", None),
        ("male or female", None),  # which of the two?
        ("male, yes, male", "male"),
    ],
)
def test_a_class_is_named_by_whole_words_and_alone(said, label):  # D63
    found = grade(book_of(*SEXES), said, "male")
    assert (found.label, found.is_parsed) == (label, label is not None)
    assert found.is_right == (label == "male")


def test_the_longer_of_two_names_at_one_place_counts():
    book = book_of("lesion", "no lesion", "left", "left and right")
    for said in ("no lesion", "lesion", "left and right", "left"):
        assert grade(book, f"I see: {said}", said).label == said


@pytest.mark.parametrize(
    ("said", "label"),
    [
        ("stage 1", "stage 1"),
        ("It is stage 1.", "stage 1"),
        ("stage 1. No more", "stage 1"),
        ("stage 1.5", None),
        ("lesion", "lesion"),
        ("no lesion", "no lesion"),
        ("I see no lesion.", "no lesion"),
        ("a lesion", "lesion"),
        ("there is no evidence of lesion", None),
        ("no evidence of a lesion", None),
        ("no sign of lesion", None),
        ("no signs of the lesion", None),
        ("not a lesion", None),
        ("not a sign of lesion", None),
        ("evidence of lesion", "lesion"),
        ("piano lesion", "lesion"),
        ("no evidence of lesion but stage 1", "stage 1"),
        ("not left and right", None),
        ("no, left", "left"),
    ],
)
def test_a_class_that_is_denied_or_goes_on_is_not_named(said, label):
    names = ("stage 1", "lesion", "no lesion", "left", "right", "left and right")
    assert label_in(said, names, "only") == label


def test_a_denied_sex_is_not_named():
    assert label_in("not a male", SEXES, "only") is None
    assert label_in("not a male but a female", SEXES, "only") == "female"


def test_a_class_may_be_called_no():
    assert label_in("no lesion", ("no", "lesion"), "only") == "no"


def test_the_first_or_the_last_class_counts_where_several_may_be_named():
    said = "different, this subject is female while the reference was male"
    assert [label_in(said, SEXES, rule) for rule in RULES] == [None, "female", "male"]
    assert label_in("neither", SEXES, "first") is None


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("61", 61.0),
        ("-3.5", -3.5),
        ("61 years.", 61.0),
        ("about 61.", 61.0),
        ("61 or 61", 61.0),
        ("60-65", None),
        ("60 or 65", None),
        ("7.5e-4 mm2/s", 7.5e-4),
        ("1E+3", 1000.0),
        ("1e-05", 1e-05),
        ("7.5e-4mm", None),
        ("1e999", None),
        ("T1", None),
        ("1.2.3", None),
        ("old", None),
        ("", None),
    ],
)
def test_a_number_is_read_where_there_is_one(text, number):
    assert number_in(text) == number


# ---------------------------------------------------------------- kinds


def test_what_a_question_is_about_follows_from_its_gold_answers():
    reports = [f"There is a lesion of {size} mm, {place} it." for size in (3, 4) for place in "abc"]
    kinds = {
        ("male", "female"): "classes",
        ("61", "20", "61"): "number",
        ("61 years", "20 years"): "number",
        ("61 years", "20 months"): "classes",  # the numbers do not say it all
        tuple(reports): "text",  # too long for names
        tuple("abcdefghijklmnopq"): "text",  # too many
    }
    for golds, kind in kinds.items():
        assert book_of(*golds)["sex"].kind == kind, golds
    assert book_of("male", "female", times=1)["sex"].kind == "text"  # nothing comes again
    assert MOST_CLASSES == 16


@pytest.mark.parametrize(
    ("golds", "usual"),
    [(("0", "0", "0", "1"), "0"), (("stage 1", "stage 1.5", "stage 10", "stage 10"), "stage 10")],
)
def test_codes_and_stages_are_classes_though_they_are_numbers(golds, usual):
    book = book_of(*golds, times=8)
    assert (book["sex"].kind, book["sex"].majority) == ("classes", usual)
    for gold in golds:
        assert grade(book, gold, gold).is_right
        assert grade(book, usual, gold).is_right == (gold == usual)
    assert book_of(*(str(age) for age in range(20, 31)), times=8)["sex"].kind == "number"


def test_a_number_that_is_ten_times_the_right_one_is_wrong():
    book = book_of(*(f"{number}e-4" for number in range(1, 40)), times=1)
    assert book["sex"].kind == "number"
    assert grade(book, "0.0007", "7e-4").is_right
    assert not grade(book, "7e-3", "7e-4").is_right


def test_the_majority_is_the_most_frequent_answer_of_training_as_it_is_written():
    book = AnswerBook.of([talk("sex", one) for one in ("Male.", "female", "Male.", "female", "f")])
    assert book["sex"].majority in ("Male.", "female")
    book = AnswerBook.of([talk("sex", one) for one in ("Male.", "female", "Male.")])
    assert book["sex"].majority == "Male."
    assert book["other"].majority == ""


def test_the_majority_is_the_most_frequent_class_however_it_is_spelled():
    golds = ["male", "Male", "Male.", "MALE.", *["female"] * 3]
    book = AnswerBook.of([talk("sex", one) for one in golds])
    assert plain(book["sex"].majority) == "male"
    assert grade(book, book["sex"].majority, "male").is_right


def test_the_majority_of_labelled_answers_is_the_spelling_of_the_most_frequent_label():
    golds = [(f"Male, as the {place} says", "Male") for place in ("jaw", "brow", "skull")]
    golds += [("Female, as the jaw says", "Female")] * 2
    book = book_of(*golds, times=1)
    assert book["sex"].majority == "Male"
    found = grade(book, book["sex"].majority, golds[0][0], label="Male")
    assert (found.label, found.is_right) == ("male", True)


@pytest.mark.parametrize("golds", [("20", "20", "65"), ("0.00001", "0.00002"), ("1", "2", "4")])
def test_the_majority_of_numbers_is_what_an_unread_answer_counts_as(golds):
    book = book_of(*golds)
    guess = grade(book, book["sex"].majority, golds[0])
    assert guess.is_parsed
    assert guess.number == grade(book, "old", golds[0]).number == book["sex"].mean


def test_an_unknown_question_is_free_text():
    book = book_of(*SEXES)
    assert grade(book, "On the left.", "on the left", task="other").is_right
    assert not grade(book, "left", "on the left", task="other").is_right
    assert grade(book, " .", "x", task="other").is_parsed is False


def test_only_training_decides_and_a_class_that_is_new_is_wrong_unless_it_is_said():
    book = book_of("left", "right")
    assert grade(book, "bilateral", "bilateral").is_right
    assert not grade(book, "left", "bilateral").is_right
    assert grade(book, "left", "bilateral").gold_label == "bilateral"
    assert grade(book, "none", "none").gold_label == "none"


def test_a_class_that_is_new_is_not_the_known_one_that_its_name_holds():
    book = book_of("left", "right")
    found = grade(book, "left", "upper left")
    assert (found.gold_label, found.label, found.is_right) == ("upper left", "left", False)
    assert grade(book, "Upper left.", "upper left").is_right
    assert grade(book, "it is left", "Left.").is_right


def test_an_answer_without_a_number_counts_as_the_mean_of_training_and_is_wrong():
    book = book_of("20", "40", "60")
    found = grade(book, "old", "40")  # the mean, but it was not said
    assert (found.number, found.gold_number, found.is_right, found.is_parsed) == (
        *(40.0, 40.0),
        *(False, False),
    )
    assert grade(book, "40.0", "40").is_right
    assert not grade(book, "41", "40").is_right
    assert math.isnan(grade(book, "unknown", "unknown").gold_number)


# ---------------------------------------------------------------- gold answers


def upstream_like(rng, style):
    """Return a comparison's gold answer and its label, worded as public data sets do."""
    label, reference = rng.choice(SEXES), rng.choice(SEXES)
    same = "same" if label == reference else "different"
    if style == "first":
        return f"{same}, this subject is {label} while the reference was {reference}", label
    if style == "last":
        return f"The reference was {reference}. This subject is {label}.", label
    return f"{same.capitalize()}: {label}.", label


@pytest.mark.parametrize("style", ["first", "last", "alone"])
def test_gold_answers_with_their_reasons_are_read_as_their_own_label(style):  # D63
    rng = random.Random(style)
    golds = [upstream_like(rng, style) for _ in range(40)]
    book = book_of(*golds, task="T3", times=1)
    task = book["T3"]
    assert (task.kind, task.is_labelled) == ("classes", True)
    assert task.rule == {"alone": "only"}.get(style, style)
    for text, label in golds:
        found = grade(book, text, text, task="T3", label=label, task_type="comparison")
        assert (found.label, found.gold_label, found.is_right) == (label, label, True)
        # Another wording with the right label is right, one with the other label is wrong.
        other = next(one for one in SEXES if one != label)
        assert grade(book, f"{label}!", text, task="T3", label=label).is_right
        assert not grade(book, f"{other}!", text, task="T3", label=label).is_right
    assert sorted(task.spellings.values()) == ["female", "male"]


def test_gold_answers_of_single_multimodal_and_comparison_questions_are_right():  # D63
    talks = [talk("sex", one) for one in SEXES * 2]
    talks += [talk("age", str(age)) for age in (20, 30, 40)]
    talks += [talk("T3", *upstream_like(random.Random(seed), "first")) for seed in range(20)]
    talks += [talk("sex_same", one, label) for one in ("same", "different") for label in SEXES]
    talks += [talk("report", f"A long text about head {number}, as it is.") for number in "abcd"]
    book = AnswerBook.of(talks)
    kinds = {"sex": "classes", "age": "number", "T3": "classes", "sex_same": "classes"}
    assert {name: task.kind for name, task in book.tasks.items()} == kinds | {"report": "text"}
    for one in talks:
        gold = one.turns[-1].text
        label = one.metadata.get("subject_label", "")
        found = grade(book, gold, gold, task=one.task, label=label)
        assert found.is_right
        assert found.is_parsed
        assert found.label == (found.gold_label or None)
        silent = grade(book, "hm", gold, task=one.task, label=label)
        assert not silent.is_right


def test_a_label_that_the_answer_does_not_name_is_not_what_is_asked():
    """A comparison says same or different; its metadata still tell the subject's sex."""
    golds = [(one, label) for one in ("same", "different") for label in SEXES]
    task = book_of(*golds)["sex"]
    assert (task.is_labelled, {*task.spellings}) == (False, {"same", "different"})
    assert grade(book_of(*golds), "same", "same", label="male").gold_label == "same"


def test_labels_that_no_rule_reads_are_told_and_texts_are_compared_whole(caplog):
    golds = [
        ("female like the other, who is not male, but this one is a man", "male"),
        ("this one is female and the reference of the last turn was male", "female"),
        ("male was the reference and of this one it is said that it is female", "female"),
    ]
    with caplog.at_level(logging.WARNING):
        book = book_of(*golds)
    assert book["sex"].kind == "text"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "task 'sex'" in caplog.text
    assert all(grade(book, text, text, label=label).is_right for text, label in golds)


def test_classes_are_spelled_as_the_answers_spell_them_where_they_say_nothing_else():
    assert book_of(("Male.", "male"), ("Female.", "female"))["sex"].spellings == {
        "male": "Male.",
        "female": "Female.",
    }
    labelled = book_of(("It is Male, I say", "Male"), ("It is a Female one", "Female"))["sex"]
    assert labelled.spellings == {"male": "Male", "female": "Female"}


def test_right_answers_of_the_book_are_right_and_not_confused(question_book):  # D63
    for question in question_book.templates.values():
        texts = sorted({*(question.answers or {"20": "20", "61": "61"}).values()})
        book = book_of(*texts)
        for one in texts:
            assert [grade(book, one, other).is_right for other in texts].count(True) == 1
            assert grade(book, one, one).is_right


def test_a_study_that_two_ranks_answered_counts_once():  # D67
    answers = [answer("male", study=name) for name in "cabac"]
    assert [one.study_id for one in unique(answers)] == ["a", "b", "c"]
    assert unique([replace(answers[0])]) == answers[:1]


@pytest.mark.parametrize(
    "task",
    [
        "all",
        "low",
        "high",
        "shuffled",
        "zero",
        "x_noise",
        "majority",
        "majority_low",
        "type/single",
    ],
)
def test_the_findings_of_a_task_do_not_meet_those_of_anything_else(task):
    assert answer("x", task=task).findings == (f"task/{task}", "type/single", "images/T1")


@pytest.mark.parametrize("task", ["sex", "T1", "overall", "lesion_low", "zeros", ""])
def test_other_tasks_keep_their_bare_names(task):
    assert answer("x", task=task).findings[0] == task
