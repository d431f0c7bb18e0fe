"""What a system eats, and the words for axes.

The glossary, used in every shape of this project:

    studies   units of supervision in a batch        series    images of a study
    tokens    patches, laid end to end               voxels    numbers in one token
    axes      grid axes of a token (3, or 4 with time)         dim   width of a feature
    bounds    one more than the things that lie end to end: thing i is [bounds[i], bounds[i + 1])
    length    text positions                         findings  outputs of a classifier
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Int, Num
from torch import Tensor

BatchT = TypeVar("BatchT", bound="TensorRecord")


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A dataclass whose tensors travel together."""

    def to(self: BatchT, device: torch.device | str, non_blocking: bool = True) -> BatchT:
        """Move every tensor; Lightning calls this."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self: BatchT) -> BatchT:
        """Pin every tensor.

        The DataLoader calls this, and leaves a batch without it unpinned in silence.
        """
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self: BatchT, function: Callable[[Tensor], Tensor]) -> BatchT:
        def apply(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, TensorRecord):
                return value._map(function)
            if isinstance(value, dict):
                return {key: apply(item) for key, item in value.items()}
            return value

        changed = {
            field.name: apply(getattr(self, field.name)) for field in dataclasses.fields(self)
        }
        return dataclasses.replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class VolumeTokens(TensorRecord):
    """The tokens of several volumes of one modality, laid end to end without padding.

    Attributes:
        tokens: Voxels; uint8 as cached (0 to 255), or float16 for a run.
        coords: Grid position of each token, in patches.
        bounds: Volume ``i`` owns ``tokens[bounds[i] : bounds[i + 1]]``.
    """

    tokens: Num[Tensor, "tokens voxels"]
    coords: Int[Tensor, "tokens axes"]
    bounds: Int[Tensor, " bounds"]

    @property
    def num_volumes(self) -> int:
        """How many volumes there are."""
        return len(self.bounds) - 1


@dataclass(frozen=True, kw_only=True)
class ConversationBatch(TensorRecord):
    """Conversations with their images.

    Attributes:
        volumes: The images by modality.
        images: For each image slot of the batch, in textual order, its modality and its place in
            ``volumes``.
        num_images: Image slots of each study.
        input_ids: Token ids, padded on the right; an image holds as many image ids as it has
            tokens.
        attention_mask: 1 where there is text or image, 0 where there is padding.
        targets: ``input_ids`` where an assistant speaks, the end of its turn included; -100
            elsewhere.
        study_ids: For logs and prediction tables.
        tasks: The name of each study's question.
    """

    volumes: dict[str, VolumeTokens]
    images: tuple[tuple[str, int], ...]
    num_images: tuple[int, ...]
    input_ids: Int[Tensor, "studies length"]
    attention_mask: Int[Tensor, "studies length"]
    targets: Int[Tensor, "studies length"]
    study_ids: tuple[str, ...]
    tasks: tuple[str, ...]

    @property
    def num_studies(self) -> int:
        """How many studies there are."""
        return len(self.study_ids)

    @property
    def modalities(self) -> tuple[tuple[str, ...], ...]:
        """The modalities of each study's images, in textual order."""
        kinds = iter(self.images)
        return tuple(tuple(next(kinds)[0] for _ in range(count)) for count in self.num_images)
