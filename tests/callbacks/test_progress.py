"""A run in a log file says how far it is, how well it does and how fast."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from neuro.callbacks.progress import ProgressLines
from neuro.console import set_up_logging


class Noted(BoringModel):
    """Logs as our systems do."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)["loss"]
        self.log_dict({"train/loss": loss.detach() * 0 + 0.5, "train/loss_T1": torch.tensor(2.0)})
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", torch.tensor(0.25))


@pytest.fixture
def lines(tmp_path):
    """Return a function that trains and gives back the lines of the log file, without times."""
    logger = logging.getLogger("neuro")
    before = logger.handlers[:], logger.level, logger.propagate
    set_up_logging(tmp_path / "train.log")

    def lines(**settings):
        trainer = L.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            callbacks=[ProgressLines()],
            **{"limit_val_batches": 0, "max_epochs": -1, **settings},
        )
        trainer.fit(Noted())
        text = (tmp_path / "train.log").read_text()
        return [line.split(" INFO ")[1] for line in text.splitlines()]

    yield lines
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before


def test_every_so_many_steps_there_is_a_line_with_step_losses_and_speed(lines):
    found = lines(max_steps=9, log_every_n_steps=3)
    assert len(found) == 3
    for line, step in zip(found, (3, 6, 9), strict=True):
        pattern = rf"step {step} of 9  .*loss 0\.5  loss_T1 2  [\d.]+ steps/s  peak ([\d.]+) GiB"
        told = re.fullmatch(pattern, line)
        assert told, line
        held = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
        assert held * 0.8 < float(told[1]) <= held + 0.01


def test_steps_are_those_of_the_optimizer_and_none_is_told_twice(lines):
    found = lines(max_steps=4, log_every_n_steps=2, accumulate_grad_batches=4)
    assert [line.split("  ")[0] for line in found] == ["step 2 of 4", "step 4 of 4"]


def test_a_validation_has_a_line_of_its_own(lines):
    found = lines(
        max_steps=4, log_every_n_steps=0, limit_val_batches=2, val_check_interval=2,
        check_val_every_n_epoch=None,
    )  # fmt: skip
    assert found == ["step 2  validation  loss 0.25", "step 4  validation  loss 0.25"]


def test_without_an_interval_training_is_silent(lines):
    assert lines(max_steps=4, log_every_n_steps=0) == []
