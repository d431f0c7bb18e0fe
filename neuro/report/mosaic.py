"""A volume as a picture: three slices as a radiologist expects, but left on the left."""

from __future__ import annotations

import base64
import io

import nibabel as nib
import numpy as np
import torch
from jaxtyping import Bool, Float, Num, Shaped, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

BACKGROUND = (12, 14, 18)
LETTERS = (148, 163, 184)
OUTLINE = (45, 212, 191)
# (axis that is cut, letters at the left and right of the slice): axial, coronal, sagittal
_VIEWS = ((2, "L", "R"), (1, "L", "R"), (0, "P", "A"))

# Left, top, right and bottom of a slice in the picture.
Box = tuple[int, int, int, int]


def mosaic(
    voxels: Num[Tensor, "depth height width *time"],
    *,
    affine: Float[Tensor | np.ndarray, "4 4"] | None = None,
    outline: Bool[Tensor, "grid_depth grid_height grid_width"] | None = None,
    slice_pixels: int = 128,
) -> Image.Image:
    """Return an axial, a coronal and a sagittal slice side by side, at one scale.

    The front is at the top of the axial slice, and the left of the head on the left of the
    picture (neurological convention, marked). Millimetres are as long along all axes. A run is
    shown as its mean over time. Slices go through the middle of the kept tokens, or of the volume
    where there is no outline.

    Args:
        voxels: A volume, its axes in any order and direction.
        affine: Voxel index to RAS millimetres; an oblique volume is shown along those axes of the
            head that are nearest to its own. Without it the volume is RAS with cubic voxels.
        outline: Which tokens are kept, on the axes of ``voxels``; their border is drawn.
        slice_pixels: Edge of the square that each slice is fitted into.
    """
    axes, flips, spacing_mm = _geometry(np.eye(4) if affine is None else np.asarray(affine))
    ordered = voxels.permute(*axes, *range(3, voxels.ndim))
    kept = None if outline is None or not outline.any() else outline.permute(axes).flip(flips)
    middle = (0.5, 0.5, 0.5) if kept is None else _middle(kept)

    slices = [_cut(ordered, axis, middle[axis], flips) for axis, _, _ in _VIEWS]
    boxes = _boxes(np.array(ordered.shape[:3]) * spacing_mm, slice_pixels)
    picture = Image.new("RGB", (3 * slice_pixels, slice_pixels), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for place, gray in enumerate(_gray(slices)):
        (axis, left, right), box = _VIEWS[place], boxes[place]
        # The first axis runs to the right of the picture, the second upwards.
        pixels = Image.fromarray(gray.T.flip(0).contiguous().numpy())
        size = (box[2] - box[0], box[3] - box[1])
        scaled = pixels.resize(size, Image.Resampling.BICUBIC)
        picture.paste(scaled.convert("RGB"), box[:2])
        if kept is not None:
            _draw_border(draw, _cut(kept, axis, middle[axis], []), box)
        edge = place * slice_pixels
        for x, anchor, letter in ((edge + 4, "lb", left), (edge + slice_pixels - 4, "rb", right)):
            draw.text(
                (x, slice_pixels - 3),
                letter,
                anchor=anchor,
                fill=LETTERS,
                font_size=max(10, slice_pixels // 12),
                stroke_width=1,  # readable on any tissue
                stroke_fill=BACKGROUND,
            )
    return picture


def data_uri(picture: Image.Image, *, webp_quality: int | None = None) -> str:
    """Return a picture as text that a page can hold.

    Args:
        picture: Any picture.
        webp_quality: 1 to 100, for pages with many pictures: at 75 a mosaic takes half of the bytes
            of a JPEG of quality 80 and looks the same. Without it the picture is a PNG.
    """
    buffer = io.BytesIO()
    if webp_quality is None:
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="WEBP", quality=webp_quality)
    kind = "png" if webp_quality is None else "webp"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode()


def _geometry(
    affine: Float[np.ndarray, "4 4"],
) -> tuple[list[int], list[int], Float[np.ndarray, " 3"]]:
    """Return the axes in the order R, A, S; which of these run backwards; their spacing."""
    nearest = nib.orientations.io_orientation(affine)  # of each axis: which of R, A, S; direction
    axes = np.argsort(nearest[:, 0])
    flips = np.flatnonzero(nearest[axes, 1] < 0)
    return axes.tolist(), flips.tolist(), np.linalg.norm(affine[:3, :3], axis=0)[axes]


def _middle(kept: Bool[Tensor, "x y z"]) -> tuple[float, ...]:
    """Return the place, in [0, 1), along each axis with as many kept tokens before as behind it.

    Not the middle of a box around them: one stray token far away would move that.
    """
    middle = []
    for axis in range(3):
        counts = kept.sum(dim=[other for other in range(3) if other != axis]).numpy()
        reached = np.concatenate([[0], counts.cumsum()]) / counts.sum()
        place = float(np.interp(0.5, reached, np.linspace(0, 1, len(reached))))
        middle.append(min(place, 1 - 1e-9))
    return tuple(middle)


def _cut(
    volume: Shaped[Tensor, "x y z *time"], axis: int, place: float, flips: list[int]
) -> Shaped[Tensor, "across up *time"]:
    """Return the slice at ``place``, in [0, 1) on the turned axis, with its own axes turned too.

    Turning the slice and not the volume spares a copy of it.
    """
    index = int(place * volume.shape[axis])
    if axis in flips:
        index = volume.shape[axis] - 1 - index
    turned = [other - (other > axis) for other in flips if other != axis]
    return volume.select(axis, index).flip(turned)


def _boxes(extent_mm: Float[np.ndarray, " 3"], slice_pixels: int) -> list[Box]:
    """Return where each slice goes: centred in its square, the longest axis fills it."""
    pixels = np.maximum(1, np.rint(slice_pixels * extent_mm / extent_mm.max())).astype(int)
    boxes = []
    for place, (axis, _, _) in enumerate(_VIEWS):
        width, height = (int(size) for size in np.delete(pixels, axis))
        left = place * slice_pixels + (slice_pixels - width) // 2
        top = (slice_pixels - height) // 2
        boxes.append((left, top, left + width, top + height))
    return boxes


def _gray(slices: list[Num[Tensor, "_ _ *time"]]) -> list[UInt8[Tensor, "_ _"]]:
    """Stretch slices together from black to white, leaving out the brightest 0.5 %."""
    flat = [one.float().mean(dim=-1) if one.ndim == 3 else one.float() for one in slices]
    shown = np.concatenate([one.flatten().numpy() for one in flat])
    low, high = float(shown.min()), float(np.quantile(shown, 0.995))
    scale = 255 / max(high - low, 1e-8)
    return [((one - low) * scale).clamp(0, 255).to(torch.uint8) for one in flat]


def _draw_border(draw: ImageDraw.ImageDraw, kept: Bool[Tensor, "across up"], box: Box) -> None:
    """Draw a line wherever a kept token of this slice has no kept neighbour."""
    left, top, right, bottom = box
    xs = np.linspace(left, right - 1, kept.shape[0] + 1).round().astype(int).tolist()
    ys = np.linspace(bottom - 1, top, kept.shape[1] + 1).round().astype(int).tolist()
    padded = torch.nn.functional.pad(kept, (1, 1, 1, 1))
    for i, j in (padded[1:, 1:-1] != padded[:-1, 1:-1]).nonzero().tolist():
        draw.line((xs[i], ys[j], xs[i], ys[j + 1]), fill=OUTLINE)
    for i, j in (padded[1:-1, 1:] != padded[1:-1, :-1]).nonzero().tolist():
        draw.line((xs[i], ys[j], xs[i + 1], ys[j]), fill=OUTLINE)
