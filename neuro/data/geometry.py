"""Where a scan is in the world: which transform of its header holds, and whether any does.

NIfTI has two: the ``qform``, a rotation, and the ``sform``, any affine. The sform is taken where
both are set, as most programs do; one that is not plausible for a head is not taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from nibabel.nifti1 import Nifti1Header
from nibabel.spatialimages import HeaderDataError

from neuro.errors import ScanError

Affine = Float[np.ndarray, "4 4"]

SPACING_MM = (0.05, 50.0)  # an edge of a voxel: from the microscopy of brains to scouts
MAX_EXTENT_MM = 3000.0  # no scanner sees farther
UNITS_IN_MM = {1: ("metres", 1000.0), 3: ("micrometres", 1e-3)}  # by NIfTI's codes


def find_affine(
    header: Nifti1Header, shape: Sequence[int], path: Path
) -> tuple[Affine, tuple[float, ...], list[str]]:
    """Return the affine of the voxels as stored, their edge lengths, and what is odd about both.

    The edge lengths are the header's own numbers where they agree with the affine: from an affine
    that is turned they come back with noise.

    Args:
        header: The header.
        shape: Voxels along the first three axes.
        path: The file, for the error.

    Raises:
        ScanError: No transform is plausible.
    """
    with np.errstate(all="ignore"):  # what overflows is a fault that is named below
        header, warnings = _tidy(header)
        found, faults = _candidates(header, shape)
        if not found:
            reasons = "; ".join(f"its {name} gives {fault}" for name, fault in faults.items())
            cure = "Convert it again from its source, or leave it out."
            raise ScanError(path, "geometry", f"{reasons}.", cure)
        used, affine = next(iter(found.items()))
        warnings += [f"the {name} gives {fault}; {used} is used" for name, fault in faults.items()]
        if "qform" in found and used == "sform":
            warnings += _disagreement(affine, found["qform"], shape)
        if used == "pixdim":
            warnings.append(
                "neither sform nor qform is set: nothing says where the axes point; left, anterior "
                "and superior are assumed"
            )
        if (skew := _skew_degrees(affine)) > 1:
            warnings.append(f"its axes are {skew:.1f} degrees away from right angles")
        return affine, _spacing_mm(affine, header, warnings), warnings


def _tidy(header: Nifti1Header) -> tuple[Nifti1Header, list[str]]:
    """Mend what readers may mend: no handedness, edge lengths with a sign."""
    header = header.copy()
    pixdim = np.asarray(header["pixdim"], dtype=np.float64)
    header["pixdim"] = [-1 if pixdim[0] < 0 else 1, *np.abs(pixdim[1:4]), *pixdim[4:]]
    if not (pixdim[1:4] < 0).any():
        return header, []
    return header, ["the header gives negative edge lengths; the sign is ignored"]


def _candidates(
    header: Nifti1Header, shape: Sequence[int]
) -> tuple[dict[str, Affine], dict[str, str]]:
    """Return the plausible transforms in order of preference, and what is wrong with the others."""
    transforms: dict[str, Callable[[], object]] = {}
    if header["sform_code"]:
        transforms["sform"] = header.get_sform
    if header["qform_code"]:
        transforms["qform"] = header.get_qform
    found, faults = {}, {}
    for name, transform in (transforms or {"pixdim": header.get_base_affine}).items():
        try:
            affine = np.asarray(transform(), dtype=np.float64)
        except (HeaderDataError, ValueError) as error:
            faults[name] = f"no transform ({' '.join(str(error).split())})"
            continue
        affine = affine * _to_mm(affine, header, shape)
        fault = _fault(affine, shape)
        if fault is None:
            found[name] = affine
        else:
            faults[name] = fault
    return found, faults


def _to_mm(affine: Affine, header: Nifti1Header, shape: Sequence[int]) -> Float[np.ndarray, "4 1"]:
    """Return what makes millimetres of an affine; a unit that makes no sense is not believed."""
    _, factor = UNITS_IN_MM.get(int(header["xyzt_units"]) % 8, ("", 1.0))
    scale = np.array([[factor], [factor], [factor], [1.0]])
    return scale if _fault(affine * scale, shape) is None else np.ones((4, 1))


def _fault(affine: Affine, shape: Sequence[int]) -> str | None:
    """Return why an affine cannot be that of a scan."""
    if not np.isfinite(affine).all():
        return "numbers that are not finite"
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    edges = " x ".join(f"{edge:.4g}" for edge in spacing_mm)
    if not ((spacing_mm >= SPACING_MM[0]) & (spacing_mm <= SPACING_MM[1])).all():
        return f"voxels of {edges} mm (plausible are {SPACING_MM[0]} to {SPACING_MM[1]:g})"
    if (spacing_mm * shape > MAX_EXTENT_MM).any():
        return f"a field of view beyond {MAX_EXTENT_MM:g} mm, with voxels of {edges} mm"
    if abs(np.linalg.det(affine[:3, :3] / spacing_mm)) < 0.1:
        return "axes that lie in one plane"
    if np.abs(affine[:3, 3]).max() > 100 * MAX_EXTENT_MM:
        return "a place far outside of any scanner"
    return None


def _disagreement(sform: Affine, qform: Affine, shape: Sequence[int]) -> list[str]:
    """Say by how much the two transforms differ, where it is more than rounding."""
    middle = np.array([*[(size - 1) / 2 for size in shape], 1.0])
    shift_mm = float(np.linalg.norm((sform - qform) @ middle))
    lengths = [np.linalg.norm(one[:3, :3], axis=0) for one in (sform, qform)]
    turn = (sform[:3, :3] / lengths[0]).T @ (qform[:3, :3] / lengths[1])
    angle = float(np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    stretch = float(np.abs(lengths[0] / lengths[1] - 1).max())
    if shift_mm <= 0.1 and angle <= 0.5 and stretch <= 0.01:
        return []
    return [
        f"sform and qform disagree: their middles are {shift_mm:.1f} mm apart, turned by "
        f"{angle:.1f} degrees, voxels {100 * stretch:.0f} % unlike; the sform is used"
    ]


def _skew_degrees(affine: Affine) -> float:
    """Return how far two axes are from a right angle."""
    units = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = np.abs(units.T @ units - np.eye(3)).max()
    return float(np.degrees(np.arcsin(min(cosine, 1.0))))


def _spacing_mm(affine: Affine, header: Nifti1Header, warnings: list[str]) -> tuple[float, ...]:
    """Return the edge lengths, and note where the header contradicts itself about them."""
    measured = np.linalg.norm(affine[:3, :3], axis=0)
    unit, factor = UNITS_IN_MM.get(int(header["xyzt_units"]) % 8, ("", 1.0))
    written = header["pixdim"][1:4].astype(np.float64)
    ratio = measured / written
    if unit and np.allclose(ratio, factor, rtol=1e-3):
        warnings.append(f"the header gives lengths in {unit}; they are converted")
        written = written * factor
    elif unit:
        warnings.append(f"the header gives lengths in {unit}, which makes no sense; mm are assumed")
    if np.allclose(written, measured, rtol=1e-3):
        return tuple(float(edge) for edge in written)
    if not header["qform_code"] and not np.allclose(written, measured, rtol=1e-2):
        edges, others = (" x ".join(f"{edge:.4g}" for edge in one) for one in (measured, written))
        warnings.append(f"the sform gives voxels of {edges} mm, pixdim of {others}; sform is used")
    return tuple(float(edge) for edge in measured)
