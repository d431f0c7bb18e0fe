"""Pictures of what an encoder is shown and what it makes of it, while it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from neuro.data.batch import MaskedBatch
from neuro.data.datamodule import StudyDataModule
from neuro.data.tokens import untokenize
from neuro.errors import InputError
from neuro.report.features import Shown, feature_picture


@runtime_checkable
class Embedding(Protocol):
    """A system that has a feature for every token."""

    def embed(self, batch: MaskedBatch) -> Tensor:
        """Return a feature of every token of a batch."""
        ...


class FeaturePictures(Callback):
    """Draws masks and features of the first validation volumes.

    Before training and at each validation it writes ``pictures/step-000300.png`` in the run folder,
    and sends it to TensorBoard where that is a logger. A system without features or masks is left
    alone.

    Args:
        run_dir: The run folder.
        num_volumes: Volumes to draw.
        every_n_validations: Validations from one picture to the next.
        slice_pixels: Edge of the square that a slice is fitted into.

    Raises:
        InputError: An argument is below 1.
    """

    def __init__(
        self,
        run_dir: Path | str,
        num_volumes: int = 4,
        every_n_validations: int = 1,
        slice_pixels: int = 160,
    ) -> None:
        for name, value in (
            ("num_volumes", num_volumes),
            ("every_n_validations", every_n_validations),
            ("slice_pixels", slice_pixels),
        ):
            if value < 1:
                raise InputError(f"callbacks.pictures.{name} must be at least 1; got {value}.")
        self.run_dir = Path(run_dir)
        self.num_volumes = num_volumes
        self.every_n_validations = every_n_validations
        self.slice_pixels = slice_pixels
        self._num_validations = 0

    @override
    def state_dict(self) -> dict[str, int]:
        return {"num_validations": self._num_validations}

    @override
    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._num_validations = state_dict["num_validations"]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._draw(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self._num_validations += 1
        if self._num_validations % self.every_n_validations == 0:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        if not trainer.is_global_zero or not isinstance(module, Embedding):
            return
        if not isinstance(datamodule, StudyDataModule):
            return
        volumes = self._volumes(trainer, module, datamodule)
        if not volumes:
            return
        picture = feature_picture(volumes, slice_pixels=self.slice_pixels)
        path = self.run_dir / "pictures" / f"step-{trainer.global_step:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, optimize=True)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    "features", np.asarray(picture), trainer.global_step, dataformats="HWC"
                )

    @torch.no_grad()
    def _volumes(
        self, trainer: L.Trainer, module: L.LightningModule, datamodule: StudyDataModule
    ) -> list[Shown]:
        """Return the first volumes of the first studies, of those that can be masked."""
        assert isinstance(module, Embedding)
        dataset = datamodule.dataset("val")
        volumes: list[Shown] = []
        for row in dataset.bounds[:-1].tolist():
            item = dataset[row, 0]
            batch = datamodule.collate([item])
            if not isinstance(batch, MaskedBatch):
                return []
            if not batch.lengths:
                continue
            with trainer.precision_plugin.forward_context():
                features = module.embed(batch.to(module.device)).float()
            series = dataset.studies.row(int(dataset.series_rows[row]))
            patch = datamodule.cache.recipes[item.modality].patch
            volumes.append(
                Shown(
                    voxels=untokenize(item.tokens, item.size, patch),
                    affine=datamodule.cache.affine(series),
                    patch=patch,
                    coords=batch.volumes.coords,
                    contexts=[view.context for view in batch.views],
                    features=F.layer_norm(features, features.shape[-1:]),  # as they are guessed
                )
            )
            if len(volumes) == self.num_volumes:
                break
        return volumes
