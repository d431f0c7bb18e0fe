"""A synthetic cohort with known answers: heads with a size, an age, a lesion, a tract and a rhythm, as BIDS.

Axes are RAS (x: left to right, y: back to front, z: bottom to top); left is negative x. A head is painted in
its own frame, in millimetres, and looked at through the scale and the pose of the subject.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Int16
from numpy import ndarray

from neuro.errors import InputError

Shape = tuple[int, int, int]
Triple = Sequence[float | int] | ndarray
MODALITIES = ("T1", "rsfMRI", "dMRI")
SPLITS = ("train", "val", "test")
FIELD_OF_VIEW_MM = 192.0  # what the largest head needs in its worst pose
SIDES = ("left", "right")
LEVELS: dict[str, tuple[str, ...]] = {
    "sex": ("M", "F"),
    "lesion": ("none", *SIDES),
    "microlesion": ("none", *SIDES),
    "tract": SIDES,
    "network": SIDES,
    "rhythm": ("slow", "fast"),
}
MEANING = {
    "sex": "M or F; a man's head is 15 % larger in each direction",
    "age": "Years, 20 to 80; ventricles and sulci widen",
    "lesion": "none, left or right: hemisphere of a large bright lesion (T1)",
    "microlesion": "none, left or right: hemisphere of a small faint lesion (T1)",
    "tract": "left or right: hemisphere where the FA of a large tract is reduced (dMRI)",
    "network": "left or right: hemisphere whose lateral cortex oscillates at 0.03 Hz (rsfMRI)",
    "rhythm": "slow (0.02 Hz) or fast (0.08 Hz): a weaker oscillation of midline cortex (rsfMRI)",
    "split": "train (80 %), val (10 %) or test (10 %)",
}
# Every draw comes from default_rng([seed, index, stream]): a new stream leaves the others as they were.
_SPLIT, _AGE, _TR, _BODY, _T1, _FA, _BOLD, _FACTORS = range(8)

# Intensity of each tissue in T1, as FA and in BOLD.
_T1_LOOK = {"fat": 0.85, "muscle": 0.42, "bone": 0.10, "air": 0.02, "marrow": 0.62, "eye": 0.20}
_T1_LOOK |= {"csf": 0.17, "grey": 0.50, "nucleus": 0.58, "white": 0.82, "bundle": 0.86}
_FA_LOOK = {"csf": 0.04, "grey": 0.13, "nucleus": 0.22, "white": 0.45, "bundle": 0.72}
_BOLD_LOOK = {"fat": 0.10, "muscle": 0.12, "bone": 0.03, "air": 0.02, "marrow": 0.08, "eye": 0.50}
_BOLD_LOOK |= {"csf": 1.00, "grey": 0.80, "nucleus": 0.70, "white": 0.60, "bundle": 0.60}
_BRAIN = dict.fromkeys(_FA_LOOK, 1.0)
_RHYTHM_HERTZ = {"slow": 0.02, "fast": 0.08}

# Ellipsoids as (tissue, centre, radii) in mm, painted in this order; x is |x|, so each has a mirror image.
_FACE = (
    ("fat", (0, 30, -38), (50, 44, 42)),
    ("fat", (0, 70, -34), (10, 9, 15)),  # nose
    ("muscle", (0, 26, -38), (45, 42, 39)),
    ("fat", (0, -22, -60), (41, 40, 50)),  # neck
    ("muscle", (0, -22, -60), (36, 35, 46)),
    ("marrow", (0, -12, -74), (13, 12, 30)),  # spine
    ("air", (0, 14, -62), (7, 5, 22)),
    ("air", (5, 48, -38), (3, 20, 12)),
    ("air", (25, 46, -42), (8, 10, 9)),
    ("bone", (0, 42, -56), (28, 26, 4)),  # palate
    ("marrow", (34, 24, -64), (5, 26, 9)),  # jaw
)
_ORBITS = (("fat", (26, 48, -27), (15, 18, 12)), ("eye", (27, 54, -27), (10, 10, 10)))
_DEEP = (
    ("csf", (0, 6, -16), (15, 15, 9)),
    ("nucleus", (11, -12, 9), (9, 14, 9)),  # thalamus
    ("nucleus", (26, 6, 8), (6, 18, 11)),  # putamen
    ("nucleus", (14, 22, 16), (5, 10, 8)),  # caudate
    ("bundle", (19, -13, 2), (4, 7, 36)),  # corticospinal tract
)
_VENTRICLES = (
    ("csf", (8, 14, 20), (5, 19, 7)),
    ("csf", (12, -12, 24), (6, 22, 5)),
    ("csf", (21, -33, 13), (6, 15, 8)),
    ("csf", (34, -8, -10), (3, 14, 4)),
    ("csf", (0, -6, 6), (1.5, 13, 9)),
)
_BRAINSTEM = (
    ("csf", (0, -27, -25), (5, 5, 8)),
    ("white", (0, -13, -12), (10, 10, 12)),
    ("white", (0, -12, -25), (13, 12, 12)),  # pons
    ("white", (0, -17, -50), (7, 7, 26)),
)


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """The factors of one subject, all independent: what can be asked, and the right answers; see ``MEANING``.

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
    tr_s: float


def draw_split(seed: int, index: int) -> str:
    """Return ``train``, ``val`` or ``test``: 8, 1 and 1 of each ten subjects, in random order."""
    return _split_and_rank(seed, index)[0]


def draw_phantom(seed: int, index: int) -> Phantom:
    """Return the factors of subject ``index`` (from 0); they do not depend on the size of the cohort.

    Within a split, each consecutive group of as many subjects as a factor has levels shows every level
    once, so that small splits are balanced too; the order is drawn anew for each group and factor.
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


def render_t1(phantom: Phantom, seed: int, shape: Shape, spacing_mm: float) -> Int16[ndarray, "x y z"]:
    """Return the T1-weighted volume: white matter near 800, with bias field and Rician noise."""
    scene = _Scene(phantom, seed, _T1, shape, spacing_mm)
    image = scene.paint(_T1_LOOK)
    brain = scene.paint(_BRAIN)
    lesion = scene.blob(scene.lesion_mm, phantom.lesion, (21, 21, 21), rough=True)
    image += brain * lesion * (1.25 - image)
    microlesion = scene.blob(scene.microlesion_mm, phantom.microlesion, (6.5, 6.5, 6.5), rough=True)
    image += brain * microlesion * (1.05 - image)
    unit = scene.points / np.float32(90)
    smooth = np.concatenate([unit, unit * unit[[1, 2, 0]]])  # (6, voxels) of order 1 and 2
    image *= np.exp(scene.rng.uniform(-0.12, 0.12, 6).astype(np.float32) @ smooth)
    image *= np.clip(1.8 + scene.points[2] / 45, 0, 1)  # the coil ends at the neck
    image *= np.float32(scene.rng.uniform(0.85, 1.15))
    real, imaginary = 0.022 * scene.rng.standard_normal((2, int(np.prod(shape))), dtype=np.float32)
    real[scene.voxels] += image
    return (np.hypot(real, imaginary) * 1000).reshape(shape).astype(np.int16)


def render_fa(phantom: Phantom, seed: int, shape: Shape, spacing_mm: float) -> Float32[ndarray, "x y z"]:
    """Return the map of fractional anisotropy, in [0, 1]; 0 outside the brain. Lesions do not show."""
    scene = _Scene(phantom, seed, _FA, shape, spacing_mm)
    image = scene.paint(_FA_LOOK)
    white = scene.paint({"white": 1.0})
    for side in SIDES:
        tract = scene.blob((27, -6, 30), side, (9, 40, 10))
        image += tract * white * ((0.36 if side == phantom.tract else 0.68) - image)
    image += scene.rng.standard_normal(image.size, dtype=np.float32) * 0.03
    volume = np.zeros(int(np.prod(shape)), np.float32)
    volume[scene.voxels] = np.clip(image, 0, 1) * (scene.paint(_BRAIN) > 0.5)
    return volume.reshape(shape)


def render_bold(
    phantom: Phantom, seed: int, shape: Shape, spacing_mm: float, duration_s: float
) -> Int16[ndarray, "x y z time"]:
    """Return the resting run: baseline, drift, 1 % noise, oscillations of 5.5 % and 3.5 % in grey matter."""
    scene = _Scene(phantom, seed, _BOLD, shape, spacing_mm)
    baseline = scene.paint(_BOLD_LOOK) * np.float32(scene.rng.uniform(360, 440))
    grey = baseline * scene.paint({"grey": 1.0})
    seconds = np.arange(round(duration_s / phantom.tr_s)) * phantom.tr_s

    def wave(hertz: float) -> ndarray:
        return np.sin(2 * np.pi * (hertz * scene.rng.uniform(0.9, 1.1) * seconds + scene.rng.uniform()))

    parts = (
        (baseline, 1 + 0.01 * wave(0.007)),
        (baseline * scene.points[2] / 90, scene.rng.uniform(-0.01, 0.01) * seconds / duration_s),
        (grey * scene.blob((42, -8, 26), phantom.network, (18, 28, 24)), 0.055 * wave(0.03)),
        (grey * scene.blob((0, -38, 36), "right", (14, 22, 20)), 0.035 * wave(_RHYTHM_HERTZ[phantom.rhythm])),
    )
    maps, courses = (np.stack(each).astype(np.float32) for each in zip(*parts, strict=True))
    series = scene.rng.standard_normal((len(seconds), int(np.prod(shape))), dtype=np.float32)
    series *= 4
    series[:, scene.voxels] += courses.T @ maps
    return np.moveaxis(np.abs(series).astype(np.int16).reshape(-1, *shape), 0, -1)


def write_phantoms(
    root: Path,
    *,
    num_subjects: int,
    seed: int,
    t1_shape: Shape = (48, 48, 48),
    t1_spacing_mm: float = 4.0,
    bold_shape: Shape = (24, 24, 24),
    bold_spacing_mm: float = 8.0,
    duration_s: float = 48.0,
    modalities: Sequence[str] = MODALITIES,
    on_progress: Callable[[int], None] | None = None,
) -> tuple[Phantom, ...]:
    """Write a cohort as a BIDS dataset, or return at once when ``root`` already holds it.

    The dataset appears at ``root`` in one move when it is complete. Every fourth subject is stored LAS, the
    others RAS. The column ``split`` of ``participants.tsv`` is that of ``draw_split``.

    Args:
        root: The folder of the dataset; absent or empty, or complete.
        num_subjects: 1 to 9999.
        seed: 0 or more; the same seed gives the same bytes.
        t1_shape: Voxels of T1 and FA.
        t1_spacing_mm: Edge of their cubic voxels; times ``t1_shape`` at least 192 mm, or heads would be cut.
        bold_shape: Voxels of a BOLD volume.
        bold_spacing_mm: Edge of a cubic BOLD voxel; the same rule.
        duration_s: Length of a run; 4 s or more, so that it has two volumes.
        modalities: Which of ``T1``, ``rsfMRI`` and ``dMRI`` to write.
        on_progress: Called with the number of subjects written so far.

    Raises:
        InputError: An argument is out of range, or ``root`` holds something else.
    """
    grids = {
        "t1": ((*t1_shape,), float(t1_spacing_mm)),
        "bold": ((*bold_shape,), float(bold_spacing_mm)),
    }
    _check(num_subjects, seed, duration_s, modalities, grids)
    parameters = f"{num_subjects} heads, seed {seed}, {sorted(modalities)}, {grids}, {float(duration_s)} s"
    phantoms = tuple(draw_phantom(seed, index) for index in range(num_subjects))
    root = Path(root)
    if root.exists() and (root.is_file() or any(root.iterdir())):
        _check_same(root, parameters)
        return phantoms
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as staging:
        cohort = Path(staging) / root.name
        cohort.mkdir()
        _write_tables(cohort, phantoms, seed, parameters)

        def write(phantom: Phantom) -> None:
            _write_subject(cohort, phantom, seed, modalities, grids, duration_s)

        pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        try:
            for done, _ in enumerate(pool.map(write, phantoms), start=1):
                if on_progress:
                    on_progress(done)
        finally:
            pool.shutdown(cancel_futures=True)  # the first error ends those that have not begun
        try:
            cohort.replace(root)
        except OSError:  # another process was faster
            _check_same(root, parameters)
    return phantoms


class _Scene:
    """A head as the scanner sees it: where each voxel lies in the head's frame, and what it is made of."""

    def __init__(self, phantom: Phantom, seed: int, stream: int, shape: Shape, spacing_mm: float) -> None:
        index = int(phantom.subject) - 1
        rng = np.random.default_rng([seed, index, _BODY])  # the same body for all modalities
        scale = (0.97 if phantom.sex == "M" else 0.97 / 1.15) * (1 + 0.025 * np.clip(rng.normal(), -2.5, 2.5))
        aging = (phantom.age - 20) / 60 + 0.1 * np.clip(rng.normal(), -2, 2)
        front = rng.choice((-1, 1))  # where the lesion is; the microlesion is at the other end
        self.lesion_mm = (28, 20 * front, 22) + rng.uniform(-1, 1, 3) * (3, 8, 5)
        self.microlesion_mm = (28, -26 * front, 26) + rng.uniform(-1, 1, 3) * (10, 10, 12)
        phases = rng.uniform(0, 2 * np.pi, (6, 1)).astype(np.float32)
        self.rng = np.random.default_rng([seed, index, stream])
        turn = _rotation(self.rng.uniform(-1, 1, 3) * np.radians((8, 5, 8)))
        shift_mm = self.rng.uniform(-1, 1, (3, 1)).astype(np.float32) * 6
        points = (turn.T / scale).astype(np.float32) @ (_grid_mm(shape, spacing_mm) - shift_mm)
        self.edge_mm = float(spacing_mm / scale)  # a voxel in the head's frame: edges are that soft
        self.voxels = np.flatnonzero(_depth_mm(points, (0, 0, -4), (80, 94, 90)) > -self.edge_mm)
        self.points = np.ascontiguousarray(points[:, self.voxels])
        self.folds = _folds(self.points, phases)
        layers = _layers(self.points, self.folds, float(aging))
        self.layers = [(tissue, self._share(depth_mm)) for tissue, depth_mm in layers]

    def paint(self, look: dict[str, float]) -> Float32[ndarray, " voxels"]:
        """Paint the layers in order; a tissue without a look is 0."""
        image = np.zeros(self.voxels.size, np.float32)
        for tissue, share in self.layers:
            image += share * (np.float32(look.get(tissue, 0)) - image)
        return image

    def blob(
        self, centre: Triple, side: str, radii: Triple, *, rough: bool = False
    ) -> Float32[ndarray, " voxels"]:
        """Return an ellipsoid on one side, as shares of voxels; nothing when the side is ``none``."""
        if side == "none":
            return np.zeros(self.voxels.size, np.float32)
        depth_mm = _depth_mm(self.points, (-centre[0] if side == "left" else centre[0], *centre[1:]), radii)
        return self._share(depth_mm + self.folds if rough else depth_mm)

    def _share(self, depth_mm: Float32[ndarray, " voxels"]) -> Float32[ndarray, " voxels"]:
        return np.clip(depth_mm / np.float32(self.edge_mm) + np.float32(0.5), 0, 1)


def _layers(
    points: Float32[ndarray, "3 voxels"], folds: Float32[ndarray, " voxels"], aging: float
) -> list[tuple[str, Float32[ndarray, " voxels"]]]:
    """Return (tissue, depth below its surface in mm), to be painted one over the other."""
    mirrored = np.stack([np.abs(points[0]), points[1], points[2]])
    x, y, z = mirrored

    def ellipsoids(table: Sequence[tuple], growth: float = 1.0) -> list[tuple[str, ndarray]]:
        return [(tissue, _depth_mm(mirrored, at, np.multiply(radii, growth))) for tissue, at, radii in table]

    egg = np.stack([x * (1 + np.float32(0.0012) * y), y, z])  # a head is narrower in front
    scalp = np.maximum(_depth_mm(egg, (0, -4, 16), (70, 82, 62)), _depth_mm(egg, (0, -37, -8), (56, 45, 45)))
    floor = -30 + 16 * np.tanh((y - 14) / 12) + np.maximum(0, (14 - x) / 2) * (y > 0)
    cavity = np.minimum(scalp - 12, z - floor)
    tentorium = np.minimum(-5 + 0.25 * (y + 60) - 0.13 * x - z, -10 - y)  # positive below it
    cortex = np.minimum(cavity - 2 - 1.5 * aging, -tentorium - 1)
    inner = _depth_mm(mirrored, (0, -4, 12), (60, 38, 24))  # no fissure in here: the hemispheres are joined
    sulci = np.hypot(folds * 3.8, np.maximum(0, cortex - 13)) - 0.2 - 0.9 * aging
    fissure = np.hypot(x, np.maximum(0, inner)) - 0.8
    sylvian = np.hypot(z - 0.3 * y, np.maximum(0, np.maximum(36 - x, np.abs(y - 2) - 24))) - 0.8
    grey = np.minimum(np.minimum(cortex, sulci), np.minimum(fissure, sylvian))
    callosum = np.minimum(np.minimum(np.minimum(inner + 1, 6 - inner), 11 - x), z - 14)
    hind = np.minimum(cavity, tentorium)
    cerebellum = np.minimum(np.minimum(hind - 1.5, -18 - y), 46 - x)
    folia = np.minimum(cerebellum - 5, 3 * np.cos(0.5 * (z + 0.5 * y)) + 0.25 * cerebellum)
    return [
        *ellipsoids(_FACE),
        ("fat", np.minimum(scalp, z - floor + 12)),
        ("bone", np.minimum(scalp - 5, z - floor + 6)),
        *ellipsoids(_ORBITS),
        ("csf", cavity),
        ("grey", grey),
        ("white", grey - 3.5),
        *ellipsoids(_DEEP),
        ("bundle", callosum),
        *ellipsoids(_VENTRICLES, 0.75 + 0.75 * aging),
        ("csf", hind),
        ("grey", cerebellum),
        ("white", folia),
        *ellipsoids(_BRAINSTEM),
    ]


def _folds(
    points: Float32[ndarray, "3 voxels"], phases: Float32[ndarray, "6 1"]
) -> Float32[ndarray, " voxels"]:
    """Return a warped gyroid, in [-1.5, 1.5]: its zero surface runs like sulci through a cortex."""
    angles = points * np.float32(2 * np.pi / 32) + phases[:3]
    angles += np.float32(0.7) * np.sin(points[[1, 2, 0]] * np.float32(2 * np.pi / 62) + phases[3:])
    return (np.sin(angles) * np.cos(angles[[1, 2, 0]])).sum(axis=0)


def _depth_mm(
    points: Float32[ndarray, "3 voxels"], centre: Triple, radii: Triple
) -> Float32[ndarray, " voxels"]:
    """Return how deep points lie in an ellipsoid, to first order; negative outside."""
    radii_mm = np.asarray(radii, np.float32)[:, None]
    unit = (points - np.asarray(centre, np.float32)[:, None]) / radii_mm
    radius = np.sqrt((unit * unit).sum(axis=0))
    unit /= radii_mm
    return (1 - radius) * radius / (np.sqrt((unit * unit).sum(axis=0)) + np.float32(1e-4))


def _rotation(angles: ndarray) -> ndarray:
    """Return the rotation about x, then y, then z, from angles in radians."""
    (a, b, c), (p, q, r) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, a, -p], [0, p, a]])
    about_y = np.array([[b, 0, q], [0, 1, 0], [-q, 0, b]])
    return np.array([[c, -r, 0], [r, c, 0], [0, 0, 1]]) @ about_y @ about_x


@lru_cache(maxsize=4)
def _grid_mm(shape: Shape, spacing_mm: float) -> Float32[ndarray, "3 voxels"]:
    """Return the RAS position of each voxel; 0 mm is the centre of the volume."""
    axes = [(np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(spacing_mm) for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij")).reshape(3, -1)


def _split_and_rank(seed: int, index: int) -> tuple[str, int]:
    """Return the split of a subject, and how many subjects of that split come before it."""
    block, place = divmod(index, 10)
    order = np.random.default_rng([seed, block, _SPLIT]).permutation(10)
    if order[place] < 2:
        return ("val", "test")[order[place]], block
    return "train", 8 * block + int((order[:place] >= 2).sum())


def _write_subject(
    cohort: Path,
    phantom: Phantom,
    seed: int,
    modalities: Sequence[str],
    grids: dict[str, tuple[Shape, float]],
    duration_s: float,
) -> None:
    name = f"sub-{phantom.subject}"
    las = int(phantom.subject) % 4 == 0
    (shape, spacing_mm), (bold_shape, bold_spacing_mm) = grids["t1"], grids["bold"]
    if "T1" in modalities:
        voxels = render_t1(phantom, seed, shape, spacing_mm)
        _write_nifti(cohort / name / "anat" / f"{name}_T1w.nii.gz", voxels, spacing_mm, las)
    if "dMRI" in modalities:
        voxels = np.rint(render_fa(phantom, seed, shape, spacing_mm) * 10_000).astype(np.int16)
        path = cohort / name / "dwi" / f"{name}_param-FA_dwimap.nii.gz"
        _write_nifti(path, voxels, spacing_mm, las, slope=1e-4)
    if "rsfMRI" in modalities:
        voxels = render_bold(phantom, seed, bold_shape, bold_spacing_mm, duration_s)
        path = cohort / name / "func" / f"{name}_task-rest_bold.nii.gz"
        _write_nifti(path, voxels, bold_spacing_mm, las, tr_s=phantom.tr_s)
        _write_json(path.with_name(f"{name}_task-rest_bold.json"), {"RepetitionTime": phantom.tr_s})


def _write_nifti(
    path: Path,
    voxels: Int16[ndarray, "x y z *time"],
    spacing_mm: float,
    las: bool,
    slope: float = 1.0,
    tr_s: float = 0.0,
) -> None:
    """Write a NIfTI without time stamp or file name, so that the same voxels give the same bytes."""
    affine = np.diag([spacing_mm] * 3 + [1.0])
    affine[:3, 3] = -spacing_mm * (np.array(voxels.shape[:3]) - 1) / 2
    if las:
        voxels, affine[0] = voxels[::-1], -affine[0]
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(voxels.shape)
    header.set_sform(affine, code="scanner")
    header.set_qform(affine, code="scanner")
    header.set_xyzt_units("mm", "sec")
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, 0, 352
    header["pixdim"][4] = tr_s
    # Level 1 without a search for repetitions: noise has none, and this is several times faster.
    gzip = zlib.compressobj(1, wbits=31, strategy=zlib.Z_HUFFMAN_ONLY)
    content = gzip.compress(header.binaryblock + bytes(4) + voxels.tobytes(order="F")) + gzip.flush()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _write_tables(cohort: Path, phantoms: Sequence[Phantom], seed: int, parameters: str) -> None:
    """Write what BIDS wants at the root of a dataset."""
    _write_json(cohort / "dataset_description.json", _description(parameters))
    _write_json(cohort / "participants.json", {name: {"Description": text} for name, text in MEANING.items()})
    _write_json(cohort / "task-rest_bold.json", {"TaskName": "rest", "RepetitionTime": 2.0, "EchoTime": 0.03})
    lines = ["\t".join(["participant_id", *MEANING])]
    for index, phantom in enumerate(phantoms):
        facts = {**asdict(phantom), "split": draw_split(seed, index)}
        lines.append("\t".join([f"sub-{phantom.subject}", *(str(facts[name]) for name in MEANING)]))
    (cohort / "participants.tsv").write_text("\n".join(lines) + "\n")


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _description(parameters: str) -> dict:
    return {
        "Name": "Synthetic heads with known answers",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "neuro.data.phantom", "Version": "1", "Description": parameters}],
    }


def _check_same(root: Path, parameters: str) -> None:
    path = root / "dataset_description.json"
    if not path.is_file() or json.loads(path.read_text()) != _description(parameters):
        raise InputError(
            f"{root} must be absent, empty or hold the cohort that is asked for ({parameters}), but it holds "
            f"something else. Choose another folder, or remove this one."
        )


def _check(num_subjects: int, seed: int, duration_s: float, modalities: Sequence[str], grids: dict) -> None:
    if not 1 <= num_subjects <= 9999:
        raise InputError(f"num_subjects must be in [1, 9999], got {num_subjects}. Use 24 for a quick look.")
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}. Use {-seed}.")
    if duration_s < 4:
        raise InputError(f"duration_s must be 4 or more, for two volumes, got {duration_s}. Use 48.")
    if not modalities or set(modalities) - set(MODALITIES):
        raise InputError(f"modalities must be some of {MODALITIES}, got {tuple(modalities)}. Name one.")
    for name, (shape, spacing_mm) in grids.items():
        if len(shape) != 3 or min(shape) * spacing_mm < FIELD_OF_VIEW_MM:
            raise InputError(
                f"{name}_shape times {name}_spacing_mm must be {FIELD_OF_VIEW_MM:g} mm or more on 3 axes, or "
                f"heads would be cut, got {shape} times {spacing_mm}. "
                f"Set {name}_spacing_mm to {FIELD_OF_VIEW_MM / max(1, min(shape)):g}."
            )
