"""Cached voxels become numbers that a network likes, on the device."""

from __future__ import annotations

import torch
from jaxtyping import Float, Num
from torch import Tensor

# Mean and standard deviation of the foreground tokens of clinical MRI, scaled to [0, 1].
MRI_MEAN, MRI_STD = 0.3141, 0.2623


def normalize(tokens: Num[Tensor, "tokens voxels"]) -> Float[Tensor, "tokens voxels"]:
    """Return float32 tokens: uint8 is scaled to [0, 1] and standardized.

    A run stays as its recipe scaled it.
    """
    if tokens.dtype == torch.uint8:
        return (tokens.float() / 255 - MRI_MEAN) / MRI_STD
    return tokens.float()
