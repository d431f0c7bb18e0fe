"""One item is one view of one series: the tokens of one image of one study."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64, Int, Num, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from neuro.data.augment import IDENTITY, Augment, Draw, draw_window
from neuro.data.cache import Cache
from neuro.data.features import FEATURES, FeatureFolder
from neuro.data.manifest import Manifest, Series, Study, codes_of
from neuro.data.tokens import grid_coords, tokenize
from neuro.data.windows import Windows

DRAWN = -1  # in place of the number of a view
CONTROLS = ("shuffled", "zero", "noise")


@dataclass(frozen=True, kw_only=True)
class SeriesTokens:
    """What the collator gets of one image.

    Attributes:
        study: The study that it belongs to.
        name: What it is called in its study, with its CT window.
        modality: Its modality.
        kind: Which intensity statistics it has.
        tokens: Voxels as cached.
        coords: Grid position of each token, in patches.
        foreground: Share of head in each token, 0 to 255.
        size: The grid.
        draw: What was drawn for it; its intensity part is applied on the device.
        seed: Of what is still to be drawn for it.
        in_training: Whether tokens may be dropped at random.
    """

    study: Study
    name: str
    modality: str
    kind: str
    tokens: Num[Tensor, "tokens voxels"]
    coords: Int[Tensor, "tokens axes"]
    foreground: UInt8[Tensor, " tokens"]
    size: tuple[int, ...]
    draw: Draw
    seed: int
    in_training: bool


class SeriesDataset(Dataset[SeriesTokens]):
    """The series of some studies; a CT series is several items where all its windows are shown.

    Args:
        studies: The studies; their items are numbered through in order.
        cache: Where the tokens come from.
        augment: Drawn from (seed, epoch, study, series); None for evaluation, which takes the
            middle window of a run that has none of its own, and every window of a CT.
        seed: The run's seed.
        windows: How a run is cut.
        window_probabilities: How often each CT window is drawn in training; None shows all of
            them there too.
        min_foreground: Share of head that a token must have to count in a crop.
        givers: For a control: the study whose images each study shows instead of its own.
        control: What is shown of a giver: its images if ``shuffled``, or as many tokens at the
            same places with voxels that say nothing, ``zero`` or ``noise``.
        features: What a frozen encoder made of each study, to be read instead of its voxels.
    """

    def __init__(
        self,
        studies: Manifest,
        cache: Cache,
        *,
        augment: Augment | None,
        seed: int,
        windows: Windows,
        window_probabilities: Mapping[str, float] | None = None,
        min_foreground: float = 0.0,
        givers: Manifest | None = None,
        control: str = "shuffled",
        features: FeatureFolder | None = None,
    ) -> None:
        self.studies = studies
        self.cache = cache
        self.augment = augment
        self.seed = seed
        self.windows = windows
        self.window_probabilities = window_probabilities
        self.min_foreground = min_foreground
        self.givers = givers
        self.control = control
        self.features = features
        # Arrays, not lists: processes that read share them, and no reference count is touched.
        self.bounds, self.series_rows, self._view = self._items()

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def rows_of(self, study: int) -> range:
        """Return the items of a study."""
        return range(int(self.bounds[study]), int(self.bounds[study + 1]))

    def __getitem__(self, key: tuple[int, int]) -> SeriesTokens:
        """Return an item.

        Args:
            key: (row, epoch): the epoch is part of the index, so that workers need not be told of
                it.
        """
        row, epoch = key
        place = int(np.searchsorted(self.bounds, row, side="right")) - 1
        study = self.studies[place]
        if self.features is not None:
            return self._encoded(self.features, study, row - int(self.bounds[place]))
        index = int(self.series_rows[row] - self.studies.bounds[place])
        giver = self.givers[place] if self.givers is not None else study
        shown = giver.series[index]
        generator = torch.Generator().manual_seed(draw_seed(self.seed, epoch, study.id, index))
        recipe = self.cache.recipes[shown.modality]
        view = self._chosen(recipe.views, int(self._view[row]), generator)
        voxels, shares = self._read(shown, view, generator)
        if self.givers is not None:
            voxels = emptied(voxels, self.control, draw_seed(0, 0, study.id, index))
        draw = IDENTITY
        if self.augment is not None:
            draw = self.augment.draw(
                generator,
                shares=shares,
                axes=self._axes(shown),
                patch=recipe.patch,
                min_foreground=self.min_foreground,
            )
            voxels, shares = draw.apply(voxels, shares, recipe.patch)
        size = tuple(shares.shape)
        return SeriesTokens(
            study=study,
            name=shown.name if view == "voxels" else f"{shown.name}.{view}",
            modality=shown.modality,
            kind=recipe.views[view],
            tokens=tokenize(voxels, recipe.patch),
            coords=grid_coords(size),
            foreground=shares.flatten(),
            size=size,
            draw=draw,
            # Not the seed from above, whose first numbers have decided on the crop and the flips.
            seed=int(torch.randint(1 << 62, (), generator=generator)),
            in_training=self.augment is not None,
        )

    def _encoded(self, features: FeatureFolder, study: Study, index: int) -> SeriesTokens:
        """Return an item whose tokens are features; those of background are gone already."""
        tokens, coords, size, name = features.read(study.id, index)
        return SeriesTokens(
            study=study,
            name=name,
            modality=FEATURES,
            kind=FEATURES,
            tokens=tokens,
            coords=coords,
            foreground=torch.full((len(tokens),), 255, dtype=torch.uint8),
            size=size,
            draw=IDENTITY,
            seed=0,
            in_training=False,
        )

    def _items(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return where each study's items begin, and each item's row of ``series`` and view."""
        views = {
            name: np.arange(len(recipe.views))
            if len(recipe.views) == 1 or self.augment is None or self.window_probabilities is None
            else np.array([DRAWN])
            for name, recipe in self.cache.recipes.items()
        }
        modality = self.studies.series["modality"]
        names = list(views)
        known = codes_of(modality, names)
        counts = np.array([len(views[name]) for name in names])[known]
        bounds = np.concatenate([[0], np.cumsum(counts)])[self.studies.bounds]
        turn = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        is_drawn = np.array([views[name][0] == DRAWN for name in names])[known]
        view = np.where(np.repeat(is_drawn, counts), DRAWN, turn)
        return bounds, np.repeat(np.arange(len(known)), counts), view.astype(np.int8)

    def _chosen(self, views: Mapping[str, str], number: int, generator: torch.Generator) -> str:
        names = list(views)
        if number != DRAWN:
            return names[number]
        assert self.window_probabilities is not None, "a view is drawn only by probabilities"
        return draw_window(generator, names, self.window_probabilities)

    def _read(self, series: Series, view: str, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return voxels (depth, height, width[, time]) and the foreground share of each token."""
        recipe = self.cache.recipes[series.modality]
        if recipe.shape is None or len(recipe.shape) == 3:
            return self.cache.read(series, view)
        start = series.start
        step = self.windows.stride_within_seq
        if start is None:
            num_frames = self.cache.facts([series])[series].num_frames
            last = max(0, num_frames - (recipe.shape[3] - 1) * step - 1)
            drawn = int(torch.randint(last + 1, (), generator=generator))
            start = drawn if self.augment is not None else last // 2
        return self.cache.read_window(replace(series, start=None), start, step, view)

    def _axes(self, series: Series) -> tuple[int, int, int]:
        """Return which axis of the cached tensor runs left-right, front-back and up-down."""
        return anatomical_axes(self.cache.affine(series))


def emptied(voxels: Num[Tensor, "*space"], control: str, seed: int) -> Num[Tensor, "*space"]:
    """Return what a control shows in the place of a giver's voxels.

    Background is dropped, so the number and the places of tokens alone tell the size of a head. The
    controls without a picture therefore keep the foreground of somebody else's head too.

    Args:
        voxels: As cached: uint8, or float16 of a run in the units of its recipe.
        control: ``shuffled`` leaves them as they are; ``zero`` is the cached number 0, whatever it
            stands for; ``noise`` is uniform over all values of uint8, or standard normal.
        seed: Of the noise.
    """
    if control == "shuffled":
        return voxels
    if control == "zero":
        return torch.zeros_like(voxels)
    generator = torch.Generator().manual_seed(seed)
    if voxels.dtype == torch.uint8:
        return torch.randint(256, voxels.shape, generator=generator, dtype=torch.uint8)
    return torch.randn(voxels.shape, generator=generator).to(voxels.dtype)


def anatomical_axes(affine: Float64[Tensor, "4 4"]) -> tuple[int, int, int]:
    """Return for each direction of the head the axis of the voxels that runs most along it."""
    shares = (affine[:3, :3] / affine[:3, :3].norm(dim=0)).abs()
    axes = [0, 0, 0]
    free = {0, 1, 2}
    # The clearest first, so that an oblique scan still has one axis for each direction.
    for direction in shares.amax(dim=1).argsort(descending=True).tolist():
        best = max(free, key=lambda axis: float(shares[direction, axis]))
        axes[direction] = best
        free.remove(best)
    return axes[0], axes[1], axes[2]


def draw_seed(seed: int, epoch: int, study_id: str, index: int) -> int:
    """Return the seed of what is drawn for a series in an epoch, whatever the worker or rank."""
    digest = hashlib.sha256(f"{seed}|{epoch}|{study_id}|{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def donors(studies: Manifest) -> dict[int, int]:
    """Pair each study with one of another subject that shows the same modalities.

    They are the controls. Studies that nobody else can give images to are left out.

    Returns:
        The place of a study to the place of the one whose images it shows.
    """
    groups: dict[tuple[str, ...], list[tuple[int, Study]]] = {}
    for place, study in enumerate(studies):
        groups.setdefault(study.modalities, []).append((place, study))
    pairs: dict[int, int] = {}
    for members in groups.values():
        # By hash: a cohort that lists patients first would otherwise pair them with controls.
        pairs |= _turned(sorted(members, key=_shuffled_by_subject))
    return dict(sorted(pairs.items()))


def _shuffled_by_subject(member: tuple[int, Study]) -> tuple[int, str]:
    _, study = member
    return draw_seed(0, 0, "|".join(study.subjects), 0), study.id


def _turned(members: list[tuple[int, Study]]) -> dict[int, int]:
    """Give each study the images of the one so many places on, where that is another subject.

    Each image is then used once. The distance is the one, next to half the way round, that leaves
    the fewest studies out.
    """
    half = len(members) // 2
    best: dict[int, int] = {}
    for distance in sorted(range(1, len(members)), key=lambda step: abs(step - half)):
        others = [*members[distance:], *members[:distance]]
        pairs = {
            place: other
            for (place, study), (other, giver) in zip(members, others, strict=True)
            if not set(giver.subjects) & set(study.subjects)
        }
        if len(pairs) > len(best):
            best = pairs
        if len(best) == len(members):
            break
    return best
