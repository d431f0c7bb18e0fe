"""The preprocessed scans on disk: one safetensors file per scan and recipe.

``<cache>/<modality>-<fingerprint>/<subject>-<key>.safetensors`` holds what the recipe returned. The
fingerprint covers the recipe's class, version and fields; the key covers the scan's path and
repetition time, and the file's size and time of change are inside the entry. So a changed recipe
makes a new folder, and a changed scan makes a new entry. Files are written under a temporary name
and renamed, so an entry is whole or absent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import re
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from jaxtyping import UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from neuro.console import meter
from neuro.data.manifest import Series
from neuro.data.recipes import Recipe
from neuro.data.tokens import grid_of
from neuro.data.volume import read_volume
from neuro.errors import InputError, ScanError

log = logging.getLogger(__name__)


class Cache:
    """Preprocessed scans, one folder per recipe.

    Args:
        root: The folder that holds the folders; ``paths.cache_dir``.
        recipes: What is done to the scans of each modality.
    """

    def __init__(self, root: Path | str, recipes: Mapping[str, Recipe]) -> None:
        self.root = Path(root).absolute()
        self.recipes = recipes
        self.folders = {
            modality: self.root / f"{modality}-{fingerprint(recipe)}"
            for modality, recipe in recipes.items()
        }

    def entry(self, series: Series) -> Path:
        """Return the file that a scan's tensors are kept in."""
        origin = f"{series.subject}|{series.path.absolute()}|{series.repetition_time_s}"
        key = hashlib.sha256(origin.encode()).hexdigest()[:16]
        subject = re.sub(r"[^A-Za-z0-9]+", "-", series.subject)[:64]  # a table may say ../..
        return self.folders[series.modality] / f"{subject}-{key}.safetensors"

    def read(self, series: Series) -> Tensor:
        """Return the voxels of a scan."""
        with self._open(series) as file:
            return file.get_tensor("voxels")

    def read_frames(self, series: Series, start: int, stop: int) -> Tensor:
        """Return the frames of a run from ``start`` to ``stop``, without reading the others."""
        with self._open(series) as file:
            return file.get_slice("voxels")[start:stop]

    def foreground(self, series: Series) -> UInt8[Tensor, " tokens"]:
        """Return the share of head in each token of what the dataset gives, 0 to 255.

        A spatial patch of a run is foreground at every time, and time is the fastest axis of the
        order of tokens.
        """
        recipe = self.recipes[series.modality]
        with self._open(series) as file:
            foreground = file.get_tensor("foreground")
        return foreground.repeat_interleave(math.prod(grid_of(recipe.shape, recipe.patch)[3:]))

    def num_frames(self, series: Series) -> int:
        """Return the length of a run after resampling in time."""
        with self._open(series) as file:
            return file.get_slice("voxels").get_shape()[0]

    def build(self, scans: Iterable[Series], *, max_failed: float) -> list[ScanError]:
        """Preprocess every scan that has no fresh entry, in parallel.

        Args:
            scans: The scans; one that is listed twice is built once.
            max_failed: The share of scans, in [0, 1], that may fail.

        Returns:
            The scans that failed, with their reasons; they are also in ``failures.tsv`` of the
            cache.

        Raises:
            InputError: A modality has no recipe.
            TooManyFailedScans: More than ``max_failed`` of the scans failed.
        """
        unique = list({self.entry(one): one for one in scans if self._has_recipe(one)}.values())
        missing = [one for one in unique if not self._is_fresh(one)]
        for modality in sorted({one.modality for one in missing}):
            self._make_folder(modality)
        failures: list[ScanError] = []
        if missing:
            with (
                ThreadPoolExecutor(num_cores()) as pool,
                meter("scans prepared", len(missing)) as advance,
            ):
                for job in as_completed([pool.submit(self._build_one, one) for one in missing]):
                    try:
                        job.result()
                    except ScanError as error:
                        failures.append(error)
                    advance()
        failures.sort(key=lambda failure: failure.path)
        self._write_ledger(unique, failures)
        if len(failures) > max_failed * len(unique):
            raise TooManyFailedScans(failures, num_scans=len(unique), max_failed=max_failed)
        return failures

    def _has_recipe(self, series: Series) -> bool:
        if series.modality in self.recipes:
            return True
        raise InputError(
            f"{series.path}: modality {series.modality!r} has no recipe; "
            f"known are {', '.join(self.recipes)}. "
            f"Add data.recipes.{series.modality} or correct the modality."
        )

    def _build_one(self, series: Series) -> None:
        """Preprocess one scan; runs in a thread."""
        path = self.entry(series)
        path.unlink(missing_ok=True)  # so that a scan that went bad leaves no old entry behind
        tensors = self.recipes[series.modality].apply(
            read_volume(series.path, series.repetition_time_s)
        )
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            save_file(tensors, temporary, metadata={"source": source_stamp(series.path)})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise InputError(
                f"cannot write to the cache {path.parent}: {error}. "
                f"Free space or set paths.cache_dir."
            ) from error

    def _is_fresh(self, series: Series) -> bool:
        path = self.entry(series)
        if not path.exists():
            return False
        try:
            with safe_open(path, framework="pt") as file:
                stamp = file.metadata()["source"]
        except SafetensorError:
            return False
        return series.path.exists() and stamp == source_stamp(series.path)

    def _open(self, series: Series):  # noqa: ANN202, the type of safe_open has no public name
        path = self.entry(series)
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, FileNotFoundError) as error:
            raise ScanError(
                series.path,
                "cache",
                f"its cache entry {path} cannot be read ({error}).",
                "Delete the entry and start again.",
            ) from error

    def _make_folder(self, modality: str) -> None:
        """Make the recipe's folder and say what differs from the newest one there was."""
        folder = self.folders[modality]
        if folder.exists():
            return
        known = sorted(
            self.root.glob(f"{modality}-*/recipe.json"), key=lambda path: path.stat().st_mtime
        )
        described = describe(self.recipes[modality])
        if known:
            before = json.loads(known[-1].read_text())
            changed = [
                f"{name}: {before.get(name)} -> {described.get(name)}"
                for name in sorted({*before, *described})
                if before.get(name) != described.get(name)
            ]
            log.info(
                "recipe of %s changed, its scans are prepared anew: %s",
                modality,
                "; ".join(changed),
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.json").write_text(json.dumps(described, indent=2))

    def _write_ledger(self, checked: list[Series], failures: list[ScanError]) -> None:
        """Bring ``failures.tsv`` up to date for the scans that were checked."""
        ledger = self.root / "failures.tsv"
        paths = {str(one.path) for one in checked}
        rows = ledger.read_text().splitlines()[1:] if ledger.exists() else []
        rows = [row for row in rows if row.split("\t")[0] not in paths]
        rows += [f"{one.path}\t{one.step}\t{one.reason}\t{one.cure}" for one in failures]
        if not rows:
            ledger.unlink(missing_ok=True)
        else:
            self.root.mkdir(parents=True, exist_ok=True)
            ledger.write_text("\n".join(["file\tstep\treason\tcure", *sorted(rows)]) + "\n")


class TooManyFailedScans(InputError):
    """More scans failed than ``data.max_failed`` allows; the message names each of them."""

    def __init__(self, failures: list[ScanError], *, num_scans: int, max_failed: float) -> None:
        self.failures = failures
        self.max_failed = max_failed
        lines = "\n".join(str(failure) for failure in failures)
        super().__init__(
            f"{lines}\n{len(failures)} of {num_scans} scans cannot be used; "
            f"data.max_failed={max_failed} allows {int(max_failed * num_scans)}. "
            f"Mend or remove them, or raise data.max_failed."
        )

    def __reduce__(self) -> tuple:
        return InputError, (str(self),)


def num_cores() -> int:
    """Return the cores of this job, which on a cluster are not all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(recipe: Recipe) -> dict[str, object]:
    """Return a recipe as plain values: class, version and fields."""
    fields = dataclasses.asdict(recipe)  # pyright: ignore[reportArgumentType]
    return {
        "recipe": type(recipe).__name__,
        "version": recipe.version,
        **json.loads(json.dumps(fields)),
    }


def fingerprint(recipe: Recipe) -> str:
    """Return a short name for exactly this recipe."""
    return hashlib.sha256(json.dumps(describe(recipe), sort_keys=True).encode()).hexdigest()[:12]


def source_stamp(path: Path) -> str:
    """Return what changes when a file is replaced."""
    stat = path.stat()
    return f"{stat.st_size}|{stat.st_mtime_ns}"
