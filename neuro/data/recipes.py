"""What is done to a scan before it is cached: pure functions of a Volume, as frozen dataclasses.

A recipe turns a ``Volume`` into two tensors: ``voxels``, which is cut into patches when it is read,
and ``foreground``, the share of head in each patch (0 to 255). Everything that a recipe does
follows from its fields and its ``version``; both are in the fingerprint of the cache.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Num
from monai.data.meta_tensor import MetaTensor
from monai.transforms.intensity.array import GaussianSmooth
from monai.transforms.spatial.array import SpatialResample
from torch import Tensor

from neuro.data.tokens import foreground_shares, grid_of
from neuro.data.volume import Volume
from neuro.errors import InputError, ScanError

HEAD_MM = 180.0  # from the vertex to the foramen magnum and a little more, in a large head
SCALINGS = ("none", "minmax", "znorm_zeroback", "znorm_minback")


@runtime_checkable
class Recipe(Protocol):
    """What the cache, the dataset and the embedders need to know of a recipe."""

    version: ClassVar[int]

    @property
    def shape(self) -> Sequence[int]:
        """Voxels along each axis of what the model sees."""
        ...

    @property
    def patch(self) -> Sequence[int]:
        """Voxels along each axis of one token."""
        ...

    def apply(self, volume: Volume) -> dict[str, Tensor]:
        """Return ``voxels`` and ``foreground``."""
        ...


@dataclass(frozen=True, kw_only=True)
class FixedGrid:
    """A cube around the head: RAS, isotropic, always the same number of voxels.

    For T1 and scalar dMRI maps.

    Args:
        shape: Voxels along R, A and S.
        spacing_mm: Edge of a voxel.
        patch: Voxels of one token; it must divide the shape.
        percentiles: The percentiles of the head's intensities that become 0 and 255. Only the head
            counts, so the amount of air around it changes nothing.
        window: Two intensities that become 0 and 255, for maps whose numbers mean something (0 and
            1 for FA). Give this or ``percentiles``.
        foreground_level: A voxel is head if it exceeds this share of the scan's bright level.

    Raises:
        InputError: The patch does not divide the shape, or not exactly one of ``percentiles`` and
            ``window`` is given.
    """

    version: ClassVar[int] = 1

    shape: Sequence[int]
    spacing_mm: float
    patch: Sequence[int]
    percentiles: Sequence[float] | None = None
    window: Sequence[float] | None = None
    foreground_level: float = 0.1

    def __post_init__(self) -> None:
        _freeze(self, "shape", "patch", "percentiles", "window")
        grid_of(self.shape, self.patch)
        if len(self.shape) != 3 or self.spacing_mm <= 0:
            raise InputError(
                f"FixedGrid takes a shape of 3 axes and a positive spacing_mm; got "
                f"{list(self.shape)} and {self.spacing_mm}."
            )
        for name, limits in (("percentiles", self.percentiles), ("window", self.window)):
            if limits is not None and not (len(limits) == 2 and limits[0] < limits[1]):
                raise InputError(f"{name} takes a lower and a higher number; got {list(limits)}.")
        if (self.percentiles is None) == (self.window is None):
            raise InputError(
                f"FixedGrid takes percentiles or window, exactly one; "
                f"got percentiles={self.percentiles}, window={self.window}. Set the other to null."
            )

    def apply(self, volume: Volume) -> dict[str, Tensor]:
        """Return ``voxels`` as uint8 (depth, height, width) and ``foreground`` as uint8 (tokens).

        Raises:
            ScanError: The scan has a time axis, no voxel stands out of the background, or all of
                the head has one intensity.
        """
        if volume.voxels.ndim != 3:
            raise ScanError(
                volume.path,
                "recipe",
                f"FixedGrid takes a single volume; this scan has shape {volume.voxels.shape}.",
                "List it as rsfMRI, or export the one volume that is wanted.",
            )
        head = self._head(volume)
        low, high = self._limits(volume, head)
        cube = self._resample(volume, centre_mm=_centre_mm(head, volume.affine))
        scaled = ((cube - low) / max(high - low, 1e-8)).clamp(0, 1)
        return {
            "voxels": (scaled * 255).round().to(torch.uint8),
            "foreground": foreground_shares(cube > self._threshold(volume), self.patch),
        }

    def _threshold(self, volume: Volume) -> float:
        return self.foreground_level * bright_level(volume.voxels)

    def _head(self, volume: Volume) -> np.ndarray:
        head = volume.voxels > self._threshold(volume)
        if not head.any():
            raise ScanError(
                volume.path,
                "recipe",
                f"no voxel exceeds foreground_level={self.foreground_level} of its bright level.",
                "Lower foreground_level, or check that the scan is not empty.",
            )
        return head

    def _limits(self, volume: Volume, head: np.ndarray) -> tuple[float, float]:
        if self.window is not None:
            low, high = self.window
            return low, high
        assert self.percentiles is not None, "__post_init__ takes exactly one of the two"
        low, high = np.percentile(volume.voxels[head], self.percentiles)
        if low == high:
            raise ScanError(
                volume.path,
                "recipe",
                f"percentiles {self.percentiles} of the head are both {low:g}: it is a mask.",
                "Give the image itself, or set window instead of percentiles.",
            )
        return float(low), float(high)

    def _resample(
        self, volume: Volume, centre_mm: np.ndarray
    ) -> Float[Tensor, "depth height width"]:
        """Resample linearly onto the cube, smoothing first along axes that lose resolution."""
        voxels = torch.from_numpy(volume.voxels).unsqueeze(0)
        shrink = [self.spacing_mm / spacing for spacing in volume.spacing_mm]
        # A Gaussian whose width closes the gap between the two resolutions; at a ratio of 1 it
        # vanishes.
        sigma = [0.5 * math.sqrt(max(ratio**2 - 1.0, 0.0)) for ratio in shrink]
        if max(sigma) > 0.05:
            voxels = torch.as_tensor(GaussianSmooth(sigma=sigma)(voxels))
        corner = centre_mm - self.spacing_mm * (np.asarray(self.shape) - 1) / 2
        target = np.diag([*[self.spacing_mm] * 3, 1.0])
        target[:3, 3] = corner
        resample = SpatialResample(
            mode="bilinear", padding_mode="zeros", align_corners=True, dtype=np.float32
        )
        cube = resample(
            MetaTensor(voxels, affine=torch.from_numpy(volume.affine)),
            dst_affine=torch.from_numpy(target),
            spatial_size=self.shape,
        )
        # contiguous: an axis that was turned is only a view
        return torch.as_tensor(cube)[0].as_subclass(Tensor).contiguous()


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
        foreground_level: A voxel is head if its mean exceeds this share of the means' bright level.

    Raises:
        InputError: The patch does not divide the shape, or the scaling is unknown.
    """

    version: ClassVar[int] = 1

    shape: Sequence[int]
    patch: Sequence[int]
    repetition_time_s: float
    scaling: str = "znorm_zeroback"
    foreground_level: float = 0.1

    def __post_init__(self) -> None:
        _freeze(self, "shape", "patch")
        grid_of(self.shape, self.patch)
        if len(self.shape) != 4:
            raise InputError(
                f"BoldRun takes a shape of 4 axes, the frames of a window last; got "
                f"{list(self.shape)}."
            )
        if self.scaling not in SCALINGS:
            raise InputError(f"scaling must be one of {', '.join(SCALINGS)}; got {self.scaling!r}.")
        if self.repetition_time_s <= 0:
            raise InputError(f"repetition_time_s must be positive; got {self.repetition_time_s}.")

    @property
    def num_frames(self) -> int:
        """Frames of one window."""
        return self.shape[3]

    def apply(self, volume: Volume) -> dict[str, Tensor]:
        """Return ``voxels`` and ``foreground`` of a run.

        Voxels are float16 (time, depth, height, width); foreground is uint8 (spatial tokens).

        Raises:
            ScanError: No time axis, no repetition time, or fewer frames than a window takes.
        """
        frames = torch.from_numpy(self._frames(volume))  # (depth, height, width, time)
        means = frames.mean(dim=-1)
        head = means > self.foreground_level * bright_level(means.numpy())
        scaled, fill = self._scale(frames, head)
        space = self.shape[:3]
        voxels = pad_or_crop(scaled, space, fill).movedim(-1, 0).to(torch.float16).contiguous()
        if not voxels.isfinite().all():
            raise ScanError(
                volume.path,
                "recipe",
                f"intensities up to {float(scaled.abs().max()):.0f} do not fit 16-bit numbers.",
                "Choose another scaling: znorm_zeroback, znorm_minback or minmax.",
            )
        return {
            "voxels": voxels,
            "foreground": foreground_shares(pad_or_crop(head, space, False), self.patch[:3]),
        }

    def _frames(self, volume: Volume) -> np.ndarray:
        """Return the run on the recipe's clock, after checking that there is one."""
        if volume.voxels.ndim != 4:
            raise ScanError(
                volume.path,
                "recipe",
                f"BoldRun takes a 4-D run; this scan has shape {volume.voxels.shape}.",
                "List it under another modality, or give the whole run.",
            )
        if volume.repetition_time_s is None:
            raise ScanError(
                volume.path,
                "recipe",
                "neither the side-car nor the header gives a repetition time.",
                "Write RepetitionTime (seconds) into its JSON side-car.",
            )
        weights = time_weights(
            volume.voxels.shape[3], volume.repetition_time_s, self.repetition_time_s
        )
        if len(weights) < self.num_frames:
            raise ScanError(
                volume.path,
                "recipe",
                f"the run has {len(weights)} frames of {self.repetition_time_s} s; "
                f"a window takes {self.num_frames}.",
                f"Set the last number of its recipe's shape to {len(weights)} or fewer, "
                f"or leave the run out.",
            )
        return volume.voxels @ weights.T

    def _scale(
        self,
        frames: Float[Tensor, "depth height width time"],
        head: Bool[Tensor, "depth height width"],
    ) -> tuple[Float[Tensor, "depth height width time"], float]:
        """Scale a run and return the value that stands for nothing, which pads it."""
        inside = frames[head]  # (voxels, time)
        mean, std = float(inside.mean()), max(float(inside.std()), 1e-8)
        return scale_bold(
            frames, ~head, mean=mean, std=std, maximum=float(inside.max()), scaling=self.scaling
        )


def bright_level(voxels: Num[np.ndarray, "depth height width"]) -> float:
    """Return the 99.5th percentile of the voxels that are brighter than 5 % of the brightest.

    A percentile of all voxels would fall with the amount of air around a head.
    """
    bright = voxels[voxels > 0.05 * voxels.max()]
    return float(np.percentile(bright, 99.5)) if bright.size else float(voxels.max())


def scale_bold(
    frames: Float[Tensor, "*space time"],
    background: Bool[Tensor, "*space"],
    *,
    mean: float,
    std: float,
    maximum: float,
    scaling: str,
) -> tuple[Float[Tensor, "*space time"], float]:
    """Apply one of the four scalings; return the run and the value that background has in it."""
    if scaling == "none":
        return frames, 0.0
    if scaling == "minmax":
        return frames / max(maximum, 1e-8), 0.0
    scaled = (frames - mean) / std
    if scaling == "znorm_minback":
        return scaled, -mean / std
    return scaled.masked_fill(background.unsqueeze(-1), 0.0), 0.0


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
    """Centre the leading axes of ``volume`` in ``shape``.

    What is short is padded with ``fill``, what is long is cropped.
    """
    out = volume.new_full((*shape, *volume.shape[len(shape) :]), fill)
    into, take = [], []
    for have, want in zip(volume.shape, shape, strict=False):
        size = min(have, want)
        into.append(slice((want - size) // 2, (want - size) // 2 + size))
        take.append(slice((have - size) // 2, (have - size) // 2 + size))
    out[tuple(into)] = volume[tuple(take)]
    return out


def _centre_mm(
    head: Bool[np.ndarray, "depth height width"], affine: Float[np.ndarray, "4 4"]
) -> np.ndarray:
    """Return the middle of the head in millimetres: of its bounding box, without the neck.

    Along each axis, 1 % of the voxels at either end are left out, so that stray bright voxels do
    not count. Upwards, only ``HEAD_MM`` below the vertex count.
    """
    spacing_mm = np.linalg.norm(affine[:3, :3], axis=0)
    centre = []
    for axis in range(3):
        counts = head.sum(axis=tuple(other for other in range(3) if other != axis)).cumsum()
        low, high = np.searchsorted(counts, [0.01 * counts[-1], 0.99 * counts[-1]])
        if axis == 2:
            low = max(low, high - HEAD_MM / spacing_mm[axis])
        centre.append((low + high) / 2)
    return (affine @ np.array([*centre, 1.0]))[:3]


def _freeze(recipe: object, *names: str) -> None:
    """Turn the lists that a config gives into tuples, so that a recipe can be hashed."""
    for name in names:
        value = getattr(recipe, name)
        if value is not None:
            object.__setattr__(recipe, name, tuple(value))
