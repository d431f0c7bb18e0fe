"""The same subject, file, series or voxels in two splits stop the run, and are written down."""

from __future__ import annotations

import errno
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from some_studies import manifest_of, study
from work import num_calls

from neuro.data.leaks import HEADER, LeakError, check_splits, check_voxels
from neuro.data.manifest import Manifest
from neuro.errors import InputError


def test_a_study_without_a_split_is_an_error():
    with pytest.raises(InputError, match="'b'"):
        check_splits(manifest_of(study("a", split="train"), study("b")))


def test_a_subject_in_two_splits_is_an_error():  # D47, S10
    with pytest.raises(
        LeakError, match=r"subject: 1\).*subject of study 'a'.*\(train\).*'c'"
    ) as caught:
        check_splits(
            manifest_of(
                study("a", "s7", split="train", paths=["1.nii"]),
                study("b", "s8", split="train"),
                study("c", "s7", split="test", paths=["2.nii"]),
            )
        )
    assert [pair[0] for pair in caught.value.pairs] == ["subject"]


def test_a_prefix_does_not_hide_a_subject():  # D47
    with pytest.raises(LeakError, match="subject"):
        check_splits(manifest_of(study("a", "sub-7", split="train"), study("b", "7", split="val")))


def test_a_subject_that_is_only_compared_with_counts_too():  # D47
    with pytest.raises(LeakError, match="subject: 1"):
        check_splits(
            manifest_of(study("a", "s1", "s7", split="train"), study("c", "s7", split="test"))
        )


def test_the_same_scan_under_two_subjects_is_an_error():  # D47, DESIGN section 2
    with pytest.raises(LeakError, match="file: 1"):
        check_splits(
            manifest_of(
                study("a", "s1", split="train", paths=["same.nii.gz"]),
                study("b", "s2", split="test", paths=["same.nii.gz"]),
            )
        )


def test_a_link_does_not_hide_a_file(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.nii").write_text("x")
    (tmp_path / "y.nii").symlink_to(tmp_path / "real" / "x.nii")
    (tmp_path / "folder").symlink_to(tmp_path / "real")
    for other in ("y.nii", "folder/x.nii"):
        paths = [str(tmp_path / "real" / "x.nii"), str(tmp_path / other)]
        with pytest.raises(LeakError, match="file: 1"):
            check_splits(
                manifest_of(
                    study("a", "s1", split="train", paths=paths[:1]),
                    study("b", "s2", split="test", paths=paths[1:]),
                )
            )


def with_uids(*uids):
    studies = []
    for number, uid in enumerate(uids):
        one = study(f"t{number}", split="train" if number % 2 else "test")
        studies.append(replace(one, series=tuple(replace(s, uid=uid) for s in one.series)))
    return manifest_of(*studies)


def test_the_same_series_uid_in_two_splits_is_an_error():
    with pytest.raises(LeakError, match="SeriesInstanceUID: 1") as caught:
        check_splits(with_uids("1.2.840.99", "1.2.840.99"))
    assert "1.2.840" not in str(caught.value)  # it could lead back to the patient


def test_scans_without_a_uid_are_not_the_same():
    check_splits(with_uids("", "", "", ""))


def test_the_same_voxels_in_two_splits_are_an_error():
    manifest = manifest_of(*(study(n, split="val" if n == "c" else "train") for n in "abcd"))
    check_voxels(manifest, np.array([0, 0, 1, 2]))
    check_voxels(manifest, np.array([-1, 0, -1, 2]))
    with pytest.raises(LeakError, match=r"voxels of study 'b'.*study 'c'"):
        check_voxels(manifest, np.array([1, 0, 0, 2]))


def test_every_pair_is_written(tmp_path):
    studies = [
        study(f"{split}{number}", f"s{number}", split=split, paths=[f"{split}{number}.nii"])
        for number in range(3)
        for split in ("train", "val", "test")
    ]
    with pytest.raises(LeakError) as caught:
        check_splits(manifest_of(*studies))
    caught.value.write(tmp_path / "leaks.tsv")
    lines = (tmp_path / "leaks.tsv").read_text().splitlines()
    assert tuple(lines[0].split("\t")) == HEADER
    assert len(lines) == 1 + 3 * 2  # each subject is in three splits: two pairs
    assert pickle.loads(pickle.dumps(caught.value)).pairs == caught.value.pairs


def test_a_full_disk_leaves_the_earlier_table_and_names_the_setting(tmp_path, monkeypatch):
    path = tmp_path / "leaks.tsv"
    error = LeakError([("subject", "a", "t1", "train", "b", "t1", "test")])
    error.write(path)
    before = path.read_text()

    class Full:
        def __init__(self, *arguments, **more):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("neuro.data.leaks.csv.writer", Full)
    with pytest.raises(InputError, match=r"leaks\.tsv: No space left .*paths\.cache_dir"):
        error.write(path)
    assert path.read_text() == before
    assert [one.name for one in tmp_path.iterdir() if one.is_file()] == ["leaks.tsv"]


def many(count):
    """Return a manifest of so many studies."""
    one = manifest_of(study("a", split="train"))
    names = [f"s{number}" for number in range(count)]
    splits = ["train", "val", "test"]
    series = pa.table(
        {
            **{
                name: one.series[name].take(pa.array([0] * count))
                for name in one.series.column_names
            },
            "subject": pa.array(names, pa.large_string()),
            "path": pa.array([f"/data/{name}.nii" for name in names], pa.large_string()),
        }
    ).select(one.series.column_names)
    studies = pa.table(
        {"id": names, "split": [splits[i % 3] for i in range(count)], "cohort": [""] * count}
    )
    return Manifest(
        studies=studies.cast(one.studies.schema), series=series, bounds=np.arange(count + 1)
    )


def test_twice_as_many_rows_are_twice_the_work():
    manifest = many(20_000)
    works = [num_calls(check_splits, one) for one in (many(10_000), manifest)]
    assert works[1] < 2.1 * works[0]
    assert Path(manifest[7].series[0].path).name == "s7.nii"
