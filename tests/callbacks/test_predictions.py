"""After a test there is a row for each study, and one for each figure."""

from __future__ import annotations

import csv

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from neuro.callbacks.predictions import PredictionFiles, write_figures
from neuro.data.predictions import Predictions

NAN = float("nan")
FIGURES = [("macro", "auroc", 0.75, 0.5, 1.0), ("bleed, old", "auroc", NAN, NAN, NAN)]


def said():
    return Predictions(
        studies=("001",),
        subjects=("1",),
        outputs=torch.tensor([[0.25, 0.5]]),
        truth=torch.tensor([[1.0, NAN]]),
        names=("bleed, old", "fracture"),
        task="multilabel",
        classes=(),
    )


class Module(L.LightningModule):
    """Tells nothing."""

    def test_step(self, batch, batch_idx):
        pass


class Told(Module):
    """Says something of one study, when it is tested."""

    predictions, figures = None, ()

    def on_test_epoch_end(self):
        self.predictions, self.figures = said(), FIGURES


class Silent(Told):
    """Could, and does not."""

    def on_test_epoch_end(self):
        pass


class Second(L.Trainer):
    """Of two processes."""

    is_global_zero = False


def leaves(folder, module, trainer_kind=L.Trainer):
    """Test for one batch, and return whether anything was written."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    callbacks = [PredictionFiles(folder)]
    trainer = trainer_kind(accelerator="cpu", default_root_dir=folder, callbacks=callbacks, **quiet)
    trainer.test(module, DataLoader([0]), verbose=False)
    return (folder / "predictions").exists()


def cells(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_both_tables_are_written_by_one_process(tmp_path):  # S90
    assert not leaves(tmp_path, Told(), Second)
    assert leaves(tmp_path, Told())
    assert cells(tmp_path / "predictions/test.csv")[1] == ["001", "1", "present", "", "0.25", "0.5"]
    header, first, second = cells(tmp_path / "predictions/figures.csv")
    assert header == ["finding", "figure", "value", "low", "high"]
    assert first == ["macro", "auroc", "0.75", "0.5", "1"]
    assert second == ["bleed, old", "auroc", "", "", ""]  # not defined, not 0


@pytest.mark.parametrize("kind", [Module, Silent])
def test_a_system_that_told_nothing_leaves_nothing(tmp_path, kind):
    assert not leaves(tmp_path, kind())


def test_figures_of_no_finding_are_a_header(tmp_path):
    write_figures(tmp_path / "deep" / "figures.csv", [])
    assert len(cells(tmp_path / "deep" / "figures.csv")) == 1
