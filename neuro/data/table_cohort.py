"""A table as a source of studies: a row per series, as CSV, TSV, JSON or Parquet."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from jaxtyping import Int

from neuro.data.cohort import finished
from neuro.data.columns import (
    TEXT,
    codes_in,
    first_filled,
    first_row,
    mask_of,
    patched,
    repeated,
    text_column,
    with_column,
)
from neuro.data.dicom import DicomSeries
from neuro.data.ids import Given
from neuro.data.labels import LabelRules
from neuro.data.links import rooted
from neuro.data.manifest import SERIES_COLUMNS, STUDY_COLUMNS, Manifest
from neuro.data.modes import LEFT_OUT, Modes, unknown_modality
from neuro.data.scan_files import modality_beside, repetition_time, root_folder, sidecar_beside
from neuro.data.splits import Splits
from neuro.data.table import is_unknown, read_table
from neuro.data.table_dicom import DicomRows, find_in_rows
from neuro.errors import InputError, ScanError

log = logging.getLogger(__name__)
pc: Any = pyarrow.compute  # makes its functions at import, where no type checker sees them

OPTIONAL = (
    "study", "subject", "modality", "split", "cohort", "series", "series_uid", "repetition_time_s",
)  # fmt: skip


class TableCohort:
    """One row per series.

    Columns: ``path`` (below ``root``: a NIfTI file, a folder or file of DICOM, or a folder of
    frames), and, where they are known,

    * ``study``: by default the subject, else the path;
    * ``subject``: by default the study, shared by those whose DICOM files name the same patient;
    * ``modality``: by default what ``modes``, DICOM or a side-car says;
    * ``series``, a name, and ``series_uid``: one of them tells which series is meant where a
      folder has several;
    * ``split``, ``cohort`` and ``repetition_time_s``.

    Further columns can be labels.

    Args:
        manifest: The table.
        root: What paths are relative to.
        modes: Which recipe a series gets whose row does not say.
        splits: How subjects are divided, unless there is a column ``split``.
        labels: Which columns are labels; read from this table unless a file is named.
        linked_roots: Further folders that links below ``root`` may lead to.
    """

    def __init__(
        self,
        manifest: Path | str,
        root: Path | str,
        modes: Modes,
        splits: Splits,
        labels: LabelRules | None = None,
        linked_roots: Sequence[Given] | Given | None = (),
    ) -> None:
        self.path = Path(manifest)
        self.root = root
        self.modes = modes
        self.splits = splits
        self.labels = labels
        self.linked_roots = linked_roots

    def manifest(self) -> Manifest:
        """Read and check the table.

        Raises:
            InputError: The root is no folder, a column or a value is missing or wrong, or a path
                leaves the root.
        """
        root_folder(self.root, "what the paths of the table name")
        table = read_table(self.path)
        if "path" not in table.column_names:
            raise InputError(
                f"{self.path} has no column path; got {', '.join(table.column_names)}. It needs "
                f"path, and may have {', '.join(OPTIONAL)}."
            )
        paths = self._paths(text_column(table, "path"))
        dicom = find_in_rows(paths, text_column(table, "series"), text_column(table, "series_uid"))
        rows, failures = self._rows(table, paths, dicom)
        self.modes.warn_of_unused(rows["study"][0].as_py())
        manifest = self._manifest(rows, failures, dicom.others)
        return finished(
            rooted(manifest, self._root, self.linked_roots),
            splits=self.splits,
            labels=self.labels,
            table=with_column(table, "study", rows["study"]),
            where=str(self.path),
        )

    def _paths(self, given: pa.Array) -> pa.Array:
        """Return absolute paths without detours."""
        row = first_row(mask_of(pc.equal(given, "")))
        if row is not None:
            raise InputError(
                f"{self.path}: the path of row {row + 1} (not counting the header) is empty. "
                f"Fill it, or take the row out."
            )
        row = first_row(mask_of(pc.match_substring(given, "\0")))
        if row is not None:
            raise InputError(
                f"{self.path}: the path of row {row + 1} (not counting the header), "
                f"{given[row].as_py()!r}, holds the sign NUL, which no path has. Mend it."
            )
        detours = pc.match_substring_regex(given, r"^\./|/\.?/|/$")
        if pc.any(detours).as_py():
            given = pc.replace_substring_regex(given, r"/(\.?/)+", "/")
            given = pc.replace_substring_regex(given, r"^\./|(.)/$", r"\1")
        prefix = pa.scalar(self._prefix, TEXT)
        joined = pc.binary_join_element_wise(prefix, given, pa.scalar("", TEXT))
        paths = pc.if_else(pc.starts_with(given, os.sep), given, joined)
        leaves = pc.or_(
            pc.match_substring_regex(given, r"(^|/)\.\.(/|$)"),
            pc.invert(pc.starts_with(paths, self._prefix)),
        )
        row = first_row(mask_of(leaves))
        if row is not None:
            raise InputError(
                f"{self.path}: path {given[row].as_py()!r} leaves the data root {self._root}. "
                f"Paths must lie below data.root, without '..'."
            )
        return paths

    @property
    def _prefix(self) -> str:
        return self._root.rstrip(os.sep) + os.sep

    @property
    def _root(self) -> str:
        return os.path.abspath(self.root)

    def _rows(
        self, table: pa.Table, paths: pa.Array, dicom: DicomRows
    ) -> tuple[pa.Table, dict[int, ScanError]]:
        """Return all that is known of the rows, and which of them cannot be used."""
        text = partial(text_column, table)
        below = pc.utf8_slice_codeunits(paths, len(self._prefix))
        study = first_filled(text("study"), text("subject"), below)
        rows = pa.table(
            {
                "study": study,
                "subject": first_filled(text("subject"), dicom.owners(study)),
                "path": dicom.paths(paths),
                "name": _names(text("series"), study, below, dicom),
                "uid": dicom.uids(text("series_uid")),
                "files": dicom.files(len(table)),
                "start": pa.nulls(len(table), pa.int64()),
                "split": text("split"),
                "cohort": text("cohort"),
            }
        )
        failures = dict(dicom.failures)
        modality = self._modalities(text("modality"), rows, dicom.found, failures)
        rows = rows.append_column("modality", modality)
        seconds = self._seconds(text("repetition_time_s"), rows, failures)
        return rows.append_column("repetition_time_s", seconds), failures

    def _modalities(
        self,
        given: pa.Array,
        rows: pa.Table,
        found: Mapping[int, DicomSeries],
        failures: dict[int, ScanError],
    ) -> pa.Array:
        """Return what the table says, else what the mapping, the files or the default say."""
        blank = np.flatnonzero(mask_of(pc.equal(given, "")))
        known = (rows[one].take(pa.array(blank)).to_pylist() for one in ("study", "name", "path"))
        missing: dict[int, str] = {}
        for row, study, name, path in zip(blank.tolist(), *known, strict=True):
            mode = self.modes.mapped(study, name)
            if mode is None and row not in failures:
                scan = Path(path)
                try:
                    said = found[row].modality if row in found else modality_beside(scan)
                    mode = self.modes.of(study, name, said)
                    if mode is None:
                        raise unknown_modality(scan, study, name, said)
                except ScanError as error:
                    failures[row] = error
            missing[row] = mode or ""
        return patched(given, missing)

    def _seconds(
        self,
        given: pa.Array,
        rows: pa.Table,
        failures: dict[int, ScanError],
    ) -> pa.Array:
        """Return the repetition times of runs: the table's, else those of side-cars."""
        seconds: dict[int, float | None] = {}
        runs = np.flatnonzero(mask_of(pc.equal(rows["modality"], "rsfMRI")))
        known = (one.take(pa.array(runs)).to_pylist() for one in (given, rows["path"]))
        for row, text, name in zip(runs.tolist(), *known, strict=True):
            path = Path(name)
            try:
                seconds[row] = self._number(text, path) or repetition_time(
                    sidecar_beside(path), path
                )
            except ScanError as error:
                failures[row] = error
        if not seconds:
            return pa.nulls(len(rows), pa.float64())
        return pa.array([seconds.get(row) for row in range(len(rows))], pa.float64())

    def _number(self, text: str, path: Path) -> float | None:
        """Return a number of seconds; None where the table does not know it."""
        if is_unknown(text):
            return None
        with suppress(ValueError):
            if 0 < float(text) < math.inf:
                return float(text)
        raise InputError(
            f"{self.path}: repetition_time_s must be a positive number of seconds; got {text!r} "
            f"for {path}. Correct it."
        )

    def _manifest(
        self, rows: pa.Table, failures: Mapping[int, ScanError], others: Sequence[ScanError]
    ) -> Manifest:
        """Return the rows that can be used, those of a study together."""
        left_out = mask_of(pc.equal(rows["modality"], LEFT_OUT))
        if left_out.any():
            log.info(
                "%d series are left out, as the table or data.mode_mapping says", left_out.sum()
            )
        if left_out.all():
            raise InputError(
                f"{self.path}: the table or data.mode_mapping leaves out all {len(rows)} series. "
                f"Give some of them a modality."
            )
        failures = {row: error for row, error in failures.items() if not left_out[row]}
        kept = ~left_out
        kept[list(failures)] = False
        codes = codes_in(rows["study"])
        num_failed = np.bincount(codes[[*failures]], minlength=int(codes.max()) + 1)
        num_left_out = (num_failed[np.bincount(codes, kept) == 0] > 0).sum()
        order = np.argsort(np.where(kept, codes, -1), kind="stable")[(~kept).sum() :]
        if len(order) < len(rows) or (np.diff(order) != 1).any():
            rows = rows.take(pa.array(order)).combine_chunks()
        codes = codes[order]
        self._check_names(rows, codes)
        for name in ("split", "cohort"):
            self._check_same(rows, codes, name)
        starts = np.flatnonzero(np.diff(codes, prepend=-1))
        studies = rows.select(["study", "split", "cohort"]).take(pa.array(starts))
        return Manifest(
            studies=studies.rename_columns(STUDY_COLUMNS.names).combine_chunks(),
            series=rows.select(SERIES_COLUMNS.names).combine_chunks(),
            bounds=np.append(starts, len(rows)).astype(np.int64),
            num_failed=num_failed[codes[starts]],
            failures=(*failures.values(), *others),
            num_left_out=int(num_left_out),
        )

    def _check_names(self, rows: pa.Table, codes: Int[np.ndarray, " rows"]) -> None:
        row = first_row(repeated(codes, rows["name"]))
        if row is not None:
            study, name, path = (rows[one][row].as_py() for one in ("study", "name", "path"))
            raise InputError(
                f"{self.path}: study {study!r} has two series {name!r}, one of them {path}. "
                f"Take one out, or name them in the column series."
            )

    def _check_same(self, rows: pa.Table, codes: Int[np.ndarray, " rows"], name: str) -> None:
        values = codes_in(rows[name])
        differ = np.flatnonzero((codes[1:] == codes[:-1]) & (values[1:] != values[:-1]))
        if len(differ):
            row = int(differ[0])
            raise InputError(
                f"{self.path}: study {rows['study'][row].as_py()!r} has two values of {name}, "
                f"{rows[name][row].as_py()!r} and {rows[name][row + 1].as_py()!r}. "
                f"Give all rows of a study the same."
            )


def _names(given: pa.Array, studies: pa.Array, paths: pa.Array, dicom: DicomRows) -> pa.Array:
    """Return what series are called: as in the table, else like the file, else like its path."""
    whole = pc.replace_substring_regex(paths, r"(?i)\.(nii|hdr|img)(\.gz)?$", "")
    names = first_filled(given, pc.replace_substring_regex(whole, r"^.*/", ""))
    again = repeated(codes_in(studies), names)
    if again.any():
        names = pc.if_else(pa.array(again), first_filled(given, dicom.names(whole)), names)
    return names
