"""The JEPA predictor: from the features of what was seen to the features of what was not."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuro.models.attention import find_segments
from neuro.models.position import check_channels, check_coords, sincos_positions
from neuro.models.vit import Transformer


class Predictor(Transformer):
    """Guesses a feature for each target place of a volume from the features of its context.

    A target is a learned token with a position. Context and targets of a volume attend to each
    other and to no other volume (I-JEPA, arXiv:2301.08243, section 3; there each block of targets
    is guessed by itself).

    Args:
        encoder_dim: Width of the features.
        dim: Width inside.
        num_layers: Blocks.
        num_heads: Attention heads of each.
        position_dim: Channels for positions, a multiple of 6.
        mlp_ratio: See ``Transformer``.
        drop_path: See ``Transformer``.
        checkpoint_activations: See ``Transformer``.
        compile: See ``Transformer``.

    Raises:
        InputError: The widths do not fit each other, or a share is out of range.
    """

    def __init__(
        self,
        encoder_dim: int,
        dim: int,
        num_layers: int,
        num_heads: int,
        position_dim: int = 30,
        mlp_ratio: int = 4,
        drop_path: float = 0.0,
        checkpoint_activations: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__(
            dim, num_layers, num_heads, mlp_ratio, drop_path, checkpoint_activations, compile
        )
        check_channels(position_dim, encoder_dim + position_dim)
        self.position_dim = position_dim
        self.mask_token = nn.Parameter(torch.zeros(encoder_dim))
        self.from_encoder = nn.Linear(encoder_dim + position_dim, dim)
        self.to_encoder = nn.Linear(dim, encoder_dim)
        self.initialize()

    def forward(
        self,
        context: Float[Tensor, "context dim"],
        context_coords: Int[Tensor, "context 3"],
        context_bounds: Int[Tensor, " bounds"],
        target_coords: Int[Tensor, "targets 3"],
        target_bounds: Int[Tensor, " bounds"],
        lengths: Sequence[int] | None = None,
    ) -> Float[Tensor, "targets dim"]:
        """Return a guess of each target's feature, in the order of the targets.

        Args:
            context: Features of what was seen.
            context_coords: Where that is, in patches.
            context_bounds: Volume ``i`` owns context ``context_bounds[i]`` to
                ``context_bounds[i + 1]``.
            target_coords: The places to guess.
            target_bounds: Volume ``i`` owns targets ``target_bounds[i]`` to
                ``target_bounds[i + 1]``.
            lengths: Context and targets together of each volume, if the host knows them; without
                them it waits once for the device.

        Raises:
            InputError: A coordinate is none.
        """
        check_coords(context_coords)
        check_coords(target_coords)
        num_context, num_targets = len(context), len(target_coords)
        seen, guessed = interleaved_rows(context_bounds, target_bounds, num_context, num_targets)
        segments = find_segments(context_bounds + target_bounds, lengths)
        coords = context_coords.new_empty(num_context + num_targets, 3)
        coords[seen], coords[guessed] = context_coords, target_coords.to(coords.dtype)
        # Each place is a mask token until a feature takes it.
        features = self.mask_token.expand(num_context + num_targets, -1)
        features = features.index_copy(0, seen, context.to(features.dtype))
        placed = torch.cat((features, sincos_positions(coords, self.position_dim)), dim=1)
        # Under autocast a layer gives half precision; what the blocks add to is float32.
        tokens = self.run_blocks(self.from_encoder(placed).to(features.dtype), segments)
        return self.to_encoder(self.norm(tokens.index_select(0, guessed)))


def interleaved_rows(
    first_bounds: Int[Tensor, " bounds"],
    second_bounds: Int[Tensor, " bounds"],
    num_first: int,
    num_second: int,
) -> tuple[Int[Tensor, " first"], Int[Tensor, " second"]]:
    """Return where the tokens of two packs go in one, volume by volume the first before the second.

    Nothing waits for the device.

    Args:
        first_bounds: Volume ``i`` owns tokens ``first_bounds[i]`` to ``first_bounds[i + 1]``.
        second_bounds: The same of the second pack.
        num_first: Tokens of the first pack.
        num_second: Tokens of the second.
    """
    device = first_bounds.device
    before_first = second_bounds[:-1].repeat_interleave(
        first_bounds.diff(), output_size=num_first
    )  # (first,) tokens of the second pack that stand before
    before_second = first_bounds[1:].repeat_interleave(
        second_bounds.diff(), output_size=num_second
    )  # (second,) tokens of the first pack that stand before
    return (
        torch.arange(num_first, device=device) + before_first,
        torch.arange(num_second, device=device) + before_second,
    )
