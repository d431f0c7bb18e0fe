"""LLaVA with volume embedders in the place of its image embeddings, and what of it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from neuro.errors import InputError
from neuro.models.volume_embed import (
    PackedVolumes,
    TokenGrid,
    VolumeEmbed,
    padding_mask,
    volume_lengths,
)

IGNORE = -100
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOWERS = ("clip_vision_model", "siglip_vision_model")


class VolumeLlava(nn.Module):
    """LLaVA (Liu et al., 2023, arXiv:2304.08485) that looks at volumes.

    The vision tower's whole ``embeddings`` module is replaced, so the tower's own positions and
    class token are gone; features of every token are used (strategy ``full``). Only the embedders
    are trained: tower, projector and language model are frozen and stay in evaluation mode.

    Args:
        llava: A model of transformers, with a CLIP or SigLIP tower.
        grids: The modalities and their grids.

    Raises:
        InputError: The tower is of another kind.
    """

    def __init__(
        self, llava: LlavaForConditionalGeneration, grids: Mapping[str, TokenGrid]
    ) -> None:
        super().__init__()
        tower = llava.model.vision_tower
        if tower.config.model_type not in TOWERS:
            raise InputError(
                f"vision tower {tower.config.model_type!r} is not supported; "
                f"known are {', '.join(TOWERS)}."
            )
        tower.embeddings = VolumeEmbed(grids, dim=tower.config.hidden_size, dtype=tower.dtype)
        # "default" drops the first token as if it were a class token
        llava.config.vision_feature_select_strategy = "full"
        self.llava = llava
        llava.requires_grad_(False)
        self.embeddings.requires_grad_(True)
        self.check_trainable()
        self.train()

    @property
    def embeddings(self) -> VolumeEmbed:
        """The part that is trained."""
        embeddings = self.llava.model.vision_tower.embeddings
        assert isinstance(embeddings, VolumeEmbed)
        return embeddings

    @property
    def image_id(self) -> int:
        """The id that stands for a visual token."""
        return int(self.llava.config.image_token_index)

    def train(self, mode: bool = True) -> VolumeLlava:
        """Set the mode of the embedders; frozen parts stay in evaluation mode, whoever asks."""
        super().train(False)
        self.training = mode
        self.embeddings.train(mode)
        return self

    def check_trainable(self) -> None:
        """Fail unless exactly the embedders are trainable.

        Raises:
            RuntimeError: Anything else is trainable, or a part of them is not.
        """
        wanted = {id(parameter) for parameter in self.embeddings.parameters()}
        missing = [
            name
            for name, one in self.named_parameters()
            if id(one) in wanted and not one.requires_grad
        ]
        extra = [
            name
            for name, one in self.named_parameters()
            if id(one) not in wanted and one.requires_grad
        ]
        if missing or extra or not wanted:
            raise RuntimeError(
                f"the trainable parameters must be exactly those of the embedders; "
                f"frozen by mistake: {missing[:5]}, "
                f"trainable by mistake: {extra[:5]} ({len(missing)} and {len(extra)} in all)."
            )

    def parameter_table(self) -> list[tuple[str, int, int]]:
        """Return (component, parameters, trainable parameters), the embedders one by one."""
        model = self.llava.model
        parts: dict[str, nn.Module] = {
            **{
                f"embedder {modality}": module
                for modality, module in self.embeddings.embedders.items()
            },
            "vision tower": nn.ModuleList(
                [one for name, one in model.vision_tower.named_children() if name != "embeddings"]
            ),
            "projector": model.multi_modal_projector,
            "language model": model.language_model,
            "language head": self.llava.lm_head,
        }
        seen: set[int] = set()  # a head that is tied to the input embeddings counts once
        rows = []
        for name, part in parts.items():
            own = [one for one in part.parameters() if id(one) not in seen]
            seen.update(id(one) for one in own)
            rows.append(
                (name, sum(p.numel() for p in own), sum(p.numel() for p in own if p.requires_grad))
            )
        return rows

    def image_features(
        self, volumes: Mapping[str, PackedVolumes], images: Sequence[tuple[str, int]]
    ) -> list[Float[Tensor, "_tokens dim"]]:
        """Run embedders, tower and projector; return each image's features in textual order.

        Args:
            volumes: The volumes by modality.
            images: Modality and place of each image slot.
        """
        lengths = volume_lengths(volumes)
        mask = padding_mask(
            lengths, next(iter(volumes.values())).tokens.device, self.embeddings.dtype
        )
        outputs = self.llava.model.get_image_features(
            pixel_values=volumes,  # pyright: ignore[reportArgumentType], VolumeEmbed takes them
            attention_mask=mask,
        )
        assert isinstance(outputs, BaseModelOutputWithPooling)
        features = outputs.pooler_output
        assert features is not None
        first = dict(
            zip(
                volumes,
                _starts([len(packed.bounds) - 1 for packed in volumes.values()]),
                strict=True,
            )
        )
        order = [first[modality] + place for modality, place in images]
        return [features[index][: lengths[index]] for index in order]

    def token_losses(
        self,
        input_ids: Int[Tensor, "studies length"],
        attention_mask: Int[Tensor, "studies length"],
        targets: Int[Tensor, "studies length"],
        features: Sequence[Float[Tensor, "_tokens dim"]],
    ) -> tuple[Float[Tensor, " supervised"], Int[Tensor, " supervised"]]:
        """Return the negative log-likelihood of each supervised token, and the study it belongs to.

        The language head sees only positions that are supervised: the images make most of the
        sequence, and logits of a large vocabulary most of the memory.
        """
        hidden = self.llava.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mm_encoder_outputs=_as_outputs(features),
        ).last_hidden_state
        study, position = torch.nonzero(targets[:, 1:] != IGNORE, as_tuple=True)
        logits = self.llava.lm_head(hidden[study, position]).float()
        return F.cross_entropy(logits, targets[study, position + 1], reduction="none"), study

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Int[Tensor, " _length"]],
        features: Sequence[Float[Tensor, "_tokens dim"]],
        *,
        max_new_tokens: int,
        pad_id: int,
        end_ids: Sequence[int],
    ) -> list[list[int]]:
        """Answer prompts greedily; return the new ids of each, without end and padding.

        Prompts are padded on the left.

        Args:
            prompts: Token ids up to where the assistant speaks.
            features: The features of the images in the prompts, in their order.
            max_new_tokens: Longest answer.
            pad_id: What fills the left.
            end_ids: What ends an answer.
        """
        length = max(len(prompt) for prompt in prompts)
        ids = torch.stack(
            [F.pad(prompt, (length - len(prompt), 0), value=pad_id) for prompt in prompts]
        )
        mask = torch.stack(
            [F.pad(torch.ones_like(prompt), (length - len(prompt), 0)) for prompt in prompts]
        )
        out = self.llava.generate(  # pyright: ignore[reportAttributeAccessIssue], its self type is too narrow
            input_ids=ids,
            attention_mask=mask,
            mm_encoder_outputs=_as_outputs(features),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_id,
            eos_token_id=list(end_ids),
        )
        assert isinstance(out, Tensor)
        return [_until(row.tolist(), {*end_ids, pad_id}) for row in out[:, length:]]


def load_llava(name: str, dtype: str) -> LlavaForConditionalGeneration:
    """Load a pretrained LLaVA: a folder, or a name in the local Hugging Face cache or on the hub.

    Args:
        name: Folder or name.
        dtype: What the frozen weights are kept in: ``float32``, ``bfloat16`` or ``float16``.

    Raises:
        InputError: It cannot be found, or the file does not hold all of the model's weights.
    """
    if dtype not in DTYPES:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}; got {dtype!r}.")
    try:
        loaded = LlavaForConditionalGeneration.from_pretrained(
            name,
            dtype=DTYPES[dtype],
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are counted below instead
        )
    except OSError as error:
        raise InputError(_not_found(name, error)) from error
    llava, found = cast("tuple[LlavaForConditionalGeneration, dict[str, Any]]", loaded)
    mismatched = (key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"])
    lacking = sorted({*found["missing_keys"], *mismatched})
    if lacking:
        raise InputError(
            f"checkpoint {name} lacks {len(lacking)} weights, for example {lacking[0]}, or holds "
            f"them in other shapes. Take a complete one."
        )
    return llava


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a pretrained LLaVA.

    Raises:
        InputError: It cannot be found.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(_not_found(name, error)) from error


def _not_found(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:120]
    return (
        f"model {name!r} cannot be loaded ({reason}). "
        f"Give a folder, or fetch it once where there is a network: hf download {name}"
    )


def _as_outputs(features: Sequence[Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    """Wrap features as transformers takes them: ragged, in the order of the image ids."""
    return {"image": BaseModelOutputWithPooling(pooler_output=list(features))}  # pyright: ignore[reportArgumentType]


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:index]) for index in range(len(counts))]


def _until(ids: list[int], ends: set[int]) -> list[int]:
    for place, one in enumerate(ids):
        if one in ends:
            return ids[:place]
    return ids
