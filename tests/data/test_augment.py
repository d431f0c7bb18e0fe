"""Only what keeps a head plausible is changed, and only by what was drawn."""

from __future__ import annotations

import pytest
import torch

from neuro.data.augment import Augment, Draw
from neuro.errors import InputError


def draws(augment, num=200):
    return [augment.draw(torch.Generator().manual_seed(seed)) for seed in range(num)]


def test_the_default_changes_nothing():  # D51
    voxels = torch.arange(60, dtype=torch.uint8).reshape(3, 4, 5)
    for draw in draws(Augment()):
        assert draw == Draw(flip=False, gain=1.0)
        assert torch.equal(draw.apply(voxels), voxels)


def test_only_left_and_right_are_ever_exchanged():  # D51
    voxels = torch.arange(120).reshape(2, 3, 4, 5).float()
    flipped = voxels.flip(0)
    augment = Augment(flip_probability=0.5)
    found = {draw.flip for draw in draws(augment)}
    for draw in draws(augment):
        assert torch.equal(draw.apply(voxels), flipped if draw.flip else voxels)
    assert found == {False, True}


def test_flips_are_as_frequent_as_asked():
    share = sum(draw.flip for draw in draws(Augment(flip_probability=0.3), 2000)) / 2000
    assert share == pytest.approx(0.3, abs=0.04)
    assert all(draw.flip for draw in draws(Augment(flip_probability=1.0)))


def test_gains_fill_the_range_and_do_not_leave_it():
    gains = [draw.gain for draw in draws(Augment(max_gain_change=0.2), 500)]
    assert 0.8 <= min(gains) < 0.82
    assert 1.18 < max(gains) <= 1.2
    assert sum(gains) / len(gains) == pytest.approx(1, abs=0.02)


def test_bright_voxels_do_not_wrap():  # D35
    voxels = torch.tensor([0, 100, 200, 255], dtype=torch.uint8).reshape(1, 1, 4)
    changed = Draw(flip=False, gain=1.5).apply(voxels)
    assert changed.dtype == torch.uint8
    assert changed.flatten().tolist() == [0, 150, 255, 255]


def test_a_run_keeps_its_type_and_sign():
    run = torch.tensor([-2.0, 0.0, 4.0], dtype=torch.float16).reshape(1, 1, 1, 3)
    changed = Draw(flip=False, gain=0.5).apply(run)
    assert changed.dtype == torch.float16
    assert changed.flatten().tolist() == [-1.0, 0.0, 2.0]


def test_the_same_generator_draws_the_same():  # D52
    augment = Augment(flip_probability=0.5, max_gain_change=0.5)
    assert draws(augment) == draws(augment)
    assert len({draw.gain for draw in draws(augment)}) == 200


@pytest.mark.parametrize(
    "wrong",
    [
        {"flip_probability": 1.1},
        {"flip_probability": -0.1},
        {"max_gain_change": 1.0},
        {"max_gain_change": -0.1},
    ],
)
def test_arguments_out_of_range_are_errors(wrong):
    with pytest.raises(InputError, match=r"data\.augment takes"):
        Augment(**wrong)
