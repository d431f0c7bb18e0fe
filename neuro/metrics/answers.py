"""How often answers are right, each read as a class, a number or a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from neuro.metrics.regression import mean_absolute_error, pearson
from neuro.metrics.resamples import macro, sums

CLASSES, NUMBER = "classes", "number"


@runtime_checkable
class Graded(Protocol):
    """An answer as it was read, beside what is right."""

    @property
    def task(self) -> str:
        """The name of the question."""
        ...

    @property
    def kind(self) -> str:
        """``classes``, ``number`` or ``text``."""
        ...

    @property
    def is_right(self) -> bool:
        """Whether it is right."""
        ...

    @property
    def is_parsed(self) -> bool:
        """Whether it could be read."""
        ...

    @property
    def label(self) -> str | None:
        """The class that it names; None if it names none."""
        ...

    @property
    def gold_label(self) -> str:
        """The right class."""
        ...

    @property
    def number(self) -> float:
        """The number that it names; if it names none, what a guess without it would be."""
        ...

    @property
    def gold_number(self) -> float:
        """The right number."""
        ...


def answer_figures(
    grades: Sequence[Graded], counts: Float64[Tensor, "resamples studies"] | None = None
) -> dict[str, Float64[Tensor, "*resamples"]]:
    """Return the figures of some answers; one that cannot be read is wrong, and counts.

    ``exact_match`` and ``unparsed`` are shares of all answers. ``balanced_accuracy``, the mean
    recall of the classes that should be said, and ``macro_f1``, of those that should be or are
    said, are means over the classes of a task and then over tasks, so that a frequent class or task
    does not hide a rare one. ``mae`` and ``pearson`` are there where there is one task of numbers,
    as units have no mean; an answer without a number counts as the mean of training.

    Args:
        grades: The answers.
        counts: How often each is drawn, of ``draw_counts``; None is once, and no axis of
            resamples.
    """
    shares = torch.tensor([[one.is_right, not one.is_parsed] for one in grades]).double()
    right, unparsed = (sums(shares, counts) / sums(torch.ones_like(shares), counts)).unbind(-1)
    figures = {"exact_match": right, "unparsed": unparsed}
    classed = [place for place, one in enumerate(grades) if one.kind == CLASSES]
    if classed:
        figures |= _class_figures([grades[one] for one in classed], _of(counts, classed))
    numbered = [place for place, one in enumerate(grades) if one.kind == NUMBER]
    if len({grades[place].task for place in numbered}) == 1:
        own = _of(counts, numbered)
        said = torch.tensor([[grades[place].number] for place in numbered], dtype=torch.float64)
        gold = torch.tensor(
            [[grades[place].gold_number] for place in numbered], dtype=torch.float64
        )
        figures["mae"] = mean_absolute_error(said, gold, own).squeeze(-1)
        figures["pearson"] = pearson(said, gold, own).squeeze(-1)
    return figures


def _class_figures(grades: Sequence[Graded], counts: Tensor | None) -> dict[str, Tensor]:
    said = [(one.task, one.label) if one.label is not None else None for one in grades]
    gold = [(one.task, one.gold_label) for one in grades]
    named = {*gold, *(one for one in said if one is not None)}
    places = {one: place for place, one in enumerate(sorted(named))}
    tasks: dict[str, list[int]] = {}
    for (task, _), place in places.items():
        tasks.setdefault(task, []).append(place)
    nothing = len(places)
    told = _indicators([nothing if one is None else places[one] for one in said], nothing)
    right = _indicators([places[one] for one in gold], nothing)
    hits, num_told, num_right = (sums(one, counts) for one in (told * right, told, right))
    by_class = {
        "balanced_accuracy": hits / num_right,
        "macro_f1": 2 * hits / (num_told + num_right),
    }
    return {
        name: macro(torch.stack([macro(values[..., own]) for own in tasks.values()], dim=-1))
        for name, values in by_class.items()
    }


def _indicators(codes: Sequence[int], num_classes: int) -> Float64[Tensor, "studies classes"]:
    """Return 1 in the column of each study's class; a code beyond them has none."""
    column: Int[Tensor, " studies"] = torch.tensor(codes)
    return (column.unsqueeze(1) == torch.arange(num_classes)).double()


def _of(counts: Tensor | None, places: Sequence[int]) -> Tensor | None:
    return None if counts is None else counts[:, list(places)]
