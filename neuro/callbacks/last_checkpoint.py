"""A run that can be stopped anywhere: its last state, saved in time and when a signal asks."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from typing_extensions import override

from neuro.errors import InputError
from neuro.loggers import Board, Curves
from neuro.resume import BEST, LAST, PREVIOUS, move_best
from neuro.run_folder import METRICS
from neuro.stopping import SIGNALS, STOP_SIGNALS

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt``, and the one before as ``previous.ckpt``.

    It is saved after each validation, every so many minutes, at the end, and at the end of the
    step in which a signal asks the run to stop; then the run stops. What is saved is always a
    state after a whole optimizer step, so that a run that goes on from it equals one that was
    never stopped, bit for bit on a CPU. All ranks agree on when.

    Args:
        run_dir: The run folder.
        every_minutes: Of training, from one saving to the next; a crash loses no more.

    Raises:
        InputError: ``every_minutes`` is not above 0.
    """

    def __init__(self, run_dir: Path | str, every_minutes: float | int = 10.0) -> None:
        if not every_minutes > 0:
            raise InputError(f"callbacks.last.every_minutes must be above 0; got {every_minutes}.")
        self.folder = Path(run_dir) / "checkpoints"
        self.every_minutes = every_minutes
        self.figures: dict[str, float] = {}  # the last of each, when it was saved
        self._row: dict[str, float] = {}  # what is logged only after it was saved
        self._saved_step: int | None = None
        self._is_last_whole = False  # it was written, or read, by this process
        self._went_back = False  # to the best one
        self._saved_at = 0.0
        self._is_validating = False
        self._deferring = ExitStack()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"figures": self.figures, "row": self._row, "went_back": self._went_back}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.figures, self._row = dict(state_dict["figures"]), dict(state_dict["row"])
        self._went_back = bool(state_dict["went_back"])

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step = trainer.global_step or None  # there is nothing to keep of step 0
        self._saved_at = time.monotonic()
        begun_from = Path(trainer.ckpt_path or "").absolute()
        self._is_last_whole = begun_from == (self.folder / LAST).absolute()
        self._went_back |= begun_from == (self.folder / BEST).absolute()
        # What was logged last: it is read, as before, by those who watch.
        known = trainer._logger_connector._callback_metrics
        for name, value in self.figures.items():
            known.setdefault(name, torch.tensor(value))
        _take_back(trainer, self._row)
        for logger in trainer.loggers if self._row else ():
            logger.log_metrics(self._row, step=trainer.global_step - 1)
        self._row = {}
        STOP_SIGNALS.take()
        self._deferring.enter_context(STOP_SIGNALS.deferred())

    @override
    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _take_back(trainer, {})
        STOP_SIGNALS.take()

    @override
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # The state before a validation that is due now is not kept, nor the one before the end.
        if _is_within_step(trainer) or _validates_now(trainer) or trainer.fit_loop.done:
            return
        asked, is_due = self._agreed(trainer)
        if asked or is_due:
            self._row = _row(trainer)
            self._save(trainer)
            self._row = {}
        if asked:
            STOP_SIGNALS.stop(asked)

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        # The last validation is finished: Lightning would not come back to it.
        if not _is_fitting(trainer) or _is_within_step(trainer) or trainer.fit_loop.done:
            return
        if asked := self._agreed(trainer)[0]:
            self._is_validating = True  # the whole validation comes again
            self._save(trainer)
            STOP_SIGNALS.stop(asked)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not _is_fitting(trainer) or _is_within_step(trainer):
            return
        total = trainer.fit_loop.epoch_loop.val_loop.batch_progress.total
        # One more, if it has come again.
        total.ready = total.started = total.completed  # pyright: ignore[reportAttributeAccessIssue]
        self._save(trainer)
        if asked := self._agreed(trainer)[0]:
            STOP_SIGNALS.stop(asked)

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._is_validating:
            # As if its first batch had just begun: then Lightning runs it from the beginning.
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            before = progress["total"]["ready"] - progress["current"]["ready"]
            for part, done in (("total", before), ("current", 0)):
                begun = {"ready": done + 1, "started": done + 1}
                progress[part] |= begun | {"processed": done, "completed": done}
            progress["is_last_batch"] = False

    @override
    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        move_best(checkpoint, self.folder.parent)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._deferring.close()
        if self._saved_step != trainer.global_step:
            log.info("step %d is saved as last; it was not validated", trainer.global_step)
            self._save(trainer)
        if asked := self._agreed(trainer)[0]:
            STOP_SIGNALS.stop(asked)

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self._deferring.close()

    def _agreed(self, trainer: L.Trainer) -> tuple[signal.Signals | None, bool]:
        """Return the signal that some rank got, and whether it is time to save, for all alike."""
        is_due = time.monotonic() - self._saved_at > 60 * self.every_minutes
        place = SIGNALS.index(STOP_SIGNALS.asked) + 1 if STOP_SIGNALS.asked else 0
        if trainer.world_size > 1:
            flags = torch.tensor([place, int(is_due)], device=trainer.strategy.root_device)
            torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
            place, is_due = int(flags[0]), bool(flags[1])
        return (SIGNALS[place - 1] if place else None), is_due

    def _save(self, trainer: L.Trainer) -> None:
        self.figures |= {name: float(one) for name, one in trainer.callback_metrics.items()}
        for logger in trainer.loggers:  # what was logged before, else a crash would lose it
            logger.save()
        last = self.folder / LAST
        if trainer.is_global_zero:
            (self.folder.parent / METRICS).unlink(missing_ok=True)
            if last.is_file() and self._is_last_whole:  # else the one before is better
                os.replace(last, self.folder / PREVIOUS)
        trainer.save_checkpoint(last)
        self._is_last_whole = True
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()


def _take_back(trainer: L.Trainer, row: Mapping[str, float]) -> None:
    """Drop what was logged of steps that come again, and a row that is logged again."""
    for logger in trainer.loggers:
        if isinstance(logger, Board | Curves):
            logger.go_on(trainer.global_step, row)


def _row(trainer: L.Trainer) -> dict[str, float]:
    """Return what Lightning will log of this step, which it does after the hook of its end."""
    connector = trainer._logger_connector
    if not connector.should_update_logs:
        return {}
    own = {name: float(value) for name, value in connector.metrics["log"].items()}
    return {**own, "epoch": trainer.current_epoch} if own else {}


def _validates_now(trainer: L.Trainer) -> bool:
    """Return whether a validation follows this batch."""
    fetcher = trainer.fit_loop._data_fetcher
    return fetcher is not None and trainer.fit_loop.epoch_loop._should_check_val_fx(fetcher)


def _is_within_step(trainer: L.Trainer) -> bool:
    """Return whether gradients are being accumulated, which no checkpoint holds."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def _is_fitting(trainer: L.Trainer) -> bool:
    return trainer.state.fn == "fit" and not trainer.sanity_checking
