"""Packed attention is attention of each segment by itself, and costs no more."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode

from neuro.models import attention
from neuro.models.attention import (
    CrossAttention,
    SelfAttention,
    find_segments,
    packed_attention,
)


def bounds_of(lengths):
    return torch.tensor([0, *lengths]).cumsum(0)


def padded_attention(query, key, value, lengths, key_lengths):
    """The formula, over padding and a mask."""
    asking, asked, answers = (
        pad_sequence(one.split(sizes), batch_first=True).transpose(1, 2)
        for one, sizes in ((query, lengths), (key, key_lengths), (value, key_lengths))
    )  # (segments, heads, longest, head_dim)
    real = torch.arange(max(key_lengths)) < torch.tensor(key_lengths).unsqueeze(1)
    scores = asking @ asked.transpose(2, 3) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~real[:, None, None], -torch.inf).softmax(dim=-1)
    found = (weights @ answers).transpose(1, 2)
    return torch.cat([one[:size] for one, size in zip(found, lengths, strict=True)])


def draw(*sizes, heads=3, head_dim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(size, heads, head_dim, generator=generator).requires_grad_() for size in sizes
    ]


@pytest.mark.parametrize(
    ("lengths", "key_lengths"),
    [([5, 1, 33, 12], None), ([7], None), ([4, 4, 4], None), ([3, 9, 1], [20, 2, 7])],
    ids=["ragged", "alone", "even", "cross"],
)
def test_it_equals_padded_attention_and_so_do_its_gradients(lengths, key_lengths):  # S67, S79
    keys = key_lengths or lengths
    three = draw(sum(lengths), sum(keys), sum(keys))
    key_segments = None if key_lengths is None else find_segments(bounds_of(key_lengths))
    packed = packed_attention(*three, find_segments(bounds_of(lengths)), key_segments)
    padded = padded_attention(*three, lengths, keys)
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)
    weight = torch.randn_like(padded)
    for one, other in zip(
        torch.autograd.grad((packed * weight).sum(), three),
        torch.autograd.grad((padded * weight).sum(), three),
        strict=True,
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_segment_without_tokens_takes_no_part():
    three = draw(9, 9, 9)
    with_gap = packed_attention(*three, find_segments(torch.tensor([0, 4, 4, 9])))
    without = packed_attention(*three, find_segments(torch.tensor([0, 4, 9])))
    assert torch.equal(with_gap, without)


def test_no_segment_sees_another():
    query, key, value = draw(9, 9, 9)
    segments = find_segments(torch.tensor([0, 4, 9]))
    packed_attention(query, key, value, segments)[:4].sum().backward()
    for one in (query, key, value):
        assert one.grad is not None
        assert not one.grad[4:].any()
    assert value.grad[:4].all()


class Largest(TorchDispatchMode):
    """Remembers the largest result of any operation."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.numel())
        return result


def test_no_matrix_of_scores_is_ever_made():  # S67
    lengths = [512, 300, 700, 512]
    three = draw(*[sum(lengths)] * 3, heads=1, head_dim=8)
    with Largest() as largest:
        packed_attention(*three, find_segments(bounds_of(lengths))).sum().backward()
    assert largest.numel < min(lengths) ** 2 < sum(lengths) ** 2
    assert largest.numel <= 3 * sum(lengths) * 8


def test_lengths_that_the_host_knows_are_not_asked_of_the_device():  # S56, S80
    bounds = torch.tensor([0, 5, 9], device="meta")  # to read a number from it is an error
    segments = find_segments(bounds, (5, 4))
    assert (segments.host_bounds.tolist(), segments.longest) == ([0, 5, 9], 5)
    packed = packed_attention(*(one.to("meta") for one in draw(9, 9, 9)), segments)
    assert packed.shape == (9, 3, 16)


def test_without_lengths_they_are_those_between_bounds():
    segments = find_segments(torch.tensor([0, 3, 3, 10]))
    assert (segments.host_bounds.tolist(), segments.longest) == ([0, 3, 3, 10], 7)
    assert segments.bounds.dtype == torch.int32
    assert not segments.kernel  # this is a CPU


@pytest.mark.parametrize(
    ("dtype", "head_dim", "kernel"),
    [
        (torch.bfloat16, 64, True),
        (torch.float16, 80, True),
        (torch.float32, 64, False),
        (torch.bfloat16, 20, False),
        (torch.bfloat16, 264, False),
    ],
)
def test_the_kernel_gets_what_it_can_compute(monkeypatch, dtype, head_dim, kernel):
    calls = []

    def watched(query, key, value, bounds, key_bounds, longest, key_longest):
        calls.append((bounds.tolist(), key_bounds.tolist(), longest, key_longest))
        assert bounds.dtype == key_bounds.dtype == torch.int32
        return torch.zeros_like(query)

    monkeypatch.setattr(attention, "varlen_attn", watched)
    segments = find_segments(torch.tensor([0, 4, 9]))._replace(kernel=True)
    keys = find_segments(torch.tensor([0, 1, 9]))._replace(kernel=True)
    three = [one.to(dtype) for one in draw(9, 9, 9, head_dim=head_dim)]
    packed_attention(*three, segments, keys)
    assert calls == ([([0, 4, 9], [0, 1, 9], 5, 8)] if kernel else [])


@pytest.mark.parametrize(("capability", "has"), [((9, 0), True), ((8, 0), True), ((7, 5), False)])
def test_a_device_is_asked_whether_it_has_the_kernel(monkeypatch, capability, has):  # S62
    """Where it has none, the loop takes over; nothing is found missing at the first call."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode(), torch.no_grad():  # no CUDA is needed to look at such a tensor
        segments = find_segments(torch.tensor([0, 4, 9], device="cuda"), (4, 5))
    assert segments.kernel == has


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_real_kernel_and_its_gradient_take_what_they_are_given(dtype):  # S62
    """On meta tensors there is its signature, and nothing is computed."""
    qkv = torch.randn(9, 3, 2, 64, device="meta", dtype=dtype, requires_grad=True)
    bounds = torch.tensor([0, 4, 9], device="meta")
    segments = find_segments(bounds, (4, 5))._replace(kernel=True)
    packed = packed_attention(*qkv.unbind(1), segments)
    assert (packed.shape, packed.dtype) == ((9, 2, 64), dtype)
    packed.sum().backward()
    assert (qkv.grad.shape, qkv.grad.dtype) == (qkv.shape, dtype)


def test_self_attention_has_the_layout_of_the_weights_it_loads():
    """Rows of the joint layer: queries, keys, values; in each, head by head."""
    torch.manual_seed(0)
    layer, tokens = SelfAttention(12, 3), torch.randn(7, 12)
    query, key, value = (
        F.linear(tokens, weight, bias).view(7, 3, 4)
        for weight, bias in zip(layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3), strict=True)
    )
    want = padded_attention(query, key, value, [5, 2], [5, 2]).flatten(1) @ layer.proj.weight.T
    torch.testing.assert_close(layer(tokens, find_segments(torch.tensor([0, 5, 7]))), want)


def test_queries_gather_from_the_tokens_of_their_own_volume():
    """Rows of the joint layer: keys, values; in each, head by head."""
    torch.manual_seed(0)
    layer, queries, tokens = CrossAttention(12, 3), torch.randn(4, 12), torch.randn(9, 12)
    query = layer.query(queries).view(4, 3, 4)
    key, value = (
        F.linear(tokens, weight, bias).view(9, 3, 4)
        for weight, bias in zip(
            layer.key_value.weight.chunk(2), layer.key_value.bias.chunk(2), strict=True
        )
    )
    want = padded_attention(query, key, value, [3, 1], [2, 7]).flatten(1) @ layer.proj.weight.T
    found = layer(queries, tokens, *(find_segments(bounds_of(one)) for one in ([3, 1], [2, 7])))
    torch.testing.assert_close(found, want)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [64, 80])
@pytest.mark.parametrize("key_lengths", [None, [20, 300, 7, 65]], ids=["self", "cross"])
def test_on_cuda_it_is_the_same(dtype, head_dim, key_lengths):
    lengths = [5, 1, 333, 128]
    keys = key_lengths or lengths
    three = draw(sum(lengths), sum(keys), sum(keys), head_dim=head_dim)
    on_cuda = [one.detach().cuda().to(dtype).requires_grad_() for one in three]
    segments = find_segments(bounds_of(lengths).cuda())
    assert segments.kernel
    key_segments = None if key_lengths is None else find_segments(bounds_of(key_lengths).cuda())
    packed = packed_attention(*on_cuda, segments, key_segments)
    padded = padded_attention(*three, lengths, keys)
    near = {"atol": 1e-4 if dtype == torch.float32 else 3e-2, "rtol": 0}
    torch.testing.assert_close(packed.float().cpu(), padded, **near)
    weight = torch.randn_like(padded)
    for one, other in zip(
        torch.autograd.grad((packed * weight.cuda().to(dtype)).sum(), on_cuda),
        torch.autograd.grad((padded * weight).sum(), three),
        strict=True,
    ):
        torch.testing.assert_close(one.float().cpu(), other, **near)
