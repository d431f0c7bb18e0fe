"""How well scores rank is what scikit-learn finds, and follows from pairs of known studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from neuro.metrics.ranking import auroc, rank_figures, roc_curve

SEEDS = range(25)


def drawn(seed, columns=4, least=2):
    """Scores and labels of some studies, with ties, unknown labels and unknown scores."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(least, 60))
    scores = rng.normal(size=(num, columns)).round(int(rng.integers(0, 4)))
    truth = (rng.random((num, columns)) < rng.uniform(0.1, 0.9)).astype(float)
    truth[rng.random((num, columns)) < 0.2] = np.nan
    scores[rng.random((num, columns)) < 0.05] = np.nan
    return torch.tensor(scores), torch.tensor(truth)


def theirs(measure, scores, truth):
    """What another library makes of each column's known studies; NaN where it has one class."""
    found = []
    for own, right in zip(scores.T.numpy(), truth.T.numpy(), strict=True):
        known = np.isfinite(own) & np.isfinite(right)
        both = len(np.unique(right[known])) == 2
        found.append(measure(right[known], own[known]) if both else math.nan)
    return torch.tensor(found, dtype=torch.float64)


def sensitivity_at(specificity):
    def measure(right, own):
        false, true, _ = metrics.roc_curve(right, own, drop_intermediate=False)
        return true[1 - false >= specificity - 1e-12].max()

    return measure


@pytest.mark.parametrize("seed", SEEDS)
def test_figures_are_those_of_scikit_learn(seed):
    scores, truth = drawn(seed)
    found = rank_figures(scores, truth, specificity=0.8)
    for own, measure in zip(
        found,
        [metrics.roc_auc_score, metrics.average_precision_score, sensitivity_at(0.8)],
        strict=True,
    ):
        expected = theirs(measure, scores, truth)
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=0, equal_nan=True)
    assert torch.equal(auroc(scores, truth).nan_to_num(), found.auroc.nan_to_num())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_resample_is_as_good_as_its_studies_one_by_one(seed):
    scores, truth = drawn(seed)
    counts = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, (5, len(truth)))).double()
    found = rank_figures(scores, truth, counts)
    for number, count in enumerate(counts.long()):
        rows = torch.arange(len(truth)).repeat_interleave(count)
        expected = rank_figures(scores[rows], truth[rows])
        for own, one in zip(found, expected, strict=True):
            torch.testing.assert_close(own[number], one, equal_nan=True)


@pytest.mark.parametrize("scale", [0.1, 1.0, 100.0])  # S85
def test_an_area_is_the_share_of_pairs_in_the_right_order_whatever_the_scale(scale):
    generator = torch.Generator().manual_seed(0)
    scores = scale * torch.randn(40, 1, generator=generator).round(decimals=1)  # with ties
    truth = (torch.randn(40, 1, generator=generator) > 0.5).float()
    yes, no = scores[truth == 1], scores[truth == 0]
    right = (yes.unsqueeze(1) > no).double() + 0.5 * (yes.unsqueeze(1) == no).double()
    assert float(auroc(scores, truth)) == pytest.approx(float(right.mean()), abs=1e-12)


def test_probabilities_so_small_that_floats_hardly_tell_them_apart_are_ranked():  # S85
    scores = torch.tensor([[1e-30], [2e-30], [3e-30], [1.0]], dtype=torch.float64)
    truth = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    assert float(auroc(scores, truth)) == 0.75


def test_an_area_needs_both_classes_and_leaves_out_what_is_unknown():
    scores = torch.tensor([[0.1, 0.1, 0.1], [0.2, 0.2, 0.2], [0.3, 0.3, 0.3]])
    nan = torch.nan
    truth = torch.tensor([[0.0, 1.0, nan], [nan, 1.0, nan], [1.0, nan, nan]])
    for figures in rank_figures(scores, truth):
        assert float(figures[0]) == 1
        assert figures[1:].isnan().all()
    assert rank_figures(scores, truth, torch.ones(2, 3).double()).auroc[:, 1:].isnan().all()


def test_scores_that_are_all_the_same_tell_nothing():
    found = rank_figures(torch.ones(8, 1), torch.tensor([[0.0], [1.0], [0.0], [0.0]] * 2))
    assert float(found.auroc) == 0.5
    assert float(found.average_precision) == 0.25
    assert float(found.sensitivity) == 0


@pytest.mark.parametrize("num", [10, 30, 110])
def test_the_chosen_specificity_is_reached_exactly_where_it_can_be(num):
    scores = torch.arange(2.0 * num).unsqueeze(1)
    truth = torch.ones(2 * num, 1)
    truth[: num - 1] = 0
    truth[-1] = 0  # one negative above all: with the first of ten wrong, nine tenths are right
    assert float(rank_figures(scores, truth, specificity=0.9).sensitivity) == 1
    assert float(rank_figures(scores, truth, specificity=1.0).sensitivity) == 0


@pytest.mark.parametrize("seed", SEEDS)
def test_a_curve_is_that_of_scikit_learn_and_has_the_area(seed):
    scores, truth = drawn(seed, columns=1)
    area = auroc(scores, truth)[0]
    curve = roc_curve(scores[:, 0], truth[:, 0])
    if area.isnan():
        assert curve.true_positive_rate.isnan().any() or curve.false_positive_rate.isnan().any()
        return
    known = (scores.isfinite() & truth.isfinite())[:, 0]
    false, true, thresholds = metrics.roc_curve(
        truth[known, 0], scores[known, 0], drop_intermediate=False
    )
    assert curve.true_positive_rate.numpy() == pytest.approx(true)
    assert curve.false_positive_rate.numpy() == pytest.approx(false)
    assert curve.thresholds.numpy() == pytest.approx(thresholds)
    drawn_area = torch.trapezoid(curve.true_positive_rate, curve.false_positive_rate)
    torch.testing.assert_close(drawn_area, area)


def test_a_curve_of_nothing_is_not_drawn():
    assert roc_curve(torch.ones(3), torch.full((3,), torch.nan)).true_positive_rate.isnan().all()
