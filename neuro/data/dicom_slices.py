"""Whether single slices make a volume, by what their headers say, and where it lies.

dcm2niix would make a volume of uneven, missing or repeated slices without an error, so this is
looked at before. Positions are RAS millimetres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from nibabel.affines import from_matvec

from neuro.data.dicom_header import Header
from neuro.data.volume import Volume
from neuro.errors import ScanError

MIN_SLICES = 3  # two slices have one gap: nothing tells whether others are missing between them
SAME_PLACE_MM = 0.02  # headers round positions
# Largest distance from an even grid, in steps. Headers that are rounded to tenths of a millimetre
# stay below; a missing slice makes more than 0.2.
UNEVEN = 0.15
MIN_TILT_DEGREES = 0.3  # less is rounding of the direction cosines
TILT_AGREES_DEGREES = 1.0  # between the header's nominal tilt and the measured one
LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Even, parallel slices.

    Attributes:
        corners_mm: First pixel of each slice, along the normal.
        row_mm: From one pixel of a row to the next.
        column_mm: From one pixel of a column to the next.
        image_shape: Rows and columns.
        num_volumes: Images per slice position.
        tilt_degrees: Angle by which the slices lean along their columns; 0 for upright ones.
    """

    corners_mm: Float[np.ndarray, "slices 3"]
    row_mm: Float[np.ndarray, " 3"]
    column_mm: Float[np.ndarray, " 3"]
    image_shape: tuple[int, int]
    num_volumes: int
    tilt_degrees: float = 0.0

    @property
    def normal(self) -> Float[np.ndarray, " 3"]:
        """Unit vector across the slices, along which the corners are sorted."""
        across = np.cross(self.row_mm, self.column_mm)
        return across / np.linalg.norm(across)

    @property
    def index(self) -> Float[np.ndarray, " slices"]:
        """Number of each slice, counted from the middle."""
        num_slices = len(self.corners_mm)
        return np.arange(num_slices) - (num_slices - 1) / 2

    @property
    def step_mm(self) -> Float[np.ndarray, " 3"]:
        """From one slice to the next; fitted, as each header is rounded."""
        return self.index @ self.corners_mm / (self.index @ self.index)

    @property
    def astray_mm(self) -> Float[np.ndarray, "slices 3"]:
        """From where even steps would lead to where each slice is."""
        return self.corners_mm - self.corners_mm.mean(axis=0) - np.outer(self.index, self.step_mm)

    @property
    def slack_mm(self) -> float:
        """How far a slice may be astray."""
        return UNEVEN * float(np.linalg.norm(self.step_mm))

    @property
    def shift_mm(self) -> Float[np.ndarray, " 3"]:
        """The part of a step that lies within the slices."""
        return self.step_mm - self.normal * (self.step_mm @ self.normal)


def stack_slices(headers: Sequence[Header], source: Path, name: str) -> Stack:
    """Return the stack that parallel slices make.

    Args:
        headers: Of one series, one orientation, one size.
        source: The file or folder, for messages.
        name: The series, for messages.

    Raises:
        ScanError: A position is absent; there are too few slices; some are missing, uneven, or
            shifted within their plane in a way that no gantry tilt explains.
    """
    try:
        row_mm, column_mm = _pixel_steps(headers)
        corners_mm, num_volumes = _places(headers, np.cross(row_mm, column_mm))
        stack = Stack(
            corners_mm=corners_mm,
            row_mm=row_mm,
            column_mm=column_mm,
            image_shape=headers[0].shape[1:],
            num_volumes=num_volumes,
        )
        _check_steps(stack)
        return replace(stack, tilt_degrees=_tilt_degrees(stack, headers[0]))
    except _RefusedError as refused:
        reason = f"series {name}: {refused}"
        raise ScanError(source, "geometry", reason, refused.cure) from None


class _RefusedError(Exception):
    """Why slices make no volume, without the name of the series."""

    def __init__(self, reason: str, cure: str = "Export the whole series, every slice.") -> None:
        super().__init__(reason)
        self.cure = cure


def _pixel_steps(headers: Sequence[Header]) -> tuple[np.ndarray, np.ndarray]:
    first = headers[0]
    if not all(header.has_place for header in headers):
        raise _RefusedError(
            "a header does not say where its slice lies.", "Export the original images."
        )
    row, column = LPS_TO_RAS * np.reshape(first.orientation, (2, 3))
    between_rows_mm, between_columns_mm = first.spacing_mm or (0.0, 0.0)
    area = float(np.linalg.norm(np.cross(row, column)))
    if min(between_rows_mm, between_columns_mm) <= 0 or abs(area - 1) > 0.01:
        raise _RefusedError("a header holds no valid pixel size or directions.", "Export it again.")
    return row * between_columns_mm, column * between_rows_mm


def _places(headers: Sequence[Header], across: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the distinct slice positions in order, and how many images each has."""
    positions = LPS_TO_RAS * np.array([header.position_mm for header in headers])
    heights = positions @ across / np.linalg.norm(across)
    order = np.argsort(heights, kind="stable")
    starts = np.flatnonzero(np.diff(heights[order], prepend=-np.inf) > SAME_PLACE_MM)
    counts = np.diff(starts, append=len(order))
    if len(starts) < MIN_SLICES:
        raise _RefusedError(
            f"{len(headers)} images lie at {len(starts)} place(s) along the slice axis; a volume "
            f"needs at least {MIN_SLICES} places."
        )
    most = counts.max()
    if counts.min() < most:
        raise _RefusedError(
            f"images are missing: {np.sum(counts == most)} slice positions have {most} images, "
            f"{np.sum(counts < most)} have fewer."
        )
    return positions[order[starts]], int(most)


def _check_steps(stack: Stack) -> None:
    if np.abs(stack.astray_mm @ stack.normal).max() <= stack.slack_mm:
        return
    steps_mm = np.diff(stack.corners_mm @ stack.normal)
    raise _RefusedError(
        f"the slices are unevenly spaced, or some are missing: steps are {steps_mm.min():.4g} to "
        f"{steps_mm.max():.4g} mm, the largest after slice {steps_mm.argmax() + 1} of "
        f"{len(stack.corners_mm)}."
    )


def _tilt_degrees(stack: Stack, header: Header) -> float:
    """Return by how much a gantry was tilted, as the positions say; refuse any other shift."""
    shift_mm = float(np.linalg.norm(stack.shift_mm))
    measured = math.degrees(math.atan2(shift_mm, stack.step_mm @ stack.normal))
    is_straight = np.linalg.norm(stack.astray_mm, axis=1).max() <= stack.slack_mm
    is_upright = measured < MIN_TILT_DEGREES or shift_mm * len(stack.index) < stack.slack_mm
    if is_straight and is_upright:
        return 0.0
    said = header.tilt_degrees
    along_row = stack.row_mm / np.linalg.norm(stack.row_mm)
    is_sideways = abs(stack.shift_mm @ along_row) > UNEVEN * shift_mm
    if (
        header.modality == "CT"
        and said is not None
        and abs(abs(said) - measured) < TILT_AGREES_DEGREES
        and is_straight
        and not is_sideways
    ):
        return measured
    raise _RefusedError(
        f"each slice is shifted against the one before by {shift_mm:.3g} mm ({measured:.1f} "
        f"degrees), and the header's gantry tilt is "
        f"{'absent' if said is None else f'{said:.4g} degrees'}.",
        "Export it resampled to upright slices, or with the gantry tilt in the header.",
    )


def place(volume: Volume, stack: Stack, source: Path, name: str) -> Volume:
    """Put a converted volume where the headers put its slices, upright.

    dcm2niix 1.0.20260724 measures the step between two slices only, which is off where headers are
    rounded, and corrects a gantry tilt the wrong way where it is negative or where slices are
    stored from top to bottom. So its plain volume is taken, and its place from the headers.

    Args:
        volume: In RAS, the slices one behind the other.
        stack: Of its slices.
        source: The file or folder, for messages.
        name: The series, for messages.

    Raises:
        ScanError: The axes of the volume are not those of the slices.
    """
    sides = np.stack([stack.row_mm, stack.column_mm, stack.normal * (stack.step_mm @ stack.normal)])
    in_voxels = np.linalg.inv(volume.affine[:3, :3]) @ sides.T
    axes = np.abs(in_voxels).argmax(axis=0)
    signs = np.sign(in_voxels[axes, range(3)])
    rows, columns = stack.image_shape
    counts = (columns, rows, len(stack.corners_mm))
    if set(axes) != {0, 1, 2} or tuple(volume.voxels.shape[axis] for axis in axes) != counts:
        shape = " x ".join(map(str, volume.voxels.shape))
        reason = (
            f"series {name}: dcm2niix makes {shape} voxels of {counts[2]} slices of {columns} x "
            f"{rows} pixels."
        )
        raise ScanError(source, "convert", reason, "Convert it by hand and give the NIfTI file.")

    origin = stack.corners_mm.mean(axis=0) - stack.step_mm * signs[2] * (counts[2] - 1) / 2
    for side, sign, count in zip(sides[:2], signs, counts, strict=False):
        origin = origin + (side * (count - 1) if sign < 0 else 0)
    sides *= signs[:, None]
    voxels, lean = volume.voxels, signs[2] * (stack.shift_mm @ sides[1]) / (sides[1] @ sides[1])
    warnings = volume.warnings
    if stack.tilt_degrees:
        voxels, lowest = _upright(voxels, int(axes[2]), int(axes[1]), float(lean))
        origin = origin + lowest * sides[1]
        # What was said of the volume was about its lean.
        warnings = (f"a gantry tilt of {stack.tilt_degrees:.1f} degrees was corrected",)
    affine = from_matvec(sides[np.argsort(axes)].T, origin)
    return replace(volume, voxels=voxels, affine=affine, warnings=warnings)


def _upright(
    voxels: np.ndarray, across: int, along_column: int, lean: float
) -> tuple[np.ndarray, int]:
    """Shift each slice along its columns, by linear interpolation, into a taller grid.

    What was outside of the field of view holds the smallest intensity.

    Args:
        voxels: The slices as stored.
        across: The axis that counts slices.
        along_column: The axis along which they are shifted.
        lean: Voxels from one slice to the next.

    Returns:
        The voxels, and where the new grid begins, in voxels of the old one.
    """
    outside = voxels.min()
    stored = np.moveaxis(voxels, (across, along_column), (0, 1)) - outside
    offsets = lean * np.arange(len(stored))
    lowest, height = math.floor(offsets.min()), stored.shape[1]
    taller = height + 1 + math.ceil(offsets.max()) - lowest
    moved = np.zeros((len(stored), taller, *stored.shape[2:]), np.float32)
    for image, target, offset in zip(stored, moved, offsets - lowest, strict=True):
        whole, part = int(offset), offset % 1
        target[whole : whole + height] += (1 - part) * image
        target[whole + 1 : whole + 1 + height] += part * image
    upright = np.moveaxis(moved + outside, (0, 1), (across, along_column))
    return np.ascontiguousarray(upright), lowest
