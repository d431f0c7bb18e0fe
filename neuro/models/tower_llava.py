"""LLaVA whose own tower looks, with volume embedders in the place of its image embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from typing_extensions import override

from neuro.errors import InputError
from neuro.models.llava import VolumeLlava
from neuro.models.normalize import PackedVolumes
from neuro.models.policy import Policy
from neuro.models.volume_embed import (
    TokenGrid,
    VolumeEmbed,
    padding_mask,
    places_of_images,
    volume_lengths,
)

TOWERS = ("clip_vision_model", "siglip_vision_model")


class TowerLlava(VolumeLlava):
    """Volumes are cut into patches, embedded, and go through tower and projector.

    The vision tower's whole ``embeddings`` module is replaced, so the tower's own positions and
    class token are gone; features of every token are used (strategy ``full``).

    Args:
        llava: A model of transformers, with a CLIP or SigLIP tower.
        grids: The modalities and their grids.
        policy: See ``VolumeLlava``.
        positions: ``table`` or ``axes``, see ``PatchEmbed``.
        checkpoint_activations: See ``VolumeLlava``.

    Raises:
        InputError: The tower is of another kind, or there is no such kind of positions.
    """

    def __init__(
        self,
        llava: LlavaForConditionalGeneration,
        grids: Mapping[str, TokenGrid],
        policy: Policy,
        positions: str = "table",
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(llava, policy, checkpoint_activations)
        tower = llava.model.vision_tower
        if tower.config.model_type not in TOWERS:
            raise InputError(
                f"vision tower {tower.config.model_type!r} is not supported; "
                f"known are {', '.join(TOWERS)}."
            )
        dtype = torch.float32 if policy.vision_tower else tower.dtype
        tower.embeddings = VolumeEmbed(grids, tower.config.hidden_size, dtype, positions)
        # "default" drops the first token as if it were a class token
        llava.config.vision_feature_select_strategy = "full"
        self.freeze()

    @property
    def embeddings(self) -> VolumeEmbed:
        """The patch embedders."""
        embeddings = self.llava.model.vision_tower.embeddings
        assert isinstance(embeddings, VolumeEmbed)
        return embeddings

    @property
    @override
    def eye(self) -> dict[str, nn.Module]:
        return dict(self.embeddings.embedders.items())

    @property
    @override
    def components(self) -> dict[str, nn.Module]:
        model = self.llava.model
        tower = [one for name, one in model.vision_tower.named_children() if name != "embeddings"]
        return {
            "vision_tower": nn.ModuleList(tower),
            "projector": model.multi_modal_projector,
            **super().components,
        }

    @override
    def check_grids(self, grids: Mapping[str, TokenGrid]) -> None:
        known = [*self.embeddings.embedders]
        unknown = sorted(set(grids) - {*known})
        if unknown:
            raise InputError(
                f"images are of modality {', '.join(unknown)}; llava_mri has embedders for "
                f"{', '.join(known)}, whose recipes have a fixed shape. Give the modality a recipe "
                f"with a fixed shape, leave it out, or take system/vision=neuro_vit."
            )

    @override
    def trained_whole(self, name: str, part: nn.Module) -> list[nn.Parameter]:
        """Leave out what comes after the layer that features are taken from."""
        if name != "vision_tower":
            return super().trained_whole(name, part)
        tower, taken = self.llava.model.vision_tower, self.llava.config.vision_feature_layer
        layers = tower.encoder.layers
        last = max(
            one % (len(layers) + 1) for one in ([taken] if isinstance(taken, int) else taken)
        )
        unused = [tower.post_layernorm, *layers[last:]]
        unused += [one for name, one in tower.named_children() if name == "head"]
        idle = {id(one) for module in unused for one in module.parameters()}
        return [one for one in part.parameters() if id(one) not in idle]

    @override
    def image_features(
        self, volumes: Mapping[str, PackedVolumes], images: Sequence[tuple[str, int]]
    ) -> list[Float[Tensor, "_tokens dim"]]:
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
        order = places_of_images(volumes, images)
        return [features[index][: lengths[index]] for index in order]
