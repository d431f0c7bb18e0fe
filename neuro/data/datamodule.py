"""The front door: the only LightningDataModule, shared by the systems."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
from torch import Tensor
from typing_extensions import override

from neuro.data.augment import Augment
from neuro.data.cache import Cache
from neuro.data.cohort import Cohort
from neuro.data.dataset import SeriesDataset, SeriesTokens, donors
from neuro.data.loader import PlannedBatches, PlannedLoader, study_tokens
from neuro.data.manifest import SPLITS, Manifest, Study
from neuro.data.recipes import Recipe
from neuro.data.sampler import BatchBudget, plan_epoch
from neuro.errors import InputError

log = logging.getLogger(__name__)


@runtime_checkable
class Collator(Protocol):
    """Makes a batch of series."""

    def __call__(self, items: Sequence[SeriesTokens]) -> Any:
        """Collate the series of whole studies, which follow one another."""
        ...

    def check(self, study: Study, foreground: Sequence[Tensor]) -> None:
        """Raise InputError if a study, with these foreground shares, cannot become a batch."""
        ...


class StudyDataModule(L.LightningDataModule):
    """Scans on disk become batches of whole studies.

    Args:
        cohort: Where the studies come from.
        recipes: What is done to the scans of each modality before they are cached.
        cache_dir: Where they are cached.
        collate: Makes a batch of series.
        budget: The limits of a batch.
        augment: What is drawn for a training image.
        max_failed: Share of the scans, in [0, 1], that may be unusable; their studies are left out,
            and named.
        num_workers: Processes that read.
        seed: The run's seed.
    """

    def __init__(
        self,
        *,
        cohort: Cohort,
        recipes: Mapping[str, Recipe],
        cache_dir: Path | str,
        collate: Collator,
        budget: BatchBudget,
        augment: Augment,
        max_failed: float,
        num_workers: int,
        seed: int,
    ) -> None:
        super().__init__()
        if not 0 <= max_failed <= 1:
            raise InputError(f"data.max_failed must be a share in [0, 1]; got {max_failed}.")
        self.cohort = cohort
        self.cache = Cache(cache_dir, recipes)
        self.collate = collate
        self.budget = budget
        self.augment = augment
        self.max_failed = max_failed
        self.num_workers = num_workers
        self.seed = seed
        self._is_prepared = False

    @cached_property
    def manifest(self) -> Manifest:
        """Every study of the cohort, read once per process."""
        return self.cohort.manifest()

    @override
    def prepare_data(self) -> None:
        """Bring the cache up to date and check every study, once; fit and test ask again."""
        if self._is_prepared:
            return
        for failure in self.cache.build(self.manifest.scans(), max_failed=self.max_failed):
            log.warning("left out: %s", failure)
        for studies in self.studies.values():
            for study in studies:
                self.collate.check(study, [self.cache.foreground(one) for one in study.series])
        self._is_prepared = True

    @cached_property
    def studies(self) -> dict[str, tuple[Study, ...]]:
        """The studies of each split whose scans can all be read.

        Raises:
            InputError: A split is empty.
        """
        usable = {scan for scan in self.manifest.scans() if self.cache.entry(scan).exists()}
        splits = {}
        for name in SPLITS:
            listed = self.manifest.split(name)
            splits[name] = tuple(study for study in listed if usable.issuperset(study.series))
            if len(splits[name]) < len(listed):
                log.warning(
                    "%s: %d of %d studies left out, see failures.tsv",
                    name,
                    len(listed) - len(splits[name]),
                    len(listed),
                )
            if not splits[name]:
                raise InputError(
                    f"the {name} split has no study; "
                    f"got {len(self.manifest.studies)} studies in all. "
                    f"Raise data.splits.{name if name != 'train' else 'val'} "
                    f"or change data.splits.salt."
                )
        return splits

    def dataset(self, split: str, *, shuffled: bool = False) -> SeriesDataset:
        """Return the series of a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            shuffled: Show each study the images of another subject: the control.
        """
        studies = self.studies[split]
        pairs = donors(studies) if shuffled else None
        if pairs is not None:
            studies = tuple(study for study in studies if study.id in pairs)
        augment = self.augment if split == "train" else None
        return SeriesDataset(studies, self.cache, augment=augment, seed=self.seed, donors=pairs)

    def plan(
        self, split: str, *, epoch: int, world_size: int
    ) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """Return the batches of each rank in an epoch."""
        return plan_epoch(
            study_tokens(self.dataset(split)),
            self.budget,
            seed=self.seed,
            epoch=epoch,
            world_size=world_size,
            shuffle=split == "train",
        )

    @override
    def train_dataloader(self) -> PlannedLoader:
        return self._loader(self.dataset("train"), shuffle=True)

    @override
    def val_dataloader(self) -> PlannedLoader:
        return self._loader(self.dataset("val"), shuffle=False)

    @override
    def test_dataloader(self) -> list[PlannedLoader]:
        """Return the test studies, then the same questions with another subject's images.

        A cohort in which nobody can give images to anybody has no second loader.
        """
        loaders = [self._loader(self.dataset("test"), shuffle=False)]
        control = self.dataset("test", shuffled=True)
        if len(control.studies) >= self._world_size:
            loaders.append(self._loader(control, shuffle=False))
        else:
            log.warning("no image-shuffle control: the test split has one subject")
        return loaders

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _loader(self, dataset: SeriesDataset, *, shuffle: bool) -> PlannedLoader:
        batches = PlannedBatches(
            dataset,
            self.budget,
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer is not None else 0,
            world_size=self._world_size,
            shuffle=shuffle,
        )
        return PlannedLoader(
            batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
        )
