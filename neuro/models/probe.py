"""What frozen features know: how many directions they fill, and what can be read from them.

Nothing here is trained by steps: a ridge regression in closed form and a vote of neighbours. All is
computed in float64 on the CPU, so that every machine and every rank finds the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor
from torch.nn import functional as F

POOLINGS = ("mean", "mean_std")
EPS = 1e-7
# Ridges that are tried, as multiples of the largest squared singular value.
RIDGES = torch.logspace(-8, 2, 41, dtype=torch.float64)
TEMPERATURE = 0.07  # Wu et al., 2018, arXiv:1805.01978


def effective_rank(features: Float[Tensor, "tokens dim"]) -> float:
    """Return how many directions features fill, from 1 to ``dim``: 0 if all are zero.

    The exponential of the entropy of the normalised singular values (RankMe, Garrido et al., 2023,
    arXiv:2210.02885, eq. 1). Features are not centred: all alike, they fill one direction. NaN if a
    feature is not finite.
    """
    wide = features.detach().cpu().double()
    if not wide.isfinite().all():
        return float("nan")
    # Squared singular values are the eigenvalues of a small matrix, however many tokens there are.
    values = torch.linalg.eigvalsh(wide.T @ wide).clamp(min=0).sqrt()
    total = values.sum()
    if total == 0:
        return 0.0
    shares = values / total + EPS
    return float(torch.exp(-(shares * shares.log()).sum()))


def dimension_std(features: Float[Tensor, "tokens dim"]) -> float:
    """Return the standard deviation over the tokens, averaged over the dimensions.

    Of layer-normed features it lies in [0, 1]; at 0 all tokens are the same.
    """
    return float(features.detach().cpu().double().std(dim=0, correction=0).mean())


def cosine(
    features: Float[Tensor, "tokens dim"], others: Float[Tensor, "tokens dim"]
) -> Float[Tensor, " tokens"]:
    """Return the cosine between the two features of each token, in [-1, 1]."""
    return F.cosine_similarity(features, others, dim=1)


def pooled(
    features: Float[Tensor, "tokens dim"], bounds: Int[Tensor, " bounds"], pooling: str
) -> Float[Tensor, "bounds-1 pooled_dim"]:
    """Return one feature per study, of all of its tokens.

    Args:
        features: A feature per token.
        bounds: Study ``i`` owns ``features[bounds[i] : bounds[i + 1]]``, one token at least.
        pooling: ``mean``, or ``mean_std`` for mean and standard deviation side by side.
    """
    parts = features.split(bounds.diff().tolist())
    means = torch.stack([part.mean(dim=0) for part in parts])
    assert pooling in POOLINGS, "there are two ways to pool"
    if pooling == "mean":
        return means
    return torch.cat([means, torch.stack([part.std(dim=0, correction=0) for part in parts])], dim=1)


def ridge_scores(
    train_x: Float[Tensor, "train dim"],
    train_y: Float[Tensor, "train columns"],
    test_x: Float[Tensor, "test dim"],
) -> Float64[Tensor, "test columns"]:
    """Return what a ridge regression makes of the test features, for each column by itself.

    Features are standardized by the training studies. The ridge is chosen by generalized
    cross-validation on them (Golub, Heath and Wahba, 1979, doi:10.1080/00401706.1979.10489751).
    For a label of 0 and 1 it is a score that ranks studies.

    Args:
        train_x: A feature per study.
        train_y: A number per study and column; NaN is left out.
        test_x: The features to judge.

    Returns:
        NaN in a column of which fewer than two training studies are known.
    """
    return _by_known(_ridge, 2, train_x, train_y, test_x)


def knn_scores(
    train_x: Float[Tensor, "train dim"],
    train_y: Float[Tensor, "train columns"],
    test_x: Float[Tensor, "test dim"],
    k: int,
) -> Float64[Tensor, "test columns"]:
    """Return the mean of the nearest training studies, weighted by how near they are.

    Near is a large cosine between standardized features, and a weight is the exponential of cosine
    over temperature (Wu et al., 2018, arXiv:1805.01978, section 3.4).

    Args:
        train_x: A feature per study.
        train_y: A number per study and column; NaN is left out.
        test_x: The features to judge.
        k: Neighbours that count; all where there are fewer.

    Returns:
        NaN in a column of which no training study is known.
    """

    def vote(own_x: Tensor, own_y: Tensor, other_x: Tensor) -> Tensor:
        own, other = _standardized(own_x, other_x)
        nearness, nearest = (F.normalize(other) @ F.normalize(own).T).topk(min(k, len(own)))
        weights = (nearness / TEMPERATURE).softmax(dim=1)  # (test, k)
        return (weights.unsqueeze(-1) * own_y[nearest]).sum(dim=1)

    return _by_known(vote, 1, train_x, train_y, test_x)


def _by_known(
    judge: Callable[[Tensor, Tensor, Tensor], Tensor],
    least: int,
    train_x: Float[Tensor, "train dim"],
    train_y: Float[Tensor, "train columns"],
    test_x: Float[Tensor, "test dim"],
) -> Float64[Tensor, "test columns"]:
    """Judge together the columns that are known of the same studies."""
    own_x, own_y, other_x = (one.detach().cpu().double() for one in (train_x, train_y, test_x))
    scores = torch.full((len(other_x), own_y.shape[1]), torch.nan, dtype=torch.float64)
    patterns, pattern_of = own_y.isfinite().T.unique(dim=0, return_inverse=True)
    for number, rows in enumerate(patterns):
        columns = pattern_of == number
        if rows.sum() >= least:
            scores[:, columns] = judge(own_x[rows], own_y[rows][:, columns], other_x)
    return scores


def _standardized(
    own: Float64[Tensor, "train dim"], other: Float64[Tensor, "test dim"]
) -> tuple[Float64[Tensor, "train dim"], Float64[Tensor, "test dim"]]:
    """Return both less the mean and over the deviation of the first; what is constant is 0."""
    mean, std = own.mean(dim=0), own.std(dim=0, correction=0)
    is_constant: Bool[Tensor, " dim"] = std <= 1e-9 * own.abs().amax(dim=0)
    scale = std.where(~is_constant, torch.inf)
    return (own - mean) / scale, (other - mean) / scale


def _ridge(
    own_x: Float64[Tensor, "train dim"],
    own_y: Float64[Tensor, "train columns"],
    other_x: Float64[Tensor, "test dim"],
) -> Float64[Tensor, "test columns"]:
    own, other = _standardized(own_x, other_x)
    mean = own_y.mean(dim=0)
    left, values, right = torch.linalg.svd(own, full_matrices=False)
    squares = values.square()
    if squares.sum() == 0:
        return mean.expand(len(other), -1)
    ridges = (RIDGES * squares.max()).unsqueeze(1)
    seen = left.T @ (own_y - mean)  # (values, columns)
    lost = ridges / (squares + ridges)  # (ridges, values) share of each direction that is lost
    beyond = (own_y - mean - left @ seen).square().sum(dim=0)  # (columns,)
    missed = lost.square() @ seen.square() + beyond
    freedom = lost.sum(dim=1, keepdim=True) + len(own) - len(values) - 1  # 1 is for the mean
    best = (missed / freedom.clamp(min=EPS).square()).argmin(dim=0)  # (columns,)
    weights = seen * (values / (squares + ridges[best])).T  # (values, columns)
    return mean + other @ right.T @ weights
