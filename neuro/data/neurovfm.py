"""The numbers of the public NeuroVFM code, for ``compat: neurovfm`` of ``ClinicalTokens``.

What it does to a scan, step by step, written anew: SimpleITK resamples with cubic splines and
without a filter, keeps the type of the file, and what does not fill a patch is cut away. Against
SimpleITK itself: equal bytes but for numbers that splines give back as 99.999999 or 100.000001,
which are cut to 99 or 100.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Num, UInt8
from torch import Tensor

from neuro.data.resample import resample, spline_weights

Array = Float[Tensor, "slices rows columns"]


def slice_axis(spacing_mm: Sequence[float], shape: Sequence[int]) -> int | None:
    """Return the axis of the slices: equal spacings, the last; else by the smallest unique size.

    None where no size occurs once: there the public code fails.
    """
    if max(spacing_mm) - min(spacing_mm) < 1e-6 * max(spacing_mm):  # equal as float32
        return 2
    unique = [size for size in shape if list(shape).count(size) == 1]
    return list(shape).index(min(unique)) if unique else None


def regrid(
    voxels: Num[np.ndarray, "right back feet"],
    *,
    spacing_mm: Sequence[float],
    target_mm: Sequence[float],
    stored_type: str,
) -> Float[Tensor, "new_right new_back new_feet"]:
    """Resample as ITK does: the first voxel stays in its place, sizes are cut off.

    Numbers of an integer type are cut off too, towards zero.
    """
    steps = [target / spacing for target, spacing in zip(target_mm, spacing_mm, strict=True)]
    weights = []
    for num_old, spacing, target, step in zip(
        voxels.shape, spacing_mm, target_mm, steps, strict=True
    ):
        weights.append(spline_weights(num_old, int(num_old * (spacing / target)), step))
    moved = resample(torch.from_numpy(voxels.astype(np.float64)), weights)
    kind = np.dtype(stored_type)
    if kind.kind in "iu":
        return moved.clamp(np.iinfo(kind).min, np.iinfo(kind).max).trunc()
    return moved.float().double() if kind.itemsize == 4 else moved


def crop(
    array: Array, patch: Sequence[int]
) -> tuple[Float[Tensor, "some_slices some_rows some_columns"], list[int]]:
    """Cut an array to whole patches around its middle; return where it begins."""
    starts = [(size % edge) // 2 for size, edge in zip(array.shape, patch, strict=True)]
    ends = [
        start + size - size % edge
        for start, size, edge in zip(starts, array.shape, patch, strict=True)
    ]
    place = tuple(slice(start, end) for start, end in zip(starts, ends, strict=True))
    return array[place], starts


def scale_mri(
    array: Array, percentiles: Sequence[float]
) -> tuple[UInt8[Tensor, "slices rows columns"], Bool[Tensor, "slices rows columns"]]:
    """Return the image between two percentiles, and what exceeds the 10th percentile."""
    low, high, tenth = np.percentile(array.numpy(), [*percentiles, 10])
    return _bytes((array.clamp(low, high) - low) / (high - low + 1e-8)), array > tenth


def window_ct(array: Array, level: float, width: float) -> UInt8[Tensor, "slices rows columns"]:
    """Return the image in a window of Hounsfield units."""
    low, high = level - width / 2, level + width / 2
    return _bytes((array.clamp(low, high) - low) / (high - low + 1e-8))


def _bytes(shares: Array) -> UInt8[Tensor, "slices rows columns"]:
    return (shares * 255).to(torch.uint8)  # cut off, not rounded
