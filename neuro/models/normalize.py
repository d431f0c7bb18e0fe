"""Cached voxels become numbers that a network likes, on the device."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Num, UInt8
from torch import Tensor

from neuro.errors import InputError

# Mean and standard deviation of the foreground of clinical scans, scaled to [0, 1]: MRI, and the
# three windows of CT. They are those of NeuroVFM, so that its weights see what they were trained
# on.
STATISTICS: dict[str, tuple[float, float]] = {
    "mri": (0.3141, 0.2623),
    "brain": (0.4139, 0.4059),
    "blood": (0.3184, 0.3605),
    "bone": (0.2719, 0.1875),
}
RUN = "run"  # float16, scaled by its recipe; it has no statistics


@runtime_checkable
class PackedVolumes(Protocol):
    """The tokens of several volumes of one modality, laid end to end."""

    @property
    def tokens(self) -> Num[Tensor, "tokens voxels"]:
        """Voxels."""
        ...

    @property
    def coords(self) -> Int[Tensor, "tokens axes"]:
        """Grid position of each token."""
        ...

    @property
    def bounds(self) -> Int[Tensor, " bounds"]:
        """Where each volume begins; the last one is the end."""
        ...

    @property
    def kinds(self) -> Sequence[str]:
        """Which intensity statistics each volume has."""
        ...

    @property
    def intensity(self) -> Float[Tensor, "volumes 4"] | None:
        """What was drawn for the intensities of each volume, if anything was."""
        ...

    @property
    def seeds(self) -> Int[Tensor, " volumes"] | None:
        """Of each volume's noise, if there is any."""
        ...


def normalize_volumes(volumes: PackedVolumes) -> Float[Tensor, "tokens voxels"]:
    """Return the tokens of volumes, standardized and changed as it was drawn for each."""
    return normalize(
        volumes.tokens,
        volumes.bounds,
        volumes.kinds,
        intensity=volumes.intensity,
        seeds=volumes.seeds,
    )


def normalize(
    tokens: Num[Tensor, "tokens voxels"],
    bounds: Int[Tensor, " bounds"],
    kinds: Sequence[str],
    *,
    intensity: Float[Tensor, "bounds-1 4"] | None = None,
    seeds: Int[Tensor, " bounds-1"] | None = None,
    statistics: Mapping[str, Sequence[float]] = STATISTICS,
) -> Float[Tensor, "tokens voxels"]:
    """Return float32 tokens, each volume by the statistics of its own kind.

    uint8 is scaled to [0, 1], changed by the volume's gamma, gain and offset, clamped to [0, 1] and
    standardized. A run stays as its recipe scaled it. Then comes the noise. A volume's result does
    not depend on what it is packed with, to the last bit.

    Nothing waits for the device, unless ``seeds`` are given.

    Args:
        tokens: uint8, or floating point for runs. They are not changed.
        bounds: Volume ``i`` owns ``tokens[bounds[i] : bounds[i + 1]]``; the last bound is the
            number of tokens.
        kinds: Of each volume: ``run``, or a name in ``statistics``.
        intensity: Of each volume: gamma, gain, offset and the standard deviation of the noise.
        seeds: Of each volume's noise. None for no noise.
        statistics: Mean and standard deviation by kind, for intensities in [0, 1].

    Raises:
        InputError: A kind is unknown or does not fit the type of the tokens, or a statistic is not
            usable.
    """
    _check(tokens.dtype, kinds, statistics)
    assert len(kinds) == len(bounds) - 1, "each volume has a kind"
    if tokens.dtype == torch.uint8:
        values = _standardized(tokens, bounds, kinds, intensity, statistics)
    else:
        values = tokens.float()
    if intensity is None or seeds is None:
        return values
    return _with_noise(values, bounds, intensity[:, 3], seeds)


def check_statistics(statistics: Mapping[str, Sequence[float]]) -> None:
    """Check numbers that a user gives instead of ``STATISTICS``.

    Raises:
        InputError: A kind has not two finite numbers, or a standard deviation that is not positive.
    """
    for kind, numbers in statistics.items():
        if len(numbers) != 2 or not all(map(math.isfinite, numbers)) or numbers[1] <= 0:
            raise InputError(
                f"statistics.{kind} takes a mean and a standard deviation, both finite and the "
                f"second above 0; got {list(numbers)}."
            )


def _check(
    dtype: torch.dtype, kinds: Sequence[str], statistics: Mapping[str, Sequence[float]]
) -> None:
    if statistics is not STATISTICS:
        check_statistics(statistics)
    for kind in dict.fromkeys(kinds):
        if kind != RUN and kind not in statistics:
            raise InputError(
                f"there are no statistics for volumes of kind {kind!r}; known are "
                f"{', '.join([*statistics, RUN])}. Add its mean and standard deviation."
            )
        if (kind == RUN) == (dtype == torch.uint8):
            raise InputError(
                f"volumes of kind {RUN!r} are floating point and all others uint8; got {dtype} for "
                f"kind {kind!r}. Correct the kind, or build the cache again."
            )


def _standardized(
    tokens: UInt8[Tensor, "tokens voxels"],
    bounds: Int[Tensor, " bounds"],
    kinds: Sequence[str],
    intensity: Float[Tensor, "bounds-1 4"] | None,
    statistics: Mapping[str, Sequence[float]],
) -> Float[Tensor, "tokens voxels"]:
    numbers = torch.tensor([list(statistics[kind]) for kind in kinds], dtype=torch.float32)
    mean, std = numbers.to(tokens.device, non_blocking=True).unsqueeze(-1).unbind(1)  # (volumes, 1)
    # With its size given, the device need not be asked for it.
    owner = torch.repeat_interleave(bounds.diff(), output_size=len(tokens))  # (tokens,)
    if intensity is None:
        # In place, on the copy that .float() makes of uint8; the tokens stay as they are.
        return tokens.float().div_(255).sub_(mean[owner]).div_(std[owner])
    # A volume has 256 intensities, so what becomes of them is looked up. Raising each voxel to a
    # power would take as long, and its last bit would depend on the voxel's place in memory.
    levels = torch.arange(256, dtype=torch.float32, device=tokens.device).div(255)
    table = _changed(levels, intensity).sub(mean).div(std)  # (volumes, 256)
    places = tokens.int().add_(256 * owner.int().unsqueeze(1))
    return table.flatten().index_select(0, places.flatten()).view(tokens.shape)


def _changed(
    levels: Float[Tensor, " levels"], intensity: Float[Tensor, "volumes 4"]
) -> Float[Tensor, "volumes levels"]:
    """Return what the intensities in [0, 1] become in each volume."""
    # In float64, the last bits of a power are lost in rounding; MPS has none.
    wide = torch.float32 if levels.device.type == "mps" else torch.float64
    gamma, gain, offset, _ = intensity.unsqueeze(-1).unbind(1)  # (volumes, 1)
    powers = levels.to(wide).pow(gamma.to(wide)).float()
    return (powers * gain + offset).clamp(0, 1)


def _with_noise(
    values: Float[Tensor, "tokens voxels"],
    bounds: Int[Tensor, " bounds"],
    stds: Float[Tensor, " bounds-1"],
    seeds: Int[Tensor, " bounds-1"],
) -> Float[Tensor, "tokens voxels"]:
    """Add each volume's noise. Waits for the device: a generator is seeded by the host."""
    noisy = values.clone()  # the values of a float32 run are the caller's
    for (start, stop), std, seed in zip(
        pairwise(bounds.tolist()), stds.tolist(), seeds.tolist(), strict=True
    ):
        if std > 0:
            generator = torch.Generator(values.device).manual_seed(seed)
            noise = torch.randn(
                stop - start, values.shape[1], generator=generator, device=values.device
            )
            noisy[start:stop] += std * noise
    return noisy
