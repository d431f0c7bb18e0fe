"""Losses that skip what is not known, as a sum and what it is the sum over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neuro.errors import InputError

DEFAULTS = {"binary": "bce", "multilabel": "bce", "multiclass": "ce", "regression": "mse"}
FITTING = {
    "binary": ("bce",),
    "multilabel": ("bce",),
    "multiclass": ("ce",),
    "regression": ("mse", "mae", "rmse"),
}


class Criterion(nn.Module):
    """A loss over the labels that are known; NaN is not.

    ``bce`` is binary cross-entropy per finding, ``ce`` cross-entropy over classes; ``mse``, ``mae``
    and ``rmse`` are of a number in units of its ``spread``, so that findings in different units
    count alike.

    Args:
        task: ``binary``, ``multilabel``, ``multiclass`` or ``regression``.
        loss: Which; None takes the first that fits the task.
        weights: How much more a positive study of a finding counts, or a study of a class.
        spread: Standard deviation of each number; None is 1.

    Raises:
        InputError: The loss does not fit the task.
    """

    def __init__(
        self,
        task: str,
        loss: str | None = None,
        weights: Float[Tensor, " outputs"] | None = None,
        spread: Float[Tensor, " outputs"] | None = None,
    ) -> None:
        super().__init__()
        self.loss = loss or DEFAULTS[task]
        if self.loss not in FITTING[task]:
            raise InputError(
                f"system.loss={loss} does not fit labels of task {task}; fitting are "
                f"{', '.join(FITTING[task])}. Set one of them, or null."
            )
        self.register_buffer("weights", weights, persistent=False)
        self.register_buffer("spread", spread, persistent=False)
        self.weights: Tensor | None
        self.spread: Tensor | None

    def forward(
        self, outputs: Float[Tensor, "studies outputs"], labels: Float[Tensor, "studies findings"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the summed loss, and how many labels it is the sum over (weighted, for ``ce``).

        For ``rmse`` it is the sum of squares; see ``mean``.
        """
        known = labels.isfinite()
        if self.loss == "ce":
            rows = known[:, 0]
            classes = labels[rows, 0].long()
            total = F.cross_entropy(outputs[rows], classes, weight=self.weights, reduction="sum")
            count = rows.sum() if self.weights is None else self.weights[classes].sum()
            return total, count.to(total.dtype)
        truth = labels.where(known, torch.zeros_like(labels))
        each = self._each(outputs, truth)
        return each.where(known, torch.zeros_like(each)).sum(), known.sum().to(each.dtype)

    def mean(
        self, total: Float[Tensor, ""], count: Float[Tensor, ""], reduce: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, ""]:
        """Return the loss of a step.

        The mean over ranks of its gradients is the gradient over the labels of all ranks, for
        the root of a mean too.

        Args:
            total: Of this rank.
            count: Of the average rank.
            reduce: Returns the mean of a number over ranks.
        """
        mean = total / count.clamp(min=torch.finfo(count.dtype).tiny)
        if self.loss != "rmse":
            return mean
        root = reduce(mean.detach()).clamp(min=1e-12).sqrt()
        return mean / (2 * root) + root / 2  # the root, with the derivative of a root

    def _each(self, outputs: Tensor, truth: Tensor) -> Tensor:
        if self.loss == "bce":
            return F.binary_cross_entropy_with_logits(
                outputs, truth, pos_weight=self.weights, reduction="none"
            )
        off = outputs - truth
        if self.spread is not None:
            off = off / self.spread
        return off.abs() if self.loss == "mae" else off.square()
