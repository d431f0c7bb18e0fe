"""A synthetic cohort with known answers: heads with age, lesion, tract and rhythm, as BIDS."""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Int16
from numpy import ndarray

from neuro.data.head import (
    BOLD_LOOK,
    BRAIN,
    FA_LOOK,
    FIELD_OF_VIEW_MM,
    T1_LOOK,
    Scene,
    Shape,
)
from neuro.errors import InputError

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
    "lesion": "none, left or right: hemisphere of a large bright lesion (T1)",
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
) -> Int16[ndarray, "x y z"]:
    """Return the T1-weighted volume: white matter near 800, with bias field and Rician noise."""
    scene = _scene(phantom, seed, _T1, shape, spacing_mm)
    image = scene.paint(T1_LOOK)
    brain = scene.paint(BRAIN)
    lesion = scene.blob(scene.lesion_mm, phantom.lesion, (21, 21, 21), rough=True)
    image += brain * lesion * (1.25 - image)
    microlesion = scene.blob(scene.microlesion_mm, phantom.microlesion, (6.5, 6.5, 6.5), rough=True)
    image += brain * microlesion * (1.05 - image)
    unit = scene.points / 90
    smooth = np.concatenate([unit, unit * unit[[1, 2, 0]]])  # (6, voxels) of order 1 and 2
    image *= np.exp(scene.rng.uniform(-0.12, 0.12, 6).astype(np.float32) @ smooth)
    image *= np.clip(1.8 + scene.points[2] / 45, 0, 1)  # the coil ends at the neck
    image *= scene.rng.uniform(0.85, 1.15)
    real, imaginary = 0.022 * scene.rng.standard_normal((2, int(np.prod(shape))), dtype=np.float32)
    real[scene.voxels] += image
    return (np.hypot(real, imaginary) * 1000).reshape(shape).astype(np.int16)


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

    The dataset appears at ``root`` in one move when it is complete. Every fourth subject is stored
    LAS, the others RAS. The column ``split`` of ``participants.tsv`` is that of ``draw_split``.

    Args:
        root: The folder of the dataset; absent or empty, or complete.
        num_subjects: 1 to 9999.
        seed: 0 or more; the same seed gives the same bytes.
        t1_shape: Voxels of T1 and FA.
        t1_spacing_mm: Edge of their cubic voxels; times ``t1_shape`` at least 192 mm, or heads
            would be cut.
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
    parameters = (
        f"{num_subjects} heads, seed {seed}, {sorted(modalities)}, {grids}, {float(duration_s)} s"
    )
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
    """Write a NIfTI without time stamp or file name: the same voxels give the same bytes."""
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
    content = header.binaryblock + bytes(4) + voxels.tobytes(order="F")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) + gzip.flush())


def _write_tables(cohort: Path, phantoms: Sequence[Phantom], seed: int, parameters: str) -> None:
    """Write what BIDS wants at the root of a dataset."""
    _write_json(cohort / "dataset_description.json", _description(parameters))
    columns = {name: {"Description": text} for name, text in MEANING.items()}
    _write_json(cohort / "participants.json", columns)
    task = {"TaskName": "rest", "RepetitionTime": 2.0, "EchoTime": 0.03}
    _write_json(cohort / "task-rest_bold.json", task)
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
            f"{root} must be absent, empty or hold the cohort that is asked for ({parameters}), "
            f"but it holds something else. Choose another folder, or remove this one."
        )


def _check(
    num_subjects: int, seed: int, duration_s: float, modalities: Sequence[str], grids: dict
) -> None:
    if not 1 <= num_subjects <= 9999:
        raise InputError(
            f"num_subjects must be in [1, 9999], got {num_subjects}. Use 24 for a quick look."
        )
    if seed < 0:
        raise InputError(f"seed must be 0 or more, got {seed}. Use {-seed}.")
    if duration_s < 4:
        raise InputError(
            f"duration_s must be 4 or more, for two volumes, got {duration_s}. Use 48."
        )
    if not modalities or set(modalities) - set(MODALITIES):
        raise InputError(
            f"modalities must be some of {MODALITIES}, got {tuple(modalities)}. Name one."
        )
    for name, (shape, spacing_mm) in grids.items():
        if len(shape) != 3 or min(shape) * spacing_mm < FIELD_OF_VIEW_MM:
            raise InputError(
                f"{name}_shape times {name}_spacing_mm must be {FIELD_OF_VIEW_MM:g} mm or more "
                f"on 3 axes, or heads would be cut, got {shape} times {spacing_mm}. "
                f"Set {name}_spacing_mm to {FIELD_OF_VIEW_MM / max(1, min(shape)):g}."
            )
