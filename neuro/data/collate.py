"""Series become a batch: background is dropped, the rest lies end to end.

One collator per system.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from neuro.data.augment import IDENTITY
from neuro.data.batch import StudyBatch, VolumeTokens
from neuro.data.conversation import Conversation
from neuro.data.conversation_batch import ConversationBatch
from neuro.data.dataset import SeriesTokens
from neuro.data.manifest import Manifest, Study
from neuro.data.recipes import Recipe
from neuro.data.text import IGNORE, TextEncoder
from neuro.data.tokens import grid_of
from neuro.errors import InputError

log = logging.getLogger(__name__)

FIXED = {"dMRI": "cube_fa", "rsfMRI": "bold_run"}  # recipes with a fixed shape; else cube_t1
# Names of the rules for what is background: a token with any background in it, with more
# background than head, or with nothing but background.
RULES = {"any": 1.0, "majority": 0.5, "all": 1 / 255}


@dataclass(frozen=True, kw_only=True)
class Background:
    """Which tokens are kept.

    Args:
        min_foreground: Share of head, in [0, 1], that a token must have; 0 keeps every token. Or
            what makes a token background: ``any`` of it, the ``majority``, or ``all`` of it.
        patch_drop_rate: Share of the tokens that are left which is dropped at random, in training
            only; they are gone, not hidden. At least one token of a series stays.
        drop: False keeps every token, whatever ``min_foreground`` says.

    Raises:
        InputError: An argument is out of range.
    """

    min_foreground: float | int | str = 0.02
    patch_drop_rate: float | int = 0.0
    drop: bool = True

    def __post_init__(self) -> None:
        rule = self.min_foreground
        share = RULES.get(rule, -1.0) if isinstance(rule, str) else rule
        if not 0 <= share <= 1:
            raise InputError(
                f"data.min_foreground must be a share in [0, 1], or one of {', '.join(RULES)}; "
                f"got {rule}."
            )
        if not 0 <= self.patch_drop_rate < 1:
            raise InputError(
                f"data.patch_drop_rate must be a share in [0, 1); got {self.patch_drop_rate}."
            )

    @property
    def share(self) -> float:
        """The share of head that a token must have."""
        rule = self.min_foreground if self.drop else 0.0
        return RULES[rule] if isinstance(rule, str) else float(rule)

    def foreground(self, shares: UInt8[Tensor, " tokens"], where: str) -> Int[Tensor, " kept"]:
        """Return the positions of the tokens that are not background.

        Args:
            shares: Share of head in each token, 0 to 255.
            where: Whose image it is, for the message.

        Raises:
            InputError: Nothing is left.
        """
        kept = torch.nonzero(shares >= self.share * 255).flatten()
        if len(kept) == 0:
            raise InputError(
                f"{where}: no token has a foreground share of "
                f"data.min_foreground={self.min_foreground}; the largest is "
                f"{int(shares.max()) / 255:.2f}. Lower it."
            )
        return kept

    def check(self, studies: Manifest, num_tokens: Int[np.ndarray, " series"]) -> None:
        """Check that something of every image is left.

        Raises:
            InputError: Nothing is.
        """
        empty = np.flatnonzero(num_tokens == 0)
        if len(empty):
            study = studies[int(studies.owners[empty[0]])]
            raise InputError(
                f"study {study.id!r}, {studies.row(int(empty[0])).path}: no token has a foreground "
                f"share of data.min_foreground={self.min_foreground}; that is so for {len(empty)} "
                f"images. Lower it."
            )

    def kept(self, item: SeriesTokens) -> Int[Tensor, " kept"]:
        """Return the positions of an item's tokens that are kept."""
        kept = self.foreground(item.foreground, where=f"study {item.study.id!r}, {item.name}")
        if not item.in_training or self.patch_drop_rate == 0:
            return kept
        generator = torch.Generator().manual_seed(item.seed)
        numbers = torch.rand(len(kept), generator=generator)
        stay = numbers >= self.patch_drop_rate
        stay[numbers.argmax()] = True
        return kept[stay]


class Collator:
    """Makes a batch of series; a subclass defines ``__call__``.

    Args:
        background: Which tokens are kept.
    """

    def __init__(self, background: Background) -> None:
        self.background = background

    def __call__(self, items: Sequence[SeriesTokens]) -> Any:
        """Collate the series of whole studies, which follow one another."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(items).")

    def check(self, studies: Manifest, recipes: Mapping[str, Recipe]) -> None:
        """Check what can be known before scans are prepared: tokens of all modalities fit together.

        Args:
            studies: All of them; each modality has a recipe.
            recipes: The recipes, by modality.

        Raises:
            InputError: They do not.
        """
        kinds: dict[tuple[int, int], str] = {}
        for modality in studies.series["modality"].unique().to_pylist():
            patch = recipes[modality].patch
            kinds.setdefault((math.prod(patch), len(patch)), modality)
        if len(kinds) > 1:
            found = " and ".join(
                f"{modality} of {num_voxels} on {num_axes} axes"
                for (num_voxels, num_axes), modality in kinds.items()
            )
            raise InputError(
                f"tokens of one batch must have equally many voxels and axes; got {found}. Set "
                f"data.recipes.NAME.patch, or leave a modality out: with data.modalities (bids, "
                f"phantom), with data.mode_mapping (studies, manifest), or of conversations those "
                f"that show it; a 4-D run fits with nothing else."
            )

    def check_tokens(
        self, studies: Manifest, num_tokens: Int[np.ndarray, " series"], shown: str = ""
    ) -> None:
        """Check what is known only after that: something of every image is left.

        Args:
            studies: All of a split.
            num_tokens: How many tokens each of their images keeps.
            shown: Which images these are if not their own, for a warning.

        Raises:
            InputError: Nothing is.
        """
        self.background.check(studies, num_tokens)


class StudyCollator(Collator):
    """Makes a ``StudyBatch`` of whole studies: every series of all modalities, packed."""

    @override
    def __call__(self, items: Sequence[SeriesTokens]) -> StudyBatch:
        kept = [self.background.kept(item) for item in items]
        studies = [list(members) for _, members in groupby(items, key=lambda item: item.study.id)]
        counts = torch.tensor([0] + [len(members) for members in studies])
        return StudyBatch(
            volumes=packed(items, kept),
            study_bounds=counts.cumsum(0).to(torch.int32),
            labels=torch.tensor(
                [members[0].study.labels for members in studies], dtype=torch.float32
            ).reshape(len(studies), -1),
            study_ids=tuple(members[0].study.id for members in studies),
            series_names=tuple(item.name for item in items),
        )


class ConversationCollator(Collator):
    """Makes a ``ConversationBatch`` of whole studies.

    Args:
        encoder: Turns conversations into ids.
        background: Which tokens are kept.
        slots_per_image: Text positions that an image takes, whatever its tokens; None: one for
            each kept token, so that dropping background shortens the text sequence too. Each
            window of a CT is an image, and all of them stand where the text shows the scan.
        any_grid: Whether the grid of an image may follow the scan. Then the tokens of all
            modalities must have equally many voxels.

    Raises:
        InputError: An image would take no position.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        background: Background,
        *,
        slots_per_image: int | None = None,
        any_grid: bool = False,
    ) -> None:
        super().__init__(background)
        if slots_per_image is not None and slots_per_image < 1:
            raise InputError(
                f"slots_per_image must be at least 1, or null for one a token; "
                f"got {slots_per_image}."
            )
        self.encoder = encoder
        self.slots_per_image = slots_per_image
        self.any_grid = any_grid
        self._longest_text = encoder.max_length  # until the texts are known
        self._num_views: dict[str, int] = {}  # of a series, by modality; likewise

    @override
    def __call__(self, items: Sequence[SeriesTokens]) -> ConversationBatch:
        kept = [self.background.kept(item) for item in items]
        slots = iter(self.slots_per_image or len(positions) for positions in kept)
        members = [list(group) for _, group in groupby(items, key=lambda item: item.study.id)]
        studies = [own[0].study for own in members]
        talks = [_talk(study) for study in studies]
        texts = [
            self.encoder(talk, _slots_of_series(own, slots))
            for talk, own in zip(talks, members, strict=True)
        ]
        ids = pad_sequence(
            [text.input_ids for text in texts], batch_first=True, padding_value=self.encoder.pad_id
        )
        lengths = torch.tensor([len(text.input_ids) for text in texts])
        return ConversationBatch(
            volumes=by_modality(items, kept),
            images=image_places(items),
            num_images_per_sample=tuple(len(own) for own in members),
            input_ids=ids,
            attention_mask=(torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).long(),
            labels=pad_sequence(
                [text.labels for text in texts], batch_first=True, padding_value=IGNORE
            ),
            study_ids=tuple(study.id for study in studies),
            subjects=tuple(study.subjects for study in studies),
            tasks=tuple(talk.task for talk in talks),
            task_types=tuple(talk.kind for talk in talks),
            sample_indices=tuple(range(len(studies))),
            metadata=tuple(talk.metadata for talk in talks),
        )

    @override
    def check(self, studies: Manifest, recipes: Mapping[str, Recipe]) -> None:
        """Check that there are texts that leave room for images, and that the grids fit.

        Raises:
            InputError: A study has no text, its text is too long or does not agree with its
                images, the grid of an image follows the scan, or, where it may, tokens have
                unequally many voxels.
        """
        talks = _conversations(studies)
        modalities = studies.series["modality"].to_pylist()
        if self.any_grid:
            super().check(studies, recipes)
        else:
            _check_grids(set(modalities), recipes)
        encoder = copy(self.encoder)
        encoder.max_length = sys.maxsize
        least = self.slots_per_image or 1
        self._longest_text = 0
        self._num_views = {name: len(recipes[name].views) for name in set(modalities)}
        for place, talk in enumerate(talks):
            images = modalities[slice(*studies.bounds[place : place + 2])]
            text = len(encoder(talk, [1] * len(images)).input_ids) - len(images)
            self._longest_text = max(self._longest_text, text)
            if text + least * len(images) > self.encoder.max_length:
                self._check_room(talk, text, [recipes[name] for name in images])

    @override
    def check_tokens(
        self, studies: Manifest, num_tokens: Int[np.ndarray, " series"], shown: str = ""
    ) -> None:
        """Check that each study's text is not too long with the slots that its images take.

        Raises:
            InputError: One is, or nothing of an image is left.
        """
        super().check_tokens(studies, num_tokens)
        if self.slots_per_image is not None:
            num_tokens = np.full_like(num_tokens, self.slots_per_image)
        names = studies.series["modality"].to_pylist()
        num_tokens = num_tokens * np.array([self._num_views.get(name, 1) for name in names])
        slots = np.add.reduceat(num_tokens, studies.bounds[:-1])
        long = np.flatnonzero(slots + self._longest_text > self.encoder.max_length)
        talks = _conversations(studies)
        num_truncated = 0
        for place in long.tolist():  # these only: encoding is slow
            start, stop = studies.bounds[place : place + 2]
            encoded = self.encoder(talks[place], num_tokens[start:stop].tolist())
            num_truncated += encoded.is_truncated
        if num_truncated:
            log.warning(
                "%d of %d conversations of the %s split%s are longer than data.max_length=%d; "
                "their oldest text is left out",
                num_truncated,
                len(studies),
                studies.studies["split"][0].as_py(),
                shown,
                self.encoder.max_length,
            )

    def _check_room(self, talk: Conversation, text: int, recipes: Sequence[Recipe]) -> None:
        """Check that there is room for images beside the text that may not be left out."""
        least = self.encoder.least_text(talk)
        slots = self.slots_per_image or 1
        if least + slots * len(recipes) <= self.encoder.max_length:
            return
        cure = "Raise it"
        if self.slots_per_image is not None:
            cure += f" to {text + slots * len(recipes)}"
        elif not self.any_grid:
            cure += (
                f"; {text + sum(math.prod(_grid(one)) for one in recipes)} holds the images whole"
            )
        raise InputError(
            f"conversation {talk.id!r} has {least} tokens of text that must stay and "
            f"{len(recipes)} images of at least {slots} each; data.max_length is "
            f"{self.encoder.max_length}. {cure}."
        )


def _slots_of_series(own: Sequence[SeriesTokens], slots: Iterator[int]) -> list[int]:
    """Return the text positions of each series of a study: those of all its windows together.

    Args:
        own: The images of the study.
        slots: The positions of each of them, and of those of the next studies.
    """
    study = own[0].study
    shown, there = Counter(item.modality for item in own), Counter(study.modalities)
    return [sum(islice(slots, shown[name] // there[name])) for name in study.modalities]


def _check_grids(modalities: set[str], recipes: Mapping[str, Recipe]) -> None:
    for modality in sorted(modalities):
        if recipes[modality].shape is None:
            raise InputError(
                f"images of {modality} are asked about, and data.recipes.{modality} leaves "
                f"them the grid of the scan; this system needs a fixed shape. Take "
                f"recipe@data.recipes.{modality}={FIXED.get(modality, 'cube_t1')}, or ask "
                f"about others."
            )


def _conversations(studies: Manifest) -> Sequence[Conversation]:
    if studies.conversations is None:
        raise InputError(
            f"study {studies.ids[0]!r} has no conversation, and this system learns from "
            f"conversations. Set data.questions, use data=conversations, or take a system that "
            f"needs none."
        )
    return studies.conversations


def _talk(study: Study) -> Conversation:
    assert study.conversation is not None, "checked before training"
    return study.conversation


def _grid(recipe: Recipe) -> tuple[int, ...]:
    assert recipe.shape is not None, "checked before"
    return grid_of(recipe.shape, recipe.patch)


def packed(items: Sequence[SeriesTokens], kept: Sequence[Tensor]) -> VolumeTokens:
    """Lay the kept tokens of all items end to end.

    Args:
        items: The series; their tokens have equally many voxels.
        kept: Which tokens of each.
    """
    lengths = [len(positions) for positions in kept]
    first = items[0]
    # Gathered right into place: one copy, not two.
    tokens = first.tokens.new_empty(sum(lengths), first.tokens.shape[1])
    coords = first.coords.new_empty(sum(lengths), first.coords.shape[1])
    for item, positions, into, place in zip(
        items, kept, tokens.split(lengths), coords.split(lengths), strict=True
    ):
        torch.index_select(item.tokens, 0, positions, out=into)
        torch.index_select(item.coords, 0, positions, out=place)
    return VolumeTokens(
        tokens=tokens,
        coords=coords,
        bounds=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        sizes=torch.tensor([item.size for item in items], dtype=torch.int32),
        kinds=tuple(item.kind for item in items),
        intensity=(
            torch.tensor([item.draw.intensity for item in items], dtype=torch.float32)
            if any(item.draw.intensity != IDENTITY.intensity for item in items)
            else None
        ),
        seeds=(
            torch.tensor([item.draw.seed for item in items], dtype=torch.int64)
            if any(item.draw.intensity[3] for item in items)
            else None
        ),
    )


def by_modality(items: Sequence[SeriesTokens], kept: Sequence[Tensor]) -> dict[str, VolumeTokens]:
    """Lay the kept tokens of each modality end to end."""
    volumes = {}
    for modality in sorted({item.modality for item in items}):
        own = [place for place, item in enumerate(items) if item.modality == modality]
        volumes[modality] = packed([items[place] for place in own], [kept[place] for place in own])
    return volumes


def image_places(items: Sequence[SeriesTokens]) -> tuple[tuple[str, int], ...]:
    """Return for each series its modality and its place among the volumes of that modality."""
    counts: dict[str, int] = {}
    places = []
    for item in items:
        places.append((item.modality, counts.get(item.modality, 0)))
        counts[item.modality] = counts.get(item.modality, 0) + 1
    return tuple(places)
