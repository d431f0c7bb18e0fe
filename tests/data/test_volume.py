"""A scan is read whole and in RAS, or refused with its path."""

from __future__ import annotations

import pickle
import re
import struct

import nibabel as nib
import numpy as np
import pytest
import torch
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


@pytest.mark.parametrize(("slope", "inter"), [(0.5, 10.0), (2.0, -1024.0), (-1.0, 0.0)])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "f4"])
def test_slope_and_intercept_are_applied(tmp_path, dtype, slope, inter):
    raw = np.arange(60).reshape(3, 4, 5)
    image = nib.Nifti1Image(raw.astype(dtype), np.eye(4))
    image.to_filename(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = struct.pack("<ff", slope, inter)
    (tmp_path / "a.nii").write_bytes(bytes(content))
    volume = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(volume.voxels, raw * slope + inter)
    assert volume.stored_type == "float32"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_the_type_in_the_file_is_told(tmp_path, dtype):
    image = nib.Nifti1Image(np.arange(60).reshape(3, 4, 5).astype(dtype), np.eye(4))
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").stored_type == dtype
    assert read_volume(tmp_path / "a.nii").voxels.dtype == np.float32


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PIR", "ASR", "SLA"])
def test_what_the_file_was_like_is_told(save_nifti, tmp_path, axes):
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    voxels, other = turned(noise(4, 5, 6, 2), affine, axes)
    path = save_nifti(tmp_path / "a.nii.gz", np.ascontiguousarray(voxels), affine=other)
    volume = read_volume(path)
    assert volume.orientation == axes
    assert volume.source_shape == voxels.shape
    edges = dict(zip("RLAPSI", (1, 1, 2, 2, 3, 3), strict=True))
    assert volume.source_spacing_mm == tuple(edges[axis] for axis in axes)
    assert volume.warnings == ()


@pytest.mark.parametrize("axes", ["RAS", "LPI", "PIR"])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_voxels_are_laid_out_so_that_torch_takes_them(save_nifti, tmp_path, axes, dtype):
    voxels, affine = turned(noise(4, 5, 6, 2).astype(dtype), np.eye(4), axes)
    path = save_nifti(tmp_path / "a.nii.gz", np.ascontiguousarray(voxels), affine=affine)
    read = read_volume(path).voxels
    assert torch.from_numpy(read).shape == (4, 5, 6, 2)
    assert read.flags.writeable
    assert read.strides[-1] == max(read.strides)  # time is the slowest: no copy in a transpose


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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_scan_with_odd_numbers_says_how_many(save_nifti, tmp_path, bad):
    voxels = noise(4, 4, 4)
    voxels[0] = bad
    (warning,) = read_volume(save_nifti(tmp_path / "map.nii.gz", voxels)).warnings
    assert warning.startswith("25 % of the voxels are not numbers")


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_a_scan_without_an_image_is_refused(save_nifti, tmp_path, value):  # D50
    path = save_nifti(tmp_path / "flat.nii.gz", np.full((4, 4, 4), value, np.float32))
    refused(path, "read", "same value")


@pytest.mark.parametrize("shape", [(8,), (8, 8), (4, 4, 4, 0)])
def test_a_scan_has_three_axes_or_more(tmp_path, shape):
    nib.save(nib.Nifti1Image(np.zeros(shape, np.float32), np.eye(4)), tmp_path / "a.nii")
    step, reason = ("read", "shape") if 0 in shape else ("geometry", re.escape(f"shape {shape}"))
    refused(tmp_path / "a.nii", step, reason)


@pytest.mark.parametrize("shape", [(4, 4, 4, 1, 1), (4, 4, 4, 1), (4, 4, 4, 1, 1, 1, 1)])
def test_axes_of_length_1_are_dropped(save_nifti, tmp_path, shape):
    volume = read_volume(save_nifti(tmp_path / "a.nii", noise(*shape)))
    assert volume.voxels.shape == (4, 4, 4)
    assert volume.source_shape == shape
    assert volume.warnings == ()


@pytest.mark.parametrize("shape", [(3, 4, 5, 3, 2), (3, 4, 5, 1, 6), (3, 4, 5, 2, 1, 3)])
def test_further_axes_become_time_and_lose_its_clock(save_nifti, tmp_path, shape):  # S17 D43
    voxels = noise(*shape)
    volume = read_volume(save_nifti(tmp_path / "a.nii.gz", voxels))
    np.testing.assert_array_equal(volume.voxels, voxels.reshape(3, 4, 5, 6, order="F"))
    assert volume.repetition_time_s is None
    (warning,) = volume.warnings
    assert "read as 6 volumes" in warning
    assert read_volume(tmp_path / "a.nii.gz", repetition_time_s=2.0).repetition_time_s == 2.0


@pytest.mark.parametrize(
    "intent", ["vector", "symmetric matrix", "displacement vector", "rgb vector"]
)
def test_several_numbers_in_a_voxel_are_refused_by_name(tmp_path, intent):
    image = nib.Nifti1Image(noise(4, 4, 4, 1, 3), np.eye(4))
    codes = {"vector": 1007, "symmetric matrix": 1005, "displacement vector": 1006}
    image.header["intent_code"] = codes.get(intent, 2003)
    nib.save(image, tmp_path / "a.nii")
    refused(tmp_path / "a.nii", "geometry", "several numbers .a vector, matrix or colour")


def test_a_map_that_is_called_a_vector_but_has_one_number_is_read(tmp_path):
    image = nib.Nifti1Image(noise(4, 4, 4, 1, 1), np.eye(4))
    image.header["intent_code"] = 1007
    nib.save(image, tmp_path / "a.nii")
    assert read_volume(tmp_path / "a.nii").voxels.shape == (4, 4, 4)


@pytest.mark.parametrize("tr_s", [0.0, -1.0, np.nan, np.inf])
def test_a_repetition_time_that_is_none_is_not_believed(save_nifti, tmp_path, tr_s):
    path = save_nifti(tmp_path / "run.nii", noise(4, 4, 4, 3), tr_s=1.5)
    content = bytearray(path.read_bytes())
    content[92:96] = struct.pack("<f", tr_s)
    path.write_bytes(bytes(content))
    assert read_volume(path).repetition_time_s is None


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
