"""One scan as an array: read once, brought to RAS, checked.

Axes are always (depth, height, width), and they always point to the Right, Anterior and Superior of
the head (RAS). A run of several volumes has time as a fourth axis. Lengths are millimetres, times
are seconds.
"""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError
from nibabel.spatialimages import HeaderDataError

from neuro.errors import ScanError

SECONDS_PER_UNIT = {"sec": 1.0, "msec": 1e-3, "usec": 1e-6}


UNREADABLE = (
    ImageFileError,
    HeaderDataError,
    OrientationError,
    EOFError,
    OSError,
    zlib.error,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class Volume:
    """A scan in RAS.

    Attributes:
        voxels: Intensities as stored, with the header's slope and intercept applied. A voxel that
            is not a number holds the smallest number of the scan: writers of maps mark the outside
            of the brain so.
        affine: Voxel index to RAS millimetres.
        repetition_time_s: Time from one volume to the next; None for a single volume or where
            nothing says it.
        path: Where it came from, for messages.
    """

    voxels: Float[np.ndarray, "depth height width *time"]
    affine: Float[np.ndarray, "4 4"]
    repetition_time_s: float | None
    path: Path

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Edge lengths of a voxel."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))


def read_volume(path: Path, repetition_time_s: float | None = None) -> Volume:
    """Read a NIfTI file and bring it to RAS.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        repetition_time_s: What a side-car says; it wins over the header.

    Raises:
        ScanError: The file is missing, empty, cut off, not NIfTI, or holds nothing.
    """
    _check_file(path)
    try:
        if path.suffix == ".gz":
            _check_archive(path)
        image = nib.as_closest_canonical(nib.load(path))
        if image.get_data_dtype().kind not in "biuf":
            raise ImageFileError(f"voxels are {image.get_data_dtype()}, not plain numbers")
        voxels = np.asarray(image.dataobj, dtype=np.float32)
        affine = np.asarray(image.affine, dtype=np.float64)
    except UNREADABLE as error:
        raise ScanError(
            path,
            "read",
            f"cannot be read as NIfTI ({_one_line(error)}).",
            "Copy or convert it again.",
        ) from error
    if repetition_time_s is None:
        repetition_time_s = _header_repetition_time_s(image)
    return Volume(
        voxels=np.ascontiguousarray(_finite(_drop_empty_axes(voxels, path), path)),
        affine=affine,
        repetition_time_s=repetition_time_s,
        path=path,
    )


def _check_file(path: Path) -> None:
    """Name the faults that nibabel reports in other words."""
    if not path.exists():
        cure = "Fetch it, or take its row out of the table."
        if path.is_symlink():
            cure = "It is a link to nothing: fetch the content (git-annex, datalad get)."
        raise ScanError(path, "find", "there is no such file.", cure)
    if path.stat().st_size == 0:
        raise ScanError(path, "read", "the file has 0 bytes.", "Download it again.")


def _check_archive(path: Path) -> None:
    """Read an archive to its end, where its checksum is; nibabel stops before."""
    with gzip.open(path) as file:
        while file.read(1 << 22):
            pass


def _drop_empty_axes(voxels: np.ndarray, path: Path) -> np.ndarray:
    while voxels.ndim > 3 and voxels.shape[-1] == 1:
        voxels = voxels[..., 0]
    if voxels.ndim not in (3, 4) or 0 in voxels.shape:
        raise ScanError(
            path,
            "geometry",
            f"a scan has 3 axes, or 4 with time; this one has shape {voxels.shape}.",
            "Export the volume that is wanted as a file of its own.",
        )
    return voxels


def _finite(voxels: np.ndarray, path: Path) -> np.ndarray:
    finite = np.isfinite(voxels)
    if finite.all() and voxels.min() < voxels.max():
        return voxels
    numbers = voxels[finite]
    if numbers.size == 0 or numbers.min() == numbers.max():
        raise ScanError(
            path,
            "read",
            "all voxels have the same value: there is no image in it.",
            "Convert it again.",
        )
    return np.where(finite, voxels, numbers.min())


def _header_repetition_time_s(image: object) -> float | None:
    header = image.header  # pyright: ignore[reportAttributeAccessIssue]
    zooms = header.get_zooms()
    unit = header.get_xyzt_units()[1]
    if len(zooms) < 4 or zooms[3] <= 0 or unit not in SECONDS_PER_UNIT:
        return None
    return float(zooms[3]) * SECONDS_PER_UNIT[unit]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
