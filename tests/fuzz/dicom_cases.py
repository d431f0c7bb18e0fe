"""Mutated DICOM series: one file of a sound series is damaged, and the series is converted."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from dicom_files import write_series
from mutations import damaged

from neuro.data.dicom import find_dicom, read_dicom

Case = Callable[[], object]
Seeds = list[list[bytes]]

AFFINE = np.array([[2.0, 0, 0, -10], [0, 3, 0, -20], [0, 0, 4, 5], [0, 0, 0, 1]])
SYNTAXES = (
    *("1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.5"),
    *("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90", "9.9", ""),
    *("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.201", "x" * 64),
)
VRS = (b"OB", b"SQ", b"UN", b"US", b"FD", b"AT", b"PN", b"DS", b"XX", b"\0\0", b"UT", b"OW")
LENGTHS = (0, 1, 2, 3, 0x7FFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFE, 0x7FFFFFFF, 0x80000000, 100_000)
# What says how large an image is, and where it lies: element numbers, and values at extremes.
SIZES = {
    (0x0028, 0x0010): (0, 1, 2, 13, 0x7FFF, 0xFFFF),
    (0x0028, 0x0011): (0, 1, 2, 11, 0x7FFF, 0xFFFF),
    (0x0028, 0x0002): (0, 1, 3, 4, 0xFFFF),
    (0x0028, 0x0100): (0, 1, 8, 12, 32, 64, 0xFFFF),
    (0x0028, 0x0101): (0, 8, 33, 0xFFFF),
    (0x0028, 0x0103): (0, 2, 0xFFFF),
}
TEXTS = {
    (0x0028, 0x0008): (b"0 ", b"-1", b"99999999", b"2147483647", b"4294967297", b"1e9 ", b"60"),
    (0x0028, 0x0030): (b"0\\0 ", b"-1\\-1", b"nan\\nan ", b"1e400\\1", b"\\", b"1e-30\\0"),
    (0x0020, 0x0032): (b"nan\\nan\\nan ", b"1e300\\0\\0 ", b"\\\\", b"0\\0\\0 ", b"1\\2 "),
    (0x0020, 0x0037): (b"0\\0\\0\\0\\0\\0 ", b"1\\0\\0\\1\\0\\0 ", b"nan\\0\\0\\0\\1\\0 "),
    (0x0020, 0x0013): (b"-5", b"99999999999999999999", b"1.5 ", b"\xff\xff", b""),
    (0x0020, 0x0011): (b"-5", b"99999999999999999999", b"", b"9" * 5000),
    (0x0008, 0x0060): (b"CT", b"SEG ", b"", b"\xe9\xe9", b"../.."),
    (0x0020, 0x000E): (b"", b"1.2.3", b"../../../x", b"\xff" * 64),
    (0x0008, 0x0008): (b"MOSAIC", b"DERIVED\\SECONDARY\\MOSAIC ", b"O\\PRIMARY\\P ", b"\\" * 400),
    (0x0008, 0x0070): (b"GE MEDICAL SYSTEMS", b"Philips ", b"UIH ", b"%s%n%x"),
    (0x0008, 0x0005): (b"ISO_IR 192", b"GB18030 ", b"\\ISO 2022 IR 87 ", b"nothing "),
    (0x0018, 0x0050): (b"0 ", b"-3", b"nan "),
    (0x0018, 0x0080): (b"nan ", b"-1", b"1e308 "),
    (0x0018, 0x1120): (b"45", b"90", b"nan "),
}  # fmt: skip


def begin(folder: Path) -> Seeds:
    """Return sound series, as the bytes of their files."""
    numbers = np.random.default_rng(0)
    series = []
    for number, (shape, modality) in enumerate(
        (((6, 7, 4), "MR"), ((5, 6, 4), "CT"), ((6, 6, 3, 2), "MR")), 1
    ):
        voxels = numbers.integers(0, 1000, shape).astype(np.int16)
        files = write_series(folder / f"{number}", voxels, AFFINE, modality=modality, number=number)
        series.append([path.read_bytes() for path in files])
    return series


def begin_real(folder: Path) -> Seeds:
    """Return small public files, each a series of its own (mosaics, multi-frame, compressed)."""
    return [[path.read_bytes()] for path in real_files()]


def real_files() -> list[Path]:
    """Return small public files; none where they are absent."""
    root = Path(os.environ.get("NEURO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    found = [
        *root.glob("dcm_qa_ts/In/*.dcm"),
        *root.glob("dcm_qa_enh/In/**/*"),
        *root.glob("dcm_qa_agfa/In/**/*"),
    ]
    found += [*root.glob("dicom2nifti/generic/**/*")][:20]
    return sorted(path for path in found if path.is_file() and 0 < path.stat().st_size < 600_000)


def element(data: bytes, tag: tuple[int, int]) -> tuple[int, int, int] | None:
    """Return where an element with explicit VR begins, where its value does, and its length."""
    start = data.find(struct.pack("<HH", *tag), 132)
    if start < 0 or start + 8 > len(data):
        return None
    if data[start + 4 : start + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF"):
        return start, start + 12, struct.unpack_from("<I", data, start + 8)[0]
    return start, start + 8, struct.unpack_from("<H", data, start + 6)[0]


def with_value(data: bytes, tag: tuple[int, int], value: bytes) -> bytes:
    """Return a file whose element, of a short VR, has another value; as it was if it has none."""
    found = element(data, tag)
    if found is None:
        return data
    start, first, length = found
    return data[: start + 6] + struct.pack("<H", len(value)) + value + data[first + length :]


def field(rng: Random, data: bytes) -> bytes:
    """Return a file with a field of its header at an extreme."""
    if rng.random() < 0.4:
        tag = rng.choice(list(SIZES))
        return with_value(data, tag, struct.pack("<H", rng.choice(SIZES[tag])))
    tag = rng.choice(list(TEXTS))
    return with_value(data, tag, rng.choice(TEXTS[tag]))


def structure(rng: Random, data: bytes) -> bytes:
    """Return a file with a wrong VR, length or transfer syntax, or with elements gone or added."""
    tags = [*SIZES, *TEXTS, (0x7FE0, 0x0010), (0x0002, 0x0010), (0x0008, 0x0018)]
    found = element(data, rng.choice(tags)) or (132, 140, 4)
    start, first, length = found
    what = rng.randrange(8)
    if what == 0:
        return data[: start + 4] + rng.choice(VRS) + data[start + 6 :]
    if what == 1:
        wide = first - start == 12
        packed = (
            struct.pack("<I", rng.choice(LENGTHS))
            if wide
            else struct.pack("<H", rng.choice(LENGTHS) & 0xFFFF)
        )
        return data[: first - len(packed)] + packed + data[first:]
    if what == 2:
        return with_value(data, (0x0002, 0x0010), rng.choice(SYNTAXES).encode().ljust(2, b"\0"))
    if what == 3:  # as if the rest had not been written
        return data[:start] + data[first + length :]
    if what == 4:
        found = element(data, (0x7FE0, 0x0010))
        return data[: found[0]] if found else data
    if what == 5:
        return data[:start] + nested(rng) + data[start:]
    if what == 6:
        return data[:128] + b"DICM" * rng.randrange(2) + data[132:]
    return (
        data[:start]
        + data[start : first + length] * rng.choice((2, 3, 500))
        + data[first + length :]
    )


def nested(rng: Random) -> bytes:
    """Return sequences in sequences, open or closed, of known length or not."""
    depth = rng.choice((1, 3, 50, 2000, 20_000))
    opening = struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    return opening * depth + closing * (depth if rng.random() < 0.6 else rng.randrange(depth))


def case(rng: Random, seeds: Seeds, folder: Path) -> Case:
    """Write a series with one bad file, or several, and return what reads it."""
    files = list(rng.choice(seeds))
    how = rng.choice((field, field, structure, structure, lambda rng, data: damaged(rng, data)))
    some = rng.sample(range(len(files)), len(files) if rng.random() < 0.3 else 1)
    state = rng.getstate()
    for index in some:
        if rng.random() < 0.7:
            rng.setstate(state)  # the same in each
        files[index] = how(rng, files[index])
    paths = [folder / f"{number:03d}" for number in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)

    def read() -> object:
        found, errors = find_dicom(paths)
        volumes = [read_dicom(one.files, one.name) for one in found]
        for error in errors:
            raise error
        return volumes

    return read
