"""A probability is held against the share of studies that turn out positive."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn import calibration, metrics

from neuro.metrics.calibration import brier, calibration_curve, expected_calibration_error

SEEDS = range(15)


def drawn(seed):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(5, 300))
    said = rng.random((num, 2)).round(int(rng.integers(1, 5)))  # on the edges of bins too
    truth = (rng.random((num, 2)) < said**2).astype(float)
    truth[rng.random((num, 2)) < 0.2] = np.nan
    return torch.tensor(said), torch.tensor(truth)


def by_hand(said, right, num_bins):
    edges = np.linspace(0, 1, num_bins + 1)
    total = 0.0
    for number, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = (said > low) & (said <= high) if number else said <= high
        if inside.any():
            total += inside.mean() * abs(said[inside].mean() - right[inside].mean())
    return total


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_bins", [10, 15])
def test_the_error_is_the_distance_of_the_curve_weighted_by_studies(seed, num_bins):
    said, truth = drawn(seed)
    found = expected_calibration_error(said, truth, num_bins=num_bins)
    for column in range(2):
        known = truth[:, column].isfinite().numpy()
        own, right = said[:, column].numpy()[known], truth[:, column].numpy()[known]
        assert float(found[column]) == pytest.approx(by_hand(own, right, num_bins), abs=1e-9)
        curve = calibration_curve(said[:, column], truth[:, column], num_bins)
        shares, means = calibration.calibration_curve(right, own, n_bins=num_bins)
        assert curve.mean_probability.numpy() == pytest.approx(means, abs=1e-6)
        assert curve.positive_share.numpy() == pytest.approx(shares, abs=1e-6)
        assert int(curve.num_studies.sum()) == known.sum()


@pytest.mark.parametrize("seed", SEEDS)
def test_the_mean_square_is_that_of_scikit_learn(seed):
    said, truth = drawn(seed)
    for column, found in enumerate(brier(said, truth)):
        known = truth[:, column].isfinite()
        expected = metrics.brier_score_loss(
            truth[known, column].numpy(), said[known, column].numpy(), pos_label=1
        )
        assert float(found) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("measure", [brier, expected_calibration_error])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_resample_is_as_good_as_its_studies_one_by_one(measure, seed):
    said, truth = drawn(seed)
    count = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, len(truth)))
    rows = torch.arange(len(truth)).repeat_interleave(count)
    found = measure(said, truth, count.double().unsqueeze(0))[0]
    torch.testing.assert_close(found, measure(said[rows], truth[rows]), equal_nan=True)


@pytest.mark.parametrize("measure", [brier, expected_calibration_error])
def test_what_is_known_for_certain_has_no_error_and_the_opposite_has_all(measure):
    truth = torch.tensor([[0.0], [1.0], [1.0], [torch.nan]])
    assert float(measure(truth.nan_to_num(nan=0.3), truth)) == 0
    assert float(measure(1 - truth.nan_to_num(nan=0.3), truth)) == 1
    assert measure(truth, truth * torch.nan).isnan().all()


def test_a_good_share_of_nothing_is_no_point():
    curve = calibration_curve(torch.tensor([0.05, 0.95, 0.96]), torch.tensor([0.0, 1.0, 0.0]))
    assert curve.num_studies.tolist() == [1, 2]
    assert curve.positive_share.tolist() == [0, 0.5]
