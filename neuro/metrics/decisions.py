"""How often a decision is right: by a threshold, or for the most probable class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from neuro.metrics.resamples import known_pairs, sums


def indicators(
    values: Float[Tensor, "studies 1"], num_classes: int
) -> Float64[Tensor, "studies classes"]:
    """Return 1 in the column of each study's class, 0 in the others, NaN where it is unknown."""
    columns = (values == torch.arange(num_classes, device=values.device)).double()
    return columns.where(values.isfinite(), torch.nan)


def balanced_accuracy(
    probabilities: Float[Tensor, "studies columns"],
    truth: Float[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
    threshold: float = 0.5,
) -> Float64[Tensor, "*resamples columns"]:
    """Return the mean of sensitivity and specificity; NaN where not both classes occur.

    Args:
        probabilities: Of a finding; above the threshold it is called present.
        truth: 0 or 1, NaN where it is not known.
        counts: How often each study is drawn; None is once, and no axis of resamples.
        threshold: In [0, 1].
    """
    guesses, truth = known_pairs(probabilities, truth)
    called = (guesses > threshold).double()
    sensitivity = sums(called * truth, counts) / sums(truth, counts)
    specificity = sums((1 - called) * (1 - truth), counts) / sums(1 - truth, counts)
    return (sensitivity + specificity) / 2


def class_recalls(
    probabilities: Float[Tensor, "studies classes"],
    truth: Float[Tensor, "studies 1"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
) -> Float64[Tensor, "*resamples classes"]:
    """Return how many studies of each class have it as their most probable one.

    The mean over the classes that occur is the balanced accuracy. NaN for those that do not.

    Args:
        probabilities: Of each class; of two that are the same the first counts.
        truth: The index of a class, NaN where it is not known.
        counts: How often each study is drawn; None is once, and no axis of resamples.
    """
    num_classes = probabilities.shape[1]
    chosen = indicators(probabilities.argmax(dim=1, keepdim=True).double(), num_classes)
    chosen, right = known_pairs(chosen, _of_known(probabilities, truth))
    return sums(chosen * right, counts) / sums(right, counts)


def top_class(
    probabilities: Float[Tensor, "studies classes"], truth: Float[Tensor, "studies 1"]
) -> tuple[Float64[Tensor, "studies 1"], Float64[Tensor, "studies 1"]]:
    """Return the probability of the most probable class, and whether it is the right one.

    With ``expected_calibration_error``, that is the calibration of a multiclass label (Guo et al.,
    2017, arXiv:1706.04599).
    """
    most, chosen = probabilities.double().max(dim=1, keepdim=True)
    right = _of_known(probabilities, truth).gather(1, chosen)
    return most, right


def _of_known(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Return the indicators of the right classes; NaN too where a probability is not known."""
    known = probabilities.isfinite().all(dim=1, keepdim=True)
    return indicators(truth, probabilities.shape[1]).where(known, torch.nan)
