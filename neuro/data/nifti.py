"""A NIfTI file in one pass: its header, and its voxels as they are stored.

NIfTI-1 and NIfTI-2, a single file or a pair, either byte order, packed or not (the content tells,
not the name). An archive is read once, to its end, where its checksum is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from jaxtyping import Shaped
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header
from nibabel.spatialimages import HeaderDataError

from neuro.errors import ScanError

SINGLE, PAIR = (b"n+1\0", b"n+2\0"), (b"ni1\0", b"ni2\0")
PARTNER = {".hdr": ".img", ".img": ".hdr"}
MAX_RATIO = 1032  # the most that deflate makes of one byte
# No scan packs so well: a brain cut out of air, or a map of it, comes to 20 at most. A small one
# may; what is large and does is an archive that was made to fill the memory.
LARGE_BYTES, LARGE_RATIO = 1 << 27, 100
UNREADABLE = (OSError, EOFError, HeaderDataError, ValueError, KeyError, OverflowError)
DAMAGED: type[Exception] = IsalError  # pyright: ignore[reportAssignmentType], its stub is wrong


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What is in a file.

    Attributes:
        header: As stored.
        voxels: The numbers as stored: their type and byte order, no slope; the first axis is the
            fastest in memory.
        slope: What the numbers are multiplied by and what is added then; None where nothing is.
        warnings: What a person should know of the file.
    """

    header: Nifti1Header
    voxels: Shaped[np.ndarray, " *axes"]
    slope: tuple[float, float] | None
    warnings: tuple[str, ...]


def read_nifti(path: Path) -> Stored:
    """Read a NIfTI file whole.

    Args:
        path: A single file, or either file of a ``.hdr`` and ``.img`` pair.

    Raises:
        ScanError: The file is missing, forbidden, empty, cut off, damaged or not NIfTI, or its
            voxels are not plain numbers.
    """
    try:
        _check_file(path)
        with _open(path) as file:
            header, magic = _read_header(file)
            if header is not None and magic in SINGLE:
                return _read_voxels(path, path, file, header)
        if _is_dicom(path):
            cure = "Name its folder as the series; it is converted as a whole."
            raise ScanError(path, "read", "it is DICOM, not NIfTI.", cure)
        suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
        if suffix in PARTNER:
            return _read_pair(path, suffix)
    except ScanError:  # it is a ValueError too
        raise
    except PermissionError as error:
        reason = f"{error.filename or path} cannot be opened ({error.strerror})."
        raise ScanError(path, "read", reason, "Give yourself access to it.") from error
    except MemoryError as error:
        raise _unreadable(path, "its voxels do not fit in memory") from error
    except (*UNREADABLE, DAMAGED) as error:
        raise _unreadable(path, " ".join(str(error).split())[:160] or repr(error)) from error
    raise _unreadable(path, "it does not begin like a NIfTI file")


def _check_file(path: Path) -> None:
    """Name what is wrong before anything is read."""
    if not path.exists():
        cure = "Fetch it, or take its row out of the table."
        if path.is_symlink():
            cure = "It is a link to nothing: fetch the content (git-annex, datalad get)."
        raise ScanError(path, "find", "there is no such file.", cure)
    if path.is_file() and path.stat().st_size == 0:
        raise ScanError(path, "read", "the file has 0 bytes.", "Download it again.")


def _unreadable(path: Path, detail: str) -> ScanError:
    reason = f"cannot be read as NIfTI ({detail})."
    return ScanError(path, "read", reason, "Copy or convert it again.")


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _open(path: Path) -> BufferedIOBase:
    # igzip: the same checks as gzip in less than half the time
    return igzip.open(path, "rb") if _is_packed(path) else path.open("rb")  # pyright: ignore[reportReturnType]


def _read_header(file: BufferedIOBase) -> tuple[Nifti1Header | None, bytes]:
    """Return the header and its magic; None for what is no header. The file stands behind it."""
    block = file.read(348)
    sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")}
    if 540 in sizes:
        block += file.read(540 - 348)
        return (Nifti2Header(block, check=False) if len(block) == 540 else None), block[4:8]
    if 348 in sizes and len(block) == 348:
        return Nifti1Header(block, check=False), block[344:348]
    return None, b""


def _read_pair(path: Path, suffix: str) -> Stored:
    """Read a pair of which one file is given."""
    stem = path.name.removesuffix(".gz")[: -len(suffix)]
    suffixes = [PARTNER[suffix], PARTNER[suffix].upper()]
    others = [path.with_name(f"{stem}{one}{gz}") for one in suffixes for gz in ("", ".gz")]
    other = next((one for one in others if one.is_file()), None)
    if other is None:
        wanted = " or ".join(one.name for one in others[:2])
        raise ScanError(
            path, "find", f"it is half of a pair; there is no {wanted}.", "Put it beside this file."
        )
    head, image = (path, other) if suffix == ".hdr" else (other, path)
    with _open(head) as file:
        header, magic = _read_header(file)
        _read_rest(file, path, LARGE_BYTES)
    if header is None:
        raise _unreadable(path, f"{head.name} does not begin like a NIfTI header")
    if magic not in PAIR:
        raise ScanError(
            path,
            "read",
            f"{head.name} is an ANALYZE header, which does not tell left from right.",
            "Convert it to NIfTI with the program that wrote it.",
        )
    with _open(image) as file:
        return _read_voxels(path, image, file, header)


def _read_voxels(path: Path, image: Path, file: BufferedIOBase, header: Nifti1Header) -> Stored:
    """Read the numbers that the header promises, and their file to its end.

    Args:
        path: The file that was asked for, which errors name.
        image: The file of the voxels; the same one, or the other of a pair.
        file: ``image``, open, behind its header.
        header: What says where the voxels are.
    """
    warnings = []
    dtype = _plain_dtype(path, header)
    shape = header.get_data_shape()
    if any(size < 1 for size in shape):
        raise _unreadable(path, f"its header gives the shape {shape}")
    size = math.prod(shape) * dtype.itemsize
    start = int(header["vox_offset"])
    if start < file.tell():
        if start:  # 0 is what some writers leave; the numbers then follow the header
            warnings.append(f"the header says that voxels begin at byte {start}, inside itself")
        start = file.tell() + (4 if file.tell() else 0)
    packed = image.stat().st_size
    held = packed * (MAX_RATIO if _is_packed(image) else 1)
    if LARGE_BYTES < start + size <= held and start + size > packed * LARGE_RATIO:
        times = (start + size) // packed
        raise _unreadable(path, f"it unpacks to {times} times its size, as no scan does")
    if start + size > held:
        raise _unreadable(path, f"its header promises {size} bytes of voxels, it holds fewer")
    numbers = np.empty(size, np.uint8)
    file.seek(start)
    filled = 0
    while filled < size and (got := file.readinto(numbers[filled:].data)):
        filled += got
    if filled < size:
        raise _unreadable(path, f"it is cut off after {filled} of {size} bytes of voxels")
    left = _read_rest(file, path, max(LARGE_BYTES, size))
    if left:
        warnings.append(f"the file holds {left} bytes more than its header says")
    voxels = numbers.view(dtype).reshape(shape, order="F")
    slope, inter = header.get_slope_inter()
    return Stored(
        header=header,
        voxels=voxels,
        slope=None
        if slope is None or inter is None or (slope, inter) == (1, 0)
        else (slope, inter),
        warnings=tuple(warnings),
    )


def _read_rest(file: BufferedIOBase, path: Path, most: int) -> int:
    """Read to the end, where the checksum of an archive is; return how many bytes were left."""
    left = 0
    while block := file.read(1 << 20):
        left += len(block)
        if left > most:
            raise _unreadable(path, f"it holds more than {most} bytes behind what its header says")
    return left


def _plain_dtype(path: Path, header: Nifti1Header) -> np.dtype:
    try:
        dtype = header.get_data_dtype()
    except KeyError as error:
        raise _unreadable(path, f"no numbers have the type {error}") from error
    if dtype.kind in "iuf":
        return dtype
    if dtype.kind == "c":
        what, cure = "complex numbers", "Export the magnitude."
    elif dtype.names:
        what, cure = "colours", "It is a picture of a map: give the map itself."
    else:
        what, cure = f"of type {dtype}", "Convert it to numbers of 8 to 64 bits."
    raise ScanError(path, "read", f"its voxels are {what}, not plain numbers.", cure)
