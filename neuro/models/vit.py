"""The encoder: a vision transformer over packed tokens of volumes.

Its parameters are named, shaped and laid out as in the weights of NeuroVFM, so that those load
without a change and ours are read by its code. They stay in float32; autocast decides what is
computed in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from neuro.errors import InputError
from neuro.models.attention import Segments, SelfAttention, find_segments
from neuro.models.position import check_channels, check_coords, sincos_positions
from neuro.models.volume_embed import TokenGrid

EncoderT = TypeVar("EncoderT", bound="VisionTransformer")

NORM_EPS = 1e-6
INIT_STD = 0.02
PRESETS: dict[str, dict[str, int]] = {
    "tiny": {"dim": 192, "num_layers": 12, "num_heads": 3},
    "small": {"dim": 384, "num_layers": 12, "num_heads": 6},
    "base": {"dim": 768, "num_layers": 12, "num_heads": 12},
    "large": {"dim": 1024, "num_layers": 24, "num_heads": 16},
    "huge": {"dim": 1280, "num_layers": 32, "num_heads": 16},
}


class Mlp(nn.Module):
    """Two layers and a GELU in its tanh form.

    Args:
        dim: Width of a token.
        hidden_dim: Width between the layers.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, tokens: Float[Tensor, "tokens dim"]) -> Float[Tensor, "tokens dim"]:
        """Return a change of each token by itself."""
        return self.fc2(F.gelu(self.fc1(tokens), approximate="tanh"))


class Block(nn.Module):
    """Attention, then a perceptron, each after a norm and added to what was there.

    Args:
        dim: Width of a token.
        num_heads: Attention heads.
        mlp_ratio: Width of the perceptron, as a multiple of ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mixer = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = Mlp(dim, mlp_ratio * dim)

    def forward(
        self,
        tokens: Float[Tensor, "tokens dim"],
        segments: Segments,
        kept: Float[Tensor, "2 tokens"] | None,
    ) -> Float[Tensor, "tokens dim"]:
        """Return the changed tokens.

        Args:
            tokens: What is changed.
            segments: The volumes.
            kept: What each token's change by attention, and that by the perceptron, is multiplied
                by; None is 1.
        """
        change = self.mixer(self.norm1(tokens), segments)
        tokens = tokens + (change if kept is None else change * kept[0].unsqueeze(1))
        change = self.mlp(self.norm2(tokens))
        return tokens + (change if kept is None else change * kept[1].unsqueeze(1))


def _run_block(
    block: nn.Module,
    tokens: Float[Tensor, "tokens dim"],
    segments: Segments,
    kept: Float[Tensor, "2 tokens"] | None,
) -> Float[Tensor, "tokens dim"]:
    return block(tokens, segments, kept)


@cache
def _compiled_run_block() -> Callable[..., Any]:
    """Return the same, compiled: once for blocks of one width, whatever lengths a batch has."""
    return torch.compile(_run_block, dynamic=True)


class Transformer(nn.Module):
    """Blocks and a norm: what encoder and predictor share.

    Args:
        dim: Width of a token.
        num_layers: Blocks.
        num_heads: Attention heads of each.
        mlp_ratio: Width of their perceptrons, as a multiple of ``dim``.
        drop_path: Share of volumes that skip a branch of the last block; 0 in the first, it rises
            evenly.
        checkpoint_activations: Keep only what goes into a block and compute the rest again for the
            gradient: less memory, about a third more time.
        compile: Run the blocks by ``torch.compile``; the first batches take a minute more. Names of
            parameters stay as they are, and a copy does likewise.

    Raises:
        InputError: The width cannot be shared out to the heads, or a share is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        mlp_ratio: int,
        drop_path: float,
        checkpoint_activations: bool,
        compile: bool,
    ) -> None:
        super().__init__()
        if dim % num_heads or not 0 <= drop_path < 1:
            raise InputError(
                f"dim is a multiple of num_heads, and drop_path is in [0, 1); got dim={dim}, "
                f"num_heads={num_heads}, drop_path={drop_path}. Presets have 64 or 80 a head."
            )
        self.dim = dim
        self.drop_path = drop_path
        self.checkpoint_activations = checkpoint_activations
        self.compiled = compile
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw the weights; to be called when all layers are there.

        What is added to the tokens is smaller the deeper it is, so that they keep their size.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            for layer in (block.mixer.proj, block.mlp.fc2):
                layer.weight.div_(math.sqrt(2 * (index + 1)))

    def run_blocks(
        self, tokens: Float[Tensor, "tokens dim"], segments: Segments
    ) -> Float[Tensor, "tokens dim"]:
        """Return the tokens after the last block, not yet normed."""
        run = _compiled_run_block() if self.compiled else _run_block
        again = self.checkpoint_activations and torch.is_grad_enabled()
        for block, kept in zip(self.blocks, self._kept(segments, len(tokens)), strict=True):
            if again:
                tokens = checkpoint(run, block, tokens, segments, kept, use_reentrant=False)
            else:
                tokens = run(block, tokens, segments, kept)
        return tokens

    def _kept(
        self, segments: Segments, num_tokens: int
    ) -> Sequence[Float[Tensor, "2 tokens"] | None]:
        """Draw, for each block, which volumes keep its branches; what is kept grows to make up."""
        if not self.training or self.drop_path == 0:
            return [None] * len(self.blocks)
        device, num_volumes = segments.bounds.device, len(segments.bounds) - 1
        rates = torch.linspace(0, self.drop_path, len(self.blocks), device=device).view(-1, 1, 1)
        chance = torch.rand(len(self.blocks), 2, num_volumes, device=device)
        kept = (chance >= rates) / (1 - rates)  # (layers, branches, volumes)
        # With its size given, the device need not be asked for it.
        owner = torch.repeat_interleave(segments.bounds.diff(), output_size=num_tokens)
        return kept[:, :, owner].unbind()


class VisionTransformer(Transformer):
    """Tokens of volumes in, one feature per token out. Volumes do not see each other.

    Of the ``dim`` channels of a token, the last ``position_dim`` are its position and the rest a
    linear projection of its voxels. There is no class token.

    Args:
        dim: Width of a feature.
        num_layers: Blocks.
        num_heads: Attention heads of each.
        patch_voxels: Voxels in one token.
        position_dim: Channels for the position, a multiple of 6.
        mlp_ratio: See ``Transformer``.
        drop_path: See ``Transformer``.
        checkpoint_activations: See ``Transformer``.
        compile: See ``Transformer``.

    Raises:
        InputError: The widths do not fit each other, or a share is out of range.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        patch_voxels: int = 4 * 16 * 16,
        position_dim: int = 30,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(
            dim, num_layers, num_heads, mlp_ratio, drop_path, checkpoint_activations, compile
        )
        check_channels(position_dim, dim)
        self.position_dim = position_dim
        self.patch_voxels = patch_voxels
        self.token_embed = nn.ModuleDict({"proj": nn.Linear(patch_voxels, dim - position_dim)})
        self.initialize()

    @classmethod
    def preset(cls: type[EncoderT], name: str, **changes: Any) -> EncoderT:
        """Return an encoder of a known size: ``tiny small base large huge``.

        Args:
            name: The preset.
            changes: Arguments that differ from it.

        Raises:
            InputError: There is no such preset.
        """
        if name not in PRESETS:
            raise InputError(
                f"there is no encoder preset {name!r}; known are {', '.join(PRESETS)}. "
                f"Choose one, or give dim, num_layers and num_heads yourself."
            )
        return cls(**{**PRESETS[name], **changes})

    def check_grids(self, grids: Mapping[str, TokenGrid]) -> None:
        """Check that a token of every modality has as many voxels as one of this encoder.

        Args:
            grids: The grid of each modality.

        Raises:
            InputError: One has not.
        """
        for name, grid in grids.items():
            voxels = math.prod(grid.patch)
            if voxels != self.patch_voxels or len(grid.patch) != 3:
                raise InputError(
                    f"a token of {name} has {voxels} voxels (patch {list(grid.patch)} of "
                    f"data.recipes.{name}); the encoder takes {self.patch_voxels} on three axes. "
                    f"Set data.patch_voxels={voxels}, or the recipe's patch."
                )

    def forward(
        self,
        tokens: Float[Tensor, "tokens voxels"],
        coords: Int[Tensor, "tokens 3"],
        bounds: Int[Tensor, " bounds"],
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "tokens dim"]:
        """Return a feature of each token, in float32 whatever is computed in.

        Args:
            tokens: Voxels, standardized.
            coords: Grid position (depth, height, width) of each token, in patches.
            bounds: Volume ``i`` owns ``tokens[bounds[i] : bounds[i + 1]]``.
            lengths: Tokens of each volume, if the host knows them; without them it waits once for
                the device.

        Raises:
            InputError: A coordinate is none. On a device other than a CPU its feature is NaN.
        """
        check_coords(coords)
        segments = find_segments(bounds, lengths)
        embedded = self.token_embed["proj"](tokens)
        positions = sincos_positions(coords, self.position_dim)
        # Positions are float32, so what the blocks add to is float32, also under autocast.
        placed = torch.cat((embedded, positions), dim=1)  # (tokens, dim)
        return self.norm(self.run_blocks(placed, segments))
