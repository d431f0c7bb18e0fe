"""Stop a run wherever it can be stopped, start it again: it ends as one that was never stopped."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path

import pytest
import small_jepa
import small_llava
import small_mil
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from same import assert_same

from neuro import command
from neuro.callbacks.last_checkpoint import LastCheckpoint
from neuro.errors import InputError
from neuro.stopping import Stopped
from neuro.train import train

# Five batches an epoch, ten steps: validations within an epoch, at its end, and at the very end.
STEPS = (
    "trainer.max_steps=10",
    "trainer.val_check_interval=3",
    "trainer.log_every_n_steps=1",
    "data.max_studies=7",
)
SPOKEN = ("callbacks.samples.every_n_steps=4", "callbacks.gradients.every_n_steps=4")


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("stopped")


@pytest.fixture(scope="session")
def heads(shared):
    return small_mil.write_heads(shared / "heads")


@pytest.fixture
def config(shared, heads):
    """Return a function that gives the config of a run of a system."""

    def compose_(system, name, *overrides):
        own = [f"paths.run_dir={shared}/runs/{system}/{name}", *STEPS, *overrides]
        if system == "jepa":
            return small_jepa.config(shared, *own)
        if system == "mil":
            return small_mil.config(heads, shared, *own)
        GlobalHydra.instance().clear()
        with initialize_config_dir(str(command.CONF), version_base="1.3"):
            cfg = compose(
                "train", overrides=[f"paths.root={shared}", *small_llava.SMALL, *SPOKEN, *own]
            )
        command.resolve(cfg)
        return cfg

    return compose_


@pytest.fixture
def stop_at(monkeypatch):
    """Return a function that lets a signal be there when the run looks for the n-th time."""

    def at(number, signum=signal.SIGTERM):
        looks = iter(range(10**6))
        monkeypatch.setattr(
            LastCheckpoint,
            "_agreed",
            lambda self, trainer: (signum if next(looks) == number else None, False),
        )

    return at


def looks_of(config, stop_at, monkeypatch, *words):
    """Run without a break; return the config and how often the run looked for a signal."""
    cfg = config(*words)
    count = []
    monkeypatch.setattr(LastCheckpoint, "_agreed", lambda *_: count.append(1) or (None, False))
    train(cfg)
    return cfg, len(count)


def everything(cfg):
    """Return what a run leaves: its last state, its figures, and its curves without times."""
    run = Path(cfg.paths.run_dir)
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    callbacks = {
        name: {key: one for key, one in own.items() if "path" not in key and key != "dirpath"}
        for name, own in state["callbacks"].items()
    }
    for own in callbacks.values():
        own.pop("best_k_models", None)  # a path, which is told apart below
        own.pop("current_score", None)  # Lightning does not read it back
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        "state": {**state, "callbacks": callbacks, "parts": None},
        "best": torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"],
        "figures": json.loads((run / "metrics.json").read_text()),
        "rows": rows,
    }


CASES = {
    "plain": [],
    "accumulated": ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4"],
    "epochs": [
        "trainer.max_steps=-1",
        "trainer.max_epochs=2",
        "trainer.val_check_interval=1.0",
        "trainer.check_val_every_n_epoch=1",
    ],
    "workers": ["data.num_workers=1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize("system", ["mil", "jepa", "llava_mri"])
def test_wherever_a_run_is_stopped_it_ends_as_if_it_never_was(
    config, stop_at, monkeypatch, system, case
):
    words = CASES[case]
    whole, looks = looks_of(config, stop_at, monkeypatch, system, f"{case}-whole", *words)
    expected = everything(whole)
    assert looks > 10
    every = 1 if system == "mil" and case == "plain" else 5  # everywhere for the quickest
    for place in range(len(case) % every, looks, every):
        cfg = config(system, f"{case}-{place}", *words)
        stop_at(place)
        with pytest.raises(Stopped):
            train(cfg)
        stop_at(-1)
        train(cfg)
        assert_same(everything(cfg), expected, f"stopped at look {place} of {looks}")


def test_a_damaged_checkpoint_does_not_take_the_place_of_the_whole_one_before(config, stop_at):
    cfg = config("mil", "damaged")
    stop_at(5)
    with pytest.raises(Stopped):
        train(cfg)
    folder = Path(cfg.paths.run_dir) / "checkpoints"
    whole = (folder / "previous.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes((folder / "last.ckpt").read_bytes()[:9000])
    stop_at(0)
    with pytest.raises(Stopped):
        train(cfg)
    assert (folder / "previous.ckpt").read_bytes() == whole
    torch.load(folder / "last.ckpt", weights_only=True)


def test_times_are_above_zero(tmp_path):
    with pytest.raises(InputError, match="every_minutes must be above 0"):
        LastCheckpoint(tmp_path, every_minutes=0)
