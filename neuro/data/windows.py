"""The windows of a 4-D run, each a study of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from neuro.data.manifest import Manifest, Series
from neuro.data.recipes import Recipe
from neuro.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a run is cut; the number of frames of a window is the last of its recipe's shape.

    Args:
        stride_within_seq: Frames, on the recipe's clock, from one frame of a window to the next.
        stride_between_seq: From one window to the next, as a share of the window's duration: 1
            makes windows that follow one another, 0.5 lets them overlap by half. None makes one
            study per run instead, whose window is drawn anew in each epoch of training and is the
            middle one in evaluation.
    """

    stride_within_seq: int = 1
    stride_between_seq: float | None = 1.0

    def __post_init__(self) -> None:
        between = self.stride_between_seq
        if self.stride_within_seq < 1 or (between is not None and not 0 < between < math.inf):
            raise InputError(
                f"data.stride_within_seq must be at least 1 and data.stride_between_seq above 0 "
                f"and finite (or null); got {self.stride_within_seq} and {between}."
            )

    def duration(self, num_frames: int) -> int:
        """Return how many frames of a run a window of so many frames spans."""
        return num_frames * self.stride_within_seq

    def starts(self, run_frames: int, num_frames: int) -> Int[np.ndarray, " windows"]:
        """Return the first frame of each window; a run that is too short for one has window 0.

        Args:
            run_frames: Frames of the run.
            num_frames: Frames of a window.
        """
        assert self.stride_between_seq is not None, "windows that are drawn have no list"
        duration = self.duration(num_frames)
        hop = max(round(self.stride_between_seq * duration), 1)
        return np.arange(0, max(run_frames - duration, 0) + 1, hop)

    def expand(
        self,
        manifest: Manifest,
        recipes: Mapping[str, Recipe],
        num_frames: Mapping[Series, int],
    ) -> Manifest:
        """Return a manifest in which each study shows one window of its runs.

        A study with several runs shows the k-th window of each, as many as the shortest run has.

        Args:
            manifest: The studies; those without a run stay as they are.
            recipes: The recipes, by modality.
            num_frames: The frames of each run, on its recipe's clock.

        Raises:
            InputError: A run is shorter than a window.
        """
        lengths = {name: _window_frames(recipe) for name, recipe in recipes.items()}
        modalities = manifest.series["modality"].to_pylist()
        runs = [row for row, modality in enumerate(modalities) if lengths.get(modality)]
        frames = {row: num_frames[replace(manifest.row(row), start=None)] for row in runs}
        for row in runs:
            self._check(manifest.row(row), frames[row], lengths[modalities[row]])
        if not runs or self.stride_between_seq is None:
            return manifest
        owners = manifest.owners
        starts: dict[int, np.ndarray] = {}
        shortest: dict[int, int] = {}
        for row in runs:
            starts[row] = self.starts(frames[row], lengths[modalities[row]])
            study = int(owners[row])
            shortest[study] = min(shortest.get(study, len(starts[row])), len(starts[row]))
        counts = np.array([shortest.get(study, 1) for study in range(len(manifest))])
        return _repeated(manifest, counts, starts)

    def _check(self, run: Series, run_frames: int, num_frames: int) -> None:
        """Check that a run has a window; its recipe has only seen to ``num_frames`` of them."""
        span = (num_frames - 1) * self.stride_within_seq + 1
        if run_frames < span:
            raise InputError(
                f"{run.path}: the run has {run_frames} frames; a window of {num_frames} with "
                f"data.stride_within_seq={self.stride_within_seq} spans {span}. Lower that or "
                f"data.sequence_length, or leave the run out."
            )


def _window_frames(recipe: Recipe) -> int:
    return recipe.shape[3] if recipe.shape is not None and len(recipe.shape) == 4 else 0


def _repeated(
    manifest: Manifest, counts: Int[np.ndarray, " studies"], starts: Mapping[int, np.ndarray]
) -> Manifest:
    """Repeat each study so many times, the k-th time with the k-th start of its runs."""
    studies = np.repeat(np.arange(len(manifest)), counts)
    turn = np.arange(len(studies)) - np.repeat(np.cumsum(counts) - counts, counts)
    ids = manifest.ids
    named = [
        ids[study] if counts[study] == 1 else f"{ids[study]}.window{k:03d}"
        for study, k in zip(studies, turn, strict=True)
    ]
    bounds = manifest.bounds
    first = [
        int(starts[row][k]) if row in starts else None
        for study, k in zip(studies.tolist(), turn.tolist(), strict=True)
        for row in range(bounds[study], bounds[study + 1])
    ]
    repeated = manifest.take(studies, named)
    place = repeated.series.column_names.index("start")
    series = repeated.series.set_column(place, "start", pa.array(first, pa.int64()))
    return replace(repeated, series=series, failures=manifest.failures)
