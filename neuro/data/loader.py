"""A DataLoader over planned batches that can stop anywhere and go on exactly there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from neuro.data.dataset import SeriesDataset
from neuro.data.sampler import Batch, BatchBudget, plan_epoch
from neuro.errors import InputError


class PlannedBatches(Sampler[list[tuple[int, int]]]):
    """The batches of one rank in one epoch, as rows of a ``SeriesDataset``.

    Args:
        dataset: The studies.
        budget: The limits of a batch.
        seed: The run's seed.
        rank: Whose batches.
        world_size: Number of ranks.
        shuffle: Whether the order is drawn anew each epoch.
    """

    def __init__(
        self,
        dataset: SeriesDataset,
        budget: BatchBudget,
        *,
        seed: int,
        rank: int,
        world_size: int,
        shuffle: bool,
    ) -> None:
        self.dataset = dataset
        self.budget = budget
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0
        self.sampler = (
            self  # Lightning looks for set_epoch at loader.batch_sampler.sampler, and nowhere else
        )
        self._num_tokens = study_tokens(dataset)
        self._rows = _rows_by_study(dataset)
        self._plans: dict[int, tuple[Batch, ...]] = {}

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def plan(self, epoch: int) -> tuple[Batch, ...]:
        """Return this rank's batches in an epoch."""
        if not self.shuffle:
            epoch = 0
        if epoch not in self._plans:
            plan = plan_epoch(
                self._num_tokens,
                self.budget,
                seed=self.seed,
                epoch=epoch,
                world_size=self.world_size,
                shuffle=self.shuffle,
            )
            self._plans = {epoch: plan[self.rank]}
        return self._plans[epoch]

    def digest(self) -> str:
        """Return a name for exactly this plan: what all ranks and epochs of it share."""
        ids = [study.id for study in self.dataset.studies]
        made_of = [ids, self._num_tokens, astuple(self.budget), self.seed, self.world_size]
        return hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.plan(self.epoch))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (row, epoch), from ``start`` on."""
        for batch in self.plan(self.epoch)[self.start :]:
            yield [(row, self.epoch) for study in batch for row in self._rows[study]]


class PlannedLoader(DataLoader[Any]):
    """A DataLoader whose state is (epoch, batches done).

    Lightning saves and loads it with the checkpoint.
    """

    def __init__(self, batches: PlannedBatches, **kwargs: Any) -> None:
        super().__init__(batches.dataset, batch_sampler=batches, **kwargs)
        self.batches = batches
        self._num_done = 0

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Yield batches and count them."""
        self._num_done = self.batches.start
        for batch in super().__iter__():
            self._num_done += 1
            yield batch
        self.batches.start = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the plan."""
        return {
            "epoch": self.batches.epoch,
            "num_done": self._num_done,
            "plan": self.batches.digest(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place in the plan; the next iteration goes on from there.

        Raises:
            InputError: The place is one of another plan.
        """
        self.batches.epoch = state["epoch"]
        if state["plan"] != self.batches.digest():
            raise InputError(
                "the checkpoint was made with other studies, another seed, data.max_studies, "
                "data.max_tokens or number of ranks: its place in the epoch means nothing here. "
                "Go on with the same ones."
            )
        self.batches.start = state["num_done"] % len(self.batches)


def study_tokens(dataset: SeriesDataset) -> list[int]:
    """Return the image tokens of each study, before background is dropped."""
    tokens = {}
    for modality, recipe in dataset.cache.recipes.items():
        sizes = torch.tensor(recipe.shape) // torch.tensor(recipe.patch)
        tokens[modality] = int(sizes.prod())
    return [sum(tokens[modality] for modality in study.modalities) for study in dataset.studies]


def _rows_by_study(dataset: SeriesDataset) -> Sequence[list[int]]:
    rows: list[list[int]] = [[] for _ in dataset.studies]
    place = {study.id: index for index, study in enumerate(dataset.studies)}
    for row, (study, _) in enumerate(dataset.rows):
        rows[place[study.id]].append(row)
    return rows
