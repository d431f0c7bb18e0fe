"""What a batch holds, for lines about a step that failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from neuro.data.batch import VolumeTokens

MANY = 8  # studies that one line names


@dataclass(frozen=True, kw_only=True)
class BatchContent:
    """What one rank is shown at once.

    Attributes:
        stage: ``training``, ``validation`` or ``test``.
        batch: Its place in the epoch, from 0.
        studies: Their ids.
        num_images: Images, each CT window by itself.
        image_tokens: Tokens of all images, background dropped.
        text_positions: Of all studies, with those of images and of padding; 0 without texts.
    """

    stage: str
    batch: int
    studies: tuple[str, ...]
    num_images: int
    image_tokens: int
    text_positions: int

    @classmethod
    def of(cls, stage: str, batch_idx: int, batch: Any) -> BatchContent:
        """Look at a batch; nothing waits for the device."""
        volumes = getattr(batch, "volumes", None)
        packs = list(volumes.values()) if isinstance(volumes, dict) else [volumes]
        packs = [one for one in packs if isinstance(one, VolumeTokens)]
        texts = getattr(batch, "input_ids", None)
        return cls(
            stage=stage,
            batch=batch_idx,
            studies=tuple(getattr(batch, "study_ids", ())),
            num_images=sum(one.num_volumes for one in packs),
            image_tokens=sum(len(one.tokens) for one in packs),
            text_positions=texts.numel() if isinstance(texts, Tensor) else 0,
        )

    def __str__(self) -> str:
        sizes = f"{self.num_images:,} images, {self.image_tokens:,} image tokens"
        sizes += f", {self.text_positions:,} text positions" if self.text_positions else ""
        return (
            f"{self.stage} batch {self.batch} with {len(self.studies)} studies "
            f"({_some(self.studies)}), {sizes}"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return ", ".join(names[:MANY]) + more
