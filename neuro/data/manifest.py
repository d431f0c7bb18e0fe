"""The table of studies and series, and which split each belongs to.

A study is the unit of supervision: here one conversation, whose series are its images in textual
order. The same scan may serve many studies. Ids are strings.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from neuro.data.conversation import Conversation
from neuro.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One scan.

    Attributes:
        subject: Whose head it is.
        modality: ``T1``, ``rsfMRI`` or ``dMRI``.
        path: The file.
        repetition_time_s: What a side-car says; None leaves it to the header.
    """

    subject: str
    modality: str
    path: Path
    repetition_time_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """One conversation and its images.

    Attributes:
        id: Unique in a manifest.
        series: The images, in the order in which the text refers to them.
        conversation: What is asked and answered.
        split: ``train``, ``val`` or ``test``; empty until it is assigned.
    """

    id: str
    series: tuple[Series, ...]
    conversation: Conversation
    split: str = ""

    @property
    def subjects(self) -> tuple[str, ...]:
        """The subjects, each once, in image order."""
        return tuple(dict.fromkeys(series.subject for series in self.series))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modality of each image."""
        return tuple(series.modality for series in self.series)


@dataclass(frozen=True)
class Manifest:
    """All studies of a cohort, checked.

    Raises:
        InputError: No study, a repeated id, an unassigned split, or a subject in two splits.
    """

    studies: tuple[Study, ...]

    def __post_init__(self) -> None:
        if not self.studies:
            raise InputError("the cohort has no study. Check data.root and data.questions.")
        seen: set[str] = set()
        for study in self.studies:
            if study.id in seen:
                raise InputError(
                    f"study id {study.id!r} occurs twice; ids must be unique. Rename one of them."
                )
            seen.add(study.id)
        self._check_splits()

    def split(self, name: str) -> tuple[Study, ...]:
        """Return the studies of one split, in the order of the manifest."""
        return tuple(study for study in self.studies if study.split == name)

    def scans(self) -> tuple[Series, ...]:
        """Return every scan once."""
        return tuple(dict.fromkeys(series for study in self.studies for series in study.series))

    def _check_splits(self) -> None:
        """Each study has a split; no subject, and no file, is in two."""
        splits: dict[str, set[str]] = defaultdict(set)
        for study in self.studies:
            if study.split not in SPLITS:
                raise InputError(
                    f"study {study.id!r} has split {study.split!r}; it must be one of "
                    f"{', '.join(SPLITS)}. Correct it."
                )
            for series in study.series:
                subject = series.subject.removeprefix("sub-")
                splits[f"subject {subject!r}"].add(study.split)
                splits[f"file {series.path.resolve()}"].add(study.split)
        leaks = {what: names for what, names in splits.items() if len(names) > 1}
        if leaks:
            what, names = next(iter(sorted(leaks.items(), reverse=True)))
            num_subjects = sum(one.startswith("subject") for one in leaks)
            raise InputError(
                f"{num_subjects} subjects and {len(leaks) - num_subjects} files are in more than "
                f"one split, which makes test figures worthless: for example {what} is in "
                f"{' and '.join(sorted(names))}. Give all studies of a subject the same split."
            )


@dataclass(frozen=True, kw_only=True)
class SubjectSplits:
    """Splits by a hash of the subject, the same for every machine.

    Old subjects keep their split when a cohort grows. Subjects that meet in one study stay
    together.

    Args:
        val: Share of the subjects for validation, in [0, 1).
        test: Share of the subjects for the test, in [0, 1).
        salt: Another salt gives another draw.
    """

    val: float
    test: float
    salt: str = "neuro"

    def __post_init__(self) -> None:
        if not (self.val >= 0 and self.test >= 0 and self.val + self.test < 1):
            raise InputError(
                f"data.splits.val={self.val} and data.splits.test={self.test} must be shares that "
                f"leave something for training. Lower them until their sum is under 1."
            )

    def assign(self, studies: Iterable[Study]) -> tuple[Study, ...]:
        """Return the studies with a split each; a split that a study brings is kept.

        Raises:
            InputError: Some studies bring a split and others do not.
        """
        studies = tuple(studies)
        given = [study for study in studies if study.split]
        if given and len(given) < len(studies):
            without = next(study.id for study in studies if not study.split)
            raise InputError(
                f"{len(given)} of {len(studies)} studies give a split; all or none must. "
                f"{without!r} gives none."
            )
        if given:
            return studies
        leaders = _leaders(study.subjects for study in studies)
        return tuple(
            replace(study, split=self._draw(leaders[study.subjects[0]])) for study in studies
        )

    def _draw(self, subject: str) -> str:
        digest = hashlib.sha256(f"{self.salt}|{subject}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        if position < self.test:
            return "test"
        return "val" if position < self.test + self.val else "train"


def _leaders(groups: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Return for each subject the first, by name, of those linked to it through shared studies."""
    leader: dict[str, str] = {}

    def find(subject: str) -> str:
        leader.setdefault(subject, subject)
        while leader[subject] != subject:
            leader[subject] = leader[leader[subject]]
            subject = leader[subject]
        return subject

    for group in groups:
        for other in group:
            first, second = sorted((find(group[0]), find(other)))
            leader[second] = first
    return {subject: find(subject) for subject in leader}


def inside(root: Path, path: str, where: str) -> Path:
    """Join a path from a table to its root.

    Raises:
        InputError: The path leaves the root.
    """
    joined = Path(os.path.normpath(root.absolute() / path))
    if not joined.is_relative_to(root.absolute()):
        raise InputError(
            f"{where}: path {path!r} leaves the data root {root}. Paths must lie below data.root."
        )
    return joined
