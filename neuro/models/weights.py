"""Weights from a file into a model, with an account of every tensor."""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from neuro.errors import InputError

log = logging.getLogger(__name__)

# Where encoders lie in files: alone; in NeuroVFM's training guide; in its checkpoints of
# pretraining; in ours, of which the teacher reads better (LOG.md); in its checkpoints of
# classification. The first of the best is taken.
PREFIXES = (
    "",
    "student_encoder.",
    "model.student.vision_encoder.",
    "teacher.",
    "student.",
    "encoder.",
    "model.bb.",
)
EMBEDDERS = "embedders.safetensors"  # what neuro.export writes
TOLD = "neuro"  # where a safetensors file of ours says what its weights are
FOLDER_FILES = (
    "checkpoints/best.ckpt",  # of a run folder
    "checkpoints/last.ckpt",
    EMBEDDERS,  # beside a merged model
    "model.safetensors",
    "pytorch_model.bin",
)
SHOWN = 5  # names of tensors that did not find their place


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What became of each tensor.

    Attributes:
        prefix: What the names in the file begin with.
        matched: Loaded; names in the model.
        missing: In the model and not in the file.
        unexpected: Under the prefix in the file and not in the model.
        reshaped: In both, of different shapes; the name, then the shapes in file and model.
        elsewhere: Tensors of the file that are not under the prefix.
    """

    prefix: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    elsewhere: int

    @property
    def complete(self) -> bool:
        """Whether each tensor of model and file found the other."""
        return not (self.missing or self.unexpected or self.reshaped)

    def table(self) -> str:
        """Return counts by part of the model, and the first names of what did not match."""
        kinds = {
            "matched": self.matched,
            "missing": self.missing,
            "unexpected": self.unexpected,
            "other shape": tuple(name for name, _, _ in self.reshaped),
        }
        parts = dict.fromkeys(_part(name) for names in kinds.values() for name in names)
        width = max(map(len, ["all", *parts]))
        lines = [" " * width + "".join(f"{kind:>13}" for kind in kinds)]
        for part in [*sorted(parts), "all"]:
            counts = [
                sum(part in ("all", _part(name)) for name in names) for names in kinds.values()
            ]
            lines.append(f"{part:<{width}}" + "".join(f"{count:13}" for count in counts))
        return "\n".join(lines + self.faults())

    def faults(self) -> list[str]:
        """Return the first names of each kind that did not match, a line a kind."""
        shapes = [f"{name} {list(held)} for {list(own)}" for name, held, own in self.reshaped]
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "other shape": shapes}
        return [f"{kind}: {_first(names)}" for kind, names in kinds.items() if names]


def load_weights(
    module: nn.Module,
    source: Path | str | Mapping[str, Tensor],
    *,
    prefix: str | None = None,
    partial: bool = False,
) -> LoadReport:
    """Copy weights into a module, log a table of what matched, and return it.

    Half-precision weights become float32 where the module is float32. If anything is an error,
    nothing is loaded.

    Args:
        module: What takes the weights.
        source: A file (see ``read_weights``), or its tensors by name.
        prefix: What names in the file begin with and those in the module do not. None to try
            ``PREFIXES``.
        partial: Whether to go on with what matches, if something does and not everything.

    Raises:
        InputError: The file cannot be read, nothing matches, or, unless ``partial``, something does
            not.
    """
    tensors = source if isinstance(source, Mapping) else read_weights(source)
    where = "weights" if isinstance(source, Mapping) else str(source)
    own = module.state_dict()
    tried = PREFIXES if prefix is None else (prefix,)
    report = max(
        (compare(own, tensors, one) for one in tried),
        key=lambda one: (len(one.matched), len(one.reshaped)),  # max keeps the first of the best
    )
    if not report.matched:
        raise InputError(
            f"{where}: none of its {len(tensors)} tensors matches the model, under the prefix "
            f"{' or '.join(map(repr, tried))}; {len(report.reshaped)} have its names but other "
            f"shapes. The file has {', '.join(list(tensors)[:3])}; the model has "
            f"{', '.join(list(own)[:3])}. Set the prefix, or build the model that the file is of."
        )
    if not (report.complete or partial):
        raise InputError(
            f"{where}: {len(report.matched)} of {len(own)} tensors match the model under the "
            f"prefix {report.prefix!r}; {'; '.join(report.faults())}. "
            f"Build the model that the file is of, or allow a partial load."
        )
    take(own, tensors, report, where)
    return report


def take(
    own: Mapping[str, Tensor], held: Mapping[str, Tensor], report: LoadReport, where: str
) -> None:
    """Copy what matched into a module's own tensors, and log the table."""
    with torch.no_grad():
        for name in report.matched:
            own[name].copy_(held[report.prefix + name])
    log.log(
        logging.INFO if report.complete else logging.WARNING,
        "%s, prefix %r, %d other tensors in it:\n%s",
        where,
        report.prefix,
        report.elsewhere,
        report.table(),
    )


def read_weights(path: Path | str) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU; nothing but tensors is unpickled.

    Args:
        path: ``.safetensors``; or what ``torch.save`` wrote, a state dict or a checkpoint that
            holds one as ``state_dict``; or a folder: see ``weights_file``.

    Raises:
        InputError: There is no such file, it is something else, or it holds no tensors.
    """
    path = weights_file(path)
    held = _read(path)
    if isinstance(held, Mapping):
        held = held.get("state_dict", held)
    tensors = (
        {name: one for name, one in held.items() if isinstance(one, Tensor)}
        if isinstance(held, Mapping)
        else {}
    )
    if not tensors:
        raise InputError(f"{path} holds no tensors by name. Give a state dict or a checkpoint.")
    return tensors


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Return what a file of weights holds besides them too; nothing, where it is tensors alone.

    Args:
        path: See ``read_weights``.

    Raises:
        InputError: There is no such file, or it is something else.
    """
    path = weights_file(path)
    held = _read(path)
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            told = (file.metadata() or {}).get(TOLD)
        return {**_told(told, path), "state_dict": held} if told is not None else {}
    is_whole = isinstance(held, dict) and isinstance(held.get("state_dict"), Mapping)
    return held if is_whole else {}


def _told(text: str, path: Path) -> dict[str, Any]:
    """Return what a safetensors file of ours says of its weights."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: what it says of its weights is no JSON. Export it again."
        ) from error
    if not isinstance(told, dict):
        raise InputError(f"{path}: what it says of its weights is no object. Export it again.")
    return told


def weights_file(path: Path | str) -> Path:
    """Return the file that weights are in.

    Args:
        path: The file, or a folder that holds one: a run folder, or one of a hub.

    Raises:
        InputError: There is none.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FOLDER_FILES if (path / name).is_file()]
        if not found:
            raise InputError(f"{path} holds neither {' nor '.join(FOLDER_FILES)}. Name the file.")
        path = found[0]
    if not path.is_file():
        raise InputError(f"there is no file {path} to take weights from. Correct the path.")
    return path


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        is_archive = zipfile.is_zipfile(path)
        if is_archive:
            _check_stored(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except Exception as error:  # a damaged file trips the unpickler into raising anything
        if isinstance(error, OSError) and error.filename is not None:  # it may not be read at all
            raise
        raise InputError(
            f"{path} is no file of weights, or holds more than tensors and plain values, which is "
            f"not unpickled. Give its state dict alone, as .safetensors or by torch.save."
        ) from error


def _check_stored(path: Path) -> None:
    """Refuse an archive that would unpack to more than it is; ``torch.save`` packs nothing."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    stored = all(one.compress_type == zipfile.ZIP_STORED for one in members)
    if not stored or sum(one.file_size for one in members) > path.stat().st_size:
        raise ValueError("its members are packed")


def compare(own: Mapping[str, Tensor], held: Mapping[str, Tensor], prefix: str = "") -> LoadReport:
    """Return which of a module's own tensors a file holds under a prefix, and what it lacks."""
    under = {
        name.removeprefix(prefix): one for name, one in held.items() if name.startswith(prefix)
    }
    both = [name for name in own if name in under]
    return LoadReport(
        prefix=prefix,
        matched=tuple(name for name in both if under[name].shape == own[name].shape),
        missing=tuple(name for name in own if name not in under),
        unexpected=tuple(name for name in under if name not in own),
        reshaped=tuple(
            (name, tuple(under[name].shape), tuple(own[name].shape))
            for name in both
            if under[name].shape != own[name].shape
        ),
        elsewhere=len(held) - len(under),
    )


def _part(name: str) -> str:
    return name.split(".")[0]


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
