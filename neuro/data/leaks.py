"""What must not happen: the same subject, file, series or voxels in two splits."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from neuro.data.lock import locked
from neuro.data.manifest import SPLITS, Manifest, codes_of, unique_codes
from neuro.data.whole_file import make_folder, whole
from neuro.errors import InputError

Pair = tuple[str, str, str, str, str, str, str]
HEADER = ("shared", "study", "series", "split", "other_study", "other_series", "other_split")


class LeakError(InputError):
    """Something is in more than one split.

    Attributes:
        pairs: ``HEADER``: what is shared, and the two places.
    """

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs
        kinds = list(dict.fromkeys(pair[0] for pair in pairs))
        counts = ", ".join(f"{kind}: {sum(one[0] == kind for one in pairs)}" for kind in kinds)
        shared, study, series, split, other, other_series, other_split = pairs[0]
        super().__init__(
            f"the same data are in more than one split, which makes test figures worthless "
            f"({counts}): for example the {shared} of study {study!r}, series {series!r} "
            f"({split}) is also that of study {other!r}, series {other_series!r} "
            f"({other_split}). Give all of it the same split."
        )

    def __reduce__(self) -> tuple:
        return type(self), (self.pairs,)

    def write(self, path: Path) -> None:
        """Write the pairs as a table.

        Raises:
            NotWritable: The disk is full or not writable; what was there is as it was.
        """
        make_folder(path.parent)
        with (
            locked(path.parent, path.name),
            whole(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file, delimiter="\t", lineterminator="\n").writerows([HEADER, *self.pairs])


def check_splits(manifest: Manifest) -> None:
    """Check that each study has a split, and that no subject, file or series is in two.

    Raises:
        InputError: A study has no split.
        LeakError: Something is in two.
    """
    splits = codes_of(manifest.studies["split"], SPLITS)
    if (splits < 0).any():
        row = int(np.flatnonzero(splits < 0)[0])
        study = manifest[row]
        raise InputError(
            f"study {study.id!r} has split {study.split!r}; it must be one of "
            f"{', '.join(SPLITS)}. Correct it."
        )
    subjects = [name.removeprefix("sub-") for name in manifest.series["subject"].to_pylist()]
    keys = {
        "subject": unique_codes(pa.chunked_array([pa.array(subjects, pa.large_string())])),
        "file": unique_codes(pa.chunked_array([resolved(manifest.series["path"])])),
        "SeriesInstanceUID": _none_if_blank(manifest.series["uid"]),
    }
    _raise_on(manifest, splits, keys)


def check_voxels(manifest: Manifest, codes: Int[np.ndarray, " series"]) -> None:
    """Check that no image is in two splits under two names.

    Args:
        manifest: The studies, with splits.
        codes: A number per series, equal where the prepared voxels are; -1 is not compared.

    Raises:
        LeakError: One is.
    """
    _raise_on(manifest, codes_of(manifest.studies["split"], SPLITS), {"voxels": codes})


def resolved(paths: pa.ChunkedArray) -> pa.Array:
    """Return where files really are; a folder is looked up once, however many files it has."""
    folders: dict[str, str] = {}

    def resolve(path: str) -> str:
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return f"{folders[folder]}/{name}"

    return pa.array([resolve(path) for path in paths.to_pylist()], pa.large_string())


def _raise_on(
    manifest: Manifest, splits: np.ndarray, keys: dict[str, Int[np.ndarray, " series"]]
) -> None:
    owners = manifest.owners
    pairs = [
        _pair(kind, manifest, rows, owners)
        for kind, codes in keys.items()
        for rows in _shared(codes, splits[owners])
    ]
    if pairs:
        raise LeakError(pairs)


def _shared(
    codes: Int[np.ndarray, " series"], splits: Int[np.ndarray, " series"]
) -> Iterable[tuple[int, int]]:
    """Yield two rows for each code that is in two splits; a third split gives another pair."""
    known = np.flatnonzero(codes >= 0)
    both, first = np.unique(codes[known] * len(SPLITS) + splits[known], return_index=True)
    own = both // len(SPLITS)
    for place in np.flatnonzero(own[1:] == own[:-1]):
        yield int(known[first[place]]), int(known[first[place + 1]])


def _pair(kind: str, manifest: Manifest, rows: tuple[int, int], owners: np.ndarray) -> Pair:
    ends = []
    for row in rows:
        study = int(owners[row])
        series = manifest.row(row)
        ends += [
            manifest.studies["id"][study].as_py(),
            series.name or series.path.name,
            manifest.studies["split"][study].as_py(),
        ]
    return (kind, *ends)  # pyright: ignore[reportReturnType]


def _none_if_blank(column: pa.ChunkedArray) -> Int[np.ndarray, " series"]:
    codes = unique_codes(column)
    codes[codes_of(column, ("",)) == 0] = -1
    return codes
