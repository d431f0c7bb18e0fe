"""How probable given answers are: the second way to ask a model, beside letting it speak."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from neuro.models.llava import VolumeLlava, as_outputs, left_padded


@torch.no_grad()
def log_likelihoods(
    model: VolumeLlava,
    prompts: Sequence[Int[Tensor, " _length"]],
    features: Sequence[Float[Tensor, "_tokens dim"]],
    answers: Sequence[Sequence[Int[Tensor, " _said"]]],
    *,
    pad_id: int,
) -> list[Float[Tensor, " _answers"]]:
    """Return for each prompt the summed log-likelihood of each of its answers.

    A prompt is read once, and all of its answers go on from there.

    Args:
        model: It answers.
        prompts: Token ids up to where the assistant speaks.
        features: The features of the images in the prompts, in their order.
        answers: Token ids of each prompt's answers with the end of the turn, two at least.
        pad_id: What fills the left of shorter prompts, and the right of shorter answers.
    """
    llava = model.llava
    ids, mask = left_padded(prompts, pad_id)
    read = llava.model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=_positions(mask),
        mm_encoder_outputs=as_outputs(features),
        use_cache=True,
    )
    sums = []
    for place in range(max(len(own) for own in answers)):
        # A prompt with fewer answers repeats its last, so that each pass has every row.
        own = [some[min(place, len(some) - 1)] for some in answers]
        said = pad_sequence(list(own), batch_first=True, padding_value=pad_id)
        lengths = torch.tensor([len(one) for one in own], device=said.device)
        spoken = (torch.arange(said.shape[1], device=said.device) < lengths.unsqueeze(1)).long()
        whole = torch.cat([mask, spoken], dim=1)[:, :-1]
        hidden = llava.model(
            input_ids=said[:, :-1],
            attention_mask=whole,
            position_ids=_positions(whole)[:, mask.shape[1] :],
            past_key_values=copy.deepcopy(read.past_key_values),  # it grows with what is said
            use_cache=True,
        ).last_hidden_state
        hidden = torch.cat([read.last_hidden_state[:, -1:], hidden], dim=1)
        logits = llava.lm_head(hidden).float()
        losses = F.cross_entropy(logits.transpose(1, 2), said, reduction="none")
        sums.append(-(losses * spoken).sum(dim=1))
    return [row[: len(own)] for row, own in zip(torch.stack(sums, dim=1), answers, strict=True)]


def _positions(mask: Int[Tensor, "studies length"]) -> Int[Tensor, "studies length"]:
    """Return the place of each token in its text, padding on the left not counted."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
