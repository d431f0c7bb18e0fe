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
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf.errors import OmegaConfBaseException

from neuro import command, prepare, train
from neuro.data.ledger import NoUsableScan, TooManyFailedScans
from neuro.errors import ScanError

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


def test_ctrl_c_says_how_to_go_on_if_there_is_a_checkpoint(run, tmp_path):
    last = tmp_path / "outputs/llava_mri/a/checkpoints/last.ckpt"
    last.parent.mkdir(parents=True)
    last.touch()
    assert run(interrupted) == (1, ["error: stopped by Ctrl-C. Go on with the same command"])


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


def refuse(path, number=errno.EACCES):
    def function(cfg):
        raise OSError(number, os.strerror(number), str(path))

    return function


@pytest.mark.parametrize(
    ("below", "key"),
    [
        ("cache/T1-1/a", "paths.cache_dir"),
        ("outputs/mil", "paths.output_dir"),
        ("data", "paths.data_dir"),
        ("", "paths.root"),
        ("..", "paths.root"),
    ],
)
def test_a_folder_that_may_not_be_written_names_its_key(run, tmp_path, below, key):
    status, (line,) = run(refuse(os.path.normpath(tmp_path / below)))
    assert status == command.WRONG_INPUT
    assert "Permission denied: " in line
    assert f"Give yourself access to it, or set {key} to another folder." in line


def test_a_file_of_the_user_that_may_not_be_read_is_named_without_a_key(run):
    assert run(refuse("/elsewhere/scans.csv"))[1] == [
        "error: Permission denied: /elsewhere/scans.csv. Check the paths of the config."
    ]


def test_a_run_folder_that_cannot_be_made_names_its_key(run, tmp_path):
    (tmp_path / "file").touch()
    status, (line,) = run(lambda cfg: None, f"paths.output_dir={tmp_path}/file/out")
    assert status == command.WRONG_INPUT
    assert line.endswith("Set paths.output_dir to another folder.")


def test_a_rank_that_is_gone_is_a_failed_run_in_one_line(run):
    def alone(cfg):
        raise RuntimeError("[enforce fail] Connection reset by peer [127.0.0.1]:1 \n GLHF!")

    status, lines = run(alone)
    assert status == command.FAILED
    assert lines == [
        "error: another process of this run has ended, see above. Go on with the same command."
    ]


def test_too_many_bad_scans_leave_with_1_at_whatever_step_they_are_found(run):
    bad = [ScanError("a.nii", "find", "it is empty.", "Fill it.")]

    def none_usable(cfg):
        raise NoUsableScan(bad)

    def too_many(cfg):
        raise TooManyFailedScans(bad, num_scans=2, max_failed=0.05)

    assert run(none_usable)[0] == run(too_many)[0] == command.FAILED


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"a:\n\tb: 1\n", "own.yaml, line 2: "),
        (b"seed: {a: 1\nplan: true\n", "own.yaml, line 2: while parsing a flow mapping"),
        (b"seed: 1\nseed: 2\n", "own.yaml, line 2: "),
        (b"# caf\xe9\nseed: 1\n", "own.yaml is not UTF-8"),
        (b"seed: \x01\n", 'own.yaml"'),
    ],
)
def test_a_mistake_in_a_config_file_names_file_and_line(run, tmp_path, content, says):
    folder = tmp_path / "own" / "experiment"
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_bytes(content)
    status, (line,) = run(lambda cfg: None, "experiment=own", f"--config-dir={folder.parent}")
    assert status == command.WRONG_INPUT
    assert f"{folder}/{says}" in line


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data=5"], "there is no data=5"),
        (["+experiment=jepa_phantom"], "Write experiment=jepa_phantom to change it"),
        (["recipe@data.recipes.T1=cubet1"], "Did you mean recipe@data.recipes.T1=cube_t1?"),
        (["data.weights.oslo=0.5"], "Write +data.weights.oslo=0.5"),
        (["data.splits.train=[a]"], "splits@data.splits=listed"),
        (["data.root='/a/${x}'"], "data.root: Interpolation key 'x' not found."),
        (["paths.output_dir='/a/${x}'"], "paths.output_dir: Interpolation key 'x' not found."),
        (["paths.cache_dir=null"], "paths.cache_dir must be a path; got null."),
        (["run.name=2020_01"], "Write 'run.name=\"2020_01\"'."),
    ],
)
def test_a_mistake_of_a_word_is_told_with_what_to_type(run, words, says):
    status, (line,) = run(lambda cfg: command.resolve(cfg, prepare.PARTS), *words)
    assert status == command.WRONG_INPUT
    assert says in line


def test_the_folder_of_a_command_is_no_null():
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("prepare", ["paths.cache_dir=null"], return_hydra_config=True)
    with pytest.raises(OmegaConfBaseException) as error:
        cfg.hydra.run.dir  # noqa: B018
    assert "paths.cache_dir must be a path; got null." in command.explain(error.value, "prepare")


def test_the_recipe_of_another_system_on_the_phantom_is_told_with_the_one_that_fits(run):
    def build(cfg):
        instantiate(cfg.data.recipes, _convert_="all")

    for system in ("jepa", "mil"):
        _, (line,) = run(build, f"system={system}")
        assert "the recipe of data.recipes.T1 takes no shape" in line
        assert "recipe@data.recipes.T1=cube_t1, or take experiment=jepa_phantom" in line
    run(build, "system=jepa", "recipe@data.recipes.T1=cube_t1")


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


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_before_the_command_has_its_config_stops_it_in_a_line(run, monkeypatch, signum):
    requeued = []
    monkeypatch.setattr("neuro.stopping.requeue", lambda: requeued.append(True))
    monkeypatch.setattr("neuro.redaction.check_words", lambda _: os.kill(os.getpid(), signum))
    before = signal.signal(signum, signal.default_int_handler)  # the usual one ends the tests
    try:
        status, (line,) = run(lambda cfg: pytest.fail("it went on"))
    finally:
        signal.signal(signum, before)
    assert status == command.FAILED
    assert line.startswith(f"error: stopped by {signum.name}. ")
    assert requeued == [True] * (signum == signal.SIGUSR1)


def test_the_first_ctrl_c_leaves_a_second_one_to_the_system(tmp_path):
    """Two in a row end the process, by the first or the second, and never abort it."""
    code = (
        "import os, signal, sys, time\n"
        "from neuro import command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # none in the background
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
