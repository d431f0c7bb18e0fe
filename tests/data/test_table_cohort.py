"""A table with a row per series is a manifest, of any size, and each mistake in it is named."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from dicom_files import write_series
from some_studies import split_of
from work import num_calls

from neuro.data.labels import LabelRules
from neuro.data.leaks import LeakError
from neuro.data.modes import Modes
from neuro.data.splits import SubjectSplits
from neuro.data.table_cohort import TableCohort
from neuro.errors import InputError

VOXELS = np.arange(6 * 5 * 4).reshape(6, 5, 4)
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
SPLITS = SubjectSplits(val=0.2, test=0.2)
MRI = Modes(default="mri")


@pytest.fixture
def read(tmp_path):
    """Write a table, given as lines with spaces between values and - for nothing, and read it."""

    def read(*lines, modes=MRI, root=None, **options):
        path = tmp_path / "table.csv"
        rows = [["" if one == "-" else one for one in line.split(" ")] for line in lines]
        path.write_text("\n".join(map(",".join, rows)) + "\n")
        return TableCohort(path, root or tmp_path, modes, SPLITS, **options).manifest()

    return read


def series(manifest):
    return [(one.id, scan.name) for one in manifest for scan in one.series]


# -- ids -----------------------------------------------------------------------------------------


def test_rows_of_a_study_come_together_in_their_order(read):
    manifest = read("study path", "b b1.nii", "a a1.nii", "b b0.nii", "a a0.nii", "c c.nii")
    assert series(manifest) == [("b", "b1"), ("b", "b0"), ("a", "a1"), ("a", "a0"), ("c", "c")]


def test_ids_stay_text(read):  # S39
    manifest = read("study subject path", "001 007 a.nii", "1 7 b.nii", "1.0 07 c.nii")
    assert manifest.ids == ["001", "1", "1.0"]
    assert [one.subjects[0] for one in manifest] == ["007", "7", "07"]


def test_only_the_path_must_be_there(read, tmp_path):
    manifest = read("path", "x/T1.nii", "y/T1.nii.gz")
    assert manifest.ids == ["x/T1.nii", "y/T1.nii.gz"]
    assert [one.subjects for one in manifest] == [("x/T1.nii",), ("y/T1.nii.gz",)]
    assert [one.series[0].path for one in manifest] == [tmp_path / one for one in manifest.ids]
    assert {one.modalities for one in manifest} == {("mri",)}


def test_ids_do_not_depend_on_where_the_root_is(read, tmp_path):  # D48
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    here = read("path", "x/T1.nii", "y/T1.nii", root=tmp_path / "here")
    there = read("path", "x/T1.nii", "y/T1.nii", root=tmp_path / "there")
    assert split_of(here) == split_of(there)


def test_a_subject_without_a_study_is_one(read):
    manifest = read("subject path", "s1 a.nii", "s1 b.nii", "s2 c.nii")
    assert series(manifest) == [("s1", "a"), ("s1", "b"), ("s2", "c")]


def test_all_columns_arrive(read, tmp_path):
    manifest = read(
        "study subject path modality split cohort series series_uid repetition_time_s age",
        "st su x/rest.nii rsfMRI validation oslo run1 1.2.3 0.8 61",
    )
    (study,) = manifest
    (scan,) = study.series
    assert (study.id, study.split, study.cohort) == ("st", "val", "oslo")
    assert (scan.subject, scan.modality, scan.name, scan.uid) == ("su", "rsfMRI", "run1", "1.2.3")
    assert (scan.repetition_time_s, scan.path) == (0.8, tmp_path / "x" / "rest.nii")


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "json"])
def test_every_format_gives_the_same_manifest(read, tmp_path, ending):
    rows = [
        {"study": "001", "path": "a.nii", "split": "train"},
        {"study": "002", "path": "b.nii", "split": "test"},
    ]
    path = tmp_path / f"t.{ending}"
    if ending == "json":
        path.write_text(str(rows).replace("'", '"'))
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        sign = {"csv": ",", "tsv": "\t"}[ending]
        path.write_text("\n".join(sign.join(one) for one in [rows[0], *(r.values() for r in rows)]))
    manifest = TableCohort(path, tmp_path, MRI, SPLITS).manifest()
    assert split_of(manifest) == {"001": "train", "002": "test"}


# -- paths and names -----------------------------------------------------------------------------


def test_detours_in_a_path_do_not_make_another_file(read, tmp_path):
    manifest = read("path", "./a//x.nii", "a/./y.nii", f"{tmp_path}/a/z.nii")
    assert manifest.ids == ["a/x.nii", "a/y.nii", "a/z.nii"]


def test_a_root_with_dots_is_the_folder_it_means(read, tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert read("path", f"{tmp_path}/a.nii", root="..").ids == ["a.nii"]


@pytest.mark.parametrize("path", ["../a.nii", "x/../../a.nii", "/etc/a.nii", "x/.."])
def test_a_path_outside_the_root_is_an_error(read, path):
    with pytest.raises(InputError, match=rf"path '{path}' leaves the data root"):
        read("path", "a.nii", path)


def test_a_root_whose_name_begins_alike_is_another(read, tmp_path):
    with pytest.raises(InputError, match="leaves the data root"):
        read("path", f"{tmp_path}-other/a.nii")


def test_names_in_a_study_are_unique(read):  # S31
    manifest = read("study path", "a x/T1.nii", "a y/T1.nii", "a y/T2.nii", "b z/T1.nii")
    assert series(manifest) == [("a", "x/T1"), ("a", "y/T1"), ("a", "T2"), ("b", "T1")]


@pytest.mark.parametrize(
    "rows",
    [
        ("study path", "a T1.nii", "a T1.nii.gz"),
        ("study path", "a T1.nii", "b T1.nii", "a T1.nii"),
        ("study path series", "a x.nii T1", "a y.nii T1"),
    ],
)
def test_two_series_of_one_name_are_an_error(read, rows):  # S31
    with pytest.raises(InputError, match=r"study 'a' has two series 'T1', one of them .*\.nii"):
        read(*rows)


def test_a_scan_may_be_in_two_studies_of_one_split(read):
    manifest = read("study path split subject", "a x.nii train s", "b x.nii train s")
    assert len(manifest.scans()) == 1


def test_a_path_that_holds_nul_is_named_with_its_row(read):
    with pytest.raises(InputError, match=r"path of row 2 .*'b\\x00\.nii', holds the sign NUL"):
        read("study path", "a a.nii", "b b\0.nii")


@pytest.mark.parametrize(
    ("root", "message"),
    [("", r"data\.root is empty"), ("absent", r"data\.root=.*/absent is not a")],
)
def test_a_root_that_is_no_folder_is_one_error_and_not_one_for_each_row(read, root, message):
    with pytest.raises(InputError, match=message) as caught:
        TableCohort("/no/table.csv", root, MRI, SPLITS).manifest()
    assert "\n" not in str(caught.value)


# -- modalities ----------------------------------------------------------------------------------


def test_the_row_then_the_mapping_then_the_files_then_the_default(read, tmp_path):
    (tmp_path / "c.json").write_text('{"Modality": "CT"}')
    modes = Modes(mapping={"*/b": "T1", "*/a": "T1"}, default="mri")
    rows = ("study path modality", "s a.nii dMRI", "s b.nii -", "s c.nii -", "s d.nii -")
    (study,) = read(*rows, modes=modes)
    assert study.modalities == ("dMRI", "T1", "ct", "mri")


def test_rows_that_are_left_out_are_counted(read, said):
    modes = Modes(mapping={"*/loc*": "none"}, default="mri")
    rows = ("study path modality", "s loc1.nii -", "s T1.nii -", "u x.nii none", "v loc.nii mri")
    assert series(read(*rows, modes=modes)) == [("s", "T1"), ("v", "loc")]
    assert "2 series are left out" in said.text


def test_a_pattern_that_fits_no_row_is_named(read, said):
    read("study path", "s a.nii", modes=Modes(mapping={"s/a": "ct", "s/b": "ct"}))
    assert "data.mode_mapping: 's/b' fits no series" in said.text


def test_a_row_of_unknown_modality_is_a_failure_and_the_rest_goes_on(read, tmp_path):  # S33
    (tmp_path / "b.json").write_text('{"Modality": "PT"}')
    (tmp_path / "c.json").write_text("{")
    rows = ("study path modality", "s a.nii -", "s b.nii -", "s c.nii -", "s d.nii ct")
    manifest = read(*rows, modes=Modes())
    assert series(manifest) == [("s", "d")]
    assert [one.path.name for one in manifest.failures] == ["a.nii", "b.nii", "c.nii"]


def test_runs_have_the_repetition_time_of_the_table_or_the_side_car(read, tmp_path):  # D44
    (tmp_path / "a.json").write_text('{"RepetitionTime": 2.5}')
    (tmp_path / "b.json").write_text('{"RepetitionTime": 2.5}')
    (tmp_path / "d.json").write_text('{"RepetitionTime": "long"}')
    manifest = read(
        "study path modality repetition_time_s",
        "s a.nii rsfMRI 0.8", "s b.nii rsfMRI n/a", "s c.nii rsfMRI -", "s d.nii rsfMRI -",
        "s e.nii T1 nonsense",
    )  # fmt: skip
    seconds = [one.repetition_time_s for one in manifest[0].series]
    assert seconds == [0.8, 2.5, None, None]
    assert [one.path.name for one in manifest.failures] == ["d.nii"]


@pytest.mark.parametrize("text", ["0", "two", "inf", "1e999"])
def test_a_repetition_time_that_is_no_number_is_an_error(read, text):
    with pytest.raises(InputError, match=rf"positive number of seconds; got '{text}' for .*a\.nii"):
        read("path modality repetition_time_s", f"a.nii rsfMRI {text}")


# -- splits --------------------------------------------------------------------------------------


def test_the_column_of_splits_counts(read):  # S10
    manifest = read("study path split", "a a.nii Train", "b b.nii val", "c c.nii test")
    assert split_of(manifest) == {"a": "train", "b": "val", "c": "test"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ("a x.nii train", "a y.nii test"),
            "study 'a' has two values of split, 'train' and 'test'",
        ),
        (("a x.nii train", "b y.nii -"), "1 of 2 studies give a split"),
        (("a x.nii train", "b y.nii hold"), "study 'b' has split 'hold'; it must be one of train"),
    ],
)
def test_a_wrong_split_is_named(read, rows, message):  # S10
    with pytest.raises(InputError, match=message):
        read("study path split", *rows)


def test_a_subject_in_two_splits_is_a_leak(read):  # S10, D47
    with pytest.raises(LeakError, match="subject: 1"):
        read("study subject path split", "a s a.nii train", "b s b.nii test")


# -- DICOM ---------------------------------------------------------------------------------------


def patient(name):
    def edit(dataset, *_):
        dataset.PatientID = name

    return edit


def test_rows_of_dicom_say_modality_and_patient_themselves(read, tmp_path, said):  # S30
    for index, name in enumerate(("MARKER1", "MARKER2", "MARKER1")):
        folder = tmp_path / f"d{index}"
        modality = ("MR", "CT", "CT")[index]
        write_series(folder, VOXELS, AFFINE, modality=modality, number=index, edit=patient(name))
    manifest = read("study path", "a d0", "b d1/", "c d2", "e x.nii", modes=Modes(default="T1"))
    assert [one.modalities for one in manifest] == [("mri",), ("ct",), ("ct",), ("T1",)]
    assert [one.subjects for one in manifest] == [("a",), ("b",), ("a",), ("e",)]
    assert [len(one.series[0].files) for one in manifest] == [4, 4, 4, 0]
    assert manifest[0].series[0].path == tmp_path / "d0"
    assert "MARKER" not in repr(list(manifest)) + said.text


def test_a_subject_in_the_table_wins_over_the_patient(read, tmp_path):
    for name in "ab":
        write_series(tmp_path / name, VOXELS, AFFINE, number=ord(name), edit=patient("MARKER"))
    manifest = read("study subject path", "x s1 a", "y s2 b")
    assert [one.subjects for one in manifest] == [("s1",), ("s2",)]


def test_a_placeholder_for_a_name_links_nobody(read, tmp_path):
    for name in "ab":
        write_series(tmp_path / name, VOXELS, AFFINE, number=ord(name), edit=patient("ANONYMOUS"))
    assert [one.subjects for one in read("study path", "x a", "y b")] == [("x",), ("y",)]


def test_a_bad_row_costs_itself_only(read, tmp_path):  # S33, D50
    write_series(tmp_path / "d", VOXELS, AFFINE)
    manifest = read("study path", "a gone", "a d", "b gone", "c T1.nii")
    assert series(manifest) == [("a", "d"), ("c", "T1")]
    assert [one.num_failed for one in manifest] == [1, 0]
    assert manifest.num_left_out == 1
    assert [one.path.name for one in manifest.failures] == ["gone", "gone"]


def test_a_table_of_nothing_but_failures_names_them(read):  # S33
    with pytest.raises(InputError, match=r"(?s)gone1: find: .*gone2: find: .*no scan can be used"):
        read("study path", "a gone1", "b gone2")


# -- labels --------------------------------------------------------------------------------------


def test_labels_are_columns_of_the_table(read, said):  # S39, S40
    rules = LabelRules(file=None, names=["y"])
    rows = ("study path y", "001 a.nii 1", "1 b.nii 0", "1 c.nii 0", "2 d.nii n/a", "3 e.nii -")
    manifest = read(*rows, labels=rules)
    assert {one.id: one.labels for one in manifest} == {"001": (1.0,), "1": (0.0,)}
    assert "2 of 4 studies have no label and are left out" in said.text


def test_labels_join_where_the_table_has_no_study(read):  # S39
    rules = LabelRules(file=None, names=["y"], unlabelled="mask")
    labels = {one.id: one.labels[0] for one in read("path y", "a.nii 1", "b.nii 0", labels=rules)}
    assert labels == {"a.nii": 1.0, "b.nii": 0.0}


def test_labels_can_go_by_another_column(read):  # S39
    rules = LabelRules(file=None, names=["y"], key="subject")
    rows = ("study subject path y", "a 01 a.nii 1", "b 1 b.nii 0")
    assert [one.labels[0] for one in read(*rows, labels=rules)] == [1.0, 0.0]


def test_a_known_column_can_be_the_label(read):
    rules = LabelRules(file=None, names=["cohort"])
    manifest = read("study path cohort", "a a.nii oslo", "b b.nii paris", labels=rules)
    assert [one.labels for one in manifest] == [(0.0,), (1.0,)]


def test_series_of_a_study_that_disagree_about_its_label_are_an_error(read):  # S40
    rules = LabelRules(file=None, names=["y"])
    with pytest.raises(InputError, match=r"table\.csv: id 'a' has two rows that differ"):
        read("study path y", "a a.nii 1", "a b.nii 0", "b c.nii 1", labels=rules)


def test_a_column_that_there_is_not_is_named(read):
    rules = LabelRules(file=None, names=["why"])
    with pytest.raises(InputError, match=r"names 'why'.*no column of .*table\.csv"):
        read("study path y", "a a.nii 1", labels=rules)


# -- tables that are wrong, and large ones -------------------------------------------------------


def test_a_table_without_paths_says_what_it_may_have(read):
    with pytest.raises(InputError, match=r"has no column path; got study, file. .* series_uid"):
        read("study file", "a a.nii")


def test_an_empty_path_is_named_with_its_row(read):
    with pytest.raises(InputError, match=r"path of row 2 \(not counting the header\) is empty"):
        read("study path", "a a.nii", "b -")


def many_rows(path, count):
    """Write a table of so many rows, four of each study; return the order in which they stand."""
    study = np.arange(count) // 4
    table = pa.table(
        {
            "study": [f"s{one:06d}" for one in study],
            "subject": [f"p{one // 2:06d}" for one in study],
            "path": [f"{one % 10}/s{one}/{row % 4}.nii.gz" for row, one in enumerate(study)],
            "modality": ["mri"] * count,
            "split": [("train", "val", "test")[one // 2 % 3] for one in study],
            "y": [str(one % 2) for one in study],
        }
    )
    order = np.random.default_rng(0).permutation(count)
    pq.write_table(table.take(order), path)
    return order


def test_twice_as_many_rows_are_twice_the_work(tmp_path):
    count, works, rules = 20_000, [], LabelRules(file=None, names=["y"])

    def read():
        return TableCohort(tmp_path / "t.parquet", tmp_path, Modes(), SPLITS, rules).manifest()

    for number in (count // 2, count):
        order = many_rows(tmp_path / "t.parquet", number)
        works.append(num_calls(read))
    assert works[1] < 2.1 * works[0]  # a million rows are read in seconds: benchmarks/data.py
    manifest = read()
    assert (len(manifest), len(manifest.series)) == (count // 4, count)
    one = manifest[int(np.flatnonzero(manifest.studies["id"].to_numpy() == "s000007")[0])]
    assert one.subjects == ("p000003",)
    assert (one.split, one.labels) == ("train", (1.0,))
    written = [str(row % 4) for row in order if row // 4 == 7]
    assert [scan.path.name[0] for scan in one.series] == written
