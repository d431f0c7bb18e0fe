"""Each place has its own position, and what is no place has none."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from neuro.errors import InputError
from neuro.models.position import MAX_COORD, check_channels, check_coords, sincos_positions
from neuro.models.vit import VisionTransformer


def written_out(place, channels):
    """The formula, number by number."""
    share = channels // len(place)
    return [
        wave(coordinate * 10000 ** (-2 * k / share))
        for coordinate in place
        for k in range(share // 2)
        for wave in (math.sin, math.cos)
    ]


@pytest.mark.parametrize("channels", [30, 6, 48])
def test_it_is_the_formula(channels):
    places = [(0, 0, 0), (1, 2, 3), (0, 0, 200), (37, 14, 11), (0, MAX_COORD, 1)]
    found = sincos_positions(torch.tensor(places), channels)
    want = torch.tensor([written_out(place, channels) for place in places])
    torch.testing.assert_close(found, want, atol=2e-4, rtol=0)
    torch.testing.assert_close(found[:4], want[:4], atol=2e-5, rtol=0)


def test_a_run_has_four_axes():
    found = sincos_positions(torch.tensor([(3, 1, 2, 9)]), 32)
    torch.testing.assert_close(found, torch.tensor([written_out((3, 1, 2, 9), 32)]))


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_the_type_of_coordinates_does_not_matter(dtype):
    coords = torch.tensor([[3, 1, 200]])
    assert torch.equal(sincos_positions(coords.to(dtype), 30), sincos_positions(coords, 30))


def test_no_place_has_the_position_of_another():  # S66
    one, other = sincos_positions(torch.tensor([(0, 0, 200), (0, 1, 8)]), 30)
    assert (one - other).abs().max() > 0.1  # a table of 192 columns takes one for the other
    places = [*itertools.product((0, 1, 127, 128, 300), (0, 1, 191, 192, 193), range(0, 400, 7))]
    found = sincos_positions(torch.tensor(places), 30)
    near = torch.cdist(found, found, compute_mode="donot_use_mm_for_euclid_dist")
    near.fill_diagonal_(torch.inf)
    assert near.min() > 1e-3


def test_there_is_no_table():  # S65
    with torch.device("meta"):
        encoder = VisionTransformer.preset("base")
    assert list(encoder.buffers()) == []
    assert sum(one.numel() for one in encoder.parameters()) < 86e6


@pytest.mark.parametrize("coords", [[(0, 0, -1)], [(0, 0, 0), (MAX_COORD + 1, 0, 0)]])
def test_what_is_no_place_is_an_error(coords):  # S66
    with pytest.raises(InputError, match=r"coords are places in a grid of patches.*got"):
        check_coords(torch.tensor(coords))
    encoder = VisionTransformer(36, 1, 2, patch_voxels=4)
    with pytest.raises(InputError, match="coords"):
        encoder(torch.zeros(len(coords), 4), torch.tensor(coords), torch.tensor([0, len(coords)]))


def test_places_are_no_error():
    check_coords(torch.tensor([(0, 0, 0), (MAX_COORD, 0, 5)]))
    check_coords(torch.empty(0, 3, dtype=torch.int64))


def test_where_nobody_looks_a_wrong_place_is_nan_and_no_other_place():  # S66
    found = sincos_positions(torch.tensor([(0, 0, 3), (0, -1, 3), (0, 0, MAX_COORD + 1)]), 30)
    assert found.isnan().any(dim=1).tolist() == [False, True, True]


@pytest.mark.parametrize(("channels", "cure"), [(0, 6), (32, 30), (40, 42), (72, 60), (66, 60)])
def test_channels_that_cannot_be_shared_out_are_an_error(channels, cure):
    with pytest.raises(InputError, match=rf"multiple of 6.*got {channels}. Set it to {cure}\."):
        check_channels(channels, dim=64)
    check_channels(cure, dim=64)
