"""Checkpoints that are whole or as they were, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override


class WholeCheckpoints(TorchCheckpointIO):
    """Writes beside the file and renames.

    Lightning writes into the folder of temporary files and moves; where that is on another disk,
    a move is a copy, and a run that is killed meanwhile is left with half a checkpoint.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save a checkpoint.

        Raises:
            OSError: The disk is full or not writable; what was there before is as it was.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException as error:  # Ctrl-C too
            temporary.unlink(missing_ok=True)
            full = _full(error)
            if full is not None:
                raise OSError(full.errno, full.strerror, str(path)) from error
            raise

    @override
    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Any = lambda storage, loc: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint, whoever wrote it: tensors and plain values, whatever is asked for.

        Lightning leaves it to torch, which an environment variable makes unpickle everything.
        """
        return super().load_checkpoint(path, map_location, weights_only=True)


def _full(error: BaseException | None) -> OSError | None:
    """Return the system's error behind one of torch, which has no file name."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None
