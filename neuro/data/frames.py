"""A run that is kept as a folder of frames, as SwiFT and UMBRELLA prepare it.

``frame_0.pt``, ``frame_1.pt`` and so on hold one volume each, (height, width, depth) or with one
channel more. Intensities are raw or already normalised; ``global_stats.pt`` beside them is not
needed, since a recipe takes its own statistics of the head.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from neuro.errors import ScanError

FIRST = "frame_0.pt"
FRAME = re.compile(r"frame_(0|[1-9][0-9]{0,8})\.pt")
SPACING_MM = 2.0  # of MNI space, in which they are made
UNKNOWN_SPACE = (
    f"a folder of frames tells neither orientation nor spacing: read as RAS, {SPACING_MM:g} mm"
)
NORMALISED = "it was normalised before: moved up, so that background is 0 and the head above it"
LARGEST = 1e30  # an intensity of any scan; what is beyond is damage, and its squares overflow
FLOOR = 0.25  # of the range of the head: its darkest voxel, so that none is taken for background
FEW = 0.05  # share of a head that may be below 0 by noise or filters; of one that is normed half is


def is_run_of_frames(path: Path) -> bool:
    """Whether a path is a folder that holds a frame."""
    try:
        return any(FRAME.fullmatch(name) for name in os.listdir(path))
    except OSError:  # no folder, or not to be looked at
        return False


def read_frames(folder: Path) -> tuple[Float32[np.ndarray, "*space time"], list[str]]:
    """Read a run.

    Background, which does not change from frame to frame, may hold any number where intensities
    were normalised; it is 0 in what is returned then, and the head above it.

    Args:
        folder: The frames are numbered from 0 without a gap.

    Returns:
        The run, in memory frame by frame, and what a person should know of it.

    Raises:
        ScanError: There is no frame or one is missing, forbidden, damaged or of another shape.
    """
    paths = _paths(folder)
    first = _frame(paths[0], folder)
    run = np.empty((len(paths), *first.shape), np.float32)
    run[0] = first.numpy()
    for frame, path in zip(run[1:], paths[1:], strict=True):
        volume = _frame(path, folder)
        if volume.shape != first.shape:
            raise _damaged(
                path, folder, f"its shape {tuple(volume.shape)} is not {tuple(first.shape)}"
            )
        frame[...] = volume.numpy()
    if len(run) > 1 and not any((frame != run[0]).any() for frame in run[1:]):
        cure = "Make the run again."
        raise ScanError(folder, "read", "all of its frames are equal: it is no run.", cure)
    warnings = [UNKNOWN_SPACE]
    if _move_up(run):
        warnings.append(NORMALISED)
    return np.moveaxis(run, 0, -1), warnings


def _paths(folder: Path) -> list[Path]:
    try:
        matches = [FRAME.fullmatch(name) for name in os.listdir(folder)]
    except OSError as error:
        reason = f"the folder cannot be opened ({error.strerror})."
        raise ScanError(folder, "read", reason, "Give yourself access to it.") from error
    numbers = {int(match[1]) for match in matches if match}
    if not numbers:
        raise ScanError(
            folder,
            "read",
            "it is a folder without frames (frame_0.pt, frame_1.pt, ...).",
            "Name the NIfTI in it.",
        )
    missing = next(number for number in range(len(numbers) + 1) if number not in numbers)
    if missing < len(numbers):
        raise ScanError(
            folder,
            "read",
            f"frame_{missing}.pt is missing; the last one is frame_{max(numbers)}.pt.",
            "Copy the run again: its clock would not be right without it.",
        )
    return [folder / f"frame_{number}.pt" for number in range(len(numbers))]


def _frame(path: Path, folder: Path) -> Float32[Tensor, "*space"]:
    """Return one volume."""
    try:
        size = path.stat().st_size
        # only tensors: a pickle could run anything
        frame = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(frame, Tensor):
            raise _damaged(path, folder, f"it holds a {type(frame).__name__}, not a tensor")
        if frame.layout is not torch.strided or frame.is_nested or frame.is_complex():
            raise _damaged(path, folder, "its voxels are not plain numbers")
        if frame.device.type != "cpu" or max(frame.nbytes, frame.untyped_storage().nbytes()) > size:
            raise _damaged(path, folder, "it promises more voxels than it holds")
        if frame.ndim == 4 and frame.shape[-1] == 1:
            frame = frame[..., 0]
        if frame.ndim != 3 or frame.numel() == 0:
            raise _damaged(path, folder, f"a volume has 3 axes; it has shape {tuple(frame.shape)}")
        if frame.dtype == torch.float16 and frame.isinf().any():
            raise _damaged(path, folder, "its brightest voxels do not fit 16 bits, and are lost")
        return frame.detach().float()
    except ScanError:
        raise
    except OSError as error:
        reason = f"{path.name} cannot be opened ({error.strerror})."
        raise ScanError(folder, "read", reason, "Fetch it, or give yourself access.") from error
    except Exception as error:  # a damaged file trips the unpickler into raising anything
        raise _damaged(path, folder, "it is damaged, or holds more than a tensor") from error


def _damaged(path: Path, folder: Path, what: str) -> ScanError:
    return ScanError(folder, "read", f"{path.name}: {what}.", "Copy or make the run again.")


def _move_up(run: Float32[np.ndarray, " time *space"]) -> bool:
    """Undo, in place, what makes a head negative; return whether there was anything to undo."""
    run[~(np.abs(run) < LARGEST)] = np.nan  # to be mended later, as everywhere
    lowest, highest = np.fmin.reduce(run), np.fmax.reduce(run)
    head = lowest < highest  # background does not change
    if not head.any() or np.mean(lowest[head] + highest[head] < 0) < FEW:
        return False
    low, high = np.fmin.reduce(lowest[head]), np.fmax.reduce(highest[head])
    run -= low - FLOOR * (high - low)
    run[:, ~head] = 0
    return True
