"""``system=mil``: findings of a study from all of its series, by multiple-instance attention."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from neuro.data.batch import StudyBatch
from neuro.data.contract import Contract
from neuro.data.datamodule import StudyDataModule
from neuro.data.features import FEATURES, FeatureFolder, weights_stamp
from neuro.data.labels import Labels
from neuro.data.loader import PlannedLoader
from neuro.data.predictions import Predictions
from neuro.errors import InputError
from neuro.metrics.evaluate import evaluate
from neuro.metrics.resamples import draw_counts, interval, macro
from neuro.models.attention import SelfAttention
from neuro.models.criterion import Criterion
from neuro.models.normalize import STATISTICS, normalize_volumes
from neuro.models.pooling import Explanation, Pool
from neuro.models.tuning import Tuning, layers_of
from neuro.models.vit import VisionTransformer
from neuro.models.weights import load_weights, read_checkpoint
from neuro.optim.groups import layerwise_groups
from neuro.systems.base import (
    OptimizerFactory,
    ScheduleFactory,
    System,
    contract_of,
    gathered,
    mean_over_ranks,
)

log = logging.getLogger(__name__)


class Mil(System[StudyBatch]):
    """Multiple-instance classification (Ilse et al., 2018, arXiv:1802.04712) of whole studies.

    An encoder makes a feature of each token of each series; a pool makes one logit per finding of
    all tokens of a study. A label that is not known counts in no loss and no figure.

    Args:
        encoder: Makes features of tokens.
        pool: Takes ``dim`` and ``num_outputs`` and gives what makes logits of features.
        tuning: What becomes of the encoder.
        optimizer: See ``System``.
        schedule: See ``System``.
        weight_decay: See ``System``.
        encoder_from: A run folder, a checkpoint or a file of weights that the encoder begins with;
            None leaves it as it was drawn.
        loss: See ``Criterion``; None takes what fits the labels.
        balance: In [0, 1]: how far rare findings and classes count more; 1 makes each count as much
            as its opposite, 0 leaves probabilities calibrated.
        specificity: At which the sensitivity is told.
        num_resamples: Resamples of the 95 % intervals of the test.
        keep_features: Whether what a frozen encoder makes of each study is kept on disk, where
            nothing is drawn for images in training.

    Raises:
        InputError: A number is out of range.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        pool: Callable[..., Pool],
        tuning: Tuning,
        *,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory,
        weight_decay: float,
        encoder_from: Path | str | None = None,
        loss: str | None = None,
        balance: float = 0.0,
        specificity: float = 0.9,
        num_resamples: int = 1000,
        keep_features: bool = True,
    ) -> None:
        super().__init__(optimizer, schedule, weight_decay)
        for name, value in (("balance", balance), ("specificity", specificity)):
            if not 0 <= value <= 1:
                raise InputError(f"system.{name} must be in [0, 1]; got {value}.")
        if num_resamples < 1:
            raise InputError(f"system.num_resamples must be at least 1; got {num_resamples}.")
        self.encoder = encoder
        self.pool_factory = pool
        self.tuning = tuning
        self.encoder_from = Path(encoder_from) if encoder_from is not None else None
        self.loss = loss
        self.balance = balance
        self.specificity = specificity
        self.num_resamples = num_resamples
        self.keep_features = keep_features
        self.labels: Labels | None = None
        self.predictions: Predictions | None = None
        self.figures: list[tuple[str, str, float, float, float]] = []
        self._outputs: list[tuple[tuple[str, ...], Tensor, Tensor]] = []
        # Of a validation: summed loss and what it was summed over.
        self.register_buffer("validation_sums", torch.zeros(2), persistent=False)
        self.validation_sums: Tensor

    @override
    def train(self, mode: bool = True) -> Mil:
        """Set the mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.tuning.is_frozen:
            self.encoder.eval()
        return self

    @override
    def forward(self, batch: StudyBatch) -> Float[Tensor, "studies outputs"]:
        """Return the logits of each study; for a regression the numbers themselves."""
        return self.pool(self.features(batch), batch.token_bounds)

    @override
    def losses(self, batch: StudyBatch) -> dict[str, Tensor]:
        total, count = self.criterion(self(batch), batch.labels)
        count = mean_over_ranks(count)
        return {"loss": self.criterion.mean(total, count, mean_over_ranks), "terms": count}

    def features(self, batch: StudyBatch) -> Float[Tensor, "tokens dim"]:
        """Return a feature of each token of a batch."""
        volumes = batch.volumes
        if volumes.kinds[0] == FEATURES:
            return volumes.tokens.float()
        voxels = normalize_volumes(volumes)
        lengths = volumes.bounds.diff().tolist()
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.tuning.is_frozen):
            return self.encoder(voxels, volumes.coords, volumes.bounds, lengths)

    @torch.no_grad()
    def explain(self, batch: StudyBatch) -> Explanation:
        """Return the logits of each study and the part of each of its tokens in them."""
        return self.pool.explain(self.features(batch), batch.token_bounds)

    @override
    def prepare(self, datamodule: StudyDataModule) -> None:
        super().prepare(datamodule)
        labels = datamodule.studies["train"].labels
        if labels is None:
            raise InputError(
                "system=mil learns from labels, and the studies have none. Set data.label to a "
                "column, or to a list of columns; with data=mixed each cohort also needs "
                "labels: ${data.labels}."
            )
        for name, absent in _never_seen(labels):
            log.warning("label %r: no training study is %s; nothing is learned of it", name, absent)
        self.encoder.check_grids(contract_of(datamodule).recipes)
        self.build(labels)
        if self.encoder_from is not None:
            self._load_encoder(self.encoder_from)
        self.tuning.apply(self.encoder)

    def build(self, labels: Labels) -> None:
        """Make the pool and the loss for some labels, and let outputs begin at what is common."""
        self.labels = labels
        values = torch.from_numpy(labels.values)
        bias, weights, spread = _priors(labels, values, self.balance)
        self.pool = self.pool_factory(dim=self.encoder.dim, num_outputs=len(bias))
        self.pool.start_at(bias, spread)
        self.criterion = Criterion(labels.task, self.loss, weights, spread)

    @override
    def init_from(self, source: Path) -> None:
        raise InputError(f"system=mil takes weights by system.encoder_from={source}. Set that.")

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        if self.tuning.is_frozen:
            return super().parameter_groups()
        layers = layers_of(self.encoder)
        decay = self.tuning.layer_decay
        scales = [decay ** (len(layers) - place) for place in range(len(layers))]
        return layerwise_groups(
            [*zip(layers, scales, strict=True), (self.pool, 1.0)], self.weight_decay
        )

    @override
    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.criterion.loss == "rmse" and self.trainer.accumulate_grad_batches > 1:
            raise InputError(
                f"system.loss=rmse is the root over a whole step, and "
                f"trainer.accumulate_grad_batches={self.trainer.accumulate_grad_batches} makes a "
                f"step of several. Take system.loss=mse, or set it to 1."
            )
        datamodule = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        wanted = self.tuning.is_frozen and self.keep_features
        if wanted and isinstance(datamodule, StudyDataModule) and datamodule.draws_nothing:
            self._keep_features(datamodule)
        if self.tuning.is_frozen:
            self._standardize(datamodule)

    @override
    def on_validation_epoch_start(self) -> None:
        self.validation_sums.zero_()
        self._outputs = []

    @override
    def validation_step(self, batch: StudyBatch, batch_idx: int) -> None:
        logits = self(batch)
        self.validation_sums += torch.stack(self.criterion(logits, batch.labels))
        self._outputs.append((batch.study_ids, self.told(logits).cpu(), batch.labels.cpu()))

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_loss("val")
        for name, values in self._evaluated(self._gathered("val"), None).items():
            self._log_figures("val", name, values)

    @override
    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    @override
    def test_step(self, batch: StudyBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    @override
    def on_test_epoch_end(self) -> None:
        """Log every figure with its interval; studies of one subject are drawn together."""
        self._log_loss("test")
        self.predictions = self._gathered("test")
        self.figures = []
        counts = draw_counts(self.predictions.subjects, self.num_resamples)
        drawn = self._evaluated(self.predictions, counts)
        for name, values in self._evaluated(self.predictions, None).items():
            self._log_figures("test", name, values)
            low, high = interval(drawn[name])
            mean_low, mean_high = interval(macro(drawn[name]).unsqueeze(1))
            if torch.isfinite(values).any():
                self.log(f"test/{name}_macro_low", float(mean_low))
                self.log(f"test/{name}_macro_high", float(mean_high))
            self.figures.append(
                ("macro", name, float(macro(values)), float(mean_low), float(mean_high))
            )
            if len(values) > 1:
                rows = zip(values.tolist(), low.tolist(), high.tolist(), strict=True)
                named = zip(self.predictions.columns, rows, strict=True)
                self.figures += [(column, name, *three) for column, three in named]

    def _load_encoder(self, source: Path) -> None:
        """Begin with the weights of an encoder, after a look at what it was trained on."""
        said = read_checkpoint(source).get("contract")
        if said is None:
            log.warning("%s does not say how its images were prepared; check that yourself", source)
        else:
            assert self.contract is not None, "prepare has written it"
            Contract.of_plain(said, str(source)).check_images(self.contract, str(source))
        load_weights(self.encoder, source)

    def _keep_features(self, datamodule: StudyDataModule) -> None:
        """Encode every study that is not encoded yet, each rank its share."""
        share = datamodule.collate.background.share
        folder = FeatureFolder(datamodule.cache.root, f"{self._encoder_stamp()} {share}")
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        datamodule.features = None  # those of another encoder, where it was fitted before
        self.encoder.eval()
        num_done = 0
        for studies in datamodule.studies.values():
            images = datamodule.images_of(studies)
            # The share first: what is missing depends on when a rank looks.
            missing = [
                place
                for place, study in [*enumerate(studies.ids)][rank::world_size]
                if not folder.holds(study, images[study])
            ]
            if not missing:
                continue
            for batch in datamodule.plain_loader(studies.take(missing)):
                with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                    features = self.features(batch.to(self.device))
                folder.write(batch, features, images)
                num_done += batch.num_studies
        log.info("%d studies encoded, the others were; features are in %s", num_done, folder.folder)
        self.trainer.strategy.barrier()
        datamodule.features = folder
        loader = self.trainer.train_dataloader
        if isinstance(loader, PlannedLoader):  # with trainer.max_epochs it is there already
            loader.batches.dataset.features = folder

    def _encoder_stamp(self) -> str:
        """Name all that a feature follows from, besides the image."""
        mixers = [one for one in self.encoder.modules() if isinstance(one, SelfAttention)]
        heads = [mixer.num_heads for mixer in mixers]  # which no weight tells
        weights = weights_stamp([*self.encoder.state_dict().items()])
        return f"{weights} {heads} {self.trainer.precision} {STATISTICS}"

    @torch.no_grad()
    def _standardize(self, datamodule: StudyDataModule) -> None:
        """Tell the pool what the training studies have in common; the same on every rank."""
        means = []
        for batch in datamodule.plain_loader(datamodule.studies["train"]):
            batch = batch.to(self.device)
            with self.trainer.precision_plugin.forward_context():
                features = self.features(batch)
            means.append(self.pool.study_means(features, batch.token_bounds))
        self.pool.standardize(torch.cat(means))

    def told(self, logits: Tensor) -> Tensor:
        """Return probabilities; for a regression the numbers."""
        assert self.labels is not None
        if self.labels.task == "regression":
            return logits.float()
        if self.labels.task == "multiclass":
            return logits.float().softmax(dim=1)
        return logits.float().sigmoid()

    def _gathered(self, split: str) -> Predictions:
        """Return what all ranks said of the studies of a split, each once."""
        assert self.labels is not None
        parts = gathered(self._outputs)
        studies = self.trainer.datamodule.studies[split]  # pyright: ignore[reportAttributeAccessIssue]
        names = studies.ids
        subjects: dict[str, dict[str, None]] = {name: {} for name in names}
        owners = [names[owner] for owner in studies.owners.tolist()]
        for study, subject in zip(owners, studies.series["subject"].to_pylist(), strict=True):
            subjects[study][subject] = None
        ids = tuple(study for names, _, _ in parts for study in names)
        return Predictions(
            studies=ids,
            subjects=tuple("|".join(subjects[study]) for study in ids),
            outputs=torch.cat([outputs for _, outputs, _ in parts]),
            truth=torch.cat([truth for _, _, truth in parts]),
            names=self.labels.names,
            task=self.labels.task,
            classes=self.labels.classes,
        ).sorted_once()

    def _evaluated(self, said: Predictions, counts: Tensor | None) -> dict[str, Tensor]:
        return evaluate(said.task, said.outputs, said.truth, counts, self.specificity)

    def _log_loss(self, stage: str) -> None:
        sums = self.trainer.strategy.reduce(self.validation_sums, reduce_op="sum")
        assert isinstance(sums, Tensor)
        total, count = sums.tolist()
        mean = total / count if count else 0.0
        self.log(f"{stage}/loss", mean**0.5 if self.criterion.loss == "rmse" else mean)

    def _log_figures(self, stage: str, name: str, values: Tensor) -> None:
        """Log the mean over what is defined, how many that are, and each by its name."""
        assert self.labels is not None
        defined = torch.isfinite(values)
        if not defined.any():  # JSON has no word for that
            return
        self.log(f"{stage}/{name}_macro", float(macro(values)))
        columns = self.labels.classes if self.labels.task == "multiclass" else self.labels.names
        if len(values) == 1:
            return
        self.log(f"{stage}/{name}_defined", float(defined.sum()))
        for column, value in zip(columns, values.tolist(), strict=True):
            if np.isfinite(value):
                self.log(f"{stage}/{name}/{column.replace('/', '-')}", value)

    @override
    def _kept_names(self) -> set[str]:
        """All of it: a checkpoint is enough to predict."""
        return {*self.state_dict()}


def _never_seen(labels: Labels) -> Iterator[tuple[str, str]]:
    """Yield what no training study is: the label, and the class."""
    if labels.task == "regression":
        return
    for name, values in zip(labels.names, labels.values.T, strict=True):
        for code, told in enumerate(labels.classes or ("absent", "present")):
            if not (values == code).any():
                yield name, told


def _priors(
    labels: Labels, values: Float[Tensor, "studies findings"], balance: float
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return where outputs begin, how much positives or classes count, and the spread of numbers.

    A finding that every study has or none is taken to be missed once.
    """
    known = values.isfinite()
    if labels.task == "regression":
        mean = values.nanmean(dim=0).nan_to_num(nan=0.0)  # none is known
        off = (values - mean).where(known, torch.zeros(()))
        spread = (off.square().sum(dim=0) / known.sum(dim=0).clamp(min=1)).sqrt()
        return mean, None, spread.where(spread > 0, torch.ones(()))
    if labels.task == "multiclass":
        classes = values[known].long()
        counts = torch.bincount(classes, minlength=len(labels.classes)).float().clamp(min=0.5)
        weights = (counts.sum() / len(counts) / counts) ** balance
        return (weights * counts / (weights * counts).sum()).log(), weights, None
    positive = (values == 1).sum(dim=0).clamp(min=0.5)
    negative = (values == 0).sum(dim=0).clamp(min=0.5)
    weights = (negative / positive) ** balance
    return (weights * positive / negative).log(), weights, None
