"""A scan is read whole and in RAS, or refused with its path."""

from __future__ import annotations

import gzip
import pickle
import re

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from neuro.data.volume import read_volume
from neuro.errors import ScanError


def noise(*shape):
    return np.random.default_rng(0).normal(100, 10, shape).astype(np.float32)


def turned(voxels, affine, axes):
    """Return the same scan stored with other axes."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    return nib.apply_orientation(voxels, turn), affine @ inv_ornt_aff(turn, voxels.shape)


def refused(path, step, reason):
    with pytest.raises(ScanError, match=re.escape(str(path))) as caught:
        read_volume(path)
    assert caught.value.path == path
    assert caught.value.step == step
    assert re.search(reason, caught.value.reason)
    assert caught.value.cure
    assert "\n" not in str(caught.value)


def test_a_scan_is_read_as_stored(save_nifti, tmp_path):
    voxels = noise(4, 5, 6)
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", voxels, spacing_mm=2.0))
    np.testing.assert_array_equal(volume.voxels, voxels)
    assert volume.spacing_mm == pytest.approx((2.0, 2.0, 2.0))
    assert volume.repetition_time_s is None


@pytest.mark.parametrize("axes", ["LAS", "LPS", "PIR", "ASR", "SLA"])
def test_the_axes_of_the_file_do_not_matter(save_nifti, tmp_path, axes):  # D51
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = -7, 4, 2
    voxels = noise(4, 5, 6)
    path = tmp_path / "turned.nii.gz"
    other_voxels, other_affine = turned(voxels, affine, axes)
    volume = read_volume(save_nifti(path, np.ascontiguousarray(other_voxels), affine=other_affine))
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    assert volume.spacing_mm == pytest.approx((1, 2, 3))


def test_slope_and_intercept_are_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    image.to_filename(tmp_path / "a.nii")
    raw = np.asarray(nib.load(tmp_path / "a.nii").dataobj)
    np.testing.assert_allclose(read_volume(tmp_path / "a.nii").voxels, raw)


@pytest.mark.parametrize("num_frames", [3, 100])
def test_time_is_the_last_axis_however_long_the_run(save_nifti, tmp_path, num_frames):  # D42 D43
    voxels = np.broadcast_to(np.arange(num_frames, dtype=np.float32), (6, 5, 4, num_frames)).copy()
    voxels += noise(6, 5, 4)[..., None]
    volume = read_volume(save_nifti(tmp_path / "run.nii.gz", voxels, tr_s=0.8))
    np.testing.assert_array_equal(volume.voxels, voxels)
    np.testing.assert_allclose(np.diff(volume.voxels, axis=-1), 1, atol=1e-4)


def test_a_single_volume_with_a_time_axis_is_a_volume(save_nifti, tmp_path):
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", noise(4, 5, 6, 1)))
    assert volume.voxels.shape == (4, 5, 6)


@pytest.mark.parametrize(("unit", "factor"), [("sec", 1.0), ("msec", 1e-3), ("usec", 1e-6)])
def test_the_repetition_time_is_in_seconds(save_nifti, tmp_path, unit, factor):  # D44
    path = save_nifti(tmp_path / "run.nii", noise(4, 4, 4, 3), tr_s=1.5 / factor, unit=unit)
    assert read_volume(path).repetition_time_s == pytest.approx(1.5)


def test_a_side_car_wins_over_the_header(save_nifti, tmp_path):
    path = save_nifti(tmp_path / "run.nii", noise(4, 4, 4, 3), tr_s=1.5)
    assert read_volume(path, repetition_time_s=0.8).repetition_time_s == 0.8


def test_a_time_without_a_unit_is_not_guessed(save_nifti, tmp_path):
    path = save_nifti(tmp_path / "run.nii", noise(4, 4, 4, 3), tr_s=1.5, unit="unknown")
    assert read_volume(path).repetition_time_s is None


def test_what_is_not_a_number_becomes_the_smallest_one(save_nifti, tmp_path):
    voxels = noise(4, 4, 4)
    voxels[0], voxels[1, 0, 0] = np.nan, np.inf
    read = read_volume(save_nifti(tmp_path / "map.nii.gz", voxels)).voxels
    smallest = voxels[np.isfinite(voxels)].min()
    assert (read[0] == smallest).all()
    assert read[1, 0, 0] == smallest
    np.testing.assert_array_equal(read[2:], voxels[2:])


# D50: what cannot be read is an error that names the file, never zeros.


def test_a_missing_file_is_named(tmp_path):  # D50
    refused(tmp_path / "nowhere.nii.gz", "find", "no such file")


def test_a_link_to_nothing_says_how_to_fetch_it(tmp_path):  # D50
    (tmp_path / "annexed.nii.gz").symlink_to(tmp_path / "objects" / "absent")
    with pytest.raises(ScanError, match="datalad get"):
        read_volume(tmp_path / "annexed.nii.gz")


def test_an_empty_file_is_named(tmp_path):  # D50
    (tmp_path / "empty.nii.gz").touch()
    refused(tmp_path / "empty.nii.gz", "read", "0 bytes")


@pytest.mark.parametrize("name", ["cut.nii.gz", "cut.nii"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(save_nifti, tmp_path, name, share):  # D50
    path = save_nifti(tmp_path / name, noise(16, 16, 16))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "read", "cannot be read as NIfTI")


def test_a_damaged_archive_is_named(save_nifti, tmp_path):  # D50
    path = save_nifti(tmp_path / "bits.nii.gz", noise(16, 16, 16))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    refused(path, "read", "cannot be read as NIfTI")


@pytest.mark.parametrize("name", ["letter.nii", "letter.nii.gz", "letter.mgz.nii"])
def test_a_text_that_is_named_like_a_scan_is_named(tmp_path, name):  # D50
    (tmp_path / name).write_text("Dear colleague, " * 100)
    refused(tmp_path / name, "read", "cannot be read as NIfTI")


def test_a_zipped_text_is_named(tmp_path):  # D50
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(b"Dear colleague, " * 100))
    refused(tmp_path / "a.nii.gz", "read", "cannot be read as NIfTI")


def test_a_folder_is_named(tmp_path):  # D50
    (tmp_path / "frames").mkdir()
    refused(tmp_path / "frames", "read", "cannot be read as NIfTI")


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], "complex64"])
def test_colours_and_complex_numbers_are_refused(tmp_path, dtype):  # D50
    voxels = np.zeros((4, 4, 4), dtype)
    voxels[1] = 7 if dtype == "complex64" else (1, 2, 3)
    path = tmp_path / "odd.nii"
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    with pytest.raises(ScanError, match=re.escape(str(path))):
        read_volume(path)


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_a_scan_without_an_image_is_refused(save_nifti, tmp_path, value):  # D50
    path = save_nifti(tmp_path / "flat.nii.gz", np.full((4, 4, 4), value, np.float32))
    refused(path, "read", "same value")


@pytest.mark.parametrize("shape", [(8, 8), (4, 4, 4, 3, 2)])
def test_a_scan_has_three_or_four_axes(save_nifti, tmp_path, shape):
    path = save_nifti(tmp_path / "a.nii.gz", noise(*shape))
    refused(path, "geometry", re.escape(f"shape {shape}"))


def test_an_affine_that_is_no_geometry_is_refused(tmp_path):  # D51
    image = nib.Nifti1Image(noise(4, 4, 4), np.eye(4))
    image.header["sform_code"], image.header["qform_code"] = 1, 0
    image.header["srow_x"] = image.header["srow_y"] = image.header["srow_z"] = 0
    (tmp_path / "zero.nii").write_bytes(
        image.header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F")
    )
    with pytest.raises(ScanError, match=r"zero\.nii"):
        read_volume(tmp_path / "zero.nii")


def test_a_scan_error_survives_the_way_between_processes():
    error = ScanError("a.nii", "read", "It is broken.", "Mend it.")
    other = pickle.loads(pickle.dumps(error))
    assert (str(other), other.path, other.step) == (str(error), error.path, error.step)


@pytest.mark.parametrize(
    ("name", "step"), [("not-nifti.nii", "read"), ("5D_small.nii", "geometry")]
)
def test_odd_public_files_are_refused(real_data, name, step):  # D50
    path = real_data / "NIFTI-Reader-JS" / "data" / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    with pytest.raises(ScanError) as caught:
        read_volume(path)
    assert caught.value.step == step


@pytest.mark.parametrize("name", ["big.nii.gz", "little.nii.gz", "avg152T1_LR_nifti2.nii.gz"])
def test_either_byte_order_and_nifti_2_are_read(real_data, name):
    path = real_data / "NIFTI-Reader-JS" / "data" / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    volume = read_volume(path)
    assert volume.voxels.min() < volume.voxels.max()
