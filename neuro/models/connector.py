"""From the features of an encoder to what a language model reads, series by series.

Series lie end to end and nothing is padded; what comes of a series does not depend on its batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from neuro.errors import InputError
from neuro.models.attention import CrossAttention, Segments, find_segments
from neuro.models.vit import NORM_EPS, Block

FLOOR = 1e-4  # share of the variance of all directions that the smallest of them is taken to have


class Whiten(nn.Module):
    """Takes off what tokens have in common and gives their directions the same size.

    Tokens of a pretrained encoder differ in few directions (89 % of the variance of 128 channels
    after ``experiment=jepa_phantom`` lie in two), so what a connector should read is small beside
    what it should not. The map is found once, from tokens of training images, by ``fit``; until
    then it is a norm alone. It is symmetric (ZCA, Kessy et al., 2018, arXiv:1512.00809), so no sign
    of it is a matter of chance.

    Args:
        dim: Width of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("map", torch.eye(dim))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))  # tokens
        self.center: Tensor
        self.map: Tensor
        self.num_seen: Tensor

    def forward(self, tokens: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """Return the tokens, in float32 whatever is computed in."""
        with torch.autocast(tokens.device.type, enabled=False):
            return (self._normed(tokens) - self.center) @ self.map

    @torch.no_grad()
    def fit(self, packs: Iterable[Float[Tensor, "_tokens dim"]]) -> None:
        """Find the map, unless it is known, as after a checkpoint; then nothing is looked at.

        Args:
            packs: Tokens of training images.
        """
        if self.num_seen > 0:
            return
        dim, count = len(self.center), 0
        total = torch.zeros(dim, dtype=torch.float64, device="cpu")
        products = torch.zeros(dim, dim, dtype=torch.float64, device="cpu")
        for tokens in packs:
            with torch.autocast(tokens.device.type, enabled=False):
                normed = self._normed(tokens)
                total += normed.sum(dim=0).double().cpu()
                products += (normed.T @ normed).double().cpu()
            count += len(tokens)
        mean = total / count
        sizes, directions = torch.linalg.eigh(products / count - mean.outer(mean))
        sizes = sizes.clamp(min=0) + FLOOR * sizes.sum()
        self.center.copy_(mean)
        self.map.copy_(directions / sizes.sqrt() @ directions.T)
        self.num_seen.fill_(count)

    def _normed(self, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens.float(), tokens.shape[1:], eps=NORM_EPS)


class Connector(nn.Module, ABC):
    """What the connectors share: whitened tokens, and how many features a series becomes.

    Args:
        dim: Width of a token.
        num_features: Of each series, whatever its size; None is one for each of its tokens.
    """

    def __init__(self, dim: int, num_features: int | None) -> None:
        super().__init__()
        self.num_features = num_features
        self.whiten = Whiten(dim)

    @abstractmethod
    def forward(
        self,
        tokens: Float[Tensor, "tokens dim"],
        bounds: Int[Tensor, " bounds"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "features width"]:
        """Return the features of all series, end to end.

        Args:
            tokens: What the encoder makes of each token.
            bounds: Series ``i`` owns ``tokens[bounds[i] : bounds[i + 1]]``.
            lengths: Tokens of each series, known to the host.
        """

    def feature_lengths(self, lengths: Sequence[int]) -> list[int]:
        """Return how many features each series becomes, from how many tokens it has."""
        return [length if self.num_features is None else self.num_features for length in lengths]


class MlpConnector(Connector):
    """Each token becomes a feature by itself, in two layers (LLaVA-1.5, arXiv:2310.03744).

    Args:
        dim: Width of a token.
        width: Width of the language model.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__(dim, None)
        self.fc1 = nn.Linear(dim, width)
        self.fc2 = nn.Linear(width, width)

    @override
    def forward(
        self,
        tokens: Float[Tensor, "tokens dim"],
        bounds: Int[Tensor, " bounds"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "features width"]:
        return self.fc2(F.gelu(self.fc1(self.whiten(tokens))))


class PerceiverConnector(Connector):
    """A few learned queries gather what a series shows (Perceiver, Jaegle et al., 2103.03206).

    The same queries look at every series. In each layer a query attends to the tokens of its
    series, then to the other queries of that series, so a study of many series takes
    ``num_queries`` places in the text for each, however many tokens they have (as the resampler of
    Flamingo, Alayrac et al., 2204.14198).

    Args:
        dim: Width of a token, and of the queries.
        width: Width of the language model.
        num_queries: Features of a series.
        num_layers: Times that the queries look.
        num_heads: Attention heads.
        mlp_ratio: Width of the perceptrons, as a multiple of ``dim``.

    Raises:
        InputError: The width cannot be shared out to the heads, or nothing would be asked.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        num_queries: int = 64,
        num_layers: int = 2,
        num_heads: int = 8,
        mlp_ratio: int = 4,
    ) -> None:
        super().__init__(dim, num_queries)
        if dim % num_heads or num_queries < 1 or num_layers < 1:
            raise InputError(
                f"system.vision.connector: num_heads must divide the encoder's width {dim}, and "
                f"num_queries and num_layers be at least 1; got num_heads={num_heads}, "
                f"num_queries={num_queries}, num_layers={num_layers}."
            )
        self.queries = nn.Parameter(torch.randn(num_queries, dim))
        self.layers = nn.ModuleList(Look(dim, num_heads, mlp_ratio) for _ in range(num_layers))
        self.out = nn.Sequential(nn.LayerNorm(dim, eps=NORM_EPS), nn.Linear(dim, width))

    @override
    def forward(
        self,
        tokens: Float[Tensor, "tokens dim"],
        bounds: Int[Tensor, " bounds"],
        lengths: Sequence[int],
    ) -> Float[Tensor, "features width"]:
        segments = find_segments(bounds, lengths)
        counts = self.feature_lengths(lengths)
        ends = torch.arange(len(counts) + 1, device=bounds.device) * len(self.queries)
        query_segments = find_segments(ends, counts)
        whitened = self.whiten(tokens)
        queries = self.queries.repeat(len(counts), 1)  # (features, dim)
        for layer in self.layers:
            queries = layer(queries, whitened, query_segments, segments)
        return self.out(queries)


class Look(nn.Module):
    """The queries of a series look at its tokens, then at each other.

    Args:
        dim: Width of queries and tokens.
        num_heads: Attention heads.
        mlp_ratio: Width of the perceptron, as a multiple of ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.gather = CrossAttention(dim, num_heads)
        self.block = Block(dim, num_heads, mlp_ratio)

    def forward(
        self,
        queries: Float[Tensor, "queries dim"],
        tokens: Float[Tensor, "tokens dim"],
        query_segments: Segments,
        segments: Segments,
    ) -> Float[Tensor, "queries dim"]:
        """Return the queries, changed.

        Args:
            queries: Those of all series.
            tokens: Those of all series, whitened.
            query_segments: The series of the queries.
            segments: The series of the tokens.
        """
        queries = queries + self.gather(self.norm(queries), tokens, query_segments, segments)
        return self.block(queries, query_segments, None)
