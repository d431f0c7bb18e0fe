"""A file is DICOM by its content, and its header says nothing of the patient."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_files import (
    AFFINE,
    VOXELS,
    assert_same,
    files_below,
    noise,
    only_volume,
    write_series,
)
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from neuro.data import dcm2niix
from neuro.data.dicom import find_dicom, is_dicom, read_dicom
from neuro.errors import ScanError


@pytest.mark.parametrize("suffix", ["", ".img", ".001", ".nii"])
def test_the_content_tells_dicom_and_not_the_name(tmp_path, suffix):  # S30
    write_series(tmp_path, VOXELS, AFFINE, suffix=suffix)
    (tmp_path / "notes.dcm").write_text("Dear colleague, " * 20)
    (tmp_path / "empty.dcm").touch()
    assert_same(only_volume(tmp_path), VOXELS)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_preamble_are_dicom(tmp_path, syntax):
    for path in write_series(tmp_path, VOXELS, AFFINE):
        dataset = pydicom.dcmread(path)
        dataset.file_meta = FileMetaDataset()
        implicit = syntax.is_implicit_VR
        dataset.save_as(path, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        path.write_bytes(path.read_bytes()[132:])
        assert is_dicom(path)
    series, errors = find_dicom(files_below(tmp_path))
    assert errors == []
    assert [len(one.files) for one in series] == [9]


def test_a_header_that_is_cut_off_is_named(tmp_path):
    path = write_series(tmp_path, VOXELS, AFFINE)[4]
    path.write_bytes(path.read_bytes()[:400])
    series, errors = find_dicom(files_below(tmp_path))
    assert series == []
    assert errors[0].path == path
    assert "header ends before" in errors[0].reason
    assert "some are missing" in errors[1].reason


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    write_series(tmp_path, VOXELS, AFFINE)
    gone = tmp_path / "gone.dcm"
    gone.symlink_to(tmp_path / "annexed")
    series, errors = find_dicom([*files_below(tmp_path), gone])
    assert len(series) == 1
    assert [error.path for error in errors] == [gone]


def patient_of(folder, **attributes):
    def edit(dataset, index, time):
        for name, value in attributes.items():
            setattr(dataset, name, value)

    write_series(folder, VOXELS, AFFINE, edit=edit)
    (series,), _ = find_dicom(files_below(folder))
    assert "patient=" not in repr(series)
    return series.patient


def test_studies_of_one_patient_are_linked(tmp_path):
    first = patient_of(tmp_path / "a", PatientID="h-17", PatientBirthDate="19600101")
    again = patient_of(tmp_path / "b", PatientID="H-17 ", PatientBirthDate="19600101")
    other = patient_of(tmp_path / "c", PatientID="h-18", PatientBirthDate="19600101")
    assert first == again != other
    assert first


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"PatientID": ""},
        {"PatientID": "anonymous"},
        {"PatientID": "ANON0001"},
        {"PatientID": "0000"},
        {"PatientID": "unknown"},
        {"PatientID": "h-17", "PatientIdentityRemoved": "YES"},
    ],
)
def test_who_is_not_named_is_not_linked(tmp_path, attributes):
    assert patient_of(tmp_path, **attributes) == ""


def fuzz(tmp_path, num_cases):
    draw = np.random.default_rng(3)
    files = write_series(tmp_path, noise(6, 6, 4), AFFINE)
    sound = [path.read_bytes() for path in files]
    for _ in range(num_cases):
        index, num_bytes = draw.integers(len(files)), draw.integers(1, 30)
        content = bytearray(sound[index])
        for place in draw.integers(128, len(content), num_bytes):
            content[place] = draw.integers(256)
        files[index].write_bytes(content[: draw.integers(200, 3 * len(content))])
        series, errors = find_dicom(files)
        for one in series:
            try:
                volume = read_dicom(one.files, one.name)
            except ScanError as error:
                errors.append(error)
            else:
                assert np.isfinite(volume.voxels).all()
        assert series or errors
        files[index].write_bytes(sound[index])


def test_damage_anywhere_is_an_error_and_no_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(dcm2niix, "TIMEOUT_S", 20.0)
    fuzz(tmp_path, 20)


@pytest.mark.slow
def test_much_damage_anywhere_is_an_error_and_no_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(dcm2niix, "TIMEOUT_S", 20.0)
    fuzz(tmp_path, 300)
