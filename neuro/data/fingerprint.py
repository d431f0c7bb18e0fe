"""A recipe as plain values: the name of its folder, and what changed since the last one."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path

from neuro.data.lock import locked
from neuro.data.recipes import Recipe
from neuro.data.whole_file import make_folder, write_whole

log = logging.getLogger(__name__)


def describe(recipe: Recipe) -> dict[str, object]:
    """Return a recipe as plain values: class, version and fields."""
    fields = dataclasses.asdict(recipe)  # pyright: ignore[reportArgumentType]
    return {
        "recipe": type(recipe).__name__,
        "version": recipe.version,
        **json.loads(json.dumps(fields)),
    }


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """Return what differs between two descriptions, field by field."""
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def fingerprint(recipe: Recipe) -> str:
    """Return a short name for exactly this recipe."""
    return hashlib.sha256(json.dumps(describe(recipe), sort_keys=True).encode()).hexdigest()[:12]


def open_folder(folder: Path, modality: str, recipe: Recipe, num_scans: int) -> None:
    """Make the folder of a recipe and say what differs from the newest one that there was.

    A ``recipe.json`` that is damaged is written anew.

    Args:
        folder: ``<cache>/<modality>-<fingerprint>``.
        modality: Whose recipe it is.
        recipe: The recipe.
        num_scans: How many scans are to be prepared, for the message.

    Raises:
        NotWritable: The disk is full or not writable.
    """
    described = describe(recipe)
    own = folder / "recipe.json"
    if own.exists() and _read(own) == described:
        return
    known = [path for path in folder.parent.glob(f"{modality}-*/recipe.json") if path != own]
    known.sort(key=lambda path: path.stat().st_mtime)
    described_before = ((path.parent.name, _read(path)) for path in reversed(known))
    name, before = next((one for one in described_before if one[1] is not None), ("", None))
    if before is not None and not own.exists():
        log.info(
            "recipe of %s changed, its scans are prepared anew (%d to do; the old ones stay in "
            "%s): %s",
            modality,
            num_scans,
            name,
            "; ".join(changes(before, described)),
        )
    make_folder(folder)
    with locked(folder, own.name):
        write_whole(own, json.dumps(described, indent=2))


def _read(path: Path) -> dict[str, object] | None:
    """Return a description; None, with a warning, where it is damaged."""
    try:
        described = json.loads(path.read_bytes())
    except (OSError, ValueError):
        described = None
    if isinstance(described, dict):
        return described
    log.warning("%s is damaged; its scans are not affected", path)
    return None
