"""What every objective shares: the step, the checkpoint, a run that goes on where it stopped."""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from neuro.errors import InputError
from neuro.models.policy import Policy
from neuro.models.tuning import Lora
from neuro.optim.schedules import warmup_cosine_factor
from neuro.systems.base import System

TEN_BATCHES = {
    "modalities": ("T1", "dMRI"),
    "pairs": (("T1", "rsfMRI"),),
    "max_studies": 5,
}  # in an epoch


UNEVEN = {
    "modalities": ("T1",),
    "pairs": (("T1", "rsfMRI"),),
    "max_studies": 5,
    "max_tokens": 80,
}
UNEVEN_LENGTHS = (7, 8, 8, 7)  # what fits into a batch depends on the order


class Line(System):
    """Fits a line; half of it is frozen."""

    def __init__(self, **changes):
        settings = {
            "optimizer": partial(torch.optim.AdamW, lr=0.1),
            "schedule": lambda optimizer, num_steps: torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: 1 - step / num_steps
            ),
            "weight_decay": 0.1,
        }
        super().__init__(**{**settings, **changes})
        self.trained = nn.Linear(2, 1)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_an_objective_without_losses_says_so():
    with pytest.raises(NotImplementedError, match="Line must define losses"):
        Line().losses(SimpleNamespace(num_studies=1))


def test_the_table_of_parameters_has_a_row_per_part():
    assert Line().parameter_table() == [("trained", 3, 3), ("frozen", 6, 0)]


# ---------------------------------------------------------------- the step


def test_the_rate_follows_the_schedule_step_by_step_to_its_end(
    make_system, make_datamodule, make_trainer, watch
):
    seen = watch()
    make_trainer(max_steps=12, callbacks=[seen]).fit(make_system(lr=3e-3), make_datamodule())
    expected = [
        3e-3 * warmup_cosine_factor(step, num_steps=12, warmup_fraction=0.1, final_fraction=0.1)
        for step in range(12)
    ]
    assert seen.rates == pytest.approx(expected)


def test_with_accumulation_the_rate_follows_optimizer_steps(
    make_system, make_datamodule, make_trainer, watch
):
    seen = watch()
    data = make_datamodule(**TEN_BATCHES)
    trainer = make_trainer(max_steps=6, callbacks=[seen], accumulate_grad_batches=2)
    trainer.fit(make_system(lr=3e-3), data)
    expected = [
        3e-3 * warmup_cosine_factor(step, num_steps=6, warmup_fraction=0.1, final_fraction=0.1)
        for step in range(6)
        for _ in range(2)
    ]
    assert seen.rates == pytest.approx(expected)


class Numbers(torch.Tensor):
    """A batch; each number is a term of its loss."""

    num_studies = 1


class Slope(System):
    """Its gradient is the mean of what it is shown."""

    def __init__(self):
        super().__init__(
            partial(torch.optim.SGD, lr=0.5),
            lambda optimizer, num_steps: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1),
            weight_decay=0.0,
        )
        self.slope = nn.Parameter(torch.tensor([0.0]))

    def losses(self, batch):
        own = batch.as_subclass(torch.Tensor)
        count = torch.tensor(float(len(own)))
        return {"loss": (own * self.slope).sum() / count.clamp(min=1), "terms": count}


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "batches",
    [
        [[1.0], [2.0, 3.0, 4.0], [5.0, 6.0], [7.0]],
        [[1.0], [2.0, 3.0, 4.0], [5.0, 6.0]],  # the last one has nobody beside it
        [[], [2.0, 3.0], [], []],  # as where no label is known
        [[2.0, 3.0], []],
    ],
)
def test_a_step_of_several_batches_is_that_of_all_of_their_terms(make_trainer, batches, precision):
    class Watch(L.Callback):
        def on_before_backward(self, trainer, pl_module, loss):
            losses.append(2 * float(loss.detach()))

        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients.append(float(pl_module.slope.grad))

    losses, gradients = [], []
    shown = [torch.tensor(one).as_subclass(Numbers) for one in batches]
    system = Slope()
    trainer = make_trainer(
        max_steps=-1,
        max_epochs=2,
        callbacks=[Watch()],
        accumulate_grad_batches=2,
        precision=precision,
        gradient_clip_val=None,
        limit_val_batches=0,
    )
    trainer.fit(system, torch.utils.data.DataLoader(shown, batch_size=None))
    steps = [[*one, *two] for one, two in zip_longest(batches[::2], batches[1::2], fillvalue=[])]
    means = [sum(own) / max(1, len(own)) for own in steps] * 2
    assert gradients == pytest.approx(means)
    assert float(system.slope) == pytest.approx(-0.5 * sum(means))
    slopes = [-0.5 * sum(means[: len(steps)])] * 2  # of the first step of the second epoch
    each = [one * sum(own) / max(1, len(own)) for one, own in zip(slopes, batches, strict=False)]
    # What callbacks see is the loss of each batch.
    assert losses[len(batches) : len(batches) + 2] == pytest.approx(each)


def test_a_strategy_that_accumulates_by_itself_is_left_alone_and_named(
    make_trainer, said, monkeypatch
):
    system = Slope()
    trainer = make_trainer(max_steps=1, accumulate_grad_batches=2, limit_val_batches=0)
    kind = type(trainer.strategy)
    monkeypatch.setattr(kind, "handles_gradient_accumulation", property(lambda _: True))
    monkeypatch.setattr(system, "backward", lambda loss: loss.backward())  # as DeepSpeed's is not
    batches = [torch.tensor([1.0]).as_subclass(Numbers)] * 2
    trainer.fit(system, torch.utils.data.DataLoader(batches, batch_size=None))
    assert f"{kind.__name__} takes the mean of the losses of 2 batches" in said.text


def test_a_run_of_epochs_ends_the_schedule_with_the_last_epoch(
    make_system, make_datamodule, make_trainer, watch
):
    seen = watch()
    trainer = make_trainer(max_steps=-1, max_epochs=2, callbacks=[seen])
    trainer.fit(make_system(lr=1.0), make_datamodule(max_studies=8))
    steps = trainer.global_step
    assert steps == len(seen.rates)
    last = warmup_cosine_factor(steps - 1, num_steps=steps, warmup_fraction=0.1, final_fraction=0.1)
    assert seen.rates[-1] == pytest.approx(last)


def test_the_optimizer_holds_each_trainable_parameter_once_and_positions_do_not_decay(
    make_system, make_datamodule, make_trainer
):
    system = make_system(weight_decay=0.3)
    trainer = make_trainer(max_steps=1)
    trainer.fit(system, make_datamodule())
    names = {id(one): name for name, one in system.named_parameters()}
    groups = {0.3: [], 0.0: []}
    for group in trainer.optimizers[0].param_groups:
        groups[group["weight_decay"]] += [names[id(one)] for one in group["params"]]
    trained = [name for name, one in system.named_parameters() if one.requires_grad]
    assert sorted(groups[0.3] + groups[0.0]) == sorted(trained)
    assert all(name.endswith("projection.weight") for name in groups[0.3])
    assert all(name.endswith(("bias", "positions.0")) for name in groups[0.0])


def test_every_named_loss_is_logged(make_system, make_datamodule, make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.fit(make_system(), make_datamodule(max_studies=16))
    assert set(trainer.callback_metrics) == {
        "train/loss",
        "train/loss_T1",
        "train/loss_dMRI",
        "train/loss_rsfMRI",
        "train/loss_task_sex",
        "train/loss_task_tract",
        "train/loss_task_dropout",
        "train/supervised_tokens",
    }


def test_the_same_seeds_give_the_same_run_and_each_epoch_another_order(
    make_system, make_datamodule, make_trainer, watch, weights_of
):
    rows, weights = [], []
    for _ in range(2):
        seen, system = watch(), make_system()
        trainer = make_trainer(max_steps=-1, max_epochs=2, callbacks=[seen])
        trainer.fit(system, make_datamodule(**TEN_BATCHES))
        rows.append(seen.rows)
        weights.append(weights_of(system))
    assert rows[0] == rows[1]
    assert all(torch.equal(one, weights[1][name]) for name, one in weights[0].items())
    half = len(rows[0]) // 2
    first, second = ([studies for studies, *_ in part] for part in (rows[0][:half], rows[0][half:]))
    assert first != second
    assert sorted(sum(first, ())) == sorted(sum(second, ()))


# ---------------------------------------------------------------- checkpoints


@pytest.fixture
def checkpoint(make_system, make_datamodule, make_trainer, tmp_path):
    """A system after three steps, and its checkpoint."""
    system, trainer = make_system(), make_trainer(max_steps=3)
    trainer.fit(system, make_datamodule())
    path = tmp_path / "three.ckpt"
    trainer.save_checkpoint(path)
    return system, path


def val_losses(make_trainer, make_datamodule, system, path=None):
    trainer = make_trainer(limit_val_batches=1.0)
    return trainer.validate(system, make_datamodule(), ckpt_path=path, verbose=False)[0]


def test_a_checkpoint_holds_exactly_what_is_trained(checkpoint):  # D76
    system, path = checkpoint
    held = torch.load(path, weights_only=True)["state_dict"]
    trained = {name for name, one in system.named_parameters() if one.requires_grad}
    assert held.keys() == trained
    frozen = sum(one.numel() for one in system.parameters() if not one.requires_grad)
    assert frozen > 0
    # Weights and the two moments of Adam, and what Lightning says of the run.
    size = 3 * 4 * sum(one.numel() for one in held.values())
    assert size < path.stat().st_size < 1.05 * size + 50_000


def test_a_checkpoint_of_a_model_of_real_size_is_megabytes(tmp_path):  # D76
    """The frozen part does not count: here 160 MB of it."""
    system = Line()
    system.frozen = nn.Linear(20_000, 2_000).requires_grad_(False)
    checkpoint = {"state_dict": system.state_dict()}
    system.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "one.ckpt")
    assert (tmp_path / "one.ckpt").stat().st_size < 10_000


def test_a_checkpoint_gives_back_the_losses_exactly(
    checkpoint, make_system, make_trainer, make_datamodule
):  # vlm-facts 6.5, 17
    system, path = checkpoint
    expected = val_losses(make_trainer, make_datamodule, system)
    fresh = make_system()
    assert val_losses(make_trainer, make_datamodule, fresh) != expected
    assert val_losses(make_trainer, make_datamodule, fresh, path) == expected


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop(next(iter(held))), r"missing \['llava.*1, 0 and 0"),
        (lambda held: held.update({"llava.extra": torch.zeros(1)}), r"unexpected \['llava.extra"),
        (lambda held: held.clear(), "9, 0 and 0 in all"),
    ],
    ids=["missing", "extra", "empty"],
)
def test_a_checkpoint_with_other_weights_is_refused(
    checkpoint, make_system, make_datamodule, make_trainer, change, message, stage
):  # vlm-facts 6.5, 17; D23
    _, path = checkpoint
    content = torch.load(path, weights_only=True)
    change(content["state_dict"])
    torch.save(content, path)
    trainer = make_trainer(max_steps=5, limit_val_batches=1.0)
    with pytest.raises(InputError, match=message):
        getattr(trainer, stage)(make_system(), datamodule=make_datamodule(), ckpt_path=path)


def test_a_checkpoint_of_another_grid_is_refused(
    checkpoint, make_system, make_datamodule, make_trainer
):  # D23
    _, path = checkpoint
    content = torch.load(path, weights_only=True)
    name = next(name for name in content["state_dict"] if name.endswith("T1.positions.0"))
    content["state_dict"][name] = content["state_dict"][name][:-1]
    torch.save(content, path)
    with pytest.raises(InputError, match=r"of another shape .*positions"):
        make_trainer().validate(make_system(), make_datamodule(), ckpt_path=path)


# ---------------------------------------------------------------- a run that goes on


@pytest.fixture
def rests(make_system, make_datamodule, make_trainer, watch, weights_of, tmp_path):
    """Return a function that trains without a break, and again from each checkpoint of that run.

    It checks that both are the same, and returns how many batches each of them did.
    """

    def run(saver, data=TEN_BATCHES, policy=Policy(), **settings):  # noqa: B008, it is frozen
        whole_seen, whole = watch(), make_system(policy=policy)
        saver = ModelCheckpoint(dirpath=tmp_path / "kept", save_top_k=-1, **saver)
        trainer = make_trainer(callbacks=[whole_seen, saver], enable_checkpointing=True, **settings)
        torch.manual_seed(3)  # as the command does; what layers draw follows from it
        trainer.fit(whole, make_datamodule(**data))
        lengths = []
        for path in (tmp_path / "kept").glob("*.ckpt"):
            rest_seen, rest = watch(), make_system(policy=policy)
            for parameter in filter(lambda one: one.requires_grad, rest.parameters()):
                torch.nn.init.zeros_(parameter)  # all of it comes from the checkpoint
            trainer = make_trainer(callbacks=[rest_seen], **settings)
            torch.manual_seed(3)
            trainer.fit(rest, make_datamodule(**data), ckpt_path=path)
            lengths.append(len(rest_seen.rows))
            assert rest_seen.rows == whole_seen.rows[len(whole_seen.rows) - lengths[-1] :], path
            expected = weights_of(whole)
            for name, one in weights_of(rest).items():
                assert torch.equal(one, expected[name]), (path, name)
        return len(whole_seen.rows), sorted(lengths)

    return run


def test_a_run_goes_on_from_the_middle_of_an_epoch_as_if_never_stopped(rests):
    assert rests({"every_n_train_steps": 4}, max_steps=14) == (14, [2, 6, 10])


def test_a_run_with_accumulation_goes_on_from_the_middle_of_an_epoch(rests):
    found = rests({"every_n_train_steps": 3}, max_steps=8, accumulate_grad_batches=2)
    assert found == (16, [4, 10])


@pytest.mark.parametrize("name", ["none", "lora"])
def test_a_run_of_each_policy_goes_on_as_if_never_stopped(rests, name):
    if name == "lora":
        pytest.importorskip("peft")
    adapters = Lora(rank=2, layers=["q_proj"], dropout=0.5)
    policy = {
        "none": Policy(projector=True, vision_tower=True, language_model=True, lr_scale=0.1),
        "lora": Policy(lora={"vision_tower": adapters, "language_model": adapters}),
    }[name]
    assert rests({"every_n_train_steps": 2}, policy=policy, max_steps=4) == (4, [0, 2])


@pytest.mark.parametrize(
    ("accumulate", "every", "expected"),
    [
        (1, 3, (12, [0, 3, 6, 9])),
        (2, 4, (12, [0, 4, 8])),
    ],
)
def test_a_run_goes_on_from_the_checkpoint_of_a_validation(rests, accumulate, every, expected):
    """As the default config saves: after a validation, by its loss."""
    found = rests(
        {"monitor": "val/loss", "filename": "{epoch}-{step}"},
        max_steps=12 // accumulate,
        accumulate_grad_batches=accumulate,
        val_check_interval=every,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0,
    )
    assert found == expected


def test_a_validation_between_the_halves_of_a_step_is_refused(
    make_system, make_datamodule, make_trainer
):
    """Its checkpoint would lose the gradients so far."""
    trainer = make_trainer(
        max_steps=4, accumulate_grad_batches=2, val_check_interval=3, check_val_every_n_epoch=None
    )
    with pytest.raises(InputError, match=r"multiple of trainer\.accumulate_grad_batches=2.*to 4"):
        trainer.fit(make_system(), make_datamodule())


def test_a_run_goes_on_from_the_end_of_an_epoch(rests):
    saver = {"every_n_epochs": 1, "save_on_train_epoch_end": True}
    assert rests(saver, max_steps=-1, max_epochs=2) == (20, [0, 10])


def test_a_run_of_epochs_goes_on_from_the_middle_of_an_epoch(rests):
    """Lightning then sets the loader up before it has read the checkpoint."""
    found = rests({"every_n_train_steps": 4}, max_steps=-1, max_epochs=2)
    assert found == (20, [0, 4, 8, 12, 16])


@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_steps": 26}])
def test_a_run_whose_epochs_differ_in_length_goes_on_as_if_never_stopped(rests, limits):
    saver = {"every_n_train_steps": 5}
    settings = {"max_steps": -1, **limits}
    num_batches, lengths = rests(saver, UNEVEN, **settings)
    assert num_batches == limits.get("max_steps", sum(UNEVEN_LENGTHS[:3]))
    assert lengths == sorted(num_batches - step for step in range(5, num_batches + 1, 5))


@pytest.mark.parametrize("limits", [{"max_epochs": 4}, {"max_steps": sum(UNEVEN_LENGTHS)}])
def test_every_epoch_shows_every_study_once_though_epochs_differ_in_length(
    make_system, make_datamodule, make_trainer, watch, limits
):  # S6
    data, seen = make_datamodule(**UNEVEN), watch()
    trainer = make_trainer(**{"max_steps": -1, **limits}, callbacks=[seen])
    trainer.fit(make_system(), data)
    planned = data.planned(data.dataset("train"))
    plans = [planned.plan(seed=3, epoch=epoch, world_size=1, shuffle=True) for epoch in range(4)]
    lengths = tuple(map(len, plans))
    assert lengths == UNEVEN_LENGTHS
    assert max(lengths[1:]) > lengths[0]
    expected = sorted(data.studies["train"].ids)
    assert len(seen.studies) == sum(lengths)
    for epoch in range(4):
        start = sum(lengths[:epoch])
        shown = seen.studies[start : start + lengths[epoch]]
        assert sorted(name for batch in shown for name in batch) == expected


def test_a_validation_at_the_end_of_an_epoch_is_at_the_end_of_each(
    make_system, make_datamodule, make_trainer, watch
):
    """Lightning counts to where the first epoch ended."""

    class Validated(watch):
        def on_validation_start(self, trainer, pl_module):
            steps.append(len(self.studies))

    steps, seen = [], Validated()
    trainer = make_trainer(
        max_steps=-1, max_epochs=3, callbacks=[seen], limit_val_batches=1, val_check_interval=1.0
    )
    trainer.fit(make_system(), make_datamodule(**UNEVEN))
    assert steps == [sum(UNEVEN_LENGTHS[: epoch + 1]) for epoch in range(3)]


@pytest.mark.parametrize(("limit", "expected"), [(5, 10), (0.5, 3 + 4)])
def test_a_limit_of_batches_limits_each_epoch(
    make_system, make_datamodule, make_trainer, watch, limit, expected
):
    seen = watch()
    trainer = make_trainer(max_steps=-1, max_epochs=2, callbacks=[seen], limit_train_batches=limit)
    trainer.fit(make_system(), make_datamodule(**UNEVEN))
    assert len(seen.studies) == expected


def test_a_resumed_run_may_be_longer(make_system, make_datamodule, make_trainer, checkpoint):
    _, path = checkpoint
    trainer = make_trainer(max_steps=5)
    trainer.fit(make_system(), make_datamodule(), ckpt_path=path)
    assert trainer.global_step == 5


def test_lightning_takes_the_systems_checkpoint_without_pickled_objects(checkpoint):
    _, path = checkpoint
    content = torch.load(path, weights_only=True)
    assert content["pytorch-lightning_version"] == L.__version__
