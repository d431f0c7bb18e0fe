"""How training goes, as lines.

On a terminal Lightning's bar takes the screen, and the lines go to the log file.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from neuro.console import on_terminal

log = logging.getLogger(__name__)


class ProgressLines(Callback):
    """Writes a line every ``trainer.log_every_n_steps`` steps and after each validation.

    Speed and the most memory are in them only: a curve of them would not be the same twice.
    """

    def __init__(self) -> None:
        self._since = (0, 0.0)

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = (trainer.global_step, time.monotonic())

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step, every = trainer.global_step, trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if step == self._since[0] or not every or step % every:
            return
        steps, seconds = step - self._since[0], time.monotonic() - self._since[1]
        self._since = (step, time.monotonic())
        self._write(
            f"step {step} of {int(trainer.estimated_stepping_batches)}  "
            f"{_values(trainer, 'train')}  {steps / max(seconds, 1e-9):.1f} steps/s  "
            f"peak {_peak_gib(pl_module.device):.2f} GiB"
        )

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._write(f"step {trainer.global_step}  validation  {_values(trainer, 'val')}")

    def _write(self, line: str) -> None:
        """Write to the log file, and to the screen unless a bar is there; only the first rank."""
        if not log.isEnabledFor(logging.INFO):
            return
        record = log.makeRecord(log.name, logging.INFO, __file__, 0, line, (), None)
        for handler in logging.getLogger("neuro").handlers:
            if isinstance(handler, logging.FileHandler) or not on_terminal():
                handler.handle(record)


def _peak_gib(device: torch.device) -> float:
    """Return the most memory that this process has held so far, of its GPU if it has one."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _values(trainer: L.Trainer, stage: str) -> str:
    """Return the logged figures of a stage, without its name and without those of tasks."""
    metrics = {
        name.removeprefix(f"{stage}/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(f"{stage}/") and "loss_task_" not in name
    }
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
