"""What of a vision-language model is trained, besides what it sees with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from neuro.errors import InputError
from neuro.models.tuning import Lora

ADAPTED = ("vision_tower", "language_model")  # the components that can get adapters


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Which components learn; the patch embedders, or the connector of another eye, always do.

    What is not trained is frozen and stays in evaluation mode.

    Args:
        projector: Whether the projector from the tower to the language model does.
        vision_tower: Whether the tower's layers do, as far as they make features.
        language_model: Whether the language model and its head do.
        lora: Adapters by component, ``vision_tower`` or ``language_model``; null gives it none.
        lr_scale: What the learning rate of everything but the eye is multiplied by.

    Raises:
        InputError: Adapters are for an unknown component or one that is trained whole, or the
            factor is not above 0.
    """

    projector: bool = False
    vision_tower: bool = False
    language_model: bool = False
    lora: Mapping[str, Lora | None] | None = None
    lr_scale: float | int = 1.0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.lora or ()) - set(ADAPTED))
        if unknown:
            raise InputError(
                f"system.policy.lora names {', '.join(unknown)}; adapters are for "
                f"{' and '.join(ADAPTED)}. Name one of these."
            )
        for name in self.adapters:
            if getattr(self, name):
                raise InputError(
                    f"system.policy.{name}=true trains all of it, and system.policy.lora.{name} "
                    f"gives it adapters. Set one of them."
                )
        if not self.lr_scale > 0:
            raise InputError(f"system.policy.lr_scale must be above 0; got {self.lr_scale}.")

    @property
    def adapters(self) -> dict[str, Lora]:
        """The adapters of each component that gets some."""
        return {name: one for name, one in (self.lora or {}).items() if one is not None}
