"""Confidence intervals by the bootstrap: how often each study is drawn, and what follows.

A metric of this room takes the counts of many resamples at once and returns a figure for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def draw_counts(
    subjects: Sequence[str], num_resamples: int = 1000, seed: int = 0
) -> Float64[Tensor, "resamples studies"]:
    """Return how often each study is drawn, with replacement, in each resample.

    Subjects are drawn, and with a subject all of its studies: two studies of one subject are not
    two independent ones, and an interval that takes them for such is too narrow.

    Args:
        subjects: The subject of each study; the ids of the studies, if each is its own.
        num_resamples: How many times as many subjects as there are are drawn.
        seed: Of the draws: the same studies with the same seed have the same intervals.
    """
    places: dict[str, int] = {}
    subject_of = torch.tensor([places.setdefault(name, len(places)) for name in subjects])
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(places), (num_resamples, len(places)), generator=generator)
    counts = torch.zeros(num_resamples, len(places), dtype=torch.float64)
    counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return counts[:, subject_of]


def interval(
    figures: Float[Tensor, "resamples columns"], level: float = 0.95
) -> tuple[Float64[Tensor, " columns"], Float64[Tensor, " columns"]]:
    """Return where the middle share of the resamples begins and ends (percentile bootstrap).

    A resample in which a figure is not defined, such as one without a positive study, is left out.
    """
    tail = (1 - level) / 2
    limits = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = figures.double().nanquantile(limits, dim=0)
    return low, high


def macro(figures: Float[Tensor, "*resamples columns"]) -> Float64[Tensor, "*resamples"]:
    """Return the mean over the columns in which a figure is defined."""
    return figures.double().nanmean(dim=-1)


def known_pairs(
    guesses: Float[Tensor, "studies columns"], truth: Float[Tensor, "studies columns"]
) -> tuple[Float64[Tensor, "studies columns"], Float64[Tensor, "studies columns"]]:
    """Return both in float64 on the CPU, NaN wherever one of the two is not known."""
    both = guesses.detach().cpu().double(), truth.detach().cpu().double()
    known = both[0].isfinite() & both[1].isfinite()
    return both[0].where(known, torch.nan), both[1].where(known, torch.nan)


def sums(
    values: Float64[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None,
) -> Float64[Tensor, "*resamples columns"]:
    """Return the sum of each column over the studies, each as often as it is drawn; NaN is 0."""
    return values.nansum(dim=0) if counts is None else counts @ values.nan_to_num(nan=0)
