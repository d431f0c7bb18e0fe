"""Files of scans: their names without endings, what lies beside them, and how to walk folders."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from neuro.errors import InputError, ScanError

NIFTI = (".nii.gz", ".nii", ".hdr.gz", ".hdr")
HALVES = (".img.gz", ".img")  # the voxels of a pair; without a header they may be DICOM


def stem(name: str) -> str:
    """Return a name or path without the ending of NIfTI, in any case; other names as they are."""
    lower = name.lower()
    ending = next((one for one in (*NIFTI, *HALVES) if lower.endswith(one)), "")
    return name[: len(name) - len(ending)]


def root_folder(root: Path | str, holds: str) -> Path:
    """Return ``data.root`` as an absolute path.

    Args:
        root: As the config gives it.
        holds: What the folder should hold, for the message.

    Raises:
        InputError: It is empty, or no folder.
    """
    if not str(root):  # would be the folder that the command is started in
        raise InputError(f"data.root is empty. Give the folder that holds {holds}.")
    path = Path(os.path.abspath(root))
    if not path.is_dir():
        raise InputError(f"data.root={path} is not a folder. Give the folder that holds {holds}.")
    return path


def is_nifti(name: str) -> bool:
    """Whether a name is that of a NIfTI file, or of the header of a pair."""
    return name.lower().endswith(NIFTI)


def walk(root: Path, failures: list[ScanError]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder, its subfolders and its files, sorted, as ``os.walk`` does.

    Links are followed, unless they lead back up. Hidden files and folders are passed over. A
    subfolder that the caller takes out of the list is not entered.

    Args:
        root: Where to begin.
        failures: Gets an error for what cannot be opened or named.
    """

    def note(error: OSError) -> None:
        reason = f"the folder cannot be opened ({error.strerror})."
        failures.append(ScanError(error.filename, "find", reason, "Give yourself access to it."))

    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=note):
        here = Path(folder)
        for entries in (subfolders, names):
            entries[:] = sorted(readable(entries, here, failures))
        subfolders[:] = [name for name in subfolders if not _leads_back(here / name)]
        yield here, subfolders, names


def readable(names: Iterable[str], folder: Path, failures: list[ScanError]) -> Iterator[str]:
    """Yield the names that are neither hidden nor in an encoding that no table can hold."""
    for name in names:
        if name.startswith("."):
            continue
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(folder / name).decode(errors="replace")
            failures.append(ScanError(shown, "find", "its name is not UTF-8.", "Rename it."))
        else:
            yield name


def _leads_back(path: Path) -> bool:
    """Whether a folder is a link to one of those that lead to it."""
    if not path.is_symlink():
        return False
    target = os.path.realpath(path)
    return any(os.path.realpath(parent) == target for parent in path.parents)


def sidecar_beside(scan: Path) -> dict[str, Any]:
    """Return the fields of the JSON file of the same name; none where there is no such file.

    Raises:
        ScanError: It is no JSON object.
    """
    path = stem(str(scan)) + ".json"
    return read_sidecar(Path(path), scan) if os.path.isfile(path) else {}


def modality_beside(scan: Path) -> str:
    """Return what the side-car of dcm2niix says, ``MR`` for example; empty where nothing says it.

    Raises:
        ScanError: The side-car is no JSON object.
    """
    return str(sidecar_beside(scan).get("Modality") or "")


def read_sidecar(path: Path, scan: Path) -> dict[str, Any]:
    """Return the fields of a JSON side-car; letters that are not UTF-8 do not matter.

    Args:
        path: The side-car.
        scan: The scan that it describes, and that cannot be used without it.

    Raises:
        ScanError: It cannot be opened, or is no JSON object.
    """
    try:
        fields = json.loads(path.read_bytes().decode("utf-8-sig", errors="replace"))
    except OSError as error:
        reason = f"its side-car {path} cannot be opened ({error.strerror})."
        raise ScanError(scan, "find", reason, "Give yourself access to it.") from error
    except json.JSONDecodeError as error:
        reason = f"its side-car {path} line {error.lineno} is not JSON ({error.msg})."
        raise ScanError(scan, "find", reason, "Mend or remove the side-car.") from error
    except (
        RecursionError,
        ValueError,
    ) as error:  # deeper, or with a longer number, than Python has
        reason = f"its side-car {path} cannot be read ({error})."
        raise ScanError(scan, "find", reason, "Mend or remove the side-car.") from error
    if not isinstance(fields, dict):
        reason = f"its side-car {path} must be a JSON object; got a {type(fields).__name__}."
        raise ScanError(scan, "find", reason, "Mend or remove the side-car.")
    return fields


def repetition_time(fields: dict[str, Any], scan: Path) -> float | None:
    """Return a side-car's RepetitionTime in seconds; None where it has none.

    Raises:
        ScanError: It is not a positive number.
    """
    value = fields.get("RepetitionTime")
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0 < value < math.inf):
        raise ScanError(
            scan,
            "find",
            f"RepetitionTime in its side-car must be a positive number of seconds; got {value!r}.",
            "Mend the side-car.",
        )
    return float(value)


def name_collision(path: Path, paths: Iterable[Path]) -> ScanError:
    """Return the failure of a file whose name, without its ending, others have too."""
    others = sorted(os.path.relpath(one, path.parent) for one in paths if one != path)
    return ScanError(
        path,
        "find",
        f"{', '.join(others)} has the same name, but for its ending or folder: which is meant?",
        "Keep or rename one of them.",
    )
