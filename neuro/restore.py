"""What a checkpoint carries to be built again: its parts, which must be this project's own."""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuro.data.contract import Contract
from neuro.errors import InputError
from neuro.models.weights import read_checkpoint

# What a checkpoint may name as its parts: models, and of the data what makes text and grids.
DATA = "bold_run|clinical_tokens|fixed_grid|question|spelled|text"
BUILT = re.compile(rf"(neuro\.(?:models\.\w+|data\.(?:{DATA})))\.([A-Za-z]\w*)(\.[A-Za-z]\w*)?")


def checkpoint_of(
    path: Path, system: str, needs: Collection[str]
) -> tuple[dict[str, Any], Contract]:
    """Return what a checkpoint holds, and its contract.

    Args:
        path: A checkpoint, or its run folder.
        system: What it must be a checkpoint of.
        needs: The parts that it must carry.

    Raises:
        InputError: It is no such checkpoint, or its parts are not this project's.
    """
    held = read_checkpoint(path)
    parts = held.get("parts", {})
    if not set(needs) <= set(parts) or "contract" not in held:
        raise InputError(
            f"ckpt_path={path} is no checkpoint of system={system}, which carries its parts and "
            f"what its images were. Train one with python train.py system={system} ..."
        )
    for foreign in _foreign(parts):
        raise InputError(
            f"ckpt_path={path} asks for {foreign}, which is no model of this project, and is "
            f"not built. Take a checkpoint that you trust."
        )
    return held, Contract.of_plain(held["contract"], str(path))


def _foreign(node: Any) -> Iterator[str]:
    """Yield what is to be built and is none of this project's models, and what is yet to be read.

    By way of a module, everything that it imports has a name below its own.
    """
    if isinstance(node, Mapping):
        if "_target_" in node and not _is_ours(str(node["_target_"])):
            yield str(node["_target_"])
        for value in node.values():
            yield from _foreign(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from _foreign(value)
    elif isinstance(node, str) and "${" in node:  # a run writes what it came to
        yield node


def _is_ours(target: str) -> bool:
    found = BUILT.fullmatch(target)
    if found is None:
        return False
    try:
        thing = getattr(importlib.import_module(found[1]), found[2], None)
    except ImportError:
        return False
    return getattr(thing, "__module__", None) == found[1]
