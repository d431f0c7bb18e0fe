"""A run as one page that opens anywhere: figures, curves, answers with their images."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader

from neuro.data.answers import Answer, score

COLOURS = {"train": "#94a3b8", "val": "#0f766e"}
Curve = dict[str, list[tuple[int, float]]]  # stage to (step, value)


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
        curves=[_curve(name, curve) for name, curve in read_curves(metrics_csv).items()],
        cards=[_card(card) for card in cards],
        caption=f"{wrong} wrong answers first, then {len(cards) - wrong} right ones, as drawn.",
        parameters=parameters,
    )
    path.write_text(page, encoding="utf-8")


def read_curves(metrics_csv: Path) -> dict[str, Curve]:
    """Return the losses of a run by name, then by stage; empty where there is no file."""
    curves: dict[str, Curve] = defaultdict(lambda: defaultdict(list))
    if not metrics_csv.is_file():
        return {}
    with metrics_csv.open(newline="") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                stage, _, name = key.partition("/")
                if value and stage in COLOURS and name.startswith("loss"):
                    curves[name][stage].append((int(row["step"]), float(value)))
    return dict(sorted(curves.items()))


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


def _curve(name: str, curve: Curve) -> dict[str, object]:
    """Scale a curve into its picture, 268 by 115 from (52, 10)."""
    steps = [step for line in curve.values() for step, _ in line]
    values = [value for line in curve.values() for _, value in line]
    first, last, low, high = min(steps), max(steps), min(values), max(values)
    lines = []
    for stage, line in curve.items():
        points = " ".join(
            f"{52 + 268 * (step - first) / max(1, last - first):.1f},"
            f"{125 - 115 * (value - low) / max(1e-9, high - low):.1f}"
            for step, value in line
        )
        lines.append({"name": stage, "points": points, "colour": COLOURS[stage]})
    return {
        "name": name.replace("_", " "),
        "lines": lines,
        "first": first,
        "last": last,
        "low": f"{low:.2g}",
        "high": f"{high:.2g}",
    }


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
