"""The cache is built as training would build it, and everything that could not be used is told."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from neuro.errors import InputError
from neuro.prepare import shard_of

ROOT = Path(__file__).parents[1]


def prepare(tmp_path, *words, check=True):
    command = [sys.executable, "-m", "neuro.prepare", f"paths.root={tmp_path}", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stdout + done.stderr
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def head(shape, seed=0):
    axes = np.meshgrid(*(np.linspace(-1.2, 1.2, size) for size in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    texture = np.random.default_rng(seed).normal(0, 20, shape)
    return np.where(radius < 1, 600 + 200 * axes[0] + texture, 3).astype(np.int16)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Three studies of two series each, one of them broken."""
    root = tmp_path_factory.mktemp("export") / "studies"
    for number in range(3):
        folder = root / f"00{number}"
        folder.mkdir(parents=True)
        for name, shape, spacing in (("t1", (40, 64, 64), 2.0), ("flair", (64, 64, 12), 2.0)):
            image = nib.Nifti1Image(head(shape, number), np.diag([spacing] * 3 + [1.0]))
            nib.save(image, folder / f"{name}.nii.gz")
    (root / "002" / "flair.nii.gz").write_bytes(b"not an image")
    return root


@pytest.mark.slow
def test_a_folder_of_studies_is_prepared_and_shown(tmp_path, exported):
    words = ["data=studies", f"data.root={exported}", "data.default_mode=mri"]
    done = prepare(tmp_path, *words, "data.max_failed=0.5")
    assert "5 of 6 scans can be used" in done.stdout
    cache = tmp_path / "cache"
    rows = [json.loads(line) for line in (cache / "index.jsonl").read_text().splitlines()]
    assert len(rows) == 5
    assert all((cache / row["entry"]).is_file() for row in rows)
    ledger = (cache / "failures.tsv").read_text().splitlines()
    assert ledger[0].split("\t") == ["file", "step", "reason", "cure"]
    assert len(ledger) == 2
    assert "002/flair.nii.gz" in ledger[1]
    assert (
        json.loads((cache / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    )
    page = (cache / "qc.html").read_text()
    assert "http" not in re.sub(r"data:image/[^\"']+", "", page).replace("http://www.w3.org", "")
    assert page.count("data:image/") == 5
    again = prepare(tmp_path, *words, "data.max_failed=0.5")
    assert "scans prepared" not in again.stdout.replace("scans prepared: 1 done", "")  # the bad one


@pytest.mark.slow
def test_too_many_bad_scans_exit_with_1_and_the_rest_is_there(tmp_path, exported):
    done = prepare(
        tmp_path, "data=studies", f"data.root={exported}", "data.default_mode=mri", check=False
    )
    assert done.returncode == 1
    assert "1 of 6 scans cannot be used; data.max_failed=0.05 allows 0" in done.stdout
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 5
    assert (tmp_path / "cache" / "qc.html").is_file()


@pytest.mark.slow
def test_shards_together_make_the_whole(tmp_path, exported):
    words = ["data=studies", f"data.root={exported}", "data.default_mode=mri", "data.max_failed=1"]
    for number in (1, 2):
        prepare(tmp_path, *words, f"shard={number}/2")
    entries = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")
    }
    assert len(entries) == 5
    assert not (tmp_path / "cache" / "qc.html").exists()
    prepare(tmp_path, *words)
    assert {path: path.stat().st_mtime_ns for path in entries} == entries  # nothing twice
    assert (tmp_path / "cache" / "qc.html").is_file()


@pytest.mark.slow
def test_an_old_cache_is_never_served_for_another_recipe(tmp_path, exported):  # S35, D41
    root = tmp_path / "studies"
    shutil.copytree(exported / "000", root / "000")
    words = ["data=studies", f"data.root={root}", "data.default_mode=mri", "data.splits.val=0"]
    prepare(tmp_path, *words)
    done = prepare(tmp_path, *words, "data.recipes.mri.percentiles=[1.0,99.0]")
    assert "percentiles: [0.5, 99.5] -> [1.0, 99.0]" in done.stdout
    assert len(list((tmp_path / "cache").glob("mri-*"))) == 2


@pytest.mark.parametrize("text", ["0/4", "5/4", "3", "a/b", "3/0", "-1/2"])
def test_a_shard_is_counted_from_one(text):
    with pytest.raises(InputError, match="counted from 1, like shard=3/16"):
        shard_of(text)


def test_shards():
    assert shard_of(None) == (1, 1)
    assert shard_of("16/16") == (16, 16)


@pytest.mark.slow
def test_help_answers_without_torch(tmp_path):
    done = prepare(tmp_path, "--help")
    assert "shard=3/16" in done.stdout


@pytest.mark.slow
def test_a_missing_root_is_one_line_with_its_cure(tmp_path):
    done = prepare(tmp_path, "data=studies", check=False)
    assert done.returncode == 2
    assert "data.root" in done.stdout + done.stderr
    done = prepare(tmp_path, "data=studies", f"data.root={tmp_path}/absent", check=False)
    assert done.returncode == 2
    assert "is not a folder" in done.stdout + done.stderr
