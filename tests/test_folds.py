"""The folds of a cross-validation as one table: every study once."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

from neuro.data.predictions import Predictions
from neuro.errors import InputError
from neuro.folds import COLUMNS, merge
from neuro.metrics.evaluate import evaluate
from neuro.metrics.resamples import draw_counts, interval, macro

NUM_OUTPUTS = {"binary": 1, "multilabel": 3, "multiclass": 3, "regression": 2}
CLASSES = {"binary": ("no", "yes"), "multiclass": ("a", "b,c", "d")}


def folds_of(task, num_folds=3, num_studies=20):
    """Return what the runs of a cross-validation say; two studies of each subject."""
    generator = torch.Generator().manual_seed(1)
    columns = NUM_OUTPUTS[task]
    findings = 1 if task in ("binary", "multiclass") else columns
    folds = []
    for fold in range(num_folds):
        truth = torch.randint(
            2 if task != "multiclass" else 3, (num_studies, findings), generator=generator
        ).float()
        if task == "regression":
            truth = truth + torch.randn(truth.shape, generator=generator)
        outputs = torch.rand(num_studies, columns, generator=generator)
        outputs += 0.3 * (truth if findings == columns else 0)
        if task == "multiclass":
            outputs = outputs.softmax(dim=1)
        elif task != "regression":
            outputs = outputs.clamp(max=1.3) / 1.3
        truth[torch.rand(truth.shape, generator=generator) < 0.1] = torch.nan
        folds.append(
            Predictions(
                studies=tuple(f"{fold}{place:03}" for place in range(num_studies)),
                subjects=tuple(f"{fold}-{place // 2}" for place in range(num_studies)),
                outputs=outputs,
                truth=truth,
                names=tuple(f"finding, {place}" for place in range(findings)),
                task=task,
                classes=CLASSES.get(task, ()),
            )
        )
    return folds


def written(root, folds):
    for number, fold in enumerate(folds):
        fold.write(root / str(number) / "predictions/test.csv")
    return root


def joined(folds):
    first = folds[0]
    return replace(
        first,
        studies=sum((fold.studies for fold in folds), ()),
        subjects=sum((fold.subjects for fold in folds), ()),
        outputs=torch.cat([fold.outputs for fold in folds]),
        truth=torch.cat([fold.truth for fold in folds]),
    )


@pytest.mark.parametrize("task", NUM_OUTPUTS)
def test_figures_are_of_all_studies_at_once_and_intervals_of_their_subjects(task, tmp_path):
    folds = folds_of(task)
    rows = merge(written(tmp_path, folds), specificity=0.8, num_resamples=50)
    whole = joined(folds)
    counts = draw_counts(whole.subjects, 50)
    values = evaluate(task, whole.outputs, whole.truth, None, 0.8)
    drawn = evaluate(task, whole.outputs, whole.truth, counts, 0.8)
    own = [evaluate(task, fold.outputs, fold.truth, None, 0.8) for fold in folds]
    table = {(row[0], row[1]): [float(cell or "nan") for cell in row[2:]] for row in rows}
    expected = {}
    for name, columns in values.items():
        each = torch.stack([macro(fold[name]) for fold in own])
        low, high = interval(macro(drawn[name]).unsqueeze(1))
        expected["macro", name] = [macro(columns), low[0], high[0], each.mean(), each.std(), *each]
        if len(columns) > 1:
            low, high = interval(drawn[name])
            for place, column in enumerate(whole.columns):
                each = torch.stack([fold[name][place] for fold in own])
                told = [columns[place], low[place], high[place], each.mean(), each.std(), *each]
                expected[column, name] = told
    assert table.keys() == expected.keys()
    for key, numbers in expected.items():
        np.testing.assert_allclose(table[key], [float(one) for one in numbers], atol=6e-5)
    with (tmp_path / "folds.csv").open(newline="", encoding="utf-8") as file:
        header, *body = csv.reader(file)
    assert header == [*COLUMNS, "fold 0", "fold 1", "fold 2"]
    assert body == rows


def test_a_fold_in_which_a_figure_is_not_defined_counts_in_no_mean(tmp_path):
    folds = folds_of("binary")
    folds[1] = replace(folds[1], truth=torch.zeros_like(folds[1].truth))
    rows = merge(written(tmp_path, folds), specificity=0.9, num_resamples=10)
    (auroc,) = (row for row in rows if row[1] == "auroc")
    _, _, _, _, _, mean, _, first, second, third = auroc
    assert second == ""
    assert float(mean) == pytest.approx((float(first) + float(third)) / 2, abs=1e-4)


def test_a_study_in_two_folds_is_refused(tmp_path):
    folds = folds_of("binary")
    folds[2] = replace(folds[2], studies=(folds[0].studies[3], *folds[2].studies[1:]))
    with pytest.raises(InputError, match=r"study '0003' was tested in two runs.*data\.fold"):
        merge(written(tmp_path, folds), specificity=0.9, num_resamples=10)


@pytest.mark.parametrize(
    "change", [{"names": ("other",)}, {"classes": ("yes", "no")}, {"task": "regression"}]
)
def test_runs_of_other_labels_are_not_merged(tmp_path, change):
    folds = folds_of("binary", num_folds=2)
    folds[1] = replace(folds[1], **change)
    with pytest.raises(InputError, match=r"Merge runs with the same labels"):
        merge(written(tmp_path, folds), specificity=0.9, num_resamples=10)


def test_a_folder_without_tested_runs_is_told(tmp_path):
    with pytest.raises(InputError, match="holds no run that was tested"):
        merge(tmp_path, specificity=0.9, num_resamples=10)


def test_a_fold_that_was_not_tested_is_named(tmp_path):
    root = written(tmp_path, folds_of("binary"))
    (root / "3").mkdir()
    (root / "3/config.yaml").write_text("data: {}\n")
    with pytest.raises(InputError, match=r"runs 3 of .* were not tested"):
        merge(root, specificity=0.9, num_resamples=5)
