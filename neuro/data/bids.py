"""A BIDS folder as a list of scans and a table of participants.

What this project reads: anatomical images, resting-state runs and maps of fractional anisotropy;
the rest is counted by kind. A side-car is inherited as BIDS says: a JSON file nearer to the scan
wins over one further up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from neuro.data.manifest import Series
from neuro.data.scan_files import name_collision, read_sidecar, repetition_time, stem, walk
from neuro.data.table import read_table
from neuro.errors import InputError, ScanError

ENDINGS = (".nii.gz", ".nii")
NOT_RAW = ("derivatives", "sourcedata", "code")
# Suffixes of anatomical images other than T1w. Ratios and maps of them stay out.
ANATOMICAL = ("T2w", "FLAIR", "PDw", "PDT2", "T2starw", "inplaneT1", "inplaneT2", "SWI", "UNIT1")


class Found(NamedTuple):
    """What a BIDS folder holds.

    Attributes:
        scans: Every scan that a modality of this project stands for, sorted by path.
        others: How many images there are of each kind that is not read.
        failures: Images that cannot be used, sorted by path.
    """

    scans: tuple[Series, ...]
    others: dict[str, int]
    failures: tuple[ScanError, ...]


class Sidecar(NamedTuple):
    """A JSON file, and what its name says: which scans it describes."""

    path: Path
    suffix: str
    entities: dict[str, str]


@dataclass(frozen=True)
class BidsFolder:
    """A BIDS data set on disk.

    Args:
        root: The folder with ``dataset_description.json`` or ``participants.tsv`` in it.
        task: Runs are those whose task has this in its name; None takes every task.

    Raises:
        InputError: The folder is absent or holds no ``sub-*`` folder.
    """

    root: Path
    task: str | None = "rest"

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

    @property
    def scans(self) -> tuple[Series, ...]:
        """Every scan that a modality of this project stands for, sorted by path."""
        return self.found.scans

    @cached_property
    def found(self) -> Found:
        """What the folder holds; it is walked once."""
        scans, others, failures = [], Counter[str](), list[ScanError]()
        by_name: dict[str, list[tuple[Path, str]]] = defaultdict(list)
        for path in self._images(failures):
            modality = modality_of(path, self.task)
            if modality is None:
                others[_kind(path.name)] += 1
            else:
                by_name[stem(path.name)].append((path, modality))
        for alike in by_name.values():
            if len(alike) > 1:
                failures += [name_collision(path, [one for one, _ in alike]) for path, _ in alike]
                continue
            try:
                scans.append(self._series(*alike[0]))
            except ScanError as error:
                failures.append(error)
        return Found(
            tuple(sorted(scans, key=lambda one: one.path)),
            dict(sorted(others.items())),
            tuple(sorted(failures, key=lambda one: one.path)),
        )

    def _images(self, failures: list[ScanError]) -> Iterator[Path]:
        """Yield the images, and of those that were derived from them the maps of FA."""
        for folder, subfolders, names in walk(self.root, failures):
            inside = folder.relative_to(self.root).parts
            is_derived = inside[:1] == ("derivatives",)
            left_out = () if is_derived else NOT_RAW if inside else NOT_RAW[1:]
            subfolders[:] = [name for name in subfolders if name not in left_out]
            for path in (folder / name for name in names if name.lower().endswith(ENDINGS)):
                if not is_derived or modality_of(path, self.task) == "dMRI":
                    yield path

    @cached_property
    def table(self) -> pa.Table | None:
        """``participants.tsv`` as it stands; None where there is none.

        Raises:
            InputError: It is malformed or has no ``participant_id``.
        """
        path = self.root / "participants.tsv"
        if not path.is_file():
            return None
        table = read_table(path)
        if "participant_id" not in table.column_names:
            raise InputError(
                f"{path} has no column participant_id; got {', '.join(table.column_names)}. "
                f"Name the column of subjects so."
            )
        return table

    @cached_property
    def participants(self) -> dict[str, dict[str, str]]:
        """The rows of ``participants.tsv`` by subject, without ``sub-``; values are text.

        Raises:
            InputError: The file is absent or malformed, or names a subject twice or not at all.
        """
        path = self.root / "participants.tsv"
        if self.table is None:
            raise InputError(
                f"{path} is missing; data.questions are answered from it. "
                f"Add it, or use data=conversations."
            )
        rows: dict[str, dict[str, str]] = {}
        for row in self.table.to_pylist():
            values = {name: (value or "").strip() for name, value in row.items()}
            subject = values["participant_id"].removeprefix("sub-")
            if not subject:
                raise InputError(
                    f"{path} has a row without a participant_id: "
                    f"{', '.join(filter(None, values.values()))}. Fill or remove it."
                )
            if subject in rows:
                raise InputError(
                    f"{path} lists participant {subject!r} twice. Merge or remove one row."
                )
            rows[subject] = values
        return rows

    def columns(self) -> tuple[str, ...]:
        """Return the columns of ``participants.tsv``, without the id."""
        names = self.table.column_names if self.table is not None else []
        return tuple(name for name in names if name != "participant_id")

    def _series(self, path: Path, modality: str) -> Series:
        subject = entities_of(path.name)["sub"]
        folders = path.relative_to(self.root).parts[:-1]
        owner = next((one for one in folders if one.startswith("sub-")), f"sub-{subject}")
        if owner != f"sub-{subject}":  # an underscore in a subject's name, or a misplaced file
            raise ScanError(
                path,
                "find",
                f"its name says sub-{subject}, its folder {owner}; a label has no underscore.",
                "Rename the file, or the subject.",
            )
        fields = self.sidecar(path) if modality == "rsfMRI" else {}
        return Series(
            subject=subject,
            modality=modality,
            path=path.absolute(),
            name=stem(path.name),
            repetition_time_s=repetition_time(fields, path),
        )

    def sidecar(self, path: Path) -> dict[str, Any]:
        """Return a scan's JSON fields, inherited from the data set down to its own folder.

        Raises:
            ScanError: A side-car is not JSON.
        """
        entities, suffix = entities_of(path.name).items(), suffix_of(path.name)
        fields: dict[str, Any] = {}
        for folder in reversed(path.relative_to(self.root).parents):
            for found in self._sidecars_in(self.root / folder):
                if found.suffix == suffix and found.entities.items() <= entities:
                    fields |= self._fields_of(found.path, path)
        return fields

    def _sidecars_in(self, folder: Path) -> list[Sidecar]:
        # A folder is listed once, not once for each of the runs below it.
        if folder not in self._listed:
            paths = sorted(folder.glob("*.json"))
            sidecars = [Sidecar(one, suffix_of(one.name), entities_of(one.name)) for one in paths]
            self._listed[folder] = sorted(sidecars, key=lambda one: len(one.entities))
        return self._listed[folder]

    def _fields_of(self, sidecar: Path, scan: Path) -> dict[str, Any]:
        if sidecar not in self._read:
            self._read[sidecar] = read_sidecar(sidecar, scan)
        return self._read[sidecar]

    @cached_property
    def _listed(self) -> dict[Path, list[Sidecar]]:
        return {}

    @cached_property
    def _read(self) -> dict[Path, dict[str, Any]]:
        return {}


def entities_of(name: str) -> dict[str, str]:
    """Return ``{"sub": "01", "task": "rest"}`` for ``sub-01_task-rest_bold.nii.gz``.

    A label may hold more hyphens than BIDS allows: ``sub-CON-01`` is the subject ``CON-01``.
    """
    parts = (part.partition("-") for part in _bare(name).split("_"))
    return {key: label for key, hyphen, label in parts if hyphen and label}


def suffix_of(name: str) -> str:
    """Return ``bold`` for ``sub-01_task-rest_bold.nii.gz``; empty where there is no suffix."""
    last = _bare(name).split("_")[-1]
    return "" if "-" in last else last


def modality_of(path: Path, task: str | None = "rest") -> str | None:
    """Return the modality that a BIDS file name stands for; None for what this project skips."""
    if not path.name.startswith("sub-") or not path.name.lower().endswith(ENDINGS):
        return None
    entities, suffix = entities_of(path.name), suffix_of(path.name)
    if "sub" not in entities:
        return None
    if suffix == "T1w":
        return "T1"
    if suffix in ANATOMICAL:
        return "mri"
    if suffix == "ct":
        return "ct"
    if suffix == "bold" and (task or "").lower() in entities.get("task", "").lower():
        return "rsfMRI"
    if suffix == "FA" or (
        suffix == "dwimap" and "FA" in (entities.get("param"), entities.get("desc"))
    ):
        return "dMRI"
    return None


def session_of(series: Series) -> str:
    """Return the subject and session that a file name gives, as ``sub-01_ses-2``."""
    session = entities_of(series.path.name).get("ses")
    return f"sub-{series.subject}" + (f"_ses-{session}" if session else "")


def _kind(name: str) -> str:
    """Return what a log calls the kind of an image that is not read."""
    if not name.startswith("sub-") or not suffix_of(name):
        return "not named by BIDS"
    task = entities_of(name).get("task") if suffix_of(name) == "bold" else None
    return suffix_of(name) + (f" of task {task}" if task else "")


def _bare(name: str) -> str:
    return stem(name).removesuffix(".json")
