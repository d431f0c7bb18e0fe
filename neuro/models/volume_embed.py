"""3-D and 4-D patch embedders, one per modality, in place of a vision tower's image embeddings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from neuro.errors import InputError
from neuro.models.normalize import PackedVolumes, normalize_volumes

POSITIONS = ("table", "axes")
# Positions of axes are learned so many times as fast as they would be beside the projection, each
# of whose thousand weights takes steps as large as theirs, which makes the root of a thousand of
# them in any token: what it holds would drown where it is, and on which side a lesion lies be found
# late or never (LOG.md). Tables of positions are as UMBRELLA has them.
GAIN = 32


@runtime_checkable
class TokenGrid(Protocol):
    """What an embedder must know of a modality; every recipe has it."""

    @property
    def shape(self) -> Sequence[int] | None:
        """Voxels along each axis; None where they follow the scan."""
        ...

    @property
    def patch(self) -> Sequence[int]:
        """Voxels along each axis of one token."""
        ...


class PatchEmbed(nn.Module):
    """Embeds the patches of one modality: a linear projection and learned positions.

    A linear layer over flattened patches is a convolution whose stride is its kernel; no voxel is
    read twice or left out. There is no class token.

    Args:
        grid: Shape and patch of the modality.
        dim: Width of the vision tower.
        positions: ``table``: each place in the grid has a vector of its own. ``axes``: each index
            of each axis has one, and a place the sum of its own, which is learned from far fewer
            images; ``GAIN`` times as fast.
    """

    def __init__(self, grid: TokenGrid, dim: int, positions: str = "table") -> None:
        super().__init__()
        assert grid.shape is not None, "a table of positions is for a fixed grid"
        sizes = [size // edge for size, edge in zip(grid.shape, grid.patch, strict=True)]
        self.projection = nn.Linear(math.prod(grid.patch), dim)
        table, axes = ([math.prod(sizes)], []) if positions == "table" else ([], sizes)
        self.positions = nn.ParameterList(
            nn.init.trunc_normal_(torch.empty(count, dim), std=0.02) for count in table
        )
        self.axes = nn.ParameterList(
            nn.init.trunc_normal_(torch.empty(count, dim), std=0.02) / GAIN for count in axes
        )
        strides = [math.prod(sizes[axis + 1 :]) for axis in range(len(sizes))]
        self.register_buffer("strides", torch.tensor(strides), persistent=False)
        self.strides: Tensor

    def forward(self, volumes: PackedVolumes) -> Float[Tensor, "tokens dim"]:
        """Return one vector per token."""
        return self.projection(normalize_volumes(volumes)) + self._position(volumes.coords.long())

    def _position(self, coords: Int[Tensor, "tokens axes"]) -> Float[Tensor, "tokens dim"]:
        """Return the position of each token."""
        if len(self.positions) == 1:
            places = (coords * self.strides).sum(dim=1)
            return F.embedding(places, self.positions[0])
        found = F.embedding(coords[:, 0], self.axes[0])
        for axis in range(1, len(self.axes)):
            found = found + F.embedding(coords[:, axis], self.axes[axis])
        return GAIN * found


class VolumeEmbed(nn.Module):
    """Stands where a CLIP or SigLIP tower has its ``embeddings``; takes volumes, not pixels.

    Args:
        grids: The modalities; each gets parameters of its own. One whose grid follows the scan
            gets none, since positions here are a table.
        dim: Width of the vision tower.
        dtype: What the tower computes in; the embedders themselves stay in float32.
        positions: ``table`` or ``axes``, see ``PatchEmbed``.

    Raises:
        InputError: There is no such kind of positions.
    """

    def __init__(
        self,
        grids: Mapping[str, TokenGrid],
        dim: int,
        dtype: torch.dtype = torch.float32,
        positions: str = "table",
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise InputError(
                f"system.vision.positions must be one of {', '.join(POSITIONS)}; got {positions!r}."
            )
        self.embedders = nn.ModuleDict(
            {
                modality: PatchEmbed(grid, dim, positions)
                for modality, grid in grids.items()
                if grid.shape is not None
            }
        )
        self.dtype = dtype

    def forward(
        self, pixel_values: Mapping[str, PackedVolumes], **_: Any
    ) -> Float[Tensor, "series tokens dim"]:
        """Embed volumes, modality by modality in the order of the mapping.

        They are padded with zeros to the longest.

        Args:
            pixel_values: The volumes by modality; the name is the tower's.
            _: What towers pass for two-dimensional images (``interpolate_pos_encoding``).

        Raises:
            KeyError: A modality has no embedder.
        """
        features = []
        for modality, volumes in pixel_values.items():
            embedded = self.embedders[modality](volumes)
            features += list(embedded.split(volumes.bounds.diff().tolist()))
        return pad_sequence(features, batch_first=True).to(self.dtype)


def volume_lengths(volumes: Mapping[str, PackedVolumes]) -> list[int]:
    """Return the tokens of each volume, in the order of ``VolumeEmbed``."""
    return [length for packed in volumes.values() for length in packed.bounds.diff().tolist()]


def places_of_images(
    volumes: Mapping[str, PackedVolumes], images: Sequence[tuple[str, int]]
) -> list[int]:
    """Return which volume, in the order of ``VolumeEmbed``, each image slot of the text shows."""
    first, starts = 0, {}
    for modality, packed in volumes.items():
        starts[modality] = first
        first += len(packed.bounds) - 1
    return [starts[modality] + place for modality, place in images]


def padding_mask(
    lengths: list[int], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "series 1 1 tokens"] | None:
    """Return what towers add to attention scores: 0 for a token, very little for padding.

    None if nothing is padded.
    """
    if min(lengths) == max(lengths):
        return None
    padded = torch.arange(max(lengths), device=device) >= torch.tensor(
        lengths, device=device
    ).unsqueeze(1)
    mask = torch.zeros(padded.shape, device=device, dtype=dtype).masked_fill(
        padded, torch.finfo(dtype).min
    )
    return mask[:, None, None, :]
