"""Resampling keeps what is constant, keeps a ramp a ramp, and passes nothing over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuro.data.resample import area_weights, resample, spline_weights

# old voxels, new voxels, new edge over old edge
GRIDS = [
    (256, 64, 4.0),
    (256, 231, 1 / 0.9),
    (320, 224, 1 / 0.7),
    (30, 38, 0.8),
    (36, 36, 1.0),
    (181, 46, 4.0),
    (7, 20, 0.35),
    (40, 9, 4.7),
    (3, 1, 4.0),
    (2, 2, 0.999),
]


def places(num_old, num_new, step):
    return (num_old - 1) / 2 + (np.arange(num_new) - (num_new - 1) / 2) * step


@pytest.mark.parametrize("grid", GRIDS)
def test_what_is_constant_stays(grid):  # S16
    np.testing.assert_allclose(area_weights(*grid).sum(axis=1), 1, atol=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_inside_a_ramp_stays_a_ramp(grid):  # S16
    num_old, num_new, step = grid
    got, expected = area_weights(*grid) @ np.arange(num_old), places(*grid)
    reach = (max(step, 1) + 1) / 2
    inside = (expected >= reach - 1) & (expected <= num_old - reach)
    np.testing.assert_allclose(got[inside], expected[inside], atol=1e-9)
    assert got.min() >= -1e-9
    assert got.max() <= num_old - 1 + 1e-9
    assert inside.sum() >= num_new - 2 * np.ceil(reach / step) - 2


@pytest.mark.parametrize("grid", GRIDS)
def test_no_weight_is_negative_so_nothing_rings(grid):  # S16
    assert area_weights(*grid).min() >= 0


@pytest.mark.parametrize("grid", GRIDS)
def test_every_old_voxel_has_its_share(grid):  # S16
    """Picking single planes would give most of them none."""
    share = area_weights(*grid).sum(axis=0) * grid[2]
    inner = share[2:-2]
    assert (share > 0).all()
    if grid[2] > 1 and len(inner):
        assert inner.min() > 0.6
        assert inner.max() < 1.4


def test_the_same_grid_is_left_as_it_is():
    np.testing.assert_array_equal(area_weights(9, 9, 1.0), np.eye(9))


def test_four_thin_slices_make_the_mean_of_a_thick_one():
    values = np.random.default_rng(0).normal(size=16)
    np.testing.assert_allclose(area_weights(16, 4, 4.0) @ values, values.reshape(4, 4).mean(axis=1))


def test_noise_becomes_less_where_slices_become_fewer():  # S16
    noise = np.random.default_rng(0).normal(size=(4000, 64))
    assert (noise @ area_weights(64, 16, 4.0).T).std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_blocks_and_the_order_in_memory_change_nothing(dtype, order):
    rng = np.random.default_rng(0)
    volume = rng.normal(size=(50, 37, 64))
    weights = [area_weights(50, 40, 1.3), area_weights(37, 74, 0.5), area_weights(64, 17, 4.0)]
    expected = np.einsum("abc,ia,jb,kc->ijk", volume, *weights, optimize=True)
    back = [order.index(axis) for axis in range(3)]
    stored = torch.from_numpy(volume.transpose(order).copy()).to(dtype).permute(back)
    got = resample(stored, weights)
    np.testing.assert_allclose(
        got.numpy(), expected, atol=1e-5 if dtype == torch.float32 else 1e-12
    )
    assert got.dtype == dtype


def test_an_axis_without_weights_stays():
    volume = torch.rand(5, 6, 7)
    assert torch.equal(resample(volume, [None, None, None]), volume)
    mean = np.full((1, 6), 1 / 6)
    torch.testing.assert_close(resample(volume, [None, mean, None]), volume.mean(1, keepdim=True))


# What SimpleITK 2.5.7 makes of these numbers with sitkBSpline; 9 to 4 mm ends beyond the scan.
SIGNAL = [3, -1, 4, 1, 5, -9, 2, 6]
BY_ITK = {
    (1.7, 1.0): "3.0 .396646 -.540844 3.217496 3.06597 .909294 4.405897 3.845192 -6.011063 "
    "-7.954179 .426669 5.422104 5.999572",
    (0.9, 2.0): "3.0 3.634125 -1.447601",
    (9.0, 4.0): "3.0 1.270777 -.911773 .32187 3.286923 3.634125 1.484713 1.423891 4.581995 5.0 "
    "-1.447601 -8.294154 -7.560492 -1.150738 4.133902 5.860631 5.995814 0.0",
}


@pytest.mark.parametrize("edges", BY_ITK)
def test_splines_are_those_of_itk(edges):
    old, new = edges
    expected = [float(number) for number in BY_ITK[edges].split()]
    weights = spline_weights(len(SIGNAL), len(expected), new / old)
    np.testing.assert_allclose(weights @ SIGNAL, expected, atol=1e-6)


@pytest.mark.parametrize("num_old", [2, 3, 8, 100])
def test_splines_go_through_the_old_voxels(num_old):
    np.testing.assert_allclose(spline_weights(num_old, num_old, 1.0), np.eye(num_old), atol=1e-12)


def test_splines_keep_a_constant_and_far_from_the_ends_a_ramp():
    weights = spline_weights(60, 80, 0.7)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)
    middle = slice(25, 60)
    ramp = np.arange(80) * 0.7
    np.testing.assert_allclose((weights @ np.arange(60))[middle], ramp[middle], atol=1e-6)
