"""The synthetic cohort on disk: a BIDS dataset of real NIfTI files."""

from __future__ import annotations

import json
import math
import os
import tempfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from jaxtyping import Int16
from numpy import ndarray

from neuro.data.head import FIELD_OF_VIEW_MM, Shape
from neuro.data.phantom import (
    MEANING,
    MODALITIES,
    Phantom,
    draw_phantom,
    draw_split,
    render_bold,
    render_fa,
    render_t1,
)
from neuro.errors import InputError

LESIONS = "derivatives/lesions"  # where the masks of the lesions lie, as BIDS wants it


def lesion_mask(name: str) -> Path:
    """Return where in a cohort the lesion of ``sub-0001`` is drawn."""
    return Path(LESIONS, name, "anat", f"{name}_label-lesion_mask.nii.gz")


def phantom_grids(
    t1_spacing_mm: float | int = 4.0,
    bold_spacing_mm: float | int = 8.0,
    duration_s: float | int = 48.0,
) -> dict[str, Any]:
    """Return the grids of ``write_phantoms`` that hold a head and no more.

    Raises:
        InputError: A voxel has no edge, or is too large for a head to be seen.
    """
    shapes = {}
    for name, spacing_mm in (("t1", t1_spacing_mm), ("bold", bold_spacing_mm)):
        if not 0.5 <= spacing_mm <= 12:
            raise InputError(
                f"data.{name}_spacing_mm must be in [0.5, 12], got {spacing_mm}. Use 4."
            )
        shapes[f"{name}_shape"] = (math.ceil(FIELD_OF_VIEW_MM / spacing_mm - 1e-6),) * 3
        shapes[f"{name}_spacing_mm"] = float(spacing_mm)
    return {**shapes, "duration_s": float(duration_s)}


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
        voxels, mask = render_t1(phantom, seed, shape, spacing_mm)
        _write_nifti(cohort / name / "anat" / f"{name}_T1w.nii.gz", voxels, spacing_mm, las)
        _write_nifti(cohort / lesion_mask(name), mask, spacing_mm, las)
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
    parts = (header.binaryblock, bytes(4), np.ascontiguousarray(voxels.T).data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join([*map(gzip.compress, parts), gzip.flush()]))


def _write_tables(cohort: Path, phantoms: Sequence[Phantom], seed: int, parameters: str) -> None:
    """Write what BIDS wants at the root of a dataset."""
    _write_json(cohort / "dataset_description.json", _description(parameters))
    _write_json(cohort / LESIONS / "dataset_description.json", _description(parameters))
    columns = {name: {"Description": text} for name, text in MEANING.items()}
    _write_json(cohort / "participants.json", columns)
    task = {"TaskName": "rest", "RepetitionTime": 2.0, "EchoTime": 0.03}
    _write_json(cohort / "task-rest_bold.json", task)
    lines = ["\t".join(["participant_id", *MEANING])]
    for index, phantom in enumerate(phantoms):
        split = {"split": draw_split(seed, index)}
        facts = [str(split.get(name) or getattr(phantom, name)) for name in MEANING]
        lines.append("\t".join([f"sub-{phantom.subject}", *facts]))
    (cohort / "participants.tsv").write_text("\n".join(lines) + "\n")


def _write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")


def _description(parameters: str) -> dict:
    return {
        "Name": "Synthetic heads with known answers",
        "BIDSVersion": "1.10.0",
        "DatasetType": "raw",
        "GeneratedBy": [{"Name": "neuro.phantom", "Version": "2", "Description": parameters}],
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
        if len(shape) != 3 or min(shape) * spacing_mm < FIELD_OF_VIEW_MM - 1e-3:
            raise InputError(
                f"{name}_shape times {name}_spacing_mm must be {FIELD_OF_VIEW_MM:g} mm or more "
                f"on 3 axes, or heads would be cut, got {shape} times {spacing_mm}. "
                f"Set {name}_spacing_mm to {FIELD_OF_VIEW_MM / max(1, min(shape)):g}."
            )
