"""The cache is built as training would build it, and everything that could not be used is told."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from safetensors.torch import load

from neuro.command import CONF, explain, resolve
from neuro.data.ledger import NoUsableScan, TooManyFailedScans
from neuro.errors import InputError
from neuro.prepare import PARTS, num_pictures, shard_of
from neuro.prepare import prepare as prepare_here

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


@pytest.fixture
def here(tmp_path, exported, caplog, monkeypatch):
    """Prepare a copy of the studies in this process, and return what is said."""
    root = tmp_path / "studies"
    shutil.copytree(exported, root)
    (root / "002" / "flair.nii.gz").unlink()
    logger = logging.getLogger("neuro")
    logger.addHandler(caplog.handler)
    monkeypatch.setattr(logger, "propagate", False)  # or each line is there twice
    caplog.set_level(logging.INFO, logger="neuro")
    monkeypatch.setattr(  # it takes over the screen, which belongs to pytest
        "neuro.console.set_up_logging", lambda path: path.parent.mkdir(parents=True, exist_ok=True)
    )

    def run(*words, splits="hash"):
        hashed = ("val=0.3", "test=0.3", "salt=three") if splits == "hash" else ()
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose(
                "prepare",
                [
                    *("data=studies", f"data.root={root}", "data.default_mode=mri"),
                    f"splits@data.splits={splits}",
                    *(f"data.splits.{word}" for word in hashed),
                    *(f"paths.root={tmp_path}", *words),
                ],
            )
        caplog.clear()
        prepare_here(config)
        return caplog.text

    run.root = root
    run.cache = tmp_path / "cache"
    yield run
    logger.removeHandler(caplog.handler)


def flip(path, name="voxels"):
    """Change a bit of an entry as a bad disk does: neither its size nor its time changes."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    content[8 + length + header[name]["data_offsets"][0]] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def failures(here):
    path = here.cache / "failures.tsv"
    return [row.split("\t") for row in path.read_text().splitlines()[1:]] if path.exists() else []


def test_every_damaged_entry_is_named_and_prepared_anew(here):
    here()
    entries = sorted(here.cache.rglob("*.safetensors"))
    assert len(entries) == 5
    before = {path: load(path.read_bytes()) for path in entries}
    for path, name in zip(entries[:3], ("voxels", "foreground", "affine"), strict=True):
        flip(path, name)
    (here.cache / "index.jsonl").unlink()  # so that tokens are counted anew
    said = here()
    assert all((str(path) in said) == (path in entries[:3]) for path in entries)
    assert said.count("It is prepared anew") == 3
    assert "5 of 5 scans can be used" in said
    for path in entries:
        now = load(path.read_bytes())
        assert all(torch.equal(now[name], tensor) for name, tensor in before[path].items())
    assert "prepared anew" not in here()


def test_a_damaged_entry_that_cannot_be_prepared_anew_is_a_failure(here, monkeypatch):
    from neuro.data import cache as caches
    from neuro.errors import ScanError

    here()
    entries = sorted(here.cache.rglob("*.safetensors"))
    flip(entries[0])

    def lost(path, *more):
        raise ScanError(path, "read", "the disk is gone.", "Mend the disk.")

    monkeypatch.setattr(caches, "read_volume", lost)
    said = here("data.max_failed=0.2")
    assert "4 of 5 scans can be used" in said
    (row,) = failures(here)
    assert row[2] == "the disk is gone."
    assert "the disk is gone." in (here.cache / "qc.html").read_text()
    with pytest.raises(TooManyFailedScans, match="1 of 5 scans"):
        here()


def test_nothing_is_read_again_where_no_picture_is_drawn(here, monkeypatch):
    from neuro.data.cache import Cache
    from neuro.data.entry import Entry

    here()
    for path in here.cache.rglob("*.safetensors"):
        flip(path)
    monkeypatch.setattr(Cache, "_open", None)
    monkeypatch.setattr(Entry, "__enter__", None)
    assert "5 of 5 scans can be used" in here("max_pictures=0")


def test_failures_and_leaks_are_those_of_the_latest_state(here):
    bad, gone = here.root / "000" / "bad.nii.gz", here.root / "001" / "gone.nii.gz"
    bad.write_bytes(b"no image")
    gone.write_bytes(b"no image")
    (here.cache).mkdir()
    (here.cache / "leaks.tsv").write_text("of an earlier state\n")
    here("data.max_failed=0.5")
    assert [Path(row[0]) for row in failures(here)] == [bad, gone]
    assert not (here.cache / "leaks.tsv").exists()
    gone.unlink()
    here("data.max_failed=0.5")
    assert [Path(row[0]) for row in failures(here)] == [bad]
    shutil.copy(here.root / "000" / "t1.nii.gz", bad)
    here("data.max_failed=0.5")
    assert failures(here) == []


def test_a_shard_keeps_the_failures_of_the_others(here):
    for number in range(6):
        (here.root / "000" / f"bad{number}.nii.gz").write_bytes(b"no image")
    for number in (1, 2, 3):
        here("data.max_failed=1.0", f"shard={number}/3")
    assert len(failures(here)) == 6
    here("data.max_failed=1.0", "shard=2/3")
    assert len(failures(here)) == 6


def test_where_no_scan_can_be_used_failures_and_page_are_written_all_the_same(here):
    for path in here.root.glob("*/*.nii.gz"):
        path.write_bytes(b"no image")
    with pytest.raises(TooManyFailedScans, match="5 of 5 scans cannot be used"):
        here()
    page = (here.cache / "qc.html").read_text()
    assert len(failures(here)) == 5
    assert all(row[0] in page for row in failures(here))


def test_where_no_scan_is_found_failures_and_page_are_written_all_the_same(here):
    for path in here.root.glob("*/*.nii.gz"):
        path.with_suffix(".mgz").write_bytes(b"x")
        path.unlink()
    with pytest.raises(NoUsableScan, match="no scan can be used"):
        here()
    page = (here.cache / "qc.html").read_text()
    assert len(failures(here)) == 5
    assert all(row[0] in page for row in failures(here))


def test_counts_of_scans_agree_and_what_never_was_a_scan_is_counted_apart(here, monkeypatch):
    from neuro.data.study_folders import StudyFolders
    from neuro.errors import NotAScan

    (here.root / "000" / "bad.nii.gz").write_bytes(b"no image")
    whole = StudyFolders.manifest

    def with_a_shot(self):
        manifest = whole(self)
        shot = NotAScan(here.root / "shot", "find", "is a screen save.", "Leave it out.")
        return dataclasses.replace(manifest, failures=(*manifest.failures, shot))

    monkeypatch.setattr(StudyFolders, "manifest", with_a_shot)
    said = here("data.max_failed=0.5")
    assert "5 of 6 scans can be used" in said
    assert "1 more were never meant to be scans" in said
    assert len(failures(here)) == 2
    with pytest.raises(TooManyFailedScans, match="1 of 6 scans cannot be used"):
        here()


def test_a_split_that_would_be_empty_is_told_with_its_setting(here):
    said = here("data.splits.val=0.0", "data.splits.test=0.0")
    for split in ("val", "test"):
        assert re.search(rf"training would stop: the {split} split.* data\.splits", said)
    assert "the train split" not in said


def test_a_split_whose_scans_are_all_bad_is_told(here):
    for path in (here.root / "001").iterdir():
        path.write_bytes(b"no image")
    lists = [f"data.splits.{split}=['00{i}']" for i, split in enumerate(("train", "val", "test"))]
    said = here("data.max_failed=1.0", *lists, splits="listed")
    assert "none of the 1 studies of the val split can be used" in said
    assert "data.splits" in said


@pytest.mark.parametrize("given", ["a", -1, 1.5, True, None])
def test_the_number_of_pictures_is_a_whole_number(given):
    with pytest.raises(InputError, match=rf"max_pictures={given} must be a whole number, 0 or"):
        num_pictures(given)


def test_numbers_of_pictures():
    assert [num_pictures(given) for given in (0, 1, 1000)] == [0, 1, 1000]


def test_a_wrong_number_of_pictures_is_told_before_anything_is_prepared(here):
    with pytest.raises(InputError, match="max_pictures=a"):
        here("max_pictures=a")
    assert not list(here.cache.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("data.num_workers=-1", "data.num_workers=-1 must be 0 or more processes"),
        ("+data.weights.oslo=-1.0", "data.weights.oslo=-1.0 must say how often"),
        ("data.max_studies=0", "data.max_studies=0"),
        ("data.augment.gamma=-1.0", "data.augment.gamma must be"),
        ("data.stride_within_seq=0", "data.stride_within_seq must be"),
        ("data.window_probabilities.brain=-1.0", "window_probabilities takes"),
    ],
)
def test_what_training_would_refuse_is_refused_before_anything_is_prepared(here, word, says):
    with pytest.raises((InputError, InstantiationException)) as error:
        here(word)
    assert says in explain(error.value)
    assert not here.cache.exists()


@pytest.mark.parametrize("value", ["5", "true", "[1,2]", "atlas", "{a: x}"])
def test_wrong_types_are_told_in_the_words_of_training(value):
    said = []
    for name, parts in (("prepare", PARTS), ("train", ("",))):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose(name, ["paths.run_dir=x", f"data.weights={value}"])
        with pytest.raises(InputError, match=r"^data\.weights") as error:
            resolve(cfg, parts)
        said.append(str(error.value))
    assert said[0] == said[1]


def test_a_cache_that_cannot_be_made_names_the_setting(here, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"cannot write to the cache .*paths\.cache_dir"):
        here(f"paths.cache_dir={tmp_path}/file/cache")


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
    assert "://" not in page.replace("http://www.w3.org", "")
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
