"""Links of a data set lead to its own folder, or to one that the config names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from neuro.data.bids_cohort import BidsCohort
from neuro.data.cohort import ConversationCohort
from neuro.data.links import rooted
from neuro.data.manifest import Manifest, Series, Study
from neuro.data.modes import Modes
from neuro.data.splits import OneSplit
from neuro.data.study_folders import StudyFolders
from neuro.data.table_cohort import TableCohort
from neuro.errors import InputError

SCAN = "sub-1/anat/sub-1_T1w.nii"


def manifest_of(*paths, files=()):
    series = [Series(subject="a", modality="T1", path=path, files=files) for path in paths]
    return Manifest.of([Study(id="a", series=tuple(series))])


@pytest.fixture
def root(tmp_path):
    (tmp_path / "root" / "sub-1" / "anat").mkdir(parents=True)
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "scan.nii").write_bytes(b"scan")
    return tmp_path / "root"


def linked(root: Path, target: Path) -> Path:
    link = root / SCAN
    link.symlink_to(target)
    return link


def test_a_file_and_a_link_within_the_root_are_read(root):
    (root / "real.nii").touch()
    link = linked(root, Path("../../real.nii"))
    assert len(rooted(manifest_of(root / "real.nii", link), root, [])) == 1


def test_a_link_out_of_the_root_is_refused_with_the_key(root, tmp_path):
    link = linked(root, tmp_path / "store" / "scan.nii")
    with pytest.raises(
        InputError, match=r"sub-1_T1w.nii is really .*store/scan.nii.*data.linked_roots=\[\""
    ) as told:
        rooted(manifest_of(link), root, [])
    assert str(tmp_path / "store") in str(told.value)


def test_a_folder_that_is_a_link_counts_too(root, tmp_path):
    (root / "sub-2").symlink_to(tmp_path / "store")
    with pytest.raises(InputError, match=r"sub-2/scan.nii is really"):
        rooted(manifest_of(root / "sub-2" / "scan.nii"), root, None)


def test_a_dicom_file_that_is_a_link_counts_too(root, tmp_path):
    link = linked(root, tmp_path / "store" / "scan.nii")
    with pytest.raises(InputError, match="is really"):
        rooted(manifest_of(root / "sub-1", files=(root / "a", link)), root, [])


def test_a_folder_with_a_name_that_begins_alike_is_another(root, tmp_path):
    (tmp_path / "root2").mkdir()
    link = linked(root, tmp_path / "root2" / "scan.nii")
    with pytest.raises(InputError, match="is really"):
        rooted(manifest_of(link), root, [])


@pytest.mark.parametrize("named", [list, str])
def test_a_named_folder_may_be_linked_to(root, tmp_path, named):
    link = linked(root, tmp_path / "store" / "scan.nii")
    (tmp_path / "other-name").symlink_to(tmp_path / "store")
    given = str(tmp_path / "other-name")
    assert len(rooted(manifest_of(link), root, [given] if named is list else given)) == 1


def test_a_root_that_is_a_link_itself_is_read(root, tmp_path):
    (root / "real.nii").touch()
    (tmp_path / "here").symlink_to(root)
    assert len(rooted(manifest_of(tmp_path / "here" / "real.nii"), tmp_path / "here", [])) == 1


@pytest.mark.parametrize("inside", [".", "rawdata"])
def test_an_annex_is_part_of_its_data_set_also_where_the_root_is_a_folder_in_it(tmp_path, inside):
    dataset = tmp_path / "dataset"
    objects = dataset / ".git" / "annex" / "objects"
    objects.mkdir(parents=True)
    root = dataset / inside
    root.mkdir(exist_ok=True)
    for name in ("fetched", "absent"):
        (root / f"{name}.nii").symlink_to(objects / name)
    (objects / "fetched").touch()
    manifest = manifest_of(root / "fetched.nii", root / "absent.nii")
    assert len(rooted(manifest, root, [])) == 1
    (root / "beside.nii").symlink_to(tmp_path / "beside.nii")
    with pytest.raises(InputError, match="is really"):
        rooted(manifest_of(root / "beside.nii"), root, [])


def source(kind, root, linked_roots, question_book):
    talk, table = root.parent / "talk.json", root.parent / "table.csv"
    talk.write_text(
        f'{{"task_id": "c", "subject_id": "1", "modality_paths": {{"T1": "{SCAN}"}}, '
        '"conversations": [{"from": "human", "value": "<image>?"}, '
        '{"from": "gpt", "value": "yes"}]}'
    )
    table.write_text(f"path,modality\n{SCAN},T1\n")
    modes = Modes(mapping=None, default="mri")
    return {
        "bids": lambda: BidsCohort(
            root, None, question_book, OneSplit(), linked_roots=linked_roots
        ),
        "conversations": lambda: ConversationCohort(
            root, talk, OneSplit(), linked_roots=linked_roots
        ),
        "table": lambda: TableCohort(table, root, modes, OneSplit(), linked_roots=linked_roots),
        "studies": lambda: StudyFolders(root, modes, OneSplit(), linked_roots=linked_roots),
    }[kind]()


@pytest.mark.parametrize("kind", ["bids", "conversations", "table", "studies"])
def test_every_source_keeps_the_rule(kind, root, tmp_path, question_book):
    link = linked(root, tmp_path / "store" / "scan.nii")
    with pytest.raises(InputError, match=r"data\.linked_roots"):
        source(kind, root, [], question_book).manifest()
    assert len(source(kind, root, [str(tmp_path / "store")], question_book).manifest()) == 1
    link.unlink()
    shutil.copy(tmp_path / "store" / "scan.nii", link)
    assert len(source(kind, root, [], question_book).manifest()) == 1
