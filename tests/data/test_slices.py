"""The slice axis is the scan's own, and rounding does not change it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scans import scan

from neuro.data.slices import ORDER, header_spacing_mm, index_affine, slice_axis

BRAINS = [
    # spacing, shape, axis
    ((1.0, 1.0, 1.2), (256, 256, 256), 2),  # where the public code fails
    ((0.9, 0.9, 2.0), (180, 220, 260), 2),  # where it takes sagittal slices of 1 mm
    ((5.0, 0.9, 0.9), (30, 256, 256), 0),
    ((0.9, 6.0, 0.9), (256, 28, 256), 1),
    ((1.2, 1.0, 1.0), (160, 256, 256), 0),
    ((1.0, 1.0, 1.0), (176, 256, 256), 2),
    ((1.0, 1.0, 1.0), (256, 176, 256), 2),
    ((0.868, 0.868, 1.0), (288, 288, 181), 2),
    ((0.5, 0.5, 0.5), (80, 512, 512), 0),  # a sagittal slab
    ((0.5, 0.5, 0.55), (512, 512, 80), 2),
    ((2.0, 2.0, 2.0), (64, 64, 33), 2),
    ((4.0, 4.0, 1.0), (64, 64, 100), 2),
]


@pytest.mark.parametrize(("spacing_mm", "shape", "axis"), BRAINS)
def test_the_slice_axis_is_chosen_by_spacing_then_by_shape(spacing_mm, shape, axis):  # S14
    assert slice_axis(spacing_mm, shape) == axis


@pytest.mark.parametrize(("spacing_mm", "shape", "axis"), BRAINS)
def test_float_noise_does_not_turn_a_scan(spacing_mm, shape, axis):  # S14
    rng = np.random.default_rng(0)
    for noise in rng.uniform(-1, 1, (50, 3)):
        for size in (1e-7, 1e-6, 1e-4):
            noisy = [edge * (1 + size * part) for edge, part in zip(spacing_mm, noise, strict=True)]
            assert slice_axis(noisy, shape) == axis


def test_no_usual_protocol_is_near_a_tolerance():  # S14
    """So one protocol never comes out in two ways."""
    edges = [round(0.05 * step, 2) for step in range(6, 140, 3)]
    edges += [0.9375, 0.8594, 0.4688, 0.488, 0.868, 1 / 3]
    for small in edges:
        for large in edges:
            for sizes in ((200, 200, 200), (64, 256, 256)):
                chosen = slice_axis((large, small, small), sizes)
                for factor in (1 - 1e-5, 1 + 1e-5):
                    assert slice_axis((large * factor, small, small), sizes) == chosen


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_come_first_and_axes_point_right_back_and_down(axis):
    affine = index_affine(axis, (2.0, 3.0, 4.0), (10.0, 20.0, 30.0))
    assert ORDER[axis][0] == axis
    assert abs(affine[axis, 0]) == (2, 3, 4)[axis]
    np.testing.assert_array_equal(affine[:3, :3].sum(axis=1), [2, -3, -4])
    np.testing.assert_array_equal(affine @ [0, 0, 0, 1], [10, 20, 30, 1])


@pytest.mark.parametrize(
    ("axes", "expected"), [("RAS", (1, 2, 3)), ("PIR", (3, 1, 2)), ("SLA", (2, 3, 1))]
)
def test_edges_of_the_header_are_found_for_each_axis(axes, expected):
    volume = scan(np.zeros((2, 2, 2)), spacing_mm=9.0)
    assert header_spacing_mm(volume) == [9, 9, 9]
    volume = dataclasses.replace(volume, orientation=axes, source_spacing_mm=(1.0, 2.0, 3.0))
    assert header_spacing_mm(volume) == list(expected)
