"""Curves that go on where a run goes on: what it has not been to yet is taken back."""

from __future__ import annotations

import csv
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from neuro.run_folder import beside


class Curves(CSVLogger):
    """``metrics.csv`` of the run folder, a row each time something is logged.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: Path | str) -> None:
        # Each row is written when it comes: a crash loses none.
        super().__init__(save_dir=str(run_dir), name="", version="", flush_logs_every_n_steps=1)
        self._experiment = _Rows(Path(run_dir) / _Rows.NAME_METRICS_FILE)  # pyright: ignore[reportAttributeAccessIssue]

    @rank_zero_only
    def go_on(self, step: int, again: Collection[str] = ()) -> None:
        """Keep the rows of the first ``step`` optimizer steps.

        Args:
            step: How many.
            again: The figures of the last of them that will be logged again.
        """
        self._experiment.go_on(step, again)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]


class _Rows(_ExperimentWriter):
    """Lightning's writer, of a file that may be there already and is never half-written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = []
        self.metrics_keys = []
        self.metrics_file_path = str(path)

    def go_on(self, step: int, again: Collection[str]) -> None:
        if not self.path.is_file():
            return
        rows = [
            row
            for row in self._read()
            if _number(row["step"]) < step
            and not (
                _number(row["step"]) == step - 1
                and {key for key, one in row.items() if one} == {*again, "step"}
            )
        ]
        self.metrics_keys = sorted({key for row in rows for key, one in row.items() if one})
        self._write(rows)

    @override
    def save(self) -> None:
        if not self.metrics:
            return
        if self._record_new_keys() and self.path.is_file():
            self._write(self._read())  # under a wider header
        is_new = not self.path.is_file()
        with self.path.open("w" if is_new else "a", newline="") as file:
            writer = csv.DictWriter(file, self.metrics_keys)
            if is_new:
                writer.writeheader()
            writer.writerows(self.metrics)
        self.metrics = []

    def _read(self) -> list[dict[str, Any]]:
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        # A row that a crash cut off has fewer cells.
        return [
            row for row in rows if None not in row.values() and None not in row and "step" in row
        ]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with beside(self.path) as part, part.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.metrics_keys, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)


class Board(TensorBoardLogger):
    """TensorBoard in the run folder.

    Args:
        run_dir: The run folder.
    """

    def __init__(self, run_dir: Path | str) -> None:
        super().__init__(save_dir=str(run_dir), name="tensorboard", version="")

    def go_on(self, step: int, again: Collection[str] = ()) -> None:
        """Let TensorBoard drop what was logged after the first ``step`` optimizer steps.

        What is logged again lies on what was.
        """
        self._kwargs["purge_step"] = step


def wandb_run(run_dir: Path | str, **kwargs: Any) -> WandbLogger:
    """Return a logger to Weights & Biases that goes on with the run of this folder.

    Args:
        run_dir: The run folder; it keeps the run's id, as ``wandb_id``.
        kwargs: What ``WandbLogger`` takes.
    """
    path = Path(run_dir) / "wandb_id"
    if getattr(rank_zero_only, "rank", 0) == 0 and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(secrets.token_hex(4))
    # The other ranks log nothing, and may be here first.
    run = path.read_text().strip() if path.is_file() else None
    return WandbLogger(save_dir=str(run_dir), id=run, resume="allow", **kwargs)


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("inf")
