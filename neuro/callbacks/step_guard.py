"""Stops a run at a step that went wrong, and keeps what shows that very step again."""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from neuro.arguments import program, split_places, written
from neuro.callbacks.batch_content import BatchContent
from neuro.callbacks.gradient_norms import Parts, norms
from neuro.errors import FailedRun, InputError
from neuro.gradients import total_norm
from neuro.redaction import redacted
from neuro.resume import BAD_STEP

RECORD = "bad_step.json"
LEAST = 20  # steps before any can be called a spike


class Course:
    """What a number was, step by step, and what is far above it.

    Args:
        factor: See ``StepGuard``.
        window: How many of the last steps count.
    """

    def __init__(self, factor: float | int | None, window: int) -> None:
        self.factor = factor
        self.first: list[float] = []
        self.last: deque[float] = deque(maxlen=window)

    def add(self, value: float) -> None:
        """Go on by a step."""
        if len(self.first) < LEAST:
            self.first.append(value)
        self.last.append(value)

    def times(self, value: float) -> float | None:
        """Return which multiple of the usual a spike is; None for what is no spike."""
        if self.factor is None or len(self.first) < LEAST:
            return None
        usual = max(statistics.median(self.first), statistics.median(self.last))
        return value / usual if value > self.factor * usual > 0 else None


class StepGuard(Callback):
    """Looks at the loss and at the gradients of each step before the weights move.

    Where one of them is not finite, or far above what it was and began as, the run stops. The
    weights are still those before the step, so ``checkpoints/bad_step.ckpt`` shows the same batches
    next, the first of them where a step has several, and gives the same loss. ``bad_step.json``
    says which step it was, the studies that each rank was shown, the rates and the gradient norm of
    each part.

    All ranks come to the same verdict, by one small exchange. A gradient that overflows in half
    precision is left to the scaler.

    The content of a batch is also noted on the error where memory ends; see ``neuro.command``.

    Args:
        run_dir: The run folder.
        loss_factor: Above 1. A loss is a spike above this multiple of what is usual: the median of
            the last steps, or of the first 20 if that is more. A loss that has come near zero
            jumps to a hundred times its median in healthy runs, not above where it began. None
            stops at no such loss.
        norm_factor: Likewise for the gradient norm, which varies more.
        window: How many steps the last steps are; at least 20.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        run_dir: Path | str,
        loss_factor: float | int | None = 10.0,
        norm_factor: float | int | None = 100.0,
        window: int = 100,
    ) -> None:
        for name, value in (("loss_factor", loss_factor), ("norm_factor", norm_factor)):
            if value is not None and not value > 1:
                raise InputError(
                    f"callbacks.guard.{name} must be above 1; got {value}. null stops at no spike."
                )
        if window < LEAST:
            raise InputError(f"callbacks.guard.window must be at least {LEAST}; got {window}.")
        self.run_dir = Path(run_dir)
        # Of steps: the loss of all ranks and batches, and the norm of all gradients, not clipped.
        self.courses = {
            "loss": Course(loss_factor, window),
            "gradient norm": Course(norm_factor, window),
        }
        # Of the batches of this step.
        self._shown: list[BatchContent] = []
        self._parts: list[Tensor] = []  # of its loss; they add up to it
        self._is_writing = False
        self._seed = 0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {name: [one.first, list(one.last)] for name, one in self.courses.items()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, (first, last) in state_dict.items():
            self.courses[name].first = list(first)
            self.courses[name].last.extend(last)

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seed = torch.initial_seed()

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self._shown, self._parts = [], []
        self._shown.append(BatchContent.of("training", batch_idx, batch))

    @override
    def on_validation_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._shown = [BatchContent.of("validation", batch_idx, batch)]

    @override
    def on_test_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._shown = [BatchContent.of("test", batch_idx, batch)]

    @override
    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        scaler = _scaler(trainer)
        self._parts.append(loss.detach() / (scaler.get_scale() if scaler is not None else 1.0))

    @override
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        loss, norm = self._measured(trainer, optimizer)
        if (wrong := self._wrong(loss, norm, _scaler(trainer) is not None)) is None:
            self.courses["loss"].add(loss)
            self.courses["gradient norm"].add(norm)
            return
        record = {
            "wrong": wrong,
            "step": trainer.global_step,  # steps done before it
            "epoch": trainer.current_epoch,
            "seed": self._seed,
            "loss": loss,
            "gradient_norm": norm,
            "learning_rates": [group["lr"] for group in optimizer.param_groups],
            "gradient_norms": _by_part(pl_module),
            "ranks": self._shown_to_all(trainer),
        }
        self._write(trainer, record)
        raise FailedRun(_told(record, self.run_dir))

    @override
    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._is_writing:
            _go_back(trainer, checkpoint, len(self._shown))

    @override
    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if self._shown:
            step = f"rank {trainer.global_rank}, step {trainer.global_step}: "
            # What add_note does, which Python 3.10 does not have.
            notes = [*getattr(exception, "__notes__", []), step + str(self._shown[-1])]
            exception.__notes__ = notes  # pyright: ignore[reportAttributeAccessIssue]

    def _measured(self, trainer: L.Trainer, optimizer: Optimizer) -> tuple[float, float]:
        """Return the loss of this step and the norm of its gradients: one wait for the device."""
        gradients = [
            one.grad
            for group in optimizer.param_groups
            for one in group["params"]
            if one.grad is not None
        ]
        loss = torch.stack(self._parts).sum().float()
        values = torch.stack([loss, total_norm(gradients).to(loss)])
        if trainer.world_size > 1:
            every = values.new_empty(trainer.world_size * 2)
            torch.distributed.all_gather_into_tensor(every, values)
            every = every.view(-1, 2)
            values = torch.stack([every[:, 0].mean(), every[:, 1].max()])
        loss_value, norm = values.tolist()
        return loss_value, norm

    def _wrong(self, loss: float, norm: float, is_scaled: bool) -> str | None:
        """Return in words what is wrong with a step; None if nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            # The scaler leaves such a step out, and scales less from there on.
            return None if is_scaled else f"the gradient norm is {norm}"
        values = {"loss": loss, "gradient norm": norm}
        for name, course in self.courses.items():
            if (times := course.times(values[name])) is not None:
                return f"the {name} is {values[name]:.4g}, {times:.3g} times what is usual"
        return None

    def _shown_to_all(self, trainer: L.Trainer) -> list[dict[str, Any]]:
        """Return what each rank was shown in this step, and what it made of it."""
        losses = [float(one) * trainer.accumulate_grad_batches for one in self._parts]
        shown = [
            {**asdict(one), "loss": loss} for one, loss in zip(self._shown, losses, strict=True)
        ]
        own = {"rank": trainer.global_rank, "batches": shown}
        if trainer.world_size == 1:
            return [own]
        every: list[dict[str, Any]] = [{}] * trainer.world_size
        torch.distributed.all_gather_object(every, own)
        return every

    def _write(self, trainer: L.Trainer, record: dict[str, Any]) -> None:
        checkpoint = self.run_dir / "checkpoints" / BAD_STEP
        self._is_writing = True
        trainer.save_checkpoint(checkpoint)
        self._is_writing = False
        record["replay"] = replay_line(checkpoint, f"{_name(self.run_dir)}-step{record['step']}")
        if trainer.is_global_zero:
            text = json.dumps(_strict(redacted(record)), indent=2)
            (self.run_dir / RECORD).write_text(text + "\n", encoding="utf-8")


def replay_line(checkpoint: Path, name: str) -> str:
    """Return the command of this run with another start and another name."""
    places, words = split_places(sys.argv[1:])
    if HydraConfig.initialized():
        given = HydraConfig.get().overrides
        words = [*(one for one in given.hydra if "hydra.searchpath=" in one), *given.task]
    kept = [one for one in words if one.lstrip("+").partition("=")[0] not in CHANGED]
    changed = [f"ckpt_path={written(str(checkpoint))}", f"run.name={name}"]
    return shlex.join([Path(sys.executable).name, *program(), *places, *kept, *changed])


def _name(run_dir: Path) -> str:
    """Return a plain name for a run; jobs of any sweep are called 0, 1, ... in its folder."""
    parts = [run_dir.parent.name] * run_dir.name.isdecimal() + [run_dir.name]
    return re.sub(r"[^A-Za-z0-9._]+", "-", "-".join(parts)).strip("._-") or "run"


CHANGED = ("ckpt_path", "run.name", "init_from", "paths.run_dir")


def _told(record: dict[str, Any], run_dir: Path) -> str:
    return (
        f"step {record['step']}: {record['wrong']}; the weights have not moved. {run_dir / RECORD} "
        f"names the studies and has the gradient norms. This shows the same step again: "
        f"{record['replay']}"
    )


def _go_back(trainer: L.Trainer, checkpoint: dict[str, Any], num_batches: int) -> None:
    """Write the place in the run so that the first batch of this step is the next one.

    Args:
        trainer: In the last batch of the step.
        checkpoint: Its state is changed in place.
        num_batches: Of this step.
    """
    loop = checkpoint["loops"]["fit_loop"]
    progress = loop["epoch_loop.batch_progress"]
    for part in ("total", "current"):
        done = progress[part]["completed"] - (num_batches - 1)
        progress[part] = dict.fromkeys(progress[part], done)
    progress["is_last_batch"] = False
    for state in loop["state_dict"].get("combined_loader", ()):
        state["num_done"] -= num_batches
    done = progress["total" if trainer.check_val_every_n_epoch is None else "current"]["ready"]
    every = trainer.val_check_batch
    if trainer.enable_validation and isinstance(every, int) and done % every == 0:
        # A loop that goes on from the end of a validation counts the step before it, once more.
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def _by_part(module: L.LightningModule) -> dict[str, float]:
    found = norms(module.gradient_parts()) if isinstance(module, Parts) else {}
    return {name.removeprefix("grad_norm/"): one for name, one in found.items()}


def _scaler(trainer: L.Trainer) -> Any:
    """Return what scales the loss in half precision, or None."""
    return getattr(trainer.precision_plugin, "scaler", None)


def _strict(value: Any) -> Any:
    """Return a value with words for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_strict(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
