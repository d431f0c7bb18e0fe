"""Mutated NIfTI files."""

from __future__ import annotations

import gzip
import math
import os
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import nibabel as nib
import numpy as np
from mutations import damaged

from neuro.data.volume import read_volume

Case = Callable[[], object]

# Fields of a NIfTI-1 header: where, as what, and how many there are.
FIELDS = {
    "sizeof_hdr": (0, "i", 1),
    "dim": (40, "h", 8),
    "intent_code": (68, "h", 1),
    "datatype": (70, "h", 1),
    "bitpix": (72, "h", 1),
    "pixdim": (76, "f", 8),
    "vox_offset": (108, "f", 1),
    "scl_slope": (112, "f", 1),
    "scl_inter": (116, "f", 1),
    "xyzt_units": (123, "b", 1),
    "qform_code": (252, "h", 1),
    "sform_code": (254, "h", 1),
    "quatern": (256, "f", 3),
    "qoffset": (268, "f", 3),
    "srow": (280, "f", 12),
    "magic": (344, "i", 1),
}
REALS = (
    0.0,
    -0.0,
    -1.0,
    1e-30,
    1e30,
    3.4e38,
    math.nan,
    math.inf,
    -math.inf,
    1e-45,
    352.0,
    4e9,
    351.9,
)
WHOLE = (
    0,
    1,
    -1,
    2,
    3,
    4,
    7,
    8,
    16,
    32,
    64,
    128,
    255,
    256,
    512,
    768,
    1024,
    1280,
    1536,
    2304,
    30000,
    32767,
    -32768,
)
SUFFIXES = (".nii", ".nii.gz", ".hdr")


def images() -> list[nib.Nifti1Image]:
    """Return small scans of several kinds."""
    numbers = np.random.default_rng(0)
    affine = np.array([[-2.0, 0.1, 0, 20], [0, 3, 0.1, -30], [0, 0, 4, 5], [0, 0, 0, 1]])
    found = []
    for kind, shape in (
        ("<i2", (9, 8, 7)),
        ("<f4", (6, 7, 8)),
        (">i2", (8, 8, 8)),
        ("<u1", (9, 9, 4, 5)),
    ):
        voxels = numbers.integers(0, 120, shape).astype(kind)
        image = nib.Nifti1Image(voxels, affine, nib.Nifti1Header(endianness=kind[0]))
        image.header.set_slope_inter(0.5, 3) if kind == "<i2" else None
        image.header.set_xyzt_units("mm", "sec")
        found.append(image)
    found.append(nib.Nifti2Image(numbers.normal(size=(5, 6, 7)), affine))
    return found


def begin(folder: Path) -> list[bytes]:
    """Return sound files."""
    return [image.to_bytes() for image in images()]


def extreme(rng: Random, data: bytes) -> bytes:
    """Return a file with one to three fields of its header at extremes."""
    changed, order = bytearray(data), "<" if data[0] in (92, 28) else ">"
    for _ in range(rng.choice((1, 1, 2, 3))):
        start, kind, count = FIELDS[rng.choice(list(FIELDS))]
        size = struct.calcsize(kind)
        every = rng.random() < 0.3
        for index in range(count) if every else [rng.randrange(count)]:
            values = REALS if kind == "f" else (0, 1, -1, 77, 127) if kind == "b" else WHOLE
            struct.pack_into(order + kind, changed, start + index * size, rng.choice(values))
    return bytes(changed)


def colossal(rng: Random, data: bytes) -> bytes:
    """Return a header that promises up to 30000 voxels along each axis."""
    changed, order = bytearray(data[:348]), "<" if data[0] in (92, 28) else ">"
    edge = rng.choice((300, 700, 1290, 5000, 30000, 32767))
    struct.pack_into(order + "8h", changed, 40, 3, edge, edge, edge, 1, 1, 1, 1)
    return bytes(changed) + data[348:]


@cache
def zeros(count: int) -> bytes:
    """Return 16 MiB of zeros, packed, so many times: members of one archive."""
    return gzip.compress(bytes(1 << 24), 9) * count


def bomb(rng: Random, data: bytes) -> bytes:
    """Return a small archive that unpacks to far more than its header says, or to what it says."""
    if rng.random() < 0.5:
        data = colossal(rng, data)
    return gzip.compress(data, 1) + zeros(rng.choice((1, 4, 32, 128, 512)))


def case(rng: Random, seeds: list[bytes], folder: Path) -> Case:
    """Write a file and return what reads it."""
    data = rng.choice(seeds)
    what = rng.randrange(100)
    if what < 2:
        return _file(folder / "a.nii.gz", bomb(rng, data))
    if what < 50:
        data = extreme(rng, data)
    elif what < 55:
        data = colossal(rng, data)
    elif what < 90:
        data = damaged(rng, data)
    suffix = rng.choice(SUFFIXES)
    if suffix == ".hdr":
        return _pair(rng, folder, data)
    if suffix == ".nii.gz":
        data = gzip.compress(data, 1)
        if what >= 80:
            data = damaged(rng, data)
    return _file(folder / f"a{suffix}", data)


def _file(path: Path, data: bytes) -> Case:
    path.write_bytes(data)
    return lambda: read_volume(path)


def _pair(rng: Random, folder: Path, data: bytes) -> Case:
    magic = b"ni1\0" if rng.random() < 0.8 else data[344:348]
    header = data[:344] + magic if rng.random() < 0.9 else data[:344]
    path = folder / rng.choice(("a.hdr", "a.img"))
    packed = rng.random() < 0.2
    (folder / "a.hdr").write_bytes(
        gzip.compress(header) + zeros(64) * (rng.random() < 0.1) if packed else header
    )
    if rng.random() < 0.9:
        (folder / "a.img").write_bytes(data[352:])
    elif not path.exists():
        path = folder / "a.hdr"
    return lambda: read_volume(path)


def real_files() -> list[Path]:
    """Return small public scans; none where they are absent."""
    root = Path(os.environ.get("NEURO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    found = [*root.glob("NIFTI-Reader-JS/**/*.nii*"), *root.glob("dcm_qa_*/Ref/*.nii")]
    return sorted(path for path in found if 0 < path.stat().st_size < 1_500_000)


def begin_real(folder: Path) -> list[bytes]:
    """Return public scans, unpacked."""
    files = [path.read_bytes() for path in real_files()]
    return [gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data for data in files]
