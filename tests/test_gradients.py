"""The norm of gradients is that of all of them as one vector."""

from __future__ import annotations

import pytest
import torch

from neuro.gradients import total_norm


def test_it_is_the_norm_of_all_of_them():
    gradients = [torch.tensor([3.0]), torch.tensor([[4.0, 0.0]]), torch.tensor([12.0]).bfloat16()]
    assert float(total_norm(gradients)) == 13.0
    assert total_norm(gradients).dtype == torch.float32
    assert float(total_norm([])) == 0.0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_that_is_not_finite_shows(value):
    assert not total_norm([torch.ones(3), torch.tensor([value])]).isfinite()
