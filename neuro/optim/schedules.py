"""What changes over a run, as functions of the step: a resumed run needs no memory of them."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from neuro.errors import InputError


def linear_ramp(
    step: int, *, num_steps: int, start: float, end: float, stretch: float = 1.0
) -> float:
    """Return a number that moves evenly from one value to another, and stays there.

    Args:
        step: Optimizer steps done.
        num_steps: Steps of the whole run.
        start: The value before the first step.
        end: The value at the end.
        stretch: Where the end is, as a multiple of the run; above 1 it is not reached.
    """
    progress = min(1.0, max(0.0, step / max(1.0, num_steps * stretch)))
    return start + (end - start) * progress


def cosine_ramp(
    step: int, *, num_steps: int, start: float, end: float, stretch: float = 1.0
) -> float:
    """Return a number that moves along half a cosine; for the arguments see ``linear_ramp``."""
    progress = linear_ramp(step, num_steps=num_steps, start=0.0, end=1.0, stretch=stretch)
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine_factor(
    step: int,
    *,
    num_steps: int,
    warmup_fraction: float,
    final_fraction: float,
    start_fraction: float = 0.0,
) -> float:
    """Return what the peak rate is multiplied by: a linear rise, then half a cosine, then level.

    Args:
        step: Optimizer steps done.
        num_steps: Steps of the whole run.
        warmup_fraction: Share of the run that the rise takes, in [0, 1).
        final_fraction: Where the cosine ends, as a share of the peak.
        start_fraction: Where the rise begins, as a share of the peak.
    """
    num_warmup = max(1, round(num_steps * warmup_fraction))
    if step < num_warmup:
        return start_fraction + (1 - start_fraction) * (step + 1) / num_warmup
    progress = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_cosine(
    optimizer: Optimizer,
    num_steps: int,
    warmup_fraction: float,
    final_fraction: float,
    start_fraction: float = 0.0,
    stretch: float = 1.0,
) -> LambdaLR:
    """Return the schedule for an optimizer; for the arguments see ``warmup_cosine_factor``.

    Args:
        optimizer: Has the peak rate.
        num_steps: Steps of the whole run.
        warmup_fraction: Share of the stretched run that the rise takes, in [0, 1).
        final_fraction: Where the cosine ends, in [0, 1].
        start_fraction: Where the rise begins, in [0, 1].
        stretch: Length of the curve, as a multiple of the run, at least 1. Above 1 the run stops
            before the curve does (``ipe_scale`` of V-JEPA).

    Raises:
        InputError: A fraction is out of range.
    """
    fractions = (warmup_fraction, final_fraction, start_fraction)
    if not (all(0 <= one <= 1 for one in fractions) and warmup_fraction < 1 <= stretch):
        raise InputError(
            f"optim.schedule takes warmup_fraction in [0, 1) and final_fraction in [0, 1], "
            f"start_fraction in [0, 1] and stretch of at least 1; got {warmup_fraction}, "
            f"{final_fraction}, {start_fraction} and {stretch}."
        )
    return LambdaLR(
        optimizer,
        lambda step: warmup_cosine_factor(
            step,
            num_steps=round(num_steps * stretch),
            warmup_fraction=warmup_fraction,
            final_fraction=final_fraction,
            start_fraction=start_fraction,
        ),
    )
