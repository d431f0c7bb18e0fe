"""The norm of gradients, wherever they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm


def total_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Return the norm of all gradients as one vector, in float32; 0 without any.

    Ranks that hold shares of a gradient must all ask.
    """
    whole = [one for one in gradients if not isinstance(one, DTensor)]
    shared = [one for one in gradients if isinstance(one, DTensor)]
    if not shared:  # the usual case
        return get_total_norm(whole).float() if whole else torch.zeros(())
    of_shared = get_total_norm(shared)
    assert isinstance(of_shared, DTensor)
    norms = [of_shared.full_tensor().float(), *([get_total_norm(whole).float()] if whole else [])]
    return torch.stack(norms).norm()
