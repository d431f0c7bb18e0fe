"""An item is a pure function of (seed, epoch, study, series), and shows the right image."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.data import DataLoader

from neuro.data.augment import Augment
from neuro.data.dataset import SeriesDataset, donors, draw_seed
from neuro.data.tokens import untokenize

LIVELY = Augment(flip_probability=0.5, max_gain_change=0.5)


def dataset_of(studies, cache, augment=LIVELY, seed=1, **more):
    return SeriesDataset(studies, cache, augment=augment, seed=seed, **more)


def first(items):
    return items[0]


@pytest.fixture(scope="module")
def images(studies):
    """Five studies of one T1 each."""
    return [study for study in studies if study.modalities == ("T1",)][:5]


@pytest.fixture(scope="module")
def runs(studies):
    return [study for study in studies if study.modalities == ("rsfMRI",)][:4]


def drawn(dataset, epoch):
    """Return what each item of an epoch looks like."""
    return [dataset[row, epoch].tokens for row in range(len(dataset))]


def same(one, two):
    return [torch.equal(a, b) for a, b in zip(one, two, strict=True)]


# ---------------------------------------------------------------- what is drawn


def test_the_same_draw_gives_the_same_item(images, runs, built_cache):  # D52
    for members in (images, runs):
        one, two = (dataset_of(members, built_cache) for _ in range(2))
        assert all(same(drawn(one, 3), drawn(two, 3)))
        backwards = [two[row, 3].tokens for row in reversed(range(len(two)))]
        assert all(same(drawn(one, 3), backwards[::-1]))


def test_another_epoch_or_seed_gives_another_item(images, runs, built_cache):  # D52
    for members in (images, runs):
        dataset = dataset_of(members, built_cache)
        assert not any(same(drawn(dataset, 0), drawn(dataset, 1)))
        assert not any(same(drawn(dataset, 0), drawn(dataset_of(members, built_cache, seed=2), 0)))


def test_every_sample_is_changed_in_its_own_way(images, built_cache):  # D52
    changed = drawn(dataset_of(images, built_cache, Augment(max_gain_change=0.5)), 0)
    plain = drawn(dataset_of(images, built_cache, None), 0)
    gains = [float(a.float().sum() / b.float().sum()) for a, b in zip(changed, plain, strict=True)]
    assert len({round(gain, 3) for gain in gains}) == len(images)


def test_two_images_of_one_scan_are_changed_in_their_own_ways(images, built_cache):  # D52
    study = images[0]
    twice = dataclasses.replace(study, series=study.series * 2)
    dataset = dataset_of([twice], built_cache, Augment(max_gain_change=0.5))
    assert not torch.equal(dataset[0, 0].tokens, dataset[1, 0].tokens)


def test_a_draw_depends_on_each_of_its_names():  # D52
    seeds = {
        draw_seed(seed, epoch, study, index)
        for seed in (0, 1, 11)
        for epoch in (0, 1, 11)
        for study in ("a", "1", "1|1")
        for index in (0, 1)
    }
    assert len(seeds) == 3 * 3 * 3 * 2
    assert min(seeds) >= 0
    torch.Generator().manual_seed(max(seeds))


def test_the_place_of_a_study_does_not_change_its_draw(images, built_cache):  # D52
    whole = drawn(dataset_of(images, built_cache), 5)
    part = drawn(dataset_of(images[3:5], built_cache), 5)
    assert all(same(whole[3:5], part))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_draw_what_one_process_draws(images, runs, built_cache, num_workers):  # D52
    dataset = dataset_of([*images[:3], *runs[:3]], built_cache)
    keys = [(row, epoch) for epoch in (0, 1) for row in range(len(dataset))]
    torch.manual_seed(0)
    loader = DataLoader(
        dataset, batch_size=1, sampler=keys, num_workers=num_workers, collate_fn=first
    )
    assert all(same([item.tokens for item in loader], [dataset[key].tokens for key in keys]))


def test_the_state_of_the_process_does_not_matter(images, built_cache):  # D52
    dataset = dataset_of(images, built_cache)
    torch.manual_seed(0)
    one = drawn(dataset, 0)
    torch.manual_seed(1)
    torch.rand(7)
    assert all(same(one, drawn(dataset, 0)))


# ---------------------------------------------------------------- what is shown


def test_without_augmentation_the_cache_is_shown(images, built_cache):
    dataset = dataset_of(images, built_cache, None)
    recipe = built_cache.recipes["T1"]
    for row, study in enumerate(images):
        item = dataset[row, 0]
        assert torch.equal(
            untokenize(item.tokens, (2, 2, 2), recipe.patch), built_cache.read(study.series[0])
        )
        assert item.study.id == study.id
        assert item.modality == "T1"
        assert len(item.tokens) == len(item.coords) == len(item.foreground) == 8


def test_evaluation_takes_the_middle_of_a_run_in_every_epoch(runs, built_cache):
    dataset = dataset_of(runs, built_cache, None)
    recipe = built_cache.recipes["rsfMRI"]
    grid = (2, 2, 2, 2)
    for row, study in enumerate(runs):
        frames = built_cache.read(study.series[0])
        start = (len(frames) - 8) // 2
        shown = untokenize(dataset[row, 0].tokens, grid, recipe.patch)
        assert torch.equal(shown, frames[start : start + 8].movedim(0, -1))
    assert all(same(drawn(dataset, 0), drawn(dataset, 9)))


def test_training_takes_every_window_of_a_run(runs, built_cache):  # D42 D43
    dataset = dataset_of(runs[:1], built_cache, Augment())
    frames = built_cache.read(runs[0].series[0])
    windows = [frames[start : start + 8].movedim(0, -1) for start in range(len(frames) - 7)]
    assert len(windows) > 1
    found = set()
    for epoch in range(30):
        shown = untokenize(
            dataset[0, epoch].tokens, (2, 2, 2, 2), built_cache.recipes["rsfMRI"].patch
        )
        found |= {start for start, window in enumerate(windows) if torch.equal(shown, window)}
    assert found == set(range(len(windows)))


def test_a_flip_moves_the_foreground_with_the_voxels(runs, images, built_cache):
    always = Augment(flip_probability=1.0)
    for member in (runs[0], images[0]):
        dataset = dataset_of([member], built_cache, always)
        shares = built_cache.foreground(member.series[0])
        grid = (2, 2, 2, 2) if member is runs[0] else (2, 2, 2)
        item = dataset[0, 0]
        assert torch.equal(item.foreground.reshape(grid), shares.reshape(grid).flip(0))
        assert torch.equal(item.coords, dataset_of([member], built_cache, None)[0, 0].coords)


# ---------------------------------------------------------------- the control


def test_a_control_shows_another_subject_below_the_same_text(studies, built_cache):
    pairs = donors(studies)
    assert pairs.keys() == {study.id for study in studies}
    members = [study for study in studies if study.modalities == ("T1",)]
    dataset = dataset_of(members, built_cache, None, donors=pairs)
    for row, study in enumerate(members):
        item = dataset[row, 0]
        donor = pairs[study.id]
        assert not set(donor.subjects) & set(study.subjects)
        assert donor.modalities == study.modalities
        assert item.study.conversation == study.conversation
        own = dataset_of([donor], built_cache, None)[0, 0]
        assert torch.equal(item.tokens, own.tokens)


def test_a_control_uses_each_image_about_once(studies):
    members = [study for study in studies if study.modalities == ("T1",)]
    pairs = donors(members)
    assert len({donor.id for donor in pairs.values()}) == len(members)


def test_nobody_to_give_images_leaves_a_study_out(studies):
    alone = [study for study in studies if study.subjects == studies[0].subjects]
    assert donors(alone) == {}
