"""A clinical scan is prepared whole, the same way however it was stored."""

from __future__ import annotations

import dataclasses
import math

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scans import scan

from neuro.data.clinical_tokens import ClinicalTokens
from neuro.data.tokens import tokenize
from neuro.data.volume import read_volume
from neuro.errors import InputError, ScanError

MRI, CT = ClinicalTokens(modality="mri"), ClinicalTokens(modality="ct")
MRI_AS_THEY, CT_AS_THEY = (ClinicalTokens(modality=one, compat="neurovfm") for one in ("mri", "ct"))


RULES = {"any": 255, "majority": 128, "all": 1}  # the least share of a token that is kept


def head(shape, spacing_mm, *, hu=False, size=1.0, shift_mm=(0.0, 0.0, 0.0)):
    """Return a head with skin, skull, brain, a dark ventricle and a sinus; unlike on each side."""
    axes = [(np.arange(n) - (n - 1) / 2) * edge for n, edge in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    x, y, z = (one - by for one, by in zip((x, y, z), shift_mm, strict=True))
    radius = np.sqrt((x / 55) ** 2 + (y / 70) ** 2 + (z / 50) ** 2) / size
    values = np.full(shape, -1000.0 if hu else 0.0)
    layers = [(1.0, 0, 900), (0.93, 1000, 60), (0.85, 35, 600)]
    for limit, in_hu, in_mri in layers:
        values[radius < limit] = in_hu if hu else in_mri
    brain = radius < 0.85
    values += brain * (x / 55 + 0.5 * y / 70) * (20 if hu else 200)
    inner = np.sqrt((x / 10) ** 2 + (y / 25) ** 2 + (z / 12) ** 2) < 1
    sinus = np.sqrt((x / 12) ** 2 + ((y - 45) / 9) ** 2 + ((z + 12) / 12) ** 2) < 1
    values[inner] = 8 if hu else 30
    values[sinus] = -1000 if hu else 5
    noise = np.random.default_rng(0).normal(0, 8, shape)
    values = values + noise if hu else np.abs(values + noise)
    return values.astype(np.float32), radius < 1


def scan_of(shape, spacing_mm, **options):
    values, whole = head(shape, spacing_mm, **options)
    return scan(values, affine=np.diag([*spacing_mm, 1.0])), whole


@pytest.mark.parametrize(
    ("spacing_mm", "shape", "axes", "size"),
    [
        ((1.0, 1.0, 5.0), (150, 170, 30), "SAR", (40, 176, 160)),
        ((1.0, 5.0, 1.0), (150, 34, 130), "ASR", (44, 144, 160)),
        ((5.0, 1.0, 1.0), (30, 170, 130), "RAS", (40, 176, 144)),
    ],
)
def test_slices_come_first_and_axes_point_right_back_and_down(spacing_mm, shape, axes, size):
    volume, _ = scan_of(shape, spacing_mm)
    out = MRI.apply(volume)
    assert out["voxels"].shape == size
    columns = out["affine"][:3, :3].T
    for column, axis in zip(columns, axes, strict=True):
        place = "RAS".index(axis)
        expected = torch.zeros(3, dtype=torch.float64)
        expected[place] = (1.0 if place == 0 else -1.0) * (4.0 if axis == axes[0] else 1.0)
        torch.testing.assert_close(column, expected)
    middle = (torch.tensor(out["voxels"].shape) / 2).long().tolist()
    right_of_middle = [
        at + (30 if axis == "R" else 0) for at, axis in zip(middle, axes, strict=True)
    ]
    left = [at - (30 if axis == "R" else 0) for at, axis in zip(middle, axes, strict=True)]
    if axes[0] != "R":
        assert out["voxels"][tuple(right_of_middle)] > out["voxels"][tuple(left)] + 40


# ---------------------------------------------------------------- whatever the file was like


@pytest.mark.parametrize("axes", ["LAS", "LPS", "PIR", "ASR", "SLA"])
@pytest.mark.parametrize("recipe", [MRI, CT], ids=["mri", "ct"])
def test_a_turned_copy_of_a_scan_gives_the_same_tensors(save_nifti, tmp_path, axes, recipe):  # S14
    values, _ = head((60, 76, 14), (2.0, 2.0, 8.0), hu=recipe is CT)
    affine = np.diag([2.0, 2.0, 8.0, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    one = save_nifti(tmp_path / "one.nii", values, affine=affine)
    other = save_nifti(
        tmp_path / "other.nii",
        np.ascontiguousarray(nib.apply_orientation(values, turn)),
        affine=affine @ inv_ornt_aff(turn, values.shape),
    )
    first, second = (recipe.apply(read_volume(path)) for path in (one, other))
    torch.testing.assert_close(first["affine"], second["affine"], atol=1e-4, rtol=0)
    for name in recipe.views:
        difference = (first[name].int() - second[name].int()).abs()
        assert int(difference.max()) <= 1  # sums in another order
        assert float((difference > 0).float().mean()) < 1e-3
    assert int((first["foreground"].int() - second["foreground"].int()).abs().max()) <= 1


def test_a_tilted_scan_is_prepared_like_any_other():  # S17
    volume, _ = scan_of((150, 170, 30), (1.0, 1.0, 5.0))
    tilted = volume.affine.copy()
    tilted[1, 2] = 5 * math.tan(math.radians(15))  # no right angles
    out = MRI.apply(dataclasses.replace(volume, affine=tilted))
    down = torch.from_numpy(-tilted[:3, 2] / np.linalg.norm(tilted[:3, 2]))
    torch.testing.assert_close(out["affine"][:3, 0], 4 * down)
    assert out["voxels"].float().mean() > 20


@pytest.mark.parametrize("run", ["mean", "first", "middle"])
def test_of_a_run_one_volume_is_made(run):  # S17
    volume, _ = scan_of((60, 70, 16), (2.0, 2.0, 6.0))
    frames = np.stack([volume.voxels * gain for gain in (0.5, 1.0, 3.0)], axis=-1)
    recipe = ClinicalTokens(modality="mri", run=run)
    out = recipe.apply(dataclasses.replace(volume, voxels=frames))
    alone = {"mean": frames.mean(axis=-1), "first": frames[..., 0], "middle": frames[..., 1]}[run]
    expected = recipe.apply(dataclasses.replace(volume, voxels=alone))
    for name, tensor in expected.items():
        assert torch.equal(out[name], tensor)
    (warning,) = recipe.warnings(dataclasses.replace(volume, voxels=frames))
    assert f"of its 3 volumes, the {run} is used" in warning
    assert recipe.warnings(volume) == ()


# ---------------------------------------------------------------- nothing is lost


@pytest.mark.parametrize("modality", ["mri", "ct"])
@pytest.mark.parametrize(
    ("shape", "spacing_mm"),
    [((97, 81, 23), (1.1, 1.1, 4.3)), ((95, 95, 3), (1.0, 1.0, 10.0)), ((50, 50, 50), (3.0,) * 3)],
)
def test_every_corner_of_the_field_of_view_is_kept(modality, shape, spacing_mm):  # S15
    """The public code cuts off up to 15 voxels within a slice, and 3 slices."""
    recipe = ClinicalTokens(modality=modality, percentiles=(0.0, 100.0))
    for corner in np.ndindex(2, 2, 2):
        voxels = np.full(shape, -1000.0 if modality == "ct" else 0.0)
        block = tuple(slice(-3, None) if one else slice(0, 3) for one in corner)
        voxels[block] = 1000.0
        volume = scan(voxels, affine=np.diag([*spacing_mm, 1.0]))
        out = recipe.apply(volume)
        for view in recipe.views:
            place = [size - 1 if one else 0 for one, size in zip(corner, shape, strict=True)]
            mm = torch.from_numpy(volume.affine) @ torch.tensor([*place, 1.0], dtype=torch.float64)
            index = (torch.linalg.inv(out["affine"]) @ mm)[:3].round().int().tolist()
            sizes = out[view].shape
            nearest = tuple(
                min(max(at, 0), size - 1) for at, size in zip(index, sizes, strict=True)
            )
            assert out[view][nearest] > 128


@pytest.mark.parametrize("num_slices", [2, 3, 5])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_thin_stack_is_padded(num_slices, axis):  # S15
    shape, spacing_mm = [90, 90, 90], [1.0, 1.0, 1.0]
    shape[axis], spacing_mm[axis] = num_slices, 10.0
    values = np.random.default_rng(0).uniform(100, 900, shape)
    out = MRI.apply(scan(values, affine=np.diag([*spacing_mm, 1.0])))
    assert out["voxels"].shape == (math.ceil(num_slices * 2.5 / 4) * 4, 96, 96)
    assert int(out["foreground"].max()) > 0
    assert out["voxels"][out["voxels"].shape[0] // 2, 40:50, 40:50].float().std() > 10


@pytest.mark.parametrize("shape", [(90, 90, 1), (1, 90, 90), (90, 1, 90)])
def test_a_single_slice_is_refused_by_name(shape):  # S15
    with pytest.raises(ScanError, match=r"scan\.nii\.gz: recipe: it is a single slice"):
        MRI.apply(scan(np.random.default_rng(0).random(shape)))


def test_what_is_outside_the_scan_is_air():  # S16
    """The public code leaves 0 HU there, which is water."""
    values = np.full((50, 50, 10), 40.0)
    out = CT.apply(scan(values + np.eye(50)[..., None], affine=np.diag([1.0, 1.0, 4.0, 1.0])))
    assert {name: int(out[name][0, 0, 0]) for name in CT.views} == {
        "brain": 0,
        "blood": 0,
        "bone": 0,
    }
    lungs = ClinicalTokens(modality="ct", windows={"lung": {"level": -600, "width": 1500}})
    assert int(lungs.apply(scan(values + np.eye(50)[..., None]))["lung"][0, 0, 0]) == round(
        255 * (-1024 + 1350) / 1500
    )
    assert int(out["foreground"].min()) < 255


@pytest.mark.parametrize("slice_mm", [0.5, 1.0])
def test_a_thin_bright_plane_is_seen_wherever_it_lies(slice_mm):  # S16
    """Where single planes are picked, most of them are not."""
    recipe = ClinicalTokens(modality="ct", windows={"wide": {"level": 0.0, "width": 2000.0}})
    seen = []
    for place in range(20, 28):
        voxels = np.full((64, 64, 64), -1000.0)
        voxels[:, :, place] = 1000.0
        volume = scan(voxels, affine=np.diag([1.0, 1.0, slice_mm, 1.0]))
        wide = recipe.apply(volume)["wide"]
        index = [size // 2 for size in wide.shape]
        line = wide.movedim(0, -1)[index[1], index[2]].float()
        seen.append(float(line.sum()))
    assert min(seen) > 0.8 * max(seen) > 0


def test_there_is_room_for_the_numbers_of_splines():  # S16
    """Nothing overshoots, so nothing wraps round."""
    voxels = np.zeros((40, 40, 40))
    voxels[20:] = 255
    moved, _, _ = MRI._resampled(scan(voxels), scan(voxels).voxels)
    image = moved["voxels"]
    assert set(image[:, 5:-5, :].unique().tolist()) <= {0, 255}


# ---------------------------------------------------------------- bytes


def test_bytes_are_rounded_not_cut_off():  # S37
    values = np.zeros((32, 32, 8))
    values[1:, :, :] = np.linspace(0, 1000, 31)[:, None, None]
    recipe = ClinicalTokens(modality="mri", percentiles=(0.0, 100.0))
    out = recipe.apply(scan(values, affine=np.diag([1.0, 1.0, 4.0, 1.0])))["voxels"]
    got = out[2, 8, : len(values)].numpy()  # rows run to the back, columns to the right
    assert np.abs(got - values[:, 8, 2] * 0.255).max() < 0.501


def test_the_three_windows_are_kept_side_by_side():  # S37
    volume, _ = scan_of((150, 170, 30), (1.0, 1.0, 5.0), hu=True)
    out = CT.apply(volume)
    assert CT.views == {"brain": "brain", "blood": "blood", "bone": "bone"}
    assert set(out) == {"brain", "blood", "bone", "foreground", "affine"}
    shapes = {out[name].shape for name in CT.views}
    assert len(shapes) == 1
    low, high = {"brain": 0, "blood": -20, "bone": -800}, {"brain": 80, "blood": 180, "bone": 2000}
    hu = {
        name: out[name].double() / 255 * (high[name] - low[name]) + low[name] for name in CT.views
    }
    inside = (out["brain"] > 0) & (out["brain"] < 255)
    assert float(inside.double().mean()) > 0.1
    assert float((hu["brain"] - hu["blood"])[inside].abs().max()) <= (80 + 200) / 255 / 2 + 1e-9
    assert float((hu["brain"] - hu["bone"])[inside].abs().max()) <= (80 + 2800) / 255 / 2 + 1e-9


def test_windows_have_any_names_and_numbers():
    recipe = ClinicalTokens(
        modality="ct",
        windows={"stroke": {"level": 32, "width": 8}, "lung": {"level": -600, "width": 1500}},
    )
    volume, _ = scan_of((90, 90, 20), (1.5, 1.5, 5.0), hu=True)
    assert set(recipe.apply(volume)) == {"stroke", "lung", "foreground", "affine"}
    rows = ClinicalTokens(modality="ct", windows=[["stroke", 32, 8], ["lung", -600, 1500]])
    assert rows == recipe
    assert hash(rows) == hash(recipe)


def test_a_ct_that_cannot_be_in_hounsfield_units_is_told():
    volume, _ = scan_of((60, 70, 16), (2.0, 2.0, 6.0), hu=True)
    assert CT.warnings(volume) == ()
    shifted = dataclasses.replace(volume, voxels=volume.voxels + 1024)
    (warning,) = CT.warnings(shifted)
    assert "air is near -1000 HU" in warning
    assert MRI.warnings(shifted) == ()


def test_a_mask_is_refused_and_not_turned_into_zeros():
    mask = np.zeros((40, 40, 40))
    mask[20, 20, 20] = 1
    with pytest.raises(ScanError, match="it is a mask"):
        MRI.apply(scan(mask))


# ---------------------------------------------------------------- what is head


def shares_and_truth(recipe, volume, whole):
    """Return the share of head in each token, and how many of its voxels are truly of the head."""
    out = recipe.apply(volume)
    window = {"all": {"level": 0.5, "width": 1.0}}
    truth = ClinicalTokens(modality="ct", windows=window, pad_hu=0.0, compat=recipe.compat)
    inside = truth.apply(dataclasses.replace(volume, voxels=whole.astype(np.float32)))["all"]
    return out["foreground"], tokenize((inside > 127).float(), recipe.patch).sum(dim=1)


@pytest.mark.parametrize("modality", ["mri", "ct"])
@pytest.mark.parametrize(
    ("shape", "spacing_mm"), [((170, 212, 42), (1.0, 1.0, 4.0)), ((116, 140, 112), (1.5,) * 3)]
)
def test_the_head_is_kept_and_the_air_is_not(modality, shape, spacing_mm):  # S12
    """The public code loses 28 to 30 % of a head, or keeps nearly all of the air."""
    recipe = ClinicalTokens(modality=modality)
    volume, whole = scan_of(shape, spacing_mm, hu=modality == "ct", size=1.4)
    shares, truth = shares_and_truth(recipe, volume, whole)
    lost = {rule: float(truth[shares < least].sum() / truth.sum()) for rule, least in RULES.items()}
    assert lost["majority"] < 0.08
    assert lost["all"] < 0.002
    air = truth == 0
    assert not (air & (shares >= RULES["majority"])).any()
    assert float((shares[air] > 0).float().mean()) < 0.1  # those that the skin touches
    full = truth == math.prod(recipe.patch)
    assert float((shares[full] == 255).float().mean()) > 0.97  # with the ventricle and the sinus


def test_with_the_mask_of_the_public_code_much_is_lost_or_all_air_is_kept():  # S12
    """What ours is measured against."""
    volume, whole = scan_of((170, 212, 42), (1.0, 1.0, 4.0), size=1.4)
    shares, truth = shares_and_truth(MRI_AS_THEY, volume, whole)
    assert float(truth[shares < RULES["any"]].sum() / truth.sum()) > 0.2
    assert float((shares[truth == 0] >= RULES["majority"]).float().mean()) > 0.9


def test_a_scan_full_of_head_loses_none_of_it():  # S12
    """The darkest tenth of such a scan is not background."""
    volume, _ = scan_of((60, 70, 40), (1.0, 1.0, 1.5))
    inner = dataclasses.replace(volume, voxels=volume.voxels[4:-4, 5:-5, 4:-4].copy())
    out = ClinicalTokens(modality="mri", patch=(1, 4, 4)).apply(inner)
    grid = [size // edge for size, edge in zip(out["voxels"].shape, (1, 4, 4), strict=True)]
    assert (out["foreground"].reshape(grid)[1:-1, 1:-1, 1:-1] == 255).all()


def test_the_amount_of_air_does_not_change_the_head():  # S12
    volume, _ = scan_of((120, 150, 28), (1.0, 1.0, 4.0))
    noise = np.abs(np.random.default_rng(1).normal(0, 8, (184, 214, 28)))
    wide = noise.astype(np.float32)
    wide[32:-32, 32:-32] = volume.voxels
    narrow_head, wide_head = (
        float(MRI.apply(dataclasses.replace(volume, voxels=one))["foreground"].float().sum())
        for one in (volume.voxels, wide)
    )
    assert wide_head == pytest.approx(narrow_head, rel=0.02)


# ---------------------------------------------------------------- numbers of a config


@pytest.mark.parametrize("patch", [(4, 16, 16), (2, 8, 8), (1, 14, 14), (6, 32, 16)])
@pytest.mark.parametrize("recipe", [MRI, CT, MRI_AS_THEY, CT_AS_THEY])
def test_any_patch_divides_what_is_made(patch, recipe):  # S48
    recipe = dataclasses.replace(recipe, patch=patch)
    volume, _ = scan_of((80, 90, 17), (1.5, 1.5, 6.0), hu=recipe.modality == "ct")
    out = recipe.apply(volume)
    for view in recipe.views:
        grid = [size / edge for size, edge in zip(out[view].shape, patch, strict=True)]
        assert all(part == int(part) >= 1 for part in grid)
        assert len(out["foreground"]) == math.prod(int(part) for part in grid)
        assert out[view].dtype == torch.uint8
        assert out[view].is_contiguous()


def test_spacings_are_those_of_the_config():  # S48
    volume, _ = scan_of((80, 90, 17), (1.5, 1.5, 6.0))
    out = ClinicalTokens(modality="mri", slice_mm=3.0, in_plane_mm=2.0).apply(volume)
    edges = out["affine"][:3, :3].norm(dim=0)
    torch.testing.assert_close(edges, torch.tensor([3.0, 2.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"modality": "pet"}, "modality must be one of mri, ct"),
        ({"run": "last"}, "run must be one of mean, first, middle"),
        ({"compat": "other"}, "compat must be one of None, neurovfm"),
        ({"patch": (16, 16)}, "patch of 3"),
        ({"patch": (4, 0, 16)}, "patch of 3"),
        ({"slice_mm": 0.0}, "positive slice_mm"),
        ({"in_plane_mm": -1.0}, "positive in_plane_mm"),
        ({"percentiles": (99.5, 0.5)}, "lower and a higher"),
        ({"percentiles": (0.5,)}, "lower and a higher"),
        ({"percentiles": (0.5, 101.0)}, "lower and a higher"),
        ({"windows": {}}, "different names"),
        ({"windows": [["a", 1, 2], ["a", 3, 4]]}, "different names"),
        ({"windows": {"affine": {"level": 1, "width": 2}}}, "other names"),
        ({"windows": {"a": {"level": 1, "width": 0}}}, "positive width"),
        ({"windows": {"a": {"level": 1}}}, "level: 40, width: 80"),
        ({"windows": [["a", 1]]}, "level: 40, width: 80"),
    ],
)
def test_a_wrong_recipe_is_refused_at_once(wrong, message):
    with pytest.raises(InputError, match=message):
        ClinicalTokens(**{"modality": "mri", **wrong})


def test_a_field_of_view_that_would_fill_the_memory_is_refused():
    volume = scan(np.random.default_rng(0).random((50, 50, 50)), affine=np.diag([40.0] * 3 + [1.0]))
    for recipe in (MRI, MRI_AS_THEY):
        with pytest.raises(ScanError, match="of 2000 x 2000 x 2000 mm takes more voxels than fit"):
            recipe.apply(volume)


# ---------------------------------------------------------------- as the public code does it


def test_the_public_code_cuts_and_does_not_pad():
    volume, _ = scan_of((97, 110, 23), (1.0, 1.0, 5.0))
    assert MRI_AS_THEY.apply(volume)["voxels"].shape == (28, 96, 96)
    assert MRI.apply(volume)["voxels"].shape == (32, 112, 112)


def test_what_it_leaves_nothing_of_is_refused_with_the_cure():  # S15
    volume, _ = scan_of((95, 95, 3), (1.0, 1.0, 5.0))
    with pytest.raises(ScanError, match=r"leaves nothing of \(95, 95, 3\) voxels.*compat: null"):
        MRI_AS_THEY.apply(volume)


def test_a_scan_on_which_it_fails_is_prepared():  # S14
    volume, _ = scan_of((64, 64, 64), (1.0, 1.0, 1.2))
    out = MRI_AS_THEY.apply(volume)
    assert out["affine"][:3, :3].norm(dim=0)[0] == pytest.approx(4.0)


@pytest.mark.parametrize("modality", ["mri", "ct"])
def test_both_ways_show_the_same_head(modality):
    """They differ in sizes and in sharpness, not in what is where."""
    volume, _ = scan_of((128, 160, 40), (1.0, 1.0, 4.0), hu=modality == "ct")
    ours = ClinicalTokens(modality=modality)
    theirs = ClinicalTokens(modality=modality, compat="neurovfm")
    one, other = ours.apply(volume), theirs.apply(volume)
    for view in ours.views:
        assert one[view].shape == other[view].shape
        pair = torch.stack([one[view].flatten(), other[view].flatten()]).float()
        assert float(torch.corrcoef(pair)[0, 1]) > 0.99
    torch.testing.assert_close(one["affine"], other["affine"], atol=2.1, rtol=0)


def test_a_public_head_keeps_its_brain(real_data):
    path = real_data / "ds002748" / "sub-03" / "anat" / "sub-03_T1w.nii.gz"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    volume = read_volume(path)
    out = MRI.apply(volume)
    assert out["voxels"].shape == (48, 256, 256)
    brain_ml = float((volume.voxels > 0.1 * volume.voxels.max()).sum()) * 0.868**2 / 1000
    grid_ml = float(out["foreground"].double().sum()) / 255 * 4.096
    assert grid_ml == pytest.approx(brain_ml, rel=0.15)
