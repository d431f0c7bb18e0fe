"""Each trainable parameter is in one group, and only weights of layers decay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from neuro.models.predictor import Predictor
from neuro.models.tuning import layers_of
from neuro.models.vit import VisionTransformer
from neuro.models.volume_embed import VolumeEmbed
from neuro.optim.groups import decay_groups, layerwise_groups, set_weight_decay


@dataclass(frozen=True)
class Grid:
    shape: tuple[int, ...] = (8, 8, 8)
    patch: tuple[int, ...] = (4, 4, 4)


class Everything(nn.Module):
    """A module of every kind that this project trains."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = VolumeEmbed({"T1": Grid(), "dMRI": Grid()}, dim=6)
        self.layers = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Conv3d(1, 2, 2))
        self.norm = nn.BatchNorm1d(6)
        self.table = nn.Embedding(5, 6)
        self.mask_token = nn.Parameter(torch.zeros(6))
        self.frozen = nn.Linear(6, 6).requires_grad_(False)


def named_groups(module):
    names = {id(one): name for name, one in module.named_parameters()}
    return {
        group["weight_decay"]: [names[id(one)] for one in group["params"]]
        for group in decay_groups(module, 0.1)
    }


def test_each_trainable_parameter_is_in_exactly_one_group():
    module = Everything()
    found = [name for group in named_groups(module).values() for name in group]
    trained = [name for name, one in module.named_parameters() if one.requires_grad]
    assert sorted(found) == sorted(trained)
    assert "frozen.weight" not in found


def test_biases_norms_and_tables_do_not_decay():
    groups = named_groups(Everything())
    assert set(groups[0.1]) == {
        "embed.embedders.T1.projection.weight",
        "embed.embedders.dMRI.projection.weight",
        "layers.0.weight",
        "layers.2.weight",
    }
    assert {
        "embed.embedders.T1.positions.0",
        "embed.embedders.dMRI.projection.bias",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
        "norm.weight",
        "table.weight",
        "mask_token",
    } <= set(groups[0.0])


def test_a_weight_that_two_layers_share_is_there_once():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    groups = decay_groups(nn.Sequential(first, second), 0.1)
    found = [id(one) for group in groups for one in group["params"]]
    assert len(found) == len(set(found)) == 3


def test_a_layer_that_is_used_twice_is_there_once():
    layer = nn.Linear(4, 4)
    groups = decay_groups(nn.Sequential(layer, nn.ReLU(), layer), 0.1)
    assert [len(group["params"]) for group in groups] == [1, 1]


def test_nothing_but_the_decay_differs_and_no_group_is_empty():
    assert decay_groups(Everything().frozen, 0.1) == []
    (only,) = decay_groups(nn.LayerNorm(4), 0.1)
    assert only["weight_decay"] == 0.0
    assert all(
        set(group) == {"params", "weight_decay"} for group in decay_groups(Everything(), 0.1)
    )


def test_a_modality_without_gradient_is_left_bit_for_bit():  # D58
    module = VolumeEmbed({"T1": Grid(), "dMRI": Grid()}, dim=6)
    optimizer = torch.optim.AdamW(decay_groups(module, 0.5), lr=0.1)
    before = {name: one.detach().clone() for name, one in module.named_parameters()}
    for _ in range(100):
        optimizer.zero_grad()
        sum(one.pow(2).sum() for one in module.embedders["T1"].parameters()).backward()
        optimizer.step()
    for name, one in module.named_parameters():
        assert torch.equal(one, before[name]) == ("dMRI" in name)


def test_of_encoder_and_predictor_only_matrices_decay():  # S29, S59
    both = nn.ModuleList(
        [VisionTransformer(36, 2, 2, patch_voxels=4), Predictor(36, 24, 1, 2, position_dim=6)]
    )
    groups = named_groups(both)
    assert "1.mask_token" in groups[0.0]
    assert all(name.endswith(".weight") and "norm" not in name for name in groups[0.1])
    assert {name for name in groups[0.0] if "norm" not in name} == {
        name for name, one in both.named_parameters() if one.ndim == 1 and "norm" not in name
    }


def test_only_groups_that_decay_take_another_decay():  # S29
    optimizer = torch.optim.AdamW(decay_groups(Everything(), 0.04))
    set_weight_decay(optimizer, 0.4)
    set_weight_decay(optimizer, 0.2)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.2, 0.0]


def test_each_part_has_a_rate_of_its_own_and_the_same_decay():  # S86
    encoder = VisionTransformer(36, 2, 2, patch_voxels=4)
    parts = [(layer, 0.5**place) for place, layer in enumerate(layers_of(encoder))]
    groups = layerwise_groups(parts, 0.1)
    rates = {id(one): group["lr_scale"] for group in groups for one in group["params"]}
    for layer, scale in parts:
        assert {rates[id(one)] for one in layer.parameters()} == {scale}
    assert len(rates) == sum(len(group["params"]) for group in groups)
    assert rates.keys() == {id(one) for one in encoder.parameters()}
    decays = {
        id(one): group["weight_decay"]
        for group in decay_groups(encoder, 0.1)
        for one in group["params"]
    }
    assert decays == {id(one): group["weight_decay"] for group in groups for one in group["params"]}


def test_a_part_without_anything_to_train_has_no_group():
    frozen = nn.Linear(3, 3).requires_grad_(False)
    assert layerwise_groups([(frozen, 0.5)], 0.1) == []
