"""A run folder belongs to one run."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from neuro import resume, run_folder
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


SECRETS = {
    "an apostrophe": "s3cret'with'more",
    "longer than a line": "s3cret " + "word " * 40 + "end",
    "quotes and backslashes": 's3cret"\\"\\\\',
    "several lines": "s3cret\n  -----: key\n\tof more\n",
    "other letters": "s3cret-ünïcødé-\U0001f511",
    "signs of yaml": "s3cret: {a, [b]} # & * ! | > %",
    "an interpolation": "s3cret${a.b}",
}


@pytest.mark.parametrize("kind", SECRETS)
def test_no_sign_of_a_format_hides_a_secret_and_the_command_knows_its_run(
    kind, tmp_path, monkeypatch
):
    secret = SECRETS[kind]
    monkeypatch.setenv("OWN_TOKEN", secret)
    monkeypatch.setattr(run_folder, "environment", lambda: {"system": f"{secret}!", "z": 1, "a": 2})
    monkeypatch.setattr(sys, "argv", ["train.py", f"a={secret} b"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setenv("OWN_VALUE", secret)  # as a library's own name for it
    read = "${oc.env:OWN_VALUE}"
    cfg = OmegaConf.create({"z": {"deep": [f"x{read}", 1]}, "a": read, "text": r"a\${b", "b": None})
    run_folder.write_start(tmp_path, cfg)
    config, command, environment = (
        (tmp_path / name).read_text() for name in ("config.yaml", "command.sh", "environment.json")
    )
    assert list(yaml.safe_load(config)) == ["z", "a", "text", "b"]
    assert yaml.safe_load(config) == {
        "z": {"deep": ["x<OWN_TOKEN>", 1]},
        "a": "<OWN_TOKEN>",
        "text": "a${b",
        "b": None,
    }
    assert json.loads(environment) == {"system": "<OWN_TOKEN>!", "z": 1, "a": 2}
    assert shlex.split(command.splitlines()[1])[2] == "a=<OWN_TOKEN> b"
    for written in (config, command, environment):
        assert "s3cret" not in written
    del cfg.text  # which OmegaConf cannot read again
    run_folder.write_start(tmp_path, cfg)
    assert resume.differences(tmp_path / "config.yaml", cfg) == []


def test_the_command_of_an_installed_package_names_the_module_and_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/lib/neuro/train.py", "system=jepa"])
    spec = ModuleSpec("neuro.train", None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    run_folder.write_start(tmp_path, OmegaConf.create({}))
    command = (tmp_path / "command.sh").read_text().splitlines()[1]
    assert shlex.split(command)[1:] == ["-m", "neuro.train", "system=jepa"]


def test_a_config_is_written_as_omegaconf_writes_it(tmp_path):
    cfg = OmegaConf.create({"b": "1e3", "a": ["null", None, "", "ü", {"c": 1.0}], "d": "${b}"})
    run_folder.write_start(tmp_path, cfg)
    assert (tmp_path / "config.yaml").read_text() == OmegaConf.to_yaml(cfg, resolve=True)
