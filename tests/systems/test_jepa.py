"""The teacher follows the student step by step, and a volume's loss is its own."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_jepa import build
from torch.nn import functional as F

from neuro.data.collate import Background
from neuro.data.masked import MaskedCollator
from neuro.data.masking import BlockMask
from neuro.errors import InputError
from neuro.models.predictor import Predictor
from neuro.models.vit import VisionTransformer
from neuro.optim.schedules import warmup_cosine
from neuro.systems.jepa import Jepa

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from test_masked import ITEMS, item


def system_of(*, momentum=(0.9, 1.0), seed=0, **changes):
    torch.manual_seed(seed)
    settings = {
        "encoder": VisionTransformer(48, 2, 2, patch_voxels=6, position_dim=12),
        "predictor": partial(Predictor, dim=32, num_layers=1, num_heads=2, position_dim=12),
        "momentum": momentum,
        "optimizer": partial(torch.optim.AdamW, lr=1e-2),
        "schedule": partial(warmup_cosine, warmup_fraction=0.1, final_fraction=0.1),
        "weight_decay": 0.1,
    }
    return Jepa(**{**settings, **changes})


def batch_of(items=None, num_masks=1):
    return MaskedCollator(Background(min_foreground=0.5), [BlockMask()] * num_masks)(items or ITEMS)


class Batches(torch.utils.data.Dataset):
    """Four batches that differ."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return batch_of([item(name, seed=10 * index + place) for place, name in enumerate("ab")])


def fit(system, make_trainer, **settings):
    loader = torch.utils.data.DataLoader(Batches(), batch_size=None)
    make_trainer(**{"max_steps": 4, **settings}).fit(system, loader)
    return system


@pytest.mark.parametrize("reduction", ["token", "volume"])
@pytest.mark.parametrize("num_masks", [1, 2])
def test_a_batch_is_its_volumes_one_by_one(reduction, num_masks):  # S18, S26
    system = system_of(reduction=reduction)
    together = system.losses(batch_of(num_masks=num_masks))
    alone = [batch_of([one], num_masks) for one in ITEMS]
    named = [system.losses(one) for one in alone]
    losses = torch.stack([one["loss"] for one in named])
    counts = [sum(len(view.target) for view in one.views) for one in alone]
    weights = torch.tensor(counts if reduction == "token" else [num_masks] * len(alone)).float()
    torch.testing.assert_close(together["loss"], (losses * weights).sum() / weights.sum())
    assert [float(one["terms"]) for one in named] == weights.tolist()
    assert float(together["terms"]) == weights.sum()


def test_the_loss_is_that_of_the_paper():
    system, batch = system_of(), batch_of()
    view, volumes = batch.views[0], batch.volumes
    taught = F.layer_norm(system.embed(batch), (48,))[view.target]
    voxels = system._voxels(batch)
    seen = system.student(voxels[view.context], volumes.coords[view.context], view.context_bounds)
    guessed = system.predictor(
        seen,
        volumes.coords[view.context],
        view.context_bounds,
        volumes.coords[view.target],
        view.target_bounds,
    )
    expected = F.smooth_l1_loss(guessed, taught)
    torch.testing.assert_close(system.losses(batch)["loss"], expected)


def test_the_student_sees_the_context_only():
    system, batch = system_of(), batch_of()
    view = batch.views[0]
    seen = []
    system.student.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    system.losses(batch)
    assert [len(one) for one in seen] == [len(view.context)]


def test_the_teacher_is_never_trained_and_never_in_training_mode():  # S24
    system = system_of()
    system.train()
    assert not system.teacher.training
    assert system.student.training
    system.losses(batch_of())["loss"].backward()
    assert all(one.grad is None for one in system.teacher.parameters())
    assert all(one.grad is not None for one in system.student.parameters())
    assert all(one.dtype == torch.float32 for one in system.teacher.parameters())  # S23


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_teacher_moves_once_after_each_optimizer_step(make_trainer, accumulate):  # S22
    system = system_of(momentum=(0.5, 0.5))
    states, original = [], Jepa.optimizer_step

    def noted(self, *args, **kwargs):
        before = [one.clone() for one in self.teacher.parameters()]
        original(self, *args, **kwargs)
        after = [
            0.5 * old + 0.5 * new
            for old, new in zip(before, self.student.parameters(), strict=True)
        ]
        states.append(
            all(
                torch.allclose(one, two)
                for one, two in zip(after, self.teacher.parameters(), strict=True)
            )
        )

    system.optimizer_step = noted.__get__(system)
    fit(system, make_trainer, max_steps=4, accumulate_grad_batches=accumulate)
    assert states == [True] * 4


def test_the_momentum_is_a_function_of_the_step(make_trainer):  # S25
    system = system_of(momentum=(0.9, 1.0), stretch=1.25)
    fit(system, make_trainer, max_steps=8)
    assert system.momentum_at(0) == 0.9
    assert system.momentum_at(8) == pytest.approx(0.98)
    assert system.momentum_at(10) == pytest.approx(1.0)
    assert system.momentum_at(10_000) == 1.0  # S25: it does not run out


def test_a_teacher_of_momentum_one_stays(make_trainer):
    system = system_of(momentum=(1.0, 1.0))
    before = [one.clone() for one in system.teacher.parameters()]
    fit(system, make_trainer)
    assert all(map(torch.equal, before, system.teacher.parameters()))
    assert not all(map(torch.equal, before, system.student.parameters()))


def test_the_decay_follows_its_curve(make_trainer):  # S29
    system = system_of(final_weight_decay=0.4)
    decays = []
    original = Jepa.on_before_optimizer_step

    def noted(self, optimizer):
        original(self, optimizer)
        decays.append([group["weight_decay"] for group in optimizer.param_groups])

    system.on_before_optimizer_step = noted.__get__(system)
    fit(system, make_trainer)
    assert [one[0] for one in decays] == sorted(one[0] for one in decays)
    assert decays[0][0] == pytest.approx(0.1)
    assert {one[1] for one in decays} == {0.0}  # biases, norms, mask tokens


def test_a_batch_without_volumes_costs_nothing_and_has_gradients():  # S19
    system = system_of()
    loss = system.losses(batch_of([item("tiny", (1, 1, 1), filled=2.0)]))["loss"]
    loss.backward()
    assert float(loss) == 0
    assert all(float(one.grad.abs().sum()) == 0 for one in system.student.parameters())


def test_a_checkpoint_holds_the_teacher_too():
    system = system_of()
    state = {"state_dict": dict(system.state_dict())}
    system.on_save_checkpoint(state)
    kept = {name.split(".")[0] for name in state["state_dict"]}
    assert kept == {"student", "teacher", "predictor"}


# ---------------------------------------------------------------- a run that goes on


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Where the phantom and its cache are, for all runs of this file."""
    return tmp_path_factory.mktemp("heads")


class Watch(Callback):
    """Writes down what each batch was, and what was done with it."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        (group, _) = trainer.optimizers[0].param_groups
        self.rows.append(
            (
                trainer.global_step,
                batch.study_ids,
                batch.views[0].context.tolist(),
                float(outputs["loss"].detach()),
                group["lr"],
                group["weight_decay"],
                pl_module.momentum_at(trainer.global_step),
            )
        )


def end_of(root, make_trainer, path=None, **settings):
    """Train on heads with all that chance decides; return what was seen, and everything at the end.

    Of four steps, an epoch; what is kept on the way is below ``root / "kept"``.
    """
    datamodule, system = build(
        root,
        "data.patch_drop_rate=0.1",
        "data.augment.flip_left_right=0.5",
        "data.augment.noise=0.1",
        "system.encoder.drop_path=0.3",
        "system.momentum=[0.9,1.0]",
        "system.final_weight_decay=0.4",
    )
    if path is not None:
        for one in system.parameters():
            torch.nn.init.zeros_(one)  # all of it comes from the checkpoint
    watch = Watch()
    callbacks = [watch]
    if path is None:
        kept = {"dirpath": root / "kept", "filename": "{step}", "save_top_k": -1}
        callbacks.append(ModelCheckpoint(**kept, every_n_train_steps=3))
    settings = {"enable_checkpointing": True, "callbacks": callbacks, **settings}
    trainer = make_trainer(**settings)
    trainer.fit(system, datamodule=datamodule, ckpt_path=path)
    return watch.rows, system.state_dict(), trainer.optimizers[0].state_dict()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_goes_on_from_the_middle_of_an_epoch_as_if_never_stopped(
    heads, make_trainer, tmp_path, accumulate
):  # S9, S22, S25, S27
    for name in ("data", "cache"):
        (heads / name).mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(heads / name)
    settings = {"max_steps": 7, "accumulate_grad_batches": accumulate}
    rows, weights, moments = end_of(tmp_path, make_trainer, **settings)
    assert len(rows) == 7 * accumulate
    paths = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert [path.name for path in paths] == ["step=3.ckpt", "step=6.ckpt"]
    for path, left in zip(paths, (4, 1), strict=True):
        rest, own, own_moments = end_of(tmp_path, make_trainer, path, **settings)
        assert rest == rows[-left * accumulate :]
        assert own.keys() == weights.keys()  # teacher, student and predictor
        assert all(torch.equal(one, weights[name]) for name, one in own.items())
        assert own_moments["param_groups"] == moments["param_groups"]
        for index, state in own_moments["state"].items():
            for name, one in state.items():
                assert torch.equal(one, moments["state"][index][name])


def test_weights_of_another_run_begin_student_and_teacher(tmp_path):
    first, second = system_of(seed=1), system_of(seed=2)
    path = tmp_path / "last.ckpt"
    state = {"state_dict": dict(first.state_dict())}
    first.on_save_checkpoint(state)
    torch.save(state, path)
    second.init_from(path)
    for own in (second.student, second.teacher):
        assert all(map(torch.equal, own.parameters(), first.student.parameters()))
    before = list(system_of(seed=2).predictor.parameters())
    assert all(map(torch.equal, second.predictor.parameters(), before))  # nothing else of it


def test_weights_of_something_else_are_an_error(tmp_path):  # S52
    torch.save({"state_dict": {"other.weight": torch.zeros(3)}}, tmp_path / "x.ckpt")
    with pytest.raises(InputError, match="none of its 1 tensors matches"):
        system_of().init_from(tmp_path / "x.ckpt")


def test_it_learns_what_it_is_asked(make_trainer):
    system = system_of(momentum=(0.99, 1.0))
    batch = batch_of()
    before = float(system.losses(batch)["loss"])
    fit(system, make_trainer, max_steps=60, max_epochs=-1)
    assert float(system.losses(batch)["loss"]) < 0.7 * before


@pytest.mark.parametrize(
    "wrong", [{"reduction": "series"}, {"momentum": (0.9,)}, {"momentum": (0.9, 1.1)}]
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(InputError, match=rf"system\.{next(iter(wrong))}"):
        system_of(**wrong)
