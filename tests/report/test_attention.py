"""A map lies on the voxels of its scan, with its peak where the model looked."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from neuro.data.batch import StudyBatch, VolumeTokens
from neuro.data.bold_run import BoldRun
from neuro.data.cache import Cache
from neuro.data.clinical_tokens import ClinicalTokens
from neuro.data.dicom import find_dicom, read_dicom
from neuro.data.fixed_grid import FixedGrid
from neuro.data.manifest import Series, Study
from neuro.data.tokens import grid_coords, grid_of
from neuro.data.volume import read_volume
from neuro.report.attention import Attention, SourceGrid, seen_scans, source_grid, write_map

CUBE = FixedGrid(shape=(40, 40, 40), spacing_mm=4.0, patch=(8, 8, 8), percentiles=(0.5, 99.5))
CROPPED = FixedGrid(shape=(32, 24, 16), spacing_mm=3.0, patch=(8, 4, 8), percentiles=(0.5, 99.5))
CLINICAL = ClinicalTokens(modality="mri", percentiles=(0.5, 100.0))
RECIPES = {"cube": CUBE, "cropped": CROPPED, "clinical": CLINICAL}
STORED = [
    ("RAS", (2.0, 2.0, 2.0), 0),
    ("LAS", (2.0, 2.0, 2.0), 0),
    ("PSR", (2.0, 2.0, 2.0), 17),
    ("IRP", (1.5, 1.0, 5.0), 0),
    ("LPS", (1.0, 1.3, 6.0), 25),
    ("SAL", (5.0, 1.1, 1.1), -12),
]
SPOT_MM = np.array([-24.0, 18.0, 13.0])


def write_head(path, code="RAS", spacing_mm=(2.0, 2.0, 2.0), degrees=0, frames=0):
    """Write a head with a bright spot, its axes stored and turned as told."""
    shape = [int(128 / edge) for edge in spacing_mm]
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = [-edge * (size - 1) / 2 for edge, size in zip(spacing_mm, shape, strict=True)]
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    turn[:3, 3] = (3, -40, 11)
    affine = turn @ affine
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    mm = places @ affine[:3, :3].T + affine[:3, 3]
    middle = turn[:3, 3]
    voxels = 500.0 * (np.linalg.norm((mm - middle) / (50, 58, 52), axis=-1) < 1)
    voxels += 800 * np.exp(-(((mm - middle - SPOT_MM) / 6) ** 2).sum(axis=-1))
    to = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(tuple(code)))
    affine = affine @ inv_ornt_aff(to, shape)
    voxels = apply_orientation(voxels, to).astype(np.int16)
    if frames:
        voxels = np.repeat(voxels[..., None], frames, axis=-1)
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm", "sec")
    if frames:
        image.header["pixdim"][4] = 2.0
    image.to_filename(path)
    return Series(subject="1", modality="T1", path=path), middle + SPOT_MM


def prepared(series, recipe, weigh=None):
    """Prepare a scan; give its tokens weights by their voxels, or the same to all."""
    out = recipe.apply(read_volume(series.path))
    voxels = out["voxels"] if out["voxels"].ndim == 3 else out["voxels"].movedim(0, -1)
    grid = grid_of(tuple(voxels.shape[:3]), recipe.patch[:3])
    coords = grid_coords(grid)[out["foreground"] > 20]
    attention = Attention(
        weights=torch.full((len(coords),), 1 / len(coords)),
        coords=coords,
        num_tokens=len(coords),
        grid=grid,
        patch=recipe.patch,
        affine=out["affine"],
    )
    if weigh is not None:
        attention = replace(attention, weights=weigh(coords))
    return voxels, attention


def drawn(coords):
    return torch.rand(len(coords), generator=torch.Generator().manual_seed(3)).softmax(0)


def mapped(tmp_path, attention, series):
    path = tmp_path / "map.nii.gz"
    write_map(path, attention, source_grid(series))
    return nib.load(path)


@pytest.fixture(scope="module", params=STORED, ids=lambda one: "-".join(map(str, one)))
def stored(request, tmp_path_factory):
    """A head, stored one way or the other."""
    return write_head(tmp_path_factory.mktemp("scans") / "scan.nii.gz", *request.param)[0]


@pytest.fixture(scope="module", params=RECIPES)
def ready(request, stored):
    """It and what a recipe makes of it, with random weights."""
    return stored, *prepared(stored, RECIPES[request.param], drawn)


def test_the_peak_of_the_map_is_where_the_model_looked(tmp_path, ready):
    series, _, attention = ready
    image = mapped(tmp_path, attention, series)
    values = image.get_fdata()
    places = np.argwhere(values == values.max())
    mm = places @ image.affine[:3, :3].T + image.affine[:3, 3]
    # of each voxel of the peak, how far it is from the middle of the patch, in patches
    off = np.linalg.inv(attention.to_mm[:3, :3]) @ (mm - attention.peak_mm).T
    assert np.abs(off).max() <= 0.5 + 1e-4
    assert values.max() == pytest.approx(attention.density.max(), rel=1e-6)


def test_a_voxel_holds_the_density_of_the_patch_it_lies_in(tmp_path, ready):
    series, _, attention = ready
    image = mapped(tmp_path, attention, series)
    values = image.get_fdata()
    places = np.random.default_rng(0).integers(0, values.shape, (500, 3))
    mm = places @ image.affine[:3, :3].T + image.affine[:3, 3]
    to_voxel = np.linalg.inv(attention.affine.numpy())
    tokens = (mm @ to_voxel[:3, :3].T + to_voxel[:3, 3] + 0.5) / attention.patch
    for place, token in zip(places, tokens, strict=True):
        if np.abs(token - token.round()).min() < 1e-4:
            continue  # on a border between two
        token = np.floor(token).astype(int)
        inside = (token >= 0).all() and (token < attention.grid).all()
        expected = attention.density[tuple(token)] if inside else 0.0
        assert values[tuple(place)] == pytest.approx(expected, rel=1e-5)


def test_a_spot_that_the_model_looks_at_is_that_spot_in_the_scan(tmp_path, ready):
    """From voxels to voxels: where the scan is in the world is never asked."""
    series, voxels, attention = ready
    middle = np.argwhere(voxels.numpy() == voxels.max().item()).mean(axis=0).round()
    token = torch.from_numpy(middle // attention.patch).int()
    only = (attention.coords == token).all(dim=1).float()
    values = mapped(tmp_path, replace(attention, weights=only), series).get_fdata()
    scan = nib.load(series.path).get_fdata()
    brightest = np.argwhere(scan == scan.max()).mean(axis=0)
    # the spot may lie on the border of the patch
    assert np.abs(np.argwhere(values > 0) - brightest).max(axis=1).min() <= 2
    assert 0 < (values > 0).mean() < 0.05


def test_a_map_has_the_geometry_of_its_scan_number_for_number(tmp_path):
    """A viewer may believe the sform or the qform; these two disagree."""
    series, _ = write_head(tmp_path / "scan.nii.gz", "LAS", (1.7, 2.1, 3.3), 9)
    image = nib.load(series.path)
    turned = image.affine.copy()
    turned[:3, 3] += 1.25
    image.set_qform(turned, code=1)
    image.header["descrip"] = b"DOE^JANE"
    image.header["aux_file"] = b"DOE^JANE"
    image.header["db_name"] = b"DOE^JANE"
    image.to_filename(series.path)
    scan = nib.load(series.path)
    _, attention = prepared(series, CUBE, drawn)
    found = mapped(tmp_path, attention, series)
    assert found.shape == scan.shape
    assert found.get_data_dtype() == np.float32
    for name in ("get_sform", "get_qform", "get_best_affine", "get_zooms"):
        assert np.array_equal(getattr(found.header, name)(), getattr(scan.header, name)())
    assert found.header.get_xyzt_units() == ("mm", "unknown")
    assert [int(found.header[f"{one}form_code"]) for one in "qs"] == [1, 2]
    assert b"DOE" not in found.header.binaryblock


def test_a_run_gets_a_map_of_space(tmp_path):
    series, spot_mm = write_head(tmp_path / "scan.nii.gz", "LAS", (4.0, 4.0, 4.0), 5, frames=9)
    recipe = BoldRun(shape=(48, 40, 32, 8), patch=(8, 8, 8, 4), repetition_time_s=2.0)
    _, attention = prepared(series, recipe)
    # as its tokens are: those of a place at two times, of which one weighs nothing
    times = torch.arange(2).repeat_interleave(len(attention.coords)).unsqueeze(1).int()
    place = np.linalg.inv(attention.to_mm) @ np.array([*spot_mm, 1.0])
    only = (attention.coords == torch.from_numpy(place[:3].round()).int()).all(dim=1).float()
    run = replace(
        attention,
        coords=torch.cat([attention.coords.repeat(2, 1), times], dim=1),
        weights=torch.cat([only, 0 * only]),
        num_tokens=2 * attention.num_tokens,
        grid=(*attention.grid, 2),
    )
    found = mapped(tmp_path, run, series)
    assert found.shape == nib.load(series.path).shape[:3]
    assert found.header.get_xyzt_units() == ("mm", "unknown")
    assert found.get_fdata().max() == pytest.approx(attention.num_tokens)
    scan = np.asarray(nib.load(series.path).dataobj)[..., 0]
    assert found.get_fdata()[np.unravel_index(scan.argmax(), scan.shape)] > 0


@pytest.mark.parametrize("name", RECIPES)
def test_an_even_share_is_one_and_what_was_dropped_is_zero(tmp_path, name):
    series, _ = write_head(tmp_path / "scan.nii.gz", "PSR", (2.0, 2.0, 2.0), 10)
    _, attention = prepared(series, RECIPES[name])
    found = np.unique(mapped(tmp_path, attention, series).get_fdata())
    assert found == pytest.approx([0, 1])
    scan = nib.load(series.path).get_fdata()
    if name != "cropped":
        values = nib.load(tmp_path / "map.nii.gz").get_fdata()
        assert values[scan > 300].mean() > 0.97  # all of the head
        assert values.sum() < 2.5 * (scan > 300).sum()  # and not the air


def test_scans_of_a_study_compare():
    """The weights of two series of a study sum to one together, and so do windows of a CT."""
    coords = grid_coords((2, 2, 1))
    weights = torch.tensor([0.3, 0.1, 0.0, 0.0, 0.2, 0.2, 0.1, 0.1])
    parts = {"grid": (2, 2, 1), "patch": (4, 4, 4), "affine": torch.eye(4), "num_tokens": 8}
    one = Attention(weights=weights[:4], coords=coords, **parts)
    other = Attention(weights=weights[4:], coords=coords, **parts)
    both = Attention(weights=weights, coords=coords.repeat(2, 1), **parts)
    assert (one.density.mean() + other.density.mean()) / 2 == pytest.approx(1)
    assert both.density.mean() == pytest.approx(1)
    assert both.density == pytest.approx((one.density + other.density) / 2)
    assert one.peak == (0, 0, 0)
    assert one.peak_mm == pytest.approx([1.5, 1.5, 1.5])


def test_a_study_is_its_scans_and_the_windows_of_a_ct_lie_together(tmp_path):
    series, _ = write_head(tmp_path / "scan.nii.gz")
    scans = [replace(series, modality=name, name=name) for name in ("mri", "ct", "mri")]
    recipes = {"mri": CLINICAL, "ct": ClinicalTokens(modality="ct")}
    cache = Cache(tmp_path / "cache", recipes)
    assert cache.build(scans, max_failed=0.0) == []
    views = [("voxels",), tuple(recipes["ct"].views), ("voxels",)]
    counts = [9, 9, 3, 4, 5, 2]  # of another study, then of this one
    bounds = torch.tensor([0, *counts]).cumsum(0).int()
    coords = torch.arange(int(bounds[-1])).unsqueeze(1).expand(-1, 3).int()
    batch = StudyBatch(
        volumes=VolumeTokens(
            tokens=torch.zeros(len(coords), 1),
            coords=coords,
            bounds=bounds,
            sizes=torch.arange(len(counts)).unsqueeze(1).expand(-1, 3).int() + 40,
            kinds=("mri",) * len(counts),
        ),
        study_bounds=torch.tensor([0, 1, 6]).int(),
        labels=torch.zeros(2, 0),
        study_ids=("other", "this"),
        series_names=("",) * 6,
    )
    weights = torch.zeros(len(coords), 2)
    weights[9:, 0] = torch.arange(23) / 253
    weights[12 + 9 : 9 + 12 + 4, 1] = 0.25  # the second window of the CT
    found = seen_scans(Study(id="this", series=tuple(scans)), cache, batch, weights, 1)
    assert [one.series for one in found] == scans
    assert [one.views for one in found] == views
    assert [len(one.coords) for one in found] == [9, 12, 2]
    assert [one.coords[0, 0].item() for one in found] == [9, 18, 30]
    assert [one.grid[0] for one in found] == [41, 42, 45]
    assert sum(one.share(0) for one in found) == pytest.approx(1)
    assert [one.share(1) for one in found] == [0, 1, 0]
    assert found[1].main_view(1) == views[1][1]
    assert found[1].attention(1).num_tokens == 23
    assert found[1].attention(1).weights.tolist() == [0] * 3 + [0.25] * 4 + [0] * 5


def test_a_map_of_a_large_ct_takes_little_memory(tmp_path):
    """The slices of 400 take ten times as long as these 40, and no more memory."""
    grid = (100, 32, 32)
    affine = np.diag([-0.7, -0.7, 1.0, 1.0])
    header = nib.Nifti1Header()
    header.set_data_shape((512, 512, 40))
    header.set_sform(affine, code=1)
    attention = Attention(
        weights=torch.rand(100 * 32 * 32),
        coords=grid_coords(grid),
        num_tokens=100 * 32 * 32,
        grid=grid,
        patch=(4, 16, 16),
        affine=torch.from_numpy(affine @ np.diag([1.4, 1.4, 4.0, 1.0])),
    )
    source = SourceGrid(shape=(512, 512, 40), affine=affine, header=header)
    tracemalloc.start()
    write_map(tmp_path / "map.nii.gz", attention, source)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 60e6  # the map itself would be 42 MB
    assert nib.load(tmp_path / "map.nii.gz").shape == (512, 512, 40)


def test_dicom_gets_a_map_in_its_own_place(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "data")
    from dicom_files import write_series

    affine = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 4, 5], [0, 0, 0, 1]])
    voxels = np.random.default_rng(0).integers(0, 90, (12, 14, 9)).astype(np.int16)
    write_series(tmp_path / "series", voxels, affine)
    (found,), _ = find_dicom((tmp_path / "series").iterdir())
    series = Series(
        subject="1", modality="T1", path=tmp_path / "series", name=found.name, files=found.files
    )
    coords = torch.tensor([[1, 0, 1]])
    attention = Attention(
        weights=torch.ones(1),
        coords=coords,
        num_tokens=1,
        grid=(2, 2, 2),
        patch=(6, 7, 4),
        affine=torch.from_numpy(affine),
    )
    image = mapped(tmp_path, attention, series)
    volume = read_dicom(found.files, found.name)
    assert image.shape == volume.voxels.shape
    assert image.affine == pytest.approx(volume.affine)
    assert image.header.get_qform() == pytest.approx(volume.affine)
    expected = np.zeros(voxels.shape)
    expected[6:, :7, 4:8] = 1
    assert np.array_equal(image.get_fdata(), expected)


def test_the_same_attention_makes_the_same_file(tmp_path):
    series, _ = write_head(tmp_path / "scan.nii.gz")
    _, attention = prepared(series, CUBE, drawn)
    mapped(tmp_path, attention, series)
    once = (tmp_path / "map.nii.gz").read_bytes()
    mapped(tmp_path, attention, series)
    assert (tmp_path / "map.nii.gz").read_bytes() == once
    assert sorted(one.name for one in tmp_path.iterdir()) == ["map.nii.gz", "scan.nii.gz"]
