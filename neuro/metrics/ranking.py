"""How well scores rank studies: whatever their scale, probabilities or logits.

Everything is counted over all studies at once: a mean over batches is another figure. Studies with
the same score are passed together, in no order. A column is not defined, and NaN, where not both 0
and 1 occur among the studies whose label and score are known.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from neuro.metrics.resamples import known_pairs


class RocCurve(NamedTuple):
    """A point for each distinct score, from the highest on; the first is that of no study.

    Attributes:
        thresholds: A study at or above is positive.
        true_positive_rate: Share of the positive studies that are called so: sensitivity.
        false_positive_rate: Share of the negative studies that are called positive.
    """

    thresholds: Float64[Tensor, " points"]
    true_positive_rate: Float64[Tensor, " points"]
    false_positive_rate: Float64[Tensor, " points"]


class _Steps(NamedTuple):
    """How many studies lie at or above each distinct score, from the highest on."""

    thresholds: Float64[Tensor, " steps"]
    positives: Float64[Tensor, "resamples steps"]
    negatives: Float64[Tensor, "resamples steps"]


class RankFigures(NamedTuple):
    """How well the scores of each column rank the studies.

    Attributes:
        auroc: Area under the ROC curve.
        average_precision: Mean of the precision at each positive study, without interpolation.
            Scores that say nothing reach the share of positive studies.
        sensitivity: The highest of a threshold that is specific enough. The threshold is one of
            the scores, without interpolation.
    """

    auroc: Float64[Tensor, "*resamples columns"]
    average_precision: Float64[Tensor, "*resamples columns"]
    sensitivity: Float64[Tensor, "*resamples columns"]


def rank_figures(
    scores: Float[Tensor, "studies columns"],
    truth: Float[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
    specificity: float = 0.9,
) -> RankFigures:
    """Return three figures of each column, which are counted together.

    Args:
        scores: Higher where a finding is more likely.
        truth: 0 or 1, NaN where it is not known.
        counts: How often each study is drawn; None is once, and no axis of resamples.
        specificity: Share of the negative studies that a threshold must leave out, in [0, 1].
    """
    scores, truth = known_pairs(scores, truth)
    # Half as wide, whole numbers are twice as fast and exact up to 16 million.
    drawn = torch.ones(1, len(truth)) if counts is None else counts.float()
    found = torch.full((3, len(drawn), truth.shape[1]), torch.nan, dtype=torch.float64)
    for column in range(truth.shape[1]):
        steps = _steps(scores[:, column], truth[:, column], drawn)
        if len(steps.thresholds):
            both = (steps.positives[:, -1] > 0) & (steps.negatives[:, -1] > 0)
            own = torch.stack([_area(steps), _precision(steps), _sensitivity(steps, specificity)])
            found[:, :, column] = own.where(both, torch.nan)
    return RankFigures(*(found[:, 0] if counts is None else found))


def auroc(
    scores: Float[Tensor, "studies columns"],
    truth: Float[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
) -> Float64[Tensor, "*resamples columns"]:
    """Return the area under the ROC curve of each column, as ``rank_figures`` does."""
    return rank_figures(scores, truth, counts).auroc


def roc_curve(scores: Float[Tensor, " studies"], truth: Float[Tensor, " studies"]) -> RocCurve:
    """Return the points of the curve whose area is ``auroc``; NaN where it is not defined."""
    own, right = known_pairs(scores.unsqueeze(1), truth.unsqueeze(1))
    steps = _steps(own[:, 0], right[:, 0], torch.ones(1, len(truth)))
    if not len(steps.thresholds):
        return RocCurve(*(torch.full((1,), torch.nan, dtype=torch.float64) for _ in range(3)))
    rates = [F.pad(one[0], (1, 0)) / one[0, -1] for one in steps[1:]]
    return RocCurve(F.pad(steps.thresholds, (1, 0), value=torch.inf), *rates)


def _steps(
    scores: Float64[Tensor, " studies"],
    truth: Float64[Tensor, " studies"],
    drawn: Float[Tensor, "resamples studies"],
) -> _Steps:
    """Count the studies of a column step by step; those that are not known are left out."""
    rows = truth.isfinite().nonzero().squeeze(1)
    rows = rows[scores[rows].argsort(descending=True)]
    own = scores[rows]
    is_last = torch.ones(len(rows), dtype=torch.bool)  # of those with the same score
    is_last[:-1] = own[1:] != own[:-1]
    last = is_last.nonzero().squeeze(1)
    drawn = drawn.index_select(1, rows)
    positives = (drawn * truth[rows].float()).cumsum(dim=1).index_select(1, last)
    return _Steps(
        own[last],
        positives.double(),
        (drawn.cumsum(dim=1).index_select(1, last) - positives).double(),
    )


def _area(steps: _Steps) -> Tensor:
    positives, negatives = steps.positives, steps.negatives
    # Of studies with the same score, half of the pairs count.
    above = positives + F.pad(positives, (1, 0))[:, :-1]
    passed = negatives - F.pad(negatives, (1, 0))[:, :-1]
    return (passed * above).sum(dim=1) / (2 * positives[:, -1] * negatives[:, -1])


def _precision(steps: _Steps) -> Tensor:
    positives = steps.positives
    # Before the first study that is drawn there is nothing to divide, nor to add.
    precision = positives / (positives + steps.negatives).clamp(min=1)
    gained = positives - F.pad(positives, (1, 0))[:, :-1]
    return (precision * gained).sum(dim=1) / positives[:, -1]


def _sensitivity(steps: _Steps, specificity: float) -> Tensor:
    most = steps.negatives[:, -1:]
    # Counts are whole: 0.9 of ten studies are nine, whatever floats make of it.
    allowed = most - steps.negatives >= most * (specificity - 1e-9)
    return (steps.positives * allowed).amax(dim=1) / steps.positives[:, -1]
