"""What can be read from frozen features, before, while and after an encoder learns."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Float64
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from neuro.data.batch import MaskedBatch, StudyBatch
from neuro.data.datamodule import StudyDataModule
from neuro.data.labels import Labels
from neuro.data.manifest import Manifest
from neuro.errors import InputError
from neuro.metrics.decisions import indicators
from neuro.metrics.ranking import auroc
from neuro.metrics.regression import mean_absolute_error, r2
from neuro.models.probe import POOLINGS, knn_scores, pooled, ridge_scores

log = logging.getLogger(__name__)


@runtime_checkable
class Embedding(Protocol):
    """A system that has a feature for every token."""

    def embed(self, batch: MaskedBatch) -> Tensor:
        """Return a feature of every token of a batch."""
        ...


class OnlineProbe(Callback):
    """Fits small probes on labelled training studies and scores them on others.

    A study's feature is pooled over all of its tokens that are not background, without masks and
    without augmentation. It logs ``probe/auroc`` (ridge) and ``probe/auroc_knn``
    (neighbours), or ``probe/r2`` and ``probe/mae``, each also with ``_init``: the same before the
    first step. In validation they are of the validation studies, in the test of the test studies.
    Where several labels are known, they are means over labels, and each label's own is there too.

    Where the studies have no labels, or the system no features, it does nothing.

    Args:
        max_studies: Labelled training studies that probes are fitted on, and validation studies
            that they are scored on; which, a hash of their ids decides.
        every_n_validations: Validations from one probe to the next.
        num_neighbours: How many training studies vote.
        pooling: ``mean``, as in I-JEPA, or ``mean_std``, which adds the standard deviation over
            tokens. That reads more from any encoder, and most from an untrained one: of phantoms
            above and below 50 years, 0.90 and after 700 steps 0.94 (AUROC), where the mean alone
            read 0.72 and 0.91. So the mean shows what was learned, both show what can be read.

    Raises:
        InputError: A number is below 1, or there is no such pooling.
    """

    def __init__(
        self,
        max_studies: int = 1000,
        every_n_validations: int = 1,
        num_neighbours: int = 20,
        pooling: str = "mean",
    ) -> None:
        for name, value in (
            ("max_studies", max_studies),
            ("every_n_validations", every_n_validations),
            ("num_neighbours", num_neighbours),
        ):
            if value < 1:
                raise InputError(f"callbacks.probe.{name} must be at least 1; got {value}.")
        if pooling not in POOLINGS:
            raise InputError(
                f"callbacks.probe.pooling must be one of {', '.join(POOLINGS)}; got {pooling!r}."
            )
        self.max_studies = max_studies
        self.every_n_validations = every_n_validations
        self.num_neighbours = num_neighbours
        self.pooling = pooling
        self._init: dict[str, dict[str, float]] = {}  # by split
        self._num_validations = 0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"init": self._init, "num_validations": self._num_validations}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._init = state_dict["init"]
        self._num_validations = state_dict["num_validations"]

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._init and _applies(trainer, pl_module):
            self._init = self._figures(trainer, pl_module, ("val", "test"))
            for split, figures in self._init.items():
                log.info("probe of the untrained encoder, %s: %s", split, _text(figures))

    @override
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not _applies(trainer, pl_module):
            return
        self._num_validations += 1
        if self._num_validations % self.every_n_validations == 0:
            self._report(trainer, pl_module, "val")

    @override
    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if _applies(trainer, pl_module):
            self._report(trainer, pl_module, "test")

    def _report(self, trainer: L.Trainer, module: L.LightningModule, split: str) -> None:
        figures = self._figures(trainer, module, (split,))[split]
        before = {f"{name}_init": value for name, value in self._init.get(split, {}).items()}
        # Every rank has the same figures, so that whoever watches one finds it everywhere.
        module.log_dict({f"probe/{name}": value for name, value in (figures | before).items()})
        log.info("step %d  probe, %s: %s", trainer.global_step, split, _text(figures))

    def _figures(
        self, trainer: L.Trainer, module: L.LightningModule, splits: tuple[str, ...]
    ) -> dict[str, dict[str, float]]:
        """Return the scores on some splits, each under its name."""
        datamodule = _datamodule(trainer)
        train = _labelled(datamodule.studies["train"], self.max_studies)
        own = self._encoded(trainer, module, train)
        figures = {}
        for split in splits:
            most = self.max_studies if split == "val" else None
            studies = _labelled(datamodule.studies[split], most)
            other = self._encoded(trainer, module, studies)
            figures[split] = self._scored(own, _labels(train), other, _labels(studies))
        return figures

    def _scored(
        self,
        own: Float[Tensor, "train features"],
        own_labels: Labels,
        other: Float[Tensor, "studies features"],
        other_labels: Labels,
    ) -> dict[str, float]:
        known, truth = _columns(own_labels), _columns(other_labels)
        ridge = ridge_scores(own, known, other)
        if own_labels.task == "regression":
            found = {"r2": r2(ridge, truth), "mae": mean_absolute_error(ridge, truth)}
        else:
            knn = knn_scores(own, known, other, self.num_neighbours)
            found = {"auroc": auroc(ridge, truth), "auroc_knn": auroc(knn, truth)}
        figures = {}
        for name, values in found.items():
            figures[name] = float(values.nanmean())
            if 1 < len(values) == len(own_labels.names):
                labels = zip(own_labels.names, values.tolist(), strict=True)
                figures |= {f"{name}/{label}": value for label, value in labels}
        # A label of which one class is known has no area; JSON has no word for that.
        return {name: value for name, value in figures.items() if np.isfinite(value)}

    def _encoded(
        self, trainer: L.Trainer, module: L.LightningModule, studies: Manifest
    ) -> Float[Tensor, "studies features"]:
        """Return a feature of each study; each rank encodes its share, and all get all."""
        rank, world_size = trainer.global_rank, trainer.world_size
        own = range(rank, len(studies), world_size)
        # A rank without a study of its own encodes another's, to know how wide a feature is.
        shown = studies.take(own or [0])
        places = {name: place for place, name in enumerate(studies.ids)}
        features: Tensor | None = None
        for ids, batch in _pooled(trainer, module, shown, self.pooling):
            if features is None:
                features = batch.new_zeros(len(studies), batch.shape[1])
            if own:
                features[[places[name] for name in ids]] = batch
        assert features is not None, "a manifest has a study"
        whole = trainer.strategy.reduce(features, reduce_op="sum")
        assert isinstance(whole, Tensor)
        return whole.cpu()


@torch.no_grad()
def _pooled(
    trainer: L.Trainer, module: L.LightningModule, studies: Manifest, pooling: str
) -> Iterator[tuple[tuple[str, ...], Float[Tensor, "studies features"]]]:
    """Yield ids and features of some studies, batch by batch."""
    assert isinstance(module, Embedding)
    for batch in _datamodule(trainer).plain_loader(studies):
        batch = batch.to(module.device)
        with trainer.precision_plugin.forward_context():
            features = module.embed(without_masks(batch))
        yield batch.study_ids, pooled(features.float(), batch.token_bounds, pooling)


def without_masks(batch: StudyBatch) -> MaskedBatch:
    """Return the same volumes as a batch in which nothing is hidden."""
    return MaskedBatch(
        volumes=batch.volumes,
        lengths=tuple(batch.volumes.bounds.diff().tolist()),
        views=(),
        num_left_out=0,
        study_ids=batch.study_ids,
    )


def _applies(trainer: L.Trainer, module: L.LightningModule) -> bool:
    """Return whether there are features and, in every split, labels to read from them."""
    datamodule = getattr(trainer, "datamodule", None)
    if not isinstance(module, Embedding) or not isinstance(datamodule, StudyDataModule):
        return False
    return all(
        studies.labels is not None and bool(np.isfinite(studies.labels.values).any())
        for studies in datamodule.studies.values()
    )


def _datamodule(trainer: L.Trainer) -> StudyDataModule:
    datamodule = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(datamodule, StudyDataModule)
    return datamodule


def _labelled(studies: Manifest, most: int | None) -> Manifest:
    """Return the studies with a known label, in their order; at most so many, chosen by hash."""
    rows = np.flatnonzero(np.isfinite(_labels(studies).values).any(axis=1)).tolist()
    ids = studies.ids
    rows.sort(key=lambda row: hashlib.sha256(ids[row].encode()).digest())
    return studies.take(sorted(rows[:most]))


def _labels(studies: Manifest) -> Labels:
    assert studies.labels is not None
    return studies.labels


def _columns(labels: Labels) -> Float64[Tensor, "studies columns"]:
    """Return what is to be told: a column per label, or per class where there are several."""
    values = torch.from_numpy(labels.values).double()
    return indicators(values, len(labels.classes)) if labels.task == "multiclass" else values


def _text(figures: dict[str, float]) -> str:
    told = [f"{name} {value:.3f}" for name, value in figures.items() if "/" not in name]
    return "  ".join(told) or "not defined, these studies do not differ in their labels"
