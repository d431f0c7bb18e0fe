"""An encoder's view of some volumes: which patches it saw, and its features as colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Int, Num, UInt8
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from neuro.report.mosaic import BACKGROUND, LETTERS, OUTLINE

MARGIN = 6  # pixels around each slice
CAPTION = 24  # pixels above all of them
HIDDEN = 0.5  # how bright the anatomy is where it is to be predicted
TINT = 0.55  # how teal it is where it is seen
RELIEF = 0.45  # how much of a colour's brightness is the anatomy's
LOW, HIGH = 0.02, 0.98  # of each component, what becomes dark and bright
CUTS = (2, 1, 0)  # axial, coronal, sagittal

Plane = Float32[np.ndarray, "height width channels"]
Gray = Float32[np.ndarray, "height width 1"]
Paint = Callable[[Gray, Plane], Float[np.ndarray, "height width 3"]]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One volume and what is known of its patches.

    Attributes:
        voxels: The volume, its axes in any order and direction.
        affine: Voxel index to RAS millimetres.
        patch: Voxels along each axis of a patch.
        coords: Grid position of each patch that was not dropped.
        contexts: For each mask, the places in ``coords`` of the patches that are seen.
        features: A feature of each patch.
    """

    voxels: Num[Tensor, "depth height width"]
    affine: Float[Tensor, "4 4"]
    patch: Sequence[int]
    coords: Int[Tensor, "tokens 3"]
    contexts: Sequence[Int[Tensor, " _seen"]]
    features: Float[Tensor, "tokens dim"]

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return tuple(size // edge for size, edge in zip(self.voxels.shape, self.patch, strict=True))

    def on_grid(self, values: Float[Tensor, "tokens channels"]) -> Float[Tensor, "d h w channels"]:
        """Return values of the patches in their places; 0 where one was dropped."""
        filled = torch.zeros(*self.grid, values.shape[1])
        filled[self.coords.cpu().long().unbind(1)] = values.cpu()
        return filled


def feature_picture(volumes: Sequence[Shown], *, slice_pixels: int = 160) -> Image.Image:
    """Return a picture with a row for each volume: its masks, and its features as colours.

    In a row are an axial, a coronal and a sagittal slice for each mask, then the same slices
    coloured by ``feature_colors``. The left of the head is on the left; millimetres are as long
    along all axes. Patches that a mask shows are teal, those to be predicted are grey, and what was
    dropped as background is black.

    Args:
        volumes: The volumes, all under equally many masks.
        slice_pixels: Edge of the square that each slice is fitted into.
    """
    rows = [
        _row(volume, own, slice_pixels)
        for volume, own in zip(volumes, feature_colors(volumes), strict=True)
    ]
    num_masks = len(volumes[0].contexts)
    names = [f"seen, mask {number + 1}" if num_masks > 1 else "seen" for number in range(num_masks)]
    picture = Image.fromarray(np.concatenate([_blank(CAPTION, rows[0].shape[1]), *rows]))
    draw = ImageDraw.Draw(picture)
    for place, name in enumerate([*names, "features"]):
        left = place * len(CUTS) * (slice_pixels + 2 * MARGIN) + 2 * MARGIN
        draw.text((left, CAPTION // 2 + 2), name, anchor="lm", fill=LETTERS, font_size=14)
    return picture


def feature_colors(volumes: Sequence[Shown]) -> list[Float[Tensor, "_tokens 3"]]:
    """Return a colour of each patch, in [0, 1]: the first three principal components.

    They are those of the patches of all volumes together, so that a colour means the same in each.
    Each component is stretched to its inner 96 %, and turned so that it rises with what it follows
    most of brightness, place and distance from the middle: so the next step's picture has the same
    colours, and nothing needs to be remembered for it.
    """
    features = torch.cat([volume.features for volume in volumes]).detach().cpu().double()
    known = torch.cat([_known(volume) for volume in volumes])
    centred = features - features.mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False)[2][:3]
    scores = F.pad(centred @ directions.T, (0, 3 - len(directions)))  # (tokens, 3)
    agreement = _unit(known).T @ _unit(scores)  # (known, 3)
    strongest = agreement.gather(0, agreement.abs().argmax(dim=0, keepdim=True))
    scores = scores * torch.where(strongest < 0, -1.0, 1.0)
    low, high = torch.quantile(scores, torch.tensor([LOW, HIGH], dtype=scores.dtype), dim=0)
    # Where all are alike, rounding is not stretched to colours; they are grey.
    span = (high - low).clamp(min=1e-6 * float(features.abs().max()) + 1e-12)
    colors = ((scores - (low + high) / 2) / span + 0.5).clamp(0, 1)
    return list(colors.float().split([len(volume.features) for volume in volumes]))


def _known(volume: Shown) -> Float64[Tensor, "tokens known"]:
    """Return what is known of each patch whatever the encoder: brightness and place."""
    (d, h, w), (a, b, c) = volume.grid, volume.patch
    means = volume.voxels.cpu().double().reshape(d, a, h, b, w, c).mean(dim=(1, 3, 5))
    coords = volume.coords.cpu()
    # In millimetres of the head, so that it does not matter how its axes were stored.
    to_mm = volume.affine.cpu().double()[:3, :3] * torch.tensor(volume.patch)
    place = (coords - coords.double().mean(dim=0)) @ to_mm.T
    return torch.cat([means[coords.long().unbind(1)].unsqueeze(1), place, place.square()], dim=1)


def _unit(columns: Float64[Tensor, "tokens columns"]) -> Float64[Tensor, "tokens columns"]:
    return F.normalize(columns - columns.mean(dim=0), dim=0)


def _row(
    volume: Shown, colors: Float[Tensor, "tokens 3"], slice_pixels: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Return the slices of one volume side by side."""
    blocks = []
    for context in volume.contexts:
        seen = torch.zeros(len(volume.coords), 1)
        seen[context.cpu()] = 1
        blocks += _slices(volume, seen, _masked, slice_pixels)
    blocks += _slices(volume, colors, _colored, slice_pixels)
    return np.concatenate(blocks, axis=1)


def _masked(gray: Gray, values: Plane) -> Float[np.ndarray, "height width 3"]:
    kept, seen = values[..., :1], values[..., 1:]
    teal = np.array(OUTLINE, np.float32) / 255
    tinted = (1 - TINT) * gray + TINT * teal * (0.25 + 0.75 * gray)
    return kept * (seen * tinted + (1 - seen) * HIDDEN * gray)


def _colored(gray: Gray, values: Plane) -> Float[np.ndarray, "height width 3"]:
    kept, colors = values[..., :1], values[..., 1:]
    return kept * colors * (1 - RELIEF + RELIEF * gray)


def _slices(
    volume: Shown, values: Float[Tensor, "tokens channels"], paint: Paint, slice_pixels: int
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Return three slices, painted from the anatomy and from values of the patches."""
    values = torch.cat([torch.ones(len(values), 1), values.cpu()], dim=1)
    gray, cells, patch, spacing_mm = _upright(volume, volume.on_grid(values).numpy())
    extent_mm = np.array(gray.shape) * spacing_mm
    pixels = np.maximum(1, np.rint(slice_pixels * extent_mm / extent_mm.max())).astype(int)
    tiles = []
    for axis in CUTS:
        place = _middle(cells[..., 0], axis)
        width, height = (int(size) for size in np.delete(pixels, axis))
        anatomy = _plane(gray[..., None], axis, int((place + 0.5) * patch[axis]))
        cell = _plane(cells, axis, place)
        painted = paint(
            _resized(anatomy, width, height, Image.Resampling.BICUBIC).clip(0, 1),
            _resized(cell, width, height, Image.Resampling.NEAREST),
        )
        tile = _blank(slice_pixels + 2 * MARGIN, slice_pixels + 2 * MARGIN)
        top, left = (len(tile) - height) // 2, (len(tile) - width) // 2
        tile[top : top + height, left : left + width] = np.maximum(255 * painted, BACKGROUND)
        tiles.append(tile)
    return tiles


def _upright(
    volume: Shown, cells: Float32[np.ndarray, "d h w channels"]
) -> tuple[
    Float32[np.ndarray, "x y z"],
    Float32[np.ndarray, "grid_x grid_y grid_z channels"],
    Int[np.ndarray, " 3"],
    Float64[np.ndarray, " 3"],
]:
    """Return anatomy in [0, 1] and patches in RAS, cut to what was kept; a patch's voxels; spacing.

    Args:
        volume: The volume.
        cells: Values of its patches on its own axes; the first is 0 where a patch was dropped.
    """
    affine = volume.affine.cpu().double().numpy()
    turn = nib.orientations.io_orientation(affine)
    gray = nib.orientations.apply_orientation(volume.voxels.cpu().float().numpy(), turn)
    low = float(gray.min())
    cells = nib.orientations.apply_orientation(cells, turn)
    order = np.argsort(turn[:, 0])
    patch = np.array(volume.patch)[order]
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)[order]
    for axis in range(3):
        places = np.flatnonzero(cells[..., 0].any(axis=_others(axis)))
        first, last, edge = places[0], places[-1] + 1, patch[axis]
        cells = cells.take(range(first, last), axis=axis)
        gray = gray.take(range(first * edge, last * edge), axis=axis)
    span = max(float(np.quantile(gray, 0.998)) - low, 1e-8)
    return ((gray - low) / span).clip(0, 1), cells, patch, spacing_mm


def _others(axis: int) -> tuple[int, ...]:
    return tuple(other for other in range(3) if other != axis)


def _middle(kept: Float32[np.ndarray, "x y z"], axis: int) -> int:
    """Return the place along an axis with as many kept patches before as behind it."""
    reached = kept.sum(axis=_others(axis)).cumsum()
    return int(np.searchsorted(reached, reached[-1] / 2))


def _plane(values: Float32[np.ndarray, "x y z channels"], axis: int, place: int) -> Plane:
    """Return a slice as a picture: its first axis runs to the right, its second upwards."""
    return np.swapaxes(values.take(place, axis=axis), 0, 1)[::-1]


def _resized(
    plane: Plane, new_width: int, new_height: int, how: Image.Resampling
) -> Float32[np.ndarray, "new_height new_width channels"]:
    channels = [Image.fromarray(np.ascontiguousarray(one)) for one in np.moveaxis(plane, -1, 0)]
    return np.stack(
        [np.asarray(one.resize((new_width, new_height), how)) for one in channels], axis=-1
    )


def _blank(height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    return np.full((height, width, 3), BACKGROUND, np.uint8)
