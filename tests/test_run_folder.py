"""A run folder belongs to one run."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neuro import run_folder
from neuro.errors import InputError
from neuro.run_folder import claim, held, job_id


def test_runs_that_begin_in_the_same_second_get_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "20260101-120000")
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: claim(str(tmp_path / "jepa"), None, None), range(8)))
    names = [f"20260101-120000{ending}" for ending in ("", *(f"-{n}" for n in range(2, 9)))]
    assert sorted(Path(one).name for one in folders) == names
    assert all(Path(one).is_dir() for one in folders)


@pytest.mark.parametrize(("name", "job_id"), [("mine", None), (None, "1234"), ("mine", "1234")])
def test_a_name_or_a_job_finds_its_own_folder_again(tmp_path, name, job_id):
    folder = claim(str(tmp_path), name, job_id)
    assert folder == claim(str(tmp_path), name, job_id) == str(tmp_path / (name or job_id))
    assert not Path(folder).exists()  # Hydra makes it


def test_a_config_answers_the_same_each_time(tmp_path):
    cfg = OmegaConf.create({"dir": f"${{run_dir:{tmp_path},null,null}}"})
    assert cfg.dir == cfg.dir
    assert len(list(tmp_path.iterdir())) == 1


def test_processes_that_start_side_by_side_need_a_name(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"Add run\.name=NAME"):
        claim(str(tmp_path), None, None)
    assert claim(str(tmp_path), "mine", None) == str(tmp_path / "mine")


def test_a_name_that_is_a_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="plain name"):
        claim(str(tmp_path), "../elsewhere", None)


def test_a_task_of_an_array_is_named_by_both_numbers_and_each_has_another_name():
    assert job_id(None, None, None) is None
    assert job_id("12", None, None) == "12"
    # SLURM gives each task a job number of its own, and the last one that of the array.
    assert [job_id(job, "12", task) for job, task in (("13", "1"), ("12", "2"))] == ["12_1", "12_2"]


def test_the_config_knows_a_job_by_its_environment(monkeypatch):
    paths = OmegaConf.load(Path(__file__).parents[1] / "conf/paths/default.yaml")
    names = ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert paths.job_id is None
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    assert paths.job_id == "13"
    for name, value in zip(names, ("13", "12", "0"), strict=True):
        monkeypatch.setenv(name, value)
    assert paths.job_id == "12_0"


def test_a_run_folder_is_one_process_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "SECONDS_TO_LEAVE", 1)
    code = (
        "import sys, time; from pathlib import Path; from neuro.run_folder import held\n"
        "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(InputError, match="a process works in the run folder"), held(tmp_path):
        pass
    other.kill()  # which leaves nothing that must be cleaned up
    other.wait()
    with held(tmp_path):
        pass
