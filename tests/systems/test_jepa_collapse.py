"""A whole run says when its encoder collapses, and says nothing when it does not."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from small_jepa import config
from torch import Tensor

from neuro.callbacks.health import HEALTHY
from neuro.systems.jepa import Jepa
from neuro.train import train

RUN = (
    "trainer.max_steps=80",
    "trainer.val_check_interval=20",
    "trainer.log_every_n_steps=20",
    "optim.lr=5e-3",
    "data.label=sex",
)


class Constant(torch.nn.Module):
    """Says the same of every token."""

    def __init__(self, dim):
        super().__init__()
        self.register_buffer("feature", torch.linspace(-1, 1, dim))

    def forward(self, tokens: Tensor, *_) -> Tensor:
        return self.feature.expand(len(tokens), -1)


class ConstantTarget(Jepa):
    """Learns to guess what is the same for every token; otherwise as it should be."""

    def _sums(self, batch):
        teacher, self.teacher = self.teacher, Constant(self.student.dim)
        try:
            return super()._sums(batch)
        finally:
            self.teacher = teacher


def run(root, *overrides):
    """Run the command's function; return the rows of the health table, the metrics and the log."""
    train(config(root, *RUN, *overrides))
    folder = root / "run"
    with (folder / "health.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    metrics = json.loads((folder / "metrics.json").read_text())
    return rows, metrics, (folder / "train.log").read_text()


@pytest.mark.slow
def test_momentum_zero_and_a_constant_target_raise_the_alarm(tmp_path):  # S28
    rows, metrics, log = run(
        tmp_path, "system._target_=test_jepa_collapse.ConstantTarget", "system.momentum=[0.0,0.0]"
    )
    assert rows[0]["verdict"] == HEALTHY
    alarms = [row for row in rows if row["verdict"] != HEALTHY]
    assert alarms, rows
    assert "last healthy checkpoint: step" in alarms[0]["verdict"]
    assert alarms[0]["verdict"] in log
    assert rows[-1] in alarms
    assert metrics["health/collapsed"] == 1
    # The loss is what a run would have been chosen by, and it is the best there is.
    assert metrics["val/loss"] < 0.01


@pytest.mark.slow
def test_a_collapse_can_end_the_run(tmp_path):  # S28
    rows, _, log = run(
        tmp_path,
        "system._target_=test_jepa_collapse.ConstantTarget",
        "system.momentum=[0.0,0.0]",
        "callbacks.health.stop=true",
    )
    assert [row["verdict"] == HEALTHY for row in rows] == [True] * (len(rows) - 1) + [False]
    assert int(rows[-1]["step"]) < 80
    assert rows[-1]["verdict"] in log


@pytest.mark.slow
def test_a_healthy_run_raises_none(tmp_path):  # S28
    rows, metrics, log = run(tmp_path, "optim.lr=1e-3")
    assert [int(row["step"]) for row in rows] == [0, 20, 40, 60, 80]
    assert {row["verdict"] for row in rows} == {HEALTHY}
    assert metrics["health/collapsed"] == 0
    assert "collapse" not in log
    assert 0.15 < metrics["train/context_share"] < 0.35
    assert metrics["train/left_out"] == 0
