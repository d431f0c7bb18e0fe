"""A picture shows where a model looked, upright, whatever the axes of the scan are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from neuro.data.tokens import grid_coords
from neuro.report.attention import Attention
from neuro.report.attention_picture import LEGEND, MARGIN, TITLES, WARM, attention_picture

EDGE = 120
CELL = EDGE + 2 * MARGIN


def scene(weights=None):
    """A grey block, all of it kept, and attention on its left, its front and its top."""
    coords = grid_coords((10, 10, 8))
    if weights is None:
        weights = (coords == torch.tensor([2, 7, 6])).all(dim=1).float()
    attention = Attention(
        weights=weights,
        coords=coords,
        num_tokens=len(coords),
        grid=(10, 10, 8),
        patch=(4, 4, 4),
        affine=torch.eye(4, dtype=torch.float64),
    )
    x, y, z = torch.meshgrid(*(torch.arange(size) for size in (40, 40, 32)), indexing="ij")
    return (40 + x + 2 * y + z).byte(), attention


def colourful(picture):
    """Return how far each pixel is from grey."""
    pixels = np.asarray(picture).astype(int)
    return pixels.max(axis=-1) - pixels.min(axis=-1)


def tile(pixels, row, column):
    top = TITLES + row * CELL
    return pixels[top : top + CELL, column * CELL : (column + 1) * CELL]


def inner(pixels):
    return pixels[MARGIN + 1 : -MARGIN - 1, MARGIN + 1 : -MARGIN - 1]


def test_colour_lies_where_the_model_looked_and_nowhere_else():
    picture = attention_picture(*scene(), slice_pixels=EDGE)
    found = colourful(picture)
    for column, place in enumerate(((0.25, 0.25), (0.19, 0.25), (0.19, 0.75))):
        strong = inner(tile(found, 1, column)) > 100
        row, across = np.argwhere(strong).mean(axis=0) / EDGE
        # the block is 32 high and 40 wide; the second and third tile are centred in a square
        expected = place[0] if column == 0 else 0.1 + 0.8 * place[0]
        assert (row, across) == pytest.approx((expected, place[1]), abs=0.06)
        assert strong.mean() < 0.05
        assert (inner(tile(found, 0, column))[16:-16] < 40).all()


@pytest.mark.parametrize(
    ("order", "flips"), [((0, 1, 2), (0,)), ((2, 0, 1), (1, 2)), ((2, 1, 0), (0, 1, 2))]
)
def test_a_picture_looks_the_same_however_the_scan_was_prepared(order, flips):
    voxels, attention = scene(torch.rand(800).softmax(0))
    density = torch.from_numpy(attention.density).permute(order).flip(flips)
    to = np.stack([order, [-1 if axis in flips else 1 for axis in range(3)]], axis=1)
    back = np.eye(4)
    for new, (old, sign) in enumerate(to):
        back[:3, new] = 0
        back[old, new] = sign
        back[old, 3] = voxels.shape[old] - 1 if sign < 0 else 0
    grid = tuple(density.shape)
    turned = replace(
        attention,
        weights=density.flatten() / 800,
        coords=grid_coords(grid),
        grid=grid,
        affine=torch.from_numpy(back),
    )
    one = attention_picture(voxels, attention, slice_pixels=EDGE)
    other = attention_picture(voxels.permute(order).flip(flips), turned, slice_pixels=EDGE)
    off = np.abs(np.asarray(one).astype(int) - np.asarray(other))
    assert off.max() <= 2


def test_an_even_share_leaves_the_scan_as_it_is():
    voxels, attention = scene(torch.full((800,), 1 / 800))
    pixels = np.asarray(attention_picture(voxels, attention, slice_pixels=EDGE))
    for column in range(3):
        plain, coloured = (inner(tile(pixels, row, column)) for row in range(2))
        assert np.array_equal(plain, coloured)


def test_colours_get_lighter_in_equal_steps():
    linear = (np.array(WARM) / 255 + 0.055) ** 2.4 / 1.055**2.4
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    assert np.diff(lightness) == pytest.approx(np.diff(lightness).mean(), rel=0.05)


def test_pictures_that_share_a_scale_share_their_colours():
    voxels, attention = scene()
    faint = replace(attention, weights=attention.weights * 0.3 + 0.7 / 800)
    own = colourful(attention_picture(voxels, faint, slice_pixels=EDGE))
    shared = colourful(attention_picture(voxels, faint, highest=800.0, slice_pixels=EDGE))
    assert inner(tile(shared, 1, 0)).max() < inner(tile(own, 1, 0)).max()


@pytest.mark.parametrize("caption", ["", "Größe 病 " * 30])
def test_any_scan_makes_a_picture(caption):
    """Noughts only, a run, a thin slab, nothing kept."""
    voxels, attention = scene()
    run = torch.stack([voxels, voxels], dim=-1).half()
    thin = replace(
        attention, grid=(10, 10, 1), coords=grid_coords((10, 10, 1)), weights=torch.rand(100)
    )
    none = replace(attention, coords=attention.coords[:0], weights=attention.weights[:0])
    for case in (
        (0 * voxels, attention),
        (run, attention),
        (voxels[..., :4], thin),
        (voxels, none),
    ):
        picture = attention_picture(*case, caption=caption, slice_pixels=EDGE)
        assert isinstance(picture, Image.Image)
        assert picture.size == (3 * CELL, TITLES + 2 * CELL + CELL // 2 + LEGEND)
