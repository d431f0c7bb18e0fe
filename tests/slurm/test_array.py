"""A sweep on the cluster: an array of jobs, of which some fail, are put back or are killed."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab import ROOT, called, until

pytestmark = pytest.mark.slurm

SECONDS = (
    "system=jepa",
    "encoder=custom",
    "recipe@data.recipes.T1=cube_t1",
    "data.questions=[]",
    "data.modalities=[T1]",
    "data.num_subjects=20",
    "data.t1_spacing_mm=8",
    "data.patch_voxels=64",
    "data.recipes.T1.shape=[24,24,24]",
    "data.recipes.T1.spacing_mm=8.0",
    "data.recipes.T1.patch=[4,4,4]",
    "data.max_studies=1",
    "data.num_workers=0",
    "system.encoder.dim=48",
    "system.encoder.num_layers=2",
    "system.predictor.dim=48",
    "system.predictor.num_layers=1",
    "system.predictor.num_heads=4",
    "trainer.accelerator=cpu",
    "trainer.val_check_interval=2",
    "trainer.log_every_n_steps=1",
    "cluster=slurm",
    "cluster.cpus=1",
    "cluster.time_min=60",
)


class Sweep:
    """A sweep that runs.

    Args:
        root: Of its data and its folders.
        words: Of the command line.
    """

    def __init__(self, root, env, *words):
        self.root = root
        self.screen = root / "screen.log"
        command = [sys.executable, "train.py", "-m", f"paths.root={root}", "run.name=s"]
        with self.screen.open("w") as file:
            self.process = subprocess.Popen(
                [*command, *SECONDS, *words], cwd=ROOT, env=env, stdout=file, stderr=file
            )

    def printed(self):
        return self.screen.read_text()

    def job_ids(self):
        """Return SLURM's number of each job, when they are submitted."""
        return re.findall(r"^job \d+ \(.*\) is (\d+_\d+): ", self.printed(), re.MULTILINE)

    def log(self, number):
        """Return what a job has told so far."""
        path = Path(self.root, "outputs/jepa/sweeps/s", str(number), "train.log")
        return path.read_text() if path.exists() else ""

    def rows(self):
        """Return the exit status and the table, when it is over."""
        status = self.process.wait(1200)
        (path,) = self.root.glob("outputs/jepa/sweeps/s/summary.tsv")
        return status, list(csv.DictReader(path.open(), delimiter="\t"))


@pytest.fixture
def sweep(cluster, tmp_path):
    made = []

    def start(*words):
        made.append(Sweep(tmp_path, cluster.env, *words))
        return made[-1]

    yield start
    for one in made:
        one.process.kill()


def test_of_four_jobs_one_fails_and_three_have_results(sweep):
    status, jobs = (one := sweep("trainer.max_steps=4", "seed=1,-1,2,3")).rows()
    assert status == 1, one.printed()
    assert [job["status"] for job in jobs] == ["done", "failed", "done", "done"], one.printed()
    assert jobs[1]["error"] == "seed must be a whole number from 0; got -1."
    assert "job 1 failed (seed=-1): seed must be a whole number from 0" in one.printed()
    assert len({job["test/loss"] for job in jobs}) == 4


def test_a_job_that_slurm_stops_goes_on_and_one_that_is_killed_is_named(sweep):
    one = sweep("trainer.max_steps=100", "trainer.val_check_interval=50", "seed=1,2")
    first, second = until(lambda: one.job_ids(), 60, "two jobs")
    until(lambda: "step 3 of 100" in one.log(0), 900, f"the third step; {one.printed()}")
    called("scancel", "--signal=USR2", first)
    until(lambda: "step 3 of 100" in one.log(1), 900, "the third step of the other")
    called("scancel", "--signal=KILL", second)
    status, jobs = one.rows()
    assert status == 1
    assert [job["status"] for job in jobs] == ["done", "failed"], one.printed()
    # SLURM asks it to end before it kills it; without a word it would have left the queue.
    assert re.match("stopped by SIGTERM|it left SLURM's queue without a result", jobs[1]["error"])
    assert "USR2: stopping after this step" in one.log(0)
    assert "going on from " in one.log(0)
    assert one.log(0).count("step 3 of 100") == 1
    # The same words again: what was killed goes on, what is done is not run.
    one = sweep("trainer.max_steps=100", "trainer.val_check_interval=50", "seed=1,2")
    status, jobs = one.rows()
    assert status == 0, one.printed()
    assert [job["status"] for job in jobs] == ["skipped", "done"]
