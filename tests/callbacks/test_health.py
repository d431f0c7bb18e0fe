"""A collapse is told in words at the validation that shows it; a healthy run is left in peace."""

from __future__ import annotations

import csv
import logging
import math

import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.nn import functional as F

from neuro.callbacks.health import HEALTHY, Checkup, Health
from neuro.errors import InputError
from neuro.systems.jepa import Jepa


def rows_of(folder):
    with (folder / "health.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def checkup(step, **changes):
    usual = {"rank": 61.0, "std": 0.6, "cosine": 0.9, "unexplained": 0.4}
    return Checkup(step=step, context_share=0.25, left_out=0.0, **{**usual, **changes})


def after(*ranks, every=300):
    """A callback that has seen some healthy validations."""
    health = Health("unused")
    health.history = [checkup(every * place, rank=rank) for place, rank in enumerate(ranks)]
    return health


class Shown(Jepa):
    """Learns a target that is the same for every token."""

    def losses(self, batch):
        (view,) = batch.views
        guessed = self._guessed(self._voxels(batch), batch.volumes.coords, view)
        target = torch.linspace(-1, 1, guessed.shape[1]).expand_as(guessed)
        return {"loss": F.smooth_l1_loss(guessed, target)}


@pytest.fixture
def warnings_of():
    """Collect the warnings of the callback."""
    found = []

    class Keep(logging.Handler):
        def emit(self, record):
            found.append(record.getMessage())

    keep, logger = Keep(logging.WARNING), logging.getLogger("neuro.callbacks.health")
    logger.addHandler(keep)
    yield found
    logger.removeHandler(keep)


# ---------------------------------------------------------------- the verdict


def test_a_fall_of_the_rank_is_told_with_its_steps_and_the_last_healthy_checkpoint():  # S28
    health = after(20.0, 40.0, 55.0, 58.0, 61.0)
    assert health.judge(checkup(1500, rank=4.0)) == (
        "rank fell from 61 to 4 in 300 steps: partial collapse; last healthy checkpoint: step 1200"
    )


def test_a_slow_fall_is_measured_from_the_highest_rank():
    health = after(61.0, 40.0, 25.0, 20.0)
    assert "from 61 to 15 in 1200 steps" in health.judge(checkup(1200, rank=15.0))


def test_a_rank_that_settles_is_healthy():
    assert after(61.0, 40.0, 30.0).judge(checkup(900, rank=28.0)) == HEALTHY


def test_a_rank_that_was_low_from_the_start_may_stay_there():
    assert after(3.0).judge(checkup(300, rank=2.5)) == HEALTHY


def test_tokens_that_look_alike_are_a_complete_collapse_even_at_the_start():
    verdict = Health("unused").judge(checkup(0, rank=1.0, std=0.01))
    assert verdict.startswith("all tokens look alike")
    assert verdict.endswith("complete collapse; never healthy")


def test_a_loss_that_vanishes_tells_of_a_constant_target():
    assert "0.05 %" in after(61.0).judge(checkup(300, unexplained=0.0005))


def test_features_that_are_no_numbers_are_told():
    assert "diverged" in after(61.0).judge(checkup(300, rank=math.nan, std=math.nan))


# ---------------------------------------------------------------- runs


@pytest.fixture
def run(make_heads, make_jepa, make_trainer, tmp_path):
    """Return a function that trains with a health panel and gives back both and the trainer."""

    def run(kind=Jepa, *, datamodule=None, prepare=None, system=None, health=None, **settings):
        arguments = {
            key: settings.pop(key) for key in ("lr", "momentum", "seed") if key in settings
        }
        health = health or Health(tmp_path / "run", stop=settings.pop("stop", False))
        system = system or make_jepa(kind, **arguments)
        if prepare:
            prepare(system)
        trainer = make_trainer(callbacks=[health], **settings)
        trainer.fit(system, datamodule=datamodule or make_heads())
        return health, system, trainer

    return run


@pytest.mark.parametrize("seed", [0, 1])
def test_a_healthy_run_raises_no_alarm(run, tmp_path, warnings_of, seed):
    health, _, trainer = run(max_steps=30, val_check_interval=10, seed=seed)
    rows = rows_of(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [0, 10, 20, 30]
    assert {row["verdict"] for row in rows} == {HEALTHY}
    assert warnings_of == []
    logged = {name: float(one) for name, one in trainer.callback_metrics.items()}
    assert logged["health/collapsed"] == 0
    assert 1 < logged["health/rank"] <= 48
    assert 0.1 < logged["health/std"] <= 1
    assert -1 <= logged["health/cosine"] <= 1
    assert 0.15 < logged["health/context_share"] < 0.35
    assert logged["health/left_out"] == 0
    assert logged["health/rank"] == pytest.approx(health.history[-1].rank)


def silence(system):
    """Make the teacher say the same of everything."""
    torch.nn.init.zeros_(system.teacher.norm.weight)


def test_a_constant_teacher_raises_the_alarm_at_once(run, tmp_path, warnings_of):  # S28
    _, _, trainer = run(prepare=silence, momentum=(1.0, 1.0))
    assert float(trainer.callback_metrics["health/collapsed"]) == 1
    assert all("complete collapse" in row["verdict"] for row in rows_of(tmp_path / "run"))
    assert "complete collapse" in warnings_of[0]


def test_a_constant_target_raises_the_alarm_within_a_few_validations(run, tmp_path):  # S28
    run(Shown, momentum=(0.0, 0.0), lr=5e-3, max_steps=80, val_check_interval=20)
    verdicts = [row["verdict"] for row in rows_of(tmp_path / "run")]
    assert verdicts[0] == HEALTHY
    assert verdicts[-1] != HEALTHY
    assert "last healthy checkpoint: step" in verdicts[-1]


def test_a_collapse_may_end_training_and_otherwise_does_not(run):
    for stop, steps in ((True, 2), (False, 4)):
        _, _, trainer = run(prepare=silence, momentum=(1.0, 1.0), stop=stop)
        assert trainer.global_step == steps


def test_the_panel_changes_nothing_in_training(run, make_heads, make_jepa, make_trainer):
    _, watched, _ = run(max_steps=3)
    alone = make_jepa()
    make_trainer(max_steps=3).fit(alone, datamodule=make_heads())
    for one, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_is_seen_does_not_depend_on_how_volumes_are_batched(run, make_heads):
    found = []
    for max_studies in (1, 3, 8):
        datamodule = make_heads(max_studies=max_studies)
        health, _, _ = run(datamodule=datamodule, max_steps=1, val_check_interval=1)
        found.append(health.history[0])
    for one in found[1:]:
        for name in ("rank", "std", "cosine", "context_share"):
            assert getattr(one, name) == pytest.approx(getattr(found[0], name), rel=1e-4)


def test_the_size_of_features_does_not_count_nor_does_what_training_drops(run):
    def enlarge(system):
        for encoder in (system.student, system.teacher):
            torch.nn.init.constant_(encoder.norm.weight, 7.0)

    usual, _, _ = run(max_steps=1, val_check_interval=1)
    large, _, _ = run(max_steps=1, val_check_interval=1, prepare=enlarge)
    assert usual.history[0].std == pytest.approx(large.history[0].std, rel=1e-4)
    assert usual.history[0].rank == pytest.approx(large.history[0].rank, rel=1e-4)
    assert usual.history[0].cosine == pytest.approx(1, abs=1e-5)  # the teacher begins as a copy


def test_only_so_many_tokens_are_looked_at(run, make_heads, monkeypatch, tmp_path):
    sizes = []
    from neuro.callbacks import health as module

    real = module.effective_rank
    monkeypatch.setattr(module, "effective_rank", lambda one: sizes.append(len(one)) or real(one))
    for most, volumes in ((64, 1), (128, 2), (10_000, 4)):
        datamodule = make_heads(max_studies=1)
        run(datamodule=datamodule, health=Health(tmp_path, max_tokens=most), max_steps=1)
        assert set(sizes) <= set(range(volumes, 64 * volumes + 1))
        assert min(sizes) > 32 * volumes
        sizes.clear()


def test_a_resumed_run_goes_on_with_what_was_seen(run, make_trainer, make_heads, tmp_path):
    first, system, trainer = run(max_steps=4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second = Health(tmp_path / "again")
    again = make_trainer(callbacks=[second], max_steps=6)
    again.fit(system, datamodule=make_heads(), ckpt_path=tmp_path / "last.ckpt")
    assert [repr(one) for one in second.history[:3]] == [repr(one) for one in first.history]
    assert [int(row["step"]) for row in rows_of(tmp_path / "again")] == [0, 2, 4, 6]


def test_a_run_that_is_taken_back_forgets_what_came_after(run, make_trainer, make_heads, tmp_path):
    health, system, trainer = run(max_steps=4)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    health.history = [*health.history, checkup(2000)]
    run(max_steps=2, system=system, health=health)
    assert max(one.step for one in health.history) == 2


def test_another_system_is_left_alone(make_trainer, tmp_path):
    make_trainer(callbacks=[Health(tmp_path / "run")]).fit(BoringModel())
    assert not (tmp_path / "run").exists()


def test_too_few_tokens_are_refused():
    with pytest.raises(InputError, match="max_tokens must be at least 64"):
        Health("unused", max_tokens=10)
