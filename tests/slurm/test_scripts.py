"""What the job scripts and ``slurm/submit`` hand on, and what they refuse."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
from lab import ROOT, until

pytestmark = pytest.mark.slurm

WORDS = (
    "data.root=/a folder/with spaces",
    "data.questions=[sex,lesion]",
    "data.weights={a: 1.0, b: 2}",
    'run.name="quoted"',
    "x='single'",
    "~logger.tensorboard",
    "+a.b=$HOME `date` $(date) \\ ; & | * ?",
    "empty=",
    "umlaut=Zürich",
)
TELL = """
import json, os, pathlib, sys
name = f"told-{os.environ['SLURM_JOB_ID']}-{os.environ['SLURM_PROCID']}.json"
pathlib.Path(name).write_text(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder whose train.py only tells what it was given, as does its neuro.prepare."""
    (tmp_path / "train.py").write_text(TELL)
    (tmp_path / "neuro").mkdir()
    (tmp_path / "neuro" / "__init__.py").touch()
    (tmp_path / "neuro" / "prepare.py").write_text(TELL)
    return tmp_path


def told(checkout):
    """Return the words of each process, in the order in which they came."""
    paths = sorted(checkout.glob("told-*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def test_every_word_reaches_every_rank_as_it_was_typed(cluster, checkout):
    options = ("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1")
    cluster.submit(*options, f"--chdir={checkout}", "slurm/train.sbatch", *WORDS).wait(60)
    given = ["trainer.num_nodes=2", "trainer.devices=2", *WORDS]
    assert told(checkout) == [given] * 4


def test_one_node_is_one_task_unless_it_is_said(cluster, checkout):
    options = ("--cpus-per-task=1", f"--chdir={checkout}")
    cluster.submit(*options, "slurm/train.sbatch", "seed=2").wait(60)
    assert told(checkout) == [["trainer.num_nodes=1", "trainer.devices=1", "seed=2"]]


def test_a_job_outside_the_checkout_says_so(cluster, tmp_path):
    job = cluster.submit("--cpus-per-task=1", f"--chdir={tmp_path}", "slurm/train.sbatch")
    until(lambda: job.state() == "FAILED", 60, "failure")
    assert "Submit from the checkout" in job.log.read_text()


@pytest.mark.parametrize(
    ("array", "shards"), [("0-2", {"1/3", "2/3", "3/3"}), ("5-9:2", {"1/3", "2/3", "3/3"})]
)
def test_an_array_prepares_each_part_once_and_the_last_pass_comes_after(
    cluster, checkout, array, shards
):
    place = ("--cpus-per-task=1", f"--chdir={checkout}", "slurm/prepare.sbatch")
    tasks = cluster.submit(f"--array={array}", *place, *WORDS)
    last = cluster.submit(
        f"--dependency=afterok:{tasks.number}", "--kill-on-invalid-dep=yes", *place, *WORDS
    )
    last.wait(90)
    words = told(checkout)
    assert sorted(words[:-1]) == sorted([*WORDS, f"shard={one}"] for one in shards)
    assert words[-1] == [*WORDS]


def submit(cluster, *words):
    return subprocess.run(
        ["slurm/submit", f"--output={cluster.folder}/%j.log", *words],
        cwd=ROOT,
        env=cluster.env,
        capture_output=True,
        text=True,
    )


def test_what_contradicts_is_told_before_the_queue(cluster):
    done = submit(cluster, "-N", "2", "-c1", "trainer.num_nodes=3", "data.num_workers=4")
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.strip().partition("=")[0] for line in done.stderr.splitlines()[1:]] == [
        "trainer.num_nodes",
        "data.num_workers",
    ]


def test_what_is_right_is_submitted_word_by_word(cluster, checkout):
    shutil.copytree(ROOT / "slurm", checkout / "slurm")
    words = ("system=mil", "data=bids", 'data.root="/a folder"')
    env = {**cluster.env, "PYTHONPATH": str(ROOT)}
    (checkout / "neuro").rename(checkout / "not_neuro")
    done = subprocess.run(
        [f"{checkout}/slurm/submit", "-N2", "-c", "1", "--parsable", *words],
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    until(lambda: len(told(checkout)) == 2, 60, "two ranks")
    assert told(checkout) == [["trainer.num_nodes=2", "trainer.devices=1", *words]] * 2
