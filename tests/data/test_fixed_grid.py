"""A cube around the head does not depend on how a scan is stored, and nothing of it is lost."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from scans import scan

from neuro.data.fixed_grid import FixedGrid
from neuro.data.tokens import tokenize
from neuro.data.volume import read_volume
from neuro.errors import InputError, ScanError

CUBE = {"shape": (24, 24, 24), "spacing_mm": 1.0, "patch": (12, 12, 12)}
T1 = FixedGrid(**CUBE, percentiles=(0.5, 99.5))


def with_air(head, before, after):
    """Return a head with more air around it, at the same place in the world."""
    affine = np.eye(4)
    affine[:3, 3] = [-width for width in before]
    return scan(np.pad(head, list(zip(before, after, strict=True))), affine=affine)


@pytest.mark.parametrize(
    ("before", "after"), [((9, 9, 9), (9, 9, 9)), ((0, 30, 3), (20, 0, 0)), ((40,) * 3, (40,) * 3)]
)
def test_the_amount_of_air_around_a_head_changes_nothing(round_head, before, after):  # D51
    head = round_head()
    narrow, wide = T1.apply(scan(head)), T1.apply(with_air(head, before, after))
    assert torch.equal(narrow["foreground"], wide["foreground"])
    assert torch.equal(narrow["voxels"], wide["voxels"])


def test_the_place_of_a_head_in_its_field_of_view_changes_nothing(round_head):  # D51
    middle, aside = round_head((40, 40, 40)), round_head((40, 40, 40), shift=(3, -4, 5))
    one, other = T1.apply(scan(middle)), T1.apply(scan(aside))
    for name in ("voxels", "foreground"):
        assert torch.equal(one[name], other[name])
    assert (other["affine"] - one["affine"])[:3, 3].tolist() == [3, -4, 5]


@pytest.mark.parametrize("axes", ["LAS", "PIR", "SLA"])
def test_a_turned_copy_of_a_scan_gives_the_same_voxels(
    round_head, save_nifti, tmp_path, axes
):  # D51
    head, affine = round_head(), np.diag([1.0, 1.2, 0.9, 1.0])
    turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axes))
    other = nib.apply_orientation(head, turn)
    one = save_nifti(tmp_path / "ras.nii.gz", head, affine=affine)
    two = save_nifti(
        tmp_path / "turned.nii.gz",
        np.ascontiguousarray(other),
        affine=affine @ inv_ornt_aff(turn, head.shape),
    )
    first, second = T1.apply(read_volume(one)), T1.apply(read_volume(two))
    for name in ("voxels", "foreground"):
        assert torch.equal(first[name], second[name])
    torch.testing.assert_close(first["affine"], second["affine"], atol=1e-5, rtol=0)


def test_the_first_axis_points_to_the_right(round_head):  # D51
    bright = {"left": slice(0, 14), "right": slice(14, 28)}
    for side, half in bright.items():
        head = round_head()
        head[half] *= 3
        left, right = T1.apply(scan(head))["voxels"].float().mean(dim=(1, 2)).split(12)
        assert (left.mean() > 1.5 * right.mean()) == (side == "left")
        assert (right.mean() > 1.5 * left.mean()) == (side == "right")


def test_thick_slices_give_nearly_the_cube_of_thin_ones(round_head):  # D51
    head = round_head((32, 36, 30))
    thin, thick = scan(head), scan(head[:, :, ::2], affine=np.diag([1.0, 1.0, 2.0, 1.0]))
    recipe = FixedGrid(
        shape=(12, 12, 12), spacing_mm=2.0, patch=(12, 12, 12), percentiles=(0.5, 99.5)
    )
    one, two = (recipe.apply(each)["voxels"].float() for each in (thin, thick))
    assert float((one - two).abs().mean()) < 12  # of 255
    assert float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]) > 0.97


def test_a_cube_has_the_edges_of_its_spacing(round_head):  # D51
    fine = FixedGrid(**CUBE, window=(0.0, 1000.0)).apply(scan(round_head()))["voxels"] > 30
    coarse = FixedGrid(**{**CUBE, "spacing_mm": 2.0}, window=(0.0, 1000.0))
    small = coarse.apply(scan(round_head()))["voxels"] > 30
    assert int(fine.sum()) / int(small.sum()) == pytest.approx(8, rel=0.25)


def test_percentiles_are_those_of_the_head(round_head):  # D51
    head = round_head()
    voxels = FixedGrid(**CUBE, percentiles=(5.0, 95.0)).apply(scan(head))["voxels"]
    inside = head[head > 0]
    low, high = np.percentile(inside, (5, 95))
    expected = np.clip((np.sort(inside) - low) / (high - low), 0, 1) * 255
    got = np.sort(voxels.numpy()[voxels.numpy() > 0])
    assert got.max() == 255
    assert np.median(got) == pytest.approx(np.median(expected[expected > 0]), abs=15)


def test_a_window_keeps_numbers_that_mean_something(round_head):
    recipe = FixedGrid(**CUBE, window=(0.0, 1.0))
    half = np.where(round_head() > 0, 0.5, 0.0)
    assert recipe.apply(scan(half))["voxels"][12, 12, 12] == 128
    assert recipe.apply(scan(half * 1.6))["voxels"][12, 12, 12] == 204


def test_the_foreground_is_that_of_the_voxels(round_head):
    cube = T1.apply(scan(round_head()))
    small = FixedGrid(**{**CUBE, "patch": (2, 2, 2)}, percentiles=(0.5, 99.5))
    shares = small.apply(scan(round_head()))["foreground"]
    bright = tokenize(cube["voxels"], (2, 2, 2)).float().mean(dim=1)
    assert bool((shares[bright > 120] == 255).all())
    assert bool((bright[shares == 0] < 20).all())


def test_a_run_is_not_a_single_volume(round_head):
    with pytest.raises(ScanError, match=r"scan\.nii\.gz.*single volume.*shape \(28, 32, 26, 2\)"):
        T1.apply(scan(np.stack([round_head()] * 2, axis=-1)))


def test_a_scan_without_a_head_is_refused():
    with pytest.raises(ScanError, match="no voxel exceeds foreground_level"):
        T1.apply(scan(np.full((8, 8, 8), -1.0) - np.eye(8)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"patch": (10, 12, 12)}, "axis D .* Set it to 20 or 30"),  # D17
        ({"shape": (24, 97, 24)}, "axis H"),
        ({"patch": (12, 12)}, "one number per axis"),
        ({"window": (0.0, 1.0)}, "exactly one"),
        ({"percentiles": None}, "exactly one"),
        ({"shape": (24, 24, 24, 8), "patch": (12, 12, 12, 4)}, "3"),
        ({"percentiles": (99.5, 0.5)}, "percentiles"),
        ({"percentiles": None, "window": (1.0, 0.0)}, "window"),
        ({"spacing_mm": 0.0}, "spacing_mm"),
    ],
)
def test_a_wrong_cube_is_refused_at_once(wrong, message):
    with pytest.raises(InputError, match=message):
        FixedGrid(**{**CUBE, "percentiles": (0.5, 99.5), **wrong})


def test_lists_from_a_config_are_as_good_as_tuples():
    listed = FixedGrid(
        shape=[24, 24, 24], spacing_mm=1.0, patch=[12, 12, 12], percentiles=[0.5, 99.5]
    )
    assert listed == T1
    assert hash(listed) == hash(T1)


def test_a_neck_does_not_push_the_vertex_out_of_the_cube():
    """Scans of whole heads reach down to the shoulders."""
    grid = np.stack(np.meshgrid(*[np.arange(64) * 5.0] * 3, indexing="ij"))  # 320 mm wide
    skull = ((grid - np.array([160, 160, 240.0])[:, None, None, None]) ** 2).sum(0) < 70**2
    neck = (np.hypot(grid[0] - 160, grid[1] - 160) < 50) & (grid[2] < 240)
    cube = FixedGrid(
        shape=(24, 24, 24), spacing_mm=8.0, patch=(12, 12, 12), percentiles=(0.5, 99.5)
    )
    head = (skull | neck) * (300 + grid[0])
    voxels = cube.apply(scan(head, affine=np.diag([5.0, 5, 5, 1])))
    lit = (voxels["voxels"] > 63).any(dim=0).any(dim=0)
    assert not lit[-1]  # there is air above the vertex
    assert lit[:20].all()


def test_a_mask_is_refused_and_not_turned_into_zeros():
    mask = np.zeros((24, 24, 24), np.float32)
    mask[6:18, 6:18, 6:18] = 1
    with pytest.raises(ScanError, match="it is a mask"):
        T1.apply(scan(mask))
