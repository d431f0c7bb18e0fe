"""The numbers of the public NeuroVFM code, against what SimpleITK gives and what its text says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuro.data import neurovfm


@pytest.mark.parametrize(
    ("spacing_mm", "shape", "axis"),
    [
        ((1.0, 1.0, 1.0), (176, 256, 200), 2),
        ((1.0, 1.0 + 1e-7, 1.0), (176, 256, 200), 2),  # equal as float32
        ((1.0, 1.0, 1.2), (176, 256, 256), 0),
        ((0.9, 0.9, 2.0), (180, 220, 260), 0),  # the smallest size, whatever the spacing
        ((0.9, 0.9, 5.0), (256, 256, 30), 2),
        ((0.9, 0.9, 5.0), (30, 256, 30), 1),
        ((1.0, 1.0, 1.2), (256, 256, 256), None),  # where it fails
    ],
)
def test_the_slice_axis_is_that_of_the_smallest_unique_size(spacing_mm, shape, axis):  # S14
    assert neurovfm.slice_axis(spacing_mm, shape) == axis


def test_sizes_are_cut_off_and_the_first_voxel_stays():
    voxels = np.random.default_rng(0).normal(size=(20, 21, 12)).astype(np.float32)
    moved = neurovfm.regrid(
        voxels, spacing_mm=(0.9, 1.0, 4.7), target_mm=(1.0, 1.0, 4.0), stored_type="float32"
    )
    assert moved.shape == (18, 21, 14)
    np.testing.assert_allclose(moved[0, :, 0], voxels[0, :, 0], rtol=1e-5)


@pytest.mark.parametrize(
    ("stored_type", "low", "high"),
    [("uint8", 0, 255), ("int16", -32768, 32767), ("int8", -128, 127)],
)
def test_integers_are_cut_off_towards_zero_and_do_not_wrap(stored_type, low, high):  # S16
    """As SimpleITK 2.5.7 does: 1.9 is 1, -1.9 is -1, -5 is 0 where there is no sign."""
    voxels = np.zeros((24, 6, 6), np.float32)
    voxels[::5] = min(high, 1000)
    geometry = {"spacing_mm": (1.3, 1.0, 1.0), "target_mm": (1.0, 1.0, 1.0)}
    as_float = neurovfm.regrid(voxels, **geometry, stored_type="float64")
    moved = neurovfm.regrid(voxels, **geometry, stored_type=stored_type)
    assert float(as_float.min()) < -5
    torch.testing.assert_close(moved, as_float.clamp(low, high).trunc())


def test_what_does_not_fill_a_patch_is_cut_from_both_ends():
    array = torch.arange(13 * 35 * 16).reshape(13, 35, 16).double()
    cut, starts = neurovfm.crop(array, (4, 16, 16))
    assert starts == [0, 1, 0]
    assert torch.equal(cut, array[:12, 1:33])


def test_bytes_are_cut_off():  # S37
    array = torch.linspace(0, 1000, 4 * 16 * 16).reshape(4, 16, 16).double()
    image, head = neurovfm.scale_mri(array, (0.5, 99.5))
    low, high, tenth = np.percentile(array.numpy(), (0.5, 99.5, 10))
    expected = np.floor((np.clip(array.numpy(), low, high) - low) / (high - low + 1e-8) * 255)
    np.testing.assert_array_equal(image, expected)
    assert int(image.max()) == 254
    assert torch.equal(head, array > tenth)
    assert float(head.double().mean()) == pytest.approx(0.9, abs=0.01)  # of any volume


@pytest.mark.parametrize(("level", "width"), [(40.0, 80.0), (80.0, 200.0), (600.0, 2800.0)])
def test_windows_are_cut_off(level, width):  # S37
    hu = torch.linspace(-1100, 2200, 4 * 16 * 16).reshape(4, 16, 16).double()
    low = level - width / 2
    clipped = np.clip(hu.numpy(), low, low + width)
    expected = np.floor((clipped - low) / (width + 1e-8) * 255)
    np.testing.assert_array_equal(neurovfm.window_ct(hu, level, width), expected)
