"""``system=jepa``: a 3-D encoder that learns from scans alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from typing_extensions import override

from neuro.data.batch import MaskedBatch, MaskView
from neuro.data.datamodule import StudyDataModule
from neuro.errors import InputError
from neuro.models.normalize import normalize_volumes
from neuro.models.predictor import Predictor
from neuro.models.vit import VisionTransformer
from neuro.models.weights import load_weights
from neuro.optim.ema import ema_update
from neuro.optim.groups import set_weight_decay
from neuro.optim.schedules import cosine_ramp, linear_ramp
from neuro.systems.base import (
    OptimizerFactory,
    ScheduleFactory,
    System,
    contract_of,
    mean_over_ranks,
)

REDUCTIONS = ("token", "volume")


class Jepa(System[MaskedBatch]):
    """Joint-embedding prediction (I-JEPA, Assran et al., 2023, arXiv:2301.08243) on volumes.

    A student sees a quarter of the tokens of a volume; a predictor guesses, from its features, what
    a teacher made of the others. The teacher sees all of them, and is a moving average of the
    student.

    Args:
        encoder: The student; the teacher begins as a copy of it.
        predictor: Takes ``encoder_dim`` and gives what guesses the teacher's features.
        momentum: Of the teacher, at the first and at the last step; it rises evenly.
        stretch: Where the rise of the momentum ends, as a multiple of the run.
        reduction: What the loss is the mean of: ``token``, so that large volumes weigh more, or
            ``volume``.
        final_weight_decay: Where half a cosine takes the decay; None leaves it.
        optimizer: See ``System``.
        schedule: See ``System``.
        weight_decay: See ``System``.

    Raises:
        InputError: An argument is out of range.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        predictor: Callable[..., Predictor],
        *,
        momentum: Sequence[float],
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        weight_decay: float,
        stretch: float = 1.0,
        reduction: str = "token",
        final_weight_decay: float | None = None,
    ) -> None:
        super().__init__(optimizer, schedule, weight_decay)
        if reduction not in REDUCTIONS:
            raise InputError(
                f"system.reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}."
            )
        if len(momentum) != 2 or not all(0 <= one <= 1 for one in momentum):
            raise InputError(
                f"system.momentum takes two numbers in [0, 1], at the first and at the last step; "
                f"got {list(momentum)}."
            )
        self.student = encoder
        self.teacher = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.predictor = predictor(encoder_dim=encoder.dim)
        self.momentum = (float(momentum[0]), float(momentum[1]))
        self.stretch = stretch
        self.reduction = reduction
        self.final_weight_decay = final_weight_decay
        # Of the validation: summed loss and what it was summed over.
        self.register_buffer("validation_sums", torch.zeros(2), persistent=False)
        self.validation_sums: Tensor

    @override
    def train(self, mode: bool = True) -> Jepa:
        """Set the mode; the teacher stays in evaluation mode, whoever asks."""
        super().train(mode)
        self.teacher.eval()
        return self

    @override
    def losses(self, batch: MaskedBatch) -> dict[str, Tensor]:
        total, count, figures = self._sums(batch)
        # Terms per rank: then gradients average to those of one batch.
        count = mean_over_ranks(count)
        return {"loss": total / count.clamp(min=1), "terms": count, **figures}

    @override
    def init_from(self, source: Path) -> None:
        load_weights(self.student, source)
        self.teacher.load_state_dict(self.student.state_dict())

    @override
    def prepare(self, datamodule: StudyDataModule) -> None:
        super().prepare(datamodule)
        self.student.check_grids(contract_of(datamodule).recipes)

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self.final_weight_decay is not None:
            decay = cosine_ramp(
                self.trainer.global_step,
                num_steps=self._num_steps,
                start=self.weight_decay,
                end=self.final_weight_decay,
            )
            set_weight_decay(optimizer, decay)

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Move the student, then the teacher: once per step, however many batches it took."""
        super().optimizer_step(*args, **kwargs)
        ema_update(self.teacher, self.student, self.momentum_at(self.trainer.global_step - 1))

    def momentum_at(self, step: int) -> float:
        """Return how much of itself the teacher keeps after a step."""
        start, end = self.momentum
        return linear_ramp(
            step, num_steps=self._num_steps, start=start, end=end, stretch=self.stretch
        )

    @override
    def on_validation_epoch_start(self) -> None:
        self.validation_sums.zero_()

    @override
    def validation_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        total, count, _ = self._sums(batch)
        self.validation_sums += torch.stack([total.detach(), count])

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_sums("val")

    @override
    def on_test_epoch_start(self) -> None:
        self.validation_sums.zero_()

    @override
    def test_step(self, batch: MaskedBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    @override
    def on_test_epoch_end(self) -> None:
        self._log_sums("test")

    @torch.no_grad()
    def embed(self, batch: MaskedBatch) -> Tensor:
        """Return the teacher's feature of every token of a batch."""
        return self.teacher(
            self._voxels(batch), batch.volumes.coords, batch.volumes.bounds, batch.lengths
        )

    def _sums(self, batch: MaskedBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return the summed loss, what it is the sum over, and what else is logged."""
        if not batch.lengths:  # every volume was left out; the other ranks wait for a gradient
            nothing = sum(one.sum() * 0 for one in self.parameters() if one.requires_grad)
            assert isinstance(nothing, Tensor)
            return nothing, nothing.detach(), {}
        voxels = self._voxels(batch)
        volumes = batch.volumes
        with torch.no_grad():
            taught = self.teacher(voxels, volumes.coords, volumes.bounds, batch.lengths)
            taught = F.layer_norm(taught, taught.shape[-1:])
        total, count = taught.new_zeros(()), taught.new_zeros(())
        for view in batch.views:
            guessed = self._guessed(voxels, volumes.coords, view)
            wanted = taught.index_select(0, view.target)
            per_token = F.smooth_l1_loss(guessed.float(), wanted, reduction="none").mean(dim=1)
            if self.reduction == "volume":
                per_token = per_token / view.targets_of_own_volume
                count = count + len(batch.lengths)
            else:
                count = count + len(per_token)
            total = total + per_token.sum()
        targets = taught.index_select(0, batch.views[0].target)
        return total, count, {"target_std": targets.std(dim=0).mean(), **self._shares(batch)}

    def _guessed(self, voxels: Tensor, coords: Tensor, view: MaskView) -> Tensor:
        seen_coords = coords.index_select(0, view.context)
        seen = self.student(
            voxels.index_select(0, view.context),
            seen_coords,
            view.context_bounds,
            view.context_lengths,
        )
        return self.predictor(
            seen,
            seen_coords,
            view.context_bounds,
            coords.index_select(0, view.target),
            view.target_bounds,
            view.lengths,
        )

    def _voxels(self, batch: MaskedBatch) -> Tensor:
        return normalize_volumes(batch.volumes)

    def _shares(self, batch: MaskedBatch) -> dict[str, Tensor]:
        """Return which share of the tokens the masks really show, and what they left out."""
        total = sum(batch.lengths)
        shares = {
            f"context_share{number or ''}": len(view.context) / total
            for number, view in enumerate(batch.views)
        }
        shares["left_out"] = batch.num_left_out / (len(batch.lengths) + batch.num_left_out)
        device = batch.volumes.bounds.device
        return {name: torch.tensor(share, device=device) for name, share in shares.items()}

    def _log_sums(self, stage: str) -> None:
        sums = self.trainer.strategy.reduce(self.validation_sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        total, count = sums.tolist()
        self.log(f"{stage}/loss", total / max(1.0, count), prog_bar=stage == "val")

    @property
    def _num_steps(self) -> int:
        return int(self.trainer.estimated_stepping_batches)

    @override
    def _kept_names(self) -> set[str]:
        """All of it: the teacher's state is its own."""
        return {name for name, _ in self.named_parameters()}
