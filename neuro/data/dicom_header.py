"""What the header of one DICOM file says about the image, and nothing about the patient.

Values are taken from the raw bytes: pydicom's own conversion warns, logs and raises with the value
in the text, and a value may be a name.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from pydicom.config import IGNORE
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag
from pydicom.uid import UID, MediaStorageDirectoryStorage

from neuro.errors import ScanError

TAGS = {
    "stored_class": BaseTag(0x00020002),  # the same as sop_class, and all that a DICOMDIR has
    "image_type": BaseTag(0x00080008),
    "sop_class": BaseTag(0x00080016),
    "sop_instance": BaseTag(0x00080018),
    "modality": BaseTag(0x00080060),
    "patient_id": BaseTag(0x00100020),
    "birth_date": BaseTag(0x00100030),
    "identity_removed": BaseTag(0x00120062),
    "echo_time": BaseTag(0x00180081),
    "echo_number": BaseTag(0x00180086),
    "gantry_tilt": BaseTag(0x00181120),
    "series_uid": BaseTag(0x0020000E),
    "series_number": BaseTag(0x00200011),
    "instance_number": BaseTag(0x00200013),
    "position": BaseTag(0x00200032),
    "orientation": BaseTag(0x00200037),
    "samples": BaseTag(0x00280002),
    "frames": BaseTag(0x00280008),
    "rows": BaseTag(0x00280010),
    "columns": BaseTag(0x00280011),
    "pixel_spacing": BaseTag(0x00280030),
    "ge_component": BaseTag(0x0043102F),
}
LAST_TAG = max(TAGS.values())
logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what it logs quotes values
CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture and its multi-frame kinds
# Objects with rows and columns that are still no scan: segmentations, doses, presentation states.
NOT_SCANS = {"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "RTIMAGE", "REG", "SR", "PR", "KO", "DOC"}
COMPONENTS = {
    **dict.fromkeys(("P", "PHASE", "PHASE MAP"), "ph"),
    **dict.fromkeys(("R", "REAL"), "real"),
    **dict.fromkeys(("I", "IMAGINARY"), "imag"),
    **dict.fromkeys(("W", "WATER"), "water"),
    **dict.fromkeys(("F", "FAT"), "fat"),
    **dict.fromkeys(("IP", "IN"), "in"),
    **dict.fromkeys(("OP", "OUT", "OPP"), "opp"),
    "LOCALIZER": "loc",
}
GE_COMPONENTS = {1: "ph", 2: "real", 3: "imag"}  # GE says it in a private number only
PLACEHOLDER = re.compile(
    rb"|[0X*?.-]+|NONE|NULL|N/?A|UNKNOWN|ANON.*|DE-?IDENTIFIED.*|REMOVED|PATIENT( ?ID)?|TEST"
)


@dataclass(frozen=True, kw_only=True)
class Header:
    """One DICOM file.

    Attributes:
        path: The file.
        kind: ``image``; ``capture`` for a screen save; ``colour``; ``none`` for what is no scan.
        instance: SOPInstanceUID, the same in copies of a file.
        uid: SeriesInstanceUID.
        number: SeriesNumber; 0 where it is absent or no sensible number.
        index: InstanceNumber; 0 likewise.
        modality: ``MR``, ``CT``, ...; empty where it is absent or no code.
        patient: Links studies of one patient; see :class:`neuro.data.dicom.DicomSeries`.
        derived: Whether the image was made of other images.
        component: ``ph``, ``real``, ``water``, ... ; empty for a magnitude image.
        echo: Echo time in ms and echo number.
        shape: Frames, rows, columns; 0 frames where the header does not count them.
        is_mosaic: Whether the slices of a volume are tiled into one image.
        spacing_mm: Between rows and between columns; empty where it is absent.
        position_mm: Of the first pixel, in the patient's left, posterior, superior; may be empty.
        orientation: Directions of a row and of a column, six numbers; may be empty.
        tilt_degrees: Gantry tilt; None where it is absent.
    """

    path: Path
    kind: str
    instance: str
    uid: str
    number: int
    index: int
    modality: str
    patient: str = field(repr=False)
    derived: bool
    component: str
    echo: tuple[float, float]
    shape: tuple[int, int, int]
    is_mosaic: bool
    spacing_mm: tuple[float, ...]
    position_mm: tuple[float, ...]
    orientation: tuple[float, ...]
    tilt_degrees: float | None

    @property
    def is_slice(self) -> bool:
        """Whether the file is one slice, whose place its header tells.

        Enhanced files count their frames, even a single one, and place each frame elsewhere.
        """
        num_frames = self.shape[0]
        return not self.is_mosaic and num_frames <= 1 and (num_frames == 0 or self.has_place)

    @property
    def has_place(self) -> bool:
        """Whether the header itself says where the image lies."""
        return bool(self.position_mm and self.orientation)

    @property
    def traits(self) -> tuple[object, ...]:
        """What is the same in all files of a volume, apart from the orientation."""
        spacing_mm = tuple(round(length, 3) for length in self.spacing_mm)
        kind = (self.modality, self.derived, self.component, self.is_mosaic)
        return (self.uid, self.number, *kind, self.echo, self.shape, spacing_mm)


def is_dicom(path: Path) -> bool:
    """Tell DICOM by its content: the mark at byte 128, or a bare data set that names its kind."""
    try:
        with path.open("rb") as file:
            return _starts_as_dicom(file)
    except OSError:
        return False


def read_header(path: Path) -> Header | None:
    """Read a header; None where the file is not DICOM. It takes about a millisecond.

    Raises:
        ScanError: It is DICOM and cannot be read.
    """
    try:
        with path.open("rb") as file:
            if not _starts_as_dicom(file):
                return None
            return _header(path, _read(file, LAST_TAG, [*TAGS.values()]))
    except ScanError:
        raise
    except Exception as error:  # a damaged file trips pydicom into raising anything
        if isinstance(error, OSError) and error.errno:
            reason = f"cannot be opened ({error.strerror})."
            raise ScanError(path, "read", reason, "Check the file and its permissions.") from None
        reason = f"the DICOM header is damaged ({type(error).__name__})."
        raise ScanError(path, "read", reason, "Copy or export it again.") from None


def _starts_as_dicom(file: BinaryIO) -> bool:
    start = file.read(132)
    if start[128:] == b"DICM":
        return True
    if start[:2] not in (b"\x02\x00", b"\x08\x00"):  # the first group of a bare data set
        return False
    sop_class = TAGS["sop_class"]
    try:
        return sop_class in _read(file, sop_class, [sop_class])
    except Exception:  # not DICOM, as far as pydicom can tell
        return False


def _read(file: BinaryIO, last: BaseTag, tags: list[BaseTag | int]) -> FileDataset:
    file.seek(0)
    with warnings.catch_warnings():  # they quote values
        warnings.simplefilter("ignore")
        return read_partial(
            file,
            stop_when=lambda tag, vr, length: int.__gt__(tag, last),
            specific_tags=tags,
            force=True,
        )


def _header(path: Path, dataset: FileDataset) -> Header:
    image_type = _texts(dataset, "image_type")
    modality = _text(dataset, "modality")
    echo_time, echo_number = _numbers(dataset, "echo_time"), _numbers(dataset, "echo_number")
    tilt = _numbers(dataset, "gantry_tilt")
    return Header(
        path=path,
        kind=_kind(path, dataset, modality),
        instance=_text(dataset, "sop_instance"),
        uid=_text(dataset, "series_uid"),
        number=_whole(dataset, "series_number"),
        index=_whole(dataset, "instance_number"),
        modality=modality if re.fullmatch("[A-Z]{2,16}", modality) else "",
        patient=_patient(dataset),
        derived=image_type[:1] == ("DERIVED",),
        component=_component(dataset, image_type),
        echo=(round((*echo_time, 0.0)[0], 3), (*echo_number, 0.0)[0]),
        shape=(_whole(dataset, "frames"), _count(dataset, "rows"), _count(dataset, "columns")),
        is_mosaic="MOSAIC" in image_type or "VFRAME" in image_type,  # Siemens; United Imaging
        spacing_mm=_numbers(dataset, "pixel_spacing", 2),
        position_mm=_numbers(dataset, "position", 3),
        orientation=_numbers(dataset, "orientation", 6),
        tilt_degrees=tilt[0] if tilt else None,
    )


def _kind(path: Path, dataset: FileDataset, modality: str) -> str:
    stored = _text(dataset, "sop_class") or _text(dataset.file_meta, "stored_class")
    sop_class = UID(stored, validation_mode=IGNORE)
    if sop_class == CAPTURE or sop_class.startswith(CAPTURE + "."):
        return "capture"
    if modality in NOT_SCANS or sop_class == MediaStorageDirectoryStorage:
        return "none"
    if _count(dataset, "rows") > 1 and _count(dataset, "columns") > 1:
        return "colour" if _count(dataset, "samples") > 1 else "image"
    if "Image Storage" in sop_class.name or not _text(dataset, "series_uid") + sop_class:
        reason = "the DICOM header ends before the size of the image."
        raise ScanError(path, "read", reason, "Copy or export it again.")
    return "none"


def _component(dataset: Dataset, image_type: tuple[str, ...]) -> str:
    for value in image_type[2:5]:
        for word in (value, value.split("_")[0]):  # Philips writes P_FFE, Dixon IN_PHASE
            if word in COMPONENTS:
                return COMPONENTS[word]
    return GE_COMPONENTS.get(_count(dataset, "ge_component"), "")


def _patient(dataset: Dataset) -> str:
    """Return the same opaque text for the same patient, in every process."""
    patient_id = _bytes(dataset, "patient_id").strip(b" \0").upper()
    if _text(dataset, "identity_removed") == "YES" or PLACEHOLDER.fullmatch(patient_id):
        return ""
    whom = patient_id + b"\0" + _bytes(dataset, "birth_date").strip(b" \0")
    return hashlib.blake2b(whom, digest_size=16, key=b"neuro.data.dicom").hexdigest()


def _bytes(dataset: Dataset, name: str) -> bytes:
    value = dataset.get_item(TAGS[name]).value if TAGS[name] in dataset else None
    return value if isinstance(value, bytes) else b""


def _texts(dataset: Dataset, name: str) -> tuple[str, ...]:
    text = _bytes(dataset, name).decode("latin-1")
    return tuple(part.strip(" \0") for part in text.split("\\"))


def _text(dataset: Dataset, name: str) -> str:
    return _texts(dataset, name)[0]


def _numbers(dataset: Dataset, name: str, count: int = 1) -> tuple[float, ...]:
    """Return that many numbers of a sane size, or none."""
    try:
        numbers = tuple(float(text) for text in _texts(dataset, name)[:count])
    except ValueError:
        return ()
    return numbers if len(numbers) == count and all(abs(x) < 1e9 for x in numbers) else ()


def _whole(dataset: Dataset, name: str) -> int:
    """Return a number that is written as text; 0 where it is absent or no sensible one."""
    number = (*_numbers(dataset, name), 0.0)[0]
    return int(number) if 0 <= number < 2**31 else 0


def _count(dataset: Dataset, name: str) -> int:
    """Return an unsigned 16-bit number; 0 where it is absent."""
    if TAGS[name] not in dataset:
        return 0
    order = "little" if getattr(dataset.get_item(TAGS[name]), "is_little_endian", True) else "big"
    return int.from_bytes(_bytes(dataset, name)[:2], order)
