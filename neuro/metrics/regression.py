"""How far off numbers are, and how much of them is explained.

Each takes guesses, the truth with NaN where it is not known, and how often each study is drawn: for
None once, and then there is no axis of resamples.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from neuro.metrics.resamples import known_pairs, sums

# A variance below this share of the mean square is what rounding leaves of none.
ROUNDING = 1e-12


def mean_absolute_error(
    guesses: Float[Tensor, "studies columns"],
    truth: Float[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
) -> Float64[Tensor, "*resamples columns"]:
    """Return how far off each column is on average, in its own unit."""
    guesses, truth = known_pairs(guesses, truth)
    return sums((guesses - truth).abs(), counts) / _nums(truth, counts)


def root_mean_squared_error(
    guesses: Float[Tensor, "studies columns"],
    truth: Float[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
) -> Float64[Tensor, "*resamples columns"]:
    """Return the root of the mean squared error of each column, in its own unit."""
    guesses, truth = known_pairs(guesses, truth)
    return (sums((guesses - truth).square(), counts) / _nums(truth, counts)).sqrt()


def r2(
    guesses: Float[Tensor, "studies columns"],
    truth: Float[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
) -> Float64[Tensor, "*resamples columns"]:
    """Return the share of each column's variance that is explained; NaN where there is none."""
    guesses, truth = known_pairs(guesses, truth)
    return 1 - sums((guesses - truth).square(), counts) / _variation(truth, counts)


def pearson(
    guesses: Float[Tensor, "studies columns"],
    truth: Float[Tensor, "studies columns"],
    counts: Float64[Tensor, "resamples studies"] | None = None,
) -> Float64[Tensor, "*resamples columns"]:
    """Return the correlation in each column, in [-1, 1]; NaN where one of the two is constant."""
    guesses, truth = known_pairs(guesses, truth)
    own, right = _variation(guesses, counts), _variation(truth, counts)
    return (_covariation(guesses, truth, counts) / (own * right).sqrt()).clamp(-1, 1)


def _nums(truth: Tensor, counts: Tensor | None) -> Tensor:
    return sums(truth.isfinite().double(), counts)


def _variation(values: Tensor, counts: Tensor | None) -> Tensor:
    """Return the sum of squares less the mean; NaN where there is none."""
    centred = _centred(values)
    found = _covariation(values, values, counts)
    return found.where(found > ROUNDING * sums(centred.square(), counts), torch.nan)


def _covariation(one: Tensor, other: Tensor, counts: Tensor | None) -> Tensor:
    """Return the sum of products less the means."""
    one, other = _centred(one), _centred(other)
    return sums(one * other, counts) - sums(one, counts) * sums(other, counts) / _nums(one, counts)


def _centred(values: Tensor) -> Tensor:
    """Return values less their middle, which is 0 where all are the same."""
    # Whatever is taken off, the difference above is the same; with this, little is lost in it.
    highest = values.nan_to_num(nan=-torch.inf).amax(dim=0)
    lowest = values.nan_to_num(nan=torch.inf).amin(dim=0)
    return values - (lowest + (highest - lowest) / 2)
