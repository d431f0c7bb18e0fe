"""Names without endings, side-cars, and walks that end and lose nothing."""

from __future__ import annotations

import os

import pytest

from neuro.data.scan_files import (
    is_nifti,
    name_collision,
    read_sidecar,
    repetition_time,
    sidecar_beside,
    stem,
    walk,
)
from neuro.errors import ScanError


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("T1.nii", "T1"),
        ("a/T1.nii.gz", "a/T1"),
        ("T1.NII.GZ", "T1"),
        ("T1.hdr", "T1"),
        ("T1.hdr.gz", "T1"),
        ("T1.img", "T1"),
        ("T1.img.gz", "T1"),
        ("T1.v2.nii", "T1.v2"),
        ("T1.nii.json", "T1.nii.json"),
        ("T1.gz", "T1.gz"),
        ("nii", "nii"),
    ],
)
def test_a_name_loses_its_ending_and_no_more(name, bare):
    assert stem(name) == bare


@pytest.mark.parametrize("name", ["T1.nii.json", "T1.nii.bak", "T1.nii.gz.part", "nii", "T1.img"])
def test_what_only_looks_like_nifti_is_none(name):  # S31
    assert not is_nifti(name)


# -- walks ---------------------------------------------------------------------------------------


def files_in(root):
    failures = []
    found = [
        str((folder / name).relative_to(root))
        for folder, _, names in walk(root, failures)
        for name in names
    ]
    return found, failures


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_walk_is_sorted_and_passes_over_what_is_hidden(tmp_path):
    for name in ("b/2", "b/1", "a/1", ".git/x", "b/.DS_Store", "._T1.nii", "c"):
        touch(tmp_path / name)
    assert files_in(tmp_path) == (["c", "a/1", "b/1", "b/2"], [])


def test_a_link_to_elsewhere_is_followed(tmp_path):
    touch(tmp_path / "store" / "scan.nii")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "study").symlink_to(tmp_path / "store")
    assert files_in(tmp_path / "root") == (["study/scan.nii"], [])


def test_links_that_lead_back_end_the_walk(tmp_path):
    touch(tmp_path / "a" / "1")
    touch(tmp_path / "b" / "2")
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    found, failures = files_in(tmp_path)
    assert found == ["a/1", "a/to_b/2", "b/2", "b/to_a/1"]
    assert not failures


def test_a_folder_that_cannot_be_opened_is_named(tmp_path, monkeypatch):
    touch(tmp_path / "a" / "1")
    touch(tmp_path / "b" / "2")
    scandir = os.scandir

    def closed(path):
        if os.fspath(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)  # the tests may run as root, whom nothing stops
    found, (failure,) = files_in(tmp_path)
    assert found == ["b/2"]
    assert failure.path == tmp_path / "a"
    assert "cannot be opened (Permission denied)" in str(failure)


def test_a_name_that_is_not_utf8_is_a_failure_that_can_be_printed(tmp_path):
    for name in (b"J\xfcrgen.nii", b"folder\xfc/T1.nii", b"fine/T1.nii"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w"):
            pass
    found, failures = files_in(tmp_path)
    assert found == ["fine/T1.nii"]
    assert len(failures) == 2
    for failure in failures:
        str(failure).encode()
        assert "its name is not UTF-8. Rename it." in str(failure)


# -- side-cars -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["T1.nii", "T1.nii.gz", "T1.hdr", "T1.hdr.gz"])
def test_the_side_car_of_a_scan_has_its_name(tmp_path, name):
    (tmp_path / "T1.json").write_bytes(b'\xef\xbb\xbf{"Modality": "MR"}')
    assert sidecar_beside(tmp_path / name) == {"Modality": "MR"}
    assert sidecar_beside(tmp_path / f"other_{name}") == {}


def test_a_letter_that_is_not_utf8_does_not_spoil_a_side_car(tmp_path):
    (tmp_path / "T1.json").write_bytes(b'{"Institution": "Universit\xe4t", "RepetitionTime": 2}')
    fields = sidecar_beside(tmp_path / "T1.nii")
    assert repetition_time(fields, tmp_path / "T1.nii") == 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n"a": ,}', r"side-car .*T1\.json line 2 is not JSON .*Mend or remove"),
        ("", r"T1\.json line 1 is not JSON"),
        ("[1]", "must be a JSON object; got a list"),
    ],
)
def test_a_broken_side_car_names_the_scan_it_spoils(tmp_path, text, message):
    (tmp_path / "T1.json").write_text(text)
    with pytest.raises(ScanError, match=message) as caught:
        read_sidecar(tmp_path / "T1.json", tmp_path / "T1.nii")
    assert caught.value.path == tmp_path / "T1.nii"


@pytest.mark.parametrize("value", ["2", 0, -1, True, [2.0], float("inf"), float("nan")])
def test_a_repetition_time_is_a_positive_number(tmp_path, value):
    with pytest.raises(ScanError, match="RepetitionTime in its side-car must be a positive"):
        repetition_time({"RepetitionTime": value}, tmp_path)


def test_a_repetition_time_that_nobody_wrote_is_unknown(tmp_path):
    assert repetition_time({}, tmp_path) is None
    assert repetition_time({"RepetitionTime": None}, tmp_path) is None


def test_files_of_one_name_are_named_with_each_other(tmp_path):  # S31
    paths = [tmp_path / "T1.nii", tmp_path / "T1.nii.gz", tmp_path / "raw" / "T1.nii"]
    for path in paths:
        failure = name_collision(path, paths)
        assert failure.path == path
        others = [os.path.relpath(one, path.parent) for one in paths if one != path]
        assert all(one in failure.reason for one in others)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"RepetitionTime": ' + "9" * 5000 + "}"])
def test_a_side_car_that_python_cannot_hold_is_the_scan_s_failure(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ScanError, match=r"its side-car .*a\.json cannot be read"):
        read_sidecar(path, tmp_path / "a.nii")
