"""A command that is stopped or fails from outside says so in one line, and how to go on."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from neuro import command, train

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path, monkeypatch, caplog):
    """Run a function as a command in this process; return its status and the error lines."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(logging.getLogger("neuro"), "propagate", True)

    def call(function, *words):
        GlobalHydra.instance().clear()
        caplog.clear()
        arguments = [f"paths.root={tmp_path}", "run.name=a", *words]
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        status = command.run("train", function, train._how_to_go_on)
        assert "Traceback" not in caplog.text
        return status, [line for line in caplog.messages if line.startswith("error: ")]

    yield call
    signal.signal(signal.SIGINT, before)


def interrupted(cfg):
    raise KeyboardInterrupt


def left_by_lightning(cfg):
    """It catches Ctrl-C, tears down and leaves."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


@pytest.mark.parametrize("function", [interrupted, left_by_lightning])
def test_ctrl_c_is_one_line(run, function):
    status, lines = run(function)
    assert status == command.FAILED
    assert lines == [
        "error: stopped by Ctrl-C. There is no checkpoint yet; run the same command again, "
        "prepared scans are kept."
    ]


def test_ctrl_c_names_the_checkpoint_if_there_is_one(run, tmp_path):
    last = tmp_path / "outputs/llava_mri/a/checkpoints/last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert run(interrupted) == (1, [f"error: stopped by Ctrl-C. Go on with ckpt_path={last}"])


def test_a_signal_is_a_failed_run_though_lightning_leaves_with_success(run):
    status, (line,) = run(lambda cfg: sys.exit(0))
    assert status == command.FAILED
    assert line.startswith("error: stopped by a signal. ")


def test_a_full_disk_names_the_key_of_the_folder(run, tmp_path):
    def fill(place):
        def function(cfg):
            name = Path(cfg.paths.run_dir if place == "run" else cfg.paths.cache_dir, "file")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(name))

        return function

    status, (line,) = run(fill("run"))
    assert status == command.WRONG_INPUT
    assert "full: " in line
    assert "set paths.output_dir to" in line
    assert "set paths.cache_dir to" in run(fill("cache"))[1][0]


def test_a_full_disk_without_a_name_is_found_by_what_is_left(run, monkeypatch):
    monkeypatch.setattr(command, "_is_full", lambda folder: folder.name == "outputs")

    def function(cfg):
        with open("/dev/full", "wb", buffering=0) as file:
            file.write(b"x")

    _, (line,) = run(function)
    assert "set paths.output_dir to" in line
    assert "cache_dir" not in line


@pytest.mark.slow
def test_jobs_of_a_sweep_get_folders_of_their_own(tmp_path):
    words = [f"paths.root={tmp_path}", "seed=-1,-2", "plan=true", "-m"]
    done = subprocess.run(
        [sys.executable, "train.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    printed = done.stdout + done.stderr
    assert done.returncode == command.WRONG_INPUT, printed
    assert "got -1" in printed
    assert "got -2" in printed
    (sweep,) = (tmp_path / "outputs/llava_mri/sweeps").iterdir()
    assert {"0", "1"} <= {one.name for one in sweep.iterdir()}


def test_the_first_ctrl_c_leaves_a_second_one_to_the_system(tmp_path):
    """Two in a row end the process, by the first or the second, and never abort it."""
    code = (
        "import os, signal, sys, time\n"
        "from neuro import command\n"
        "def function(cfg):\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(5)\n"
        "    finally:\n"
        "        print('down', flush=True)\n"
        "status = command.run('train', function)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(status)\n"
    )
    words = [sys.executable, "-c", code, f"paths.root={tmp_path}", "run.name=a"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert "Traceback" not in done.stdout + done.stderr
