"""A probe tells what is known before, while and after an encoder learns, and touches nothing."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.demos.boring_classes import BoringModel

from neuro.callbacks.feature_pictures import FeaturePictures
from neuro.callbacks.health import Health
from neuro.callbacks.probe import OnlineProbe, _labelled
from neuro.data.labels import Labels
from neuro.data.manifest import Manifest, Series, Study
from neuro.errors import InputError


class Seen(Callback):
    """Keeps what is logged at each validation."""

    def __init__(self):
        self.found = []

    def on_validation_end(self, trainer, pl_module):
        self.found.append(probed(trainer))


def probed(trainer):
    return {
        name.removeprefix("probe/"): float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("probe/")
    }


@pytest.fixture
def fit(make_heads, make_jepa, make_trainer):
    """Return a function that trains with a probe; gives back what it logged and all parts."""

    def fit(label, *, probe=None, system=None, datamodule=None, ckpt_path=None, **settings):
        seen, probe = Seen(), probe or OnlineProbe()
        system = system or make_jepa()
        datamodule = datamodule or make_heads(label)
        trainer = make_trainer(callbacks=[probe, seen], **settings)
        trainer.fit(system, datamodule=datamodule, ckpt_path=ckpt_path)
        return seen.found, probe, system, trainer

    return fit


@pytest.fixture
def two_labels(heads, tmp_path):
    """A table with two findings; one is known of some training heads and of none to test on."""
    with (heads / "participants.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    path = tmp_path / "labels.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", "man", "old"])
        for number, row in enumerate(rows):
            known = row["split"] == "val" or (row["split"] == "train" and number % 2)
            old = str(int(int(row["age"]) > 50)) if known else "n/a"
            writer.writerow([row["participant_id"], int(row["sex"] == "M"), old])
    return path


def test_what_is_easy_is_read_from_the_first_step_on(fit):  # S28
    found, _, _, _ = fit("sex")
    assert [set(one) for one in found] == [
        {"auroc", "auroc_knn", "auroc_init", "auroc_knn_init"}
    ] * 2
    assert found[-1]["auroc"] == found[-1]["auroc_init"] == 1  # a man's head is larger


def test_a_number_is_read_with_its_error(fit):
    found, _, _, _ = fit("age")
    assert set(found[0]) == {"r2", "mae", "r2_init", "mae_init"}
    assert 0 < found[0]["mae"] < 60
    assert found[0]["r2"] <= 1


def test_classes_are_read_one_against_the_rest(fit, make_heads):
    found, _, _, _ = fit(None, datamodule=make_heads("sex", task="multiclass"))
    assert found[0]["auroc"] == found[0]["auroc_init"] == 1
    assert not any("/" in name for name in found[0])


def test_each_of_several_labels_has_a_figure_and_unknown_ones_are_left_out(
    fit, make_heads, two_labels
):
    datamodule = make_heads(["man", "old"], file=two_labels)
    found, _, system, trainer = fit(None, datamodule=datamodule)
    for values in found:
        assert values["auroc/man"] == 1
        assert values["auroc"] == pytest.approx((values["auroc/man"] + values["auroc/old"]) / 2)
    trainer.test(system, datamodule=datamodule, verbose=False)
    tested = probed(trainer)
    assert "auroc/old" not in tested
    assert tested["auroc"] == tested["auroc/man"]
    json.dumps(tested, allow_nan=False)


def test_before_training_is_what_an_untrained_encoder_reads(fit, make_jepa):
    """The figures with ``_init`` of a run are those of a run that does not move."""
    found, _, system, _trainer = fit("age", max_steps=6, val_check_interval=6)
    still, _, same, _ = fit("age", system=make_jepa(lr=0.0), max_steps=1, val_check_interval=1)
    assert still[0]["r2"] == pytest.approx(still[0]["r2_init"], abs=1e-4)
    assert found[0]["r2_init"] == pytest.approx(still[0]["r2_init"], abs=1e-6)
    assert found[0]["r2"] != pytest.approx(found[0]["r2_init"], abs=1e-6)
    assert system is not same


def test_the_test_is_scored_on_test_studies_also_before_training(fit, make_heads):
    datamodule = make_heads("age")
    found, probe, system, trainer = fit("age", datamodule=datamodule)
    trainer.test(system, datamodule=datamodule, verbose=False)
    tested = probed(trainer)
    assert set(tested) == set(found[-1])
    assert tested["mae_init"] == pytest.approx(probe._init["test"]["mae"])
    assert tested["mae_init"] != found[-1]["mae_init"]


def test_the_same_run_gives_the_same_figures(fit):
    assert fit("age")[0] == fit("age")[0]


def test_augmentation_does_not_reach_the_probe(fit, make_heads):
    found = [
        fit(None, datamodule=make_heads("age", flip=flip), max_steps=2)[0][0] for flip in (0.0, 1.0)
    ]
    assert found[0]["mae_init"] == found[1]["mae_init"]
    assert found[0]["mae"] != found[1]["mae"]


def test_the_probe_changes_nothing_in_training(fit, make_heads, make_jepa, make_trainer):
    _, _, watched, _ = fit("sex", max_steps=3)
    alone = make_jepa()
    make_trainer(max_steps=3).fit(alone, datamodule=make_heads("sex"))
    for one, other in zip(watched.parameters(), alone.parameters(), strict=True):
        assert torch.equal(one, other)
    assert all(one.grad is None for one in watched.teacher.parameters())


def test_a_resumed_run_remembers_the_untrained_encoder(fit, tmp_path):
    found, _, system, trainer = fit("age")
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again, _, _, _ = fit("age", system=system, max_steps=6, ckpt_path=tmp_path / "last.ckpt")
    assert again[-1]["r2_init"] == found[-1]["r2_init"]


def test_it_may_wait_for_some_validations(fit):
    found, _, _, _ = fit("sex", probe=OnlineProbe(every_n_validations=2), max_steps=8)
    assert [bool(one) for one in found] == [False, True, True, True]  # figures stay until the next


def test_without_labels_there_is_no_probe(fit, make_heads):
    found, probe, _, _ = fit(None, datamodule=make_heads())
    assert found == [{}, {}]
    assert probe._init == {}


def test_another_system_is_left_alone(make_trainer):
    probe = OnlineProbe()
    make_trainer(callbacks=[probe]).fit(BoringModel())
    assert probe._init == {}


def labelled(*values):
    studies = [
        Study(
            id=f"s{number}",
            series=(Series(subject=f"p{number}", modality="T1", path=Path(f"/{number}.nii")),),
        )
        for number in range(len(values))
    ]
    labels = Labels(("x",), "binary", ("0", "1"), np.array(values, np.float32).reshape(-1, 1))
    manifest = Manifest.of(studies)
    return Manifest(
        studies=manifest.studies, series=manifest.series, bounds=manifest.bounds, labels=labels
    )


def test_studies_are_chosen_by_their_ids_and_only_labelled_ones():
    values = [0.0, 1.0, math.nan, 1.0, 0.0, 1.0, math.nan, 0.0, 1.0]
    every = labelled(*values)
    chosen = _labelled(every, 4).ids
    assert len(chosen) == 4
    assert not {"s2", "s6"} & set(chosen)
    assert sorted(_labelled(every.take(np.arange(9)[::-1]), 4).ids) == sorted(chosen)
    assert set(_labelled(every, 3).ids) < set(chosen)  # more studies keep the ones that were there
    assert _labelled(every, None).ids == [f"s{n}" for n in range(9) if n not in (2, 6)]


@pytest.mark.parametrize("name", ["max_studies", "every_n_validations", "num_neighbours"])
def test_a_count_below_one_is_refused(name):
    counts: dict[str, Any] = {name: 0}
    with pytest.raises(InputError, match=f"{name} must be at least 1"):
        OnlineProbe(**counts)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(InputError, match="one of mean, mean_std"):
        OnlineProbe(pooling="max")


@pytest.mark.slow
def test_two_processes_find_what_one_finds(make_trainer, make_jepa, make_heads, tmp_path):
    """Each encodes half of the studies and sees half of the validation."""
    found = []
    for name, settings in (("one", {}), ("two", {"strategy": "ddp_fork", "devices": 2})):
        callbacks = [Health(tmp_path / name), OnlineProbe(), FeaturePictures(tmp_path / name)]
        trainer = make_trainer(callbacks=callbacks, **settings)
        trainer.fit(make_jepa(lr=0.0), datamodule=make_heads("age", max_studies=1))
        table = (tmp_path / name / "health.tsv").read_text().splitlines()
        picture = (tmp_path / name / "pictures" / "step-000004.png").read_bytes()
        found.append((probed(trainer), table, picture))
    one, two = found
    assert two[0] == pytest.approx(one[0], rel=1e-5)
    # A deviation of last digits is one of rounding; the loss is of other images.
    for mine, yours in zip(one[1][1:], two[1][1:], strict=True):
        for column in (0, 1, 2, 3, 5, 6):
            assert float(yours.split("\t")[column]) == pytest.approx(
                float(mine.split("\t")[column]), rel=1e-3
            )
    assert two[2] == one[2]
