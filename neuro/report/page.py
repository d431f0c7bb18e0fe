"""A run as one page that opens anywhere: figures, curves, answers with their images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from neuro.data.answers import Answer, score
from neuro.report.curves import read_curves
from neuro.report.plots import curve_plot


@dataclass(frozen=True, kw_only=True)
class Card:
    """One answer with its images.

    Attributes:
        answer: What was said.
        question: What was asked.
        pictures: The images, as data URIs.
    """

    answer: Answer
    question: str
    pictures: Sequence[str]


def write_page(
    path: Path,
    *,
    title: str,
    subtitle: str,
    answers: Mapping[str, Sequence[Answer]],
    cards: Sequence[Card],
    parameters: Sequence[tuple[str, int, int]],
    metrics_csv: Path,
) -> None:
    """Write the page.

    Args:
        path: Where to.
        title: Its heading.
        subtitle: The line below.
        answers: Test answers, and under ``_shuffled`` those of the control.
        cards: Answers to show.
        parameters: (part, parameters, trained).
        metrics_csv: What the CSV logger wrote.
    """
    environment = Environment(loader=PackageLoader("neuro", "report"), autoescape=True)
    wrong = sum(not card.answer.is_exact for card in cards)
    page = environment.get_template("page.html.jinja").render(
        title=title,
        subtitle=subtitle,
        rows=_rows(answers),
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


def _rows(answers: Mapping[str, Sequence[Answer]]) -> list[dict[str, object]]:
    own, control = answers[""], answers.get("_shuffled", ())
    scores, shuffled = score(own), score(control)
    tasks = sorted({answer.task for answer in own})
    rows = []
    for name, suffix in [("all", ""), *((task, f"_{task}") for task in tasks)]:
        rows.append(
            {
                "name": name,
                "studies": sum(not suffix or answer.task == name for answer in own),
                "exact_match": scores[f"exact_match{suffix}"],
                "balanced_accuracy": scores[f"balanced_accuracy{suffix}"],
                "shuffled": shuffled.get(f"exact_match{suffix}") if control else None,
            }
        )
    return rows


def _card(card: Card) -> dict[str, object]:
    return {
        "study": card.answer.study_id,
        "modalities": " + ".join(card.answer.modalities),
        "question": card.question,
        "said": card.answer.said,
        "target": card.answer.target,
        "is_exact": card.answer.is_exact,
        "pictures": card.pictures,
    }
