"""A job that is stopped in the middle and put back into the queue ends as one that was not."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch
from lab import ENDED, until
from same import assert_same

pytestmark = pytest.mark.slurm

# 64 studies to train on, so that each of two ranks has 32 batches an epoch, and the run has more.
COMMON = (
    "trainer.accelerator=cpu",
    "trainer.max_steps=40",
    "trainer.val_check_interval=30",
    "trainer.log_every_n_steps=1",
    "data.num_subjects=80",
    "data.max_studies=1",
)
T1 = (
    "encoder=custom",
    "system.encoder.dim=48",
    "system.encoder.num_layers=2",
    "data.modalities=[T1]",
    "recipe@data.recipes.T1=cube_t1",
    "data.recipes.T1.shape=[24,24,24]",
    "data.recipes.T1.spacing_mm=8.0",
    "data.recipes.T1.patch=[4,4,4]",
    "data.patch_voxels=64",
    "data.t1_spacing_mm=8",
)
WORDS = {
    "llava_mri": (
        "data.t1_spacing_mm=8",
        "system.max_new_tokens=4",
        "system.llava.dim=32",
        "system.llava.num_layers=2",
        "system.llava.num_heads=2",
        "system.llava.steps=2",
    ),
    "jepa": (
        *T1,
        "data.questions=[]",
        "system.predictor.dim=48",
        "system.predictor.num_layers=1",
        "system.predictor.num_heads=4",
        "data.num_workers=1",  # a signal goes to it too
    ),
    "mil": (
        *T1,
        "data.questions=[]",
        "data.label=has_lesion",
        "system.encoder.num_heads=4",
        "system.num_resamples=20",
    ),
}
KINDS = ("stopped", "whole")


@pytest.fixture(scope="module")
def jobs(cluster, tmp_path_factory):
    """Two jobs for each system, side by side; the first of the two gets USR1 in the first epoch."""
    options = ("--nodes=2", "--cpus-per-task=1", "slurm/train.sbatch")
    # A scheduler that is busy: the other rank must not leave, and take the first with it, before.
    busy = tmp_path_factory.mktemp("bin")
    slow = f'#!/bin/sh\nsleep 5\nexec {shutil.which("scontrol")} "$@"\n'
    (busy / "scontrol").write_text(slow)
    (busy / "scontrol").chmod(0o755)
    roots = {system: tmp_path_factory.mktemp(system) for system in WORDS}
    made = {}
    for kind in KINDS:
        for system, words in WORDS.items():
            place = f"paths.root={roots[system] / kind}"
            made[system, kind] = cluster.submit(
                *options, f"system={system}", place, *COMMON, *words, first=busy
            )
    waiting = {system: made[system, "stopped"] for system in WORDS}

    def begun():
        for system, job in list(waiting.items()):
            assert job.state() not in ENDED, job.log.read_text()
            if job.log.exists() and "step 3 of 40" in job.log.read_text():
                job.signal("USR1")
                del waiting[system]
        return not waiting

    until(begun, 900, "the third step of each")
    return made


def run_folder_of(printed):
    """Return the folder that a job named."""
    return Path(re.search(r"^run folder +(.+)$", printed, re.M)[1])


def losses(folder):
    """Return the figures of metrics.csv, step by step, but how fast it went."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [
        {name: one for name, one in row.items() if one and "per_second" not in name} for row in rows
    ]


@pytest.mark.parametrize("system", WORDS)
def test_a_job_that_was_requeued_ends_as_one_that_was_never_stopped(jobs, system):
    printed = {kind: jobs[system, kind].wait() for kind in KINDS}
    stopped, whole = (jobs[system, kind] for kind in KINDS)
    assert (stopped.shown()["Restarts"], whole.shown()["Restarts"]) == ("1", "0")

    before, _, after = printed["stopped"].partition("going on from")
    steps = [
        [int(one) for one in re.findall(r"^step (\d+) of", half, re.M)] for half in (before, after)
    ]
    per_epoch = int(re.search(r"training +40 steps, (\d+) an epoch", before)[1])
    assert steps[0][-1] % per_epoch, "it must be stopped within an epoch"
    assert sorted({*steps[0], *steps[1]}) == list(range(1, 41))
    assert len(steps[0]) + len(steps[1]) == 40  # no step twice

    folders = {kind: run_folder_of(printed[kind]) for kind in KINDS}
    assert [folders[kind].name for kind in KINDS] == [stopped.number, whole.number]
    got, expected = (
        torch.load(folders[kind] / "checkpoints/last.ckpt", weights_only=True) for kind in KINDS
    )
    assert expected["global_step"] == 40
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same(got[part], expected[part], part)
    assert losses(folders["stopped"]) == losses(folders["whole"])
