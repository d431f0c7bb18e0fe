"""What is in one study's folder: each file a series, beside the point, or a named failure."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dicom_files import write_series

from neuro.data.modes import Modes
from neuro.data.study_folder import StudyFolder, studies_in

VOXELS = np.arange(6 * 5 * 4).reshape(6, 5, 4)
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
MODES = Modes(default="mri")


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def dicom(folder, **options):
    return write_series(folder, VOXELS, AFFINE, **options)


def patient(name):
    def edit(dataset, *_):
        dataset.PatientID = name

    return edit


def look(folder, modes=MODES, **options):
    return StudyFolder(folder, modes, "study", **options)


def names(found):
    return [one.name for one in found.series]


def failed(found):
    return sorted(str(one.path.relative_to(found.folder)) for one in found.failures)


# -- NIfTI ---------------------------------------------------------------------------------------


def test_every_way_to_write_nifti_is_a_series(tmp_path):  # S30
    touch(tmp_path, "a.nii", "b.nii.gz", "c.hdr", "c.img", "d.hdr.gz", "d.img.gz", "E.NII.GZ")
    touch(tmp_path, "deep/er/a.nii")
    found = look(tmp_path)
    assert names(found) == ["E", "a", "b", "c", "d", "deep/er/a"]
    assert [one.path.name for one in found.series][2:5] == ["b.nii.gz", "c.hdr", "d.hdr.gz"]
    assert not found.failures
    assert not found.passed_over


def test_what_only_looks_like_an_image_is_none(tmp_path):  # S31
    touch(
        tmp_path, "T1.nii.json", "T1.nii.bak", "T1.json", "T1.bval", "notes", "._T1.nii", ".x.nii"
    )
    found = look(tmp_path)
    assert not found.series
    assert not found.failures
    assert found.passed_over == {".bak": 1, "without a usual ending": 1}


COLLISIONS = [
    ("T1.nii", "T1.nii.gz"),
    ("T1.nii", "T1.hdr", "T1.img"),
    ("T1.hdr", "T1.hdr.gz", "T1.img"),
    ("T1.nii", "T1.nii.gz", "T1.hdr"),
    ("T1.nii", "T1.NII"),
]


@pytest.mark.parametrize("alike", COLLISIONS, ids=" ".join)
def test_files_of_one_name_are_each_named_and_the_rest_goes_on(tmp_path, alike):  # S31
    touch(tmp_path, *alike, "T2.nii", "deep/T1.nii")
    found = look(tmp_path)
    assert names(found) == ["T2", "deep/T1"]
    assert failed(found) == sorted(one for one in alike if not one.endswith(".img"))
    assert all("the same name" in str(one) for one in found.failures)


def test_a_header_with_packed_and_unpacked_voxels_is_refused(tmp_path):  # S31
    touch(tmp_path, "T1.hdr", "T1.img", "T1.img.gz")
    found = look(tmp_path)
    assert not found.series
    assert failed(found) == ["T1.hdr", "T1.img.gz"]


def test_a_dicom_series_with_the_name_of_a_file_is_refused(tmp_path):  # S31
    dicom(tmp_path, number=1)
    touch(tmp_path, "s001.nii", "T1.nii")
    found = look(tmp_path)
    assert names(found) == ["T1"]
    assert failed(found) == [".", "s001.nii"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("T1.mgz", "images of this format are not read. Convert it to NIfTI"),
        ("T1.NRRD", "Convert it to NIfTI"),
        ("study.zip", "archives are not opened. Unpack it"),
        ("study.tar.gz", "archives are not opened"),
        ("0001.dcm", "is called DICOM and is none"),
        ("T1.img", "half of a pair, without a header. Put the .hdr beside it"),
    ],
)
def test_a_scan_that_cannot_be_read_is_named(tmp_path, name, message):  # S30, D50
    touch(tmp_path, name, "T2.nii")
    found = look(tmp_path)
    assert names(found) == ["T2"]
    (failure,) = found.failures
    assert failure.path == tmp_path / name
    assert message in str(failure)


def test_a_broken_side_car_costs_its_own_scan_only(tmp_path):
    touch(tmp_path, "T1.nii", "T2.nii")
    (tmp_path / "T1.json").write_text("{")
    found = look(tmp_path)
    assert names(found) == ["T2"]
    assert failed(found) == ["T1.nii"]


def test_a_run_has_the_repetition_time_of_its_side_car(tmp_path):  # D44
    touch(tmp_path, "rest.nii", "other.nii", "T1.nii")
    (tmp_path / "rest.json").write_text('{"RepetitionTime": 0.8}')
    (tmp_path / "T1.json").write_text('{"RepetitionTime": 2.3}')
    modes = Modes(mapping={"*/T1": "T1"}, default="rsfMRI")
    seconds = {one.name: one.repetition_time_s for one in look(tmp_path, modes).series}
    assert seconds == {"rest": 0.8, "other": None, "T1": None}


# -- DICOM ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".dcm", "", ".IMA", ".img", ".0001"])
def test_loose_dicom_files_are_series_whatever_their_names(tmp_path, suffix):  # S30
    first = dicom(tmp_path, number=1, suffix=suffix)
    second = dicom(tmp_path, number=2, suffix=suffix, instances=[11, 12, 13, 14])
    found = look(tmp_path)
    assert names(found) == ["s001", "s002"]
    assert [set(one.files) for one in found.series] == [set(first), set(second)]
    assert not found.failures


def test_folders_of_dicom_files_are_found_however_deep(tmp_path):  # S30
    dicom(tmp_path / "head" / "a", number=1)
    dicom(tmp_path / "head" / "b", number=2)
    touch(tmp_path, "head/T1.nii", "empty/.keep")
    found = look(tmp_path)
    assert names(found) == ["head/T1", "head/a/s001", "head/b/s002"]
    assert found.series[1].path == tmp_path / "head" / "a"


def test_a_series_in_two_folders_is_one_series(tmp_path):  # S30
    one = dicom(tmp_path / "x" / "1")
    other = dicom(tmp_path / "x" / "2", uid="1.2.3", instances=[11, 12, 13, 14])
    for path in one[2:]:
        path.rename(tmp_path / "x" / "2" / path.name)
    found = look(tmp_path)
    assert sorted(len(series.files) for series in found.series) == [4, 4]
    assert {len(set(series.files)) for series in found.series} == {4}
    assert not found.failures
    assert set(other) == next(set(one.files) for one in found.series if one.uid == "1.2.3")


def test_two_volumes_of_one_series_have_paths_of_their_own(tmp_path):  # cache entries go by path
    def echo(number):
        def edit(dataset, *_):
            dataset.EchoTime, dataset.EchoNumbers = 10.0 * number, number

        return edit

    dicom(tmp_path, uid="1.2.3", edit=echo(1))
    dicom(tmp_path, uid="1.2.3", edit=echo(2), instances=[11, 12, 13, 14])
    found = look(tmp_path)
    assert names(found) == ["s001-e1", "s001-e2"]
    assert {one.uid for one in found.series} == {"1.2.3"}
    assert len({one.path for one in found.series}) == 2


def test_a_damaged_series_does_not_cost_the_others(tmp_path):  # S33, D50
    dicom(tmp_path / "good", number=1)
    for path in dicom(tmp_path / "gap", number=2)[1:2]:
        path.unlink()
    found = look(tmp_path)
    assert names(found) == ["good/s001"]
    (failure,) = found.failures
    assert failure.path == tmp_path / "gap"


def test_a_link_to_nothing_is_named(tmp_path):  # D50
    for name in ("T1.nii", "IM0001"):
        (tmp_path / name).symlink_to(tmp_path / "annex" / name)
    dicom(tmp_path / "good")
    found = look(tmp_path)
    assert failed(found) == ["IM0001"]
    assert names(found) == ["T1", "good/s001"]  # reading it will say what is wrong


# -- patients ------------------------------------------------------------------------------------


def test_a_study_knows_its_patient_but_does_not_tell(tmp_path):
    dicom(tmp_path / "a", edit=patient("MARKER"))
    dicom(tmp_path / "b", edit=patient("MARKER"), number=2)
    touch(tmp_path, "T1.nii")
    found = look(tmp_path)
    assert found.patient
    assert "MARKER" not in found.patient
    assert found.num_patients == 1
    assert len(found.series) == 3


def test_files_of_two_patients_in_one_folder_are_refused(tmp_path):
    dicom(tmp_path, edit=patient("MARKER1"), number=1)
    dicom(tmp_path, edit=patient("MARKER2"), number=2, instances=[11, 12, 13, 14])
    touch(tmp_path, "T1.nii")
    (found,) = studies_in(tmp_path, MODES, "x")
    assert names(found) == ["T1"]
    assert [str(one).count("of another patient") for one in found.failures] == [1, 1]
    assert "MARKER" not in str([*map(str, found.failures), *map(repr, found.failures)])


def test_folders_of_two_patients_are_studies_of_their_own(tmp_path):
    dicom(tmp_path / "site" / "a", edit=patient("MARKER1"), number=1)
    dicom(tmp_path / "site" / "b" / "c", edit=patient("MARKER2"), number=2)
    touch(tmp_path, "site/T1.nii", "site/b/T2.nii")
    found = {one.name: names(one) for one in studies_in(tmp_path / "site", MODES, "site")}
    assert found == {"site": ["T1"], "site/a": ["s001"], "site/b": ["T2", "c/s002"]}


def test_a_patient_that_the_mapping_leaves_out_does_not_count(tmp_path):
    dicom(tmp_path / "a", edit=patient("MARKER1"), number=1)
    dicom(tmp_path / "b", edit=patient("MARKER2"), number=2)
    (found,) = studies_in(tmp_path, Modes(mapping={"x/b/*": "none"}), "x")
    assert names(found) == ["a/s001"]


# -- modalities ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "modality"),
    [
        ({"study": "T1"}, "T1"),
        ({"study/deep/T1": "T1"}, "T1"),
        ({"stud?": "T1", "*": "ct"}, "T1"),
        ({"*": "ct", "study": "T1"}, "ct"),
        ({"*/T1": "T1"}, "T1"),
        ({"*/[tT]1": "T1"}, "T1"),
        ({"T1": "T1", "other": "ct"}, "mri"),
        ({"STUDY": "T1"}, "mri"),
        ({"*/T1": "none"}, "none"),
        ({"*/T1": None}, "none"),
        ({}, "mri"),
    ],
)
def test_the_first_name_or_pattern_that_fits_decides(mapping, modality):
    assert Modes(mapping=mapping, default="mri").of("study", "deep/T1", "") == modality


def test_a_name_with_brackets_fits_itself():
    assert Modes(mapping={"s/T1[1]": "T1"}).of("s", "T1[1]", "") == "T1"


@pytest.mark.parametrize(
    ("said", "modality"), [("MR", "mri"), ("mr", "mri"), ("CT", "ct"), ("PT", None), ("", "T1")]
)
def test_what_the_files_say_wins_over_the_default(said, modality):
    assert Modes(default="T1").of("study", "s001", said) == modality


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_dicom_says_its_modality(tmp_path, modality):
    dicom(tmp_path, modality=modality)
    assert [one.modality for one in look(tmp_path, Modes()).series] == [
        {"MR": "mri", "CT": "ct"}[modality]
    ]


def test_the_side_car_of_dcm2niix_says_the_modality(tmp_path):
    touch(tmp_path, "a.nii", "b.nii.gz", "c.nii")
    (tmp_path / "a.json").write_text(json.dumps({"Modality": "CT"}))
    (tmp_path / "b.json").write_text(json.dumps({"Modality": "MR"}))
    (tmp_path / "c.json").write_text(json.dumps({"Modality": "PT"}))
    found = look(tmp_path)
    assert [(one.name, one.modality) for one in found.series] == [("a", "ct"), ("b", "mri")]
    assert "series 'c' is PT" in str(found.failures[0])
    assert "data.default_mode" not in str(found.failures[0])  # it would not help


def test_a_series_of_unknown_modality_is_named_with_what_to_set(tmp_path):
    touch(tmp_path, "T1.nii", "T2.nii")
    found = look(tmp_path, Modes(mapping={"*/T2": "mri"}))
    assert names(found) == ["T2"]
    (failure,) = found.failures
    assert "of unknown modality" in str(failure)
    cure = "Add data.default_mode=mri (or ct, T1) or 'data.mode_mapping=[\"study/*: mri\"]'."
    assert failure.cure == cure


def test_what_the_mapping_leaves_out_is_counted_and_no_failure(tmp_path):
    dicom(tmp_path / "loc", number=1)
    touch(tmp_path, "T1.nii", "T1.nii.gz", "T2.nii", "surf/T1.mgz")
    modes = Modes(mapping={"*/T1": "none", "*/loc/*": "none", "*/surf/*": "none"}, default="mri")
    found = look(tmp_path, modes)
    assert names(found) == ["T2"]
    assert found.num_left_out == 4
    assert not found.failures
