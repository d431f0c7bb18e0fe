"""The converter from DICOM to NIfTI: run in a folder of its own, and listened to.

What dcm2niix prints may quote a header (protocol, coil, dates), so nothing of it is passed on but
sentences that are known to hold fixed words and numbers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

import dcm2niix

from neuro.errors import ScanError

PREFIX = "neuro-dicom-"  # of the temporary folders
STALE_S = 24 * 3600.0  # no conversion takes so long
TIMEOUT_S = 900.0
FLAGS = (
    *("-g", "i"),  # no settings from a file in the home folder
    *("-b", "y", "-ba", "y"),  # a side-car, for the repetition time, without names and dates
    *("-z", "n"),  # the volume is read once and thrown away
    *("-f", "v"),  # no header field in a file name
)
# What it prints where no volume comes out that could be trusted, and what that means.
FAULTS = (
    (r"not large enough|Only loaded|too small", "the image data end too early"),
    (
        r"transfer syntax|decod|decompress|JPEG[ -]|failed to read image",
        "the compressed pixels cannot be unpacked",
    ),
    (r"Check sorted order", "the order of its volumes in time cannot be told"),
    (r"DUPLICATES REMOVED", "several images have the same instance number"),
    (r"slice direction", "the order of its slices cannot be told"),
    (r"Interslice distance varies", "its slices are unevenly spaced, or some are missing"),
    (r"issing images\.|may be missing|not divisible by|images\?$", "images are missing"),
    (r"orientation varies", "its slices are not parallel"),
    (r"Slices not stacked", "its images differ in more than their place"),
    (r"No valid DICOM", "it finds no image"),
    (r"disk full|Unable to write|write permission", "its temporary folder cannot be written"),
)
UNSAFE = re.compile(r"^\s*Error|slice direction: please check")
UNEVEN = re.compile(r"Interslice distance varies|issing images\.|may be missing|not divisible by")
NOTEWORTHY = re.compile(
    r"Instance Number \(0020,0013\) order is not spatial"
    r"|Missing images\? Expected \d+ images, but instance number \(0020,0013\) ranges "
    r"from \d+ to \d+"
    r"|Unable to determine manufacturer"
    r"|Unable to determine slice thickness: please check voxel size"
    r"|Please check slice thicknesses"
    r"|Mosaic inferred without CSA header \(check number of slices and spatial orientation\)"
    r"|Guessing this is a mosaic up to \d+ slices"
    r"|Guessing temporal order for Philips enhanced DICOM ASL, DWI and fMRI"
    r"|Discrepancy between reported \([\d.]+s\) and estimated \([\d.]+s\) repetition time"
    r"|Seconds between volumes varies"
    r"|\d+ volumes appear to be ADC or trace images that will be removed"
)


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What dcm2niix made of a series.

    Attributes:
        paths: The volumes, the plainest first: a magnitude image before its phase.
        repetition_time_s: As the side-car of the first says; None where it does not.
        warnings: What a user should know.
        fault: What it complains about that can make a volume wrong, in words; else empty.
        is_uneven: Whether it complains about gaps.
    """

    paths: tuple[Path, ...]
    repetition_time_s: float | None
    warnings: tuple[str, ...]
    fault: str
    is_uneven: bool


@contextmanager
def converted(files: Sequence[Path], source: Path, name: str) -> Iterator[Conversion]:
    """Convert the files of one series in a temporary folder, which is gone afterwards.

    Args:
        files: DICOM, under any name.
        source: The file or folder, for messages.
        name: Of the series, for messages.

    Raises:
        ScanError: No single volume comes out that could be trusted.
    """
    remove_stale()
    with TemporaryDirectory(prefix=PREFIX) as temporary:
        given, made = Path(temporary, "in"), Path(temporary, "out")
        given.mkdir()
        made.mkdir()
        for index, file in enumerate(files):
            (given / f"{index:06d}").symlink_to(file.absolute())
        status, lines = _run(given, made, source, name)
        # Its copies with tilt or uneven steps corrected are left out: see dicom_slices.place.
        paths = [path for path in made.glob("*.nii") if not re.search("_Tilt|_Eq", path.stem)]
        fault = next((what for sign, what in FAULTS if _any(sign, lines)), "")
        if status != 0 or _any(UNSAFE, lines) or not paths:
            ending = "it crashes" if status < 0 else f"it reports an error, status {status}"
            raise _failure(files, source, name, lines, fault or ending)
        if len(paths) > 1 and len(files) > 1:
            why = f"it makes {len(paths)} ({fault or 'their files differ in some way'})"
            raise _failure(files, source, name, [], why)
        notes = [f"dcm2niix: {found[0]}" for found in map(NOTEWORTHY.search, lines) if found]
        if len(paths) > 1:
            notes.append(f"the file holds {len(paths)} volumes; only the first is read")
        paths.sort(key=lambda path: (len(path.name), path.name))
        yield Conversion(
            paths=tuple(paths),
            repetition_time_s=_repetition_time_s(paths[0].with_suffix(".json")),
            warnings=tuple(dict.fromkeys(notes)),
            fault=fault,
            is_uneven=_any(UNEVEN, lines),
        )


@cache
def remove_stale() -> None:
    """Remove the temporary folders that killed processes of this user left; once per process."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows has a folder for each user
    for path in Path(gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):  # another process may be removing it
            stat = path.lstat()
            is_stale = time.time() - stat.st_mtime > STALE_S
            if is_stale and stat.st_uid == user and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


def _run(given: Path, made: Path, source: Path, name: str) -> tuple[int, list[str]]:
    """Return the exit status and the printed lines."""
    command = [dcm2niix.bin, *FLAGS, "-o", str(made), str(given)]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        reason = f"series {name}: dcm2niix is not done after {TIMEOUT_S:g} seconds."
        cure = "Convert it by hand and give the NIfTI file."
        raise ScanError(source, "convert", reason, cure) from None
    return done.returncode, [*done.stdout.splitlines(), *done.stderr.splitlines()]


def _repetition_time_s(side_car: Path) -> float | None:
    """Find it in the text: a damaged header can make the JSON invalid."""
    text = side_car.read_text(errors="replace") if side_car.is_file() else ""
    found = re.search(r'"RepetitionTime": (\d+(\.\d+)?(e[+-]\d+)?)', text)
    return float(found[1]) if found else None


def _any(pattern: str | re.Pattern[str], lines: Sequence[str]) -> bool:
    return any(re.search(pattern, line) for line in lines)


def _failure(
    files: Sequence[Path], source: Path, name: str, lines: Sequence[str], why: str
) -> ScanError:
    """Name the file that dcm2niix stumbles over, if it is one."""
    blamed = {int(index) for line in lines for index in re.findall(r"/in/(\d{6})", line)}
    return ScanError(
        files[blamed.pop()] if len(blamed) == 1 else source,
        "convert",
        f"series {name}: dcm2niix makes no single volume of it: {why}.",
        "Export it again, or convert it by hand and give the NIfTI file.",
    )
