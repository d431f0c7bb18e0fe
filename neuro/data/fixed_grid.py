"""A cube around the head, for T1 and for scalar maps of dMRI."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from monai.data.meta_tensor import MetaTensor
from monai.transforms.intensity.array import GaussianSmooth
from monai.transforms.spatial.array import SpatialResample
from torch import Tensor

from neuro.data.recipes import bright_level, freeze, percentiles
from neuro.data.tokens import foreground_shares, grid_of
from neuro.data.volume import Volume
from neuro.errors import InputError, ScanError

HEAD_MM = 180.0  # from the vertex to the foramen magnum and a little more, in a large head


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

    version: ClassVar[int] = 2

    shape: Sequence[int]
    spacing_mm: float
    patch: Sequence[int]
    percentiles: Sequence[float] | None = None
    window: Sequence[float] | None = None
    foreground_level: float = 0.1

    def __post_init__(self) -> None:
        freeze(self, "shape", "patch", "percentiles", "window")
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

    @property
    def views(self) -> Mapping[str, str]:
        """One image, with the statistics of MRI."""
        return {"voxels": "mri"}

    def warnings(self, volume: Volume) -> tuple[str, ...]:
        """Return nothing: what does not fit this grid is refused."""
        return ()

    def apply(self, volume: Volume) -> dict[str, Tensor]:
        """Return ``voxels`` as uint8 (depth, height, width), ``foreground`` and ``affine``.

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
        volume = replace(volume, voxels=np.ascontiguousarray(volume.voxels))
        head = self._head(volume)
        low, high = self._limits(volume, head)
        affine = self._affine(centre_mm=_centre_mm(head, volume.affine))
        cube = self._resample(volume, affine)
        scaled = ((cube - low) / max(high - low, 1e-8)).clamp(0, 1)
        return {
            "voxels": (scaled * 255).round().to(torch.uint8),
            "foreground": foreground_shares(cube > self._threshold(volume), self.patch),
            "affine": torch.from_numpy(affine),
        }

    def _affine(self, centre_mm: np.ndarray) -> Float[np.ndarray, "4 4"]:
        """Return the affine of the cube around a point."""
        affine = np.diag([*[self.spacing_mm] * 3, 1.0])
        affine[:3, 3] = centre_mm - self.spacing_mm * (np.asarray(self.shape) - 1) / 2
        return affine

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
        low, high = percentiles(volume.voxels[head], self.percentiles)
        if low == high:
            raise ScanError(
                volume.path,
                "recipe",
                f"percentiles {self.percentiles} of the head are both {low:g}: it is a mask.",
                "Give the image itself, or set window instead of percentiles.",
            )
        return low, high

    def _resample(
        self, volume: Volume, affine: Float[np.ndarray, "4 4"]
    ) -> Float[Tensor, "depth height width"]:
        """Resample linearly onto the cube, smoothing first along axes that lose resolution."""
        voxels = torch.from_numpy(volume.voxels).unsqueeze(0)
        shrink = [self.spacing_mm / spacing for spacing in volume.spacing_mm]
        # A Gaussian whose width closes the gap between the two resolutions; at a ratio of 1 it
        # vanishes.
        sigma = [0.5 * math.sqrt(max(ratio**2 - 1.0, 0.0)) for ratio in shrink]
        if max(sigma) > 0.05:
            voxels = torch.as_tensor(GaussianSmooth(sigma=sigma)(voxels)).as_subclass(Tensor)
        resample = SpatialResample(
            mode="bilinear", padding_mode="zeros", align_corners=True, dtype=np.float32
        )
        cube = resample(
            MetaTensor(voxels, affine=torch.from_numpy(volume.affine)),
            dst_affine=torch.from_numpy(affine),
            spatial_size=self.shape,
        )
        # contiguous: an axis that was turned is only a view
        return torch.as_tensor(cube)[0].as_subclass(Tensor).contiguous()


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
