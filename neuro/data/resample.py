"""Resampling along the axes of a volume: one small matrix of weights for each axis.

The new grid has the directions of the old one, so no voxel needs more than three matrix products,
and turning an axis round costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Weights = Float[np.ndarray, "new old"]

BAND = 32  # old voxels that share one product: few enough to leave out most zeros


def area_weights(num_old: int, num_new: int, step: float) -> Weights:
    """Return weights that average where voxels grow and interpolate linearly where they shrink.

    Both grids have the same middle. Each new voxel covers an interval as long as its edge, or as
    the old edge if that is longer, and takes each old voxel by the length of it that is covered:
    nothing of the scan is passed over, as it is where single planes are picked. Inside, a ramp
    stays a ramp: coverage alone would shift it to and fro by up to 0.07 voxels.

    Args:
        num_old: Voxels of the scan.
        num_new: Voxels of the result; none may lie wholly beside the scan.
        step: The new edge length over the old one.
    """
    places = (num_old - 1) / 2 + (np.arange(num_new) - (num_new - 1) / 2) * step
    width = max(step, 1.0)
    distance = np.arange(num_old) - places[:, None]  # (new, old)
    weights = np.clip((width + 1) / 2 - np.abs(distance), 0.0, 1.0)
    inside = np.abs(places - (num_old - 1) / 2) <= (num_old - width) / 2
    shift, spread = ((weights * distance**power).sum(axis=1) for power in (1, 2))
    weights *= 1 - np.where(inside, shift / np.maximum(spread, 1e-9), 0.0)[:, None] * distance
    return weights / weights.sum(axis=1, keepdims=True)


def spline_weights(num_old: int, num_new: int, step: float) -> Weights:
    """Return weights of cubic B-spline interpolation, the edges mirrored, without any smoothing.

    Both grids have the same first voxel. A new voxel that is half an old one or more beyond the
    end is 0. Equal to ITK's BSplineInterpolateImageFunction of order 3 to 1e-14.

    Args:
        num_old: Voxels of the scan.
        num_new: Voxels of the result.
        step: The new edge length over the old one.
    """
    at_nodes = _spline_values(np.arange(num_old, dtype=np.float64), num_old)
    places = np.arange(num_new) * step
    weights = _spline_values(places, num_old)
    weights[places >= num_old - 0.5] = 0.0
    return np.linalg.solve(at_nodes.T, weights.T).T  # weights @ inverse(at_nodes)


def _spline_values(places: Float[np.ndarray, " new"], num_old: int) -> Weights:
    """Return the value of each basis function of a mirrored spline at each place."""
    nearest = np.floor(places).astype(int)[:, None] + np.arange(-1, 3)  # (new, 4)
    distance = np.abs(places[:, None] - nearest)
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0.0) ** 3 / 6
    values = np.where(distance < 1, near, far)
    period = 2 * (num_old - 1)
    folded = np.minimum(nearest % period, -nearest % period)
    weights = np.zeros((len(places), num_old))
    np.add.at(weights, (np.arange(len(places))[:, None], folded), values)
    return weights


def memory_order(voxels: Tensor) -> list[int]:
    """Return the axes from the slowest to the fastest."""
    return sorted(range(voxels.ndim), key=lambda axis: -voxels.stride(axis))


def resample(
    voxels: Float[Tensor, "depth height width"], weights: Sequence[np.ndarray | None]
) -> Float[Tensor, "new_depth new_height new_width"]:
    """Apply a matrix to each axis; None leaves an axis as it is.

    Works in the order that the axes have in memory, and first where most voxels go away. The type
    stays.
    """
    order = memory_order(voxels)
    moved = voxels.permute(order)
    shrink = {
        place: len(matrix) / matrix.shape[1]
        for place, axis in enumerate(order)
        if (matrix := weights[axis]) is not None
    }
    for place in sorted(shrink, key=lambda place: shrink[place]):
        matrix = torch.from_numpy(weights[order[place]]).to(voxels.dtype)
        moved = _along(moved.contiguous(), matrix, place)
    return moved.permute([order.index(axis) for axis in range(3)])


def _along(
    voxels: Float[Tensor, "depth height width"], matrix: Float[Tensor, "new old"], axis: int
) -> Float[Tensor, "new_depth new_height new_width"]:
    """Multiply one axis by a matrix, block by block, leaving out where the matrix is zero."""
    shape = list(voxels.shape)
    shape[axis] = len(matrix)
    out = voxels.new_empty(shape)
    size = max(BAND * len(matrix) // matrix.shape[1], 4)
    for start in range(0, len(matrix), size):
        block = matrix[start : start + size]
        used = torch.nonzero((block != 0).any(dim=0))
        low, count = (int(used[0]), int(used[-1] - used[0]) + 1) if len(used) else (0, 1)
        old, new = voxels.narrow(axis, low, count), out.narrow(axis, start, len(block))
        band = block[:, low : low + count]
        if axis == 0:
            torch.mm(band, old.reshape(count, -1), out=new.view(len(block), -1))
        elif axis == 1:
            for one, other in zip(old, new, strict=True):
                torch.mm(band, one, out=other)
        else:
            new.copy_(old @ band.T)
    return out
