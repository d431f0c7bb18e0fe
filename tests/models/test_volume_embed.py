"""Patches become features: one embedder per modality, no voxel twice, none left out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from neuro.data.batch import VolumeTokens
from neuro.data.tokens import grid_coords, grid_of, tokenize
from neuro.errors import InputError
from neuro.models.normalize import STATISTICS, normalize
from neuro.models.volume_embed import GAIN, PatchEmbed, VolumeEmbed, padding_mask, volume_lengths


@dataclass(frozen=True)
class Grid:
    shape: tuple[int, ...] | None
    patch: tuple[int, ...]


GRIDS = {
    "T1": Grid((12, 8, 10), (6, 4, 5)),
    "dMRI": Grid((12, 8, 10), (6, 4, 5)),
    "rsfMRI": Grid((8, 6, 4, 6), (4, 3, 2, 3)),
}


def packed(tokens, coords, *counts, kind="run", **more):
    """Return volumes that are a run by kind: their numbers reach the embedder as they are."""
    counts = counts or (len(tokens),)
    return VolumeTokens(
        tokens=tokens,
        coords=coords,
        bounds=torch.tensor([0, *counts]).cumsum(0).to(torch.int32),
        sizes=torch.ones(len(counts), coords.shape[1], dtype=torch.int32),
        kinds=(kind,) * len(counts),
        **more,
    )


def whole(grid, volume):
    """Return every token of one volume."""
    return packed(tokenize(volume, grid.patch), grid_coords(grid_of(grid.shape, grid.patch)))


def some(volumes, places):
    """Return some tokens of one volume, in an order."""
    return packed(volumes.tokens[places], volumes.coords[places])


def volumes(modality, *counts, seed=0):
    """Return volumes of the first so many tokens of the grid."""
    torch.manual_seed(seed)
    grid = GRIDS[modality]
    coords = grid_coords(grid_of(grid.shape, grid.patch))
    return packed(
        torch.randn(sum(counts), math.prod(grid.patch)),
        torch.cat([coords[:count] for count in counts]),
        *counts,
    )


def bytes_of(modality, *counts, kind="mri", **more):
    """Return volumes as they are cached, with whatever was drawn for them."""
    like = volumes(modality, *counts)
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 256, like.tokens.shape, generator=generator, dtype=torch.uint8)
    return packed(tokens, like.coords, *counts, kind=kind, **more)


def test_it_is_a_convolution_whose_stride_is_its_kernel():
    grid = Grid((12, 8, 10), (6, 4, 5))  # other sizes on each axis: a swapped axis shows
    embed = PatchEmbed(grid, dim=7)
    volume = torch.randn(grid.shape)
    conv = torch.nn.Conv3d(1, 7, kernel_size=grid.patch, stride=grid.patch)
    conv.weight.data = embed.projection.weight.data.reshape(7, 1, *grid.patch)
    conv.bias.data = embed.projection.bias.data
    expected = conv(volume[None, None])[0].flatten(1).T + embed.positions[0]
    found = embed(whole(grid, volume))
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
    expected = (
        torch.stack(windows, dim=-1).flatten(1).T + embed.projection.bias + embed.positions[0]
    )
    found = embed(whole(grid, run))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("modality", GRIDS)
def test_every_voxel_and_no_class_token_reaches_the_features(modality):  # D12, D17 D8
    grid = GRIDS[modality]
    embed = PatchEmbed(grid, dim=6)
    volume = torch.randn(grid.shape, requires_grad=True)
    features = embed(whole(grid, volume))
    assert len(features) == len(embed.positions[0]) == math.prod(grid_of(grid.shape, grid.patch))
    features.pow(2).sum().backward()
    assert (volume.grad != 0).all()


@pytest.mark.parametrize("modality", GRIDS)
def test_tokens_in_another_order_give_the_same_features_in_that_order(modality):
    embed = PatchEmbed(GRIDS[modality], dim=6)
    one = volumes(modality, len(embed.positions[0]))
    order = torch.randperm(len(one.tokens))
    torch.testing.assert_close(embed(some(one, order)), embed(one)[order])


def test_a_token_keeps_its_position_when_others_are_dropped():
    embed = PatchEmbed(GRIDS["T1"], dim=6)
    one = volumes("T1", 8)
    kept = torch.tensor([1, 4, 7])
    torch.testing.assert_close(embed(some(one, kept)), embed(one)[kept])


def test_every_place_in_the_grid_has_a_position_of_its_own():
    for grid in GRIDS.values():
        embed = PatchEmbed(grid, dim=4)
        coords = grid_coords(grid_of(grid.shape, grid.patch))
        places = (coords * embed.strides).sum(dim=1)
        assert places.tolist() == list(range(len(embed.positions[0])))


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
        embed(outside)


def test_a_batch_of_mixed_lengths_equals_its_volumes_one_by_one():  # D14, D15
    embed = VolumeEmbed(GRIDS, dim=6)
    given = {"rsfMRI": volumes("rsfMRI", 5, 16), "T1": volumes("T1", 8, 3)}
    out = embed(given)
    lengths = volume_lengths(given)
    assert lengths == [5, 16, 8, 3]
    assert out.shape == (4, 16, 6)
    row = 0
    for modality, several in given.items():
        for start, end in pairwise(several.bounds.tolist()):
            alone = embed.embedders[modality](some(several, slice(start, end)))
            torch.testing.assert_close(out[row, : lengths[row]], alone)
            assert not out[row, lengths[row] :].any()
            row += 1


def test_cached_bytes_are_standardized_by_the_kind_of_each_volume():  # S2
    embed = PatchEmbed(GRIDS["T1"], dim=6)
    kinds = ("mri", "bone", "brain")
    given = replace(bytes_of("T1", 8, 3, 5), kinds=kinds)
    found = embed(given)
    for (start, stop), kind in zip(pairwise(given.bounds.tolist()), kinds, strict=True):
        mean, std = STATISTICS[kind]
        tokens = (given.tokens[start:stop].float() / 255 - mean) / std
        alone = packed(tokens, given.coords[start:stop])
        torch.testing.assert_close(found[start:stop], embed(alone))


def test_what_was_drawn_for_a_volume_reaches_its_features_and_no_others():
    embed = PatchEmbed(GRIDS["T1"], dim=6)
    plain = bytes_of("T1", 8, 5)
    drawn = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.5, 0.8, 0.1, 0.2]])
    changed = replace(plain, intensity=drawn, seeds=torch.tensor([0, 7]))
    before, after = embed(plain), embed(changed)
    torch.testing.assert_close(before[:8], after[:8])
    assert not torch.isclose(before[8:], after[8:]).all(dim=1).any()
    assert torch.equal(after, embed(changed))  # drawn once, in the loader
    other = embed(replace(changed, seeds=torch.tensor([0, 8])))
    assert torch.equal(after[:8], other[:8])
    assert not torch.isclose(after[8:], other[8:]).all(dim=1).any()  # other noise


def test_looking_at_a_volume_does_not_change_it():  # S69
    given = bytes_of("T1", 8, 3)
    tokens = given.tokens.clone()
    embed = PatchEmbed(GRIDS["T1"], dim=6)
    assert torch.equal(embed(given), embed(given))
    assert torch.equal(given.tokens, tokens)


def test_a_grid_that_follows_the_scan_gets_no_embedder():
    embed = VolumeEmbed({**GRIDS, "mri": Grid(None, (4, 16, 16))}, dim=6)
    assert set(embed.embedders) == set(GRIDS)


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


def test_positions_of_axes_are_the_sum_of_one_for_each_axis():
    grid = Grid((4, 6, 8), (2, 2, 2))
    embed = PatchEmbed(grid, 5, positions="axes")
    assert [tuple(one.shape) for one in embed.axes] == [(2, 5), (3, 5), (4, 5)]
    coords = torch.tensor([[0, 0, 0], [1, 2, 3], [1, 0, 2]], dtype=torch.int32)
    packed = VolumeTokens(
        tokens=torch.zeros(3, 8, dtype=torch.uint8),
        coords=coords,
        bounds=torch.tensor([0, 3], dtype=torch.int32),
        sizes=torch.tensor([[2, 3, 4]], dtype=torch.int32),
        kinds=("mri",),
    )
    same = embed.projection(normalize(packed.tokens, packed.bounds, packed.kinds))
    expected = torch.stack(
        [sum(embed.axes[axis][int(place[axis])] for axis in range(3)) for place in coords]
    )
    expected = GAIN * expected
    torch.testing.assert_close(embed(packed), same + expected)


def test_a_step_changes_where_tokens_are_as_much_as_what_they_hold():
    torch.manual_seed(0)
    grid = Grid((120, 120, 120), (10, 10, 10))
    embed = PatchEmbed(grid, 64, positions="axes")
    tokens = torch.randint(256, (2, 1000), dtype=torch.uint8)
    packed = VolumeTokens(
        tokens=tokens,
        coords=torch.tensor([[3, 5, 7], [3, 5, 7]], dtype=torch.int32),
        bounds=torch.tensor([0, 2], dtype=torch.int32),
        sizes=torch.tensor([[12, 12, 12]], dtype=torch.int32),
        kinds=("mri",),
    )
    held = normalize(packed.tokens, packed.bounds, packed.kinds)
    before = embed.projection(held), embed(packed) - embed.projection(held)
    optimizer = torch.optim.AdamW(embed.parameters(), lr=1e-3)
    (embed(packed)[0] * torch.randn(64)).sum().backward()  # learned from one token
    optimizer.step()
    after = embed.projection(held), embed(packed) - embed.projection(held)
    what, where = (
        float((new - old)[1].detach().square().mean().sqrt())
        for old, new in zip(before, after, strict=True)  # seen in the other, at the same place
    )
    assert 0.1 < where / what < 10


def test_positions_of_another_kind_are_an_error():
    with pytest.raises(InputError, match=r"positions must be one of table, axes; got 'fourier'"):
        VolumeEmbed({}, 5, positions="fourier")
