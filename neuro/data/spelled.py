"""Text about heads without heads: what a small language model reads before it is frozen.

Where an image would stand, there are filler tokens, and among them facts in words ("lesionleft":
one word, so that one patch can say it). Several facts are told and each is asked for, so the model
learns to look for the one that belongs to the question. Drawn from (seed, step).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerFast

from neuro.data.conversation import Conversation, Image, ImagePart, Part, Turn
from neuro.data.question import Question, QuestionBook
from neuro.data.text import IGNORE, TextEncoder

IMAGE, START, END, PAD = "<image>", "<|im_start|>", "<|im_end|>", "<|pad|>"
FILLERS = tuple(f"<|filler{index}|>" for index in range(16))


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
    ) -> None:
        self.templates = {name: question_book[name] for name in questions}
        self.text = text
        self.seed = seed
        self.batch_size = batch_size
        self.max_slots = max_slots
        fillers = text.tokenizer.convert_tokens_to_ids(list(FILLERS))
        assert isinstance(fillers, list)
        self._fillers = [int(one) for one in fillers]

    def fingerprint(self) -> str:
        """Return a name for exactly this text.

        What the first batch holds follows from all that makes the text.
        """
        ids, targets = self.batch(0)
        content = [ids.tolist(), targets.tolist(), self.seed, len(self.text.tokenizer)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    def batch(
        self, step: int
    ) -> tuple[Int[Tensor, "studies length"], Int[Tensor, "studies length"]]:
        """Return input ids, padded on the right, and targets."""
        draw = random.Random(self.seed * 1_000_003 + step)
        pairs = [self._example(draw) for _ in range(self.batch_size)]
        ids = pad_sequence(
            [one for one, _ in pairs], batch_first=True, padding_value=self.text.pad_id
        )
        return ids, pad_sequence(
            [other for _, other in pairs], batch_first=True, padding_value=IGNORE
        )

    def _example(self, draw: random.Random) -> tuple[Tensor, Tensor]:
        """Spell facts into one or two images and ask for each of them, one turn after the other."""
        facts = {name: draw.choice(_words(one, draw)) for name, one in self.templates.items()}
        told = draw.sample(list(facts), draw.randint(1, len(facts)))
        images = (
            [told]
            if len(told) == 1 or draw.random() < 0.6
            else [told[: len(told) // 2], told[len(told) // 2 :]]
        )
        asked = draw.sample(told, len(told))
        first: tuple[Part, ...] = tuple(ImagePart(index) for index in range(len(images)))
        turns = []
        for name in asked:
            turns += [
                Turn("user", (*first, f"\n{self.templates[name].ask}")),
                Turn("assistant", (facts[name],)),
            ]
            first = ()
        conversation = Conversation(
            id="spelled",
            task="spelled",
            turns=tuple(turns),
            images=tuple(Image(path="", modality="", subject="") for _ in images),
            metadata={},
        )
        return self._fill(
            conversation, [[f" {name}{facts[name]}" for name in share] for share in images], draw
        )

    def _fill(
        self, conversation: Conversation, images: list[list[str]], draw: random.Random
    ) -> tuple[Tensor, Tensor]:
        """Put each image's phrases among fillers, in the place of its image ids."""
        blocks = [self._block(phrases, draw) for phrases in images]
        encoded = self.text(conversation, [len(block) for block in blocks])
        ids = encoded.input_ids.clone()
        ids[ids == self.text.image_id] = torch.tensor([one for block in blocks for one in block])
        return ids, encoded.targets

    def _block(self, phrases: list[str], draw: random.Random) -> list[int]:
        size = draw.randint(self.max_slots // 4, self.max_slots)
        pieces = [[draw.choice(self._fillers)] for _ in range(size)]
        for phrase in phrases:
            spelled = self.text.tokenizer.encode(phrase, add_special_tokens=False)
            for _ in range(draw.choice([1, 2, 3])):
                pieces.insert(draw.randint(0, len(pieces)), spelled)
        return [one for piece in pieces for one in piece]


def _words(question: Question, draw: random.Random | None = None) -> list[str]:
    """Return the possible answers; where any number may be the answer, some ages."""
    if question.answers is not None:
        return list(dict.fromkeys(question.answers.values()))
    return [str(draw.randint(18, 90))] if draw is not None else [str(age) for age in range(18, 91)]
