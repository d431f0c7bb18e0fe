"""The front door: the only LightningDataModule, shared by the systems."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import numpy as np
from jaxtyping import Float, Int
from typing_extensions import override

from neuro.data.augment import Augment, check_window_probabilities
from neuro.data.cache import Cache
from neuro.data.cohort import Cohort
from neuro.data.collate import Background
from neuro.data.dataset import SeriesDataset, SeriesTokens, donors
from neuro.data.leaks import LeakError, check_voxels
from neuro.data.loader import PlanInput, PlannedBatches, PlannedLoader
from neuro.data.manifest import SPLITS, Manifest, Series, unique_codes
from neuro.data.recipes import Recipe
from neuro.data.sampler import BatchBudget
from neuro.data.tokens import grid_of
from neuro.data.windows import Windows
from neuro.errors import InputError

log = logging.getLogger(__name__)


@runtime_checkable
class Collator(Protocol):
    """Makes a batch of series."""

    background: Background

    def __call__(self, items: Sequence[SeriesTokens]) -> Any:
        """Collate the series of whole studies, which follow one another."""
        ...

    def check(self, studies: Manifest, num_tokens: Int[np.ndarray, " series"]) -> None:
        """Raise InputError if a study cannot become a batch.

        Args:
            studies: All of a split.
            num_tokens: How many tokens each of their images keeps.
        """
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
        windows: How runs are cut.
        window_probabilities: How often each CT window is drawn in training; None shows all.
        weights: How often an epoch of training shows each study of a cohort, by its name; a
            cohort that is not named is shown once.
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
        windows: Windows,
        max_failed: float,
        num_workers: int,
        seed: int,
        window_probabilities: Mapping[str, float] | None = None,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        check_max_failed(max_failed)
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
        self._is_prepared = False

    @cached_property
    def manifest(self) -> Manifest:
        """Every study of the cohort, read once per process."""
        return in_cache_ledger(self.cohort, self.cache)

    @override
    def prepare_data(self) -> None:
        """Bring the cache up to date and check every study, once; fit and test ask again."""
        if self._is_prepared:
            return
        failures = self.cache.build(
            self.manifest.scans(),
            max_failed=self.max_failed,
            known_failures=self.manifest.failures,
        )
        for failure in failures:
            log.warning("left out: %s", failure)
        check_same_voxels(self.manifest, self.cache)
        for studies in self.studies.values():
            self.collate.check(studies, self._tokens_of_rows(studies))
        self._is_prepared = True

    @cached_property
    def studies(self) -> dict[str, Manifest]:
        """The studies of each split whose scans can all be read, windows of runs one by one.

        Raises:
            InputError: A split is empty.
        """
        usable = self._usable
        splits = {}
        for name in SPLITS:
            listed = self.manifest.split(name)
            kept = _whole(listed, usable) if listed is not None else None
            if listed is not None and (kept is None or len(kept) < len(listed)):
                log.warning(
                    "%s: %d of %d studies left out, see failures.tsv",
                    name,
                    len(listed) - (len(kept) if kept is not None else 0),
                    len(listed),
                )
            if kept is None:
                raise InputError(
                    f"the {name} split has no study; "
                    f"got {len(self.manifest)} studies in all. "
                    f"Raise data.splits.{name if name != 'train' else 'val'} "
                    f"or change data.splits.salt."
                )
            splits[name] = self.windows.expand(kept, self.cache.recipes, usable)
        return splits

    @cached_property
    def _usable(self) -> dict[Series, int]:
        """The scans that can be read, with their frames; 0 for a single volume."""
        facts = self.cache.facts(self.manifest.scans())
        return {scan: one.num_frames for scan, one in facts.items()}

    def dataset(self, split: str, *, shuffled: bool = False) -> SeriesDataset:
        """Return the series of a split.

        Args:
            split: ``train``, ``val`` or ``test``.
            shuffled: Show each study the images of another subject: the control.
        """
        studies, givers = self.studies[split], None
        if shuffled:
            pairs = donors(studies)
            givers = studies.take(list(pairs.values()))
            studies = studies.take(list(pairs))
        return SeriesDataset(
            studies,
            self.cache,
            augment=self.augment if split == "train" else None,
            seed=self.seed,
            windows=self.windows,
            window_probabilities=self.window_probabilities,
            min_foreground=self.collate.background.share,
            givers=givers,
        )

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
        """Return the test studies, then the same questions with another subject's images.

        Where nothing is asked, or nobody can give images to anybody, there is no second loader.
        """
        loaders = [self._loader(self.dataset("test"), shuffle=False)]
        if self.studies["test"].conversations is None:
            return loaders
        if len(donors(self.studies["test"])) >= self._world_size:
            loaders.append(self._loader(self.dataset("test", shuffled=True), shuffle=False))
        else:
            log.warning("no image-shuffle control: the test split has one subject")
        return loaders

    @property
    def _world_size(self) -> int:
        return self.trainer.world_size if self.trainer is not None else 1

    def _loader(self, dataset: SeriesDataset, *, shuffle: bool) -> PlannedLoader:
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
            persistent_workers=self.num_workers > 0,
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
        unknown = sorted(set(self.weights) - set(names))
        if unknown:
            raise InputError(
                f"data.weights names {', '.join(unknown)}; the train split has the cohorts "
                f"{', '.join(sorted(set(names))) or 'none'}. Correct the names."
            )
        return np.array([float(self.weights.get(name, 1.0)) for name in names])


def check_max_failed(max_failed: float) -> None:
    """Check that a tolerance is a share.

    Raises:
        InputError: It is not.
    """
    if not 0 <= max_failed <= 1:
        raise InputError(f"data.max_failed must be a share in [0, 1]; got {max_failed}.")


def in_cache_ledger(cohort: Cohort, cache: Cache) -> Manifest:
    """Return a cohort's manifest; what leaks is written beside the cache's failures.

    Raises:
        LeakError: Something is in two splits.
    """
    try:
        return cohort.manifest()
    except LeakError as error:
        raise _told(error, cache) from None


def check_same_voxels(manifest: Manifest, cache: Cache) -> None:
    """Check that no image is in two splits under two names, after it was prepared.

    Raises:
        LeakError: One is.
    """
    scans = manifest.scans()
    facts = cache.facts(scans)
    digests: dict[str, int] = {}
    codes = [
        digests.setdefault(f"{scan.modality}{facts[scan].voxels}", len(digests))
        if scan in facts
        else -1
        for scan in scans
    ]
    try:
        check_voxels(manifest, np.array(codes, dtype=np.int64)[manifest.scan_of_row])
    except LeakError as error:
        raise _told(error, cache) from None


def _told(error: LeakError, cache: Cache) -> LeakError:
    error.write(cache.root / "leaks.tsv")
    error.args = (f"{error} All {len(error.pairs)} pairs are in {cache.root / 'leaks.tsv'}.",)
    return error


def _whole(studies: Manifest, usable: Mapping[Series, int]) -> Manifest | None:
    """Return the studies all of whose scans can be used; None if there is none."""
    is_usable = np.array([scan in usable for scan in studies.scans()])[studies.scan_of_row]
    rows = np.flatnonzero(np.logical_and.reduceat(is_usable, studies.bounds[:-1]))
    return studies.take(rows) if len(rows) else None


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
