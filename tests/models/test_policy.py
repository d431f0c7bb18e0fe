"""What each policy trains, in which mode and precision, and that checkpointing changes nothing."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from small_llava import batch_of, mixed_studies, small_llava, volume_llava

from neuro.errors import InputError
from neuro.models.llava import load_llava
from neuro.models.policy import Policy
from neuro.models.tower_llava import TowerLlava
from neuro.models.tuning import Lora

STUDIES = mixed_studies()
POLICIES = {
    "embeddings": Policy(),
    "projector": Policy(projector=True),
    "none": Policy(projector=True, vision_tower=True, language_model=True),
}
ADAPTERS = Policy(
    lora={
        "vision_tower": Lora(layers=["q_proj", "v_proj"], dropout=0.5),
        "language_model": Lora(layers=["q_proj", "v_proj"], rank=4),
    }
)
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="the extra lora is not installed"
)


def losses_of(model, batch):
    features = model.image_features(batch.volumes, batch.images)
    losses, _ = model.token_losses(batch.input_ids, batch.attention_mask, batch.labels, features)
    return losses


def trained(model):
    return {name for name, one in model.named_parameters() if one.requires_grad}


@pytest.mark.parametrize("name", POLICIES)
def test_exactly_what_a_policy_names_gets_a_gradient(name, kind, encoder, recipes, collate):
    """Layers behind the one that features are taken from would never get one (D24)."""
    model = volume_llava(kind, encoder, recipes, policy=POLICIES[name])
    losses_of(model, batch_of(STUDIES, recipes, collate)).sum().backward()
    found = {key for key, one in model.named_parameters() if one.grad is not None}
    assert found == trained(model)
    parts = {
        "embedders": True,
        "multi_modal_projector": name != "embeddings",
        "vision_tower.encoder": name == "none",
        "language_model": name == "none",
    }
    for part, is_trained in parts.items():
        assert any(part in key for key in found) == is_trained


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_trained_follows_the_mode_and_what_is_frozen_does_not(
    name, kind, encoder, recipes
):  # D77
    model = volume_llava(kind, encoder, recipes, policy=POLICIES[name])
    inner = model.llava.model
    for mode in (True, False, True):
        model.train(mode)
        assert model.eye["T1"].training == mode
        assert inner.multi_modal_projector.training == (mode and name != "embeddings")
        assert inner.language_model.layers[0].training == (mode and name == "none")
        assert inner.vision_tower.encoder.training == (mode and name == "none")


@needs_peft
def test_adapters_are_the_only_thing_that_lora_adds(kind, encoder, recipes, collate):
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = volume_llava(kind, encoder, recipes)
    model = volume_llava(kind, encoder, recipes, policy=ADAPTERS)
    batch = batch_of(STUDIES[:2], recipes, collate)
    model.eval()
    begun = losses_of(model, batch)
    for one in model.modules():
        if isinstance(one, BaseTunerLayer):
            one.enable_adapters(False)
    torch.testing.assert_close(begun, losses_of(model, batch))  # they begin at 0
    for one in model.modules():
        if isinstance(one, BaseTunerLayer):
            one.enable_adapters(True)
    added = trained(model) - trained(plain)
    assert added
    assert all(".lora_" in name for name in added)
    components = [("vision_tower", 8), ("language_model", 4)]
    for component, rank in components:
        down = [
            one for name, one in model.named_parameters() if component in name and "lora_A" in name
        ]
        assert down
        assert {one.shape[0] for one in down} == {rank}
    losses_of(model.train(), batch).sum().backward()
    assert {name for name, one in model.named_parameters() if one.grad is not None} >= {
        name for name in added if "lora_B" in name and "layers.0" in name
    }


@needs_peft
def test_a_component_without_adapters_gets_none(kind, encoder, recipes):
    policy = Policy(lora={"vision_tower": None, "language_model": Lora(layers=["q_proj"])})
    model = volume_llava(kind, encoder, recipes, policy=policy)
    adapted = {name for name in trained(model) if ".lora_" in name}
    assert adapted
    assert all("language_model" in name for name in adapted)


@needs_peft
def test_dropout_of_adapters_is_on_in_training_only(kind, encoder, recipes, collate):
    model = volume_llava(kind, encoder, recipes, policy=ADAPTERS)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "lora_B" in name:
                one.normal_()
    batch = batch_of(STUDIES[:2], recipes, collate)
    model.train()
    assert not torch.equal(losses_of(model, batch), losses_of(model, batch))
    model.eval()
    assert torch.equal(losses_of(model, batch), losses_of(model, batch))


@needs_peft
def test_adapters_for_a_layer_that_is_not_there_name_those_that_are(kind, encoder, recipes):
    policy = Policy(lora={"language_model": Lora(layers=["qkv"])})
    with pytest.raises(InputError, match=r"lora\.layers=\['qkv'\].*Take some of .*q_proj"):
        volume_llava(kind, encoder, recipes, policy=policy)


def test_adapters_are_for_a_tower_and_a_language_model():
    with pytest.raises(InputError, match="names projector; adapters are for vision_tower and"):
        Policy(lora={"projector": Lora()})
    with pytest.raises(InputError, match="trains all of it"):
        Policy(language_model=True, lora={"language_model": Lora()})
    with pytest.raises(InputError, match="lr_scale must be above 0; got 0"):
        Policy(lr_scale=0)


@pytest.mark.parametrize("name", ["projector", "none"])
def test_what_is_trained_is_in_float32_under_autocast(
    name, kind, encoder, recipes, collate, tmp_path
):  # D25, D75
    small_llava(kind, len(encoder.tokenizer), encoder.image_id).save_pretrained(tmp_path)
    model = TowerLlava(load_llava(str(tmp_path), "bfloat16"), recipes, POLICIES[name])
    for key, one in model.named_parameters():
        if name == "projector":
            assert one.dtype == (torch.float32 if one.requires_grad else torch.bfloat16), key
        assert one.dtype == torch.float32 or not one.requires_grad, key
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses_of(model, batch_of(STUDIES, recipes, collate)).mean()
    loss.backward()
    assert loss.dtype == torch.float32
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    assert {one.dtype for one in gradients} == {torch.float32}
    assert all(one.isfinite().all() for one in gradients)


@pytest.mark.parametrize("name", ["embeddings", "none"])
def test_activations_are_computed_again_and_gradients_stay_as_they_are(
    name, kind, encoder, recipes, collate
):
    batch = batch_of(STUDIES, recipes, collate)
    found, runs = [], []
    for again in (False, True):
        model = volume_llava(
            kind, encoder, recipes, policy=POLICIES[name], checkpoint_activations=again
        )
        calls = []
        layers = [model.llava.model.language_model.layers[0].mlp]
        layers += [model.llava.model.vision_tower.encoder.layers[0].mlp]
        for layer in layers:
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        model.train()
        losses_of(model, batch).sum().backward()
        runs.append(len(calls))
        found.append({key: one.grad for key, one in model.named_parameters()})
    assert runs == [2, 4]
    for key, one in found[0].items():
        if one is not None:
            torch.testing.assert_close(one, found[1][key], rtol=1e-4, atol=1e-4)


def test_the_names_kept_are_those_that_are_trained(kind, encoder, recipes):  # D76
    for policy in POLICIES.values():
        model = volume_llava(kind, encoder, recipes, policy=policy)
        assert model.kept_names() == trained(model)
