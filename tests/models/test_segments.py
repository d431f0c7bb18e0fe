"""A softmax or a sum over a pack is that of each segment by itself."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from neuro.models import segments
from neuro.models.segments import (
    owners,
    segment_means,
    segment_softmax,
    segment_sums,
    weighted_sums,
)

LENGTHS = [[5, 1, 33, 12], [7], [4, 4, 4, 4, 4], [1] * 9, [16, 8, 24]]


def bounds_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).requires_grad_()


def one_by_one(function, lengths, *packs):
    parts = zip(*(pack.split(lengths) for pack in packs), strict=True)
    return [function(*part) for part in parts]


PACKED = {
    "softmax": (
        lambda weights, values, bounds: segment_softmax(weights, bounds),
        lambda weights, values, lengths: torch.cat(
            one_by_one(lambda one: one.softmax(0), lengths, weights)
        ),
    ),
    "sums": (
        lambda weights, values, bounds: segment_sums(weights, bounds),
        lambda weights, values, lengths: torch.stack(
            one_by_one(lambda one: one.sum(0), lengths, weights)
        ),
    ),
    "means": (
        lambda weights, values, bounds: segment_means(weights, bounds),
        lambda weights, values, lengths: torch.stack(
            one_by_one(lambda one: one.mean(0), lengths, weights)
        ),
    ),
    "weighted sums": (
        weighted_sums,
        lambda weights, values, lengths: torch.stack(
            one_by_one(lambda one, other: one.T @ other, lengths, weights, values)
        ),
    ),
}


@pytest.fixture(autouse=True, params=[(8, 2), (3, 100), (256, 32)], ids=str)
def blocks(request, monkeypatch):
    """Blocks that end within segments, at their ends and beyond them; one chunk and several."""
    monkeypatch.setattr(segments, "BLOCK_ROWS", request.param[0])
    monkeypatch.setattr(segments, "CHUNK_BLOCKS", request.param[1])


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_packed_equals_one_by_one_and_so_do_gradients(name, lengths):
    packed, plain = PACKED[name]
    packs = draw(sum(lengths), 3), draw(sum(lengths), 5, seed=1)
    found, expected = packed(*packs, bounds_of(lengths)), plain(*packs, lengths)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    direction = draw(*expected.shape, seed=2).detach()
    for one, other in zip(
        torch.autograd.grad((found * direction).sum(), packs, allow_unused=True),
        torch.autograd.grad((expected * direction).sum(), packs, allow_unused=True),
        strict=True,
    ):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
def test_what_is_wrong_in_one_segment_stays_there(name, dtype):
    packed, plain = PACKED[name]
    lengths = [5, 11, 9]
    packs = [draw(25, 3), draw(25, 5, seed=1)]
    broken = [pack.detach().clone() for pack in packs]
    for pack in broken:
        pack[5:16] = torch.nan
    broken = [pack.requires_grad_() for pack in broken]
    found = packed(*broken, bounds_of(lengths).to(dtype))
    expected = plain(*packs, lengths)
    own = [
        torch.cat([one[:5], one[16:]]) if len(one) == 25 else one[::2] for one in (found, expected)
    ]
    torch.testing.assert_close(*own)
    for grad in torch.autograd.grad(own[0].square().sum(), broken, allow_unused=True):
        assert grad is None or torch.cat([grad[:5], grad[16:]]).isfinite().all()


@pytest.mark.parametrize("name", PACKED)
def test_a_row_of_another_segment_has_no_gradient_at_all(name):
    packs = draw(20, 3), draw(20, 5, seed=1)
    found = PACKED[name][0](*packs, bounds_of([6, 14]))
    own = found[:6] if len(found) == 20 else found[:1]
    for grad in torch.autograd.grad(own.square().sum(), packs, allow_unused=True):
        assert grad is None or torch.equal(grad[6:], torch.zeros_like(grad[6:]))


def test_scores_may_be_as_large_as_they_like():
    scores = torch.tensor([[1e30], [-1e30], [3e4], [3e4 + 1]])
    weights = segment_softmax(scores, torch.tensor([0, 2, 4]))
    torch.testing.assert_close(weights[:2, 0], torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(weights[2:, 0], torch.tensor([0.0, 1.0]).softmax(0))


def test_weights_of_a_segment_sum_to_one_in_each_column():
    bounds = bounds_of([4, 1, 20])
    weights = segment_softmax(5 * draw(25, 7), bounds)
    torch.testing.assert_close(segment_sums(weights, bounds), torch.ones(3, 7))


def test_each_row_has_its_segment():
    assert owners(torch.tensor([0, 2, 3, 6]), 6).tolist() == [0, 0, 1, 2, 2, 2]


class Counted(TorchDispatchMode):
    """Counts operations, and the numbers in the largest result."""

    def __init__(self):
        super().__init__()
        self.count = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += 1
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def work(lengths, columns, dim=5):
    weights, values = draw(sum(lengths), columns), draw(sum(lengths), dim, seed=1)
    bounds = bounds_of(lengths)
    with Counted() as counted:
        weighted_sums(segment_softmax(weights, bounds), values, bounds).sum().backward()
    return counted


def test_more_segments_and_more_columns_take_no_more_operations(monkeypatch):  # S75
    monkeypatch.setattr(segments, "CHUNK_BLOCKS", 1000)
    few = work([60, 60], 2).count
    assert work([5] * 24, 2).count == work([60, 60], 50).count == few


def test_there_is_never_a_matrix_for_each_row(monkeypatch):
    monkeypatch.setattr(segments, "BLOCK_ROWS", 16)
    monkeypatch.setattr(segments, "CHUNK_BLOCKS", 2)
    rows, columns, dim = 400, 20, 30
    assert work([200, 200], columns, dim).largest == rows * dim
