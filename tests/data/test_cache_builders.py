"""Builders may be killed, may run side by side, and waste and damage nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuro.data.cache import Cache
from neuro.data.entry import Entry
from neuro.data.fixed_grid import FixedGrid
from neuro.data.manifest import Series

NUM_SCANS = 24
BUILDER = """
import sys
from pathlib import Path
import torch
from neuro.data import cache as caches
from neuro.data.fixed_grid import FixedGrid
from neuro.data.manifest import Series

root, scans = Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.nii.gz"))
recipe = FixedGrid(shape=(48, 48, 48), spacing_mm=4.0, patch=(12, 12, 12), percentiles=(0.5, 99.5))
cache = caches.Cache(root, {"T1": recipe})
original = caches.read_volume

def noted(path, *arguments):
    with (root / "read.txt").open("a") as file:
        file.write(path.name + "\\n")
    return original(path, *arguments)

caches.read_volume = noted
root.mkdir(parents=True, exist_ok=True)
print("ready", flush=True)
cache.build([Series(subject=p.name, modality="T1", path=p) for p in scans], max_failed=0.0)
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    root = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    for number in range(NUM_SCANS):
        voxels = rng.normal(500, 50, (64, 64, 64)).astype(np.float32)
        voxels[:8] = 0
        nib.save(nib.Nifti1Image(voxels, np.diag([3.0, 3.0, 3.0, 1.0])), root / f"{number}.nii.gz")
    return root


def start(cache, scans):
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", BUILDER, str(cache), str(scans)],
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    process.stdout.readline()
    return process


def check(root, scans):
    """Every entry is there and whole, and nothing else is."""
    recipe = FixedGrid(
        shape=(48, 48, 48), spacing_mm=4.0, patch=(12, 12, 12), percentiles=(0.5, 99.5)
    )
    cache = Cache(root, {"T1": recipe})
    paths = sorted(scans.glob("*.nii.gz"))
    series = [Series(subject=path.name, modality="T1", path=path) for path in paths]
    for one in series:
        with Entry(cache.entry(one), one.path) as entry:
            for name in ("voxels", "foreground", "affine"):
                entry.read(name)
            entry.facts()
    folder = cache.folders["T1"]
    assert len(list(folder.glob("*.safetensors"))) == NUM_SCANS
    assert [one.name for one in folder.glob(".*")] == [".locks"]
    assert len(cache.facts(series)) == NUM_SCANS


def reads(root):
    return (root / "read.txt").read_text().split()


@pytest.mark.slow
def test_a_killed_builder_goes_on_where_it_was(tmp_path, scans):  # S34
    root, dice = tmp_path / "cache", random.Random(5)
    for _ in range(12):
        process = start(root, scans)
        time.sleep(dice.uniform(0.0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for path in root.glob("T1-*/*.safetensors"):  # what counts as done is whole
            with Entry(path, Path("scan")) as entry:
                entry.read("voxels")
    assert start(root, scans).wait() == 0
    check(root, scans)
    before = len(reads(root))
    assert start(root, scans).wait() == 0
    assert len(reads(root)) == before  # S32: what is done is known to be done


@pytest.mark.slow
def test_two_builders_share_the_work(tmp_path, scans):  # S32
    root = tmp_path / "cache"
    builders = [start(root, scans) for _ in range(3)]
    assert [builder.wait() for builder in builders] == [0, 0, 0]
    assert sorted(reads(root)) == sorted(path.name for path in scans.glob("*.nii.gz"))
    check(root, scans)
    assert len((root / "index.jsonl").read_text().splitlines()) == NUM_SCANS
