"""Patches become features: one embedder per modality, no voxel twice, none left out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch.nn import functional as F

from neuro.data.batch import VolumeTokens
from neuro.data.tokens import grid_coords, grid_of, tokenize
from neuro.models.volume_embed import PatchEmbed, VolumeEmbed, padding_mask, volume_lengths


@dataclass(frozen=True)
class Grid:
    shape: tuple[int, ...]
    patch: tuple[int, ...]


GRIDS = {
    "T1": Grid((12, 8, 10), (6, 4, 5)),
    "dMRI": Grid((12, 8, 10), (6, 4, 5)),
    "rsfMRI": Grid((8, 6, 4, 6), (4, 3, 2, 3)),
}


def volumes(modality, *counts, seed=0):
    """Return volumes of the first so many tokens of the grid."""
    torch.manual_seed(seed)
    grid = GRIDS[modality]
    coords = grid_coords(grid_of(grid.shape, grid.patch))
    return VolumeTokens(
        tokens=torch.randn(sum(counts), math.prod(grid.patch)),
        coords=torch.cat([coords[:count] for count in counts]),
        bounds=torch.tensor([0, *counts]).cumsum(0).to(torch.int32),
    )


def test_it_is_a_convolution_whose_stride_is_its_kernel():
    grid = Grid((12, 8, 10), (6, 4, 5))  # other sizes on each axis: a swapped axis shows
    embed = PatchEmbed(grid, dim=7)
    volume = torch.randn(grid.shape)
    conv = torch.nn.Conv3d(1, 7, kernel_size=grid.patch, stride=grid.patch)
    conv.weight.data = embed.projection.weight.data.reshape(7, 1, *grid.patch)
    conv.bias.data = embed.projection.bias.data
    expected = conv(volume[None, None])[0].flatten(1).T + embed.positions
    found = embed(tokenize(volume, grid.patch), grid_coords(grid_of(grid.shape, grid.patch)))
    torch.testing.assert_close(found, expected)


def test_a_run_is_the_sum_of_convolutions_over_its_frames():
    grid = GRIDS["rsfMRI"]
    embed = PatchEmbed(grid, dim=5)
    run = torch.randn(grid.shape)
    weight = embed.projection.weight.reshape(5, *grid.patch)
    windows = []
    for start in range(0, grid.shape[3], grid.patch[3]):
        window = sum(
            F.conv3d(
                run[None, None, ..., start + frame],
                weight[:, None, ..., frame],
                stride=grid.patch[:3],
            )
            for frame in range(grid.patch[3])
        )
        windows.append(window[0])  # (dim, depth, height, width) of the grid
    expected = torch.stack(windows, dim=-1).flatten(1).T + embed.projection.bias + embed.positions
    found = embed(tokenize(run, grid.patch), grid_coords(grid_of(grid.shape, grid.patch)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("modality", GRIDS)
def test_every_voxel_and_no_class_token_reaches_the_features(modality):  # D12, D17
    grid = GRIDS[modality]
    embed = PatchEmbed(grid, dim=6)
    volume = torch.randn(grid.shape, requires_grad=True)
    coords = grid_coords(grid_of(grid.shape, grid.patch))
    features = embed(tokenize(volume, grid.patch), coords)
    assert len(features) == len(embed.positions) == math.prod(grid_of(grid.shape, grid.patch))
    features.pow(2).sum().backward()
    assert (volume.grad != 0).all()


@pytest.mark.parametrize("modality", GRIDS)
def test_tokens_in_another_order_give_the_same_features_in_that_order(modality):
    embed = PatchEmbed(GRIDS[modality], dim=6)
    one = volumes(modality, len(embed.positions))
    order = torch.randperm(len(one.tokens))
    torch.testing.assert_close(
        embed(one.tokens[order], one.coords[order]), embed(one.tokens, one.coords)[order]
    )


def test_a_token_keeps_its_position_when_others_are_dropped():
    embed = PatchEmbed(GRIDS["T1"], dim=6)
    one = volumes("T1", 8)
    kept = torch.tensor([1, 4, 7])
    torch.testing.assert_close(
        embed(one.tokens[kept], one.coords[kept]), embed(one.tokens, one.coords)[kept]
    )


def test_every_place_in_the_grid_has_a_position_of_its_own():
    for grid in GRIDS.values():
        embed = PatchEmbed(grid, dim=4)
        coords = grid_coords(grid_of(grid.shape, grid.patch))
        places = (coords * embed.strides).sum(dim=1)
        assert places.tolist() == list(range(len(embed.positions)))


def test_each_modality_has_parameters_of_its_own():  # D16
    embed = VolumeEmbed(GRIDS, dim=6)
    owners = [
        {id(parameter) for parameter in embed.embedders[modality].parameters()}
        for modality in GRIDS
    ]
    assert all(len(own) == 3 for own in owners)
    assert len(set.union(*owners)) == 9
    same = volumes("T1", 8)
    assert not torch.allclose(embed({"T1": same}), embed({"dMRI": same}))


def test_only_the_modality_that_is_shown_gets_a_gradient():  # D58
    embed = VolumeEmbed(GRIDS, dim=6)
    embed({"dMRI": volumes("dMRI", 8)}).sum().backward()
    for modality in GRIDS:
        seen = [one.grad is not None for one in embed.embedders[modality].parameters()]
        assert all(seen) if modality == "dMRI" else not any(seen)


def test_an_unknown_modality_is_an_error():  # D16
    with pytest.raises(KeyError, match="CT"):
        VolumeEmbed(GRIDS, dim=6)({"CT": volumes("T1", 8)})


def test_a_volume_that_is_not_on_the_grid_is_an_error():  # D18
    embed = PatchEmbed(GRIDS["T1"], dim=6)
    outside = volumes("T1", 8)
    outside = replace(outside, coords=outside.coords + torch.tensor([2, 0, 0], dtype=torch.int32))
    with pytest.raises(IndexError):
        embed(outside.tokens, outside.coords)


def test_a_batch_of_mixed_lengths_equals_its_volumes_one_by_one():  # D14, D15
    embed = VolumeEmbed(GRIDS, dim=6)
    given = {"rsfMRI": volumes("rsfMRI", 5, 16), "T1": volumes("T1", 8, 3)}
    out = embed(given)
    lengths = volume_lengths(given)
    assert lengths == [5, 16, 8, 3]
    assert out.shape == (4, 16, 6)
    row = 0
    for modality, packed in given.items():
        for start, end in zip(packed.bounds[:-1], packed.bounds[1:], strict=True):
            alone = embed.embedders[modality](packed.tokens[start:end], packed.coords[start:end])
            torch.testing.assert_close(out[row, : lengths[row]], alone)
            assert not out[row, lengths[row] :].any()
            row += 1


def test_the_mask_hides_exactly_the_padding():
    mask = padding_mask([2, 4], torch.device("cpu"), torch.float32)
    assert (mask[:, 0, 0] < -1e30).tolist() == [[False, False, True, True], [False] * 4]
    assert (mask[:, 0, 0, :2] == 0).all()
    assert padding_mask([3, 3], torch.device("cpu"), torch.float32) is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_features_have_the_towers_type_and_the_parameters_stay_float32(dtype):  # D25, D75
    embed = VolumeEmbed(GRIDS, dim=6, dtype=dtype)
    out = embed({"T1": volumes("T1", 8), "rsfMRI": volumes("rsfMRI", 4)})
    assert out.dtype == dtype
    out.float().sum().backward()
    trained = [one for one in embed.parameters() if one.grad is not None]
    assert {one.dtype for one in embed.parameters()} == {torch.float32}
    assert {one.grad.dtype for one in trained} == {torch.float32}


@pytest.mark.parametrize(
    ("dim", "shape", "patch", "millions"),
    [  # vlm-facts 1.5
        (1152, (96, 96, 96), (16, 16, 16), 4.97),
        (1152, (120, 120, 120), (10, 10, 10), 3.14),
        (1152, (96, 96, 96, 24), (16, 16, 16, 3), 16.15),
        (1024, (96, 96, 96), (16, 16, 16), 4.42),
        (1024, (120, 120, 120), (10, 10, 10), 2.79),
        (1024, (96, 96, 96, 24), (16, 16, 16, 3), 14.35),
    ],
)
def test_the_embedders_are_as_large_as_those_of_the_original(dim, shape, patch, millions):
    with torch.device("meta"):
        embed = PatchEmbed(Grid(shape, patch), dim)
    assert round(sum(one.numel() for one in embed.parameters()) / 1e6, 2) == millions
