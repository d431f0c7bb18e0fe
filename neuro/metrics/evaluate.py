"""Every figure of a task, from what was said of each study of an epoch."""

from __future__ import annotations

from jaxtyping import Float, Float64
from torch import Tensor

from neuro.metrics.calibration import brier, expected_calibration_error
from neuro.metrics.decisions import balanced_accuracy, class_recalls, indicators, top_class
from neuro.metrics.ranking import rank_figures
from neuro.metrics.regression import mean_absolute_error, pearson, r2, root_mean_squared_error
from neuro.metrics.resamples import macro


def evaluate(
    task: str,
    outputs: Float[Tensor, "studies outputs"],
    truth: Float[Tensor, "studies findings"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
    specificity: float = 0.9,
) -> dict[str, Float64[Tensor, "*resamples columns"]]:
    """Return the figures of each finding, or of each class of a multiclass label.

    Where a figure is of the whole label, it is a single column: balanced accuracy and calibration
    of a multiclass label. NaN is a figure that is not defined.

    Args:
        task: ``binary``, ``multilabel``, ``multiclass`` or ``regression``.
        outputs: The probability of each finding or class; for a regression the number itself.
        truth: 0 or 1, a class index, or a number; NaN where it is not known.
        counts: How often each study is drawn, of ``draw_counts``; None is once, and no axis of
            resamples.
        specificity: At which the sensitivity is told.
    """
    if task == "regression":
        measures = {
            "mae": mean_absolute_error,
            "rmse": root_mean_squared_error,
            "r2": r2,
            "pearson": pearson,
        }
        return {name: measure(outputs, truth, counts) for name, measure in measures.items()}
    if task == "multiclass":
        classes = indicators(truth, outputs.shape[1])  # one against the rest
        recalls = class_recalls(outputs, truth, counts)
        decided = {
            "recall": recalls,
            "balanced_accuracy": macro(recalls).unsqueeze(-1),
            "ece": expected_calibration_error(*top_class(outputs, truth), counts),
        }
    else:
        classes = truth
        decided = {
            "balanced_accuracy": balanced_accuracy(outputs, truth, counts),
            "ece": expected_calibration_error(outputs, truth, counts),
        }
    ranked = rank_figures(outputs, classes, counts, specificity)
    return ranked._asdict() | decided | {"brier": brier(outputs, classes, counts)}
