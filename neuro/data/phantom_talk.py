"""What is said about the heads of the phantom: questions, comparisons and reports."""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping

from neuro.data.conversation import Conversation, Image
from neuro.data.phantom import MODALITIES
from neuro.data.question import (
    QuestionBook,
    conversation_about,
    reference_about,
    report_of,
    same_about,
)
from neuro.errors import InputError


class PhantomTalk:
    """Conversations about heads; what is free in them follows from the subject's hash.

    Args:
        images: By subject and modality.
        answers: Of each subject, by question, in the order in which a report tells them. A
            question that has no answer for a subject is not asked.
        splits: The split of each subject.
        question_book: The templates.
    """

    def __init__(
        self,
        images: Mapping[tuple[str, str], Image],
        answers: Mapping[str, Mapping[str, str]],
        splits: Mapping[str, str],
        question_book: QuestionBook,
    ) -> None:
        self.images = images
        self.answers = answers
        self.splits = splits
        self.question_book = question_book
        self.questions = list(dict.fromkeys(name for own in answers.values() for name in own))
        self.compared = [name for name in self.questions if question_book[name].is_compared]
        self.told = [name for name in self.questions if question_book[name].sentences]
        self._members: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for subject, own in answers.items():
            for name in (one for one in self.compared if one in own):
                self._members[splits[subject], name][own[name]].append(subject)

    def singles(self, subject: str) -> Iterator[Conversation]:
        """Ask each question below the image that it is about."""
        for name in self.answers[subject]:
            yield self._asked(subject, name, [self.question_book[name].modality], kind="single")

    def joint(self, subject: str) -> Conversation:
        """Show two modalities, in either order, and ask about one of them."""
        draw = int.from_bytes(hashlib.sha256(subject.encode()).digest()[:8], "big")
        questions = list(self.answers[subject])
        draw, index = divmod(draw, len(questions))
        name = questions[index]
        asked = self.question_book[name].modality
        others = sorted({*self._shown(subject)} - {asked})
        draw, index = divmod(draw, len(others))
        order = [asked, others[index]] if draw % 2 else [others[index], asked]
        return self._asked(subject, name, order, kind="joint")

    def comparisons(self, subject: str) -> Iterator[Conversation]:
        """Compare a subject with others of its split: one of training in two ways, else in one.

        Either the other's answer is told, whatever it is, and the subject's is asked for; or it is
        asked whether both answers are the same, which they are in half of the studies. There are
        fewer comparisons than questions, and they are harder: training has two of each subject, of
        different questions if there are. One that is alone is not compared.

        Raises:
            InputError: No question can be compared.
        """
        if not self.compared:
            raise InputError(
                f"data.comparisons needs a question whose template has `same` and `sentences`; "
                f"got {', '.join(self.questions)}. Write them into conf/question_book, or set "
                f"data.comparisons=false."
            )
        draw = random.Random(f"comparison of {subject}")
        names = [name for name in self.compared if name in self.answers[subject]]
        draw.shuffle(names)
        ways = [(names[0], True), (names[-1], False)] if names else []
        if ways and self.splits[subject] != "train":
            ways = [draw.choice(ways)]
        for name, is_reference in ways:
            answer = self._wanted(subject, name, is_reference, draw)
            if (other := self._other(subject, name, answer, draw)) is not None:
                yield self._compared(subject, other, name, is_reference)

    def _wanted(self, subject: str, name: str, is_reference: bool, draw: random.Random) -> str:
        """Return what another subject should answer, to be compared with."""
        levels = {*self._members[self.splits[subject], name]}
        if is_reference:  # any, equally often, so that it does not give the target away
            return draw.choice(sorted(levels))
        own = self.answers[subject][name]
        others = sorted(levels - {own})
        return draw.choice(others) if others and draw.random() < 0.5 else own

    def _other(self, subject: str, name: str, answer: str, draw: random.Random) -> str | None:
        """Return a subject of the same split with an answer, or with any if nobody has it."""
        members = self._members[self.splits[subject], name]
        others = [one for one in members[answer] if one != subject]
        others = others or [one for each in members.values() for one in each if one != subject]
        return draw.choice(others) if others else None

    def _compared(self, subject: str, other: str, name: str, is_reference: bool) -> Conversation:
        question = self.question_book[name]
        answers = self.answers[other][name], self.answers[subject][name]
        images = self.images[other, question.modality], self.images[subject, question.modality]
        split = self.splits[subject]
        if is_reference:
            return reference_about(
                study_id=f"sub-{subject}.reference.{name}",
                name=name,
                question=question,
                noted=self.question_book.noted,
                answers=answers,
                images=images,
                split=split,
            )
        return same_about(
            study_id=f"sub-{subject}.same.{name}",
            name=name,
            question=question,
            answers=answers,
            images=images,
            split=split,
        )

    def report(self, subject: str) -> Conversation:
        """Show all images of a head and ask for a report.

        Raises:
            InputError: No answer can be told.
        """
        if not self.told:
            raise InputError(
                f"data.report needs a question whose template has `sentences`; got "
                f"{', '.join(self.questions)}. Write them into conf/question_book, or set "
                f"data.report=false."
            )
        return conversation_about(
            study_id=f"sub-{subject}.report",
            name="report",
            ask=self.question_book.report,
            answer=report_of(self.answers[subject], self.question_book),
            images=[self.images[subject, modality] for modality in self._shown(subject)],
            split=self.splits[subject],
        )

    def _shown(self, subject: str) -> list[str]:
        """Return the modalities that a subject has images of."""
        return [modality for modality in MODALITIES if (subject, modality) in self.images]

    def _asked(self, subject: str, name: str, shown: list[str], kind: str) -> Conversation:
        return conversation_about(
            study_id=f"sub-{subject}.{kind}.{name}",
            name=name,
            ask=self.question_book[name].ask,
            answer=self.answers[subject][name],
            images=[self.images[subject, modality] for modality in shown],
            split=self.splits[subject],
        )
