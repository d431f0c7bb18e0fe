"""What is said about frozen features follows from the features and the known labels alone."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from neuro.metrics.ranking import auroc
from neuro.models.probe import (
    POOLINGS,
    cosine,
    dimension_std,
    effective_rank,
    knn_scores,
    pooled,
    ridge_scores,
)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(dim, seed=0):
    return torch.linalg.qr(drawn(dim, dim, seed=seed))[0]


# ---------------------------------------------------------------- rank, deviation, cosine


@pytest.mark.parametrize("num", [1, 3, 8])
def test_the_rank_is_the_number_of_directions_that_are_filled_alike(num):
    features = torch.eye(num, 8).repeat(5, 1)
    assert effective_rank(features) == pytest.approx(num, rel=1e-3)


def test_the_rank_of_directions_that_are_filled_unlike_is_between():
    features = torch.diag(torch.tensor([1.0, 0.1, 0.1, 0.1]))
    shares = [10 / 13, 1 / 13, 1 / 13, 1 / 13]
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert effective_rank(features) == pytest.approx(expected, rel=1e-3)


def test_the_rank_depends_neither_on_size_nor_on_turning_nor_on_order():
    features = drawn(50, 6) * torch.arange(1.0, 7)
    expected = effective_rank(features)
    for same in (1e3 * features, features @ rotation(6), features.flip(0), -features):
        assert effective_rank(same) == pytest.approx(expected, rel=1e-4)


def test_features_that_are_all_alike_have_rank_one_and_no_deviation():  # S28
    features = drawn(1, 6).expand(50, 6)
    assert effective_rank(features) == pytest.approx(1, rel=1e-3)
    assert dimension_std(features) == pytest.approx(0, abs=1e-6)


def test_features_that_say_nothing_have_a_rank_all_the_same():
    assert effective_rank(torch.zeros(5, 4)) == 0
    assert math.isnan(effective_rank(torch.full((5, 4), torch.nan)))


def test_a_deviation_of_normed_features_is_at_most_one():
    features = torch.nn.functional.layer_norm(drawn(200, 16), (16,))
    assert 0.9 < dimension_std(features) <= 1
    assert dimension_std(features + drawn(1, 16)) == pytest.approx(dimension_std(features))


def test_a_cosine_is_one_for_the_same_direction_and_minus_one_for_the_opposite():
    features = drawn(5, 4)
    assert cosine(features, 3 * features).tolist() == pytest.approx([1.0] * 5)
    assert cosine(features, -features).tolist() == pytest.approx([-1.0] * 5)


# ---------------------------------------------------------------- pooling


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_study_is_pooled_as_if_it_were_alone_whatever_the_order_of_its_tokens(pooling):
    features = drawn(12, 5)
    bounds = torch.tensor([0, 4, 5, 12], dtype=torch.int32)
    every = pooled(features, bounds, pooling)
    for number, (start, stop) in enumerate(itertools.pairwise(bounds.tolist())):
        own = features[start:stop].flip(0)
        alone = pooled(own, torch.tensor([0, stop - start], dtype=torch.int32), pooling)
        torch.testing.assert_close(every[number], alone[0])
    assert torch.equal(every[1, :5], features[4])
    assert (every[1, 5:] == 0).all()  # a single token does not vary


def test_a_pooling_with_deviations_is_the_mean_and_more():
    features, bounds = drawn(12, 5), torch.tensor([0, 4, 12], dtype=torch.int32)
    both = pooled(features, bounds, "mean_std")
    assert torch.equal(both[:, :5], pooled(features, bounds, "mean"))
    torch.testing.assert_close(both[0, 5:], features[:4].std(dim=0, correction=0))


# ---------------------------------------------------------------- ridge


def linear(num=60, dim=8, noise=0.0, seed=0):
    x = drawn(num, dim, seed=seed)
    y = x @ drawn(dim, 2, seed=9) + 5 + noise * drawn(num, 2, seed=seed + 100)
    return x, y


def test_a_ridge_finds_a_linear_rule():
    x, y = linear()
    other, truth = linear(seed=1)
    torch.testing.assert_close(ridge_scores(x, y, other).float(), truth, rtol=1e-3, atol=1e-3)


def test_a_ridge_is_the_regression_whose_generalized_error_is_least():
    x, y = linear(num=30, noise=3.0)
    y = y[:, :1]
    z = ((x - x.mean(0)) / x.std(0, correction=0)).double()
    centred = (y - y.mean(0)).double()
    squares = torch.linalg.eigvalsh(z.T @ z)
    errors, fits = [], []
    for ridge in torch.logspace(-8, 2, 41).double() * squares.max():
        hat = z @ torch.linalg.inv(z.T @ z + ridge * torch.eye(8)) @ z.T
        left = centred - hat @ centred
        errors.append(float(left.square().sum() / (len(x) - 1 - hat.trace()) ** 2))
        fits.append(hat @ centred + y.mean(0))
    expected = fits[errors.index(min(errors))]
    torch.testing.assert_close(ridge_scores(x, y, x), expected, rtol=1e-5, atol=1e-5)


def test_where_there_is_nothing_to_find_a_ridge_holds_back():
    x, y = drawn(60, 40), drawn(60, 1, seed=1)
    guessed = ridge_scores(x, y, drawn(60, 40, seed=2))
    least_squares = drawn(60, 40, seed=2) @ torch.linalg.lstsq(x, y).solution
    assert guessed.std() < 0.5 * least_squares.std()


def test_more_dimensions_than_studies_are_no_hindrance():
    x = drawn(40, 200)
    y = (x[:, :1] + 0.1 * drawn(40, 1, seed=3) > 0).float()
    other = drawn(200, 200, seed=4)
    scores = ridge_scores(x, y, other)
    assert scores.isfinite().all()
    assert float(auroc(scores, (other[:, :1] > 0).float())) > 0.55


def test_units_and_constants_of_features_change_nothing():
    x, y = linear(noise=1.0)
    other, _ = linear(seed=1)
    expected = ridge_scores(x, y, other)
    scale, shift = torch.logspace(-3, 3, 8), drawn(8, seed=5)
    torch.testing.assert_close(
        ridge_scores(scale * x + shift, y, scale * other + shift), expected, rtol=1e-3, atol=1e-3
    )
    constant = torch.full((60, 1), 7.3)
    with_constant = [torch.cat([one, constant], dim=1) for one in (x, other)]
    torch.testing.assert_close(ridge_scores(with_constant[0], y, with_constant[1]), expected)


def test_features_that_are_all_constant_give_the_mean():
    x, y = torch.ones(10, 3), drawn(10, 1)
    torch.testing.assert_close(ridge_scores(x, y, torch.ones(4, 3)), y.double().mean().expand(4, 1))


@pytest.mark.parametrize("judge", [ridge_scores, lambda x, y, z: knn_scores(x, y, z, k=5)])
def test_what_is_unknown_is_left_out_label_by_label(judge):
    x, y = linear(noise=1.0)
    other, _ = linear(seed=1)
    y[::3, 0] = torch.nan
    scores = judge(x, y, other)
    assert scores.isfinite().all()
    for column in (0, 1):
        known = y[:, column].isfinite()
        alone = judge(x[known], y[known][:, [column]], other)
        torch.testing.assert_close(scores[:, [column]], alone)


@pytest.mark.parametrize("judge", [ridge_scores, lambda x, y, z: knn_scores(x, y, z, k=5)])
def test_a_label_that_nobody_has_gives_no_score(judge):
    x, y = linear()
    y[:, 1] = torch.nan
    scores = judge(x, y, x)
    assert scores[:, 0].isfinite().all()
    assert scores[:, 1].isnan().all()


@pytest.mark.parametrize("judge", [ridge_scores, lambda x, y, z: knn_scores(x, y, z, k=5)])
def test_a_study_is_judged_as_if_it_were_alone(judge):
    x, y = linear(noise=1.0)
    other, _ = linear(num=7, seed=1)
    every = judge(x, y, other)
    for row in range(7):
        torch.testing.assert_close(judge(x, y, other[row : row + 1])[0], every[row])


# ---------------------------------------------------------------- neighbours


def test_a_near_neighbour_decides():
    x = drawn(40, 20)
    y = (torch.arange(40) % 2).float().unsqueeze(1)
    scores = knn_scores(x, y, x + 0.01 * drawn(40, 20, seed=1), k=5)
    assert ((scores > 0.5) == (y == 1)).all()


def test_all_vote_where_there_are_fewer_than_should():
    x, y = drawn(4, 20), torch.tensor([[0.0], [1.0], [1.0], [1.0]])
    torch.testing.assert_close(knn_scores(x, y, x, k=4), knn_scores(x, y, x, k=100))
