"""The trainers of conf/trainer run, and several processes share an epoch out among them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from small_jepa import SMALL as JEPA
from small_mil import SMALL as MIL
from small_mil import write_heads

from neuro import command

ROOT = Path(__file__).parents[1]
LLAVA = (
    "data.num_subjects=20",
    "data.max_studies=8",
    "system.max_new_tokens=4",
    "system.llava.dim=32",
    "system.llava.num_layers=2",
    "system.llava.num_heads=2",
    "system.llava.steps=2",
    "trainer.accelerator=cpu",
)
SYSTEMS = {"llava_mri": LLAVA, "jepa": JEPA, "mil": MIL}
TWO_EPOCHS = (
    "trainer.max_steps=-1",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.val_check_interval=1.0",
    "trainer.devices=2",
    "data.max_studies=4",
)
SEEN = (
    "+callbacks.seen._target_=seen_studies.SeenStudies",
    "+callbacks.seen.run_dir=${paths.run_dir}",
)


def composed(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        cfg = compose("train", overrides=["paths.run_dir=run", *overrides])
    command.resolve(cfg)
    return cfg


def overrides_of(system, root):
    if system == "mil" and not (root / "heads").exists():
        write_heads(root / "heads")
    more = (f"data.root={root}/heads",) if system == "mil" else ()
    return (*SYSTEMS[system], f"paths.root={root}", *more)


def run(*overrides):
    """Run the command as a user does; return its status and what it printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    words = [sys.executable, str(ROOT / "train.py"), *overrides]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=550)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_two_processes_are_shown_the_plan_and_nothing_else(system, tmp_path):
    given = overrides_of(system, tmp_path)
    status, printed = run(*given, *TWO_EPOCHS, *SEEN, "trainer=ddp", "run.name=two")
    assert status == 0, printed
    folder = tmp_path / "outputs" / system / "two"
    assert "test/" in (folder / "metrics.json").read_text()
    ranks = [json.loads((folder / f"seen-{rank}.json").read_text()) for rank in range(2)]
    data = instantiate(composed(*given, *TWO_EPOCHS).data.datamodule, _convert_="all")
    for split in ("train", "val", "test"):
        dataset = data.dataset(split)
        ids = dataset.studies.ids
        planned = data.planned(dataset)
        # A validation may come before training, and the test has controls.
        firsts = sorted({first for first, _, _ in ranks[0][split]})
        for first in firsts[:2] if split != "test" else [0]:
            epoch, shuffle = (first, True) if split == "train" else (0, False)
            plan = planned.plan(seed=data.seed, epoch=epoch, world_size=2, shuffle=shuffle)
            for rank, seen in enumerate(ranks):
                own = [tuple(studies) for place, _, studies in seen[split] if place == first]
                assert own == [tuple(ids[one] for one in batch) for batch in plan.rank(rank)]
            shown = Counter(
                one
                for seen in ranks
                for place, _, own in seen[split]
                if place == first
                for one in own
            )
            assert set(shown) == set(ids)
            assert max(shown.values()) == 1 or split == "train"
    epochs = [
        {tuple(studies) for first, _, studies in ranks[0]["train"] if first == e} for e in (0, 1)
    ]
    assert epochs[0] != epochs[1]


@pytest.mark.slow
def test_a_language_model_in_shares_runs_from_begin_to_end(tmp_path):
    given = (*overrides_of("llava_mri", tmp_path), "trainer=fsdp", "trainer.precision=32-true")
    given = (*given, "trainer.max_steps=2", "trainer.val_check_interval=1", "trainer.devices=2")
    status, printed = run(*given, "~callbacks.samples", "run.name=shares")
    assert status == 0, printed
    figures = json.loads((tmp_path / "outputs/llava_mri/shares/metrics.json").read_text())
    assert any(name.startswith("test/") for name in figures)
    status, printed = run(*given, "run.name=samples")
    assert status == 2, printed
    assert "Add ~callbacks.samples" in printed


@pytest.mark.slow
def test_what_has_no_such_layers_is_refused_in_one_line(tmp_path):
    given = overrides_of("jepa", tmp_path)
    status, printed = run(*given, "trainer=fsdp", "trainer.precision=32-true", "trainer.devices=2")
    assert status == 2, printed
    assert "Jepa has none. Take trainer=ddp" in printed
    assert "Traceback" not in printed


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="it is installed")
def test_deepspeed_that_is_not_installed_says_how_to_get_it():
    cfg = composed("trainer=deepspeed")
    assert cfg.trainer.strategy.stage == 2
    with pytest.raises(InstantiationException) as caught:
        instantiate(cfg.trainer, _convert_="all")
    line = command.explain(caught.value)
    assert line is not None
    assert "Run pip install 'neuro[deepspeed]'" in line
    assert command.exit_status(caught.value) == 2


def test_every_trainer_is_tried():
    names = {path.stem for path in (command.CONF / "trainer").glob("*.yaml")}
    assert names == {"default", "ddp", "fsdp", "deepspeed"}
    assert {path.stem for path in (command.CONF / "debug").glob("*.yaml")} == {"fdr", "anomaly"}


@pytest.mark.parametrize("name", ["default", "ddp", "fsdp"])
def test_a_trainer_composes_and_is_built(name):
    cfg = composed(f"trainer={name}", "trainer.accelerator=cpu", "trainer.precision=32-true")
    trainer = instantiate(cfg.trainer, logger=False, _convert_="all")
    kind = {"default": "SingleDeviceStrategy", "ddp": "DDPStrategy", "fsdp": "Sharded"}[name]
    assert type(trainer.strategy).__name__ == kind
    if name != "default":
        assert trainer.strategy._ddp_kwargs["find_unused_parameters"] is True


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_dry_run_does_everything_once(system, tmp_path):
    status, printed = run(*overrides_of(system, tmp_path), *SEEN, "debug=fdr", "run.name=fdr")
    assert status == 0, printed
    folder = tmp_path / "outputs" / system / "fdr"
    seen = json.loads((folder / "seen-0.json").read_text())
    assert [len(seen[split]) for split in ("train", "val")] == [1, 1]
    assert {place for _, place, _ in seen["test"]} == {0}
    assert (folder / "metrics.json").exists()


@pytest.mark.slow
def test_a_step_that_goes_wrong_ends_in_one_line_that_shows_it_again(tmp_path):
    """An absurd rate, through the command: the line that is printed gives the same record."""
    given = ("system=jepa", *overrides_of("jepa", tmp_path), "optim.lr=1e30", "run.name=wild")
    given = (*given, "callbacks.guard.loss_factor=null", "callbacks.guard.norm_factor=null")
    status, printed = run(*given)
    assert status == 1, printed
    assert "Traceback" not in printed
    folder = tmp_path / "outputs/jepa"
    record = json.loads((folder / "wild/bad_step.json").read_text())
    line = next(one for one in printed.splitlines() if "error: step" in one)
    assert line.endswith(record["replay"])
    words = shlex.split(record["replay"])
    assert words[1] == str(ROOT / "train.py")
    again = f"wild-step{record['step']}"
    assert words[-1] == f"run.name={again}"
    status, printed = run(*words[2:], "debug=anomaly")
    assert status == 1, printed
    if (folder / again / "bad_step.json").exists():  # else the operation is named
        other = json.loads((folder / again / "bad_step.json").read_text())
        assert other | {"replay": ""} == record | {"replay": ""}
    else:
        assert "returned nan values" in printed
