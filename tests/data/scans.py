"""Scans that tests of recipes are done on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from neuro.data.volume import Volume


def scan(voxels, *, affine=None, tr_s=None, spacing_mm=1.0):
    if affine is None:
        affine = np.diag([spacing_mm] * 3 + [1.0])
    return Volume(
        voxels=np.ascontiguousarray(voxels, np.float32),
        affine=affine,
        repetition_time_s=tr_s,
        path=Path("scan.nii.gz"),
    )


def canonical(path):
    """Return the voxels of a file in RAS order."""
    return np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj, dtype=np.float32)
