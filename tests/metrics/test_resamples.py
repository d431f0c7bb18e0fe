"""Intervals hold what they promise, and know which studies are of one subject."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from work import num_calls

from neuro.metrics.evaluate import evaluate
from neuro.metrics.ranking import auroc
from neuro.metrics.resamples import draw_counts, interval, macro

ONES = [str(number) for number in range(40)]


def test_as_many_are_drawn_as_there_are():
    counts = draw_counts(ONES, num_resamples=50)
    assert counts.shape == (50, 40)
    assert (counts.sum(dim=1) == 40).all()
    assert (counts >= 0).all()
    # The share that is never drawn: (1 - 1/40)^40.
    assert float((counts == 0).double().mean()) == pytest.approx(0.363, abs=0.03)


def test_studies_of_one_subject_are_drawn_together():
    subjects = ["b", "a", "b", "c", "a", "b"]
    counts = draw_counts(subjects, num_resamples=50)
    assert torch.equal(counts[:, 0], counts[:, 2])
    assert torch.equal(counts[:, 0], counts[:, 5])
    assert torch.equal(counts[:, 1], counts[:, 4])
    assert (counts[:, [0, 1, 3]].sum(dim=1) == 3).all()


def test_the_same_seed_draws_the_same_and_another_something_else():
    state = torch.random.get_rng_state()
    assert torch.equal(draw_counts(ONES, 5), draw_counts(ONES, 5))
    assert not torch.equal(draw_counts(ONES, 5), draw_counts(ONES, 5, seed=1))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_interval_leaves_out_an_equal_tail_on_both_sides():
    figures = torch.arange(101.0).unsqueeze(1).repeat(1, 2)
    figures[::2, 1] = torch.nan
    low, high = interval(figures, level=0.9)
    assert low.tolist() == pytest.approx([5, 5.9])
    assert high.tolist() == pytest.approx([95, 94.1])
    low, high = interval(torch.full((5, 1), torch.nan))
    assert low.isnan().all()
    assert high.isnan().all()


def test_a_mean_is_over_what_is_defined():
    figures = torch.tensor([[0.5, torch.nan, 1.0], [torch.nan] * 3])
    assert float(macro(figures)[0]) == 0.75
    assert macro(figures)[1].isnan()


def trial(seed, pairs=False):
    """Scores with a known area: two normal distributions that lie one deviation apart."""
    rng = np.random.default_rng(seed)
    truth = np.arange(60) % 2
    scores = truth + rng.normal(size=60)
    if pairs:
        scores, truth = scores.repeat(4), truth.repeat(4)
    return torch.tensor(scores)[:, None], torch.tensor(truth).double()[:, None]


def test_nineteen_of_twenty_intervals_hold_the_truth():
    truth = 0.7602  # the normal distribution function at 1 / sqrt(2)
    counts = draw_counts([str(number) for number in range(60)], 300)
    held = 0
    for seed in range(200):
        low, high = interval(auroc(*trial(seed), counts))
        held += bool(low <= truth <= high)
    assert 0.90 <= held / 200 <= 0.99


def test_four_studies_of_each_subject_do_not_narrow_the_interval():
    subjects = [str(number) for number in range(60)]
    own = interval(auroc(*trial(1), draw_counts(subjects)))
    four = [name for name in subjects for _ in range(4)]
    together = interval(auroc(*trial(1, pairs=True), draw_counts(four)))
    apart = interval(
        auroc(*trial(1, pairs=True), draw_counts([str(number) for number in range(240)]))
    )
    torch.testing.assert_close(together, own)
    assert float(apart[1] - apart[0]) < 0.7 * float(own[1] - own[0])


def test_a_thousand_resamples_are_not_taken_one_by_one():
    generator = torch.Generator().manual_seed(0)
    said = torch.rand(100, 8, generator=generator)
    truth = (torch.rand(100, 8, generator=generator) < said).float()
    studies = [str(number) for number in range(100)]
    counts = [draw_counts(studies, num_resamples) for num_resamples in (10, 1000)]
    evaluate("multilabel", said, truth, counts[0])  # imports
    few, many = (num_calls(evaluate, "multilabel", said, truth, own) for own in counts)
    assert many < 2 * few
