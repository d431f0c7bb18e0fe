"""Mutated conversations, side-cars and indexes: everything that is read as JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np
from mutations import as_json, changed, damaged

from neuro.data.bids import BidsFolder
from neuro.data.bids_cohort import BidsCohort
from neuro.data.cohort import ConversationCohort
from neuro.data.modes import Modes
from neuro.data.splits import SubjectSplits
from neuro.data.study_folder import StudyFolder

Case = Callable[[], object]

V1: dict[str, Any] = {
    "task_id": "c1",
    "task_type": "T1",
    "subject_id": "s1",
    "modality_paths": {"image_sMRI": "s1/T1.nii.gz", "fMRI_on_T1": "s1/bold.nii.gz"},
    "conversations": [
        {"from": "human", "value": "<image_sMRI>\n<image_fMRI>\nWhat is the sex?"},
        {"from": "gpt", "value": "female"},
    ],
    "split": "train",
    "metadata": {"sex": "F", "age": 31.5},
}
V1B: dict[str, Any] = {
    "task_id": "c2",
    "subject_ids": ["s1", "s2"],
    "modalities": ["T1", "T1"],
    "images": [
        {"path": "s1/T1.nii.gz", "token": "<sub1-image>", "modality": "sMRI"},
        {"path": "s2/T1.nii.gz", "token": "<sub2-image>", "modality": "sMRI"},
    ],
    "conversation": [
        {"role": "system", "content": "You read images."},
        {"role": "user", "content": "<sub2-image> and <sub1-image>: which is larger?"},
        {"role": "assistant", "content": "the first"},
    ],
}
V2: dict[str, Any] = {
    "task_id": 3,
    "task_type": "T2",
    "split": "validation",
    "subject_ids": ["s1"],
    "modalities": ["sMRI", "rsfMRI"],
    "images": [
        {"path": "s1/T1.nii.gz", "token": "<image>", "modality": "sMRI"},
        {"path": "s1/bold.nii.gz", "token": "<image_fMRI>", "modality": "rsfMRI"},
    ],
    "conversations": [
        {
            "role": "user",
            "content": [
                {"type": "image", "modality": "sMRI", "image_path": "s1/T1.nii.gz"},
                {"type": "image"},
                {"type": "text", "text": "What is seen?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a tract"}]},
    ],
    "metadata": {},
}
SIDECAR = {"RepetitionTime": 2.0, "Modality": "MR", "EchoTime": 0.03, "SliceTiming": [0, 0.5, 1.0]}


def begin(folder: Path) -> list[dict[str, Any]]:
    """Return one object of each format; the images are there."""
    return [V1, V1B, V2]


def case(rng: Random, seeds: list[dict[str, Any]], folder: Path) -> Case:
    """Write a file of conversations and return what reads it."""
    kept = list(seeds)
    number = rng.randrange(len(kept))
    lines = rng.random() < 0.3
    if rng.random() < 0.7:
        kept[number] = changed(rng, kept[number])
        if rng.random() < 0.2:
            kept = [kept[number]]
    if lines:
        data = b"\n".join(as_json(rng, one).replace(b"\n", b" ") for one in kept)
    else:
        data = as_json(rng, kept if len(kept) == 1 or rng.random() < 0.8 else kept[number])
    if kept == list(seeds) or rng.random() < 0.1:
        data = damaged(rng, data)
    path = folder / ("talk.jsonl" if lines else "talk.json")
    path.write_bytes(data)
    splits = SubjectSplits(val=0.2, test=0.2)
    return lambda: list(ConversationCohort(folder, path, splits).manifest())


def begin_sidecars(folder: Path) -> bytes:
    """Return a run that side-cars can lie beside."""
    voxels = np.random.default_rng(0).normal(size=(4, 4, 4, 6)).astype(np.float32)
    return nib.Nifti1Image(voxels, np.eye(4)).to_bytes()


def sidecar_case(rng: Random, scan: bytes, folder: Path) -> Case:
    """Write a folder of one study, or of BIDS, with a side-car that is damaged."""
    data = as_json(rng, changed(rng, SIDECAR))
    if rng.random() < 0.3:
        data = damaged(rng, as_json(rng, SIDECAR))
    name = "sub-01_task-rest_bold"
    is_bids = rng.random() < 0.6
    inside = folder / "sub-01" / "func" if is_bids else folder
    inside.mkdir(parents=True, exist_ok=True)
    (inside / f"{name}.nii").write_bytes(scan)
    (inside / f"{name}.json").write_bytes(data)
    if not is_bids:
        modes = Modes(mapping={"*": "rsfMRI"} if rng.random() < 0.5 else None, default="mri")
        return lambda: _told(StudyFolder(folder, modes, "study").failures)
    if rng.random() < 0.3:
        table = b"participant_id\tsex\tage\nsub-01\tF\t31\nsub-02\tn/a\t\n"
        (folder / "participants.tsv").write_bytes(damaged(rng, table))
        splits = SubjectSplits(val=0.2, test=0.2)
        return lambda: BidsCohort(folder, None, _NO_BOOK, splits).manifest()
    return lambda: _told(BidsFolder(folder).found.failures)


def _told(failures: Any) -> Any:
    """Raise the first failure, which a command would list."""
    for failure in failures:
        raise failure
    return failures


def _no_book() -> Any:
    from neuro.data.question import QuestionBook

    return QuestionBook(templates={})


_NO_BOOK = _no_book()
