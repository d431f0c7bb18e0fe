"""A folder of studies becomes a manifest, whatever lies in it, and nothing is lost in silence."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from dicom_files import write_series
from some_studies import split_of

from neuro.data.labels import LabelRules
from neuro.data.leaks import LeakError
from neuro.data.modes import Modes
from neuro.data.splits import ListedSplits, Splits, SubjectSplits
from neuro.data.study_folders import StudyFolders
from neuro.errors import InputError

VOXELS = np.arange(6 * 5 * 4).reshape(6, 5, 4)
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
SPLITS = SubjectSplits(val=0.2, test=0.2)
MODES = Modes(default="mri")


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def dicom(folder, name="", **options):
    def edit(dataset, *_):
        dataset.PatientID = name

    return write_series(folder, VOXELS, AFFINE, edit=edit if name else None, **options)


def read(root, modes=MODES, splits: Splits = SPLITS, **options):
    return StudyFolders(root, modes, splits, **options).manifest()


def in_(manifest):
    return {one.id: [series.name for series in one.series] for one in manifest}


def test_each_folder_is_a_study(tmp_path):  # S30
    touch(tmp_path, "001/T1.nii", "001/deep/T2.nii.gz", "1/T1.nii", "b/T1.hdr", "b/T1.img")
    dicom(tmp_path / "c")
    manifest = read(tmp_path)
    assert in_(manifest) == {"001": ["T1", "deep/T2"], "1": ["T1"], "b": ["T1"], "c": ["s001"]}
    assert manifest[0].subjects == ("001",)  # S39: not 1
    assert not manifest.failures


def test_a_folder_raw_holds_the_studies(tmp_path, said):
    touch(tmp_path, "raw/a/T1.nii", "processed/a/T1.pt", "metadata.json")
    assert in_(read(tmp_path)) == {"a": ["T1"]}
    assert "studies are read from" in said.text


def test_what_is_hidden_is_no_study(tmp_path):
    touch(tmp_path, "a/T1.nii", ".git/T1.nii", ".DS_Store")
    manifest = read(tmp_path)
    assert manifest.ids == ["a"]
    assert not manifest.failures


def test_an_empty_study_is_named(tmp_path):  # D50
    touch(tmp_path, "a/T1.nii", "b/notes.txt")
    (tmp_path / "c" / "deep").mkdir(parents=True)
    manifest = read(tmp_path)
    assert manifest.ids == ["a"]
    assert [(one.path.name, one.reason) for one in manifest.failures] == [
        ("b", "no image is in it."),
        ("c", "no image is in it."),
    ]


def test_images_beside_the_studies_are_named(tmp_path):  # D50
    touch(tmp_path, "a/T1.nii", "lost.nii", "README")
    dicom(tmp_path / "store", suffix="")[0].rename(tmp_path / "IM0001")
    manifest = read(tmp_path)
    assert {one.path.name for one in manifest.failures} >= {"lost.nii", "IM0001"}
    assert "README" not in str(manifest.failures)


def test_a_folder_whose_name_is_not_utf8_is_named(tmp_path):
    touch(tmp_path, "a/T1.nii")
    os.mkdir(os.path.join(os.fsencode(tmp_path), b"M\xfcller"))
    (failure,) = read(tmp_path).failures
    assert "its name is not UTF-8" in str(failure)


def test_failures_of_a_study_cost_its_bad_series_only(tmp_path):  # S33, D50
    touch(tmp_path, "a/T1.nii", "a/T1.nii.gz", "a/T2.nii", "b/T1.nii", "b/x.nrrd")
    manifest = read(tmp_path)
    assert in_(manifest) == {"a": ["T2"], "b": ["T1"]}
    assert len(manifest.failures) == 3
    assert all(one.num_failed for one in manifest)


def test_studies_that_lost_everything_are_counted(tmp_path):  # S33
    touch(tmp_path, "a/T1.nii", "b/x.nrrd", "c/x.txt", "d/T1.nii")
    manifest = read(tmp_path)
    assert [one.num_failed for one in manifest] == [0, 0]
    assert manifest.num_left_out == 1  # c holds nothing that was meant to be a scan


def test_a_pattern_that_fits_no_series_is_named(tmp_path, said):
    touch(tmp_path, "a/T1.nii")
    read(tmp_path, Modes(mapping={"*/T1": "mri", "T2*": "none"}))
    assert "data.mode_mapping: 'T2*' fits no series" in said.text
    assert "'*/T1'" not in said.text


def test_files_that_are_no_images_are_counted(tmp_path, said):
    touch(tmp_path, "a/T1.nii", "a/T1.nii.bak", "b/T1.nii", "b/x.bak", "b/y.log", "b/z.json")
    read(tmp_path)
    assert "3 files are no images and are passed over: 2 .bak, 1 .log" in said.text


def test_series_that_are_left_out_are_counted(tmp_path, said):
    touch(tmp_path, "a/T1.nii", "a/T2.nii", "b/T2.nii")
    manifest = read(tmp_path, Modes(mapping={"*/T2": "none"}, default="mri"))
    assert in_(manifest) == {"a": ["T1"]}
    assert not manifest.failures  # b was left out on purpose
    assert "2 series are left out" in said.text


def test_a_folder_of_nothing_but_failures_names_them(tmp_path):  # S33
    touch(tmp_path, "a/T1.nii", "b/T2.nii")
    with pytest.raises(InputError, match=r"(?s)a/T1\.nii.*b/T2\.nii.*no scan can be used"):
        read(tmp_path, Modes())


def test_a_root_that_is_no_folder_of_studies_says_what_to_give(tmp_path):
    with pytest.raises(InputError, match=r"data\.root=.* is not a folder"):
        read(tmp_path / "absent")
    with pytest.raises(InputError, match=r"data\.root is empty\. Give the folder that holds"):
        read("")
    with pytest.raises(InputError, match=r"holds no folder. Put each study into a folder"):
        read(tmp_path)


# -- subjects ------------------------------------------------------------------------------------


def test_studies_of_one_patient_are_one_subject(tmp_path):  # S10, D47
    for index in range(12):
        dicom(tmp_path / f"st{index:02d}", f"MARKER{index % 3}", number=index + 1)
    touch(tmp_path, "x/T1.nii", "st01/extra.nii")
    manifest = read(tmp_path)
    subjects = {one.id: one.subjects for one in manifest}
    assert subjects == {f"st{i:02d}": (f"st{i % 3:02d}",) for i in range(12)} | {"x": ("x",)}
    splits = split_of(manifest)
    assert all(splits[f"st{i:02d}"] == splits[f"st{i % 3:02d}"] for i in range(12))


def test_a_placeholder_for_a_name_links_nobody(tmp_path):
    for index, name in enumerate(("ANONYMOUS", "ANONYMOUS", "0")):
        dicom(tmp_path / f"st{index}", name, number=index + 1)
    assert [one.subjects for one in read(tmp_path)] == [("st0",), ("st1",), ("st2",)]


def test_a_table_of_subjects_decides(tmp_path, said):  # S39
    dicom(tmp_path / "001", "MARKER", number=1)
    dicom(tmp_path / "002", "MARKER", number=2)
    touch(tmp_path, "003/T1.nii")
    table = tmp_path / "subjects.csv"
    table.write_text("study,subject\n001, 7\n002,07\n003,7\n009,8\n")
    manifest = read(tmp_path, splits=SubjectSplits(val=0.0, test=0.0), subjects=table)
    assert {one.id: one.subjects for one in manifest} == {
        "001": ("7",),
        "002": ("07",),
        "003": ("7",),
    }
    assert "studies '001' and '002' name the same patient" in said.text
    assert "MARKER" not in said.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "study,subject\na,1\n",
            r"gives no subject to 1 studies, for example \['b'\]; it knows .*'a'",
        ),
        ("study,subject\na,1\nb,2\nb,3\n", "study 'b' to the subjects '2' and '3'. Keep one"),
        ("study,subject\na,1\nb,\n", r"gives no subject to 1 studies, for example \['b'\]"),
        ("id,subject\na,1\n", "must have the columns study and subject; got id, subject"),
    ],
)
def test_a_wrong_table_of_subjects_is_named(tmp_path, text, message):  # S39
    touch(tmp_path, "a/T1.nii", "b/T1.nii")
    table = tmp_path / "subjects.csv"
    table.write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path, subjects=table)


def test_nothing_of_a_patient_gets_out(tmp_path, said):
    """Neither the name of a patient nor what links studies is in a manifest, log or error."""
    secrets = ("MARKER", "NAMEMARKER", "19010203")

    def edit(dataset, *_):
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = secrets

    write_series(tmp_path / "a" / "one", VOXELS, AFFINE, edit=edit)
    write_series(tmp_path / "b" / "one", VOXELS, AFFINE, edit=edit, number=2)
    for path in write_series(tmp_path / "b" / "gap", VOXELS, AFFINE, edit=edit, number=3)[1:2]:
        path.unlink()
    for path in write_series(tmp_path / "b" / "cut", VOXELS, AFFINE, edit=edit, number=4)[:1]:
        path.write_bytes(path.read_bytes()[:600])
    dicom(tmp_path / "c" / "1", "MARKER2", number=1)
    dicom(tmp_path / "c" / "1", "MARKER3", number=2, instances=[11, 12, 13, 14])
    cohort = StudyFolders(tmp_path, MODES, SPLITS)
    manifest = cohort.manifest()
    assert manifest.failures
    assert manifest[1].subjects == ("a",)
    told = [repr(manifest), repr(list(manifest)), str(manifest.series.to_pylist()), said.text]
    told += [str(manifest.studies.to_pylist()), repr(vars(cohort)), str(pickle.dumps(manifest))]
    told += [f"{one!s} {one!r} {one.__cause__!r}" for one in manifest.failures]
    for secret in secrets:
        assert not [text for text in told if secret in text]


def test_the_same_series_in_two_splits_is_a_leak(tmp_path):  # S10
    dicom(tmp_path / "a", uid="1.2.3")
    dicom(tmp_path / "b", uid="1.2.3")
    splits = ListedSplits(train=["a"], val=[], test=["b"])
    with pytest.raises(LeakError) as caught:
        read(tmp_path, splits=splits)
    assert caught.value.pairs == [("SeriesInstanceUID", "a", "s001", "train", "b", "s001", "test")]


def test_a_series_that_is_called_otherwise_elsewhere_is_a_leak_too(tmp_path):  # S10
    dicom(tmp_path / "a", uid="1.2.3")
    dicom(tmp_path / "b", uid="1.2.3")
    dicom(tmp_path / "b", uid="1.2.4", instances=[11, 12, 13, 14])  # the same series number
    splits = ListedSplits(train=["a"], val=[], test=["b"])
    with pytest.raises(LeakError, match="SeriesInstanceUID: 1"):
        read(tmp_path, splits=splits)


# -- labels --------------------------------------------------------------------------------------


@pytest.fixture
def labelled(tmp_path):
    root = tmp_path / "root"
    touch(root, *(f"{name}/T1.nii" for name in ("001", "1", "b", "c")))
    table = tmp_path / "labels.csv"
    table.write_text("study,y\n001,1\n1,0\nb,n/a\n")

    def manifest(**options):
        return read(root, labels=LabelRules(file=table, names=["y"], **options))

    return manifest


def test_studies_without_a_label_are_left_out_and_never_negative(labelled, said):  # S39, S40
    manifest = labelled()
    assert {one.id: one.labels for one in manifest} == {"001": (1.0,), "1": (0.0,)}
    assert "2 of 4 studies have no label and are left out" in said.text


def test_studies_without_a_label_can_be_kept_with_nothing_known(labelled):  # S40
    labels = {one.id: one.labels[0] for one in labelled(unlabelled="mask")}
    assert (labels["001"], labels["1"]) == (1.0, 0.0)
    assert np.isnan([labels["b"], labels["c"]]).all()


def test_leaving_studies_out_keeps_the_failures(tmp_path):  # S33
    touch(tmp_path, "root/a/T1.nii", "root/b/T1.nii", "root/c/T1.nii", "root/d/x.mgz")
    (tmp_path / "labels.csv").write_text("study,y\na,1\nb,0\n")
    rules = LabelRules(file=tmp_path / "labels.csv", names=["y"])
    manifest = read(tmp_path / "root", labels=rules)
    assert manifest.ids == ["a", "b"]
    assert len(manifest.failures) == 1


def test_a_table_that_joins_to_nothing_shows_both_sides(tmp_path):  # S39
    touch(tmp_path, "root/001/T1.nii")
    (tmp_path / "labels.csv").write_text("study,y\n1,1\n2,0\n")
    rules = LabelRules(file=tmp_path / "labels.csv", names=["y"])
    with pytest.raises(InputError, match=r"The table has '1', '2'; the studies are '001'"):
        read(tmp_path / "root", labels=rules)


def test_labels_need_a_file(tmp_path):  # S40
    touch(tmp_path, "a/T1.nii")
    with pytest.raises(InputError, match=r"Set data\.labels\.file"):
        read(tmp_path, labels=LabelRules(file=None, names=["y"]))


# -- real folders --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_series", "num_failures"),
    [
        ("dcm_qa_nih", 16, 0),
        ("dcm_qa_ts", 18, 0),
        ("dcm_qa_enh", 5, 0),
        ("dcm_qa_agfa", 2, 0),
        ("dicom2nifti", 51, 8),
        ("NIFTI-Reader-JS", 9, 2),
    ],
)
def test_every_real_file_is_in_a_series_or_named(
    real_data, name, num_series, num_failures
):  # S30, D50
    root = real_data / name
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    manifest = read(root)
    assert (len(manifest.series), len(manifest.failures)) == (num_series, num_failures)
    used = {path for one in manifest for series in one.series for path in series.files}
    used |= {series.path for one in manifest for series in one.series}
    failed = {failure.path for failure in manifest.failures}
    for path in root.rglob("*.*"):
        if path.is_file() and path.name.endswith((".nii", ".nii.gz", ".hdr", ".hdr.gz", ".dcm")):
            assert path in used or failed & {path, *path.parents}, path
