"""Softmax and sums over the segments of a pack: all columns at once, without a loop over segments.

Segment ``i`` is rows ``bounds[i]`` to ``bounds[i + 1]``, at least one. What is found for a segment
depends on its own rows alone. All is deterministic on the CPU; on CUDA, sums over blocks are under
``torch.use_deterministic_algorithms``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows that are multiplied together: long blocks are fast, but the last one of a segment is filled
# up. On one core 128 rows take 1.8 times as long as 256, and 512 as long.
BLOCK_ROWS = 256
CHUNK_BLOCKS = 32  # at a time: their matrices are 8 MB for 82 columns and 768 dimensions


def owners(bounds: Int[Tensor, " bounds"], num_rows: int) -> Int[Tensor, " rows"]:
    """Return the segment of each row."""
    # With its size given, the device need not be asked for it.
    return torch.repeat_interleave(bounds.diff(), output_size=num_rows)


def segment_sums(
    values: Float[Tensor, "rows columns"], bounds: Int[Tensor, " bounds"]
) -> Float[Tensor, "bounds-1 columns"]:
    """Return the sum of each column over each segment."""
    return _reduced(values, bounds, "sum")


def segment_means(
    values: Float[Tensor, "rows columns"], bounds: Int[Tensor, " bounds"]
) -> Float[Tensor, "bounds-1 columns"]:
    """Return the mean of each column over each segment."""
    return _reduced(values, bounds, "mean")


def segment_softmax(
    scores: Float[Tensor, "rows columns"], bounds: Int[Tensor, " bounds"]
) -> Float[Tensor, "rows columns"]:
    """Return weights that sum to one over each segment, in each column by itself.

    The largest score of a segment is taken off first, so that no score is too large.
    """
    weights: Tensor = _Softmax.apply(scores, bounds)  # pyright: ignore[reportAssignmentType]
    return weights


def weighted_sums(
    weights: Float[Tensor, "rows columns"],
    values: Float[Tensor, "rows dim"],
    bounds: Int[Tensor, " bounds"],
) -> Float[Tensor, "bounds-1 columns dim"]:
    """Return, for each segment, the sum of its values under the weights of each column.

    That is ``weights.T @ values`` segment by segment, as products of small blocks: nothing of
    rows times columns times dim is ever kept.
    """
    sums: Tensor = _WeightedSums.apply(  # pyright: ignore[reportAssignmentType]
        weights, values, bounds
    )
    return sums


def _reduced(values: Tensor, bounds: Tensor, how: str) -> Tensor:
    # Unsafe is not to ask the device whether the lengths add up, which they do.
    return torch.segment_reduce(values, how, lengths=bounds.diff(), axis=0, unsafe=True)


class _Softmax(torch.autograd.Function):
    """Keeps nothing but the weights for the gradient."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, bounds: Tensor) -> Tensor:
        owner = owners(bounds, len(scores))
        weights = _reduced(scores, bounds, "max").neg_()[owner].add_(scores).exp_()
        weights /= _reduced(weights, bounds, "sum")[owner]
        ctx.save_for_backward(weights, bounds)
        return weights

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None]:
        weights, bounds = ctx.saved_tensors
        change = weights * grad
        mean = _reduced(change, bounds, "sum")[owners(bounds, len(grad))]
        return change.sub_(mean.mul_(weights)), None


class _Blocks(NamedTuple):
    """Some blocks of rows, each of one segment.

    Attributes:
        rows: The rows of each. The last block of a segment is filled up with the segment's last
            row, so that no row of another segment is ever touched.
        filled: Which of them only fill up.
        owner: The segment of each.
    """

    rows: Int[Tensor, "blocks block"]
    filled: Tensor
    owner: Int[Tensor, " blocks"]

    def of(self, pack: Tensor) -> Tensor:
        """Return the rows of a pack, block by block."""
        return pack.index_select(0, self.rows.flatten()).unflatten(0, self.rows.shape)


def _blocks(bounds: Tensor, num_rows: int) -> Iterator[_Blocks]:
    """Yield blocks that cover all segments, some at a time.

    As many as there could be, so that the device need not be asked how many there are: those that
    are too many are filled with the last row of the pack.
    """
    counts = (bounds.diff() + BLOCK_ROWS - 1) // BLOCK_ROWS
    stops = counts.cumsum(0)
    within = torch.arange(BLOCK_ROWS, device=bounds.device)
    most = num_rows // BLOCK_ROWS + len(counts)
    for number in torch.arange(most, device=bounds.device).split(CHUNK_BLOCKS):
        owner = torch.searchsorted(stops, number, right=True).clamp(max=len(counts) - 1)
        first = bounds[owner] + (number - stops[owner] + counts[owner]) * BLOCK_ROWS
        rows = first.unsqueeze(1) + within
        stop = bounds[owner + 1].unsqueeze(1)
        yield _Blocks(rows.clamp(max=stop - 1), rows >= stop, owner)


class _WeightedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weights: Tensor, values: Tensor, bounds: Tensor) -> Tensor:
        ctx.save_for_backward(weights, values, bounds)
        sums = values.new_zeros(len(bounds) - 1, weights.shape[1], values.shape[1])
        for blocks in _blocks(bounds, len(values)):
            own = blocks.of(weights).masked_fill_(blocks.filled.unsqueeze(2), 0)
            sums.index_add_(0, blocks.owner, own.transpose(1, 2) @ blocks.of(values))
        return sums

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        weights, values, bounds = ctx.saved_tensors
        for_weights, for_values, _ = ctx.needs_input_grad
        of_weights = torch.empty_like(weights) if for_weights else None
        of_values = torch.empty_like(values) if for_values else None
        # A backward may be called under autocast, where products are in half precision.
        with torch.autocast(grad.device.type, enabled=False):
            for blocks in _blocks(bounds, len(values)):
                own = grad[blocks.owner]  # (blocks, columns, dim)
                rows = blocks.rows.flatten()
                # A row that fills up is written again with what it already has.
                if of_weights is not None:
                    found = blocks.of(values) @ own.transpose(1, 2)
                    of_weights[rows] = found.flatten(0, 1)
                if of_values is not None:
                    found = blocks.of(weights) @ own
                    of_values[rows] = found.flatten(0, 1)
        return of_weights, of_values, None
