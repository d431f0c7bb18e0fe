"""A DataLoader over planned batches that can stop anywhere and go on exactly there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from threading import Thread
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch.utils.data import DataLoader, Sampler

from neuro.data.dataset import SeriesDataset
from neuro.data.sampler import BatchBudget, EpochPlan, plan_epoch
from neuro.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class PlanInput:
    """What the plans of all epochs are made of, besides seed and epoch.

    Attributes:
        num_tokens: Image tokens of each study, background dropped.
        budget: The limits of a batch.
        signatures: Which modalities each study shows, as a number.
        weights: How often each study is shown in an epoch; None is once.
    """

    num_tokens: Int[np.ndarray, " studies"]
    budget: BatchBudget
    signatures: Int[np.ndarray, " studies"]
    weights: Float[np.ndarray, " studies"] | None = None

    def plan(self, *, seed: int, epoch: int, world_size: int, shuffle: bool) -> EpochPlan:
        """Return the plan of an epoch."""
        return plan_epoch(
            self.num_tokens,
            self.budget,
            seed=seed,
            epoch=epoch,
            world_size=world_size,
            shuffle=shuffle,
            signatures=self.signatures,
            weights=self.weights if shuffle else None,
        )


class PlannedBatches(Sampler[list[tuple[int, int]]]):
    """The batches of one rank in one epoch, as rows of a ``SeriesDataset``.

    Args:
        dataset: The studies.
        planned: What plans are made of.
        seed: The run's seed.
        rank: Whose batches.
        world_size: Number of ranks.
        shuffle: Whether the order is drawn anew each epoch.
    """

    def __init__(
        self,
        dataset: SeriesDataset,
        planned: PlanInput,
        *,
        seed: int,
        rank: int,
        world_size: int,
        shuffle: bool,
    ) -> None:
        self.dataset = dataset
        self.planned = planned
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.epoch = 0
        self.start = 0
        self.sampler = (
            self  # Lightning looks for set_epoch at loader.batch_sampler.sampler, and nowhere else
        )
        self._plans: dict[int, EpochPlan] = {}

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; Lightning calls this."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def plan(self, epoch: int) -> EpochPlan:
        """Return the batches of all ranks in an epoch."""
        if not self.shuffle:
            epoch = 0
        if epoch not in self._plans:
            plan = self.planned.plan(
                seed=self.seed, epoch=epoch, world_size=self.world_size, shuffle=self.shuffle
            )
            self._plans = {epoch: plan}
        return self._plans[epoch]

    def digest(self) -> str:
        """Return a name for exactly this plan: what all ranks and epochs of it share."""
        planned = self.planned
        made_of = hashlib.sha256(
            json.dumps([astuple(planned.budget), self.seed, self.world_size]).encode()
        )
        made_of.update("\n".join(self.dataset.studies.ids).encode())
        for array in (planned.num_tokens, planned.signatures, planned.weights):
            made_of.update(b"|" if array is None else np.ascontiguousarray(array).tobytes())
        return made_of.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.plan(self.epoch))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (row, epoch), from ``start`` on."""
        for batch in self.plan(self.epoch).rank(self.rank)[self.start :]:
            rows = [self.dataset.rows_of(study) for study in batch.tolist()]
            yield [(row, self.epoch) for own in rows for row in own]


class PlannedLoader(DataLoader[Any]):
    """A DataLoader whose state is (epoch, batches done).

    Lightning saves and loads it with the checkpoint.
    """

    def __init__(self, batches: PlannedBatches, **kwargs: Any) -> None:
        super().__init__(
            batches.dataset, batch_sampler=batches, worker_init_fn=_outlive_signals, **kwargs
        )
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
                "data.max_tokens, data.min_foreground, data.weights or number of ranks: its place "
                "in the epoch means nothing here. Go on with the same ones."
            )
        self._num_done = state["num_done"]  # until there is a next batch
        self.batches.start = state["num_done"] % len(self.batches)


def _outlive_signals(worker: int) -> None:
    """Let a process that reads end when the one that trains says so, and not before.

    A scheduler sends its signals to all processes of a job, and Ctrl-C goes to all of a terminal.
    The one that trains then ends its step and saves; without those who read it could not.
    """
    for signum in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere nobody tells who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_when_told, daemon=True).start()


def _end_when_told() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
