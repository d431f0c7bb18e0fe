"""Settings that contradict SLURM's are told, each with its cure, and others are let through."""

from __future__ import annotations

import itertools
import logging
import os
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from neuro import cluster, command
from neuro.cluster import (
    Job,
    check,
    job_asked_for,
    job_of,
    minutes_of,
    num_devices,
    split_words,
    submit,
)
from neuro.errors import InputError

# A job of two nodes with four tasks each, as SLURM tells it to a task.
GIVEN = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "neuro",
    "SLURM_STEP_ID": "0",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_CPUS_PER_TASK": "3",
    "SLURM_GPUS_ON_NODE": "4",
}
FITS = {
    "trainer.num_nodes": 2,
    "trainer.devices": 4,
    "trainer.accelerator": "gpu",
    "data.num_workers": 3,
}
WRONG = {
    "trainer.num_nodes": (3, "--nodes=3", "trainer.num_nodes=2"),
    "trainer.devices": (5, "--ntasks-per-node=5", "trainer.devices=4"),
    "data.num_workers": (4, "--cpus-per-task=4", "data.num_workers=3"),
}


def config(settings=(), **more):
    cfg = OmegaConf.create({"trainer": {}, "data": {}})
    for key, value in {**FITS, **dict(settings), **more}.items():
        OmegaConf.update(cfg, key, value, force_add=True)
    return cfg


def without(*names):
    return {name: one for name, one in GIVEN.items() if name not in names}


def refused(cfg, environ):
    with pytest.raises(InputError) as caught:
        check(cfg, environ)
    return str(caught.value)


def test_what_fits_is_let_through():
    check(config(), GIVEN)


def test_outside_slurm_nothing_is_asked():
    check(config({"trainer.devices": 9, "data.num_workers": 99}), without("SLURM_JOB_ID"))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_contradiction_is_named_with_both_cures_and_nothing_else_is(count):
    for keys in itertools.combinations(WRONG, count):
        message = refused(config({key: WRONG[key][0] for key in keys}), GIVEN)
        lines = message.splitlines()
        assert len(lines) == (count + 1 if count > 1 else 1)
        assert (f"{count} settings" in lines[0]) == (count > 1)
        for key, line in zip(keys, lines[-count:], strict=True):
            value, option, setting = WRONG[key]
            assert line.strip().startswith(f"{key}={value} ")
            assert option in line
            assert f"Set {setting}, or" in line


@pytest.mark.parametrize("key", WRONG)
def test_each_cure_of_a_config_cures(key):
    value, _, setting = WRONG[key]
    refused(config({key: value}), GIVEN)
    cure = dict([setting.split("=")])
    check(config({key: int(cure[key])}), GIVEN)


@pytest.mark.parametrize("value", ["two", "2", 2.0, None, True, [2]])
@pytest.mark.parametrize("environ", [GIVEN, without("SLURM_NNODES")])
def test_what_is_no_number_of_nodes_is_not_asked_of_slurm(value, environ):
    message = refused(config({"trainer.num_nodes": value}), environ)
    assert f"trainer.num_nodes must be a whole number; got {value}. Set" in message
    assert "--nodes" not in message
    cure = message.partition("Set ")[2]
    check(config({"trainer.num_nodes": int(cure.partition("=")[2])}), environ)


def test_fewer_workers_than_cpus_are_no_contradiction():
    for workers in range(4):
        check(config({"data.num_workers": workers}), GIVEN)


@pytest.mark.parametrize("name", [*cluster.COUNTED_GPUS, *cluster.SEEN_GPUS])
def test_a_gpu_is_seen_by_any_of_its_names(name):
    none = without("SLURM_GPUS_ON_NODE")
    message = refused(config(), none)
    assert message.startswith("trainer.accelerator=gpu needs a GPU")
    assert "--gpus-per-node=4" in message
    check(config(), {**none, name: "1"})
    refused(config(), {**none, name: ""})
    if name in cluster.COUNTED_GPUS:
        refused(config(), {**none, name: "0"})


@pytest.mark.parametrize(
    ("seen", "is_gpu"),
    [
        ("0", True),
        ("0,1", True),
        ("GPU-8f", True),
        ("MIG-1", True),
        ("-1", False),
        ("NoDevFiles", False),
    ],
)
def test_the_first_gpu_has_number_nought(seen, is_gpu):
    environ = {**without("SLURM_GPUS_ON_NODE"), "CUDA_VISIBLE_DEVICES": seen}
    assert job_of(environ).has_gpus == is_gpu
    assert job_asked_for(SCRIPT, [], environ).has_gpus == is_gpu


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_without_gpus_a_run_may_take_what_there_is(accelerator):
    check(config({"trainer.accelerator": accelerator}), without("SLURM_GPUS_ON_NODE"))


def test_tasks_that_are_only_counted_in_all_are_shared_out():
    environ = without("SLURM_NTASKS_PER_NODE")
    check(config(), environ)
    assert "which is 4" in refused(config({"trainer.devices": 8}), environ)


@pytest.mark.parametrize("more", [{"SLURM_JOB_NAME": "bash"}, {"TORCHELASTIC_RUN_ID": "x"}])
def test_where_others_start_the_ranks_the_tasks_say_nothing(more):
    environ = {**without("SLURM_STEP_ID"), **more}
    check(config({"trainer.devices": 1, "trainer.num_nodes": 1}), environ)
    assert "num_workers" in refused(config({"data.num_workers": 4}), environ)


def test_a_run_without_srun_would_wait_for_the_others():
    assert "Start it with srun" in refused(config(), without("SLURM_STEP_ID"))
    alone = {**without("SLURM_STEP_ID"), "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "1"}
    check(config({"trainer.num_nodes": 1, "trainer.devices": 1}), alone)


@pytest.mark.parametrize(
    ("devices", "count"),
    [
        (2, 2),
        ("2", 2),
        ([0, 3], 2),
        ("0,3", 2),
        ("3,", 1),
        ("auto", None),
        (-1, None),
        ("-1", None),
    ],
)
def test_devices_are_counted_as_lightning_counts_them(devices, count):
    assert num_devices(devices) == count
    cfg = config({"trainer.devices": devices})
    if count is None:
        check(cfg, GIVEN)
    else:
        assert "trainer.devices" in refused(cfg, GIVEN)


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("90", 90),
        ("90:30", 90.5),
        ("2:03:30", 123.5),
        ("1-2", 1560),
        ("1-2:03", 1563),
        ("1-2:03:30", 1563.5),
        ("UNLIMITED", None),
        (None, None),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(limit, minutes):
    assert minutes_of(limit) == minutes


@pytest.mark.parametrize(
    ("max_time", "is_longer"),
    [("00:01:00:00", False), ("00:01:00:01", True), ({"minutes": 61}, True), ({"hours": 1}, False)],
)
def test_more_time_than_the_job_has_is_only_a_warning(max_time, is_longer, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("neuro"), "propagate", True)
    times = {"SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "4600"}
    check(config({"trainer.max_time": max_time}), {**GIVEN, **times})
    assert ("longer than the job's 60 minutes" in caplog.text) == is_longer


SCRIPT = """#!/bin/bash
# a comment
#SBATCH --nodes=1 # one
#SBATCH --ntasks-per-node=1 --time=1:00:00
#SBATCH -c 4

python train.py
#SBATCH --nodes=9
"""


@pytest.mark.parametrize("form", ["--nodes=3", "--nodes 3", "-N 3", "-N3"])
def test_options_stand_above_the_lines_of_the_script(form):
    asked = job_asked_for(SCRIPT, form.split(), {})
    assert asked == Job(num_nodes=3, tasks_per_node=1, cpus_per_task=4, minutes=60)


def test_lines_behind_the_first_command_are_not_read():
    assert job_asked_for(SCRIPT, [], {}).num_nodes == 1


def test_variables_stand_between_the_script_and_the_options():
    environ = {"SBATCH_TIMELIMIT": "20", "SBATCH_GPUS": "1"}
    assert job_asked_for(SCRIPT, [], environ).minutes == 20
    assert job_asked_for(SCRIPT, [], environ).has_gpus
    assert job_asked_for(SCRIPT, ["-t", "30"], environ).minutes == 30


@pytest.mark.parametrize(
    ("option", "has_gpus"),
    [
        ("-G2", True),
        ("--gpus=a100:2", True),
        ("--gpus-per-node=2", True),
        ("--gpus-per-task=1", True),
        ("--gres=gpu:4", True),
        ("--gres=disk:4", False),
        ("--gpus=0", False),
        ("--partition=gpu", False),
    ],
)
def test_gpus_may_be_asked_for_in_any_way(option, has_gpus):
    assert job_asked_for(SCRIPT, [option], {}).has_gpus == has_gpus


def test_a_range_of_nodes_contradicts_nothing():
    assert job_asked_for(SCRIPT, ["--nodes=2-4"], {}).num_nodes is None


def test_half_a_name_is_no_option():
    assert job_asked_for(SCRIPT, ["--cpus=3"], {}).cpus_per_task == 4


def test_an_option_without_its_value_is_named():
    with pytest.raises(InputError, match="--nodes"):
        job_asked_for(SCRIPT, ["--nodes"], {})


def test_words_go_to_whom_they_belong():
    for_sbatch = ["-N", "2", "--exclusive", "--qos", "high", "-c4"]
    for_train = ["system=mil", "seed=1", "~logger.csv", "data.root=/x"]
    given = [*for_sbatch[:2], "system=mil", "--exclusive", "seed=1", *for_sbatch[3:5]]
    given += ["~logger.csv", "-c4", "data.root=/x"]
    assert split_words(given) == (for_sbatch, for_train)
    assert split_words(["--exclusive", "~logger.csv"]) == (["--exclusive"], ["~logger.csv"])
    assert split_words(["--qos=high", "seed"]) == (["--qos=high"], ["seed"])


@pytest.mark.parametrize("value", ["ALL,FOO=1", "FOO=1", "two words", "~/log", "a=b=c", "x"])
@pytest.mark.parametrize("option", ["--export", "--comment", "--dependency", "--some-new-one"])
def test_what_stands_behind_a_long_option_is_its_value(option, value):
    given = ["seed=1", option, value, "system=mil"]
    assert split_words(given) == ([option, value], ["seed=1", "system=mil"])
    given = ["seed=1", f"{option}={value}", "system=mil"]
    assert split_words(given) == ([f"{option}={value}"], ["seed=1", "system=mil"])


@pytest.mark.parametrize("option", cluster.FLAGS)
def test_a_long_option_that_takes_none_leaves_the_next_word(option):
    assert split_words([option, "seed=1"]) == ([option], ["seed=1"])


@pytest.mark.parametrize("name", ["--config-dir", "-cd", "--config-name", "-cn", "-cp"])
@pytest.mark.parametrize("place", range(4))
def test_where_the_config_is_is_for_train_and_stands_first(name, place):
    given = ["system=mil", "--exclusive", "seed=1"]
    for form in ([f"{name}=/mine"], [name, "/mine"]):
        words = [*given[:place], *form, *given[place:]]
        assert split_words(words) == (["--exclusive"], [f"{name}=/mine", "system=mil", "seed=1"])
    with pytest.raises(InputError, match=f"{name} must have a value"):
        split_words([*given, name])


@pytest.mark.parametrize("form", ["--config-dir={}", "-cd={}", "--config-dir {}"])
def test_a_config_of_another_folder_is_looked_at_and_handed_on(form, tmp_path, monkeypatch):
    mine = tmp_path / "mine, é"
    (mine / "experiment").mkdir(parents=True)
    text = "# @package _global_\ntrainer: {accelerator: ACCELERATOR}\n"
    (mine / "experiment/my.yaml").write_text(text.replace("ACCELERATOR", "gpu"))
    script = command.CONF.parent / "slurm/train.sbatch"
    flags = [one.format(mine) for one in form.split(" ")]
    asked = []
    monkeypatch.setattr(os, "execvp", lambda program, words: asked.extend(words) or sys.exit())
    for name in cluster.SEEN_GPUS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["cluster.py"])
    with pytest.raises(InputError, match=r"trainer\.accelerator=gpu needs a GPU"):
        submit(script, ["-N1", "experiment=my", *flags])
    (mine / "experiment/my.yaml").write_text(text.replace("ACCELERATOR", "cpu"))
    with pytest.raises(SystemExit):
        submit(script, ["-N1", "experiment=my", *flags])
    assert asked == ["sbatch", "-N1", str(script), "=".join(flags), "experiment=my"]
    with pytest.raises(InputError, match="there is no such folder"):
        submit(script, ["--config-dir=/nowhere", "experiment=my"])


def test_the_job_script_tells_where_the_config_is_before_what_slurm_gave(tmp_path):
    (tmp_path / "train.py").touch()
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    srun.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "VIRTUAL_ENV": "x"}
    env |= {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
    given = ["trainer.num_nodes=2", "trainer.devices=4"]
    script = command.CONF.parent / "slurm/train.sbatch"
    for first in ([], ["--config-dir=/a b"], ["-cd=/a", "--config-name=x"]):
        words = [*first, "seed=1", "a=b c"]
        done = subprocess.run(
            ["bash", script, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        told = done.stdout.splitlines()
        assert told[1:] == ["python", "train.py", *first, *given, "seed=1", "a=b c"], done.stderr


def test_no_word_is_lost_and_their_order_stays():
    pool = ["-N", "2", "--exclusive", "--qos=a", "a=1", "b=2=3", "~c", "-c4"]
    for given in itertools.permutations(pool, 4):
        options, words = split_words(given)
        assert sorted([*options, *words]) == sorted(given)
        for part in (options, words):
            assert part == [word for word in given if word in part]
        assert all("=" in word or word.startswith("~") or word == "2" for word in words)


@pytest.mark.parametrize("word", ["-m", "--multirun"])
def test_a_sweep_is_not_submitted_so(word):
    with pytest.raises(InputError, match="cluster=slurm"):
        split_words(["-N2", word, "seed=1,2"])


def asked(*words):
    """Run what slurm/submit runs, where there is no sbatch."""
    script = str(command.CONF.parent / "slurm/train.sbatch")
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "neuro.cluster", script, *words],
        env={"PATH": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sytem=jepa",), "did you mean 'system'"),
        (("system=jeppa",), "did you mean system=jepa"),
        (("data=bids",), "data.root: not set"),
        (("-N2", "trainer.num_nodes=1"), "Set trainer.num_nodes=2, or submit with --nodes=1"),
        (("-N2", "trainer.accelerator=gpu"), "--gpus-per-node=1"),
    ],
)
def test_mistakes_are_told_in_a_line_without_torch(words, said):
    done = asked(*words)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time")]
    assert (done.returncode, done.stdout, len(lines)) == (2, "", 1)
    assert re.search(re.escape(said), lines[0], re.IGNORECASE)
    assert not re.search(r"\| +(torch|lightning)$", done.stderr, re.MULTILINE)


def test_every_training_asks_first(monkeypatch):
    from neuro.train import train

    for name, value in GIVEN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"trainer\.devices=5 must"):
        train(config({"trainer.devices": 5}))
