"""LLaVA that looks at volumes: what is trained of it, its losses and its answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

from neuro.errors import InputError
from neuro.models.normalize import PackedVolumes
from neuro.models.policy import Policy
from neuro.models.tuning import adapter_parameters
from neuro.models.volume_embed import TokenGrid

IGNORE = -100
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class VolumeLlava(nn.Module):
    """LLaVA (Liu et al., 2023, arXiv:2304.08485) that looks at volumes.

    A subclass says what it sees with: it defines ``image_features`` and ``eye``. The eye is
    trained; whatever the policy leaves out is frozen and stays in evaluation mode.

    Args:
        llava: A model of transformers.
        policy: What is trained besides the eye.
        checkpoint_activations: Keep only what goes into a layer and compute the rest again for the
            gradient: less memory, about a third more time.
    """

    def __init__(
        self,
        llava: LlavaForConditionalGeneration,
        policy: Policy,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__()
        self.llava = llava
        self.policy = policy
        self.checkpoint_activations = checkpoint_activations

    @property
    def eye(self) -> Mapping[str, nn.Module]:
        """What it sees with, by name: what is trained whatever the policy."""
        raise NotImplementedError(f"{type(self).__name__} must define eye.")

    @property
    def slots_per_image(self) -> int | None:
        """How many features an image becomes; None is one for each of its tokens."""
        return None

    @property
    def image_id(self) -> int:
        """The id that stands for a visual token."""
        return int(self.llava.config.image_token_index)

    def image_features(
        self, volumes: Mapping[str, PackedVolumes], images: Sequence[tuple[str, int]]
    ) -> list[Float[Tensor, "_tokens dim"]]:
        """Return each image's features, of the language model's width, in textual order.

        Args:
            volumes: The volumes by modality.
            images: Modality and place of each image slot.
        """
        raise NotImplementedError(f"{type(self).__name__} must define image_features().")

    def check_grids(self, grids: Mapping[str, TokenGrid]) -> None:
        """Check that it can look at images of some modalities.

        Raises:
            InputError: It cannot.
        """

    def get_used_to(self, volumes: Iterable[PackedVolumes]) -> None:
        """Take from training images what must be known of them before anything is trained.

        Args:
            volumes: A sample, read only if it is needed.
        """

    @property
    def components(self) -> dict[str, nn.Module]:
        """What the policy decides on, by name."""
        language_model = nn.ModuleList([self.llava.model.language_model, self.llava.lm_head])
        return {"language_model": language_model}

    def freeze(self) -> None:
        """Set what is trained; a subclass calls it when all of its parts are there.

        What is trained is in float32: steps of an optimizer get lost in 16 bits (they left 43 % of
        the weights of a bfloat16 embedder as they were after 100 steps).
        """
        self.requires_grad_(False)
        for name, adapters in self.policy.adapters.items():
            if name in self.components:
                adapters.inject(self.components[name])
        for name, part in self.components.items():
            if getattr(self.policy, name):
                part.float()  # what of it does not learn must fit the rest
        for one in self.wanted():
            one.data = one.data.float()
            one.requires_grad_(True)
        if self.checkpoint_activations:
            self.llava.activation_checkpointing_enable()
        self.check_trainable()
        self.train()

    def wanted(self) -> list[nn.Parameter]:
        """Return what should be trained: the eye, and what the policy names."""
        found = [one for part in self.eye.values() for one in part.parameters()]
        for name, part in self.components.items():
            if getattr(self.policy, name):
                found += self.trained_whole(name, part)
            elif name in self.policy.adapters:
                found += adapter_parameters(part)
        return found

    def trained_whole(self, name: str, part: nn.Module) -> list[nn.Parameter]:
        """Return the parameters of a component that learns: those that have a gradient."""
        return list(part.parameters())

    def train(self, mode: bool = True) -> VolumeLlava:
        """Set the mode of what is trained; frozen parts stay in evaluation mode, whoever asks."""
        super().train(False)
        self.training = mode
        for part in self.eye.values():
            part.train(mode)
        for name, part in self.components.items():
            if getattr(self.policy, name):
                part.train(mode)
        for name, module in self.llava.named_modules():
            # Dropout of adapters; and a layer whose activations are to be computed again looks at
            # its own mode, which nothing else in it does.
            if ".lora_dropout" in name or getattr(module, "gradient_checkpointing", False):
                module.training = mode
        return self

    def check_trainable(self) -> None:
        """Fail unless exactly what should be trained is trainable.

        Raises:
            RuntimeError: Anything else is, or a part of it is not.
        """
        wanted = {id(parameter) for parameter in self.wanted()}
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
                f"the trainable parameters must be exactly those of the eye and the policy; "
                f"frozen by mistake: {missing[:5]}, "
                f"trainable by mistake: {extra[:5]} ({len(missing)} and {len(extra)} in all)."
            )

    def kept_names(self) -> set[str]:
        """Return the names of what a checkpoint holds: what is trained."""
        return {name for name, one in self.named_parameters() if one.requires_grad}

    def paces(self) -> list[tuple[nn.Module, float]]:
        """Return each part that may learn, with what its learning rate is multiplied by."""
        rest = nn.ModuleList(self.components.values())
        return [*((part, 1.0) for part in self.eye.values()), (rest, float(self.policy.lr_scale))]

    def parts(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters of each part, the eye's one by one; each parameter once.

        A head that is tied to the input embeddings counts there.
        """
        eye = {f"eye {name}": part for name, part in self.eye.items()}
        whole = {**eye, **self.components}
        seen: set[int] = set()
        found = {}
        for name, part in whole.items():
            found[name] = [one for one in part.parameters() if id(one) not in seen]
            seen.update(id(one) for one in found[name])
        return found

    def parameter_table(self) -> list[tuple[str, int, int]]:
        """Return (part, parameters, trainable parameters)."""
        return [
            (
                name.replace("_", " "),
                sum(one.numel() for one in own),
                sum(one.numel() for one in own if one.requires_grad),
            )
            for name, own in self.parts().items()
        ]

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
            mm_encoder_outputs=as_outputs(features),
            use_cache=False,  # nothing is generated from it
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

        Prompts are padded on the left. What a model's file says of generation, a penalty on what
        was said before for example, is left aside: it would depend on the padding.

        Args:
            prompts: Token ids up to where the assistant speaks.
            features: The features of the images in the prompts, in their order.
            max_new_tokens: Longest answer.
            pad_id: What fills the left.
            end_ids: What ends an answer.
        """
        ids, mask = left_padded(prompts, pad_id)
        with self._plain_generation():
            out = self.llava.generate(  # pyright: ignore[reportAttributeAccessIssue], its self type is too narrow
                input_ids=ids,
                attention_mask=mask,
                mm_encoder_outputs=as_outputs(features),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad_id,
                eos_token_id=list(end_ids),
            )
        assert isinstance(out, Tensor)
        return [_until(row.tolist(), {*end_ids, pad_id}) for row in out[:, ids.shape[1] :]]

    @contextmanager
    def _plain_generation(self) -> Iterator[None]:
        """Set what the model's file says of generation aside: it fills whatever a caller leaves."""
        own = self.llava.generation_config
        self.llava.generation_config = GenerationConfig()
        try:
            yield
        finally:
            self.llava.generation_config = own


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


def left_padded(
    prompts: Sequence[Int[Tensor, " _length"]], pad_id: int
) -> tuple[Int[Tensor, "studies length"], Int[Tensor, "studies length"]]:
    """Return prompts as rows that end together, and 1 where a row holds its prompt."""
    length = max(len(prompt) for prompt in prompts)
    gaps = [(length - len(prompt), 0) for prompt in prompts]
    ids = [F.pad(one, gap, value=pad_id) for one, gap in zip(prompts, gaps, strict=True)]
    mask = [F.pad(torch.ones_like(one), gap) for one, gap in zip(prompts, gaps, strict=True)]
    return torch.stack(ids), torch.stack(mask)


def as_outputs(features: Sequence[Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    """Wrap features as transformers takes them: ragged, in the order of the image ids."""
    return {"image": BaseModelOutputWithPooling(pooler_output=list(features))}  # pyright: ignore[reportArgumentType]


def _until(ids: list[int], ends: set[int]) -> list[int]:
    for place, one in enumerate(ids):
        if one in ends:
            return ids[:place]
    return ids
