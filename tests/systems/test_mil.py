"""Findings of a study are its own, unknown labels count nowhere, and figures are of all studies."""

from __future__ import annotations

import csv
import gzip
import logging
import shutil
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from small_mil import build, config, write_heads

from neuro.data.batch import StudyBatch, VolumeTokens
from neuro.data.labels import Labels
from neuro.errors import InputError
from neuro.metrics.ranking import auroc
from neuro.models.pooling import AdditivePool, AttentionPool, MeanPool
from neuro.models.tuning import FineTuned, Frozen
from neuro.models.vit import VisionTransformer
from neuro.models.weights import read_checkpoint
from neuro.optim.schedules import warmup_cosine
from neuro.predict import restored
from neuro.systems.mil import Mil
from neuro.train import _parts

NAN = np.nan
POOLS = {
    "aggregate": partial(AttentionPool, hidden_dim=8, head_dims=[6]),
    "classify": partial(AdditivePool, hidden_dim=8),
    "mean": MeanPool,
}
TASKS = {
    "binary": [[0.0], [1.0], [1.0], [1.0]],
    "multilabel": [[0, 1, NAN], [0, NAN, NAN], [1, 0, 1], [0, 0, NAN]],
    "multiclass": [[0.0], [2.0], [2.0], [1.0]],
    "regression": [[10.0, 0.1], [30.0, NAN], [20.0, 0.3], [20.0, NAN]],
}


def labels_of(task, values=None):
    values = np.array(TASKS[task] if values is None else values, np.float32)
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c")}.get(task, ())
    return Labels(tuple(f"x{place}" for place in range(values.shape[1])), task, classes, values)


def system_of(task="multilabel", pool="aggregate", tuning=None, values=None, seed=0, **settings):
    torch.manual_seed(seed)
    system = Mil(
        VisionTransformer(24, 2, 2, patch_voxels=8, position_dim=6),
        POOLS[pool],
        tuning or FineTuned(),
        optimizer=partial(torch.optim.AdamW, lr=1e-2),
        schedule=partial(warmup_cosine, warmup_fraction=0.1, final_fraction=0.1),
        weight_decay=0.1,
        **settings,
    )
    system.build(labels_of(task, values))
    system.tuning.apply(system.encoder)
    return system


def batch_of(studies=range(4), task="multilabel", labels=None):
    """Return studies of one to three series of MR and CT, the same ones in whatever batch."""
    tokens, coords, kinds, counts = [], [], [], []
    for study in studies:
        generator = torch.Generator().manual_seed(study)
        counts.append(1 + study % 3)
        for series in range(counts[-1]):
            length = 2 + 3 * study + series
            tokens.append(torch.randint(256, (length, 8), dtype=torch.uint8, generator=generator))
            coords.append(torch.randint(5, (length, 3), generator=generator))
            kinds.append(("mri", "brain", "bone")[(study + series) % 3])
    lengths = [0, *map(len, tokens)]
    truth = torch.tensor(TASKS[task])[[*studies]] if labels is None else labels
    return StudyBatch(
        volumes=VolumeTokens(
            tokens=torch.cat(tokens),
            coords=torch.cat(coords),
            bounds=torch.tensor(lengths).cumsum(0),
            sizes=torch.full((len(tokens), 3), 5),
            kinds=tuple(kinds),
        ),
        study_bounds=torch.tensor([0, *counts]).cumsum(0),
        labels=truth.float(),
        study_ids=tuple(map(str, studies)),
        series_names=tuple(map(str, range(len(tokens)))),
    )


def gradients(system):
    return {
        name: one.grad.clone() for name, one in system.named_parameters() if one.grad is not None
    }


# ---------------------------------------------------------------- a step


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_is_its_studies_one_by_one(task, pool):  # S75
    system, batch = system_of(task, pool), batch_of(task=task)
    together = system(batch)
    total, count = system.criterion(together, batch.labels)
    total.backward()
    grads = gradients(system)
    system.zero_grad()
    alone = [batch_of([study], task) for study in range(4)]
    torch.testing.assert_close(together, torch.cat([system(one) for one in alone]))
    sums = [system.criterion(system(one), one.labels) for one in alone]
    for own, _ in sums:
        own.backward()
    torch.testing.assert_close(total, sum(own for own, _ in sums))
    torch.testing.assert_close(count, sum(own for _, own in sums))
    torch.testing.assert_close(system.losses(batch)["terms"], count)
    for name, one in gradients(system).items():
        torch.testing.assert_close(one, grads[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_batch_without_labels_costs_nothing_and_moves_nothing(task):
    system = system_of(task)
    batch = batch_of(task=task, labels=torch.full((4, len(TASKS[task][0])), NAN))
    loss = system.losses(batch)["loss"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert all((one == 0).all() for one in gradients(system).values())  # none is NaN


def test_an_unknown_label_moves_nothing_of_its_finding():
    system = system_of("multilabel", "classify")
    system.losses(batch_of([1, 3]))["loss"].backward()  # of which nobody knows the third finding
    grads = gradients(system)
    for name in ("pool.bias", "pool.scale", "pool.head.last.weight"):
        assert (grads[name][2] == 0).all()
        assert (grads[name][0] != 0).any()


# ---------------------------------------------------------------- where it begins


@pytest.mark.parametrize("pool", POOLS)
def test_where_features_say_nothing_the_prior_is_told(pool):  # S84
    def said(task):
        system = system_of(task, pool)
        nothing = torch.zeros(7, 24)
        return system.told(system.pool(nothing, torch.tensor([0, 3, 7])))

    torch.testing.assert_close(said("binary"), torch.full((2, 1), 0.75))
    # A finding that no study has is taken to be missed once.
    common = torch.tensor([0.25, 1 / 3, 2 / 3])
    torch.testing.assert_close(said("multilabel"), common.expand(2, 3))
    torch.testing.assert_close(said("multiclass"), torch.tensor([0.25, 0.25, 0.5]).expand(2, 3))
    torch.testing.assert_close(said("regression"), torch.tensor([20.0, 0.2]).expand(2, 2))


def test_numbers_reach_as_far_as_their_labels():
    system = system_of("regression")
    torch.testing.assert_close(system.pool.scale.detach(), torch.tensor([50.0**0.5, 0.1]))
    torch.testing.assert_close(system.criterion.spread, torch.tensor([50.0**0.5, 0.1]))


def test_a_number_that_nobody_knows_in_training_leaves_the_others_alone():
    values = [[10.0, NAN], [30.0, NAN], [20.0, NAN], [20.0, NAN]]
    system = system_of("regression", values=values)
    loss = system.losses(batch_of(task="regression", labels=torch.tensor(values)))["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(one.isfinite().all() for one in gradients(system).values())


def test_weights_make_up_for_what_is_rare():  # S84
    binary = [[0.0]] * 6 + [[1.0]] * 2 + [[NAN]]
    assert system_of("binary", values=binary).criterion.weights.tolist() == [1]
    full = system_of("binary", values=binary, balance=1.0)
    assert full.criterion.weights.tolist() == [3]
    torch.testing.assert_close(full.pool.bias.detach(), torch.zeros(1))  # half of what counts
    half = system_of("binary", values=binary, balance=0.5)
    torch.testing.assert_close(half.criterion.weights, torch.tensor([3.0]).sqrt())
    multiclass = [[0.0]] * 4 + [[1.0]] * 2 + [[2.0]] * 6 + [[NAN]]
    weights = system_of("multiclass", values=multiclass, balance=1.0).criterion.weights
    torch.testing.assert_close(weights * torch.tensor([4.0, 2, 6]), torch.full((3,), 4.0))
    several = [[0, 1], [0, NAN], [0, 0], [1, 0]]
    weights = system_of("multilabel", values=several, balance=1.0).criterion.weights
    torch.testing.assert_close(weights, torch.tensor([3.0, 2.0]))


@pytest.mark.parametrize("wrong", [{"balance": 1.5}, {"specificity": -0.1}, {"num_resamples": 0}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(InputError, match=rf"system\.{next(iter(wrong))}"):
        system_of(**wrong)


def test_a_loss_that_does_not_fit_the_labels_is_named():
    with pytest.raises(InputError, match=r"system\.loss=ce does not fit labels of task binary"):
        system_of("binary", loss="ce")


# ---------------------------------------------------------------- on heads


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp("heads") / "bids")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Where all runs of this file have their cache."""
    return tmp_path_factory.mktemp("root")


FOLD = ("data.splits.folds=4", "data.fold=0", "data.splits.val=0.3")  # 21, 9 and 10 heads


@pytest.fixture
def made(heads, root):
    """Return a function that builds a data module and a system on the heads."""
    return lambda *overrides: build(heads, root, *overrides)


@pytest.fixture
def run(make_trainer):
    """Return a function that fits for some steps and validates at the end."""

    def fit(datamodule, system, *, ckpt_path=None, **settings):
        steps = settings.get("max_steps", 3)
        settings = {"max_steps": steps, "limit_val_batches": 1.0, **settings}
        settings = {"val_check_interval": max(1, steps), "check_val_every_n_epoch": None} | settings
        trainer = make_trainer(**settings)
        trainer.fit(system, datamodule=datamodule, ckpt_path=ckpt_path)
        return trainer

    return fit


def table(path, heads, columns):
    """Write a table of labels: for each, what is said of the head of a number."""
    names = sorted(one.name for one in heads.glob("sub-*"))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["participant_id", *columns])
        for number, name in enumerate(names):
            writer.writerow([name, *(said(number) for said in columns.values())])
    return path


class Calls(Callback):
    """Counts what the encoder encodes, and looks at its mode."""

    def __init__(self, system):
        self.num, self.modes = 0, set()
        system.encoder.register_forward_hook(self._note)

    def _note(self, encoder, *_):
        self.num += 1
        self.modes.add(encoder.training)

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.modes.add(pl_module.encoder.training)


def test_weights_and_the_prior_are_of_the_training_split_alone(heads, made, tmp_path):  # S84
    datamodule, _ = made(*FOLD)
    train = set(datamodule.studies["train"].ids)
    names = sorted(one.name for one in heads.glob("sub-*"))
    rare = sorted(train)[:3]
    column = {"rare": lambda number: int(names[number] not in train or names[number] in rare)}
    path = table(tmp_path / "labels.csv", heads, column)
    _, system = made(*FOLD, "data.label=rare", f"data.labels.file={path}", "system.balance=1.0")
    assert system.criterion.weights.tolist() == [(len(train) - 3) / 3]


@pytest.mark.parametrize("keep", [True, False])
def test_not_one_bit_of_a_frozen_encoder_changes(made, run, keep):  # S86
    given = ("system.encoder.drop_path=0.5", "seed=21")  # nobody else's features
    datamodule, system = made(f"system.keep_features={keep}", *given)
    assert not system.encoder.training  # or drop_path is on until the first validation
    before = {name: one.clone() for name, one in system.encoder.state_dict().items()}
    pool = [one.detach().clone() for one in system.pool.parameters()]
    calls = Calls(system)
    run(datamodule, system, callbacks=[calls])
    assert all(torch.equal(one, before[name]) for name, one in system.encoder.state_dict().items())
    assert not all(map(torch.equal, pool, system.pool.parameters()))
    assert calls.num > 0
    assert calls.modes == {False}


def outcome(trainer):
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.mark.parametrize("length", [{"max_steps": 6}, {"max_steps": -1, "max_epochs": 2}])
def test_features_on_disk_change_nothing_but_the_time(made, run, length):  # S86
    given = (*FOLD, "data.max_studies=7", "seed=5", "system.encoder.num_layers=1")
    length = {**length, "val_check_interval": 3}
    datamodule, system = made(*given, "system.keep_features=false")
    calls = Calls(system)
    plain = outcome(run(datamodule, system, callbacks=[calls], **length))
    assert calls.num == 3 + 6 + 2 * 2  # each batch of two epochs, and what it begins with
    datamodule, system = made(*given)
    calls = Calls(system)
    first = run(datamodule, system, callbacks=[calls], **length)
    assert calls.num <= 3 + 2 + 2  # each study once, in whatever batches
    assert outcome(first) == pytest.approx(plain, abs=2e-3)
    datamodule, system = made(*given)
    calls = Calls(system)
    again = outcome(run(datamodule, system, callbacks=[calls], **length))
    assert calls.num == 0
    assert again == outcome(first)


def encoded(made, run, *overrides):
    """Return how many batches a run encodes."""
    datamodule, system = made(*FOLD, "seed=9", "system.encoder.num_layers=1", *overrides)
    calls = Calls(system)
    run(datamodule, system, callbacks=[calls], max_steps=1, limit_val_batches=0)
    return calls.num


def test_features_of_other_weights_heads_background_or_images_are_made_anew(
    made, run, heads, root, tmp_path
):
    assert encoded(made, run) > 0
    assert encoded(made, run) == 0
    assert encoded(made, run, "data.max_studies=3", "system.pool.dropout=0.1") == 0
    assert encoded(made, run, "seed=10", "data.splits.salt=x") > 0
    assert encoded(made, run, "system.encoder.num_heads=2") > 0  # which no weight tells
    assert encoded(made, run, "data.min_foreground=0.5") > 0
    assert encoded(made, run) == 0  # each background has its own, so two runs share a cache
    copy = tmp_path / "copy"
    shutil.copytree(heads, copy)
    here = f"data.root={copy}"
    assert encoded(made, run, here) > 0
    assert encoded(made, run, here) == 0
    path = copy / "sub-0003/anat/sub-0003_T1w.nii.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    voxels = np.frombuffer(content, "<i2", offset=352).copy()
    voxels[:] = voxels[::-1]
    path.write_bytes(gzip.compress(bytes(content[:352]) + voxels.tobytes()))
    assert encoded(made, run, here) == 1  # the one study
    assert nib.load(path).shape == (24, 24, 24)


@pytest.mark.parametrize(
    "drawn",
    [
        "data.augment.flip_left_right=0.5",
        "data.patch_drop_rate=0.5",
        "data.augment.noise=0.1",
    ],
)
def test_features_of_what_is_drawn_anew_are_not_kept(made, run, drawn):
    datamodule, system = made(drawn)
    run(datamodule, system, max_steps=1)
    assert datamodule.features is None


def test_a_resumed_run_keeps_the_features_of_the_checkpoints_encoder(made, run, tmp_path):
    """The one that it began with before it read the checkpoint is another one."""
    kept = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1)
    datamodule, system = made("seed=11")
    run(datamodule, system, max_steps=1, callbacks=[kept], enable_checkpointing=True)
    first = datamodule.features.folder
    datamodule, other = made("seed=11")
    torch.nn.init.normal_(other.encoder.norm.weight)
    run(datamodule, other, max_steps=2, ckpt_path=tmp_path / "step=1.ckpt")
    assert torch.equal(other.encoder.norm.weight, system.encoder.norm.weight)
    assert datamodule.features.folder == first


def test_learning_rates_fall_towards_the_input(made, run):  # S86
    datamodule, system = made("tuning=full", "system.tuning.layer_decay=0.5", "optim.lr=1.0")
    rates = {}

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            for group in trainer.optimizers[0].param_groups:
                for one in group["params"]:
                    rates[id(one)] = group["initial_lr"]

    run(datamodule, system, max_steps=1, callbacks=[Look()])
    parts = [system.pool, system.encoder.norm, *reversed(system.encoder.blocks)]
    parts.append(system.encoder.token_embed)
    for depth, part in enumerate(parts):
        assert {rates[id(one)] for one in part.parameters()} == {0.5**depth}
    assert len(rates) == len(list(system.parameters()))


def test_all_of_a_fine_tuned_encoder_learns(made, run):  # S86
    datamodule, system = made("tuning=full")
    before = {name: one.detach().clone() for name, one in system.named_parameters()}
    calls = Calls(system)
    run(datamodule, system, callbacks=[calls])
    assert datamodule.features is None
    assert True in calls.modes
    for name, one in system.encoder.named_parameters():
        assert not torch.equal(one, before[f"encoder.{name}"]), name


def checkpoint_of(run, datamodule, system, folder, parts=None, **settings):
    """Fit, and return the checkpoint."""
    system.parts = parts or {}
    kept = ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=1)
    run(datamodule, system, callbacks=[kept], enable_checkpointing=True, **settings)
    return folder / "last.ckpt"


def logits(datamodule, system):
    with torch.no_grad():
        batches = datamodule.plain_loader(datamodule.studies["test"])
        return torch.cat([system.eval()(batch) for batch in batches])


def test_adapters_are_all_that_a_run_trains_and_its_checkpoint_comes_back(
    heads, root, made, run, tmp_path
):  # S86
    pytest.importorskip("peft")
    given = ("tuning=lora", "system.tuning.rank=2")
    (_, plain), (datamodule, system) = made("seed=1"), made(*given)
    plain.load_state_dict(
        {f"pool.{name}": one for name, one in system.pool.state_dict().items()}, strict=False
    )
    assert torch.equal(logits(datamodule, system), logits(datamodule, plain))
    before = {name: one.detach().clone() for name, one in system.named_parameters()}
    path = checkpoint_of(run, datamodule, system, tmp_path, _parts(config(heads, root, *given)))
    for name, one in system.named_parameters():
        learns = name.startswith("pool.") or ".lora_" in name
        assert one.requires_grad == learns
        assert torch.equal(one, before[name]) != learns, name
    again, _ = restored(path)
    assert torch.equal(logits(datamodule, again), logits(datamodule, system))


# ---------------------------------------------------------------- figures


@pytest.fixture(scope="module")
def several(heads, tmp_path_factory):
    """Four findings; one nobody has outside of training, one is known of few."""
    findings = {
        "bleed, old": lambda number: number % 3 == 0,
        "a/b": lambda number: number % 2,
        "rare": lambda number: int(number == 30),
        "läsion": lambda number: "" if number % 4 else int(number % 8 == 0),
    }
    columns = {
        name: lambda number, said=said: "" if said(number) == "" else int(said(number))
        for name, said in findings.items()
    }
    return table(tmp_path_factory.mktemp("labels") / "several.csv", heads, columns)


def of_several(path):
    return (
        *FOLD,
        'data.label=["bleed, old","a/b","rare","läsion"]',
        f"data.labels.file={path}",
        "data.labels.unlabelled=mask",
    )


def test_figures_do_not_depend_on_the_batches_of_an_epoch(made, run, several):  # S85
    found = []
    for max_studies in (1, 3, 8):
        datamodule, system = made(*of_several(several), f"data.max_studies={max_studies}")
        trainer = run(datamodule, system, max_steps=1, limit_train_batches=0)
        trainer.validate(system, datamodule=datamodule, verbose=False)
        found.append(outcome(trainer))
    assert found[0].keys() == found[1].keys()
    for other in found[1:]:
        assert other == pytest.approx(found[0], abs=1e-5)


def test_figures_are_of_all_studies_by_their_names_with_their_number(made, several, make_trainer):
    # S85, S88, S89
    datamodule, system = made(*of_several(several), "data.max_studies=2")
    trainer = make_trainer(limit_val_batches=1.0)
    trainer.validate(system, datamodule=datamodule, verbose=False)
    shown = outcome(trainer)
    said, truth = [], []
    for batch in datamodule.val_dataloader():
        said.append(system.told(system.eval()(batch)).detach())
        truth.append(batch.labels)
    own = auroc(torch.cat(said), torch.cat(truth))
    defined = own.isfinite()
    assert 1 < defined.sum() < 4  # rare is not
    names = ["bleed, old", "a-b", "rare", "läsion"]  # a name is no path
    for name, value in zip(names, own.tolist(), strict=True):
        key = f"val/auroc/{name}"
        assert key in shown if np.isfinite(value) else key not in shown
        assert np.isnan(value) or shown[key] == pytest.approx(value)
    assert shown["val/auroc_macro"] == pytest.approx(float(own[defined].mean()))
    assert shown["val/auroc_defined"] == float(defined.sum())
    assert all(np.isfinite(value) for value in shown.values())


def test_a_study_that_is_shown_twice_counts_once(made, make_trainer):
    datamodule, system = made(*FOLD)
    trainer = make_trainer(limit_val_batches=1.0)
    trainer.validate(system, datamodule=datamodule, verbose=False)
    once = system._gathered("val")
    system._outputs = [*system._outputs, *system._outputs[:1]]
    twice = system._gathered("val")
    assert once.studies == twice.studies == tuple(sorted(datamodule.studies["val"].ids))
    assert torch.equal(once.outputs, twice.outputs)


def test_the_root_of_several_batches_is_no_mean_of_roots(made, make_trainer):
    datamodule, system = made("data.label=age", "data.labels.task=regression", "system.loss=rmse")
    trainer = make_trainer(max_steps=1, accumulate_grad_batches=2)
    with pytest.raises(InputError, match=r"loss=rmse .*accumulate_grad_batches=2 .*Take .*mse"):
        trainer.fit(system, datamodule=datamodule)


@pytest.mark.parametrize("loss", ["mse", "rmse", "mae"])
def test_the_loss_of_a_validation_is_that_of_its_labels_and_not_of_its_batches(
    made, make_trainer, loss
):  # S87
    given = (*FOLD, "data.label=age", "data.labels.task=regression", f"system.loss={loss}")
    datamodule, system = made(*given, "data.max_studies=4")  # the last batch is smaller
    trainer = make_trainer(limit_val_batches=1.0)
    trainer.validate(system, datamodule=datamodule, verbose=False)
    shown = outcome(trainer)
    said = system._gathered("val")
    off = (said.outputs - said.truth) / system.criterion.spread
    expected = {"mse": off.square().mean(), "mae": off.abs().mean()}
    expected["rmse"] = expected["mse"].sqrt()
    assert shown["val/loss"] == pytest.approx(float(expected[loss]), rel=1e-5)
    in_years = float((said.outputs - said.truth).square().mean().sqrt())
    assert shown["val/rmse_macro"] == pytest.approx(in_years, rel=1e-5)
    assert {"val/mae_macro", "val/r2_macro"} <= set(shown)


def test_three_classes_are_told_apart_by_name(made, run):  # S84
    datamodule, system = made("tuning=full", "data.label=lesion", "system.balance=1.0")
    assert system.labels.task == "multiclass"
    trainer = run(datamodule, system)
    trainer.test(system, datamodule=datamodule, verbose=False)
    shown = outcome(trainer)
    assert {"test/auroc_macro", "test/balanced_accuracy_macro"} <= set(shown)
    assert any(f"test/auroc/{name}" in shown for name in system.labels.classes)
    rows = system.predictions.outputs
    assert rows.shape == (4, 3)
    torch.testing.assert_close(rows.sum(dim=1), torch.ones(4))


def test_a_test_tells_every_study_and_every_figure_with_its_interval(made, several, make_trainer):
    # S89, S90
    datamodule, system = made(*of_several(several), "system.num_resamples=200")
    trainer = make_trainer()
    trainer.test(system, datamodule=datamodule, verbose=False)
    assert system.predictions.studies == tuple(sorted(datamodule.studies["test"].ids))
    assert system.predictions.names == ("bleed, old", "a/b", "rare", "läsion")
    rows = {(finding, name): numbers for finding, name, *numbers in system.figures}
    assert {finding for finding, _ in rows} == {"macro", *system.predictions.names}
    for (finding, name), (value, low, high) in rows.items():
        if name == "auroc" and np.isfinite(value):
            assert 0 <= low <= value <= high <= 1, finding
    assert rows["macro", "auroc"][1] < rows["macro", "auroc"][2]
    shown = outcome(trainer)
    value, low, high = rows["macro", "auroc"]
    assert shown["test/auroc_macro"] == pytest.approx(value)
    assert shown["test/auroc_macro_low"] == pytest.approx(low)
    assert shown["test/auroc_macro_high"] == pytest.approx(high)
    again = {(one[0], one[1]): one[2:] for one in system.figures}
    trainer.test(system, datamodule=datamodule, verbose=False)  # state is not carried over
    assert repr(again) == repr({(one[0], one[1]): one[2:] for one in system.figures})


# ---------------------------------------------------------------- weights of another run


@pytest.fixture(scope="module")
def pretrained(heads, root):
    """A checkpoint of system=jepa of one step on the heads, from the command."""
    from neuro.train import train

    jepa = (
        "system=jepa",
        "data.label=[]",
        "system.predictor.dim=48",
        "system.predictor.num_layers=1",
        "system.predictor.num_heads=4",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
        "~callbacks.probe",
        "~callbacks.pictures",
        f"paths.run_dir={root}/jepa",
    )
    cfg = config(heads, root, *jepa, drop=("system=mil", "system.num_resamples=20"))
    train(cfg)
    return root / "jepa"


@pytest.mark.parametrize("form", ["run folder", "checkpoint"])
def test_every_tensor_of_a_pretrained_encoder_finds_its_place(made, pretrained, caplog, form):
    # S52, S53
    path = pretrained if form == "run folder" else pretrained / "checkpoints/last.ckpt"
    logger = logging.getLogger("neuro")
    logger.addHandler(caplog.handler)
    caplog.set_level(logging.INFO, logger="neuro")
    _, system = made(f"system.encoder_from={path}", "seed=77")
    logger.removeHandler(caplog.handler)
    held = read_checkpoint(path)["state_dict"]
    own = system.encoder.state_dict()
    assert all(torch.equal(one, held[f"teacher.{name}"]) for name, one in own.items())
    assert f"{'all':<11} {len(own):12}            0" in caplog.text
    assert not any(one.levelno >= logging.WARNING for one in caplog.records)


def test_a_file_of_another_model_is_an_error(made, pretrained, tmp_path):  # S52
    held = read_checkpoint(pretrained)
    path = tmp_path / "other.ckpt"
    names = {f"teacher.old.{name}": one for name, one in held["state_dict"].items()}
    torch.save({**held, "state_dict": names}, path)
    with pytest.raises(InputError, match=r"other\.ckpt: none of its \d+ tensors matches"):
        made(f"system.encoder_from={path}")
    with pytest.raises(InputError, match=r"tensors match the model.*missing: blocks\.2"):
        made(f"system.encoder_from={pretrained}", "system.encoder.num_layers=3")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("data.recipes.T1.spacing_mm=9.0", r"data\.recipes\.T1\.spacing_mm: 8\.0 -> 9\.0"),
        ("data.recipes.T1.percentiles=[1.0,99.0]", r"data\.recipes\.T1\.percentiles"),
        ("data.recipes.T1.foreground_level=0.2", r"data\.recipes\.T1\.foreground_level"),
    ],
)
def test_an_encoder_of_other_images_is_refused_and_the_field_is_named(
    made, pretrained, change, field
):
    with pytest.raises(InputError, match=rf"jepa was trained on images.*{field}"):
        made(f"system.encoder_from={pretrained}", change)


def test_an_encoder_that_does_not_fit_is_told_before_anything_is_prepared(
    heads, pretrained, tmp_path
):
    from neuro.train import train

    other = ("data.recipes.T1.spacing_mm=9.0", f"system.encoder_from={pretrained}")
    with pytest.raises(InputError, match=r"system\.encoder_from=.*spacing_mm: 8\.0 -> 9\.0"):
        train(config(heads, tmp_path, *other))
    with pytest.raises(InputError, match=r"there is no file .*nowhere"):
        train(config(heads, tmp_path, "system.encoder_from=nowhere"))
    assert not [*tmp_path.rglob("*.safetensors")]


def test_released_weights_that_say_nothing_of_their_images_only_warn(made, pretrained, tmp_path):
    held = read_checkpoint(pretrained)["state_dict"]
    path = tmp_path / "released.pt"
    torch.save({name: one for name, one in held.items() if name.startswith("student.")}, path)
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("neuro")
    logger.addHandler(handler)
    made(f"system.encoder_from={path}")
    logger.removeHandler(handler)
    told = [one.getMessage() for one in records if one.levelno == logging.WARNING]
    assert any("does not say how its images were prepared" in one for one in told)


def test_another_way_to_give_weights_names_this_one(made):
    _, system = made()
    with pytest.raises(InputError, match=r"system\.encoder_from=here"):
        system.init_from(Path("here"))


def test_without_labels_nothing_can_be_learned(made):
    with pytest.raises(InputError, match=r"Set data\.label"):
        made("data.label=[]")


def test_a_patch_that_the_encoder_does_not_take_is_named(made):
    with pytest.raises(InputError, match=r"data\.patch_voxels=64"):
        made("data.patch_voxels=128")


# ---------------------------------------------------------------- a run that goes on

CHANCE = (
    *FOLD,
    "tuning=full",
    "data.max_studies=7",
    "data.patch_drop_rate=0.1",
    "data.augment.flip_left_right=0.5",
    "data.augment.noise=0.1",
    "system.encoder.drop_path=0.3",
    "system.pool.dropout=0.3",
)
KINDS = {
    "all that chance decides": CHANCE,
    "features on disk": (*FOLD, "data.max_studies=7", "system.pool.dropout=0.3"),
}


class Watch(Callback):
    """Writes down what each batch was, and what was done with it."""

    def __init__(self):
        self.rows = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        loss = float(outputs["loss"].detach())
        self.rows.append((trainer.global_step, batch.study_ids, loss, rates))


@pytest.mark.parametrize("length", [{"max_steps": 7}, {"max_steps": -1, "max_epochs": 3}])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_the_middle_of_an_epoch_as_if_never_stopped(
    made, run, tmp_path, kind, length
):  # S9
    def end_of(path=None):
        datamodule, system = made(*KINDS[kind])
        watch = Watch()
        callbacks = [watch]
        if path is not None:
            for one in system.parameters():
                torch.nn.init.zeros_(one)  # all of it comes from the checkpoint
        else:
            kept = {"dirpath": tmp_path, "filename": "{step}", "save_top_k": -1}
            callbacks.append(ModelCheckpoint(**kept, every_n_train_steps=4))
        settings = {**length, "val_check_interval": 4, "enable_checkpointing": True}
        trainer = run(datamodule, system, callbacks=callbacks, ckpt_path=path, **settings)
        return watch.rows, outcome(trainer), system.state_dict(), trainer

    rows, figures, weights, trainer = end_of()
    assert len(rows) == trainer.global_step >= 7
    rest, own_figures, own, _ = end_of(tmp_path / "step=4.ckpt")  # an epoch has three
    assert rest == rows[4:]
    assert own.keys() == weights.keys()
    assert all(torch.equal(one, weights[name]) for name, one in own.items())
    last = {name: one for name, one in own_figures.items() if name.startswith("train/")}
    assert last == {name: figures[name] for name in last}


@pytest.fixture(scope="module")
def labelled(heads, tmp_path_factory):
    column = {name: lambda number: number % 2 for name in ("first", "second")}
    return table(tmp_path_factory.mktemp("labels") / "two.csv", heads, column)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("data.recipes.T1.spacing_mm=9.0", r"data\.recipes\.T1\.spacing_mm: 8\.0 -> 9\.0"),
        ("data.recipes.T1.percentiles=[1.0,99.0]", r"data\.recipes\.T1\.percentiles"),
        ("data.label=second", r"labels: \['first'\] -> \['second'\]"),
        ("data.labels.classes=[1,0]", r"classes: \['0', '1'\] -> \['1', '0'\]"),
    ],
)
def test_a_run_does_not_go_on_with_other_images_or_labels(
    made, run, labelled, tmp_path, change, told
):  # S74
    given = (f"data.labels.file={labelled}", "data.label=first")
    path = checkpoint_of(run, *made(*given), tmp_path, max_steps=1)
    with pytest.raises(InputError, match=rf"the checkpoint was trained .*{told}"):
        run(*made(*given, change), max_steps=2, ckpt_path=path)


def test_a_checkpoint_is_enough_to_go_on_and_to_tell(heads, root, made, run, tmp_path):  # S72, S74
    datamodule, system = made("tuning=full", "data.label=lesion")
    parts = _parts(config(heads, root, "tuning=full"))
    path = checkpoint_of(run, datamodule, system, tmp_path, parts)
    held = torch.load(path, weights_only=True)
    assert held["state_dict"].keys() == system.state_dict().keys()
    assert held["contract"]["labels"] == ["lesion"]
    again, contract = restored(path)
    assert torch.equal(logits(datamodule, again), logits(datamodule, system))
    assert tuple(contract.classes) == system.labels.classes


def test_it_learns_what_it_is_shown():
    system = system_of("binary", tuning=Frozen(), pool="classify")
    batch = batch_of(task="binary")
    optimizer = torch.optim.AdamW(system.parameter_groups(), lr=5e-2)
    before = float(system.losses(batch)["loss"].detach())
    for _ in range(100):
        optimizer.zero_grad()
        system.losses(batch)["loss"].backward()
        optimizer.step()
    assert float(system.losses(batch)["loss"].detach()) < 0.3 * before
