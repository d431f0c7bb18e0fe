"""A step of several batches, as if they had been one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import Parameter


class Accumulation:
    """Weighs the batches of a step by what their losses are the mean over.

    Lightning takes the mean of their losses; a batch of reports and one of single words would count
    alike, and so would one at the end of an epoch that has no other beside it. How much there is in
    all is known at the last batch only, so each counts in units of the first, and the gradients are
    set right at the end.
    """

    def __init__(self) -> None:
        self._terms: list[Tensor] = []

    def weight(self, terms: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return what the loss of the next batch of a step is multiplied by.

        Args:
            terms: What it is the mean over, such as tokens; the same number on all ranks.
        """
        self._terms.append(terms)
        return terms / _or_one(self._terms[0])

    def finish(self, parameters: Iterable[Parameter], num_batches: int) -> None:
        """Make of what has gathered in a step the gradients of the mean over all of its terms.

        Args:
            parameters: Those that have been trained.
            num_batches: What the trainer has divided each loss by.
        """
        in_all = _or_one(torch.stack(self._terms).sum())
        scale = float(_or_one(self._terms[0]) * num_batches / in_all)
        self._terms = []
        for one in parameters:
            if one.grad is not None:
                one.grad.mul_(scale)


def _or_one(number: Tensor) -> Tensor:
    """Return a number; one where it is zero, since then all of its losses are."""
    return number.where(number > 0, torch.ones_like(number))
