"""A sweep tells what becomes of each of its jobs, and one that fails is alone in it."""

from __future__ import annotations

import copy
import csv
import json
import os
import signal
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from small_jepa import SMALL

from neuro import command, launchers
from neuro.errors import InputError
from neuro.launchers import Command
from neuro.sweep import Sweep
from neuro.sweep_table import Job, best_figure, failure, headline, table, write_summary

ROOT = Path(__file__).parents[1]
SECONDS = (
    *(word for word in SMALL if not word.startswith(("data.num_subjects", "data.max_studies"))),
    "data.num_subjects=20",
    "data.max_studies=3",
    "trainer.max_steps=4",
    "trainer.val_check_interval=2",
)
# What a whole command is here: its last words decide what becomes of it.
PLAYED = """
import json, os, re, signal, sys, time
from pathlib import Path
words = dict(word.split("=", 1) for word in sys.argv[1:])
folder = Path(words["hydra.run.dir"].strip('"'))
folder.mkdir(parents=True, exist_ok=True)
log = folder / "train.log"
with (folder / "words").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
seed = int(words["seed"])
if seed == 2:
    log.write_text("2026-11-22 00:00:01 ERROR error: the second seed is bad.\\n")
    sys.exit(1)
if seed == 3:
    os.kill(os.getpid(), signal.SIGKILL)
if seed == 4:
    def stop(number, frame):
        (folder / "asked").write_text(str(number))
        sys.exit(1)
    signal.signal(signal.SIGTERM, stop)
    (folder / "up").touch()
    time.sleep(60)
(folder / "metrics.csv").write_text("step,val/loss\\n1,0.5\\n2,0.25\\n3,0.75\\n")
(folder / "metrics.json").write_text(json.dumps({"test/loss": 0.125, "val/loss": 0.75}))
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch, capfd):
    """Run ``-m`` with jobs that are played, each a process; return status, rows and the screen."""
    program = tmp_path / "played.py"
    program.write_text(PLAYED)
    monkeypatch.setattr(launchers, "_program", lambda: [str(program)])

    def call(*words, name="s"):
        given = [f"paths.root={tmp_path}", f"run.name={name}", *words]
        monkeypatch.setattr(sys, "argv", ["train.py", "-m", *given])
        status = command.run("train", lambda cfg: pytest.fail("a job in the sweep's process"))
        return status, rows(tmp_path, name), "".join(capfd.readouterr())

    return call


def rows(root, name="s"):
    """Return the table of a sweep."""
    found = list(root.glob(f"outputs/*/sweeps/{name}/summary.tsv"))
    return list(csv.DictReader(found[0].open(), delimiter="\t")) if found else []


@cache
def composed():
    """Return the config of the command, its references not followed."""
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        return compose("train", overrides=["run.name=s"])


def remember(root, number, *words):
    """Write the config that a run leaves in a job's folder, as the command does."""
    folder = root / f"outputs/llava_mri/sweeps/s/{number}"
    folder.mkdir(parents=True, exist_ok=True)
    cfg = copy.deepcopy(composed())
    cfg.merge_with_dotlist([f"paths.root={root}", f"paths.run_dir={folder}", *words])
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return folder


def test_jobs_that_fail_or_are_killed_are_named_and_the_others_run(sweep):
    status, jobs, printed = sweep("seed=1,2,3,5")
    assert status == 1
    assert [job["status"] for job in jobs] == ["done", "failed", "failed", "done"]
    assert [job["overrides"] for job in jobs] == ["seed=1", "seed=2", "seed=3", "seed=5"]
    assert jobs[1]["error"] == "the second seed is bad."
    assert jobs[2]["error"] == "its process was killed by SIGKILL and said nothing"
    assert [job["test/loss"] for job in jobs] == ["0.125", "", "", "0.125"]
    told = printed.index("job 1 failed (seed=2): the second seed is bad.")
    assert told < printed.index("job 2 (seed=3)")  # as it happens
    assert "the table is in" in printed


def test_a_job_has_its_own_words_and_folder_and_is_no_sweep(sweep, tmp_path):
    sweep("seed=1,5", "hydra.job.name=x", "hydra.sweeper.max_batch_size=1", "cluster=local")
    for number, seed in enumerate(("1", "5")):
        folder = tmp_path / f"outputs/llava_mri/sweeps/s/{number}"
        (words,) = map(json.loads, (folder / "words").read_text().splitlines())
        assert words == [
            f"paths.root={tmp_path}",
            "run.name=s",
            f"seed={seed}",
            "hydra.job.name=x",
            f"hydra.run.dir={folder}",
            "hydra.mode=RUN",
        ]


def test_the_same_sweep_again_does_what_is_not_done(sweep, tmp_path):
    for number, seed in enumerate((1, 2, 5)):
        remember(tmp_path, number, f"seed={seed}")
    assert [job["status"] for job in sweep("seed=1,2,5")[1]] == ["done", "failed", "done"]
    # How it is gone on with, and what a search looks at, make no other run.
    status, jobs, printed = sweep("seed=1,2,5", "ckpt_path=last")
    assert status == 1
    assert [job["status"] for job in jobs] == ["skipped", "failed", "skipped"]
    assert [job["folder"] for job in jobs] == ["0", "1", "2"]
    assert [job["test/loss"] for job in jobs] == ["0.125", "", "0.125"]
    assert "job 0 is done already (seed=1)" in printed


def test_other_words_find_their_own_runs_and_write_over_none(sweep, tmp_path):
    for number, seed in enumerate((1, 5)):
        (remember(tmp_path, number, f"seed={seed}") / "metrics.json").write_text("{}")
    status, jobs, _ = sweep("seed=6,5,7")  # 6 and 7 are new, 5 was in another place
    assert status == 0
    assert [job["status"] for job in jobs] == ["done", "skipped", "done"]
    assert [job["folder"] for job in jobs] == ["3", "1", "2"]
    _, (job,), _ = sweep("seed=1", "trainer.max_steps=7")
    assert (job["status"], job["folder"]) == ("done", "4")


def test_a_folder_whose_config_was_cut_off_is_begun_again(sweep, tmp_path):
    folder = tmp_path / "outputs/llava_mri/sweeps/s/0"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: {a: 1\n")
    _, jobs, _ = sweep("seed=1,5")
    assert [job["folder"] for job in jobs] == ["0", "1"]


def test_jobs_that_begin_from_different_runs_are_different_runs(sweep, tmp_path):
    for number, name in enumerate(("a", "b")):
        (remember(tmp_path, number, f"ckpt_path=/x/{name}.ckpt") / "metrics.json").write_text("{}")
    _, jobs, _ = sweep("ckpt_path=/x/b.ckpt,/x/a.ckpt")
    assert [(job["status"], job["folder"]) for job in jobs] == [("skipped", "1"), ("skipped", "0")]


def test_equal_jobs_of_one_sweep_do_not_share_a_folder(sweep, tmp_path):
    remember(tmp_path, 0, "seed=1")
    _, jobs, _ = sweep("seed=1,1")
    assert [job["folder"] for job in jobs] == ["0", "1"]


def test_a_signal_reaches_the_job_and_stops_the_sweep_with_its_table(sweep, tmp_path):
    folder = tmp_path / "outputs/llava_mri/sweeps/s/1"
    waiter = "import os, sys, time, signal\nfrom pathlib import Path\n" + (
        f"while not Path({str(folder / 'up')!r}).exists(): time.sleep(0.05)\n"
        f"os.kill({os.getpid()}, signal.SIGTERM)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", waiter])
    try:
        status, jobs, printed = sweep("seed=1,4,5")
    finally:
        process.kill()
    assert status == 1
    assert (folder / "asked").read_text() == str(int(signal.SIGTERM))
    assert [job["status"] for job in jobs] == ["done", "stopped", "not run"]
    assert "error: stopped by SIGTERM. Run the same command again with run.name=s" in printed
    assert "1    stopped" in printed


def test_a_word_that_only_a_sweep_heeds_is_refused_without_one():
    sweep = Sweep()
    for word in ("cluster=slurm", "hparams_search=mil"):
        with pytest.raises(InputError, match=f"{word} is for sweeps. Add -m"):
            sweep.check(["seed=1", word])
    sweep.check(["cluster=local", "hparams_search=null", "system=mil"])


def test_the_input_is_wrong_only_where_it_is_for_every_job():
    jobs = [Job(number, (), "", Path(), status="failed", code=2) for number in range(2)]
    sweep = Sweep()
    assert sweep.status() == 0
    sweep.jobs = jobs
    assert sweep.status() == 2
    sweep.jobs = [*jobs, Job(2, (), "", Path(), status="skipped", code=0)]
    assert sweep.status() == 1
    sweep.jobs = [jobs[0], Job(1, (), "", Path(), status="failed", code=1)]
    assert sweep.status() == 1


def test_a_search_is_told_the_best_value_over_the_validations(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,val/loss,val/r2\n1,0.5,\n2,0.25,0.1\n3,0.75,\n")
    assert best_figure(tmp_path, "val/loss", is_largest=False) == 0.25
    assert best_figure(tmp_path, "val/loss", is_largest=True) == 0.75
    assert best_figure(tmp_path, "val/r2", is_largest=False) == 0.1
    with pytest.raises(KeyError):
        best_figure(tmp_path, "val/los", is_largest=False)


@pytest.mark.skipif(find_spec("optuna") is None, reason="needs the extra sweep")
class TestSearch:
    words = ("hparams_search=mil", "hydra.sweeper.n_trials=2")

    def test_a_search_ends_with_its_best_trial_and_finds_its_runs_done(self, sweep, tmp_path):
        status, jobs, printed = sweep(*self.words, "seed=1")
        assert status == 0, printed
        assert [job["best val/loss"] for job in jobs] == ["0.25"] * 2
        assert all("optim.lr=" in job["overrides"] for job in jobs)
        assert len({job["overrides"] for job in jobs}) == 2
        assert "the best is job 0" in printed
        folder = tmp_path / "outputs/llava_mri/sweeps/s"
        (words,) = map(json.loads, (folder / "0/words").read_text().splitlines())
        assert not [word for word in words if "hparams" in word or "sweeper" in word]
        for job in jobs:
            remember(tmp_path, job["folder"], *job["overrides"].split())
        _, again, _ = sweep(*self.words, "seed=1")
        assert [job["status"] for job in again] == ["skipped"] * 2
        assert [job["overrides"] for job in again] == [job["overrides"] for job in jobs]

    def test_a_trial_that_fails_does_not_end_the_search(self, sweep):
        status, jobs, printed = sweep(*self.words, "seed=2")
        assert status == 1
        assert [job["status"] for job in jobs] == ["failed"] * 2
        assert "error: every trial of the search failed" in printed
        assert "Traceback" not in printed

    def test_a_figure_that_no_run_logs_is_named(self, sweep):
        status, jobs, _ = sweep(*self.words, "seed=1", "optimized_metric=val/los")
        assert status == 1
        assert jobs[0]["error"].startswith("optimized_metric=val/los is no figure")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["seed=1,2", "sytem=jepa"], "there is no config key 'sytem'"),
        (["seed=interval(1,2)"], "does not support sweep type"),
        (["seed=1,2", "cluster=slurn"], "Did you mean cluster=slurm?"),
        (["hparams_search=mill"], "Did you mean hparams_search=mil?"),
        (["seed=1,2", "system=jepa,mill"], "there is no system=mill"),
    ],
)
def test_a_mistake_in_the_words_of_a_sweep_is_one_line_and_nothing_runs(sweep, words, says):
    status, jobs, printed = sweep(*words)
    assert status == 2
    assert says in printed
    assert "Traceback" not in printed
    assert not jobs


def test_a_missing_extra_is_named_with_its_command():
    for group, option, extra in (
        ("hydra/launcher", "submitit_slurm", "slurm"),
        ("hydra/sweeper", "optuna", "sweep"),
    ):
        error = MissingConfigException(
            f"In 'cluster/slurm': Could not find '{group}/{option}'\n\n"
            f"Available options in '{group}':\n\tbasic\nConfig search path:",
            f"{group}/{option}",
        )
        said = command.explain(error)
        assert said == f"{option} is not installed. Run pip install 'neuro[{extra}]'"


def test_a_log_tells_the_first_mistake_of_this_attempt(tmp_path):
    log = tmp_path / "train.log"
    before = "2026-01-01 00:00:00 ERROR error: an old one\n"
    log.write_text(
        before + "2026-01-01 00:00:01 INFO step 1\n"
        "2026-01-01 00:00:02 ERROR Traceback (most recent call last):\n"
        '  File "a.py", line 1, in <module>\n    run()\nRuntimeError: no disk\nrank 1, step 1\n'
        "\n2026-01-01 00:00:03 ERROR Traceback (most recent call last):\n"
        '  File "b.py", line 1\nRuntimeError: connection closed by peer\n'
    )
    assert failure(log, 0) == "an old one"
    assert failure(log, len(before)) == "RuntimeError: no disk rank 1, step 1"
    assert failure(log, log.stat().st_size) == ""
    assert failure(tmp_path / "none.log", 0) == ""
    log.write_text("2026-01-01 00:00:00 ERROR error: 2 values have a wrong type:\n  a\n  b\n")
    assert failure(log, 0) == "2 values have a wrong type: a b"


def test_headlines_are_of_whole_runs():
    names = ["test/auroc", "test/auroc_low", "test/auroc/T1", "train/loss", "health/std"]
    metrics = dict.fromkeys([*names, "val/loss", "val/loss_T1", "probe/r2", "health/rank"], 1.0)
    assert list(headline(metrics)) == ["probe/r2", "test/auroc", "val/loss", "health/rank"]


def test_a_value_with_tabs_and_lines_stays_one_cell(tmp_path):
    job = Job(0, (), "a='x\ty\nz'", tmp_path / "0", status="failed", error="b\tc")
    write_summary(tmp_path / "summary.tsv", [job])
    (row,) = csv.DictReader((tmp_path / "summary.tsv").open(), delimiter="\t")
    assert (row["overrides"], row["error"]) == (job.own, job.error)
    assert "job 0 failed: b\tc" in table([job])


@pytest.mark.parametrize("ending", ["done", "refused", "requeued"])
def test_on_a_node_the_command_runs_in_this_process_and_has_no_result_if_it_comes_again(
    tmp_path, monkeypatch, ending
):
    monkeypatch.setattr(sys, "argv", ["submitit"])
    log = tmp_path / "train.log"
    program = tmp_path / "program.py"
    told = {"done": "fine", "refused": "no such seed", "requeued": "stopped by SIGUSR2. Go on"}
    program.write_text(
        "import os, sys\nfrom pathlib import Path\n"
        f"assert (os.getpid(), sys.argv[1:]) == ({os.getpid()}, ['seed=1'])\n"
        f"Path({str(log)!r}).write_text('2026-01-01 00:00:00 ERROR error: {told[ending]}\\n')\n"
        f"sys.exit({0 if ending == 'done' else 2})\n"
    )
    job = Command([str(program)], ["seed=1"], log)
    if ending == "requeued":
        with pytest.raises(SystemExit):
            job()
    else:
        assert job() == (0 if ending == "done" else 2)


@pytest.mark.slow
@pytest.mark.parametrize("program", [["train.py"], ["-m", "neuro.train"]])
def test_a_sweep_on_two_processes_is_one_sweep(tmp_path, program):
    """Lightning starts the second process with the words of the first one; these are no -m."""
    words = [f"paths.root={tmp_path}", "run.name=two", *SECONDS, "trainer.devices=2"]
    done = subprocess.run(
        [sys.executable, *program, "-m", *words, "seed=1,-1,2"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert done.returncode == 1, printed
    (folder,) = tmp_path.glob("outputs/*/sweeps/*")
    assert not list(tmp_path.glob("outputs/*/[!s]*"))
    assert {one.name for one in folder.iterdir() if one.is_dir()} == {"0", "1", "2"}
    jobs = rows(tmp_path, "two")
    assert [job["status"] for job in jobs] == ["done", "failed", "done"]
    assert jobs[1]["error"] == "seed must be a whole number from 0; got -1."
    assert jobs[0]["test/loss"] != jobs[2]["test/loss"]
    for number in ("0", "2"):
        assert "on each of 2 ranks" in (folder / number / "train.log").read_text()


@pytest.mark.slow
def test_a_job_of_which_one_process_fails_is_named_with_its_mistake(tmp_path):
    """Lightning then kills the other one, which without processes of its own were the sweep."""
    (tmp_path / "failing.py").write_text(
        "import lightning as L\n"
        "class Fails(L.Callback):\n"
        "    def __init__(self, seed): self.seed = seed\n"
        "    def on_train_batch_end(self, trainer, *rest):\n"
        "        if (self.seed, trainer.global_rank) == (1, 1):\n"
        "            raise RuntimeError('the disk of rank 1 is gone')\n"
    )
    words = [f"paths.root={tmp_path}", "run.name=two", *SECONDS, "trainer.devices=2"]
    words += ["seed=1,2", "+callbacks.bad={_target_: failing.Fails, seed: '${seed}'}"]
    done = subprocess.run(
        [sys.executable, "train.py", "-m", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    jobs = rows(tmp_path, "two")
    assert [job["status"] for job in jobs] == ["failed", "done"]
    assert jobs[0]["error"].startswith("RuntimeError: the disk of rank 1 is gone")
