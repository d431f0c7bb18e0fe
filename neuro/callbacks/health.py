"""Whether an encoder that learns without labels still tells things apart: in numbers, in words."""

from __future__ import annotations

import csv
import logging
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from neuro.data.batch import MaskedBatch, VolumeTokens
from neuro.data.datamodule import StudyDataModule
from neuro.errors import InputError
from neuro.models.normalize import normalize
from neuro.models.probe import cosine, dimension_std, effective_rank

log = logging.getLogger(__name__)

HEALTHY = "healthy"
TOKENS_PER_VOLUME = 64


@runtime_checkable
class Distilling(Protocol):
    """A system whose student guesses what a teacher makes of volumes."""

    student: nn.Module
    teacher: nn.Module


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """What was measured at one validation.

    Attributes:
        step: Optimizer steps done.
        rank: Effective rank of the teacher's layer-normed features, from 1 to their width.
        std: Their standard deviation over tokens, the mean over dimensions, in [0, 1].
        cosine: Between the student's and the teacher's feature of a token, the mean over tokens.
        unexplained: The training loss of the last step, as a share of what it costs to guess the
            mean of these features; NaN before the first step.
        context_share: Share of the tokens that a mask shows, the mean over masks.
        left_out: Share of the volumes that admit no mask.
        verdict: ``healthy``, or what is wrong.
    """

    step: int
    rank: float
    std: float
    cosine: float
    unexplained: float
    context_share: float
    left_out: float
    verdict: str = HEALTHY

    @property
    def figures(self) -> dict[str, float]:
        """What is logged."""
        values = {name: value for name, value in asdict(self).items() if isinstance(value, float)}
        values["collapsed"] = float(self.verdict != HEALTHY)
        values["healthy_step"] = float(self.step if self.verdict == HEALTHY else -1)
        return {f"health/{name}": value for name, value in values.items() if math.isfinite(value)}


class Health(Callback):
    """Examines the teacher before training and at each validation; says when it collapses.

    It logs the figures of a ``Checkup`` as ``health/rank`` and so on, with ``health/collapsed`` (0
    or 1) and ``health/healthy_step`` (-1 where it is none), and writes them to ``health.tsv``, with
    the verdict in words. A system that is not distilled is left alone.

    Limits are from small encoders on phantom heads (4 layers, width 96 to 192, 300 to 1200 steps,
    ``LOG.md``). In healthy runs the rank kept 0.45 of its highest value, the deviation was 0.39 or
    more, and 0.19 or more was left to explain. Too high a rate took the rank to 0.08 of its highest
    value while loss and deviation looked well; a target that gradients reached took the deviation
    to 0.01; a constant one left 0.0001 to explain, and nothing else showed it.

    Args:
        run_dir: The run folder.
        max_tokens: Tokens that are looked at, spread over the validation volumes, always the same.
        min_rank_share: Below this share of the highest rank so far it is a partial collapse.
        min_std: Below this it is a complete one.
        min_unexplained: Below this there is nothing to learn: the target is constant.
        stop: Whether a collapse ends training.

    Raises:
        InputError: There is not a volume's worth of tokens.
    """

    def __init__(
        self,
        run_dir: Path | str,
        max_tokens: int = 4096,
        min_rank_share: float = 0.3,
        min_std: float = 0.1,
        min_unexplained: float = 0.01,
        stop: bool = False,
    ) -> None:
        if max_tokens < TOKENS_PER_VOLUME:
            raise InputError(
                f"callbacks.health.max_tokens must be at least {TOKENS_PER_VOLUME}, which is what "
                f"is taken of one volume; got {max_tokens}. Take a few times the encoder's width."
            )
        self.run_dir = Path(run_dir)
        self.max_tokens = max_tokens
        self.min_rank_share = min_rank_share
        self.min_std = min_std
        self.min_unexplained = min_unexplained
        self.stop = stop
        self.history: list[Checkup] = []
        self._sample = _Sample(num_batches=1, num_volumes=1)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": [asdict(one) for one in self.history]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [Checkup(**one) for one in state_dict["history"]]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Examine the encoder as it is: what it may lose is measured against that."""
        datamodule = getattr(trainer, "datamodule", None)
        if self.history or not isinstance(pl_module, Distilling):
            return
        if not isinstance(datamodule, StudyDataModule) or not trainer.limit_val_batches:
            return
        # A loader draws a number when it begins, which must not be one of those of training.
        with torch.random.fork_rng(devices=[]):
            loader, most = datamodule.val_dataloader(), trainer.limit_val_batches
            length = len(loader)
            length = min(length, most) if isinstance(most, int) else int(length * most)
            self._begin(trainer, length)
            for place, batch in zip(range(length), loader, strict=False):
                if isinstance(batch, MaskedBatch):
                    self._sample.add(trainer, pl_module, batch.to(pl_module.device), place)
        self._conclude(trainer)

    @override
    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin(trainer, sum(int(number) for number in trainer.num_val_batches))

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
        if isinstance(pl_module, Distilling) and isinstance(batch, MaskedBatch):
            self._sample.add(trainer, pl_module, batch, batch_idx)

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        checkup = self._conclude(trainer)
        if checkup is None:
            return
        # Every rank has the same figures, so that whoever watches one finds it everywhere.
        pl_module.log_dict(checkup.figures)
        if self.stop and checkup.verdict != HEALTHY:
            trainer.should_stop = True

    def judge(self, checkup: Checkup) -> str:
        """Return ``healthy``, or in words what is wrong, given what was seen before."""
        what = self._symptom(checkup)
        if what is None:
            return HEALTHY
        good = [one.step for one in self.history if one.verdict == HEALTHY]
        last = f"last healthy checkpoint: step {good[-1]}" if good else "never healthy"
        return f"{what}; {last}"

    def _symptom(self, checkup: Checkup) -> str | None:
        if not (math.isfinite(checkup.rank) and math.isfinite(checkup.std)):
            return "features are not finite: the run diverged"
        if checkup.std < self.min_std:
            return f"all tokens look alike, their deviation is {checkup.std:.2g}: complete collapse"
        best = max([*self.history, checkup], key=lambda one: one.rank)
        if checkup.rank < self.min_rank_share * best.rank:
            return (
                f"rank fell from {best.rank:.0f} to {checkup.rank:.0f} in "
                f"{checkup.step - best.step} steps: partial collapse"
            )
        if checkup.unexplained < self.min_unexplained:
            return (
                f"the loss is {100 * checkup.unexplained:.2g} % of what guessing the mean would "
                f"cost: the target is constant or shown"
            )
        return None

    def _begin(self, trainer: L.Trainer, num_batches: int) -> None:
        num_volumes = max(1, self.max_tokens // TOKENS_PER_VOLUME // trainer.world_size)
        self._sample = _Sample(num_batches=num_batches, num_volumes=num_volumes)

    def _conclude(self, trainer: L.Trainer) -> Checkup | None:
        """Examine the sample of all ranks, and write down what is found; None if it is empty."""
        found = self._sample.checkup(trainer)
        if found is None:
            return None
        # A run that was taken back to an earlier step has not been where it went before.
        self.history = [one for one in self.history if one.step < found.step]
        checkup = replace(found, verdict=self.judge(found))
        was_healthy = not self.history or self.history[-1].verdict == HEALTHY
        self.history.append(checkup)
        if trainer.is_global_zero:
            self._write()
            if checkup.verdict != HEALTHY:
                log.warning("step %d  %s", checkup.step, checkup.verdict)
            elif not was_healthy:
                log.info("step %d  the encoder has recovered", checkup.step)
        return checkup

    def _write(self) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with (self.run_dir / "health.tsv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow([field.name for field in fields(Checkup)])
            for one in self.history:
                values = asdict(one).values()
                writer.writerow([f"{x:.4g}" if isinstance(x, float) else x for x in values])


class _Sample:
    """Some tokens of some volumes of a validation, and the shares of all its masks.

    Args:
        num_batches: Batches that will come.
        num_volumes: How many of their volumes are looked at, as evenly as it goes.
    """

    def __init__(self, *, num_batches: int, num_volumes: int) -> None:
        self.num_batches = max(1, num_batches)
        self.num_volumes = num_volumes
        self.taught: list[Tensor] = []
        self.cosines: list[Tensor] = []
        self.counts = [0, 0, 0, 0]  # tokens shown, tokens, volumes left out, volumes

    @torch.no_grad()
    def add(
        self, trainer: L.Trainer, module: Distilling, batch: MaskedBatch, batch_idx: int
    ) -> None:
        """Look at the volumes that are due in a batch."""
        for view in batch.views:
            self.counts[0] += len(view.context)
            self.counts[1] += sum(batch.lengths)
        self.counts[2] += batch.num_left_out
        self.counts[3] += batch.num_left_out + len(batch.lengths)
        due = self._due(batch_idx + 1) - self._due(batch_idx)
        if due == 0 or not batch.lengths:
            return
        every = max(1, len(batch.lengths) // due)
        volumes, lengths = some_volumes(batch, range(0, len(batch.lengths), every)[:due])
        voxels = normalize(volumes.tokens, volumes.bounds, volumes.kinds)
        was_training = module.student.training
        module.student.eval()
        with trainer.precision_plugin.forward_context():
            taught, learned = (
                encoder(voxels, volumes.coords, volumes.bounds, lengths).float()
                for encoder in (module.teacher, module.student)
            )
        module.student.train(was_training)
        rows = torch.cat(
            [
                start + _spread(length)
                for start, length in zip(volumes.bounds[:-1].tolist(), lengths, strict=True)
            ]
        ).to(taught.device)
        taught = F.layer_norm(taught[rows], taught.shape[-1:])
        learned = F.layer_norm(learned[rows], learned.shape[-1:])
        self.taught.append(taught.cpu())
        self.cosines.append(cosine(learned, taught).cpu())

    def checkup(self, trainer: L.Trainer) -> Checkup | None:
        """Return what the tokens of all ranks show; None if there are none."""
        loss = float(trainer.callback_metrics.get("train/loss", math.nan))
        taught, cosines, counts, losses = self._gathered(loss)
        if not taught:
            return None
        features = torch.cat(taught)
        std = dimension_std(features)
        return Checkup(
            step=trainer.global_step,
            rank=effective_rank(features),
            std=std,
            cosine=float(torch.cat(cosines).double().mean()),
            # Where errors are small, smooth L1 is half of their square.
            unexplained=sum(losses) / len(losses) / (0.5 * std**2) if std else math.nan,
            context_share=counts[0] / max(1, counts[1]),
            left_out=counts[2] / max(1, counts[3]),
        )

    def _due(self, num_batches: int) -> int:
        """Return how many volumes are due in the first so many batches."""
        return num_batches * self.num_volumes // self.num_batches

    def _gathered(self, loss: float) -> tuple[list[Tensor], list[Tensor], list[int], list[float]]:
        """Return what all ranks have found, so that they come to the same verdict."""
        own = (self.taught, self.cosines, self.counts, [loss])
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return own
        every: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(every, own)
        taught, cosines, counts, losses = zip(*every, strict=True)
        return (
            [part for one in taught for part in one],
            [part for one in cosines for part in one],
            [sum(parts) for parts in zip(*counts, strict=True)],
            [part for one in losses for part in one],
        )


def some_volumes(batch: MaskedBatch, places: range) -> tuple[VolumeTokens, tuple[int, ...]]:
    """Return some volumes of a batch, as they are without augmentation, and their lengths."""
    volumes = batch.volumes
    tokens = volumes.tokens.split(list(batch.lengths))
    coords = volumes.coords.split(list(batch.lengths))
    lengths = tuple(batch.lengths[place] for place in places)
    bounds = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return VolumeTokens(
        tokens=torch.cat([tokens[place] for place in places]),
        coords=torch.cat([coords[place] for place in places]),
        bounds=bounds.to(volumes.bounds.device),
        sizes=volumes.sizes[list(places)],
        kinds=tuple(volumes.kinds[place] for place in places),
    ), lengths


def _spread(length: int) -> Tensor:
    """Return some places below a length: drawn, so that no grid is met, but always the same."""
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(length, generator=generator)[:TOKENS_PER_VOLUME]
