"""Every voxel is in exactly one token, at the place that its coordinates say."""

from __future__ import annotations

import math
import re

import pytest
import torch

from neuro.data.tokens import foreground_shares, grid_coords, grid_of, tokenize, untokenize
from neuro.errors import InputError

CASES = [
    ((4, 6, 8), (2, 3, 4)),
    ((4, 6, 8), (4, 6, 8)),
    ((4, 6, 8), (1, 1, 1)),
    ((96, 96, 96), (16, 12, 32)),
    ((4, 6, 8, 10), (2, 3, 4, 5)),
    ((6, 4, 2, 9), (3, 4, 1, 3)),
]


def numbered(shape):
    return torch.arange(math.prod(shape), dtype=torch.int32).reshape(shape)


@pytest.mark.parametrize(("shape", "patch"), CASES)
def test_every_voxel_is_in_exactly_one_token(shape, patch):  # D17 D18
    voxels = numbered(shape)
    tokens = tokenize(voxels, patch)
    assert tokens.shape == (math.prod(grid_of(shape, patch)), math.prod(patch))
    assert torch.equal(tokens.flatten().sort().values, voxels.flatten())
    assert torch.equal(untokenize(tokens, grid_of(shape, patch), patch), voxels)


@pytest.mark.parametrize(("shape", "patch"), CASES)
def test_a_token_is_the_patch_at_its_coordinates(shape, patch):  # D18
    voxels = numbered(shape)
    coords = grid_coords(grid_of(shape, patch))
    tokens = tokenize(voxels, patch)
    for index in {0, 1 % len(tokens), len(tokens) // 2, len(tokens) - 1}:
        place = tuple(
            slice(int(at) * edge, (int(at) + 1) * edge)
            for at, edge in zip(coords[index], patch, strict=True)
        )
        assert torch.equal(tokens[index].reshape(patch), voxels[place])


@pytest.mark.parametrize(
    ("shape", "patch", "axis"),
    [
        ((96, 96, 96), (10, 16, 16), "D"),
        ((96, 96, 96), (16, 10, 16), "H"),
        ((96, 96, 128), (16, 16, 10), "W"),
        ((96, 96, 96, 20), (16, 16, 16, 3), "T"),
        ((96, 97, 96), (16, 16, 16), "H"),
        ((8, 8, 8), (16, 8, 8), "D"),
    ],
)
def test_a_patch_that_does_not_divide_is_an_error_with_sizes_that_work(shape, patch, axis):  # D17
    with pytest.raises(InputError, match=rf"axis {axis} of shape") as caught:
        grid_of(shape, patch)
    place = "DHWT".index(axis)
    sizes, edges = re.search(
        r"Set it to (.*), or take a patch edge out of (.*)\.", str(caught.value)
    ).groups()
    for size in map(int, re.findall(r"\d+", sizes)):
        assert size > 0
        assert size % patch[place] == 0
    for edge in map(int, re.findall(r"\d+", edges)):
        assert edge > 1
        assert shape[place] % edge == 0


@pytest.mark.parametrize("patch", [(16, 16), (16, 16, 16, 3)])
def test_a_patch_has_one_number_per_axis(patch):  # D18
    with pytest.raises(InputError, match="one number per axis"):
        grid_of((96, 96, 96), patch)


@pytest.mark.parametrize(("shape", "patch"), [((0, 4, 4), (2, 2, 2)), ((4, 4, 4), (2, 0, 2))])
def test_sizes_are_positive(shape, patch):
    with pytest.raises(InputError, match="must be positive"):
        grid_of(shape, patch)


def test_another_shape_with_as_many_voxels_is_another_grid_or_an_error():  # D18
    patch = (16, 16, 16, 3)
    assert grid_of((96, 96, 96, 24), patch) == (6, 6, 6, 8)
    assert grid_of((192, 48, 96, 24), patch) == (12, 3, 6, 8)
    for shape, axis in (((96, 96, 24, 96), "W"), ((96, 24, 96, 96), "H"), ((96, 96, 48, 49), "T")):
        with pytest.raises(InputError, match=f"axis {axis}"):
            tokenize(torch.zeros(1).expand(shape), patch)


def test_transposed_voxels_are_not_the_same_tokens():  # D18
    voxels = numbered((4, 8, 12))
    turned = voxels.permute(2, 1, 0)  # not contiguous
    tokens = tokenize(turned, (2, 2, 2))
    assert torch.equal(untokenize(tokens, grid_of((12, 8, 4), (2, 2, 2)), (2, 2, 2)), turned)
    assert not torch.equal(tokens, tokenize(voxels, (2, 2, 2)))


def test_coordinates_are_unique_and_fill_the_grid():
    coords = grid_coords((2, 3, 4, 5))
    assert len(coords.unique(dim=0)) == 2 * 3 * 4 * 5
    assert coords.amax(dim=0).tolist() == [1, 2, 3, 4]


def by_loops(voxels, patch):
    """Return the tokens, cut out one by one."""
    grid = grid_of(tuple(voxels.shape), patch)
    places = grid_coords(grid).long() * torch.tensor(list(patch))
    cut = [
        voxels[tuple(slice(int(at), int(at) + edge) for at, edge in zip(place, patch, strict=True))]
        for place in places
    ]
    return torch.stack([one.reshape(-1) for one in cut])


@pytest.mark.parametrize("dtype", ["uint8", "bool", "float16", "bfloat16", "int32", "float64"])
@pytest.mark.parametrize("edge", [1, 2, 3, 4, 6, 8, 16, 24, 48])
def test_every_type_and_every_edge_gives_the_same_tokens(dtype, edge):
    """However many voxels are copied at once."""
    generator = torch.Generator().manual_seed(edge)
    numbers = torch.randint(2 if dtype == "bool" else 200, (6, 4, 48), generator=generator)
    voxels = numbers.to(getattr(torch, dtype))
    tokens = tokenize(voxels, (3, 2, edge))
    assert tokens.dtype == voxels.dtype
    assert torch.equal(tokens, by_loops(voxels, (3, 2, edge)))
    for other in (voxels.transpose(0, 1), voxels.flip(2)[:, :, ::1], voxels[:, 1:3], voxels[1:4]):
        patch = [size // 2 or 1 if size % 2 == 0 else size for size in other.shape[:2]]
        assert torch.equal(
            tokenize(other, (*patch, edge)), by_loops(other.contiguous(), (*patch, edge))
        )
    turned = voxels.permute(2, 1, 0)  # the last axis is not the fastest
    assert torch.equal(tokenize(turned, (edge, 2, 3)), by_loops(turned.contiguous(), (edge, 2, 3)))


def test_voxels_that_do_not_begin_at_a_whole_word_give_the_same_tokens():
    memory = torch.arange(3 + 4 * 4 * 32, dtype=torch.int32).to(torch.uint8)
    voxels = memory[3:].reshape(4, 4, 32)  # as a file puts them behind its header
    assert torch.equal(tokenize(voxels, (2, 2, 16)), by_loops(voxels, (2, 2, 16)))


def test_numbers_keep_their_bits():
    odd = torch.tensor([float("nan"), -0.0, float("inf"), 1.0] * 8).reshape(2, 2, 8)
    bits = tokenize(odd, (2, 2, 4)).view(torch.int32)
    assert torch.equal(bits, by_loops(odd, (2, 2, 4)).view(torch.int32))


def test_tokens_of_numbers_that_learn_pass_their_gradient_on():
    voxels = torch.rand(4, 4, 4, requires_grad=True)
    tokenize(voxels, (2, 2, 4)).sum().backward()
    assert voxels.grad is not None


@pytest.mark.parametrize("patch", [(4, 16, 16), (16, 16, 16), (2, 8, 8), (3, 1, 1), (1, 1, 1)])
def test_the_foreground_share_is_exact_at_both_ends(patch):  # S12
    """The rules `any` and `all` stand on 255 for all and 0 for none."""
    num_voxels = math.prod(patch)
    for count in sorted({0, 1, num_voxels // 3, num_voxels // 2, num_voxels - 1, num_voxels}):
        foreground = torch.zeros(num_voxels, dtype=torch.bool)
        foreground[
            torch.randperm(num_voxels, generator=torch.Generator().manual_seed(0))[:count]
        ] = True
        share = int(foreground_shares(foreground.reshape(patch), patch))
        assert (share == 0) == (count == 0)
        assert (share == 255) == (count == num_voxels)
        assert abs(share - 255 * count / num_voxels) <= 1


def test_the_foreground_share_is_that_of_its_token():
    foreground = torch.zeros(8, 8, 8, dtype=torch.bool)
    foreground[0, 0, 0] = True  # one voxel of 64
    foreground[4:, 4:, 4:] = True
    foreground[:4, 4:, :2] = True  # half of its token
    shares = foreground_shares(foreground, (4, 4, 4)).reshape(2, 2, 2)
    assert shares[0, 0, 0] == 4
    assert shares[1, 1, 1] == 255
    assert shares[0, 1, 0] == 128
    assert int((shares > 0).sum()) == 3
