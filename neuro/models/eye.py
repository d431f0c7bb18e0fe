"""What a vision-language model sees with, alone: in a file, and from a file into a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from neuro.errors import InputError
from neuro.models.llava import VolumeLlava
from neuro.models.weights import LoadReport, compare, read_weights, take

SYSTEM = "llava."  # what the model is called in a checkpoint of system=llava_mri
# Where the embedders of a tower are, and what a file calls them; encoder and connector have one
# name in both.
TOWER = "llava.model.vision_tower.embeddings.embedders."
EMBEDDERS = "embedders."
EYES = (EMBEDDERS, "encoder.", "connector.")


def eye_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what sees, of the tensors of a checkpoint: ``embedders.T1.projection.weight``."""
    return {name: one for name, one in _held(state).items() if name.startswith(EYES)}


def modality_of(name: str) -> str | None:
    """Return whose embedder a tensor of a file belongs to; None if to none."""
    return name.removeprefix(EMBEDDERS).split(".")[0] if name.startswith(EMBEDDERS) else None


def begin_with(model: VolumeLlava, source: Path) -> LoadReport:
    """Copy weights into a model, log a table of what matched, and return it.

    Modalities that only one of the two knows are told and left as they are, and so is what the
    model trains besides what the file's own training did. If anything is an error, nothing is
    loaded.

    Args:
        model: The model.
        source: A run folder or a checkpoint of ``system=llava_mri``, or an export of one.

    Raises:
        InputError: The file cannot be read, nothing of it matches, or it is of a model that sees,
            or was adapted, in another way.
    """
    own = {_short(name): one for name, one in model.state_dict().items()}
    held = _as_built(_held(read_weights(source)), own)
    kept = {_short(name) for name in model.kept_names()}
    own = {name: one for name, one in own.items() if name in kept or name in held}
    report = compare(own, held)
    if not report.matched:
        raise InputError(
            f"init_from={source}: none of its {len(held)} tensors matches the model; it has "
            f"{', '.join(list(held)[:3])}, the model {', '.join(list(own)[:3])}. Give a run of "
            f"system=llava_mri with the same system/vision, or what neuro.export made of one; "
            f"weights of an encoder go to system.vision.init_from."
        )
    shared = {modality_of(name) for name in own} & {modality_of(name) for name in held}
    refused = [name for name in report.missing if not _may_lack(name, shared)]
    refused += [name for name in report.unexpected if modality_of(name) in {None, *shared}]
    refused += [name for name, _, _ in report.reshaped]
    if refused:
        raise InputError(
            f"init_from={source}: {len(report.matched)} of {len(own)} tensors match the model; "
            f"{'; '.join(report.faults())}. Take the system.vision, connector and policy that it "
            f"was trained with, or begin with what python -m neuro.export makes of it."
        )
    take(own, held, report, f"init_from={source}")
    return report


def _short(name: str) -> str:
    """Return what a file calls a tensor of a model."""
    return EMBEDDERS + name.removeprefix(TOWER) if name.startswith(TOWER) else name


def _held(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint or an export as an export calls them."""
    return {_short(name.removeprefix(SYSTEM)): one for name, one in tensors.items()}


def _as_built(held: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the names that layers have below their adapters, where they have any."""
    adapted = {name.replace(".base_layer.", "."): name for name in own if ".base_layer." in name}
    return {adapted.get(name, name): one for name, one in held.items()}


def _may_lack(name: str, shared: set[str | None]) -> bool:
    """Return whether a model may have a tensor that is not in the file.

    It may if it is of a modality that the file does not know, an adapter, which begins without
    effect, or of something that the policy trains besides the eye, which begins with the base's.
    """
    modality = modality_of(name)
    if modality is not None:
        return modality not in shared
    return ".lora_" in name or not name.startswith(EYES)
