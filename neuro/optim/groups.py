"""Which parameters decay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trainable parameters in two groups: weights of layers decay, the rest does not.

    Biases, norms and what a module holds directly (position tables, mask tokens) are left alone;
    told by the type of the module that owns a parameter, not by its name. A parameter whose
    gradient is None is skipped by the optimizer altogether, so a modality that was not seen keeps
    its weights, decay or not.

    Args:
        module: Where the parameters are.
        weight_decay: For those that decay.
    """
    decaying, resting = [], []
    seen: set[int] = set()  # a weight that two layers share is there once
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                decays = isinstance(owner, layers) and name == "weight"
                (decaying if decays else resting).append(parameter)
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": resting, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def layerwise_groups(
    parts: Iterable[tuple[nn.Module, float]], weight_decay: float
) -> list[dict[str, Any]]:
    """Return the groups of ``decay_groups`` of several parts, with a learning rate of their own.

    Args:
        parts: Each with what its learning rate is multiplied by, ``lr_scale`` of its groups.
        weight_decay: For those that decay.
    """
    return [
        {**group, "lr_scale": scale}
        for part, scale in parts
        for group in decay_groups(part, weight_decay)
    ]


def set_weight_decay(optimizer: Optimizer, weight_decay: float) -> None:
    """Change the decay of the groups that decay; those at 0 are left alone.

    Args:
        optimizer: Has groups of ``decay_groups``.
        weight_decay: Above 0, since a group that came down to 0 would never rise again.
    """
    assert weight_decay > 0, "what rests cannot be told from what decays by 0"
    for group in optimizer.param_groups:
        if group["weight_decay"] > 0:
            group["weight_decay"] = weight_decay
