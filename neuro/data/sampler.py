"""The epoch plan: which studies share a batch, and which rank gets it.

A plan is a pure function of the studies' sizes, kinds and weights, the budget, (seed, epoch) and
the number of ranks, so it can be printed before any device is asked for, and a resumed run finds
its place in it. Chance comes from the raw bits of PCG64, which numpy promises to keep, and not from
its ``Generator``, which may change: a plan is the same on every machine and with every release.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Float, Int

from neuro.errors import InputError

Batch = Int[np.ndarray, " batch"]  # positions of studies

ORDER, WEIGHTS, REPEATS, KINDS = range(4)  # what chance decides; each has a stream of its own


@dataclass(frozen=True, kw_only=True)
class BatchBudget:
    """How much goes into one batch.

    Args:
        max_studies: Studies at most.
        max_tokens: Image tokens at most; a study that exceeds it on its own is an error when the
            plan is made.
        same_modalities: Whether all studies of a batch show the same modalities.
    """

    max_studies: int
    max_tokens: int
    same_modalities: bool = False

    def __post_init__(self) -> None:
        if self.max_studies < 1 or self.max_tokens < 1:
            raise InputError(
                f"data.max_studies={self.max_studies} and data.max_tokens={self.max_tokens} must "
                f"be at least 1."
            )


@dataclass(frozen=True, eq=False)  # eq: two plans are compared by their digests
class EpochPlan:
    """The batches of every rank in one epoch; batch ``b`` is step ``b // world_size`` of a rank.

    Args:
        order: Positions of studies, batch after batch.
        bounds: Batch ``b`` is ``order[bounds[b] : bounds[b + 1]]``; none is empty.
        world_size: Number of ranks; it divides the number of batches.
    """

    order: Int[np.ndarray, " shown"]
    bounds: Int[np.ndarray, " bounds"]
    world_size: int

    @property
    def num_steps(self) -> int:
        """How many batches each rank has."""
        return (len(self.bounds) - 1) // self.world_size

    def __len__(self) -> int:
        return self.num_steps

    def batch(self, rank: int, step: int) -> Batch:
        """Return the studies of a rank in a step."""
        index = step * self.world_size + rank
        return self.order[self.bounds[index] : self.bounds[index + 1]]

    def rank(self, rank: int) -> RankBatches:
        """Return the batches of a rank; they are views, made when they are asked for."""
        return RankBatches(self, rank, range(self.num_steps))

    def digest(self) -> str:
        """Return a name for exactly these batches: 16 hexadecimal digits, equal on all machines."""
        made_of = hashlib.sha256(str(self.world_size).encode())
        made_of.update(self.bounds.astype("<i8").tobytes())
        made_of.update(self.order.astype("<i8").tobytes())
        return made_of.hexdigest()[:16]


class RankBatches(Sequence[Batch]):
    """Some steps of one rank."""

    def __init__(self, plan: EpochPlan, rank: int, steps: range) -> None:
        self._plan = plan
        self._rank = rank
        self._steps = steps

    def __len__(self) -> int:
        return len(self._steps)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> RankBatches: ...
    def __getitem__(self, index: int | slice) -> Batch | RankBatches:
        if isinstance(index, slice):
            return RankBatches(self._plan, self._rank, self._steps[index])
        return self._plan.batch(self._rank, self._steps[index])


def plan_epoch(
    num_tokens: Int[np.ndarray, " studies"],
    budget: BatchBudget,
    *,
    seed: int,
    epoch: int,
    world_size: int,
    shuffle: bool,
    signatures: Int[np.ndarray, " studies"] | None = None,
    weights: Float[np.ndarray, " studies"] | None = None,
) -> EpochPlan:
    """Return the batches of every rank.

    Every study is in exactly one batch of one rank (if it is weighted, in as many as it is shown,
    never twice in one), and all ranks have equally many batches. Where the number does not divide,
    the largest batches are halved until it does; if all hold one study, training shows the fewest
    possible studies once more.

    Args:
        num_tokens: Image tokens of each study.
        budget: The limits of a batch.
        seed: The run's seed.
        epoch: Another epoch gives another order.
        world_size: Number of ranks.
        shuffle: Whether the order is drawn (training); otherwise it is the given one, which batches
            of the same modalities keep among themselves (evaluation).
        signatures: Which modalities each study shows, as a number; ``budget.same_modalities`` asks
            for it. In training, the kinds of batches then take turns in proportion.
        weights: How often each study is shown in an epoch, on average, at least 0; default: once.
            See ``draw_counts``.

    Raises:
        InputError: A study exceeds the budget, there are fewer studies than ranks, a weight is
            negative or not finite, or in evaluation: studies are weighted, or the batches cannot be
            shared evenly.
    """
    if weights is None:
        wanted, counts = np.arange(len(num_tokens)), np.ones(len(num_tokens), np.int64)
    else:
        _check_weights(weights, shuffle)
        wanted, counts = np.flatnonzero(weights), draw_counts(weights, seed=seed, epoch=epoch)
    _check_sizes(num_tokens[wanted], budget, world_size)
    order = np.repeat(np.arange(len(num_tokens)), counts)
    if shuffle:
        order = order[_take_turns(order, uniform(len(order), seed, ORDER, epoch))]
    kinds = np.zeros(len(num_tokens), np.int64)
    if budget.same_modalities:
        assert signatures is not None, "the caller gives signatures where the budget asks for them"
        kinds = signatures
        order = order[np.argsort(kinds[order], kind="stable")]
    bounds = _fill(order, num_tokens, kinds, budget)
    num_filled = len(bounds) - 1
    bounds, num_missing = _even_out(bounds, world_size)
    if num_missing and not shuffle:
        raise _uneven(num_filled, len(wanted), world_size)
    if num_missing:
        again = np.argsort(uniform(len(wanted), seed, REPEATS, epoch), kind="stable")[:num_missing]
        order = np.concatenate([order, wanted[again]])
        bounds = np.concatenate([bounds, bounds[-1] + np.arange(1, num_missing + 1)])
    if budget.same_modalities:
        first = order[bounds[:-1]]  # of each batch
        chance = uniform(len(first), seed, KINDS, epoch)
        places = _take_turns(kinds[first], chance) if shuffle else np.argsort(first)
        order, bounds = _rearrange(order, bounds, places)
    return EpochPlan(order, bounds, world_size)


def draw_counts(
    weights: Float[np.ndarray, " studies"], *, seed: int, epoch: int
) -> Int[np.ndarray, " studies"]:
    """Return how often each study is shown in an epoch, a function of (seed, epoch).

    A study of weight 2.3 is shown twice, and a third time in three of ten epochs; one of weight 0.3
    in three of ten. Of the studies of one weight, this share is shown in every epoch, give or take
    one study. Who it is, is drawn anew every ``ceil(1 / 0.3)`` epochs: until then the draws go on
    where the last one ended, so that within them each study is shown at least once.
    """
    whole = np.floor(weights)
    counts = whole.astype(np.int64)
    share = weights - whole  # in [0, 1)
    drawn = np.flatnonzero(share)
    length = np.ceil(1 / share[drawn])  # epochs of a round
    rounds = epoch // length
    for number in np.unique(rounds):  # few: all of 100 epochs have at most 20
        members = drawn[rounds == number]
        chance = uniform(2 * len(members), seed, WEIGHTS, int(number))
        members = members[np.lexsort((chance[: len(members)], share[members]))]
        rank, size = _runs(share[members])
        start = chance[len(members) + np.arange(len(members)) - rank]  # one for each weight
        phase = (rank + start) / size
        step = share[members]
        past = epoch % np.ceil(1 / step)  # epochs of this round
        counts[members] += (
            np.floor((past + 1) * step + phase) - np.floor(past * step + phase)
        ).astype(np.int64)
    return counts


def uniform(num: int, seed: int, purpose: int, turn: int) -> Float[np.ndarray, " num"]:
    """Return numbers in [0, 1) that depend on the arguments alone."""
    source = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(purpose, turn)))
    return (source.random_raw(num) >> 11) * 2.0**-53  # a float64 holds 53 bits


def plan_text(plan: EpochPlan, num_tokens: Int[np.ndarray, " studies"], budget: BatchBudget) -> str:
    """Return a table of what a plan holds, for people."""
    studies = np.diff(plan.bounds)
    tokens = np.add.reduceat(num_tokens[plan.order], plan.bounds[:-1])
    by_rank = tokens.reshape(plan.num_steps, plan.world_size)
    waiting = 1 - by_rank.sum() / (by_rank.max(axis=1).sum() * plan.world_size)
    of_rank = by_rank.sum(axis=0)
    different = np.count_nonzero(np.bincount(plan.order))

    def row(name: str, values: np.ndarray, limit: int) -> str:
        low, middle, high = int(values.min()), int(np.median(values)), int(values.max())
        return f"{name:<18}{low:>11,}{middle:>11,}{high:>11,}{values.mean() / limit:>11.1%}"

    return "\n".join(
        [
            f"{'plan':<18}{plan.digest()}",
            f"{'steps':<18}{plan.num_steps:,} on each of {plan.world_size:,} ranks",
            f"{'studies':<18}{len(plan.order):,} shown, {different:,} different of "
            f"{len(num_tokens):,}",
            f"{'in a batch':<18}{'min':>11}{'median':>11}{'max':>11}{'mean fill':>11}",
            row("studies", studies, budget.max_studies),
            row("image tokens", tokens, budget.max_tokens),
            f"{'ranks':<18}differ by {of_rank.max() / of_rank.min() - 1:.1%} in tokens; "
            f"{waiting:.1%} of a step is waiting for its largest batch",
        ]
    )


def _check_weights(weights: Float[np.ndarray, " studies"], shuffle: bool) -> None:
    if not shuffle:
        raise InputError(
            "an evaluation shows each study once, and studies are weighted. Weight those of the "
            "train split only."
        )
    wrong = ~(np.isfinite(weights) & (weights >= 0))
    if wrong.any():
        raise InputError(
            f"a weight says how often a study is shown in an epoch, from 0 on; "
            f"got {weights[wrong][0]}. Give 0 to leave a study out."
        )
    if not weights.any():
        raise InputError("all studies have the weight 0. Give some of them a larger one.")


def _check_sizes(
    num_tokens: Int[np.ndarray, " wanted"], budget: BatchBudget, world_size: int
) -> None:
    if len(num_tokens) < world_size:
        raise InputError(
            f"{len(num_tokens)} studies cannot be shared by {world_size} ranks; each needs one. "
            f"Lower trainer.devices."
        )
    largest = int(num_tokens.max())
    if largest > budget.max_tokens:
        raise InputError(
            f"the largest study has {largest} image tokens and data.max_tokens is "
            f"{budget.max_tokens}; {int((num_tokens > budget.max_tokens).sum())} of "
            f"{len(num_tokens)} studies exceed it. Raise it to {largest}."
        )


def _runs(values: np.ndarray) -> tuple[Int[np.ndarray, " values"], Int[np.ndarray, " values"]]:
    """Return for each value its rank among the equal neighbours that it is one of, and how many."""
    starts = np.flatnonzero(np.diff(values, prepend=values[:1] - 1))
    sizes = np.diff(starts, append=len(values))
    return np.arange(len(values)) - np.repeat(starts, sizes), np.repeat(sizes, sizes)


def _take_turns(
    groups: Int[np.ndarray, " items"], chance: Float[np.ndarray, " items"]
) -> Int[np.ndarray, " items"]:
    """Return a random order in which every group is spread evenly from beginning to end.

    Of ``n`` members, one is in each ``n``-th part; groups of one give a plain shuffle.
    """
    members = np.argsort(groups, kind="stable")
    rank, size = _runs(groups[members])
    return members[np.argsort((rank + chance) / size, kind="stable")]


def _fill(
    order: Int[np.ndarray, " shown"],
    num_tokens: Int[np.ndarray, " studies"],
    kinds: Int[np.ndarray, " studies"],
    budget: BatchBudget,
) -> Int[np.ndarray, " bounds"]:
    """Fill batches in order; each ends where a limit, a kind or the first repeat ends it."""
    here = np.arange(len(order))
    sizes = num_tokens[order]
    total = np.cumsum(sizes, dtype=np.int64)
    ends = np.searchsorted(total, total - sizes + budget.max_tokens, side="right")
    rank, size = _runs(kinds[order])
    ends = np.minimum(ends, here + np.minimum(size - rank, budget.max_studies))
    ends = np.minimum(ends, _first_repeats(order))
    bounds = [0]  # if a batch began at each place, it would end there: go from end to end
    while bounds[-1] < len(order):
        bounds.append(int(ends[bounds[-1]]))
    return np.array(bounds)


def _first_repeats(order: Int[np.ndarray, " shown"]) -> Int[np.ndarray, " shown"]:
    """Return for each place the first later one whose study was shown since that place."""
    places = np.argsort(order, kind="stable")
    again = order[places[1:]] == order[places[:-1]]
    following = np.full(len(order), len(order))
    following[places[:-1][again]] = places[1:][again]
    return np.minimum.accumulate(following[::-1])[::-1]


def _even_out(
    bounds: Int[np.ndarray, " bounds"], world_size: int
) -> tuple[Int[np.ndarray, " evened"], int]:
    """Halve the largest batches until their number is a multiple of the number of ranks.

    Returns:
        The bounds, and how many batches are missing after all hold one study.
    """
    while (len(bounds) - 1) % world_size:
        sizes = np.diff(bounds)
        place = int(np.argmax(sizes))
        if sizes[place] == 1:
            break
        bounds = np.insert(bounds, place + 1, bounds[place] + sizes[place] // 2)
    num_batches = len(bounds) - 1
    num_steps = max(1, -(-num_batches // world_size))  # an epoch may draw no study at all
    return bounds, num_steps * world_size - num_batches


def _uneven(num_filled: int, num_studies: int, world_size: int) -> InputError:
    """Return what to say when no number of batches is a multiple of the number of ranks."""
    fitting = max(
        ranks
        for ranks in range(1, world_size)
        if num_studies // ranks * ranks >= num_filled  # a multiple that halving can reach
    )
    return InputError(
        f"{num_studies} studies in at least {num_filled} batches cannot be shared evenly by "
        f"{world_size} ranks, and an evaluation repeats none. Lower trainer.devices to {fitting}, "
        f"or raise data.max_studies or data.max_tokens."
    )


def _rearrange(
    order: Int[np.ndarray, " shown"],
    bounds: Int[np.ndarray, " bounds"],
    places: Int[np.ndarray, " batches"],
) -> tuple[Int[np.ndarray, " shown"], Int[np.ndarray, " bounds"]]:
    """Put whole batches into another order."""
    sizes = np.diff(bounds)[places]
    moved = np.concatenate([[0], np.cumsum(sizes)])
    shift = np.repeat(bounds[:-1][places] - moved[:-1], sizes)
    return order[shift + np.arange(len(order))], moved
