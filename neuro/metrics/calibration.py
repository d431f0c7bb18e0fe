"""Whether a probability means what it says: of studies at 0.3, three in ten should be positive."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from neuro.metrics.resamples import known_pairs, sums


class CalibrationCurve(NamedTuple):
    """A point for each bin of probabilities that a study falls into.

    Attributes:
        mean_probability: What was said.
        positive_share: What was found.
        num_studies: How many studies that is said of.
    """

    mean_probability: Float64[Tensor, " bins"]
    positive_share: Float64[Tensor, " bins"]
    num_studies: Float64[Tensor, " bins"]


def expected_calibration_error(
    probabilities: Float[Tensor, "studies columns"],
    truth: Float[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
    num_bins: int = 15,
) -> Float64[Tensor, "*resamples columns"]:
    """Return how far probabilities and shares of positive studies lie apart, in [0, 1].

    Bins of [0, 1] are equally wide, with their upper edge and without the lower; each counts by its
    studies (Guo et al., 2017, arXiv:1706.04599, eq. 3, of the positive class).

    Args:
        probabilities: Of a finding, in [0, 1].
        truth: 0 or 1, NaN where it is not known.
        counts: How often each study is drawn; None is once, and no axis of resamples.
        num_bins: How many bins.
    """
    said, truth = known_pairs(probabilities, truth)
    columns = []
    for own, right in zip(said.T, truth.T, strict=True):
        gaps = sums(_binned(own - right, own, num_bins), counts).abs().sum(dim=-1)
        columns.append(gaps / sums(right.isfinite().double().unsqueeze(1), counts).squeeze(-1))
    return torch.stack(columns, dim=-1)


def brier(
    probabilities: Float[Tensor, "studies columns"],
    truth: Float[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
) -> Float64[Tensor, "*resamples columns"]:
    """Return the mean squared distance of probability and truth, in [0, 1]."""
    said, truth = known_pairs(probabilities, truth)
    return sums((said - truth).square(), counts) / sums(truth.isfinite().double(), counts)


def calibration_curve(
    probabilities: Float[Tensor, " studies"], truth: Float[Tensor, " studies"], num_bins: int = 10
) -> CalibrationCurve:
    """Return what was said and what was found, in equally wide bins of [0, 1]."""
    said, right = known_pairs(probabilities.unsqueeze(1), truth.unsqueeze(1))
    own, known = said[:, 0], right[:, 0].isfinite().double()
    nums = _binned(known, own, num_bins).nansum(dim=0)
    filled = nums > 0
    means = [
        _binned(one, own, num_bins).nansum(dim=0)[filled] / nums[filled]
        for one in (own, right[:, 0])
    ]
    return CalibrationCurve(means[0], means[1], nums[filled])


def _binned(values: Tensor, probabilities: Tensor, num_bins: int) -> Tensor:
    """Return the values in the column of the bin of their probability, and 0 in the others."""
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)[1:-1].contiguous()
    number = torch.bucketize(probabilities.nan_to_num(nan=0).contiguous(), edges)
    columns = torch.zeros(len(values), num_bins, dtype=torch.float64)
    return columns.scatter_(1, number.unsqueeze(1), values.nan_to_num(nan=0).unsqueeze(1))
