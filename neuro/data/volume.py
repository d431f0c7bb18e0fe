"""One scan as an array: read once, brought to RAS, checked.

Axes are always (depth, height, width), and they always point to the Right, Anterior and Superior of
the head (RAS). A run of several volumes has time as a fourth axis. Lengths are millimetres, times
are seconds.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped
from nibabel.nifti1 import Nifti1Header
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation

from neuro.data.frames import LARGEST, SPACING_MM, read_frames
from neuro.data.geometry import find_affine
from neuro.data.nifti import Stored, read_nifti
from neuro.errors import ScanError

TIME_BITS = 0b111000  # of the units' code
SECONDS_PER_UNIT = {8: 1.0, 16: 1e-3, 24: 1e-6}
# What NIfTI's intent codes call matrices, vectors, point sets, quaternions and colours.
SEVERAL_NUMBERS = {1004, 1005, 1006, 1007, 1008, 1009, 1010, 2003, 2004}


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A scan in RAS.

    Attributes:
        voxels: Intensities as stored, with the header's slope and intercept applied. A voxel that
            is not a number holds the smallest number of the scan: writers of maps mark the outside
            of the brain so. The order of the axes in memory is that of the file.
        affine: Voxel index to RAS millimetres.
        repetition_time_s: Time from one volume to the next; None for a single volume or where
            nothing says it.
        path: Where it came from, for messages.
        orientation: Where the axes point in the file, as in ``LAS``.
        source_shape: Numbers along each axis of the file.
        source_spacing_mm: Edge lengths of a voxel along the first three axes of the file, as its
            header writes them.
        stored_type: The type of the numbers in the file; ``float32`` where a slope was applied.
        warnings: What a person should know before trusting the scan.
    """

    voxels: Float[np.ndarray, "depth height width *time"]
    affine: Float[np.ndarray, "4 4"]
    repetition_time_s: float | None
    path: Path
    orientation: str = "RAS"
    source_shape: tuple[int, ...] = ()
    source_spacing_mm: tuple[float, ...] = ()
    stored_type: str = "float32"
    warnings: tuple[str, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))


def read_volume(path: Path, repetition_time_s: float | None = None) -> Volume:
    """Read a NIfTI file, or a folder of frames, and bring it to RAS.

    Args:
        path: NIfTI-1 or NIfTI-2, packed or not: a single file, or either file of a pair. Or a
            folder of frames, which says nothing of its space and clock.
        repetition_time_s: What a side-car says; it wins over the header.

    Raises:
        ScanError: The file is missing, empty, cut off, damaged or not NIfTI, its voxels are not
            plain numbers, its geometry is not that of a scan, or there is no image in it; or a
            folder holds no frames, or not all.
    """
    if os.path.isdir(path):  # False where it may not be looked at
        return _read_run_of_frames(path, repetition_time_s)
    stored = read_nifti(path)
    header = stored.header
    raw, merged = _space_and_time(stored, path)
    affine, spacing_mm, odd = find_affine(header, raw.shape[:3], path)
    turn = io_orientation(affine)
    voxels = _scaled(apply_orientation(raw, turn), stored.slope)
    warnings = [*stored.warnings, *odd, *merged, *_mend(voxels, path)]
    if repetition_time_s is None and raw.ndim == 4 and not merged:
        repetition_time_s = _header_repetition_time_s(header)
    return Volume(
        voxels=voxels,
        affine=affine @ inv_ornt_aff(turn, raw.shape[:3]),
        repetition_time_s=repetition_time_s,
        path=path,
        orientation="".join(aff2axcodes(affine)),
        source_shape=stored.voxels.shape,
        source_spacing_mm=spacing_mm,
        stored_type=raw.dtype.name if stored.slope is None else "float32",
        warnings=tuple(warnings),
    )


def _read_run_of_frames(path: Path, repetition_time_s: float | None) -> Volume:
    run, warnings = read_frames(path)
    run = run[..., 0] if run.shape[3] == 1 else run
    return Volume(
        warnings=(*warnings, *_mend(run, path)),
        voxels=run,
        affine=np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1.0]),
        repetition_time_s=repetition_time_s,
        path=path,
        source_shape=run.shape,
        source_spacing_mm=(SPACING_MM, SPACING_MM, SPACING_MM),
    )


def _space_and_time(stored: Stored, path: Path) -> tuple[np.ndarray, list[str]]:
    """Return the numbers with three or four axes, and what was done to have no more."""
    raw, shape = stored.voxels, stored.voxels.shape
    while raw.ndim > 3 and raw.shape[-1] == 1:
        raw = raw[..., 0]
    if raw.ndim > 3 and int(stored.header["intent_code"]) in SEVERAL_NUMBERS:
        raise ScanError(
            path,
            "geometry",
            f"each voxel holds several numbers (a vector, matrix or colour); its shape is {shape}.",
            "Export the one map that is wanted as a file of its own.",
        )
    if raw.ndim < 3:
        raise ScanError(
            path,
            "geometry",
            f"a scan has 3 axes, or 4 with time; this one has shape {shape}.",
            "Export the volume that is wanted as a file of its own.",
        )
    if raw.ndim <= 4:
        return raw, []
    # in the order of the file, where each further axis is slower than the one before
    raw = raw.reshape(*raw.shape[:3], -1, order="F")
    return raw, [f"shape {shape} is read as {raw.shape[3]} volumes, whose clock is not known"]


def _scaled(
    raw: Shaped[np.ndarray, "depth height width *time"], slope: tuple[float, float] | None
) -> Float[np.ndarray, "depth height width *time"]:
    """Return float32 numbers, scaled, in the memory order of ``raw``."""
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is mended later
        if slope is None:
            # copies only what is not float32 yet, or runs backwards, which torch does not take
            backwards = any(stride < 0 for stride in raw.strides)
            return raw.astype(np.float32, order="K", copy=backwards)
        voxels = np.empty_like(raw, dtype=np.float32, order="K")
        # through float64, in small blocks, so that long integers keep their digits
        np.multiply(raw, slope[0], out=voxels, dtype=np.float64, casting="unsafe")
        voxels += np.float32(slope[1])
    return voxels


def _mend(voxels: Float[np.ndarray, "depth height width *time"], path: Path) -> list[str]:
    """Give what is not a number the smallest number of the scan, in place; say how much it was."""
    low, high = voxels.min(), voxels.max()  # NaN if any voxel is
    warnings = []
    if not (low > -LARGEST and high < LARGEST):
        sound = np.abs(voxels) < LARGEST
        numbers = voxels[sound]
        low, high = (numbers.min(), numbers.max()) if numbers.size else (0.0, 0.0)
        np.copyto(voxels, low, where=~sound)
        share = 100 * (1 - numbers.size / voxels.size)
        warnings.append(f"{share:.2g} % of the voxels are not numbers; they hold the smallest one")
    if low < high:
        return warnings
    raise ScanError(
        path,
        "read",
        "all voxels have the same value: there is no image in it.",
        "Convert it again.",
    )


def _header_repetition_time_s(header: Nifti1Header) -> float | None:
    step = float(header["pixdim"][4])
    factor = SECONDS_PER_UNIT.get(int(header["xyzt_units"]) & TIME_BITS)
    return step * factor if factor is not None and math.isfinite(step) and step > 0 else None
