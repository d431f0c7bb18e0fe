"""A conversation as token ids and labels, with one id per visual token.

The model's chat format is applied by the tokenizer's own template engine. The templates are ours,
one per format, because a template that does not mark what the assistant says gives an all-zero
mask, and then nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerBase

from neuro.data.conversation import Conversation, ImagePart, Turn
from neuro.errors import InputError

IGNORE = -100
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True, kw_only=True)
class EncodedText:
    """One conversation.

    Attributes:
        input_ids: Token ids, image ids expanded.
        labels: The same where the assistant speaks, its end-of-turn token included; -100
            elsewhere.
        is_truncated: Whether the oldest text is left out.
    """

    input_ids: Int[Tensor, " length"]
    labels: Int[Tensor, " length"]
    is_truncated: bool

    @property
    def num_supervised(self) -> int:
        """How many tokens are learned; at least one."""
        return int((self.labels != IGNORE).sum())


class TextEncoder:
    """Turns conversations into ids by a chat template.

    Args:
        tokenizer: A fast tokenizer that knows the image token.
        chat_format: ``chatml`` (Qwen, llava-interleave) or ``vicuna`` (LLaVA-1.5).
        image_token: The model's image token, one id.
        max_length: Text and image tokens of one conversation at most.
        truncate: Leave out the oldest text of a longer one, never an image nor the last question
            and answer; otherwise it is an error.

    Raises:
        InputError: The format is unknown, or the tokenizer does not hold the image token or the
            format's end of a turn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        chat_format: str,
        image_token: str,
        max_length: int,
        truncate: bool = True,
    ) -> None:
        known = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
        if chat_format not in known:
            raise InputError(f"chat_format must be one of {', '.join(known)}; got {chat_format!r}.")
        self.tokenizer = tokenizer
        self.template = (TEMPLATES / f"{chat_format}.jinja").read_text()
        self.image_token = image_token
        self.max_length = max_length
        self.truncate = truncate
        image_id = tokenizer.convert_tokens_to_ids(image_token)
        if image_id is None or image_id == tokenizer.unk_token_id:
            raise InputError(
                f"the tokenizer has no token {image_token!r}; "
                f"take the one that belongs to the model."
            )
        assert isinstance(image_id, int)
        self.image_id = image_id
        if self.end_id not in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}:
            raise InputError(
                f"chat_format={chat_format} ends a turn with a sign that the tokenizer does not "
                f"know: it would read {self.tokenizer.decode([self.end_id])!r} as the end. Take "
                f"the format that belongs to the model: {' or '.join(known)}."
            )

    @cached_property
    def end_id(self) -> int:
        """What ends everything that the assistant says."""
        ids, spoken = self._apply([Turn("user", ("a",)), Turn("assistant", ("a",))])
        return int(ids[spoken][-1])

    @cached_property
    def signs(self) -> dict[int, str]:
        """What the model takes for signs, not for words, by id: the image token is one.

        A tokenizer may hold the signs of its chat without calling them special.
        """
        tokenizer = self.tokenizer
        shown, _ = self._apply([Turn("user", ("a",)), Turn("assistant", ("a",))])
        written = {*shown.tolist()} - {*tokenizer.encode("a", add_special_tokens=False)}
        added = {
            index: token.content
            for index, token in tokenizer.added_tokens_decoder.items()
            if token.special or (index in written and token.content.strip())  # not a new line
        }
        special = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        return {**dict(special), **added, self.image_id: self.image_token}

    @property
    def pad_id(self) -> int:
        """What fills the end of shorter conversations; never seen by the model."""
        pad_id = self.tokenizer.pad_token_id
        if pad_id is None:
            pad_id = self.tokenizer.eos_token_id
        assert isinstance(pad_id, int)
        return pad_id

    def __call__(self, conversation: Conversation, slots: Sequence[int]) -> EncodedText:
        """Encode a conversation.

        Args:
            conversation: What is said.
            slots: Visual tokens of each image, in textual order.

        Raises:
            InputError: It is longer than ``max_length`` without what may be left out, says
                something that the tokenizer takes for an image, or leaves nothing to learn.
        """
        self._check_words(conversation)
        ids, spoken = self._apply(conversation.turns)
        self._check(conversation, ids, spoken, slots)
        more = sum(slots) - len(slots)  # each image has one id so far
        shorter, is_truncated = self._shorter(conversation), False
        while len(ids) + more > self.max_length:
            turns = next(shorter, None)
            if turns is None:
                rest = " without its earlier text" if is_truncated else ""
                raise InputError(
                    f"conversation {conversation.id!r} has {len(ids) + more} tokens{rest}, "
                    f"{sum(slots)} of them from {len(slots)} images; data.max_length is "
                    f"{self.max_length}. Raise it to {len(ids) + more}, or take larger patches."
                )
            ids, spoken = self._apply(turns)
            is_truncated = True
        repeats = torch.ones_like(ids)
        repeats[ids == self.image_id] = torch.tensor(list(slots), dtype=repeats.dtype)
        labels = ids.masked_fill(~spoken | (ids == self.image_id), IGNORE)
        return EncodedText(
            input_ids=ids.repeat_interleave(repeats),
            labels=labels.repeat_interleave(repeats),
            is_truncated=is_truncated,
        )

    def least_text(self, conversation: Conversation) -> int:
        """Return how many tokens of text stay, whatever ``max_length``; images are not counted."""
        *_, turns = conversation.turns, *self._shorter(conversation)
        ids, _ = self._apply(turns)
        return int((ids != self.image_id).sum())

    def num_tokens(self, text: str) -> int:
        """Return how many tokens a text takes."""
        return len(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Int[Tensor, " length"]) -> str:
        """Return what was said, without signs and outer spaces."""
        words = [one for one in ids.tolist() if one not in self.signs]
        return str(self.tokenizer.decode(words)).strip()

    def _apply(self, turns: Sequence[Turn]) -> tuple[Tensor, Tensor]:
        """Return ids, one for each image, and whether the assistant says them."""
        encoded = self.tokenizer.apply_chat_template(
            [_message(turn) for turn in turns],
            chat_template=self.template,
            image_token=self.image_token,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert isinstance(encoded, BatchEncoding)
        return torch.tensor(encoded["input_ids"]), torch.tensor(encoded["assistant_masks"]).bool()

    def _shorter(self, conversation: Conversation) -> Iterator[tuple[Turn, ...]]:
        return without_oldest(conversation.turns) if self.truncate else iter(())

    def _check_words(self, conversation: Conversation) -> None:
        """What is said may not open or close a turn."""
        for turn in conversation.turns:
            for token in self.signs.values():
                if token != self.image_token and token in turn.text:
                    raise InputError(
                        f"conversation {conversation.id!r} says {token!r}, which the model takes "
                        f"for a sign of its own. Remove it."
                    )

    def _check(
        self, conversation: Conversation, ids: Tensor, spoken: Tensor, slots: Sequence[int]
    ) -> None:
        num_images = int((ids == self.image_id).sum())
        if num_images != len(slots):
            raise InputError(
                f"conversation {conversation.id!r} has {len(slots)} images and its text holds "
                f"{num_images} image tokens; they must agree. "
                f"Remove {self.image_token!r} from what is said."
            )
        if not spoken.any():
            raise InputError(
                f"conversation {conversation.id!r} has no supervised token. "
                f"Let its last turn be an answer."
            )


def without_oldest(turns: Sequence[Turn]) -> Iterator[tuple[Turn, ...]]:
    """Yield a conversation with ever less of its oldest text.

    Earlier questions without an image go first, each with its answer. Then, again from the oldest,
    the words of those with images; their images then stand before the next question: an answer
    whose question is gone would teach to answer at random. What is said by the system, the last
    question, the last answer and every image stay, in their order.
    """
    system = tuple(turn for turn in turns if turn.role == "system")
    spoken = turns[len(system) :]
    pairs = list(zip(spoken[::2], spoken[1::2], strict=False))
    for pair in pairs[:-1]:
        if not any(map(_images, pair)):
            pairs = [one for one in pairs if one is not pair]
            yield (*system, *(turn for one in pairs for turn in one))
    while len(pairs) > 1:
        (question, answer), (following, reply), *rest = pairs
        head = Turn("user", (*_images(question), *_images(answer), *following.parts))
        pairs = [(head, reply), *rest]
        yield (*system, *(turn for one in pairs for turn in one))


def _images(turn: Turn) -> tuple[ImagePart, ...]:
    return tuple(part for part in turn.parts if isinstance(part, ImagePart))


def _message(turn: Turn) -> dict[str, Any]:
    content = []
    for part in turn.parts:
        if isinstance(part, ImagePart):
            content.append({"type": "image"})
        else:
            content.append({"type": "text", "text": part})
    return {"role": turn.role, "content": content}
