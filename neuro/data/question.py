"""A column of a table as a question and its answers, about one head, about two, or in a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuro.data.conversation import Conversation, Image, ImagePart, Turn
from neuro.errors import InputError

SAME, DIFFERENT = "same", "different"  # the answers to ``Question.same``


@dataclass(frozen=True, kw_only=True)
class Question:
    """A template for one column.

    Args:
        ask: What the user says below the image.
        modality: The kind of image that is shown.
        answers: What is answered for each value of the column, whatever its case. None answers with
            the value as it stands, for numbers and free text.
        same: What is asked about two heads; the answer is ``same`` or ``different``. None: they are
            not compared.
        sentences: How each answer is told, about the reference of a comparison and in a report.
            None: it is told in neither.

    Raises:
        InputError: An answer has no sentence.
    """

    ask: str
    modality: str
    answers: Mapping[Any, str] | None = None
    same: str | None = None
    sentences: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.sentences is None:
            return
        untold = sorted({*(self.answers or {}).values()} - {*self.sentences})
        if untold or self.answers is None:
            raise InputError(
                f"the template that asks {self.ask!r} has sentences, so each of its answers needs "
                f"one; none for {', '.join(untold) or 'numbers'}. Write them, or leave sentences "
                f"out."
            )

    @property
    def is_compared(self) -> bool:
        """Whether two heads can be asked about."""
        return self.same is not None and self.sentences is not None

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
        noted: What is answered to the reference of a comparison.
        report: What asks for a report.
    """

    def __init__(
        self,
        templates: Mapping[str, Question],
        noted: str = "Noted.",
        report: str = "Write a report of this head.",
    ) -> None:
        self.templates = dict(templates)
        self.noted = noted
        self.report = report

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


def reference_about(
    *,
    study_id: str,
    name: str,
    question: Question,
    noted: str,
    answers: tuple[str, str],
    images: tuple[Image, Image],
    split: str | None = None,
) -> Conversation:
    """Tell the answer about a reference, then ask about the target: four turns, two images.

    Args:
        study_id: Of the study.
        name: Of the question.
        question: Its template.
        noted: What is answered to the reference.
        answers: The reference's, which is told, and the target's, which is in the last turn only.
        images: The reference's and the target's.
        split: Of the study.
    """
    assert question.sentences is not None, "only what has sentences is told"
    return Conversation(
        id=study_id,
        task=f"{name}_reference",
        turns=(
            Turn("user", (ImagePart(0), f"\n{question.sentences[answers[0]]}")),
            Turn("assistant", (noted,)),
            Turn("user", (ImagePart(1), f"\n{question.ask}")),
            Turn("assistant", (answers[1],)),
        ),
        images=images,
        split=split,
        metadata=_compared(f"{name}_reference", answers, images),
    )


def same_about(
    *,
    study_id: str,
    name: str,
    question: Question,
    answers: tuple[str, str],
    images: tuple[Image, Image],
    split: str | None = None,
) -> Conversation:
    """Ask whether two heads are the same in one respect: one turn, two images within its text."""
    assert question.same is not None, "only what can be compared is"
    return Conversation(
        id=study_id,
        task=f"{name}_same",
        turns=(
            Turn(
                "user",
                ("First: ", ImagePart(0), "\nSecond: ", ImagePart(1), f"\n{question.same}"),
            ),
            Turn("assistant", (SAME if answers[0] == answers[1] else DIFFERENT,)),
        ),
        images=images,
        split=split,
        metadata=_compared(f"{name}_same", answers, images),
    )


def report_of(answers: Mapping[str, str], question_book: QuestionBook) -> str:
    """Return the sentences of answers, in their order; what has no sentence is not told."""
    told = [(question_book[name].sentences or {}).get(answer) for name, answer in answers.items()]
    return " ".join(sentence for sentence in told if sentence is not None)


def _compared(task: str, answers: tuple[str, str], images: tuple[Image, Image]) -> dict[str, str]:
    """Return what the public data sets say of a comparison (vlm-facts 1.1, v2)."""
    return {
        "task": task,
        "reference_id": images[0].subject,
        "subject_id": images[1].subject,
        "reference_label": answers[0],
        "subject_label": answers[1],
        "comparison_type": SAME if answers[0] == answers[1] else DIFFERENT,
    }
