"""Rows that name DICOM folders or files find their one series, or say why they do not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from dicom_files import write_series

from neuro.data.table_dicom import find_in_rows

VOXELS = np.arange(6 * 5 * 4).reshape(6, 5, 4)
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])


def dicom(folder, **options):
    return write_series(folder, VOXELS, AFFINE, **options)


def find(*rows):
    """Each row is a path and perhaps a name and a uid."""
    full = [(str(path), *rest, *[""] * (2 - len(rest))) for path, *rest in rows]
    columns = zip(*full, strict=True)
    return find_in_rows(*(pa.array(one, pa.large_string()) for one in columns))


def test_a_folder_of_one_series_is_that_series(tmp_path):  # S30
    files = dicom(tmp_path / "a" / "deep", suffix="")
    rows = find((tmp_path / "x.nii",), (tmp_path / "a",), (tmp_path / "y.HDR.gz",))
    assert set(rows.found[1].files) == set(files)
    assert rows.found.keys() == {1}
    assert not rows.failures
    assert not rows.others


@pytest.mark.parametrize("name", ["x.dcm", "x", "x.img"])
def test_a_file_of_several_frames_is_a_series_by_its_content(tmp_path, name):  # S30
    def mosaic(dataset, *_):
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]

    (path, *_) = dicom(tmp_path / "s", edit=mosaic)
    path.rename(tmp_path / name)
    assert find((tmp_path / name,)).found[0].files == (tmp_path / name,)


def test_the_second_file_of_a_pair_is_left_to_nifti(tmp_path):
    (tmp_path / "x.img").write_bytes(bytes(400))
    rows = find((tmp_path / "x.img",))
    assert (rows.found, rows.failures) == ({}, {})


def test_the_name_or_the_uid_chooses_among_several_series(tmp_path):  # S30
    dicom(tmp_path, number=1, uid="1.2.1")
    dicom(tmp_path, number=2, uid="1.2.2", instances=[11, 12, 13, 14])
    rows = find(
        (tmp_path, "s002"), (tmp_path, "", "1.2.1"), (tmp_path, "flair"), (tmp_path, "", "9")
    )
    assert {row: one.name for row, one in rows.found.items()} == {0: "s002", 1: "s001"}
    assert "2 DICOM series are in it: s001, s002" in str(rows.failures[2])
    assert "no DICOM series of this series_uid" in str(rows.failures[3])


def test_a_row_that_names_nothing_is_a_failure(tmp_path):  # D50
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.doc").write_text("no scan")
    rows = find((tmp_path / "absent",), (tmp_path / "empty",), (tmp_path / "text.doc",))
    assert "there is no such file" in str(rows.failures[0])
    assert "holds no DICOM series" in str(rows.failures[1])
    assert "holds no DICOM series" in str(rows.failures[2])


def test_a_series_that_makes_no_volume_says_why(tmp_path):  # D50
    for path in dicom(tmp_path / "a")[1:]:
        path.unlink()
    rows = find((tmp_path / "a",))
    assert "at least 3 parallel slices" in str(rows.failures[0])
    assert not rows.others  # it is named once


def test_what_else_fails_in_a_folder_is_named_once(tmp_path):  # D50
    dicom(tmp_path, number=1)
    dicom(tmp_path, number=2, instances=[11, 12, 13, 14])
    for path in dicom(tmp_path, number=3, instances=[21, 22, 23, 24])[1:]:
        path.unlink()
    rows = find((tmp_path, "s001"), (tmp_path, "s002"))
    assert len(rows.found) == 2
    (failure,) = rows.others
    assert "s003" in str(failure)


def test_columns_follow_what_was_found(tmp_path):
    dicom(tmp_path / "a", number=1, uid="1.2.1")
    dicom(tmp_path / "b", number=1, uid="1.2.2")
    dicom(tmp_path / "b", number=2, uid="1.2.3", instances=[11, 12, 13, 14])
    paths = [f"{tmp_path}/{name}" for name in ("x.nii", "a", "b", "b")]
    rows = find(*zip(paths, ["", "", "s001", "s002"], strict=True))
    column = pa.array(paths, pa.large_string())
    # Series that share a folder get paths of their own: entries of the cache go by path.
    assert rows.paths(column).to_pylist() == [
        *paths[:2], f"{tmp_path}/b/00001.dcm", f"{tmp_path}/b/00011.dcm",
    ]  # fmt: skip
    assert rows.names(column).to_pylist()[1:3] == [f"{paths[1]}/s001", f"{paths[2]}/s001"]
    uids = pa.array(["9", "", "", ""], pa.large_string())
    assert rows.uids(uids).to_pylist() == ["9", "1.2.1", "1.2.2", "1.2.3"]
    assert [len(one or ()) for one in rows.files(4).to_pylist()] == [0, 4, 4, 4]
