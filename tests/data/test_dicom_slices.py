"""Slices make a volume where they are even, whole and upright, or leant as a gantry leans."""

from __future__ import annotations

import numpy as np
import pytest
from dicom_files import (
    AFFINE,
    ROOT,
    RUN,
    VOXELS,
    add_pixels,
    assert_same,
    header,
    noise,
    only_volume,
    real_folder,
    refusal,
    save,
    write_series,
)


def test_slices_are_sorted_by_place_and_not_by_number(tmp_path):  # S30
    order = np.random.default_rng(1).permutation(9) + 1
    write_series(tmp_path, VOXELS, AFFINE, instances=order)
    volume = only_volume(tmp_path)
    assert_same(volume, VOXELS)
    assert any("not spatial" in warning for warning in volume.warnings)


def test_slices_may_be_stored_from_top_to_bottom(tmp_path):
    write_series(tmp_path, VOXELS, AFFINE, instances=range(9, 0, -1))
    assert_same(only_volume(tmp_path), VOXELS)


def test_positions_that_are_rounded_are_even(tmp_path):
    def rounded(dataset, index, time):
        dataset.ImagePositionPatient = [round(float(x), 1) for x in dataset.ImagePositionPatient]

    affine = AFFINE @ np.diag([1, 1, 0.625 / 4, 1])
    write_series(tmp_path, noise(8, 8, 60), affine, edit=rounded)
    assert only_volume(tmp_path).spacing_mm == pytest.approx((2, 3, 0.625), rel=0.01)


@pytest.mark.parametrize("missing", [1, 4, 7])
def test_a_missing_slice_is_named(tmp_path, missing):  # S30
    write_series(tmp_path, VOXELS, AFFINE)[missing].unlink()
    error = refusal(tmp_path, "geometry", "some are missing: steps are 4 to 8 mm")
    assert f"after slice {missing} of 8" in error.reason
    assert error.path == tmp_path


def test_uneven_gaps_are_measured(tmp_path):
    files = write_series(tmp_path, noise(12, 14, 11), AFFINE)
    for index in (5, 7, 9):
        files[index].unlink()
    refusal(tmp_path, "geometry", "unevenly spaced.* 4 to 8 mm")


def test_a_run_with_a_missing_image_is_refused(tmp_path):  # S17
    write_series(tmp_path, RUN, AFFINE)[12].unlink()
    refusal(tmp_path, "geometry", "images are missing: 4 slice positions have 4 images, 1 have")


def test_images_of_one_place_are_no_volume(tmp_path):
    write_series(tmp_path, noise(12, 14, 1, 5), AFFINE)
    refusal(tmp_path, "geometry", "5 images lie at 1 place")


def test_slices_that_slide_are_no_volume(tmp_path):
    def slide(dataset, index, time):
        dataset.ImagePositionPatient[1] += 1.5 * index

    write_series(tmp_path, VOXELS, AFFINE, edit=slide)
    refusal(tmp_path, "geometry", r"shifted .* by 1\.5 mm \(20\.6 degrees\).*tilt is absent")


def test_a_header_without_a_place_is_refused(tmp_path):
    def nowhere(dataset, index, time):
        del dataset.ImagePositionPatient

    write_series(tmp_path, VOXELS, AFFINE, edit=nowhere)
    refusal(tmp_path, "geometry", "does not say where")


def blob(points_mm):
    """Return HU of two soft balls in air, at points in RAS."""
    one = 1000 * np.exp(-((np.linalg.norm(points_mm - [4, -6, 5], axis=-1) / 10) ** 2))
    two = 400 * np.exp(-((np.linalg.norm(points_mm - [-10, 8, -8], axis=-1) / 6) ** 2))
    return one + two - 1000


def write_tilted(folder, degrees, stated, *, modality="CT", backwards=False):
    """Write a head CT whose gantry leant while its table moved along the body."""
    angle, size, num_slices = np.radians(degrees), 80, 24
    row, column = np.array([1, 0, 0]), np.array([0, np.cos(angle), -np.sin(angle)])
    grid = np.arange(size)[:, None, None] * column + np.arange(size)[None, :, None] * row
    for index in range(num_slices):
        middle = np.array([0, 0, 2.5 * (index - num_slices / 2)])
        corner = middle - (row + column) * (size - 1) / 2
        instance = num_slices - index if backwards else index + 1
        dataset = header(modality, f"{ROOT}5", 4, instance)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.ImagePositionPatient = [f"{x:.6f}" for x in corner]
        dataset.ImageOrientationPatient = [f"{x:.9f}" for x in (*row, *column)]
        dataset.PixelSpacing, dataset.SliceThickness = [1.0, 1.0], 2.5
        if stated is not None:
            dataset.GantryDetectorTilt = stated
        add_pixels(dataset, np.round(blob((corner + grid) * [-1, -1, 1])))
        save(dataset, folder / f"{instance}.dcm")


@pytest.mark.parametrize("degrees", [14, -14, 25])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_gantry_tilt_is_corrected(tmp_path, degrees, backwards):
    write_tilted(tmp_path, degrees, stated=-degrees, backwards=backwards)
    volume = only_volume(tmp_path)
    axes = volume.affine[:3, :3] / volume.spacing_mm
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-4)
    points = np.moveaxis(np.indices(volume.voxels.shape), 0, -1)
    points_mm = points @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    assert np.abs(volume.voxels - blob(points_mm)).max() < 6  # of 1400; interpolation
    assert any(f"tilt of {abs(degrees)}.0 degrees" in warning for warning in volume.warnings)


@pytest.mark.parametrize(("stated", "modality"), [(None, "CT"), (3, "CT"), (14, "MR")])
def test_a_lean_that_is_no_gantry_tilt_is_refused(tmp_path, stated, modality):
    write_tilted(tmp_path, 14, stated, modality=modality)
    refusal(tmp_path, "geometry", r"by 0\.605 mm \(14\.0 degrees\)")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("gantrytilting", r"1\.21 mm \(14\.0 degrees\), and the header's gantry tilt is absent"),
        ("notavolume", "4 images lie at 1 place"),
        ("slicecount", "2 image.*at least 3 parallel slices"),
        ("sliceincrement/001", "steps are 5 to 10 mm"),
        ("sliceincrement/002", r"steps are 0\.7497 to 1\.499 mm"),
    ],
)
def test_real_series_that_are_no_volumes_are_refused(real_data, name, reason):  # S30
    refusal(real_folder(real_data, "dicom2nifti", "failing", name), "geometry", reason)
