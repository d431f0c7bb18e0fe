"""What of an encoder is trained, and that it begins as it was."""

from __future__ import annotations

import pytest
import torch

from neuro.errors import InputError
from neuro.models.tuning import FineTuned, Frozen, Lora, Tuning, layers_of, merge_adapters
from neuro.models.vit import VisionTransformer


def encoder_of(seed=0):
    torch.manual_seed(seed)
    return VisionTransformer(48, 2, 4, patch_voxels=8, position_dim=12)


def shown(encoder):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(7, 8, generator=generator)
    coords = torch.randint(0, 5, (7, 3), generator=generator)
    return encoder(tokens, coords, torch.tensor([0, 3, 7]))


def trained(encoder):
    return {name for name, one in encoder.named_parameters() if one.requires_grad}


def test_a_frozen_encoder_has_nothing_to_train():  # S86
    encoder = encoder_of()
    Frozen().apply(encoder)
    assert trained(encoder) == set()
    assert Frozen().is_frozen


def test_all_of_a_fine_tuned_encoder_is_trained():  # S86
    encoder = encoder_of().requires_grad_(False)
    FineTuned().apply(encoder)
    assert trained(encoder) == {name for name, _ in encoder.named_parameters()}


def test_layers_are_all_of_an_encoder_from_its_input_on():
    encoder = encoder_of()
    layers = layers_of(encoder)
    assert layers[0] is encoder.token_embed
    assert layers[1:-1] == [*encoder.blocks]
    owned = [id(one) for layer in layers for one in layer.parameters()]
    assert sorted(owned) == sorted(id(one) for one in encoder.parameters())


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.1])
def test_a_decay_out_of_range_is_named(decay):
    with pytest.raises(InputError, match=r"system\.tuning\.layer_decay.*at most 1"):
        FineTuned(layer_decay=decay)


def test_each_way_is_one():
    for one in (Frozen(), FineTuned(), Lora()):
        assert isinstance(one, Tuning)


def test_without_its_library_an_adapter_names_the_cure(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'neuro\[lora\]'"):
        Lora().apply(encoder_of())


class TestAdapters:
    """With the library."""

    @pytest.fixture(autouse=True)
    def library(self):
        pytest.importorskip("peft")

    def test_only_adapters_are_trained_and_they_begin_as_nothing(self):  # S86
        encoder, plain = encoder_of(), encoder_of()
        Lora(rank=2).apply(encoder)
        names = trained(encoder)
        assert len(names) == 2 * 2 * 2  # two matrices of two layers in two blocks
        assert all(".lora_" in name for name in names)
        assert torch.equal(shown(encoder.eval()), shown(plain.eval()))

    def test_a_step_changes_the_output_and_none_of_the_weights(self):
        encoder = encoder_of()
        Lora(rank=2).apply(encoder)
        before = {name: one.detach().clone() for name, one in encoder.named_parameters()}
        said = shown(encoder)
        optimizer = torch.optim.SGD([one for one in encoder.parameters() if one.requires_grad], 1.0)
        said.square().sum().backward()
        optimizer.step()
        assert not torch.equal(shown(encoder), said)
        for name, one in encoder.named_parameters():
            assert torch.equal(one, before[name]) or ".lora_" in name

    def test_merged_they_are_part_of_the_weights_and_gone(self):
        encoder, plain = encoder_of().bfloat16(), encoder_of()
        Lora(rank=2).apply(encoder)
        assert [*encoder.state_dict()] != [*plain.state_dict()]
        for name, one in encoder.named_parameters():
            if ".lora_B" in name:
                torch.nn.init.normal_(one, std=1e-3)  # less than half precision can add
        layer = encoder.blocks[0].mixer.qkv
        delta = 16.0 / 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        before = layer.base_layer.weight.float()
        merge_adapters(encoder)
        assert [*encoder.state_dict()] == [*plain.state_dict()]
        found = encoder.blocks[0].mixer.qkv.weight - before
        torch.testing.assert_close(found, delta, rtol=1e-3, atol=1e-6)

    def test_merging_nothing_changes_nothing(self):
        encoder = encoder_of().bfloat16()
        merge_adapters(encoder)
        assert {one.dtype for one in encoder.parameters()} == {torch.bfloat16}

    def test_every_layer_that_is_named_gets_one(self):
        encoder = encoder_of()
        Lora(rank=2, layers=["fc1"]).apply(encoder)
        assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained(encoder)} == {"fc1"}

    def test_a_layer_that_does_not_exist_is_named(self):
        with pytest.raises(InputError, match=r"lora\.layers=\['query'\].*qkv"):
            Lora(layers=["query"]).apply(encoder_of())


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}])
def test_adapters_out_of_range_are_an_error(wrong):
    with pytest.raises(InputError, match="a rank of at least 1 and a dropout in"):
        Lora(**wrong)
