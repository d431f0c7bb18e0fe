"""Masks are disjoint, as large as asked, drawn by seed, and never made up."""

from __future__ import annotations

import pytest
import torch

from neuro.data.masking import BlockMask
from neuro.errors import InputError


def ball(size, radius=0.95):
    """Return the grid positions inside an ellipsoid that fills so much of a grid."""
    axes = [torch.linspace(-1, 1, one) for one in size]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    return torch.nonzero(place.norm(dim=-1) <= radius).to(torch.int32)


def drawn(coords, size, seed, mask=None, is_ct=False):
    generator = torch.Generator().manual_seed(seed)
    return (mask or BlockMask()).draw(coords, size, is_ct=is_ct, generator=generator)


SIZES = [(12, 14, 12), (45, 16, 16), (9, 14, 14), (16, 10, 11), (20, 20, 20)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("is_ct", "share"), [(False, 0.25), (True, 0.2)])
@pytest.mark.parametrize("radius", [0.7, 0.95, 1.2])
def test_the_context_has_the_asked_share(size, is_ct, share, radius):  # S1
    coords = ball(size, radius)
    shares = []
    for seed in range(60):
        context = drawn(coords, size, seed, is_ct=is_ct)
        assert context is not None
        assert context.dtype == torch.bool  # S1: an inverted uint8 would be 254 and 255
        shares.append(float(context.float().mean()))
    assert max(shares) <= share + 0.02
    assert torch.tensor(shares).median() == pytest.approx(share, abs=0.02)


def test_almost_no_volume_is_left_out():  # S1, S19
    left_out = sum(
        drawn(ball(size, radius), size, seed) is None
        for size in SIZES
        for radius in (0.6, 0.8, 1.0)
        for seed in range(40)
    )
    assert left_out <= 0.005 * len(SIZES) * 3 * 40


def test_context_and_target_are_all_there_is():
    coords = ball((12, 14, 12))
    context = drawn(coords, (12, 14, 12), 3)
    assert context.shape == (len(coords),)
    assert 0 < int(context.sum()) < len(coords)


@pytest.mark.parametrize("inside", [False, True])
def test_a_block_through_all_slices_is_hidden_or_seen(inside):  # S21
    size = (12, 16, 16)
    coords = ball(size, 2.0)
    mask = BlockMask(
        context_inside=inside, context_share=0.9, context_share_ct=0.9, context_range=(0.01, 0.99)
    )
    for seed in range(20):
        context = drawn(coords, size, seed, mask)
        plane = context.reshape(size)
        assert (plane == plane[:1]).all()  # nothing was thinned: the same in all slices
        area = int((plane[0] if inside else ~plane[0]).sum())
        rows = (plane[0] if inside else ~plane[0]).any(dim=1).sum()
        columns = (plane[0] if inside else ~plane[0]).any(dim=0).sum()
        assert area == int(rows * columns)  # a rectangle
        assert area == pytest.approx(0.7 * 256, rel=0.15) or 16 in (int(rows), int(columns))


def test_the_same_seed_gives_the_same_mask_and_another_another():  # S27
    coords = ball((12, 14, 12))
    one, two, other = (drawn(coords, (12, 14, 12), seed) for seed in (5, 5, 6))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_every_token_is_seen_sometimes_and_hidden_sometimes():
    coords = ball((12, 14, 12))
    masks = torch.stack([drawn(coords, (12, 14, 12), seed) for seed in range(400)]).float()
    assert masks.mean(dim=0).min() >= 0  # the very middle may always be hidden
    assert (masks.mean(dim=0) > 0).float().mean() > 0.8
    assert masks.mean(dim=0).max() < 1


@pytest.mark.parametrize("num_tokens", [0, 1])
def test_a_volume_that_admits_no_mask_gives_none(num_tokens):  # S19
    coords = torch.zeros(num_tokens, 3, dtype=torch.int32)
    assert drawn(coords, (4, 4, 4), 1) is None


def test_a_range_that_nothing_meets_gives_none():  # S19
    mask = BlockMask(context_range=(0.6, 0.7))
    assert drawn(ball((12, 14, 12)), (12, 14, 12), 1, mask) is None


def test_where_foreground_lies_decides_and_not_the_volume():  # S1
    size = (10, 16, 16)
    corner = ball((10, 8, 8), 1.0)  # all of the head in one corner of the grid
    hidden = 0.0
    for seed in range(30):
        context = drawn(corner, size, seed, BlockMask(context_share=0.99, context_range=(0.0, 1.0)))
        hidden += 1 - float(context.float().mean())
    assert hidden / 30 > 0.3  # a uniform block of this size would hide 0.05


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_share": 0.0},
        {"context_share": 1.0},
        {"context_share_ct": -0.1},
        {"aspect_ratio": (3.0, 0.3)},
        {"aspect_ratio": (0.0, 1.0)},
        {"context_range": (0.5, 0.1)},
        {"num_tries": 0},
    ],
)
def test_wrong_numbers_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        BlockMask(**wrong)
