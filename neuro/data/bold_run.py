"""A resting-state run on one grid and one clock, whatever cohort it is from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuro.data.recipes import bright_level, freeze
from neuro.data.tokens import foreground_shares, grid_of
from neuro.data.volume import Volume
from neuro.errors import InputError, ScanError

SCALINGS = ("none", "minmax", "znorm_zeroback", "znorm_minback")
SHORT_RUN = ("refuse", "repeat")
PLAUSIBLE_S = (0.05, 60.0)  # a repetition time: seconds, not milliseconds


@dataclass(frozen=True, kw_only=True)
class BoldRun:
    """A resting-state run: the same grid and the same clock for every cohort.

    The spatial grid is padded or cropped around its centre from whatever shape the run has, never
    by a table of cohorts. Time is resampled to one repetition time. Stored with time first, so a
    window of frames is one read.

    Args:
        shape: Voxels along R, A and S, then the frames of one window: ``(96, 96, 96, 24)``.
        patch: Voxels and frames of one token; it must divide the shape.
        repetition_time_s: The clock that every run is resampled to.
        scaling: ``none``, ``minmax`` (divides by the maximum), ``znorm_zeroback`` or
            ``znorm_minback``; statistics are those of the head over the whole run.
        short_run: What to do with a run that is shorter than a window: ``refuse`` it, or ``repeat``
            it from its start until the window is full.
        foreground_level: A voxel is head if its mean exceeds this share of the means' bright level.

    Raises:
        InputError: The patch does not divide the shape, or a choice is unknown.
    """

    version: ClassVar[int] = 2

    shape: Sequence[int]
    patch: Sequence[int]
    repetition_time_s: float
    scaling: str = "znorm_zeroback"
    short_run: str = "refuse"
    foreground_level: float = 0.1

    def __post_init__(self) -> None:
        freeze(self, "shape", "patch")
        grid_of(self.shape, self.patch)
        if len(self.shape) != 4:
            raise InputError(
                f"BoldRun takes a shape of 4 axes, the frames of a window last; got "
                f"{list(self.shape)}."
            )
        for name, known in (("scaling", SCALINGS), ("short_run", SHORT_RUN)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}."
                )
        if self.repetition_time_s <= 0:
            raise InputError(f"repetition_time_s must be positive; got {self.repetition_time_s}.")

    @property
    def views(self) -> Mapping[str, str]:
        """One run, scaled by this recipe."""
        return {"voxels": "run"}

    @property
    def num_frames(self) -> int:
        """Frames of one window."""
        return self.shape[3]

    def warnings(self, volume: Volume) -> tuple[str, ...]:
        """Say where a run is repeated to fill a window."""
        num_frames = len(self._weights(volume))
        if num_frames >= self.num_frames:
            return ()
        return (f"its {num_frames} frames are repeated to fill a window of {self.num_frames}",)

    def apply(self, volume: Volume) -> dict[str, Tensor]:
        """Return ``voxels``, ``foreground`` and ``affine`` of a run.

        Voxels are float16 (time, depth, height, width).

        Raises:
            ScanError: No time axis, no plausible repetition time, or fewer frames than a window
                takes.
        """
        frames = self._frames(volume)
        means = frames.mean(dim=0)
        head = means > self.foreground_level * bright_level(means.numpy())
        if not head.any():
            raise ScanError(
                volume.path,
                "recipe",
                f"no mean of a voxel exceeds foreground_level={self.foreground_level}.",
                "Lower foreground_level, or check that the run is not empty.",
            )
        scaled, fill = self._scale(frames, head)
        space = self.shape[:3]
        voxels = pad_or_crop(scaled, space, fill).to(torch.float16)
        if not voxels.isfinite().all():
            raise ScanError(
                volume.path,
                "recipe",
                f"intensities up to {float(scaled.abs().max()):.0f} do not fit 16-bit numbers.",
                "Choose another scaling: znorm_zeroback, znorm_minback or minmax.",
            )
        move = np.eye(4)
        move[:3, 3] = [
            _cut(have, want) - _cut(want, have)
            for have, want in zip(means.shape, space, strict=True)
        ]
        return {
            "voxels": voxels,
            "foreground": foreground_shares(pad_or_crop(head, space, False), self.patch[:3]),
            "affine": torch.from_numpy(volume.affine @ move),
        }

    def _frames(self, volume: Volume) -> Float[Tensor, "time depth height width"]:
        """Return the run on the recipe's clock, long enough for a window."""
        weights = self._weights(volume)
        run = torch.from_numpy(volume.voxels).movedim(-1, 0).contiguous()
        if not np.array_equal(weights, np.eye(*weights.shape)):
            run = (torch.from_numpy(weights) @ run.flatten(1)).unflatten(1, run.shape[1:])
        if len(run) < self.num_frames:
            run = run[torch.arange(self.num_frames) % len(run)]
        return run

    def _weights(self, volume: Volume) -> Float[np.ndarray, "new old"]:
        """Return what resamples a run in time, after checking that it can be."""
        if volume.voxels.ndim != 4:
            raise ScanError(
                volume.path,
                "recipe",
                f"BoldRun takes a 4-D run; this scan has shape {volume.voxels.shape}.",
                "List it under another modality, or give the whole run.",
            )
        cure = "Write RepetitionTime (seconds) into its JSON side-car."
        if volume.repetition_time_s is None:
            reason = "neither the side-car nor the header gives a repetition time."
            raise ScanError(volume.path, "recipe", reason, cure)
        if not PLAUSIBLE_S[0] <= volume.repetition_time_s <= PLAUSIBLE_S[1]:
            reason = f"its repetition time of {volume.repetition_time_s:g} s is not plausible."
            raise ScanError(volume.path, "recipe", reason, cure)
        weights = time_weights(
            volume.voxels.shape[3], volume.repetition_time_s, self.repetition_time_s
        )
        if len(weights) < self.num_frames and self.short_run == "refuse":
            raise ScanError(
                volume.path,
                "recipe",
                f"the run has {len(weights)} frames of {self.repetition_time_s} s; "
                f"a window takes {self.num_frames}.",
                f"Set the last number of its recipe's shape to {len(weights)} or fewer, "
                f"leave the run out, or set short_run: repeat.",
            )
        return weights

    def _scale(
        self,
        frames: Float[Tensor, "time depth height width"],
        head: Bool[Tensor, "depth height width"],
    ) -> tuple[Float[Tensor, "time depth height width"], float]:
        """Scale a run and return the value that stands for nothing, which pads it."""
        inside = frames[:, head]  # (time, voxels)
        mean, std = float(inside.mean()), max(float(inside.std(correction=0)), 1e-8)
        return scale_bold(
            frames, ~head, mean=mean, std=std, maximum=float(inside.max()), scaling=self.scaling
        )


def scale_bold(
    frames: Float[Tensor, " time *space"],
    background: Bool[Tensor, "*space"],
    *,
    mean: float,
    std: float,
    maximum: float,
    scaling: str,
) -> tuple[Float[Tensor, " time *space"], float]:
    """Apply one of the four scalings; return the run and the value that background has in it."""
    if scaling == "none":
        return frames, 0.0
    if scaling == "minmax":
        return frames / max(maximum, 1e-8), 0.0
    scaled = (frames - mean) / std
    if scaling == "znorm_minback":
        return scaled, -mean / std
    return scaled.masked_fill(background, 0.0), 0.0


def time_weights(num_frames: int, from_s: float, to_s: float) -> Float[np.ndarray, "new old"]:
    """Return the matrix that resamples a run from one repetition time to another.

    Linear interpolation; where frames become fewer, a triangle as wide as the new step, so that
    nothing faster than the new clock folds back into slow fluctuations.
    """
    num_new = math.floor((num_frames - 1) * from_s / to_s + 1e-6) + 1
    old_s = np.arange(num_frames) * from_s
    new_s = np.arange(num_new) * to_s
    width_s = max(from_s, to_s)
    weights = np.maximum(0.0, 1.0 - np.abs(new_s[:, None] - old_s[None, :]) / width_s)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def pad_or_crop(volume: Tensor, shape: Sequence[int], fill: float | bool) -> Tensor:
    """Centre the last axes of ``volume`` in ``shape``.

    What is short is padded with ``fill``, what is long is cropped.
    """
    have = volume.shape[-len(shape) :]
    out = volume.new_full((*volume.shape[: -len(shape)], *shape), fill)
    sizes = [min(pair) for pair in zip(have, shape, strict=True)]
    into = [slice(_cut(w, h), _cut(w, h) + n) for h, w, n in zip(have, shape, sizes, strict=True)]
    take = [slice(_cut(h, w), _cut(h, w) + n) for h, w, n in zip(have, shape, sizes, strict=True)]
    out[(..., *into)] = volume[(..., *take)]
    return out


def _cut(size: int, other: int) -> int:
    """Return how many voxels lie before the middle ``other`` of ``size``; 0 if there are fewer."""
    return max(size - other, 0) // 2
