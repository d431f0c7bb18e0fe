"""A column of a table as a question and its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuro.data.conversation import Conversation, Image, ImagePart, Turn
from neuro.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Question:
    """A template for one column.

    Args:
        ask: What the user says below the image.
        modality: The kind of image that is shown.
        answers: What is answered for each value of the column, whatever its case. None answers with
            the value as it stands, for numbers and free text.
    """

    ask: str
    modality: str
    answers: Mapping[Any, str] | None = None

    def answer(self, value: str, where: str) -> str:
        """Return the answer to a value.

        Raises:
            InputError: The value is not among the template's.
        """
        if self.answers is None:
            return value
        known = {str(key).lower(): text for key, text in self.answers.items()}
        if value.lower() not in known:
            raise InputError(
                f"{where}: value {value!r} has no answer in the question's template, which knows "
                f"{', '.join(map(str, self.answers))}. "
                f"Add it under question_book, or write n/a where it is unknown."
            )
        return known[value.lower()]


class QuestionBook:
    """The templates by column name.

    Args:
        templates: Column name to ``Question``.
    """

    def __init__(self, templates: Mapping[str, Question]) -> None:
        self.templates = dict(templates)

    def __getitem__(self, name: str) -> Question:
        """Return a template.

        Raises:
            InputError: There is none of this name.
        """
        if name not in self.templates:
            raise InputError(
                f"data.questions names {name!r}, for which there is no template; "
                f"templates exist for {', '.join(self.templates)}. "
                f"Write one into conf/question_book."
            )
        return self.templates[name]


def conversation_about(
    *,
    study_id: str,
    name: str,
    ask: str,
    answer: str,
    images: Sequence[Image],
    split: str | None = None,
) -> Conversation:
    """Return one question below its images and its answer."""
    parts = tuple(ImagePart(index) for index in range(len(images)))
    return Conversation(
        id=study_id,
        task=name,
        turns=(Turn("user", (*parts, f"\n{ask}")), Turn("assistant", (answer,))),
        images=tuple(images),
        split=split,
        metadata={"task": name},
    )
