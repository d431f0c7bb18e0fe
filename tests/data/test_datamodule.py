"""Scans on disk become batches; a bad scan stops the run, or only its own studies are left out."""

from __future__ import annotations

import gzip
import shutil

import pytest
import torch

from neuro.data.augment import Augment
from neuro.data.cache import TooManyFailedScans
from neuro.data.cohort import BidsCohort
from neuro.data.collate import ConversationCollator
from neuro.data.datamodule import StudyDataModule
from neuro.data.manifest import SubjectSplits
from neuro.data.sampler import BatchBudget
from neuro.data.text import TextEncoder
from neuro.errors import InputError

QUESTIONS = ["sex", "lesion"]


@pytest.fixture(scope="module")
def make(phantom_root, recipes, question_book, text):
    def make(*, root=phantom_root, **changes):
        splits = SubjectSplits(val=0.25, test=0.25)
        arguments = {
            "cohort": BidsCohort(root, QUESTIONS, question_book, splits),
            "recipes": recipes,
            "cache_dir": root.parent / "cache",
            "collate": ConversationCollator(text, min_foreground=0.02),
            "budget": BatchBudget(max_studies=4, max_tokens=64),
            "augment": Augment(),
            "max_failed": 0.0,
            "num_workers": 0,
            "seed": 1,
        }
        return StudyDataModule(**{**arguments, **changes})

    return make


@pytest.fixture(scope="module")
def ready(make):
    datamodule = make()
    datamodule.prepare_data()
    return datamodule


@pytest.fixture
def root(phantom_root, tmp_path):
    """A copy of the phantoms' T1 and tables that may be damaged."""
    root = tmp_path / "bids"
    shutil.copytree(phantom_root, root, ignore=shutil.ignore_patterns("func", "dwi"))
    return root


def t1_of(root, subject):
    return root / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz"


def break_in(path, how):
    if how == "missing":
        path.unlink()
        path.symlink_to(path.with_name("absent"))  # as git-annex leaves it
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif how == "text":
        path.write_bytes(gzip.compress(b"Dear colleague, " * 100))


def assert_same(one, two):
    assert one.study_ids == two.study_ids
    assert torch.equal(one.input_ids, two.input_ids)
    assert one.volumes.keys() == two.volumes.keys()
    for modality, packed in one.volumes.items():
        assert torch.equal(packed.tokens, two.volumes[modality].tokens)


def ids_of(loader):
    return [name for batch in loader for name in batch.study_ids]


# ---------------------------------------------------------------- batches


def test_every_study_of_a_split_is_in_its_loader(ready):  # D53
    loaders = {
        "train": ready.train_dataloader(),
        "val": ready.val_dataloader(),
        "test": ready.test_dataloader()[0],
    }
    for split, loader in loaders.items():
        expected = {study.id for study in ready.manifest.split(split)}
        ids = ids_of(loader)
        assert set(ids) == expected
        assert len(ids) == len(expected)


def test_splits_share_no_subject(ready):  # D47
    subjects = [
        {subject for study in ready.studies[split] for subject in study.subjects}
        for split in ("train", "val", "test")
    ]
    assert not subjects[0] & subjects[1]
    assert not subjects[0] & subjects[2]
    assert not subjects[1] & subjects[2]


def test_only_training_is_shuffled_and_augmented(make, ready):
    datamodule = make(augment=Augment(max_gain_change=0.5))
    assert datamodule.dataset("train").augment is not None
    for split, loader in (
        ("val", datamodule.val_dataloader()),
        ("test", datamodule.test_dataloader()[0]),
    ):
        assert datamodule.dataset(split).augment is None
        assert ids_of(loader) == [study.id for study in datamodule.studies[split]]


def test_the_plan_is_what_the_loader_gives(ready):
    loader = ready.train_dataloader()
    for epoch in (0, 1):
        loader.batch_sampler.sampler.set_epoch(epoch)
        (plan,) = ready.plan("train", epoch=epoch, world_size=1)
        studies = ready.studies["train"]
        planned = [[studies[place].id for place in batch] for batch in plan]
        assert [list(batch.study_ids) for batch in loader] == planned


def test_another_process_gives_the_same_batches(ready, make):
    other = make()
    other.prepare_data()
    for one, two in zip(ready.train_dataloader(), other.train_dataloader(), strict=True):
        assert_same(one, two)


def test_workers_give_the_same_batches(ready, make):
    other = make(num_workers=2)
    for one, two in zip(ready.val_dataloader(), other.val_dataloader(), strict=True):
        assert_same(one, two)


def test_the_second_test_loader_shows_other_images_below_the_same_text(ready):
    own, control = ready.test_dataloader()
    assert set(ids_of(control)) == set(ids_of(own))
    for row, study in enumerate(control.dataset.studies):
        shown = control.dataset[row, 0]
        assert shown.study.conversation == study.conversation
        assert not torch.equal(shown.tokens, own.dataset[row, 0].tokens)


# ---------------------------------------------------------------- bad scans


@pytest.mark.parametrize("how", ["missing", "empty", "cut", "text"])
def test_a_bad_scan_stops_the_run_and_is_named(make, root, how):  # D50
    path = t1_of(root, "0004")
    break_in(path, how)
    with pytest.raises(TooManyFailedScans, match="1 of 20 scans cannot be used") as caught:
        make(root=root).prepare_data()
    assert str(path) in str(caught.value)


def test_a_run_in_the_place_of_a_volume_stops_the_run(make, root, phantom_root):  # D50
    runs = sorted(phantom_root.rglob("*_bold.nii.gz"))
    shutil.copy(runs[0], t1_of(root, "0004"))
    with pytest.raises(TooManyFailedScans, match=r"sub-0004_T1w.*single volume"):
        make(root=root).prepare_data()


def test_tolerated_scans_take_only_their_own_studies_along(make, root, said):  # D50
    broken = {"0004": "empty", "0009": "cut"}
    for subject, how in broken.items():
        break_in(t1_of(root, subject), how)
    datamodule = make(root=root, max_failed=0.1)
    datamodule.prepare_data()
    left = {study.id for studies in datamodule.studies.values() for study in studies}
    listed = {study.id for study in datamodule.manifest.studies}
    assert listed - left == {
        f"sub-{subject}_T1w.{name}" for subject in broken for name in ("sex", "lesion")
    }
    ledger = (datamodule.cache.root / "failures.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in ledger[1:]] == [
        str(t1_of(root, subject)) for subject in broken
    ]
    assert "studies left out, see failures.tsv" in said.text
    assert set(ids_of(datamodule.train_dataloader())) <= left


def test_one_scan_too_many_stops_the_run(make, root):  # D50
    for subject in ("0004", "0009", "0012"):
        break_in(t1_of(root, subject), "empty")
    with pytest.raises(TooManyFailedScans, match=r"3 of 20 .*\n?.*max_failed=0\.1 allows 2"):
        make(root=root, max_failed=0.1).prepare_data()


def test_a_scan_that_goes_bad_later_leaves_and_comes_back(make, root, phantom_root):  # D50
    whole = make(root=root)
    whole.prepare_data()
    before = {study.id for studies in whole.studies.values() for study in studies}
    assert len(before) == 20 * 2
    path = t1_of(root, "0004")
    break_in(path, "empty")
    without = make(root=root, max_failed=0.1)
    without.prepare_data()
    left = {study.id for studies in without.studies.values() for study in studies}
    assert before - left == {"sub-0004_T1w.sex", "sub-0004_T1w.lesion"}
    shutil.copy(t1_of(phantom_root, "0004"), path)
    mended = make(root=root)
    mended.prepare_data()
    assert {study.id for studies in mended.studies.values() for study in studies} == before


# ---------------------------------------------------------------- mistakes of the user


def test_a_text_that_is_too_long_stops_before_training(make, text):  # D31
    short = TextEncoder(text.tokenizer, chat_format="chatml", image_token="<image>", max_length=12)
    with pytest.raises(InputError, match=r"data\.max_length is 12\. Raise it to \d+"):
        make(collate=ConversationCollator(short, min_foreground=0.02)).prepare_data()


def test_an_empty_split_is_an_error_with_a_cure(make, phantom_root, question_book):
    cohort = BidsCohort(phantom_root, QUESTIONS, question_book, SubjectSplits(val=0.0, test=0.2))
    with pytest.raises(InputError, match=r"the val split has no study.*data\.splits\.val"):
        make(cohort=cohort).prepare_data()


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_the_tolerated_share_is_a_share(make, share):
    with pytest.raises(InputError, match=r"data\.max_failed must be a share"):
        make(max_failed=share)
