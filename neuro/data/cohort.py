"""Where studies come from: what all sources share, conversations, and several sources as one."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute

from neuro.data.conversation import Conversation, Image, read_conversations
from neuro.data.ids import Given, check_texts
from neuro.data.labels import LabelRules, Labels, join_labels
from neuro.data.leaks import check_splits
from neuro.data.links import rooted
from neuro.data.manifest import SPLITS, Manifest, Series, Study, inside
from neuro.data.scan_files import repetition_time, root_folder, sidecar_beside, stem
from neuro.data.splits import Splits
from neuro.data.table import read_table
from neuro.errors import InputError, ScanError

log = logging.getLogger(__name__)
pc: Any = pyarrow.compute  # makes its functions at import, where no type checker sees them

SPELLINGS = {"validation": "val", "n/a": ""}  # of splits, beside those of the manifest


@runtime_checkable
class Cohort(Protocol):
    """A source of studies."""

    def manifest(self) -> Manifest:
        """Return every study, with a split each."""
        ...


def finished(
    manifest: Manifest,
    *,
    splits: Splits,
    labels: LabelRules | None = None,
    table: pa.Table | None = None,
    where: str = "the table of studies",
) -> Manifest:
    """Return a manifest with labels and splits, checked.

    Args:
        manifest: What the source found; the splits that it brings may be spelled in any case.
        splits: How it is divided.
        labels: Which columns are labels.
        table: What labels are read from where ``labels`` names no file of its own.
        where: What messages call this table.

    Raises:
        InputError: Labels do not fit, no study has one, or a study has no split.
        LeakError: Something is in two splits.
    """
    if labels is not None and labels.names:
        manifest = with_labels(manifest, labels, table, where)
    manifest = splits.assign(_with_plain_splits(manifest))
    check_splits(manifest)
    return manifest


def with_labels(
    manifest: Manifest, rules: LabelRules, table: pa.Table | None, where: str
) -> Manifest:
    """Return a manifest with a row of labels per study; those without any may be left out."""
    if rules.file is not None:
        table, where = read_table(Path(rules.file)), str(rules.file)
    if table is None:
        raise InputError(
            f"data.label names {', '.join(rules.columns)}, and the source brings no table. "
            f"Set data.labels.file to a CSV, TSV, JSON or Parquet file."
        )
    labels, known = join_labels(
        table, rules, studies=manifest.ids, subjects=manifest.first_subjects, where=where
    )
    labelled = replace(manifest, labels=labels)
    if rules.unlabelled == "mask" or known.all():
        return labelled
    log.info("%d of %d studies have no label and are left out", (~known).sum(), len(known))
    return labelled.narrowed(np.flatnonzero(known))


def _with_plain_splits(manifest: Manifest) -> Manifest:
    split = pc.utf8_lower(pc.utf8_trim_whitespace(manifest.studies["split"]))
    for spelling, name in SPELLINGS.items():
        split = pc.if_else(pc.equal(split, spelling), name, split)
    return manifest.with_study_column("split", split.cast(pa.large_string()).combine_chunks())


class ConversationCohort:
    """Conversations as JSON, whose image paths are relative to a root.

    Args:
        root: The folder that the paths start from.
        conversations: The file, or a folder of files.
        splits: Used where the conversations bring no split.
        labels: Which columns are labels; a file must be named.
        linked_roots: Further folders that links below ``root`` may lead to.
    """

    def __init__(
        self,
        root: Path | str,
        conversations: Path | str,
        splits: Splits,
        labels: LabelRules | None = None,
        linked_roots: Sequence[Given] | Given | None = (),
    ) -> None:
        if not str(conversations):
            raise InputError("data.conversations is empty. Give a .json or .jsonl file.")
        self.root = root
        self.conversations = Path(conversations)
        self.splits = splits
        self.labels = labels
        self.linked_roots = linked_roots

    def manifest(self) -> Manifest:
        """Read and check the conversations.

        Raises:
            InputError: The root is no folder, the file is wrong, or a path leaves the root.
        """
        root = root_folder(self.root, "the images")
        studies: list[Study] = []
        failures: dict[Path, ScanError] = {}  # a scan that many ask about is named once
        num_left_out = 0
        for conversation in read_conversations(self.conversations):
            try:
                studies.append(_study(root, conversation))
            except ScanError as error:
                failures[error.path] = error
                num_left_out += 1
        manifest = Manifest.of(studies, [*failures.values()], num_left_out)
        return finished(
            rooted(manifest, root, self.linked_roots),
            splits=self.splits,
            labels=self.labels,
        )


def _study(root: Path, conversation: Conversation) -> Study:
    images = conversation.images_in_text()
    return Study(
        id=conversation.id,
        series=tuple(_series(root, image, conversation.id) for image in images),
        conversation=conversation,
        split=conversation.split or "",
    )


def _series(root: Path, image: Image, where: str) -> Series:
    path = inside(root, image.path, where=f"conversation {where!r}")
    fields = sidecar_beside(path) if image.modality == "rsfMRI" else {}
    return Series(
        subject=image.subject,
        modality=image.modality,
        path=path,
        name=stem(path.name),
        repetition_time_s=repetition_time(fields, path),
    )


class MixedCohorts:
    """Several sources as one; each study remembers which it came from.

    Args:
        cohorts: The sources by name; ids and subjects get the name in front, so that the same
            number in two cohorts is two people. A person who is in two of them must be told by
            the files or the voxels.
    """

    def __init__(self, cohorts: Mapping[Given, Cohort]) -> None:
        if not cohorts:
            raise InputError("data.cohorts names no source. Give at least one.")
        check_texts(cohorts, '"2020_01": {_target_: ...}', "data.cohorts")
        self.cohorts = {str(name): cohort for name, cohort in cohorts.items()}

    def manifest(self) -> Manifest:
        """Read all of them.

        Raises:
            InputError: One is wrong, only some have conversations, or their labels differ.
            LeakError: A file or a series is in two splits, perhaps of two cohorts.
        """
        mixed = concatenated(
            {name: _prefixed(cohort.manifest(), name) for name, cohort in self.cohorts.items()}
        )
        check_splits(mixed)
        return mixed


def concatenated(manifests: Mapping[str, Manifest]) -> Manifest:
    """Return one manifest of several, which have names.

    Raises:
        InputError: Only some have conversations, or their labels differ.
    """
    every = [*manifests.values()]
    silent = [name for name, one in manifests.items() if one.conversations is None]
    if 0 < len(silent) < len(every):
        raise InputError(
            f"{', '.join(silent)} of data.cohorts have no conversations, and the others do; all "
            f"or none must. Set their questions, or leave them out."
        )
    ends = np.cumsum([len(one.series) for one in every])
    starts = ends - [len(one.series) for one in every]
    bounds = [one.bounds[:-1] + start for one, start in zip(every, starts, strict=True)]
    return Manifest(
        studies=pa.concat_tables([one.studies for one in every]).combine_chunks(),
        series=pa.concat_tables([one.series for one in every]).combine_chunks(),
        bounds=np.concatenate([*bounds, ends[-1:]]).astype(np.int64),
        conversations=[talk for one in every for talk in one.conversations or ()] or None,
        labels=_concatenated_labels({name: one.labels for name, one in manifests.items()}),
        num_failed=np.concatenate([one.failed for one in every]),
        failures=tuple(failure for one in every for failure in one.failures),
        num_left_out=sum(one.num_left_out for one in every),
        cures={
            split: " ".join(dict.fromkeys(one.cures[split] for one in every if one.cures))
            for split in SPLITS
        },
    )


def _concatenated_labels(labels: Mapping[str, Labels | None]) -> Labels | None:
    known = [one for one in labels.values() if one is not None]
    kinds = {(one.names, one.task, one.classes) for one in known}
    if len(kinds) > 1 or (known and len(known) < len(labels)):
        raise InputError(
            f"data.cohorts must have the same labels; got "
            f"{'; '.join(f'{name}: {_described(one)}' for name, one in labels.items())}. "
            f"Give each the same data.label, task and classes."
        )
    if not known:
        return None
    return replace(known[0], values=np.concatenate([one.values for one in known]))


def _described(labels: Labels | None) -> str:
    if labels is None:
        return "none"
    classes = f" of {', '.join(labels.classes)}" if labels.classes else ""
    return f"{', '.join(labels.names)} ({labels.task}{classes})"


def _prefixed(manifest: Manifest, name: str) -> Manifest:
    """Put a cohort's name in front of ids and subjects, and into the column ``cohort``."""
    prefix = pa.scalar(f"{name}/", pa.large_string())
    nothing = pa.scalar("", pa.large_string())
    place = manifest.series.column_names.index("subject")
    subject = pc.binary_join_element_wise(prefix, manifest.series["subject"], nothing)
    ids = pc.binary_join_element_wise(prefix, manifest.studies["id"], nothing)
    return (
        replace(manifest, series=manifest.series.set_column(place, "subject", subject))
        .with_study_column("id", ids.combine_chunks())
        .with_study_column("cohort", [name] * len(manifest))
    )
