"""Augmentation: draw the parameters first, then apply them; only the draw is random."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Num
from torch import Tensor

from neuro.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What is done to one volume.

    Attributes:
        flip: Whether left and right are exchanged.
        gain: What intensities are multiplied by.
    """

    flip: bool
    gain: float

    def apply(
        self, voxels: Num[Tensor, "depth height width *time"]
    ) -> Num[Tensor, "depth height width *time"]:
        """Change a volume; its first axis points to the right."""
        if self.flip:
            voxels = voxels.flip(0)
        if self.gain == 1.0:
            return voxels
        changed = voxels.float() * self.gain
        if voxels.dtype == torch.uint8:
            changed = changed.round().clamp(0, 255)
        return changed.to(voxels.dtype)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Changes that keep the anatomy plausible: never upside down, never turned on its side.

    Args:
        flip_probability: How often left and right are exchanged, in [0, 1]. Leave it 0 where an
            answer names a side.
        max_gain_change: Intensities are multiplied by 1 plus or minus up to this, in [0, 1).

    Raises:
        InputError: An argument is out of range.
    """

    flip_probability: float = 0.0
    max_gain_change: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.flip_probability <= 1 and 0 <= self.max_gain_change < 1):
            raise InputError(
                f"data.augment takes flip_probability in [0, 1] and max_gain_change in [0, 1); got "
                f"{self.flip_probability} and {self.max_gain_change}."
            )

    def draw(self, generator: torch.Generator) -> Draw:
        """Draw parameters."""
        flip = bool(torch.rand((), generator=generator) < self.flip_probability)
        swing = 2 * float(torch.rand((), generator=generator)) - 1
        return Draw(flip=flip, gain=1.0 + swing * self.max_gain_change)
