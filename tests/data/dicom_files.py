"""Synthetic DICOM series whose right volume is known, and what tests of DICOM share.

The writer takes voxels that are in RAS.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from neuro.data.dicom import find_dicom, read_dicom
from neuro.data.volume import Volume
from neuro.errors import ScanError

SOP_CLASSES = {
    "MR": UID("1.2.840.10008.5.1.4.1.1.4"),
    "CT": UID("1.2.840.10008.5.1.4.1.1.2"),
    "SR": UID("1.2.840.10008.5.1.4.1.1.88.11"),
    "OT": UID("1.2.840.10008.5.1.4.1.1.7"),
}
# (axis along a row, axis along a column, slice axis) of the array; an image goes left, back, down.
PLANES = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}
TO_LPS = np.diag([-1.0, -1.0, 1.0])
ROOT = "1.2.826.0.1.3680043.8.498."  # pydicom's own


def noise(*shape: int) -> np.ndarray:
    """Return the same whole numbers for the same shape."""
    return np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)


AFFINE = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 4, 5], [0, 0, 0, 1]])
VOXELS = noise(12, 14, 9)
RUN = noise(10, 12, 5, 4)


def header(modality: str, uid: str, number: int, instance: int) -> Dataset:
    """Return what every file of a series says, without pixels and without a patient."""
    dataset = Dataset()
    dataset.SOPClassUID = SOP_CLASSES[modality]
    dataset.SOPInstanceUID = f"{uid}.{instance}"
    dataset.StudyInstanceUID = f"{ROOT}1"
    dataset.SeriesInstanceUID = uid
    dataset.Modality = modality
    dataset.Manufacturer = "SIEMENS"
    dataset.ProtocolName = "head"
    dataset.PatientPosition = "HFS"
    dataset.SeriesNumber = number
    dataset.InstanceNumber = instance
    return dataset


def save(dataset: Dataset, path: Path) -> None:
    """Write a file with preamble and meta header."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def add_pixels(dataset: Dataset, pixels: np.ndarray) -> None:
    """Give a header signed grey pixels of 16 bits (rows, columns)."""
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
    dataset.PixelData = pixels.astype("<i2").tobytes()


def write_series(
    folder: Path,
    voxels: np.ndarray,
    affine: np.ndarray,
    *,
    plane: str = "axial",
    modality: str = "MR",
    number: int = 1,
    uid: str = "",
    suffix: str = ".dcm",
    instances: Iterable[int] = (),
    edit: Callable[[Dataset, int, int], None] | None = None,
) -> list[Path]:
    """Write one file per slice and time point; reading them back gives the voxels and the affine.

    Args:
        folder: Where; made if it is absent.
        voxels: Whole numbers of 16 bits (depth, height, width), or with time as a fourth axis.
        affine: Voxel index to RAS millimetres, without shear.
        plane: ``axial``, ``coronal`` or ``sagittal``: the axis that is cut into slices.
        modality: ``MR`` or ``CT``.
        number: SeriesNumber.
        uid: SeriesInstanceUID; made of the number by default.
        suffix: Of the file names, which are the instance numbers.
        instances: InstanceNumbers, volume by volume and in each from the first slice to the last;
            1, 2, 3, ... by default.
        edit: Called with each header, its slice index and its time index before it is written.

    Returns:
        The files, volume by volume and in each from the first slice of the array to the last.
    """
    along_row, along_column, across = PLANES[plane]
    frames = voxels if voxels.ndim == 4 else voxels[..., None]
    turned = np.flip(frames, axis=(along_row, along_column))
    # The array index of an image's first pixel on slice 0.
    corner = np.zeros(4)
    corner[[along_row, along_column, 3]] = (
        voxels.shape[along_row] - 1,
        voxels.shape[along_column] - 1,
        1,
    )
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    directions = TO_LPS @ affine[:3, :3] / spacing_mm
    instances = list(instances) or range(1, 1 + frames.shape[across] * frames.shape[3])
    files = []
    for index, instance in enumerate(instances):
        time, depth = divmod(index, frames.shape[across])
        dataset = header(modality, uid or f"{ROOT}2.{number}", number, int(instance))
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M" if modality == "MR" else "AXIAL"]
        corner[across] = depth
        dataset.ImagePositionPatient = [f"{x:.6f}" for x in TO_LPS @ (affine @ corner)[:3]]
        orientation = np.concatenate([-directions[:, along_row], -directions[:, along_column]])
        dataset.ImageOrientationPatient = [f"{x:.9f}" for x in orientation]
        dataset.PixelSpacing = [float(spacing_mm[along_column]), float(spacing_mm[along_row])]
        dataset.SliceThickness = float(spacing_mm[across])
        if modality == "MR":
            dataset.EchoTime, dataset.EchoNumbers, dataset.RepetitionTime = 30.0, 1, 2000.0
        image = turned[..., time].take(depth, axis=across)  # (along_row, along_column) or swapped
        add_pixels(dataset, image.T if along_row < along_column else image)
        if edit is not None:
            edit(dataset, depth, time)
        files.append(folder / f"{instance:05d}{suffix}")
        save(dataset, files[-1])
    return files


def files_below(folder: Path) -> list[Path]:
    """Return all files, at any depth."""
    return [path for path in folder.rglob("*") if path.is_file()]


def only_volume(folder: Path) -> Volume:
    """Read the one series in a folder."""
    series, errors = find_dicom(files_below(folder))
    assert errors == []
    assert len(series) == 1
    return read_dicom(series[0].files, series[0].name)


def refusal(folder: Path, step: str, reason: str) -> ScanError:
    """Return the one error for a folder in which there is no volume."""
    series, errors = find_dicom(files_below(folder))
    if not errors:
        with pytest.raises(ScanError) as caught:
            read_dicom(series[0].files, series[0].name)
        series, errors = [], [caught.value]
    assert series == []
    assert len(errors) == 1
    assert errors[0].step == step
    assert re.search(reason, errors[0].reason), errors[0].reason
    assert errors[0].cure
    assert "\n" not in str(errors[0])
    return errors[0]


def assert_same(volume: Volume, voxels: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    """Compare voxel for voxel, and the place."""
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)


def real_folder(real_data: Path, *parts: str) -> Path:
    """Return a folder of public scans, or skip."""
    folder = real_data.joinpath(*parts)
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    return folder
