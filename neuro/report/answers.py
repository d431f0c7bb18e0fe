"""What answers are worth, for a reader: the figures of a test beside those of its controls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from neuro.report.axes import Axis
from neuro.report.figures_table import FOREST, Figure, spelled

ALL = "all"
WAYS = (  # in front of a figure's name, behind it, what the reader sees, and what that is
    ("", "", "own images", "the answer that the model generates"),
    ("likelihood_", "", "own images, most probable answer", "of the answers that training knows"),
    ("", "_shuffled", "another subject's images", "what the question and any head tell"),
    (
        "likelihood_",
        "_shuffled",
        "another subject's, most probable answer",
        "the same by the second way",
    ),
    ("", "_zero", "zeros", "in the outline of another subject's head"),
    ("", "_noise", "noise", "in the outline of another subject's head"),
    ("", "_majority", "no images, no model", "the most frequent class of training, or the mean"),
)
CONTROLS = (
    ("_shuffled", "another's"),
    ("_zero", "zeros"),
    ("_noise", "noise"),
    ("_majority", "most frequent"),
)
DETAILS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "mae": "MAE",
    "pearson": "r",
    "bleu": "BLEU",
    "chrf": "chrF",
    "rouge1": "ROUGE-1",
    "rougeL": "ROUGE-L",
}
KINDS = {
    "": "by question",
    "task/": "by question",  # one whose name has another meaning here
    "type/": "by what is shown",
    "images/": "by modality",
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """A row of the first table: one way to get answers.

    Attributes:
        name: What is shown.
        about: What is answered.
        exact_match: The figure and its interval, as text.
        balanced_accuracy: Likewise.
        forest: The interval of the first as SVG, on an axis from 0 to 1.
        is_control: Whether it should be low.
    """

    name: str
    about: str
    exact_match: tuple[str, str]
    balanced_accuracy: tuple[str, str]
    forest: str
    is_control: bool


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the second table: some questions.

    Attributes:
        name: Of them.
        heading: What this row and those below have in common; empty if it was said above.
        num_studies: How many there are.
        exact_match: The figure and its interval, as text.
        others: The exact match by likelihood, then of each control.
        details: Further figures, as text; in brackets those with another subject's images.
        unparsed: Share of the answers that cannot be read, as text.
    """

    name: str
    heading: str
    num_studies: int
    exact_match: tuple[str, str]
    others: Sequence[str]
    details: str
    unparsed: str


def ways(figures: Sequence[Figure]) -> list[Way]:
    """Return how good the answers are, each way to get them that was tried."""
    found = _by_name(figures)
    rows = []
    for front, back, name, about in WAYS:
        exact = found.get((ALL, f"{front}exact_match{back}"))
        if exact is None:
            continue
        balanced = found.get((ALL, f"{front}balanced_accuracy{back}"))
        rows.append(
            Way(
                name=name,
                about=about,
                exact_match=spelled(*exact),
                balanced_accuracy=spelled(*balanced) if balanced else ("", ""),
                forest=_forest(*exact),
                is_control=bool(back),
            )
        )
    return rows


def rows(figures: Sequence[Figure], num_studies: Mapping[str, int]) -> list[Row]:
    """Return a row for each question, then for each type of task and each set of modalities.

    Args:
        figures: As ``system.figures``.
        num_studies: Of each finding; those that are not there are left out.
    """
    found = _by_name(figures)
    told, last = [], None
    for finding in sorted(num_studies, key=_order):
        heading = KINDS[_front(finding)]
        others = [found.get((finding, "likelihood_exact_match"))]
        others += [found.get((finding, f"exact_match{one}")) for one, _ in CONTROLS]
        details = [
            _beside_control(title, found[finding, name], found.get((finding, f"{name}_shuffled")))
            for name, title in DETAILS.items()
            if (finding, name) in found and math.isfinite(found[finding, name][0])
        ]
        told.append(
            Row(
                name=finding.removeprefix(_front(finding)),
                heading=heading if heading != last else "",
                num_studies=num_studies[finding],
                exact_match=spelled(*found[finding, "exact_match"]),
                others=[spelled(*one)[0] if one else "\u2013" for one in others],
                details=" · ".join(details),
                unparsed=f"{found[finding, 'unparsed'][0]:.1%}",
            )
        )
        last = heading
    return told


def _beside_control(
    title: str, own: tuple[float, float, float], control: tuple[float, float, float] | None
) -> str:
    """Return a figure and, behind it, what it is with another subject's images."""
    told = f"{title} {spelled(*own)[0]}"
    if control is None or not math.isfinite(control[0]):
        return told
    return f"{told} ({spelled(*control)[0]})"


def _order(finding: str) -> tuple[int, str]:
    return [*KINDS].index(_front(finding)), finding


def _front(finding: str) -> str:
    """Return what of a finding tells its kind."""
    return finding[: finding.find("/") + 1]


def _by_name(figures: Sequence[Figure]) -> dict[tuple[str, str], tuple[float, float, float]]:
    return {(finding, name): (value, low, high) for finding, name, value, low, high in figures}


def _forest(value: float, low: float, high: float) -> str:
    """Return an interval as SVG, on an axis from 0 to 1."""
    width, height = FOREST
    axis = Axis(0.0, 1.0, 4.0, width - 4.0)
    dot, left, right = axis.places(np.array([value, low, high])).tolist()
    line = f'<path class="span" d="M{left:.1f},8H{right:.1f}"/>' if low <= high else ""
    return (
        f'<svg class="forest" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'aria-hidden="true"><path class="axis" d="M4,8H{width - 4}"/>{line}'
        f'<circle cx="{dot:.1f}" cy="8" r="3.5"/></svg>'
    )
