"""Series become a batch: background is dropped, the rest lies end to end.

One collator per system.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from neuro.data.batch import ConversationBatch, VolumeTokens
from neuro.data.dataset import SeriesTokens
from neuro.data.manifest import Study
from neuro.data.text import IGNORE, TextEncoder
from neuro.errors import InputError


def foreground_tokens(
    foreground: UInt8[Tensor, " tokens"], min_foreground: float, where: str
) -> Int[Tensor, " kept"]:
    """Return the positions of the tokens that are kept.

    Args:
        foreground: Share of head in each token, 0 to 255.
        min_foreground: Share of head, in [0, 1], that a token must have; 0 keeps every token.
        where: Whose image it is, for the message.

    Raises:
        InputError: Nothing is left.
    """
    kept = torch.nonzero(foreground >= min_foreground * 255).flatten()
    if len(kept) == 0:
        raise InputError(
            f"{where}: no token has a foreground share of data.min_foreground={min_foreground}; "
            f"the largest is {int(foreground.max()) / 255:.2f}. Lower it."
        )
    return kept


class ConversationCollator:
    """Makes a ``ConversationBatch`` of whole studies.

    Args:
        encoder: Turns conversations into ids.
        min_foreground: Share of head, in [0, 1], that a token must have; it shortens the text
            sequence too, since each token that is kept takes one text position.
    """

    def __init__(self, encoder: TextEncoder, min_foreground: float) -> None:
        if not 0 <= min_foreground <= 1:
            raise InputError(
                f"data.min_foreground must be a share in [0, 1]; got {min_foreground}."
            )
        self.encoder = encoder
        self.min_foreground = min_foreground

    def __call__(self, items: Sequence[SeriesTokens]) -> ConversationBatch:
        """Collate the series of whole studies, which follow one another."""
        kept = [self._kept(item.study, item.foreground) for item in items]
        slots = iter(len(positions) for positions in kept)
        studies = [list(members) for _, members in groupby(items, key=lambda item: item.study.id)]
        texts = [
            self.encoder(members[0].study.conversation, [next(slots) for _ in members])
            for members in studies
        ]
        ids = pad_sequence(
            [text.input_ids for text in texts], batch_first=True, padding_value=self.encoder.pad_id
        )
        targets = pad_sequence(
            [text.targets for text in texts], batch_first=True, padding_value=IGNORE
        )
        lengths = torch.tensor([len(text.input_ids) for text in texts])
        return ConversationBatch(
            volumes=pack(items, kept),
            images=image_places(items),
            num_images=tuple(len(members) for members in studies),
            input_ids=ids,
            attention_mask=(torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long(),
            targets=targets,
            study_ids=tuple(members[0].study.id for members in studies),
            tasks=tuple(members[0].study.conversation.task for members in studies),
        )

    def check(self, study: Study, foreground: Sequence[Tensor]) -> None:
        """Encode a study's text with as many slots as its images will take.

        Raises:
            InputError: It is too long, or its images and its text do not agree.
        """
        self.encoder(study.conversation, [len(self._kept(study, one)) for one in foreground])

    def _kept(self, study: Study, foreground: Tensor) -> Tensor:
        return foreground_tokens(foreground, self.min_foreground, where=f"study {study.id!r}")


def pack(items: Sequence[SeriesTokens], kept: Sequence[Tensor]) -> dict[str, VolumeTokens]:
    """Lay the kept tokens of each modality end to end."""
    volumes = {}
    for modality in sorted({item.modality for item in items}):
        own = [
            (item, positions)
            for item, positions in zip(items, kept, strict=True)
            if item.modality == modality
        ]
        lengths = torch.tensor([0] + [len(positions) for _, positions in own])
        volumes[modality] = VolumeTokens(
            tokens=torch.cat([item.tokens[positions] for item, positions in own]),
            coords=torch.cat([item.coords[positions] for item, positions in own]),
            bounds=lengths.cumsum(0).to(torch.int32),
        )
    return volumes


def image_places(items: Sequence[SeriesTokens]) -> tuple[tuple[str, int], ...]:
    """Return for each series its modality and its place among the volumes of that modality."""
    counts: dict[str, int] = {}
    places = []
    for item in items:
        places.append((item.modality, counts.get(item.modality, 0)))
        counts[item.modality] = counts.get(item.modality, 0) + 1
    return tuple(places)
