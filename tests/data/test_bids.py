"""A BIDS folder is read as BIDS says, and what is wrong in it is named."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from neuro.data.bids import BidsFolder, entities_of, modality_of, session_of, suffix_of
from neuro.data.cache import Cache, TooManyFailedScans
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
        ("sub-01_T2w.nii.gz", "mri"),
        ("sub-01_FLAIR.nii.gz", "mri"),
        ("sub-01_UNIT1.NII", "mri"),
        ("sub-01_ct.nii.gz", "ct"),
        ("sub-01_task-nback_bold.nii.gz", None),
        ("sub-01_task-rest_sbref.nii.gz", None),
        ("sub-01_param-MD_dwimap.nii.gz", None),
        ("sub-01_dwi.nii.gz", None),
        ("sub-01_T1map.nii.gz", None),
        ("sub-01_T1w.json", None),
        ("sub-01_T1w.nii.json", None),
        ("sub-01_T1w.nii.gz.bak", None),
        ("sub-_T1w.nii.gz", None),
        ("sub-01.nii.gz", None),
        ("T1w.nii.gz", None),
    ],
)
def test_a_file_name_says_the_modality(tmp_path, name, modality):
    assert modality_of(tmp_path / name) == modality


@pytest.mark.parametrize(
    ("task", "found"),
    [
        ("rest", [True, True, False]),
        (None, [True] * 3),
        ("", [True] * 3),
        ("nback", [False] * 2 + [True]),
    ],
)
def test_the_task_chooses_the_runs(tmp_path, task, found):
    names = ("task-rest", "task-RESTINGstate_run-1", "task-nback")
    paths = [tmp_path / f"sub-01_{name}_bold.nii.gz" for name in names]
    assert [modality_of(path, task) == "rsfMRI" for path in paths] == found


def test_a_name_is_taken_apart_at_its_underscores():
    name = "sub-CON-01_ses-a+1_task-rest_bold.nii.gz"
    assert entities_of(name) == {"sub": "CON-01", "ses": "a+1", "task": "rest"}
    assert suffix_of(name) == "bold"
    assert suffix_of("sub-01.nii") == ""


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
        fresh = BidsFolder(bids.root)  # a folder is listed once
        assert fresh.sidecar(bids.root / scan)["RepetitionTime"] == num + 1.0
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"RepetitionTime": ,}', r"side-car .*rest_bold\.json line 2 is not JSON"),
        ('{"RepetitionTime": "two seconds"}', "RepetitionTime in its side-car must be a positive"),
    ],
)
def test_a_wrong_side_car_costs_its_own_runs_and_is_named(folder, text, message):  # D44, D50
    other = REST.replace("01", "02")
    found = folder(
        {REST: None, other: None, T1: None, REST.replace(".nii.gz", ".json"): text}
    ).found
    assert [(scan.subject, scan.modality) for scan in found.scans] == [
        ("01", "T1"),
        ("02", "rsfMRI"),
    ]
    (failure,) = found.failures
    assert failure.path.name == "sub-01_task-rest_bold.nii.gz"
    assert re.search(message, str(failure))


def test_a_side_car_at_the_top_is_read_once(folder, monkeypatch):
    files = {f"sub-{i:02d}/func/sub-{i:02d}_task-rest_bold.nii.gz": None for i in range(20)}
    bids = folder({**files, "task-rest_bold.json": {"RepetitionTime": 2}})
    glob, listed = Path.glob, Counter()
    monkeypatch.setattr(Path, "glob", lambda self, what: listed.update([self]) or glob(self, what))
    assert {scan.repetition_time_s for scan in bids.scans} == {2.0}
    assert listed[bids.root] == 1


# ---------------------------------------------------------------- what is not read, or not usable


def test_kinds_that_are_not_read_are_counted(folder):
    names = [
        "sub-01/dwi/sub-01_dwi.nii.gz",
        "sub-01/func/sub-01_task-nback_run-1_bold.nii.gz",
        "sub-01/func/sub-01_task-nback_run-2_bold.nii.gz",
        "sub-01/fmap/M18_field.nii.gz",
        "sub-01/anat/T1w.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_desc-preproc_T1w.nii.gz",
    ]
    found = folder(dict.fromkeys([T1, *names])).found
    assert len(found.scans) == 1
    assert found.others == {"bold of task nback": 2, "dwi": 1, "not named by BIDS": 2}


def test_maps_of_fa_are_read_below_derivatives(folder):
    names = [
        "derivatives/dtifit/sub-01/dwi/sub-01_FA.nii.gz",
        "derivatives/qsiprep/sub-01/dwi/sub-01_param-FA_dwimap.nii.gz",
        "derivatives/flat/sub-02_FA.nii.gz",
        "derivatives/x/sub-01/anat/sub-01_T1w.nii.gz",
        "sourcedata/sub-01/dwi/sub-01_FA.nii.gz",
    ]
    found = folder(dict.fromkeys([T1, *names])).found
    assert [(scan.subject, scan.modality) for scan in found.scans] == [
        ("01", "dMRI"), ("02", "dMRI"), ("01", "dMRI"), ("01", "T1"),
    ]  # fmt: skip
    assert not found.failures


def test_maps_of_one_name_in_two_pipelines_are_each_named(folder):  # S31
    names = [f"derivatives/{one}/sub-01/dwi/sub-01_FA.nii.gz" for one in ("dtifit", "mrtrix")]
    found = folder(dict.fromkeys([T1, *names])).found
    assert [scan.modality for scan in found.scans] == ["T1"]
    assert [str(one.path.relative_to(one.path.parents[4])) for one in found.failures] == names
    assert "mrtrix/sub-01/dwi/sub-01_FA.nii.gz has the same name" in str(found.failures[0])


def test_a_scan_packed_and_unpacked_is_named_twice_and_the_rest_goes_on(folder):  # S31
    found = folder({T1: None, T1.removesuffix(".gz"): None, REST: None}).found
    assert [scan.modality for scan in found.scans] == ["rsfMRI"]
    assert [one.path.name for one in found.failures] == ["sub-01_T1w.nii", "sub-01_T1w.nii.gz"]


def test_a_subject_with_an_underscore_is_not_another_subject(folder):  # D47
    names = [f"sub-CON_{i}/anat/sub-CON_{i}_T1w.nii.gz" for i in range(2)]
    found = folder(dict.fromkeys([T1, *names])).found
    assert [scan.subject for scan in found.scans] == ["01"]
    assert "its name says sub-CON, its folder sub-CON_0" in str(found.failures[0])


def test_links_that_lead_back_end_the_walk(folder, tmp_path):
    bids = folder({T1: None})
    (tmp_path / "sub-01" / "loop").symlink_to(tmp_path)
    assert [scan.subject for scan in bids.scans] == ["01"]


def test_runs_of_a_session_are_one_session(folder):
    names = ["sub-01/ses-1/anat/sub-01_ses-1_T1w.nii", "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii", T1]
    sessions = [session_of(scan) for scan in folder(dict.fromkeys(names)).scans]
    assert sessions == ["sub-01", "sub-01_ses-1", "sub-01_ses-1"]


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
        folder({T1: None, "participants.tsv": [["name", "sex"], ["01", "F"]]}).participants  # noqa: B018


def test_a_participant_that_is_listed_twice_is_an_error(folder):  # D47
    rows = [["participant_id", "sex"], ["sub-01", "F"], ["01", "M"]]
    with pytest.raises(InputError, match="lists participant '01' twice"):
        folder({T1: None, "participants.tsv": rows}).participants  # noqa: B018


def test_a_row_without_a_participant_is_an_error(folder):
    rows = [["sex", "participant_id"], ["F", "sub-01"], ["M", ""]]
    with pytest.raises(InputError, match="a row without a participant_id: M"):
        folder({T1: None, "participants.tsv": rows}).participants  # noqa: B018


def test_a_table_that_is_not_utf8_is_named_with_its_line(folder, tmp_path):
    bids = folder({T1: None})
    (tmp_path / "participants.tsv").write_bytes(b"participant_id\tname\nsub-01\tJ\xfcrgen\n")
    with pytest.raises(InputError, match=r"participants\.tsv line 2: byte 0xfc is not UTF-8"):
        bids.participants  # noqa: B018


# ---------------------------------------------------------------- real folders


@pytest.mark.parametrize("name", ["ds001", "ds006", "ds114"])
def test_scans_of_zero_bytes_fail_with_one_line_each(real_data, tmp_path, recipes, name):  # D50
    root = real_data / "bids-examples" / name
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    found = BidsFolder(root, task=None).found
    assert not found.failures
    images = sum(path.name.endswith(".nii.gz") for path in root.rglob("*"))
    assert len(found.scans) + sum(found.others.values()) == images
    recipes = {**recipes, "mri": recipes["T1"]}
    with pytest.raises(TooManyFailedScans) as caught:
        Cache(tmp_path, recipes).build(found.scans, max_failed=0.0)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(found.scans) + 1
    for scan, line in zip(found.scans, lines, strict=False):
        assert str(scan.path) in line
        assert "0 bytes" in line
    assert not list(tmp_path.rglob("*.safetensors*"))


def test_a_real_resting_run_is_found_with_its_repetition_time(real_data):  # D44
    root = real_data / "pumi-minitest"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    bids = BidsFolder(root)
    scans = {scan.modality: scan for scan in bids.scans}
    assert scans.keys() == {"T1", "rsfMRI"}
    assert bids.found.others == {"not named by BIDS": 6}  # its field maps
    side_car = scans["rsfMRI"].path.with_name("sub-001_task-rest_bold.json")
    expected = json.loads((root / "task-rest_bold.json").read_text())
    expected |= json.loads(side_car.read_text())
    assert scans["rsfMRI"].repetition_time_s == expected["RepetitionTime"]
