"""What becomes of a pretrained encoder: it stays as it is, learns on, or gets adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from neuro.errors import InputError
from neuro.models.vit import VisionTransformer


@runtime_checkable
class Tuning(Protocol):
    """How an encoder is trained.

    Attributes:
        is_frozen: Whether nothing of it is.
        layer_decay: What the learning rate is multiplied by from a layer to the one before it.
    """

    is_frozen: bool
    layer_decay: float

    def apply(self, encoder: VisionTransformer) -> None:
        """Set what is trained, in place."""
        ...


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """The encoder stays as it is: each study is encoded once, and an epoch takes seconds."""

    is_frozen = True
    layer_decay = 1.0

    def apply(self, encoder: VisionTransformer) -> None:
        """Set what is trained, in place."""
        encoder.requires_grad_(False).eval()


@dataclass(frozen=True, kw_only=True)
class FineTuned:
    """All of the encoder learns on, its first layers more slowly than its last.

    Args:
        layer_decay: In (0, 1]: what the learning rate is multiplied by from a layer to the one
            before it.

    Raises:
        InputError: It is out of range.
    """

    layer_decay: float = 0.75
    is_frozen = False

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise InputError(
                f"system.tuning.layer_decay must be above 0 and at most 1; got {self.layer_decay}."
            )

    def apply(self, encoder: VisionTransformer) -> None:
        """Set what is trained, in place."""
        encoder.requires_grad_(True)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters beside linear layers of the blocks learn (Hu, 2021, arXiv:2106.09685).

    It needs the extra ``lora``, which is the library peft.

    Args:
        rank: Of the adapters, at least 1.
        alpha: Their change is multiplied by ``alpha / rank``.
        dropout: Of what goes into them.
        layers: The linear layers that get one, by the last part of their name.

    Raises:
        InputError: A number is out of range.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    layers: Sequence[str] = ("qkv", "proj")
    is_frozen = False
    layer_decay = 1.0

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"adapters have a rank of at least 1 and a dropout in [0, 1); got rank="
                f"{self.rank}, dropout={self.dropout}. Take rank=8 and dropout=0."
            )

    def apply(self, encoder: VisionTransformer) -> None:
        """Set what is trained, in place.

        Raises:
            InputError: The library is absent, or no layer has such a name.
        """
        encoder.requires_grad_(False)
        self.inject(encoder.blocks)

    def inject(self, module: nn.Module) -> None:
        """Give layers of a module adapters, in float32, and leave the rest as it is.

        Raises:
            InputError: The library is absent, or no layer has such a name.
        """
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise InputError(
                "adapters (tuning=lora, policy=lora) need the library peft: "
                "pip install 'neuro[lora]'."
            ) from error
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # pyright: ignore[reportArgumentType]
            lora_dropout=self.dropout,
            target_modules=list(self.layers),
        )
        was_trained = [one for one in module.parameters() if one.requires_grad]
        try:
            inject_adapter_in_model(config, module)
        except ValueError as error:
            linear = {
                name.rpartition(".")[2]
                for name, one in module.named_modules()
                if isinstance(one, nn.Linear) and not name.rpartition(".")[2].isdigit()
            }
            raise InputError(
                f"lora.layers={list(self.layers)}: no linear layer has such a name. "
                f"Take some of {', '.join(sorted(linear))}."
            ) from error
        for one in adapter_parameters(module):
            one.data = one.data.float()
        for one in was_trained:  # the library freezes what it finds
            one.requires_grad_(True)


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a module's adapters."""
    return [one for name, one in module.named_parameters() if ".lora_" in name]


def merge_adapters(module: nn.Module) -> None:
    """Add what adapters learned to the weights that they change, in float32, and take them out."""
    if not adapter_parameters(module):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer  # there, since there are adapters

    for name, layer in list(module.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            base = layer.get_base_layer()
            base.float()  # a change is small: 16 bits would lose it
            layer.merge()
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, base)


def layers_of(encoder: VisionTransformer) -> list[nn.Module]:
    """Return the parts of an encoder from its input to its output."""
    return [encoder.token_embed, *encoder.blocks, encoder.norm]
