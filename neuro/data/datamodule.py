"""The front door: the only LightningDataModule, shared by the systems."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int
from typing_extensions import override

from neuro.data.augment import Augment, check_window_probabilities
from neuro.data.cache import Cache
from neuro.data.cohort import Cohort
from neuro.data.collate import Collator, StudyCollator
from neuro.data.dataset import CONTROLS, SeriesDataset, donors
from neuro.data.features import FeatureFolder
from neuro.data.intake import (
    check_max_failed,
    check_num_workers,
    check_same_voxels,
    check_weights,
    in_cache_ledger,
    log_shown,
    shown_studies,
)
from neuro.data.loader import PlanInput, PlannedBatches, PlannedLoader
from neuro.data.manifest import SPLITS, Manifest, Series, unique_codes
from neuro.data.recipes import Recipe
from neuro.data.sampler import BatchBudget
from neuro.data.tokens import grid_of
from neuro.data.windows import Windows
from neuro.errors import InputError

log = logging.getLogger(__name__)


class StudyDataModule(L.LightningDataModule):
    """Scans on disk become batches of whole studies.

    Args:
        cohort: Where the studies come from.
        recipes: What is done to the scans of each modality before they are cached.
        cache_dir: Where they are cached.
        collate: Makes a batch of series.
        budget: The limits of a batch.
        augment: What is drawn for a training image.
        windows: How runs are cut.
        window_probabilities: How often each CT window is drawn in training; None shows all.
        weights: How often an epoch of training shows each study of a cohort, by its name; a
            cohort that is not named is shown once.
        max_failed: Share of the scans, in [0, 1], that may be unusable; they are named. A study
            that is asked about needs each of its images and is left out otherwise; any other is
            shown with the series that can be used.
        num_workers: Processes that read; 0 reads in this one.
        seed: The run's seed.

    Raises:
        InputError: A number is out of range.
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
        windows: Windows,
        max_failed: float,
        num_workers: int,
        seed: int,
        window_probabilities: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_max_failed(max_failed)
        check_weights(weights or {})
        check_num_workers(num_workers)
        if window_probabilities is not None:
            check_window_probabilities(window_probabilities)
        self.cohort = cohort
        self.cache = Cache(cache_dir, recipes)
        self.collate = collate
        self.budget = budget
        self.augment = augment
        self.windows = windows
        self.window_probabilities = window_probabilities
        self.weights = weights
        self.max_failed = max_failed
        self.num_workers = num_workers
        self.seed = seed
        self.features: FeatureFolder | None = None  # what a frozen encoder made of each study
        self._is_prepared = False
        self._paired: tuple[Manifest, dict[int, int]] | None = None

    @cached_property
    def manifest(self) -> Manifest:
        """Every study of the cohort, read once per process."""
        return in_cache_ledger(self.cohort, self.cache, self.weights)

    @override
    def prepare_data(self) -> None:
        """Bring the cache up to date and check every study, once; fit and test ask again."""
        if self._is_prepared:
            return
        for split in SPLITS:
            self._listed(split)
        self.collate.check(self.manifest, self.cache.recipes)
        failures = self.cache.build(
            self.manifest.scans(),
            max_failed=self.max_failed,
            known_failures=self.manifest.failures,
        )
        for failure in failures:
            log.warning("left out: %s", failure)
        check_same_voxels(self.manifest, self.cache)
        for studies in self.studies.values():
            self.collate.check_tokens(studies, self._tokens_of_rows(studies))
        self._check_controls()
        self._is_prepared = True

    @cached_property
    def studies(self) -> dict[str, Manifest]:
        """The studies of each split that can be shown, windows of runs one by one.

        Raises:
            InputError: A split is empty.
        """
        usable = self._usable
        shown = {name: self._shown(name, usable) for name in SPLITS}
        log_shown(self.manifest, shown)
        return {
            name: self.windows.expand(one, self.cache.recipes, usable)
            for name, one in shown.items()
        }

    def _shown(self, split: str, usable: Mapping[Series, int]) -> Manifest:
        listed = self._listed(split)
        shown = shown_studies(listed, usable)
        if shown is None:
            raise InputError(
                f"the {split} split has no study left: none of its {len(listed)} can be used, see "
                f"{self.cache.root / 'failures.tsv'}. Mend their scans."
            )
        return shown

    def _listed(self, split: str) -> Manifest:
        listed = self.manifest.split(split)
        if listed is None:
            raise InputError(
                f"the {split} split has no study; got {len(self.manifest)} studies in all. "
                f"{self.manifest.cures.get(split, 'Give it some.')}"
            )
        return listed

    @cached_property
    def _usable(self) -> dict[Series, int]:
        """The scans that can be read, with their frames; 0 for a single volume."""
        facts = self.cache.facts(self.manifest.scans())
        return {scan: one.num_frames for scan, one in facts.items()}

    def dataset(self, split: str, *, control: str | None = None) -> SeriesDataset:
        """Return the series of a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            control: Show each study not its own images but those of another subject
                (``shuffled``), or the foreground of these with nothing in it (``zero``) or noise
                (``noise``). Its own head has left no trace then: neither voxels nor its size.
        """
        studies, givers = self.studies[split], None
        if control is not None:
            studies, givers = self._swapped(studies)
        return SeriesDataset(
            studies,
            self.cache,
            augment=self.augment if split == "train" else None,
            seed=self.seed,
            windows=self.windows,
            window_probabilities=self.window_probabilities,
            min_foreground=self.collate.background.share,
            givers=givers,
            control=control or CONTROLS[0],
            features=self.features,
        )

    def _swapped(self, studies: Manifest) -> tuple[Manifest, Manifest]:
        """Return the studies that controls show, and those whose images they show instead."""
        pairs = self._donors(studies)
        return studies.take(list(pairs)), studies.take(list(pairs.values()))

    def _donors(self, studies: Manifest) -> dict[int, int]:
        """Return who shows whose images; each control asks again, and many studies take long."""
        if self._paired is None or self._paired[0] is not studies:
            self._paired = studies, donors(studies)
        return self._paired[1]

    def _check_controls(self) -> None:
        """Check that a text has room for another's images too, before the hours up to the test."""
        studies = self.studies["test"]
        if studies.conversations is None or len(self._donors(studies)) < self._world_size:
            return
        shown, givers = self._swapped(studies)
        others = "with another subject's images"  # as controls show them
        try:
            self.collate.check_tokens(shown, self._tokens_of_rows(givers), f" {others}")
        except InputError as error:
            raise InputError(f"{others}: {error}") from error

    @property
    def draws_nothing(self) -> bool:
        """Whether training shows each image exactly as evaluation does, in every epoch."""
        draws_windows = self.window_probabilities is not None and any(
            len(recipe.views) > 1 for recipe in self.cache.recipes.values()
        )
        return (
            self.augment == Augment()
            and self.collate.background.patch_drop_rate == 0
            and not draws_windows
        )

    def plain_loader(self, studies: Manifest) -> PlannedLoader:
        """Return some studies in batches, as evaluation shows them, all on this rank."""
        dataset = self._plain(studies)
        batches = PlannedBatches(
            dataset,
            self.planned(dataset),
            seed=self.seed,
            rank=0,
            world_size=1,
            shuffle=False,
        )
        return PlannedLoader(
            batches,
            collate_fn=StudyCollator(self.collate.background),
            num_workers=self.num_workers,
            # Its own, or the numbers that training draws would depend on it.
            generator=torch.Generator(),
        )

    def batch_of(self, studies: Manifest) -> Any:
        """Return some studies as one batch of the system, as evaluation shows them.

        They are read in this process, and nothing is drawn.
        """
        dataset = self._plain(studies)
        return self.collate([dataset[row, 0] for row in range(len(dataset))])

    def _plain(self, studies: Manifest) -> SeriesDataset:
        """Return the series of some studies, as evaluation shows them."""
        return SeriesDataset(
            studies,
            self.cache,
            augment=None,
            seed=self.seed,
            windows=self.windows,
            min_foreground=self.collate.background.share,
            features=self.features,
        )

    def images_of(self, studies: Manifest) -> dict[str, str]:
        """Return for each study a name for exactly its tokens: recipes, voxels, background."""
        facts = self.cache.facts(studies.scans())
        share = self.collate.background.share
        return {
            study.id: hashlib.sha256(
                "|".join(
                    [str(share)]
                    + [f"{self.cache.entry(one)}{facts[one].voxels}" for one in study.series]
                ).encode()
            ).hexdigest()
            for study in studies
        }

    def planned(self, dataset: SeriesDataset) -> PlanInput:
        """Return what the plans of a dataset are made of."""
        studies = dataset.studies
        tokens = self._tokens_of_rows(dataset.givers if dataset.givers is not None else studies)
        return PlanInput(
            num_tokens=np.add.reduceat(tokens[dataset.series_rows], dataset.bounds[:-1]),
            budget=self.budget,
            signatures=_signatures(studies),
            weights=self._weights(studies) if dataset.augment is not None else None,
        )

    @override
    def train_dataloader(self) -> PlannedLoader:
        return self._loader(self.dataset("train"), shuffle=True)

    @override
    def val_dataloader(self) -> PlannedLoader:
        return self._loader(self.dataset("val"), shuffle=False)

    @override
    def test_dataloader(self) -> list[PlannedLoader]:
        """Return the test studies, then the same questions with the images of each control.

        Where nothing is asked, or nobody can give images to anybody, there are no controls.
        """
        loaders = [self._loader(self.dataset("test"), shuffle=False, again=False)]
        studies = self.studies["test"]
        if studies.conversations is None:
            return loaders
        shown = len(self._donors(studies))
        if shown >= self._world_size:
            if shown < len(studies):
                log.warning(
                    "%d of %d test studies have no other subject's images; the controls leave "
                    "them out",
                    len(studies) - shown,
                    len(studies),
                )
            loaders += [
                self._loader(self.dataset("test", control=control), shuffle=False, again=False)
                for control in CONTROLS
            ]
        else:
            log.warning("no controls: nobody in the test split can give images to anybody")
        return loaders

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _loader(
        self, dataset: SeriesDataset, *, shuffle: bool, again: bool = True
    ) -> PlannedLoader:
        batches = PlannedBatches(
            dataset,
            self.planned(dataset),
            seed=self.seed,
            rank=self.trainer.global_rank if self.trainer is not None else 0,
            world_size=self._world_size,
            shuffle=shuffle,
        )
        return PlannedLoader(
            batches,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            persistent_workers=again and self.num_workers > 0,
            pin_memory=self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
        )

    def _tokens_of_rows(self, studies: Manifest) -> Int[np.ndarray, " series"]:
        """Return how many tokens are kept of each image."""
        kept = self.cache.num_kept(studies.scans(), self.collate.background.share)
        times = {name: _times(recipe) for name, recipe in self.cache.recipes.items()}
        tokens = [kept[scan] * times[scan.modality] for scan in studies.scans()]
        return np.array(tokens, dtype=np.int64)[studies.scan_of_row]

    def _weights(self, studies: Manifest) -> Float[np.ndarray, " studies"] | None:
        if not self.weights:
            return None
        names = studies.studies["cohort"].to_pylist()
        return np.array([float(self.weights.get(name, 1.0)) for name in names])


def _signatures(studies: Manifest) -> Int[np.ndarray, " studies"]:
    """Return a number for each study, equal where the studies show the same modalities."""
    modalities = unique_codes(studies.series["modality"])
    present = np.zeros((len(studies), int(modalities.max()) + 1), dtype=bool)
    present[studies.owners, modalities] = True
    _, numbers = np.unique(present, axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.int64)


def _times(recipe: Recipe) -> int:
    """Return how many tokens a window has for each spatial one."""
    if recipe.shape is None or len(recipe.shape) == 3:
        return 1
    return grid_of(recipe.shape, recipe.patch)[3]
