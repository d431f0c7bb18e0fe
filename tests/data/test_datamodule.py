"""Scans on disk become batches; a bad scan stops the run, or only its own studies are left out."""

from __future__ import annotations

import dataclasses
import gzip
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from neuro.command import CONF
from neuro.data.augment import Augment
from neuro.data.bids_cohort import BidsCohort
from neuro.data.cache import TooManyFailedScans
from neuro.data.cohort import MixedCohorts
from neuro.data.collate import Background, ConversationCollator, StudyCollator
from neuro.data.conversation import Turn
from neuro.data.datamodule import StudyDataModule
from neuro.data.labels import Labels
from neuro.data.leaks import LeakError
from neuro.data.manifest import Manifest, Series, Study
from neuro.data.sampler import BatchBudget
from neuro.data.splits import SubjectSplits
from neuro.data.text import TextEncoder
from neuro.data.windows import Windows
from neuro.errors import InputError, ScanError

QUESTIONS = ["sex", "lesion"]
DRAWN = Windows(stride_between_seq=None)


@pytest.fixture(scope="module")
def make(phantom_root, recipes, question_book, text):
    def make(*, root=phantom_root, **changes):
        splits = SubjectSplits(val=0.25, test=0.25)
        arguments = {
            "cohort": BidsCohort(root, QUESTIONS, question_book, splits),
            "recipes": recipes,
            "cache_dir": root.parent / "cache",
            "collate": ConversationCollator(text, Background(min_foreground=0.02)),
            "budget": BatchBudget(max_studies=4, max_tokens=64),
            "augment": Augment(),
            "windows": DRAWN,
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
        assert_same_volumes(packed, two.volumes[modality])


def assert_same_volumes(one, two):
    for field in dataclasses.fields(one):
        mine, yours = getattr(one, field.name), getattr(two, field.name)
        assert torch.equal(mine, yours) if isinstance(mine, torch.Tensor) else mine == yours


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
    datamodule = make(augment=Augment(contrast=0.5))
    assert datamodule.dataset("train").augment is not None
    assert next(iter(datamodule.train_dataloader())).volumes["T1"].intensity is not None
    for split, loader in (
        ("val", datamodule.val_dataloader()),
        ("test", datamodule.test_dataloader()[0]),
    ):
        assert datamodule.dataset(split).augment is None
        assert all(batch.volumes["T1"].intensity is None for batch in loader)
        assert ids_of(loader) == [study.id for study in datamodule.studies[split]]


def test_the_plan_is_what_the_loader_gives(ready):
    loader = ready.train_dataloader()
    for epoch in (0, 1):
        loader.batch_sampler.sampler.set_epoch(epoch)
        plan = ready.planned(ready.dataset("train")).plan(
            seed=ready.seed, epoch=epoch, world_size=1, shuffle=True
        )
        studies = ready.studies["train"]
        planned = [[studies[place].id for place in batch.tolist()] for batch in plan.rank(0)]
        assert [list(batch.study_ids) for batch in loader] == planned


def test_another_process_gives_the_same_batches(ready, make):
    other = make()
    other.prepare_data()
    for one, two in zip(ready.train_dataloader(), other.train_dataloader(), strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("split", ["train", "val"])
def test_workers_give_the_same_batches(make, split):  # D52, D53, S8
    lively = Augment(flip_front_back=0.5, contrast=0.3, noise=0.1)
    loaders = [
        getattr(make(num_workers=number, augment=lively), f"{split}_dataloader")()
        for number in (0, 2)
    ]
    for epoch in (0, 1):
        for loader in loaders:
            loader.batch_sampler.sampler.set_epoch(epoch)
        for one, two in zip(*loaders, strict=True):
            assert_same(one, two)


def test_the_controls_show_something_else_below_the_same_text(ready):
    own, *controls = ready.test_dataloader()
    assert [loader.dataset.control for loader in controls] == ["shuffled", "zero", "noise"]
    for control in controls:
        assert set(ids_of(control)) == set(ids_of(own))
        for row, study in enumerate(control.dataset.studies):
            shown = control.dataset[row, 0]
            assert shown.study.conversation == study.conversation
            assert not torch.equal(shown.tokens, own.dataset[row, 0].tokens)


def test_studies_that_the_controls_leave_out_are_counted(ready, said, monkeypatch):
    ready.test_dataloader()
    assert "the controls leave them out" not in said.text
    monkeypatch.setattr(ready, "_donors", lambda _: {0: 1, 1: 0})
    own, *controls = ready.test_dataloader()
    assert [len(one.dataset.studies) for one in controls] == [2, 2, 2]
    num = len(own.dataset.studies)
    assert num > 2
    says = f"{num - 2} of {num} test studies have no other subject's images; the controls leave"
    assert says in said.text


def test_one_subject_alone_has_no_controls(ready, said):
    whole = ready.studies["test"]
    try:
        ready.studies["test"] = whole.take([0])
        (own,) = ready.test_dataloader()
    finally:
        ready.studies["test"] = whole
    assert len(ids_of(own)) == 1
    assert "no controls: nobody in the test split can give images to anybody" in said.text


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
    listed = {study.id for study in datamodule.manifest}
    assert listed - left == {
        f"sub-{subject}_T1w.{name}" for subject in broken for name in ("sex", "lesion")
    }
    ledger = (datamodule.cache.root / "failures.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in ledger[1:]] == [
        str(t1_of(root, subject)) for subject in broken
    ]
    assert "4 studies are left out and 0 are shown without" in said.text
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


def spoiled(studies, *places):
    """Return studies whose series at (study, place) are files that hold no image."""
    changed = [list(study.series) for study in studies]
    for study, place in places:
        scan = changed[study][place]
        path = scan.path.with_name(f"spoiled-{scan.path.name}")
        path.write_bytes(b"no image")
        changed[study][place] = dataclasses.replace(scan, path=path)
    return [
        dataclasses.replace(study, series=tuple(series))
        for study, series in zip(studies, changed, strict=True)
    ]


def test_a_study_without_questions_is_shown_with_the_series_that_can_be_used(
    make_exams, clinical_studies, tmp_path, said
):  # S33
    """A label stays with what is left of its study; only a study without any image goes."""
    splits = ["train", "train", "val", "val", "test", "test"]
    studies = [
        dataclasses.replace(study, split=split)
        for study, split in zip(clinical_studies, splits, strict=True)
    ]
    lost_at_find = dataclasses.replace(studies[3], num_failed=1)
    studies = spoiled([*studies[:3], lost_at_find, *studies[4:]], (0, 0), (0, 1), (1, 0))
    cohort = Listed(studies, labels=[[number] for number in range(6)])
    datamodule = make_exams(cohort=cohort, max_failed=0.5, cache_dir=tmp_path / "cache")
    shown = {study.id: study for one in datamodule.studies.values() for study in one}
    assert shown.keys() == {"s1", "s2", "s3", "s4", "s5"}
    assert [series.name for series in shown["s1"].series] == ["t2", "flair"]
    assert [len(shown[f"s{number}"].series) for number in range(2, 6)] == [2, 3, 2, 3]
    assert [study.labels for study in shown.values()] == [(1.0,), (2.0,), (3.0,), (4.0,), (5.0,)]
    assert "1 studies are left out and 2 are shown without some of their series" in said.text
    (batch,) = datamodule.train_dataloader()
    assert batch.study_ids == ("s1",)
    assert batch.series_names == ("t2", "flair")


# ---------------------------------------------------------------- mistakes of the user


def limited(text, max_length, rule=0.02):
    return ConversationCollator(
        TextEncoder(
            text.tokenizer, chat_format="chatml", image_token="<image>", max_length=max_length
        ),
        Background(min_foreground=rule),
    )


def test_a_text_that_is_too_long_stops_before_anything_is_prepared(make, text, tmp_path):  # D31
    datamodule = make(collate=limited(text, 12), cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match=r"tokens of text .*1 images .*data\.max_length is 12"):
        datamodule.prepare_data()
    assert not (tmp_path / "cache").exists()


def test_a_text_that_is_too_long_with_its_image_stops_before_training(make, ready, text):  # D31
    longest = max(
        len(text(study.conversation, [8]).input_ids)
        for study in ready.manifest
        if study.conversation
    )
    make(collate=limited(text, longest)).prepare_data()
    with pytest.raises(InputError, match=rf"data\.max_length is {longest - 1}\. Raise it to"):
        make(collate=limited(text, longest - 1)).prepare_data()


def test_studies_that_nothing_is_asked_about_are_told_before_anything_is_prepared(
    make, clinical, clinical_studies, tmp_path
):
    splits = ["train", "val", "test"] * 2
    studies = [
        dataclasses.replace(one, split=split)
        for one, split in zip(clinical_studies, splits, strict=True)
    ]
    datamodule = make(cohort=Listed(studies), recipes=clinical, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match=r"study 's0' has no conversation.*Set data\.questions"):
        datamodule.prepare_data()
    assert not (tmp_path / "cache").exists()


def test_a_recipe_that_does_not_fit_the_system_is_told_before_anything_is_prepared(
    make, recipes, clinical, tmp_path
):
    follows = {**recipes, "T1": clinical["mri"]}
    datamodule = make(recipes=follows, cache_dir=tmp_path / "cache")
    with pytest.raises(InputError, match=r"images of T1 .*Take recipe@data\.recipes\.T1=cube_t1"):
        datamodule.prepare_data()
    assert not (tmp_path / "cache").exists()


def test_fewer_than_no_processes_cannot_read(make):
    with pytest.raises(InputError, match=r"data\.num_workers=-1 must be 0 or more"):
        make(num_workers=-1)


def test_an_empty_split_is_an_error_with_a_cure(make, root, question_book):
    table = root / "participants.tsv"  # which brings splits of its own
    rows = [line.split("\t") for line in table.read_text().splitlines()]
    place = rows[0].index("split")
    table.write_text("".join("\t".join(row[:place] + row[place + 1 :]) + "\n" for row in rows))
    cohort = BidsCohort(root, QUESTIONS, question_book, SubjectSplits(val=0.0, test=0.2))
    datamodule = make(cohort=cohort, cache_dir=root / "cache")
    with pytest.raises(InputError, match=r"the val split has no study.*Raise data\.splits\.val"):
        datamodule.prepare_data()
    assert not (root / "cache").exists()  # told before hours of preparing


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_the_tolerated_share_is_a_share(make, share):
    with pytest.raises(InputError, match=r"data\.max_failed must be a share"):
        make(max_failed=share)


# ---------------------------------------------------------------- how many tokens there are


def kept_of(datamodule, dataset):
    """Return how many tokens the collator keeps of each study, one study at a time."""
    counts = []
    for place in range(len(dataset.studies)):
        batch = datamodule.collate([dataset[row, 0] for row in dataset.rows_of(place)])
        volumes = batch.volumes
        volumes = volumes.values() if isinstance(volumes, dict) else [volumes]
        counts.append(sum(len(one.tokens) for one in volumes))
    return counts


@pytest.fixture(scope="module")
def make_fine(make, recipes, cohort, text, tmp_path_factory):
    """A cohort of all modalities on a grid of 4 x 4 x 4 tokens, some of them background."""
    patches = {"T1": (6, 6, 6), "dMRI": (6, 6, 6), "rsfMRI": (6, 6, 6, 4)}
    fine = {
        name: dataclasses.replace(recipes[name], patch=patch) for name, patch in patches.items()
    }
    cache_dir = tmp_path_factory.mktemp("fine")

    def make_fine(rule, **changes):
        datamodule = make(
            cohort=cohort,
            recipes=fine,
            cache_dir=cache_dir,
            collate=ConversationCollator(text, Background(min_foreground=rule)),
            **{"budget": BatchBudget(max_studies=40, max_tokens=400), **changes},
        )
        datamodule.prepare_data()
        return datamodule

    return make_fine


@pytest.mark.parametrize("rule", [0, 0.02, 0.4, "majority", "all"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_plan_counts_the_tokens_that_the_collator_keeps(make_fine, rule, split):  # S13
    datamodule = make_fine(rule)
    dataset = datamodule.dataset(split)
    counts = datamodule.planned(dataset).num_tokens.tolist()
    assert {study.modalities for study in dataset.studies} == {("T1",), ("dMRI",), ("rsfMRI",)}
    assert counts == kept_of(datamodule, dataset)
    if rule == 0:  # a run counts all its times
        assert set(counts) == {64, 128}
    elif rule == "majority":
        assert len(set(counts)) > 3
        assert max(counts) < 128


@pytest.mark.parametrize("control", ["shuffled", "zero", "noise"])
def test_a_control_counts_the_images_that_it_shows(make_fine, control):
    datamodule = make_fine("majority")
    dataset = datamodule.dataset("test", control=control)
    counts = datamodule.planned(dataset).num_tokens.tolist()
    assert counts == kept_of(datamodule, dataset)
    own = datamodule.planned(datamodule.dataset("test")).num_tokens.tolist()
    assert counts != own  # of a head's size nothing is left
    assert sorted(counts) == sorted(own)


def test_a_text_that_is_too_long_with_another_head_stops_before_training(
    make, make_fine, text
):  # D31
    ready = make_fine("majority")

    def lengths(datamodule, control=None):
        dataset = datamodule.dataset("test", control=control)
        counts = datamodule.planned(dataset).num_tokens.tolist()
        pairs = zip(dataset.studies, counts, strict=True)
        return {one.id: len(text(one.conversation, [count]).input_ids) for one, count in pairs}

    own, given = lengths(ready), lengths(ready, "shuffled")
    small = min(own, key=lambda name: own[name] - given[name])
    assert own[small] < given[small]

    def talkative(study):
        (image, ask), answer = study.conversation.turns[0].parts, study.conversation.turns[1]
        turns = (Turn("user", (image, f"{ask}{' left' * 300}")), answer)
        return dataclasses.replace(
            study, conversation=dataclasses.replace(study.conversation, turns=turns)
        )

    def limited_to(max_length):
        datamodule = make(
            cohort=ready.cohort,
            recipes=ready.cache.recipes,
            cache_dir=ready.cache.root,
            collate=limited(text, max_length, "majority"),
            budget=ready.budget,
        )
        studies = [talkative(one) if one.id == small else one for one in ready.manifest]
        datamodule.manifest = Manifest.of(studies)
        datamodule.prepare_data()
        return datamodule

    roomy = limited_to(4096)
    own, given = lengths(roomy), lengths(roomy, "shuffled")
    assert max(own.values()) == own[small] < given[small] == max(given.values())
    for loader in limited_to(given[small]).test_dataloader():
        assert len(ids_of(loader)) == len(own)
    with pytest.raises(InputError, match=rf"another subject's images.*Raise it to {given[small]},"):
        limited_to(own[small])


def test_no_batch_has_more_tokens_than_the_budget_whatever_is_drawn(make_fine):
    lively = Augment(crop_probability=0.3, max_crop=(4, 4, 4), flip_up_down=0.5)
    datamodule = make_fine(0.02, augment=lively)
    sizes = [
        sum(len(one.tokens) for one in batch.volumes.values())
        for batch in datamodule.train_dataloader()
    ]
    assert 200 < max(sizes) <= 400


# ---------------------------------------------------------------- windows of runs


def test_windows_of_runs_are_studies_of_their_own(make, phantom_root, question_book, text):
    splits = SubjectSplits(val=0.25, test=0.25)
    datamodule = make(
        cohort=BidsCohort(phantom_root, ["sex", "network"], question_book, splits),
        windows=Windows(stride_between_seq=0.5),
    )
    datamodule.prepare_data()
    for split, studies in datamodule.studies.items():
        listed = datamodule.manifest.split(split)
        runs = [study for study in listed if study.modalities == ("rsfMRI",)]
        assert runs
        for run in runs:
            own = [study for study in studies if study.id.startswith(f"{run.id}.window")]
            frames = datamodule.cache.facts(run.series)[run.series[0]].num_frames
            starts = [study.series[0].start for study in own]
            assert starts == list(range(0, frames - 8 + 1, 4))
            assert len(starts) > 1
            assert all(study.conversation == run.conversation for study in own)
        assert len(studies) == len(listed) + len(runs) * (len(starts) - 1)
    whole, _ = datamodule.cache.read(runs[0].series[0])
    shown = {}
    for batch in datamodule.test_dataloader()[0]:
        volumes = batch.volumes.get("rsfMRI")
        for name, (modality, place) in zip(batch.study_ids, batch.images, strict=True):
            if modality == "rsfMRI":
                start, stop = volumes.bounds[place : place + 2].tolist()
                shown[name] = volumes.tokens[start:stop]
    first, second = (shown[f"{runs[0].id}.window{number:03d}"] for number in range(2))
    late = whole[4:12].movedim(0, -1)[:12, :12, :12, :4].reshape(-1)
    assert not torch.equal(first, second)
    assert torch.equal(second[0], late)  # the second window begins four frames later


def test_a_run_without_a_window_is_told_before_training(make, phantom_root, question_book):
    """Its recipe saw eight frames; every third of them takes twenty-two."""
    splits = SubjectSplits(val=0.25, test=0.25)
    cohort = BidsCohort(phantom_root, ["network"], question_book, splits)
    for between in (None, 1.0):
        windows = Windows(stride_within_seq=3, stride_between_seq=between)
        with pytest.raises(
            InputError, match=r"rest_bold\.nii\.gz: the run has \d+ frames.*spans 22"
        ):
            make(cohort=cohort, windows=windows).prepare_data()


# ---------------------------------------------------------------- studies with labels


class Listed:
    """A source of studies that are known already."""

    def __init__(self, studies, *, labels=None, failures=()):
        manifest = Manifest.of(studies, failures)
        if labels is not None:
            values = np.array(labels, dtype=np.float32)
            names = tuple(f"finding {index}" for index in range(values.shape[1]))
            manifest = dataclasses.replace(manifest, labels=Labels(names, "multilabel", (), values))
        self._manifest = manifest

    def manifest(self):
        return self._manifest


@pytest.fixture(scope="module")
def make_exams(clinical, clinical_cache, clinical_studies):
    """Six studies of CT and MRI, two of each split; the first label of every second is unknown."""
    splits = ["train", "train", "val", "val", "test", "test"]
    studies = [
        dataclasses.replace(study, split=split)
        for study, split in zip(clinical_studies, splits, strict=True)
    ]
    labels = [[math.nan if number % 2 else 1.0, float(number > 2)] for number in range(6)]

    def make(**changes):
        arguments = {
            "cohort": Listed(studies, labels=labels),
            "recipes": clinical,
            "cache_dir": clinical_cache.root,
            "collate": StudyCollator(Background(min_foreground=0.1)),
            "budget": BatchBudget(max_studies=2, max_tokens=100_000),
            "augment": Augment(),
            "windows": Windows(),
            "window_probabilities": {"brain": 0.7, "blood": 0.15, "bone": 0.15},
            "max_failed": 0.0,
            "num_workers": 0,
            "seed": 1,
        }
        datamodule = StudyDataModule(**{**arguments, **changes})
        datamodule.prepare_data()
        return datamodule

    return make


def kinds_of(batch):
    return [
        batch.volumes.kinds[start:stop]
        for start, stop in zip(batch.study_bounds[:-1], batch.study_bounds[1:], strict=True)
    ]


def test_training_draws_one_ct_window_and_evaluation_shows_all(make_exams):  # S2, S43
    datamodule = make_exams()
    shown = set()
    loader = datamodule.train_dataloader()
    for epoch in range(40):
        loader.batch_sampler.sampler.set_epoch(epoch)
        (batch,) = loader
        found = dict(zip(batch.study_ids, kinds_of(batch), strict=True))
        assert {name: kinds[1:] for name, kinds in found.items()} == {
            "s0": ("mri",),
            "s1": ("mri", "mri"),
        }
        shown |= {kinds[0] for kinds in found.values()}
    assert shown == {"brain", "blood", "bone"}
    for loader in (datamodule.val_dataloader(), datamodule.test_dataloader()[0]):
        for _ in range(2):
            (batch,) = loader
            windows = ("brain", "blood", "bone")
            assert kinds_of(batch) == [(*windows, "mri"), (*windows, "mri", "mri")]
            ct = batch.series_names[:3]
            assert ct == ("ct.brain", "ct.blood", "ct.bone")


def test_labels_travel_with_their_study_and_unknown_ones_stay_unknown(make_exams):  # S40 S41
    datamodule = make_exams()
    for loader in (datamodule.train_dataloader(), datamodule.val_dataloader()):
        (batch,) = loader
        for name, labels in zip(batch.study_ids, batch.labels, strict=True):
            number = int(name[1:])
            assert bool(labels[0].isnan()) == bool(number % 2)
            assert float(labels[1]) == float(number > 2)


@pytest.mark.parametrize("rule", [0.0, 0.1, "any", "majority", "all"])
@pytest.mark.parametrize("probabilities", [{"brain": 1.0}, None])
def test_a_plan_counts_each_window_that_is_shown(make_exams, rule, probabilities):  # S13, S43
    datamodule = make_exams(
        collate=StudyCollator(Background(min_foreground=rule)),
        window_probabilities=probabilities,
    )
    for split in ("train", "val"):
        dataset = datamodule.dataset(split)
        counts = datamodule.planned(dataset).num_tokens.tolist()
        assert counts == kept_of(datamodule, dataset)
    drawn = datamodule.planned(datamodule.dataset("train")).num_tokens
    datamodule.window_probabilities = None
    assert (datamodule.planned(datamodule.dataset("train")).num_tokens > drawn).all() == bool(
        probabilities
    )


def test_workers_give_the_same_studies(make_exams):  # S8, D52, D53
    lively = Augment(
        crop_probability=0.5, flip_up_down=0.5, transpose_probability=0.5, gamma=0.3, noise=0.1
    )
    collate = StudyCollator(Background(min_foreground=0.1, patch_drop_rate=0.3))
    loaders = [
        make_exams(augment=lively, collate=collate, num_workers=number).train_dataloader()
        for number in (0, 2)
    ]
    for epoch in range(3):
        for loader in loaders:
            loader.batch_sampler.sampler.set_epoch(epoch)
        for one, two in zip(*loaders, strict=True):
            assert_same_volumes(one.volumes, two.volumes)
            assert one.study_ids == two.study_ids
            assert one.series_names == two.series_names


def test_dropped_tokens_are_dropped_in_training_only(make_exams):  # S20
    whole, half = (
        make_exams(collate=StudyCollator(Background(min_foreground=0.1, patch_drop_rate=rate)))
        for rate in (0.0, 0.5)
    )
    sizes = [
        [len(next(iter(loader)).volumes.tokens) for loader in (
            one.train_dataloader(), one.val_dataloader(), one.test_dataloader()[0]
        )]
        for one in (whole, half)
    ]  # fmt: skip
    assert 0.4 < sizes[1][0] / sizes[0][0] < 0.6
    assert sizes[1][1:] == sizes[0][1:]


def test_an_image_of_background_only_is_told_before_training(
    make_exams, save_nifti, tmp_path, clinical
):  # S13, S45
    """A CT of a phantom's table: one block of matter in a corner of a large field of air."""
    voxels = np.full((32, 32, 32), -1000.0, np.float32)
    voxels[1, 1, 1] = 40.0
    path = save_nifti(tmp_path / "table.nii.gz", voxels, spacing_mm=4.0)
    series = Series(subject="t", modality="ct", path=path)
    others = [study for study in make_exams().manifest if study.split != "train"]
    unlabelled = [dataclasses.replace(study, labels=()) for study in others]
    empty = Study(id="empty", series=(series,), split="train")
    with pytest.raises(InputError, match=r"study 'empty', .*table\.nii\.gz: no token has a foreg"):
        make_exams(
            cohort=Listed([empty, *unlabelled]),
            cache_dir=tmp_path / "cache",
            collate=StudyCollator(Background(min_foreground="majority")),
        )


# ---------------------------------------------------------------- mixing


@pytest.fixture
def mixed(make, phantom_root, question_book, recipes, text, tmp_path):
    """Two cohorts, the subjects shared out between them."""

    def build(**changes):
        cohorts = {}
        for name, parity in (("even", 0), ("odd", 1)):
            whole = BidsCohort(
                phantom_root, ["sex", "tract"], question_book, SubjectSplits(val=0.25, test=0.25)
            ).manifest()
            own = [study for study in whole if int(study.subjects[0]) % 2 == parity]
            cohorts[name] = Listed(own)
        return make(cohort=MixedCohorts(cohorts), cache_dir=tmp_path / "cache", **changes)

    return build


def test_an_epoch_shows_a_cohort_as_often_as_its_weight(mixed):
    datamodule = mixed(weights={"even": 2.0, "odd": 0.5})
    datamodule.prepare_data()
    train = datamodule.studies["train"]
    sizes = {name: train.studies["cohort"].to_pylist().count(name) for name in ("even", "odd")}
    loader = datamodule.train_dataloader()
    for epoch in range(4):
        loader.batch_sampler.sampler.set_epoch(epoch)
        ids = ids_of(loader)
        even = [name for name in ids if name.startswith("even/")]
        odd = [name for name in ids if name.startswith("odd/")]
        assert len(even) == 2 * sizes["even"]
        assert abs(len(odd) - sizes["odd"] / 2) <= 1
        assert {even.count(name) for name in even} == {2}
        assert {odd.count(name) for name in odd} == {1}
    val = ids_of(datamodule.val_dataloader())
    assert val == datamodule.studies["val"].ids


def test_a_cohort_without_a_weight_is_shown_once(mixed):
    datamodule = mixed(weights={"odd": 0.0})
    datamodule.prepare_data()
    even = [name for name in datamodule.studies["train"].ids if name.startswith("even/")]
    assert sorted(ids_of(datamodule.train_dataloader())) == sorted(even)


def test_a_weight_of_a_cohort_that_there_is_not_is_an_error(mixed):
    datamodule = mixed(weights={"evn": 2.0})
    with pytest.raises(InputError, match=r"data\.weights names evn; the cohorts are even, odd"):
        datamodule.prepare_data()
    assert not datamodule.cache.root.exists()


def test_batches_of_one_kind_never_mix_modalities(mixed):
    budget = BatchBudget(max_studies=4, max_tokens=64, same_modalities=True)
    datamodule = mixed(budget=budget)
    datamodule.prepare_data()
    loader = datamodule.train_dataloader()
    kinds = [set(batch.modalities) for batch in loader]
    assert {len(one) for one in kinds} == {1}
    assert set.union(*kinds) == {("T1",), ("dMRI",)}
    assert sorted(ids_of(loader)) == sorted(datamodule.studies["train"].ids)


# ---------------------------------------------------------------- the same voxels


def test_the_same_voxels_under_another_name_in_another_split_stop_the_run(
    make, root, phantom_root
):  # S10
    """Copied to another subject, as when a person is enrolled twice."""
    manifest = make(root=root).manifest
    split_of = {study.subjects[0]: study.split for study in manifest}
    one = next(name for name, split in split_of.items() if split == "train")
    other = next(name for name, split in split_of.items() if split == "test")
    shutil.copy(t1_of(root, one), t1_of(root, other))
    datamodule = make(root=root)
    with pytest.raises(LeakError, match=r"voxels: 1.*leaks\.tsv") as caught:
        datamodule.prepare_data()
    rows = (datamodule.cache.root / "leaks.tsv").read_text().splitlines()
    assert len(rows) == 1 + len(caught.value.pairs) == 2
    assert rows[1].startswith("voxels\t")
    assert one in rows[1]
    assert other in rows[1]
    assert "\ttrain" in rows[1]
    assert "\ttest" in rows[1]


def test_the_same_voxels_within_a_split_are_no_leak(make, root):
    split_of = {study.subjects[0]: study.split for study in make(root=root).manifest}
    one, other = [name for name, split in split_of.items() if split == "train"][:2]
    shutil.copy(t1_of(root, one), t1_of(root, other))
    datamodule = make(root=root)
    datamodule.prepare_data()
    assert not (datamodule.cache.root / "leaks.tsv").exists()


def test_a_subject_in_two_splits_stops_the_run_and_writes_the_pairs(make, tmp_path):  # D47 S10
    series = Series(subject="p", modality="T1", path=tmp_path / "a.nii")
    studies = [
        Study(id="a", series=(series,), split="train"),
        Study(id="b", series=(dataclasses.replace(series, path=tmp_path / "b.nii"),), split="val"),
    ]

    class Leaking:
        def manifest(self):
            from neuro.data.leaks import check_splits

            manifest = Manifest.of(studies)
            check_splits(manifest)
            return manifest

    datamodule = make(cohort=Leaking(), cache_dir=tmp_path / "cache")
    with pytest.raises(LeakError, match=r"subject: 1.*All 1 pairs are in .*leaks\.tsv"):
        datamodule.prepare_data()
    assert len((tmp_path / "cache" / "leaks.tsv").read_text().splitlines()) == 2


# ---------------------------------------------------------------- how many may be bad


def test_five_in_a_hundred_are_tolerated_by_default():  # D50, S11
    base = OmegaConf.load(Path(CONF) / "data" / "base.yaml")
    assert base.max_failed == 0.05
    assert OmegaConf.to_container(base)["datamodule"]["max_failed"] == "${data.max_failed}"


def test_what_the_source_could_not_use_counts_too(make_exams, clinical_studies, said):  # D50, S11
    splits = ["train", "train", "val", "val", "test", "test"]
    studies = [
        dataclasses.replace(study, split=split)
        for study, split in zip(clinical_studies, splits, strict=True)
    ]
    num_scans = sum(len(study.series) for study in studies)
    refused = ScanError(Path("/data/scout.dcm"), "find", "it is a localizer.", "Leave it out.")
    cohort = Listed(studies, failures=[refused])
    with pytest.raises(TooManyFailedScans, match=rf"1 of {num_scans + 1} scans cannot be used"):
        make_exams(cohort=cohort)
    datamodule = make_exams(cohort=cohort, max_failed=0.1)
    assert sum(map(len, datamodule.studies.values())) == 6
    assert "left out: /data/scout.dcm" in said.text


@pytest.mark.parametrize(
    "wrong", [{"brain": -1.0}, {"brain": 0.0, "bone": 0.0}, {"brain": math.inf}]
)
def test_window_probabilities_are_checked_at_once(make, wrong):  # S2
    with pytest.raises(InputError, match="window_probabilities takes"):
        make(window_probabilities=wrong)
