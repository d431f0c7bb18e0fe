"""3-D position encodings, computed from coordinates."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuro.errors import InputError

BASE = 10000.0  # the longest wave is about this long, in patches
# Patches along an axis. No scan has as many; an index that was taken for a coordinate has.
MAX_COORD = 1023


def sincos_positions(
    coords: Int[Tensor, "tokens axes"], channels: int
) -> Float[Tensor, "tokens channels"]:
    """Return sines and cosines of each coordinate, in float32.

    The channels are shared out evenly among the axes, in their order. An axis has pairs of sine and
    cosine at the frequencies ``10000 ** (-2 k / channels of the axis)``, from the highest on. With
    3 axes and 30 channels these are the positions of NeuroVFM; its table of 540 MiB is not needed.

    A row with a coordinate that ``check_coords`` would refuse is NaN, never another place's.

    Args:
        coords: Grid position of each token, in patches.
        channels: A multiple of twice the number of axes.
    """
    per_axis, rest = divmod(channels, coords.shape[1])
    assert per_axis % 2 == rest == 0, "each axis has as many sines as cosines"
    exponents = torch.arange(0, per_axis, 2, device=coords.device).float() / -per_axis
    angles = coords.float().unsqueeze(-1) * BASE**exponents  # (tokens, axes, frequencies)
    waves = torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)  # (tokens, channels)
    possible = ((coords >= 0) & (coords <= MAX_COORD)).all(dim=1, keepdim=True)
    return waves.where(possible, torch.nan)


def check_coords(coords: Int[Tensor, "tokens axes"]) -> None:
    """Check coordinates that lie on a CPU.

    Elsewhere the host would have to wait for the device, and compiled code does not look at data;
    there ``sincos_positions`` gives NaN.

    Raises:
        InputError: A coordinate is negative, or no scan can have it.
    """
    if coords.device.type != "cpu" or torch.compiler.is_compiling() or len(coords) == 0:
        return
    lowest, highest = (int(one) for one in coords.aminmax())
    if lowest < 0 or highest > MAX_COORD:
        raise InputError(
            f"coords are places in a grid of patches, 0 to {MAX_COORD} along each axis; got "
            f"{lowest} to {highest}. Give (depth, height, width) of each token in patches, "
            f"not in voxels, and not its number."
        )


def check_channels(channels: int, dim: int, num_axes: int = 3) -> None:
    """Check how many channels of a width are given to positions.

    Args:
        channels: Of positions.
        dim: The width that they are a part of.
        num_axes: Of the grid.

    Raises:
        InputError: They cannot be shared out among the axes, or nothing is left for what a token
            holds.
    """
    pairs = 2 * num_axes
    if channels <= 0 or channels % pairs or channels >= dim:
        nearest = max(pairs, min(round(channels / pairs), (dim - 1) // pairs) * pairs)
        raise InputError(
            f"position_dim is a multiple of {pairs}, above 0 and below dim={dim}; got "
            f"{channels}. Set it to {nearest}."
        )
