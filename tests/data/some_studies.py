"""Studies without files, for tests of tables."""

from __future__ import annotations

from pathlib import Path

from neuro.data.conversation import Conversation, Image, ImagePart, Turn
from neuro.data.manifest import Manifest, Series, Study


def study(name, *subjects, split="", paths=None):
    subjects = subjects or (name,)
    paths = paths or [f"{subject}.nii.gz" for subject in subjects]
    images = tuple(
        Image(path=path, modality="T1", subject=subject)
        for subject, path in zip(subjects, paths, strict=True)
    )
    turns = (
        Turn("user", (*(ImagePart(index) for index in range(len(images))), "?")),
        Turn("assistant", ("left",)),
    )
    return Study(
        id=name,
        series=tuple(
            Series(subject=image.subject, modality="T1", path=Path("/data") / image.path)
            for image in images
        ),
        conversation=Conversation(id=name, task="t", turns=turns, images=images),
        split=split,
    )


def manifest_of(*studies):
    return Manifest.of(studies)


def split_of(manifest):
    return {one.id: one.split for one in manifest}
