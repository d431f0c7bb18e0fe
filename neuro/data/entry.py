"""One prepared scan as a file: its tensors, where they came from, and a checksum for each.

A safetensors file. Its tensors are what a recipe returned: one for each view, ``foreground`` and
``affine``. Each has a CRC-32 over its type, its shape and its bytes, in the file's metadata; a run
has one for each frame, so that a window is checked without reading the rest. A flipped bit anywhere
is found when what it belongs to is read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuro.data.whole_file import whole
from neuro.errors import ScanError


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a prepared scan without its voxels.

    Attributes:
        source: What changes when the scan's file is replaced.
        source_shape: Voxels of the scan as stored.
        source_spacing_mm: Edges of a voxel as stored.
        orientation: Where the axes point as stored, as ``LAS``.
        grid: Tokens along each spatial axis.
        num_frames: Frames of a run on the recipe's clock; 0 for a single volume.
        voxels: Equal for scans whose prepared voxels are equal.
        warnings: What a person should look at.
    """

    source: str
    source_shape: tuple[int, ...]
    source_spacing_mm: tuple[float, float, float]
    orientation: str
    grid: tuple[int, ...]
    num_frames: int
    voxels: str
    warnings: tuple[str, ...]

    @classmethod
    def of(cls, record: Any) -> Facts:
        """Return the facts that ``asdict`` and JSON made of them.

        Raises:
            ValueError: It is no such record.
        """
        if not isinstance(record, Mapping):
            raise ValueError("it is no object")
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in record.items()
        }
        try:
            facts = cls(**fields)
        except TypeError as error:
            raise ValueError("it has other fields") from error
        if not facts._is_sound():
            raise ValueError("its fields are of other kinds")
        return facts

    def _is_sound(self) -> bool:
        """Whether each field is of its kind; written out, because an index has a million rows."""
        lists = (self.source_shape, self.source_spacing_mm, self.grid, self.warnings)
        return (
            all(type(one) is tuple for one in lists)
            and len(self.source_spacing_mm) == 3
            and {type(one) for one in self.source_spacing_mm} <= {float, int}
            and {type(one) for one in (*self.source_shape, *self.grid, self.num_frames)} == {int}
            and {type(one) for one in (self.source, self.orientation, self.voxels)} == {str}
            and {type(one) for one in self.warnings} <= {str}
        )


def write_entry(path: Path, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """Write an entry so that it is whole or absent, whatever happens.

    The caller holds the lock on it.

    Raises:
        NotWritable: The disk is full or not writable; nothing half-written is left.
    """
    about = json.dumps(asdict(facts))
    crcs = {name: _crcs(name, tensor) for name, tensor in tensors.items()}
    metadata = {
        "about": about,
        "about_crc": f"{isal_zlib.crc32(about.encode()):x}",
        "crc": json.dumps(crcs),
    }
    with whole(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata=metadata)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(_one_line(error)) from error
        with temporary.open("rb") as file:
            os.fsync(file.fileno())


class EntryForbidden(ScanError):
    """An entry is there, and this user may not read it."""


class Entry:
    """An entry that is open for reading; a context manager.

    Args:
        path: The file.
        source: The scan, for messages.

    Raises:
        ScanError: It is absent or damaged.
        EntryForbidden: The user may not read it.
    """

    def __init__(self, path: Path, source: Path) -> None:
        self.path = path
        self.source = source

    def __enter__(self) -> Entry:
        try:
            self._file = safe_open(self.path, framework="pt").__enter__()
            self._metadata = self._file.metadata() or {}
            self._checks = json.loads(self._metadata["crc"])
            if not isinstance(self._checks, dict):
                raise ValueError("it has no checksums")
        except FileNotFoundError as error:  # or it may not be opened: safetensors says the same
            raise self._absent() from error
        except (SafetensorError, KeyError, ValueError, RecursionError, OSError) as error:
            raise self._damaged(f"it cannot be read: {_one_line(error)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._file.__exit__(None, None, None)

    def read(self, name: str) -> Tensor:
        """Return a tensor.

        Raises:
            ScanError: It is absent, or not what was written.
        """
        try:
            tensor = self._file.get_tensor(name)
            expected = self._checks[name]
        except (SafetensorError, KeyError) as error:
            raise self._damaged(f"it has no tensor {name!r}") from error
        if _crcs(name, tensor) != expected:
            raise self._damaged(f"the checksum of its tensor {name!r} is wrong")
        return tensor

    def read_frames(self, name: str, start: int, step: int, count: int) -> Tensor:
        """Return ``count`` frames of a run, from ``start``, every ``step``.

        Raises:
            ScanError: One of them is not what was written.
        """
        try:
            stop = start + step * (count - 1) + 1
            frames = self._file.get_slice(name)[start:stop][::step]
            expected = self._checks[name][start:stop:step]
        except (SafetensorError, KeyError, TypeError) as error:
            raise self._damaged(f"it has no run {name!r}") from error
        if len(frames) != count or _crcs(name, frames) != expected:
            raise self._damaged(f"the checksum of its frames from {start} is wrong")
        return frames

    def facts(self) -> Facts:
        """Return what is known of the scan.

        Raises:
            ScanError: They are damaged.
        """
        about = self._metadata.get("about", "")
        if f"{isal_zlib.crc32(about.encode()):x}" != self._metadata.get("about_crc"):
            raise self._damaged("the checksum of its description is wrong")
        try:
            return Facts.of(json.loads(about))
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its description is none: {_one_line(error)}") from error

    def _absent(self) -> ScanError:
        try:
            self.path.open("rb").close()
        except PermissionError as error:
            return EntryForbidden(
                self.source,
                "cache",
                f"its cache entry {self.path} cannot be opened ({error.strerror}).",
                "Give yourself read access to it, or set paths.cache_dir to another folder.",
            )
        except OSError:
            pass
        return self._damaged("it is absent")

    def _damaged(self, what: str) -> ScanError:
        return ScanError(
            self.source,
            "cache",
            f"its cache entry {self.path} is damaged: {what}.",
            "Delete the entry and start again; test the disk if this happens twice.",
        )


def _crcs(name: str, tensor: Tensor) -> int | list[int]:
    """Return the checksum of a tensor; a run, which has four axes, has one for each frame."""
    is_run = tensor.ndim == 4
    kind = f"{name}|{tensor.dtype}|{tuple(tensor.shape[is_run:])}"
    start = isal_zlib.crc32(kind.encode())
    if is_run:
        return [isal_zlib.crc32(_bytes(frame), start) for frame in tensor]
    return isal_zlib.crc32(_bytes(tensor), start)


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().numpy().reshape(-1).view(np.uint8)


def voxel_digest(tensors: Mapping[str, Tensor], views: Mapping[str, str]) -> str:
    """Return a name for exactly these voxels, whatever file they came from."""
    digest = hashlib.blake2b(digest_size=12)
    for view in views:
        digest.update(str(tuple(tensors[view].shape)).encode())
        digest.update(_bytes(tensors[view]).data)
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
