"""The converter is believed where its volume can be checked, and heard where it cannot."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import (
    AFFINE,
    RUN,
    VOXELS,
    assert_same,
    files_below,
    only_volume,
    real_folder,
    refusal,
    write_series,
)

from neuro.data import dcm2niix
from neuro.data.dicom import find_dicom, read_dicom
from neuro.data.volume import read_volume
from neuro.errors import ScanError


@pytest.mark.parametrize("order", ["forth", "back", "shuffled names"])
def test_a_run_keeps_its_time(tmp_path, order):  # S17
    blocks = np.arange(1, 21).reshape(4, 5)
    files = write_series(
        tmp_path, RUN, AFFINE, instances=(blocks[:, ::-1] if order == "back" else blocks).ravel()
    )
    if order == "shuffled names":
        for place, index in enumerate(np.random.default_rng(2).permutation(len(files))):
            files[index].rename(tmp_path / f"x{place}")
    volume = only_volume(tmp_path)
    assert_same(volume, RUN)
    assert volume.repetition_time_s == 2.0


def test_a_run_whose_order_in_time_cannot_be_told_is_refused(tmp_path):  # S17
    order = [5 * time + slot for time in range(4) for slot in (1, 4, 2, 5, 3)]
    write_series(tmp_path, RUN, AFFINE, instances=order)
    refusal(tmp_path, "convert", "order of its volumes in time")


def test_a_run_that_counts_each_volume_from_one_is_refused(tmp_path):  # S17
    def count_again(dataset, index, time):
        dataset.InstanceNumber = index + 1

    write_series(tmp_path, RUN, AFFINE, edit=count_again)
    refusal(tmp_path, "convert", "slices cannot be told|uses 5 of its 20 images")


@pytest.mark.parametrize("share", [0.99, 0.8])
def test_a_file_that_is_cut_off_is_named(tmp_path, share):
    path = write_series(tmp_path, VOXELS, AFFINE)[4]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert refusal(tmp_path, "convert", "image data end too early").path == path


def test_a_converter_that_hangs_is_stopped(tmp_path, monkeypatch):
    series, _ = find_dicom(write_series(tmp_path, VOXELS, AFFINE))
    monkeypatch.setattr(dcm2niix, "TIMEOUT_S", 1e-4)
    with pytest.raises(ScanError, match=r"not done after 0\.0001 seconds"):
        read_dicom(series[0].files, "s001")


@pytest.mark.parametrize(
    ("given", "reference"),
    [
        ("In/20180918GE/mr_0004", "DCM2NIIX_regression_test_4"),
        ("In/20180918Si/mr_0003", "EPI_PE=AP_3"),
        ("In/20180918Si/mr_0004", "EPI_PE=PA_4"),
        ("In/20180918Si/mr_0005", "EPI_PE=RL_5"),
        ("In/20180918Si/mr_0006", "EPI_PE=LR_6"),
    ],
)
def test_real_runs_equal_their_references(real_data, given, reference):  # S17
    folder = real_folder(real_data, "dcm_qa_nih")
    volume, expected = only_volume(folder / given), read_volume(folder / "Ref" / f"{reference}.nii")
    assert_same(volume, expected.voxels, expected.affine)
    assert volume.repetition_time_s == pytest.approx(expected.repetition_time_s)


def test_real_multi_frame_files_equal_their_references(real_data):
    folder = real_folder(real_data, "dcm_qa_enh")
    series, errors = find_dicom(files_below(folder / "In"))
    assert errors == []
    assert [one.name for one in series] == ["s006", "s801"]
    names = ("Siemens_REST1_w_SMS_PF7-8_6", "Philips_WIP_B0_NS_801_e1")
    for one, name in zip(series, names, strict=True):
        expected = read_volume(folder / "Ref" / f"{name}.nii")
        assert_same(read_dicom(one.files, one.name), expected.voxels, expected.affine)
    # Its field map is a second volume in the same file; both cannot be one series.
    warnings = read_dicom(series[1].files, series[1].name).warnings
    assert warnings == ("the file holds 2 volumes; only the first is read",)


def test_a_series_that_an_archive_rewrote_is_the_same(real_data):
    folder = real_folder(real_data, "dcm_qa_agfa")
    rewritten, original = only_volume(folder / "Agfa"), only_volume(folder / "Siemens")
    assert_same(rewritten, original.voxels, original.affine)


@pytest.mark.parametrize(
    "name",
    [
        "generic/anatomical/001",
        "generic/anatomical/001_implicit",
        "generic/anatomical/002_non_isotropic",
        "generic/compressed/001",
        "generic/compressed_j2k/001",
        "generic/compressed_jpeg/001",
        "generic/compressed_jpegls/001",
        "generic/compressed_rle/001",
        "siemens_multiframe/anatomical/001",
        "philips_enhanced/anatomical/001",
        "philips_enhanced/anatomical/001_implicit",
        "philips_enhanced/fmri/001",
        "philips_enhanced/fmri/001_implicit",
    ],
)
def test_real_series_equal_their_ground_truth(real_data, name):
    folder = real_folder(real_data, "dicom2nifti", name)
    volume, expected = only_volume(folder), read_volume(Path(f"{folder}_ground_truth.nii.gz"))
    voxels = volume.voxels
    if name.startswith("philips"):  # dcm2niix takes the precise scale, the truth the display's
        voxels = voxels * (expected.voxels.max() / voxels.max())
    np.testing.assert_allclose(voxels, expected.voxels, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-3)


@pytest.mark.parametrize("name", ["001", "001_implicit"])
def test_a_real_diffusion_run_holds_every_frame(real_data, name):  # S17
    """Its ground truth does not: three of its four volumes are zero."""
    folder = real_folder(real_data, "dicom2nifti", "philips_enhanced", "dti", name)
    volume = only_volume(folder)
    frames = pydicom.dcmread(files_below(folder)[0]).pixel_array.reshape(8, 4, 128, 128)
    images = frames.transpose(1, 3, 2, 0)[:, ::-1, ::-1]  # left, back: to RAS
    order = [1, 2, 3, 0]  # as its dimension index says; the one without diffusion is the last
    found = volume.voxels * (frames.max() / volume.voxels.max())
    np.testing.assert_allclose(found, np.moveaxis(images[order], 0, 3), atol=0.1)
    assert volume.repetition_time_s == 9.0


def test_folders_that_killed_processes_left_are_removed_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, days in (("neuro-dicom-old", 2), ("neuro-dicom-new", 0.5), ("others", 9)):
        (tmp_path / name / "in").mkdir(parents=True)
        (tmp_path / name / "in" / "000000").symlink_to("nowhere")
        when = time.time() - days * 24 * 3600
        os.utime(tmp_path / name, (when, when))
    (tmp_path / "neuro-dicom-link").symlink_to(tmp_path / "others")
    dcm2niix.remove_stale.cache_clear()
    try:
        dcm2niix.remove_stale()
    finally:
        dcm2niix.remove_stale.cache_clear()
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["neuro-dicom-link", "neuro-dicom-new", "others"]


def test_a_conversion_looks_for_what_is_left_over(tmp_path, monkeypatch):
    (tmp_path / "temporary" / "neuro-dicom-old").mkdir(parents=True)
    os.utime(tmp_path / "temporary" / "neuro-dicom-old", (0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    dcm2niix.remove_stale.cache_clear()
    (tmp_path / "scan").mkdir()
    write_series(tmp_path / "scan", VOXELS, AFFINE)
    only_volume(tmp_path / "scan")
    assert not list((tmp_path / "temporary").iterdir())
