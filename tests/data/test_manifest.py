"""Columns hold what went in, studies are unique, scans listed once, paths below the root."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from some_studies import manifest_of, study

from neuro.data.manifest import Manifest, Series, Study, inside
from neuro.errors import InputError, ScanError


def test_what_goes_in_comes_out():
    series = Series(
        subject="001",
        modality="ct",
        path=Path("/data/x"),
        name="s003",
        repetition_time_s=2.5,
        uid="1.2.3",
        files=(Path("/data/x/1"), Path("/data/x/2")),
        start=7,
    )
    one = Study(id="001", series=(series, replace(series, start=None)), split="val", cohort="c")
    (back,) = Manifest.of([one])
    assert back == one
    assert isinstance(back.series[0].subject, str)  # S39: "001" is not 1


def test_the_last_subject_of_a_study_is_the_one_shown_last():
    shown = [Series(subject=one, modality="T1", path=Path(f"{one}.nii")) for one in "ABACA"]
    assert Study(id="a", series=tuple(shown)).subjects == ("B", "C", "A")


def test_ids_stay_text():  # S39
    manifest = manifest_of(study("001"), study("1"), study("1.0"))
    assert manifest.ids == ["001", "1", "1.0"]
    assert [one.subjects for one in manifest] == [("001",), ("1",), ("1.0",)]


def test_a_repeated_id_is_an_error():  # D47
    with pytest.raises(InputError, match=r"study id 'a' occurs twice.*Rename"):
        manifest_of(study("a"), study("b"), study("a"))


def test_an_empty_manifest_is_an_error():
    with pytest.raises(InputError, match=r"has no study.*data\.modalities or data\.mode_mapping"):
        Manifest.of([])


def test_a_cohort_of_nothing_but_failures_names_them():  # S33
    failure = ScanError("x.nii", "read", "the file has 0 bytes.", "Download it again.")
    with pytest.raises(InputError, match=r"x\.nii: read: the file has 0 bytes.*\nno scan"):
        Manifest.of([], [failure])


def test_a_study_without_series_is_an_error():
    with pytest.raises(InputError, match="'b' has no series"):
        Manifest.of([replace(study("a"), conversation=None), Study(id="b", series=())])


def test_conversations_are_for_all_or_none():
    with pytest.raises(InputError, match="1 of 2 studies have a conversation"):
        Manifest.of([study("a"), replace(study("b"), conversation=None)])


def test_a_split_keeps_the_order_of_the_manifest():
    manifest = manifest_of(*(study(n, split="val" if n in "bd" else "train") for n in "dbca"))
    assert manifest.split("val").ids == ["d", "b"]
    assert manifest.split("train").ids == ["c", "a"]
    assert manifest.split("test") is None


def test_a_scan_of_several_studies_is_listed_once():
    manifest = manifest_of(study("a", "s1"), study("b", "s1", "s2"))
    assert [scan.subject for scan in manifest.scans()] == ["s1", "s2"]
    assert manifest.scan_of_row.tolist() == [0, 0, 1]


def test_windows_of_a_run_are_one_scan():
    first = study("a").series[0]
    windows = [
        Study(id=f"w{start}", series=(replace(first, start=start),)) for start in (None, 0, 24)
    ]
    assert Manifest.of(windows).scans() == (first,)


def test_taking_studies_takes_their_series_and_texts():
    manifest = manifest_of(study("a", "s1", "s2"), study("b"), study("c", "s3", "s1", "s4"))
    taken = manifest.take([2, 0])
    assert [taken[0], taken[1]] == [manifest[2], manifest[0]]
    assert manifest[1:].ids == ["b", "c"]
    assert taken.owners.tolist() == [0, 0, 0, 1, 1]


def test_a_manifest_travels_to_a_process_that_reads():
    manifest = manifest_of(study("a", "s1", "s2"), study("b"))
    back = pickle.loads(pickle.dumps(manifest))
    assert list(back) == list(manifest)


def test_scans_come_in_order_of_first_appearance():
    rng = np.random.default_rng(0)
    names = [f"s{number}" for number in rng.integers(0, 30, 80)]
    manifest = manifest_of(*(study(f"t{i}", name) for i, name in enumerate(names)))
    assert [scan.subject for scan in manifest.scans()] == list(dict.fromkeys(names))
    assert [manifest.scans()[place].subject for place in manifest.scan_of_row] == names


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "path", ["../secret.nii", "/etc/passwd", "a/../../b.nii", "a/b/../../../c.nii"]
)
def test_a_path_outside_the_root_is_an_error(tmp_path, path):
    with pytest.raises(InputError, match=r"row 3: path .* leaves the data root"):
        inside(tmp_path / "data", path, where="row 3")


def test_a_folder_whose_name_begins_like_the_root_is_outside(tmp_path):
    with pytest.raises(InputError, match="leaves the data root"):
        inside(tmp_path / "data", "../data2/a.nii", where="row 3")


@pytest.mark.parametrize("path", ["a.nii", "a/b.nii", "a/../b.nii", "./a.nii", "..a/b.nii"])
def test_a_path_below_the_root_is_joined(tmp_path, path):
    joined = inside(tmp_path, path, where="row 3")
    assert joined.is_relative_to(tmp_path)
    assert ".." not in joined.parts


def test_an_absolute_path_below_the_root_is_kept(tmp_path):
    assert inside(tmp_path, str(tmp_path / "a.nii"), where="row 3") == tmp_path / "a.nii"
