"""Where a model looked, as a picture: slices through the peak of attention, bare and in colour."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import nibabel as nib
import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Num
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from neuro.report.attention import Attention
from neuro.report.axes import nice_ticks
from neuro.report.mosaic import BACKGROUND, LETTERS, Box

# axis that is cut, its name, letters at the left and right of the slice
VIEWS = ((2, "axial", "L", "R"), (1, "coronal", "L", "R"), (0, "sagittal", "P", "A"))
NUM_AXIAL = 6
MARGIN = 8  # pixels around each slice
TITLES = 20  # pixels above all of them
SAMPLED = 3  # every third voxel along each axis decides on contrast and frame
VISIBLE = 0.1  # of the way from black to white
LEGEND = 62  # pixels below all of them
FONT = 13
BAR, UNDER = 12, 96.0  # the scale's height and what it is laid over
BRIGHT = (226, 232, 240)
# From red to pale yellow in equal steps of lightness (CIE L* 33 to 95), so that more looks brighter
# to everyone, in print and to the colour-blind too.
WARM = (
    (150, 24, 46),
    (199, 51, 40),
    (230, 99, 30),
    (246, 151, 38),
    (252, 198, 78),
    (255, 240, 186),
)
OPACITY = (0.4, 0.92)  # where colour begins, and at the highest density


def attention_picture(
    voxels: Num[Tensor, "depth height width *time"],
    attention: Attention,
    *,
    caption: str = "",
    highest: float | None = None,
    slice_pixels: int = 208,
) -> Image.Image:
    """Return a picture of where a model looked.

    Above, an axial, a coronal and a sagittal slice through the patch that weighs most, which the
    marks at their edges point to; below, the same with attention in colour; then axial slices from
    below to above. The scan is cut to what was kept of it. The left of the head is on the left
    (neurological convention, marked), the front at the top of axial slices; millimetres are as long
    along all axes. Numbers at slices are their RAS millimetres.

    What weighs no more than an even share is transparent. For the eye, colours run smoothly from
    the middle of one patch to that of the next; the map of ``write_map`` has the bare numbers.

    Args:
        voxels: The prepared scan as the model sees it, a CT through one of its windows; a run is
            shown as its mean.
        attention: Of one finding in it.
        caption: What is shown, for the line below, as ``sub-0004: lesion 0.97``.
        highest: The density of the brightest colour, for pictures that are compared; by default
            the highest in this scan.
        slice_pixels: Edge of the square that each of the upper slices is fitted into.
    """
    scene = _upright(voxels, attention, highest)
    cell = slice_pixels + 2 * MARGIN
    small = 3 * cell // NUM_AXIAL
    picture = Image.new("RGB", (3 * cell, TITLES + 2 * cell + small + LEGEND), BACKGROUND)
    for column, (axis, name, *letters) in enumerate(VIEWS):
        index = scene.peak[axis]
        for row in range(2):
            corner = (column * cell, TITLES + row * cell)
            box = _draw_slice(picture, scene, axis, index, corner, cell, is_coloured=row == 1)
            _mark_peak(picture, scene, axis, box)
            _write_letters(picture, letters, corner, cell)
        title = f"{name}  {'xyz'[axis]} {scene.mm(axis, index):+.0f} mm"
        _write(picture, (column * cell + MARGIN, MARGIN), title, "lt")
    for column in range(NUM_AXIAL):
        share = 0.1 + 0.8 * (column + 0.5) / NUM_AXIAL  # the ends show little
        index = int(share * scene.voxels.shape[2])
        corner = (column * small, TITLES + 2 * cell)
        _draw_slice(picture, scene, 2, index, corner, small, is_coloured=True)
        _write(picture, (corner[0] + MARGIN, corner[1] + 2), f"{scene.mm(2, index):+.0f}", "lt")
        _write_letters(picture, VIEWS[0][2:], corner, small)
    _draw_legend(picture, scene, caption)
    return picture


@dataclass(frozen=True, kw_only=True)
class _Scene:
    """A scan in RAS, cut to what is worth showing, and its attention.

    Attributes:
        voxels: The scan.
        first: Where its first voxel is in the prepared scan.
        density: Of attention, for each patch of the prepared scan.
        patch: Voxels along each axis of a patch.
        affine: Voxel index to RAS millimetres.
        limits: The intensities that are black and white.
        highest: The density of the brightest colour.
        share: Of the study's weight, in this scan.
    """

    voxels: Num[np.ndarray, "x y z *time"]
    first: Int[np.ndarray, " 3"]
    density: Float32[np.ndarray, "grid_x grid_y grid_z"]
    patch: Int[np.ndarray, " 3"]
    affine: Float64[np.ndarray, "4 4"]
    limits: tuple[float, float]
    highest: float
    share: float

    @cached_property
    def peak(self) -> tuple[int, ...]:
        """The voxel in the middle of the patch that weighs most."""
        places = np.unravel_index(self.density.argmax(), self.density.shape)
        return tuple(((np.array(places) + 0.5) * self.patch - self.first).astype(int).tolist())

    @cached_property
    def extent_mm(self) -> Float64[np.ndarray, " 3"]:
        return np.array(self.voxels.shape[:3]) * np.linalg.norm(self.affine[:3, :3], axis=0)

    def mm(self, axis: int, index: int) -> float:
        """Return where a slice is along its axis, in the middle of the scan."""
        middle = (np.array(self.voxels.shape[:3]) - 1) / 2
        middle[axis] = index
        return float(self.affine[axis] @ np.array([*middle, 1.0]))

    def anatomy(
        self, axis: int, index: int, size: tuple[int, int]
    ) -> Float32[np.ndarray, "height width"]:
        """Return a slice in [0, 1], of ``size`` (width, height); its first axis runs upwards."""
        plane = self.voxels.take(index, axis=axis).astype(np.float32)
        plane = plane.mean(axis=-1) if plane.ndim == 3 else plane
        low, high = self.limits
        return _resized((plane - low) / (high - low), size).clip(0, 1)

    def attention(
        self, axis: int, index: int, size: tuple[int, int]
    ) -> Float32[np.ndarray, "height width"]:
        """Return the density in the same slice, smooth between the middles of patches."""
        last = self.density.shape[axis] - 1
        below = (index + self.first[axis] + 0.5) / self.patch[axis] - 0.5
        below = min(max(float(below), 0.0), float(last))
        one, other = (self.density.take(min(int(below) + n, last), axis=axis) for n in (0, 1))
        plane = (one + np.float32(below % 1) * (other - one)).astype(np.float32)
        begins = np.delete(self.first / self.patch, axis)
        ends = np.delete((self.first + self.voxels.shape[:3]) / self.patch, axis)
        height = plane.shape[1]
        return _resized(plane, size, (begins[0], height - ends[1], ends[0], height - begins[1]))


def _upright(
    voxels: Num[Tensor, "depth height width *time"], attention: Attention, highest: float | None
) -> _Scene:
    affine = attention.affine.cpu().double().numpy()
    turn = nib.orientations.io_orientation(affine)
    patch = np.array(attention.patch[:3])[np.argsort(turn[:, 0])]
    density, kept, gray = (
        nib.orientations.apply_orientation(one, turn)
        for one in (attention.density, attention.kept, voxels.cpu().numpy())
    )
    affine = affine @ nib.orientations.inv_ornt_aff(turn, voxels.shape[:3])
    sample = gray[::SAMPLED, ::SAMPLED, ::SAMPLED].astype(np.float32)
    sample = sample.mean(axis=-1) if sample.ndim == 4 else sample
    low, high = float(sample.min()), float(np.quantile(sample, 0.998))
    first, last = _worth_showing(sample > low + VISIBLE * (high - low), kept, density, patch)
    affine[:3, 3] += affine[:3, :3] @ first
    return _Scene(
        voxels=gray[tuple(map(slice, first, last))],
        first=first,
        density=density,
        patch=patch,
        affine=affine,
        limits=(low, max(high, low + 1e-8)),
        highest=max(float(density.max()), 2.0) if highest is None else highest,
        share=float(attention.weights.sum()),
    )


def _worth_showing(
    is_visible: Bool[np.ndarray, "x y z"],
    kept: Int[np.ndarray, "grid_x grid_y grid_z"],
    density: Float32[np.ndarray, "grid_x grid_y grid_z"],
    patch: Int[np.ndarray, " 3"],
) -> tuple[Int[np.ndarray, " 3"], Int[np.ndarray, " 3"]]:
    """Return the box around what is not dark, at most a patch beyond what was kept.

    Args:
        is_visible: Of every third voxel along each axis, whether it is not dark.
        kept: Tokens at each place of the grid.
        density: Of attention; the patch that weighs most is shown in any case.
        patch: Voxels along each axis of a patch.
    """
    places = np.argwhere(kept if kept.any() else kept == 0)
    peak = np.array(np.unravel_index(density.argmax(), density.shape))
    shape = np.array(kept.shape) * patch
    first = np.maximum((places.min(axis=0) - 1) * patch, 0)
    last = np.minimum((places.max(axis=0) + 2) * patch, shape)
    seen = SAMPLED * np.argwhere(is_visible)
    first = np.maximum(first, seen.min(axis=0, initial=shape.max()) - SAMPLED)
    last = np.minimum(last, seen.max(axis=0, initial=0) + SAMPLED + 1)
    return np.minimum(first, peak * patch), np.maximum(last, (peak + 1) * patch)


def _draw_slice(
    picture: Image.Image,
    scene: _Scene,
    axis: int,
    index: int,
    corner: tuple[int, int],
    cell: int,
    *,
    is_coloured: bool,
) -> Box:
    """Draw a slice in the middle of a square cell; return where it is."""
    pixels = np.rint((cell - 2 * MARGIN) * scene.extent_mm / scene.extent_mm.max())
    width, height = (max(int(size), 1) for size in np.delete(pixels, axis))
    gray = scene.anatomy(axis, index, (width, height))
    painted = np.repeat(255 * gray[..., None], 3, axis=2)
    if is_coloured:
        density = scene.attention(axis, index, (width, height))
        painted = _colored(painted, density, scene.highest)
    left, top = corner[0] + (cell - width) // 2, corner[1] + (cell - height) // 2
    picture.paste(Image.fromarray(np.maximum(painted, BACKGROUND).astype(np.uint8)), (left, top))
    return left, top, left + width, top + height


def _resized(
    plane: Float32[np.ndarray, "across up"],
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Float32[np.ndarray, "height width"]:
    """Return a plane, or a box of it, as a picture: its first axis to the right, its second up."""
    pixels = Image.fromarray(np.ascontiguousarray(plane.T[::-1]))
    return np.asarray(pixels.resize(size, Image.Resampling.BICUBIC, box))


def _colored(
    gray: Float[np.ndarray, "height width 3"],
    density: Float[np.ndarray, "height width"],
    highest: float,
) -> Float[np.ndarray, "height width 3"]:
    """Lay attention over a picture of 0 to 255: transparent up to an even share, then opaquer."""
    position = ((density - 1) / (highest - 1)).clip(0, 1)
    stops = np.linspace(0, 1, len(WARM))
    color = np.stack([np.interp(position, stops, one) for one in np.transpose(WARM)], axis=-1)
    # Opacity begins steeply but not at a step, which would draw a line where nothing ends.
    opacity = np.interp(position, (0, 0.08, 1), (0, *OPACITY))[..., None]
    return (1 - opacity) * gray + opacity * color


def _mark_peak(picture: Image.Image, scene: _Scene, axis: int, box: Box) -> None:
    """Draw marks beside a slice that point to the patch that weighs most."""
    left, top, right, bottom = box
    across, up = np.delete((np.array(scene.peak) + 0.5) / scene.voxels.shape[:3], axis)
    x, y = round(left + across * (right - left)), round(bottom - up * (bottom - top))
    draw = ImageDraw.Draw(picture)
    for line in (
        (left - 6, y, left - 2, y),
        (right + 1, y, right + 5, y),
        (x, top - 6, x, top - 2),
        (x, bottom + 1, x, bottom + 5),
    ):
        draw.line(line, fill=WARM[3])


def _write_letters(
    picture: Image.Image, letters: Sequence[str], corner: tuple[int, int], cell: int
) -> None:
    bottom = corner[1] + cell - MARGIN
    _write(picture, (corner[0] + MARGIN, bottom), letters[0], "lb")
    _write(picture, (corner[0] + cell - MARGIN, bottom), letters[1], "rb")


def _write(
    picture: Image.Image,
    place: tuple[int, int],
    text: str,
    anchor: str,
    fill: tuple[int, int, int] = LETTERS,
) -> None:
    ImageDraw.Draw(picture).text(
        place,
        text,
        anchor=anchor,
        fill=fill,
        font_size=FONT,
        stroke_width=1,  # readable on any tissue
        stroke_fill=BACKGROUND,
    )


def _draw_legend(picture: Image.Image, scene: _Scene, caption: str) -> None:
    """Draw the scale of colours with numbers, and the caption."""
    width, height = picture.size
    left, right, top = width // 2, width - 3 * MARGIN, height - LEGEND + 24
    ramp = np.linspace(1, scene.highest, right - left)[None].repeat(BAR, axis=0)
    bar = _colored(np.full((BAR, right - left, 3), UNDER), ramp, scene.highest)
    picture.paste(Image.fromarray(bar.astype(np.uint8)), (left, top))
    _write(picture, (left, top - 5), "attention, times an even share", "lb", BRIGHT)
    room = left - 4 * MARGIN
    _write(picture, (2 * MARGIN, top + 2), _fitted(caption, room), "lb", BRIGHT)
    _write(picture, (2 * MARGIN, top + 8), _fitted(_concentration(scene), room), "lt")
    span = scene.highest - 1
    between = [t for t in nice_ticks(1.0, scene.highest) if 0.08 < (t - 1) / span < 0.9]
    for tick in (1.0, *between, scene.highest):
        x = left + round((tick - 1) / span * (right - left - 1))
        ImageDraw.Draw(picture).line((x, top + BAR, x, top + BAR + 3), fill=LETTERS)
        _write(picture, (x, top + BAR + 5), f"{tick:.3g}x", "mt")


def _fitted(text: str, pixels: int) -> str:
    """Cut a text to so many pixels; letters that Pillow's own font lacks become plain ones."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    font = ImageFont.load_default(FONT)
    if font.getlength(plain) <= pixels:
        return plain
    while font.getlength(f"{plain}...") > pixels:
        plain = plain[:-1]
    return f"{plain}..."


def _concentration(scene: _Scene) -> str:
    """Say how much of the weight is here, and in how many patches half of it lies."""
    largest = np.sort(scene.density, axis=None)[::-1].astype(np.float64)
    count = int(np.searchsorted(largest.cumsum(), largest.sum() / 2)) + 1
    half = f"half of it in {count:,} of {np.count_nonzero(largest):,} patches"
    return half if scene.share > 0.995 else f"{scene.share:.0%} of the study's; {half}"
