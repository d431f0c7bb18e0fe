"""3-D block masks for JEPA: which tokens are seen, and which are to be predicted.

The recipe is that of Vol-JEPA: a block through all slices hides the middle of the head, and of what
is left outside a run of slices is hidden too, until the share that is seen is as small as asked.
Masks are boolean over the tokens of a volume that are not background, so none is made up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuro.errors import InputError

# Share of the foreground that each position tried must cover: five times 0.95, five times 0.9, ...
ENOUGH = np.append(np.repeat(np.arange(0.95, 0.075, -0.05), 5), 0.0)
NUM_DRAWN = 1 + 2 * len(ENOUGH)  # numbers that one try takes


@dataclass(frozen=True, kw_only=True)
class BlockMask:
    """One way to mask. What is not context is target; nothing is both.

    Args:
        block_share: Area of the block, as a share of the plane within a slice times the share of
            the grid that is foreground.
        block_share_ct: The same for CT.
        context_share: Share of the foreground that is seen.
        context_share_ct: The same for CT.
        aspect_ratio: Height over width of the block, drawn uniformly between the two.
        context_range: A mask whose context has a share of the foreground outside these is drawn
            anew, position and all.
        num_tries: After so many, the volume admits no mask.
        context_inside: Whether the block is seen and its outside hidden.

    Raises:
        InputError: An argument is out of range.
    """

    block_share: float = 0.7
    block_share_ct: float = 0.75
    context_share: float = 0.25
    context_share_ct: float = 0.2
    aspect_ratio: Sequence[float] = (0.3, 3.0)
    context_range: Sequence[float] = (0.05, 0.5)
    num_tries: int = 5
    context_inside: bool = False

    def __post_init__(self) -> None:
        shares = ("block_share", "block_share_ct", "context_share", "context_share_ct")
        for name in shares:
            if not 0 < getattr(self, name) < 1:
                raise InputError(
                    f"a mask's {name} must lie between 0 and 1; got {getattr(self, name)}."
                )
        for name in ("aspect_ratio", "context_range"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (name == "aspect_ratio" and low == 0):
                raise InputError(
                    f"a mask's {name} takes a lower and a higher positive number; "
                    f"got {[low, high]}."
                )
        if self.num_tries < 1:
            raise InputError(f"a mask's num_tries must be at least 1; got {self.num_tries}.")

    def draw(
        self,
        coords: Int[Tensor, "tokens 3"],
        size: Sequence[int],
        *,
        is_ct: bool,
        generator: torch.Generator,
    ) -> Bool[Tensor, " tokens"] | None:
        """Return which tokens are context; the others are targets.

        Args:
            coords: Grid position of each token that is not background.
            size: The grid.
            is_ct: Whether the shares for CT count.
            generator: What chance comes from.

        Returns:
            None where no mask leaves a context and a target of the right size.
        """
        depth, height, width = size
        num_tokens = len(coords)
        share = self.context_share_ct if is_ct else self.context_share
        block_share = self.block_share_ct if is_ct else self.block_share
        # All numbers at once, and numpy for the rest: the work is in small steps.
        chance = torch.rand(1 + self.num_tries * NUM_DRAWN, generator=generator).numpy()
        low, high = self.aspect_ratio
        ratio = low + (high - low) * float(chance[0])
        area = height * width * block_share * num_tokens / (depth * height * width)
        block = (
            min(max(round(math.sqrt(area * ratio)), 1), height),
            min(max(round(math.sqrt(area / ratio)), 1), width),
        )
        wanted = round(share * num_tokens)
        least, most = (math.floor(one * num_tokens) for one in self.context_range)
        rows, columns = coords[:, 1].numpy(), coords[:, 2].numpy()
        sums = _sums(rows, columns, (height, width))
        for own in chance[1:].reshape(self.num_tries, NUM_DRAWN):
            top, left = _place(sums, block, own[1:])
            in_rows = (rows >= top) & (rows < top + block[0])
            in_block = in_rows & (columns >= left) & (columns < left + block[1])
            context = _thinned(
                in_block if self.context_inside else ~in_block, wanted, float(own[0])
            )
            seen = int(np.count_nonzero(context))
            if max(least, 1) <= seen <= most and seen < num_tokens:
                return torch.from_numpy(context)
        return None


def _sums(
    rows: Int[np.ndarray, " tokens"], columns: Int[np.ndarray, " tokens"], plane: tuple[int, int]
) -> Int[np.ndarray, "_rows _columns"]:
    """Return how many tokens, in all slices, lie above and left of each place of the plane."""
    height, width = plane
    counts = np.bincount(rows.astype(np.int64) * width + columns, minlength=height * width)
    sums = np.zeros((height + 1, width + 1), np.int64)
    sums[1:, 1:] = counts.reshape(height, width).cumsum(0).cumsum(1)
    return sums


def _place(
    sums: Int[np.ndarray, "_rows _columns"],
    block: tuple[int, int],
    chance: Float[np.ndarray, " drawn"],
) -> tuple[int, int]:
    """Return where a block begins, so that it covers much of the foreground.

    The first of many uniform positions that covers enough is taken; what is enough falls after
    every few. All are judged at once, from the table of sums.
    """
    top, left = (
        (one * (size - edge)).astype(np.int64)
        for one, size, edge in zip(chance.reshape(2, -1), sums.shape, block, strict=True)
    )
    bottom, right = top + block[0], left + block[1]
    covered = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    first = int(np.argmax(covered >= ENOUGH * sums[-1, -1]))
    return int(top[first]), int(left[first])


def _thinned(
    context: Bool[np.ndarray, " tokens"], wanted: int, chance: float
) -> Bool[np.ndarray, " tokens"]:
    """Hide a run of slices of the context until ``wanted`` tokens are left, to the token.

    Tokens come slice by slice, so a run of tokens is a run of slices whose first and last are cut.
    """
    seen = np.flatnonzero(context)
    surplus = len(seen) - wanted
    if surplus > 0:
        start = int(chance * (wanted + 1))
        context[seen[start : start + surplus]] = False
    return context
