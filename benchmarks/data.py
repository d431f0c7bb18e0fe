"""What the data road costs on clinical volumes: python benchmarks/data.py [--json FILE]

Synthetic heads with noise, written as the .nii.gz files that scanners and converters leave: one
thread, where nothing else is said. The floors are measured in the same run.
"""

from __future__ import annotations

import argparse
import gzip
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from measure import seconds, tell

from neuro.data.augment import Augment
from neuro.data.cache import Cache
from neuro.data.clinical_tokens import ClinicalTokens
from neuro.data.collate import Background, StudyCollator
from neuro.data.dataset import SeriesDataset
from neuro.data.entry import Facts, write_entry
from neuro.data.leaks import check_splits
from neuro.data.loader import PlanInput
from neuro.data.manifest import Manifest, Series, Study
from neuro.data.sampler import BatchBudget
from neuro.data.splits import SubjectSplits
from neuro.data.study_folders import Modes
from neuro.data.table_cohort import TableCohort
from neuro.data.volume import read_volume
from neuro.data.windows import Windows

# What hospitals send: shape and spacing of a 3-D T1, an axial T2 and a coronal FLAIR.
SCANS = [
    ((176, 256, 256), (1.0, 1.0, 1.0)),
    ((256, 256, 36), (0.9, 0.9, 4.0)),
    ((320, 320, 30), (0.7, 0.7, 5.0)),
]
CACHED = [(64, 256, 176), (36, 224, 224)]  # voxels of entries


def head(shape, seed):
    """Return int16 voxels of something round with structure and noise."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1.15, 1.15, size) for size in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    tissue = 600 + 250 * np.sin(9 * axes[0]) * np.cos(7 * axes[1] + 3 * axes[2])
    signal = np.where(radius < 1, tissue, 0) + rng.normal(0, 12, shape)
    return np.abs(signal).astype(np.int16)


def write_scans(root, count):
    paths = []
    for number in range(count):
        shape, spacing = SCANS[number % len(SCANS)]
        path = root / f"sub-{number:03d}.nii.gz"
        nib.save(nib.Nifti1Image(head(shape, number), np.diag([*spacing, 1.0])), path)
        paths.append(path)
    return paths


def build(root, count=9):
    """Reading and preparing: the first figure is per core."""
    paths = write_scans(root, count)
    recipe = ClinicalTokens(modality="mri")
    figures = {}
    raw = [gzip.decompress(path.read_bytes()) for path in paths]
    squeezed = [path.read_bytes() for path in paths]
    from isal import igzip

    floor = seconds(lambda: [igzip.decompress(one) for one in squeezed], 3) / count
    read = seconds(lambda: [read_volume(path) for path in paths], 3) / count
    volumes = [read_volume(path) for path in paths]
    apply = seconds(lambda: [recipe.apply(volume) for volume in volumes], 3) / count
    figures["raw_mb_per_volume"] = sum(map(len, raw)) / count / 1e6
    figures["decompress_ms"] = floor * 1e3
    figures["read_ms"] = read * 1e3
    figures["recipe_ms"] = apply * 1e3
    series = [Series(subject=f"s{i}", modality="mri", path=path) for i, path in enumerate(paths)]
    cores = len(os.sched_getaffinity(0))
    times = []
    for turn in range(3):
        cache = Cache(root / f"cache{turn}", {"mri": recipe})
        start = time.perf_counter()
        cache.build(series, max_failed=0.0)
        times.append(time.perf_counter() - start)
    figures["build_vol_per_s_core"] = count / statistics.median(times) / cores
    figures["build_over_floor"] = 1 / figures["build_vol_per_s_core"] / floor
    return figures


def write_cached(root, count):
    """Entries as the cache writes them, of random voxels in the middle and air around."""
    recipe = ClinicalTokens(modality="mri")
    cache = Cache(root / "cache", {"mri": recipe})
    cache.folders["mri"].mkdir(parents=True)
    studies = []
    for number in range(count):
        shape = CACHED[number % len(CACHED)]
        generator = torch.Generator().manual_seed(number)
        voxels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        grid = tuple(size // edge for size, edge in zip(shape, recipe.patch, strict=True))
        place = torch.stack(
            torch.meshgrid(*(torch.linspace(-1, 1, size) for size in grid), indexing="ij")
        )
        shares = ((place.norm(dim=0) < 0.95) * 255).to(torch.uint8).flatten()
        path = root / f"{number}.nii.gz"
        path.touch()
        one = Series(subject=f"s{number}", modality="mri", path=path, name=f"{number}")
        facts = Facts(
            source="", source_shape=shape, source_spacing_mm=(1.0, 1.0, 1.0), orientation="RAS",
            grid=grid, num_frames=0, voxels=str(number), warnings=(),
        )  # fmt: skip
        affine = torch.eye(4, dtype=torch.float64)
        tensors = {"voxels": voxels, "foreground": shares, "affine": affine}
        write_entry(cache.entry(one), tensors, facts)
        studies.append(Study(id=f"t{number // 4}", series=(one,), split="train"))
    whole = [
        Study(id=f"t{n}", series=tuple(one.series[0] for one in studies[4 * n : 4 * n + 4]))
        for n in range(count // 4)
    ]
    return cache, Manifest.of(whole)


def dataset_of(cache, manifest, augment=None):
    return SeriesDataset(manifest, cache, augment=augment, seed=1, windows=Windows())


def cached(root, count=64):
    cache, manifest = write_cached(root, count)
    dataset = dataset_of(cache, manifest)
    figures = {}
    read = seconds(lambda: [dataset[row, 0] for row in range(count)]) / count
    figures["series_per_s"] = 1 / read
    copies = [torch.empty(shape, dtype=torch.uint8) for shape in CACHED]
    copy = statistics.mean(seconds(one.clone, 50) for one in copies)
    figures["series_over_copy_of_memory"] = read / copy
    augmented = dataset_of(
        cache,
        manifest,
        Augment(crop_probability=0.5, flip_left_right=0.5, transpose_probability=0.5),
    )
    figures["series_per_s_augmented"] = count / seconds(
        lambda: [augmented[row, 0] for row in range(count)]
    )
    items = [dataset[row, 0] for row in range(16)]
    collate = StudyCollator(Background(min_foreground=0.5))
    figures["collate_ms"] = seconds(lambda: collate(items), 20) / len(items) * 1e3
    batch = collate(items)
    figures["tokens_kept"] = len(batch.volumes.tokens) / sum(len(one.tokens) for one in items)
    figures["collate_over_copy_of_memory"] = seconds(lambda: collate(items), 20) / seconds(
        batch.volumes.tokens.clone, 20
    )
    return figures


def write_table(path, count):
    numbers = np.arange(count)
    pa.parquet.write_table(
        pa.table(
            {
                "study": [f"study-{n // 4:07d}" for n in numbers],
                "subject": [f"subject-{n // 8:07d}" for n in numbers],
                "series": [f"s{n % 4}" for n in numbers],
                "modality": ["mri" if n % 3 else "ct" for n in numbers // 4],
                "path": [f"study-{n // 4:07d}/s{n % 4}.nii.gz" for n in numbers],
            }
        ),
        path,
    )


def resident_mb():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def private_mb():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024


def manifest(root, count=1_000_000):
    write_table(root / "table.parquet", count)
    splits = SubjectSplits(val=0.1, test=0.1)
    before = resident_mb()
    start = time.perf_counter()
    loaded = TableCohort(root / "table.parquet", root, Modes(), splits).manifest()
    figures = {
        "manifest_1m_s": time.perf_counter() - start,
        "manifest_1m_mb": resident_mb() - before,
    }
    figures["leak_check_1m_s"] = seconds(lambda: check_splits(loaded), 1)
    figures |= {f"workers_{n}_private_mb": workers(loaded, n) for n in (1, 4)}
    return figures


def workers(loaded, count):
    """Return the memory that each of so many processes takes for itself while it reads rows."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def work(seed):
        rng = np.random.default_rng(seed)
        before = private_mb()
        for row in rng.integers(0, len(loaded), 20_000).tolist():
            loaded[row]
        queue.put(private_mb() - before)

    processes = [context.Process(target=work, args=(seed,)) for seed in range(count)]
    for process in processes:
        process.start()
    grown = [queue.get() for _ in processes]
    for process in processes:
        process.join()
    return max(grown)


def plan(count=1_000_000):
    rng = np.random.default_rng(0)
    planned = PlanInput(
        num_tokens=rng.integers(200, 4000, count),
        budget=BatchBudget(max_studies=32, max_tokens=16384),
        signatures=rng.integers(0, 5, count),
    )
    once = seconds(lambda: planned.plan(seed=1, epoch=0, world_size=8, shuffle=True), 3)
    return {"plan_1m_s": once}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    figures = {}
    for measure in (cached, build, manifest):
        with tempfile.TemporaryDirectory() as root:
            figures |= measure(Path(root))
    figures |= plan()
    tell(figures, arguments.json)


if __name__ == "__main__":
    main()
