"""The table of studies and series, kept in columns.

A study is the unit of supervision; a series is one image of it. In a conversation, the series are
its images in textual order, so one scan may serve many studies. Ids are strings. Columns are Arrow
and numpy arrays: a million series take a few hundred megabytes, and the processes that read share
them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int

from neuro.data.conversation import Conversation
from neuro.data.labels import Labels
from neuro.data.ledger import NoUsableScan
from neuro.errors import InputError, ScanError

SPLITS = ("train", "val", "test")
SERIES_COLUMNS = pa.schema(
    [
        ("subject", pa.large_string()),
        ("modality", pa.large_string()),
        ("path", pa.large_string()),
        ("name", pa.large_string()),
        ("repetition_time_s", pa.float64()),
        ("uid", pa.large_string()),
        ("files", pa.large_list(pa.large_string())),
        ("start", pa.int64()),
    ]
)
STUDY_COLUMNS = pa.schema(
    [("id", pa.large_string()), ("split", pa.large_string()), ("cohort", pa.large_string())]
)


@dataclass(frozen=True, kw_only=True)
class Series:
    """One scan.

    Attributes:
        subject: Whose head it is.
        modality: The name of its recipe: ``mri``, ``ct``, ``T1``, ``rsfMRI`` or ``dMRI``.
        path: The file, or the folder of its DICOM files or of its frames.
        name: What it is called in its study, for tables.
        repetition_time_s: What a side-car says; None leaves it to the header.
        uid: SeriesInstanceUID, only compared, never shown; empty where there is none.
        files: The DICOM files; empty for NIfTI and frames.
        start: First frame, where the study shows one window of a run; None shows all of a volume,
            or a window that is drawn.
    """

    subject: str
    modality: str
    path: Path
    name: str = ""
    repetition_time_s: float | None = None
    uid: str = ""
    files: tuple[Path, ...] = ()
    start: int | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is learned from as one.

    Attributes:
        id: Unique in a manifest.
        series: The images; in a conversation, in the order in which the text refers to them.
        conversation: What is asked and answered; None where there is no text.
        split: ``train``, ``val`` or ``test``; empty until it is assigned.
        cohort: Where it comes from, for mixing; may be empty.
        num_failed: How many further series it has that cannot be used.
        labels: One number per finding; NaN is unknown. Empty where there are no labels.
    """

    id: str
    series: tuple[Series, ...]
    conversation: Conversation | None = None
    split: str = ""
    cohort: str = ""
    num_failed: int = 0
    labels: tuple[float, ...] = ()

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects, each once, in the order in which it is last shown."""
        shown = dict.fromkeys(series.subject for series in reversed(self.series))
        return tuple(reversed(shown))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modality of each image."""
        return tuple(series.modality for series in self.series)


@dataclass(frozen=True, kw_only=True, eq=False)
class Manifest(Sequence[Study]):
    """All studies of a cohort.

    Attributes:
        studies: ``STUDY_COLUMNS``, a row per study.
        series: ``SERIES_COLUMNS``, a row per image; those of a study follow one another.
        bounds: Study ``i`` owns rows ``bounds[i]`` to ``bounds[i + 1]`` of ``series``.
        conversations: One per study, or None.
        labels: A row per study, or None.
        num_failed: How many further series each study has that cannot be used; None is none.
        failures: What was found and cannot be used.
        num_left_out: How many studies are left out because of that.
        cures: What to do where a split, by its name, has no study.

    Raises:
        InputError: No study, a repeated id, or a study without a series.
        NoUsableScan: There are failures, and nothing else.
    """

    studies: pa.Table
    series: pa.Table
    bounds: Int[np.ndarray, " bounds"]
    conversations: Sequence[Conversation] | None = None
    labels: Labels | None = None
    num_failed: Int[np.ndarray, " studies"] | None = None
    failures: tuple[ScanError, ...] = ()
    num_left_out: int = 0
    cures: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self) and self.failures:
            raise NoUsableScan(self.failures)
        if not len(self):
            raise InputError(
                "the cohort has no study. Check data.root, and what leaves studies out: "
                "data.questions, data.label, data.modalities or data.mode_mapping."
            )
        first = _first_repeated(self.studies["id"])
        if first is not None:
            raise InputError(
                f"study id {first!r} occurs twice; ids must be unique. Rename one of them."
            )
        empty = np.flatnonzero(np.diff(self.bounds) == 0)
        if len(empty):
            raise InputError(
                f"study {self.studies['id'][int(empty[0])].as_py()!r} has no series. "
                f"Give it one, or take it out."
            )

    @classmethod
    def of(
        cls,
        studies: Iterable[Study],
        failures: Sequence[ScanError] = (),
        num_left_out: int = 0,
    ) -> Manifest:
        """Return the manifest of some studies."""
        studies = tuple(studies)
        rows = [series for study in studies for series in study.series]
        counts = [len(study.series) for study in studies]
        talks = [study.conversation for study in studies if study.conversation is not None]
        if talks and len(talks) < len(studies):
            raise InputError(
                f"{len(talks)} of {len(studies)} studies have a conversation; all or none must."
            )
        return cls(
            studies=pa.table(
                {name: [getattr(one, name) for one in studies] for name in STUDY_COLUMNS.names},
                schema=STUDY_COLUMNS,
            ),
            series=pa.table(
                {
                    name: [_plain(getattr(one, name)) for one in rows]
                    for name in SERIES_COLUMNS.names
                },
                schema=SERIES_COLUMNS,
            ),
            bounds=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
            conversations=talks or None,
            num_failed=np.array([one.num_failed for one in studies], dtype=np.int64),
            failures=tuple(failures),
            num_left_out=num_left_out,
        )

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def __getitem__(self, index: Any) -> Any:
        """Return a study; a slice gives the manifest of its studies."""
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = range(len(self))[index]
        return Study(
            id=self.studies["id"][row].as_py(),
            series=tuple(map(self.row, range(*self.bounds[row : row + 2].tolist()))),
            conversation=self.conversations[row] if self.conversations is not None else None,
            split=self.studies["split"][row].as_py(),
            cohort=self.studies["cohort"][row].as_py(),
            num_failed=int(self.num_failed[row]) if self.num_failed is not None else 0,
            labels=tuple(self.labels.values[row].tolist()) if self.labels is not None else (),
        )

    def __iter__(self) -> Iterator[Study]:
        return (self[index] for index in range(len(self)))

    def row(self, row: int) -> Series:
        """Return a row of ``series``."""
        values = {name: self.series[name][row].as_py() for name in SERIES_COLUMNS.names}
        values["path"] = Path(values["path"])
        values["files"] = tuple(map(Path, values["files"] or ()))
        return Series(**values)

    @property
    def owners(self) -> Int[np.ndarray, " series"]:
        """The study of each row of ``series``."""
        return np.repeat(np.arange(len(self)), np.diff(self.bounds))

    @property
    def failed(self) -> Int[np.ndarray, " studies"]:
        """How many further series each study has that cannot be used."""
        return np.zeros(len(self), np.int64) if self.num_failed is None else self.num_failed

    @property
    def ids(self) -> list[str]:
        """The ids of the studies."""
        return self.studies["id"].to_pylist()

    @property
    def first_subjects(self) -> pa.ChunkedArray:
        """The subject of each study's first image."""
        return self.series["subject"].take(pa.array(self.bounds[:-1]))

    def split(self, name: str) -> Manifest | None:
        """Return the studies of one split, in the order of the manifest; None if it is empty."""
        rows = np.flatnonzero(codes_of(self.studies["split"], (name,)) == 0)
        return self.take(rows) if len(rows) else None

    def take(
        self,
        rows: Int[np.ndarray, " rows"] | Sequence[int],
        ids: Sequence[str] | None = None,
    ) -> Manifest:
        """Return some studies, in the order given.

        Args:
            rows: Which; one that is there several times needs ``ids``.
            ids: New ids.
        """
        rows = np.asarray(rows, dtype=np.int64)
        counts = np.diff(self.bounds)[rows]
        bounds = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        series = np.repeat(self.bounds[:-1][rows] - bounds[:-1], counts) + np.arange(bounds[-1])
        studies = self.studies.take(pa.array(rows)).combine_chunks()
        if ids is not None:
            studies = studies.set_column(0, "id", pa.array(ids, pa.large_string()))
        return replace(
            self,
            studies=studies,
            series=self.series.take(pa.array(series)).combine_chunks(),
            bounds=bounds,
            conversations=(
                [self.conversations[row] for row in rows]
                if self.conversations is not None
                else None
            ),
            labels=self.labels.take(rows) if self.labels is not None else None,
            num_failed=self.failed[rows],
            failures=(),
            num_left_out=0,
        )

    def narrowed(self, rows: Int[np.ndarray, " rows"] | Sequence[int]) -> Manifest:
        """Return some studies, and still what was found and cannot be used."""
        kept = self.take(rows)
        return replace(kept, failures=self.failures, num_left_out=self.num_left_out)

    def with_series(self, kept: Bool[np.ndarray, " series"]) -> Manifest | None:
        """Return the studies with some of their series, without those of which nothing is kept.

        Args:
            kept: Which rows of ``series``.

        Returns:
            None if no study has a series left.
        """
        counts = np.add.reduceat(kept, self.bounds[:-1], dtype=np.int64)
        some = np.flatnonzero(counts)
        if not len(some):
            return None
        left = self.take(some)
        lost = (np.diff(self.bounds) - counts)[some]
        return replace(
            left,
            num_failed=left.failed + lost,
            series=self.series.filter(pa.array(kept)).combine_chunks(),
            bounds=np.concatenate([[0], np.cumsum(counts[some])]).astype(np.int64),
        )

    def with_study_column(self, name: str, values: Sequence[str] | pa.Array) -> Manifest:
        """Return the manifest with another column of ``studies``."""
        place = STUDY_COLUMNS.names.index(name)
        column = pa.array(values, type=pa.large_string())
        return replace(self, studies=self.studies.set_column(place, name, column))

    @cached_property
    def _scans(self) -> tuple[Int[np.ndarray, " series"], tuple[Series, ...]]:
        names = ("subject", "modality", "path", "uid", "name", "repetition_time_s")
        codes = unique_codes(self.series[names[0]])
        for name in names[1:]:
            following = unique_codes(self.series[name]) + 1
            codes = codes * (following.max() + 1) + following
            _, codes = np.unique(codes, return_inverse=True)
        _, first, codes = np.unique(codes, return_index=True, return_inverse=True)
        place = np.empty(len(first), np.int64)
        place[np.argsort(first)] = np.arange(len(first))  # in order of first appearance
        scans = tuple(replace(self.row(int(row)), start=None) for row in np.sort(first))
        return place[codes], scans

    def scans(self) -> tuple[Series, ...]:
        """Return every scan once; windows of one run are the same scan."""
        return self._scans[1]

    @property
    def scan_of_row(self) -> Int[np.ndarray, " series"]:
        """For each row of ``series``, its place in ``scans()``."""
        return self._scans[0]


def unique_codes(column: pa.ChunkedArray) -> Int[np.ndarray, " rows"]:
    """Return a number for each value, equal where the values are; -1 where there is none."""
    encoded = column.combine_chunks().dictionary_encode()
    indices = (
        encoded.indices if isinstance(encoded, pa.DictionaryArray) else encoded.chunk(0).indices
    )
    return cast(np.ndarray, indices.fill_null(-1).to_numpy(zero_copy_only=False)).astype(np.int64)


def codes_of(column: pa.ChunkedArray, names: Sequence[str]) -> Int[np.ndarray, " rows"]:
    """Return the place of each value among ``names``; -1 for another value."""
    places = pc.call_function(
        "index_in", [column], pc.SetLookupOptions(pa.array(names, type=column.type))
    )
    return places.fill_null(-1).to_numpy().astype(np.int64)


def _first_repeated(column: pa.ChunkedArray) -> str | None:
    codes = unique_codes(column)
    if len(codes) == 0 or int(codes.max()) + 1 == len(codes):
        return None
    _, first = np.unique(codes, return_index=True)
    return column[int(np.setdiff1d(np.arange(len(codes)), first)[0])].as_py()


def _plain(value: object) -> object:
    """Return what Arrow can hold."""
    if isinstance(value, Path):
        return str(value)
    return [str(one) for one in value] if isinstance(value, tuple) else value


def inside(root: Path, path: str, where: str) -> Path:
    """Join a path from a table to its root.

    Raises:
        InputError: The path leaves the root, or cannot be one.
    """
    if "\0" in path:
        raise InputError(f"{where}: path {path!r} holds the sign NUL, which no path has. Mend it.")
    top = Path(os.path.abspath(root))
    joined = Path(os.path.normpath(top / path))
    if not joined.is_relative_to(top):
        raise InputError(
            f"{where}: path {path!r} leaves the data root {root}. Paths must lie below data.root."
        )
    return joined
