"""Balanced accuracy is what scikit-learn finds, by a threshold and for many classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn import metrics

from neuro.metrics.decisions import balanced_accuracy, class_recalls, indicators, top_class
from neuro.metrics.ranking import auroc
from neuro.metrics.resamples import macro

SEEDS = range(15)


def drawn(seed, num_classes):
    rng = np.random.default_rng(seed)
    num = int(rng.integers(40, 80))
    probabilities = rng.dirichlet(np.ones(num_classes), num)
    truth = rng.integers(0, num_classes, num).astype(float)
    truth[rng.random(num) < 0.2] = np.nan
    return torch.tensor(probabilities), torch.tensor(truth).unsqueeze(1)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_classes_are_balanced_as_by_scikit_learn(seed):
    probabilities, truth = drawn(seed, 2)
    known = truth[:, 0].isfinite()
    found = balanced_accuracy(probabilities[:, 1:], truth)
    expected = metrics.balanced_accuracy_score(truth[known, 0], probabilities[known, 1] > 0.5)
    assert float(found) == pytest.approx(expected, abs=1e-6)
    lower = balanced_accuracy(probabilities[:, 1:], truth, threshold=0.2)
    expected = metrics.balanced_accuracy_score(truth[known, 0], probabilities[known, 1] > 0.2)
    assert float(lower) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_many_classes_are_judged_as_by_scikit_learn(seed):  # S84
    probabilities, truth = drawn(seed, 5)
    known = truth[:, 0].isfinite()
    right, own = truth[known, 0].numpy(), probabilities[known].numpy()
    found = macro(class_recalls(probabilities, truth))
    expected = metrics.balanced_accuracy_score(right, own.argmax(1))
    assert float(found) == pytest.approx(expected, abs=1e-6)
    area = macro(auroc(probabilities, indicators(truth, 5)))
    expected = metrics.roc_auc_score(right, own, multi_class="ovr", average="macro")
    assert float(area) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_resample_is_as_good_as_its_studies_one_by_one(seed):
    probabilities, truth = drawn(seed, 3)
    count = torch.from_numpy(np.random.default_rng(seed).integers(0, 3, len(truth)))
    rows = torch.arange(len(truth)).repeat_interleave(count)
    counts = count.double().unsqueeze(0)
    for measure, own in ((balanced_accuracy, indicators(truth, 3)), (class_recalls, truth)):
        found = measure(probabilities, own, counts)[0]
        expected = measure(probabilities[rows], own[rows])
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_one_class_alone_is_not_balanced():
    assert balanced_accuracy(torch.rand(5, 1), torch.ones(5, 1)).isnan().all()
    recalls = class_recalls(torch.eye(3), torch.tensor([[0.0], [1.0], [torch.nan]]))
    assert recalls[:2].tolist() == [1, 1]
    assert recalls[2].isnan()


def test_each_class_has_a_column_and_the_unknown_has_none():
    columns = indicators(torch.tensor([[0.0], [2.0], [torch.nan]]), 3)
    assert columns[:2].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert columns[2].isnan().all()


def test_the_most_probable_class_is_right_or_wrong_or_nobody_knows():
    probabilities = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
    said, right = top_class(probabilities, torch.tensor([[1.0], [2.0], [torch.nan]]))
    assert said.squeeze(1).tolist() == pytest.approx([0.7, 0.5, 0.6])
    assert right[:2].squeeze(1).tolist() == [1, 0]
    assert right[2].isnan()


def test_a_study_without_probabilities_counts_as_unknown():
    probabilities = torch.tensor([[torch.nan, torch.nan], [0.9, 0.1], [0.2, 0.8]])
    truth = torch.tensor([[1.0], [0.0], [1.0]])
    assert class_recalls(probabilities, truth).tolist() == [1, 1]
    assert top_class(probabilities, truth)[1][0].isnan()
