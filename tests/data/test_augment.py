"""Only what was asked for is changed, only by what was drawn, and positions follow the content."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch

from neuro.data.augment import (
    IDENTITY,
    Augment,
    Draw,
    check_window_probabilities,
    draw_window,
)
from neuro.data.tokens import foreground_shares, grid_coords, grid_of, tokenize
from neuro.errors import InputError

GRID, PATCH = (3, 5, 4), (2, 3, 3)
AXIAL, SAGITTAL, CORONAL = (2, 1, 0), (0, 1, 2), (2, 0, 1)  # left-right, front-back, up-down
LIVELY = Augment(
    crop_probability=0.5,
    max_crop=(2, 3, 4),
    min_crop_foreground=0.5,
    flip_left_right=0.5,
    flip_front_back=0.5,
    flip_up_down=0.5,
    transpose_probability=0.5,
    gamma=0.5,
    contrast=0.2,
    brightness=0.1,
    noise=0.3,
)
SPATIAL = ("crop_probability", "flip_left_right", "flip_front_back", "flip_up_down")
WINDOWS = {"brain": 0.7, "blood": 0.15, "bone": 0.15}
FULL = torch.full(GRID, 255, dtype=torch.uint8)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def drawn(augment, seed=0, *, shares=FULL, axes=AXIAL, patch=PATCH, min_foreground=0.02):
    return augment.draw(
        generator(seed), shares=shares, axes=axes, patch=patch, min_foreground=min_foreground
    )


def switched_on(name):
    return dataclasses.replace(Augment(), **{name: 1.0})


def draws(augment, num=200, **more):
    return [drawn(augment, seed, **more) for seed in range(num)]


def numbered(shape):
    """Voxels that hold their own place."""
    return torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)


def voxels_of(grid, patch=PATCH):
    return numbered([size * edge for size, edge in zip(grid, patch, strict=True)])


def patchy(seed=0, share=0.5, grid=GRID):
    """Foreground in some of the tokens."""
    return (torch.rand(grid, generator=generator(seed)) < share).to(torch.uint8) * 255


# ---------------------------------------------------------------- what is drawn


def test_a_draw_is_a_function_of_its_seed():  # S8 D52
    for seed in range(50):
        assert drawn(LIVELY, seed) == drawn(LIVELY, seed)


def test_every_seed_draws_something_else():  # S8 D52
    assert len({draw.intensity for draw in draws(LIVELY)}) == 200
    assert len({draw.seed for draw in draws(LIVELY)}) == 200
    assert len({draw.crop for draw in draws(LIVELY)}) > 20
    assert len({(*draw.flips, draw.transpose) for draw in draws(LIVELY)}) == 16


def test_a_draw_does_not_touch_the_state_of_the_process():  # S8 D52
    before = torch.get_rng_state()
    draws(LIVELY, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_draw_takes_as_many_numbers_whatever_is_switched_on():  # S8
    after = []
    for augment, shares in itertools.product(
        (Augment(), LIVELY, Augment(crop_probability=1.0, min_crop_foreground=1.0)),
        (FULL, FULL * 0, patchy()),
    ):
        source = generator(3)
        augment.draw(source, shares=shares, axes=AXIAL, patch=PATCH, min_foreground=0.02)
        after.append(source.get_state())
    assert all(torch.equal(after[0], state) for state in after)


@pytest.mark.parametrize("name", [*SPATIAL, "transpose_probability", "gamma", "contrast", "noise"])
def test_switching_one_option_off_changes_nothing_else(name):
    plain = draws(dataclasses.replace(LIVELY, **{name: 0.0}))
    place = {"gamma": 0, "contrast": 1, "noise": 3}.get(name)
    flip = {"flip_left_right": 2, "flip_front_back": 1, "flip_up_down": 0}.get(name)
    for draw, other in zip(draws(LIVELY), plain, strict=True):
        expected = {
            "crop": None if name == "crop_probability" else draw.crop,
            "flips": tuple(on and axis != flip for axis, on in enumerate(draw.flips)),
            "transpose": draw.transpose and name != "transpose_probability",
            "intensity": tuple(
                IDENTITY.intensity[at] if at == place else number
                for at, number in enumerate(draw.intensity)
            ),
            "seed": 0 if name == "noise" else draw.seed,
        }
        assert other == Draw(**expected)


def test_probabilities_are_kept():
    augment = Augment(
        crop_probability=0.3, flip_left_right=0.1, flip_front_back=0.9, transpose_probability=0.5
    )
    found = draws(augment, 2000)

    def share(of):
        return sum(map(of, found)) / len(found)

    assert share(lambda draw: draw.crop is not None) == pytest.approx(0.3, abs=0.04)
    assert share(lambda draw: draw.flips[2]) == pytest.approx(0.1, abs=0.04)
    assert share(lambda draw: draw.flips[1]) == pytest.approx(0.9, abs=0.04)
    assert share(lambda draw: draw.flips[0]) == 0
    assert share(lambda draw: draw.transpose) == pytest.approx(0.5, abs=0.04)
    assert all(draw.flips[0] for draw in draws(Augment(flip_up_down=1.0)))


def test_intensities_fill_their_ranges_and_do_not_leave_them():
    augment = Augment(gamma=0.5, contrast=0.2, brightness=0.1, noise=0.3)
    gamma, gain, offset, noise = (
        torch.tensor([draw.intensity for draw in draws(augment, 1000)]).double().unbind(1)
    )
    for numbers, low, high in (
        (gamma.log(), -math.log(1.5), math.log(1.5)),
        (gain, 0.8, 1.2),
        (offset, -0.1, 0.1),
        (noise, 0.0, 0.3),
    ):
        margin = (high - low) / 50
        assert low - 1e-6 <= numbers.min() < low + margin
        assert high - margin < numbers.max() <= high + 1e-6
        assert float(numbers.mean()) == pytest.approx((low + high) / 2, abs=2 * margin)


# ---------------------------------------------------------------- what is left alone


def test_the_default_changes_nothing():  # S44 D51
    voxels, shares = voxels_of(GRID), patchy()
    for draw in draws(Augment(), shares=shares):
        assert draw == IDENTITY
        same_voxels, same_shares = draw.apply(voxels, shares, PATCH)
        assert same_voxels is voxels
        assert same_shares is shares


def test_intensities_are_not_touched_on_the_voxels():
    voxels, shares = voxels_of(GRID), patchy()
    for draw in draws(dataclasses.replace(LIVELY, **dict.fromkeys(SPATIAL, 0.0)), 20):
        changed, _ = dataclasses.replace(draw, transpose=False).apply(voxels, shares, PATCH)
        assert changed is voxels


def test_what_is_given_is_not_changed():
    voxels, shares = voxels_of(GRID), patchy()
    before = voxels.clone(), shares.clone()
    for draw in draws(LIVELY, 40, shares=shares):
        draw.apply(voxels, shares, PATCH)
    assert torch.equal(voxels, before[0])
    assert torch.equal(shares, before[1])


def test_only_a_flip_copies():
    voxels, shares = voxels_of(GRID), patchy()
    draw = Draw(crop=((1, 3), (0, 2), (2, 4)), transpose=True)
    for changed, given in zip(draw.apply(voxels, shares, PATCH), (voxels, shares), strict=True):
        assert changed.untyped_storage().data_ptr() == given.untyped_storage().data_ptr()


def test_axes_within_a_slice_are_exchanged_only_where_patches_are_square():
    augment = Augment(transpose_probability=1.0)
    assert drawn(augment, patch=(2, 3, 3)).transpose
    assert drawn(augment, patch=(2, 3, 3, 5)).transpose
    assert not drawn(augment, patch=(3, 2, 3)).transpose
    assert not drawn(augment, patch=(3, 3, 2)).transpose


# ---------------------------------------------------------------- positions follow the content


@pytest.mark.parametrize("crop", [None, ((1, 3), (2, 4), (0, 3)), ((2, 3), (0, 5), (3, 4))])
@pytest.mark.parametrize("time", [(), (2,)])
@pytest.mark.parametrize("transpose", [False, True])
def test_voxels_shares_and_coordinates_stay_together(crop, time, transpose):  # S3 S4
    grid, patch = (*GRID, *time), (*PATCH, *[4] * len(time))
    voxels = voxels_of(grid, patch)
    shares = torch.randperm(math.prod(grid), generator=generator(0)).to(torch.uint8).reshape(grid)
    for depth, height, width in itertools.product((False, True), repeat=3):
        draw = Draw(crop=crop, flips=(depth, height, width), transpose=transpose)
        changed, new_shares = draw.apply(voxels, shares, patch)
        new_grid = grid_of(tuple(changed.shape), patch)
        assert tuple(new_shares.shape) == new_grid
        tokens, coords = tokenize(changed, patch), grid_coords(new_grid).long()
        inside = grid_coords(patch).long()  # place of each voxel in its token
        place = coords.unsqueeze(1) * torch.tensor(patch) + inside  # (tokens, voxels, axes)
        source = undone(draw, place, changed.shape)
        index = torch.zeros_like(source[..., 0])
        for axis, size in enumerate(voxels.shape):
            index = index * size + source[..., axis]
        assert torch.equal(tokens, index.int())
        assert torch.equal(
            new_shares.flatten(), shares[tuple((source[:, 0] // torch.tensor(patch)).unbind(1))]
        )


def undone(draw, place, shape):
    """Return where voxels were before a draw was applied."""
    source, shape = place.clone(), list(shape)
    if draw.transpose:
        source[..., [1, 2]] = source[..., [2, 1]]
        shape[1], shape[2] = shape[2], shape[1]
    for axis, flip in enumerate(draw.flips):
        if flip:
            source[..., axis] = shape[axis] - 1 - source[..., axis]
    for axis, (start, _) in enumerate([] if draw.crop is None else draw.crop):
        source[..., axis] += start * PATCH[axis]
    return source


@pytest.mark.parametrize("grid", [GRID, (*GRID, 2)])
def test_shares_are_those_of_the_voxels_that_are_shown(grid):  # S3 S4
    patch = PATCH if len(grid) == 3 else (*PATCH, 2)
    foreground = torch.rand(voxels_of(grid, patch).shape, generator=generator(5)) < 0.3
    shares = foreground_shares(foreground, patch).reshape(grid)
    for draw in draws(LIVELY, 60, shares=shares):
        shown, moved = draw.apply(foreground, shares, patch)
        assert torch.equal(foreground_shares(shown, patch), moved.flatten())


def test_a_flip_mirrors_what_is_in_a_token():
    voxels = voxels_of(GRID)
    for axis in range(3):
        flips = (axis == 0, axis == 1, axis == 2)
        flipped, _ = Draw(flips=flips).apply(voxels, FULL, PATCH)
        first, last = tokenize(flipped, PATCH)[0], voxels.flip(axis)
        block = last[tuple(slice(edge) for edge in PATCH)]
        assert torch.equal(first, block.flatten())
        assert not torch.equal(first.sort().values, first)


@pytest.mark.parametrize("axes", [AXIAL, SAGITTAL, CORONAL])
def test_flips_are_along_the_anatomy_whatever_the_slices(axes):  # S44 D51
    for direction, name in enumerate(("flip_left_right", "flip_front_back", "flip_up_down")):
        for draw in draws(switched_on(name), 20, axes=axes):
            assert [axis for axis, on in enumerate(draw.flips) if on] == [axes[direction]]


def test_sides_are_safe_where_only_left_and_right_are_not_exchanged():  # S44
    augment = Augment(flip_front_back=0.5, flip_up_down=0.5)
    for axes in (AXIAL, SAGITTAL, CORONAL):
        assert not any(draw.flips[axes[0]] for draw in draws(augment, axes=axes))


# ---------------------------------------------------------------- crops


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("at_least", [0.0, 0.1, 0.5, 1.0])
def test_a_crop_has_enough_foreground_or_is_the_whole_volume(share, at_least):  # S3
    augment = Augment(crop_probability=1.0, max_crop=(2, 3, 9), min_crop_foreground=at_least)
    found = []
    for seed in range(100):
        shares = patchy(seed, share)
        draw = drawn(augment, seed, shares=shares)
        voxels, kept = draw.apply(voxels_of(GRID), shares, PATCH)
        assert voxels.shape == tuple(n * e for n, e in zip(kept.shape, PATCH, strict=True))
        if draw.crop is None:
            assert kept is shares
            continue
        found.append(draw.crop)
        assert kept.any()
        assert int((kept > 0).sum()) >= at_least * kept.numel()
        assert all(0 < n <= most for n, most in zip(kept.shape, (2, 3, 4), strict=True))
    assert found or at_least > share


def test_crops_come_in_all_sizes_and_from_all_places():
    augment = Augment(crop_probability=1.0, max_crop=(2, 9, 9))
    crops = [draw.crop for draw in draws(augment, 1500)]
    for axis, most in enumerate((2, 5, 4)):
        found = {crop[axis] for crop in crops}
        assert found == {
            (start, start + extent)
            for extent in range(1, most + 1)
            for start in range(GRID[axis] - extent + 1)
        }


def test_a_crop_counts_the_tokens_that_the_collator_keeps():
    shares = torch.full(GRID, 12, dtype=torch.uint8)  # less than 5 % of head
    shares[1, 2, 2] = 13
    augment = Augment(crop_probability=1.0, min_crop_foreground=0.0)
    for draw in draws(augment, shares=shares, min_foreground=0.05):
        assert 13 in draw.apply(voxels_of(GRID), shares, PATCH)[1]
    assert any(draw.crop for draw in draws(augment, shares=shares, min_foreground=0.05))


@pytest.mark.parametrize("min_foreground", [0.0, 0.02])
def test_air_is_not_cropped(min_foreground):
    augment = Augment(crop_probability=1.0, min_crop_foreground=0.0)
    for draw in draws(augment, 20, shares=FULL * 0, min_foreground=min_foreground):
        assert draw == IDENTITY


def test_a_run_keeps_all_of_its_frames():
    shares = FULL.unsqueeze(-1).expand(*GRID, 6)
    voxels = voxels_of((*GRID, 6), (*PATCH, 2))
    for draw in draws(dataclasses.replace(LIVELY, crop_probability=1.0), 20, shares=shares):
        changed, kept = draw.apply(voxels, shares, (*PATCH, 2))
        assert changed.shape[3] == 12
        assert kept.shape[3] == 6


# ---------------------------------------------------------------- CT windows


def windows(num, names=("brain", "blood", "bone"), probabilities=WINDOWS):
    return [draw_window(generator(seed), names, probabilities) for seed in range(num)]


def test_windows_are_as_frequent_as_asked():
    found = windows(3000)
    for name, probability in WINDOWS.items():
        assert found.count(name) / 3000 == pytest.approx(probability, abs=0.03)


def test_a_window_is_a_function_of_its_seed():  # S8
    assert windows(50) == windows(50)
    assert len(set(windows(50))) == 3


def test_windows_that_do_not_exist_leave_their_share_to_the_others():
    found = windows(2000, names=("blood", "bone"))
    assert found.count("blood") / 2000 == pytest.approx(0.5, abs=0.04)
    assert set(windows(20, names=("bone",))) == {"bone"}
    assert set(windows(200, names=("brain", "lung"))) == {"brain"}


def test_probabilities_need_not_add_up_to_one():
    scaled = {name: 20 * number for name, number in WINDOWS.items()}
    assert windows(300, probabilities=scaled) == windows(300)


def test_a_window_takes_one_number_however_many_there_are():
    after = []
    for names in (["brain"], ["brain", "bone"], list(WINDOWS)):
        source = generator(1)
        draw_window(source, names, WINDOWS)
        after.append(source.get_state())
    assert all(torch.equal(after[0], state) for state in after)


def test_a_series_without_a_window_that_can_be_drawn_is_an_error():
    with pytest.raises(InputError, match="has the windows lung, stroke, and none"):
        windows(1, names=("lung", "stroke"))
    with pytest.raises(InputError, match="none of them can be drawn"):
        windows(1, names=("bone",), probabilities={"brain": 1.0, "bone": 0.0})


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"brain": 0.0, "bone": 0.0},
        {"brain": 1.0, "bone": -0.1},
        {"brain": math.nan},
        {"brain": math.inf},
    ],
)
def test_wrong_window_probabilities_are_errors(wrong):
    with pytest.raises(InputError, match="window_probabilities takes"):
        check_window_probabilities(wrong)
    check_window_probabilities(WINDOWS)
    check_window_probabilities({"brain": 1.0, "bone": 0.0})


# ---------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *itertools.product(
            [*SPATIAL, "transpose_probability", "min_crop_foreground", "contrast", "brightness"],
            [-0.1, 1.1, math.nan],
        ),
        *itertools.product(["gamma", "noise"], [-0.1, math.inf, math.nan]),
    ],
)
def test_arguments_out_of_range_are_errors_with_their_name(name, wrong):
    with pytest.raises(InputError, match=rf"data\.augment\.{name} must .*; got {wrong}"):
        Augment(**{name: wrong})


@pytest.mark.parametrize("wrong", [(20, 20), (20, 20, 20, 20), (20, 0, 20)])
def test_a_crop_has_three_positive_extents(wrong):
    with pytest.raises(InputError, match=r"data\.augment\.max_crop takes three"):
        Augment(max_crop=wrong)


def test_a_list_from_a_config_makes_the_same_augmentation():
    assert Augment(max_crop=[4, 5, 6]) == Augment(max_crop=(4, 5, 6))
    assert hash(Augment(max_crop=[4, 5, 6])) == hash(Augment(max_crop=(4, 5, 6)))
