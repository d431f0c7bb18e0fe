"""Each task has its figures, for each finding or class, and with resamples for each of them."""

from __future__ import annotations

import pytest
import torch

from neuro.metrics.evaluate import evaluate
from neuro.metrics.resamples import draw_counts, macro

RANKED = {"auroc", "average_precision", "sensitivity"}
FIGURES = {
    "binary": RANKED | {"balanced_accuracy", "ece", "brier"},
    "multilabel": RANKED | {"balanced_accuracy", "ece", "brier"},
    "multiclass": RANKED | {"balanced_accuracy", "ece", "brier", "recall"},
    "regression": {"mae", "rmse", "r2", "pearson"},
}
WHOLE = {"balanced_accuracy", "ece"}  # of a multiclass label


def example(task, num=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    columns = {"binary": 1, "multilabel": 3, "multiclass": 4, "regression": 2}[task]
    outputs = torch.rand(num, columns, generator=generator)
    if task == "multiclass":
        outputs = outputs.softmax(dim=1)
        truth = torch.randint(4, (num, 1), generator=generator).float()
    elif task == "regression":
        truth = outputs + torch.rand(num, columns, generator=generator)
    else:
        truth = (torch.rand(num, columns, generator=generator) < outputs).float()
    truth[::7] = torch.nan
    return outputs, truth


@pytest.mark.parametrize("task", FIGURES)
def test_a_task_has_its_figures_in_a_column_for_each_output(task):
    outputs, truth = example(task)
    found = evaluate(task, outputs, truth)
    assert set(found) == FIGURES[task]
    for name, figures in found.items():
        whole = task == "multiclass" and name in WHOLE
        assert figures.shape == ((1,) if whole else (outputs.shape[1],))
        assert figures.isfinite().all()


@pytest.mark.parametrize("task", FIGURES)
def test_where_each_study_is_drawn_once_a_resample_is_the_whole(task):
    outputs, truth = example(task)
    found = evaluate(task, outputs, truth, torch.ones(2, 80).double())
    for name, figures in evaluate(task, outputs, truth).items():
        torch.testing.assert_close(found[name], figures.expand(2, -1))


@pytest.mark.parametrize("task", FIGURES)
def test_neither_the_order_of_studies_nor_unknown_ones_matter(task):
    outputs, truth = example(task)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    known = truth[order].isfinite().any(dim=1)
    same = evaluate(task, outputs[order][known], truth[order][known])
    for name, figures in evaluate(task, outputs, truth).items():
        torch.testing.assert_close(same[name], figures)


def test_the_balanced_accuracy_of_classes_is_the_mean_of_their_recalls():
    found = evaluate("multiclass", *example("multiclass"))
    torch.testing.assert_close(found["balanced_accuracy"][0], macro(found["recall"]))


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_a_finding_that_nobody_has_is_not_defined_and_the_others_are(task):
    outputs, truth = example(task)
    if task == "multilabel":
        truth[:, 2] = 0
    else:
        truth[truth == 2] = 1
    found = evaluate(task, outputs, truth, draw_counts([str(n) for n in range(80)], 20))
    assert found["auroc"][:, 2].isnan().all()
    assert macro(found["auroc"]).isfinite().all()
