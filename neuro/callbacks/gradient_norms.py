"""How large the gradients of each part are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn import Parameter
from torch.optim import Optimizer
from typing_extensions import override

from neuro.errors import InputError
from neuro.gradients import total_norm


@runtime_checkable
class Parts(Protocol):
    """A system whose parts have gradients of their own."""

    def gradient_parts(self) -> Mapping[str, Sequence[Parameter]]:
        """Return the trained parameters of each part."""
        ...


class GradientNorms(Callback):
    """Logs ``grad_norm/<part>`` every so many optimizer steps, before gradients are clipped.

    They are those of the whole step: of all accumulated batches and all ranks, unscaled. A part
    that no batch of the step has used has none, and logs nothing.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next.

    Raises:
        InputError: It is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise InputError(
                f"callbacks.gradients.every_n_steps must be at least 1; got {every_n_steps}."
            )
        self.every_n_steps = every_n_steps

    @override
    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        # The step is about to be done, and is counted when it is.
        if (trainer.global_step + 1) % self.every_n_steps or not isinstance(pl_module, Parts):
            return
        figures = norms(pl_module.gradient_parts())
        # Not pl_module.log, which would wait for a step that trainer.log_every_n_steps divides.
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=trainer.global_step)


def norms(parts: Mapping[str, Sequence[Parameter]]) -> dict[str, float]:
    """Return ``grad_norm/<part>`` of each part that has a gradient: one wait for the device."""
    gradients = {
        name: [one.grad for one in part if one.grad is not None] for name, part in parts.items()
    }
    found = {f"grad_norm/{name}": total_norm(own) for name, own in gradients.items() if own}
    if not found:
        return {}
    device = next(iter(found.values())).device
    values = torch.stack([one.to(device) for one in found.values()]).tolist()
    return dict(zip(found, values, strict=True))
