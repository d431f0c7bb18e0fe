"""Text about heads without heads: what a small language model reads before it is frozen.

Where an image would stand, there are filler tokens, and among them facts in words ("lesionleft":
one word, so that one patch can say it). Several facts are told and each is asked for, so the model
learns to look for the one that belongs to the question; if wanted, to compare two heads and to
report what it sees. Drawn from (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from neuro.data.conversation import Conversation, Image, Turn
from neuro.data.question import (
    DIFFERENT,
    SAME,
    Question,
    QuestionBook,
    conversation_about,
    reference_about,
    report_of,
    same_about,
)
from neuro.data.text import IGNORE, TextEncoder
from neuro.errors import InputError

IMAGE, START, END, PAD = "<image>", "<|im_start|>", "<|im_end|>", "<|pad|>"
FILLERS = tuple(f"<|filler{index}|>" for index in range(16))
WHICH = "If it is the same, which?"
Lesson: TypeAlias = tuple[Conversation, list[dict[str, str]]]  # and the facts that each image tells
_IMAGE = Image(path="", modality="", subject="")


def spelled_tokenizer(question_book: QuestionBook) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer whose words are those of the questions.

    It can write anything else by letters.
    """
    lines = [
        f"{START}user\n\n{question.ask}{END}\n{START}assistant\n"
        for question in question_book.templates.values()
    ]
    lines += [
        f" {name}{word}\n{word}"
        for name, question in question_book.templates.items()
        for word in _words(question)
    ]
    lines += [f"First: {IMAGE}\nSecond: {IMAGE}", f" {WHICH}"]
    lines += [question_book.noted, f"\n{question_book.report}"]
    for question in question_book.templates.values():
        lines += [f"\n{question.same}\n{SAME}\n{DIFFERENT}"] if question.same else []
        lines += [f"\n{one} {one}" for one in (question.sentences or {}).values()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[PAD, IMAGE, START, END, *FILLERS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, clean_up_tokenization_spaces=False
    )


class SpelledFacts:
    """Batches of questions, facts and answers, as token ids.

    Args:
        question_book: The templates.
        questions: Which of them are asked.
        text: The encoder of the model that will be trained.
        seed: Another seed gives other batches.
        batch_size: Conversations in a batch.
        max_slots: Filler tokens of one image at most; at least a quarter of it.
        stretch: In half of the conversations an image stands for one of up to so many times as many
            tokens: positions are spread, and fillers and facts counted, as if the rest of them were
            there. So a model that is taught by short texts reads images of a thousand tokens.
        comparisons: Whether heads are compared too.
        report: Whether reports are written too.
        doubt: Share of images, in [0, 1], that tell another answer to each question as well, up to
            0.3 times as often. A model that has read none takes whichever it finds, and no eye is
            sure before it has learned; but counting takes more lessons.
    """

    def __init__(
        self,
        question_book: QuestionBook,
        questions: Sequence[str],
        text: TextEncoder,
        *,
        seed: int,
        batch_size: int,
        max_slots: int,
        stretch: float | int = 1,
        comparisons: bool = False,
        report: bool = False,
        doubt: float | int = 0.0,
    ) -> None:
        if not 0 <= doubt <= 1:
            raise InputError(f"data.lesson_doubt must be a share in [0, 1]; got {doubt}.")
        self.doubt = doubt
        self.question_book = question_book
        self.templates = {name: question_book[name] for name in questions}
        self.text = text
        self.seed = seed
        self.batch_size = batch_size
        self.max_slots = max_slots
        self.stretch = stretch
        self.compared = [name for name, one in self.templates.items() if one.is_compared]
        self.lessons = [self._questions]
        if comparisons and self.compared:
            self.lessons += [self._reference, self._same] * 2  # harder than questions
        if report and any(one.sentences for one in self.templates.values()):
            self.lessons += [self._report]
        fillers = text.tokenizer.convert_tokens_to_ids(list(FILLERS))
        assert isinstance(fillers, list)
        self._fillers = [int(one) for one in fillers]

    def fingerprint(self) -> str:
        """Return a name for exactly this text.

        What the first batch holds follows from all that makes the text.
        """
        first = [each.tolist() for each in self.batch(0)]
        content = [*first, self.seed, len(self.text.tokenizer)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def batch(
        self, step: int
    ) -> tuple[
        Int[Tensor, "studies length"],
        Int[Tensor, "studies length"],
        Int[Tensor, "studies length"],
        Float[Tensor, "studies length"],
    ]:
        """Return input ids, targets, positions and copies, padded on the right.

        A token stands for so many copies of itself.
        """
        draw = random.Random(self.seed * 1_000_003 + step)
        columns = zip(*(self._example(draw) for _ in range(self.batch_size)), strict=True)
        paddings = (self.text.pad_id, IGNORE, 0, 1.0)
        ids, targets, positions, copies = (
            pad_sequence(list(column), batch_first=True, padding_value=padding)
            for column, padding in zip(columns, paddings, strict=True)
        )
        return ids, targets, positions, copies

    def _example(self, draw: random.Random) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        conversation, heads = draw.choice(self.lessons)(draw)
        return self._fill(conversation, heads, draw)

    def _questions(self, draw: random.Random) -> Lesson:
        """Ask for each fact of one or two images, one turn after the other."""
        facts = self._facts(draw)
        told = draw.sample(list(facts), draw.randint(1, len(facts)))
        shares = (
            [told]
            if len(told) == 1 or draw.random() < 0.6
            else [told[: len(told) // 2], told[len(told) // 2 :]]
        )
        asked = draw.sample(told, len(told))
        first = conversation_about(
            study_id="spelled",
            name="spelled",
            ask=self.templates[asked[0]].ask,
            answer=facts[asked[0]],
            images=[_IMAGE] * len(shares),
        )
        others = [_turns(self.templates[name].ask, facts[name]) for name in asked[1:]]
        return _and_then(first, others), [_only(facts, share) for share in shares]

    def _reference(self, draw: random.Random) -> Lesson:
        """Tell a fact of one head, then ask for that of another, and for its other facts."""
        told, heads = self._two_heads(draw)
        first = reference_about(
            study_id="spelled",
            name=told[0],
            question=self.templates[told[0]],
            noted=self.question_book.noted,
            answers=(heads[0][told[0]], heads[1][told[0]]),
            images=(_IMAGE, _IMAGE),
        )
        others = [_turns(self.templates[name].ask, heads[1][name]) for name in told[1:]]
        return _and_then(first, others), heads

    def _same(self, draw: random.Random) -> Lesson:
        """Ask of each fact of two heads whether it is the same, as it is in half of them.

        Every other lesson asks which it is, too: that is learned at once, and with it to look for
        the fact in both heads. Without it, little is learned in twice the time.
        """
        told, heads = self._two_heads(draw)
        ending = draw.choice(["", f" {WHICH}"])
        talks = []
        for name in told:
            own = heads[0][name]
            others = [one for one in _words(self.templates[name]) if one != own]
            heads[1][name] = own if draw.random() < 0.5 else draw.choice(others or [own])
            talks.append(self._whether_same(name, (own, heads[1][name]), ending))
        later = [(Turn("user", talk.turns[0].parts[-1:]), talk.turns[1]) for talk in talks[1:]]
        return _and_then(talks[0], later), heads

    def _whether_same(self, name: str, answers: tuple[str, str], ending: str) -> Conversation:
        question = self.templates[name]
        talk = same_about(
            study_id="spelled",
            name=name,
            question=replace(question, same=f"{question.same}{ending}"),
            answers=answers,
            images=(_IMAGE, _IMAGE),
        )
        if ending and talk.turns[1].text == SAME:
            return replace(talk, turns=(talk.turns[0], Turn("assistant", (answers[0],))))
        return talk

    def _report(self, draw: random.Random) -> Lesson:
        """Ask for all facts at once, told by up to three images."""
        facts = self._facts(draw)
        count = draw.randint(1, 3)
        owners = {name: draw.randrange(count) for name in facts}
        shares = [[name for name in facts if owners[name] == place] for place in range(count)]
        return conversation_about(
            study_id="spelled",
            name="report",
            ask=self.question_book.report,
            answer=report_of(facts, self.question_book),
            images=[_IMAGE] * count,
        ), [_only(facts, share) for share in shares]

    def _facts(self, draw: random.Random) -> dict[str, str]:
        return {name: draw.choice(_words(one, draw)) for name, one in self.templates.items()}

    def _two_heads(self, draw: random.Random) -> tuple[list[str], list[dict[str, str]]]:
        """Return what is compared, and two heads that tell it."""
        told = draw.sample(self.compared, draw.randint(1, len(self.compared)))
        return told, [_only(self._facts(draw), told) for _ in range(2)]

    def _fill(
        self, conversation: Conversation, heads: list[dict[str, str]], draw: random.Random
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Put each image's facts among fillers, in the place of its image ids."""
        blocks = [self._block(facts, draw) for facts in heads]
        encoded = self.text(conversation, [len(block) for block in blocks])
        ids = encoded.input_ids.clone()
        is_image = ids == self.text.image_id
        ids[is_image] = torch.tensor([one for block in blocks for one, _ in block])
        # Half are as short as they look: these are learned first.
        longest = self.stretch if draw.random() < 0.5 else 1.0
        told = [self._stretched(block, longest, draw) for block in blocks]
        steps, copies = torch.ones_like(ids), torch.ones(len(ids))
        steps[is_image] = torch.tensor([one for own, _ in told for one in own])
        copies[is_image] = torch.tensor([one for _, own in told for one in own])
        return ids, encoded.labels, steps.cumsum(0) - 1, copies

    def _stretched(
        self, block: Sequence[tuple[int, float]], longest: float | int, draw: random.Random
    ) -> tuple[list[int], list[float]]:
        """Return how far each token of an image is from the one before, and its copies.

        Each image is as long as it likes, log-uniformly, so that which of two it is cannot be told
        by how far away it is; and any share of its tokens says its facts.
        """
        scale = math.exp(draw.uniform(0, math.log(longest)))
        loudness = math.exp(draw.uniform(0, math.log(scale)))
        copies = [sure * loudness if sure else scale for _, sure in block]
        return _spread(len(block), scale, draw), copies

    def _block(self, facts: dict[str, str], draw: random.Random) -> list[tuple[int, float]]:
        """Return the tokens of an image, each with how surely it tells a fact; fillers tell none.

        An eye that is not sure tells another answer to each question too, less often.
        """
        size = draw.randint(self.max_slots // 4, self.max_slots)
        pieces = [[(draw.choice(self._fillers), 0.0)] for _ in range(size)]
        is_sure = self.doubt == 0 or draw.random() < 1 - self.doubt

        def tell(name: str, fact: str, sure: float) -> None:
            spelled = self.text.tokenizer.encode(f" {name}{fact}", add_special_tokens=False)
            pieces.insert(draw.randint(0, len(pieces)), [(one, sure) for one in spelled])

        for name, fact in facts.items():
            for _ in range(draw.choice([1, 2, 3])):
                tell(name, fact, 1.0)
            if is_sure:
                continue
            others = [one for one in _words(self.templates[name], draw) if one != fact]
            if others:
                tell(name, draw.choice(others), draw.uniform(0.05, 0.3))
        return [one for piece in pieces for one in piece]


def _spread(size: int, scale: float, draw: random.Random) -> list[int]:
    """Return how far each of some tokens is from the one before, as a sample of more tokens."""
    whole = round(size * scale)
    places = [-1, *sorted(draw.sample(range(whole), size))]
    return [after - before for before, after in pairwise(places)]


def _turns(ask: str, answer: str) -> tuple[Turn, Turn]:
    return Turn("user", (f"\n{ask}",)), Turn("assistant", (answer,))


def _and_then(first: Conversation, others: Sequence[tuple[Turn, Turn]]) -> Conversation:
    """Append questions and answers."""
    return replace(first, turns=(*first.turns, *chain.from_iterable(others)))


def _only(facts: dict[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: facts[name] for name in names}


def _words(question: Question, draw: random.Random | None = None) -> list[str]:
    """Return the possible answers; where any number may be the answer, some ages."""
    if question.answers is not None:
        return list(dict.fromkeys(question.answers.values()))
    return [str(draw.randint(18, 90))] if draw is not None else [str(age) for age in range(18, 91)]
