"""A step that goes wrong stops the run before the weights move, and can be seen again."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader

from neuro import memory
from neuro.callbacks.batch_content import BatchContent
from neuro.callbacks.step_guard import CHANGED, StepGuard, replay_line
from neuro.errors import FailedRun, InputError
from neuro.optim.schedules import warmup_cosine
from neuro.run_folder import run_id
from neuro.systems.base import System
from neuro.systems.jepa import Jepa

# Four batches an epoch, a validation every second batch: epoch, batch in it, batches of a step.
PLACES = {
    "the first step": (0, 0, 1),
    "in mid-epoch": (0, 1, 1),
    "after a validation": (0, 2, 1),
    "the last of an epoch": (0, 3, 1),
    "the first of the second epoch": (1, 0, 1),
    "the first half of a step": (0, 2, 2),
    "the second half of a step": (0, 3, 2),
    "the first step of the second epoch, in halves": (1, 1, 2),
    "after a validation every third batch": (1, 2, 1),
    "two steps after a validation every third batch": (1, 1, 1),
}


class Poisoned(Jepa):
    """Gives what a bad scan would give, in one batch of one epoch."""

    place = None  # epoch, batch
    factor = math.nan

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        is_bad = (self.trainer.current_epoch, batch_idx) == self.place
        return loss * self.factor if is_bad else loss


class Written(Callback):
    """Keeps which batches came to an end, and what they cost."""

    def __init__(self):
        self.begun, self.done = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.begun.append((trainer.current_epoch, batch_idx, batch.study_ids))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.done.append((trainer.current_epoch, batch_idx, float(outputs["loss"])))


class Curve(Logger):
    """Keeps the training loss by step."""

    name, version = "curve", 0

    def __init__(self):
        super().__init__()
        self.losses = {}

    def log_metrics(self, metrics, step=None):
        if "train/loss" in metrics:
            assert step not in self.losses
            self.losses[step] = metrics["train/loss"]

    def log_hyperparams(self, params, *args, **kwargs):
        pass


@pytest.fixture
def fit(make_jepa, make_heads, make_trainer, tmp_path):
    """Return a function that trains for six steps; it gives back the system, and what was seen."""

    def fit(
        place=None, halves=1, *, factor=math.nan, ckpt_path=None, guard=True, folder="run", **more
    ):
        system = make_jepa(Poisoned)
        system.place, system.factor = place, factor
        seen, curve = Written(), Curve()
        (tmp_path / folder).mkdir(exist_ok=True)
        guards = [StepGuard(tmp_path / folder, **more.pop("guarded", {}))] if guard else []
        more = {"max_steps": 6, **more}
        trainer = make_trainer(
            callbacks=[*guards, seen], logger=[curve], accumulate_grad_batches=halves, **more
        )
        seen.error = None
        try:
            torch.manual_seed(11)
            trainer.fit(system, datamodule=make_heads(), ckpt_path=ckpt_path)
        except FailedRun as error:
            seen.error = str(error)
        return system, seen, curve.losses

    return fit


def bits(system):
    return {name: one.detach().clone() for name, one in system.named_parameters()}


def record_of(folder):
    return json.loads((folder / "bad_step.json").read_text())


@pytest.mark.parametrize("name", PLACES)
def test_the_step_comes_again_and_a_cured_run_is_one_that_was_never_stopped(name, fit, tmp_path):
    epoch, batch, halves = PLACES[name]
    if "third" in name:
        fit = partial(fit, val_check_interval=3, max_steps=8)
    whole, usual, curve = fit(None, halves)
    _, seen, before = fit((epoch, batch), halves)
    # The step is over where the batches of it are.
    step = (4 * epoch + batch) // halves
    first = 4 * epoch + batch - batch % halves
    record = record_of(tmp_path / "run")
    assert (record["step"], record["epoch"], record["seed"]) == (step, epoch, 11)
    assert record["loss"] == "nan"
    shown = record["ranks"][0]["batches"]
    assert [(one["batch"], tuple(one["studies"])) for one in shown] == [
        (index, studies) for _, index, studies in usual.begun[first : first + halves]
    ]
    assert [one["loss"] for one in shown].count("nan") == 1
    assert seen.begun == usual.begun[: first + halves]
    assert seen.done[:first] == usual.done[:first]
    assert before == {key: value for key, value in curve.items() if key < step}

    saved = tmp_path / "run/checkpoints/bad_step.ckpt"
    _, again, _ = fit((epoch, batch), halves, ckpt_path=saved, folder="again")
    assert again.begun == usual.begun[first : first + halves]
    other = record_of(tmp_path / "again")
    assert shown == other["ranks"][0]["batches"] or halves == 1  # nan is nan
    assert record | {"replay": ""} == other | {"replay": ""}

    cured, after, rest = fit(None, halves, ckpt_path=saved, folder="cured")
    assert after.begun == usual.begun[first:]
    assert after.done == usual.done[first:]
    assert rest == {key: value for key, value in curve.items() if key >= step}
    for key, one in bits(whole).items():
        assert torch.equal(bits(cured)[key], one), key


def test_what_is_saved_is_the_state_before_the_step(fit, tmp_path):
    fit((0, 2))
    saved = torch.load(tmp_path / "run/checkpoints/bad_step.ckpt", weights_only=True)
    before = fit(None, guard=False, max_steps=2)[0]
    assert saved["global_step"] == 2
    for key, one in bits(before).items():
        assert torch.equal(saved["state_dict"][key], one), key  # the teacher too


def test_a_healthy_run_is_left_as_it_is_bit_for_bit(fit):
    guarded, plain = fit()[0], fit(guard=False)[0]
    for key, one in bits(plain).items():
        assert torch.equal(bits(guarded)[key], one), key


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_stops_at_once(value, fit):
    _, seen, _ = fit((0, 1), factor=value)
    assert len(seen.done) == 1
    assert f"step 1: the loss is {value}" in seen.error


def test_an_absurd_rate_is_found_where_it_shows(fit, make_jepa, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", _leap)
    _, seen, _ = fit(guarded={"loss_factor": None, "norm_factor": None})
    record = record_of(tmp_path / "run")
    assert record["step"] == len(seen.done) < 6
    _, again, _ = fit(ckpt_path=tmp_path / "run/checkpoints/bad_step.ckpt", folder="again")
    assert len(again.begun) == 1
    assert record_of(tmp_path / "again")["gradient_norms"] == record["gradient_norms"]


@torch.no_grad()
def _leap(self, closure=None):
    loss = None
    with torch.enable_grad():
        loss = closure()
    for group in self.param_groups:
        for one in group["params"]:
            if one.grad is not None:
                one.add_(one.grad, alpha=-1e30)
    return loss


@pytest.mark.parametrize("where", ["forward", "backward", "optimizer", "validation"])
def test_memory_that_ends_is_told_with_the_batch_that_needed_it(
    where, make_jepa, make_heads, make_trainer, tmp_path
):
    class Large(Jepa):
        def training_step(self, batch, batch_idx):
            if where == "forward" and batch_idx == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().training_step(batch, batch_idx)

        def on_after_backward(self):
            if where == "backward" and self.trainer.global_step == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")

        def validation_step(self, batch, batch_idx):
            if where == "validation":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().validation_step(batch, batch_idx)

        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            if where == "optimizer" and self.trainer.global_step == 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    seen = Written()
    trainer = make_trainer(callbacks=[StepGuard(tmp_path), seen])
    with pytest.raises(torch.OutOfMemoryError) as caught:
        trainer.fit(make_jepa(Large), datamodule=make_heads())
    line = memory.explained([caught.value], None)
    if where == "validation":
        assert line.startswith(
            "out of memory at rank 0, step 2: validation batch 0 with 4 studies ("
        )
        return
    _, place, studies = seen.begun[-1]
    assert f"step 1: training batch {place} with 8 studies ({', '.join(studies)})" in line
    assert "8 images, " in line


# ---------------------------------------------------------------- numbers by hand


class Number(torch.Tensor):
    """A batch of one study."""

    num_studies = 1


class Slope(System):
    """Its loss is what it is shown; its gradient a second number."""

    def __init__(self):
        super().__init__(
            partial(torch.optim.SGD, lr=0.0),
            partial(warmup_cosine, warmup_fraction=0.1, final_fraction=0.1),
            weight_decay=0.0,
        )
        self.first, self.second = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1)

    def losses(self, batch):
        loss, slope = batch.as_subclass(torch.Tensor)
        weight = self.first.weight.sum()
        nothing = weight - weight.detach()
        if slope > 1e30:
            nothing = nothing * 1e30  # overflows on the way back only
        return {"loss": loss + slope * nothing}


@pytest.fixture
def steps(make_trainer, tmp_path):
    """Return a function that shows (loss, slope) after (loss, slope) to a guard."""

    def steps(pairs, *, factors=(10.0, 10.0), window=20, **more):
        batches = [torch.tensor(one).as_subclass(Number) for one in pairs]
        guard = StepGuard(tmp_path, *factors, window)
        more = {"max_steps": len(pairs), "val_check_interval": None, **more}
        make_trainer(callbacks=[guard], **more).fit(Slope(), DataLoader(batches, batch_size=None))
        return guard

    return steps


HEALTHY = [(2.0, 1.0), (3.0, 3.0), (4.0, 2.0)] * 7  # medians 3 and 2


@pytest.mark.parametrize(
    ("spike", "said"),
    [
        ((31.0, 1.0), "the loss is 31, 10.3 times what is usual"),
        ((1.0, 21.0), "the gradient norm is 21, 10.5 times what is usual"),
        ((1.0, -21.0), "the gradient norm is 21"),
    ],
)
def test_what_is_far_above_the_median_is_a_spike(spike, said, steps):
    with pytest.raises(FailedRun, match=f"step 21: {said}"):
        steps([*HEALTHY, spike])


def test_what_is_not_so_far_is_none_nor_is_a_fall_or_what_comes_too_early(steps):
    steps([*HEALTHY, (29.0, 19.0), (0.0, 0.0), (-500.0, 1.0)])
    steps([*HEALTHY[:19], (1000.0, 1000.0)])
    steps([(0.0, 0.0)] * 25 + [(1e-6, 1e-6)])  # nothing is a multiple of nothing
    steps([*HEALTHY, (1e6, 1e6)], factors=(None, None))


def test_loss_and_norm_have_a_factor_each(steps):
    steps([*HEALTHY, (59.0, 1.0), (1.0, 199.0)], factors=(20.0, 100.0))
    with pytest.raises(FailedRun, match="the loss is 61"):
        steps([*HEALTHY, (61.0, 1.0)], factors=(20.0, 100.0))
    with pytest.raises(FailedRun, match="the gradient norm is 201"):
        steps([*HEALTHY, (1.0, 201.0)], factors=(20.0, 100.0))


def test_the_first_and_the_last_steps_say_what_is_usual(steps):
    low, high = [(1.0, 1.0)] * 20, [(100.0, 1.0)] * 20
    with pytest.raises(FailedRun, match="the loss is 20"):
        steps([*low, (20.0, 1.0)])
    steps([*low, *[(9.0, 1.0)] * 20, (89.0, 1.0)])  # it rose in peace
    steps([*high, *low, (900.0, 1.0)])  # a loss that came near zero
    with pytest.raises(FailedRun, match="the loss is 11"):
        steps([*low, *[(9.0, 1.0)] * 20, *low, (11.0, 1.0)])  # neither first nor last


def test_a_run_that_goes_on_knows_the_steps_before(steps, tmp_path):
    guard = steps(HEALTHY)
    other = StepGuard(tmp_path, 10.0, 10.0, 20)
    other.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    for place, one in enumerate(other.courses.values()):
        assert one.first == [pair[place] for pair in HEALTHY[:20]]
        assert list(one.last) == [pair[place] for pair in HEALTHY[1:]]
        one.add(5.0)
        assert (len(one.first), len(one.last)) == (20, 20)


def test_the_parts_are_named_with_their_gradients_and_the_rates(steps, tmp_path):
    with pytest.raises(FailedRun):
        steps([(1.0, 2.0), (1.0, 1e35)], gradient_clip_val=0.1)
    record = record_of(tmp_path)
    assert record["wrong"] == "the gradient norm is inf"
    assert record["gradient_norms"] == {"first": "inf"}  # the second part has none
    assert record["learning_rates"] == [0.0, 0.0]
    assert record["loss"] == 1.0


def test_the_loss_is_that_of_all_batches_of_a_step(steps, tmp_path):
    guard = steps([(1.0, 1.0), (3.0, 5.0)], accumulate_grad_batches=2, max_steps=1)
    assert [list(one.last) for one in guard.courses.values()] == [[2.0], [3.0]]
    with pytest.raises(FailedRun):
        steps([(5.0, 1.0), (math.nan, 1.0)], accumulate_grad_batches=2, max_steps=1)
    batches = record_of(tmp_path)["ranks"][0]["batches"]
    assert [one["loss"] for one in batches] == [5.0, "nan"]  # each as it is by itself


@pytest.mark.slow
def test_what_one_rank_sees_stops_all_of_them(tmp_path):
    """The loss of the second rank is not finite in its third step; no gradient shows it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert told[0].startswith("step 2: the loss is nan")
    record = record_of(tmp_path)
    losses = [[batch["loss"] for batch in rank["batches"]] for rank in record["ranks"]]
    assert (losses, record["gradient_norm"]) == ([[1.0], ["nan"]], 1.0)
    assert (tmp_path / "checkpoints/bad_step.ckpt").is_file()


# ---------------------------------------------------------------- the line


def test_the_line_is_the_same_command_with_another_start(monkeypatch, tmp_path):
    given = ["train.py", "system=jepa", "run.name=a b", "+ckpt_path=x", "init_from=y", "seed=3"]
    monkeypatch.setattr(sys, "argv", given)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    words = shlex.split(replay_line(tmp_path / "bad_step.ckpt", "a-step3"))
    start = [f"ckpt_path={tmp_path}/bad_step.ckpt", "run.name=a-step3"]
    assert words[1:] == ["train.py", "system=jepa", "seed=3", *start]
    assert {"ckpt_path", "run.name"} < set(CHANGED)


@pytest.mark.parametrize("form", ["--config-dir=/mine", "--config-dir /mine", "-cd /mine"])
def test_the_line_says_where_the_config_is_before_every_other_word(form, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py", *form.split(), "experiment=my", "seed=3"])
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    words = shlex.split(replay_line(tmp_path / "bad_step.ckpt", "a-step3"))
    assert words[2:5] == [form.replace(" ", "="), "experiment=my", "seed=3"]


@pytest.mark.parametrize("name", ["a,b", "a=b", "a(b", "[a", "#a&b", "~", "it's", 'a "b" ü', "\\"])
def test_the_line_can_be_read_whatever_the_name_of_the_folder(name, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    checkpoint = tmp_path / name / "bad_step.ckpt"
    *_, word, _ = shlex.split(replay_line(checkpoint, "a-step3"))
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    assert (override.key_or_group, override.value()) == ("ckpt_path", str(checkpoint))


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("outputs/jepa/a", "a-step0"),
        ("outputs/jepa/20260101-120000", "20260101-120000-step0"),
        ("outputs/jepa/sweeps/cv/1", "cv-1-step0"),
        ("outputs/jepa/sweeps/ageß/1", "age-1-step0"),
        ("mine/ü (a)", "a-step0"),
    ],
)
def test_the_name_of_the_other_run_is_plain_and_of_one_run_alone(folder, name, fit, tmp_path):
    (tmp_path / folder).mkdir(parents=True)
    fit((0, 0), folder=folder)
    replay = shlex.split(record_of(tmp_path / folder)["replay"])
    assert replay[-1] == f"run.name={run_id(name, None)}"


def test_the_line_of_an_installed_package_names_the_module_and_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["/lib/neuro/train.py", "system=jepa"])
    spec = ModuleSpec("neuro.train", None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    words = shlex.split(replay_line(tmp_path / "bad_step.ckpt", "a-step3"))
    assert words[1:4] == ["-m", "neuro.train", "system=jepa"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"loss_factor": 1.0}, r"callbacks\.guard\.loss_factor must be above 1; got 1\.0"),
        ({"norm_factor": math.nan}, r"callbacks\.guard\.norm_factor must be above 1"),
        ({"window": 19}, r"callbacks\.guard\.window must be at least 20; got 19"),
    ],
)
def test_a_number_that_means_nothing_is_an_error(settings, said, tmp_path):
    with pytest.raises(InputError, match=said):
        StepGuard(tmp_path, **settings)


def test_a_batch_is_told_in_numbers_and_some_names(make_heads):
    data = make_heads()
    data.prepare_data()
    batch = data.batch_of(data.studies["train"])
    told = BatchContent.of("training", 7, batch)
    assert told.studies == batch.study_ids
    assert told.image_tokens == len(batch.volumes.tokens) == sum(batch.lengths)
    assert told.num_images == len(batch.lengths) == 32
    line = str(told)
    assert line.startswith(f"training batch 7 with 32 studies ({told.studies[0]}, ")
    assert line.endswith(f"and 24 more), 32 images, {told.image_tokens:,} image tokens")
    packs = {"T1": batch.volumes, "dMRI": batch.volumes.take([0])}
    talk = SimpleNamespace(volumes=packs, study_ids=("a",), input_ids=torch.zeros(2, 700))
    line = str(BatchContent.of("test", 0, talk))
    assert "1 studies (a), 33 images" in line
    assert line.endswith(", 1,400 text positions")
    assert BatchContent.of("test", 0, torch.zeros(1)).studies == ()


def on_two_ranks(folder):
    """Be one of two processes."""
    guard = StepGuard(folder)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_find_unused_parameters_true",
        max_steps=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[guard],
    )
    second = int(os.environ.get("LOCAL_RANK", 0)) == 1
    losses = [1.0, 1.0, math.nan if second else 1.0, 1.0]
    batches = [torch.tensor([one, 1.0]).as_subclass(Number) for one in losses]
    try:
        trainer.fit(Slope(), DataLoader(batches, batch_size=None))
    except FailedRun as error:
        (folder / f"{trainer.global_rank}.txt").write_text(str(error))


if __name__ == "__main__":
    on_two_ranks(Path(sys.argv[1]))
