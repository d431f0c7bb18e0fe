"""A BIDS folder as a list of scans and a table of participants.

Only what this project reads: T1-weighted images, resting-state runs and maps of fractional
anisotropy. A side-car is inherited as BIDS says: a JSON file nearer to the scan wins over one
further up.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from neuro.data.manifest import Series
from neuro.errors import InputError

ENTITY = re.compile(r"([a-zA-Z0-9]+)-([a-zA-Z0-9+]+)")
SUFFIX = re.compile(r"_(?P<suffix>[a-zA-Z0-9]+)\.nii(\.gz)?$")
MISSING = ("n/a", "")
NOT_RAW = ("derivatives", "sourcedata")


@dataclass(frozen=True)
class BidsFolder:
    """A BIDS data set on disk.

    Args:
        root: The folder with ``dataset_description.json`` or ``participants.tsv`` in it.

    Raises:
        InputError: The folder is absent or holds no ``sub-*`` folder.
    """

    root: Path

    def __post_init__(self) -> None:
        if not self.root.is_dir():
            raise InputError(
                f"data.root={self.root} is not a folder. "
                f"Give the folder that holds sub-01, sub-02, ..."
            )
        if not any(self.root.glob("sub-*/")):
            raise InputError(
                f"data.root={self.root} holds no sub-* folder, so it is not a BIDS data set. "
                f"Check the path."
            )

    @cached_property
    def scans(self) -> tuple[Series, ...]:
        """Every scan that a modality of this project stands for, sorted by path."""
        found = []
        seen: set[Path] = set()  # a link that leads back up would be walked for ever
        for folder, subfolders, names in os.walk(self.root, followlinks=True):
            subfolders[:] = [name for name in subfolders if name not in NOT_RAW]
            if Path(folder).resolve() in seen:
                subfolders.clear()
                continue
            seen.add(Path(folder).resolve())
            for name in names:
                modality = modality_of(Path(folder) / name)
                if modality is not None:
                    found.append(self._series(Path(folder) / name, modality))
        return tuple(sorted(found, key=lambda series: series.path))

    @cached_property
    def participants(self) -> dict[str, dict[str, str]]:
        """The rows of ``participants.tsv`` by subject, without ``sub-``; values are strings.

        Raises:
            InputError: The file is absent, has no ``participant_id``, or names a subject twice.
        """
        path = self.root / "participants.tsv"
        if not path.is_file():
            raise InputError(
                f"{path} is missing; data.questions are answered from it. "
                f"Add it, or use data=conversations."
            )
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            if "participant_id" not in (reader.fieldnames or []):
                raise InputError(
                    f"{path} has no column participant_id; "
                    f"got {', '.join(reader.fieldnames or ['nothing'])}."
                )
            rows: dict[str, dict[str, str]] = {}
            for row in _decoded(reader, path):
                subject = row["participant_id"].removeprefix("sub-")
                if subject in rows:
                    raise InputError(
                        f"{path} lists participant {subject!r} twice. Merge or remove one row."
                    )
                rows[subject] = {
                    name: (value or "").strip() for name, value in row.items() if name is not None
                }
        return rows

    def columns(self) -> tuple[str, ...]:
        """Return the columns of ``participants.tsv``, without the id."""
        return tuple(
            dict.fromkeys(
                name
                for row in self.participants.values()
                for name in row
                if name != "participant_id"
            )
        )

    def _series(self, path: Path, modality: str) -> Series:
        entities = dict(ENTITY.findall(path.name))
        repetition_time_s = None
        if modality == "rsfMRI":
            value = self.sidecar(path).get("RepetitionTime")
            repetition_time_s = repetition_time(value, path) if value is not None else None
        return Series(
            subject=entities["sub"],
            modality=modality,
            path=path.absolute(),
            repetition_time_s=repetition_time_s,
        )

    def sidecar(self, path: Path) -> dict[str, Any]:
        """Return a scan's JSON fields, inherited from the data set down to its own folder.

        Raises:
            InputError: A side-car is not JSON.
        """
        suffix = _suffix(path.name)
        entities = set(ENTITY.findall(path.name))
        fields: dict[str, Any] = {}
        folders = [self.root, *(self.root / part for part in _parents(path.relative_to(self.root)))]
        for folder in folders:
            candidates = [
                candidate
                for candidate in folder.glob(f"*{suffix}.json")
                if candidate.stem.split("_")[-1] == suffix
                and set(ENTITY.findall(candidate.name)) <= entities
            ]
            for candidate in sorted(candidates, key=lambda one: len(ENTITY.findall(one.name))):
                fields.update(read_sidecar(candidate))
        return fields


def _decoded(rows: Iterator[dict[str, str]], path: Path) -> Iterator[dict[str, str]]:
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error.reason}). Save it as UTF-8.") from error


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the fields of a JSON side-car.

    Raises:
        InputError: It is no JSON object.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} line {error.lineno}: not JSON ({error.msg}). Mend the side-car."
        ) from error
    if not isinstance(fields, dict):
        raise InputError(f"{path}: a side-car is a JSON object; got a {type(fields).__name__}.")
    return fields


def repetition_time(value: object, path: Path) -> float:
    """Return a side-car's RepetitionTime in seconds.

    Raises:
        InputError: It is not a positive number.
    """
    if not isinstance(value, int | float) or not value > 0:
        raise InputError(
            f"{path}: RepetitionTime in its side-car must be a positive number of seconds; "
            f"got {value!r}. Mend the side-car."
        )
    return float(value)


def modality_of(path: Path) -> str | None:
    """Return the modality that a BIDS file name stands for; None for what this project skips."""
    if not path.name.startswith("sub-") or not path.name.endswith((".nii", ".nii.gz")):
        return None
    entities = dict(ENTITY.findall(path.name))
    suffix = _suffix(path.name)
    if suffix == "T1w":
        return "T1"
    if suffix == "bold" and "rest" in entities.get("task", "").lower():
        return "rsfMRI"
    if suffix == "FA" or (
        suffix == "dwimap" and "FA" in (entities.get("param"), entities.get("desc"))
    ):
        return "dMRI"
    return None


def _suffix(name: str) -> str | None:
    match = SUFFIX.search(name)
    return match["suffix"] if match else None


def _parents(relative: Path) -> list[Path]:
    """Return the folders from the top down to the one that holds the file."""
    return list(reversed(relative.parents))[1:]
