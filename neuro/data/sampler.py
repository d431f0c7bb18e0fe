"""The epoch plan: which studies share a batch, and which rank gets it.

A plan is a pure function of the studies' sizes, the budgets, (seed, epoch) and the number of ranks,
so it can be printed before any device is asked for, and a resumed run finds its place in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from neuro.errors import InputError

Batch = tuple[int, ...]  # positions of studies


@dataclass(frozen=True, kw_only=True)
class BatchBudget:
    """How much goes into one batch.

    Args:
        max_studies: Studies at most.
        max_tokens: Image tokens at most; a study that exceeds it on its own is an error when the
            plan is made.
    """

    max_studies: int
    max_tokens: int

    def __post_init__(self) -> None:
        if self.max_studies < 1 or self.max_tokens < 1:
            raise InputError(
                f"data.max_studies={self.max_studies} and data.max_tokens={self.max_tokens} must "
                f"be at least 1."
            )


def plan_epoch(
    num_tokens: Sequence[int],
    budget: BatchBudget,
    *,
    seed: int,
    epoch: int,
    world_size: int,
    shuffle: bool,
) -> tuple[tuple[Batch, ...], ...]:
    """Return the batches of each rank.

    Every study is in exactly one batch of one rank, and all ranks have equally many batches: where
        the number does
    not divide, the largest batches are halved until it does.

    Args:
        num_tokens: Image tokens of each study.
        budget: The limits of a batch.
        seed: The run's seed.
        epoch: Another epoch gives another order.
        world_size: Number of ranks.
        shuffle: Whether the order is drawn; otherwise it is the given one.

    Raises:
        InputError: A study exceeds the budget, or there are fewer studies than ranks.
    """
    if len(num_tokens) < world_size:
        raise InputError(
            f"{len(num_tokens)} studies cannot be shared by {world_size} ranks; each needs one. "
            f"Lower trainer.devices."
        )
    order = list(range(len(num_tokens)))
    if shuffle:
        order = torch.randperm(
            len(order), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        ).tolist()
    batches = _even_out(_fill(order, num_tokens, budget), world_size)
    return tuple(tuple(batches[rank::world_size]) for rank in range(world_size))


def _fill(order: list[int], num_tokens: Sequence[int], budget: BatchBudget) -> list[Batch]:
    """Fill batches in order."""
    batches: list[Batch] = []
    current: list[int] = []
    total = 0
    for study in order:
        size = num_tokens[study]
        if size > budget.max_tokens:
            raise InputError(
                f"a study has {size} image tokens and data.max_tokens is {budget.max_tokens}. "
                f"Raise it to {size}."
            )
        if current and (len(current) == budget.max_studies or total + size > budget.max_tokens):
            batches.append(tuple(current))
            current, total = [], 0
        current.append(study)
        total += size
    if current:
        batches.append(tuple(current))
    return batches


def _even_out(batches: list[Batch], world_size: int) -> list[Batch]:
    """Halve the largest batches until their number is a multiple of the number of ranks."""
    batches = list(batches)
    while len(batches) % world_size:
        place = max(range(len(batches)), key=lambda index: len(batches[index]))
        largest = batches[place]
        if len(largest) == 1:
            raise InputError(
                f"{len(batches)} batches of one study each cannot be shared evenly by {world_size} "
                f"ranks. Raise data.max_studies or data.max_tokens, or lower trainer.devices."
            )
        half = len(largest) // 2
        batches[place : place + 1] = [largest[:half], largest[half:]]
    return batches
