"""Which split a study belongs to: by a hash of its subject, by fold, or by lists."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from neuro.data.ids import texts
from neuro.data.manifest import SPLITS, Manifest, codes_of, unique_codes
from neuro.errors import InputError

log = logging.getLogger(__name__)


@runtime_checkable
class Splits(Protocol):
    """A way to divide a cohort."""

    def assign(self, manifest: Manifest) -> Manifest:
        """Return the manifest with a split for each study, and cures for splits without any."""
        ...


@dataclass(frozen=True, kw_only=True)
class SubjectSplits:
    """Splits by a hash of the subject, the same on every machine.

    Old subjects keep their split when a cohort grows. Subjects that meet in one study stay
    together. A split that the source brings is kept.

    Args:
        val: Share of the subjects for validation, in [0, 1).
        test: Share of the subjects for the test, in [0, 1); not read where ``fold`` is given.
        salt: Another salt gives another draw.
        folds: Into how many folds the subjects are dealt for cross-validation.
        fold: Which of them is the test, from 0; None tests on ``test``. Folds are equal to within
            one subject, so they change when a cohort grows.
    """

    val: float
    test: float
    salt: str = "neuro"
    folds: int = 5
    fold: int | None = None

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise InputError(
                f"data.splits.val={self.val} and data.splits.test={self.test} must be shares that "
                f"leave something for training. Lower them until their sum is under 1."
            )
        if self.folds < 2:
            raise InputError(
                f"data.splits.folds={self.folds} must be at least 2: one fold is the test, the "
                f"others train. Leave it out for 5."
            )
        if self.fold is not None and not (type(self.fold) is int and 0 <= self.fold < self.folds):
            raise InputError(
                f"data.fold={self.fold} must be one of 0 to {self.folds - 1}, which are the folds "
                f"of data.splits.folds={self.folds}."
            )

    def assign(self, manifest: Manifest) -> Manifest:
        """Return the manifest with a split for each study.

        Raises:
            InputError: Some studies bring a split and others do not, or there are fewer subjects
                than folds.
        """
        given = codes_of(manifest.studies["split"], ("",)) != 0
        if given.any() and self.fold is None:
            if not given.all():
                without = manifest.studies["id"][int(np.flatnonzero(~given)[0])].as_py()
                raise InputError(
                    f"{given.sum()} of {len(manifest)} studies give a split; all or none must. "
                    f"{without!r} gives none."
                )
            log.info("the source brings splits; data.splits is not read")
            return _with_cures(manifest, "The source gives the splits: let some studies be {}.")
        if given.any():
            log.warning("data.fold deals the subjects anew: the splits of the source are not read")
        leaders = linked_subjects(manifest)
        places, firsts = np.unique(leaders, return_inverse=True)
        subjects = manifest.series["subject"].take(pa.array(places)).to_pylist()
        drawn = np.array([self._position(_plain(subject)) for subject in subjects])
        names = np.array(SPLITS, dtype=object)[self._splits(drawn)]
        dealt = manifest.with_study_column("split", names[firsts].tolist())
        if self.fold is not None:
            return _with_cures(dealt, "Raise data.splits.{}.", "Lower data.splits.val.")
        return _with_cures(
            dealt,
            "Raise data.splits.{}, or change data.splits.salt.",
            "Lower data.splits.val and data.splits.test, or change data.splits.salt.",
        )

    def _splits(self, drawn: np.ndarray) -> Int[np.ndarray, " subjects"]:
        """Return the place in ``SPLITS`` of each subject from its number in [0, 1)."""
        if self.fold is None:
            return np.where(drawn < self.test, 2, np.where(drawn < self.test + self.val, 1, 0))
        if len(drawn) < self.folds:
            raise InputError(
                f"{len(drawn)} subjects cannot be dealt into data.splits.folds={self.folds}. "
                f"Lower it."
            )
        order = np.argsort(np.argsort(drawn))
        in_test = order % self.folds == self.fold
        rest = np.flatnonzero(~in_test)[np.argsort(drawn[~in_test])]
        splits = np.where(in_test, 2, 0)
        # Every so many of the others, so that val is exact and never empty.
        num_val = max(1, round(self.val * len(rest))) if self.val > 0 else 0
        splits[rest[(np.arange(num_val) * len(rest)) // max(1, num_val)]] = 1
        return splits

    def _position(self, subject: str) -> float:
        digest = hashlib.sha256(f"{self.salt}|{subject}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


@dataclass(frozen=True, kw_only=True)
class ListedSplits:
    """Splits by lists of studies; a study in no list is left out.

    Args:
        train: Study ids, or a file with one id a line.
        val: Likewise.
        test: Likewise.
        fold: Not for lists; there so that it is told where it is given.

    Raises:
        InputError: A fold is given, or an id is no text.
    """

    train: Sequence[Any] | str
    val: Sequence[Any] | str
    test: Sequence[Any] | str
    fold: int | None = None

    def __post_init__(self) -> None:
        if self.fold is not None:
            raise InputError(
                f"data.fold={self.fold} deals the subjects, and splits@data.splits=listed takes "
                f"them from lists. Leave one of the two out."
            )
        for split in SPLITS:
            value = getattr(self, split)
            if not isinstance(value, str):
                object.__setattr__(self, split, texts(value, f"data.splits.{split}"))

    def assign(self, manifest: Manifest) -> Manifest:
        """Return the listed studies with their splits.

        Raises:
            InputError: A study is in two lists, or a list names a study that there is not.
        """
        split_of: dict[str, str] = {}
        for split in SPLITS:
            for study in _listed(getattr(self, split), f"data.splits.{split}"):
                if split_of.setdefault(study, split) != split:
                    raise InputError(
                        f"study {study!r} is in data.splits.{split_of[study]} and in "
                        f"data.splits.{split}; it may be in one. Take it out of the other."
                    )
        ids = manifest.ids
        unknown = sorted(split_of.keys() - set(ids))
        if unknown:
            why, cure = "", ""
            if manifest.labels is not None:  # those without any are left out before
                why, cure = ", or that have no label", ", or set data.labels.unlabelled=mask"
            raise InputError(
                f"data.splits names {len(unknown)} studies that the source does not have{why}, "
                f"for example {unknown[:5]}; it has for example {ids[:5]}. "
                f"Correct the lists{cure}."
            )
        rows = [row for row, study in enumerate(ids) if study in split_of]
        if not rows:
            raise InputError("data.splits lists no study. Fill train, val and test.")
        if len(rows) < len(ids):
            log.info("%d of %d studies are in no list and left out", len(ids) - len(rows), len(ids))
        if (codes_of(manifest.studies["split"], ("",)) != 0).any():
            log.warning("data.splits lists the studies: the splits of the source are not read")
        column = [split_of[ids[row]] for row in rows]
        return _with_cures(
            manifest.narrowed(rows).with_study_column("split", column),
            "List some studies in data.splits.{}.",
        )


@dataclass(frozen=True)
class OneSplit:
    """Everything is tested: for a model that is trained already."""

    def assign(self, manifest: Manifest) -> Manifest:
        """Return the manifest with the same split for each study."""
        return manifest.with_study_column("split", ["test"] * len(manifest))


def _with_cures(manifest: Manifest, cure: str, of_train: str | None = None) -> Manifest:
    """Say what to do where a split has no study; {} is its name."""
    cures = {split: cure.format(split) for split in SPLITS}
    return replace(manifest, cures=cures | ({"train": of_train} if of_train else {}))


def linked_subjects(manifest: Manifest) -> Int[np.ndarray, " studies"]:
    """Return for each study a row of ``manifest.series`` that names whom it goes with.

    That is its subject, or the first, by name, of those linked to it through shared studies.
    """
    codes = unique_codes(manifest.series["subject"])
    first = codes[manifest.bounds[:-1]]
    other = np.flatnonzero(codes != np.repeat(first, np.diff(manifest.bounds)))
    _, row_of = np.unique(codes, return_index=True)  # a row for each code
    names = manifest.series["subject"].take(pa.array(row_of)).to_pylist()
    leader = {}

    def find(code: int) -> int:
        leader.setdefault(code, code)
        while leader[code] != code:
            leader[code] = leader[leader[code]]
            code = leader[code]
        return code

    owners = manifest.owners
    for row in other:
        pair = find(int(first[owners[row]])), find(int(codes[row]))
        low, high = sorted(pair, key=lambda code: names[code])
        leader[high] = low
    table = np.arange(len(names))
    for code in leader:
        table[code] = find(code)
    return row_of[table[first]]


def _plain(subject: str) -> str:
    """Return a subject's name without the prefix that only some tables write."""
    return subject.removeprefix("sub-")


def _listed(value: Sequence[str] | str, key: str) -> list[str]:
    if not isinstance(value, str):
        return [*value]
    path = Path(value)
    if not path.is_file():
        raise InputError(
            f"{key}={value} is not a file. Give a list of study ids, or a file with one a line."
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{key}={value} is not UTF-8. Save it as plain text in UTF-8.") from None
    return [line.strip() for line in lines if line.strip()]
