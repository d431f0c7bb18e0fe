"""Which axis of a scan is that of its slices, and in which order and direction axes are cached.

Axes are those of RAS: 0 to the right, 1 to the front, 2 to the head. A cached tensor has the slices
first, then the other two as NeuroVFM has them; its axes point to the right, the back and the feet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from neuro.data.volume import Volume

ORDER = {0: (0, 1, 2), 1: (1, 2, 0), 2: (2, 1, 0)}  # by the axis of the slices
TURNED = (False, True, True)
# Numbers that no usual protocol has as the ratio of two edges or extents: rounding decides nothing.
THICKER = 1.1833  # times the next largest spacing
SLAB = 0.3137  # of the next smallest extent


def slice_axis(spacing_mm: Sequence[float], shape: Sequence[int]) -> int:
    """Return the axis across the slices.

    The one of clearly the largest spacing. Where voxels are nearly cubic: that of a thin slab; in a
    whole head, from head to feet, as most scans are read.

    Args:
        spacing_mm: Edges along R, A and S.
        shape: Voxels along R, A and S.
    """
    *_, second, largest = sorted(spacing_mm)
    if largest > THICKER * second:
        return list(spacing_mm).index(largest)
    extents = [size * edge for size, edge in zip(shape, spacing_mm, strict=True)]
    thinnest, second, _ = sorted(extents)
    return extents.index(thinnest) if thinnest < SLAB * second else 2


def header_spacing_mm(volume: Volume) -> list[float]:
    """Return the edges along R, A and S as the header writes them, without the affine's noise."""
    if not volume.source_spacing_mm:
        return list(volume.spacing_mm)
    pairs = ("RL", "AP", "SI")
    places = [next(i for i, one in enumerate(volume.orientation) if one in pair) for pair in pairs]
    return [volume.source_spacing_mm[place] for place in places]


def index_affine(
    axis: int, steps: Sequence[float], first: Sequence[float]
) -> Float[np.ndarray, "4 4"]:
    """Return the affine from the index of a cached voxel to that of the scan in RAS.

    Args:
        axis: That of the slices.
        steps: Along each axis of RAS: the cached edge over that of the scan.
        first: Along each axis of RAS: where the first cached voxel is in the scan.
    """
    affine = np.eye(4)
    affine[:3, :3] = 0
    for place, one in enumerate(ORDER[axis]):
        affine[one, place] = -steps[one] if TURNED[one] else steps[one]
    affine[:3, 3] = first
    return affine
