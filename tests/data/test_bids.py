"""A BIDS folder is read as BIDS says, and what is wrong in it is named."""

from __future__ import annotations

import json

import pytest

from neuro.data.bids import BidsFolder, modality_of
from neuro.data.cache import Cache, TooManyFailedScans
from neuro.data.recipes import BoldRun, FixedGrid
from neuro.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """Write files; a dict is JSON, a list of rows is a table, anything else is empty."""

    def make(files):
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, dict):
                path.write_text(json.dumps(content))
            elif isinstance(content, list):
                path.write_text("".join("\t".join(row) + "\n" for row in content))
            else:
                path.write_text(content or "")
        return BidsFolder(tmp_path)

    return make


REST = "sub-01/func/sub-01_task-rest_bold.nii.gz"
T1 = "sub-01/anat/sub-01_T1w.nii.gz"


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("sub-01_T1w.nii.gz", "T1"),
        ("sub-01_ses-1_run-2_T1w.nii", "T1"),
        ("sub-01_task-rest_bold.nii.gz", "rsfMRI"),
        ("sub-01_task-RestingState_run-1_bold.nii.gz", "rsfMRI"),
        ("sub-01_param-FA_dwimap.nii.gz", "dMRI"),
        ("sub-01_desc-FA_dwimap.nii.gz", "dMRI"),
        ("sub-01_FA.nii.gz", "dMRI"),
        ("sub-01_task-nback_bold.nii.gz", None),
        ("sub-01_task-rest_sbref.nii.gz", None),
        ("sub-01_param-MD_dwimap.nii.gz", None),
        ("sub-01_dwi.nii.gz", None),
        ("sub-01_T2w.nii.gz", None),
        ("sub-01_T1w.json", None),
        ("T1w.nii.gz", None),
    ],
)
def test_a_file_name_says_the_modality(tmp_path, name, modality):
    assert modality_of(tmp_path / name) == modality


def test_scans_are_found_in_sessions_and_sorted(folder):  # D47
    names = [
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
        "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
        "sub-01/dwi/sub-01_param-FA_dwimap.nii.gz",
        REST,
        T1,
    ]
    scans = folder(dict.fromkeys(names)).scans
    assert [str(scan.path) for scan in scans] == sorted(str(scan.path) for scan in scans)
    assert [(scan.subject, scan.modality) for scan in scans] == [
        ("01", "T1"),
        ("01", "dMRI"),
        ("01", "rsfMRI"),
        ("02", "T1"),
        ("02", "T1"),
    ]
    assert all(scan.path.is_absolute() for scan in scans)


@pytest.mark.parametrize("copy", ["derivatives/fmriprep", "sourcedata", "sub-01/derivatives"])
def test_derived_and_source_data_are_no_scans(folder, copy):
    assert len(folder({T1: None, f"{copy}/{T1}": None}).scans) == 1


def test_a_subject_folder_that_is_a_link_is_read(folder, tmp_path):  # no scan is lost in silence
    elsewhere = tmp_path.with_name(tmp_path.name + "-store") / "sub-02"
    (elsewhere / "anat").mkdir(parents=True)
    (elsewhere / "anat" / "sub-02_T1w.nii.gz").touch()
    (tmp_path / "sub-02").symlink_to(elsewhere)
    assert [scan.subject for scan in folder({T1: None}).scans] == ["01", "02"]


def test_a_folder_that_is_not_bids_is_an_error(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        BidsFolder(tmp_path / "absent")
    with pytest.raises(InputError, match=r"holds no sub-\* folder"):
        BidsFolder(tmp_path)


# ---------------------------------------------------------------- side-cars


def tr_of(bids):
    return next(scan.repetition_time_s for scan in bids.scans if scan.modality == "rsfMRI")


def test_a_side_car_at_the_top_is_inherited(folder):  # D44
    assert tr_of(folder({REST: None, "task-rest_bold.json": {"RepetitionTime": 2}})) == 2.0


def test_the_nearest_side_car_wins_field_by_field(folder):  # D44
    bids = folder(
        {
            REST: None,
            "bold.json": {"RepetitionTime": 1, "A": 1, "B": 1, "C": 1},
            "task-rest_bold.json": {"RepetitionTime": 2, "A": 2, "B": 2},
            "sub-01/sub-01_task-rest_bold.json": {"RepetitionTime": 3, "A": 3},
            REST.replace(".nii.gz", ".json"): {"RepetitionTime": 0.8},
        }
    )
    assert tr_of(bids) == 0.8
    fields = bids.sidecar(bids.root / REST)
    assert (fields["A"], fields["B"], fields["C"]) == (3, 2, 1)


def test_in_one_folder_the_more_specific_side_car_wins(folder):  # D44
    scan = "sub-01/func/sub-01_task-rest_acq-a_run-1_bold.nii.gz"
    parts = ["sub-01", "task-rest", "acq-a", "run-1"]
    chain = {
        f"sub-01/func/{'_'.join([*parts[:num], 'bold'])}.json": {"RepetitionTime": num + 1.0}
        for num in (3, 0, 4, 2, 1)
    }
    bids = folder({scan: None, **chain})
    for num in (4, 3, 2, 1, 0):
        assert bids.sidecar(bids.root / scan)["RepetitionTime"] == num + 1.0
        (bids.root / f"sub-01/func/{'_'.join([*parts[:num], 'bold'])}.json").unlink()


@pytest.mark.parametrize(
    "name",
    [
        "task-nback_bold.json",
        "sub-02/func/sub-02_task-rest_bold.json",
        "sub-01/func/sub-01_task-rest_run-2_bold.json",
        "sub-01/func/sub-01_task-rest_sbref.json",
        "sub-01/anat/sub-01_task-rest_bold.json",
    ],
)
def test_the_side_car_of_another_scan_is_not_inherited(folder, name):  # D44
    bids = folder({REST: None, "task-rest_bold.json": {"RepetitionTime": 2}})
    assert tr_of(bids) == 2.0
    again = folder({name: {"RepetitionTime": 7}})
    assert tr_of(again) == 2.0


def test_without_a_side_car_the_header_decides(folder):
    assert tr_of(folder({REST: None})) is None


def test_a_broken_side_car_is_named_with_its_line(folder):
    bids = folder({REST: None, "task-rest_bold.json": '{\n"RepetitionTime": ,}'})
    with pytest.raises(InputError, match=r"task-rest_bold\.json line 2: not JSON"):
        bids.scans  # noqa: B018, reading it is the test


def test_a_repetition_time_that_is_no_number_is_named(folder):
    bids = folder({REST: None, "task-rest_bold.json": {"RepetitionTime": "two seconds"}})
    with pytest.raises(InputError, match="RepetitionTime"):
        bids.scans  # noqa: B018, reading it is the test


# ---------------------------------------------------------------- participants


def test_participants_are_read_by_subject(folder):
    rows = [["participant_id", "sex", "age"], ["sub-01", "F", " 61 "], ["02", "n/a", ""]]
    bids = folder({T1: None, "participants.tsv": rows})
    assert bids.participants["01"] == {"participant_id": "sub-01", "sex": "F", "age": "61"}
    assert bids.participants["02"]["sex"] == "n/a"
    assert bids.columns() == ("sex", "age")


def test_a_byte_order_mark_does_not_hide_the_first_column(folder):
    bids = folder({T1: None, "participants.tsv": "\ufeffparticipant_id\tsex\nsub-01\tF\n"})
    assert bids.participants["01"]["sex"] == "F"


def test_a_table_that_is_missing_or_has_no_ids_is_an_error(folder):
    with pytest.raises(InputError, match=r"participants\.tsv is missing"):
        folder({T1: None}).participants  # noqa: B018, reading it is the test
    with pytest.raises(InputError, match="no column participant_id; got name, sex"):
        folder({"participants.tsv": [["name", "sex"], ["01", "F"]]}).participants  # noqa: B018


def test_a_participant_that_is_listed_twice_is_an_error(folder):  # D47
    rows = [["participant_id", "sex"], ["sub-01", "F"], ["01", "M"]]
    with pytest.raises(InputError, match="lists participant '01' twice"):
        folder({T1: None, "participants.tsv": rows}).participants  # noqa: B018


# ---------------------------------------------------------------- real folders


@pytest.mark.parametrize("name", ["ds001", "ds006", "ds114"])
def test_scans_of_zero_bytes_fail_with_one_line_each(real_data, tmp_path, name):  # D50
    root = real_data / "bids-examples" / name
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    scans = BidsFolder(root).scans
    assert len(scans) >= 10
    cube = {"shape": (8, 8, 8), "spacing_mm": 24.0, "patch": (8, 8, 8)}
    recipes = {
        "T1": FixedGrid(**cube, percentiles=(0.5, 99.5)),
        "dMRI": FixedGrid(**cube, window=(0.0, 1.0)),
        "rsfMRI": BoldRun(shape=(8, 8, 8, 2), patch=(8, 8, 8, 2), repetition_time_s=2.0),
    }
    with pytest.raises(TooManyFailedScans) as caught:
        Cache(tmp_path, recipes).build(scans, max_failed=0.0)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(scans) + 1
    for scan, line in zip(scans, lines, strict=False):
        assert str(scan.path) in line
        assert "0 bytes" in line
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_a_real_resting_run_is_found_with_its_repetition_time(real_data):  # D44
    root = real_data / "pumi-minitest"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    scans = {scan.modality: scan for scan in BidsFolder(root).scans}
    assert scans.keys() == {"T1", "rsfMRI"}
    side_car = scans["rsfMRI"].path.with_name("sub-001_task-rest_bold.json")
    expected = json.loads((root / "task-rest_bold.json").read_text())
    expected |= json.loads(side_car.read_text())
    assert scans["rsfMRI"].repetition_time_s == expected["RepetitionTime"]
