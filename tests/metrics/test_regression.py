"""Errors are what scikit-learn finds, in the unit of the label."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from neuro.metrics.regression import mean_absolute_error, pearson, r2, root_mean_squared_error

MEASURES = [mean_absolute_error, root_mean_squared_error, r2, pearson]
THEIRS = {
    mean_absolute_error: metrics.mean_absolute_error,
    root_mean_squared_error: metrics.root_mean_squared_error,
    r2: metrics.r2_score,
    pearson: lambda right, own: np.corrcoef(right, own)[0, 1],
}


def drawn(seed, offset=0.0):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(3, 80))
    truth = offset + rng.normal(size=(num, 3)) * [1, 20, 1e-3]
    guesses = truth + rng.normal(size=(num, 3)) * [2, 10, 1e-3]
    truth[rng.random((num, 3)) < 0.1] = np.nan
    guesses[rng.random((num, 3)) < 0.1] = np.nan
    return torch.tensor(guesses), torch.tensor(truth)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_figures_are_those_of_scikit_learn(measure, seed, offset):
    guesses, truth = drawn(seed, offset)
    found = measure(guesses, truth)
    for column in range(3):
        known = (guesses[:, column].isfinite() & truth[:, column].isfinite()).numpy()
        if known.sum() > 2:
            pair = truth[:, column].numpy()[known], guesses[:, column].numpy()[known]
            assert float(found[column]) == pytest.approx(THEIRS[measure](*pair), abs=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("seed", range(15))
def test_a_resample_is_as_good_as_its_studies_one_by_one(measure, seed):
    guesses, truth = drawn(seed, 100.0)
    count = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, len(truth)))
    rows = torch.arange(len(truth)).repeat_interleave(count)
    found = measure(guesses, truth, count.double().unsqueeze(0))[0]
    torch.testing.assert_close(found, measure(guesses[rows], truth[rows]), equal_nan=True)


def test_errors_are_in_the_unit_of_the_label_and_the_mean_explains_nothing():  # S87
    truth = torch.tensor([[20.0], [40.0], [60.0], [torch.nan]])
    guesses = torch.tensor([[22.0], [38.0], [60.0], [50.0]])
    assert float(mean_absolute_error(guesses, truth)) == pytest.approx(4 / 3)
    assert float(root_mean_squared_error(guesses, truth)) == pytest.approx((8 / 3) ** 0.5)
    assert float(r2(guesses, truth)) == pytest.approx(1 - 8 / 800)
    assert float(r2(torch.full((4, 1), 40.0), truth)) == pytest.approx(0)


def test_an_error_of_two_is_two():  # S87
    assert float(root_mean_squared_error(torch.full((5, 1), 2.0), torch.zeros(5, 1))) == 2


@pytest.mark.parametrize("value", [40.0, 0.1])
def test_what_does_not_vary_is_not_explained(value):
    constant = torch.full((3, 1), value, dtype=torch.float64)
    varied = torch.tensor([[1.0], [2.0], [4.0]])
    assert r2(varied, constant).isnan().all()
    assert pearson(varied, constant).isnan().all()
    assert pearson(constant, varied).isnan().all()
    only = torch.tensor([[0.0, 3.0, 0.0]], dtype=torch.float64)  # the same study three times
    assert r2(varied, varied / 3, only).isnan().all()


def test_a_correlation_is_of_the_direction_alone():
    truth = torch.randn(30, 1, generator=torch.Generator().manual_seed(0))
    assert float(pearson(3 * truth + 7, truth)) == pytest.approx(1)
    assert float(pearson(-truth, truth)) == pytest.approx(-1)


@pytest.mark.parametrize("measure", MEASURES)
def test_nothing_known_is_nothing_said(measure):
    assert measure(torch.rand(4, 1), torch.full((4, 1), torch.nan)).isnan().all()
