"""DICOM files become the series and the volumes that they are, or one line says why not."""

from __future__ import annotations

import re

import numpy as np
import pydicom
import pytest
from dicom_files import (
    AFFINE,
    ROOT,
    RUN,
    VOXELS,
    add_pixels,
    assert_same,
    files_below,
    header,
    noise,
    only_volume,
    real_folder,
    refusal,
    save,
    write_series,
)
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from neuro.data.dicom import find_dicom, read_dicom
from neuro.data.volume import read_volume
from neuro.errors import ScanError


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_series_is_the_volume_that_was_written(tmp_path, plane):  # S30
    write_series(tmp_path, VOXELS, AFFINE, plane=plane)
    volume = only_volume(tmp_path)
    assert_same(volume, VOXELS)
    assert volume.path == tmp_path
    assert volume.repetition_time_s is None


def test_an_oblique_series_lies_where_it_was_taken(tmp_path):
    turn = np.array([[0.96, -0.28, 0, 0], [0.28, 0.96, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    write_series(tmp_path, VOXELS, turn @ AFFINE, plane="sagittal")
    assert_same(only_volume(tmp_path), VOXELS, turn @ AFFINE)


def test_two_series_in_one_folder_are_two_volumes(tmp_path):  # S30
    write_series(tmp_path, VOXELS, AFFINE, number=3, suffix=".a")
    write_series(tmp_path, VOXELS[::-1], AFFINE, number=12, suffix=".b")
    series, errors = find_dicom(files_below(tmp_path))
    assert errors == []
    assert [one.name for one in series] == ["s003", "s012"]
    for one, voxels in zip(series, (VOXELS, VOXELS[::-1]), strict=True):
        assert_same(read_dicom(one.files, one.name), voxels)


def test_copies_of_a_file_are_taken_once(tmp_path, said):
    for name in ("a", "b"):
        write_series(tmp_path / name, VOXELS, AFFINE)
    assert_same(only_volume(tmp_path), VOXELS)
    assert "copies of others are passed over: 9" in said.text


def test_echoes_and_phases_are_volumes_of_their_own(tmp_path):
    def second_echo(dataset, index, time):
        dataset.EchoTime, dataset.EchoNumbers = 60.0, 2
        dataset.SOPInstanceUID += ".2"

    def phase(dataset, index, time):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "P", "ND"]
        dataset.SOPInstanceUID += ".3"

    write_series(tmp_path / "a", VOXELS, AFFINE)
    write_series(tmp_path / "b", VOXELS + 1, AFFINE, edit=second_echo)
    write_series(tmp_path / "c", VOXELS + 2, AFFINE, edit=phase)
    series, errors = find_dicom(files_below(tmp_path))
    assert errors == []
    assert [one.name for one in series] == ["s001-e1", "s001-e1-ph", "s001-e2"]
    for one, more in zip(series, (0, 2, 1), strict=True):
        assert_same(read_dicom(one.files, one.name), VOXELS + more)
    with pytest.raises(ScanError, match="belong to 3 volumes"):
        read_dicom([path for one in series for path in one.files], "s001")


def test_a_localizer_is_one_volume_per_plane(tmp_path):
    def of_plane(plane):
        def edit(dataset, index, time):
            dataset.SOPInstanceUID += f".{plane}"

        return edit

    for number, plane in enumerate(["axial", "coronal", "sagittal"]):
        write_series(tmp_path / plane, VOXELS, AFFINE, plane=plane, edit=of_plane(number))
    series, errors = find_dicom(files_below(tmp_path))
    assert errors == []
    sizes = {one.name: len(one.files) for one in series}
    assert sizes == {"s001-ax": 9, "s001-cor": 14, "s001-sag": 12}
    for one in series:
        assert_same(read_dicom(one.files, one.name), VOXELS)


def test_single_slices_in_many_directions_are_one_error(tmp_path):
    for number, plane in enumerate(["axial", "coronal", "sagittal"]):
        files = write_series(tmp_path / plane, noise(12, 12, 12), AFFINE, plane=plane, uid="1.2.3")
        for path in files[1:]:
            path.unlink()
        dataset = pydicom.dcmread(files[0])
        dataset.SOPInstanceUID = f"1.2.3.{number}"
        dataset.save_as(files[0])
    refusal(tmp_path, "geometry", r"s001: 3 image\(s\) in 3 orientation")


def test_one_number_in_two_studies_gives_two_names(tmp_path):
    for uid in ("1.2.3", "1.2.4"):
        write_series(tmp_path / uid, VOXELS, AFFINE, number=7, uid=uid)
    series, _ = find_dicom(files_below(tmp_path))
    names = [one.name for one in series]
    assert len(set(names)) == 2
    assert all(re.fullmatch("s007-u[0-9a-f]{6}", name) for name in names)


def test_the_order_of_the_files_changes_nothing(tmp_path):
    write_series(tmp_path, VOXELS, AFFINE, number=3, suffix=".a")
    write_series(tmp_path, VOXELS, AFFINE, number=12, suffix=".b")
    paths = sorted(files_below(tmp_path))
    assert find_dicom(paths) == find_dicom(reversed(paths))


@pytest.mark.parametrize("num_slices", [1, 2])
def test_a_single_slice_is_no_volume(tmp_path, num_slices):
    write_series(tmp_path, noise(12, 14, num_slices), AFFINE)
    refusal(tmp_path, "geometry", f"{num_slices} image.*at least 3 parallel slices")


def test_screen_saves_are_one_error(tmp_path):
    write_series(tmp_path, VOXELS, AFFINE, number=2)
    for instance in (1, 2):
        dataset = header("OT", f"{ROOT}9", 99, instance)
        add_pixels(dataset, noise(20, 30))
        save(dataset, tmp_path / f"screen{instance}")
    series, errors = find_dicom(files_below(tmp_path))
    assert [one.name for one in series] == ["s002"]
    assert [error.step for error in errors] == ["find"]
    assert "series s099 is a screen save" in errors[0].reason


def test_photographs_are_an_error(tmp_path):
    def paint(dataset, index, time):
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 3, "RGB"
        dataset.PlanarConfiguration = 0
        dataset.PixelData *= 3

    write_series(tmp_path, VOXELS, AFFINE, edit=paint)
    refusal(tmp_path, "find", "colour")


def test_what_is_no_image_is_counted(tmp_path, said):
    write_series(tmp_path, VOXELS, AFFINE)
    for instance in (1, 2):
        save(header("SR", f"{ROOT}8", 98, instance), tmp_path / f"report{instance}")
    index = Dataset()
    index.file_meta = FileMetaDataset()
    index.file_meta.MediaStorageSOPClassUID = MediaStorageDirectoryStorage
    index.file_meta.MediaStorageSOPInstanceUID = UID(f"{ROOT}7")
    index.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index.save_as(tmp_path / "DICOMDIR", enforce_file_format=True)
    assert_same(only_volume(tmp_path), VOXELS)
    assert "hold no scan are passed over: 2 SR, 1 unnamed" in said.text


def test_nothing_of_the_patient_gets_out(tmp_path, said, capfd):
    secret, born = "Xylander", "19770707"

    def name_patient(dataset, index, time):
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = secret, secret, born
        dataset.OtherPatientIDs = dataset.PatientComments = dataset.AccessionNumber = secret
        dataset.ReferringPhysicianName = dataset.InstitutionName = secret
        dataset.SeriesDescription = dataset.StudyDescription = dataset.ImageComments = secret
        dataset.ProtocolName = f"{secret}{time}"  # dcm2niix prints the protocols that differ
        dataset.ReceiveCoilName = f"{secret}{index}"
        dataset.StudyDate = dataset.AcquisitionDate = born

    write_series(tmp_path / "good", VOXELS, AFFINE, number=1, edit=name_patient)
    write_series(tmp_path / "gap", VOXELS, AFFINE, number=2, edit=name_patient)[4].unlink()
    cut = write_series(tmp_path / "cut", VOXELS, AFFINE, number=3, edit=name_patient)[4]
    cut.write_bytes(cut.read_bytes()[:-9])
    head = write_series(tmp_path / "head", VOXELS, AFFINE, number=4, edit=name_patient)[4]
    head.write_bytes(head.read_bytes()[:700])
    write_series(tmp_path / "run", RUN, AFFINE, number=5, edit=name_patient)
    series, errors = find_dicom(files_below(tmp_path))
    outcomes = [*errors, *series]
    for one in series:
        try:
            outcomes.append(read_dicom(one.files, one.name))
        except ScanError as error:
            outcomes.append(error)
    shown = [f"{outcome!r} {outcome}" for outcome in outcomes]
    everything = " ".join([*shown, said.text, *capfd.readouterr()])
    assert len(series) == 3
    assert len(outcomes) == 9
    assert secret.lower() not in everything.lower()
    assert born not in everything


def test_a_real_mix_of_orientations_is_refused(real_data):
    folder = real_folder(real_data, "dicom2nifti", "failing", "sliceorientation")
    series, errors = find_dicom(files_below(folder))
    assert series == []
    assert [error.step for error in errors] == ["geometry", "geometry"]
    with pytest.raises(ScanError, match="belong to 2 volumes"):
        read_dicom(sorted(files_below(folder)), "s202")


def test_nine_series_under_one_uid_are_nine_volumes(real_data):  # S30
    folder = real_folder(real_data, "dcm_qa_ts")
    series, errors = find_dicom(files_below(folder / "In"))
    assert errors == []
    assert len({one.uid for one in series}) == 1
    assert [one.name for one in series] == [f"s{number:03d}" for number in range(1, 10)]
    for number, one in enumerate(series, 1):  # a transfer syntax each
        expected = read_volume(folder / "Ref" / f"{number}.nii")
        assert_same(read_dicom(one.files, one.name), expected.voxels, expected.affine)


def test_a_real_colour_capture_is_refused(real_data):
    folder = real_folder(real_data, "dicom2nifti", "generic", "rgb", "001")
    refusal(folder, "find", "secondary capture")
