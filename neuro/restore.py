"""What a checkpoint carries to be built again: its parts, which must be this project's own."""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuro.data.contract import Contract
from neuro.errors import InputError
from neuro.models.weights import read_checkpoint

# What a checkpoint may name as its parts: models, and of the data what makes text and grids.
DATA = "bold_run|clinical_tokens|fixed_grid|question|spelled|text"
# What takes the state that is in a checkpoint, and the functions that read it.
TAKERS = ("torch.optim", "lightning.pytorch.loops")
LOADS = re.compile("_?restore|resume_start|load_state_dict|_load_combined_loader_states")
SMALL = 1024  # not all that a part is built with is a size: the alpha of an adapter
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
    is_whole = isinstance(parts, dict) and isinstance(held.get("contract"), dict)
    if not is_whole or not all(isinstance(parts.get(name), dict) for name in needs):
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


@contextmanager
def building(path: Path | str) -> Iterator[None]:
    """Tell in one line why what a checkpoint holds cannot be built again.

    Raises:
        InputError: Something was raised; constructors that get values of any kind raise anything.
    """
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        raise InputError(
            f"ckpt_path={path} does not say how its model is built, or its weights do not fit it "
            f"({_in_one_line(error)}). Take another checkpoint."
        ) from error


@contextmanager
def going_on(path: Path | str | None) -> Iterator[None]:
    """Tell in one line that training cannot go on from a checkpoint.

    Lightning and the optimizer take what they find in it as it is; what is wrong may show in the
    first step only.

    Args:
        path: The checkpoint; None where training begins.

    Raises:
        InputError: Something was raised while the checkpoint was put to use.
    """
    try:
        yield
    except (InputError, OSError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if path is None or not _is_of_checkpoint(error):
            raise
        raise InputError(
            f"ckpt_path={path} cannot be gone on from: what it holds is not what this run would "
            f"have saved ({_in_one_line(error)}). Take another checkpoint."
        ) from error


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _is_of_checkpoint(error: Exception) -> bool:
    """Whether an error comes from reading a state, or from those that take it unseen."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    innermost = str(frames[-1].f_globals.get("__name__"))
    return innermost.startswith(TAKERS) or any(LOADS.match(one.f_code.co_name) for one in frames)


def check_sizes(held: Mapping[str, Any], path: Path | str) -> None:
    """Check that the parts of a checkpoint that holds all its weights are no larger than these.

    A model of a billion layers is never done being built.

    Raises:
        InputError: A whole number is larger than any axis of the weights, and than their count.
    """
    state = held["state_dict"]
    tensors = [one for one in state.values() if isinstance(one, Tensor) and one.is_contiguous()]
    most = max((size for one in tensors for size in one.shape), default=0)
    if max(_whole_numbers(held["parts"]), default=0) > max(most, len(state), SMALL):
        raise InputError(
            f"ckpt_path={path} says that its model has sizes that its weights do not have. "
            f"Take another checkpoint."
        )


def _whole_numbers(node: Any) -> Iterator[int]:
    if isinstance(node, int):
        yield node
    elif isinstance(node, Mapping):
        for value in node.values():
            yield from _whole_numbers(value)
    elif isinstance(node, Sequence) and not isinstance(node, str):
        for value in node:
            yield from _whole_numbers(value)


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
