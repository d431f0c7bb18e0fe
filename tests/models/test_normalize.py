"""Voxels become float32, whatever they were cached as."""

import torch

from neuro.models.normalize import MRI_MEAN, MRI_STD, normalize


def test_a_cached_scan_is_standardized_in_float32():
    tokens = torch.arange(256, dtype=torch.uint8).reshape(4, 64)
    out = normalize(tokens)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, (tokens.double() / 255 - MRI_MEAN).div(MRI_STD).float())


def test_the_brightest_voxel_does_not_wrap_around():  # D35
    first, last = normalize(torch.tensor([[0, 255]], dtype=torch.uint8))[0]
    assert first < 0 < last


def test_a_run_is_left_as_its_recipe_made_it():
    tokens = torch.randn(3, 8).half()
    assert torch.equal(normalize(tokens), tokens.float())
    assert normalize(tokens).dtype == torch.float32
