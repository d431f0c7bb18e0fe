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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn import functional as F

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
            if isinstance(value, tuple) and any(isinstance(one, TensorRecord) for one in value):
                return tuple(apply(item) for item in value)
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
        sizes: The grid of each volume, in patches, before background was dropped.
        kinds: Which intensity statistics each volume has: ``mri``, a CT window's name, ``run``.
        intensity: Gamma, gain, offset and noise of each volume, as drawn; None where nothing was.
        seeds: Of each volume's noise; None where there is none.
    """

    tokens: Num[Tensor, "tokens voxels"]
    coords: Int[Tensor, "tokens axes"]
    bounds: Int[Tensor, " bounds"]
    sizes: Int[Tensor, "volumes axes"]
    kinds: tuple[str, ...]
    intensity: Float[Tensor, "volumes 4"] | None = None
    seeds: Int[Tensor, " volumes"] | None = None

    @property
    def num_volumes(self) -> int:
        """How many volumes there are."""
        return len(self.bounds) - 1

    def take(self, places: Sequence[int]) -> VolumeTokens:
        """Return some of the volumes, at least one, in the order given."""
        rows = torch.as_tensor(places, dtype=torch.long, device=self.bounds.device)
        ends = self.bounds.tolist()
        tokens = torch.cat(
            [torch.arange(ends[one], ends[one + 1], device=rows.device) for one in places]
        )
        counts = self.bounds.diff()[rows]
        return VolumeTokens(
            tokens=self.tokens[tokens],
            coords=self.coords[tokens],
            bounds=F.pad(counts.cumsum(0), (1, 0)).to(self.bounds.dtype),
            sizes=self.sizes[rows],
            kinds=tuple(self.kinds[one] for one in places),
            intensity=None if self.intensity is None else self.intensity[rows],
            seeds=None if self.seeds is None else self.seeds[rows],
        )


@dataclass(frozen=True, kw_only=True)
class StudyBatch(TensorRecord):
    """Whole studies, all series of all of them laid end to end.

    Attributes:
        volumes: The series, those of a study adjacent.
        study_bounds: Study ``i`` owns volumes ``study_bounds[i]`` to ``study_bounds[i + 1]``.
        labels: One number per study and finding; NaN is unknown.
        study_ids: For logs and prediction tables.
        series_names: The name of each volume in its study, with its CT window.
    """

    volumes: VolumeTokens
    study_bounds: Int[Tensor, " bounds"]
    labels: Float[Tensor, "studies findings"]
    study_ids: tuple[str, ...]
    series_names: tuple[str, ...]

    @property
    def num_studies(self) -> int:
        """How many studies there are."""
        return len(self.study_ids)

    @property
    def token_bounds(self) -> Int[Tensor, " bounds"]:
        """Study ``i`` owns tokens ``token_bounds[i]`` to ``token_bounds[i + 1]``."""
        return self.volumes.bounds[self.study_bounds.long()]


@dataclass(frozen=True, kw_only=True)
class MaskView(TensorRecord):
    """One way in which all volumes of a batch are masked; no token is context and target.

    Attributes:
        context: Positions, in the pack, of the tokens that are seen.
        context_bounds: Volume ``i`` owns ``context[context_bounds[i] : context_bounds[i + 1]]``.
        target: Positions of the tokens to be predicted.
        target_bounds: Likewise.
        targets_of_own_volume: For each target, how many its volume has.
        context_lengths: Seen tokens of each volume, known to the host.
        lengths: Seen and predicted tokens of each volume, known to the host.
    """

    context: Int[Tensor, " context"]
    context_bounds: Int[Tensor, " bounds"]
    target: Int[Tensor, " targets"]
    target_bounds: Int[Tensor, " bounds"]
    targets_of_own_volume: Int[Tensor, " targets"]
    context_lengths: tuple[int, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MaskedBatch(TensorRecord):
    """Volumes with masks, for prediction in feature space.

    Attributes:
        volumes: Those that admit every mask, tokens without background.
        lengths: Tokens of each, known to the host.
        views: One for each mask.
        num_left_out: Volumes that admit no mask.
        study_ids: The studies of the batch, for logs.
    """

    volumes: VolumeTokens
    lengths: tuple[int, ...]
    views: tuple[MaskView, ...]
    num_left_out: int
    study_ids: tuple[str, ...]

    @property
    def num_studies(self) -> int:
        """How many studies there are."""
        return len(self.study_ids)
