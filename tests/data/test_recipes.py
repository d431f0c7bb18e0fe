"""What every recipe promises: fields that can be written down, and where its voxels are."""

from __future__ import annotations

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scans import scan

from neuro.data.bold_run import BoldRun
from neuro.data.clinical_tokens import ClinicalTokens
from neuro.data.fixed_grid import FixedGrid
from neuro.data.recipes import Recipe, bright_level, percentiles
from neuro.data.tokens import grid_of

WINDOW = {"wide": {"level": 0.0, "width": 2000.0}}
RECIPES = {
    "cube": FixedGrid(shape=(48, 48, 48), spacing_mm=2.0, patch=(12, 12, 12), window=(0.0, 1000.0)),
    "run": BoldRun(
        shape=(36, 30, 32, 2), patch=(12, 10, 8, 2), repetition_time_s=2.0, scaling="none"
    ),
    "mri": ClinicalTokens(modality="mri", percentiles=(0.0, 100.0)),
    "ct": ClinicalTokens(modality="ct", windows=WINDOW),
    "mri like neurovfm": ClinicalTokens(
        modality="mri", percentiles=(0.0, 100.0), compat="neurovfm"
    ),
    "ct like neurovfm": ClinicalTokens(modality="ct", windows=WINDOW, compat="neurovfm"),
}


def turned(volume, axes):
    """Return the same scan with other axes, as a file may store it."""
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    voxels = np.ascontiguousarray(nib.apply_orientation(volume.voxels, turn))
    affine = volume.affine @ inv_ornt_aff(turn, volume.voxels.shape[:3])
    back = nib.io_orientation(affine)
    return dataclasses.replace(
        volume,
        voxels=np.asarray(nib.apply_orientation(voxels, back)).astype(np.float32, order="K"),
        affine=affine @ inv_ornt_aff(back, voxels.shape[:3]),
        orientation=axes,
        source_spacing_mm=(),
    )


def ball(point_mm, affine, shape, *, hu=False):
    """Return a scan that is dark but for a bright ball around a point."""
    index = np.stack([*np.meshgrid(*map(np.arange, shape), indexing="ij"), np.ones(shape)])
    place = np.einsum("ij,j...->i...", affine, index)[:3]
    distance = ((place - np.asarray(point_mm)[:, None, None, None]) ** 2).sum(axis=0)
    bright = np.exp(-distance / (2 * 7.0**2))
    return 2000 * bright - 1000 if hu else 1000 * bright


def centre_mm(weights, affine):
    """Return the middle of what is bright, in the world."""
    grid = torch.stack(
        torch.meshgrid(
            *[torch.arange(n, dtype=torch.float64) for n in weights.shape], indexing="ij"
        )
    )
    index = (grid * weights).flatten(1).sum(1) / weights.sum()
    return (affine @ torch.cat([index, torch.ones(1, dtype=torch.float64)]))[:3]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(
    ("shape", "spacing_mm", "degrees"),
    [
        ((50, 60, 20), (1.5, 1.3, 4.5), 0),
        ((24, 70, 66), (4.0, 1.2, 1.2), 12),
        ((42, 42, 42), (1.9, 1.9, 1.9), 8),
    ],
)
@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR"])
def test_a_bright_ball_is_where_the_affine_says(name, shape, spacing_mm, degrees, axes):
    recipe = RECIPES[name]
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = 11.3, -40.2, 6.1
    point = (affine @ [*(size * 0.45 for size in shape), 1])[:3]
    voxels = ball(point, affine, shape, hu=recipe.views != {"voxels": "mri"} and name != "run")
    if name == "run":
        voxels = np.stack([voxels] * 3, axis=-1)
    out = recipe.apply(turned(scan(voxels, affine=affine, tr_s=2.0), axes))
    assert out["affine"].dtype == torch.float64
    assert out["affine"].shape == (4, 4)
    for view in recipe.views:
        shown = out[view].double()
        shown = shown.mean(dim=0) if name == "run" else shown
        shown = (shown - shown.max() / 4).clamp(min=0)  # rounding of the dark would pull
        off_mm = (centre_mm(shown, out["affine"]) - torch.from_numpy(point)).norm()
        assert float(off_mm) < 0.25
        index = torch.linalg.inv(out["affine"]) @ torch.tensor([*point, 1.0], dtype=torch.float64)
        at = tuple(int(place) for place in index[:3].round())
        assert float(shown[at]) > 0.85 * float(shown.max())
        token = np.ravel_multi_index(
            [place // edge for place, edge in zip(at, recipe.patch, strict=False)],
            grid_of(tuple(shown.shape), recipe.patch[:3]),
        )
        assert out["foreground"][token] > 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_one_hashes_and_can_be_written_down(name):
    recipe = RECIPES[name]
    assert isinstance(recipe, Recipe)
    assert isinstance(recipe.version, int)
    assert hash(recipe) == hash(dataclasses.replace(recipe))
    assert json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert set(recipe.views) & {"foreground", "affine"} == set()
    assert len(recipe.patch) == (4 if name == "run" else 3)
    assert (recipe.shape is None) == (name not in ("cube", "run"))


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.uint8])
@pytest.mark.parametrize("num_values", [1, 2, 3, 60, 61, 1000, 200_000])
@pytest.mark.parametrize("kind", ["noise", "mostly zeros", "sorted", "two values"])
def test_percentiles_are_those_of_numpy(dtype, num_values, kind):
    rng = np.random.default_rng(num_values)
    values = rng.gamma(2.0, 30.0, num_values).clip(0, 255)
    if kind == "mostly zeros":
        values *= rng.random(num_values) < 0.1
    elif kind == "sorted":
        values.sort()
    elif kind == "two values":
        values = np.where(rng.random(num_values) < 0.3, 7, 100)
    values = values.astype(dtype)
    shares = (0.0, 0.5, 1.0, 10.0, 50.0, 99.5, 100.0)
    expected = np.percentile(values.astype(np.float64), shares)
    np.testing.assert_allclose(percentiles(values, shares), expected, rtol=1e-6, atol=1e-9)


def test_a_sample_of_bad_luck_changes_nothing():
    """Every value that is looked at first is an outlier."""
    values = np.random.default_rng(0).normal(size=61 * 500).astype(np.float32)
    values[::61] = 1e6
    expected = np.percentile(values.astype(np.float64), (0.5, 50.0, 99.5))
    np.testing.assert_allclose(percentiles(values, (0.5, 50.0, 99.5)), expected, rtol=1e-6)


def test_the_bright_level_does_not_fall_with_air():
    head = np.random.default_rng(0).uniform(100, 1000, (20, 20, 20)).astype(np.float32)
    assert bright_level(np.pad(head, 30)) == bright_level(head)
