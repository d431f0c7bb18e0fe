"""What the tiny language model reads: facts in the place of images, asked for and answered."""

from __future__ import annotations

import re
from collections import Counter

import pytest
import torch

from neuro.data.spelled import FILLERS, WHICH, SpelledFacts
from neuro.data.text import IGNORE
from neuro.errors import InputError

QUESTIONS = ["sex", "lesion", "tract", "network"]


@pytest.fixture(scope="module")
def facts(question_book, text):
    return SpelledFacts(question_book, QUESTIONS, text, seed=1, batch_size=8, max_slots=16)


@pytest.fixture(scope="module")
def batches(facts):
    return [facts.batch(step) for step in range(8)]


def rows_of(batches):
    return [pair for batch in batches for pair in zip(*batch[:2], strict=True)]


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
    for ids, *_ in batches:
        assert not bool((ids == text.image_id).any())


def test_targets_are_ids_and_padding_is_never_learned(batches, text):
    for ids, targets, *_ in batches:
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
    ids, targets, *_ = ages.batch(0)
    said = [answers_of(text, row)[0] for row in targets]
    assert all(18 <= int(age) <= 90 for age in said)
    assert len(set(said)) > 3
    for row, age in zip(ids, said, strict=True):
        assert f" age{age}" in text.tokenizer.decode(row)


def times_told(text, ids, copies, name, word):
    """Return by how many copies an image says a fact."""
    phrase = torch.tensor(text.tokenizer.encode(f" {name}{word}", add_special_tokens=False))
    places = [
        place
        for place in range(len(ids) - len(phrase) + 1)
        if torch.equal(ids[place : place + len(phrase)], phrase)
    ]
    return sum(float(copies[place]) for place in places)


@pytest.mark.parametrize("stretch", [1, 32])
def test_an_eye_that_is_not_sure_tells_the_right_answer_most_often(question_book, text, stretch):
    known = {name: set(question_book[name].answers.values()) for name in QUESTIONS}
    lessons = SpelledFacts(
        question_book, QUESTIONS, text, seed=1, batch_size=32, max_slots=8, stretch=stretch,
        doubt=0.5,
    )  # fmt: skip
    doubts = []
    for ids, targets, _, copies in zip(*lessons.batch(0), strict=True):
        turns = text.tokenizer.decode(ids).split("<|im_start|>user\n")[1:]
        for turn, answer in zip(turns, answers_of(text, targets), strict=True):
            name = next(one for one in QUESTIONS if question_book[one].ask in turn)
            right = times_told(text, ids, copies, name, answer)
            wrong = [times_told(text, ids, copies, name, one) for one in known[name] - {answer}]
            assert 0 <= sum(wrong) <= 0.3 * right
            doubts.append(sum(wrong) > 0)
    assert 0.3 < sum(doubts) / len(doubts) < 0.7


def test_a_doubt_is_a_share(question_book, text):
    for wrong in (-0.1, 1.5):
        with pytest.raises(InputError, match=rf"data\.lesson_doubt .*\[0, 1\]; got {wrong}"):
            SpelledFacts(
                question_book, QUESTIONS, text, seed=1, batch_size=8, max_slots=8, doubt=wrong
            )


# ---------------------------------------------------------------- long images


def test_positions_count_tokens_where_nothing_is_stretched(batches):
    for ids, _, positions, copies in batches:
        assert bool((copies == 1).all())
        rows = torch.arange(ids.shape[1]).expand_as(positions)
        assert torch.equal(positions[positions > 0], rows[positions > 0])


def test_fillers_of_a_stretched_image_stand_for_more_of_them(question_book, text):
    lessons = SpelledFacts(
        question_book, QUESTIONS, text, seed=1, batch_size=64, max_slots=16, stretch=64
    )
    fillers = torch.tensor(text.tokenizer.convert_tokens_to_ids(list(FILLERS)))
    seen, scales_of, loudness = [], [], []
    for row in zip(*lessons.batch(0), strict=True):
        length = int((row[0] != text.pad_id).sum())
        ids, targets, positions, copies = (one[:length] for one in row)
        is_filler = torch.isin(ids, fillers)
        scales_of.append(copies[is_filler].unique())
        steps = positions.diff()
        assert int(positions[0]) == 0
        assert int(steps.min()) >= 1
        # What is said follows word by word, and once.
        assert bool((steps[targets[1:] != IGNORE] == 1).all())
        assert bool((copies[targets != IGNORE] == 1).all())
        between = is_filler[1:] & is_filler[:-1] & (copies[1:] == copies[:-1])
        for scale in scales_of[-1]:
            own = steps[between & (copies[1:] == scale)]
            seen.append((float(scale), float(own.float().mean())))
        loudness.append((float(copies[~is_filler].max()), float(scales_of[-1].max())))
    scales = torch.tensor(seen)
    assert 1 <= scales[:, 0].min() < 2
    assert 32 < scales[:, 0].max() <= 64
    ratios = scales[:, 1] / scales[:, 0]
    assert 0.8 < ratios.nanmedian() < 1.2
    # Two images are of two lengths, and facts are said by any share of their tokens.
    assert max(map(len, scales_of)) == 2
    facts, longest = torch.tensor(loudness).T
    assert bool((facts <= longest).all())
    assert int((facts > 2).sum()) > 8
    assert int(((facts < 0.5 * longest) & (longest > 4)).sum()) > 4


# ---------------------------------------------------------------- comparisons and reports


@pytest.fixture(scope="module")
def talks(question_book, text):
    """Prompts and answers of all kinds of lessons, as turns in words."""
    lessons = SpelledFacts(
        question_book,
        [*QUESTIONS, "age"],
        text,
        seed=1,
        batch_size=32,
        max_slots=8,
        comparisons=True,
        report=True,
    )
    return [
        (text.tokenizer.decode(ids).split("<|im_start|>user\n")[1:], answers_of(text, targets))
        for ids, targets in rows_of([lessons.batch(step) for step in range(12)])
    ]


def facts_in(block):
    """Return what a block tells, by question."""
    told = {name: set(re.findall(rf" {name}([a-z]+)", block.split("\n")[0])) for name in QUESTIONS}
    return {name: answers for name, answers in told.items() if answers}


def asked_in(turn, question_book, of):
    return next(name for name in QUESTIONS if (getattr(question_book[name], of) or "?") in turn)


def test_a_reference_is_told_and_the_second_head_is_asked_for(talks, question_book):  # D37
    seen, differ = set(), 0
    lessons = [(turns, said) for turns, said in talks if said[0] == question_book.noted]
    for turns, (_, *answers) in lessons:
        first, second = facts_in(turns[0]), facts_in(turns[1])
        told = next(
            (name, answer)
            for name in QUESTIONS
            for answer, sentence in question_book[name].sentences.items()
            if sentence in turns[0]
        )
        assert first[told[0]] == {told[1]}
        for turn, answer in zip(turns[1:], answers, strict=True):
            name = asked_in(turn, question_book, "ask")
            assert second[name] == {answer}
            seen.add((name, answer))
        differ += first[told[0]] != second[told[0]]
    assert seen == {(name, one) for name in QUESTIONS for one in question_book[name].sentences}
    assert 0.3 < differ / len(lessons) < 0.8


@pytest.mark.parametrize("is_named", [False, True])
def test_two_heads_are_the_same_where_both_tell_the_same(talks, question_book, is_named):
    said = {name: Counter() for name in QUESTIONS}
    for turns, answers in talks:
        if not turns[0].startswith("First:") or (WHICH in turns[0]) != is_named:
            continue
        blocks = turns[0].split("Second:")
        for turn, answer in zip(turns, answers, strict=True):
            name = asked_in(turn, question_book, "same")
            assert (WHICH in turn) == is_named
            (first,), (second,) = (facts_in(block)[name] for block in blocks)
            same = first if is_named else "same"
            assert answer == (same if first == second else "different")
            said[name][answer] += 1
    for counts in said.values():
        assert counts.total() > 10
        assert 0.25 < counts["different"] / counts.total() < 0.75


def test_a_report_tells_all_facts_of_one_to_three_images(talks, question_book):
    reports = [(turns, said) for turns, said in talks if question_book.report in turns[0]]
    for (turn,), (said,) in reports:
        facts = facts_in(turn)
        assert set(facts) == set(QUESTIONS)
        assert said == " ".join(
            question_book[name].sentences[next(iter(facts[name]))] for name in QUESTIONS
        )
    assert len({said for _, (said,) in reports}) > 10


def test_what_is_not_wanted_is_no_lesson(question_book, text, facts):
    def kinds(**wanted):
        lessons = SpelledFacts(
            question_book, QUESTIONS, text, seed=1, batch_size=32, max_slots=4, **wanted
        )
        words = text.tokenizer.decode(lessons.batch(0)[0].flatten())
        marks = (question_book.noted, "First:", question_book.report)
        return tuple(mark in words for mark in marks)

    assert kinds() == (False, False, False)
    assert kinds(comparisons=True) == (True, True, False)
    assert kinds(report=True) == (False, False, True)


def test_numbers_alone_are_neither_compared_nor_reported(question_book, text):
    lessons = SpelledFacts(
        question_book,
        ["age"],
        text,
        seed=1,
        batch_size=8,
        max_slots=4,
        comparisons=True,
        report=True,
    )
    words = text.tokenizer.decode(lessons.batch(0)[0].flatten())
    assert question_book["age"].ask in words
    assert "Second" not in words
    assert question_book.report not in words


def test_sentences_of_the_book_are_short(text, question_book):
    for question in question_book.templates.values():
        for sentence in (question.sentences or {}).values():
            assert text.num_tokens(sentence) == len(re.findall(r"\w+|\.", sentence))
