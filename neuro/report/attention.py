"""Where a model looked: the attention of a finding, and as a map on the scan's own grid.

Numbers are densities: how many times an even share a token got. 1 is what every token would get if
all tokens of the study counted the same, so scans with few and with many tokens compare. Tokens
that were dropped as background, and places that the prepared scan does not reach, are 0.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from isal import igzip
from jaxtyping import Float, Float32, Float64, Int
from nibabel.nifti1 import Nifti1Header
from torch import Tensor

from neuro.data.batch import StudyBatch
from neuro.data.cache import Cache
from neuro.data.dicom import read_dicom
from neuro.data.geometry import find_affine
from neuro.data.manifest import Series, Study
from neuro.data.nifti import read_nifti

GEOMETRY = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)
SPACE_UNITS = 0b111  # of the units' code
TIE = 1e-6  # of a patch: so that rounding does not fray a border that runs through middles


@dataclass(frozen=True, kw_only=True)
class Attention:
    """What the tokens of one prepared scan weigh in one finding.

    Tokens at one place are averaged: those of several CT windows, or of a run's times. So the
    windows of a scan are given together, laid end to end.

    Attributes:
        weights: Share of each token in the finding; those of all tokens of the study sum to one.
        coords: Grid position of each token, in patches; a fourth axis is time.
        num_tokens: Tokens of the whole study, of all its series and windows.
        grid: Patches along each axis of the prepared scan, background included.
        patch: Prepared voxels along each axis of a patch.
        affine: Index of a prepared voxel to RAS millimetres, as ``Cache.affine`` has it.
    """

    weights: Float[Tensor, " tokens"]
    coords: Int[Tensor, "tokens axes"]
    num_tokens: int
    grid: Sequence[int]
    patch: Sequence[int]
    affine: Float[Tensor, "4 4"]

    @cached_property
    def kept(self) -> Int[np.ndarray, "depth height width"]:
        """How many tokens there are at each place of the grid; 0 where all were dropped."""
        return np.bincount(self._places, minlength=math.prod(self.grid[:3])).reshape(self.grid[:3])

    @cached_property
    def density(self) -> Float32[np.ndarray, "depth height width"]:
        """What each place of the grid weighs, over what an even share would be."""
        weights = self.weights.detach().cpu().double().numpy()
        sums = np.bincount(self._places, weights, minlength=self.kept.size)
        density = self.num_tokens * sums / np.maximum(self.kept.ravel(), 1)
        return density.reshape(self.kept.shape).astype(np.float32)

    @property
    def peak(self) -> tuple[int, int, int]:
        """The place on the grid that weighs most."""
        d, h, w = np.unravel_index(int(self.density.argmax()), self.density.shape)
        return int(d), int(h), int(w)

    @property
    def peak_mm(self) -> Float64[np.ndarray, " 3"]:
        """The middle of the patch that weighs most, in RAS millimetres."""
        return (self.to_mm @ np.array([*self.peak, 1.0]))[:3]

    @cached_property
    def to_mm(self) -> Float64[np.ndarray, "4 4"]:
        """What takes a place on the grid to the middle of its patch in RAS millimetres."""
        to_voxel = np.diag([*self.patch[:3], 1.0])
        to_voxel[:3, 3] = (np.array(self.patch[:3]) - 1) / 2
        return self.affine.cpu().double().numpy() @ to_voxel

    @cached_property
    def _places(self) -> Int[np.ndarray, " tokens"]:
        coords = self.coords.cpu().numpy()[:, :3]
        return np.asarray(np.ravel_multi_index(tuple(coords.T), tuple(self.grid[:3])))


@dataclass(frozen=True, kw_only=True)
class SeenScan:
    """A scan of a study as a model saw it: its tokens, of a CT those of all windows end to end.

    Attributes:
        series: The scan.
        views: Its views, as ``Cache.read`` calls them.
        bounds: View ``i`` owns tokens ``bounds[i]`` to ``bounds[i + 1]``.
        weights: Share of each token in each output; those of the whole study sum to one.
        coords: Grid position of each token, in patches.
        num_tokens: Tokens of the whole study.
        grid: Patches along each axis of the prepared scan, background included.
        patch: Prepared voxels along each axis of a patch.
        affine: Index of a prepared voxel to RAS millimetres.
    """

    series: Series
    views: tuple[str, ...]
    bounds: Int[Tensor, " bounds"]
    weights: Float[Tensor, "tokens outputs"]
    coords: Int[Tensor, "tokens axes"]
    num_tokens: int
    grid: Sequence[int]
    patch: Sequence[int]
    affine: Float[Tensor, "4 4"]

    def share(self, output: int) -> float:
        """Return how much of an output is of this scan, in [0, 1]."""
        return float(self.weights[:, output].sum())

    def main_view(self, output: int) -> str:
        """Return the view that weighs most in an output, which is the one to look at."""
        parts = self.weights[:, output].tensor_split(self.bounds[1:-1].long())
        return self.views[int(torch.stack([part.sum() for part in parts]).argmax())]

    def attention(self, output: int) -> Attention:
        """Return what its tokens weigh in an output."""
        return Attention(
            weights=self.weights[:, output],
            coords=self.coords,
            num_tokens=self.num_tokens,
            grid=self.grid,
            patch=self.patch,
            affine=self.affine,
        )


def seen_scans(
    study: Study,
    cache: Cache,
    batch: StudyBatch,
    weights: Float[Tensor, "tokens outputs"],
    place: int = 0,
) -> list[SeenScan]:
    """Return the scans of a study of a batch that shows every view of each.

    Args:
        study: Which.
        cache: Where its scans are prepared.
        batch: What the model saw.
        weights: Share of each token of the batch in each output.
        place: Of the study in the batch.
    """
    volumes = batch.volumes
    first, last = batch.study_bounds[place : place + 2].tolist()
    num_tokens = int(volumes.bounds[last] - volumes.bounds[first])
    found = []
    for scan in study.series:  # a volume for each view of each
        recipe = cache.recipes[scan.modality]
        bounds = volumes.bounds[first : first + len(recipe.views) + 1].cpu()
        tokens = slice(int(bounds[0]), int(bounds[-1]))
        found.append(
            SeenScan(
                series=scan,
                views=tuple(recipe.views),
                bounds=bounds - bounds[0],
                weights=weights[tokens].float().cpu(),
                coords=volumes.coords[tokens].cpu(),
                num_tokens=num_tokens,
                grid=volumes.sizes[first].tolist(),
                patch=recipe.patch,
                affine=cache.affine(scan),
            )
        )
        first += len(recipe.views)
    return found


@dataclass(frozen=True, kw_only=True)
class SourceGrid:
    """The voxels of a scan as stored.

    Attributes:
        shape: Voxels along each axis in space.
        affine: Voxel index to RAS millimetres, as scans are read here.
        header: What other programs read the place of the voxels from.
    """

    shape: tuple[int, ...]
    affine: Float[np.ndarray, "4 4"]
    header: Nifti1Header


def source_grid(series: Series) -> SourceGrid:
    """Return the grid of a scan's file, or of what its DICOM files are converted to.

    Raises:
        ScanError: It cannot be read any more.
    """
    if not series.files:
        header = read_nifti(series.path).header
        shape = header.get_data_shape()[:3]
        affine, _, _ = find_affine(header, shape, series.path)
        return SourceGrid(shape=shape, affine=affine, header=header)
    volume = read_dicom(series.files, series.name)
    shape = volume.voxels.shape[:3]
    header = Nifti1Header()
    header.set_data_shape(shape)  # before the qform, which sets the edges of as many axes
    header.set_sform(volume.affine, code="scanner")
    header.set_qform(volume.affine, code="scanner")
    header.set_xyzt_units("mm")
    return SourceGrid(shape=shape, affine=volume.affine, header=header)


def write_map(path: Path, attention: Attention, source: SourceGrid) -> None:
    """Write the density of attention on the grid of the scan, as float32 ``.nii.gz``.

    Its header has the geometry of the scan's own, number for number, so that a viewer lays the two
    over each other whichever of the transforms it believes. Nothing else of that header is kept.

    A voxel holds the density of the patch that its middle lies in. Nothing is interpolated: a
    patch is what the model weighs, no finer detail is known, peaks keep their height, the numbers
    in a viewer are the model's own, and a map of a large CT takes a few megabytes. Voxels
    are made and written slice by slice.

    Args:
        path: Where to; ends in ``.nii.gz``.
        attention: Of one finding in the scan.
        source: The scan's own grid.
    """
    density = np.pad(attention.density, 1)  # 0 for all that is beyond
    to_grid = np.linalg.inv(attention.to_mm) @ source.affine  # a whole number is a middle
    width, height, depth = source.shape
    columns, rows = np.arange(width), np.arange(height)
    plane = (
        to_grid[:3, 0, None, None] * columns
        + to_grid[:3, 1, None, None] * rows[:, None]
        + to_grid[:3, 3, None, None]
        + (1.5 + TIE)  # half of a patch, and the border
    )  # (axes, rows, columns): as a file has them, the first axis of the scan fastest
    last = np.array(density.shape)[:, None, None] - 1
    header = _map_header(source, float(density.max()))
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with (
            temporary.open("wb") as file,
            igzip.IGzipFile("", "wb", compresslevel=2, fileobj=file, mtime=0) as packed,
        ):
            packed.write(header.binaryblock + bytes(4))  # no extensions
            for index in range(depth):
                places = np.clip(plane + to_grid[:3, 2, None, None] * index, 0, last)
                packed.write(density[tuple(places.astype(np.intp))].tobytes())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _map_header(source: SourceGrid, highest: float) -> Nifti1Header:
    header = type(source.header)()
    header.set_data_dtype(np.float32)
    header.set_data_shape(source.shape)
    header["pixdim"][:4] = source.header["pixdim"][:4]
    for name in GEOMETRY:
        header[name] = source.header[name]
    header["xyzt_units"] = int(source.header["xyzt_units"]) & SPACE_UNITS
    header["vox_offset"] = len(header.binaryblock) + 4
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = 0, highest  # what viewers stretch colours over
    header["descrip"] = b"attention; 1 is an even share"
    return header
