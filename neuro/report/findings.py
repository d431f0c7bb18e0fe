"""A run of findings as one page that opens anywhere: how good, how sure, and where it looked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from jinja2 import Environment, PackageLoader
from numpy import ndarray

from neuro.data.predictions import Predictions
from neuro.report.curves import read_curves
from neuro.report.figures_table import MACRO, Figure, columns_of, figures_table, spelled
from neuro.report.findings_plots import findings_plots
from neuro.report.plots import curve_plot

PICTURE_BYTES = 4_000_000  # of all of them together; with it the page is below 5 MB
MAX_ROWS = 400  # of the table; the others are in a file
MAX_NAMES = 3  # of labels that are in the title
MAX_CLASSES = 6  # that are counted in the table of splits
# What is drawn over training besides the loss.
CURVES = {
    "regression": ("mae", "r2"),
    "multiclass": ("auroc", "recall"),
    "binary": ("auroc", "average_precision"),
    "multilabel": ("auroc", "average_precision"),
}


@dataclass(frozen=True, kw_only=True)
class CaseCard:
    """A study to look at.

    Attributes:
        study: Its id.
        series: The scan that is shown.
        share: Of the finding's weight, in that scan.
        num_series: Scans of the study.
        truth: What is true, in words.
        said: What was said, in words.
        picture: Slices with attention, as a data URI.
    """

    study: str
    series: str
    share: float
    num_series: int
    truth: str
    said: str
    picture: str


@dataclass(frozen=True, kw_only=True)
class Split:
    """The studies of a split.

    Attributes:
        name: ``train``, ``val`` or ``test``.
        num_studies: How many.
        num_subjects: Of how many people.
        num_series: How many scans.
        truth: One number per study and finding; NaN where it is not known.
    """

    name: str
    num_studies: int
    num_subjects: int
    num_series: int
    truth: Float[ndarray, "studies findings"]


def write_findings(
    path: Path,
    *,
    run: str,
    facts: Sequence[tuple[str, str]],
    command: str,
    splits: Sequence[Split],
    said: Predictions,
    figures: Sequence[Figure],
    specificity: float,
    num_resamples: int,
    wrong: Sequence[CaseCard],
    right: Sequence[CaseCard],
    metrics_csv: Path,
) -> None:
    """Write the page.

    Args:
        path: Where to.
        run: The name of the run.
        facts: (name, value) of what was trained and how.
        command: How it was started; empty where that is not known.
        splits: What it was trained and tested on.
        said: What was said of the test studies.
        figures: How good that is, with intervals.
        specificity: At which the sensitivity is told.
        num_resamples: Resamples of the intervals.
        wrong: Studies to look at, the clearest first.
        right: Likewise.
        metrics_csv: What the CSV logger wrote.
    """
    truths = {one.name: one.truth for one in splits if one.name != "val"}
    table = figures_table(said, figures, truths, specificity)
    right, wrong = list(right), list(wrong)
    num_dropped = _drop_beyond(PICTURE_BYTES, wrong, right)
    environment = Environment(
        loader=PackageLoader("neuro", "report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("findings.html.jinja").render(
        title=f"{_labels_in_short(said)} · {run}",
        task=said.task,
        headline=_headline(said, figures, specificity),
        facts=facts,
        command=command,
        splits=splits,
        known=_known_in_words(said, splits),
        table=table,
        counted_splits=list(truths),
        max_rows=MAX_ROWS,
        num_resamples=num_resamples,
        num_subjects=len(set(said.subjects)),
        num_studies=len(said.studies),
        num_undefined=sum(
            row.figures[0] is not None and not math.isfinite(row.figures[0][0])
            for row in table.rows
            if not row.is_mean
        ),
        curves=_curves(said.task, metrics_csv),
        plots=findings_plots(said, figures),
        wrong=wrong,
        right=right,
        num_dropped=num_dropped,
    )
    path.write_text(page, encoding="utf-8")


def _drop_beyond(num_bytes: int, *groups: list[CaseCard]) -> int:
    """Drop the last cards of the longest group until the pictures fit; return how many."""
    num_dropped = 0
    while sum(len(card.picture) for group in groups for card in group) > num_bytes:
        max(groups, key=len).pop()
        num_dropped += 1
    return num_dropped


def _labels_in_short(said: Predictions) -> str:
    if len(said.names) <= MAX_NAMES:
        return ", ".join(said.names)
    return f"{len(said.names)} {'numbers' if said.task == 'regression' else 'findings'}"


def _headline(
    said: Predictions, figures: Sequence[Figure], specificity: float
) -> list[tuple[str, str, str]]:
    """Return the first figures with their names and intervals."""
    found = {name: three for finding, name, *three in figures if finding == MACRO}
    means = {name for finding, name, *_ in figures if finding != MACRO}
    shown = [one for one in columns_of(said.task, specificity) if one.name != "sensitivity"]
    headline = []
    for column in shown:
        is_mean = column.name in means
        if column.has_unit and is_mean:
            continue
        if column.name in found and math.isfinite(found[column.name][0]):
            value, interval = spelled(*found[column.name])
            title = f"mean {column.title}" if is_mean else column.title
            title = "bal. accuracy" if column.name == "recall" else title
            headline.append((value, title, interval))
    return headline


def _known_in_words(said: Predictions, splits: Sequence[Split]) -> list[str]:
    """Say what is known of each split where there is one label; empty where that is too long."""
    if len(said.names) > 1 or len(said.classes) > MAX_CLASSES:
        return []
    words = []
    for split in splits:
        known = split.truth[np.isfinite(split.truth)]
        if said.task == "regression":
            spread = f"{known.mean():.4g} ± {known.std():.3g}" if len(known) else "none known"
            words.append(spread)
            continue
        values = said.classes or ("absent", "present")
        counts = [int((known == place).sum()) for place in range(len(values))]
        words.append(" · ".join(f"{value} {n:,}" for value, n in zip(values, counts, strict=True)))
    return words


def _curves(task: str, metrics_csv: Path) -> list[str]:
    curves = read_curves(metrics_csv)
    plots = [curve_plot(curves["loss"], title="loss")] if "loss" in curves else []
    columns = {one.name: one for one in columns_of(task, 0.9)}
    for name in CURVES[task]:
        if (curve := curves.get(f"{name}_macro")) is not None:
            column = columns[name]
            plots.append(
                curve_plot(
                    curve,
                    title=f"validation {column.title}",
                    best=column.best,
                    highest=column.highest,
                )
            )
    return plots
