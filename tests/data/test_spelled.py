"""What the tiny language model reads: facts in the place of images, asked for and answered."""

from __future__ import annotations

import pytest
import torch

from neuro.data.spelled import FILLERS, SpelledFacts
from neuro.data.text import IGNORE

QUESTIONS = ["sex", "lesion", "tract", "network"]


@pytest.fixture(scope="module")
def facts(question_book, text):
    return SpelledFacts(question_book, QUESTIONS, text, seed=1, batch_size=8, max_slots=16)


@pytest.fixture(scope="module")
def batches(facts):
    return [facts.batch(step) for step in range(8)]


def rows_of(batches):
    return [(ids, targets) for batch in batches for ids, targets in zip(*batch, strict=True)]


def answers_of(text, targets):
    """Return what is learned, one text per turn."""
    kept = targets[targets != IGNORE].tolist()
    said, current = [], []
    for token in kept:
        if token == text.end_id:
            said.append(text.tokenizer.decode(current))
            current = []
        else:
            current.append(token)
    assert current == []
    return said


# ---------------------------------------------------------------- the tokenizer


@pytest.mark.parametrize(
    "words", ["male", "Is this person male?", "é 左 🧠", "  two  spaces\n\ttab", "0.5 mm; <b>"]
)
def test_anything_can_be_written_and_read_back(text, words):
    ids = text.tokenizer.encode(words, add_special_tokens=False)
    assert text.tokenizer.decode(ids) == words


def test_the_answers_of_the_book_are_single_words(text, question_book):
    for name in QUESTIONS:
        for answer in question_book[name].answers.values():
            assert len(text.tokenizer.encode(answer, add_special_tokens=False)) == 1


def test_the_tokenizer_is_the_same_each_time(text, question_book):
    from neuro.data.spelled import spelled_tokenizer

    assert spelled_tokenizer(question_book).get_vocab() == text.tokenizer.get_vocab()


def test_fillers_are_single_tokens_of_their_own(text):
    ids = {text.tokenizer.convert_tokens_to_ids(one) for one in FILLERS}
    assert len(ids) == len(FILLERS)
    assert not ids & {text.image_id, text.end_id, text.pad_id, None}


# ---------------------------------------------------------------- the batches


def test_a_batch_is_a_function_of_seed_and_step(question_book, text, facts):
    same = SpelledFacts(question_book, QUESTIONS, text, seed=1, batch_size=8, max_slots=16)
    other = SpelledFacts(question_book, QUESTIONS, text, seed=2, batch_size=8, max_slots=16)
    for step in (3, 0):
        assert all(
            torch.equal(a, b) for a, b in zip(facts.batch(step), same.batch(step), strict=True)
        )
    assert facts.fingerprint() == same.fingerprint() != other.fingerprint()
    assert not any(
        a.shape == b.shape and torch.equal(a, b)
        for a, b in [
            (facts.batch(0)[0], facts.batch(1)[0]),
            (facts.batch(0)[0], other.batch(0)[0]),
        ]
    )


def test_no_image_id_is_left(batches, text):
    for ids, _ in batches:
        assert not bool((ids == text.image_id).any())


def test_targets_are_ids_and_padding_is_never_learned(batches, text):
    for ids, targets in batches:
        kept = targets != IGNORE
        assert torch.equal(ids[kept], targets[kept])
        assert not bool((ids[kept] == text.pad_id).any())
        assert bool(kept.any(dim=1).all())


def test_every_answer_stands_where_the_image_would(batches, text, question_book):  # D38
    known = {name: set(question_book[name].answers.values()) for name in QUESTIONS}
    for ids, targets in rows_of(batches):
        words = text.tokenizer.decode(ids)
        turns = words.split("<|im_start|>user\n")[1:]
        answers = answers_of(text, targets)
        assert len(turns) == len(answers)
        for turn, answer in zip(turns, answers, strict=True):
            name = next(one for one in QUESTIONS if question_book[one].ask in turn)
            assert answer in known[name]
            assert f" {name}{answer}" in turns[0]
            wrong = known[name] - {answer}
            assert not [one for one in wrong if f" {name}{one}" in turns[0]]


def test_a_question_does_not_tell_its_answer(batches, text, question_book):  # D37
    """The same fact is asked for with every answer, so that only the fact decides."""
    seen = {name: set() for name in QUESTIONS}
    for ids, targets in rows_of(batches):
        turns = text.tokenizer.decode(ids).split("<|im_start|>user\n")[1:]
        for turn, answer in zip(turns, answers_of(text, targets), strict=True):
            seen[next(one for one in QUESTIONS if question_book[one].ask in turn)].add(answer)
    assert seen == {name: set(question_book[name].answers.values()) for name in QUESTIONS}


def test_a_number_is_a_fact_too(question_book, text):
    ages = SpelledFacts(question_book, ["age"], text, seed=1, batch_size=8, max_slots=16)
    ids, targets = ages.batch(0)
    said = [answers_of(text, row)[0] for row in targets]
    assert all(18 <= int(age) <= 90 for age in said)
    assert len(set(said)) > 3
    for row, age in zip(ids, said, strict=True):
        assert f" age{age}" in text.tokenizer.decode(row)
