"""What is drawn of a test: curves, calibration, matrices and scatters, as they fit the task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from numpy import ndarray

from neuro.data.predictions import Predictions
from neuro.metrics.calibration import calibration_curve
from neuro.metrics.decisions import indicators, top_class
from neuro.metrics.ranking import roc_curve
from neuro.report.figures_table import MACRO, Figure, spelled
from neuro.report.histogram import histogram_plot
from neuro.report.plots import Roc, calibration_plot, confusion_plot, roc_plot, scatter_plot

FEW = 3  # labels of which each has plots of its own
MAX_SCATTERS = 12
MAX_CLASSES = 60  # of a matrix; a larger one cannot be read, and takes megabytes


def findings_plots(said: Predictions, figures: Sequence[Figure]) -> list[str]:
    """Return what is drawn of the test, as it fits the task.

    Args:
        said: What was said of the test studies.
        figures: How good that is, with intervals.
    """
    found = {(finding, name): three for finding, name, *three in figures}
    outputs, truth = said.outputs.double(), said.truth.double()
    if said.task == "regression":
        return _scatters(said, found)
    if said.task == "multiclass":
        classes = indicators(truth, outputs.shape[1])
        known = truth.isfinite().squeeze(1)
        pairs = truth[known, 0].long() * outputs.shape[1] + outputs[known].argmax(dim=1)
        counts = torch.bincount(pairs, minlength=outputs.shape[1] ** 2)
        matrix = counts.view(outputs.shape[1], -1).numpy()
        plots = [confusion_plot(matrix, said.columns)] if len(matrix) <= MAX_CLASSES else []
        return [
            *plots,
            _roc_plot(said, classes, found, "ROC, each class against the others"),
            _calibration(*top_class(outputs, truth), "calibration of the class said", found),
        ]
    plots = [_roc_plot(said, truth, found, "ROC")]
    if len(said.names) > FEW:
        title = "calibration, all findings together"
        plots.append(_calibration(outputs, truth, title, found))
        title = "probabilities, all findings together"
        return [*plots, histogram_plot(_flat(outputs), _flat(truth), title=title)]
    names = said.classes or ("absent", "present")
    for place, name in enumerate(said.names):
        own, right = outputs[:, place : place + 1], truth[:, place : place + 1]
        about = f" of {name}" if len(said.names) > 1 else ""
        plots.append(_calibration(own, right, f"calibration{about}", found, name))
        title = f"probability of {name if not said.classes else names[1]}"
        plots.append(
            histogram_plot(_flat(own), _flat(right), title=title, names=(names[0], names[1]))
        )
    return plots


def _roc_plot(
    said: Predictions,
    truth: torch.Tensor,
    found: Mapping[tuple[str, str], Sequence[float]],
    title: str,
) -> str:
    rocs = []
    for place, name in enumerate(said.columns):
        curve = roc_curve(said.outputs[:, place], truth[:, place])
        value, *interval = _of(found, name, "auroc")
        rocs.append(
            Roc(
                name=name,
                false_positive_rate=curve.false_positive_rate.numpy(),
                true_positive_rate=curve.true_positive_rate.numpy(),
                auroc=value,
                interval=_interval(interval),
            )
        )
    value, *interval = found.get((MACRO, "auroc"), (math.nan, math.nan, math.nan))
    return roc_plot(rocs, title=title, macro=value, macro_interval=_interval(interval))


def _calibration(
    outputs: torch.Tensor,
    truth: torch.Tensor,
    title: str,
    found: Mapping[tuple[str, str], Sequence[float]],
    finding: str = MACRO,
) -> str:
    curve = calibration_curve(outputs.flatten(), truth.flatten())
    value, *interval = _of(found, finding, "ece")
    told, between = spelled(value, *interval)
    note = f"{'mean ' if outputs.shape[1] > 1 else ''}ECE {told}"
    return calibration_plot(
        curve.mean_probability.numpy(),
        curve.positive_share.numpy(),
        curve.num_studies.long().numpy(),
        title=title,
        note=f"{note} ({between})" if between else note,
    )


def _scatters(said: Predictions, found: Mapping[tuple[str, str], Sequence[float]]) -> list[str]:
    plots = []
    for place, name in enumerate(said.names[:MAX_SCATTERS]):
        told = [
            f"{title} {spelled(*_of(found, name, figure))[0]}"
            for figure, title in (("mae", "MAE"), ("r2", "R²"), ("pearson", "r"))
        ]
        truth, predicted = said.truth[:, place], said.outputs[:, place]
        plots.append(
            scatter_plot(_flat(truth), _flat(predicted), title=name, note=" · ".join(told))
        )
    return plots


def _of(
    found: Mapping[tuple[str, str], Sequence[float]], finding: str, figure: str
) -> Sequence[float]:
    """Return a figure of a finding with its interval; that of a lone one is the mean too."""
    lone = found.get((MACRO, figure), (math.nan, math.nan, math.nan))
    is_lone = not any(name == figure and one != MACRO for one, name in found)
    return found.get((finding, figure), lone if is_lone else (math.nan,) * 3)


def _interval(both: Sequence[float]) -> tuple[float, float] | None:
    low, high = both
    return (low, high) if math.isfinite(low + high) else None


def _flat(values: torch.Tensor) -> Float[ndarray, " values"]:
    return values.double().flatten().numpy()
