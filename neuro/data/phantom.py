"""A synthetic cohort with known answers: heads with age, lesion, tract and rhythm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16
from numpy import ndarray

from neuro.data.head import (
    BOLD_LOOK,
    BRAIN,
    FA_LOOK,
    T1_LOOK,
    Scene,
    Shape,
)

MODALITIES = ("T1", "rsfMRI", "dMRI")
SPLITS = ("train", "val", "test")
SIDES = ("left", "right")
LEVELS: dict[str, tuple[str, ...]] = {
    "sex": ("M", "F"),
    "lesion": ("none", *SIDES),
    "microlesion": ("none", *SIDES),
    "tract": SIDES,
    "network": SIDES,
    "rhythm": ("slow", "fast"),
    "dropout": SIDES,
}
MEANING = {
    "sex": "M or F; a man's head is 15 % larger in each direction",
    "age": "Years, 20 to 80; ventricles and sulci widen",
    "midlife": "early (35 to 49) or late (50 to 64); n/a for the younger and the older",
    "lesion": "none, left or right: hemisphere of a large bright lesion (T1)",
    "has_lesion": "yes or no",
    "microlesion": "none, left or right: hemisphere of a small faint lesion (T1)",
    "tract": "left or right: hemisphere where the FA of a large tract is reduced (dMRI)",
    "network": "left or right: hemisphere whose lateral cortex oscillates at 0.03 Hz (rsfMRI)",
    "rhythm": "slow (0.02 Hz) or fast (0.08 Hz): a weaker oscillation of midline cortex (rsfMRI)",
    "dropout": "left or right: hemisphere whose temporal lobe loses signal (rsfMRI)",
    "split": "train (80 %), val (10 %) or test (10 %)",
}
_RHYTHM_HERTZ = {"slow": 0.02, "fast": 0.08}
# Every draw comes from default_rng([seed, index, stream]): a new stream leaves the others alone.
_SPLIT, _AGE, _TR, _BODY, _T1, _FA, _BOLD, _FACTORS = range(8)


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """The factors of one subject, all independent: the right answers; see ``MEANING``.

    Attributes:
        subject: Identifier, without the ``sub-``.
        tr_s: Repetition time of the resting run, 1 or 2 s: a nuisance.
    """

    subject: str
    sex: str
    age: int
    lesion: str
    microlesion: str
    tract: str
    network: str
    rhythm: str
    dropout: str
    tr_s: float

    @property
    def midlife(self) -> str:
        """Early or late, n/a outside: an age that only a trained encoder reads."""
        if not 35 <= self.age < 65:
            return "n/a"
        return "early" if self.age < 50 else "late"

    @property
    def has_lesion(self) -> str:
        """Yes or no."""
        return "no" if self.lesion == "none" else "yes"


def draw_split(seed: int, index: int) -> str:
    """Return ``train``, ``val`` or ``test``: 8, 1 and 1 of each ten subjects, in random order."""
    return _split_and_rank(seed, index)[0]


def draw_phantom(seed: int, index: int) -> Phantom:
    """Return the factors of subject ``index`` (from 0); whatever the size of the cohort.

    Within a split, each consecutive group of as many subjects as a factor has levels shows every
    level once, so that small splits are balanced too; the order is drawn anew for each group and
    factor.
    """
    split, rank = _split_and_rank(seed, index)

    def draw(stream: int, levels: Sequence) -> Any:
        group, place = divmod(rank, len(levels))
        rng = np.random.default_rng([seed, group, stream, SPLITS.index(split)])
        return levels[rng.permutation(len(levels))[place]]

    rng = np.random.default_rng([seed, index, _AGE])
    age = rng.integers(*draw(_AGE, ((20, 50), (50, 80))), endpoint=True)
    factors = {name: draw(_FACTORS + i, levels) for i, (name, levels) in enumerate(LEVELS.items())}
    return Phantom(subject=f"{index + 1:04d}", age=int(age), tr_s=draw(_TR, (1.0, 2.0)), **factors)


def render_t1(
    phantom: Phantom, seed: int, shape: Shape, spacing_mm: float
) -> tuple[Int16[ndarray, "x y z"], Int16[ndarray, "x y z"]]:
    """Return the T1-weighted volume and its lesion.

    White matter is near 800, with a bias field and Rician noise. The lesion is 1 where at least
    half of a voxel is large lesion, else 0.
    """
    scene = _scene(phantom, seed, _T1, shape, spacing_mm)
    image = scene.paint(T1_LOOK)
    brain = scene.paint(BRAIN)
    lesion = brain * scene.blob(scene.lesion_mm, phantom.lesion, (21, 21, 21), rough=True)
    image += lesion * (1.25 - image)
    microlesion = scene.blob(scene.microlesion_mm, phantom.microlesion, (6.5, 6.5, 6.5), rough=True)
    image += brain * microlesion * (1.05 - image)
    unit = scene.points / 90
    smooth = np.concatenate([unit, unit * unit[[1, 2, 0]]])  # (6, voxels) of order 1 and 2
    image *= np.exp(scene.rng.uniform(-0.12, 0.12, 6).astype(np.float32) @ smooth)
    image *= np.clip(1.8 + scene.points[2] / 45, 0, 1)  # the coil ends at the neck
    image *= scene.rng.uniform(0.85, 1.15)
    real, imaginary = 0.022 * scene.rng.standard_normal((2, int(np.prod(shape))), dtype=np.float32)
    real[scene.voxels] += image
    mask = np.zeros(int(np.prod(shape)), np.int16)
    mask[scene.voxels] = lesion >= 0.5
    volume = (np.hypot(real, imaginary) * 1000).astype(np.int16)
    return volume.reshape(shape), mask.reshape(shape)


def render_fa(
    phantom: Phantom, seed: int, shape: Shape, spacing_mm: float
) -> Float32[ndarray, "x y z"]:
    """Return fractional anisotropy, in [0, 1]; 0 outside the brain. Lesions do not show."""
    scene = _scene(phantom, seed, _FA, shape, spacing_mm)
    image = scene.paint(FA_LOOK)
    white = scene.paint({"white": 1.0})
    for side in SIDES:
        tract = scene.blob((27, -6, 30), side, (9, 40, 10))
        image += tract * white * ((0.36 if side == phantom.tract else 0.68) - image)
    image += scene.rng.standard_normal(image.size, dtype=np.float32) * 0.03
    volume = np.zeros(int(np.prod(shape)), np.float32)
    volume[scene.voxels] = np.clip(image, 0, 1) * (scene.paint(BRAIN) > 0.5)
    return volume.reshape(shape)


def render_bold(
    phantom: Phantom, seed: int, shape: Shape, spacing_mm: float, duration_s: float
) -> Int16[ndarray, "x y z time"]:
    """Return the resting run: drift, 1 % noise, oscillations of 5.5 % and 3.5 % in grey matter."""
    scene = _scene(phantom, seed, _BOLD, shape, spacing_mm)
    baseline = scene.paint(BOLD_LOOK) * scene.rng.uniform(360, 440)
    baseline *= 1 - 0.7 * scene.blob((44, -6, 6), phantom.dropout, (22, 32, 24))
    grey = baseline * scene.paint({"grey": 1.0})
    seconds = np.arange(round(duration_s / phantom.tr_s)) * phantom.tr_s

    def wave(hertz: float) -> ndarray:
        cycles = hertz * scene.rng.uniform(0.9, 1.1) * seconds + scene.rng.uniform()
        return np.sin(2 * np.pi * cycles)

    network = scene.blob((42, -8, 26), phantom.network, (18, 28, 24))
    midline = scene.blob((0, -38, 36), "right", (14, 22, 20))
    parts = (
        (baseline, 1 + 0.01 * wave(0.007)),
        (baseline * scene.points[2] / 90, scene.rng.uniform(-0.01, 0.01) * seconds / duration_s),
        (grey * network, 0.055 * wave(0.03)),
        (grey * midline, 0.035 * wave(_RHYTHM_HERTZ[phantom.rhythm])),
    )
    maps, courses = (np.stack(each).astype(np.float32) for each in zip(*parts, strict=True))
    series = scene.rng.standard_normal((len(seconds), int(np.prod(shape))), dtype=np.float32)
    series *= 4
    for frame, signal in zip(series, courses.T @ maps, strict=True):
        frame[scene.voxels] += signal  # five times faster than all frames in one assignment
    np.abs(series, out=series)
    return np.moveaxis(series.astype(np.int16).reshape(-1, *shape), 0, -1)


def _scene(phantom: Phantom, seed: int, stream: int, shape: Shape, spacing_mm: float) -> Scene:
    """Return the head of a subject, the same body for each stream."""
    index = int(phantom.subject) - 1
    body, view = (np.random.default_rng([seed, index, each]) for each in (_BODY, stream))
    return Scene(phantom.sex, phantom.age, body, view, shape, spacing_mm)


def _split_and_rank(seed: int, index: int) -> tuple[str, int]:
    """Return the split of a subject, and how many subjects of that split come before it."""
    block, place = divmod(index, 10)
    order = np.random.default_rng([seed, block, _SPLIT]).permutation(10)
    if order[place] < 2:
        return ("val", "test")[order[place]], block
    return "train", 8 * block + int((order[:place] >= 2).sum())
