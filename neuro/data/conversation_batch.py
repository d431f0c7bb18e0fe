"""Conversations with their images, as ``system=llava_mri`` eats them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from neuro.data.batch import TensorRecord, VolumeTokens
from neuro.data.conversation import KINDS
from neuro.data.text import IGNORE

FIELDS = (
    "pixel_values",
    "input_ids",
    "attention_mask",
    "labels",
    "image_mask",
    "num_images_per_sample",
    "task_types",
    "task_ids",
    "sample_indices",
    "metadata",
    "images",
    "modalities",
    "num_supervised",
    "study_ids",
    "subjects",
    "tasks",
)


class ModelInputs(NamedTuple):
    """What a model may see of a batch: nothing that names a study, and no metadata.

    Attributes:
        volumes: The images by modality.
        images: Modality and place in ``volumes`` of each image slot, in textual order.
        input_ids: Token ids.
        attention_mask: 1 where there is text or image.
        labels: Token ids where an assistant speaks; -100 elsewhere.
    """

    volumes: dict[str, VolumeTokens]
    images: tuple[tuple[str, int], ...]
    input_ids: Int[Tensor, "studies length"]
    attention_mask: Int[Tensor, "studies length"]
    labels: Int[Tensor, "studies length"]


@dataclass(frozen=True, kw_only=True)
class ConversationBatch(TensorRecord):
    """Conversations with their images; a model gets ``model_inputs()`` of it and nothing else.

    A batch is a sequence of its studies: ``len`` counts them, and an index or an iteration gives
    one study as a batch of its own, in which each field is still there by its name. A slice gives
    a batch too, with the volumes that its studies show and texts no longer than its longest. A
    field can be had by its name, ``batch["labels"]``, as from a dict; ``keys()`` lists them.

    Attributes:
        volumes: The images by modality.
        images: For each image slot of the batch, in textual order, its modality and its place in
            ``volumes``.
        num_images_per_sample: Image slots of each study.
        input_ids: Token ids, padded on the right; an image holds as many image ids as the model
            makes of it.
        attention_mask: 1 where there is text or image, 0 where there is padding.
        labels: ``input_ids`` where an assistant speaks, the end of its turn included; -100
            elsewhere.
        study_ids: For logs and prediction tables.
        subjects: The subjects of each study, each once, in the order in which it was last shown.
        tasks: The name of each study's question.
        task_types: ``single``, ``multimodal`` or ``comparison``, by what each study shows.
        sample_indices: The place of each study in the batch that was collated, so that a part of
            it can be laid beside the whole.
        metadata: What else the file says about each study: labels among it.
    """

    volumes: dict[str, VolumeTokens]
    images: tuple[tuple[str, int], ...]
    num_images_per_sample: tuple[int, ...]
    input_ids: Int[Tensor, "studies length"]
    attention_mask: Int[Tensor, "studies length"]
    labels: Int[Tensor, "studies length"]
    study_ids: tuple[str, ...]
    subjects: tuple[tuple[str, ...], ...]
    tasks: tuple[str, ...]
    task_types: tuple[str, ...]
    sample_indices: tuple[int, ...]
    metadata: tuple[dict[str, Any], ...]

    @property
    def num_studies(self) -> int:
        """How many studies there are."""
        return len(self.study_ids)

    @property
    def pixel_values(self) -> dict[str, VolumeTokens]:
        """``volumes``, under the name that the specification gives to the images.

        Not one tensor (studies, images, channels, ...) with zeros where a study has fewer images:
        grids, and numbers of tokens without background, differ between modalities and scans, and
        a volume of zeros looks like an image.
        """
        return self.volumes

    @property
    def modalities(self) -> tuple[tuple[str, ...], ...]:
        """The modalities of each study's images, in textual order."""
        shown = [modality for modality, _ in self.images]
        return tuple(tuple(shown[start:stop]) for start, stop in pairwise(self._image_bounds))

    @property
    def image_mask(self) -> Int[Tensor, "studies images"]:
        """1 for each image of a study, 0 up to as many as the fullest study has."""
        counts = torch.tensor(self.num_images_per_sample, device=self.labels.device)
        places = torch.arange(max(self.num_images_per_sample), device=counts.device)
        return (places < counts.unsqueeze(1)).long()

    @property
    def task_ids(self) -> Int[Tensor, " studies"]:
        """0 for ``single``, 1 for ``multimodal``, 2 for ``comparison``."""
        ids = [KINDS.index(kind) for kind in self.task_types]
        return torch.tensor(ids, device=self.labels.device)

    @property
    def num_supervised(self) -> Int[Tensor, " studies"]:
        """How many tokens of each study are learned."""
        return (self.labels != IGNORE).sum(dim=1)

    def model_inputs(self) -> ModelInputs:
        """Return what a model may see, and nothing else."""
        return ModelInputs(
            self.volumes, self.images, self.input_ids, self.attention_mask, self.labels
        )

    def by_modality(self) -> dict[str, dict[str, Any]]:
        """Return {modality: pixel_values, input_ids, attention_mask, labels}.

        Raises:
            ValueError: A study shows several modalities; it would stand under none of them.
        """
        rows: dict[str, list[int]] = {}
        for row, shown in enumerate(self.modalities):
            if len(set(shown)) > 1:
                raise ValueError(
                    f"by_modality() needs studies of one modality each; study "
                    f"{self.study_ids[row]!r} shows {', '.join(shown)}. Take pixel_values."
                )
            rows.setdefault(shown[0], []).append(row)
        views = {}
        for modality, own in rows.items():
            part = self.take(own)
            views[modality] = {
                "pixel_values": part.volumes[modality],
                "input_ids": part.input_ids,
                "attention_mask": part.attention_mask,
                "labels": part.labels,
            }
        return views

    def take(self, rows: Sequence[int]) -> ConversationBatch:
        """Return some studies, in the order given, with their volumes and without idle padding."""
        bounds = self._image_bounds
        places: dict[str, list[int]] = {}
        images = []
        for row in rows:
            for modality, place in self.images[bounds[row] : bounds[row + 1]]:
                own = places.setdefault(modality, [])
                images.append((modality, len(own)))
                own.append(place)
        index = torch.tensor(rows, dtype=torch.long, device=self.labels.device)
        mask = self.attention_mask[index]
        longest = int(mask.sum(dim=1).max())
        texts = ("input_ids", "attention_mask", "labels")
        fields: dict[str, Any] = {name: getattr(self, name)[index, :longest] for name in texts}
        for field in dataclasses.fields(self):
            if field.name not in ("volumes", "images", *texts):
                own = getattr(self, field.name)
                fields[field.name] = tuple(own[row] for row in rows)
        volumes = {
            name: one.take(places[name]) for name, one in self.volumes.items() if name in places
        }
        return ConversationBatch(volumes=volumes, images=tuple(images), **fields)

    def keys(self) -> tuple[str, ...]:
        """Return the names of the fields."""
        return FIELDS

    def __contains__(self, name: object) -> bool:
        return name in FIELDS

    def __len__(self) -> int:
        return self.num_studies

    def __iter__(self) -> Iterator[ConversationBatch]:
        return (self[row] for row in range(len(self)))

    def __getitem__(self, key: int | slice | str) -> Any:
        """Return a study as a batch of one, a slice as a batch, or a field by its name.

        Raises:
            IndexError: There is no such study, or a slice holds none.
            KeyError: There is no such field.
        """
        if isinstance(key, str):
            if key not in FIELDS:
                raise KeyError(f"a batch has no field {key!r}; it has {', '.join(FIELDS)}")
            return getattr(self, key)
        rows = range(len(self))[key]
        if isinstance(rows, int):
            return self.take([rows])
        if not rows:
            raise IndexError(f"{key} holds none of the {len(self)} studies")
        return self.take(rows)

    @property
    def _image_bounds(self) -> tuple[int, ...]:
        """Study ``i`` owns ``images[bounds[i] : bounds[i + 1]]``."""
        return tuple(accumulate(self.num_images_per_sample, initial=0))
