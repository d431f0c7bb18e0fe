"""What of a scan is head."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from neuro.data.resample import memory_order

Head: TypeAlias = Bool[Tensor, "depth height width"]


def fill_head(bright: Head) -> Head:
    """Return the head, of which the bright voxels are a part.

    First, what has fewer than 9 bright voxels in its 3 x 3 x 3 neighbourhood does not count: noise
    in the air. A layer of one voxel, such as skin in thick slices, has 9. Then a dark voxel with
    head on both sides along each of the three axes is head: ventricles, sinuses, dark lesions.
    """
    order = memory_order(bright)
    seeds = bright.permute(order).contiguous().numpy()
    votes = seeds.view(np.uint8)
    for axis in range(3):
        votes = _sum_of_three(votes, axis)
    seeds = seeds & (votes >= 9)
    head = np.ones_like(seeds)
    for axis in range(3):
        head &= _between(seeds, axis)
    return torch.from_numpy(head).permute([order.index(axis) for axis in range(3)])


def _sum_of_three(
    votes: UInt8[np.ndarray, "slow middle fast"], axis: int
) -> UInt8[np.ndarray, "slow middle fast"]:
    """Add both neighbours along an axis; at its ends a voxel is its own."""
    total = votes.copy()
    at, by = np.moveaxis(total, axis, 0), np.moveaxis(votes, axis, 0)
    at[1:] += by[:-1]
    at[:-1] += by[1:]
    at[0] += by[0]
    at[-1] += by[-1]
    return total


def _between(
    seeds: Bool[np.ndarray, "slow middle fast"], axis: int
) -> Bool[np.ndarray, "slow middle fast"]:
    """Return what lies between the first and the last seed of its line, with both."""
    size = seeds.shape[axis]
    shape = [size if one == axis else 1 for one in range(3)]
    places = np.arange(1, size + 1, dtype=np.int16).reshape(shape)
    last = (seeds * places).max(axis=axis, keepdims=True)
    first = size + 1 - (seeds * np.flip(places)).max(axis=axis, keepdims=True)
    return (places >= first) & (places <= last)
