"""An item is a pure function of (seed, epoch, study, series), and shows the right image."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.data import DataLoader

from neuro.data.augment import IDENTITY, Augment
from neuro.data.cache import Cache
from neuro.data.dataset import SeriesDataset, anatomical_axes, donors, draw_seed
from neuro.data.manifest import Manifest
from neuro.data.tokens import grid_coords, untokenize
from neuro.data.windows import Windows
from neuro.errors import InputError

LIVELY = Augment(
    crop_probability=0.5,
    max_crop=(2, 2, 2),
    flip_front_back=0.5,
    flip_up_down=0.5,
    contrast=0.5,
    noise=0.1,
)
DRAWN = Windows(stride_between_seq=None)
OFTEN = {"brain": 0.5, "blood": 0.25, "bone": 0.25}


def dataset_of(studies, cache, augment=LIVELY, seed=1, windows=DRAWN, **more):
    return SeriesDataset(
        Manifest.of(studies), cache, augment=augment, seed=seed, windows=windows, **more
    )


def first(items):
    return items[0]


@pytest.fixture(scope="module")
def images(studies):
    """Five studies of one T1 each."""
    return [study for study in studies if study.modalities == ("T1",)][:5]


@pytest.fixture(scope="module")
def ct_study(clinical_studies):
    (series, *_) = clinical_studies[0].series
    return dataclasses.replace(clinical_studies[0], series=(series,))


@pytest.fixture(scope="module")
def mri_series(clinical_studies):
    return clinical_studies[0].series[1]


@pytest.fixture(scope="module")
def runs(studies):
    return [study for study in studies if study.modalities == ("rsfMRI",)][:4]


def drawn(dataset, epoch):
    """Return each item of an epoch."""
    return [dataset[row, epoch] for row in range(len(dataset))]


def is_same(one, other):
    """Return whether two items are the same in all that a collator reads."""
    names = ["name", "modality", "kind", "size", "draw", "in_training"]
    names += ["seed"] if one.in_training else []  # nothing is drawn from it in evaluation
    return all(getattr(one, name) == getattr(other, name) for name in names) and all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("tokens", "coords", "foreground")
    )


def same(one, two):
    return [is_same(a, b) for a, b in zip(one, two, strict=True)]


# ---------------------------------------------------------------- what is drawn


def test_the_same_draw_gives_the_same_item(images, runs, built_cache):  # D52
    for members in (images, runs):
        one, two = (dataset_of(members, built_cache) for _ in range(2))
        assert all(same(drawn(one, 3), drawn(two, 3)))
        backwards = [two[row, 3] for row in reversed(range(len(two)))]
        assert all(same(drawn(one, 3), backwards[::-1]))


def test_another_epoch_or_seed_gives_another_item(images, runs, built_cache):  # D52, S8
    for members in (images, runs):
        dataset = dataset_of(members, built_cache)
        assert not any(same(drawn(dataset, 0), drawn(dataset, 1)))
        assert not any(same(drawn(dataset, 0), drawn(dataset_of(members, built_cache, seed=2), 0)))


def test_every_sample_is_changed_in_its_own_way(images, built_cache):  # D52, S8
    changed = drawn(dataset_of(images, built_cache, Augment(contrast=0.5)), 0)
    plain = drawn(dataset_of(images, built_cache, None), 0)
    assert len({item.draw.intensity for item in changed}) == len(images)
    for one, other in zip(changed, plain, strict=True):  # intensities are changed on the device
        assert torch.equal(one.tokens, other.tokens)
        assert other.draw == IDENTITY


def test_two_images_of_one_scan_are_changed_in_their_own_ways(images, built_cache):  # D52
    study = images[0]
    twice = dataclasses.replace(study, series=study.series * 2)
    dataset = dataset_of([twice], built_cache, Augment(contrast=0.5, noise=0.1))
    one, other = dataset[0, 0], dataset[1, 0]
    assert one.draw.intensity != other.draw.intensity
    assert one.draw.seed != other.draw.seed
    assert one.seed != other.seed


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
def test_workers_draw_what_one_process_draws(
    images, runs, built_cache, ct_study, clinical_cache, num_workers
):  # D52, S8
    for dataset in (
        dataset_of([*images[:3], *runs[:3]], built_cache),
        dataset_of([ct_study], clinical_cache, window_probabilities=OFTEN),
    ):
        keys = [(row, epoch) for epoch in (0, 1, 2) for row in range(len(dataset))]
        torch.manual_seed(0)
        loader = DataLoader(
            dataset, batch_size=1, sampler=keys, num_workers=num_workers, collate_fn=first
        )
        assert all(same(loader, [dataset[key] for key in keys]))


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
        voxels, shares = built_cache.read(study.series[0])
        assert torch.equal(untokenize(item.tokens, (2, 2, 2), recipe.patch), voxels)
        assert torch.equal(item.foreground, shares.flatten())
        assert torch.equal(item.coords, grid_coords((2, 2, 2)))
        assert item.study == study
        assert (item.modality, item.kind, item.size) == ("T1", "mri", (2, 2, 2))
        assert item.name == study.series[0].name
        assert not item.in_training


def test_evaluation_takes_the_middle_of_a_run_in_every_epoch(runs, built_cache):
    dataset = dataset_of(runs, built_cache, None)
    recipe = built_cache.recipes["rsfMRI"]
    grid = (2, 2, 2, 2)
    for row, study in enumerate(runs):
        frames, _ = built_cache.read(study.series[0])
        start = (len(frames) - 8) // 2
        shown = untokenize(dataset[row, 0].tokens, grid, recipe.patch)
        assert torch.equal(shown, frames[start : start + 8].movedim(0, -1))
        assert (dataset[row, 0].kind, dataset[row, 0].size) == ("run", grid)
    assert all(same(drawn(dataset, 0), drawn(dataset, 9)))


@pytest.mark.parametrize("step", [1, 2])
def test_training_takes_every_window_of_a_run(runs, recipes, tmp_path, step):  # D42 D43
    recipe = dataclasses.replace(recipes["rsfMRI"], shape=(24, 24, 24, 4), patch=(12, 12, 12, 4))
    cache = Cache(tmp_path / "cache", {"rsfMRI": recipe})
    assert cache.build(runs[0].series, max_failed=0.0) == []
    windows = Windows(stride_within_seq=step, stride_between_seq=None)
    dataset = dataset_of(runs[:1], cache, Augment(), windows=windows)
    frames, _ = cache.read(runs[0].series[0])
    span = 3 * step + 1
    starts = range(len(frames) - span + 1)
    shown = [frames[start : start + span : step].movedim(0, -1) for start in starts]
    assert len(shown) > 2
    found = set()
    for epoch in range(60):
        one = untokenize(dataset[0, epoch].tokens, (2, 2, 2, 1), recipe.patch)
        (start,) = (start for start, window in enumerate(shown) if torch.equal(one, window))
        found.add(start)
    assert found == set(starts)


def test_a_study_of_one_window_shows_that_window_in_training_and_evaluation(
    runs, built_cache
):  # D42
    (series,) = runs[0].series
    frames, _ = built_cache.read(series)
    study = dataclasses.replace(runs[0], series=(dataclasses.replace(series, start=3),))
    for augment in (None, Augment()):
        dataset = dataset_of([study], built_cache, augment)
        for epoch in range(3):
            shown = untokenize(dataset[0, epoch].tokens, (2, 2, 2, 2), (12, 12, 12, 4))
            assert torch.equal(shown, frames[3:11].movedim(0, -1))


def test_an_augmentation_moves_the_foreground_with_the_voxels(runs, images, built_cache):  # S4
    always = Augment(flip_left_right=1.0, flip_up_down=1.0)
    for member in (runs[0], images[0]):
        item = dataset_of([member], built_cache, always)[0, 0]
        plain = dataset_of([member], built_cache, None)[0, 0]
        axes = anatomical_axes(built_cache.affine(member.series[0]))
        turned = plain.foreground.reshape(plain.size).flip(axes[0], axes[2])
        assert item.draw.flips[axes[1]] is False
        assert torch.equal(item.foreground.reshape(item.size), turned)
        assert torch.equal(item.coords, plain.coords)
        assert item.size == plain.size


def test_a_crop_gives_whole_tokens_their_shares_and_the_coordinates_of_the_crop(
    images, built_cache
):  # S3 S4
    crops = Augment(crop_probability=1.0, max_crop=(2, 1, 2), min_crop_foreground=0.0)
    dataset = dataset_of(images[:1], built_cache, crops)
    plain = dataset_of(images[:1], built_cache, None)[0, 0]
    shapes = set()
    for epoch in range(20):
        item = dataset[0, epoch]
        assert torch.equal(item.coords, grid_coords(item.size))
        places = torch.cartesian_prod(*(torch.arange(*extent) for extent in item.draw.crop))
        rows = (places * torch.tensor([4, 2, 1])).sum(dim=1)
        assert torch.equal(item.tokens, plain.tokens[rows])
        assert torch.equal(item.foreground, plain.foreground[rows])
        shapes.add(item.size)
    assert {one[1] for one in shapes} == {1}
    assert len(shapes) > 1


# ---------------------------------------------------------------- the windows of CT


def test_training_draws_a_ct_window_as_often_as_it_is_told(ct_study, clinical_cache):  # S2, S43
    dataset = dataset_of([ct_study], clinical_cache, Augment(), window_probabilities=OFTEN)
    assert len(dataset) == 1
    kinds = [dataset[0, epoch].kind for epoch in range(200)]
    for name, share in OFTEN.items():
        assert abs(kinds.count(name) / 200 - share) < 0.12
    assert len({tuple(kinds[start : start + 5]) for start in range(0, 200, 5)}) > 10


def test_a_window_without_a_probability_is_never_drawn(ct_study, clinical_cache):  # S2
    some = {"brain": 1.0, "bone": 0.0}
    dataset = dataset_of([ct_study], clinical_cache, Augment(), window_probabilities=some)
    assert {dataset[0, epoch].kind for epoch in range(20)} == {"brain"}
    none = dataset_of([ct_study], clinical_cache, Augment(), window_probabilities={"lung": 1.0})
    with pytest.raises(InputError, match=r"windows brain, blood, bone.*window_probabilities is"):
        none[0, 0]


@pytest.mark.parametrize(
    ("augment", "probabilities"), [(None, OFTEN), (None, None), (Augment(), None)]
)
def test_evaluation_shows_all_ct_windows_and_so_does_training_if_told(
    ct_study, clinical_cache, augment, probabilities
):  # S43
    dataset = dataset_of([ct_study], clinical_cache, augment, window_probabilities=probabilities)
    assert dataset.rows_of(0) == range(3)
    for epoch in (0, 1):
        items = drawn(dataset, epoch)
        assert [item.kind for item in items] == ["brain", "blood", "bone"]
        name = ct_study.series[0].name
        assert [item.name for item in items] == [f"{name}.{item.kind}" for item in items]
        for item in items:
            voxels, _ = clinical_cache.read(ct_study.series[0], item.kind)
            patch = clinical_cache.recipes["ct"].patch
            assert torch.equal(untokenize(item.tokens, item.size, patch), voxels)
    assert not torch.equal(items[0].tokens, items[1].tokens)


def test_the_windows_of_a_ct_stay_together_between_other_series(
    ct_study, clinical_cache, mri_series
):  # S43
    series = (mri_series, *ct_study.series, mri_series)
    mixed = dataclasses.replace(ct_study, series=series)
    other = dataclasses.replace(ct_study, id="other")
    dataset = dataset_of([mixed, other], clinical_cache, None)
    assert [dataset.rows_of(place) for place in range(2)] == [range(5), range(5, 8)]
    items = drawn(dataset, 0)
    kinds = ["mri", "brain", "blood", "bone", "mri", "brain", "blood", "bone"]
    assert [item.kind for item in items] == kinds
    assert [item.study.id for item in items] == [mixed.id] * 5 + ["other"] * 3
    assert [item.modality for item in items] == ["mri", *["ct"] * 3, "mri", *["ct"] * 3]


# ---------------------------------------------------------------- where the axes point


@pytest.mark.parametrize("direction", [0, 1, 2])
def test_a_flip_turns_the_axis_that_runs_that_way(direction):
    """Sagittal slices: the tensor's first axis runs from left to right."""
    name = ("flip_left_right", "flip_front_back", "flip_up_down")[direction]
    axes = anatomical_axes(SAGITTAL)
    draw = Augment(**{name: 1.0}).draw(
        torch.Generator().manual_seed(0),
        shares=torch.full((2, 3, 4), 255, dtype=torch.uint8),
        axes=axes,
        patch=(4, 16, 16),
        min_foreground=0.0,
    )
    assert [axis for axis, flip in enumerate(draw.flips) if flip] == [axes[direction]]


SAGITTAL = torch.tensor(  # depth to the right, height to the feet, width to the back
    [[4.0, 0, 0, -70], [0, 0, -1, 110], [0, -1, 0, 100], [0, 0, 0, 1]], dtype=torch.float64
)


def turned(affine, degrees, plane):
    """Return an affine after a rotation of the head in a plane of world axes."""
    one, other = plane
    angle = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    rotation = torch.eye(4, dtype=torch.float64)
    rotation[one, one] = rotation[other, other] = angle.cos()
    rotation[one, other], rotation[other, one] = -angle.sin(), angle.sin()
    return rotation @ affine


def affine_of(columns, spacing_mm):
    """Return an affine whose axis ``a`` runs along ``columns[a]``, a signed world axis from 1."""
    affine = torch.zeros(4, 4, dtype=torch.float64)
    for axis, (column, edge) in enumerate(zip(columns, spacing_mm, strict=True)):
        affine[abs(column) - 1, axis] = edge if column > 0 else -edge
    affine[3, 3] = 1
    return affine


@pytest.mark.parametrize(
    ("columns", "axes"),
    [
        ((1, 2, 3), (0, 1, 2)),  # RAS
        ((-3, -2, -1), (2, 1, 0)),  # axial slices first
        ((1, -3, -2), (0, 2, 1)),  # sagittal
        ((-2, -3, 1), (2, 0, 1)),  # coronal
        ((2, 3, 1), (2, 0, 1)),
    ],
)
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (4.0, 1.0, 0.5)])
def test_each_direction_of_the_head_has_the_axis_that_runs_along_it(columns, axes, spacing_mm):
    affine = affine_of(columns, spacing_mm)
    assert anatomical_axes(affine) == axes
    for plane in ((0, 1), (1, 2), (0, 2)):
        for degrees in (-40, -20, 10, 40):  # an oblique scan
            assert anatomical_axes(turned(affine, degrees, plane)) == axes


def test_each_direction_has_an_axis_of_its_own_however_oblique():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        affine = torch.eye(4, dtype=torch.float64)
        rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        affine[:3, :3] = rotation @ torch.diag(torch.tensor([4.0, 1.0, 1.0]).double())
        axes = anatomical_axes(affine)
        assert sorted(axes) == [0, 1, 2]
        # What runs most along one direction of all is never given to another.
        direction, axis = divmod(int(rotation.abs().argmax()), 3)
        assert axes[direction] == axis


# ---------------------------------------------------------------- the control


def test_a_control_shows_another_subject_below_the_same_text(studies, built_cache):
    assert donors(studies).keys() == set(range(len(studies)))
    members = Manifest.of(study for study in studies if study.modalities == ("T1",))
    pairs = donors(members)
    dataset = SeriesDataset(
        members.take(list(pairs)),
        built_cache,
        augment=None,
        seed=1,
        windows=DRAWN,
        givers=members.take(list(pairs.values())),
    )
    for row, study in enumerate(members):
        item = dataset[row, 0]
        giver = members[pairs[row]]
        assert not set(giver.subjects) & set(study.subjects)
        assert giver.modalities == study.modalities
        assert item.study == study
        own = dataset_of([giver], built_cache, None)[0, 0]
        assert torch.equal(item.tokens, own.tokens)


@pytest.mark.parametrize("modality", ["T1", "rsfMRI"])  # uint8 and float16
@pytest.mark.parametrize("control", ["zero", "noise"])
def test_a_control_without_a_picture_keeps_the_foreground_of_somebody_else(
    studies, built_cache, modality, control
):
    """Tokens of background are dropped: with its own, a head's size would be left."""
    members = Manifest.of(study for study in studies if study.modalities == (modality,))
    pairs = donors(members)
    mine = members.take(list(pairs))
    givers = members.take(list(pairs.values()))

    def shown(control, place, epoch=0, seed=1):
        dataset = SeriesDataset(
            mine,
            built_cache,
            augment=None,
            seed=seed,
            windows=DRAWN,
            givers=givers,
            control=control,
        )
        return dataset[place, epoch]

    tokens = []
    for place in range(len(mine)):
        item, other = shown(control, place), shown("shuffled", place)
        assert item.study == mine[place]
        assert torch.equal(item.foreground, other.foreground)
        assert torch.equal(item.coords, other.coords)
        assert (item.tokens.shape, item.tokens.dtype) == (other.tokens.shape, other.tokens.dtype)
        assert item.kind == other.kind
        # A function of the study alone.
        assert torch.equal(item.tokens, shown(control, place, epoch=3, seed=2).tokens)
        tokens.append(item.tokens.float())
    if control == "zero":
        assert not any(one.any() for one in tokens)
        return
    everything = torch.stack(tokens)
    assert len(everything.flatten(1).unique(dim=0)) == len(mine)  # no two alike
    mean, std = (127.5, 73.9) if modality == "T1" else (0.0, 1.0)
    assert float(everything.mean()) == pytest.approx(mean, abs=0.1 * std)
    assert float(everything.std()) == pytest.approx(std, rel=0.1)


def test_two_images_of_one_study_are_not_the_same_noise(images, built_cache):
    twice = Manifest.of(dataclasses.replace(one, series=one.series * 2) for one in images[:2])
    dataset = SeriesDataset(
        twice,
        built_cache,
        augment=None,
        seed=1,
        windows=DRAWN,
        givers=twice.take([1, 0]),
        control="noise",
    )
    first, second = (dataset[row, 0].tokens.float().flatten() for row in (0, 1))
    assert abs(float(torch.stack([first, second]).corrcoef()[0, 1])) < 0.1


def test_a_control_uses_each_image_about_once(studies):
    members = Manifest.of(study for study in studies if study.modalities == ("T1",))
    assert sorted(donors(members).values()) == list(range(len(members)))


def test_nobody_to_give_images_leaves_a_study_out(studies):
    alone = [study for study in studies if study.subjects == studies[0].subjects]
    assert donors(Manifest.of(alone)) == {}
    others = [study for study in studies if study.modalities == ("T1",)][5:8]
    lonely = next(study for study in alone if study.modalities == ("dMRI",))
    assert donors(Manifest.of([lonely, *others])).keys() == {1, 2, 3}


def test_reading_changes_nothing(images, built_cache):  # D55
    dataset = dataset_of(images, built_cache)
    before = [list(study.series) for study in images], dataset.bounds.copy()
    one, two = dataset[0, 0], dataset[0, 0]
    assert torch.equal(one.tokens, two.tokens)
    assert [list(study.series) for study in images] == before[0]
    assert (dataset.bounds == before[1]).all()


def test_an_option_that_nothing_reads_is_refused():  # S42
    with pytest.raises(TypeError, match="transform"):
        Augment(transform="elastic")
    with pytest.raises(TypeError, match="tokenize"):
        SeriesDataset(None, None, augment=None, seed=0, windows=None, tokenize=True)
