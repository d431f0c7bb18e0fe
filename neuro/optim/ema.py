"""A teacher that follows its student."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from neuro.errors import InputError


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher: ``momentum * teacher + (1 - momentum) * student``, in place, in float32.

    Parameters and floating-point buffers are averaged; whatever counts is copied. To be called
    after the optimizer's step, so that the last one is not left out.

    Args:
        teacher: A copy of the student.
        student: What it follows; it is not changed.
        momentum: In [0, 1]; at 1 the teacher stays where it is.

    Raises:
        InputError: The teacher is not in float32. In bfloat16 it would stall: at a momentum of
            0.998 each step is smaller than what can be added.
    """
    assert 0 <= momentum <= 1, "momentum is a share"
    averaged: list[torch.Tensor] = []
    followed: list[torch.Tensor] = []
    for own, other in zip(_state(teacher), _state(student), strict=True):
        if not own.is_floating_point():
            own.copy_(other)
            continue
        if own.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"a teacher is a moving average and needs float32 weights; got {own.dtype}. "
                f"Set trainer.precision to bf16-mixed, 16-mixed or 32-true."
            )
        averaged.append(own)
        followed.append(other.to(own.dtype))
    if averaged:
        get_ema_multi_avg_fn(momentum)(averaged, followed, None)


def _state(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
