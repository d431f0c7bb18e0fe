"""Volumes as tokens: a grid of non-overlapping patches, each flattened to one row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor

from neuro.errors import InputError

AXES = "DHWT"


def grid_of(shape: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """Return the number of patches along each axis.

    Raises:
        InputError: The patch does not divide the shape: voxels at one end would be lost in silence.
    """
    if len(shape) != len(patch):
        raise InputError(
            f"shape {list(shape)} has {len(shape)} axes and patch {list(patch)} has {len(patch)}; "
            f"give one number per axis ({', '.join(AXES[: len(shape)])})."
        )
    for axis, size, edge in zip(AXES, shape, patch, strict=False):
        if edge < 1 or size < 1:
            raise InputError(f"shape {list(shape)} and patch {list(patch)} must be positive.")
        if size % edge:
            down, up = size - size % edge, size - size % edge + edge
            fits = [str(n) for n in range(2, size) if size % n == 0]
            raise InputError(
                f"axis {axis} of shape {list(shape)} has {size} voxels, which is not a multiple of "
                f"the patch edge {edge}. Set it to {down or up} or {up}, "
                f"or take a patch edge out of {', '.join(fits) or size}."
            )
    return tuple(size // edge for size, edge in zip(shape, patch, strict=True))


def tokenize(
    voxels: Shaped[Tensor, "depth height width *time"], patch: Sequence[int]
) -> Shaped[Tensor, "tokens voxels"]:
    """Cut a volume into patches, one row each.

    Rows run over the patch grid with the last axis fastest; within a row, voxels do the same.

    Raises:
        InputError: The patch does not divide the volume.
    """
    grid = grid_of(tuple(voxels.shape), patch)
    split = [size for pair in zip(grid, patch, strict=True) for size in pair]
    num_axes = len(grid)
    order = [*range(0, 2 * num_axes, 2), *range(1, 2 * num_axes, 2)]
    return voxels.reshape(split).permute(order).reshape(math.prod(grid), math.prod(patch))


def untokenize(
    tokens: Shaped[Tensor, "tokens voxels"], grid: Sequence[int], patch: Sequence[int]
) -> Shaped[Tensor, "depth height width *time"]:
    """Undo ``tokenize``."""
    num_axes = len(grid)
    order = [axis + offset for axis in range(num_axes) for offset in (0, num_axes)]
    shape = [size * edge for size, edge in zip(grid, patch, strict=True)]
    return tokens.reshape(*grid, *patch).permute(order).reshape(shape)


def grid_coords(grid: Sequence[int]) -> Int[Tensor, "tokens axes"]:
    """Return the grid position of each token, in patches, in the order of ``tokenize``."""
    axes = [torch.arange(size, dtype=torch.int32) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, len(grid))


def foreground_shares(
    foreground: Bool[Tensor, "depth height width *time"], patch: Sequence[int]
) -> UInt8[Tensor, " tokens"]:
    """Return the share of foreground voxels in each token, where 255 means all of them.

    Rounded up, so that 0 means that a token holds no foreground at all.
    """
    shares = tokenize(foreground, patch).float().mean(dim=1)
    return (shares * 255).ceil().to(torch.uint8)
