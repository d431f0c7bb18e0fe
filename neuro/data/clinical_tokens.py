"""Clinical MRI and CT: the scan's own field of view, thick slices, one byte per voxel.

After NeuroVFM (arXiv 2511.18640): slices of 4 mm with 1 mm within, axes that point to the right,
the back and the feet, patches of 4 x 16 x 16. Where that loses scans or parts of them, this does
otherwise; ``compat: neurovfm`` keeps its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from neuro.data import neurovfm
from neuro.data.foreground import fill_head
from neuro.data.recipes import freeze, percentiles
from neuro.data.resample import area_weights, memory_order, resample
from neuro.data.slices import ORDER, TURNED, header_spacing_mm, index_affine, slice_axis
from neuro.data.tokens import foreground_shares
from neuro.data.volume import Volume
from neuro.errors import InputError, ScanError

Image: TypeAlias = UInt8[Tensor, "slices rows columns"]
Head: TypeAlias = Bool[Tensor, "slices rows columns"]

MODALITIES, RUNS, COMPAT = ("mri", "ct"), ("mean", "first", "middle"), (None, "neurovfm")
MAX_VOXELS = 2**28  # 1 GB as float32; a whole body has 2**27


@dataclass(frozen=True, kw_only=True)
class ClinicalTokens:
    """The whole field of view of a clinical scan, on a grid that follows the scan.

    The slice axis is the one with clearly the largest spacing; for nearly cubic voxels that of a
    thin slab, else from head to feet. Axes are resampled by area (linearly where voxels shrink) and
    padded to whole patches: nothing is cut away.

    Args:
        modality: ``mri`` or ``ct``.
        patch: Voxels of one token; slices first.
        slice_mm: Distance of slices.
        in_plane_mm: Edge of a voxel within a slice.
        percentiles: For MRI: the percentiles of the volume that become 0 and 255.
        windows: For CT: a name and the level and width, in HU, of each window; all are kept.
        pad_hu: For CT: what is outside of the scan. For MRI it is 0.
        run: What is made of a scan with several volumes: their ``mean``, the ``first`` or the
            ``middle`` one.
        foreground_level: For MRI: a voxel is head if it exceeds this share of the upper percentile.
        air_hu: For CT: a voxel is head if it exceeds this.
        compat: ``neurovfm``: cubic splines without a filter, numbers cut off and not rounded, sizes
            cropped, no hole filled. Null: none of it.

    Raises:
        InputError: An argument is unknown or out of range.
    """

    version: ClassVar[int] = 1

    modality: str
    patch: Sequence[int] = (4, 16, 16)
    slice_mm: float = 4.0
    in_plane_mm: float = 1.0
    percentiles: Sequence[float] = (0.5, 99.5)
    windows: Mapping[str, Mapping[str, float | int]] | Sequence[Sequence[str | float | int]] = (
        ("brain", 40.0, 80.0),
        ("blood", 80.0, 200.0),
        ("bone", 600.0, 2800.0),
    )
    pad_hu: float = -1024.0
    run: str = "mean"
    foreground_level: float = 0.1
    air_hu: float = -500.0
    compat: str | None = None

    def __post_init__(self) -> None:
        freeze(self, "patch", "percentiles")
        object.__setattr__(self, "windows", _rows(self.windows))
        for name, known in (("modality", MODALITIES), ("run", RUNS), ("compat", COMPAT)):
            if getattr(self, name) not in known:
                raise InputError(
                    f"{name} must be one of {', '.join(map(str, known))}; got "
                    f"{getattr(self, name)!r}."
                )
        names = [name for name, _, _ in self._windows]
        limits = (0, *self.percentiles, 100)
        for right, rule, got in (
            (len(self.patch) == 3 and min(self.patch) > 0, "a patch of 3 edges", self.patch),
            (self.slice_mm > 0, "a positive slice_mm", self.slice_mm),
            (self.in_plane_mm > 0, "a positive in_plane_mm", self.in_plane_mm),
            (
                len(limits) == 4 and list(limits) == sorted(limits) and limits[1] < limits[2],
                "a lower and a higher of the percentiles",
                self.percentiles,
            ),
            (names and len({*names}) == len(names), "windows of different names", names),
            (not {"foreground", "affine"} & {*names}, "other names of windows", names),
            (
                all(width > 0 for _, _, width in self._windows),
                "windows of a positive width",
                self.windows,
            ),
        ):
            if not right:
                raise InputError(f"ClinicalTokens takes {rule}; got {got}.")

    @property
    def _windows(self) -> tuple[tuple[str, float, float], ...]:
        return cast(tuple[tuple[str, float, float], ...], self.windows)

    @property
    def shape(self) -> None:
        """None: the grid follows the scan."""

    @property
    def views(self) -> Mapping[str, str]:
        """One image of MRI; of CT each window, under its own name."""
        if self.modality == "mri":
            return {"voxels": "mri"}
        return {name: name for name, _, _ in self._windows}

    def warnings(self, volume: Volume) -> tuple[str, ...]:
        """Say what is made of a run, and where a CT cannot be in Hounsfield units."""
        found = []
        if volume.voxels.ndim == 4:
            found.append(f"of its {volume.voxels.shape[3]} volumes, the {self.run} is used")
        if self.modality == "ct" and (low := float(volume.voxels.min())) > self.air_hu:
            found.append(
                f"its smallest number is {low:g}, but air is near -1000 HU: it may not be in HU "
                f"(a rescale intercept may be missing), or its background was removed"
            )
        return tuple(found)

    def apply(self, volume: Volume) -> dict[str, Tensor]:
        """Return the views as uint8 (slices, rows, columns), ``foreground`` and ``affine``.

        Raises:
            ScanError: A single slice, a field of view too large for memory, all of the scan has one
                intensity; with ``compat``, too few voxels for a patch.
        """
        voxels = self._single(volume)
        self._check_size(volume, voxels.shape)
        images, head, index = (
            self._as_neurovfm(volume, voxels) if self.compat else self._resampled(volume, voxels)
        )
        sizes = [math.ceil(n / edge) * edge for n, edge in zip(head.shape, self.patch, strict=True)]
        starts = [(size - n) // 2 for size, n in zip(sizes, head.shape, strict=True)]
        index[:3, 3] -= index[:3, :3] @ starts
        place = tuple(slice(start, start + n) for start, n in zip(starts, head.shape, strict=True))
        out = {}
        for name, fill in self._fills().items():
            out[name] = torch.full(sizes, fill, dtype=torch.uint8)
            out[name][place] = images[name]
        whole = torch.zeros(sizes, dtype=torch.bool)
        whole[place] = head
        out["foreground"] = foreground_shares(whole, self.patch)
        out["affine"] = torch.from_numpy(volume.affine @ index)
        return out

    def _check_size(self, volume: Volume, shape: Sequence[int]) -> None:
        if min(shape) < 2:
            raise ScanError(
                volume.path,
                "recipe",
                f"it is a single slice, of shape {tuple(shape)}.",
                "Give a volume, or list the slice under another modality.",
            )
        field_mm = [size * edge for size, edge in zip(shape, volume.spacing_mm, strict=True)]
        if math.prod(field_mm) / (self.slice_mm * self.in_plane_mm**2) > MAX_VOXELS:
            raise ScanError(
                volume.path,
                "recipe",
                f"its field of view of {' x '.join(f'{edge:.0f}' for edge in field_mm)} mm takes "
                f"more voxels than fit in memory.",
                "Crop it to what matters, or set a larger slice_mm and in_plane_mm.",
            )

    def _single(self, volume: Volume) -> Float[np.ndarray, "depth height width"]:
        """Return one volume."""
        voxels = volume.voxels
        if voxels.ndim == 3:
            return voxels
        if self.run == "mean":
            return voxels.mean(axis=-1)
        return voxels[..., 0 if self.run == "first" else voxels.shape[3] // 2]

    def _target_mm(self, axis: int) -> list[float]:
        return [self.slice_mm if other == axis else self.in_plane_mm for other in range(3)]

    def _resampled(
        self, volume: Volume, voxels: Float[np.ndarray, "depth height width"]
    ) -> tuple[dict[str, Image], Head, Float[np.ndarray, "4 4"]]:
        """Return the images, the head, and the affine from their index to that of ``voxels``."""
        axis = slice_axis(volume.spacing_mm, voxels.shape)
        steps = [t / s for t, s in zip(self._target_mm(axis), volume.spacing_mm, strict=True)]
        sizes = [_cover(size, step) for size, step in zip(voxels.shape, steps, strict=True)]
        moved = resample(
            torch.from_numpy(voxels),
            [
                None if old == new and abs(step - 1) * old < 1e-3 else area_weights(old, new, step)
                for old, new, step in zip(voxels.shape, sizes, steps, strict=True)
            ],
        )
        images = self._images(moved, volume)
        if self.modality == "mri":
            head = fill_head(images["voxels"] > 255 * self.foreground_level)
        else:
            head = fill_head(moved > self.air_hu)
        order = ORDER[axis]
        turned = [place for place, one in enumerate(order) if TURNED[one]]
        first = [
            (old - 1 + (new - 1) * (step if back else -step)) / 2
            for old, new, step, back in zip(voxels.shape, sizes, steps, TURNED, strict=True)
        ]
        images = {name: image.permute(order).flip(turned) for name, image in images.items()}
        return images, head.permute(order).flip(turned), index_affine(axis, steps, first)

    def _images(
        self, voxels: Float[Tensor, "depth height width"], volume: Volume
    ) -> dict[str, Image]:
        """Return the views of resampled voxels."""
        if self.modality == "ct":
            return self._windowed(voxels)
        flat = voxels.permute(memory_order(voxels)).reshape(-1)
        low, high = percentiles(flat.numpy(), self.percentiles)
        if high - low < 1e-30:
            raise ScanError(
                volume.path,
                "recipe",
                f"percentiles {self.percentiles} of the volume are both {low:g}: it is a mask.",
                "Give the image itself.",
            )
        return {"voxels": _bytes(voxels, low, high)}

    def _windowed(self, voxels: Float[Tensor, "depth height width"]) -> dict[str, Image]:
        return {
            name: _bytes(voxels, level - width / 2, level + width / 2)
            for name, level, width in self._windows
        }

    def _as_neurovfm(
        self, volume: Volume, voxels: Float[np.ndarray, "depth height width"]
    ) -> tuple[dict[str, Image], Head, Float[np.ndarray, "4 4"]]:
        """Return what ``_resampled`` does, as the public code makes it."""
        spacing_mm = header_spacing_mm(volume)
        axis = neurovfm.slice_axis(spacing_mm, voxels.shape)
        if axis is None:
            axis = slice_axis(spacing_mm, voxels.shape)
        order, target_mm = ORDER[axis], self._target_mm(axis)
        back = tuple(one for one in range(3) if TURNED[one])
        array = neurovfm.regrid(
            np.flip(voxels, back),
            spacing_mm=spacing_mm,
            target_mm=target_mm,
            stored_type=volume.stored_type if volume.voxels.ndim == 3 else "float32",
        )
        array, starts = neurovfm.crop(array.permute(order), self.patch)
        if 0 in array.shape:
            raise ScanError(
                volume.path,
                "recipe",
                f"compat: neurovfm leaves nothing of {voxels.shape} voxels of "
                f"{' x '.join(f'{edge:.3g}' for edge in spacing_mm)} mm.",
                "Set compat: null, which pads such a scan.",
            )
        if self.modality == "mri":
            image, head = neurovfm.scale_mri(array, self.percentiles)
            images = {"voxels": image}
        else:
            head = array > self.air_hu
            images = {name: neurovfm.window_ct(array, *window) for name, *window in self._windows}
        steps = [target / edge for target, edge in zip(target_mm, spacing_mm, strict=True)]
        first = [
            size - 1 - step * starts[order.index(one)] if back else step * starts[order.index(one)]
            for one, (size, step, back) in enumerate(zip(voxels.shape, steps, TURNED, strict=True))
        ]
        return images, head, index_affine(axis, steps, first)

    def _fills(self) -> dict[str, int]:
        """Return what each view is where there is no scan."""
        if self.modality == "mri":
            return {"voxels": 0}
        outside = torch.tensor([[[self.pad_hu]]])
        return {name: int(image) for name, image in self._windowed(outside).items()}


def _cover(size: int, step: float) -> int:
    """Return how many new voxels cover the old ones; 1 % of a voxel is rounding."""
    return max(math.ceil(size / step - 0.01), 1)


def _bytes(voxels: Float[Tensor, "depth height width"], low: float, high: float) -> Image:
    """Return voxels as bytes: 0 for ``low`` and less, 255 for ``high`` and more."""
    scaled = (voxels - low).mul_(255 / (high - low)).clamp_(0, 255)
    return scaled.add_(0.5).to(torch.uint8)  # the half makes rounding of cutting off


def _rows(
    windows: Mapping[str, Mapping[str, float | int]] | Sequence[Sequence[str | float | int]],
) -> tuple[tuple[str, float, float], ...]:
    """Return name, level and width of each window."""
    try:
        rows = (
            [(name, one["level"], one["width"]) for name, one in windows.items()]
            if isinstance(windows, Mapping)
            else windows
        )
        return tuple((str(name), float(level), float(width)) for name, level, width in rows)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"ClinicalTokens takes windows as {{brain: {{level: 40, width: 80}}}}; got {windows}."
        ) from error
