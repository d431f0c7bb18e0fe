"""Splits follow subjects: by hash, by fold, or by lists; the same on every machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf
from some_studies import manifest_of, split_of, study

from neuro.command import CONF
from neuro.data.labels import Labels
from neuro.data.leaks import check_splits
from neuro.data.splits import ListedSplits, SubjectSplits
from neuro.errors import InputError

SPLITS = SubjectSplits(val=0.2, test=0.2)


def test_splits_have_about_the_asked_shares():
    names = list(
        split_of(
            SPLITS.assign(manifest_of(*(study(f"s{index}") for index in range(2000))))
        ).values()
    )
    assert names.count("val") == pytest.approx(400, rel=0.15)
    assert names.count("test") == pytest.approx(400, rel=0.15)


def test_old_subjects_keep_their_split_when_others_come():  # D48
    old = [study(f"s{index}") for index in range(50)]
    new = [study(f"r{index}") for index in range(50)]
    before = split_of(SPLITS.assign(manifest_of(*old)))
    after = split_of(SPLITS.assign(manifest_of(*new, *reversed(old))))
    assert before.items() <= after.items()


def test_another_study_of_a_subject_is_in_its_split():  # D47
    studies = [study(f"{kind}{index}", f"s{index}") for index in range(40) for kind in "ab"]
    splits = split_of(SPLITS.assign(manifest_of(*studies)))
    assert all(splits[f"a{index}"] == splits[f"b{index}"] for index in range(40))
    check_splits(SPLITS.assign(manifest_of(*studies)))


def test_subjects_that_meet_in_a_study_stay_together():  # D47
    chains = [
        study(f"{chain}-{link}", f"s{chain}.{link}", f"s{chain}.{link + 1}")
        for chain in range(30)
        for link in (2, 0, 1)
    ]
    singles = [study(f"{chain}-alone", f"s{chain}.3") for chain in range(30)]
    assigned = SPLITS.assign(manifest_of(*singles, *chains))
    check_splits(assigned)  # no subject is in two splits
    splits = split_of(assigned)
    for chain in range(30):
        assert len({splits[f"{chain}-{end}"] for end in (0, 1, 2, "alone")}) == 1
    assert set(splits.values()) == {"train", "val", "test"}


def test_the_order_of_the_studies_does_not_matter():  # D48
    studies = [study(f"x{i}", f"s{i % 13}", f"s{(i * 5) % 13}") for i in range(13)]
    studies += [study(f"y{i}") for i in range(20)]
    assert split_of(SPLITS.assign(manifest_of(*studies))) == split_of(
        SPLITS.assign(manifest_of(*studies[::-1]))
    )


def test_another_salt_is_another_draw():
    studies = [study(f"s{index}") for index in range(40)]
    other = SubjectSplits(val=0.2, test=0.2, salt="second")
    assert split_of(SPLITS.assign(manifest_of(*studies))) != split_of(
        other.assign(manifest_of(*studies))
    )


def test_a_split_that_is_given_is_kept():
    studies = [study(f"s{index}", split=("train", "test")[index % 2]) for index in range(10)]
    assert list(SPLITS.assign(manifest_of(*studies))) == studies


def test_all_or_no_study_gives_a_split():
    with pytest.raises(InputError, match=r"1 of 2 studies give a split.*'b' gives none"):
        SPLITS.assign(manifest_of(study("a", split="train"), study("b")))


@pytest.mark.parametrize(("val", "test"), [(0.5, 0.5), (-0.1, 0.2), (0.2, -0.1), (1.0, 0.0)])
def test_shares_leave_something_for_training(val, test):  # D48
    with pytest.raises(InputError, match="leave something for training"):
        SubjectSplits(val=val, test=test)


def test_no_share_is_no_study():
    splits = split_of(
        SubjectSplits(val=0.0, test=0.0).assign(manifest_of(*(study(f"s{i}") for i in range(50))))
    )
    assert set(splits.values()) == {"train"}


# ---------------------------------------------------------------- folds


def folds_of(manifest, folds, val=0.2):
    return [
        split_of(SubjectSplits(val=val, test=0.2, folds=folds, fold=fold).assign(manifest))
        for fold in range(folds)
    ]


@pytest.mark.parametrize(("num_subjects", "folds"), [(12, 3), (11, 5), (50, 4), (5, 5)])
def test_each_subject_is_in_the_test_of_one_fold(num_subjects, folds):
    manifest = manifest_of(*(study(f"s{index}") for index in range(num_subjects)))
    tests = [
        {name for name, split in one.items() if split == "test"}
        for one in folds_of(manifest, folds)
    ]
    assert set().union(*tests) == set(manifest.ids)
    assert sum(map(len, tests)) == num_subjects
    assert max(map(len, tests)) - min(map(len, tests)) <= 1


def test_a_fold_has_something_of_everything():
    manifest = manifest_of(*(study(f"s{index}") for index in range(11)))
    for splits in folds_of(manifest, 3, val=0.1):
        assert set(splits.values()) == {"train", "val", "test"}


def test_a_fold_keeps_a_subjects_studies_together():  # D47
    studies = [study(f"{kind}{index}", f"s{index}") for index in range(20) for kind in "ab"]
    for fold in range(4):
        chosen = SubjectSplits(val=0.2, test=0.2, folds=4, fold=fold)
        check_splits(chosen.assign(manifest_of(*studies)))


def test_a_fold_wins_over_the_splits_that_the_source_brings():
    manifest = manifest_of(*(study(f"s{index}", split="train") for index in range(10)))
    chosen = SubjectSplits(val=0.2, test=0.2, folds=5, fold=0)
    assert set(split_of(chosen.assign(manifest)).values()) == {"train", "val", "test"}


def test_a_single_fold_is_told_without_a_choice_that_there_is_not():
    with pytest.raises(InputError, match=r"data\.splits\.folds=1 must be at least 2") as error:
        SubjectSplits(val=0.1, test=0.1, folds=1, fold=0)
    assert "data.fold" not in str(error.value)


@pytest.mark.parametrize(("folds", "fold"), [(5, 5), (5, -1)])
def test_a_fold_that_there_is_not_is_an_error(folds, fold):
    with pytest.raises(InputError, match=rf"data\.fold={fold} must be one of 0 to"):
        SubjectSplits(val=0.1, test=0.1, folds=folds, fold=fold)


def test_more_folds_than_subjects_is_an_error():
    chosen = SubjectSplits(val=0.1, test=0.1, folds=5, fold=0)
    with pytest.raises(InputError, match="3 subjects cannot be dealt into"):
        chosen.assign(manifest_of(study("a"), study("b"), study("c")))


# ---------------------------------------------------------------- splits without a study


@pytest.mark.parametrize(
    ("splits", "cures"),
    [
        (
            SubjectSplits(val=0.2, test=0.2),
            ("Lower data.splits.val and", "Raise data.splits.val, or change data.splits.salt."),
        ),
        (SubjectSplits(val=0.0, test=0.2, fold=1), ("Lower data", "Raise data.splits.val.")),
        (
            ListedSplits(train=["a"], val=[], test=["b"]),
            ("List some studies in data.splits.train.", "List some studies in data.splits.val."),
        ),
    ],
)
def test_the_cure_of_an_empty_split_is_that_of_the_splits_that_were_asked_for(splits, cures):
    manifest = splits.assign(manifest_of(*(study(name) for name in "abcde")))
    assert manifest.cures["train"].startswith(cures[0])
    assert manifest.cures["val"] == cures[1]


def test_the_cure_of_an_empty_split_of_the_source_is_in_the_source():
    manifest = SPLITS.assign(manifest_of(study("a", split="train")))
    assert manifest.cures["test"] == "The source gives the splits: let some studies be test."


# ---------------------------------------------------------------- lists


def test_a_fold_of_lists_is_an_error():
    with pytest.raises(InputError, match=r"data\.fold=1 deals .*Leave one of the two out"):
        ListedSplits(train=["a"], val=["b"], test=["c"], fold=1)


def test_a_fold_reaches_whatever_splits_are_chosen():
    folder = CONF / "splits"
    for path in folder.glob("*.yaml"):
        assert OmegaConf.to_container(OmegaConf.load(path))["fold"] == "${data.fold}"


def test_an_id_that_yaml_took_for_a_number_is_told_with_quotes():  # S39
    with pytest.raises(InputError, match=r"data\.splits\.val takes names; got 202001.*quotes"):
        ListedSplits(train=["001"], val=[202001], test=["c"])


def test_a_list_that_is_no_text_file_is_told(tmp_path):
    (tmp_path / "val.txt").write_bytes(b"\xff\xfea\x00")
    chosen = ListedSplits(train=["a"], val=str(tmp_path / "val.txt"), test=[])
    with pytest.raises(InputError, match=r"data\.splits\.val=.*val\.txt is not UTF-8"):
        chosen.assign(manifest_of(study("a")))


def test_lists_decide_and_the_rest_is_left_out(tmp_path):  # S10
    (tmp_path / "val.txt").write_text("002\n\n")
    chosen = ListedSplits(train=["001", "01"], val=str(tmp_path / "val.txt"), test=["4"])
    manifest = manifest_of(*(study(name) for name in ("4", "002", "001", "01", "1")))
    assert split_of(chosen.assign(manifest)) == {
        "4": "test", "002": "val", "001": "train", "01": "train",
    }  # fmt: skip


def test_a_study_in_two_lists_is_an_error():  # S10
    chosen = ListedSplits(train=["a"], val=["b"], test=["a"])
    with pytest.raises(
        InputError, match=r"'a' is in data\.splits\.train and in data\.splits\.test"
    ):
        chosen.assign(manifest_of(study("a"), study("b")))


def test_a_listed_study_that_there_is_not_shows_both_sides():  # S39
    chosen = ListedSplits(train=["1"], val=["b"], test=[])
    with pytest.raises(InputError, match=r"for example \['1'\]; it has for example \['001', 'b'\]"):
        chosen.assign(manifest_of(study("001"), study("b")))


def test_labels_are_spoken_of_where_a_listed_study_may_lack_one():
    chosen = ListedSplits(train=["a"], val=["c"], test=[])
    manifest = manifest_of(study("a"), study("b"))
    with pytest.raises(InputError, match=r"Correct the lists\.$") as error:
        chosen.assign(manifest)
    assert "label" not in str(error.value)
    labels = Labels(
        names=("sex",), task="binary", classes=("f", "m"), values=np.zeros((2, 1), np.float32)
    )
    with pytest.raises(InputError, match=r"no label,.* or set data\.labels\.unlabelled=mask\.$"):
        chosen.assign(replace(manifest, labels=labels))


@pytest.mark.parametrize(
    "chosen",
    [
        SubjectSplits(val=0.2, test=0.2, folds=2, fold=0),
        ListedSplits(train=["a"], val=["b"], test=["c"]),
    ],
)
def test_splits_of_the_source_are_not_overruled_in_silence(chosen, said):
    chosen.assign(manifest_of(*(study(name, split="train") for name in "abcd")))
    assert "the splits of the source are not read" in said.text


def test_a_fold_is_a_whole_number():
    with pytest.raises(InputError, match=r"data\.fold=True"):
        SubjectSplits(val=0.1, test=0.1, fold=True)
