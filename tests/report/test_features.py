"""Colours mean the same in each volume and at each step; a picture is upright whatever the axes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from neuro.data.tokens import grid_coords
from neuro.report.features import CAPTION, MARGIN, Shown, feature_colors, feature_picture
from neuro.report.mosaic import BACKGROUND, OUTLINE

EDGE = 60


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(shape=(8, 12, 16), patch=(2, 2, 2), spacing_mm=(2.0, 2.0, 2.0), seed=0, dropped=0):
    """A volume that is brighter to the right, the front and the top, and features of its places."""
    grid = tuple(size // edge for size, edge in zip(shape, patch, strict=True))
    coords = grid_coords(grid)[dropped:]
    x, y, z = torch.meshgrid(*(torch.arange(size) for size in shape), indexing="ij")
    places = coords.float() / torch.tensor(grid)
    known = torch.cat([places, places.square(), places[:, :1] * places[:, 1:2]], dim=1)
    return Shown(
        voxels=(10 + 4 * x + 3 * y + 2 * z + 3 * drawn(*shape, seed=seed)).clamp(0, 255).byte(),
        affine=torch.diag(torch.tensor([*spacing_mm, 1.0])),
        patch=patch,
        coords=coords,
        contexts=(torch.arange(0, len(coords), 3),),
        features=known @ drawn(7, 20, seed=9) + 0.01 * drawn(len(coords), 20, seed=seed),
    )


def in_other_axes(shown):
    """The same volume with its axes in another order and direction."""
    d, h, _w = shown.voxels.shape
    turned = torch.stack(
        [
            shown.coords[:, 2],
            d // shown.patch[0] - 1 - shown.coords[:, 0],
            h // shown.patch[1] - 1 - shown.coords[:, 1],
        ],
        dim=1,
    )
    affine = shown.affine @ torch.tensor(
        [[0.0, -1, 0, d - 1], [0, 0, -1, h - 1], [1, 0, 0, 0], [0, 0, 0, 1]]
    )
    return replace(
        shown,
        voxels=shown.voxels.permute(2, 0, 1).flip(1, 2),
        patch=(shown.patch[2], shown.patch[0], shown.patch[1]),
        coords=turned,
        affine=affine,
    )


def test_colours_fill_the_range_and_differ_where_features_do():
    (colors,) = feature_colors([head()])
    assert colors.min() == 0
    assert colors.max() == 1
    assert (colors.std(dim=0) > 0.1).all()


@pytest.mark.parametrize("seed", range(3))
def test_colours_do_not_flip_from_one_step_to_the_next(seed):
    """Training turns features round and changes them a little."""
    before = head()
    rotation = torch.linalg.qr(drawn(20, 20, seed=seed))[0]
    moved = before.features @ rotation * 3 + 0.02 * drawn(*before.features.shape, seed=seed) - 5
    (one,) = feature_colors([before])
    (other,) = feature_colors([replace(before, features=moved)])
    (opposite,) = feature_colors([replace(before, features=-before.features)])
    assert (one - other).abs().mean() < 0.05
    torch.testing.assert_close(opposite, one, atol=1e-5, rtol=0)


def test_a_colour_means_the_same_in_every_volume():
    one, two = head(seed=0), head(seed=1)
    colors = feature_colors([one, two])
    both = replace(two, features=one.features)
    shared = feature_colors([one, both])
    torch.testing.assert_close(shared[0], shared[1])
    swapped = feature_colors([two, one])
    torch.testing.assert_close(colors[0], swapped[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_features_that_are_all_alike_are_grey(width):
    shown = head()
    same = drawn(1, width).expand(len(shown.coords), -1)
    (colors,) = feature_colors([replace(shown, features=same)])
    torch.testing.assert_close(colors, torch.full_like(colors, 0.5), atol=1e-3, rtol=0)


def pixels_of(*volumes):
    return np.asarray(feature_picture(list(volumes), slice_pixels=EDGE)).astype(int)


def test_a_row_for_each_volume_and_three_slices_for_each_mask_and_the_features():
    one = head()
    two = replace(one, contexts=(*one.contexts, *one.contexts))
    tile = EDGE + 2 * MARGIN
    assert pixels_of(one).shape == (CAPTION + tile, 6 * tile, 3)
    assert pixels_of(two, two, two).shape == (CAPTION + 3 * tile, 9 * tile, 3)


def test_the_order_and_direction_of_axes_do_not_show():
    one = head(spacing_mm=(3.0, 2.0, 1.0))
    apart = np.abs(pixels_of(one) - pixels_of(in_other_axes(one)))
    assert apart.max() <= 1


def test_left_is_left_and_up_is_up():
    """The volume is brighter to the right, the front and the top."""
    one = replace(head(), contexts=(torch.arange(4 * 6 * 8),))
    tile = EDGE + 2 * MARGIN
    light = pixels_of(one)[CAPTION:, : 3 * tile].sum(axis=2)
    for place in range(3):
        own = light[:, place * tile : (place + 1) * tile]
        inside = own[own.max(axis=1) > 3 * max(BACKGROUND)]
        inside = inside[:, inside.max(axis=0) > 3 * max(BACKGROUND)]
        half_height, half_width = (size // 2 for size in inside.shape)
        assert inside[:half_height].mean() > inside[half_height:].mean()
        assert inside[:, half_width:].mean() > inside[:, :half_width].mean()


def test_what_is_seen_is_teal_what_is_hidden_is_grey_and_what_is_dropped_is_black():
    shown = head(dropped=4 * 6 * 8 // 2)
    bright = torch.full_like(shown.voxels, 200)
    bright[0, 0, 0] = 0
    every, nothing = torch.arange(len(shown.coords)), torch.arange(0)
    tile = EDGE + 2 * MARGIN
    masks = {}
    for name, context in (("seen", every), ("hidden", nothing)):
        picture = pixels_of(replace(shown, voxels=bright, contexts=(context,)))
        masks[name] = picture[CAPTION:, : 3 * tile].reshape(-1, 3)
    lit = {name: one[one.max(axis=1) > 2 * max(BACKGROUND)] for name, one in masks.items()}
    red, green, blue = lit["seen"].mean(axis=0)
    assert green > red + 30
    assert blue > red + 20
    assert np.ptp(lit["hidden"], axis=1).max() <= 1
    assert lit["hidden"].mean() < lit["seen"].mean()
    assert OUTLINE[1] > OUTLINE[2] > OUTLINE[0]
    assert (masks["seen"] == BACKGROUND).all(axis=1).any()


def test_thick_slices_are_as_long_in_the_picture_as_in_the_head():
    thick = head(shape=(8, 24, 32), patch=(1, 4, 4), spacing_mm=(6.0, 2.0, 2.0))
    tile = EDGE + 2 * MARGIN
    block = pixels_of(thick)[CAPTION:, 3 * tile :]
    lit = block.max(axis=2) > 3 * max(BACKGROUND)
    extents_mm = np.array([48, 48, 64])
    for place, (across, up) in enumerate([(0, 1), (0, 2), (1, 2)]):
        own = lit[:, place * tile : (place + 1) * tile]
        width, height = own.any(axis=0).sum(), own.any(axis=1).sum()
        expected = EDGE * extents_mm[[across, up]] / extents_mm.max()
        assert abs(width - expected[0]) <= 2
        assert abs(height - expected[1]) <= 2
