"""Series become a batch of masked volumes, for ``system=jepa``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from typing_extensions import override

from neuro.data.batch import MaskedBatch, MaskView
from neuro.data.collate import Background, Collator, packed
from neuro.data.dataset import SeriesTokens
from neuro.data.masking import BlockMask
from neuro.errors import InputError

CT = "ct"
SEED_OF_MASKS = 0x6D61736B  # so that masks are not drawn from the numbers that drop tokens


class MaskedCollator(Collator):
    """Makes a ``MaskedBatch`` of whole studies; each series is a volume of its own.

    A volume that admits no mask is left out and counted. Dropped tokens are neither context nor
    target: they are gone before masks are drawn.

    Args:
        background: Which tokens are kept.
        masks: One or several ways to mask; each volume is masked in all of them.

    Raises:
        InputError: There is no mask.
    """

    def __init__(self, background: Background, masks: Sequence[BlockMask]) -> None:
        if not masks:
            raise InputError("data.masks is empty; jepa predicts what a mask hides. Give one.")
        super().__init__(background)
        self.masks = tuple(masks)

    @override
    def __call__(self, items: Sequence[SeriesTokens]) -> MaskedBatch:
        kept = [self.background.kept(item) for item in items]
        drawn = [self._drawn(item, own) for item, own in zip(items, kept, strict=True)]
        fit = [place for place, one in enumerate(drawn) if one is not None]
        lengths = tuple(len(kept[place]) for place in fit)
        contexts = [
            [one[number] for one in drawn if one is not None] for number in range(self._num)
        ]
        first = items[:1] if not fit else [items[place] for place in fit]
        own = [kept[0][:0]] if not fit else [kept[place] for place in fit]
        return MaskedBatch(
            volumes=packed(first, own),
            lengths=lengths,
            views=tuple(_view(context, lengths) for context in contexts),
            num_left_out=len(items) - len(fit),
            study_ids=tuple(dict.fromkeys(item.study.id for item in items)),
        )

    @property
    def _num(self) -> int:
        return len(self.masks)

    def _drawn(
        self, item: SeriesTokens, kept: Int[Tensor, " kept"]
    ) -> list[Bool[Tensor, " kept"]] | None:
        """Return the context of each mask; None where one of them does not fit."""
        generator = torch.Generator().manual_seed(item.seed ^ SEED_OF_MASKS)
        coords = item.coords[kept]
        contexts = []
        for mask in self.masks:
            context = mask.draw(coords, item.size, is_ct=item.modality == CT, generator=generator)
            if context is None:
                return None
            contexts.append(context)
        return contexts


def _view(contexts: Sequence[Bool[Tensor, " _kept"]], lengths: Sequence[int]) -> MaskView:
    """Lay the contexts and targets of all volumes end to end."""
    seen = torch.cat(list(contexts)) if contexts else torch.zeros(0, dtype=torch.bool)
    num_seen = [int(one.sum()) for one in contexts]
    num_hidden = [length - one for length, one in zip(lengths, num_seen, strict=True)]
    hidden = torch.tensor(num_hidden, dtype=torch.int64)
    return MaskView(
        context=torch.nonzero(seen).flatten(),
        context_bounds=_bounds(num_seen),
        target=torch.nonzero(~seen).flatten(),
        target_bounds=_bounds(num_hidden),
        targets_of_own_volume=hidden.repeat_interleave(hidden),
        context_lengths=tuple(num_seen),
        lengths=tuple(lengths),
    )


def _bounds(counts: Sequence[int]) -> Int[Tensor, " bounds"]:
    return torch.tensor([0, *counts]).cumsum(0).to(torch.int32)
