"""Volumes as tokens: a grid of non-overlapping patches, each flattened to one row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int, Shaped, UInt8
from torch import Tensor

from neuro.errors import InputError

AXES = "DHWT"
WORDS = (np.complex128, np.int64, np.int32, np.int16)  # of 16, 8, 4 and 2 bytes


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
    words = _words(voxels, patch[-1])
    if words is None:
        return voxels.reshape(split).permute(order).reshape(math.prod(grid), math.prod(patch))
    words = np.ascontiguousarray(words.reshape(*split[:-1], -1).transpose(order))
    rows = torch.from_numpy(words.reshape(math.prod(grid), -1).view(np.uint8))
    return rows.view(voxels.dtype)


def _words(voxels: Tensor, edge: int) -> np.ndarray | None:
    """Return the voxels with as many neighbours as fit taken for one number, to be copied at once.

    A strided copy costs as much for a byte as for 16: tokens of 8-bit voxels take a quarter of the
    time. None where nothing fits.
    """
    if voxels.device.type != "cpu" or voxels.requires_grad or voxels.stride(-1) != 1:
        return None
    num_bytes = edge * voxels.element_size()
    word = next((word for word in WORDS if num_bytes % np.dtype(word).itemsize == 0), None)
    return None if word is None else voxels.view(torch.uint8).numpy().view(word)


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
    """Return the share of foreground voxels in each token.

    255 means that all of them are, 0 that none is, exactly; what is between is rounded to 1 to 254.
    """
    counts = np.count_nonzero(tokenize(foreground, patch).numpy(), axis=1)
    num_voxels = math.prod(patch)
    shares = np.rint(counts * (255 / num_voxels)).clip(1, 254)
    shares = np.select([counts == 0, counts == num_voxels], [0, 255], shares)
    return torch.from_numpy(shares.astype(np.uint8))
