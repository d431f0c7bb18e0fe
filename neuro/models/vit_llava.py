"""LLaVA that looks through an encoder of ours, pretrained by ``system=jepa``, and a connector."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration
from typing_extensions import override

from neuro.errors import InputError
from neuro.models.connector import Connector
from neuro.models.llava import VolumeLlava
from neuro.models.normalize import PackedVolumes, normalize_volumes
from neuro.models.policy import Policy
from neuro.models.tuning import Tuning, layers_of
from neuro.models.vit import VisionTransformer
from neuro.models.volume_embed import TokenGrid, places_of_images, volume_lengths
from neuro.models.weights import load_weights

log = logging.getLogger(__name__)


class VitLlava(VolumeLlava):
    """A 3-D encoder looks at every series of all studies at once; a connector tells what it saw.

    The series lie end to end, background dropped, and share the encoder whatever their modality:
    its positions follow from coordinates, so any grid of its patches will do. LLaVA's own tower and
    projector are taken out, to free their memory. A checkpoint holds the encoder even where it is
    frozen: it is small, and the run that it came from may be gone.

    Args:
        llava: A model of transformers; its language model is used.
        encoder: Makes features of tokens.
        connector: Takes ``dim`` and ``width`` and gives what makes features of the language
            model's width of them.
        tuning: What becomes of the encoder.
        policy: See ``VolumeLlava``; what it says of tower and projector is about nothing here.
        init_from: A run folder, a checkpoint or a file of weights that the encoder begins with;
            None leaves it as it was drawn.
        checkpoint_activations: See ``VolumeLlava``; the encoder has a switch of its own.

    Raises:
        InputError: The weights do not fit the encoder.
    """

    def __init__(
        self,
        llava: LlavaForConditionalGeneration,
        encoder: VisionTransformer,
        connector: Callable[..., Connector],
        tuning: Tuning,
        policy: Policy,
        init_from: Path | str | None = None,
        checkpoint_activations: bool = False,
    ) -> None:
        super().__init__(llava, policy, checkpoint_activations)
        if policy.projector or policy.vision_tower or "vision_tower" in policy.adapters:
            log.warning("system.policy: this eye has neither tower nor projector of LLaVA to train")
        llava.model.vision_tower = nn.Identity()
        llava.model.multi_modal_projector = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue], nothing calls it
        self.encoder = encoder
        self.connector = connector(dim=encoder.dim, width=llava.lm_head.in_features)
        self.tuning = tuning
        if init_from is not None:
            load_weights(encoder, init_from)
        tuning.apply(encoder)
        self._tuned = {name for name, one in encoder.named_parameters() if one.requires_grad}
        self.freeze()

    @property
    @override
    def eye(self) -> dict[str, nn.Module]:
        return {"connector": self.connector}

    @override
    def check_grids(self, grids: Mapping[str, TokenGrid]) -> None:
        for name, grid in grids.items():
            if len(grid.patch) != 3:
                raise InputError(
                    f"images of {name} have {len(grid.patch)} axes; an encoder of system=jepa "
                    f"looks at volumes of three. Ask about other images, or take "
                    f"system/vision=tower."
                )
        self.encoder.check_grids(grids)

    @property
    @override
    def slots_per_image(self) -> int | None:
        return self.connector.num_features

    @override
    @torch.no_grad()
    def get_used_to(self, volumes: Iterable[PackedVolumes]) -> None:
        self.connector.whiten.fit(
            self.encoder(normalize_volumes(one), one.coords, one.bounds) for one in volumes
        )

    @override
    def wanted(self) -> list[nn.Parameter]:
        tuned = [one for name, one in self.encoder.named_parameters() if name in self._tuned]
        return tuned + super().wanted()

    @override
    def paces(self) -> list[tuple[nn.Module, float]]:
        layers, decay = layers_of(self.encoder), self.tuning.layer_decay
        slower = [(one, decay ** (len(layers) - place)) for place, one in enumerate(layers)]
        return [*slower, *super().paces()]

    @override
    def parts(self) -> dict[str, list[nn.Parameter]]:
        return {"eye encoder": list(self.encoder.parameters()), **super().parts()}

    @override
    def kept_names(self) -> set[str]:
        own = {name for name in self.state_dict() if name.startswith(("encoder.", "connector."))}
        return super().kept_names() | own

    @override
    def train(self, mode: bool = True) -> VitLlava:
        super().train(mode)
        self.encoder.train(mode and not self.tuning.is_frozen)
        return self

    @override
    def image_features(
        self, volumes: Mapping[str, PackedVolumes], images: Sequence[tuple[str, int]]
    ) -> list[Float[Tensor, "_tokens dim"]]:
        lengths = volume_lengths(volumes)
        packs = list(volumes.values())
        voxels = torch.cat([normalize_volumes(one) for one in packs])
        coords = torch.cat([one.coords for one in packs])
        bounds = [packs[0].bounds[:1]]
        for one in packs:
            bounds.append(one.bounds[1:] + bounds[-1][-1])
        ends = torch.cat(bounds)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.tuning.is_frozen):
            tokens = self.encoder(voxels, coords, ends, lengths)
        features = self.connector(tokens, ends, lengths).to(self.llava.dtype)
        each = features.split(self.connector.feature_lengths(lengths))
        return [each[place] for place in places_of_images(volumes, images)]
