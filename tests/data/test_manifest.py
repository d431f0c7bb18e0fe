"""Studies are unique, subjects stay in one split, and paths stay below their root."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuro.data.conversation import Conversation, Image, ImagePart, Turn
from neuro.data.manifest import Manifest, Series, Study, SubjectSplits, inside
from neuro.errors import InputError

SPLITS = SubjectSplits(val=0.2, test=0.2)


def study(name, *subjects, split="", paths=None):
    subjects = subjects or (name,)
    paths = paths or [f"{subject}.nii.gz" for subject in subjects]
    images = tuple(
        Image(path=path, modality="T1", subject=subject)
        for subject, path in zip(subjects, paths, strict=True)
    )
    turns = (
        Turn("user", (*(ImagePart(index) for index in range(len(images))), "?")),
        Turn("assistant", ("left",)),
    )
    return Study(
        id=name,
        series=tuple(
            Series(subject=image.subject, modality="T1", path=Path("/data") / image.path)
            for image in images
        ),
        conversation=Conversation(id=name, task="t", turns=turns, images=images),
        split=split,
    )


def split_of(studies):
    return {one.id: one.split for one in studies}


def test_a_repeated_id_is_an_error():  # D47
    with pytest.raises(InputError, match=r"study id 'a' occurs twice.*Rename"):
        Manifest((study("a", split="train"), study("b", split="val"), study("a", split="train")))


def test_an_empty_manifest_is_an_error():
    with pytest.raises(InputError, match="has no study"):
        Manifest(())


def test_a_study_without_a_split_is_an_error():
    with pytest.raises(InputError, match="'b'"):
        Manifest((study("a", split="train"), study("b")))


def test_a_subject_in_two_splits_is_an_error():  # D47
    with pytest.raises(InputError, match=r"1 subjects .*'s7' is in test and train"):
        Manifest(
            (
                study("a", "s7", split="train"),
                study("b", "s8", split="train"),
                study("c", "s7", split="test"),
            )
        )


def test_a_subject_that_is_only_compared_with_counts_too():  # D47
    with pytest.raises(InputError, match="'s7' is in test and train"):
        Manifest((study("a", "s1", "s7", split="train"), study("c", "s7", split="test")))


def test_the_same_scan_under_two_names_in_two_splits_is_an_error():  # D47, DESIGN section 2
    with pytest.raises(InputError, match=r"same\.nii\.gz"):
        Manifest(
            (
                study("a", "s1", split="train", paths=["same.nii.gz"]),
                study("b", "s2", split="test", paths=["same.nii.gz"]),
            )
        )


def test_a_split_keeps_the_order_of_the_manifest():
    manifest = Manifest(
        tuple(study(name, split="val" if name in "bd" else "train") for name in "dbca")
    )
    assert [one.id for one in manifest.split("val")] == ["d", "b"]
    assert [one.id for one in manifest.split("train")] == ["c", "a"]
    assert manifest.split("test") == ()


def test_a_scan_of_several_studies_is_listed_once():
    manifest = Manifest((study("a", "s1", split="train"), study("b", "s1", "s2", split="train")))
    assert [scan.subject for scan in manifest.scans()] == ["s1", "s2"]


# ---------------------------------------------------------------- splits by subject


def test_splits_have_about_the_asked_shares():
    names = list(split_of(SPLITS.assign(study(f"s{index}") for index in range(2000))).values())
    assert names.count("val") == pytest.approx(400, rel=0.15)
    assert names.count("test") == pytest.approx(400, rel=0.15)


def test_old_subjects_keep_their_split_when_others_come():  # D48
    old = [study(f"s{index}") for index in range(50)]
    new = [study(f"r{index}") for index in range(50)]
    before = split_of(SPLITS.assign(old))
    after = split_of(SPLITS.assign([*new, *reversed(old)]))
    assert before.items() <= after.items()


def test_another_study_of_a_subject_is_in_its_split():  # D47
    studies = [study(f"{kind}{index}", f"s{index}") for index in range(40) for kind in "ab"]
    splits = split_of(SPLITS.assign(studies))
    assert all(splits[f"a{index}"] == splits[f"b{index}"] for index in range(40))
    Manifest(SPLITS.assign(studies))


def test_subjects_that_meet_in_a_study_stay_together():  # D47
    chains = [
        study(f"{chain}-{link}", f"s{chain}.{link}", f"s{chain}.{link + 1}")
        for chain in range(30)
        for link in (2, 0, 1)
    ]
    singles = [study(f"{chain}-alone", f"s{chain}.3") for chain in range(30)]
    assigned = SPLITS.assign([*singles, *chains])
    Manifest(assigned)  # no subject is in two splits
    splits = split_of(assigned)
    for chain in range(30):
        assert len({splits[f"{chain}-{end}"] for end in (0, 1, 2, "alone")}) == 1
    assert set(splits.values()) == {"train", "val", "test"}


def test_the_order_of_the_studies_does_not_matter():  # D48
    studies = [study(f"x{i}", f"s{i % 13}", f"s{(i * 5) % 13}") for i in range(13)]
    studies += [study(f"y{i}") for i in range(20)]
    assert split_of(SPLITS.assign(studies)) == split_of(SPLITS.assign(studies[::-1]))


def test_another_salt_is_another_draw():
    studies = [study(f"s{index}") for index in range(40)]
    other = SubjectSplits(val=0.2, test=0.2, salt="second")
    assert split_of(SPLITS.assign(studies)) != split_of(other.assign(studies))


def test_a_split_that_is_given_is_kept():
    studies = [study(f"s{index}", split=("train", "test")[index % 2]) for index in range(10)]
    assert SPLITS.assign(studies) == tuple(studies)


def test_all_or_no_study_gives_a_split():
    with pytest.raises(InputError, match=r"1 of 2 studies give a split.*'b' gives none"):
        SPLITS.assign([study("a", split="train"), study("b")])


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.2, -0.1), (1.0, 0.0)])
def test_shares_leave_something_for_training(val, test):  # D48
    with pytest.raises(InputError, match="leave something for training"):
        SubjectSplits(val=val, test=test)


def test_no_share_is_no_study():
    splits = split_of(SubjectSplits(val=0.0, test=0.0).assign(study(f"s{i}") for i in range(50)))
    assert set(splits.values()) == {"train"}


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
