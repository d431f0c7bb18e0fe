"""From the tokens of a study to its findings: attention, additive attention, and the mean.

Studies lie end to end, and nothing is padded. A result depends on the tokens of its own study
alone, not on their order, and there is no loop over studies or findings. All is computed in
float32, whatever autocast says: beside an encoder it costs little, and a softmax over ten thousand
tokens in half precision is wrong.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from neuro.errors import InputError
from neuro.models.segments import (
    owners,
    segment_means,
    segment_softmax,
    segment_sums,
    weighted_sums,
)

NORM_EPS = 1e-6
INIT_STD = 0.02


class Explanation(NamedTuple):
    """What is found in each study, and where.

    Attributes:
        logits: One per finding, or per class; for a regression the number itself.
        weights: Share of each token in each output; over a study they sum to one.
        contributions: What each token adds: over a study they sum to the logit less the bias. None
            where a head that is no sum stands between tokens and logits.
    """

    logits: Float[Tensor, "studies outputs"]
    weights: Float[Tensor, "tokens outputs"]
    contributions: Float[Tensor, "tokens outputs"] | None


class Pool(nn.Module, ABC):
    """What the three poolings share: a norm, and a scale and a bias of each output.

    The norm has no parameters: the linear layers after it can do what they would, and without
    them no gradient of the tokens is needed where the encoder is frozen.

    Args:
        dim: Width of a token.
        num_outputs: One for each finding, each class or each number to be told.
        normalize: Whether tokens are layer-normed first.
    """

    def __init__(self, dim: int, num_outputs: int, normalize: bool) -> None:
        super().__init__()
        self.dim = dim
        self.num_outputs = num_outputs
        self.normalize = normalize
        self.scale = nn.Parameter(torch.ones(num_outputs))
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        self.register_buffer("center", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))
        self.center: Tensor
        self.spread: Tensor

    def forward(
        self, tokens: Float[Tensor, "tokens dim"], bounds: Int[Tensor, " bounds"]
    ) -> Float[Tensor, "bounds-1 outputs"]:
        """Return the logits of each study.

        Args:
            tokens: What the encoder makes of each token.
            bounds: Study ``i`` owns ``tokens[bounds[i] : bounds[i + 1]]``, one token at least.
        """
        return self.explain(tokens, bounds).logits

    def explain(
        self, tokens: Float[Tensor, "tokens dim"], bounds: Int[Tensor, " bounds"]
    ) -> Explanation:
        """Return the logits of each study, and the part of each token in them."""
        with torch.autocast(tokens.device.type, enabled=False):
            return self._explain(self._normed(tokens), bounds)

    @torch.no_grad()
    def study_means(
        self, tokens: Float[Tensor, "tokens dim"], bounds: Int[Tensor, " bounds"]
    ) -> Float[Tensor, "bounds-1 dim"]:
        """Return the mean token of each study, as ``standardize`` wants it."""
        return segment_means(self._normed(tokens), bounds)

    @torch.no_grad()
    def standardize(self, means: Float[Tensor, "studies dim"]) -> None:
        """Let the head see how a study differs from the training studies, in their deviations.

        Means over a thousand tokens differ little from study to study, beside what they have in
        common; a head that sees them as they are learns next to nothing.

        Args:
            means: Of the training studies; see ``study_means``.
        """
        self.center.copy_(means.mean(dim=0))
        spread = means.std(dim=0, correction=0)
        self.spread.copy_(spread.where(spread > 0, torch.ones(())))

    def _normed(self, tokens: Tensor) -> Tensor:
        tokens = tokens.float()
        return F.layer_norm(tokens, (self.dim,), eps=NORM_EPS) if self.normalize else tokens

    def _standardized(self, features: Tensor) -> Tensor:
        return (features - self.center) / self.spread

    @torch.no_grad()
    def start_at(
        self, bias: Float[Tensor, " outputs"], scale: Float[Tensor, " outputs"] | None = None
    ) -> None:
        """Let outputs begin near the log-odds, or the mean, of the training studies.

        Args:
            bias: What an output is when tokens say nothing.
            scale: How far outputs reach: for a regression, the standard deviation of the label.
        """
        self.bias.copy_(bias)
        if scale is not None:
            self.scale.copy_(scale)

    @abstractmethod
    def _explain(self, tokens: Tensor, bounds: Tensor) -> Explanation: ...


class GatedAttention(nn.Module):
    """A score of each token for each output (Ilse et al., 2018, arXiv:1802.04712, eq. 9).

    The last layer has no bias, since a softmax takes it away.

    Args:
        dim: Width of a token.
        hidden_dim: Width of the two layers, value and gate.
        num_scores: Scores of a token.
        dropout: Share of a token's features that is hidden from the scores while training.
    """

    def __init__(self, dim: int, hidden_dim: int, num_scores: int, dropout: float) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise InputError(f"system.pool.dropout must be at least 0 and below 1; got {dropout}.")
        self.dropout = nn.Dropout(dropout)
        self.value = nn.Linear(dim, hidden_dim)
        self.gate = nn.Linear(dim, hidden_dim)
        self.score = nn.Linear(hidden_dim, num_scores, bias=False)
        _initialize(self)

    def forward(
        self, tokens: Float[Tensor, "tokens dim"], bounds: Int[Tensor, " bounds"]
    ) -> Float[Tensor, "tokens scores"]:
        """Return the weights of the tokens of each study, which sum to one in each column."""
        tokens = self.dropout(tokens)
        hidden = torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens))
        return segment_softmax(self.score(hidden), bounds)


class Head(nn.Module):
    """A perceptron, or a linear layer where no hidden width is given.

    Args:
        dim: Width of a feature.
        hidden_dims: Widths between the layers.
        num_outputs: Outputs. They have no bias here: a pool has one.
    """

    def __init__(self, dim: int, hidden_dims: Sequence[int], num_outputs: int) -> None:
        super().__init__()
        widths = (dim, *hidden_dims)
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += [nn.Linear(width, next_width), nn.GELU()]
        self.hidden = nn.Sequential(*layers)
        self.last = nn.Linear(widths[-1], num_outputs, bias=False)
        _initialize(self)

    def forward(self, features: Float[Tensor, "things dim"]) -> Float[Tensor, "things outputs"]:
        """Return every output of each feature."""
        return self.last(self.hidden(features))

    def of_own(
        self, features: Float[Tensor, "studies own dim"]
    ) -> Float[Tensor, "studies outputs"]:
        """Return each output of its own feature, or of the only one."""
        return (self.hidden(features) * self.last.weight).sum(dim=2)


class AttentionPool(Pool):
    """Aggregate, then classify: a head judges what attention gathers from a study.

    Each output has an attention of its own, and the head's hidden layers are shared. The features
    that are gathered are those that are scored, but without dropout. With no hidden layer it is
    the same function of the tokens as ``AdditivePool``.

    Args:
        dim: Width of a token.
        hidden_dim: Width of the attention.
        num_outputs: One for each finding, each class or each number to be told.
        head_dims: Widths of the head's hidden layers.
        dropout: Share of a token's features that is hidden from the attention while training.
        normalize: Whether tokens are layer-normed first.
        attention_per_output: False for a single attention that all outputs share.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_outputs: int,
        head_dims: Sequence[int] = (),
        dropout: float = 0.0,
        normalize: bool = True,
        attention_per_output: bool = True,
    ) -> None:
        super().__init__(dim, num_outputs, normalize)
        num_scores = num_outputs if attention_per_output else 1
        self.attention = GatedAttention(dim, hidden_dim, num_scores, dropout)
        self.head = Head(dim, head_dims, num_outputs)

    @override
    def _explain(
        self, tokens: Float[Tensor, "tokens dim"], bounds: Int[Tensor, " bounds"]
    ) -> Explanation:
        weights = self.attention(tokens, bounds)
        gathered = weighted_sums(weights, tokens, bounds)  # (studies, scores, dim)
        gathered = self._standardized(gathered)
        logits = self.scale * self.head.of_own(gathered) + self.bias
        return Explanation(logits, weights.expand(-1, self.num_outputs), None)


class AdditivePool(Pool):
    """Classify, then aggregate: logits of tokens are summed under attention.

    Additive MIL (Javed et al., 2022, arXiv:2206.01794): what a token adds to a logit is exact, and
    shows where a finding is seen.

    Args:
        dim: Width of a token.
        hidden_dim: Width of the attention.
        num_outputs: One for each finding, each class or each number to be told.
        head_dims: Widths of the hidden layers of the head that judges a token.
        dropout: Share of a token's features that is hidden while training, from the attention and,
            drawn anew, from the head.
        normalize: Whether tokens are layer-normed first.
        attention_per_output: False for a single attention that all outputs share.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        num_outputs: int,
        head_dims: Sequence[int] = (),
        dropout: float = 0.0,
        normalize: bool = False,
        attention_per_output: bool = True,
    ) -> None:
        super().__init__(dim, num_outputs, normalize)
        num_scores = num_outputs if attention_per_output else 1
        self.attention = GatedAttention(dim, hidden_dim, num_scores, dropout)
        self.head = Head(dim, head_dims, num_outputs)
        self.dropout = nn.Dropout(dropout)

    @override
    def _explain(
        self, tokens: Float[Tensor, "tokens dim"], bounds: Int[Tensor, " bounds"]
    ) -> Explanation:
        weights = self.attention(tokens, bounds)
        contributions = weights * self.head(self.dropout(self._standardized(tokens))) * self.scale
        logits = segment_sums(contributions, bounds) + self.bias
        return Explanation(logits, weights.expand(-1, self.num_outputs), contributions)


class MeanPool(Pool):
    """A head judges the mean of a study's tokens.

    Args:
        dim: Width of a token.
        num_outputs: One for each finding, each class or each number to be told.
        head_dims: Widths of the head's hidden layers.
        normalize: Whether tokens are layer-normed first.
    """

    def __init__(
        self, dim: int, num_outputs: int, head_dims: Sequence[int] = (), normalize: bool = False
    ) -> None:
        super().__init__(dim, num_outputs, normalize)
        self.head = Head(dim, head_dims, num_outputs)

    @override
    def _explain(
        self, tokens: Float[Tensor, "tokens dim"], bounds: Int[Tensor, " bounds"]
    ) -> Explanation:
        logits = (
            self.scale * self.head(self._standardized(segment_means(tokens, bounds))) + self.bias
        )
        weights = (1 / bounds.diff())[owners(bounds, len(tokens))]
        return Explanation(logits, weights.unsqueeze(1).expand(-1, self.num_outputs), None)


def _initialize(module: nn.Module) -> None:
    """Draw weights from a normal distribution, cut off at two deviations; biases are zero."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
