"""What every training objective shares: the step, the logging, the optimizer, the checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from neuro.data.contract import Contract
from neuro.data.datamodule import StudyDataModule
from neuro.data.loader import PlannedLoader
from neuro.errors import InputError
from neuro.models.normalize import STATISTICS
from neuro.optim.groups import decay_groups
from neuro.systems.accumulation import Accumulation

log = logging.getLogger(__name__)


@runtime_checkable
class Batch(Protocol):
    """What is asked of a batch."""

    @property
    def num_studies(self) -> int:
        """How many studies there are."""
        ...


BatchT = TypeVar("BatchT", bound=Batch)
Item = TypeVar("Item")
OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
ScheduleFactory = Callable[..., LRScheduler]


class System(L.LightningModule, Generic[BatchT]):
    """A training objective. A subclass defines ``losses``; the rest is here.

    Args:
        optimizer: Takes parameter groups.
        schedule: Takes the optimizer and ``num_steps``.
        weight_decay: For the weights of layers; biases, norms and tables do not decay.
    """

    def __init__(
        self, optimizer: OptimizerFactory, schedule: ScheduleFactory, weight_decay: float
    ) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.contract: Contract | None = None
        self.parts: dict[str, Any] = {}  # what its models are built of, as the config says it
        self._accumulation: Accumulation | None = None
        self._terms = torch.ones(())  # of the batch whose loss comes next
        self.strict_loading = (
            False  # on_load_checkpoint is stricter: it knows what a checkpoint must hold
        )

    def losses(self, batch: BatchT) -> dict[str, Tensor]:
        """Return named scalars.

        ``"loss"`` is the one that is minimized, ``"terms"`` how many tokens or labels of
        the average rank it is the mean over: without, accumulated batches count alike.
        """
        raise NotImplementedError(f"{type(self).__name__} must define losses(batch).")

    def parameter_table(self) -> list[tuple[str, int, int]]:
        """Return (part, parameters, trainable parameters)."""
        rows = []
        for name, part in self.named_children():
            parameters = list(part.parameters())
            trained = sum(one.numel() for one in parameters if one.requires_grad)
            if parameters:
                rows.append((name, sum(one.numel() for one in parameters), trained))
        return rows

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is trained, as the optimizer takes it; ``lr_scale`` multiplies its rate."""
        return decay_groups(self, self.weight_decay)

    def gradient_parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the trained parameters of each part whose gradients are watched by themselves."""
        parts = {
            name: [one for one in part.parameters() if one.requires_grad]
            for name, part in self.named_children()
        }
        return {name: own for name, own in parts.items() if own}

    def prepare(self, datamodule: StudyDataModule) -> None:
        """Take from the data what the parts need to know, and check that they fit it.

        Called once, when every scan is prepared and before anything is trained or planned. What
        the images and labels are goes into every checkpoint.

        Raises:
            InputError: They do not fit.
        """
        self.contract = contract_of(datamodule)

    def init_from(self, source: Path) -> None:
        """Begin with the weights of a file, and with nothing else of it; log what matched.

        Raises:
            InputError: They do not fit, or this system has nothing to put them into.
        """
        raise InputError(
            f"{type(self).__name__} cannot begin with the weights of {source}. Leave init_from out."
        )

    @override
    def on_fit_start(self) -> None:
        self._seed = torch.initial_seed()
        interval, halves = self.trainer.val_check_interval, self.trainer.accumulate_grad_batches
        self._accumulation = Accumulation() if halves > 1 else None
        if halves > 1 and self.trainer.strategy.handles_gradient_accumulation:
            self._accumulation = None
            log.warning(
                "%s takes the mean of the losses of %d batches, whatever their sizes",
                type(self.trainer.strategy).__name__,
                halves,
            )
        if isinstance(interval, int) and interval % halves:
            raise InputError(
                f"trainer.val_check_interval={interval} counts batches and must be a multiple of "
                f"trainer.accumulate_grad_batches={halves}: a checkpoint in the middle of a step "
                f"would lose the gradients so far. "
                f"Set it to {interval + halves - interval % halves}."
            )

    @override
    def on_train_start(self) -> None:
        loop = self.trainer.fit_loop
        batches = loop.epoch_loop
        if batches.restarted_on_train_batch_end and batches.batch_progress.is_last_batch:
            # What begins is a new epoch; Lightning would take it for the one that was finished.
            loop.reset_restart_stage()
        # With trainer.max_epochs, Lightning sets the loader up before it has read the checkpoint,
        # to count the steps, and does not come back to say where in the epoch to go on.
        loop._load_combined_loader_states()
        self._set_length_of_epoch()
        iter(loop._data_fetcher or ())  # it was begun with the old state and length

    @override
    def on_train_epoch_start(self) -> None:
        self._set_length_of_epoch()

    @override
    def on_train_batch_start(self, batch: BatchT, batch_idx: int) -> None:
        # Else what an earlier batch logged, and this one does not, would be logged again.
        self.trainer.fit_loop.epoch_loop._results.reset()
        # What layers draw follows from the place in the run, so that a resumed run draws the same.
        place = (self._seed, self.trainer.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    @override
    def training_step(self, batch: BatchT, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        self._terms = losses.pop("terms", torch.ones(())).detach()
        count = batch.num_studies  # Lightning would count tokens
        self.log("train/loss", losses["loss"], batch_size=count, sync_dist=True)
        # As the first rank has them: others may not have the same names.
        own = {f"train/{name}": value for name, value in losses.items() if name != "loss"}
        self.log_dict(own, batch_size=count)
        return losses["loss"]

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._accumulation is not None:  # here, so that callbacks see the loss itself
            loss = loss * self._accumulation.weight(self._terms)
        super().backward(loss, *args, **kwargs)

    @override
    def on_after_backward(self) -> None:
        if self._accumulation is None or self.trainer.fit_loop.epoch_loop._should_accumulate():
            return
        self._accumulation.finish(self.parameters(), self.trainer.accumulate_grad_batches)

    @override
    def configure_optimizers(self) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        try:
            optimizer = self.optimizer(self.parameter_groups())
        except (TypeError, ValueError) as error:
            raise InputError(f"optim: {error}. Correct a number of the optim group.") from error
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        schedule = self.schedule(optimizer, num_steps=int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.contract is not None:
            checkpoint["contract"] = self.contract.plain()
        checkpoint["parts"] = self.parts
        kept = self._kept_names()
        checkpoint["state_dict"] = {
            name: one for name, one in checkpoint["state_dict"].items() if name in kept
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.contract is not None and "contract" in checkpoint:
            before = Contract.of_plain(checkpoint["contract"], "the checkpoint")
            before.check_images(self.contract, "the checkpoint")
            before.check_labels(self.contract, "the checkpoint")
        held = {name: tuple(one.shape) for name, one in checkpoint["state_dict"].items()}
        own = self.state_dict()
        kept = {name: tuple(own[name].shape) for name in self._kept_names()}
        if held != kept:
            wrong = sorted(name for name in held.keys() & kept.keys() if held[name] != kept[name])
            missing, extra = sorted(kept.keys() - held.keys()), sorted(held.keys() - kept.keys())
            raise InputError(
                f"the checkpoint does not fit the model: missing {missing[:3]}, unexpected "
                f"{extra[:3]}, of another shape {wrong[:3]} ({len(missing)}, {len(extra)} and "
                f"{len(wrong)} in all). Use the model and recipes that it was trained with."
            )

    def _set_length_of_epoch(self) -> None:
        """Tell the loop how many batches this epoch has.

        Lightning asks once, and would cut off every later epoch that is longer.
        """
        trainer, loader = self.trainer, self.trainer.train_dataloader
        if not isinstance(loader, PlannedLoader):
            return
        length, limit = len(loader), trainer.limit_train_batches
        length = min(length, limit) if isinstance(limit, int) else int(length * (limit or 1.0))
        combined = trainer.fit_loop._combined_loader
        assert combined is not None, "the loop has its loader before it trains"
        combined.limits = [length]
        trainer.fit_loop.max_batches = length
        if isinstance(trainer.val_check_interval, float):
            trainer.val_check_batch = max(1, int(length * trainer.val_check_interval))

    def _kept_names(self) -> set[str]:
        """Return what a checkpoint holds: what is trained.

        Frozen parts are rebuilt from where they came from.
        """
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}


def contract_of(datamodule: StudyDataModule) -> Contract:
    """Return what the images and labels of a run are; nothing need be prepared for that."""
    shown = datamodule.manifest.series["modality"].unique().to_pylist()
    labels = datamodule.manifest.labels
    return Contract(
        recipes={name: datamodule.cache.recipes[name] for name in sorted(shown)},
        min_foreground=datamodule.collate.background.share,
        statistics=STATISTICS,
        labels=labels.names if labels is not None else (),
        task=labels.task if labels is not None else "",
        classes=(labels.classes or ()) if labels is not None else (),
    )


def on_many_ranks() -> bool:
    """Return whether there are other ranks to speak to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return the mean of a number over all ranks."""
    if not on_many_ranks():
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / torch.distributed.get_world_size()


def gathered(own: list[Item]) -> list[Item]:
    """Return what all ranks have collected."""
    if not on_many_ranks():
        return own
    everybody: list[list[Item]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(everybody, own)
    return [item for one in everybody for item in one]
