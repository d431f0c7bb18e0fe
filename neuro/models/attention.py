"""Attention over packed tokens: each segment sees itself, none sees another, nothing is padded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

# It would say at each call which kernel it uses, and Hydra shows what is said at level INFO.
logging.getLogger("torch.nn.attention.varlen").setLevel(logging.WARNING)

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

KERNEL_CAPABILITY = (8, 0)  # Ampere; PyTorch builds its flash attention for nothing older
KERNEL_HEAD_DIM = 256  # the widest head that it takes


def uncompiled(function: FunctionT) -> FunctionT:
    """Return a function that ``torch.compile`` leaves as it is."""
    plain: Any = torch.compiler.disable(function)
    return plain


class Segments(NamedTuple):
    """Where the segments of a pack lie, told to the device and to the host once a batch.

    Attributes:
        bounds: Segment ``i`` owns tokens ``bounds[i]`` to ``bounds[i + 1]``; int32, on the device.
        host_bounds: The same on the host. A tensor, since compiled code is made for each length of
            a tuple; and not lengths, since it is made for a tensor of one number too.
        longest: The largest of them.
        kernel: Whether the device has a kernel for packed tokens in half precision.
    """

    bounds: Int[Tensor, " bounds"]
    host_bounds: Int[Tensor, " bounds"]
    longest: int
    kernel: bool


@uncompiled  # the lengths of a batch are data, and no reason to compile again
def find_segments(bounds: Int[Tensor, " bounds"], lengths: Sequence[int] | None = None) -> Segments:
    """Return the segments between bounds.

    Args:
        bounds: Where each segment begins; the last one is the number of tokens.
        lengths: ``bounds.diff()`` on the host, if it is known there. Without it the host waits for
            the device, once.
    """
    if lengths is None:
        lengths = [stop - start for start, stop in pairwise(bounds.tolist())]
    assert len(lengths) == len(bounds) - 1, "each segment has a length"
    kernel = (
        bounds.is_cuda
        and torch.version.hip is None
        and torch.cuda.get_device_capability(bounds.device) >= KERNEL_CAPABILITY
    )
    return Segments(
        bounds=bounds.int().contiguous(),
        host_bounds=torch.tensor([0, *lengths], dtype=torch.int64, device="cpu").cumsum(0),
        longest=max(lengths, default=0),
        kernel=kernel,
    )


def packed_attention(
    query: Float[Tensor, "queries heads head_dim"],
    key: Float[Tensor, "keys heads head_dim"],
    value: Float[Tensor, "keys heads head_dim"],
    segments: Segments,
    key_segments: Segments | None = None,
) -> Float[Tensor, "queries heads head_dim"]:
    """Return softmax(query key^T / sqrt(head_dim)) value, segment by segment.

    On CUDA in half precision this is one call of a kernel for packed tokens, which reads the bounds
    on the device. Anywhere else it is one call per segment: on two cores 2.5 times as fast as
    padding with a mask. Scores between two segments are never computed, and no matrix of scores
    is ever kept.

    Args:
        query: What asks.
        key: What is asked.
        value: What is answered.
        segments: The segments of the queries.
        key_segments: Those of keys and values, as many as there are of queries. None if they are
            the same, which is self-attention.
    """
    keys = segments if key_segments is None else key_segments
    if segments.kernel and _fits_kernel(query):
        packed = varlen_attn(
            query, key, value, segments.bounds, keys.bounds, segments.longest, keys.longest
        )
        assert isinstance(packed, Tensor)
        return packed
    return _by_segment(query, key, value, segments.host_bounds, keys.host_bounds)


def _fits_kernel(query: Float[Tensor, "queries heads head_dim"]) -> bool:
    head_dim = query.shape[-1]
    half = query.dtype in (torch.float16, torch.bfloat16)
    return half and head_dim % 8 == 0 and head_dim <= KERNEL_HEAD_DIM


@uncompiled  # a loop over segments would be compiled again for each batch
def _by_segment(
    query: Float[Tensor, "queries heads head_dim"],
    key: Float[Tensor, "keys heads head_dim"],
    value: Float[Tensor, "keys heads head_dim"],
    bounds: Int[Tensor, " bounds"],
    key_bounds: Int[Tensor, " bounds"],
) -> Float[Tensor, "queries heads head_dim"]:
    # One split, not a slice per segment: the gradient of each slice is as large as the pack.
    asking, asked = bounds.diff().tolist(), key_bounds.diff().tolist()
    parts = zip(query.split(asking), key.split(asked), value.split(asked), strict=True)
    found = []
    for part in parts:
        heads_first = [one.transpose(0, 1).unsqueeze(0) for one in part]
        attended = F.scaled_dot_product_attention(
            heads_first[0], heads_first[1], heads_first[2]
        )  # (1, heads, queries of the segment, head_dim)
        found.append(attended.squeeze(0).transpose(0, 1))
    return torch.cat(found)


class SelfAttention(nn.Module):
    """Attention of each volume's tokens to each other.

    Args:
        dim: Width of a token.
        num_heads: Heads that the width is shared out to.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self, tokens: Float[Tensor, "tokens dim"], segments: Segments
    ) -> Float[Tensor, "tokens dim"]:
        """Return what each token gathers from its volume."""
        three = self.qkv(tokens).unflatten(1, (3, self.num_heads, -1))
        query, key, value = three.unbind(1)
        gathered = packed_attention(query, key, value, segments)  # (tokens, heads, head_dim)
        return self.proj(gathered.flatten(1))


class CrossAttention(nn.Module):
    """Attention of each volume's queries to its tokens.

    Args:
        dim: Width of queries and tokens.
        num_heads: Heads that the width is shared out to.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(
        self,
        queries: Float[Tensor, "queries dim"],
        tokens: Float[Tensor, "tokens dim"],
        query_segments: Segments,
        segments: Segments,
    ) -> Float[Tensor, "queries dim"]:
        """Return what each query gathers from its volume.

        Args:
            queries: What asks.
            tokens: What is asked.
            query_segments: The volumes of the queries.
            segments: The volumes of the tokens, as many.
        """
        query = self.query(queries).unflatten(1, (self.num_heads, -1))
        key, value = self.key_value(tokens).unflatten(1, (2, self.num_heads, -1)).unbind(1)
        gathered = packed_attention(query, key, value, query_segments, segments)
        return self.proj(gathered.flatten(1))
