"""The DICOM series that the rows of a table name by their folder or file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from neuro.console import meter
from neuro.data.columns import patched
from neuro.data.dicom import DicomSeries, find_dicom, is_dicom
from neuro.data.frames import is_run_of_frames
from neuro.data.manifest import SERIES_COLUMNS
from neuro.data.scan_files import HALVES, walk
from neuro.errors import ScanError

pc: Any = pyarrow.compute  # makes its functions at import, where no type checker sees them

NIFTI = r"(?i)\.(nii|hdr)(\.gz)?$"


@dataclass(frozen=True)
class DicomRows:
    """What the rows that are not NIfTI stand for.

    Attributes:
        found: The series of a row.
        failures: Why a row has none.
        others: What else in the folders cannot be used.
    """

    found: dict[int, DicomSeries] = field(default_factory=dict)
    failures: dict[int, ScanError] = field(default_factory=dict)
    others: list[ScanError] = field(default_factory=list)

    def owners(self, studies: pa.Array) -> pa.Array:
        """Return as subject of a row its study, or the first study of the same patient."""
        first: dict[str, str] = {}  # kept in memory only
        rows = [(row, one.patient) for row, one in sorted(self.found.items()) if one.patient]
        return patched(
            studies, {row: first.setdefault(whom, studies[row].as_py()) for row, whom in rows}
        )

    def paths(self, paths: pa.Array) -> pa.Array:
        """Return the paths, of series that are in one folder each the first file."""
        folders = {row: paths[row].as_py() for row in self.found}
        counts = Counter(folders.values())
        shared = [row for row, folder in folders.items() if counts[folder] > 1]
        return patched(paths, {row: str(self.found[row].files[0]) for row in shared})

    def names(self, paths: pa.Array) -> pa.Array:
        """Return the paths with the name of a series below that of its folder."""
        found = self.found.items()
        return patched(paths, {row: f"{paths[row].as_py()}/{one.name}" for row, one in found})

    def uids(self, uids: pa.Array) -> pa.Array:
        """Return the uids, with those of the series that were found."""
        return patched(uids, {row: one.uid for row, one in self.found.items()})

    def files(self, count: int) -> pa.Array:
        """Return the files of each of so many rows; null for NIfTI."""
        kind = SERIES_COLUMNS.field("files").type
        if not self.found:
            return pa.nulls(count, kind)
        files = {row: [*map(str, one.files)] for row, one in self.found.items()}
        return pa.array([files.get(row) for row in range(count)], kind)


def find_in_rows(paths: pa.Array, names: pa.Array, uids: pa.Array) -> DicomRows:
    """Look into each folder and file that is not NIfTI by its name, nor a run of frames.

    Args:
        paths: Absolute, one per row.
        names: What the table calls the series, or how ``find_dicom`` names it; may be empty.
        uids: SeriesInstanceUID; may be empty.
    """
    rows = DicomRows()
    others = np.flatnonzero(~pc.match_substring_regex(paths, NIFTI).to_numpy(zero_copy_only=False))
    if not len(others):
        return rows
    seen: dict[Path, tuple[list[DicomSeries], list[ScanError]]] = {}
    with meter("rows of DICOM read", len(others)) as advance:
        for row in others.tolist():
            path = Path(paths[row].as_py())
            # The second half of a pair is NIfTI too, and some archives call DICOM so.
            is_half = path.name.lower().endswith(HALVES) and not is_dicom(path)
            if not is_half and (path in seen or not is_run_of_frames(path)):
                if path not in seen:
                    seen[path] = _look_into(path)
                one = _chosen(path, *seen[path], names[row].as_py(), uids[row].as_py())
                if isinstance(one, ScanError):
                    rows.failures[row] = one
                else:
                    rows.found[row] = one
            advance()
    named = {id(one) for one in rows.failures.values()}
    rows.others.extend(one for _, errors in seen.values() for one in errors if id(one) not in named)
    return rows


def _look_into(path: Path) -> tuple[list[DicomSeries], list[ScanError]]:
    failures: list[ScanError] = []
    if path.is_dir():
        files = [folder / name for folder, _, names in walk(path, failures) for name in names]
    else:
        files = [path] if path.is_file() else []
    found, errors = find_dicom(files)
    return found, failures + errors


def _chosen(
    path: Path,
    found: Sequence[DicomSeries],
    errors: Sequence[ScanError],
    name: str,
    uid: str,
) -> DicomSeries | ScanError:
    """Return the one series that is meant."""
    fitting = [one for one in found if uid in ("", one.uid)]
    if len(fitting) > 1:
        fitting = [one for one in fitting if one.name == name] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if not path.exists():
        return ScanError(path, "find", "there is no such file.", "Fetch it, or correct the row.")
    if not found and errors:
        return errors[0]
    if fitting:
        reason = f"{len(fitting)} DICOM series are in it: {', '.join(one.name for one in fitting)}."
        cure = "Write one of these into the column series, or use data=studies."
        return ScanError(path, "find", reason, cure)
    reason = (
        "it holds no DICOM series of this series_uid." if found else "it holds no DICOM series."
    )
    return ScanError(
        path,
        "find",
        reason,
        "A row is a NIfTI file, one series of DICOM files, or a folder of frames.",
    )
