"""One item is one series: the tokens of one image of one study."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int, Num, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from neuro.data.augment import Augment
from neuro.data.cache import Cache
from neuro.data.manifest import Series, Study
from neuro.data.tokens import grid_coords, grid_of, tokenize


@dataclass(frozen=True, kw_only=True)
class SeriesTokens:
    """What the collator gets of one image.

    Attributes:
        study: The study that it belongs to.
        modality: Its modality.
        tokens: Voxels as cached.
        coords: Grid position of each token, in patches.
        foreground: Share of head in each token, 0 to 255.
    """

    study: Study
    modality: str
    tokens: Num[Tensor, "tokens voxels"]
    coords: Int[Tensor, "tokens axes"]
    foreground: UInt8[Tensor, " tokens"]


class SeriesDataset(Dataset[SeriesTokens]):
    """The series of some studies.

    Args:
        studies: The studies; their series are numbered through in order.
        cache: Where the tokens come from.
        augment: Drawn from (seed, epoch, study, series); None for evaluation, which takes the
            middle window of a run.
        seed: The run's seed.
        donors: For a control: the id of a study to the study whose images it shows instead of its
            own.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        cache: Cache,
        *,
        augment: Augment | None,
        seed: int,
        donors: Mapping[str, Study] | None = None,
    ) -> None:
        self.studies = tuple(studies)
        self.cache = cache
        self.augment = augment
        self.seed = seed
        self.rows = [(study, index) for study in self.studies for index in range(len(study.series))]
        self.donors = donors

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> SeriesTokens:
        """Return a series.

        Args:
            key: (row, epoch): the epoch is part of the index, so that workers need not be told of
                it.
        """
        row, epoch = key
        study, index = self.rows[row]
        shown = (self.donors[study.id] if self.donors is not None else study).series[index]
        generator = torch.Generator().manual_seed(draw_seed(self.seed, epoch, study.id, index))
        voxels, foreground = self._read(shown, generator)
        patch = self.cache.recipes[shown.modality].patch
        grid = grid_of(tuple(voxels.shape), patch)
        if self.augment is not None:
            draw = self.augment.draw(generator)
            voxels = draw.apply(voxels)
            foreground = foreground.reshape(grid).flip(0).flatten() if draw.flip else foreground
        return SeriesTokens(
            study=study,
            modality=shown.modality,
            tokens=tokenize(voxels, patch),
            coords=grid_coords(grid),
            foreground=foreground,
        )

    def _read(self, series: Series, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return voxels (depth, height, width[, time]) and the foreground share of each token."""
        recipe = self.cache.recipes[series.modality]
        if len(recipe.shape) == 3:
            return self.cache.read(series), self.cache.foreground(series)
        num_frames = recipe.shape[3]
        last = self.cache.num_frames(series) - num_frames
        start = (
            int(torch.randint(last + 1, (), generator=generator))
            if self.augment is not None
            else last // 2
        )
        frames = self.cache.read_frames(series, start, start + num_frames)
        return frames.movedim(0, -1), self.cache.foreground(series)


def draw_seed(seed: int, epoch: int, study_id: str, index: int) -> int:
    """Return the seed of what is drawn for a series in an epoch, whatever the worker or rank."""
    digest = hashlib.sha256(f"{seed}|{epoch}|{study_id}|{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def donors(studies: Sequence[Study]) -> dict[str, Study]:
    """Pair each study with one of another subject that shows the same modalities.

    This is the image-shuffle control. Studies that nobody else can give images to are left out.
    """
    groups: dict[tuple[str, ...], list[Study]] = {}
    for study in studies:
        groups.setdefault(study.modalities, []).append(study)
    pairs: dict[str, Study] = {}
    for members in groups.values():
        # By hash: a cohort that lists patients first would otherwise pair them with controls.
        pairs |= _turned(sorted(members, key=_shuffled_by_subject))
    return pairs


def _shuffled_by_subject(study: Study) -> tuple[int, str]:
    return draw_seed(0, 0, "|".join(study.subjects), 0), study.id


def _turned(members: list[Study]) -> dict[str, Study]:
    """Give each study the images of the one so many places on, where that is another subject.

    Each image is then used once. The distance is the one, next to half the way round, that leaves
    the fewest studies out.
    """
    half = len(members) // 2
    best: dict[str, Study] = {}
    for distance in sorted(range(1, len(members)), key=lambda step: abs(step - half)):
        others = [*members[distance:], *members[:distance]]
        pairs = {
            study.id: other
            for study, other in zip(members, others, strict=True)
            if not set(other.subjects) & set(study.subjects)
        }
        if len(pairs) > len(best):
            best = pairs
        if len(best) == len(members):
            break
    return best
