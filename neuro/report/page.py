"""A run as one page that opens anywhere: figures, curves, answers with their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from neuro.data.answers import Answer
from neuro.report.answers import CONTROLS, rows, ways
from neuro.report.curves import read_curves
from neuro.report.figures_table import Figure
from neuro.report.plots import curve_plot


@dataclass(frozen=True, kw_only=True)
class Card:
    """One answer with its images.

    Attributes:
        answer: What was said.
        is_right: Whether that is right.
        question: What was asked.
        pictures: The images, as data URIs.
    """

    answer: Answer
    is_right: bool
    question: str
    pictures: Sequence[str]


def write_page(
    path: Path,
    *,
    title: str,
    subtitle: str,
    answers: Sequence[Answer],
    figures: Sequence[Figure],
    cards: Sequence[Card],
    parameters: Sequence[tuple[str, int, int]],
    metrics_csv: Path,
) -> None:
    """Write the page.

    Args:
        path: Where to.
        title: Its heading.
        subtitle: The line below.
        answers: Test answers.
        figures: What they and those of the controls are worth, as ``system.figures``.
        cards: Answers to show.
        parameters: (part, parameters, trained).
        metrics_csv: What the CSV logger wrote.
    """
    environment = Environment(loader=PackageLoader("neuro", "report"), autoescape=True)
    wrong = sum(not card.is_right for card in cards)
    page = environment.get_template("page.html.jinja").render(
        title=title,
        subtitle=subtitle,
        ways=ways(figures),
        rows=rows(figures, _num_studies(answers, figures)),
        controls=[title for _, title in CONTROLS],
        curves=[
            curve_plot(curve, title=name.replace("_", " "))
            for name, curve in read_curves(metrics_csv).items()
            if name.startswith("loss")
        ],
        cards=[_card(card) for card in cards],
        caption=f"{wrong} wrong answers first, then {len(cards) - wrong} right ones, as drawn.",
        parameters=parameters,
    )
    path.write_text(page, encoding="utf-8")


def _num_studies(answers: Sequence[Answer], figures: Sequence[Figure]) -> dict[str, int]:
    """Return how many studies each finding but ``all`` is of."""
    counts = Counter(finding for one in answers for finding in one.findings)
    return {finding: counts[finding] for finding, *_ in figures if counts[finding]}


def _card(card: Card) -> dict[str, object]:
    return {
        "study": card.answer.study_id,
        "likeliest": card.answer.likeliest,
        "modalities": " + ".join(card.answer.modalities),
        "question": card.question,
        "said": card.answer.said,
        "target": card.answer.target,
        "is_right": card.is_right,
        "pictures": card.pictures,
    }
