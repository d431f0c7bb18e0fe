"""Fifty deaths at seeded random moments, of trainings and of the building of a cache.

Nothing is lost and nothing is damaged: each result equals that of a process that was left alone.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_jepa
import small_llava
import small_mil
import torch
from safetensors.torch import load_file
from same import assert_same

from neuro.data.phantom_files import write_phantoms

CHAOS = Path(__file__).with_name("chaos.py")
# Saved after every step, so that each life that gets as far as a step gets further.
STEPS = (
    "trainer.max_steps=10",
    "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
    "callbacks.last.every_minutes=1e-6",
    "run.name={life}",
)


def chaos(folder, command, deaths, *words):
    """Return the names of the results, after so many deaths, and how many each took."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "chaos.log"
    done = subprocess.run(
        [sys.executable, str(CHAOS), command, "1", str(deaths), "whole", *words],
        env={**os.environ, "CHAOS_LOG": str(log), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["deaths"] == deaths
    assert "Traceback" not in log.read_text()
    for one in told["results"]:
        assert one["status"] == 0, (one, log.read_text()[-2000:])
    print(f"{command}: {told}")
    return [one["life"] for one in told["results"]]


def result(run):
    """Return what a training leaves, without paths."""
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "weights": state["state_dict"],
        "optimizer": state["optimizer_states"],
        "schedule": state["lr_schedulers"],
        "best": best["state_dict"],
        "figures": json.loads((run / "metrics.json").read_text()),
        "rows": rows,
        "predictions": {
            path.name: path.read_text() for path in sorted((run / "predictions").glob("*.csv"))
        },
    }


@pytest.mark.slow
@pytest.mark.parametrize(("system", "deaths"), [("mil", 12), ("jepa", 12), ("llava_mri", 11)])
def test_a_training_that_dies_again_and_again_ends_as_one_that_did_not(tmp_path, system, deaths):
    own = small_llava.SMALL
    if system == "jepa":
        own = small_jepa.SMALL
    elif system == "mil":
        heads = small_mil.write_heads(tmp_path / "heads")
        own = (*small_mil.SMALL, f"data.root={heads}")
    words = [f"system={system}", *own, *STEPS, f"paths.root={tmp_path}"]
    lives = chaos(tmp_path, "train", deaths, *dict.fromkeys(words))
    runs = tmp_path / "outputs" / system
    for life in lives:
        assert_same(result(runs / life), result(runs / "whole"), life)
        assert not list((runs / life / "checkpoints").glob(".*")), "something half-written is left"


@pytest.mark.slow
def test_a_cache_whose_builders_die_again_and_again_is_whole(tmp_path):
    write_phantoms(
        tmp_path / "heads",
        num_subjects=12,
        seed=1,
        t1_shape=(48, 48, 48),
        t1_spacing_mm=4.0,
        bold_shape=(24, 24, 24),
        bold_spacing_mm=8.0,
    )
    (tmp_path / "heads/sub-0003/anat/sub-0003_T1w.nii.gz").write_bytes(b"no scan")
    words = [
        "data=bids",
        f"data.root={tmp_path / 'heads'}",
        "data.questions=[sex]",
        "data.max_failed=0.5",
        f"paths.root={tmp_path}",
        f"paths.cache_dir={tmp_path}/{{life}}",
    ]
    lives = chaos(tmp_path, "prepare", 15, *words)
    expected = cache(tmp_path / "whole")
    assert len(expected["scans"]) >= 11
    for life in lives:
        assert_same(cache(tmp_path / life), expected, life)


def cache(folder):
    """Return what a cache holds."""
    rows = map(json.loads, (folder / "index.jsonl").read_text().splitlines())
    return {
        "scans": {
            str(path.relative_to(folder)): load_file(path)
            for path in sorted(folder.rglob("*.safetensors"))
        },
        "index": {row["entry"]: row["facts"] for row in rows},
        "failures": (folder / "failures.tsv").read_text(),
        "files": sorted(
            str(path.relative_to(folder))
            for path in folder.rglob("*")
            if path.is_file() and path.suffix != ".lock" and path.name != "prepare.log"
        ),
    }
