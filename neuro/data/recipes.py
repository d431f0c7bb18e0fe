"""What is done to a scan before it is cached: pure functions of a Volume, as frozen dataclasses.

A recipe turns a ``Volume`` into tensors: one or more views of it, which are cut into patches when
they are read; ``foreground``, the share of head in each patch (0 to 255); and ``affine``, where
they are in the world. Everything that a recipe does follows from its fields and its ``version``;
both are in the fingerprint of the cache. The recipes are in ``fixed_grid.py``, ``bold_run.py`` and
``clinical_tokens.py``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Num
from torch import Tensor

from neuro.data.volume import Volume


@runtime_checkable
class Recipe(Protocol):
    """What the cache, the dataset and the embedders need to know of a recipe."""

    version: ClassVar[int]

    @property
    def shape(self) -> Sequence[int] | None:
        """Voxels along each axis of what the model sees; None if the grid follows the scan."""
        ...

    @property
    def patch(self) -> Sequence[int]:
        """Voxels along each axis of one token."""
        ...

    @property
    def views(self) -> Mapping[str, str]:
        """The name of each tensor that a model can see, and of the statistics of its numbers."""
        ...

    def apply(self, volume: Volume) -> dict[str, Tensor]:
        """Return the views, ``foreground`` and ``affine``.

        ``foreground`` is uint8 (tokens of space). ``affine`` is float64 (4, 4): from the index of a
        cached voxel, in the order of the tensor's axes in space, to RAS millimetres of the scan.
        """
        ...

    def warnings(self, volume: Volume) -> tuple[str, ...]:
        """Return what a person should know before trusting what this recipe makes of a scan."""
        ...


def freeze(recipe: object, *names: str) -> None:
    """Bring a recipe's fields to one form, however a config spells them.

    Lists become tuples, so that a recipe can be hashed, and a whole number where a fraction may
    stand becomes a float, so that ``slice_mm: 4`` and ``slice_mm: 4.0`` are one recipe.

    Args:
        recipe: A dataclass, in its ``__post_init__``.
        names: The fields that are sequences.
    """
    for name in names:
        value = getattr(recipe, name)
        if value is not None:
            object.__setattr__(recipe, name, tuple(value))
    for field in dataclasses.fields(recipe):  # pyright: ignore[reportArgumentType]
        if "float" in str(field.type):
            value = getattr(recipe, field.name)
            object.__setattr__(recipe, field.name, _with_floats(value))


def _with_floats(value: Any) -> Any:
    """Return a number as float, alone or in a tuple; anything else as it is."""
    if isinstance(value, tuple):
        return tuple(_with_floats(one) for one in value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole else value


def bright_level(voxels: Num[np.ndarray, "depth height width"]) -> float:
    """Return the 99.5th percentile of the voxels that are brighter than 5 % of the brightest.

    A percentile of all voxels would fall with the amount of air around a head.
    """
    bright = voxels[voxels > 0.05 * voxels.max()]
    return percentiles(bright, (99.5,))[0] if bright.size else float(voxels.max())


def percentiles(values: Num[np.ndarray, " values"], shares: Sequence[float]) -> list[float]:
    """Return the numbers of ``np.percentile``, from millions of values in a fifth of its time.

    A sample tells nearly where a percentile lies; only the values there are sorted.

    Args:
        values: Numbers, none of them NaN.
        shares: In percent.
    """
    sample = np.sort(values[::61])  # a prime: no row or slice has a multiple of it as its length
    return [_percentile(values, sample, share) for share in shares]


def _percentile(values: np.ndarray, sample: np.ndarray, share: float) -> float:
    rank = share / 100 * (len(values) - 1)
    below, above = math.floor(rank), math.ceil(rank)
    place = share / 100 * (len(sample) - 1)
    margin = 4 * (place * (1 - share / 100)) ** 0.5 + 2  # four deviations of a count
    low = sample[max(math.floor(place - margin), 0)]
    high = sample[min(math.ceil(place + margin), len(sample) - 1)]
    num_less = np.count_nonzero(values < low)
    if num_less <= below and above < np.count_nonzero(values <= high):
        if low == high:
            return float(low)
        values = values[(values >= low) & (values <= high)]
    else:  # at an end, or by bad luck of the sample
        num_less = 0
    ends = (below - num_less, above - num_less)
    one, other = (float(number) for number in np.partition(values, ends)[list(ends)])
    return one + (rank - below) * (other - one)
