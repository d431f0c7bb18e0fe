"""The prepared scans on disk: one file per scan and recipe, in one folder per recipe.

``<cache>/<modality>-<fingerprint>/<subject>-<key>.safetensors``. The fingerprint covers the
recipe's class, version and fields; the key covers the scan's path and repetition time; the file's
size and time of change are inside the entry. So a changed recipe makes a new folder, and a changed
scan a new entry. Beside the folders, ``index.jsonl`` says what is in each entry, so that a plan
needs no entry opened, and ``failures.tsv`` lists what could not be prepared.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISDIR

import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from neuro.console import meter
from neuro.data.dicom import read_dicom
from neuro.data.dicom_slices import MIN_SLICES
from neuro.data.entry import Entry, Facts, voxel_digest, write_entry
from neuro.data.fingerprint import fingerprint, open_folder
from neuro.data.frames import FIRST
from neuro.data.index import Index
from neuro.data.ledger import Ledger, TooManyFailedScans, check_tolerance, failed
from neuro.data.lock import locked
from neuro.data.manifest import Series
from neuro.data.recipes import Recipe
from neuro.data.threads import Threads
from neuro.data.tokens import grid_of
from neuro.data.volume import Volume, read_volume
from neuro.data.whole_file import NotWritable, remove
from neuro.errors import InputError, ScanError

__all__ = ["Cache", "TooManyFailedScans", "num_cores", "source_stamp"]

log = logging.getLogger(__name__)


class Cache:
    """Prepared scans.

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
        self.index = Index(self.root)
        self.ledger = Ledger(self.root)

    def entry(self, series: Series) -> Path:
        """Return the file that a scan's tensors are kept in."""
        origin = (
            f"{series.subject}|{series.path.absolute()}|{series.repetition_time_s}|{series.uid}"
        )
        key = hashlib.sha256(origin.encode()).hexdigest()[:16]
        subject = re.sub(r"[^A-Za-z0-9]+", "-", series.subject)[:64]  # a table may say ../..
        return self.folders[series.modality] / f"{subject}-{key}.safetensors"

    def read(self, series: Series, view: str = "voxels") -> tuple[Tensor, UInt8[Tensor, "*grid"]]:
        """Return one view of a scan, and the share of head in each token on its grid, 0 to 255.

        Raises:
            ScanError: The entry is absent or damaged.
        """
        with self._open(series) as entry:
            voxels = entry.read(view)
            shares = entry.read("foreground")
        patch = self.recipes[series.modality].patch
        return voxels, shares.reshape(grid_of(tuple(voxels.shape[-3:]), patch[:3]))

    def read_window(
        self, series: Series, start: int, step: int, view: str = "voxels"
    ) -> tuple[Tensor, UInt8[Tensor, "depth height width time"]]:
        """Return a window of a run, time last, without reading the other frames.

        A spatial patch of a run is foreground at every time.

        Args:
            series: The run.
            start: First frame, on the recipe's clock.
            step: Frames from one to the next.
            view: Which view.

        Raises:
            ScanError: The entry is absent or damaged.
        """
        recipe = self.recipes[series.modality]
        assert recipe.shape is not None, "a run has a fixed shape"
        with self._open(series) as entry:
            frames = entry.read_frames(view, start, step, recipe.shape[3])
            shares = entry.read("foreground")
        grid = grid_of(recipe.shape, recipe.patch)
        shares = shares.reshape(*grid[:3], 1).expand(*grid).contiguous()
        return frames.movedim(0, -1), shares

    def affine(self, series: Series) -> Float64[Tensor, "4 4"]:
        """Return what takes the index of a prepared voxel to RAS millimetres of the scan."""
        with self._open(series) as entry:
            return entry.read("affine")

    def facts(self, scans: Iterable[Series]) -> dict[Series, Facts]:
        """Return what is known of the scans that have an entry."""
        entries = {one: self.entry(one) for one in scans}
        known = self.index.facts({path: one.path for one, path in entries.items()})
        return {one: known[path] for one, path in entries.items() if path in known}

    def num_kept(
        self,
        scans: Iterable[Series],
        min_foreground: float,
        damaged: dict[Series, ScanError] | None = None,
    ) -> dict[Series, int]:
        """Return how many tokens of each scan's grid, of one frame, have this share of head.

        Args:
            scans: Scans that have an entry.
            min_foreground: The share, in [0, 1].
            damaged: Gets an error for each scan whose entry cannot be read, which then has no
                count; None raises the first.

        Raises:
            ScanError: An entry is absent or damaged.
        """
        entries = {one: self.entry(one) for one in scans}
        errors = None if damaged is None else {}
        counts = self.index.num_kept(
            {path: one.path for one, path in entries.items()}, min_foreground, errors
        )
        if damaged is not None and errors:
            damaged.update({one: errors[path] for one, path in entries.items() if path in errors})
        return {one: counts[path] for one, path in entries.items() if path in counts}

    def num_scans(self, scans: Iterable[Series], known_failures: Sequence[ScanError]) -> int:
        """Return how many scans there are, those among them that the source could not use."""
        return len({self.entry(one) for one in scans}) + len(failed(known_failures))

    def build(
        self,
        scans: Iterable[Series],
        *,
        max_failed: float,
        known_failures: Sequence[ScanError] = (),
        shard: tuple[int, int] = (1, 1),
    ) -> list[ScanError]:
        """Prepare every scan that has no fresh entry, in parallel.

        It may be killed and started again, and several may run at once: each scan is prepared by
        one of them, and an entry is whole or absent.

        Args:
            scans: The scans; one that is listed twice is prepared once.
            max_failed: The share of scans, in [0, 1], that may fail.
            known_failures: What the source found to be unusable; it counts too.
            shard: (3, 16) prepares the third of sixteen parts.

        Returns:
            The scans that failed, with their reasons; they are also in ``failures.tsv``.

        Raises:
            InputError: A modality has no recipe, the disk is full, or the user may not write.
            TooManyFailedScans: More than ``max_failed`` of the scans failed.
        """
        unique = {self.entry(one): one for one in scans if self._has_recipe(one)}
        unique = {path: one for path, one in unique.items() if _in_shard(path, shard)}
        missing = {path: one for path, one in unique.items() if not self._is_fresh(path, one)}
        failures = [*known_failures, *self._build_all(missing)]
        failures.sort(key=lambda failure: failure.path)
        self.index.refresh({path: one.path for path, one in unique.items() if path.exists()})
        own = None if shard == (1, 1) else [one.path for one in unique.values()]
        self.ledger.update(failures, own)
        num_scans = self.num_scans(unique.values(), known_failures)
        check_tolerance(failures, num_scans=num_scans, max_failed=max_failed)
        return failures

    def mend(self, damaged: Mapping[Series, ScanError]) -> list[ScanError]:
        """Prepare scans anew whose entries turned out to be damaged, and name each.

        Args:
            damaged: The scans, and what is wrong with their entries.

        Returns:
            Those that cannot be prepared any more; they have no entry then.

        Raises:
            InputError: The disk is full, or the user may not write.
        """
        entries = {self.entry(one): one for one in damaged}
        for one, error in damaged.items():
            log.warning("%s: %s It is prepared anew.", one.path, error.reason)
        for path in entries:
            with locked(path.parent, path.name):
                remove(path)
        failures = self._build_all(entries)
        self.index.refresh({path: one.path for path, one in entries.items() if path.exists()})
        return failures

    def _build_all(self, missing: Mapping[Path, Series]) -> list[ScanError]:
        """Prepare scans in threads.

        Their decompression, matrix products and copies run outside the interpreter's lock.
        """
        failures = []
        if not missing:
            return failures
        for modality in sorted({one.modality for one in missing.values()}):
            open_folder(self.folders[modality], modality, self.recipes[modality], len(missing))
        with (
            Threads(num_cores()) as pool,
            _one_thread_each(),
            meter("scans prepared", len(missing)) as advance,
        ):
            jobs = [pool.submit(self._build_one, *one, pool) for one in missing.items()]
            for job in as_completed(jobs):
                try:
                    job.result()
                except ScanError as error:
                    failures.append(error)
                advance()
        return failures

    def _build_one(self, path: Path, series: Series, pool: Threads) -> None:
        """Prepare one scan; runs in a thread."""
        recipe = self.recipes[series.modality]
        try:
            with locked(path.parent, path.name):
                if self._is_fresh(path, series):  # another job was faster
                    return
                remove(path)  # a scan that went bad leaves no old entry behind
                volume = _read(series)
                if pool.stopping.is_set():
                    return
                tensors = recipe.apply(volume)
                if pool.stopping.is_set():
                    return
                write_entry(path, tensors, _facts(volume, recipe, tensors, source_stamp(series)))
        except NotWritable as error:
            if error.is_forbidden:  # a bad scan is told of all the same, and needs no writing
                recipe.apply(_read(series))
            raise

    def _has_recipe(self, series: Series) -> bool:
        if series.modality in self.recipes:
            return True
        raise InputError(
            f"{series.path}: modality {series.modality!r} has no recipe; "
            f"known are {', '.join(self.recipes)}. "
            f"Add data.recipes.{series.modality} or correct the modality."
        )

    def _is_fresh(self, path: Path, series: Series) -> bool:
        try:
            stamp = source_stamp(series)
        except OSError:
            return False
        facts = self.index.facts({path: series.path}).get(path)
        return facts is not None and facts.source == stamp

    def _open(self, series: Series) -> Entry:
        return Entry(self.entry(series), series.path)


def num_cores() -> int:
    """Return the cores of this job, which on a cluster are not all of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def source_stamp(series: Series) -> str:
    """Return what changes when a scan's file, or one of its DICOM files, is replaced.

    Of a folder of frames, its list of files and the first of them are looked at.

    Raises:
        OSError: A file is absent.
    """
    stats = [path.stat() for path in series.files or (series.path,)]
    if not series.files and S_ISDIR(stats[0].st_mode):
        stats.append((series.path / FIRST).stat())
    newest = max(stat.st_mtime_ns for stat in stats)
    return f"{len(stats)}|{sum(stat.st_size for stat in stats)}|{newest}"


def _read(series: Series) -> Volume:
    """Return a scan as a volume, of at least so many slices whichever way they are cut."""
    if series.files:
        return read_dicom(series.files, series.name)  # which counts its slices itself
    volume = read_volume(series.path, series.repetition_time_s)
    if min(volume.voxels.shape[:3]) < MIN_SLICES:
        raise ScanError(
            series.path,
            "geometry",
            f"a volume needs at least {MIN_SLICES} voxels along each axis; this one has shape "
            f"{volume.voxels.shape}.",
            "Give the whole volume, or leave the file out.",
        )
    return volume


def _facts(volume: Volume, recipe: Recipe, tensors: Mapping[str, Tensor], stamp: str) -> Facts:
    first = tensors[next(iter(recipe.views))]
    num_frames = len(first) if first.ndim == 4 else 0
    x, y, z = volume.source_spacing_mm
    return Facts(
        source=stamp,
        source_shape=volume.source_shape,
        source_spacing_mm=(round(x, 4), round(y, 4), round(z, 4)),
        orientation=volume.orientation,
        grid=grid_of(tuple(first.shape[-3:]), recipe.patch[:3]),
        num_frames=num_frames,
        voxels=voxel_digest(tensors, recipe.views),
        warnings=(*volume.warnings, *recipe.warnings(volume)),
    )


def _in_shard(path: Path, shard: tuple[int, int]) -> bool:
    """Return whether an entry belongs to a shard; by its name, so no two shards share one."""
    number, count = shard
    return int(hashlib.sha256(path.name.encode()).hexdigest()[:8], 16) % count == number - 1


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let each scan have one core: scans are many, and threads inside threads only wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
