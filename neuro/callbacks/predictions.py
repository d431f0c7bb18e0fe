"""What was said of each test study, and how good that is, as tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from neuro.data.predictions import Predictions


@runtime_checkable
class Telling(Protocol):
    """A system that tells something of each study."""

    predictions: Predictions | None
    figures: Sequence[tuple[str, str, float, float, float]]


class PredictionFiles(Callback):
    """Writes ``predictions/test.csv`` and ``predictions/figures.csv`` after the test.

    The first has a row per study, the second one per finding and figure with its 95 % interval.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.folder = Path(run_dir) / "predictions"

    @override
    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or not isinstance(pl_module, Telling):
            return
        if pl_module.predictions is None:
            return
        pl_module.predictions.write(self.folder / "test.csv")
        write_figures(self.folder / "figures.csv", pl_module.figures)


def write_figures(path: Path, figures: Sequence[tuple[str, str, float, float, float]]) -> None:
    """Write (finding, figure, value, low, high) as a table; what is not defined stays empty."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["finding", "figure", "value", "low", "high"])
        for finding, name, *numbers in figures:
            told = ["" if math.isnan(one) else f"{one:.6g}" for one in numbers]
            writer.writerow([finding, name, *told])
