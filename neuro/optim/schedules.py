"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from neuro.errors import InputError


def warmup_cosine_factor(
    step: int, *, num_steps: int, warmup_fraction: float, final_fraction: float
) -> float:
    """Return what the peak rate is multiplied by: a linear rise, then half a cosine, then level.

    Args:
        step: Optimizer steps done.
        num_steps: Steps of the whole run.
        warmup_fraction: Share of the run that the rise takes, in [0, 1).
        final_fraction: Where the cosine ends, as a share of the peak.
    """
    num_warmup = max(1, round(num_steps * warmup_fraction))
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(
    optimizer: Optimizer, num_steps: int, warmup_fraction: float, final_fraction: float
) -> LambdaLR:
    """Return the schedule for an optimizer; for the arguments see ``warmup_cosine_factor``.

    Raises:
        InputError: A fraction is out of range.
    """
    if not (0 <= warmup_fraction < 1 and 0 <= final_fraction <= 1):
        raise InputError(
            f"optim.schedule takes warmup_fraction in [0, 1) and final_fraction in [0, 1]; "
            f"got {warmup_fraction} and {final_fraction}."
        )
    return LambdaLR(
        optimizer,
        lambda step: warmup_cosine_factor(
            step,
            num_steps=num_steps,
            warmup_fraction=warmup_fraction,
            final_fraction=final_fraction,
        ),
    )
