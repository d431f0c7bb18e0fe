"""The head is whole: what is dark inside it belongs to it, what is bright beside it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuro.data.foreground import fill_head


def shell(shape=(30, 40, 36), radius=0.9, thickness=0.25):
    """Return a hollow head and the whole of it."""
    axes = np.meshgrid(*[np.linspace(-1, 1, size) for size in shape], indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes))
    whole = torch.from_numpy(distance < radius)
    return whole & torch.from_numpy(distance > radius - thickness), whole


def test_what_is_dark_inside_the_head_is_head():  # S12
    hollow, whole = shell()
    assert float(hollow.float().sum() / whole.float().sum()) < 0.7
    filled = fill_head(hollow)
    assert float((filled == whole).float().mean()) > 0.995


def test_what_is_open_to_one_side_is_not_filled():
    """A mouth, or the hollow of a hand: there is air in front of it."""
    hollow, _ = shell()
    hollow[:, :20] = False
    filled = fill_head(hollow)
    assert not filled[15, 5:20, 18].any()


@pytest.mark.parametrize("share", [0.001, 0.02])
def test_single_bright_voxels_in_the_air_do_not_count(share):
    """Otherwise all between them would be head."""
    hollow, whole = shell()
    noise = torch.from_numpy(np.random.default_rng(0).random(whole.shape) < share)
    filled = fill_head(hollow | noise)
    assert float((filled == whole).float().mean()) > 0.99


def test_a_layer_of_one_voxel_counts():
    """Skin, where slices are thick and the skull below it is dark."""
    skin = torch.zeros(12, 30, 30, dtype=torch.bool)
    skin[2:-2, 4:-4, 4:-4] = True
    whole = skin.clone()
    skin[3:-3, 5:-5, 5:-5] = False
    filled = fill_head(skin)
    assert not (filled & ~whole).any()
    assert float(filled.sum() / whole.sum()) > 0.98  # but for its edges


def test_the_border_of_the_scan_does_not_wear_the_head_away():
    """A field of view that is smaller than the head."""
    assert fill_head(torch.ones(3, 20, 20, dtype=torch.bool)).all()


def test_nothing_bright_is_no_head():
    assert not fill_head(torch.zeros(4, 5, 6, dtype=torch.bool)).any()


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
def test_the_order_of_the_axes_changes_nothing(order):
    hollow, _ = shell()
    back = [order.index(axis) for axis in range(3)]
    stored = hollow.permute(order).contiguous()
    assert torch.equal(fill_head(stored.permute(back)), fill_head(hollow))
    assert torch.equal(fill_head(stored), fill_head(hollow).permute(order))
