"""What is in the folder of one study, and which recipe each of its series gets."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from neuro.data.dicom import DicomSeries, find_dicom, is_dicom
from neuro.data.manifest import Series
from neuro.data.modes import LEFT_OUT, Modes, unknown_modality
from neuro.data.scan_files import (
    HALVES,
    is_nifti,
    name_collision,
    repetition_time,
    sidecar_beside,
    stem,
    walk,
)
from neuro.errors import ScanError

log = logging.getLogger(__name__)

# Files beside images that nobody would look for images in; all others are opened.
BESIDE = (".json", ".bval", ".bvec", ".tsv", ".csv", ".txt", ".md", ".html", ".xml", ".pdf", ".png")
# Endings of scans that cannot be read, unless the content is DICOM: what to say and to do.
NO_SCAN = {
    (".dcm", ".dicom", ".ima"): ("it is called DICOM and is none.", "Copy or export it again."),
    HALVES: ("it is half of a pair, without a header.", "Put the .hdr beside it."),
    (".mgz", ".mgh", ".mnc", ".nrrd", ".nhdr", ".mha", ".mhd", ".head", ".par"): (
        "images of this format are not read.",
        "Convert it to NIfTI.",
    ),
    (".zip", ".tar", ".tgz", ".tar.gz", ".7z", ".rar"): (
        "archives are not opened.",
        "Unpack it, and take it away.",
    ),
}


def studies_in(folder: Path, modes: Modes, name: str) -> Iterator[StudyFolder]:
    """Yield the study in a folder, or, where that holds several patients, those in its subfolders.

    Args:
        folder: The folder.
        modes: Which recipe a series gets.
        name: What the study is called; one in a subfolder has the subfolder's name behind it.
    """
    whole = StudyFolder(folder, modes, name)
    if whole.num_patients < 2 or not whole.subfolders:
        yield whole
        return
    log.info("%s holds %d patients: each folder in it is a study", folder, whole.num_patients)
    yield StudyFolder(folder, modes, name, deep=False)
    for one in whole.subfolders:
        yield from studies_in(folder / one, modes, f"{name}/{one}")


class StudyFolder:
    """What is in one study's folder.

    Args:
        folder: The folder.
        modes: Which recipe a series gets.
        name: What the study is called.
        deep: Whether what lies in subfolders belongs to the study too.

    Attributes:
        series: The images, sorted by name, their subject not yet known.
        failures: What cannot be used.
        patient: What links it to other studies; empty where nothing does. Never shown.
        num_patients: How many patients its DICOM files name; those of several are failures.
        subfolders: The names of the folders in it.
        num_left_out: Series that the mapping leaves out.
        passed_over: How many files there are that hold no image, by ending.
    """

    def __init__(self, folder: Path, modes: Modes, name: str, *, deep: bool = True) -> None:
        self.folder = folder
        self.modes = modes
        self.name = name
        self.failures: list[ScanError] = []
        self.patient = ""
        self.num_patients = 0
        self.subfolders: tuple[str, ...] = ()
        self.num_left_out = 0
        self.passed_over = Counter[str]()
        nifti, others = self._files(deep)
        self.series = self._alone([*self._from_nifti(nifti), *self._from_dicom(others)])

    def _files(self, deep: bool) -> tuple[list[Path], list[Path]]:
        """Return headers or whole files of NIfTI, and all that may be DICOM."""
        nifti, others = [], []
        for folder, subfolders, names in walk(self.folder, self.failures):
            if folder == self.folder:
                self.subfolders = tuple(subfolders)
            if not deep:
                subfolders.clear()
            headers = {stem(name) for name in names if name.lower().endswith((".hdr", ".hdr.gz"))}
            halves: set[str] = set()
            for name in names:
                if is_nifti(name):
                    nifti.append(folder / name)
                elif name.lower().endswith(HALVES) and stem(name) in headers:
                    if stem(name) in halves:  # packed and not: which belongs to the header?
                        nifti.append(folder / name)
                    halves.add(stem(name))
                elif not name.lower().endswith(BESIDE):
                    others.append(folder / name)
        return nifti, others

    def _from_nifti(self, paths: Sequence[Path]) -> Iterator[Series]:
        for path in paths:
            name = stem(self._below(path))
            try:
                fields = sidecar_beside(path)
                modality = self._modality(path, name, str(fields.get("Modality") or ""))
                seconds = repetition_time(fields, path) if modality == "rsfMRI" else None
            except ScanError as error:
                self.failures.append(error)
                continue
            if modality is not None:
                yield Series(
                    subject="", modality=modality, path=path, name=name, repetition_time_s=seconds
                )

    def _from_dicom(self, paths: Sequence[Path]) -> list[Series]:
        found, failures = find_dicom(paths)
        self.failures += failures
        self._account({*paths}.difference(*(one.files for one in found)), failures)
        folders = [Path(os.path.commonpath([path.parent for path in one.files])) for one in found]
        alike = Counter((folder, one.uid) for folder, one in zip(folders, found, strict=True))
        series: list[Series] = []
        patients = set()
        for folder, one in zip(folders, found, strict=True):
            name = self._below(folder / one.name)
            modality = self._modality(folder, name, one.modality)
            if modality is None:
                continue
            # Volumes of one series, a localizer's for example, may share a folder.
            first, *others = one.files
            path = folder if others and alike[folder, one.uid] == 1 else first
            series.append(_series(one, path, name, modality))
            patients.add(one.patient)
        patients.discard("")
        self.num_patients = len(patients)
        if len(patients) > 1:
            for one in series:
                reason = f"series {one.name!r}: the DICOM files beside it are of another patient."
                self._fail(one.path, reason, "A study is one person's: give each a folder.")
            return []
        self.patient = patients.pop() if patients else ""
        return series

    def _account(self, paths: set[Path], failures: Sequence[ScanError]) -> None:
        """Say what became of files that are in no series; DICOM has been judged already."""
        named = {one.path for one in failures}
        for path in sorted(paths):
            if path in named or is_dicom(path):
                continue
            lower = path.name.lower()
            endings = next((one for one in NO_SCAN if lower.endswith(one)), None)
            if endings is None:
                usual = re.fullmatch(r"\.[a-z][a-z0-9]{0,7}", path.suffix.lower())
                self.passed_over[usual.group() if usual else "without a usual ending"] += 1
            elif self.modes.mapped(self.name, self._below(path)) == LEFT_OUT:
                self.num_left_out += 1
            else:
                self._fail(path, *NO_SCAN[endings])

    def _alone(self, found: Sequence[Series]) -> tuple[Series, ...]:
        """Return the series whose name no other has, sorted; the others are failures."""
        by_name: dict[str, list[Series]] = defaultdict(list)
        for one in found:
            by_name[one.name].append(one)
        for alike in by_name.values():
            if len(alike) > 1:
                paths = [one.path for one in alike]
                self.failures += [name_collision(path, paths) for path in paths]
        return tuple(alike[0] for _, alike in sorted(by_name.items()) if len(alike) == 1)

    def _modality(self, path: Path, name: str, said: str) -> str | None:
        """Return the modality; None where the series is left out or, named, fails."""
        modality = self.modes.of(self.name, name, said)
        if modality is None:
            self.failures.append(unknown_modality(path, self.name, name, said))
        self.num_left_out += modality == LEFT_OUT
        return None if modality == LEFT_OUT else modality

    def _below(self, path: Path) -> str:
        return str(path.relative_to(self.folder))

    def _fail(self, path: Path, reason: str, cure: str) -> None:
        self.failures.append(ScanError(path, "find", reason, cure))


def _series(found: DicomSeries, path: Path, name: str, modality: str) -> Series:
    return Series(
        subject="", modality=modality, path=path, name=name, uid=found.uid, files=found.files
    )
