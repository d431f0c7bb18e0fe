"""What the answers of a test are worth: figures with intervals, beside those of the controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from neuro.data.answers import TEXT, Answer, AnswerBook
from neuro.metrics.answers import answer_figures
from neuro.metrics.resamples import draw_counts, interval
from neuro.metrics.texts import text_figures

ALL = "all"
MAJORITY = "_majority"
LIKELIHOOD = "likelihood_"
BOUNDED = ("exact_match", "balanced_accuracy")  # logged with their intervals; by likelihood too


class AnswerFigure(NamedTuple):
    """A figure of some answers of a test.

    Attributes:
        finding: Of which: ``all``, or one of ``Answer.findings``.
        name: What it is called.
        control: The suffix of the control; empty for the study's own images.
        value: The figure.
        low: Where its 95 % interval begins, by resampled subjects; NaN without one.
        high: Where it ends.
    """

    finding: str
    name: str
    control: str
    value: float
    low: float
    high: float

    @property
    def row(self) -> tuple[str, str, float, float, float]:
        """What a table of figures says of it."""
        return self.finding, f"{self.name}{self.control}", self.value, self.low, self.high

    @property
    def logged(self) -> dict[str, float]:
        """What is logged of it, where it is defined; the table has more of parts of the test."""
        is_main = self.name.removeprefix(LIKELIHOOD) in BOUNDED
        if "/" in self.finding and not is_main:
            return {}
        name = f"{self.name}{self.control}"
        values = {name: self.value}
        if self.finding == ALL and is_main:
            values |= {f"{name}_low": self.low, f"{name}_high": self.high}
        elif "/" in self.finding:
            values = {} if self.control else {f"{self.name}/{self.finding}": self.value}
        elif self.finding != ALL:
            values = {f"{self.name}_{self.finding}{self.control}": self.value}
        return {name: value for name, value in values.items() if math.isfinite(value)}


def figures_of(
    answers: Mapping[str, Sequence[Answer]], book: AnswerBook, num_resamples: int = 1000
) -> list[AnswerFigure]:
    """Return the figures of a test.

    Under ``_majority`` is what the best guess would reach that only knows the answers of training.
    ``likelihood_`` is in front of what the most probable answer reaches, in place of the generated
    one, where questions have classes.

    Args:
        answers: What was said, by the suffix of the control; the study's own images have none.
        book: How answers are read.
        num_resamples: Of the intervals.
    """
    own = answers[""]
    guesses = [book[one.task].majority for one in own]
    majority = [
        replace(one, said=guess, likeliest=guess if one.likeliest else "")
        for one, guess in zip(own, guesses, strict=True)
    ]
    found = []
    for control, said in {**answers, MAJORITY: majority}.items():
        for finding, members in _groups(said):
            told = _with_intervals(members, book, num_resamples)
            found += [AnswerFigure(finding, name, control, *told[name]) for name in told]
        chosen = [replace(one, said=one.likeliest) for one in said if one.likeliest]
        for finding, members in _groups(chosen):
            told = _with_intervals(members, book, num_resamples)
            found += [
                AnswerFigure(finding, LIKELIHOOD + name, control, *told[name]) for name in BOUNDED
            ]
    return found


def _groups(answers: Sequence[Answer]) -> Iterator[tuple[str, list[Answer]]]:
    """Yield all answers, then those of each task, type of task and set of modalities."""
    if not answers:
        return
    yield ALL, [*answers]
    groups: dict[str, list[Answer]] = {}
    for one in answers:
        for finding in one.findings:
            groups.setdefault(finding, []).append(one)
    yield from sorted(groups.items())


def _with_intervals(
    answers: Sequence[Answer], book: AnswerBook, num_resamples: int
) -> dict[str, tuple[float, float, float]]:
    """Return (value, low, high) of each figure; answers about one subject are drawn together."""
    grades = book.grade(answers)
    counts = draw_counts([one.subject for one in answers], num_resamples)
    values, drawn = answer_figures(grades), answer_figures(grades, counts)
    texts = [place for place, one in enumerate(grades) if one.kind == TEXT]
    if texts:
        said = [grades[place].said for place in texts]
        targets = [grades[place].target for place in texts]
        values |= text_figures(said, targets)
        drawn |= text_figures(said, targets, counts[:, texts])
    return {name: (float(value), *_ends(drawn[name])) for name, value in values.items()}


def _ends(drawn: Tensor) -> tuple[float, float]:
    low, high = interval(drawn.unsqueeze(1))
    return float(low), float(high)
