"""A run folder belongs to one run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from neuro.errors import InputError
from neuro.run_folder import claim


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
