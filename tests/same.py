"""Two results that must be the same, bit for bit."""

from __future__ import annotations

import torch


def assert_same(one, other, where=""):
    """Compare containers of tensors and plain values; nan is nan."""
    if isinstance(one, dict):
        assert isinstance(other, dict), where
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert type(one) is type(other), where
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{place}")
    elif isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor), where
        assert torch.equal(one, other), where
    else:
        assert type(one) is type(other), where
        assert one == other or str(one) == str(other), where
