"""A run with an encoder of ours as the eye: what it checks, trains and keeps."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from small_llava import small_llava

from neuro.data.collate import Background, ConversationCollator
from neuro.errors import InputError
from neuro.models.connector import PerceiverConnector
from neuro.models.policy import Policy
from neuro.models.tuning import FineTuned, Frozen
from neuro.models.vit import VisionTransformer
from neuro.models.vit_llava import VitLlava

NUM_QUERIES = 3


@pytest.fixture
def make_eye(make_system, texts):
    """Return a function that builds a system that looks through a small encoder."""

    def build(seed=0, tuning=None, patch_voxels=12**3):
        text = texts["siglip"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            llava = VitLlava(
                small_llava("siglip", len(text.tokenizer), text.image_id),
                VisionTransformer(48, 2, 3, patch_voxels=patch_voxels),
                partial(PerceiverConnector, num_queries=NUM_QUERIES, num_heads=3),
                tuning or Frozen(),
                Policy(),
            )
        return make_system(llava=llava)

    return build


@pytest.fixture
def make_data(make_datamodule, texts):
    """Return a function that builds studies of two modalities that share the encoder."""

    def build(slots=NUM_QUERIES, modalities=("T1", "dMRI"), pairs=(("dMRI", "T1"),)):
        data = make_datamodule(modalities=modalities, pairs=list(pairs))
        data.collate = ConversationCollator(
            texts["siglip"], Background(min_foreground=0.05), slots_per_image=slots, any_grid=True
        )
        return data

    return build


def val_loss(make_trainer, system, data, path=None):
    trainer = make_trainer(limit_val_batches=1.0)
    return trainer.validate(system, data, ckpt_path=path, verbose=False)[0]


def test_a_checkpoint_gives_back_eye_and_answers(make_eye, make_data, make_trainer, tmp_path):
    """Also where the frozen encoder was drawn otherwise: the run that it came from may be gone."""
    system, trainer, data = make_eye(seed=1), make_trainer(max_steps=3), make_data()
    trainer.fit(system, data)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    held = torch.load(tmp_path / "three.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[1] for name in held} == {"encoder", "connector"}
    expected = val_loss(make_trainer, system, make_data())
    other = make_eye(seed=2)
    assert val_loss(make_trainer, other, make_data()) != expected
    assert val_loss(make_trainer, other, make_data(), tmp_path / "three.ckpt") == expected


@pytest.mark.parametrize("tuning", [Frozen(), FineTuned()], ids=["frozen", "full"])
def test_a_run_moves_the_connector_and_the_encoder_only_if_it_is_tuned(
    make_eye, make_data, make_trainer, tuning
):
    system = make_eye(tuning=tuning)
    before = {name: one.detach().clone() for name, one in system.named_parameters()}
    make_trainer(max_steps=3).fit(system, make_data())
    moved = {
        name.split(".")[1]
        for name, one in system.named_parameters()
        if not torch.equal(one, before[name])
    }
    assert moved == ({"connector"} if tuning.is_frozen else {"connector", "encoder"})


def test_a_frozen_eye_ends_a_run_as_it_began(make_eye, make_data, make_trainer):
    system = make_eye()
    before = system.llava.encoder.state_dict()
    before = {name: one.clone() for name, one in before.items()}
    make_trainer(max_steps=3).fit(system, make_data())
    after = system.llava.encoder.state_dict()
    assert all(torch.equal(one, after[name]) for name, one in before.items())


def test_the_connector_gets_used_to_training_images_before_the_first_step(
    make_eye, make_data, make_trainer, tmp_path
):
    system, trainer = make_eye(), make_trainer(max_steps=1)
    trainer.fit(system, make_data())
    whiten = system.llava.connector.whiten
    assert int(whiten.num_seen) > 0
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    known = whiten.map.clone()
    # A tuned encoder would be another by now: what a checkpoint holds is not found anew.
    other = make_eye(seed=2)
    make_trainer(max_steps=2).fit(other, make_data(), ckpt_path=tmp_path / "one.ckpt")
    assert torch.equal(other.llava.connector.whiten.map, known)
    again = make_eye()
    make_trainer(max_steps=1).fit(again, make_data())
    assert torch.equal(again.llava.connector.whiten.map, known)


def test_every_study_is_answered(make_eye, make_data, make_trainer):
    system, data = make_eye(), make_data()
    make_trainer().test(system, data, verbose=False)
    shown = {answer.modalities for answer in system.answers[""]}
    assert shown == {("T1",), ("dMRI",), ("dMRI", "T1")}


def test_slots_that_the_connector_does_not_fill_are_told_before_training(make_eye, make_data):
    data = make_data(slots=NUM_QUERIES + 1)
    data.prepare_data()
    with pytest.raises(InputError, match=r"an image becomes 3, and the text holds 4 for it"):
        make_eye().prepare(data)


def test_patches_of_another_size_are_told_before_training(make_eye, make_data):
    data = make_data()
    data.prepare_data()
    with pytest.raises(InputError, match=r"a token of T1 has 1728 voxels .* the encoder takes 64"):
        make_eye(patch_voxels=64).prepare(data)


def test_a_run_in_time_is_refused(make_eye, make_data, recipes):
    with pytest.raises(InputError, match=r"images of rsfMRI have 4 axes"):
        make_eye().llava.check_grids(recipes)
    data = make_data(modalities=("rsfMRI",), pairs=())
    data.prepare_data()
    with pytest.raises(InputError, match=r"images of rsfMRI have 4 axes.*system/vision=tower"):
        make_eye().prepare(data)
