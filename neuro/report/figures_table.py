"""The figures of a test as a table: a row per finding, each with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from neuro.data.predictions import Predictions
from neuro.report.axes import Axis

Figure = tuple[str, str, float, float, float]  # finding, figure, value, low, high
MACRO = "macro"
MINUS = "\u2212"
FOREST = (120, 16)  # pixels of an interval that is drawn


@dataclass(frozen=True)
class Column:
    """A figure of a table.

    Attributes:
        name: As it is logged.
        title: As it is written.
        about: What it says, for a reader who does not know it.
        best: ``max`` or ``min``.
        highest: What it can be at most.
        has_unit: Whether it is in the unit of the label: years and points have no mean.
    """

    name: str
    title: str
    about: str
    best: str = "max"
    highest: float = 1.0
    has_unit: bool = False


@dataclass(frozen=True, kw_only=True)
class Row:
    """A finding of a table.

    Attributes:
        name: Of it.
        counts: Of the studies of each split: how many are positive, of how many.
        figures: (value, low, high) of each column; None where it has none.
        is_mean: Whether it is the mean over the others.
    """

    name: str
    counts: Sequence[str]
    figures: Sequence[tuple[float, float, float] | None]
    is_mean: bool = False

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Each figure and its interval as text."""
        return [spelled(*one) if one is not None else ("", "") for one in self.figures]


@dataclass(frozen=True, kw_only=True)
class Table:
    """All of it.

    Attributes:
        columns: The figures.
        rows: The findings.
        counted: What the counts of a row are of.
        lowest: Where the axis of drawn intervals begins; it ends at 1. None draws none.
    """

    columns: Sequence[Column]
    rows: Sequence[Row]
    counted: str
    lowest: float | None

    def forest(self, row: Row) -> str:
        """Return the interval of the first figure of a row as SVG, with a mark at chance, 0.5."""
        one = row.figures[0]
        if self.lowest is None or one is None or not math.isfinite(one[0]):
            return ""
        width, height = FOREST
        axis = Axis(self.lowest, 1.0, 4.0, width - 4.0)
        value, low, high, chance = axis.places(np.array([*one, 0.5])).tolist()
        line = f'<path class="span" d="M{low:.1f},8H{high:.1f}"/>' if low <= high else ""
        return (
            f'<svg class="forest" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'aria-hidden="true"><path class="chance" d="M{chance:.1f},0v{height}"/>{line}'
            f'<circle cx="{value:.1f}" cy="8" r="{4 if row.is_mean else 3}"/></svg>'
        )


def columns_of(task: str, specificity: float) -> list[Column]:
    """Return what is told of a task."""
    if task == "regression":
        return [
            Column(
                "mae", "MAE", "mean absolute error, in the unit of the label", "min", math.inf, True
            ),
            Column(
                "rmse",
                "RMSE",
                "root of the mean squared error: large errors count more; guessing the mean gives "
                "the standard deviation",
                "min",
                math.inf,
                True,
            ),
            Column("r2", "R²", "share of the variance explained; 0 is guessing the mean"),
            Column("pearson", "r", "Pearson correlation of predicted and true"),
        ]
    ranked = [
        Column(
            "auroc",
            "AUROC",
            "chance that a positive study is ranked above a negative; 0.5 is guessing",
        ),
        Column(
            "average_precision", "AP", "average precision; guessing gives the share of positives"
        ),
        Column(
            "sensitivity",
            f"sens. at {specificity:.0%} spec.",
            f"sensitivity at the threshold of a specificity of {specificity:.0%}",
        ),
    ]
    if task == "multiclass":
        recall = "share of the class that is called so; the mean is the balanced accuracy"
        ranked.append(Column("recall", "recall", recall))
    else:
        about = "mean of sensitivity and specificity where 0.5 and less is called absent"
        ranked.append(Column("balanced_accuracy", "bal. accuracy", about))
    about = "expected calibration error: how far probabilities are from what came true"
    return [*ranked, Column("ece", "ECE", about, "min")]


def figures_table(
    said: Predictions,
    figures: Sequence[Figure],
    truths: Mapping[str, Float[np.ndarray, "studies findings"]],
    specificity: float,
) -> Table:
    """Return the table of a test; of several findings the highest first.

    Args:
        said: What was said of the test studies.
        figures: As ``system.figures``.
        truths: Of each split, one number per study and finding.
        specificity: At which the sensitivity is told.
    """
    columns = columns_of(said.task, specificity)
    found = {(finding, name): (value, low, high) for finding, name, value, low, high in figures}

    def row(finding: str, name: str, counts: Sequence[str], is_mean: bool = False) -> Row:
        told = [
            None if is_mean and column.has_unit else found.get((finding, column.name))
            for column in columns
        ]
        return Row(name=name, counts=counts, figures=told, is_mean=is_mean)

    counts = [counted(said.task, said.columns, values) for values in truths.values()]
    if len(said.columns) == 1:
        rows = [row(MACRO, said.columns[0], [one[0] for one in counts])]
    else:
        rows = [
            row(name, name, [one[place] for one in counts])
            for place, name in enumerate(said.columns)
        ]
        if said.task == "multilabel":
            rows.sort(key=lambda one: -_first(one))
        rows.insert(0, row(MACRO, "mean", [""] * len(counts), is_mean=True))
    what = (
        "known"
        if said.task == "regression"
        else "of the class"
        if said.task == "multiclass"
        else "positive"
    )
    return Table(columns=columns, rows=rows, counted=what, lowest=_lowest(said.task, rows))


def counted(
    task: str, columns: Sequence[str], values: Float[np.ndarray, "studies findings"]
) -> list[str]:
    """Return how many studies of a split have each finding, of how many of which it is known."""
    known = np.isfinite(values)
    if task == "regression":
        return [f"{count:,}" for count in known.sum(axis=0).tolist()]
    if task == "multiclass":
        own = [int((values == place).sum()) for place in range(len(columns))]
        return [f"{one:,} / {int(known.sum()):,}" for one in own]
    pairs = zip((values == 1).sum(axis=0).tolist(), known.sum(axis=0).tolist(), strict=True)
    return [f"{one:,} / {total:,}" for one, total in pairs]


def spelled(value: float, low: float, high: float) -> tuple[str, str]:
    """Return a figure and its interval as text, with as many decimals as its size needs."""
    if not math.isfinite(value):
        return "not defined", ""
    decimals = 3 if abs(value) < 10 else 1
    told = [f"{number:.{decimals}f}".replace("-", MINUS) for number in (value, low, high)]
    return told[0], f"{told[1]} to {told[2]}" if math.isfinite(low + high) else ""


def _first(row: Row) -> float:
    one = row.figures[0]
    return one[0] if one is not None and math.isfinite(one[0]) else -math.inf


def _lowest(task: str, rows: Sequence[Row]) -> float | None:
    """Return a round number below all intervals of the first figure, 0.4 or less."""
    if task == "regression":
        return None
    ends = [number for row in rows for number in (row.figures[0] or ()) if math.isfinite(number)]
    return min(0.4, math.floor(10 * min(ends, default=1.0)) / 10)
