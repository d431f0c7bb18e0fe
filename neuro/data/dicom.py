"""A pile of DICOM files as series, and a series as a volume.

pydicom finds the series and dcm2niix converts them. No attribute of a patient is logged, put into
a message or kept in a volume.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from neuro.data.dcm2niix import Conversion, converted
from neuro.data.dicom_header import Header, is_dicom, read_header
from neuro.data.dicom_slices import MIN_SLICES, Stack, place, stack_slices
from neuro.data.volume import Volume, read_volume
from neuro.errors import NotAScan, ScanError

__all__ = ["DicomSeries", "find_dicom", "is_dicom", "read_dicom"]

PARALLEL = 0.01  # largest difference of direction cosines within a volume: half a degree
PLANES = ("sag", "cor", "ax")  # by the axis that the normal is nearest to
UNFIT = {
    "capture": "is a screen save or another secondary capture, not a scan.",
    "colour": "holds colour images, not a scan.",
}
logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DicomSeries:
    """Files that make one volume, or one run of volumes.

    Attributes:
        files: Sorted.
        uid: SeriesInstanceUID.
        name: Unique among the series that were found together: ``s003`` by its number, with what
            tells it from others of that number: ``s003-e2`` (echo), ``s003-ph`` (phase),
            ``s001-cor`` (plane).
        modality: ``MR``, ``CT``, ...
        patient: The same for studies of the same patient, and empty where the header's identity
            was removed or is a placeholder. It is a hash with a public key, on which names can be
            tried: it lives in memory only and is never logged or written.
    """

    files: tuple[Path, ...]
    uid: str
    name: str
    modality: str
    patient: str = field(repr=False)


def find_dicom(paths: Iterable[Path]) -> tuple[list[DicomSeries], list[ScanError]]:
    """Find the series among files; what is not DICOM is passed over.

    Args:
        paths: Files, for example all below the folder of a study.

    Returns:
        The series that make a volume, sorted by name, and an error for each damaged file and for
        each series, or part of one, that makes none.
    """
    headers, errors = _read_headers(sorted(set(paths)))
    numbered: dict[tuple[str, int], list[Header]] = defaultdict(list)
    for header in headers:
        numbered[header.uid, header.number].append(header)
    groups: list[tuple[str, list[Header]]] = []
    for _, members in sorted(numbered.items()):
        errors += _unfit(members)
        whole, error = _without_lone_slices([x for x in members if x.kind == "image"])
        groups += _named(whole)
        errors += [error] if error else []
    found = []
    for name, members in _unique(groups):
        try:
            _stack(members, name)
        except ScanError as error:
            errors.append(error)
            continue
        first = members[0]
        found.append(
            DicomSeries(
                files=tuple(header.path for header in members),
                uid=first.uid,
                name=name,
                modality=first.modality,
                patient=first.patient,
            )
        )
    return sorted(found, key=lambda series: series.name), errors


def read_dicom(files: Sequence[Path], name: str) -> Volume:
    """Convert a series and read it.

    Args:
        files: Of one :class:`DicomSeries`.
        name: Of the series, for messages.

    Returns:
        The volume in RAS. Its path is the file, or the folder that the files share.

    Raises:
        ScanError: The files are damaged or make no single volume, or dcm2niix cannot convert them.
    """
    source = _common(files)
    members = [_read_image(path) for path in files]
    num_groups = len(_split(members))
    if num_groups > 1:
        reason = (
            f"series {name}: its files belong to {num_groups} volumes, which differ in series "
            f"number, orientation, size, echo or component."
        )
        raise ScanError(source, "geometry", reason, "Give the files of one volume.")
    stack = _stack(members, name)
    with converted(files, source, name) as conversion:
        volume = _read(conversion, source, name)
    notes = conversion.warnings
    if stack is None:
        if conversion.is_uneven or min(volume.voxels.shape[:3]) < MIN_SLICES:
            reason = conversion.fault or f"it has fewer than {MIN_SLICES} slices"
            raise _unusable(source, name, f"{reason}.")
    else:
        num_images = volume.voxels.size // (stack.image_shape[0] * stack.image_shape[1])
        if num_images != len(files):
            because = f" ({conversion.fault})" if conversion.fault else ""
            reason = f"dcm2niix uses {num_images} of its {len(files)} images{because}."
            raise _unusable(source, name, reason)
        volume = place(volume, stack, source, name)
    return replace(volume, path=source, warnings=(*volume.warnings, *notes))


def _read_headers(paths: Sequence[Path]) -> tuple[list[Header], list[ScanError]]:
    """Return the headers of images, each image once; count what is passed over."""
    headers: dict[object, Header] = {}
    errors = []
    no_scans: Counter[str] = Counter()
    num_copies = 0
    for path in paths:
        try:
            header = read_header(path)
        except ScanError as error:
            errors.append(error)
            continue
        if header is None:
            continue
        if header.kind == "none":
            no_scans[header.modality or "unnamed"] += 1
            continue
        # The instance uid alone is not enough: careless anonymizers give one to all files.
        image = (header.instance, header.uid, header.number, header.index, header.position_mm)
        key = image if header.instance else path
        num_copies += key in headers
        headers.setdefault(key, header)
    if no_scans:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(no_scans.items()))
        logger.info("DICOM files that hold no scan are passed over: %s.", kinds)
    if num_copies:
        logger.info("DICOM files that are copies of others are passed over: %d.", num_copies)
    return list(headers.values()), errors


def _read_image(path: Path) -> Header:
    header = read_header(path)
    if header is None or header.kind == "none":
        raise ScanError(path, "read", "is not a DICOM image.", "Take it out of the series.")
    if header.kind in UNFIT:
        raise ScanError(path, "find", UNFIT[header.kind], "Export the original series.")
    return header


def _unfit(members: Sequence[Header]) -> list[ScanError]:
    """Return an error for the screen saves, and one for the photographs, of a series."""
    errors = []
    for kind, reason in UNFIT.items():
        files = [header.path for header in members if header.kind == kind]
        if files:
            reason = f"series s{members[0].number:03d} {reason}"
            errors.append(NotAScan(_common(files), "find", reason, "Export the original series."))
    return errors


def _split(headers: Sequence[Header]) -> list[list[Header]]:
    """Part files as dcm2niix would: by series, echo, component, size and orientation."""
    alike: dict[object, list[Header]] = defaultdict(list)
    for header in headers:
        alike[header.traits].append(header)
    return [group for members in alike.values() for group in _parallel(members)]


def _parallel(headers: Sequence[Header]) -> list[list[Header]]:
    """Part files by orientation; a localizer has three."""
    groups: list[list[Header]] = []
    for header in headers:
        for members in groups:
            first, other = members[0].orientation, header.orientation
            if len(first) == len(other) and all(
                abs(one - two) < PARALLEL for one, two in zip(first, other, strict=True)
            ):
                members.append(header)
                break
        else:
            groups.append([header])
    return groups


def _without_lone_slices(
    members: Sequence[Header],
) -> tuple[list[list[Header]], ScanError | None]:
    """Part a series into volumes; the rest is one error, however many directions it has."""
    groups = _split(members)
    few = [group for group in groups if group[0].is_slice and len(group) < MIN_SLICES]
    if not few:
        return groups, None
    files = [header.path for group in few for header in group]
    reason = (
        f"series s{members[0].number:03d}: {len(files)} image(s) in {len(few)} orientation(s); "
        f"a volume needs at least {MIN_SLICES} parallel slices."
    )
    cure = "Export the whole series; a localizer or a single slice cannot be used."
    error = NotAScan(_common(files), "geometry", reason, cure)
    return [group for group in groups if group not in few], error


def _named(groups: Sequence[list[Header]]) -> list[tuple[str, list[Header]]]:
    """Name the volumes of one series number by what they are."""
    echoes = sorted({members[0].echo for members in groups})
    both = len({members[0].derived for members in groups}) > 1
    names = []
    for first, *_ in groups:
        parts = [f"s{first.number:03d}"]
        parts += [f"e{1 + echoes.index(first.echo)}"] * (len(echoes) > 1)
        parts += [first.component] * bool(first.component)
        parts += ["derived"] * (both and first.derived)
        names.append("-".join(parts))
    counts = Counter(names)
    return [
        (f"{name}-{_plane(members[0])}" if counts[name] > 1 else name, members)
        for name, members in zip(names, groups, strict=True)
    ]


def _plane(header: Header) -> str:
    if not header.orientation:
        return "volume"
    normal = np.cross(header.orientation[:3], header.orientation[3:])
    return PLANES[int(np.abs(normal).argmax())]


def _unique(named: Sequence[tuple[str, list[Header]]]) -> list[tuple[str, list[Header]]]:
    """Tell series of one number apart by their uid, then volumes of one series by counting."""
    uids: dict[str, set[str]] = defaultdict(set)
    for name, members in named:
        uids[name].add(members[0].uid)
    seen: Counter[str] = Counter()
    unique = []
    for name, members in named:
        if len(uids[name]) > 1:
            name += f"-u{hashlib.sha256(members[0].uid.encode()).hexdigest()[:6]}"
        seen[name] += 1
        unique.append((name if seen[name] == 1 else f"{name}-{seen[name]}", members))
    return unique


def _stack(members: Sequence[Header], name: str) -> Stack | None:
    """Check single slices; None for mosaics and multi-frame files, which dcm2niix takes apart."""
    if not members[0].is_slice:
        return None
    return stack_slices(members, _common([header.path for header in members]), name)


def _read(conversion: Conversion, source: Path, name: str) -> Volume:
    try:
        volume = read_volume(conversion.paths[0])
    except ScanError as error:
        raise ScanError(source, error.step, f"series {name}: {error.reason}", error.cure) from None
    if volume.voxels.ndim == 3:
        return volume
    seconds = conversion.repetition_time_s or volume.repetition_time_s
    return replace(volume, repetition_time_s=seconds)


def _unusable(source: Path, name: str, reason: str) -> ScanError:
    cure = "Export it again, or convert it by hand and give the NIfTI file."
    return ScanError(source, "convert", f"series {name}: {reason}", cure)


def _common(files: Sequence[Path]) -> Path:
    """Return the file, or the folder that the files share: what the user knows."""
    if len(files) == 1:
        return files[0]
    return Path(os.path.commonpath([file.parent for file in files]))
